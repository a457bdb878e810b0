"""The pool on the real PostgreSQL: commits, roll-backs, and deadlines that hold even when a backend hangs."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from twinmesh_core.call_context import CallContext, enter_call
from twinmesh_core.errors import Reason, ResourceExhausted, Unavailable
from twinmesh_runtime.postgres import Pool, connection, deadline, open_pool, ping


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        await conn.execute("create schema echo")
    async with open_pool(database_url, min_size=1, max_size=2, schema="echo") as opened:
        yield opened


@pytest.fixture
async def single(pool: Pool, database_url: str) -> AsyncIterator[Pool]:
    """A pool of one connection, so that a test knows which one it gets."""
    async with open_pool(database_url, min_size=1, max_size=1, schema="echo", name="single") as opened:
        yield opened


async def value(pool: Pool, query: Any) -> Any:
    async with connection(pool, timeout_s=5) as conn:
        row = await (await conn.execute(query)).fetchone()
    assert row is not None
    return row[0]


async def test_a_block_commits_and_a_failure_rolls_back(pool: Pool) -> None:
    async with connection(pool, timeout_s=5) as conn:
        await conn.execute("create table point (x integer)")
        await conn.execute("insert into point values (1)")

    async def failing() -> None:
        async with connection(pool, timeout_s=5) as conn:
            await conn.execute("insert into point values (2)")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await failing()
    assert await value(pool, "select count(*) from point") == 1
    assert await value(pool, "select count(*) from echo.point") == 1, "the service's schema is first"


async def test_a_slow_statement_ends_in_time_and_the_pool_goes_on(pool: Pool) -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer in time") as caught:
        async with connection(pool, timeout_s=0.3) as conn:
            await conn.execute("select pg_sleep(30)")
    assert time.monotonic() - started < 1.5
    assert caught.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert await value(pool, "select 1") == 1


async def test_a_hung_backend_cannot_hang_a_call(single: Pool) -> None:
    """SIGSTOP of the backend: statement_timeout and a cancellation both go unheard (reliability finding F8)."""
    pid = await value(single, "select pg_backend_pid()")
    os.kill(pid, signal.SIGSTOP)

    async def hanging() -> None:
        async with connection(single, timeout_s=0.5) as conn:
            assert conn.info.backend_pid == pid
            await conn.execute("select 1")

    try:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await hanging()
        assert time.monotonic() - started < 2
        assert await value(single, "select 1") == 1
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_cancelled_call_on_a_hung_backend_still_ends(single: Pool) -> None:
    pid = await value(single, "select pg_backend_pid()")

    async def work() -> None:
        async with connection(single, timeout_s=1) as conn:
            await conn.execute("select pg_sleep(30)")

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGSTOP)
    try:
        task.cancel()
        async with asyncio.timeout(8):
            with pytest.raises((asyncio.CancelledError, Unavailable)):
                await task
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_what_a_call_has_left_bounds_its_statements(pool: Pool) -> None:
    async def work() -> None:
        enter_call(CallContext(deadline_s=time.monotonic() + 0.3, request_id="r"))
        async with connection(pool, timeout_s=30) as conn:
            await conn.execute("select pg_sleep(20)")

    started = time.monotonic()
    with pytest.raises(Unavailable):
        await asyncio.create_task(work())
    assert time.monotonic() - started < 2


async def test_an_exhausted_pool_is_unavailable(pool: Pool) -> None:
    async with connection(pool, timeout_s=5), connection(pool, timeout_s=5):
        with pytest.raises(Unavailable, match="lends no connection"):
            async with connection(pool, timeout_s=0.2):
                pass


async def test_a_killed_backend_is_unavailable_and_replaced(pool: Pool, database_url: str) -> None:
    async def killed() -> None:
        async with connection(pool, timeout_s=5) as conn:
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
                await other.execute("select pg_terminate_backend(%s)", (conn.info.backend_pid,))
            await conn.execute("select 1")

    with pytest.raises(Unavailable, match="cannot be reached"):
        await killed()
    await ping(pool)
    assert await value(pool, "select 1") == 1


async def test_out_of_resources_is_told_as_such(pool: Pool) -> None:
    with pytest.raises(ResourceExhausted) as caught:
        async with connection(pool, timeout_s=5) as conn:
            # DiskFull by its SQLSTATE, raised by the server itself.
            await conn.execute("do $$ begin raise exception 'full' using errcode = '53100'; end $$")
    assert caught.value.retryable


async def test_a_defect_in_sql_stays_a_defect(pool: Pool) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        async with connection(pool, timeout_s=5) as conn:
            await conn.execute("select * from nowhere")


async def test_ping_of_a_database_that_is_away_fails_quickly(unused_tcp_port: int) -> None:
    url = f"postgresql://u@127.0.0.1:{unused_tcp_port}/d"
    async with open_pool(url, min_size=0, max_size=1, schema="echo") as away:
        with pytest.raises(Unavailable):
            await ping(away)


async def test_a_deadline_on_a_connection_of_ones_own(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        async with deadline(conn, 5):
            await conn.execute("select 1")
        with pytest.raises(Unavailable):
            async with deadline(conn, 0.2):
                await conn.execute("select pg_sleep(20)")
        assert conn.broken
