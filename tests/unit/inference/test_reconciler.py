"""Roll, roll back, failure and restart, on fakes: what serves is never touched by a newcomer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.unit.inference.fakes import FakeExecutor, FakeRegistry, FakeRepository, FakeServer, HandClock, quiet
from tests.unit.inference.graphs import Built, build, forecast_signature

from twinmesh_inference.adapters.memory import MemoryDeploymentStore
from twinmesh_inference.domain.deployments import Deployments
from twinmesh_inference.domain.models import DeploymentState, Endpoint, Pointer
from twinmesh_inference.domain.naming import triton_name
from twinmesh_inference.domain.reconciler import Reconciler
from twinmesh_inference.domain.rollout import Rollout

TENANT = "default"
NAME = triton_name(TENANT, "oil", forecast_signature())


@dataclass
class Bench:
    clock: HandClock = field(default_factory=HandClock)
    registry: FakeRegistry = field(default_factory=FakeRegistry)
    repository: FakeRepository = field(default_factory=FakeRepository)

    def __post_init__(self) -> None:
        self.server = FakeServer(self.repository)
        self.store = MemoryDeploymentStore(self.clock)
        self.executor = FakeExecutor(self._respond)
        self.deployments = Deployments(
            store=self.store, server=self.server, tenants=(TENANT,), max_batch_size=16, poll_s=1, report=quiet
        )
        rollout = Rollout(
            registry=self.registry,
            repository=self.repository,
            server=self.server,
            executor=self.executor,
            store=self.store,
            clock=self.clock,
            max_batch_size=16,
            prove_timeout_s=5,
        )
        self.reconciler = Reconciler(
            registry=self.registry,
            rollout=rollout,
            store=self.store,
            deployments=self.deployments,
            clock=self.clock,
            tenants=(TENANT,),
            holder="me",
            poll_s=1,
            lease_ttl_s=10,
            report=quiet,
        )

    def _respond(self, endpoint: Endpoint, rows: int, inputs: Sequence[bytes]) -> bytes:
        # The trained model's own answers, whatever the file: a build with golden_shift then fails its proof.
        built = next(one for one in self.registry.built.values() if one.version.version == endpoint.version)
        golden = build("x", 1, seed=built.version.version).version.golden
        assert golden is not None
        return golden.quantiles

    async def promote(self, built: Built) -> None:
        self.registry.promote(built)
        await self.reconcile()

    async def reconcile(self) -> None:
        self.clock.jump(1000)
        await self.reconciler.reconcile(TENANT)

    async def pointer(self) -> Pointer | None:
        return next(iter(await self.store.pointers(TENANT)), None)

    def state(self, version: int) -> DeploymentState | None:
        found = self.deployments.catalogue(TENANT).deployments.get(("oil", version))
        return None if found is None else found.state


def oil(version: int, **changes: Any) -> Built:
    return build("oil", version, seed=version, **changes)


async def test_a_promoted_version_is_placed_loaded_proven_and_serves() -> None:
    bench = Bench()
    await bench.promote(oil(1))
    assert await bench.pointer() == Pointer(model_id="oil", serving=1)
    assert bench.state(1) is DeploymentState.READY
    assert bench.server.ready == {NAME: {1}}
    assert bench.executor.calls == [3]


async def test_the_previous_version_stays_loaded_and_a_roll_back_loads_nothing() -> None:
    bench = Bench()
    await bench.promote(oil(1))
    await bench.promote(oil(2))
    assert bench.server.ready == {NAME: {1, 2}}
    proofs = len(bench.executor.calls)
    await bench.promote(oil(1))
    assert await bench.pointer() == Pointer(model_id="oil", serving=1, previous=2)
    assert len(bench.executor.calls) == proofs
    assert bench.server.ready == {NAME: {1, 2}}


async def test_the_third_version_evicts_the_first_and_the_first_can_come_back() -> None:
    bench = Bench()
    for version in (1, 2, 3):
        await bench.promote(oil(version))
    assert bench.server.ready == {NAME: {2, 3}}
    assert bench.state(1) is None
    await bench.promote(oil(1))
    assert await bench.pointer() == Pointer(model_id="oil", serving=1, previous=3)
    assert bench.server.ready == {NAME: {1, 3}}
    assert bench.server.unloaded == []


@pytest.mark.parametrize("fault", ["load", "golden", "file", "signature", "no-golden"])
async def test_a_bad_version_fails_with_words_and_changes_nothing_else(fault: str) -> None:
    bench = Bench()
    await bench.promote(oil(1))
    bad = oil(2, golden_shift=1.0) if fault == "golden" else oil(2)
    match fault:
        case "load":
            bench.server.broken.add(bad.version.artifact_sha256)
        case "signature":
            bad = oil(2, signature=forecast_signature())
            object.__setattr__(bad.version.signature, "quantile_levels", (0.1, 0.4, 0.9))
        case "no-golden":
            object.__setattr__(bad.version, "golden", None)
        case "file":
            bench.repository.damaged = 1
    await bench.promote(bad)
    assert await bench.pointer() == Pointer(model_id="oil", serving=1)
    assert bench.server.ready[NAME] == {1}
    failed = bench.deployments.catalogue(TENANT).deployments["oil", 2]
    assert failed.state is DeploymentState.FAILED
    words = {
        "load": "refused to load",
        "golden": "golden check differs by 1",
        "file": "not the one that was registered",
        "signature": "lack the median",
        "no-golden": "no golden check",
    }
    assert words[fault] in failed.message
    await bench.promote(oil(3))
    assert await bench.pointer() == Pointer(model_id="oil", serving=3, previous=1)
    assert bench.server.unloaded == []


async def test_a_bad_first_version_leaves_nothing_behind() -> None:
    bench = Bench()
    await bench.promote(oil(1, golden_shift=1.0))
    assert await bench.pointer() is None
    assert bench.state(1) is DeploymentState.FAILED
    assert bench.server.ready == {}
    assert bench.repository.files == {}


async def test_a_failed_version_is_tried_again_later_and_later() -> None:
    bench = Bench()
    bench.registry.promote(oil(1, golden_shift=1.0))
    proofs = []
    for _ in range(40):
        bench.clock.jump(1)
        await bench.reconciler.reconcile(TENANT)
        proofs.append(len(bench.executor.calls))
    assert proofs[0] == 1
    assert 3 <= proofs[-1] <= 6


async def test_after_a_restart_of_the_server_the_desired_set_is_asserted_again() -> None:
    bench = Bench()
    await bench.promote(oil(1))
    await bench.promote(oil(2))
    bench.server.up = False
    await bench.reconcile()
    assert bench.state(2) is DeploymentState.LOADING
    bench.server.restart()
    bench.repository.files.clear()
    await bench.reconcile()
    assert bench.server.ready == {NAME: {1, 2}}
    assert bench.state(1) is bench.state(2) is DeploymentState.READY
    assert await bench.pointer() == Pointer(model_id="oil", serving=2, previous=1)


async def test_with_the_registry_away_what_is_loaded_stays_and_is_asserted_from_disk() -> None:
    bench = Bench()
    await bench.promote(oil(1))
    bench.registry.away = True
    bench.server.restart()
    await bench.reconcile()
    assert bench.server.ready == {NAME: {1}}
    assert bench.state(1) is DeploymentState.READY


async def test_with_the_server_away_at_start_a_promotion_is_announced_and_served_when_it_comes() -> None:
    bench = Bench()
    bench.server.up = False
    await bench.promote(oil(1))
    assert bench.state(1) is DeploymentState.LOADING
    assert not bench.deployments.catalogue(TENANT).server_live
    bench.server.up = True
    await bench.reconcile()
    assert await bench.pointer() == Pointer(model_id="oil", serving=1)


async def test_a_new_shape_is_served_beside_the_old_one_and_the_old_one_goes_when_nothing_points_to_it() -> None:
    bench = Bench()
    await bench.promote(oil(1))
    other = forecast_signature()
    longer = build("oil", 2, seed=2, signature=forecast_signature(context=12))
    name = triton_name(TENANT, "oil", longer.version.signature)
    assert other.context_steps == 8
    bench.executor.respond = lambda endpoint, rows, inputs: longer.version.golden.quantiles  # type: ignore[union-attr]
    await bench.promote(longer)
    assert bench.server.ready == {NAME: {1}, name: {2}}
    third = build("oil", 3, seed=3, signature=forecast_signature(context=12))
    bench.executor.respond = lambda endpoint, rows, inputs: third.version.golden.quantiles  # type: ignore[union-attr]
    await bench.promote(third)
    assert bench.server.ready == {name: {2, 3}}
    assert bench.server.unloaded == [NAME]
