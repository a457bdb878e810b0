"""`quarantine list`: rows that were kept aside, why, and what to do."""

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
    listing.add_argument("--twin", default="", metavar="TWIN", help="only those sent for this twin")
    listing.add_argument("--reason", default="", help="only these, e.g. unknown_twin")
    listing.add_argument("--limit", type=int, default=20, metavar="ROWS", help="rows shown (default: 20)")
    listing.set_defaults(run=on_mesh(_list))


async def _list(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_core.time import to_datetime

    found = await mesh.quarantine(twin_id=arguments.twin, reason=arguments.reason, limit=arguments.limit)
    out.table(
        ("received", "twin", "channel", "event time", "value", "unit", "reason", "what to do"),
        (
            (
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
