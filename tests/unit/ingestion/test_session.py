"""Producer sessions and unary writes over a log that fails on purpose: each batch once, in order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ingestion.plant import gauges, intake, landed

from twinmesh_core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_ingestion.adapters.memory import MemoryLog
from twinmesh_ingestion.domain.session import PointBudget, ProducerSession


class Producer:
    """One session, opened as the servicer does."""

    last: int

    def __init__(self, log, group, taking=None, budgets=()):
        self.taking = taking or intake(log)
        self.group, self.budgets = group, budgets

    async def open(self):
        epoch, self.last, _ = await self.taking.open_producer("default", "edge-1")
        self.session = ProducerSession(
            intake=self.taking,
            tenant="default",
            producer_id="edge-1",
            epoch=epoch,
            last_sequence=self.last,
            group=self.group,
            budgets=self.budgets,
        )
        return self

    async def send(self, sequence, value=None, rows=1):
        batch = gauges("temperature", [float(sequence if value is None else value)] * rows)
        digest = f"{sequence}/{value}".encode().ljust(16)
        return await self.session.submit(sequence, batch, content_hash=digest, backfill=False)


@pytest.fixture
async def group():
    async with asyncio.TaskGroup() as tasks:
        yield tasks


def stored(log):
    return [landed(log, i).doubles.values[0] for i in range(len(log.entries))]


async def test_batches_are_acknowledged_in_order_with_their_offsets(log, group):
    producer = await Producer(log, group).open()
    waiting = [await producer.send(n) for n in range(1, 6)]
    acks = [await w for w in waiting]
    assert [(a.sequence, a.ack.offset, a.ack.accepted_count) for a in acks] == [(n, n, 1) for n in range(1, 6)]


async def test_a_batch_that_overtakes_is_sent_again_after_the_one_before(log, group):
    log.faults.delays_s = [0.05, 0.0, 0.02]
    producer = await Producer(log, group).open()
    waiting = [await producer.send(n) for n in (1, 2, 3)]
    assert [(await w).sequence for w in waiting] == [1, 2, 3]
    assert stored(log) == [1.0, 2.0, 3.0]
    assert log.appends > 3


async def test_lost_answers_and_absence_lose_nothing_and_repeat_nothing(log, group):
    producer = await Producer(log, group).open()
    log.faults.lose_answers = 2
    waiting = [await producer.send(n) for n in (1, 2, 3)]
    assert [(await w).ack.accepted_count for w in waiting] == [1, 1, 1]
    log.faults.away = True
    waiting = [await producer.send(n) for n in (4, 5)]
    await asyncio.sleep(0.1)
    log.faults.away = False
    assert [(await w).sequence for w in waiting] == [4, 5]
    assert stored(log) == [1.0, 2.0, 3.0, 4.0, 5.0]


async def test_an_overloaded_storage_is_waited_for(log, group):
    producer = await Producer(log, group).open()
    log.faults.refuse_appends = [ResourceExhausted("full", retry_after_s=0.01)] * 2
    assert (await (await producer.send(1))).ack.offset == 1


async def test_a_skipped_sequence_is_refused_with_the_expected_one(log, group):
    producer = await Producer(log, group).open()
    await (await producer.send(1))
    with pytest.raises(FailedPrecondition) as refused:
        await producer.send(3)
    assert (refused.value.reason, refused.value.metadata["expected_sequence"]) == ("SEQUENCE_GAP", "2")
    with pytest.raises(InvalidArgument, match="must be 1"):
        await producer.send(0)


async def test_a_repeated_last_sequence_gets_its_stored_acknowledgement(log, group):
    producer = await Producer(log, group).open()
    first = await (await producer.send(1, rows=3))
    again = await Producer(log, group).open()
    assert again.last == 1
    replay = await (await again.send(1, rows=3))
    assert replay.ack.replayed
    assert (replay.ack.offset, replay.ack.accepted_count, replay.ack.duplicate_count) == (
        first.ack.offset,
        first.ack.accepted_count,
        first.ack.duplicate_count,
    )
    assert len(log.entries) == 1
    assert (await (await again.send(2))).ack.offset == 2


async def test_a_sequence_repeated_while_on_its_way_is_stored_once(log, group):
    log.faults.delays_s = [0.02]
    producer = await Producer(log, group).open()
    first, second = await producer.send(1), await producer.send(1)
    assert ((await first).ack.replayed, (await second).ack.replayed) == (False, True)
    assert len(log.entries) == 1


async def test_other_bytes_under_a_committed_sequence_are_refused(log, group):
    producer = await Producer(log, group).open()
    await (await producer.send(1))
    with pytest.raises(InvalidArgument) as refused:
        await (await producer.send(1, value=99.0))
    assert refused.value.reason == "SEQUENCE_REUSED"
    assert stored(log) == [1.0]


async def test_a_newer_session_fences_the_older(log, group):
    old = await Producer(log, group).open()
    new = await Producer(log, group).open()
    with pytest.raises(FailedPrecondition) as refused:
        await (await old.send(1))
    assert refused.value.reason == "PRODUCER_FENCED"
    assert (await (await new.send(1))).ack.offset == 1


async def test_an_absence_beyond_the_patience_fails_typed(log, group):
    taking = intake(log, patience_s=0.05)
    producer = await Producer(log, group, taking).open()
    await (await producer.send(1))
    log.faults.away = True
    second, third = await producer.send(2), await producer.send(3)
    for waiting in (second, third):
        with pytest.raises(Unavailable):
            await waiting
    assert stored(log) == [1.0]


async def test_points_on_their_way_are_bounded(log, group):
    budget = PointBudget(10)
    producer = await Producer(log, group, budgets=(budget,)).open()
    log.faults.delays_s = [0.05]
    waiting = [await producer.send(1, rows=8)]
    started = asyncio.get_running_loop().time()
    waiting.append(await producer.send(2, rows=8))
    assert asyncio.get_running_loop().time() - started > 0.03
    waiting.append(await producer.send(3, rows=500))  # larger than the bound: goes alone
    for w in waiting:
        await w
    await asyncio.sleep(0)
    assert budget.in_flight == 0


async def test_abandoned_batches_give_their_points_back(log):
    budget = PointBudget(10)
    async with asyncio.TaskGroup() as group:
        producer = await Producer(log, group, budgets=(budget,)).open()
        log.faults.delays_s = [10.0, 10.0]
        await producer.send(1, rows=4)
        await producer.send(2, rows=4)
        producer.session.abandon()
    assert budget.in_flight == 0


async def test_those_who_wait_for_points_are_let_in_in_order():
    budget = PointBudget(10)
    await budget.take(10)
    order = []

    async def wait(name, points):
        await budget.take(points)
        order.append(name)

    tasks = [asyncio.create_task(wait(n, p)) for n, p in (("large", 8), ("small", 1), ("gone", 5), ("last", 5))]
    await asyncio.sleep(0)
    assert not order
    tasks[2].cancel()
    await asyncio.sleep(0)
    budget.give(10)
    await asyncio.sleep(0)
    assert order == ["large", "small"]
    budget.give(9)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["large", "small", "last"]


@given(
    st.lists(st.sampled_from(["ok", "lose", "away", "full", "slow", "reconnect", "repeat"]), min_size=1, max_size=12)
)
@settings(max_examples=40, deadline=None)
async def test_whatever_happens_every_acknowledged_batch_is_there_exactly_once(events):
    log = MemoryLog()
    taking = intake(log, patience_s=60.0)
    acked = {}
    async with asyncio.TaskGroup() as group:
        producer = await Producer(log, group, taking).open()
        sequence = producer.last
        for event in events:
            if event == "reconnect":
                producer = await Producer(log, group, taking).open()
                assert producer.last == sequence
                continue
            if event == "repeat" and sequence:
                await (await producer.send(sequence))
                continue
            log.faults.lose_answers = 1 if event == "lose" else 0
            refusals: dict[str, list[TwinmeshError]] = {
                "away": [Unavailable("away")] * 2,
                "full": [ResourceExhausted("full", retry_after_s=0.001)],
            }
            log.faults.refuse_appends = refusals.get(event, [])
            log.faults.delays_s = [0.003, 0.0] if event == "slow" else []
            waiting = [(sequence + i, await producer.send(sequence + i)) for i in (1, 2, 3)]
            sequence += 3
            for n, w in waiting:
                acked[n] = (await w).ack.accepted_count
    assert acked == dict.fromkeys(range(1, sequence + 1), 1)
    assert stored(log) == [float(n) for n in range(1, sequence + 1)]


async def test_a_unary_write_is_idempotent_by_its_request_id(log, write):
    first = await write(gauges("temperature", [1.0, 1.0, 2.0]), request_id="r-1")
    again = await write(gauges("temperature", [1.0, 1.0, 2.0]), request_id="r-1")
    assert again.replayed
    assert again.accepted_count == first.accepted_count == 3
    assert again.offset == first.offset == 1
    assert len(log.entries) == 1


async def test_a_unary_write_survives_a_lost_answer_without_a_second_entry(log, write):
    await write(gauges("temperature", [0.0]), request_id="warm")
    log.faults.lose_answers = 1
    ack = await write(gauges("temperature", [1.0]), request_id="r-2")
    assert ack.offset == 2
    assert len(log.entries) == 2


async def test_a_unary_write_is_shed_at_once_when_storage_is_overloaded(log, write):
    await write(gauges("temperature", [0.0]), request_id="warm")
    log.faults.refuse_appends = [ResourceExhausted("full", retry_after_s=0.5)]
    with pytest.raises(ResourceExhausted):
        await write(gauges("temperature", [1.0]), request_id="r-3")
