"""From a window to features: imputation, normalisation, pooling, calendar. The exported graph repeats it step by step.

Two ways of normalising are offered to the validation, because each is right for another kind of twin:

* LEVEL subtracts each channel's last value and divides by a constant, and adds the levels (and their products) as
  features: exact for linear physics, whose answer depends on absolute temperatures and loads;
* WINDOW subtracts the window's mean and divides by its deviation: robust where the level wanders, as in energy use.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

CLIP: Final = 10.0
"""Normalised values beyond this many deviations are cut off: one wild reading must not throw a linear map."""
_TARGET_SEGMENTS: Final = 512
_OTHER_SEGMENTS: Final = 48
_OTHER_FEATURES: Final = 1_024
_MAX_PRODUCT_CHANNELS: Final = 12
SCALE_FLOOR: Final = 0.05
DAY_HARMONICS: Final = 3
WEEK_HARMONICS: Final = 3
CALENDAR_WIDTH: Final = 2 * DAY_HARMONICS + 2 * WEEK_HARMONICS + 4 * 2 * WEEK_HARMONICS


class Normalisation(IntEnum):
    """How a window is brought to a common scale; see the module."""

    LEVEL = 0
    LEVEL_PRODUCTS = 1
    WINDOW = 2

    @property
    def has_levels(self) -> bool:
        """Whether absolute levels are among the features."""
        return self is not Normalisation.WINDOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What a map reads.

    Attributes:
        values: float64 [n, features].
        centre: float64 [n], what the target's normalisation subtracted, target units.
        scale: float64 [n], what it divided by, target units.
        known: float64 [n, context, channels], the window without NaN.
    """

    values: Float64
    centre: Float64
    scale: Float64
    known: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """Turns windows into features; all constants come from the fit part.

    Attributes:
        normalisation: the way of normalising.
        target: index of the target channel.
        channel_mean: float64 [channels]; also stands in for a channel that a window does not know at all.
        channel_scale: float64 [channels], deviation, above 0.
        target_pool: float64 [context, segments]: how the target's steps are averaged (identity while they fit).
        other_pool: float64 [context, segments]: the same for every other channel.
        calendar: whether the calendar is among the features; over few seasons it is learned by heart.

    `context` may be shorter than the window: then only its newest steps are read.
    """

    normalisation: Normalisation
    target: int
    channel_mean: Float64
    channel_scale: Float64
    target_pool: Float64
    other_pool: Float64
    calendar: bool = True

    @property
    def context(self) -> int:
        """Number of steps read, the newest of the window."""
        return len(self.target_pool)

    @property
    def others(self) -> tuple[int, ...]:
        """Indices of the channels other than the target, in order."""
        return tuple(c for c in range(len(self.channel_mean)) if c != self.target)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of channels whose levels are multiplied."""
        count = len(self.channel_mean)
        if self.normalisation is not Normalisation.LEVEL_PRODUCTS or count > _MAX_PRODUCT_CHANNELS:
            return ()
        return tuple((i, j) for i in range(count) for j in range(i, count))

    @property
    def width(self) -> int:
        """Number of features."""
        levels = len(self.channel_mean) if self.normalisation.has_levels else 0
        pooled = self.target_pool.shape[1] + len(self.others) * self.other_pool.shape[1]
        return int(pooled) + levels + len(self.pairs) + (CALENDAR_WIDTH if self.calendar else 0)

    def compute(self, window: npt.NDArray[np.floating], calendar: npt.NDArray[np.floating]) -> Features:
        """Return the features of windows [n, context, channels] (NaN = missing) with calendars [n, 4]."""
        known = impute(window.astype(np.float64), self.channel_mean)
        seen = known[:, -self.context :, :]
        if self.normalisation is Normalisation.WINDOW:
            centre = seen.mean(axis=1)
            deviation = np.sqrt(np.square(seen - centre[:, None, :]).mean(axis=1))
            scale = np.sqrt(np.square(deviation) + np.square(SCALE_FLOOR * self.channel_scale))
        else:
            centre = seen[:, -1, :]
            scale = np.broadcast_to(self.channel_scale, centre.shape)
        z = np.clip((seen - centre[:, None, :]) / scale[:, None, :], -CLIP, CLIP)
        parts = [z[:, :, self.target] @ self.target_pool]
        if self.others:
            pooled = np.swapaxes(z[:, :, list(self.others)], 1, 2) @ self.other_pool
            parts.append(pooled.reshape(len(z), -1))
        if self.normalisation.has_levels:
            level = np.clip((centre - self.channel_mean) / self.channel_scale, -CLIP, CLIP)
            parts.append(level)
            if self.pairs:
                left, right = np.array(self.pairs).T
                parts.append(level[:, left] * level[:, right])
        if self.calendar:
            parts.append(calendar_basis(calendar))
        return Features(
            values=np.concatenate(parts, axis=1),
            centre=centre[:, self.target],
            scale=scale[:, self.target].copy(),
            known=known,
        )


def impute(window: Float64, fallback: Float64) -> Float64:
    """Return the window without NaN: the last known value, before the first one the window's mean, else `fallback`.

    The newest known value is found by doubling distances, as the graph does it: no loop over steps.
    """
    missing = np.isnan(window)
    if not missing.any():
        return window
    count = (~missing).sum(axis=1)
    mean = np.where(missing, 0.0, window).sum(axis=1) / np.maximum(count, 1)
    stand_in = np.where(count > 0, mean, fallback)
    held = window
    distance = 1
    while distance < window.shape[1]:
        shifted = np.concatenate((held[:, :distance] * np.nan, held[:, :-distance]), axis=1)
        held = np.where(np.isnan(held), shifted, held)
        distance *= 2
    return np.where(np.isnan(held), stand_in[:, None, :], held)


def calendar_basis(calendar: npt.NDArray[np.floating]) -> Float64:
    """Return float64 [n, CALENDAR_WIDTH]: harmonics of day and week and their products, from the two circles [n, 4]."""
    values = calendar.astype(np.float64)
    day = _harmonics(values[:, 0], values[:, 1], DAY_HARMONICS)
    week = _harmonics(values[:, 2], values[:, 3], WEEK_HARMONICS)
    products = (day[:, :4, None] * week[:, None, :]).reshape(len(day), -1)
    return np.concatenate((day, week, products), axis=1)


def _harmonics(sine: Float64, cosine: Float64, count: int) -> Float64:
    """[n, 2 * count]: sin(k x), cos(k x) for k = 1..count, by the addition theorem, as the graph does it."""
    columns = [sine, cosine]
    for _ in range(count - 1):
        previous_sine, previous_cosine = columns[-2], columns[-1]
        columns.append(previous_sine * cosine + previous_cosine * sine)
        columns.append(previous_cosine * cosine - previous_sine * sine)
    return np.stack(columns, axis=1)


def make_feature_map(
    normalisation: Normalisation,
    *,
    target: int,
    context: int,
    mean: Float64,
    scale: Float64,
    calendar: bool = True,
) -> FeatureMap:
    """Return the map for windows of `context` steps whose channels have this mean and deviation in the fit part."""
    others = max(1, len(mean) - 1)
    return FeatureMap(
        normalisation=normalisation,
        target=target,
        channel_mean=mean,
        channel_scale=scale,
        target_pool=pooling(context, _TARGET_SEGMENTS),
        calendar=calendar,
        other_pool=pooling(context, max(4, min(_OTHER_SEGMENTS, _OTHER_FEATURES // others))),
    )


def pooling(context: int, limit: int) -> Float64:
    """Return float64 [context, segments], segments <= limit: means over stretches that grow with age; newest last."""
    widths: list[int] = []
    growth = 1.0
    while True:
        widths, left = [], context
        while left:
            width = min(left, max(1, int(growth ** len(widths))))
            widths.append(width)
            left -= width
        if len(widths) <= limit:
            break
        growth += 0.005
    pool = np.zeros((context, len(widths)))
    end = context
    for column, width in enumerate(widths):
        pool[end - width : end, len(widths) - 1 - column] = 1.0 / width
        end -= width
    return pool


def channel_statistics(values: list[Float64]) -> tuple[Float64, Float64]:
    """Return mean and deviation [channels] of matrices [steps, channels] with NaN = missing.

    A channel that is constant or unknown gets deviation 1, so that it divides by nothing harmful.
    """
    together = np.concatenate(values)
    known = ~np.isnan(together)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, together, 0.0).sum(axis=0) / count
    deviation = np.sqrt(np.where(known, np.square(together - mean), 0.0).sum(axis=0) / count)
    negligible = deviation <= 1e-9 * np.maximum(np.abs(mean), 1e-9)
    return mean, np.where(negligible, 1.0, deviation)
