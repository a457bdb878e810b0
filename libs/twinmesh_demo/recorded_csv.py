"""A recorded CSV file as a twin: which column becomes which channel, and what was guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd

from twinmesh_client.csv_files import CsvTable, read_csv
from twinmesh_client.modelling import channel, twin_type
from twinmesh_client.planning import usual_interval
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import TwinType
from twinmesh_core.units import canonical

_UNIT = re.compile(r"^(?P<name>.*?)\s*[(\[](?P<unit>[^()\[\]]+)[)\]]\s*$")
_TRUTHS = {"true", "false", "yes", "no", "on", "off"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnGuess:
    """How one column is taken.

    Attributes:
        column: its title in the file.
        channel: the channel it becomes.
        kind: GAUGE for numbers, BOOL for truths, TEXT for the rest.
        unit: UCUM code from the title's brackets; empty = none, or not understood.
        note: what was not understood.
    """

    column: str
    channel: str
    kind: ChannelKind
    unit: str
    note: str = ""


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
    guesses = _guess_columns(table.frame)
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


def _guess_columns(frame: pd.DataFrame) -> tuple[ColumnGuess, ...]:
    taken: set[str] = set()
    return tuple(_guess(title, frame[title], taken) for title in map(str, frame.columns) if frame[title].notna().any())


def _guess(title: str, cells: pd.Series[float], taken: set[str]) -> ColumnGuess:
    match = _UNIT.match(title)
    name, unit, note = (match["name"], match["unit"].strip(), "") if match else (title, "", "")
    if unit:
        try:
            unit = canonical(unit, title)
        except InvalidArgument:
            name, unit, note = title, "", f"unit {unit!r} is not known, kept without"
    kind = ChannelKind.GAUGE
    if not pd.api.types.is_numeric_dtype(cells):
        truths = {str(v).lower() for v in cells.dropna().unique()[:3]} <= _TRUTHS
        kind, unit = (ChannelKind.BOOL if truths else ChannelKind.TEXT), ""
    return ColumnGuess(column=title, channel=_channel_name(name, taken), kind=kind, unit=unit, note=note)


def _channel_name(title: str, taken: set[str]) -> str:
    """Return a channel name that nobody has: small letters, digits and underscores, beginning with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "column"
    name = (name if name[0].isalpha() else f"c_{name}")[:60]
    unique, n = name, 1
    while unique in taken:
        n += 1
        unique = f"{name}_{n}"
    taken.add(unique)
    return unique


def _twin_id(path: Path) -> str:
    stem = path.name.removesuffix(".gz").removesuffix(".csv")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:60] or "recorded"


def describe_columns(columns: Sequence[ColumnGuess]) -> list[str]:
    """Return one line per column: ``HUFL -> hufl  GAUGE  unit kW``."""
    widest = max(len(c.column) for c in columns)
    return [
        f"{c.column:<{widest}} -> {c.channel:<{widest}}  {c.kind.name:<5}  "
        + (c.unit or "no unit")
        + (f"   ({c.note})" if c.note else "")
        for c in columns
    ]
