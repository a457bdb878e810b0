"""Quarantine on the real services: filtered, replayed after a fix, discarded; exactly once through kills."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from tests.integration.ingestion.mesh import mesh
from tests.integration.ingestion.test_storage_away import storage_process
from tests.unit.ingestion.plant import S, gauges

from twinmesh.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import observation_pb2, quarantine_pb2
from twinmesh_client.transport import call, open_channel
from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, TwinmeshError

REPLAY, DISCARD = ingestion_pb2.ReplayQuarantineRequest, ingestion_pb2.DiscardQuarantineRequest


def message(batch):
    return observation_pb2.ObservationBatch.FromString(wire.encode(batch))


def recent(values, twin, start_s=3_600):
    start = time.time_ns() // 1_000 // S * S - start_s * S
    return message(gauges("temperature", values, twin=twin, start=start))


async def test_a_fix_is_followed_by_a_replay_and_the_rest_is_discarded_on_record(database_url):
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        await m.write(batch=recent([20.0, 21.0], "P9"))
        await m.write(batch=recent([30.0, 31.0, 32.0], "P8"))
        dry = await m.ask(m.ingestion.ReplayQuarantine, REPLAY(dry_run=True))
        assert (dry.examined_count, dry.ack.quarantined_count, dry.ack.offset) == (5, 5, 0)
        await m.make_twin("P9")
        order = REPLAY(request_id="fix", filter=quarantine_pb2.QuarantineFilter(twin_id="P9"))
        done = await m.ask(m.ingestion.ReplayQuarantine, order)
        assert (done.examined_count, done.ack.accepted_count, done.matched_count) == (2, 2, 2)
        again = await m.ask(m.ingestion.ReplayQuarantine, order)
        assert again.ack.replayed
        assert (again.examined_count, again.ack.offset) == (2, done.ack.offset)
        statistics = await m.statistics()
        assert (statistics.point_count, statistics.quarantined_count) == (2, 3)
        gone = await m.ask(
            m.ingestion.DiscardQuarantine,
            DISCARD(
                request_id="d", filter=quarantine_pb2.QuarantineFilter(twin_id="P8"), comment="a trial", max_rows=2
            ),
        )
        assert (gone.discarded_count, gone.matched_count, gone.next_after_quarantine_id > 0) == (2, 3, True)
        listed = await m.ask(
            m.store.ListQuarantine, storage_pb2.ListQuarantineRequest(state=quarantine_pb2.QUARANTINE_STATE_DISCARDED)
        )
        told = [(r.comment, r.principal, r.resolve_offset) for r in listed.rows]
        assert told == [("a trial", "service", gone.offset)] * 2
        assert (await m.statistics()).quarantined_count == 1


IMPOSSIBLE = [
    ("ReplayQuarantine", {}, "request_id"),
    ("ReplayQuarantine", {"request_id": "x" * 129}, "request_id"),
    ("ReplayQuarantine", {"request_id": "r", "max_rows": -1}, "max_rows"),
    ("ReplayQuarantine", {"request_id": "r", "max_rows": 10_001}, "max_rows"),
    ("ReplayQuarantine", {"request_id": "r", "after_quarantine_id": -1}, "after_quarantine_id"),
    ("ReplayQuarantine", {"request_id": "r", "filter": {"reasons": [99]}}, "filter.reasons[0]"),
    ("ReplayQuarantine", {"request_id": "r", "filter": {"reasons": ["FLAG_REASON_SPIKE"]}}, "filter.reasons[0]"),
    ("ReplayQuarantine", {"request_id": "r", "filter": {"end_offset": -1}}, "filter.end_offset"),
    (
        "ReplayQuarantine",
        {"dry_run": True, "filter": {"start_time": "2026-01-02T00:00:00Z", "end_time": "2026-01-01T00:00:00Z"}},
        "filter.end_time",
    ),
    ("DiscardQuarantine", {"request_id": "r", "comment": "c"}, "filter"),
    ("DiscardQuarantine", {"request_id": "r", "filter": {"twin_id": "a"}}, "comment"),
    ("DiscardQuarantine", {"request_id": "r", "filter": {"twin_id": "a"}, "comment": "x" * 1_001}, "comment"),
    ("DiscardQuarantine", {"filter": {"twin_id": "a"}, "comment": "c"}, "request_id"),
]


async def test_orders_that_cannot_be_are_refused_by_their_field(database_url):
    async with mesh(database_url) as m:
        for method, request, field in IMPOSSIBLE:
            kind = REPLAY if method == "ReplayQuarantine" else DISCARD
            with pytest.raises(InvalidArgument) as refused:
                await m.ask(getattr(m.ingestion, method), json_format.ParseDict(request, kind()))
            assert refused.value.field_violations[0].field == field


class IngestionProcess:
    """``python -m twinmesh_ingestion`` on a port of its own, to be killed and started again."""

    def __init__(self, storage_target: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._environment = {
            **os.environ,
            "TWINMESH_MESH_STORAGE": storage_target,
            "TWINMESH_INGESTION_PORT": str(self.port),
            "TWINMESH_INGESTION_METRICS_PORT": "0",
        }
        self._process: Any = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "twinmesh_ingestion", env=self._environment,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()


@pytest.mark.faults
@pytest.mark.slow
async def test_kills_between_the_steps_of_a_replay_land_each_row_once(database_url):
    rows, page = 400, 20
    async with storage_process(database_url) as storage:
        target = f"127.0.0.1:{storage.port}"
        ingestion = IngestionProcess(target)
        await ingestion.start()
        try:
            async with open_channel(f"127.0.0.1:{ingestion.port}") as channel, open_channel(target) as below:
                stub = ingestion_pb2_grpc.IngestionServiceStub(channel)
                store: Any = storage_pb2_grpc.StorageServiceStub(below)

                async def until_done(method: Any, request: Any) -> Any:
                    while True:  # the test's own time limit ends it
                        try:
                            return await call(method, request, timeout_s=3)
                        except (InvalidArgument, FailedPrecondition):
                            raise
                        except TwinmeshError:
                            await asyncio.sleep(0.05)

                plant = await _plant(store, until_done)
                write = ingestion_pb2.WriteRequest(request_id="w", batch=recent(np.arange(rows) / 10, "P9"))
                assert (await until_done(stub.Write, write)).ack.quarantined_count == rows
                await plant("P9")
                killing = asyncio.create_task(_kills(ingestion, storage))
                after, left = 0, 0
                while True:
                    request = REPLAY(request_id=f"fix.{after}", after_quarantine_id=after, max_rows=page)
                    done = await until_done(stub.ReplayQuarantine, request)
                    left += done.ack.accepted_count
                    after = done.next_after_quarantine_id
                    if not after:
                        break
                    await asyncio.sleep(0.05)
                await killing
                assert left == rows
                counted = await until_done(store.GetStatistics, storage_pb2.GetStatisticsRequest())
                assert (counted.landed_point_count, counted.point_count, counted.quarantined_count) == (rows, rows, 0)
        finally:
            await ingestion.kill()


async def _kills(ingestion: IngestionProcess, storage: Any) -> None:
    for round_ in range(4):
        await asyncio.sleep(0.11 + 0.07 * round_)
        victim = storage if round_ % 2 else ingestion
        await victim.kill()
        await victim.start()


async def _plant(store: Any, until_done: Any) -> Any:
    from tests.unit.ingestion.plant import PUMP

    from twinmesh.type.v1 import entry_pb2, twin_pb2
    from twinmesh_client.registry_mapping import twin_type_to_message

    async def append(request_id: str, **action: Any) -> None:
        entry = entry_pb2.ControlEntry(request_id=request_id, principal="test", **action)
        await until_done(store.Append, storage_pb2.AppendRequest(control=entry, request_id=request_id))

    await append("type", create_twin_type=entry_pb2.CreateTwinTypeEntry(twin_type=twin_type_to_message(PUMP)))

    async def make(twin: str) -> None:
        made = entry_pb2.CreateTwinEntry(twin=twin_pb2.Twin(twin_id=twin, twin_type_id="pump"))
        await append(f"twin-{twin}", create_twin=made)

    return make
