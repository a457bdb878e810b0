"""Health, reflection and the drain: what balancers see, and that no call of a health-checked client fails."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.unit.runtime.echo import EchoStub, echo_service, text

from twinmesh.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from twinmesh_client.transport import call, open_channel, stream
from twinmesh_core.errors import NotFound, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_runtime.readiness import keep_readiness
from twinmesh_runtime.settings import ServiceSettings, SettingsError
from twinmesh_testing.inprocess import serve, serve_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def check(channel: Any, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await call(stub.Check, health_pb2.HealthCheckRequest(service=name), timeout_s=5)
    return int(answer.status)


async def test_health_has_its_names() -> None:
    async with serve(echo_service()) as target, open_channel(target) as channel:
        for name in ("", "live", "ready", "twinmesh.mesh.v1.MeshService"):
            assert await check(channel, name) == SERVING
        with pytest.raises(NotFound, match="live, ready"):
            await check(channel, "nothing")


async def test_a_capability_may_fail_while_the_service_stays_ready() -> None:
    able = True

    async def capable() -> None:
        if not able:
            raise ResourceExhausted("There is no room.")

    service = echo_service(capabilities={"echo.append": capable})
    async with serve(service) as target, open_channel(target) as channel:
        async with asyncio.timeout(5):
            while await check(channel, "echo.append") != SERVING:  # noqa: ASYNC110 -- asked over the wire
                await asyncio.sleep(0.02)
        able = False
        async with asyncio.timeout(20):
            while await check(channel, "echo.append") != NOT_SERVING:  # noqa: ASYNC110 -- likewise
                await asyncio.sleep(0.05)
        assert await check(channel, "ready") == SERVING


async def test_reflection_lists_the_services() -> None:
    async with serve(echo_service()) as target, open_channel(target) as channel:
        plain: Any = channel  # the published types know the synchronous channel only
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(plain)

        async def ask() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            yield reflection_pb2.ServerReflectionRequest(file_containing_symbol="twinmesh.mesh.v1.MeshService")

        listed, described = [answer async for answer in stream(stub.ServerReflectionInfo, ask(), timeout_s=5)]
        names = {service.name for service in listed.list_services_response.service}
        assert {"twinmesh.mesh.v1.MeshService", "grpc.health.v1.Health"} <= names
        assert described.file_descriptor_response.file_descriptor_proto


async def test_any_service_tells_the_whole_mesh() -> None:
    settings = ServiceSettings(mesh_storage="storage:7401")
    async with serve(echo_service(), token="echo", settings=settings) as target, open_channel(target) as channel:
        stub = mesh_pb2_grpc.MeshServiceStub(channel)
        answer = await call(stub.GetMesh, mesh_pb2.GetMeshRequest(), timeout_s=5)
        endpoints = {endpoint.service: endpoint.target for endpoint in answer.endpoints}
        assert len(endpoints) == 5
        assert endpoints["storage"] == "storage:7401"
        assert (answer.service, answer.mode) == ("echo", "open")


async def test_drain_happens_in_order() -> None:
    seen: list[str] = []
    settings = ServiceSettings(drain_propagation_s=0.1, drain_grace_s=5)
    release = asyncio.Event()

    async def drain() -> None:
        seen.append("drain")
        release.set()

    async def count(request: Any, context: Any) -> AsyncIterator[StringValue]:
        yield text("watching")
        await release.wait()
        yield text("resume after 17")

    async def slow(request: Any, context: Any) -> StringValue:
        await asyncio.sleep(0.3)
        seen.append("answered")
        return text("done")

    service = echo_service(say=slow, count=count, drain=drain)
    async with serve_server(service, settings=settings) as (server, target), open_channel(target) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = stream(health.Watch, health_pb2.HealthCheckRequest(service="ready"), timeout_s=None)
        assert (await anext(watch)).status == SERVING
        watcher = stream(EchoStub(channel).count, text(""), timeout_s=None)
        assert (await anext(watcher)).value == "watching"
        in_flight = asyncio.create_task(call(EchoStub(channel).say, text(""), timeout_s=5))
        await asyncio.sleep(0.05)

        started = time.monotonic()
        draining = asyncio.create_task(server.drain())
        assert (await anext(watch)).status == NOT_SERVING
        assert not seen, "told before anything was ended"
        assert (await anext(watcher)).value == "resume after 17"
        with pytest.raises(StopAsyncIteration):
            await anext(watcher)
        assert (await in_flight).value == "done"
        await draining
        assert seen == ["drain", "answered"]
        assert time.monotonic() - started < 2, "a drain lasts as long as its calls and not the whole grace"
        with pytest.raises(Unavailable):
            await call(EchoStub(channel).say, text(""), timeout_s=2)


async def test_a_drain_that_fails_or_hangs_does_not_keep_the_server() -> None:
    async def drain() -> None:
        await asyncio.sleep(60)

    settings = ServiceSettings(drain_propagation_s=0, drain_grace_s=0.2)
    async with serve_server(echo_service(drain=drain), settings=settings) as (server, _):
        async with asyncio.timeout(3):
            await server.drain()


async def test_rolling_restarts_fail_no_call() -> None:
    """Two servers, one client with eight callers, and both servers replaced one after the other, three times."""
    settings = ServiceSettings(drain_propagation_s=0.2, drain_grace_s=5)
    answered = 0
    failed: list[TwinmeshError] = []

    async def slow(request: Any, context: Any) -> StringValue:
        await asyncio.sleep(0.003)
        return text("ok")

    async def calling(channel: Any, stop: asyncio.Event) -> None:
        nonlocal answered
        stub = EchoStub(channel)
        while not stop.is_set():
            try:
                await call(stub.say, text("x"), timeout_s=5)
                answered += 1
            except TwinmeshError as error:
                failed.append(error)

    service = echo_service(say=slow)
    async with serve_server(service, settings=settings) as (_, steady):
        for _ in range(3):
            async with (
                serve_server(service, settings=settings) as (leaving, other),
                open_channel(f"{steady},{other}") as channel,
            ):
                stop = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    for _ in range(8):
                        group.create_task(calling(channel, stop))
                    await asyncio.sleep(0.2)
                    await leaving.drain()
                    await asyncio.sleep(0.2)
                    stop.set()
    assert not failed, failed[:3]
    assert answered > 500


async def test_readiness_follows_the_checks_and_forgives_one_failure() -> None:
    results: list[Exception | None] = [RuntimeError("starting"), None, Unavailable("blip"), None]
    results += [Unavailable("gone"), Unavailable("gone"), None]
    told: list[tuple[int, bool]] = []
    rounds = 0
    done = asyncio.Event()

    async def database() -> None:
        nonlocal rounds
        rounds += 1
        if rounds > len(results):
            done.set()
            return
        outcome = results[rounds - 1]
        if outcome is not None:
            raise outcome

    task = asyncio.create_task(
        keep_readiness({"database": database}, lambda ready: told.append((rounds, ready)), interval_s=0.001)
    )
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()
    assert told == [(2, True), (6, False), (7, True)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])  # noqa: S104
async def test_open_mode_listens_on_loopback_only(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettingsError, match="TWINMESH_ECHO_ALLOW_INSECURE_BIND"):
        async with serve(echo_service(), token="echo", settings=ServiceSettings(host=host)):
            pass


async def test_the_override_is_logged_loudly(caplog: pytest.LogCaptureFixture) -> None:
    settings = ServiceSettings(host="0.0.0.0", allow_insecure_bind=True)  # noqa: S104
    async with serve(echo_service(), settings=settings) as target, open_channel(target) as channel:
        assert await check(channel, "ready") == SERVING
    [record] = [record for record in caplog.records if record.msg == "open_mode_beyond_loopback"]
    assert record.levelname == "WARNING"
