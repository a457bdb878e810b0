"""Models as inference sees them: what a version eats and gives, how it is proven, and where it stands in Triton."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

FLOAT32_BYTES: Final = 4
CALENDAR_WIDTH: Final = 4
MAX_ROW_BYTES: Final = 8 * 1024 * 1024
"""One row of a model's inputs and outputs together may not be larger: a batch travels as one message."""


class ModelTask(StrEnum):
    """What a model answers."""

    FORECAST = "FORECAST"
    DYNAMICS = "DYNAMICS"


class DeploymentState(StrEnum):
    """Where a version is in Triton."""

    LOADING = "LOADING"
    READY = "READY"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What goes into and comes out of a version's graph.

    Attributes:
        channels: columns of the window, in order; the target is among them.
        units: canonical unit of each channel.
        target: the channel predicted.
        controls: columns of the planned future, in order; empty for a forecast.
        step_us: step of window and horizon, microseconds.
        context_steps: steps of the window.
        horizon_steps: steps of the horizon.
        quantile_levels: levels of the output, increasing, within (0, 1).
        control_min: lowest value of each control seen in training.
        control_max: highest value of each control seen in training.
    """

    channels: tuple[str, ...]
    units: tuple[str, ...]
    target: str
    controls: tuple[str, ...] = ()
    step_us: int
    context_steps: int
    horizon_steps: int
    quantile_levels: tuple[float, ...]
    control_min: tuple[float, ...] = ()
    control_max: tuple[float, ...] = ()

    @property
    def target_index(self) -> int:
        """Column of the target in the window."""
        return self.channels.index(self.target)

    @property
    def target_unit(self) -> str:
        """Unit of what is predicted."""
        return self.units[self.target_index]

    @property
    def horizon_us(self) -> int:
        """Length of the horizon, microseconds."""
        return self.horizon_steps * self.step_us

    def problem(self, task: ModelTask) -> str:
        """Return why no model can have this signature, in words; empty when it can."""
        checks: tuple[tuple[bool, str], ...] = (
            (self.target in self.channels, "the target is not a channel of the window"),
            (len(self.units) == len(self.channels), "units and channels differ in number"),
            (len(set(self.channels)) == len(self.channels), "a channel of the window is named twice"),
            (self.step_us > 0, "the step is not positive"),
            (self.context_steps > 0 and self.horizon_steps > 0, "window or horizon has no steps"),
            (_increasing_levels(self.quantile_levels), "the quantile levels are not increasing within 0 and 1"),
            (0.5 in self.quantile_levels, "the quantile levels lack the median"),
            (bool(self.controls) == (task is ModelTask.DYNAMICS), "controls and task contradict each other"),
            (
                len(self.control_min) == len(self.control_max) == len(self.controls),
                "controls and the range seen of them differ in number",
            ),
        )
        for holds, words in checks:
            if not holds:
                return words
        row = sum(tensor.row_bytes for tensor in (*self.inputs(), self.output()))
        return "" if row <= MAX_ROW_BYTES else f"one row has {row} bytes, more than the {MAX_ROW_BYTES} that fit a call"

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return the graph's inputs, in the order in which they are sent."""
        tensors = [
            TensorSpec(name="window", dims=(self.context_steps, len(self.channels))),
            TensorSpec(name="calendar", dims=(CALENDAR_WIDTH,)),
        ]
        if self.controls:
            tensors.append(TensorSpec(name="future", dims=(self.horizon_steps, len(self.controls))))
        return tuple(tensors)

    def output(self) -> TensorSpec:
        """Return the graph's output."""
        return TensorSpec(name="quantiles", dims=(self.horizon_steps, len(self.quantile_levels)))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A float32 tensor of a graph; `dims` without the leading row dimension."""

    name: str
    dims: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return FLOAT32_BYTES * math.prod(self.dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One version in Triton, as a call needs it: hashable, equal exactly when rows may share a batch.

    Attributes:
        name: the model's name in Triton.
        version: its version.
        inputs: tensors in the order in which their bytes are given.
        output: the tensor asked for.
        max_batch_size: most rows of one call.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    max_batch_size: int

    def rows_within(self, max_bytes: int) -> int:
        """Return how many rows one call may carry when a message is bounded to `max_bytes`; at least 1."""
        row = max(sum(tensor.row_bytes for tensor in self.inputs), self.output.row_bytes)
        return max(1, min(self.max_batch_size, max_bytes // row))


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCheck:
    """A few rows of input with the output that the trained model gave: float32, little-endian, row-major."""

    rows: int
    inputs: Mapping[str, bytes]
    quantiles: bytes
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One trained artifact as the registry describes it.

    Attributes:
        model_id: the model.
        version: dense from 1.
        task: what it answers.
        signature: its inputs and outputs.
        twin_ids: twins it learned from.
        artifact_sha256: digest of the ONNX file, hex.
        artifact_bytes: size of the ONNX file.
        golden: None where the registry was asked to leave it out.
    """

    model_id: str
    version: int
    task: ModelTask
    signature: Signature
    twin_ids: tuple[str, ...] = ()
    artifact_sha256: str
    artifact_bytes: int
    golden: GoldenCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One version that is, or should be, in Triton.

    Attributes:
        model_id: the model.
        version: the version.
        task: what it answers.
        signature: its inputs and outputs.
        twin_ids: twins it learned from.
        artifact_sha256: digest of the file that was proven.
        state: where it stands.
        message: why it failed, for a person; empty otherwise.
        ready_time_us: when it was last proven, microseconds since the Unix epoch; 0 = never.
    """

    model_id: str
    version: int
    task: ModelTask
    signature: Signature
    twin_ids: tuple[str, ...]
    artifact_sha256: str
    state: DeploymentState
    message: str = ""
    ready_time_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """Where a model's unpinned calls go: one row, moved in one statement.

    Attributes:
        model_id: the model.
        serving: the version that answers.
        previous: the one before it, kept loaded for a roll-back; 0 = none.
    """

    model_id: str
    serving: int
    previous: int = 0


def _increasing_levels(levels: tuple[float, ...]) -> bool:
    return bool(levels) and levels[0] > 0 and levels[-1] < 1 and all(a < b for a, b in itertools.pairwise(levels))
