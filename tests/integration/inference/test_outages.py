"""Triton killed, Triton missing at start, training gone: typed words, and service as soon as they are back."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.integration.inference.world import world
from tests.unit.inference.graphs import build

from twinmesh.inference.v1 import inference_pb2, inference_pb2_grpc
from twinmesh_client.transport import call
from twinmesh_core.errors import Reason, Unavailable
from twinmesh_local.ports import free_port
from twinmesh_local.processes import Guardian
from twinmesh_local.triton import TritonServer


@pytest.fixture
def own_triton(guardian: Guardian) -> Iterator[TritonServer]:
    """A Triton of this test's own, not started."""
    directory = Path(tempfile.mkdtemp(prefix="twinmesh-triton-"))
    server = TritonServer(guardian, directory, log_dir=directory, name=f"triton-{directory.name}")
    server.model_repository.mkdir(parents=True, exist_ok=True)
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


class TcpRelay:
    """Forwards a fixed loopback port to wherever Triton listens now; refuses while it is away."""

    def __init__(self) -> None:
        self.target: str | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self.cut()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        self.target = None
        for writer in tuple(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target is None:
            writer.close()
            return
        host, port = self.target.split(":")
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        self._writers |= {writer, upstream_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, upstream_writer))
                group.create_task(_copy(upstream_reader, writer))
        finally:
            self._writers -= {writer, upstream_writer}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        return
    finally:
        writer.close()


def oil() -> inference_pb2.ForecastRequest:
    return inference_pb2.ForecastRequest(twin_id="T1", channel="oil_temp")


async def test_triton_missing_at_start_then_there_then_killed_then_back(
    database_url: str, own_triton: TritonServer, guardian: Guardian
) -> None:
    relay = TcpRelay()
    url = await relay.start()
    try:
        async with world(
            database_url=database_url, triton_url=url, model_repository=own_triton.model_repository
        ) as running:
            for version in (1, 2):
                running.peers.promote(build("oil", version, seed=version))
            await _announced(running.stub)
            await _refused_for_want_of_triton(running.stub)

            await asyncio.to_thread(own_triton.start)
            relay.target = own_triton.grpc_url
            await running.serving("oil", 2)
            running.peers.promote(build("oil", 1, seed=1))
            await running.serving("oil", 1)
            running.peers.promote(build("oil", 2, seed=2))
            await running.serving("oil", 2)
            before = await running.stub.Forecast(oil(), timeout=10)

            assert own_triton.pid is not None
            guardian.signal(own_triton.log.stem, signal.SIGKILL)
            relay.cut()
            await _refused_for_want_of_triton(running.stub)

            await asyncio.to_thread(own_triton.start)
            relay.target = own_triton.grpc_url
            await running.serving("oil", 2)
            after = await running.stub.Forecast(oil(), timeout=10)
            assert after.prediction == before.prediction
            pinned = await running.stub.Forecast(
                inference_pb2.ForecastRequest(twin_id="T1", model_id="oil", model_version=1), timeout=10
            )
            assert pinned.prediction.model_version == 1
    finally:
        await relay.stop()


async def test_a_restarted_service_serves_at_once_what_is_loaded_without_training(
    database_url: str, triton_server: TritonServer
) -> None:
    start = partial(
        world,
        database_url=database_url,
        triton_url=triton_server.grpc_url,
        model_repository=triton_server.model_repository,
    )
    async with start() as first:
        first.peers.promote(build("oil-again", 1))
        await first.serving("oil-again", 1)
    async with start() as second:
        assert not second.peers.production
        answer = await call(second.stub.Forecast, oil(), timeout_s=5)
        assert answer.prediction.model_id == "oil-again"


async def test_replicas_share_pointers_and_one_of_them_rolls(database_url: str, triton_server: TritonServer) -> None:
    start = partial(
        world,
        database_url=database_url,
        triton_url=triton_server.grpc_url,
        model_repository=triton_server.model_repository,
    )
    async with start() as second:
        async with start() as first:
            for one in (first, second):
                one.peers.promote(build("oil-shared", 1, seed=1))
            await second.serving("oil-shared", 1)
            await first.serving("oil-shared", 1)
            answers = [await one.stub.Forecast(oil(), timeout=5) for one in (first, second)]
            assert answers[0].prediction == answers[1].prediction
        # The first is gone, whichever of them held the lease: the second rolls on.
        second.peers.promote(build("oil-shared", 2, seed=2))
        await second.serving("oil-shared", 2)


async def test_a_peer_that_is_away_is_named(database_url: str, triton_server: TritonServer) -> None:
    async with world(
        database_url=database_url,
        triton_url=triton_server.grpc_url,
        model_repository=triton_server.model_repository,
        mesh_storage=f"127.0.0.1:{free_port()}",
    ) as running:
        running.peers.promote(build("oil-alone", 1))
        await running.serving("oil-alone", 1)
        with pytest.raises(Unavailable) as refused:
            await call(running.stub.Forecast, oil(), timeout_s=5)
        assert refused.value.reason == Reason.DEPENDENCY_UNAVAILABLE
        assert refused.value.metadata["dependency"] == "storage"


async def _announced(stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
    async with asyncio.timeout(20):
        while True:
            answer = await stub.ListDeployments(inference_pb2.ListDeploymentsRequest(), timeout=5)
            assert not answer.triton_ready
            if answer.deployments:
                assert answer.deployments[0].state == inference_pb2.DEPLOYMENT_STATE_LOADING
                return
            await asyncio.sleep(0.05)


async def _refused_for_want_of_triton(stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
    with pytest.raises(Unavailable) as refused:
        await call(stub.Forecast, oil(), timeout_s=10)
    assert refused.value.reason == Reason.DEPENDENCY_UNAVAILABLE
    assert refused.value.metadata["dependency"] == "triton"
    assert isinstance(refused.value.retry_after_s, float)
