"""Producer sessions on the real services: credits, ranges, poison batches, clocks."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.integration.ingestion.mesh import Session, mesh
from tests.unit.ingestion.plant import S, gauges

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2
from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section

START = time.time_ns() // 1_000 // S * S - 3_600 * S


def rows(n: int, count: int = 10):
    return gauges("temperature", [20.0 + n / 100] * count, start=START - 86_400 * S + n * count * S)


def malformed(sequence: int) -> ingestion_pb2.ProducerBatch:
    """Return a batch whose columns have unequal lengths."""
    message = ingestion_pb2.ProducerBatch(sequence=sequence)
    message.batch.MergeFromString(wire.encode(rows(sequence)))
    del message.batch.doubles.time_unix_us[-1]
    return message


async def test_one_acknowledgement_may_cover_a_range_and_covers_every_row_once(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        session = Session(m, ack_ranges=True)
        welcome = await session.open()
        assert (welcome.max_in_flight_points, welcome.max_in_flight_bytes) == (500_000, 32 << 20)
        for n in range(1, 41):
            await session.send(n, rows(n))
        acks, last = [], 0
        while last < 40:
            acks.append(await session.ack())
            last = acks[-1].sequence
        expected = 1
        for ack in acks:
            first = ack.first_sequence or ack.sequence
            assert first == expected
            assert ack.ack.accepted_count == 10 * (ack.sequence - first + 1)
            expected = ack.sequence + 1
        await session.end()
        again = Session(m, ack_ranges=True)
        assert (await again.open()).last_sequence == 40
        await again.send(40, rows(40))
        replay = await again.ack()
        assert (replay.sequence, replay.first_sequence, replay.ack.replayed) == (40, 0, True)
        assert (await m.statistics()).point_count == 400


async def test_a_poison_batch_never_stalls_a_session_that_asks_to_go_on(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        session = Session(m, continue_after_refusal=True)
        await session.open()
        await session.send(1, rows(1))
        await session.send_message(malformed(2))
        await session.send(3, gauges("temperature", []))
        await session.send(4, gauges("temperature", [1.0] * 50_001, twin="nobody", start=START, step=1))
        await session.send(5, rows(5))
        acks = [await session.ack() for _ in range(5)]
        assert [a.sequence for a in acks] == [1, 2, 3, 4, 5]
        reasons = ["", "UNEQUAL_COLUMNS", "INVALID_FIELD", "MESSAGE_TOO_LARGE", ""]
        assert [a.refusal.reason for a in acks] == reasons
        assert [a.ack.accepted_count for a in acks] == [10, 0, 0, 0, 10]
        kept = await m.quarantine()
        assert [r.reason for r in kept] == [observation_pb2.FLAG_REASON_REFUSED_BATCH] * 3
        assert {r.quarantine_id for r in kept if r.raw_value == malformed(2).batch.SerializeToString()}
        await session.end()
        # The same poison again, after a lost connection: the stored answer, and no second row.
        again = Session(m, continue_after_refusal=True)
        assert (await again.open()).last_sequence == 5
        await again.send(6, rows(6))
        await again.send_message(malformed(7))
        assert [(await again.ack()).sequence for _ in range(2)] == [6, 7]
        await again.end()
        twice = Session(m, continue_after_refusal=True)
        await twice.open()
        await twice.send_message(malformed(7))
        ack = await twice.ack()
        assert (ack.ack.replayed, ack.refusal.reason) == (True, "UNEQUAL_COLUMNS")
        assert len(await m.quarantine()) == 4
        replay = await m.ask(m.ingestion.ReplayQuarantine, ingestion_pb2.ReplayQuarantineRequest(request_id="r"))
        assert replay.skipped_count == 4


async def test_a_batch_whose_parts_fit_and_whose_entry_would_not_is_refused_by_name(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        session = Session(m, continue_after_refusal=True)
        await session.open()
        good, bad = 350_000, 45_000
        both = ObservationBatch(
            series=(SeriesKey(twin_id="P1", channel="temperature"), SeriesKey(twin_id="nobody", channel="temperature")),
            doubles=double_section(
                [0] * good + [1] * bad, START - 40 * 86_400 * S + np.arange(good + bad), np.full(good + bad, 20.0)
            ),
        )
        await session.send(1, both)
        await session.send(2, rows(2))
        first, second = await session.ack(), await session.ack()
        assert (first.refusal.reason, second.ack.accepted_count) == ("MESSAGE_TOO_LARGE", 10)
        assert "45000 rows" in first.refusal.message


async def test_without_asking_a_poison_batch_ends_the_session_and_moves_nothing(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        session = Session(m)
        await session.open()
        await session.send(1, rows(1))
        await session.send_message(malformed(2))
        assert (await session.ack()).sequence == 1
        with pytest.raises(InvalidArgument):
            await session.ack()
        again = Session(m)
        assert (await again.open()).last_sequence == 1


async def test_bytes_are_a_credit_and_one_batch_always_fits(database_url):
    async with mesh(database_url, session_bytes=64 << 10) as m:
        await m.make_plant("P1")
        session = Session(m)
        assert (await session.open()).max_in_flight_bytes == 64 << 10
        for n in range(1, 9):
            await session.send(n, rows(n, 5_000))  # 100 kB each
        acks = [await session.ack() for _ in range(8)]
        assert sum(a.ack.accepted_count for a in acks) == 40_000


async def test_the_sender_s_clock_is_estimated_and_told(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        # Half a minute more than what is told, which is rounded down and need not hurry.
        ahead = time.time() + 7_230
        session = Session(m, client_time=Timestamp(seconds=int(ahead)))
        welcome = await session.open()
        assert welcome.clock_skew.ToSeconds() == pytest.approx(7_230, abs=30)
        message = ingestion_pb2.ProducerBatch(sequence=1, client_time_unix_us=int((time.time() + 7_230) * 1e6))
        message.batch.MergeFromString(wire.encode(gauges("temperature", [1.0], start=int(ahead * 1e6))))
        await session.send_message(message)
        ack = (await session.ack()).ack
        assert ack.clock_skew.ToSeconds() == pytest.approx(7_230, abs=30)
        assert "this producer is 2 h ahead" in ack.outcomes[0].example
        await session.end()
        # Recorded history without a clock of its own says nothing.
        quiet = Session(m, "other")
        assert not (await quiet.open()).HasField("clock_skew")
        await quiet.send(1, rows(1), backfill=True)
        assert not (await quiet.ack()).ack.HasField("clock_skew")
        rows_kept = storage_pb2.ListQuarantineRequest()
        assert (await m.ask(m.store.ListQuarantine, rows_kept)).total_count == 1


async def test_unknown_twins_are_created_by_rule_by_many_at_once_and_units_beyond_the_table_convert(database_url):
    async with mesh(database_url, create_twins="default:pump-*=pump@1") as m:
        await m.make_plant()
        batches = [
            gauges("temperature", [16.0], twin=twin, start=START, unit="[degRe]")
            for twin in ("pump-1", "pump-1", "pump-2", "fan-1")
        ]
        messages = [observation_pb2.ObservationBatch.FromString(wire.encode(batch)) for batch in batches]
        async with asyncio.TaskGroup() as group:
            writing = [group.create_task(m.write(batch=message)) for message in messages]
        assert [w.result().accepted_count for w in writing] == [1, 1, 1, 0]
        latest = await m.ask(m.store.ReadLatest, storage_pb2.ReadLatestRequest(twin_ids=["pump-1", "pump-2"]))
        assert latest.batch.doubles.value == pytest.approx([20.0, 20.0])  # 16 Réaumur
        assert [row.twin_id for row in await m.quarantine()] == ["fan-1"]
