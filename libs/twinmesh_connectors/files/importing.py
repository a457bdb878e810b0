"""The import of a file: a connector that can be killed at any moment and run again, and stores each row once.

It keeps no record of how far it came. The same file, read in the same way for the same twin, always becomes the same
batches in the same order, so the number of the producer's last durable batch says where to go on; the producer's id is
made from the file's content and from how it is read. Reading what is stored already costs time, but nothing is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.writer import Writer
from twinmesh_client.csv_files import BrokenCell, CsvTable, refused
from twinmesh_client.frames import frame_batches
from twinmesh_connectors.connector import SourceError
from twinmesh_connectors.files.columns import ColumnGuess
from twinmesh_connectors.files.sources import LAYOUT, Reading, Source, values_of
from twinmesh_connectors.status import Status
from twinmesh_core.observations import ObservationBatch, SeriesKey, concat, text_section

Broken = Literal["stop", "skip", "quarantine"]
NAMED: Final = 10
"""Broken cells that are kept to be shown; all are counted."""
_EDGE_BYTES: Final = 1024 * 1024
_ROWS: Final = 10_000_000


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far an import is.

    Attributes:
        share: of the file that is read, 0 to 1.
        rows: with a time, that were read.
        values: cells that hold one.
        sent: values that were sent by this run.
        known: values that the mesh had already.
        batches_known: batches that the mesh had already.
        broken: cells and rows that could not be read.
        examples: the first of them.
        quarantined: of those, cells that were sent as texts, to be kept aside by the mesh.
        time: how times were read, for people.
    """

    share: float = 0.0
    rows: int = 0
    values: int = 0
    sent: int = 0
    known: int = 0
    batches_known: int = 0
    broken: int = 0
    examples: list[BrokenCell] = field(default_factory=list)
    quarantined: int = 0
    time: str = ""


class FileImport:
    """Writes a recorded file to a twin.

    Args:
        source: the file.
        reading: how it is read; with the kinds of all columns.
        twin_id: the twin.
        columns: what becomes of which column.
        broken: ``stop`` at the first cell or row that cannot be read; ``skip`` them; or ``quarantine``: cells whose
            time is known are sent as they stand, for the mesh to keep aside, and rows without a time are left out.
        label: tells another import of the same file apart, e.g. after what the first brought was deleted.
        on_progress: called after each table.
    """

    def __init__(
        self,
        source: Source,
        reading: Reading,
        *,
        twin_id: str,
        columns: Sequence[ColumnGuess],
        broken: Broken = "stop",
        label: str = "",
        on_progress: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._reading = reading
        self._twin_id = twin_id
        self._columns = tuple(columns)
        self._broken = broken
        self._on_progress = on_progress
        self._writer: Writer | None = None
        self.progress = Progress()
        self.producer_id = f"file-{fingerprint(source.path, twin_id, reading, self._columns, broken, label)}"

    @property
    def name(self) -> str:
        """Name in status lines."""
        return self._source.path.name

    @property
    def acknowledged(self) -> WriteAck | None:
        """What the mesh made of the values that this run sent; None before it ran."""
        return None if self._writer is None else self._writer.acknowledged

    async def run(self, writer: Writer, status: Status) -> None:
        """Send what the mesh lacks, and wait until it is durable; see the module's docstring."""
        self._writer = writer
        await writer.resumed()
        # What an earlier run of this process handed over is on its way, though not yet durable.
        known, number = writer.taken, 0
        self.progress = Progress()
        tables = self._source.tables(self._reading)
        while (read := await asyncio.to_thread(self._next, tables)) is not None:
            batches, table, share = read
            self._account(table, share)
            for batch in batches:
                number += 1
                points = batch.point_count()
                if number <= known:
                    self.progress.known += points
                    self.progress.batches_known = number
                    continue
                await writer.write(batch)
                status.rows_read += points
                self.progress.sent += points
            status.note = f"{share:.0%} of the file"
            self._on_progress(self.progress)
        await writer.flush()

    def _next(self, tables: Iterator[tuple[CsvTable, float]]) -> tuple[list[ObservationBatch], CsvTable, float] | None:
        """Read one table and make batches of it; off the event loop."""
        try:
            found = next(tables, None)
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read: {(error.strerror or 'it failed').lower()}") from None
        if found is None:
            return None
        table, share = found
        if table.broken and self._broken == "stop":
            raise refused(self._source.path, table.broken, self.progress.broken + len(table.broken))
        return self._batches(table), table, share

    def _batches(self, table: CsvTable) -> list[ObservationBatch]:
        titles = [c.column for c in self._columns]
        batches = list(
            frame_batches(
                table.frame[titles],
                twin_id=self._twin_id,
                kinds={c.channel: c.kind for c in self._columns},
                units={c.column: c.unit for c in self._columns if c.unit},
                columns={c.column: c.channel for c in self._columns},
                max_rows=_ROWS,
            )
        )
        aside = self._aside(table) if self._broken == "quarantine" else None
        if aside is not None:
            batches = [concat([*batches[:1], aside]), *batches[1:]]
        return [batch for batch in batches if batch.point_count()]

    def _aside(self, table: CsvTable) -> ObservationBatch | None:
        """Return broken cells as texts, which the mesh quarantines with their channel and time."""
        channels = {c.column: c.channel for c in self._columns}
        cells = [b for b in table.broken if b.time_unix_us is not None and b.column in channels]
        if not cells:
            return None
        names = sorted({channels[b.column] for b in cells})
        handles = np.array([names.index(channels[b.column]) for b in cells], np.uint32)
        times = np.array([b.time_unix_us for b in cells], np.int64)
        return ObservationBatch(
            series=tuple(SeriesKey(twin_id=self._twin_id, channel=name) for name in names),
            texts=text_section(handles, times, [b.cell for b in cells]),
        )

    def _account(self, table: CsvTable, share: float) -> None:
        progress = self.progress
        progress.share = share
        progress.time = f"{table.time_column!r}, {table.time_meaning}"
        progress.rows += len(table.frame)
        progress.values += values_of(table.frame[[c.column for c in self._columns]])
        progress.broken += len(table.broken)
        progress.examples += table.broken[: NAMED - len(progress.examples)]
        if self._broken == "quarantine":
            progress.quarantined += sum(b.time_unix_us is not None for b in table.broken)


def fingerprint(
    path: Path, twin_id: str, reading: Reading, columns: Sequence[ColumnGuess], broken: Broken, label: str = ""
) -> str:
    """Return what tells this import from any other: the file's size and edges, and how it is read.

    The file's name and place do not matter. A file that has grown is another one: all of it is sent again, and rows
    that are stored already are replaced by equal ones.
    """
    digest = hashlib.blake2b(digest_size=16)
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(0, size - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    facts = (
        LAYOUT,
        size,
        twin_id,
        reading.time_column,
        reading.time_zone,
        reading.time_format,
        sorted((name, int(kind)) for name, kind in (reading.kinds or {}).items()),
        sorted(reading.drop),
        [(c.column, c.channel, int(c.kind), c.unit) for c in columns],
        broken == "quarantine",
        *([label] if label else []),
    )
    digest.update(repr(facts).encode())
    return digest.hexdigest()
