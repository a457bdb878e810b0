"""`quarantine list`, `replay`, `discard`: rows that were kept aside, why, what to do, and doing it."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from twinmesh_cli.output import Output, show_number, show_time
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    group = commands.add_parser("quarantine", help="rows that were kept aside, with the remedy")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[common], help="newest first")
    _add_conditions(listing)
    listing.add_argument("--reason", default="", help="only these, e.g. unknown_twin")
    listing.add_argument("--state", default="open", help="open, or those that left: replayed, discarded")
    listing.add_argument("--limit", type=int, default=20, metavar="ROWS", help="rows shown (default: 20)")
    listing.set_defaults(run=on_mesh(_list))
    again = actions.add_parser("replay", parents=[common], help="take rows through the pipeline again, after a fix")
    _add_conditions(again)
    _add_choice(again)
    again.add_argument("--backfill", action="store_true", help="the rows are recorded history, back to 1970")
    again.set_defaults(run=on_mesh(_replay))
    away = actions.add_parser("discard", parents=[common], help="take rows out that are not wanted")
    _add_conditions(away)
    _add_choice(away)
    away.add_argument("--comment", required=True, help="why, for those who look later")
    away.set_defaults(run=on_mesh(_discard))


def _add_conditions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--twin", default="", metavar="TWIN", help="only those sent for this twin")
    parser.add_argument("--channel", default="", metavar="CHANNEL", help="only those sent for this channel")
    parser.add_argument("--from", dest="start", metavar="TIME", help="first event time")
    parser.add_argument("--to", dest="end", metavar="TIME", help="event time after the last")
    parser.add_argument("--from-offset", type=int, default=0, metavar="N", help="first log entry that they came with")
    parser.add_argument("--to-offset", type=int, default=0, metavar="N", help="log entry after the last")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", action="append", default=[], help="only these, e.g. unknown_twin; repeatable")
    parser.add_argument("--id", dest="ids", type=int, action="append", default=[], metavar="ID", help="only this row")
    parser.add_argument("--request-id", default="", help="makes it idempotent across runs")
    parser.add_argument("--dry-run", action="store_true", help="only say what would happen")


def _conditions(arguments: Namespace) -> dict[str, Any]:
    return {
        "twin_id": arguments.twin,
        "channel": arguments.channel,
        "start": arguments.start,
        "end": arguments.end,
        "start_offset": arguments.from_offset,
        "end_offset": arguments.to_offset,
    }


async def _replay(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    done = await mesh.replay_quarantine(
        **_conditions(arguments),
        reasons=arguments.reason,
        ids=arguments.ids,
        backfill=arguments.backfill,
        dry_run=arguments.dry_run,
        request_id=arguments.request_id,
    )
    would = "would leave" if arguments.dry_run else "left"
    out.line(f"{done.examined:,} looked at: {done.left:,} {would}, {done.kept:,} stay, {done.skipped:,} skipped")
    out.line(str(done.ack))
    for outcome in done.ack.outcomes:
        what = f"flagged {outcome.quality.name}" if outcome.quality else "stays"
        out.note(f"{what}: {outcome.count:,} {outcome.reason.name}, e.g. {outcome.example}")
    out.document({"replay": done})
    return 0


async def _discard(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    count = await mesh.discard_quarantine(
        arguments.comment,
        **_conditions(arguments),
        reasons=arguments.reason,
        ids=arguments.ids,
        dry_run=arguments.dry_run,
        request_id=arguments.request_id,
    )
    out.line(f"{count:,} {'would be discarded' if arguments.dry_run else 'discarded'}")
    out.document({"discarded": count, "dry_run": arguments.dry_run})
    return 0


async def _list(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_core.time import to_datetime

    found = await mesh.quarantine(
        **_conditions(arguments), reason=arguments.reason, state=arguments.state, limit=arguments.limit
    )
    out.table(
        ("id", "received", "twin", "channel", "event time", "value", "unit", "reason", "what to do"),
        (
            (
                str(r.quarantine_id),
                show_time(r.commit_time),
                r.twin_id,
                r.channel,
                show_time(to_datetime(r.time_unix_us)),
                show_number(r.value),
                r.unit,
                r.reason.name,
                r.message,
            )
            for r in found.rows
        ),
        empty="nothing is in quarantine",
    )
    if found.total > len(found.rows):
        out.line(f"{len(found.rows):,} of {found.total:,}; more with --limit")
    out.document({"total": found.total, "rows": found.rows})
    return 0
