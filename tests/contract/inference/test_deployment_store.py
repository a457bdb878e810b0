"""The laws of a deployment store, held by the one in memory and the one in PostgreSQL alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from tests.unit.inference.graphs import build, dynamics_signature

from twinmesh_core.time import SystemClock
from twinmesh_inference.adapters.memory import MemoryDeploymentStore
from twinmesh_inference.adapters.postgres import PostgresDeploymentStore
from twinmesh_inference.domain.models import Deployment, DeploymentState, Pointer
from twinmesh_inference.domain.ports import DeploymentStore
from twinmesh_inference.domain.rollout import deployment_of
from twinmesh_runtime.postgres import migrate, open_pool


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[DeploymentStore]:
    if request.param == "memory":
        yield MemoryDeploymentStore(SystemClock())
        return
    url = request.getfixturevalue("database_url")
    await migrate(url, "inference", "twinmesh_inference")
    async with open_pool(url, min_size=1, max_size=4, schema="inference", autocommit=True) as pool:
        yield PostgresDeploymentStore(pool)


def deployment(model_id: str, version: int, state: DeploymentState = DeploymentState.READY) -> Deployment:
    built = build(model_id, version, signature=dynamics_signature(), twin_ids=("T1", "T2"))
    return deployment_of(built.version, state, message="words é", ready_time_us=1_700_000_000_000_001)


async def test_a_deployment_comes_back_as_it_was_put(store: DeploymentStore) -> None:
    one = deployment("oil", 1)
    await store.put_deployment("default", one)
    assert await store.deployments("default") == (one,)
    failed = replace(one, state=DeploymentState.FAILED, message="", ready_time_us=0)
    await store.put_deployment("default", failed)
    assert await store.deployments("default") == (failed,)


async def test_lists_are_by_model_newest_version_first(store: DeploymentStore) -> None:
    for model_id, version in (("b", 1), ("a-b", 1), ("a", 1), ("a.b", 2), ("a", 10), ("a", 9)):
        await store.put_deployment("default", deployment(model_id, version))
    found = [(one.model_id, one.version) for one in await store.deployments("default")]
    assert found == [("a", 10), ("a", 9), ("a", 1), ("a-b", 1), ("a.b", 2), ("b", 1)]


async def test_removing_what_is_not_there_is_no_error(store: DeploymentStore) -> None:
    await store.put_deployment("default", deployment("a", 1))
    await store.remove_deployment("default", "a", 2)
    await store.remove_deployment("default", "a", 1)
    await store.remove_deployment("default", "a", 1)
    assert await store.deployments("default") == ()


async def test_a_pointer_remembers_where_it_came_from(store: DeploymentStore) -> None:
    assert await store.move_pointer("default", "a", 1) == Pointer(model_id="a", serving=1)
    assert await store.move_pointer("default", "a", 1) == Pointer(model_id="a", serving=1)
    assert await store.move_pointer("default", "a", 2) == Pointer(model_id="a", serving=2, previous=1)
    assert await store.move_pointer("default", "a", 2) == Pointer(model_id="a", serving=2, previous=1)
    assert await store.move_pointer("default", "a", 1) == Pointer(model_id="a", serving=1, previous=2)
    assert await store.pointers("default") == (Pointer(model_id="a", serving=1, previous=2),)


async def test_tenants_do_not_see_each_other(store: DeploymentStore) -> None:
    await store.put_deployment("one", deployment("a", 1))
    await store.move_pointer("one", "a", 1)
    assert await store.deployments("two") == ()
    assert await store.pointers("two") == ()
    await store.remove_deployment("two", "a", 1)
    assert len(await store.deployments("one")) == 1
    assert await store.acquire_lease("one", "me", 10)
    assert await store.acquire_lease("two", "you", 10)


async def test_of_many_who_want_the_lease_one_gets_it(store: DeploymentStore) -> None:
    got = await asyncio.gather(*(store.acquire_lease("default", f"replica-{n}", 10) for n in range(8)))
    assert sum(got) == 1
    holder = f"replica-{got.index(True)}"
    assert await store.acquire_lease("default", holder, 10)
    other = "replica-other"
    assert not await store.acquire_lease("default", other, 10)
    await store.release_lease("default", other)
    assert not await store.acquire_lease("default", other, 10)
    await store.release_lease("default", holder)
    assert await store.acquire_lease("default", other, 10)


async def test_a_lease_that_is_not_renewed_passes_on(store: DeploymentStore) -> None:
    assert await store.acquire_lease("default", "gone", 0.05)
    await asyncio.sleep(0.1)
    assert await store.acquire_lease("default", "next", 10)
    assert not await store.acquire_lease("default", "gone", 10)
