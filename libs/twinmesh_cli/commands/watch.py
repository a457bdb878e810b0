"""`watch`: changes as they happen."""

from __future__ import annotations

import argparse
from argparse import Namespace
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from twinmesh_cli.output import Output, plain, show_number
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.replicas import WatchEvent


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    watch = commands.add_parser("watch", parents=[common], help="changes as they happen, until Ctrl-C")
    watch.add_argument("twins", nargs="*", metavar="TWIN", help="which (default: all)")
    watch.add_argument("--type", default="", metavar="TYPE", help="all twins of this type")
    watch.add_argument("--filter", default="", metavar="FILTER", help="all twins that match, e.g. 'delta:*'")
    watch.add_argument("--mask", default="", metavar="PARTS", help="only these, e.g. reported.temperature,delta")
    watch.add_argument("--from", dest="start", type=int, metavar="OFFSET", help="what followed this offset of the log")
    watch.add_argument("--new", action="store_true", help="only what happens from now on, without what is")
    watch.add_argument("--latest", action="store_true", help="merge changes that come faster than they are shown")
    watch.add_argument("--count", type=int, default=0, metavar="N", help="end after N changes")
    watch.set_defaults(run=on_mesh(_watch))


async def _watch(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.replicas import Position

    after = None
    if arguments.start is not None or arguments.new:
        head = await mesh.position()
        after = head if arguments.new else Position(incarnation=head.incarnation, offset=arguments.start)
    left = arguments.count or -1
    changes = mesh.twins.watch(
        arguments.twins,
        type=arguments.type,
        filter=arguments.filter,
        mask=[part.strip() for part in arguments.mask.split(",") if part.strip()],
        resume_after=after,
        policy="latest" if arguments.latest else "reliable",
    )
    async with aclosing(changes):
        async for event in changes:
            out.line(line_of(event))
            if out.as_json:
                out.json_line(document(event))
            left -= event.kind != "SYNCED"
            if left == 0:
                break
    return 0


def line_of(event: WatchEvent) -> str:
    """Return one change as a line for people."""
    parts = [f"{c}={show_number(f.value)}{'' if f.quality.name == 'GOOD' else ' ' + f.quality.name}"
             for c, f in event.reported.items()]  # fmt: skip
    parts += [f"desired {c}={show_number(d.value)} {d.state}" for c, d in event.desired.items()]
    parts += [f"forecast {c} up to {show_number(float(f.values[:, -1].max()))}" for c, f in event.predicted.items()]
    if event.delta is not None and (event.delta or event.kind == "CHANGED"):
        parts.append("delta {" + ", ".join(f"{c}: {item!r}" for c, item in event.delta.items()) + "}")
    if event.connectivity:
        parts.append(event.connectivity)
    parts += [f"command {c.name} {c.state}{f' ({c.message})' if c.message else ''}" for c in event.commands]
    parts += [f"event {e.kind}{f': {e.message}' if e.message else ''}" for e in event.events]
    if event.merged_count:
        parts.append(f"(+{event.merged_count} merged)")
    return f"{event.offset:>10,}  {event.kind:<8}  {event.twin_id:<16}  {'  '.join(parts)}".rstrip()


def document(event: WatchEvent) -> dict[str, Any]:
    """Return one change as JSON: what did not change is left out."""
    body: dict[str, Any] = plain(event)
    if event.replica is not None:
        # A snapshot's facets stand in the event already.
        body["replica"] = {k: body["replica"][k] for k in ("twin_type", "time_zone", "display_name", "attributes")}
    return {k: v for k, v in body.items() if v not in (None, "", [], {}) and (k, v) != ("merged_count", 0)}
