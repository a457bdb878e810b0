"""Runs through the real service, its worker processes and PostgreSQL; storage is a stand-in over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from tests.integration.training.stand_in import StandIn
from tests.integration.training.training_mesh import (
    Training,
    client,
    environment,
    forecast_spec,
    settings_for,
    stand_in,
    training,
)

from twinmesh.training.v1 import training_pb2 as pb
from twinmesh.type.v1 import model_pb2
from twinmesh_client.transport import call, open_channel, stream
from twinmesh_core.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Reason, Unavailable
from twinmesh_testing.inprocess import serve, serve_server
from twinmesh_training.main import compose

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = 1, 2, 3, 4, 5


@pytest.fixture
async def store() -> AsyncIterator[tuple[StandIn, str]]:
    made = stand_in()
    async with serve(made.service()) as target:
        yield made, target


@pytest.fixture
async def service(database_url: str, tmp_path: Path, store: tuple[StandIn, str]) -> AsyncIterator[Training]:
    async with training(settings_for(database_url, tmp_path, store[1])) as running:
        yield running


def kill_workers() -> None:
    for worker in workers():
        worker.kill()


def workers() -> list[psutil.Process]:
    # Our own children alone: a mesh that other tests of this run share has workers too, further down.
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "twinmesh_training.worker" in " ".join(process.cmdline()):
                found.append(process)
    return found


async def test_a_run_is_watched_to_its_versions_and_the_artifact_reproduces_its_golden_rows(
    service: Training, store: tuple[StandIn, str], tmp_path: Path
) -> None:
    run = await service.create(forecast_spec(), "once")
    assert (await service.create(forecast_spec(), "once")).run_id == run.run_id
    seen = await service.watched(run.run_id)
    assert seen[-1].state == SUCCEEDED, seen[-1].error_message
    assert [s.progress for s in seen] == sorted(s.progress for s in seen)
    assert len({s.phase for s in seen}) >= 4
    done = seen[-1]
    naive, gate, network = done.evaluations
    maes = [next(m.value for m in e.metrics if m.name == "mae" and not m.scope) for e in (naive, gate, network)]
    assert maes[1] < maes[0]
    assert [e.model_version for e in done.evaluations] == [0, 1, 2]
    assert done.promoted_version in {1, 2}
    assert done.train_window_count > 500

    requests = store[0].windows
    assert {r.as_of_offset for r in requests} == {42}
    listed = await call(
        service.models.ListModelVersions,
        pb.ListModelVersionsRequest(stage=model_pb2.MODEL_STAGE_PRODUCTION),
        timeout_s=10,
    )
    (version,) = listed.versions
    assert version.version == done.promoted_version
    assert version.lineage.run_id == run.run_id
    assert version.lineage.as_of_offset == 42
    assert version.lineage.holdout_start_time.ToMicroseconds() > version.lineage.start_time.ToMicroseconds()
    assert len(version.lineage.dataset_sha256) == 64

    graph = await download(service, "hot-spot", version.version)
    assert sha256(graph).hexdigest() == version.artifact_sha256
    golden = version.golden
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = {
        "window": np.frombuffer(golden.window, "<f4").reshape(golden.rows, 48, 5),
        "calendar": np.frombuffer(golden.calendar, "<f4").reshape(golden.rows, 4),
    }
    (answer,) = session.run(["quantiles"], feeds)
    expected = np.frombuffer(golden.quantiles, "<f4").reshape(golden.rows, 12, 3)
    assert np.abs(answer - expected).max() <= golden.tolerance

    other = 3 - version.version
    if not next(v for v in await all_versions(service) if v.version == other).passed_gate:
        with pytest.raises(FailedPrecondition):
            await promote(service, other, force=False)
    assert (await promote(service, other, force=True)).stage == 2
    assert (await promote(service, version.version, force=False)).stage == 2
    (model,) = (await call(service.models.ListModels, pb.ListModelsRequest(), timeout_s=10)).models
    assert (model.production_version, model.latest_version) == (version.version, 2)

    damage(tmp_path, version.artifact_sha256)
    with pytest.raises(DataLoss):
        await download(service, "hot-spot", version.version)


def damage(directory: Path, artifact_sha256: str) -> None:
    path = next(directory.glob(f"*/{artifact_sha256}.onnx"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")


async def download(service: Training, model_id: str, version: int) -> bytes:
    request = pb.DownloadArtifactRequest(model_id=model_id, version=version)
    messages = [m async for m in stream(service.models.DownloadArtifact, request, timeout_s=10)]
    assert messages[0].WhichOneof("message") == "manifest"
    content = b"".join(m.chunk for m in messages[1:])
    assert len(content) == messages[0].manifest.size_bytes
    return content


async def promote(service: Training, version: int, *, force: bool):
    request = pb.PromoteModelVersionRequest(model_id="hot-spot", version=version, force=force)
    return (await call(service.models.PromoteModelVersion, request, timeout_s=10)).version


async def all_versions(service: Training):
    request = pb.ListModelVersionsRequest(model_id="hot-spot", omit_golden=True)
    return (await call(service.models.ListModelVersions, request, timeout_s=10)).versions


@pytest.mark.slow
async def test_a_dynamics_run_records_the_range_and_the_effect_of_its_control(service: Training) -> None:
    spec = forecast_spec("cooling", task=2, inputs=["oil", "load", "ambient"], controls=["cooling_stage"])
    done = (await service.watched((await service.create(spec)).run_id))[-1]
    assert done.state == SUCCEEDED, done.error_message
    request = pb.GetModelVersionRequest(model_id="cooling", version=1)
    version = (await call(service.models.GetModelVersion, request, timeout_s=10)).version
    assert list(version.signature.control_min) == [0.0]
    assert list(version.signature.control_max) == [3.0]
    effect = next(m.value for m in version.metrics if m.name == "control_effect")
    assert effect < -3


async def test_bad_requests_name_the_field_and_the_remedy(service: Training) -> None:
    with pytest.raises(InvalidArgument) as error:
        await service.create(pb.TrainingSpec(model_id="M!", task=1, step={"seconds": 0}))  # type: ignore[arg-type]
    fields = {v.field for v in error.value.field_violations}
    assert {"spec.model_id", "spec.target", "spec.twin_ids", "spec.step", "spec.context_steps"} <= fields
    with pytest.raises(InvalidArgument) as error:
        await service.create(pb.TrainingSpec(task=7))  # type: ignore[arg-type]
    assert error.value.field_violations[0].field == "spec.task"
    with pytest.raises(NotFound):
        await service.get("run-missing")
    with pytest.raises(NotFound):
        await call(service.models.GetModelVersion, pb.GetModelVersionRequest(model_id="none"), timeout_s=5)
    for request in (pb.ListTrainingRunsRequest(page_token="?"), pb.ListTrainingRunsRequest(page_size=5000)):
        with pytest.raises(InvalidArgument):
            await call(service.runs.ListTrainingRuns, request, timeout_s=5)


async def test_a_run_that_cannot_work_fails_with_the_reason(service: Training) -> None:
    missing = await service.create(forecast_spec("a", twin_ids=["T9"]))
    unknown = await service.create(forecast_spec("b", inputs=["humidity"]))
    short = await service.create(forecast_spec("c", context_steps=1500))
    ended = [(await service.watched(run.run_id))[-1] for run in (missing, unknown, short)]
    assert [r.state for r in ended] == [FAILED] * 3
    assert [r.error_reason for r in ended] == ["TWIN_NOT_FOUND", "CHANNEL_NOT_FOUND", "NOT_ENOUGH_HISTORY"]
    assert "humidity" in ended[1].error_message
    assert "Shorten" in ended[2].error_message


async def test_runs_are_paged(service: Training, store: tuple[StandIn, str]) -> None:
    store[0].hold.clear()
    made = [(await service.create(forecast_spec(f"m{i}"))).run_id for i in range(3)]
    first = await call(service.runs.ListTrainingRuns, pb.ListTrainingRunsRequest(page_size=2), timeout_s=5)
    token = first.next_page_token
    second = await call(
        service.runs.ListTrainingRuns, pb.ListTrainingRunsRequest(page_size=2, page_token=token), timeout_s=5
    )
    assert [r.run_id for r in (*first.runs, *second.runs)] == made[::-1]
    assert not second.next_page_token


async def test_cancelling_ends_a_run_within_seconds_while_it_reads_and_while_it_trains(
    service: Training, store: tuple[StandIn, str]
) -> None:
    store[0].hold.clear()
    run = await service.create(forecast_spec())
    waiting = await service.create(forecast_spec("other"))
    await service.until(run.run_id, RUNNING)
    for run_id in (waiting.run_id, run.run_id):
        await call(service.runs.CancelTrainingRun, pb.CancelTrainingRunRequest(run_id=run_id), timeout_s=5)
    assert (await service.watched(waiting.run_id, 5))[-1].state == CANCELLED
    assert (await service.watched(run.run_id, 5))[-1].state == CANCELLED
    with pytest.raises(FailedPrecondition) as error:
        await call(service.runs.CancelTrainingRun, pb.CancelTrainingRunRequest(run_id=run.run_id), timeout_s=5)
    assert error.value.reason == Reason.RUN_ENDED

    store[0].hold.set()
    training_run = await service.create(forecast_spec())
    async for message in stream(
        service.runs.WatchTrainingRun, pb.WatchTrainingRunRequest(run_id=training_run.run_id), timeout_s=30
    ):
        if message.run.progress > 0.1:
            break
    request = pb.CancelTrainingRunRequest(run_id=training_run.run_id)
    await call(service.runs.CancelTrainingRun, request, timeout_s=5)
    assert (await service.watched(training_run.run_id, 8))[-1].state == CANCELLED
    assert not await all_versions(service)


@pytest.mark.faults
async def test_a_killed_worker_costs_a_run_one_attempt(service: Training, store: tuple[StandIn, str]) -> None:
    storage = store[0]
    storage.hold.clear()
    run = await service.create(forecast_spec())
    await storage.until_asked(1)
    kill_workers()
    await storage.until_asked(2)
    storage.hold.set()
    assert (await service.watched(run.run_id))[-1].state == SUCCEEDED


@pytest.mark.faults
@pytest.mark.slow
async def test_a_second_killed_worker_fails_a_run(service: Training, store: tuple[StandIn, str]) -> None:
    storage = store[0]
    storage.hold.clear()
    asked = storage.asked
    doomed = await service.create(forecast_spec("doomed"))
    for attempt in (1, 2):
        await storage.until_asked(asked + attempt)
        kill_workers()
    ended = (await service.watched(doomed.run_id, 20))[-1]
    assert (ended.state, ended.error_reason) == (FAILED, "INTERNAL")
    assert "Two workers ended" in ended.error_message


@pytest.mark.faults
@pytest.mark.slow
async def test_a_restart_of_the_service_puts_the_run_back_and_leaves_no_worker(
    database_url: str, tmp_path: Path, store: tuple[StandIn, str]
) -> None:
    settings = settings_for(database_url, tmp_path, store[1])
    store[0].hold.clear()
    assert workers() == []
    async with training(settings) as service:
        run = await service.create(forecast_spec())
        await service.until(run.run_id, RUNNING)
    assert workers() == []
    async with training(settings_for(database_url, tmp_path, store[1], worker_count=0)) as service:
        assert (await service.get(run.run_id)).state == QUEUED
    store[0].hold.set()
    async with training(settings) as service:
        assert (await service.watched(run.run_id))[-1].state == SUCCEEDED


@pytest.mark.faults
async def test_a_killed_service_takes_its_workers_along(
    database_url: str, tmp_path: Path, store: tuple[StandIn, str]
) -> None:
    settings = settings_for(database_url, tmp_path, store[1])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twinmesh_training", env=os.environ | environment(settings)
    )
    try:
        async with asyncio.timeout(20):
            while not (children := psutil.Process(process.pid).children()):  # noqa: ASYNC110  another process
                await asyncio.sleep(0.1)
        await asyncio.sleep(3)
        assert not any("torch" in m.path for m in psutil.Process(process.pid).memory_maps()), "torch in the service"
    finally:
        process.kill()
        await process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


async def test_a_draining_service_tells_watchers_to_come_back(
    database_url: str, tmp_path: Path, store: tuple[StandIn, str]
) -> None:
    settings = settings_for(database_url, tmp_path, store[1], worker_count=0, drain_propagation_s=0.0)
    async with AsyncExitStack() as stack:
        service = await compose(settings, stack)
        server, target = await stack.enter_async_context(serve_server(service, token="training", settings=settings))
        channel = await stack.enter_async_context(open_channel(target))
        running = client(channel, target)
        run = await running.create(forecast_spec())
        states = stream(running.runs.WatchTrainingRun, pb.WatchTrainingRunRequest(run_id=run.run_id), timeout_s=20)
        async with aclosing(states):
            assert (await anext(states)).run.state == QUEUED
            draining = asyncio.create_task(server.drain())
            with pytest.raises(Unavailable) as error:
                await anext(states)
        assert error.value.reason == Reason.DRAINING
        await draining
