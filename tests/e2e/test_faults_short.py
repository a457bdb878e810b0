"""Servers missing or killed under a small mesh: typed errors, right answers, nothing acknowledged lost, no gap."""

# mypy: disable-error-code="arg-type, index"
# Why: messages are built from dicts, which the stubs do not know.

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing

import grpc.aio
import pytest
from tests.e2e import attack, valid
from tests.e2e.shared_mesh import make_world, running_mesh

from twinmesh_client.aio.mesh import connect_async
from twinmesh_core.errors import TwinmeshError, Unavailable
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_core.time import to_datetime
from twinmesh_local.mesh import LocalMesh

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """A mesh whose Triton is missing from the start."""
    with running_mesh(tmp_path_factory.mktemp("mesh"), with_triton=False) as mesh:
        asyncio.run(make_world(mesh, models=False))
        yield mesh


def row(value: float, *, channel: str = "temp") -> ObservationBatch:
    return ObservationBatch(
        series=(SeriesKey(twin_id="P1", channel=channel),),
        doubles=double_section([0], [int(time.time() * 1e6)], [value]),
    )


def restarts(mesh: LocalMesh, name: str) -> int:
    return next(s.restarts for s in mesh.status() if s.name == name)


async def killed(mesh: LocalMesh, name: str) -> None:
    """Kill a server and return when it is there again."""
    before = restarts(mesh, name)
    mesh.kill(name, signal.SIGKILL)
    await back(mesh, name, before + 1)


async def back(mesh: LocalMesh, name: str, times: int) -> None:
    async with asyncio.timeout(40):
        while True:
            status = next(s for s in mesh.status() if s.name == name)
            if status.restarts >= times and status.state.name == "READY":
                return
            await asyncio.sleep(0.02)


async def test_without_triton_only_forecasts_are_refused(mesh: LocalMesh) -> None:
    async with connect_async(mesh.endpoints["inference"]) as client:
        twin = client.twins["P1"]
        assert (await twin.write_batch(row(21.0))).accepted == 1
        with pytest.raises(TwinmeshError) as refused:
            await twin.forecast("temp")
        assert refused.value.reason in ("MODEL_NOT_FOUND", "DEPENDENCY_UNAVAILABLE", "MODEL_NOT_READY")
        assert await client.models.deployments() == []
    assert restarts(mesh, "inference") == 0


async def test_latest_values_are_right_while_valkey_is_gone(mesh: LocalMesh) -> None:
    async with connect_async(mesh.endpoints["storage"]) as client:
        twin = client.twins["P1"]
        before = restarts(mesh, "valkey")
        mesh.kill("valkey", signal.SIGKILL)
        for value in (31.0, 32.0, 33.0):
            ack = await twin.write_batch(row(value))
            latest = await twin.latest("temp", min_offset=ack.offset)
            assert list(latest["temp"].values) == [value]
        await back(mesh, "valkey", before + 1)
        ack = await twin.write_batch(row(34.0))
        assert list((await twin.latest("temp", min_offset=ack.offset))["temp"].values) == [34.0]
    assert restarts(mesh, "storage") == 0


async def test_everything_acknowledged_outlives_postgresql(mesh: LocalMesh) -> None:
    """Rows are written one after the other while PostgreSQL is killed; each acknowledged one is there, once."""
    async with connect_async(mesh.endpoints["storage"]) as client:
        twin = client.twins["P1"]
        acknowledged: list[float] = []
        begun = int(time.time() * 1e6)
        before = restarts(mesh, "postgresql")
        for number in range(40):
            if number == 10:
                mesh.kill("postgresql", signal.SIGKILL)
            try:
                await twin.write_batch(row(float(number), channel="load"))
            except Unavailable:
                await asyncio.sleep(0.2)
            else:
                acknowledged.append(float(number))
        await back(mesh, "postgresql", before + 1)
        assert len(acknowledged) >= 30
        ack = await twin.write_batch(row(99.0, channel="load"))
        reading = await twin.read(
            "load", start=to_datetime(begun), end=to_datetime(begun + 120_000_000), min_offset=ack.offset
        )
        stored = [float(v) for v in reading["load"].values]
        assert len(stored) == len(set(stored)), "a row is there twice"
        assert set(acknowledged) <= set(stored)
    for service in ("ingestion", "statesync", "training", "inference"):
        assert restarts(mesh, service) == 0, f"{service} did not live through it"


@pytest.mark.parametrize("server", [pytest.param("storage", marks=pytest.mark.slow), "statesync"])
async def test_a_watch_has_no_gap_over_a_kill(mesh: LocalMesh, server: str) -> None:
    """The watcher resumes by itself: every revision once, in order, up to the last write."""
    async with connect_async(mesh.endpoints["ingestion"]) as client:
        twin = client.twins["P1"]
        revisions: list[int] = []
        values: list[float] = []
        synced = asyncio.Event()
        last = 70.0

        async def watch() -> None:
            async with aclosing(twin.watch()) as events:
                async for event in events:
                    if event.kind in ("SYNCED", "BOOKMARK"):
                        synced.set()
                    if event.kind == "SNAPSHOT":
                        revisions.append(event.revision)
                        synced.set()
                    if event.kind == "CHANGED":
                        revisions.append(event.revision)
                        values.extend(float(f.value) for name, f in event.reported.items() if name == "temp")
                    if values and values[-1] == last:
                        return

        watching = asyncio.create_task(watch())
        await asyncio.wait_for(synced.wait(), 10)
        for value in (61.0, 62.0, 63.0):
            await twin.write_batch(row(value))
        before = restarts(mesh, server)
        mesh.kill(server, signal.SIGKILL)
        for value in (64.0, 65.0, 66.0):
            await twin.write_batch(row(value))
        await back(mesh, server, before + 1)
        await twin.write_batch(row(last))
        await asyncio.wait_for(watching, 30)
        assert values == [61.0, 62.0, 63.0, 64.0, 65.0, 66.0, last]
        assert revisions == list(range(revisions[0], revisions[0] + len(revisions)))


async def test_services_that_hold_streams_live_through_a_restart_of_storage(mesh: LocalMesh) -> None:
    async with connect_async(mesh.endpoints["training"]) as client:
        await killed(mesh, "storage")
        name = f"born-after-{restarts(mesh, 'storage')}"
        async with asyncio.timeout(20):
            while True:
                try:
                    await client.twins.create(name, type="pump@1", if_absent=True)
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
        batch = ObservationBatch(
            series=(SeriesKey(twin_id=name, channel="temp"),),
            doubles=double_section([0], [int(time.time() * 1e6)], [20.0]),
        )
        # Ingestion follows the log again: it knows the twin.
        assert (await client.twins[name].write_batch(batch)).accepted == 1
    for service in ("ingestion", "statesync", "training", "inference"):
        assert restarts(mesh, service) == (1 if service == "statesync" else 0)


async def test_a_peer_that_is_gone_is_named_and_not_blamed_on_the_caller(mesh: LocalMesh) -> None:
    """While storage is away, every method ends typed."""
    rpcs = {rpc.path.rsplit(".", 1)[-1]: rpc for rpc in attack.every_rpc()}
    before = restarts(mesh, "storage")
    mesh.kill("storage", signal.SIGSTOP)
    try:
        for name, request in valid.requests().items():
            rpc = rpcs[name]
            if rpc.token == "storage":
                continue
            async with grpc.aio.insecure_channel(mesh.endpoints[rpc.token]) as channel:
                ended = await attack.throw(channel, rpc, request.SerializeToString(), timeout_s=1.0)
            assert attack.faults_of(ended) == [], name
    finally:
        mesh.kill("storage", signal.SIGCONT)
    assert restarts(mesh, "storage") == before
