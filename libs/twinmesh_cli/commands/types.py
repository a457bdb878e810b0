"""Twin types: `types list`, `show`, `create`, `import`, `export`, `example`."""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import FAILED, UsageError
from twinmesh_cli.output import Output, show_number
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.dtdl import Finding
    from twinmesh_core.registry import ChannelSpec, TwinType
    from twinmesh_core.value_specs import ArgumentSpec

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
    "rules": [
        {
            "name": "hot_bearing",
            "severity": "HIGH",
            "threshold": {"channel": "bearing", "high": 85, "high_high": 95, "hysteresis": 3},
            "on_delay": "30s",
            "message": "{name}: bearing at {value} {unit}",
        }
    ],
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
    take = actions.add_parser("import", parents=[common], help="create the types of a DTDL v3 file")
    take.add_argument("path", metavar="FILE.json", help="an interface, or a list of them; - = standard input")
    take.add_argument(
        "--dry-run", action="store_true", help="create nothing: show what would be, and what is not carried"
    )
    take.add_argument("--strict", action="store_true", help="create nothing if anything is lost")
    take.set_defaults(run=_import_checked)
    give = actions.add_parser("export", parents=[common], help="print types as DTDL v3, with QuantitativeTypes")
    give.add_argument("types", nargs="+", metavar="TYPE[@VERSION]", help="types; those they extend come with them")
    give.add_argument(
        "--plain", action="store_true", help="leave out what DTDL has no place for, instead of an extension"
    )
    give.set_defaults(run=on_mesh(_export))
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


def _import_checked(arguments: Namespace, out: Output) -> int:
    """Read the file before a mesh is asked: what is wrong with it is known without one."""
    from twinmesh_client.dtdl import Loss, import_dtdl

    imported = import_dtdl(read_any_json(arguments.path))
    arguments.imported = imported
    _tell(imported.findings, out)
    lost = [finding for finding in imported.findings if finding.loss is Loss.LOST] if arguments.strict else []
    if arguments.dry_run or lost:
        for found in imported.types:
            out.line(f"would create {found.reference} with {len(found.channels)} channels")
        out.document({"types": [document(t) for t in imported.types], "findings": imported.findings})
        return FAILED if lost else 0
    return on_mesh(_import)(arguments, out)


async def _import(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    for found in arguments.imported.types:
        created = await mesh.types.create(found)
        out.line(f"created {created.reference} with {len(created.channels)} channels")
    types = [document(t) for t in arguments.imported.types]
    out.document({"types": types, "findings": arguments.imported.findings})
    return 0


async def _export(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.dtdl import export_dtdl

    found: dict[str, tuple[TwinType, TwinType | None]] = {}
    wanted = list(arguments.types)
    for reference in wanted:
        declared = await mesh.types.get(reference, declared=True)
        if declared.reference in found:
            continue
        base = await mesh.types.get(declared.extends) if declared.extends else None
        found[declared.reference] = (declared, base)
        if base is not None:
            wanted.append(base.reference)
    exported = export_dtdl(list(found.values()), extension=not arguments.plain)
    sys.stdout.write(json.dumps(exported.document, indent=2, ensure_ascii=False) + "\n")
    for finding in exported.findings:
        out.note(f"{finding.loss.value}: {finding.pointer}: {finding.reason}")
    return 0


def _tell(findings: Sequence[Finding], out: Output) -> None:
    if findings:
        out.table(("", "where", "why"), ((f.loss.value, f.pointer, f.reason) for f in findings))


def read_json(path: str) -> dict[str, Any]:
    """Return the object that a JSON file holds; raises `UsageError` that names the line."""
    found = read_any_json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} must hold one JSON object", remedy="twinmesh types example")
    return found


def read_any_json(path: str) -> Any:
    """Return what a JSON file holds; raises `UsageError` that names the line."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}, line {error.lineno}: {error.msg}", remedy="twinmesh types example") from None


def parse(body: dict[str, Any]) -> TwinType:
    """Return the type that a JSON object describes; raises `UsageError` that names the entry."""
    from twinmesh_client.type_documents import type_from_document
    from twinmesh_core.errors import InvalidArgument

    try:
        return type_from_document(body)
    except InvalidArgument as error:
        raise UsageError(error.message, remedy="twinmesh types example") from None


def print_type(found: TwinType, out: Output) -> None:
    """Show a type with its channels, commands and rules."""
    from twinmesh_core.rules import severity_name

    out.line(f"{found.twin_type_id}@{found.version}" + (f"   {found.display_name}" if found.display_name else ""))
    out.table(
        ("channel", "kind", "unit", "every", "range", "limit", "set by", "description"),
        (_channel_row(c) for c in found.channels),
    )
    if found.extends:
        out.line(f"extends {found.extends}")
    if found.properties:
        out.table(
            ("property", "kind", "unit", "range", "default", "required", "description"),
            (
                (p.name, p.kind.name if p.kind else "attribute", p.unit, _range(p.min_value, p.max_value),
                 show_number(p.default), "yes" if p.required else "", p.description)
                for p in found.properties
            ),
        )  # fmt: skip
    for order in found.commands:
        args = ", ".join(order.required_args) if not order.args else ", ".join(map(_argument, order.args))
        out.line(f"command {order.name}({args})  {order.description}")
    for edge in found.relationships:
        most = f", at most {edge.max_count}" if edge.max_count else ""
        out.line(f"relationship {edge.name} -> {edge.target_twin_type_id or 'any twin'}{most}  {edge.description}")
    if found.geometry is not None:
        out.line(f"geometry {found.geometry.uri}")
    for rule in found.rules:
        out.line(f"rule {rule.name}  {rule.severity} {severity_name(rule.severity)}  {rule.description}")
    out.document(document(found))


def _channel_row(c: ChannelSpec) -> tuple[str, ...]:
    from twinmesh_client.durations import describe_us

    return (
        c.name,
        c.kind.name,
        c.unit,
        describe_us(c.expected_interval_us) if c.expected_interval_us else "",
        _range(c.min_value, c.max_value),
        "" if c.upper_limit is None else f"{c.upper_limit:g}",
        c.set_command or ("desired value" if c.controllable else ""),
        c.description,
    )


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None and high is None else f"{show_number(low)} .. {show_number(high)}"


def _argument(arg: ArgumentSpec) -> str:
    unit = f" {arg.unit}" if arg.unit else ""
    default = "" if arg.default is None else f" = {show_number(arg.default)}"
    return f"{arg.name}: {arg.kind.name.lower() if arg.kind else 'any'}{unit}{default}"


def document(found: TwinType) -> dict[str, Any]:
    """Return a type as `types create` takes it; what is not set is left out."""
    from twinmesh_client.type_documents import type_document

    return type_document(found)
