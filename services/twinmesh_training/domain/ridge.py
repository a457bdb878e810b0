"""Ridge regression in closed form, its strength chosen by forward validation: the gate that every network must beat.

Source: A. E. Hoerl, R. W. Kennard, "Ridge Regression", Technometrics 12 (1970); one eigendecomposition of the Gram
matrix serves every strength.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

STRENGTHS: Final = tuple(10.0**k for k in np.arange(-5.0, 1.01, 1.0))
"""Strengths tried, relative to the number of rows; features have unit variance."""
_MANY_FEATURES: Final = 700


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearMap:
    """y = x @ weights + bias.

    Attributes:
        weights: float64 [features, outputs].
        bias: float64 [outputs].
        strength: chosen regularisation, relative to the number of rows.
        loss: mean squared error of the forward validation at that strength, in the caller's unit.
    """

    weights: Float64
    bias: Float64
    strength: float
    loss: float

    def apply(self, x: Float64) -> Float64:
        """Return float64 [n, outputs]."""
        return x @ self.weights + self.bias


@dataclass(frozen=True, slots=True)
class _Moments:
    """Sums over rows; those of two blocks add up."""

    count: float
    x: Float64
    y: Float64
    xx: Float64
    xy: Float64

    def plus(self, other: _Moments) -> _Moments:
        return _Moments(
            self.count + other.count, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy
        )


def fit_ridge(
    x: npt.NDArray[np.floating],
    y: Float64,
    *,
    unit: Float64 | None = None,
    purge: int = 0,
    blocks: int = 4,
    check: Callable[[], None] = lambda: None,
) -> LinearMap:
    """Fit in closed form; the strength is the one with the least squared error on blocks of time after the fitted ones.

    Each block is scored by a fit of all blocks before it, as in service: a level that drifts is not interpolated.

    Args:
        x: floating [n, features], rows in time order.
        y: float64 [n, outputs], no NaN.
        unit: float64 [n]: factor that brings a row's error to the caller's unit; None = 1.
        purge: rows at the begin of a block that are not scored, because they overlap the block before.
        blocks: how many blocks; fewer for very wide inputs, whose decomposition costs more than it decides.
        check: called between steps; raises to stop.
    """
    n = len(x)
    mean = x.mean(axis=0, dtype=np.float64)
    deviation = x.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 1e-9, deviation, 1.0)
    standard = ((x - mean) / scale).astype(np.float32)
    standard[:, deviation <= 1e-9] = 0.0
    weight = np.ones(n) if unit is None else unit

    blocks = max(2, min(blocks, n // 16)) if x.shape[1] <= _MANY_FEATURES else 2
    edges = np.linspace(0, n, blocks + 1).astype(int)
    parts = [_moments(standard[a:b], y[a:b]) for a, b in pairwise(edges)]
    past = parts[0]
    losses = np.zeros(len(STRENGTHS))
    scored = 0
    for part, (a, b) in zip(parts[1:], list(pairwise(edges))[1:], strict=True):
        check()
        inner = slice(a + min(purge, (b - a) // 2), b)
        solve = _solver(past)
        for k, strength in enumerate(STRENGTHS):
            weights, bias = solve(strength)
            error = (standard[inner] @ weights.astype(np.float32) + bias - y[inner]) * weight[inner, None]
            losses[k] += float(np.square(error).sum())
        scored += (inner.stop - inner.start) * y.shape[1]
        past = past.plus(part)
    check()
    best = int(np.argmin(losses))
    weights, bias = _solver(past)(STRENGTHS[best])
    folded = np.where(deviation[:, None] > 1e-9, weights / scale[:, None], 0.0)
    return LinearMap(
        weights=folded,
        bias=bias - mean @ folded,
        strength=STRENGTHS[best],
        loss=float(losses[best] / max(scored, 1)),
    )


def _moments(x: npt.NDArray[np.float32], y: Float64) -> _Moments:
    # The products in float32 cost a quarter; their error is far below the least strength tried.
    return _Moments(
        float(len(x)),
        x.sum(axis=0, dtype=np.float64),
        y.sum(axis=0),
        (x.T @ x).astype(np.float64),
        (x.T @ y.astype(np.float32)).astype(np.float64),
    )


def _solver(moments: _Moments) -> Callable[[float], tuple[Float64, Float64]]:
    """Decompose once; the function returned solves for any strength, with the intercept left unpenalised."""
    n = moments.count
    mean_x, mean_y = moments.x / n, moments.y / n
    gram = moments.xx / n - np.outer(mean_x, mean_x)
    cross = moments.xy / n - np.outer(mean_x, mean_y)
    values, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ cross
    values = np.maximum(values, 0.0)

    def solve(strength: float) -> tuple[Float64, Float64]:
        weights = vectors @ (rotated / (values + strength)[:, None])
        return weights, mean_y - mean_x @ weights

    return solve
