"""History as it is read: rows of several series, or aggregates on a common grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twinmesh_client.replicas import Position
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, Section, TextSection, concat

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesData:
    """The observations of one series in order of event time.

    Attributes:
        time_unix_us: int64 [n], UTC.
        values: float64, int64, bool or object (texts) [n].
        quality: uint8 [n], `Quality` numbers.
        unit: canonical unit.
    """

    twin_id: str
    channel: str
    unit: str
    time_unix_us: npt.NDArray[np.int64]
    values: npt.NDArray[Any]
    quality: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.time_unix_us)

    def to_pandas(self) -> pd.Series[Any]:
        """Return the values with a UTC time index."""
        import pandas as pd

        return pd.Series(self.values, index=time_index(self.time_unix_us), name=self.channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSummary:
    """What history holds of one channel: distinct event times, the oldest and the newest (None = nothing yet)."""

    twin_id: str
    channel: str
    unit: str
    point_count: int
    first_time: datetime | None
    last_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """Rows of one or more series, and what they reflect."""

    series: tuple[SeriesData, ...]
    as_of: Position

    def __getitem__(self, channel: str) -> SeriesData:
        for one in self.series:
            if one.channel == channel:
                return one
        raise KeyError(f"no channel {channel!r}; there are {', '.join(s.channel for s in self.series) or 'none'}")

    @property
    def point_count(self) -> int:
        """Rows in all series."""
        return sum(len(s) for s in self.series)

    def to_pandas(self) -> pd.DataFrame:
        """Return one column per channel, joined on event time (UTC); a missing value is NaN."""
        import pandas as pd

        if not self.series:
            return pd.DataFrame(index=time_index(np.empty(0, np.int64)))
        return pd.concat([s.to_pandas() for s in self.series], axis=1).sort_index()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buckets:
    """Aggregates on a common grid.

    Attributes:
        bucket_unix_us: int64 [buckets], start of each, UTC.
        columns: what each column is: the channel, or ``channel.function`` where several functions were asked for.
        values: float64 [buckets, columns]; NaN = no value.
    """

    bucket_unix_us: npt.NDArray[np.int64]
    columns: tuple[str, ...]
    values: npt.NDArray[np.float64]
    as_of: Position

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per bucket (index: its start, UTC)."""
        import pandas as pd

        return pd.DataFrame(self.values, index=time_index(self.bucket_unix_us), columns=list(self.columns))


def time_index(time_unix_us: npt.NDArray[np.int64]) -> pd.DatetimeIndex:
    """Return microseconds since the Unix epoch as a UTC index named "time"."""
    import pandas as pd

    return pd.DatetimeIndex(np.asarray(time_unix_us, np.int64).view("M8[us]"), tz="UTC", name="time")


def split_series(batches: Sequence[ObservationBatch]) -> tuple[SeriesData, ...]:
    """Return the rows of batches by series, in order of first appearance."""
    whole = batches[0] if len(batches) == 1 else concat(batches)
    whole.check_handles()
    found: dict[int, SeriesData] = {}
    for name, section in whole.sections():
        for handle, rows in _rows_of_series(section.series):
            picked = section if isinstance(rows, slice) else section.select(rows)
            key = whole.series[handle]
            found[handle] = SeriesData(
                twin_id=key.twin_id,
                channel=key.channel,
                unit=key.unit,
                time_unix_us=picked.time_unix_us,
                values=_values(name, picked, key.kind),
                quality=picked.quality,
            )
    return tuple(found[handle] for handle in sorted(found))


def _rows_of_series(handles: npt.NDArray[np.uint32]) -> Iterator[tuple[int, slice | npt.NDArray[np.intp]]]:
    """Yield each handle with its rows; a slice = all rows, which then need not be copied."""
    if not len(handles):
        return
    starts = np.flatnonzero(np.concatenate(([True], handles[1:] != handles[:-1])))
    if len(starts) == 1:
        yield int(handles[0]), slice(None)
        return
    # Stable, so that rows keep their order where those of a series do not lie together.
    order = np.argsort(handles, kind="stable")
    ordered = handles[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(handles)], strict=True):
        yield int(ordered[start]), order[start:end]


def _values(section_name: str, section: Section | TextSection, kind: ChannelKind) -> npt.NDArray[Any]:
    if isinstance(section, TextSection):
        return np.array([t.decode("utf-8", "replace") for t in section.texts()], object)
    if section_name == "bools" or kind is ChannelKind.BOOL:
        return section.values.astype(np.bool_)
    return section.values
