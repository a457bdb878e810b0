"""A twin is erased in the real storage: training hears of it in the log, and marks what learned from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.training.test_registry import finished, run, version
from tests.integration.storage.mesh import T0, Storage, doubles, storage
from tests.integration.training.training_mesh import Training, settings_for, training

from twinmesh.storage.v1 import storage_pb2
from twinmesh.training.v1 import training_pb2 as pb
from twinmesh.type.v1 import model_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_runtime.postgres import open_pool
from twinmesh_training.adapters.postgres import PostgresRegistry


async def shown(service: Training, number: int) -> model_pb2.ModelVersion:
    request = pb.GetModelVersionRequest(model_id="m", version=number)
    return (await call(service.models.GetModelVersion, request, timeout_s=10)).version


async def invalidated(service: Training, number: int) -> model_pb2.ModelVersion:
    """Return a version as soon as it is invalidated."""
    async with asyncio.timeout(15):
        while True:
            found = await shown(service, number)
            if found.invalidated:
                return found
            await asyncio.sleep(0.05)


async def erase(store: Storage, twin_id: str) -> None:
    await store.ask("EraseTwin", storage_pb2.EraseTwinRequest(request_id=f"forget {twin_id}", twin_id=twin_id))


@asynccontextmanager
async def served(database_url: str, target: str, directory: Path) -> AsyncIterator[Training]:
    async with training(replace(settings_for(database_url, directory, target), worker_count=0)) as service:
        yield service


async def test_versions_that_learned_from_an_erased_twin_are_marked_and_stay_so(
    database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(storage(database_url, fold_after_s=0.05))
        for twin in ("T1", "T2"):
            await store.append(doubles(await store.series(twin, ["hot_spot"]), [T0], [1.0]), request_id=twin)
        head = (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position
        learned = {
            twin: replace(
                version().lineage,
                run_id=f"run-{twin.lower()}",
                twin_ids=(twin,),
                as_of_offset=head.offset,
                incarnation=head.incarnation,
            )
            for twin in ("T1", "T2")
        }
        async with served(database_url, store.target, tmp_path) as service:
            pool = await stack.enter_async_context(open_pool(database_url, min_size=1, max_size=1, schema="training"))
            registry = PostgresRegistry(pool)
            for twin in ("T1", "T2"):
                await finished(registry, run(f"run-{twin.lower()}"), replace(version(), lineage=learned[twin]))
            await erase(store, "T1")
            assert list((await invalidated(service, 1)).erased_twin_ids) == ["T1"]
            listed = await call(service.models.ListModelVersions, pb.ListModelVersionsRequest(), timeout_s=10)
            assert [(v.version, v.invalidated) for v in listed.versions] == [(2, False), (1, True)]
            assert (await service.get("run-t1")).invalidated
            assert not (await service.get("run-t2")).invalidated
            promote = pb.PromoteModelVersionRequest(model_id="m", version=1, force=True)
            with pytest.raises(FailedPrecondition) as refused:
                await call(service.models.PromoteModelVersion, promote, timeout_s=10)
            assert refused.value.reason == Reason.DATA_ERASED
            promote.version = 2
            await call(service.models.PromoteModelVersion, promote, timeout_s=10)
        # Erased while training is away: heard of at the next start. What was known is known still.
        await erase(store, "T2")
        async with served(database_url, store.target, tmp_path) as service:
            assert (await shown(service, 1)).invalidated
            assert (await invalidated(service, 2)).stage == model_pb2.MODEL_STAGE_PRODUCTION
