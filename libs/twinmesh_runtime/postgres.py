"""PostgreSQL as services use it: a pool, connections that cannot hang a call, and migrations (`migrate`).

A backend that hangs (stopped, its host gone, its disk stuck) ignores ``statement_timeout``, and waiting for its answer
to a cancellation hangs just the same. `connection` and `deadline` therefore hold a timer of their own which cuts the
socket: the statement ends with an error, the pool replaces the connection, and the call is answered in time.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from twinmesh_core.call_context import remaining_s
from twinmesh_core.errors import Reason, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_runtime.migrations import migrate

__all__ = ["Pool", "connection", "deadline", "migrate", "open_pool", "ping"]

Pool = AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]]

CONNECT_TIMEOUT_S: Final = 5
PING_TIMEOUT_S: Final = 1.5
_RECONNECT_S: Final = 1.0
STATEMENT_TIMEOUT_S: Final = 60
"""Bound of one statement by the server itself, for a healthy backend with a slow plan."""
_OUT_OF_RESOURCES: Final = "53"
"""SQLSTATE class: disk full, out of memory, too many connections."""


def open_pool(url: str, *, min_size: int, max_size: int, schema: str, autocommit: bool = False, name: str = "") -> Pool:
    """Return a pool that opens when it is entered: ``pool = await stack.enter_async_context(open_pool(...))``.

    Opening does not wait for the database (`migrate` does, and readiness asks by `ping`).

    Args:
        url: libpq URL or conninfo.
        min_size: connections kept open.
        max_size: most connections at once.
        schema: the service's own schema, first on the search path.
        autocommit: True makes each statement its own transaction unless ``conn.transaction()`` says otherwise, which
            saves two round trips on single reads.
        name: tells pools apart in PostgreSQL's activity view; the schema by default.
    """
    application = f"twinmesh-{name or schema}"
    options = {
        "search_path": schema,
        "statement_timeout": str(STATEMENT_TIMEOUT_S * 1000),
        "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_S * 1000),
        # A backend whose client was cut stops working for nobody within this time.
        "client_connection_check_interval": "2000",
    }
    return AsyncConnectionPool(
        conninfo.make_conninfo(
            url,
            application_name=application,
            connect_timeout=CONNECT_TIMEOUT_S,
            options=" ".join(f"-c {key}={value}" for key, value in options.items()),
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        ),
        kwargs={"autocommit": autocommit},
        min_size=min_size,
        max_size=max_size,
        open=False,
        name=application,
        timeout=CONNECT_TIMEOUT_S,
        # The pool doubles its pauses while it tries, and would stay away for as long again as the database was.
        # So it gives up at once: whoever asks for a connection next, readiness at the latest, makes it try anew.
        reconnect_timeout=_RECONNECT_S,
    )


@asynccontextmanager
async def connection(pool: Pool, *, timeout_s: float) -> AsyncIterator[AsyncConnection[tuple[Any, ...]]]:
    """Lend a connection for a block that ends within `timeout_s`, commit included, whatever the backend does.

    As with ``pool.connection()``, the transaction commits when the block ends and rolls back when it raises. Inside a
    call the time is also bounded by what the call has left.

    Raises:
        Unavailable: the database cannot be reached, lends nothing or does not answer in time.
        ResourceExhausted: it is out of disk, memory or connections.
    """
    left = remaining_s()
    budget_s = timeout_s if left is None else min(timeout_s, left)
    with _own_errors():
        end = asyncio.get_running_loop().time() + budget_s
        async with pool.connection(timeout=max(budget_s, 0.001)) as conn:
            with _Cut(conn, end - asyncio.get_running_loop().time()):
                yield conn
                # Here and not by the pool: a commit can hang as well, and the timer must still run.
                if not conn.autocommit:
                    await conn.commit()


@asynccontextmanager
async def deadline(conn: AsyncConnection[Any], timeout_s: float) -> AsyncIterator[None]:
    """Bound a block of work on a connection that one owns: a COPY, a wait for notifications, a lease.

    Raises:
        Unavailable: time ran out, and the connection has been cut and is of no more use; or it broke by itself.
        ResourceExhausted: the database is out of disk, memory or connections.
    """
    with _own_errors(), _Cut(conn, timeout_s):
        yield


async def ping(pool: Pool) -> None:
    """Return if the database answers; the readiness check of a service that owns a pool.

    Raises:
        Unavailable: it does not; dead connections have then been replaced, so that the next call needs not find them.
    """
    try:
        async with connection(pool, timeout_s=PING_TIMEOUT_S) as conn:
            await conn.execute("select 1")
    except TwinmeshError:
        await pool.check()
        raise


class _Cut:
    """Shuts the socket of a connection down if the block has not ended after `timeout_s`."""

    def __init__(self, conn: AsyncConnection[Any], timeout_s: float) -> None:
        self._conn = conn
        self._timer = asyncio.get_running_loop().call_later(max(timeout_s, 0.0), self._cut)
        self._is_cut = False

    def __enter__(self) -> _Cut:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._is_cut and kind is not None and issubclass(kind, psycopg.Error):
            raise _unavailable("The database did not answer in time; try again.") from None

    def _cut(self) -> None:
        self._is_cut = True
        if self._conn.closed:
            return
        # Through a duplicate of the descriptor: libpq goes on owning its own, and finds the stream ended.
        with socket.socket(fileno=os.dup(self._conn.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)


class _own_errors:  # noqa: N801  reads as the word it is in a with statement
    """Turns what the driver says about the database's state into our errors; a defect in SQL stays one."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, PoolTimeout):
            raise _unavailable("The database lends no connection; try again.") from error
        if isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_OUT_OF_RESOURCES):
            raise ResourceExhausted(
                "The database is out of disk, memory or connections; an operator must make room.",
                reason=Reason.OVERLOADED,
                metadata={"dependency": "postgres"},
                retry_after_s=5.0,
            ) from error
        if isinstance(error, psycopg.OperationalError) and not _exceeds_limit(error):
            raise _unavailable("The database cannot be reached; try again.") from error


def _exceeds_limit(error: psycopg.Error) -> bool:
    """Whether the statement is too much for any database (class 54): trying again would not help it."""
    return (error.sqlstate or "").startswith("54")


def _unavailable(message: str) -> Unavailable:
    return Unavailable(
        message, reason=Reason.DEPENDENCY_UNAVAILABLE, metadata={"dependency": "postgres"}, retry_after_s=1.0
    )
