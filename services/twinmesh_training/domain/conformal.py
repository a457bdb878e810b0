"""Split conformal calibration: how far the truth strayed from the point forecast on windows that nothing was fitted on.

Source: V. Vovk, A. Gammerman, G. Shafer, "Algorithmic Learning in a Random World" (2005); signed residuals per step, as
Y. Romano et al., "Conformalized Quantile Regression" (2019), so that skewed errors give skewed intervals. Time series
are not exchangeable: the promise is the coverage *measured* on the held-out tail, not a theorem.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_SMOOTHING = 5
"""Steps over which an offset is averaged: neighbouring steps err alike, and their quantiles are noisy alone."""


def conformal_offsets(residual: Float64, levels: tuple[float, ...]) -> Float64:
    """Return float64 [horizon, levels]: what to add to the point forecast so that each level is met.

    The median keeps the point forecast (a calibration stretch is too short to tell a lasting bias from its weather);
    lower levels never rise above it and higher ones never fall below.

    Args:
        residual: float64 [n, horizon], truth - point in time order, NaN = no truth.
        levels: increasing, among them 0.5.
    """
    horizon = residual.shape[1]
    offsets = np.zeros((horizon, len(levels)))
    for step in range(horizon):
        known = np.sort(residual[~np.isnan(residual[:, step]), step])
        if known.size:
            offsets[step] = [_quantile(known, level) for level in levels]
    offsets = _smooth(offsets)
    for column, level in enumerate(levels):
        if level < 0.5:
            offsets[:, column] = np.minimum(offsets[:, column], 0.0)
        elif level > 0.5:
            offsets[:, column] = np.maximum(offsets[:, column], 0.0)
        else:
            offsets[:, column] = 0.0
    return offsets


def _quantile(ordered: Float64, level: float) -> float:
    """The level's order statistic with the finite-sample correction of split conformal, outward from the median."""
    n = len(ordered)
    rank = np.ceil((n + 1) * level) if level > 0.5 else np.floor((n + 1) * level)
    return float(ordered[int(np.clip(rank - 1, 0, n - 1))])


def _smooth(offsets: Float64) -> Float64:
    width = min(_SMOOTHING, len(offsets)) | 1
    if width > len(offsets) or width < 3:
        return offsets
    padded = np.pad(offsets, ((width // 2, width // 2), (0, 0)), mode="edge")
    return np.stack([np.convolve(padded[:, q], np.full(width, 1 / width), "valid") for q in range(offsets.shape[1])], 1)
