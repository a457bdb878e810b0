"""A recorded CSV file as a twin: which column becomes which channel, and what was guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd

from twinmesh_client.csv_files import CsvTable, read_csv
from twinmesh_client.modelling import channel, twin_type
from twinmesh_client.planning import usual_interval
from twinmesh_connectors.files.columns import ColumnGuess, guess_columns
from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import TwinType


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """A file, read and understood.

    Attributes:
        name: of the file.
        twin_id: the twin it becomes.
        zone: IANA zone in which it is shown.
        table: its rows.
        columns: what became of each column, the time apart.
        target: the channel to forecast.
        interval: usual time between two rows.
    """

    name: str
    twin_id: str
    zone: str
    table: CsvTable
    columns: tuple[ColumnGuess, ...]
    target: ColumnGuess
    interval: timedelta

    @property
    def span(self) -> timedelta:
        """From the first row to the last."""
        index = self.table.frame.index
        return timedelta(microseconds=(index.max() - index.min()) // pd.Timedelta(microseconds=1))

    @property
    def distinct_points(self) -> int:
        """Values that differ in channel or time: what history will hold."""
        frame = self.table.frame
        return int(frame.notna().groupby(level=0).any().to_numpy().sum()) if len(frame) else 0

    def twin_type(self) -> TwinType:
        """Return the type that this file needs."""
        every = self.interval
        return twin_type(
            f"recorded-{self.twin_id.lower()}@1",
            [channel(c.channel, c.unit, kind=c.kind.name, every=every, description=c.column) for c in self.columns],
            display_name=f"Recorded in {self.name}",
        )


def read_recording(path: Path, zone: str | None, target_column: str | None = None) -> Recording:
    """Read a CSV file and guess what its columns mean.

    Rows that cannot be read are left out and listed in the table's `broken`.

    Args:
        path: the file, ``.csv`` or ``.csv.gz``.
        zone: IANA zone of times without an offset; required for them.
        target_column: the column to forecast; None = the last one that holds numbers.

    Raises:
        InvalidArgument: names what cannot be read, and what to type.
    """
    if not path.is_file():
        raise invalid_field("--csv", f"there is no file {str(path)!r}; check its name")
    table = read_csv(path, time_zone=zone, skip_broken=True)
    guesses = guess_columns(table.frame)
    numeric = [g for g in guesses if g.kind is ChannelKind.GAUGE]
    if not numeric:
        raise invalid_field(path.name, "has no column of numbers beside the time; is another column the time?")
    if target_column is None:
        target = numeric[-1]
    else:
        found = next((g for g in numeric if target_column in (g.column, g.channel)), None)
        if found is None:
            names = ", ".join(g.column for g in numeric)
            raise invalid_field("--target-column", f"{target_column!r} is no column of numbers; there are {names}")
        target = found
    return Recording(
        name=path.name,
        twin_id=_twin_id(path),
        zone=zone or "UTC",
        table=table,
        columns=guesses,
        target=target,
        interval=usual_interval(table.frame.index.as_unit("us").asi8),  # type: ignore[attr-defined]  # a DatetimeIndex
    )


def _twin_id(path: Path) -> str:
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:60] or "recorded"
