"""What the database says no to: the entry is to blame for its content, and for nothing else."""

from __future__ import annotations

import asyncio
import os
import signal

import psycopg
import pytest
from tests.integration.storage.mesh import T0, S, Storage, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import InvalidArgument, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_core.observations import SeriesKey

POISON = "poison"


def refuse(database_url: str, sqlstate: str) -> None:
    """Let PostgreSQL refuse rows of one producer with a SQLSTATE, as a full disk or a bad value would."""
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("create schema if not exists faults")
        conn.execute(
            f"""create or replace function faults.refuse() returns trigger language plpgsql as $$
            begin
                if new.tenant = '{POISON}' or '{sqlstate[:2]}' not in ('22', '23', '54') then
                    raise exception 'refused' using errcode = '{sqlstate}';
                end if;
                return new;
            end $$"""
        )
        conn.execute("drop trigger if exists refuse on storage.log")
        conn.execute("create trigger refuse before insert on storage.log for each row execute function faults.refuse()")


def allow(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("drop trigger refuse on storage.log")


async def attempt(store: Storage, keys: tuple[SeriesKey, ...], number: int) -> TwinmeshError | int:
    try:
        return int(
            (await store.append(doubles(keys, [T0 + number * S], [1.0]), request_id=f"r{number}")).position.offset
        )
    except TwinmeshError as error:
        return error


async def persist(store: Storage, keys: tuple[SeriesKey, ...], number: int) -> int:
    """Send until it is taken; returns the offset."""
    while True:
        answer = await attempt(store, keys, number)
        if isinstance(answer, int):
            return answer
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("sqlstate", ["22P02", "23514", "54000"])
async def test_a_poison_entry_is_refused_alone(database_url: str, sqlstate: str) -> None:
    async with storage(database_url) as store:
        poison = Storage(store.target, store.channel, store.stub, tenant=POISON)
        good, bad = await store.series("t1", ["c0"]), await poison.series("t1", ["c0"])
        assert await attempt(store, good, 0) == 1
        refuse(database_url, sqlstate)
        answers = await asyncio.gather(
            *(
                attempt(poison if number == 5 else store, bad if number == 5 else good, number)
                for number in range(1, 10)
            )
        )
        assert isinstance(answers[4], InvalidArgument), answers
        assert sorted(a for a in answers if isinstance(a, int)) == list(range(2, 10)), answers


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        pytest.param("08006", Unavailable, marks=pytest.mark.slow),
        pytest.param("40001", Unavailable, marks=pytest.mark.slow),
        ("40P01", Unavailable),
        pytest.param("57014", Unavailable, marks=pytest.mark.slow),
        pytest.param("25006", Unavailable, marks=pytest.mark.slow),
        ("XX001", Unavailable),
        ("53100", ResourceExhausted),
        pytest.param("53200", ResourceExhausted, marks=pytest.mark.slow),
    ],
)
async def test_what_is_wrong_around_it_never_blames_an_entry(
    database_url: str, sqlstate: str, expected: type[TwinmeshError]
) -> None:
    async with storage(database_url) as store:
        keys = await store.series("t1", ["c0"])
        assert await attempt(store, keys, 0) == 1
        refuse(database_url, sqlstate)
        answers = await asyncio.gather(*(attempt(store, keys, number) for number in range(1, 6)))
        assert all(isinstance(a, expected) for a in answers), answers
        assert all(a.retry_after_s for a in answers if isinstance(a, TwinmeshError))
        allow(database_url)
        # The same requests, sent again as they were told to: each is there once.
        async with asyncio.timeout(10):
            for number in range(6):
                answer = await persist(store, keys, number)
                assert answer == number + 1
        statistics = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
        assert statistics.point_count == 6


async def test_a_database_that_hangs_is_given_up_in_time_and_its_connection_too(database_url: str) -> None:
    async with storage(database_url, database_timeout_s=0.5) as store:
        keys = await store.series("t1", ["c0"])
        assert await attempt(store, keys, 0) == 1
        with psycopg.connect(database_url, autocommit=True) as conn:
            (backend,) = conn.execute("select lease_backend_pid from storage.partition_state").fetchone() or (0,)
        os.kill(backend, signal.SIGSTOP)
        try:
            started = asyncio.get_running_loop().time()
            answer = await attempt(store, keys, 1)
            assert isinstance(answer, Unavailable), answer
            assert asyncio.get_running_loop().time() - started < 5
        finally:
            os.kill(backend, signal.SIGCONT)
        async with asyncio.timeout(20):
            answer = await persist(store, keys, 1)
        assert answer == 2
        with psycopg.connect(database_url, autocommit=True) as conn:
            now = conn.execute("select lease_backend_pid from storage.partition_state").fetchone()
        assert now is not None
        assert now[0] != backend
        statistics = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
        assert statistics.point_count == 2
