"""Following over real PostgreSQL: many writers commit while followers of all kinds end, resume and change servers.

The canary is what everybody writes first: a table with a sequence, polled for "greater than the last id seen". With
writers that commit out of order it misses rows, and the checker used here must say so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.integration.storage.mesh import T0, S, Storage, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, position_pb2, twin_pb2
from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument, OutOfRange, Reason
from twinmesh_core.shards import shard_of

TWINS = tuple(f"t{i}" for i in range(6))
WRITERS, EACH = 6, 25


@dataclass(slots=True)
class Sent:
    """What was appended: per offset, the twins it names; none = of no twin."""

    twins: dict[int, frozenset[str]] = field(default_factory=dict)

    def expected(self, twin_ids: Sequence[str] = (), shards: Sequence[int] = (), after: int = 0) -> list[int]:
        """Return the offsets that a filter lets pass."""
        return [
            offset
            for offset, named in sorted(self.twins.items())
            if offset > after and (not named or any(self._wanted(t, twin_ids, shards) for t in named))
        ]

    @staticmethod
    def _wanted(twin: str, twins: Sequence[str], shards: Sequence[int]) -> bool:
        return (not twins or twin in twins) and (not shards or shard_of("default", twin) in shards)


def violations(seen: Sequence[int], expected: Sequence[int]) -> list[str]:
    """Return what is wrong with the offsets that a follower saw; the judge of all followers here."""
    found = []
    if gaps := sorted(set(expected) - set(seen)):
        found.append(f"gaps {gaps[:5]}")
    if len(set(seen)) != len(seen):
        found.append("twice")
    if foreign := sorted(set(seen) - set(expected)):
        found.append(f"not asked for {foreign[:5]}")
    if list(seen) != sorted(seen):
        found.append("out of order")
    return found


async def write(store: Storage, number: int, sent: Sent) -> None:
    """Append batches of one to three twins, and control entries of one and of none."""
    rnd = random.Random(number)  # noqa: S311
    keys = {twin: (await store.series(twin, ["c"]))[0] for twin in TWINS}
    for index in range(EACH):
        name = f"w{number}-{index}"
        chosen = rnd.sample(TWINS, rnd.randint(1, 3))
        if index % 5 == 3:
            control = entry_pb2.ControlEntry(request_id=name, delete_twin=entry_pb2.DeleteTwinEntry(twin_id=chosen[0]))
            chosen = chosen[:1]
        elif index % 5 == 4:
            created = entry_pb2.CreateTwinTypeEntry(twin_type=twin_pb2.TwinType(twin_type_id=name, version=1))
            control = entry_pb2.ControlEntry(request_id=name, create_twin_type=created)
            chosen = []
        else:
            rows = rnd.choice((1, 10, 2_000))
            times = T0 + S * (number * 10_000 + index * 100) + np.arange(rows)
            handles = np.arange(rows, dtype=np.uint32) % len(chosen)
            batch = doubles(tuple(keys[t] for t in chosen), times, np.full(rows, 1.0), handles)
            answer = await store.append(batch, request_id=name)
            sent.twins[answer.position.offset] = frozenset(chosen)
            continue
        answer = await store.ask("Append", storage_pb2.AppendRequest(control=control))
        sent.twins[answer.position.offset] = frozenset(chosen)


async def follow(
    stores: Sequence[Storage], request: storage_pb2.FollowRequest, until: asyncio.Event, rnd: random.Random
) -> list[int]:
    """Follow, end now and then, resume at another server from the last `through`, until all is seen."""
    seen: list[int] = []
    last = WRITERS * EACH
    while True:
        store, stay = rnd.choice(stores), rnd.randint(1, 12)
        try:
            async with aclosing(store.stream("Follow", request)) as frames:
                async for frame in frames:
                    seen += [entry.offset for entry in frame.entries]
                    assert frame.through.offset >= request.after.offset
                    request.after.CopyFrom(frame.through)
                    if until.is_set() and frame.through.offset >= last:
                        return seen
                    stay -= 1
                    if not stay:
                        break
                    await asyncio.sleep(rnd.choice((0, 0.002, 0.02)))
        except OutOfRange as error:
            if error.reason != Reason.FUTURE_OFFSET:
                raise
            # Another server, a moment behind the one that told the position.
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("ring_bytes", [1 << 20, 64 << 20])
async def test_no_follower_misses_or_doubles_anything_whatever_happens_to_it(database_url, ring_bytes):
    filters: list[dict[str, Any]] = [
        {},
        {"twin_ids": ["t0"]},
        {"twin_ids": ["t1", "t2"]},
        {"shards": [shard_of("default", "t3")]},
        {"twin_ids": ["t3", "t4"], "shards": [shard_of("default", "t4")]},
    ]
    async with storage(database_url, ring_bytes=ring_bytes, fold_after_s=0.2) as leader:
        sent, done = Sent(), asyncio.Event()
        async with storage(database_url, ring_bytes=ring_bytes, fold_after_s=0.2) as second:
            followers = []
            async with asyncio.timeout(45), asyncio.TaskGroup() as group:
                for number in range(10):
                    request = storage_pb2.FollowRequest(**filters[number % len(filters)])
                    request.bookmark_interval.FromMilliseconds(50)
                    rnd = random.Random(number)  # noqa: S311
                    followers.append(group.create_task(follow((leader, second), request, done, rnd)))
                async with asyncio.TaskGroup() as writers:
                    for number in range(WRITERS):
                        writers.create_task(write(leader, number, sent))
                done.set()
        assert sorted(sent.twins) == list(range(1, WRITERS * EACH + 1))
        for number, follower in enumerate(followers):
            wanted = filters[number % len(filters)]
            assert violations(follower.result(), sent.expected(**wanted)) == [], wanted
        # And from every tenth place, now that memory has only the end of it.
        for after in range(0, WRITERS * EACH, 10):
            request = storage_pb2.FollowRequest(after=position_pb2.LogPosition(offset=after), twin_ids=["t0"])
            request.bookmark_interval.FromMilliseconds(20)
            seen = await follow((leader,), request, done, random.Random(after + 99))  # noqa: S311
            assert violations(seen, sent.expected(["t0"], after=after)) == []


async def test_a_poller_of_greater_ids_is_caught(database_url):
    """The canary: a bare sequence, writers that commit in another order than they began, and a poller of the newest."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as poller:
        await poller.execute("create table events (id bigserial primary key, name text)")
        committed: list[int] = []
        done = asyncio.Event()

        async def write_events(number: int) -> None:
            async with await psycopg.AsyncConnection.connect(database_url) as conn:
                for index in range(20):
                    row = await (
                        await conn.execute("insert into events (name) values (%s) returning id", (f"{number}-{index}",))
                    ).fetchone()
                    assert row is not None
                    await asyncio.sleep(0.004 * ((number + index) % 4))
                    await conn.commit()
                    committed.append(row[0])

        async def poll() -> list[int]:
            seen: list[int] = []
            while True:
                ended = done.is_set()
                last = seen[-1] if seen else 0
                cursor = await poller.execute("select id from events where id > %s order by id", (last,))
                seen += [row[0] for row in await cursor.fetchall()]
                if ended:
                    return seen
                await asyncio.sleep(0.001)

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            polling = group.create_task(poll())
            async with asyncio.TaskGroup() as writers:
                for number in range(6):
                    writers.create_task(write_events(number))
            done.set()
        missed = violations(polling.result(), sorted(committed))
        assert any(m.startswith("gaps") for m in missed), "the checker must see what such a poller misses"


async def test_filters_are_checked_and_a_batch_of_several_twins_is_sent_whole(database_url):
    async with storage(database_url) as store:
        (a,), (b,) = await store.series("a", ["c"]), await store.series("b", ["c"])
        await store.append(doubles((b,), [T0], [1.0]), request_id="1")
        await store.append(doubles((a, b), [T0, T0 + S], [1.0, 2.0], np.array([0, 1], np.uint32)), request_id="2")
        async with aclosing(store.stream("Follow", storage_pb2.FollowRequest(twin_ids=["a"]))) as frames:
            frame = await anext(frames)
        assert [e.offset for e in frame.entries] == [2]
        whole = wire.walk(frame.entries[0].observations)
        assert whole is not None
        assert whole.doubles.values.tolist() == [1.0, 2.0]
        for request in (
            storage_pb2.FollowRequest(shards=[64]),
            storage_pb2.FollowRequest(twin_ids=["\0"]),
            storage_pb2.FollowRequest(twin_ids=["x"] * 10_001),
        ):
            with pytest.raises(InvalidArgument):
                async with aclosing(store.stream("Follow", request)) as frames:
                    await anext(frames)


async def test_a_frozen_follower_is_in_nobodys_way(database_url):
    """It reads one frame and no more, while megabytes pass; a live one beside it sees everything promptly."""
    async with storage(database_url, ring_bytes=1 << 20, fold_after_s=0.2) as store:
        keys = await store.series("a", ["c"])
        await store.append(doubles(keys, [T0], [0.0]), request_id="first")
        async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as frozen:
            await anext(frozen)
            seen: list[int] = []
            async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as live, asyncio.timeout(30):
                for index in range(30):
                    times = T0 + S * (index + 1) + np.arange(5_000)
                    answer = await store.append(doubles(keys, times, times * 0.1), request_id=f"r{index}")
                    while not seen or seen[-1] < answer.position.offset:
                        seen += [e.offset for e in (await anext(live)).entries]
            assert seen == list(range(1, 32))
            late: list[int] = [1]
            async with asyncio.timeout(30):
                while late[-1] < 31:
                    late += [e.offset for e in (await anext(frozen)).entries]
            assert late == list(range(1, 32))
