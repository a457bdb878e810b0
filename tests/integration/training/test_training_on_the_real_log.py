"""Training over the real storage and state-sync: what it reads is what storage holds as of one offset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.fixtures import plants
from tests.integration.statesync.mesh import statesync, storage
from tests.integration.storage.mesh import Storage, doubles
from tests.integration.training.training_mesh import STEP_US, forecast_spec, settings_for, training

from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2_grpc
from twinmesh.training.v1 import training_pb2 as pb
from twinmesh.type.v1 import observation_pb2, twin_pb2
from twinmesh_client.transport import call, open_channel
from twinmesh_core.errors import FailedPrecondition, NotFound
from twinmesh_training.adapters.storage_history import StorageHistory
from twinmesh_training.domain.spec import check
from twinmesh_training.domain.values import Task, TrainingSpec

RAW_US = STEP_US // 3
UNITS = {"hot_spot": "Cel", "oil": "Cel", "load": "1", "ambient": "Cel", "cooling_stage": "1"}
SPEC = check(
    TrainingSpec(
        model_id="m",
        task=Task.FORECAST,
        twin_ids=("T1", "T2"),
        target="hot_spot",
        inputs=("load",),
        step_us=STEP_US,
        context_steps=48,
        horizon_steps=12,
    )
)


async def make_twins(stub: statesync_pb2_grpc.TwinServiceAsyncStub) -> None:
    twin_type = twin_pb2.TwinType(
        twin_type_id="transformer",
        version=1,
        channels=[
            twin_pb2.ChannelSpec(name=name, kind=observation_pb2.CHANNEL_KIND_GAUGE, unit=unit)
            for name, unit in UNITS.items()
        ],
    )
    await call(stub.CreateTwinType, statesync_pb2.CreateTwinTypeRequest(twin_type=twin_type), timeout_s=10)
    for twin_id in ("T1", "T2"):
        twin = twin_pb2.Twin(twin_id=twin_id, twin_type_id="transformer", time_zone="Europe/Berlin")
        await call(stub.CreateTwin, statesync_pb2.CreateTwinRequest(twin=twin), timeout_s=10)


async def land(store: Storage, twin_id: str, values: np.ndarray, start_us: int) -> None:
    """Append a matrix as single observations, `RAW_US` apart; NaN = never measured."""
    keys = [key for name, unit in UNITS.items() for key in await store.series(twin_id, [name], unit=unit)]
    times = start_us + np.arange(len(values)) * RAW_US
    for first in range(0, len(values), 4000):
        part = values[first : first + 4000]
        rows, columns = np.nonzero(~np.isnan(part))
        await store.append(
            doubles(tuple(keys), times[first + rows], part[rows, columns], handles=columns.astype(np.uint32))
        )


@pytest.mark.slow
async def test_training_reads_means_gaps_units_and_zones_as_of_one_offset(database_url: str, tmp_path: Path) -> None:
    made = [plants.transformer(days=30, step_us=RAW_US, seed=i, twin_id=f"T{i}") for i in (1, 2)]
    made[0].values[300:360] = np.nan
    async with (
        storage(database_url) as target,
        statesync(database_url, target) as sync,
        open_channel(target) as channel,
        open_channel(sync.target) as sync_channel,
    ):
        store = Storage(target, channel, storage_pb2_grpc.StorageServiceStub(channel))
        await make_twins(sync.twins)
        for twin in made:
            await land(store, twin.twin_id, twin.values, twin.start_us)
        reader = StorageHistory(store.stub, statesync_pb2_grpc.TwinServiceStub(sync_channel))
        read = await reader.read("default", SPEC)
        assert read.units == ("Cel", "1")
        assert read.as_of_offset > 0
        assert read.incarnation
        for twin, history in zip(made, read.histories, strict=True):
            assert history.time_zone == "Europe/Berlin"
            assert history.start_us == twin.start_us
            means = twin.values[:, [0, 2]].reshape(-1, 3, 2).mean(axis=1)
            assert np.allclose(history.values, means, equal_nan=True)
        assert np.isnan(read.histories[0].values[100:120]).all()

        bounded = replace(
            SPEC, start_time_us=plants.START_US + plants.DAY_US + 1, end_time_us=plants.START_US + 3 * plants.DAY_US + 5
        )
        part = (await reader.read("default", bounded)).histories[1]
        assert part.start_us == plants.START_US + plants.DAY_US + STEP_US
        assert len(part.values) == 2 * 48 - 1
        with pytest.raises(FailedPrecondition):
            await reader.read("default", replace(SPEC, end_time_us=plants.START_US - plants.DAY_US))
        with pytest.raises(NotFound) as error:
            await reader.read("default", replace(SPEC, inputs=("humidity",)))
        assert error.value.metadata["channels"] == "ambient, cooling_stage, hot_spot, load, oil"
        with pytest.raises(NotFound):
            await reader.read("default", replace(SPEC, twin_ids=("T9",)))

        settings = settings_for(database_url, tmp_path, target)
        async with training(replace(settings, mesh_statesync=sync.target)) as service:
            run = await service.create(forecast_spec(holdout=8 * plants.DAY_US))
            done = (await service.watched(run.run_id))[-1]
            assert done.error_message == ""
            naive, gate, _ = (
                next(m.value for m in e.metrics if m.name == "mae" and not m.scope) for e in done.evaluations
            )
            assert gate < 0.6 * naive
            assert done.promoted_version
            request = pb.GetModelVersionRequest(model_id="hot-spot")
            version = (await call(service.models.GetModelVersion, request, timeout_s=10)).version
            assert list(version.signature.units) == ["Cel", "Cel", "1", "Cel", "1"]
            assert version.lineage.as_of_offset >= read.as_of_offset
            assert version.lineage.incarnation == read.incarnation
