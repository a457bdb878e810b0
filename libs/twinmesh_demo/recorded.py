"""The recorded past of the two transformers, with the dirt of real life in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.observations import ObservationBatch, Section, SeriesKey, double_section, int64_section
from twinmesh_core.time import from_datetime
from twinmesh_demo.plant import MINUTE, Transformer, World, initial, record

CHANNELS: Final = ("load", "ambient", "oil", "hot_spot", "cooling_stage", "fan_power")
DOUBLES: Final = tuple(c for c in CHANNELS if c != "cooling_stage")
POINTS_PER_BATCH: Final = 10_000
SPIKES: Final = 400
STUCK_MINUTES: Final = 190
GAP_MINUTES: Final = 20
LATE_MINUTES: Final = 120
SKEWED_ROWS: Final = 60
SKEW: Final = timedelta(hours=3.2)
FAHRENHEIT_TWIN: Final = "T2"
"""This one's weather station reports in degrees Fahrenheit; ingestion converts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """One transformer's past: int64 [n] times in microseconds and float64 [n, channels] values, NaN = not recorded.

    Attributes:
        late: bool [n], minutes that the gateway sends only at the very end.
        end: the transformer's state after it.
    """

    twin_id: str
    time_unix_us: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    late: npt.NDArray[np.bool_]
    end: Transformer

    @property
    def point_count(self) -> int:
        """Values that will be sent."""
        return int(np.isfinite(self.values).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirt:
    """What was put in, to be compared with what the mesh found.

    Attributes:
        spike_times: when a value of T1's oil was lifted by tens of kelvins.
        stuck: when T2's ambient sensor stood still.
        gap: when T1's gateway was off, and how many points it would have sent.
        late: when T2's gateway buffered, and how many points.
        skewed: rows of T2 with a clock that is ahead.
    """

    spike_times: list[datetime]
    stuck: tuple[datetime, datetime]
    gap: tuple[datetime, datetime]
    gap_points: int
    late: tuple[datetime, datetime]
    late_points: int
    skewed: int

    @property
    def spikes(self) -> int:
        """How many values were lifted."""
        return len(self.spike_times)


def play_past(world: World, twin_id: str, minutes: int, *, seed: int) -> Recording:
    """Simulate the recorded past of one transformer, still clean."""
    transformer = initial(world, twin_id)
    rows = np.array([[r[c] for c in CHANNELS] for _, r in record(world, transformer, minutes, seed=seed)])
    start_us = from_datetime(world.start)
    times = start_us + np.arange(minutes, dtype=np.int64) * 60_000_000
    return Recording(
        twin_id=twin_id, time_unix_us=times, values=rows, late=np.zeros(minutes, np.bool_), end=transformer
    )


def soil(recordings: dict[str, Recording], *, start: datetime, seed: int) -> Dirt:
    """Put the dirt of real life into the recordings, in place, and return what was put in."""
    rng = np.random.default_rng(seed)
    first, second = recordings["T1"], recordings["T2"]
    minutes = len(first.time_unix_us)

    def span(at: int, length: int) -> tuple[datetime, datetime]:
        return start + at * MINUTE, start + (at + length) * MINUTE

    spikes = np.sort(rng.choice(np.arange(60, minutes - 60, 5), SPIKES, replace=False))
    first.values[spikes, CHANNELS.index("oil")] += rng.uniform(25.0, 60.0, SPIKES)

    stuck, gap, late = minutes // 3, minutes // 2, 2 * minutes // 3
    second.values[stuck : stuck + STUCK_MINUTES, CHANNELS.index("ambient")] = second.values[
        stuck, CHANNELS.index("ambient")
    ]
    gap_points = int(np.isfinite(first.values[gap : gap + GAP_MINUTES]).sum())
    first.values[gap : gap + GAP_MINUTES] = np.nan
    second.late[late : late + LATE_MINUTES] = True
    return Dirt(
        spike_times=[start + int(m) * MINUTE for m in spikes],
        stuck=span(stuck, STUCK_MINUTES),
        gap=span(gap, GAP_MINUTES),
        gap_points=gap_points,
        late=span(late, LATE_MINUTES),
        late_points=int(np.isfinite(second.values[second.late]).sum()),
        skewed=SKEWED_ROWS,
    )


def batches(recording: Recording) -> Iterator[ObservationBatch]:
    """Yield a recording as its gateway sends it: in order of time, what was buffered comes last."""
    per_batch = POINTS_PER_BATCH // len(CHANNELS)
    in_time, late = np.flatnonzero(~recording.late), np.flatnonzero(recording.late)
    for rows in (in_time, late):
        for start in range(0, len(rows), per_batch):
            yield to_batch(
                recording.twin_id,
                recording.time_unix_us[rows[start : start + per_batch]],
                recording.values[rows[start : start + per_batch]],
            )


def skewed_batch(recording: Recording, now: datetime) -> ObservationBatch:
    """Return rows of a gateway whose clock is hours ahead of everybody else's."""
    rows = SKEWED_ROWS // len(CHANNELS)
    times = from_datetime(now + SKEW) + np.arange(rows, dtype=np.int64) * 60_000_000
    return to_batch(recording.twin_id, times, recording.values[-rows:])


def to_batch(twin_id: str, times: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> ObservationBatch:
    """Return a matrix of readings [n, channels] as a columnar batch; NaN cells are not sent."""
    keys = tuple(
        SeriesKey(
            twin_id=twin_id,
            channel=c,
            unit="degF" if c == "ambient" and twin_id == FAHRENHEIT_TWIN else "",
        )
        for c in CHANNELS
    )
    values = values.copy()
    if twin_id == FAHRENHEIT_TWIN:
        values[:, CHANNELS.index("ambient")] = values[:, CHANNELS.index("ambient")] * 1.8 + 32.0
    doubles = _section(times, values, [CHANNELS.index(c) for c in DOUBLES])
    stage = CHANNELS.index("cooling_stage")
    present = np.isfinite(values[:, stage])
    states = int64_section(np.full(int(present.sum()), stage), times[present], values[present, stage].astype(np.int64))
    return ObservationBatch(series=keys, doubles=doubles, int64s=states)


def _section(times: npt.NDArray[np.int64], values: npt.NDArray[np.float64], columns: list[int]) -> Section:
    picked = values[:, columns]
    present = np.isfinite(picked)
    rows, which = np.nonzero(present)
    handles: npt.NDArray[Any] = np.array(columns, np.uint32)[which]
    return double_section(handles, times[rows], picked[present])
