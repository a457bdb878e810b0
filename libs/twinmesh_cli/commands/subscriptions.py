"""`subscriptions list`, `show`, `create`, `delete`, `retry`, `rotate`: who is told of alarms, and how that goes."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import UsageError
from twinmesh_cli.output import Output, show_time
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.alarm_values import Subscription


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    group = commands.add_parser("subscriptions", help="who is told of alarms and events, by webhook or MQTT")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("list", parents=[common], help="all, and how their deliveries go").set_defaults(
        run=on_mesh(_list)
    )
    create = actions.add_parser("create", parents=[common], help="tell somebody from now on")
    create.add_argument("id", metavar="ID")
    create.add_argument("url", metavar="URL", help="https://HOST/PATH, or mqtts://HOST:PORT")
    create.add_argument("--topic", default="", help="where to publish, for a broker")
    create.add_argument("--username", default="", help="for a broker")
    create.add_argument("--password-env", default="", metavar="NAME", help="variable that holds the broker's password")
    create.add_argument("--secret-env", default="", metavar="NAME", help="variable that holds the secret; else made up")
    create.add_argument("--kind", action="append", default=[], help="alarm (default), event, twin; repeatable")
    create.add_argument("--min-severity", type=int, default=0, metavar="N", help="alarms at least so severe")
    create.add_argument("--type", default="", metavar="TYPE", help="only twins of this type")
    create.add_argument("--twin", action="append", default=[], metavar="TWIN", help="only this twin; repeatable")
    create.add_argument("--retry-for", default=None, metavar="SPAN", help="how long a delivery is tried (24h)")
    create.set_defaults(run=on_mesh(_create))
    rotate = actions.add_parser("rotate", parents=[common], help="sign with another secret")
    rotate.add_argument("id", metavar="ID")
    rotate.add_argument("--secret-env", default="", metavar="NAME", help="variable that holds the secret; else made up")
    rotate.add_argument("--overlap", default=None, metavar="SPAN", help="how long the one before signs too (24h)")
    rotate.add_argument("--at-once", action="store_true", help="the one before has leaked: it stops signing now")
    rotate.set_defaults(run=on_mesh(_rotate))
    for name, words, run in (
        ("show", "one, and how its deliveries go", _show),
        ("delete", "tell nobody any more", _delete),
        ("retry", "try again what was given up", _retry),
    ):
        parser = actions.add_parser(name, parents=[common], help=words)
        parser.add_argument("id", metavar="ID")
        parser.set_defaults(run=on_mesh(run))


async def _list(mesh: Mesh, _arguments: Namespace, out: Output) -> int:
    found = await mesh.subscriptions.list()
    out.table(
        ("id", "where", "what", "delivered", "pending", "given up", "last success", "last error"),
        (
            (
                s.subscription_id,
                s.url,
                ", ".join(s.kinds).lower(),
                f"{s.delivered:,}",
                f"{s.pending:,}",
                f"{s.dead:,}",
                show_time(s.last_success_time) if s.last_success_time else "",
                s.last_error,
            )
            for s in found
        ),
        empty="nobody is told; twinmesh subscriptions create ops https://example.com/hook",
    )
    out.document(found)
    return 0


async def _create(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    made = await mesh.subscriptions.create(
        arguments.id,
        arguments.url,
        topic=arguments.topic,
        username=arguments.username,
        password=_from_environment(arguments.password_env),
        secret=_from_environment(arguments.secret_env),
        kinds=arguments.kind or ("alarm",),
        min_severity=arguments.min_severity,
        type=arguments.type,
        twin_ids=arguments.twin,
        retry_for=arguments.retry_for,
    )
    out.line(f"created {made.subscription.subscription_id}; keep the secret that signs, it is not told again:")
    out.line(f"  {made.secret}")
    out.document(made)
    return 0


async def _show(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    return _print(await mesh.subscriptions.get(arguments.id), out)


async def _delete(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    await mesh.subscriptions.delete(arguments.id)
    out.line(f"deleted {arguments.id}")
    out.document({"deleted": arguments.id})
    return 0


async def _retry(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    count = await mesh.subscriptions.retry(arguments.id)
    out.line(f"{count:,} deliveries are tried again")
    out.document({"revived": count})
    return 0


async def _rotate(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    made = await mesh.subscriptions.rotate_secret(
        arguments.id,
        secret=_from_environment(arguments.secret_env),
        overlap=arguments.overlap,
        at_once=arguments.at_once,
    )
    until = "no more" if arguments.at_once else f"until {show_time(made.previous_end_time)}"
    out.line(f"the secret before signs {until}; keep the new one, it is not told again:")
    out.line(f"  {made.secret}")
    out.document(made)
    return 0


def _print(s: Subscription, out: Output) -> int:
    out.line(f"{s.subscription_id}  {s.url}  {', '.join(s.kinds).lower()}")
    out.line(f"  delivered {s.delivered:,}, pending {s.pending:,}, given up and kept {s.dead:,}")
    if s.last_error:
        when = f" at {show_time(s.last_failure_time)}" if s.last_failure_time else ""
        out.line(f"  last failure{when}: {s.last_error}")
    out.document(s)
    return 0


def _from_environment(name: str) -> str:
    if not name:
        return ""
    if name not in os.environ:
        raise UsageError(f"the variable {name} is not set", remedy=f"export {name}=...")
    return os.environ[name]
