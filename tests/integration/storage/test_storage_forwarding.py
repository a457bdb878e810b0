"""Several storage processes on one log: any of them takes appends, whoever leads, and whoever is killed or hangs."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from tests.faults.world import Service, ready, storage_client
from tests.integration.storage.mesh import T0, S, Storage, doubles

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2
from twinmesh_client.transport import FORWARDED_KEY, call
from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, TwinmeshError
from twinmesh_core.observations import SeriesKey
from twinmesh_local.processes import Guardian

ROWS = 200
LEASE_S = 2.0
Pair = tuple[Service, Storage]


@asynccontextmanager
async def processes(guardian: Guardian, database_url: str, directory: Path, count: int) -> AsyncIterator[list[Pair]]:
    """Run storage processes; the first one leads."""
    async with AsyncExitStack() as stack:
        running: list[Pair] = []
        for number in range(count):
            service = Service(
                guardian,
                directory / f"storage-{number}.log",
                "storage",
                database_url=database_url,
                lease_s=LEASE_S,
                database_timeout_s=2,
                forward_timeout_s=2,
                fold_after_s=0.2,
                fold_rows=5_000,
            )
            service.start()
            stack.callback(service.end)
            store = await stack.enter_async_context(storage_client(service.port))
            await ready(store)
            if not number:
                await until_it_leads(store)
            running.append((service, store))
        yield running


async def until_it_leads(store: Storage) -> None:
    async with asyncio.timeout(20):
        while not (await it_leads(store)):  # noqa: ASYNC110 -- another process, which has to be asked
            await asyncio.sleep(0.05)


async def it_leads(store: Storage) -> bool:
    """Return whether the process leads: one that does judges a sequence by itself."""
    keys = await store.series("probe", ["c0"])
    body = wire.encode(doubles(keys, [T0], [1.0]))
    try:
        await call(store.stub.Append, stamped("nobody", 1, 1, body), timeout_s=2.0, metadata=((FORWARDED_KEY, "1"),))
    except InvalidArgument:
        return True  # it knows that this producer has no session
    except TwinmeshError:
        return False
    raise AssertionError("an append without a session was taken")


@dataclass(slots=True)
class Ledger:
    """What was sent, and the offsets that were told."""

    sent: set[bytes] = field(default_factory=set)
    acked: dict[bytes, int] = field(default_factory=dict)

    async def produce(self, store: Storage, number: int, keys: tuple[SeriesKey, ...], enough: asyncio.Event) -> None:
        """Send batches in a session, resending after every failure as the protocol says."""
        producer, epoch, acked = f"p{number}", 0, 0
        while not enough.is_set():
            try:
                if not epoch:
                    request = storage_pb2.OpenProducerRequest(producer_id=producer)
                    session = await store.ask("OpenProducer", request, timeout_s=3.0)
                    epoch = session.epoch
                    assert session.last_sequence in (acked, acked + 1), "an acknowledged batch is gone"
                body = batch(keys, number, acked)
                self.sent.add(digest(body))
                answer = await store.ask("Append", stamped(producer, epoch, acked + 1, body), timeout_s=3.0)
                self.acked[digest(body)] = answer.position.offset
                acked += 1
            except TwinmeshError:
                epoch = 0
                await asyncio.sleep(0.05)

    async def grown(self, more: int, timeout_s: float = 30.0) -> float:
        """Wait until so many more batches are acknowledged; returns the seconds to the first of them."""
        started, before, first = time.monotonic(), len(self.acked), 0.0
        async with asyncio.timeout(timeout_s):
            while len(self.acked) < before + more:
                await asyncio.sleep(0.01)
                if not first and len(self.acked) > before:
                    first = time.monotonic() - started
        return first

    async def judge(self, store: Storage, keys: tuple[SeriesKey, ...]) -> None:
        """Hold log and history against it."""
        log = await follow_all(store, max(self.acked.values()))
        assert [offset for offset, _ in log] == list(range(1, len(log) + 1))
        where = {digest(body): offset for offset, body in log}
        assert len(where) == len(log), "a batch is there twice"
        assert set(where) <= self.sent, "a batch is there that nobody sent"
        assert {d: where.get(d) for d in self.acked} == self.acked, "an acknowledged batch is gone or moved"
        found = await store.read([("t1", key.channel) for key in keys], min_offset=len(log))
        assert sum(len(rows) for rows in found.values()) == len(log) * ROWS


def digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def batch(keys: tuple[SeriesKey, ...], number: int, index: int) -> bytes:
    times = T0 + S * (index * ROWS + np.arange(ROWS))
    return wire.encode(doubles(keys, times, times % 977 + number, np.full(ROWS, number, np.uint32)))


def stamped(producer: str, epoch: int, sequence: int, body: bytes) -> storage_pb2.AppendRequest:
    return storage_pb2.AppendRequest(
        observations=body,
        producer=storage_pb2.ProducerStamp(producer_id=producer, epoch=epoch, sequence=sequence),
        content_hash=digest(body),
    )


async def follow_all(store: Storage, acknowledged: int) -> list[tuple[int, bytes]]:
    """Return the log; one that stands by may lag a moment behind what was acknowledged."""
    head = max(acknowledged, (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position.offset)
    log: list[tuple[int, bytes]] = []
    async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as frames:
        async for frame in frames:
            log += [(e.offset, e.observations) for e in frame.entries]
            if frame.through.offset >= head:
                return log
    raise AssertionError("the follow ended")


async def open_session(store: Storage, producer: str) -> int:
    return int((await store.ask("OpenProducer", storage_pb2.OpenProducerRequest(producer_id=producer))).epoch)


@pytest.mark.slow
async def test_any_process_takes_appends_with_the_answers_of_the_one_that_leads(
    guardian: Guardian, database_url: str, tmp_path: Path
) -> None:
    async with processes(guardian, database_url, tmp_path, 2) as ((_, leader), (_, other)):
        keys = await other.series("t1", ["c0"])
        epoch = await open_session(other, "p0")
        first = await other.ask("Append", stamped("p0", epoch, 1, batch(keys, 0, 0)))
        assert first.position.offset == 1
        # What it forwarded it has read itself by the time a read asks for it.
        assert len((await other.read([("t1", "c0")], min_offset=1))["t1/c0"]) == ROWS
        second = await leader.ask("Append", stamped("p0", epoch, 2, batch(keys, 0, 1)))
        assert second.position.offset == 2
        again = await other.ask("Append", stamped("p0", epoch, 2, batch(keys, 0, 1)))
        assert (again.replayed, again.position) == (True, second.position)
        with pytest.raises(FailedPrecondition) as gap:
            await other.ask("Append", stamped("p0", epoch, 9, batch(keys, 0, 2)))
        assert (gap.value.reason, gap.value.metadata["expected_sequence"]) == ("SEQUENCE_GAP", "3")
        # What was forwarded to it goes no further.
        one_more = stamped("p0", epoch, 3, batch(keys, 0, 2))
        with pytest.raises(FailedPrecondition) as stays:
            await call(other.stub.Append, one_more, timeout_s=5.0, metadata=((FORWARDED_KEY, "1"),))
        assert stays.value.reason == "NOT_SEQUENCER"
        newer = await open_session(leader, "p0")
        with pytest.raises(FailedPrecondition) as fenced:
            await other.ask("Append", stamped("p0", epoch, 3, batch(keys, 0, 2)))
        assert (fenced.value.reason, newer) == ("PRODUCER_FENCED", epoch + 1)


async def test_any_process_deletes_and_erases_at_once(guardian: Guardian, database_url: str, tmp_path: Path) -> None:
    async with processes(guardian, database_url, tmp_path, 2) as ((_, leader), (_, other)):
        keys = await other.series("t1", ["c0"])
        await other.append(doubles(keys, [T0, T0 + S, T0 + 2 * S], [1.0, 2.0, 3.0]), request_id="r1")
        assert not await it_leads(other)
        cut = storage_pb2.DeleteRangeRequest(request_id="cut", twin_ids=["t1"])
        cut.end_time.FromMicroseconds(T0 + S)
        deleted = await other.ask("DeleteRange", cut)
        assert (deleted.replayed, deleted.position.offset) == (False, 2)
        for store in (other, leader):
            rows = await store.read([("t1", "c0")], min_offset=deleted.position.offset)
            assert [time for time, _, _ in rows["t1/c0"]] == [T0 + S, T0 + 2 * S]
        again = await leader.ask("DeleteRange", cut)
        assert (again.replayed, again.position) == (True, deleted.position)
        erased = (await other.ask("EraseTwin", storage_pb2.EraseTwinRequest(request_id="e", twin_id="t1"))).erasure
        assert erased.offset == 3
        for store in (other, leader):
            assert (await store.read([("t1", "c0")], min_offset=3))["t1/c0"] == []
        await erased_by_now(other, erased.erasure_id)
        # The entry itself stays storage's: nobody else appends it, however it is sent.
        body = entry_pb2.ControlEntry(request_id="x", erase_twin=entry_pb2.EraseTwinEntry(twin_id="t1"))
        for metadata in ((), ((FORWARDED_KEY, "1"),)):
            with pytest.raises(InvalidArgument, match="EraseTwin"):
                await call(
                    leader.stub.Append, storage_pb2.AppendRequest(control=body), timeout_s=5.0, metadata=metadata
                )


async def erased_by_now(store: Storage, erasure_id: str) -> None:
    """Wait for the end of an erasure."""
    async with asyncio.timeout(20):
        while True:
            found = (await store.ask("GetErasure", storage_pb2.GetErasureRequest(erasure_id=erasure_id))).erasure
            if found.state != storage_pb2.ERASURE_STATE_RUNNING:
                assert found.state == storage_pb2.ERASURE_STATE_SUCCEEDED, found.message
                assert found.principal == "service"
                return
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_appends_go_on_through_the_others_when_the_leader_is_killed(
    guardian: Guardian, database_url: str, tmp_path: Path
) -> None:
    async with processes(guardian, database_url, tmp_path, 3) as running:
        ledger, enough = Ledger(), asyncio.Event()
        (first_leader, _), (_, second), (_, third) = running
        keys = await second.series("t1", [f"c{i}" for i in range(5)])
        async with asyncio.TaskGroup() as group:
            for number in range(4):  # none at the process that is killed first
                group.create_task(ledger.produce((second, third)[number % 2], number, keys, enough))
            await ledger.grown(12)
            await first_leader.kill()
            waited_s = await ledger.grown(12)
            first_leader.start()
            await ready(running[0][1])
            # Now the one that took over, with producers of its own.
            leader, store = await who_leads(running)
            group.create_task(ledger.produce(next(s for p, s in running if p is not leader), 4, keys, enough))
            await leader.kill()
            leader.start()
            await ready(store)
            await ledger.grown(12)
            enough.set()
        for _, store in running:
            await ledger.judge(store, keys)
    # The killed one's session was gone: nobody waited for the lease to run out.
    assert waited_s < LEASE_S, waited_s


async def who_leads(running: list[Pair]) -> Pair:
    async with asyncio.timeout(20):
        while True:
            for service, store in running:
                if await it_leads(store):
                    return service, store
            await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_leader_that_hangs_is_replaced_and_fenced_when_it_wakes(
    guardian: Guardian, database_url: str, tmp_path: Path
) -> None:
    async with processes(guardian, database_url, tmp_path, 2) as ((zombie, at_zombie), (_, other)):
        ledger, enough = Ledger(), asyncio.Event()
        keys = await other.series("t1", [f"c{i}" for i in range(4)])
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(ledger.produce(other, number, keys, enough))
            group.create_task(ledger.produce(at_zombie, 3, keys, enough))
            await ledger.grown(12)
            zombie.signal(signal.SIGSTOP)  # most likely in the middle of a commit, whose locks it keeps
            waited_s = await ledger.grown(12)
            zombie.signal(signal.SIGCONT)
            await ledger.grown(24)
            assert not await it_leads(at_zombie)
            assert await it_leads(other)
            enough.set()
        for store in (at_zombie, other):
            await ledger.judge(store, keys)
    assert waited_s < 4 * LEASE_S, waited_s
