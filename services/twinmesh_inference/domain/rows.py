"""From a window of the past to the bytes that a graph eats, and from what it gives to quantiles to be trusted."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.calendar import calendar_features
from twinmesh_core.errors import FailedPrecondition, Internal, Reason
from twinmesh_core.ids import quoted
from twinmesh_core.time import US_PER_S
from twinmesh_inference.domain.models import Deployment, Signature
from twinmesh_inference.domain.ports import Twin, Window

MIN_TARGET_COVERAGE: Final = 0.5
"""Share of the target's steps that must be present: below it the graph would mostly see what it filled in itself."""
_FLOAT32: Final = np.dtype("<f4")
Quantiles = npt.NDArray[np.float32]
"""float32 [..., steps, levels], in the target's unit, finite, not decreasing along the levels."""


def require_fit(twin: Twin, window: Window, signature: Signature) -> None:
    """Refuse a window whose units are not those that the model learned.

    Raises:
        FailedPrecondition: INCOMPATIBLE_UNIT, with the channel and both units.
    """
    for name, learned, unit in zip(signature.channels, signature.units, window.units, strict=True):
        if unit and learned and unit != learned:
            raise FailedPrecondition(
                f"The channel {quoted(name)} of {quoted(twin.twin_id)} is in {unit} and the model learned it in "
                f"{learned}; train a model on this twin.",
                reason=Reason.INCOMPATIBLE_UNIT,
                metadata={"channel": name, "unit": unit, "model_unit": learned},
            )


def steps_needed(signature: Signature) -> int:
    """Return how many steps of the target a window must hold."""
    return math.ceil(MIN_TARGET_COVERAGE * signature.context_steps)


def require_history(window: Window, signature: Signature) -> None:
    """Refuse a window that holds too little of the target.

    Raises:
        FailedPrecondition: NOT_ENOUGH_HISTORY, with the steps needed and available.
    """
    present = int(np.isfinite(window.values[:, signature.target_index]).sum())
    needed = steps_needed(signature)
    if present < needed:
        raise FailedPrecondition(
            f"The window of {signature.context_steps} steps holds {present} of {quoted(signature.target)} and {needed} "
            "are needed; wait for more measurements, load history, or choose a time with more of it.",
            reason=Reason.NOT_ENOUGH_HISTORY,
            metadata={"needed": str(needed), "available": str(present)},
        )


def require_fresh(window: Window, signature: Signature, now_unix_us: int, max_staleness_us: int) -> None:
    """Refuse a window whose newest value is older than `max_staleness_us`.

    Raises:
        FailedPrecondition: NOT_ENOUGH_HISTORY, with the age.
    """
    present = np.flatnonzero(np.isfinite(window.values).any(axis=1))
    steps_back = len(window.values) - 1 - int(present[-1]) if len(present) else len(window.values)
    age_us = now_unix_us - (window.at_unix_us - steps_back * signature.step_us)
    if age_us > max_staleness_us:
        raise FailedPrecondition(
            f"The newest input is {age_us / US_PER_S:.0f} s old and max_staleness allows "
            f"{max_staleness_us / US_PER_S:.0f} s; check that the twin still reports, or allow more.",
            reason=Reason.NOT_ENOUGH_HISTORY,
            metadata={"age_seconds": f"{age_us / US_PER_S:.0f}", "needed": "1", "available": "0"},
        )


def coverage(window: Window) -> float:
    """Return the share of the window's values that are present, 0 to 1."""
    return float(np.isfinite(window.values).mean())


def window_bytes(window: Window) -> bytes:
    """Return the graph's input "window" for one row: float32 [steps, channels], NaN = missing."""
    return np.ascontiguousarray(window.values, _FLOAT32).tobytes()


def calendar_bytes(window: Window, time_zone: str) -> bytes:
    """Return the graph's input "calendar" for one row: where the window's end lies in the local day and week."""
    features = calendar_features(np.array([window.at_unix_us], np.int64), time_zone)
    return np.ascontiguousarray(features, _FLOAT32).tobytes()


def quantiles_of(answer: memoryview | bytes, rows: int, deployment: Deployment) -> Quantiles:
    """Return the graph's output as float32 [rows, steps, levels], not decreasing along the levels.

    Learned quantiles may cross by a hair where a level was rarely seen; sorting is the standard rearrangement
    (Chernozhukov, Fernández-Val and Galichon, 2010) and never makes a quantile worse.

    Raises:
        Internal: the graph gave a value that is not a number; nothing of such an answer is used.
    """
    signature = deployment.signature
    values = np.frombuffer(answer, _FLOAT32).reshape(rows, signature.horizon_steps, len(signature.quantile_levels))
    if not np.isfinite(values).all():
        raise Internal(
            f"Version {deployment.version} of the model {quoted(deployment.model_id)} gave a value that is not a "
            "finite number; nothing was recorded. Ask for another version, or train the model again.",
            metadata={"model": deployment.model_id, "version": str(deployment.version)},
        )
    return np.sort(values, axis=2).astype(np.float32, copy=False)
