"""The sync door: ``with connect() as mesh``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from twinmesh_client.aio.mesh import connect_async
from twinmesh_client.limits import DEFAULT_TIMEOUT_S
from twinmesh_client.portal import Portal
from twinmesh_client.sync import Mesh


@contextmanager
def connect(
    target: str | None = None, *, context: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Iterator[Mesh]:
    """Connect to a mesh from ordinary, synchronous code.

    Args:
        target: ``host:port`` of any one service; None = by context, else ``TWINMESH_TARGET``, else context ``local``.
        context: name of a saved context.
        timeout_s: deadline of each call that is not told otherwise.

    Raises:
        Unavailable: no mesh there; the message says how to start one.
    """
    portal = Portal()
    connection = connect_async(target, context=context, timeout_s=timeout_s)
    try:
        source = portal.run(connection.__aenter__())
        try:
            yield Mesh(portal, source)
        finally:
            portal.run(connection.__aexit__(None, None, None))
    finally:
        portal.close()
