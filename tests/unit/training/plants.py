"""Generated plants: seeded, with the physics that the tests ask about."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twinmesh_training.domain.dataset import History
from twinmesh_training.domain.ports import ReadHistory

DAY_US = 86_400_000_000
START_US = 20_400 * DAY_US
CHANNELS = ("hot_spot", "oil", "load", "ambient", "cooling_stage")


def transformer(
    *, days: int, step_us: int, seed: int, explore: float = 0.1, twin_id: str = "T1", missing: float = 0.0
) -> History:
    """A transformer under its thermostat: columns as `CHANNELS`; the stage is also moved at random now and then."""
    random = np.random.default_rng(seed)
    minute = 60_000_000
    n = days * 1440
    t = np.arange(n)
    hour = t / 60 % 24
    weekend = (t // 1440 % 7) >= 5
    day = random.normal(0, 1, days + 1)[t // 1440]
    slow = np.cumsum(random.normal(0, 0.01, n))
    slow -= np.convolve(slow, np.ones(2880) / 2880, "same")
    load = 0.75 + 0.25 * np.sin((hour - 9) * np.pi / 12) + 0.12 * np.sin((hour - 3) * np.pi / 6) - 0.15 * weekend
    load = np.clip(load + 0.05 * day + 0.08 * slow + random.normal(0, 0.01, n), 0.1, 1.6)
    ambient = 18 + 7 * np.sin((hour - 10) * np.pi / 12) + 2.5 * random.normal(0, 1, days + 1)[t // 1440]
    ambient = np.convolve(np.pad(ambient, 180, mode="edge"), np.ones(361) / 361, "valid") + random.normal(0, 0.1, n)
    oil_rise, gradient, stage = 35.0, 20.0, 1
    values = np.empty((n, 5))
    forced = -1
    for i in range(n):
        hot = ambient[i] + oil_rise + gradient
        if i % 10 == 0:
            if random.random() < explore / 18:
                forced = int(random.integers(0, 4))
            elif random.random() < 1 / 18:
                forced = -1
            if forced >= 0:
                stage = forced
            else:
                stage = stage + 1 if hot > 92 and stage < 3 else stage - 1 if hot < 78 and stage > 0 else stage
        final = 55 * ((1 + 6 * load[i] ** 2) / 7) ** 0.8 * (1.0, 0.82, 0.68, 0.58)[stage]
        oil_rise += (final - oil_rise) / 150
        gradient += (26 * load[i] ** 1.3 - gradient) / 7
        values[i] = (ambient[i] + oil_rise + gradient, ambient[i] + oil_rise, load[i], ambient[i], stage)
    values[:, :2] += random.normal(0, 0.4, (n, 2))
    k = step_us // minute
    stepped = values[: n // k * k].reshape(-1, k, 5).mean(axis=1)
    if missing:
        stepped[random.random(stepped.shape) < missing] = np.nan
    return History(twin_id=twin_id, time_zone="Europe/Berlin", values=stepped, start_us=START_US)


def history(*twins: History, channels: tuple[str, ...] = CHANNELS) -> ReadHistory:
    """Put the columns named, in that order, into what a reader would answer."""
    columns = [CHANNELS.index(c) for c in channels]
    chosen = tuple(
        History(twin_id=t.twin_id, time_zone=t.time_zone, values=t.values[:, columns], start_us=t.start_us)
        for t in twins
    )
    units = {"hot_spot": "Cel", "oil": "Cel", "load": "1", "ambient": "Cel", "cooling_stage": "1"}
    return ReadHistory(histories=chosen, units=tuple(units[c] for c in channels), as_of_offset=7, incarnation="x")


def season(*, days: int, step_us: int, seed: int, noise: float = 1.0) -> npt.NDArray[np.float64]:
    """One column: a daily wave, a wandering level and noise."""
    random = np.random.default_rng(seed)
    n = days * DAY_US // step_us
    t = np.arange(n) * step_us / DAY_US
    level = np.zeros(n)
    for i in range(1, n):
        level[i] = 0.97 * level[i - 1] + random.normal(0, 0.8)
    return (50 + 8 * np.sin(2 * np.pi * t) + level + random.normal(0, noise, n))[:, None]
