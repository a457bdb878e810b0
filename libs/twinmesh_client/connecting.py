"""The sync doors: ``with connect() as mesh``, ``with open_writer("producer") as writer``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from functools import wraps
from typing import ParamSpec

from twinmesh_client.aio import writer as aio_writer
from twinmesh_client.aio.mesh import connect_async
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_client.limits import DEFAULT_TIMEOUT_S
from twinmesh_client.portal import Portal
from twinmesh_client.sync import Mesh, Writer

Arguments = ParamSpec("Arguments")


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


def _in_ordinary_code(
    source: Callable[Arguments, AbstractAsyncContextManager[aio_writer.Writer]],
) -> Callable[Arguments, AbstractContextManager[Writer]]:
    @wraps(source)
    @contextmanager
    def opened(*arguments: Arguments.args, **options: Arguments.kwargs) -> Iterator[Writer]:
        portal = Portal()
        try:
            session = portal.call(lambda: source(*arguments, **options))
            writer = portal.run(session.__aenter__())
            try:
                yield Writer(portal, writer)
            except BaseException as error:
                # What the block raised must not wait for acknowledgements.
                if not portal.run(session.__aexit__(type(error), error, error.__traceback__)):
                    raise
            else:
                portal.run(session.__aexit__(None, None, None))
        finally:
            portal.close()

    return opened


open_writer = _in_ordinary_code(open_writer_async)
