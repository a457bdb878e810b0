"""EraseTwin: canaries planted wherever storage keeps values are found before, and in no table and no cache after."""

from __future__ import annotations

import asyncio
import struct
from contextlib import AsyncExitStack, aclosing

import numpy as np
import psycopg
import pytest
from redis import Redis
from tests.integration.storage.mesh import T0, S, Storage, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, event_pb2, observation_pb2, prediction_pb2
from twinmesh_core.errors import InvalidArgument, NotFound, Unavailable
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, text_section
from twinmesh_runtime.postgres import open_pool
from twinmesh_storage.adapters.postgres.erasures import PostgresErasures
from twinmesh_storage.domain.erasure import Erasure, ErasureState

NUMBER = 1234.56789012345678
"""No short decimal, so it is stored as its eight bytes wherever it is."""
CORRECTED = 8765.43210987654321
TEXT = "canary-of-the-patient"


def number_bytes(value: float) -> str:
    return struct.pack("<d", value).hex()


CANARIES = {
    "number": number_bytes(NUMBER),
    "corrected": number_bytes(CORRECTED),
    "text": TEXT.encode().hex(),
    "plain": TEXT,
}


def found(url: str, redis_url: str) -> dict[str, set[str]]:
    """Return, per canary, the tables of the schema (and "cache") that hold it in any row."""
    places: dict[str, set[str]] = {name: set() for name in CANARIES}
    with psycopg.connect(url) as conn:
        tables = conn.execute(
            "select relname from pg_class where relnamespace = 'storage'::regnamespace and relkind = 'r'"
        ).fetchall()
        for (table,) in tables:
            for (row,) in conn.execute(f"select t::text from storage.{table} t").fetchall():  # noqa: S608 -- from pg_class
                for name, canary in CANARIES.items():
                    if canary in row:
                        places[name].add("block" if table.startswith("block_") else table)
    client = Redis.from_url(redis_url)
    for key in client.scan_iter("*"):
        value = client.get(key)
        assert isinstance(value, bytes)
        for name, canary in CANARIES.items():
            if canary in value.hex() or canary.encode() in value:
                places[name].add("cache")
    client.close()
    return places


async def plant(store: Storage) -> None:
    """Write the canaries everywhere, beside rows of another twin in the same entries."""
    keys = await store.series("patient", ["pulse"]) + await store.series("bed", ["weight"])
    notes = await store.series("patient", ["note"], ChannelKind.TEXT, unit="")
    session = await store.ask("OpenProducer", storage_pb2.OpenProducerRequest(producer_id="monitor"))
    stamp = storage_pb2.ProducerStamp(producer_id="monitor", epoch=session.epoch, sequence=1)
    aside = storage_pb2.QuarantinedRow(
        twin_id="patient",
        channel="pulse",
        time_unix_us=T0,
        value=observation_pb2.Value(double_value=NUMBER),
        reason=1,  # type: ignore[arg-type]
        message=f"{TEXT} is out of range",
    )
    mixed = doubles(keys, [T0, T0 + S, T0], [NUMBER, 1.0, 70.5], [0, 0, 1])
    await store.append(mixed, producer=stamp, receipt=TEXT.encode(), quarantine=[aside])
    texts = ObservationBatch(series=notes, texts=text_section([0], [T0], [TEXT.encode()]))
    await store.append(texts, request_id="n", receipt=f"patient: {TEXT}".encode())
    await store.append(doubles(keys, [T0 + S], [CORRECTED]), request_id="corrected")
    await store.append(doubles(keys, [T0 + S], [2.0]), request_id="again")
    for control in (
        entry_pb2.ControlEntry(
            request_id="prediction",
            record_prediction=entry_pb2.RecordPredictionEntry(
                twin_id="patient", prediction=prediction_pb2.Prediction(channel="pulse", values=[NUMBER])
            ),
        ),
        entry_pb2.ControlEntry(
            request_id="event",
            record_event=entry_pb2.RecordEventEntry(
                event=event_pb2.Event(event_id="e", twin_id="patient", message=TEXT)
            ),
        ),
        entry_pb2.ControlEntry(
            request_id="bed",
            record_prediction=entry_pb2.RecordPredictionEntry(
                twin_id="bed", prediction=prediction_pb2.Prediction(channel="weight", values=[70.25])
            ),
        ),
    ):
        await store.ask("Append", storage_pb2.AppendRequest(control=control))


async def folded(store: Storage, offset: int) -> None:
    async with asyncio.timeout(20):
        while True:
            counts = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
            if counts.fold_offset >= offset:
                return
            await asyncio.sleep(0.05)


async def followed(store: Storage) -> bytes:
    """Return the first frame that a new follower of everything gets."""
    async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as frames:
        frame: storage_pb2.FollowResponse = await anext(frames)
        return frame.SerializeToString()


async def ended(store: Storage, erasure_id: str) -> storage_pb2.Erasure:
    async with asyncio.timeout(30):
        while True:
            answer = await store.ask("GetErasure", storage_pb2.GetErasureRequest(erasure_id=erasure_id))
            if answer.erasure.state != storage_pb2.ERASURE_STATE_RUNNING:
                return answer.erasure
            await asyncio.sleep(0.05)


async def test_no_byte_of_a_twin_is_left_and_all_else_is_as_before(database_url: str, redis_url: str) -> None:
    settings = {"fold_after_s": 0.05, "redis_url": redis_url}
    async with storage(database_url, **settings) as store:
        await plant(store)
        await folded(store, 7)
        # Another fold, so that what was read meanwhile is shared through the cache.
        window = storage_pb2.ReadWindowRequest(twin_ids=["patient"], channels=["pulse"], steps=4)
        window.step.FromSeconds(1)
        await store.ask("ReadWindow", window)
        bed = await store.series("bed", ["weight"])
        await store.append(doubles(bed, [T0 + S], [71.5]), request_id="bed2")
        await folded(store, 8)
        async with asyncio.timeout(20):  # the cache is told after the fold is done
            while "cache" not in (before := found(database_url, redis_url))["number"]:  # noqa: ASYNC110 -- to be asked
                await asyncio.sleep(0.05)
        assert before["number"] >= {"log", "block", "quarantine", "cache"}
        assert before["corrected"] >= {"log", "superseded"}
        assert before["text"] >= {"log", "block", "producer", "request"}
        assert before["plain"] >= {"quarantine"}
        asked = storage_pb2.EraseTwinRequest(request_id="forget", twin_id="patient")
        assert CANARIES["plain"].encode() in await followed(store)
        begun = (await store.ask("EraseTwin", asked)).erasure
        assert begun.offset == 9
        assert (await store.read([("patient", "pulse"), ("patient", "note")], min_offset=9)) == {
            "patient/pulse": [],
            "patient/note": [],
        }
        keys = await store.series("patient", ["pulse"])
        await store.append(doubles(keys, [T0], [61.0]), request_id="new")
        erased = await ended(store, begun.erasure_id)
        assert (erased.state, erased.progress) == (storage_pb2.ERASURE_STATE_SUCCEEDED, 1.0)
        assert CANARIES["plain"].encode() not in await followed(store)  # frames kept for others are gone too
        assert erased.entries_rewritten == 6
        assert (await store.ask("EraseTwin", asked)).erasure.erasure_id == begun.erasure_id
    assert found(database_url, redis_url) == {name: set() for name in CANARIES}
    async with storage(database_url, **settings) as store:
        rows = await store.read([("patient", "pulse"), ("patient", "note"), ("bed", "weight")])
        assert rows == {
            "patient/pulse": [(T0, 61.0, 1)],
            "patient/note": [],
            "bed/weight": [(T0, 70.5, 1), (T0 + S, 71.5, 1)],
        }
        async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as frames:
            entries = list((await anext(frames)).entries)
        assert [e.offset for e in entries] == list(range(1, 11))
        landed = observation_pb2.ObservationBatch.FromString(entries[0].observations)
        assert (list(landed.doubles.value), list(landed.doubles.series)) == ([70.5], [1])
        assert entries[4].control.WhichOneof("action") is None
        assert entries[4].control.request_id == "prediction"
        assert entries[6].control.record_prediction.prediction.values == [70.25]
        counts = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
        assert (counts.landed_point_count, counts.point_count, counts.quarantined_count) == (8, 3, 0)
        stamp = storage_pb2.ProducerStamp(producer_id="monitor", epoch=1, sequence=1)
        mixed_keys = keys + await store.series("bed", ["weight"])
        replay = await store.append(
            doubles(mixed_keys, [T0, T0 + S, T0], [NUMBER, 1.0, 70.5], [0, 0, 1]), producer=stamp
        )
        assert (replay.replayed, replay.receipt, replay.position.offset) == (True, b"", 1)
        listed = await store.ask("ListErasures", storage_pb2.ListErasuresRequest(twin_id="patient"))
        assert [e.erasure_id for e in listed.erasures] == [begun.erasure_id]


async def test_an_erasure_names_what_is_wrong_with_it(database_url: str) -> None:
    async with storage(database_url, fold_after_s=0.05) as store:
        await store.append(doubles(await store.series("t1", ["oil"]), [T0], [1.0]), request_id="r")
        await store.append(doubles(await store.series("t2", ["oil"]), [T0], [1.0]), request_id="s")
        for request_id, twin_id, kind in (
            ("", "t1", InvalidArgument),
            ("e", "", InvalidArgument),
            ("e", "t9", NotFound),
        ):
            with pytest.raises(kind):
                await store.ask("EraseTwin", storage_pb2.EraseTwinRequest(request_id=request_id, twin_id=twin_id))
        with pytest.raises(NotFound):
            await store.ask("GetErasure", storage_pb2.GetErasureRequest(erasure_id="none"))
        await store.ask("EraseTwin", storage_pb2.EraseTwinRequest(request_id="e", twin_id="t1"))
        with pytest.raises(InvalidArgument) as reused:
            await store.ask("EraseTwin", storage_pb2.EraseTwinRequest(request_id="e", twin_id="t2"))
        assert reused.value.reason == "REQUEST_ID_REUSED"


async def test_a_twin_that_never_had_an_observation_is_erased(database_url: str, redis_url: str) -> None:
    async with storage(database_url, fold_after_s=0.05) as store:
        bed = await store.series("bed", ["weight"])
        aside = storage_pb2.QuarantinedRow(
            twin_id="stranger",
            channel="pulse",
            time_unix_us=T0,
            value=observation_pb2.Value(double_value=NUMBER),
            reason=1,  # type: ignore[arg-type]
            message=TEXT,
        )
        await store.append(doubles(bed, [T0], [70.5]), request_id="b", quarantine=[aside])
        event = entry_pb2.RecordEventEntry(event=event_pb2.Event(event_id="e", twin_id="patient", message=TEXT))
        control = entry_pb2.ControlEntry(request_id="event", record_event=event)
        await store.ask("Append", storage_pb2.AppendRequest(control=control))
        assert found(database_url, redis_url)["text"] >= {"log"}
        for twin_id in ("patient", "stranger"):
            asked = storage_pb2.EraseTwinRequest(request_id=f"forget-{twin_id}", twin_id=twin_id)
            begun = (await store.ask("EraseTwin", asked)).erasure
            erased = await ended(store, begun.erasure_id)
            assert erased.state == storage_pb2.ERASURE_STATE_SUCCEEDED
        assert await store.read([("bed", "weight")]) == {"bed/weight": [(T0, 70.5, 1)]}
    assert found(database_url, redis_url) == {name: set() for name in CANARIES}


class Dying(PostgresErasures):
    """Loses the process before or after the n-th note of progress."""

    left = 0
    after = False

    async def save(self, erasure: Erasure) -> None:
        Dying.left -= 1
        if Dying.left == 0 and not Dying.after:
            raise Unavailable("killed")
        await super().save(erasure)
        if Dying.left == 0:
            raise Unavailable("killed")


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_it_goes_on_wherever_it_was_interrupted(
    database_url: str, redis_url: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One life per step: each ends at the next note of progress, and the job is done all the same."""
    monkeypatch.setattr("twinmesh_storage.main.PostgresErasures", Dying)
    settings = {"fold_after_s": 0.05, "redis_url": redis_url}
    Dying.left, Dying.after = 1, after
    async with storage(database_url, **settings) as store:
        await plant(store)
        await folded(store, 4)
        with pytest.raises(Unavailable):
            await store.ask("EraseTwin", storage_pb2.EraseTwinRequest(request_id="forget", twin_id="patient"))
    lives = 0
    state = ErasureState.RUNNING
    while state is ErasureState.RUNNING:
        lives += 1
        assert lives < 12
        # Without progress a life would repeat its step for ever, so one that dies before its note gets one more.
        Dying.left, Dying.after = (2, False) if not after else (1, True)
        async with storage(database_url, **settings), asyncio.timeout(20):
            while Dying.left > 0 and state is ErasureState.RUNNING:
                await asyncio.sleep(0.02)
                state = await state_of(database_url)
    assert state is ErasureState.SUCCEEDED
    assert lives > 3
    assert found(database_url, redis_url) == {name: set() for name in CANARIES}


async def state_of(url: str) -> ErasureState:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(url, min_size=1, max_size=1, schema="storage"))
        running = await PostgresErasures(pool=pool, timeout_s=5).running()
        if running:
            return ErasureState.RUNNING
        (erasure,) = await PostgresErasures(pool=pool, timeout_s=5).page("default", "", "", 10)
        return erasure.state


@pytest.mark.slow
async def test_a_twin_is_erased_from_hypertables_too(timescale_url: str) -> None:
    """Rows of the columnstore and superseded ones are gone, those of another twin of the same chunks are not."""
    async with storage(timescale_url, fold_after_s=0.05, history_form="hypertable") as store:
        keys = await store.series("patient", ["pulse"]) + await store.series("bed", ["weight"])
        times = np.tile(T0 + S * np.arange(600), 2)
        handles = np.repeat(np.arange(2, dtype=np.uint32), 600)
        await store.append(doubles(keys, times, np.arange(1_200.0), handles), request_id="r1")
        await folded(store, 1)
        await store.append(doubles(keys, [T0], [NUMBER]), request_id="r2")
        await folded(store, 2)
        asked = storage_pb2.EraseTwinRequest(request_id="forget", twin_id="patient")
        begun = (await store.ask("EraseTwin", asked)).erasure
        erased = await ended(store, begun.erasure_id)
        assert erased.state == storage_pb2.ERASURE_STATE_SUCCEEDED, erased.message
        assert erased.rows_erased > 0
        rows = await store.read([("patient", "pulse"), ("bed", "weight")])
        assert (len(rows["patient/pulse"]), len(rows["bed/weight"])) == (0, 600)
        with psycopg.connect(timescale_url, options="-c search_path=public", prepare_threshold=None) as conn:
            left = conn.execute("select count(*) from storage.observations where twin_id = 'patient'").fetchone()
        assert left == (0,)
