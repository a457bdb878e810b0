"""`import`: a recorded CSV or Parquet file of any size becomes history; may be killed and run again."""

from __future__ import annotations

import argparse
import asyncio
import math
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinmesh_cli.commands.local import extra
from twinmesh_cli.errors import FAILED, UsageError
from twinmesh_cli.output import Output
from twinmesh_cli.session import on_mesh, pairs

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.csv_files import CsvTable
    from twinmesh_connectors.files.columns import ColumnGuess
    from twinmesh_connectors.files.importing import FileImport, Progress
    from twinmesh_connectors.files.sources import Reading, Source


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    imports = commands.add_parser(
        "import", parents=[common], help="a recorded CSV or Parquet file; goes on where it was when run again"
    )
    imports.add_argument("file", type=Path, metavar="FILE", help="FILE.csv, FILE.csv.gz or FILE.parquet, of any size")
    imports.add_argument("--twin", required=True, metavar="TWIN", help="the twin it was recorded of")
    imports.add_argument("--create", action="store_true", help="create the twin if absent, with a type as guessed")
    imports.add_argument("--time-column", metavar="NAME", help="title of the time (default: the one named like one)")
    imports.add_argument(
        "--time-format", metavar="FORMAT", help="CSV: how times are written, e.g. '%%d.%%m.%%Y %%H:%%M'"
    )
    imports.add_argument("--tz", metavar="ZONE", help="IANA zone of times without an offset, e.g. Europe/Berlin")
    imports.add_argument("--map", action="append", metavar="COLUMN=CHANNEL", help="channel of a column; repeatable")
    imports.add_argument(
        "--unit", action="append", metavar="COLUMN=UNIT", help="unit of a column, if not its channel's"
    )
    imports.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="leave a column out; repeatable")
    imports.add_argument("--drop-unknown", action="store_true", help="leave columns out that fit no channel")
    imports.add_argument(
        "--broken", choices=("stop", "skip", "quarantine"), default="stop",
        help="what cannot be read: stop there (default), leave it out, or have the mesh keep it aside",
    )  # fmt: skip
    imports.add_argument(
        "--again", default="", metavar="NAME", help="import the same file anew under this name, e.g. after a deletion"
    )
    imports.add_argument("--dry-run", action="store_true", help="say how the file would be taken; send nothing")
    imports.set_defaults(run=on_mesh(_import))


async def _import(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    with extra("files"):
        from twinmesh_connectors.files import sources
        from twinmesh_connectors.files.columns import describe_columns, guess_columns

    source = sources.open_source(arguments.file)
    reading = sources.Reading(
        time_column=arguments.time_column,
        time_zone=arguments.tz,
        time_format=arguments.time_format,
        drop=tuple(arguments.drop),
    )
    first = await asyncio.to_thread(sources.first_table, source, reading)
    guesses = guess_columns(first.frame, empty_too=not arguments.create)
    columns = await _columns(mesh, arguments, guesses, first)
    out.line(f"{source.path.name}: time = {first.time_column!r}, {first.time_meaning}")
    for line in describe_columns(columns):
        out.line(f"  {line}")
    for title in sorted({str(t) for t in first.frame.columns} - {c.column for c in columns}):
        out.note(f"left out: column {title!r}")
    if arguments.dry_run:
        for broken in first.broken[:10]:
            out.note(f"cannot be read: {broken}")
        out.document({"time_column": first.time_column, "time": first.time_meaning, "columns": columns})
        return 0
    return await _send(mesh, arguments, out, source, _settled(reading, first, guesses, columns), columns)


async def _columns(
    mesh: Mesh, arguments: Namespace, guesses: tuple[ColumnGuess, ...], first: CsvTable
) -> tuple[ColumnGuess, ...]:
    from twinmesh_client.modelling import channel, twin_type
    from twinmesh_client.planning import usual_interval
    from twinmesh_connectors.files.columns import match_columns
    from twinmesh_core.errors import NotFound

    given = pairs(arguments.map, "--map", '--map "oil temp=oil"')
    units = pairs(arguments.unit, "--unit", "--unit oil=degF")
    try:
        kind = await mesh.twins[arguments.twin].type()
    except NotFound as error:
        if not arguments.create:
            raise UsageError(
                f"there is no twin {arguments.twin!r}", remedy="name one that is there, or add --create"
            ) from error
        renamed = [(guess, given.get(guess.column, guess.channel)) for guess in guesses]
        every = usual_interval(first.frame.index.as_unit("us").asi8)  # type: ignore[attr-defined]  # a DatetimeIndex
        kind = twin_type(
            f"recorded-{arguments.twin.lower()}@1",
            [
                channel(name, units.get(g.column, g.unit), kind=g.kind.name, every=every, description=g.column)
                for g, name in renamed
            ],
            display_name=f"Recorded in {arguments.file.name}",
        )
        if not arguments.dry_run:
            await mesh.types.create(kind)
            await mesh.twins.create(
                arguments.twin, type=kind.twin_type_id, time_zone=arguments.tz or "UTC", if_absent=True
            )
    return match_columns(guesses, kind, given=given, units=units, drop_unknown=arguments.drop_unknown)


def _settled(
    reading: Reading, first: CsvTable, guesses: tuple[ColumnGuess, ...], columns: tuple[ColumnGuess, ...]
) -> Reading:
    """Return how every table is read, now that it is known what the columns are."""
    from dataclasses import replace

    left_out = {g.column for g in guesses} - {c.column for c in columns}
    # Columns without a single value are no guesses, and need no channel.
    left_out |= {str(title) for title in first.frame.columns} - {g.column for g in guesses}
    return replace(
        reading,
        time_column=first.time_column,
        kinds={c.column: c.kind for c in columns},
        drop=(*reading.drop, *sorted(left_out)),
    )


async def _send(
    mesh: Mesh, arguments: Namespace, out: Output, source: Source, reading: Reading, columns: tuple[ColumnGuess, ...]
) -> int:
    from twinmesh_cli.progress import bar
    from twinmesh_connectors.files.importing import FileImport
    from twinmesh_connectors.runner import Runner
    from twinmesh_connectors.service import stopping

    with bar("importing", 1.0, quiet=out.as_json) as advance:
        shown = 0.0

        def show(progress: Progress) -> None:
            nonlocal shown
            advance(progress.share - shown, f"{progress.sent + progress.known:,} values")
            shown = progress.share

        connector = FileImport(
            source, reading, twin_id=arguments.twin, columns=columns, broken=arguments.broken, label=arguments.again,
            on_progress=show,
        )  # fmt: skip

        runner = Runner(
            connector,
            lambda on_ack: mesh.writer(connector.producer_id, backfill=True, patience_s=math.inf, on_ack=on_ack),
            say=out.note,
        )
        with stopping(runner.stop):
            await runner.run()
    return _report(connector, out)


def _report(connector: FileImport, out: Output) -> int:
    progress = connector.progress
    ended = progress.share >= 1.0
    out.line(f"{progress.rows:,} rows, {progress.values:,} values; sent {progress.sent:,}")
    if progress.known:
        out.line(f"{progress.known:,} values were stored already by an earlier run")
        if not progress.sent:
            out.note("what was deleted since then does not come back by this; add --again NAME to send the file anew")
    if progress.broken:
        out.line(
            f"{progress.broken:,} cells or rows cannot be read, {progress.quarantined:,} of them sent to quarantine"
        )
    for broken in progress.examples:
        out.note(f"cannot be read: {broken}")
    ack = connector.acknowledged
    if ack is not None:
        out.line(str(ack))
        for outcome in ack.outcomes:
            what = f"flagged {outcome.quality.name}" if outcome.quality else "quarantined"
            out.note(f"{what}: {outcome.count:,} {outcome.reason.name}, e.g. {outcome.example}")
    if not ended:
        out.line(f"stopped after {progress.share:.0%} of the file; the same command goes on from there")
    out.document({"progress": progress, "ack": ack, "producer": connector.producer_id})
    stored = progress.known or (ack is not None and (ack.accepted or ack.duplicate))
    return 0 if ended and stored else FAILED
