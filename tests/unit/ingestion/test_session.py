"""Producer sessions and unary writes over a log that fails on purpose: each batch once, in order."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ingestion.plant import gauges, intake, landed

from twinmesh_core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_ingestion.adapters.memory import MemoryLog
from twinmesh_ingestion.domain.outcomes import Ack, OutcomeCount
from twinmesh_ingestion.domain.session import Budget, Credits, ProducerSession, SequencedAck


class Producer:
    """One session, opened as the servicer does."""

    last: int

    def __init__(self, log, group, taking=None, bounds=()):
        self.taking = taking or intake(log)
        self.group, self.bounds = group, bounds

    async def open(self):
        epoch, self.last, _ = await self.taking.open_producer("default", "edge-1")
        self.session = ProducerSession(
            intake=self.taking,
            tenant="default",
            producer_id="edge-1",
            epoch=epoch,
            last_sequence=self.last,
            group=self.group,
            bounds=self.bounds,
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
    budget = Budget(10)
    producer = await Producer(log, group, bounds=(Credits(points=budget, bytes=Budget(1 << 30)),)).open()
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


async def test_bytes_on_their_way_are_bounded_too(log, group):
    budget = Budget(1_000)
    producer = await Producer(log, group, bounds=(Credits(points=Budget(1_000), bytes=budget),)).open()
    log.faults.delays_s = [0.05]
    batch = gauges("temperature", [1.0])
    first = await producer.session.submit(1, batch, content_hash=b"1" * 16, backfill=False, size=800)
    assert budget.in_flight == 800
    second = await producer.session.submit(2, batch, content_hash=b"2" * 16, backfill=False, size=800)
    assert first.done()  # the second was not let in before
    await second
    await asyncio.sleep(0)
    assert budget.in_flight == 0


async def test_a_batch_that_cannot_be_prepared_gives_everything_back(log, group):
    bounds = Credits(points=Budget(10), bytes=Budget(10))
    producer = await Producer(log, group, bounds=(bounds,)).open()
    with pytest.raises(InvalidArgument):
        await producer.session.submit(1, gauges("temperature", []), content_hash=b"", backfill=False, size=7)
    assert (bounds.points.in_flight, bounds.bytes.in_flight) == (0, 0)


async def test_a_refused_batch_uses_up_its_sequence_and_its_bytes_are_kept(log, group):
    producer = await Producer(log, group).open()
    error = InvalidArgument("batch: holds nonsense")
    first = await producer.send(1)
    refused = await producer.session.refuse(2, b"nonsense", content_hash=b"n" * 16, error=error)
    last = await producer.send(3)
    answers = [await first, await refused, await last]
    assert [a.sequence for a in answers] == [1, 2, 3]
    assert [a.refusal for a in answers] == [None, error, None]
    assert answers[1].ack.accepted_count == 0
    (row,) = log.quarantined()
    assert (row.raw_value, row.message, row.reason) == (b"nonsense", error.message, FlagReason.REFUSED_BATCH)
    with pytest.raises(FailedPrecondition):
        await producer.session.refuse(9, b"", content_hash=b"", error=error)


def test_acknowledgements_join_in_order_and_never_with_replays_or_refusals():
    def done(sequence, **fields):
        refusal = fields.pop("refusal", None)
        outcome = OutcomeCount(reason=FlagReason.SPIKE, quality=Quality.UNCERTAIN, count=2, example=f"of {sequence}")
        ack = Ack(accepted_count=5, flagged_count=2, deadbanded_count=1, outcomes=(outcome,), offset=sequence + 40)
        return SequencedAck(sequence=sequence, ack=replace(ack, **fields), refusal=refusal)

    assert done(8).joins(done(7))
    assert not done(9).joins(done(7))
    assert not done(8, replayed=True).joins(done(7))
    assert not done(8).joins(done(7, replayed=True))
    assert not done(8, incarnation="other").joins(done(7))
    assert not done(8).joins(done(7, refusal=InvalidArgument("no")))
    both = done(9).joined(done(8).joined(done(7)))
    assert (both.first_sequence, both.sequence, both.ack.offset) == (7, 9, 49)
    assert (both.ack.accepted_count, both.ack.flagged_count, both.ack.deadbanded_count) == (15, 6, 3)
    assert [(o.count, o.example) for o in both.ack.outcomes] == [(6, "of 7")]


async def test_abandoned_batches_give_their_points_back(log):
    budget = Budget(10)
    async with asyncio.TaskGroup() as group:
        producer = await Producer(log, group, bounds=(Credits(points=budget, bytes=Budget(1 << 30)),)).open()
        log.faults.delays_s = [10.0, 10.0]
        await producer.send(1, rows=4)
        await producer.send(2, rows=4)
        producer.session.abandon()
    assert budget.in_flight == 0


async def test_those_who_wait_for_points_are_let_in_in_order():
    budget = Budget(10)
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
