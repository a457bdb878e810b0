"""What takes data away, and what counts it: `delete`, `erase`, `retention`, `statistics`."""

from __future__ import annotations

import argparse
import asyncio
from argparse import Namespace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import CommandFailedError, UsageError
from twinmesh_cli.output import Output
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh

_LOOK_S = 0.5
_US = timedelta(microseconds=1)


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    delete = commands.add_parser("delete", parents=[common], help="hide observations of a twin from every read")
    delete.add_argument("twin", metavar="TWIN", help="whose observations")
    delete.add_argument("channels", nargs="*", metavar="CHANNEL", help="only these (default: all)")
    delete.add_argument("--start", metavar="TIME", help="from here on, e.g. 2026-11-23T00:00:00Z")
    delete.add_argument("--end", metavar="TIME", help="up to here, not included")
    delete.add_argument("--all", action="store_true", help="the whole history; instead of --start and --end")
    delete.set_defaults(run=on_mesh(_delete))
    erase = commands.add_parser("erase", parents=[common], help="remove a twin's values for good (privacy)")
    erase.add_argument("twin", metavar="TWIN", help="whose values; its registration stays (see twins delete)")
    erase.add_argument("--yes", action="store_true", help="it cannot be taken back, so it must be said")
    erase.add_argument("--no-wait", action="store_true", help="return once the values are hidden")
    erase.set_defaults(run=on_mesh(_erase))
    retention = commands.add_parser("retention", help="how long observations are kept; for ever without a rule")
    actions = retention.add_subparsers(metavar="ACTION", required=True)
    rules = actions.add_parser("list", parents=[common], help="the rules, the most specific counts")
    rules.set_defaults(run=on_mesh(_list_retention))
    change = actions.add_parser("set", parents=[common], help="keep observations so long, by event time")
    change.add_argument("keep", metavar="SPAN", help="e.g. 90d; or forever, whatever more general rules say")
    remove = actions.add_parser("remove", parents=[common], help="remove a rule")
    remove.set_defaults(keep=None)
    for action in (change, remove):
        action.add_argument("--twin", default="", metavar="TWIN", help="of this twin (default: of all)")
        action.add_argument("--channel", default="", metavar="CHANNEL", help="of this channel (default: of all)")
        action.add_argument(
            "--class", dest="retention_class", default="", metavar="CLASS", help="of channels of this retention_class"
        )
        action.set_defaults(run=on_mesh(_set_retention))
    statistics = commands.add_parser("statistics", parents=[common], help="what is stored, counted")
    statistics.add_argument("twin", nargs="?", default="", metavar="TWIN", help="only this twin (default: everything)")
    statistics.set_defaults(run=on_mesh(_statistics))


async def _delete(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    bounded = arguments.start is not None or arguments.end is not None
    if bounded == arguments.all:
        raise UsageError(
            "say what is to be deleted: --start and --end, or --all",
            remedy=f"twinmesh delete {arguments.twin} --start 2026-11-23T00:00:00Z --end 2026-11-24T00:00:00Z",
        )
    at = await mesh.twins.delete_range(arguments.twin, *arguments.channels, start=arguments.start, end=arguments.end)
    out.line(f"hidden from offset {at.offset:,} on; reads as of an earlier offset still show it until the horizon")
    out.document({"twin_id": arguments.twin, "channels": arguments.channels, "position": at})
    return 0


async def _erase(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    if not arguments.yes:
        raise UsageError(
            "erasing cannot be taken back", remedy=f"twinmesh erase {arguments.twin} --yes (or hide: twinmesh delete)"
        )
    erasure = await mesh.twins.erase(arguments.twin)
    out.line(f"erasure {erasure.erasure_id}: hidden from offset {erasure.offset:,} on")
    while not erasure.ended and not arguments.no_wait:
        await asyncio.sleep(_LOOK_S)
        erasure = await mesh.erasure(erasure.erasure_id)
    out.document(erasure)
    if erasure.state == "failed":
        raise CommandFailedError(f"the erasure failed: {erasure.message}")
    if erasure.ended:
        out.line(
            f"erased: {erasure.rows_erased:,} rows of history, {erasure.entries_rewritten:,} entries of the log, "
            f"{erasure.scrubbed:,} quarantined rows and receipts"
        )
    return 0


async def _list_retention(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.durations import describe_us

    rules = await mesh.retention()
    out.table(
        ("twin", "channel", "class", "kept"),
        [
            (
                r.twin_id or "all",
                r.channel or "all",
                r.retention_class or "any",
                describe_us(r.keep // _US) if r.keep else "for ever",
            )
            for r in rules
        ],
        empty="no rules: everything is kept for ever",
    )
    out.document({"rules": rules})
    return 0


async def _set_retention(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    await mesh.set_retention(
        arguments.keep,
        twin_id=arguments.twin,
        channel=arguments.channel,
        retention_class=arguments.retention_class,
    )
    return await _list_retention(mesh, arguments, out)


async def _statistics(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    counts = await mesh.statistics(arguments.twin)
    good, uncertain, bad = counts.by_quality
    rows = [
        ("observations", f"{counts.points:,}"),
        ("  good / uncertain / bad", f"{good:,} / {uncertain:,} / {bad:,}"),
        ("series", f"{counts.series:,}"),
        ("quarantined", f"{counts.quarantined:,}"),
        ("as of offset", f"{counts.offset:,}"),
    ]
    if not arguments.twin:  # of the log and its files nothing is a twin's own
        rows += [
            ("observations landed, corrections counted", f"{counts.landed_points:,}"),
            ("entries of the log", f"{counts.entries:,}"),
            ("bytes on disk", f"{counts.disk_bytes:,}"),
            ("folded up to offset", f"{counts.fold_offset:,}"),
            ("observations left the log up to", f"{counts.trim_offset:,}"),
        ]
    out.table(("what", "count"), rows)
    if arguments.twin and not counts.series:
        out.note(f"storage never had an observation of {arguments.twin!r}; its name: twinmesh twins list")
    out.document(counts)
    return 0
