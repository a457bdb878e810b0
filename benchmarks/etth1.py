"""Forecast accuracy on ETTh1 (horizon 96, standard split), trained through the API: ``python -m benchmarks.etth1``.

Reads ``etth1/ETTh1.csv.gz`` below TWINMESH_DATA (default ``../shared/data``) and says so when it is absent. Each of the
seven channels is a run of its own on its own past; errors are z-scored by the first twelve months and averaged, as
published tables do. The floor beside it is seasonal-naive on the same origins.
"""

# ruff: noqa: S106  the name of a service is no password

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import os
import tempfile
import time
from contextlib import AsyncExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.training.v1 import training_pb2, training_pb2_grpc
from twinmesh.type.v1 import model_pb2, observation_pb2, twin_pb2
from twinmesh_client.transport import call, open_channel, stream
from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian
from twinmesh_statesync.main import compose as compose_statesync
from twinmesh_statesync.settings import StatesyncSettings
from twinmesh_storage.main import compose as compose_storage
from twinmesh_storage.settings import StorageSettings
from twinmesh_testing.inprocess import serve
from twinmesh_training.main import compose as compose_training
from twinmesh_training.settings import TrainingSettings

HOUR_US = 3_600_000_000
START_US = 1_467_331_200_000_000  # 2016-07-01T00:00Z
FIT_HOURS, TEST_HOURS, ALL_HOURS = 8_640, 2_880, 14_400
CONTEXT, HORIZON = 512, 96
TIMEOUT_S = 60.0


def read(path: Path) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float64]]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    names = [name.lower() for name in rows[0][1:]]
    return names, np.array([[float(v) for v in row[1:]] for row in rows[1 : ALL_HOURS + 1]])


async def land(stack: AsyncExitStack, storage: str, statesync: str, names: list[str], values: Any) -> None:
    store = storage_pb2_grpc.StorageServiceStub(await stack.enter_async_context(open_channel(storage)))
    twins = statesync_pb2_grpc.TwinServiceStub(await stack.enter_async_context(open_channel(statesync)))
    gauge = observation_pb2.CHANNEL_KIND_GAUGE
    channels = [twin_pb2.ChannelSpec(name=name, kind=gauge, unit="1") for name in names]
    twin_type = twin_pb2.TwinType(twin_type_id="ett", version=1, channels=channels)
    await call(twins.CreateTwinType, statesync_pb2.CreateTwinTypeRequest(twin_type=twin_type), timeout_s=TIMEOUT_S)
    twin = twin_pb2.Twin(twin_id="ETTh1", twin_type_id="ett")
    await call(twins.CreateTwin, statesync_pb2.CreateTwinRequest(twin=twin), timeout_s=TIMEOUT_S)
    keys = [observation_pb2.SeriesKey(twin_id="ETTh1", channel=name, kind=gauge, unit="1") for name in names]
    ids = await call(store.ResolveSeries, storage_pb2.ResolveSeriesRequest(series=keys), timeout_s=TIMEOUT_S)
    series = tuple(
        SeriesKey(twin_id="ETTh1", channel=name, unit="1", series_id=number, kind=ChannelKind.GAUGE)
        for name, number in zip(names, ids.series_id, strict=True)
    )
    for first in range(0, len(values), 1_200):
        part = values[first : first + 1_200]
        count = part.size
        times = np.repeat(START_US + (first + np.arange(len(part))) * HOUR_US, len(names))
        handles = np.tile(np.arange(len(names), dtype=np.uint32), len(part))
        section = double_section(handles, times, part.ravel(), np.ones(count, np.uint8))
        body = wire.encode(ObservationBatch(series=series, doubles=section))
        request = storage_pb2.AppendRequest(observations=body, content_hash=blake2b(body, digest_size=16).digest())
        await call(store.Append, request, timeout_s=TIMEOUT_S)


async def learn(runs: training_pb2_grpc.TrainingServiceAsyncStub, name: str) -> training_pb2.TrainingRun:
    spec = training_pb2.TrainingSpec(
        model_id=f"etth1-{name}",
        task=model_pb2.MODEL_TASK_FORECAST,
        twin_ids=["ETTh1"],
        target=name,
        context_steps=CONTEXT,
        horizon_steps=HORIZON,
        families=[model_pb2.MODEL_FAMILY_RIDGE],
        origins=TEST_HOURS - HORIZON + 1,
    )
    spec.step.FromMicroseconds(HOUR_US)
    spec.holdout.FromMicroseconds(TEST_HOURS * HOUR_US)
    request = training_pb2.CreateTrainingRunRequest(spec=spec)
    run = (await call(runs.CreateTrainingRun, request, timeout_s=TIMEOUT_S)).run
    watch = training_pb2.WatchTrainingRunRequest(run_id=run.run_id)
    async for message in stream(runs.WatchTrainingRun, watch, timeout_s=600):
        run = message.run
    if run.state != training_pb2.TRAINING_RUN_STATE_SUCCEEDED:
        raise SystemExit(f"{name}: {run.error_message}")
    return run


def metric(run: training_pb2.TrainingRun, family: int, name: str) -> float:
    evaluation = next(e for e in run.evaluations if e.family == family)
    return next(m.value for m in evaluation.metrics if m.name == name and not m.scope)


async def measure(path: Path, directory: Path, database_url: str) -> dict[str, float]:
    names, values = read(path)
    deviation = values[:FIT_HOURS].std(axis=0)
    async with AsyncExitStack() as stack:
        chosen = StorageSettings(database_url=database_url)
        store = await stack.enter_async_context(serve(await compose_storage(chosen, stack), token="storage"))
        sync_settings = StatesyncSettings(database_url=database_url, mesh_storage=store)
        sync = await stack.enter_async_context(serve(await compose_statesync(sync_settings, stack), token="statesync"))
        await land(stack, store, sync, names, values)
        os.environ |= {
            "TWINMESH_TRAINING_DATABASE_URL": database_url,
            "TWINMESH_TRAINING_ARTIFACT_DIR": str(directory / "artifacts"),
            "TWINMESH_MESH_STORAGE": store,
            "TWINMESH_MESH_STATESYNC": sync,
        }
        settings = TrainingSettings(database_url=database_url, artifact_dir=directory / "artifacts")
        target = await stack.enter_async_context(serve(await compose_training(settings, stack), token="training"))
        runs = training_pb2_grpc.TrainingServiceStub(await stack.enter_async_context(open_channel(target)))
        found: dict[str, list[float]] = {"mse": [], "mae": [], "naive": [], "coverage": []}
        cpu_s = 0.0
        started = time.monotonic()
        for name, unit in zip(names, deviation, strict=True):
            run = await learn(runs, name)
            ridge, naive = model_pb2.MODEL_FAMILY_RIDGE, model_pb2.MODEL_FAMILY_SEASONAL_NAIVE
            found["mse"].append((metric(run, ridge, "rmse") / unit) ** 2)
            found["mae"].append(metric(run, ridge, "mae") / unit)
            found["naive"].append((metric(run, naive, "rmse") / unit) ** 2)
            found["coverage"].append(metric(run, ridge, "coverage"))
            cpu_s += metric(run, ridge, "train_seconds")
            print(f"{name:5} mse {found['mse'][-1]:.4f}  mae {found['mae'][-1]:.4f}  cover {found['coverage'][-1]:.3f}")
        mean = {key: float(np.mean(value)) for key, value in found.items()}
        return {
            "etth1_96_mse": round(mean["mse"], 4),
            "etth1_96_mae": round(mean["mae"], 4),
            "seasonal_naive_mse": round(mean["naive"], 4),
            "mse_over_seasonal_naive": round(mean["mse"] / mean["naive"], 3),
            "interval_coverage": round(mean["coverage"], 4),
            "train_seconds": round(cpu_s, 1),
            "wall_seconds": round(time.monotonic() - started, 1),
        }


def main() -> None:
    path = Path(os.environ.get("TWINMESH_DATA", "../shared/data")) / "etth1" / "ETTh1.csv.gz"
    if not path.exists():
        print("ETTh1 is not there: set TWINMESH_DATA to the directory that holds etth1/ETTh1.csv.gz.")
        print(json.dumps({"etth1_96_mse": None, "skipped": "data absent"}))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o711)
        with Guardian(log=directory / "guardian.log") as guardian:
            server = PostgresServer(guardian, directory, log_dir=directory)
            server.start()
            server.create_database("etth1")
            try:
                answer = asyncio.run(measure(path, directory, server.url("etth1")))
            finally:
                server.stop()
                server.remove_data()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
