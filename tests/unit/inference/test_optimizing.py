"""A decision from a learned plant: the answer is known by hand, since the plant is linear."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.unit.inference.fakes import (
    AT_US,
    FakeExecutor,
    FakeRepository,
    FakeServer,
    FakeTwins,
    FakeWindows,
    quiet,
    transformer,
)
from tests.unit.inference.graphs import STEP_US, Built, build, cooling_weights, dynamics_signature

from twinmesh_core.errors import InvalidArgument, NotFound, Reason
from twinmesh_core.time import US_PER_HOUR, SystemClock
from twinmesh_inference.adapters.memory import MemoryDeploymentStore
from twinmesh_inference.domain.coalescer import Coalescer
from twinmesh_inference.domain.deployments import Deployments
from twinmesh_inference.domain.models import DeploymentState, Endpoint
from twinmesh_inference.domain.optimizing import Decision, OptimizeQuestion, Optimizer
from twinmesh_inference.domain.rollout import deployment_of

TENANT = "default"
STEP_HOURS = STEP_US / US_PER_HOUR


def plant() -> Built:
    """Warms 0.5 K a step, each stage takes 1 K a step: from 80 the 0.9 quantile is 81.5, 82, .. 85."""
    signature = dynamics_signature()
    return build("plant", 1, signature=signature, weights=cooling_weights(signature))


@dataclass
class Asked:
    """Whom a decision asked."""

    windows: FakeWindows = field(default_factory=lambda: FakeWindows(values=np.full((8, 3), 80.0)))
    twins: FakeTwins = field(default_factory=lambda: FakeTwins({"T1": transformer()}))


async def decide(asking: Asked | None = None, **question: object) -> tuple[Decision, list[int]]:
    built, clock, asking = plant(), SystemClock(), asking or Asked()
    signature = built.version.signature

    def respond(endpoint: Endpoint, rows: int, inputs: Sequence[bytes]) -> bytes:
        tensors = {
            one.name: np.frombuffer(content, np.float32).reshape(rows, *one.dims)
            for one, content in zip(signature.inputs(), inputs, strict=True)
        }
        return built.run(**tensors).tobytes()

    store = MemoryDeploymentStore(clock)
    await store.put_deployment(TENANT, deployment_of(built.version, DeploymentState.READY, ready_time_us=1))
    await store.move_pointer(TENANT, "plant", 1)
    deployments = Deployments(
        store=store, server=FakeServer(FakeRepository()), tenants=(TENANT,), max_batch_size=16, poll_s=1, report=quiet
    )
    await deployments.refresh(TENANT)
    executor = FakeExecutor(respond)
    coalescer = Coalescer(executor, clock)
    task = asyncio.create_task(coalescer.run())
    await asyncio.sleep(0)
    optimizer = Optimizer(
        deployments=deployments,
        coalescer=coalescer,
        windows=asking.windows,
        twins=asking.twins,
        infer_timeout_s=5,
    )
    asked = {
        "twin_id": "T1",
        "control": "stage",
        "values": (0.0, 1.0, 2.0),
        "cost_per_hour": (0.0, 1.0, 2.0),
        "limit": 83.0,
        **question,
    }
    try:
        return await optimizer.optimize(TENANT, OptimizeQuestion(**asked)), executor.calls  # type: ignore[arg-type]
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_held_value_is_the_cheapest_that_keeps_the_limit() -> None:
    decision, calls = await decide()
    assert decision.candidate_count == 3
    assert calls == [3]
    assert decision.best.steps == ((AT_US, 1.0),)
    assert decision.best.cost == pytest.approx(8 * STEP_HOURS)
    assert decision.limit_binding
    assert not decision.infeasible
    assert [one.feasible for one in decision.constant_plans] == [False, True, True]
    assert decision.constant_plans[0].peak == pytest.approx(84.0)
    assert decision.constant_plans[0].peak_at_limit_quantile == pytest.approx(85.0)
    assert decision.as_of.offset == 42


async def test_a_switch_saves_what_holding_wastes() -> None:
    decision, calls = await decide(max_switches=1, min_dwell_us=STEP_US)
    # One stage for two steps takes 2 K off the end, 85 to 83, wherever they lie; with one change only the start or
    # the end is possible, and late enough means: before the last two steps, when 83 would be passed.
    assert decision.best.control_cost == pytest.approx(2 * STEP_HOURS)
    assert decision.best.peak_at_limit_quantile <= 83.0
    assert decision.candidate_count == 3 + 3 * 2 * 7
    assert sum(calls) == decision.candidate_count
    assert max(calls) <= 16


async def test_a_switch_that_costs_more_than_it_saves_is_not_made() -> None:
    decision, _ = await decide(max_switches=1, switch_cost=10.0)
    assert len(decision.best.steps) == 1


async def test_a_limit_out_of_reach_gives_the_lowest_peak_at_the_least_cost_and_says_so() -> None:
    decision, _ = await decide(limit=60.0, max_switches=2)
    coolest = decision.constant_plans[2]
    assert decision.infeasible
    assert not decision.best.feasible
    assert decision.best.steps[0] == (AT_US, 2.0)
    assert decision.best.peak_at_limit_quantile == coolest.peak_at_limit_quantile
    assert decision.best.cost < coolest.cost


async def test_a_soft_target_buys_cooling_that_the_limit_does_not_need() -> None:
    decision, _ = await decide(limit=100.0, target=70.0, target_weight=100.0)
    assert decision.best.steps[0][1] == 2.0
    assert not decision.limit_binding


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ({"values": (0.0, 1.0, 3.5)}, "options[2].value"),
        ({"limit_quantile": 0.95}, "limit_quantile"),
        ({"min_dwell_us": 9 * STEP_US}, "min_dwell"),
        ({"control": "load", "model_id": "plant"}, "control"),
    ],
)
async def test_what_does_not_fit_the_model_is_named(question: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await decide(None, **question)
    assert refused.value.field_violations[0].field == field


async def test_an_unknown_control_lists_the_channels() -> None:
    with pytest.raises(NotFound) as refused:
        await decide(control="fan")
    assert refused.value.reason == Reason.CHANNEL_NOT_FOUND


async def test_time_and_offsets_are_passed_to_storage_and_state_sync() -> None:
    asking = Asked()
    await decide(asking, at_unix_us=AT_US - STEP_US, min_offset=3, as_of_offset=7, incarnation="inc")
    offsets = {"min_offset": 3, "as_of_offset": 7, "incarnation": "inc"}
    assert asking.windows.asked == [{"at": AT_US - STEP_US, **offsets}]
    assert asking.twins.asked == [(3, "inc")]
