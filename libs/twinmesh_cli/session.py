"""Running one command against a mesh."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from twinmesh_cli.errors import UsageError
from twinmesh_cli.output import Output

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh

Handler = Callable[[Namespace, Output], int]
"""What a command does: parsed options and where results go, to the exit status."""
MeshAction = Callable[["Mesh", Namespace, Output], Awaitable[int]]
"""A command that needs a connected mesh."""


def on_mesh(action: MeshAction) -> Handler:
    """Return a handler that connects, runs `action` and disconnects, Ctrl-C included."""

    def handle(arguments: Namespace, out: Output) -> int:
        return asyncio.run(_connected(action, arguments, out))

    return handle


async def _connected(action: MeshAction, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.aio.mesh import connect_async

    timeout_s = timeout_of(arguments)
    async with connect_async(arguments.target, context=arguments.context, timeout_s=timeout_s) as mesh:
        return await action(mesh, arguments, out)


def timeout_of(arguments: Namespace) -> float:
    """Return the deadline of each call in seconds."""
    from twinmesh_client.durations import span_us

    return span_us(arguments.timeout, "--timeout") / 1e6


def pairs(items: list[str] | None, option: str, example: str) -> dict[str, str]:
    """Return ``name=value`` items by name; raises `UsageError` that shows an example."""
    found: dict[str, str] = {}
    for item in items or []:
        # The last sign: a CSV column's name may hold one.
        name, sign, value = item.rpartition("=") if option == "--map" else item.partition("=")
        if not sign or not name.strip():
            raise UsageError(f"{option} {item!r} is not NAME=VALUE", remedy=f"for example: {example}")
        found[name.strip()] = value.strip()
    return found
