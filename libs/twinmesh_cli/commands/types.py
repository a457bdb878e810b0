"""Twin types: `types list`, `show`, `create`, `example`."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import UsageError
from twinmesh_cli.output import Output, show_number
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_core.registry import ChannelSpec, TwinType

EXAMPLE: dict[str, Any] = {
    "type": "pump@1",
    "display_name": "Centrifugal pump",
    "channels": [
        {"name": "flow", "unit": "m3/h", "every": "10s", "minimum": 0, "maximum": 500},
        {"name": "bearing", "unit": "Cel", "every": "10s", "upper_limit": 85, "description": "drive-end bearing"},
        {"name": "speed", "unit": "%", "controllable": True, "set_command": "set_speed", "tolerance": 0.5},
        {"name": "running", "kind": "bool"},
    ],
    "commands": [{"name": "set_speed", "required_args": ["value"], "description": "changes the drive's set-point"}],
}
"""A complete twin type as `types create` takes it."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    group = commands.add_parser("types", help="twin types: which channels a kind of twin has")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("list", parents=[common], help="the newest version of each type").set_defaults(
        run=on_mesh(_list)
    )
    show = actions.add_parser("show", parents=[common], help="channels and commands of a type")
    show.add_argument("type", metavar="TYPE[@VERSION]")
    show.set_defaults(run=on_mesh(_show))
    create = actions.add_parser("create", parents=[common], help="create a type from a JSON file (see `types example`)")
    create.add_argument("path", nargs="?", metavar="FILE", help="the file; - = standard input")
    create.add_argument("--file", metavar="FILE", help="the same")
    create.set_defaults(run=on_mesh(_create))
    example = actions.add_parser(
        "example", parents=[common], help="print a type to edit: twinmesh types example > pump.json"
    )
    example.set_defaults(run=_example)


def _example(_arguments: Namespace, _out: Output) -> int:
    sys.stdout.write(json.dumps(EXAMPLE, indent=2) + "\n")
    return 0


async def _list(mesh: Mesh, _arguments: Namespace, out: Output) -> int:
    found = await mesh.types.list()
    out.table(
        ("type", "name", "channels"),
        ((f"{t.twin_type_id}@{t.version}", t.display_name, t.channel_names()) for t in found),
        empty="no twin type yet; create one: twinmesh types example > pump.json; twinmesh types create pump.json",
    )
    out.document([document(t) for t in found])
    return 0


async def _show(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    print_type(await mesh.types.get(arguments.type), out)
    return 0


async def _create(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    path = arguments.path or arguments.file
    if not path:
        raise UsageError("say which file holds the type", remedy="twinmesh types create pump.json")
    created = await mesh.types.create(parse(read_json(path)))
    out.line(f"created {created.twin_type_id}@{created.version} with {len(created.channels)} channels")
    out.line(f"  -> twinmesh twins create NAME --type {created.twin_type_id}@{created.version}")
    out.document(document(created))
    return 0


def read_json(path: str) -> dict[str, Any]:
    """Return the object that a JSON file holds; raises `UsageError` that names the line."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: {error.msg}", remedy="twinmesh types example") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} must hold one JSON object", remedy="twinmesh types example")
    return found


def parse(body: dict[str, Any]) -> TwinType:
    """Return the type that a JSON object describes; raises `UsageError` that names the entry."""
    from inspect import signature

    from twinmesh_client.modelling import channel, command, twin_type
    from twinmesh_core.value_specs import PropertySpec

    _known(body, ("type", "display_name", "channels", "commands", "properties"), "the type")
    if not isinstance(body.get("type"), str):
        raise UsageError('the type needs a name: "type": "pump@1"', remedy="twinmesh types example")
    channels = []
    for i, entry in enumerate(_objects(body, "channels")):
        _known(entry, tuple(signature(channel).parameters), f"channels[{i}]")
        try:
            channels.append(channel(**entry))
        except (TypeError, AttributeError):
            raise UsageError(f'channels[{i}] needs a "name", and values of the right kinds') from None
    commands = []
    for i, entry in enumerate(_objects(body, "commands")):
        _known(entry, ("name", "required_args", "description"), f"commands[{i}]")
        commands.append(
            command(entry["name"], *entry.get("required_args", ()), description=entry.get("description", ""))
        )
    properties = []
    for i, entry in enumerate(_objects(body, "properties")):
        _known(entry, ("name", "description", "required"), f"properties[{i}]")
        properties.append(PropertySpec(**{"description": "", "required": False, **entry}))
    return twin_type(
        body["type"], channels, commands=commands, properties=properties, display_name=body.get("display_name", "")
    )


def _objects(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = body.get(name, [])
    if not isinstance(found, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in found):
        raise UsageError(f'"{name}" must be a list of objects, each with a "name"', remedy="twinmesh types example")
    return found


def _known(entry: dict[str, Any], fields: tuple[str, ...], where: str) -> None:
    unknown = sorted(entry.keys() - set(fields))
    if unknown:
        raise UsageError(f"{where} has no field {unknown[0]!r}; there are {', '.join(fields)}")


def print_type(found: TwinType, out: Output) -> None:
    """Show a type with its channels and commands."""
    out.line(f"{found.twin_type_id}@{found.version}" + (f"   {found.display_name}" if found.display_name else ""))
    out.table(
        ("channel", "kind", "unit", "every", "range", "limit", "set by", "description"),
        (_channel_row(c) for c in found.channels),
    )
    for order in found.commands:
        out.line(f"command {order.name}({', '.join(order.required_args)})  {order.description}")
    out.document(document(found))


def _channel_row(c: ChannelSpec) -> tuple[str, ...]:
    from twinmesh_client.durations import describe_us

    low, high = show_number(c.min_value), show_number(c.max_value)
    return (
        c.name,
        c.kind.name,
        c.unit,
        describe_us(c.expected_interval_us) if c.expected_interval_us else "",
        "" if low == high == "-" else f"{low} .. {high}",
        "" if c.upper_limit is None else f"{c.upper_limit:g}",
        c.set_command or ("desired value" if c.controllable else ""),
        c.description,
    )


def document(found: TwinType) -> dict[str, Any]:
    """Return a type as `types create` takes it; what is not set is left out."""
    channels = []
    for c in found.channels:
        entry: dict[str, Any] = {"name": c.name, "kind": c.kind.name.lower(), "unit": c.unit}
        entry |= {
            "every": f"{c.expected_interval_us}us" if c.expected_interval_us else None,
            "minimum": c.min_value,
            "maximum": c.max_value,
            "max_rate_per_s": c.max_rate_per_s,
            "stuck_after": f"{c.stuck_after_us}us" if c.stuck_after_us else None,
            "spike_threshold": c.spike_threshold or None,
            "deadband": c.deadband,
            "deadband_percent": c.deadband_percent,
            "max_silence": f"{c.max_silence_us}us" if c.max_silence_us else None,
            "disabled_stages": [stage.name.lower() for stage in c.disabled_stages] or None,
            "tolerance": c.tolerance or None,
            "controllable": c.controllable or None,
            "set_command": c.set_command or None,
            "upper_limit": c.upper_limit,
            "description": c.description or None,
        }
        channels.append({k: v for k, v in entry.items() if v is not None})
    return {
        "type": f"{found.twin_type_id}@{found.version}",
        "display_name": found.display_name,
        "channels": channels,
        "commands": [
            {"name": c.name, "required_args": list(c.required_args), "description": c.description}
            for c in found.commands
        ],
        "properties": [
            {"name": p.name, "description": p.description, "required": p.required} for p in found.properties
        ],
    }
