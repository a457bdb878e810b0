"""Targets: `desired get` and `desired set`."""

from __future__ import annotations

import argparse
import asyncio
from argparse import Namespace
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from twinmesh_cli.commands.write import parse_value
from twinmesh_cli.errors import FAILED, UsageError
from twinmesh_cli.output import Output, show_number, show_time
from twinmesh_cli.session import on_mesh, pairs

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.aio.twin import Twin
    from twinmesh_client.replicas import DesiredWrite


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    group = commands.add_parser("desired", help="targets: what the twin should be, and whether it is")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    get = actions.add_parser("get", parents=[common], help="a twin's targets and what is open")
    get.add_argument("twin")
    get.set_defaults(run=on_mesh(_get))
    change = actions.add_parser("set", parents=[common], help="set targets, all or none")
    change.add_argument("twin")
    change.add_argument("values", nargs="*", metavar="CHANNEL=VALUE")
    change.add_argument("--remove", action="append", default=[], metavar="CHANNEL", help="take a target away")
    change.add_argument(
        "--if-revision", type=int, metavar="N", help="only if nobody changed targets since this revision"
    )
    change.add_argument("--deadline", metavar="SPAN", help="by when the facts should meet them, e.g. 60s")
    change.add_argument(
        "--wait",
        nargs="?",
        const="",
        metavar="SPAN",
        help="wait until the facts meet them (at most SPAN; default: deadline)",
    )
    change.set_defaults(run=on_mesh(_set))


async def _get(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    state = await mesh.twins[arguments.twin].get()
    out.line(f"{state.twin_id}   desired revision {state.desired.revision}")
    out.table(
        ("channel", "target", "state", "reported", "deadline", "why not"),
        (
            (
                channel,
                show_number(d.value),
                d.state,
                show_number(state.reported[channel].value) if channel in state.reported else "-",
                show_time(d.deadline) if d.deadline else "",
                d.rejection,
            )
            for channel, d in state.desired.items.items()
        ),
        empty=f"nothing is desired; set a target: twinmesh desired set {arguments.twin} CHANNEL=VALUE",
    )
    out.document(
        {
            "twin_id": state.twin_id,
            "revision": state.desired.revision,
            "desired": state.desired.items,
            "delta": state.delta,
            "as_of": state.as_of,
        }
    )
    return 0


async def _set(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    example = f"twinmesh desired set {arguments.twin} CHANNEL=VALUE"
    texts = pairs(arguments.values, "target", example)
    if not texts and not arguments.remove:
        raise UsageError("name a target, or one to --remove", remedy=example)
    twin = mesh.twins[arguments.twin]
    kind = await twin.type()
    want = await twin.set_desired(
        {channel: parse_value(text, channel, kind) for channel, text in texts.items()},
        remove=arguments.remove,
        if_revision=arguments.if_revision,
        deadline=arguments.deadline,
    )
    out.line(f"desired revision {want.revision}, offset {want.offset:,}")
    for order in want.commands:
        out.line(f"command {order.name} {order.state}")
    for channel, item in want.delta.items():
        out.line(f"open: {channel}: {item!r}")
    if arguments.wait is None or not texts:
        out.document(want)
        return 0
    return await _await_convergence(twin, want, arguments, out)


async def _await_convergence(twin: Twin, want: DesiredWrite, arguments: Namespace, out: Output) -> int:
    from twinmesh_cli.commands.watch import line_of
    from twinmesh_client.durations import span_us

    limit = arguments.wait or (None if arguments.deadline else "60s")
    limit_s = span_us(limit, "--wait") / 1e6 if limit else None
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(limit_s), aclosing(twin.watch(resume_after=want.before)) as changes:
            async for event in changes:
                out.line(line_of(event))
                if event.converged(want):
                    break
    except TimeoutError:
        out.note(f"not reached within {limit}; it stays wanted: twinmesh desired get {arguments.twin}")
        out.document({"desired": want, "converged": False})
        return FAILED
    seconds = asyncio.get_running_loop().time() - began
    out.line(f"reached after {seconds:.1f} s")
    out.document({"desired": want, "converged": True, "seconds": seconds})
    return 0
