"""What is measured on the held-out tail, and how."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_training.domain.values import Metric

Float64 = npt.NDArray[np.float64]

_DAY_US: Final = 86_400_000_000


def measure(
    truth: Float64,
    quantiles: Float64,
    levels: tuple[float, ...],
    *,
    naive_error: float,
    origin_time_us: npt.NDArray[np.int64],
    step_us: int,
) -> tuple[Metric, ...]:
    """Return the metrics of a probabilistic forecast.

    mae, rmse, bias (forecast - truth), pinball (mean over levels), interval_width and worst_day_mae are in the target's
    unit; mase is the MAE over `naive_error`; coverage is the share of truths inside the outermost levels, whose nominal
    share is nominal_coverage. Per step for a few steps: mae and coverage, scope ``step=k``.

    Args:
        truth: float64 [n, horizon], NaN = missing, left out.
        quantiles: float64 [n, horizon, levels].
        levels: increasing, with 0.5.
        naive_error: mean absolute error of seasonal-naive on the fit part; NaN or 0 leaves mase out.
        origin_time_us: int64 [n].
        step_us: step of the horizon.
    """
    point = quantiles[:, :, levels.index(0.5)]
    known = ~np.isnan(truth)
    error = np.where(known, point - truth, 0.0)
    count = max(int(known.sum()), 1)
    mae = float(np.abs(error).sum() / count)
    found = [
        Metric(name="mae", value=mae),
        Metric(name="rmse", value=float(np.sqrt(np.square(error).sum() / count))),
        Metric(name="bias", value=float(error.sum() / count)),
    ]
    if np.isfinite(naive_error) and naive_error > 0:
        found.append(Metric(name="mase", value=mae / naive_error))
    found.append(Metric(name="worst_day_mae", value=_worst_day(np.abs(error), known, origin_time_us, step_us)))
    if len(levels) > 1:
        short = np.where(known[:, :, None], truth[:, :, None] - quantiles, 0.0)
        alpha = np.array(levels)
        pinball = np.maximum(alpha * short, (alpha - 1) * short).sum() / (count * len(levels))
        inside = known & (truth >= quantiles[:, :, 0]) & (truth <= quantiles[:, :, -1])
        width = np.where(known, quantiles[:, :, -1] - quantiles[:, :, 0], 0.0).sum() / count
        found += [
            Metric(name="pinball", value=float(pinball)),
            Metric(name="coverage", value=float(inside.sum() / count)),
            Metric(name="nominal_coverage", value=round(levels[-1] - levels[0], 12)),
            Metric(name="interval_width", value=float(width)),
        ]
    else:
        inside = None
    for step in reported_steps(truth.shape[1]):
        rows = max(int(known[:, step - 1].sum()), 1)
        scope = f"step={step}"
        found.append(Metric(name="mae", value=float(np.abs(error[:, step - 1]).sum() / rows), scope=scope))
        if inside is not None:
            found.append(Metric(name="coverage", value=float(inside[:, step - 1].sum() / rows), scope=scope))
    return tuple(found)


def reported_steps(horizon: int) -> tuple[int, ...]:
    """Return the steps reported singly: the first, the quarters and the last."""
    return tuple(sorted({1, max(1, horizon // 4), max(1, horizon // 2), horizon}))


def _worst_day(
    error: Float64, known: npt.NDArray[np.bool_], origin_time_us: npt.NDArray[np.int64], step_us: int
) -> float:
    """MAE of the worst day (UTC) of truths, among days with at least a quarter of the truths of the fullest day."""
    at = origin_time_us[:, None] + np.arange(error.shape[1]) * step_us
    days, of_day = np.unique(at // _DAY_US, return_inverse=True)
    of_day = of_day.reshape(error.shape)
    total = np.bincount(of_day.ravel(), error.ravel(), len(days))
    count = np.bincount(of_day.ravel(), known.ravel().astype(np.float64), len(days))
    full = count >= max(1.0, 0.25 * count.max(initial=0.0))
    return float((total[full] / count[full]).max()) if full.any() else 0.0


def mean_absolute_error(truth: Float64, point: Float64) -> float:
    """Return the MAE over known truths; NaN when there is none."""
    error = np.abs(point - truth)
    return float(np.nanmean(error)) if np.isfinite(error).any() else float("nan")
