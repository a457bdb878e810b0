"""`alarms list`, `show`, `ack`, `shelve`, `unshelve`, `service`: what is wrong, and who takes care of it."""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from twinmesh_cli.output import Output, show_time
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.alarm_values import Alarm


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    group = commands.add_parser("alarms", help="alarms raised by the rules of twin types")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[common], help="open alarms, the most severe first")
    listing.add_argument("twin", nargs="?", default="", metavar="TWIN", help="only of this twin")
    listing.add_argument("--type", default="", metavar="TYPE", help="only of twins of this type")
    listing.add_argument(
        "--state", action="append", default=[], help="active, acknowledged, returned, cleared; repeatable"
    )
    listing.add_argument("--min-severity", type=int, default=0, metavar="N", help="only those at least so severe")
    listing.add_argument("--told", action="store_true", help="leave out shelved, suppressed and out of service")
    listing.set_defaults(run=on_mesh(_list))
    _of_one(actions, common, "show", "one alarm, with its history in short").set_defaults(run=on_mesh(_show))
    ack = _of_one(actions, common, "ack", "say that somebody knows")
    ack.add_argument("--note", default="", help="for others")
    ack.add_argument("--if-raise-count", type=int, default=0, metavar="N", help="only if it was raised so often")
    ack.set_defaults(run=on_mesh(_ack))
    shelve = _of_one(actions, common, "shelve", "have nobody told of it for a while")
    shelve.add_argument("--for", dest="duration", required=True, metavar="SPAN", help="e.g. 8h, at most 30d")
    shelve.add_argument("--note", default="", help="for others")
    shelve.set_defaults(run=on_mesh(_shelve))
    _of_one(actions, common, "unshelve", "end a shelving").set_defaults(run=on_mesh(_unshelve))
    service = _of_one(actions, common, "service", "take it out of service, or put it back")
    service.add_argument("how", choices=("out", "in"))
    service.set_defaults(run=on_mesh(_service))


def _of_one(actions: Any, common: argparse.ArgumentParser, name: str, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, parents=[common], help=words)
    parser.add_argument("twin", metavar="TWIN")
    parser.add_argument("rule", metavar="RULE")
    return parser


async def _list(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    found = await mesh.alarms.list(
        arguments.twin,
        type=arguments.type,
        states=arguments.state,
        min_severity=arguments.min_severity,
        only_told=arguments.told,
    )
    found.sort(key=lambda a: (-a.severity, a.twin_id, a.rule))
    out.table(
        ("twin", "rule", "severity", "state", "since", "times", "message", "quiet"),
        (
            (
                a.twin_id,
                a.rule,
                f"{a.severity} {a.priority}",
                a.state,
                show_time(a.last_raise_time) if a.last_raise_time else "",
                str(a.raise_count),
                a.message,
                _quiet(a),
            )
            for a in found
        ),
        empty="no open alarm",
    )
    out.document(found)
    return 0


async def _show(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    return _print(await mesh.alarms.get(arguments.twin, arguments.rule), out)


async def _ack(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    return _print(
        await mesh.alarms.acknowledge(
            arguments.twin, arguments.rule, note=arguments.note, if_raise_count=arguments.if_raise_count
        ),
        out,
    )


async def _shelve(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    return _print(
        await mesh.alarms.shelve(arguments.twin, arguments.rule, arguments.duration, note=arguments.note), out
    )


async def _unshelve(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    return _print(await mesh.alarms.unshelve(arguments.twin, arguments.rule), out)


async def _service(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    out_of_service = arguments.how == "out"
    return _print(await mesh.alarms.set_service(arguments.twin, arguments.rule, out_of_service=out_of_service), out)


def _print(found: Alarm, out: Output) -> int:
    quiet = f"  ({_quiet(found)})" if not found.told else ""
    out.line(f"{found.twin_id} {found.rule}  {found.state}  {found.severity} {found.priority}{quiet}")
    if found.message:
        out.line(f"  {found.message}")
    if found.last_raise_time:
        out.line(f"  raised {found.raise_count} times, last {show_time(found.last_raise_time)}")
    if found.acknowledge_time:
        note = f": {found.acknowledge_note}" if found.acknowledge_note else ""
        out.line(f"  acknowledged {show_time(found.acknowledge_time)} by {found.acknowledged_by}{note}")
    out.document(found)
    return 0


def _quiet(a: Alarm) -> str:
    if a.shelved_until:
        return f"shelved until {show_time(a.shelved_until)}"
    if a.suppressed_by:
        return f"maintenance {a.suppressed_by}"
    return "out of service" if a.out_of_service_by else ""
