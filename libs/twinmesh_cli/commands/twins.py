"""Twins: `twins list`, `count`, `show`, `create`, `update`, `migrate`, `delete`."""

from __future__ import annotations

import argparse
import csv
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import FAILED, UsageError
from twinmesh_cli.output import Output, show_number, show_time
from twinmesh_cli.session import on_mesh, pairs

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.replicas import Replica
    from twinmesh_core.registry import Twin, TwinType

_SHOWN = 50
"""Lines of a long report that are shown."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    group = commands.add_parser("twins", help="twins: create, list, look at one, change, migrate, delete")
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
    create = actions.add_parser("create", parents=[common], help="create a twin of a type, or many from a file")
    create.add_argument("twin", nargs="?")
    create.add_argument("--type", metavar="TYPE[@VERSION]", help="its type (see `twinmesh types list`)")
    create.add_argument(
        "--file", metavar="FILE", help="create the twins of a .json, .jsonl or .csv file; - = JSON lines"
    )
    create.add_argument("--time-zone", "--tz", default="", metavar="ZONE", help="its IANA zone, e.g. Europe/Berlin")
    create.add_argument("--name", default="", help="a name for people")
    create.add_argument("--attribute", action="append", metavar="KEY=TEXT", help="a fact, e.g. site=north; repeatable")
    create.add_argument("--relation", action="append", metavar="NAME=TWIN", help="an edge to another twin; repeatable")
    create.add_argument("--property", action="append", metavar="NAME=VALUE", help="a property of its type; repeatable")
    create.add_argument("--if-absent", action="store_true", help="an existing twin of the same type is fine")
    create.add_argument("--all-or-nothing", action="store_true", help="with --file: if one is refused, create none")
    create.set_defaults(run=_create_checked, usage=create)
    update = actions.add_parser("update", parents=[common], help="change what a twin is; an empty value removes")
    update.add_argument("twin")
    update.add_argument("--time-zone", "--tz", metavar="ZONE", help="its IANA zone")
    update.add_argument("--name", help="a name for people")
    update.add_argument("--attribute", action="append", metavar="KEY=TEXT", help="a fact; repeatable")
    update.add_argument("--property", action="append", metavar="NAME=VALUE", help="a property; repeatable")
    update.add_argument("--relation", action="append", metavar="NAME=TWIN,TWIN", help="all edges of a name; repeatable")
    update.add_argument("--if-revision", type=int, metavar="N", help="only if the twin is still at this revision")
    update.set_defaults(run=on_mesh(_update))
    migrate = actions.add_parser("migrate", parents=[common], help="bring twins to another version of their type")
    migrate.add_argument("type", metavar="TYPE[@VERSION]", help="the version to come to; without one, the newest")
    migrate.add_argument("twins", nargs="*", metavar="TWIN", help="only these; none = all of the type")
    migrate.add_argument("--from", dest="from_version", type=int, default=0, metavar="VERSION", help="only twins of it")
    migrate.add_argument("--dry-run", action="store_true", help="change nothing, tell what would be")
    migrate.set_defaults(run=on_mesh(_migrate))
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


def _create_checked(arguments: Namespace, out: Output) -> int:
    if bool(arguments.file) == bool(arguments.twin) or (arguments.twin and not arguments.type):
        arguments.usage.error("give one twin and its --type, or a --file of twins")
    return on_mesh(_create_from_file if arguments.file else _create)(arguments, out)


async def _create(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    values = await _properties(mesh, arguments.type, arguments.property)
    twin = await mesh.twins.create(
        arguments.twin,
        type=arguments.type,
        time_zone=arguments.time_zone,
        display_name=arguments.name,
        attributes=pairs(arguments.attribute, "--attribute", "--attribute site=north"),
        relationships=pairs(arguments.relation, "--relation", "--relation feeds=T2").items(),
        properties=values,
        if_absent=arguments.if_absent,
    )
    kind = await twin.type()
    first = next((c.name for c in kind.channels if c.kind.numeric), "CHANNEL")
    out.line(f"created {arguments.twin} of type {kind.twin_type_id}@{kind.version}")
    out.line(f"  -> twinmesh write {arguments.twin} {first}=1.5")
    out.document({"twin_id": arguments.twin, "type": f"{kind.twin_type_id}@{kind.version}"})
    return 0


async def _create_from_file(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    path = arguments.file
    form = "jsonl" if path == "-" else path.rpartition(".")[2].lower()
    if form not in ("json", "jsonl", "csv"):
        raise UsageError(f"{path}: its name must end with .json, .jsonl or .csv")
    types: dict[str, TwinType | None] = {}
    if form == "csv":
        types = await _types_of_csv(mesh, path, arguments.type or "")
    twins = _read_file(path, form, arguments.type or "", types)
    found = await mesh.twins.create_many(twins, if_absent=arguments.if_absent, all_or_nothing=arguments.all_or_nothing)
    counts = Counter(result.outcome for result in found)
    refused = [result for result in found if result.outcome == "REFUSED"]
    out.line(", ".join(f"{count:,} {outcome.lower().replace('_', ' ')}" for outcome, count in sorted(counts.items())))
    if refused:
        out.table(("twin", "refused because"), ((r.twin_id, r.message) for r in refused[:_SHOWN]))
        if len(refused) > _SHOWN:
            out.line(f"and {len(refused) - _SHOWN:,} more; --json lists all")
    out.document({"counts": counts, "results": [r for r in found if r.outcome != "CREATED"]})
    return FAILED if refused else 0


def _read_file(path: str, form: str, default: str, types: Mapping[str, TwinType | None]) -> list[Twin]:
    from twinmesh_client.twin_documents import read_twins

    with nullcontext(sys.stdin) if path == "-" else Path(path).open(encoding="utf-8", newline="") as file:
        return list(read_twins(file, form, type=default, type_of=types.get))


def _types_named(path: str, default: str) -> set[str]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return {row.get("type") or default for row in csv.DictReader(file)}


async def _types_of_csv(mesh: Mesh, path: str, default: str) -> dict[str, TwinType | None]:
    """Return the types that a CSV file names: its cells do not say of which kind they are."""
    named = _types_named(path, default)
    return {reference: await _type_or_none(mesh, reference) for reference in sorted(named) if reference}


async def _type_or_none(mesh: Mesh, reference: str) -> TwinType | None:
    from twinmesh_core.errors import TwinmeshError

    try:
        return await mesh.types.get(reference)
    except TwinmeshError:
        return None  # the mesh says what is wrong when the twins are created


async def _properties(mesh: Mesh, reference: str, given: list[str] | None) -> dict[str, Any]:
    """Return the values of ``--property``, as the type's kinds say; an empty one is None."""
    from twinmesh_client.twin_documents import value_of_text

    stated = pairs(given, "--property", "--property power=4")
    if not stated:
        return {}
    kind = await mesh.types.get(reference)
    return {name: value_of_text(text, kind, name) if text else None for name, text in stated.items()}


async def _update(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    twin = mesh.twins[arguments.twin]
    before = await twin.identity()
    reference = f"{before.twin_type_id}@{before.twin_type_version}"
    attributes = pairs(arguments.attribute, "--attribute", "--attribute site=north")
    relations = pairs(arguments.relation, "--relation", "--relation feeds=T2,T3")
    after = await twin.update(
        display_name=arguments.name,
        time_zone=arguments.time_zone,
        attributes={key: text or None for key, text in attributes.items()},
        properties=await _properties(mesh, reference, arguments.property),
        relationships={name: [t.strip() for t in ids.split(",") if t.strip()] for name, ids in relations.items()},
        if_revision=arguments.if_revision,
    )
    changed = after.revision != before.revision
    out.line(f"{arguments.twin} is at revision {after.revision}" + ("" if changed else "; it was so already"))
    out.document({"twin_id": arguments.twin, "revision": after.revision, "changed": changed})
    return 0


async def _migrate(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    counts: Counter[str] = Counter()
    rows: list[tuple[str, ...]] = []
    reports = []
    async for found in mesh.twins.migrate(
        arguments.type, from_version=arguments.from_version, twin_ids=arguments.twins, dry_run=arguments.dry_run
    ):
        counts[found.outcome] += 1
        if out.as_json:
            reports.append(found)
        told = [s for s in found.steps if s.effect != "CARRIED"] if found.outcome != "UP_TO_DATE" else []
        for step in told[: max(0, _SHOWN - len(rows))]:
            rows.append(
                (found.twin_id, f"{found.from_version} -> {found.to_version}", step.effect, step.part, step.detail)
            )
    if rows:
        out.table(("twin", "version", "effect", "part", "detail"), rows)
    would = "would be " if arguments.dry_run else ""
    told_counts = ", ".join(
        f"{count:,} {would}{name.lower().replace('_', ' ')}" for name, count in sorted(counts.items())
    )
    out.line(told_counts or "no twin to migrate")
    out.document({"counts": counts, "migrations": reports})
    return FAILED if counts["BLOCKED"] or counts["NOT_FOUND"] else 0


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
    for name, value in state.properties.items():
        out.line(f"  {name} = {show_number(value)}")
    for name, targets in state.relationships.items():
        out.line(f"  {name} -> {', '.join(targets)}")
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
