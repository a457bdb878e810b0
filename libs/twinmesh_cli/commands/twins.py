"""Twins: `twins list`, `count`, `show`, `create`, `delete`."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from twinmesh_cli.output import Output, show_number, show_time
from twinmesh_cli.session import on_mesh, pairs

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.replicas import Replica
    from twinmesh_core.registry import TwinType


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    group = commands.add_parser("twins", help="twins: create, list, look at one, delete")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[common], help="all twins, or those that match a filter")
    _add_filter(listing)
    listing.add_argument("--order-by", default="", metavar="FIELDS", help="e.g. 'reported.load desc, twin_id'")
    _add_past(listing)
    listing.set_defaults(run=on_mesh(_list))
    count = actions.add_parser("count", parents=[common], help="how many twins there are, or match a filter")
    _add_filter(count)
    count.set_defaults(run=on_mesh(_count))
    show = actions.add_parser(
        "show", parents=[common], help="a twin's whole state: reported, desired, predicted, delta"
    )
    show.add_argument("twin")
    _add_past(show)
    show.set_defaults(run=on_mesh(_show))
    create = actions.add_parser("create", parents=[common], help="create a twin of a type")
    create.add_argument("twin")
    create.add_argument("--type", required=True, metavar="TYPE[@VERSION]", help="its type (see `twinmesh types list`)")
    create.add_argument("--time-zone", "--tz", default="", metavar="ZONE", help="its IANA zone, e.g. Europe/Berlin")
    create.add_argument("--name", default="", help="a name for people")
    create.add_argument("--attribute", action="append", metavar="KEY=TEXT", help="a fact, e.g. site=north; repeatable")
    create.add_argument("--relation", action="append", metavar="NAME=TWIN", help="an edge to another twin; repeatable")
    create.add_argument("--if-absent", action="store_true", help="an existing twin of the same type is fine")
    create.set_defaults(run=on_mesh(_create))
    delete = actions.add_parser("delete", parents=[common], help="delete a twin; its history stays")
    delete.add_argument("twin")
    delete.set_defaults(run=on_mesh(_delete))


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", default="", metavar="TYPE", help="only those of this type")
    parser.add_argument(
        "--filter",
        default="",
        metavar="FILTER",
        help="only those that match, e.g. 'attributes.site = north AND delta:*'",
    )


def _add_past(command: argparse.ArgumentParser) -> None:
    command.add_argument("--at-offset", type=int, metavar="OFFSET", help="as it was at this offset of the log")
    command.add_argument("--at-time", metavar="TIME", help="the facts of this time, e.g. 2026-03-01T12:00:00Z")


async def _count(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    count = await mesh.twins.count(type=arguments.type, filter=arguments.filter)
    out.line(f"{count:,}")
    out.document({"count": count})
    return 0


async def _list(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    found = await mesh.twins.list(
        type=arguments.type,
        filter=arguments.filter,
        order_by=arguments.order_by,
        at_offset=arguments.at_offset,
        at=arguments.at_time,
    )
    out.table(
        ("twin", "type", "state", "last event", "open targets", "zone", "name"),
        (
            (
                t.twin_id,
                t.twin_type,
                t.connectivity,
                show_time(t.last_event_time),
                str(t.delta_count or ""),
                t.time_zone,
                t.display_name,
            )
            for t in found
        ),
        empty="no twin matches"
        if arguments.type or arguments.filter
        else "no twin yet; create one: twinmesh twins create NAME --type TYPE",
    )
    out.document(found)
    return 0


async def _create(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    twin = await mesh.twins.create(
        arguments.twin,
        type=arguments.type,
        time_zone=arguments.time_zone,
        display_name=arguments.name,
        attributes=pairs(arguments.attribute, "--attribute", "--attribute site=north"),
        relationships=pairs(arguments.relation, "--relation", "--relation feeds=T2").items(),
        if_absent=arguments.if_absent,
    )
    kind = await twin.type()
    first = next((c.name for c in kind.channels if c.kind.numeric), "CHANNEL")
    out.line(f"created {arguments.twin} of type {kind.twin_type_id}@{kind.version}")
    out.line(f"  -> twinmesh write {arguments.twin} {first}=1.5")
    out.document({"twin_id": arguments.twin, "type": f"{kind.twin_type_id}@{kind.version}"})
    return 0


async def _delete(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    await mesh.twins.delete(arguments.twin)
    out.line(f"deleted {arguments.twin}; its history stays")
    out.document({"twin_id": arguments.twin, "deleted": True})
    return 0


async def _show(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    twin = mesh.twins[arguments.twin]
    state = await twin.get(at_offset=arguments.at_offset, at=arguments.at_time)
    if out.as_json:
        out.document(state)
        return 0
    print_replica(state, await twin.type(), out)
    return 0


def print_replica(state: Replica, kind: TwinType, out: Output) -> None:
    """Show a twin's facets side by side, a line per channel."""
    units = {c.name: c.unit for c in kind.channels}
    out.line(
        f"{state.twin_id}   {state.twin_type}   {state.connectivity}   revision {state.revision} at offset "
        f"{state.offset:,}" + (f"   {state.time_zone}" if state.time_zone else "")
    )
    for key, text in state.attributes.items():
        out.line(f"  {key}: {text}")
    rows = []
    for name in dict.fromkeys((*units, *state.reported, *state.desired, *state.predicted)):
        fact = state.reported.items.get(name)
        target = state.desired.items.get(name)
        forecast = state.predicted.items.get(name)
        rows.append(
            (
                name,
                show_number(fact.value) if fact else "-",
                units.get(name, ""),
                fact.quality.name if fact else "",
                show_time(fact.event_time) if fact else "",
                f"{show_number(target.value)} {target.state}" if target else "",
                f"up to {forecast.values[:, -1].max():.4g} by {show_time(forecast.valid_until)}" if forecast else "",
            )
        )
    out.table(("channel", "reported", "unit", "quality", "event time", "desired", "predicted"), rows)
    if state.delta:
        out.line(f"delta: {', '.join(f'{channel}: {item!r}' for channel, item in state.delta.items())}")
    elif len(state.desired):
        out.line(f"delta: none, the facts meet every target (desired revision {state.desired.revision})")
