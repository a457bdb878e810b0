"""Writes through the real ingestion and storage: counted, durable, exactly once; typed errors for what is wrong."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.integration.ingestion.mesh import Session, mesh
from tests.unit.ingestion.plant import S, gauges

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2 as pb
from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section


def now_us() -> int:
    return time.time_ns() // 1_000


def batch(values, *, twin="P1", channel="temperature", unit="", start=None):
    return gauges(channel, values, twin=twin, unit=unit, start=now_us() - 1_000 * S if start is None else start)


def message(of):
    return pb.ObservationBatch.FromString(wire.encode(of))


async def test_a_batch_is_stored_converted_and_counted(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        ack = await m.write(batch=message(batch([68.0, 212.0, 400.0], unit="degF")), request_id="r1")
        assert (ack.accepted_count, ack.flagged_count, ack.quarantined_count) == (3, 1, 0)
        assert ack.offset > 2
        assert ack.incarnation
        statistics = await m.statistics()
        assert (statistics.landed_point_count, statistics.quarantined_count) == (3, 0)
        latest = await m.ask(m.store.ReadLatest, storage_pb2.ReadLatestRequest(twin_ids=["P1"], min_offset=ack.offset))
        assert latest.batch.doubles.value[0] == pytest.approx((400 - 32) / 1.8)
        assert latest.batch.doubles.quality == b"\x03"
        again = await m.write(batch=message(batch([0.0])), request_id="r2")
        assert again.offset == ack.offset + 1


async def test_a_twin_created_just_before_the_write_is_known(database_url):
    async with mesh(database_url) as m:
        await m.make_plant()
        for n in range(5):
            await m.make_twin(f"T{n}")
            ack = await m.write(batch=message(batch([1.0], twin=f"T{n}")))
            assert (ack.accepted_count, ack.quarantined_count) == (1, 0)


async def test_an_unknown_twin_is_listed_in_quarantine_with_its_remedy(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        ack = await m.write(batch=message(batch([1.0, np.nan], twin="pump-7")))
        assert (ack.accepted_count, ack.quarantined_count) == (0, 2)
        rows = await m.quarantine()
        assert len(rows) == 2
        assert {row.reason for row in rows} == {pb.FLAG_REASON_UNKNOWN_TWIN}
        assert all("twinmesh twins create pump-7 --type pump@1" in row.message for row in rows)
        assert {row.offset for row in rows} == {ack.offset}
        assert "twinmesh twins create pump-7" in ack.outcomes[0].example


async def test_the_simple_form_takes_numbers_for_every_numeric_kind(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")

        def value(channel, **kind):
            return ingestion_pb2.Observation(twin_id="P1", channel=channel, value=pb.Value(**kind))

        ack = await m.write(
            observations=[
                value("temperature", int64_value=21),
                value("energy", double_value=5.5),
                value("stage", double_value=2.0),
                value("stage", int64_value=1),
                value("running", bool_value=True),
                value("note", text_value="ok"),
                value("config", json_value='{"a": 1}'),
                value("stage", double_value=2.5),
                value("running", double_value=1.0),
            ]
        )
        # Two of one series at one receive time are a correction; both land.
        assert (ack.accepted_count, ack.quarantined_count) == (7, 2)
        assert {o.reason for o in ack.outcomes} == {pb.FLAG_REASON_WRONG_KIND}
        with pytest.raises(InvalidArgument, match="exactly one"):
            await m.write(observations=[value("stage", int64_value=1)], batch=message(batch([1.0])))
        with pytest.raises(InvalidArgument, match=r"observations\[0\].value"):
            await m.write(observations=[ingestion_pb2.Observation(twin_id="P1", channel="stage")])
        with pytest.raises(InvalidArgument, match="exactly one"):
            await m.write()


async def test_one_value_by_one_grpcurl(database_url):
    grpcurl = Path(sys.executable).with_name("grpcurl")
    if not grpcurl.exists():
        pytest.skip("grpcurl is not installed")
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        said = '{"observations": [{"twin_id": "P1", "channel": "stage", "value": {"double_value": 3}}]}'
        command = [str(grpcurl), "-plaintext", "-d", said, m.target, "twinmesh.ingestion.v1.IngestionService/Write"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["ack"]["accepted_count"] == "1"


async def test_malformed_messages_are_refused_typed_and_change_nothing(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        before = await m.statistics()
        unequal = pb.ObservationBatch(series=[pb.SeriesKey(twin_id="P1", channel="temperature")])
        unequal.doubles.series.append(0)
        unequal.doubles.time_unix_us.extend([1, 2])
        unequal.doubles.value.append(1.0)
        with pytest.raises(InvalidArgument) as refused:
            await m.write(batch=unequal)
        assert refused.value.reason == "UNEQUAL_COLUMNS"
        assert refused.value.field_violations[0].field == "batch.doubles"
        with pytest.raises(InvalidArgument, match="holds no row"):
            await m.write(batch=pb.ObservationBatch(series=[pb.SeriesKey(twin_id="P1", channel="temperature")]))
        rng = np.random.default_rng(1)
        for size in (1, 7, 100, 5_000):
            with pytest.raises(InvalidArgument) as refused:
                await m.write_bytes(b"\xff" + rng.bytes(size))
            assert refused.value.reason == "MALFORMED_MESSAGE"
        with pytest.raises(ResourceExhausted) as too_large:
            await m.write_bytes(bytes(13 * 1024 * 1024))
        assert too_large.value.reason == "MESSAGE_TOO_LARGE"
        with pytest.raises(InvalidArgument, match="request_id"):
            await m.write(batch=message(batch([1.0])), request_id="x" * 129)
        assert (await m.statistics()).entry_count == before.entry_count
        assert (await m.write(batch=message(batch([1.0])))).accepted_count == 1


async def test_a_request_id_answers_again_and_refuses_other_content(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        data = message(batch([1.0], start=5))
        first = await m.write(batch=data, request_id="r2", backfill=True)
        again = await m.write(batch=data, request_id="r2", backfill=True)
        assert again.replayed
        assert (again.offset, again.accepted_count) == (first.offset, first.accepted_count)
        with pytest.raises(InvalidArgument) as refused:
            await m.write(batch=message(batch([2.0])), request_id="r2")
        assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_a_session_acknowledges_in_order_replays_and_resumes(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1", "P2")
        session = Session(m)
        welcome = await session.open()
        assert (welcome.epoch, welcome.last_sequence) == (1, 0)
        assert welcome.max_in_flight_points == 500_000
        batches = {
            n: batch(np.full(100, float(n)), twin=f"P{n % 2 + 1}", start=now_us() - n * 1_000 * S) for n in range(1, 21)
        }
        for n in range(1, 21):
            await session.send(n, batches[n])
        acks = [await session.ack() for _ in range(20)]
        assert [a.sequence for a in acks] == list(range(1, 21))
        offsets = [a.ack.offset for a in acks]
        assert offsets == sorted(set(offsets))
        await session.send(20, batches[20])
        replay = await session.ack()
        assert (replay.sequence, replay.ack.replayed, replay.ack.offset) == (20, True, offsets[-1])
        assert replay.ack.accepted_count == 100
        await session.end()
        second = Session(m)
        assert (await second.open()).last_sequence == 20
        await second.send(22, batches[1])
        with pytest.raises(FailedPrecondition) as gap:
            await second.ack()
        assert (gap.value.reason, gap.value.metadata["expected_sequence"]) == ("SEQUENCE_GAP", "21")
        assert (await m.statistics()).landed_point_count == 2_000


async def test_bad_streams_end_typed_without_moving_the_sequence(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        stranger = Session(m)
        await stranger.send(1, batch([1.0]))
        with pytest.raises(InvalidArgument, match="hello"):
            await stranger.ack()
        nameless = Session(m, producer_id="no spaces please")
        with pytest.raises(InvalidArgument, match=r"hello\.producer_id"):
            await nameless.open()
        session = Session(m)
        await session.open()
        await session.send(1, batch([1.0]))
        await session.send(2, ObservationBatch(series=(SeriesKey(twin_id="P1", channel="temperature"),)))
        assert (await session.ack()).sequence == 1
        with pytest.raises(InvalidArgument, match="holds no row"):
            await session.ack()
        assert (await Session(m).open()).last_sequence == 1


async def test_a_newer_session_fences_the_older(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        old, new = Session(m), Session(m)
        await old.open()
        assert (await new.open()).epoch == 2
        await old.send(1, batch([1.0]))
        with pytest.raises(FailedPrecondition) as fenced:
            await old.ack()
        assert fenced.value.reason == "PRODUCER_FENCED"
        await new.send(1, batch([1.0]))
        assert (await new.ack()).ack.accepted_count == 1


async def test_an_unusual_encoding_gives_the_same_rows(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        start = now_us() - 100 * S
        whole = wire.encode(batch([1.0, 2.0], start=start))
        more = wire.encode(ObservationBatch(doubles=double_section([0], [start + 5 * S], [3.0])))
        data = b"\x12" + wire.encode_varint(len(whole) + len(more)) + whole + more
        answer = ingestion_pb2.WriteResponse.FromString(await m.write_bytes(data))
        assert answer.ack.accepted_count == 3


async def test_a_drain_ends_sessions_after_their_acknowledgements(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        session = Session(m)
        await session.open()
        for n in range(1, 4):
            await session.send(n, batch([float(n)]))
        assert (await session.ack()).sequence == 1
        drain = asyncio.create_task(m.server.drain())
        seen, ended = 1, None
        while ended is None:
            try:
                seen = (await session.ack()).sequence
            except Unavailable as error:
                ended = error
        await drain
        assert ended.reason == "DRAINING"
        assert "connect again" in ended.message
        assert (await m.statistics()).landed_point_count == seen


async def test_values_of_an_erased_twin_are_no_measure_for_its_next_ones(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1", "P2")
        start = now_us() - 1_000 * S
        rows = {t: message(batch([1.0, 1.5], twin=t, channel="pressure", start=start)) for t in ("P1", "P2")}

        async def duplicates() -> list[int]:
            return [(await m.write(batch=rows[twin])).duplicate_count for twin in ("P1", "P2")]

        assert await duplicates() == [0, 0]
        assert await duplicates() == [1, 1]  # the newest value of each is known
        await m.ask(m.store.EraseTwin, storage_pb2.EraseTwinRequest(request_id="forget", twin_id="P1"))
        await m.write(batch=message(batch([1.0], twin="pump-7")))  # the verdict on an unknown twin waits for the head
        assert await duplicates() == [0, 1]
