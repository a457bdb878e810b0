"""`write`: one value each of some channels, or a recorded CSV file."""

from __future__ import annotations

import argparse
import hashlib
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import FAILED, UsageError
from twinmesh_cli.output import Output
from twinmesh_cli.session import on_mesh, pairs

if TYPE_CHECKING:
    from twinmesh_client.acks import WriteAck
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.csv_files import CsvTable
    from twinmesh_core.registry import TwinType

_EXAMPLE = "twinmesh write T1 oil=61.5 load=30000"
_NAMED = 10


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    write = commands.add_parser("write", parents=[common], help="write values, or a recorded CSV file")
    write.add_argument("twin")
    write.add_argument("values", nargs="*", metavar="CHANNEL=VALUE", help="one value each, e.g. oil=61.5 running=true")
    write.add_argument("--time", metavar="TIME", help="when it was true, e.g. 2026-11-23T08:00:00Z (default: now)")
    write.add_argument(
        "--unit", action="append", metavar="CHANNEL=UNIT", help="unit of the values, if not the channel's"
    )
    write.add_argument("--csv", type=Path, metavar="FILE", help="a CSV file (or .csv.gz): a column per channel")
    write.add_argument("--time-column", metavar="NAME", help="CSV: title of the time (default: the one named like one)")
    write.add_argument("--time-format", metavar="FORMAT", help="CSV: how times are written, e.g. '%%d.%%m.%%Y %%H:%%M'")
    write.add_argument("--tz", metavar="ZONE", help="CSV: IANA zone of times without an offset, e.g. Europe/Berlin")
    write.add_argument("--map", action="append", metavar="COLUMN=CHANNEL", help="CSV: channel of a column; repeatable")
    write.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="CSV: leave a column out")
    write.add_argument("--backfill", action="store_true", help="recorded history: times back to 1970 are accepted")
    write.add_argument("--skip-broken", action="store_true", help="CSV: leave rows out that cannot be read, count them")
    write.set_defaults(run=on_mesh(_write))


async def _write(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    if bool(arguments.values) == bool(arguments.csv):
        raise UsageError("give either values or --csv FILE", remedy=_EXAMPLE)
    return await (_write_csv if arguments.csv else _write_values)(mesh, arguments, out)


async def _write_values(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    texts = pairs(arguments.values, "value", _EXAMPLE)
    units = pairs(arguments.unit, "--unit", "--unit oil=degF")
    unknown = sorted(units.keys() - texts.keys())
    if unknown:
        raise UsageError(f"--unit names {unknown[0]!r}, which is not written", remedy=_EXAMPLE)
    twin = mesh.twins[arguments.twin]
    kind = await _type_of(mesh, arguments.twin)
    values = {channel: parse_value(text, channel, kind) for channel, text in texts.items()}
    ack = await twin.write_values(values, time=arguments.time, units=units)
    return _report(ack, out)


async def _type_of(mesh: Mesh, twin_id: str) -> TwinType | None:
    from twinmesh_core.errors import NotFound

    try:
        return await mesh.twins[twin_id].type()
    except NotFound:
        # The server keeps the row aside and says which command creates the twin.
        return None


def parse_value(text: str, channel: str, kind: TwinType | None) -> Any:
    """Return a value as its channel's kind takes it; without one, as it looks."""
    from twinmesh_core.kinds import ChannelKind

    spec = kind.channel(channel) if kind is not None else None
    if spec is not None and spec.kind in (ChannelKind.TEXT, ChannelKind.JSON):
        return text if spec.kind is ChannelKind.TEXT else _json(text, channel)
    lowered = text.lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    if spec is not None:
        raise UsageError(f"{channel} is a {spec.kind.name} channel, and {text!r} is none", remedy=f"{channel}=1.5")
    return text


def _json(text: str, channel: str) -> Any:
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{channel} takes JSON: {error.msg}", remedy=f"{channel}='{{\"a\": 1}}'") from None


async def _write_csv(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.csv_files import read_csv
    from twinmesh_client.frames import frame_batches

    path: Path = arguments.csv
    mapping = pairs(arguments.map, "--map", '--map "oil temp=oil"')
    twin_type = await mesh.twins[arguments.twin].type()
    kinds = {c.name: c.kind for c in twin_type.channels}
    table = read_csv(
        path,
        time_column=arguments.time_column,
        time_zone=arguments.tz,
        time_format=arguments.time_format,
        kinds=kinds | {column: kinds[channel] for column, channel in mapping.items() if channel in kinds},
        drop=arguments.drop,
        skip_broken=arguments.skip_broken,
    )
    for title in table.frame.columns:
        if mapping.get(title, title) not in kinds:
            raise UsageError(
                f"column {title!r} is no channel of {arguments.twin}; there are {', '.join(kinds)}",
                remedy=f"--map '{title}=CHANNEL', or --drop '{title}'",
            )
    sent = 0
    with _progress(table, out) as advance:
        async with mesh.writer(
            producer_of(path, arguments.twin), backfill=arguments.backfill, on_ack=lambda ack: advance(ack.sent)
        ) as writer:
            for batch in frame_batches(
                table.frame,
                twin_id=arguments.twin,
                kinds=kinds,
                units=pairs(arguments.unit, "--unit", "--unit oil=degF"),
                columns=mapping,
                max_rows=20_000,
            ):
                sent += batch.point_count()
                await writer.write(batch)
            ack = await writer.flush()
            known = writer.durable_without_ack
    out.line(
        f"{path.name}: {len(table.frame):,} rows, {sent:,} values; time = {table.time_column!r}, {table.time_meaning}"
    )
    _report_broken(table, out)
    return _report(ack, out, sent=sent, durable_without_ack=known, broken=len(table.broken))


def producer_of(path: Path, twin_id: str) -> str:
    """Return the producer id of a file for a twin: two runs of the same file are one producer, not two."""
    source = hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()
    return f"csv-{source}-{twin_id}"[:128]


def _progress(table: CsvTable, out: Output) -> Any:
    from twinmesh_cli.progress import bar

    return bar("sending", table.value_count, quiet=out.as_json)


def _report_broken(table: CsvTable, out: Output) -> None:
    for broken in table.broken[:_NAMED]:
        out.note(f"skipped: {broken}")
    if len(table.broken) > _NAMED:
        out.note(f"skipped: {len(table.broken) - _NAMED:,} more")


def _report(ack: WriteAck, out: Output, **facts: int) -> int:
    """Say what became of the rows; the status is 1 when none of them could be stored."""
    out.line(str(ack))
    if facts.get("durable_without_ack"):
        out.line(
            f"{facts['durable_without_ack']:,} of them were acknowledged by what is stored, after a lost connection"
        )
    for outcome in ack.outcomes:
        what = f"flagged {outcome.quality.name}" if outcome.quality else "quarantined"
        out.note(f"{what}: {outcome.count:,} {outcome.reason.name}, e.g. {outcome.example}")
    out.document({"ack": ack, **facts})
    return 0 if ack.accepted or ack.duplicate or ack.deadbanded or facts.get("durable_without_ack") else FAILED
