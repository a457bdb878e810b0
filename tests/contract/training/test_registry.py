"""What every registry promises, held by the one in memory and by the one in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from twinmesh_core.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Reason
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_training.adapters.memory import MemoryRegistry
from twinmesh_training.adapters.postgres import PostgresRegistry
from twinmesh_training.domain.ports import Claim, Page, Registry
from twinmesh_training.domain.values import (
    ErasedTwin,
    Evaluation,
    Family,
    Golden,
    Lineage,
    LogPosition,
    Metric,
    Run,
    RunState,
    Signature,
    Stage,
    Task,
    TrainingSpec,
    Version,
)

LEASE_S = 30.0
Store = MemoryRegistry | PostgresRegistry


@pytest.fixture(params=["memory", "postgres"])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryRegistry()
        return
    url = request.getfixturevalue("database_url")
    await migrate(url, "training", "twinmesh_training")
    async with open_pool(url, min_size=1, max_size=4, schema="training") as pool:
        yield PostgresRegistry(pool)


def spec(model_id: str = "m", task: Task = Task.FORECAST) -> TrainingSpec:
    return TrainingSpec(
        model_id=model_id,
        task=task,
        twin_ids=("T1",),
        target="hot_spot",
        inputs=("load",),
        controls=("stage",) if task is Task.DYNAMICS else (),
        step_us=600_000_000,
        context_steps=4,
        horizon_steps=2,
        start_time_us=5,
    )


def run(run_id: str = "run-1", model_id: str = "m", task: Task = Task.FORECAST) -> Run:
    return Run(run_id=run_id, spec=spec(model_id, task))


def version(
    model_id: str = "m", *, passed: bool = True, family: Family = Family.RIDGE, task: Task = Task.FORECAST
) -> Version:
    return Version(
        model_id=model_id,
        task=task,
        family=family,
        signature=Signature(
            channels=("hot_spot", "load"),
            units=("Cel", "1"),
            target="hot_spot",
            controls=(),
            step_us=600_000_000,
            context_steps=4,
            horizon_steps=2,
            quantile_levels=(0.1, 0.5, 0.9),
        ),
        metrics=(Metric(name="mae", value=1.25), Metric(name="mae", value=2.5, scope="step=2")),
        lineage=Lineage(
            run_id="run-1",
            twin_ids=("T1",),
            as_of_offset=9,
            incarnation="i",
            start_time_us=1,
            end_time_us=3,
            holdout_start_time_us=2,
            seed=1,
            code_version="0",
            dataset_sha256="d",
        ),
        artifact_sha256="a" * 64,
        artifact_bytes=10,
        passed_gate=passed,
        golden=Golden(rows=1, window=b"w", calendar=b"c", future=b"", quantiles=b"q", tolerance=0.5),
    )


async def claimed(registry: Registry, made: Run, owner: str = "w1") -> Claim:
    await registry.create_run("default", made, "", "")
    claim = await registry.claim(owner, LEASE_S)
    assert claim is not None
    assert claim.run.run_id == made.run_id
    return claim


async def finished(registry: Registry, made: Run, *versions: Version, promote: int = 0) -> Run:
    claim = await claimed(registry, made)
    evaluations = tuple(
        Evaluation(family=v.family, metrics=v.metrics, origin_count=3, model_version=i + 1)
        for i, v in enumerate(versions)
    )
    done = replace(claim.run, state=RunState.SUCCEEDED, progress=1.0, phase="done", evaluations=evaluations)
    ended = await registry.finish(claim, "w1", done, versions, promote)
    assert ended is not None
    return ended


async def test_a_run_is_queued_once_per_request_id(registry: Registry) -> None:
    first = await registry.create_run("default", run("run-1"), "r", "digest")
    again = await registry.create_run("default", run("run-2"), "r", "digest")
    assert (first.run_id, first.state, first.phase) == ("run-1", RunState.QUEUED, "queued")
    assert again == first
    with pytest.raises(InvalidArgument) as error:
        await registry.create_run("default", run("run-3"), "r", "other")
    assert error.value.reason == Reason.REQUEST_ID_REUSED
    other_tenant = await registry.create_run("other", run("run-1"), "r", "other")
    assert other_tenant.run_id == "run-1"


async def test_a_run_comes_back_as_it_went_in(registry: Registry) -> None:
    made = await registry.create_run("default", run(), "", "")
    assert (await registry.run("default", "run-1")) == made
    assert made.spec == spec()
    assert made.create_time_us > 0
    with pytest.raises(NotFound) as error:
        await registry.run("other", "run-1")
    assert error.value.reason == Reason.RUN_NOT_FOUND


async def test_runs_are_listed_newest_first_by_page_and_model(registry: Registry) -> None:
    for index in range(5):
        await registry.create_run("default", run(f"run-{index}", "even" if index % 2 == 0 else "odd"), "", "")
    await registry.create_run("other", run("run-x"), "", "")
    first = await registry.runs("default", "", Page(size=2))
    await registry.create_run("default", run("run-late"), "", "")
    second = await registry.runs("default", "", Page(size=9, after=first[-1].number))
    assert [r.run_id for r in (*first, *second)] == ["run-4", "run-3", "run-2", "run-1", "run-0"]
    assert [r.run_id for r in await registry.runs("default", "odd", Page(size=9))] == ["run-3", "run-1"]


async def test_a_claimed_run_is_claimed_by_nobody_else(registry: Registry) -> None:
    await claimed(registry, run())
    assert await registry.claim("w2", LEASE_S) is None


async def test_many_workers_take_each_run_once(registry: Registry) -> None:
    for index in range(6):
        await registry.create_run("default", run(f"run-{index}"), "", "")
    claims = await asyncio.gather(*(registry.claim(f"w{i}", LEASE_S) for i in range(9)))
    taken = [c.run.run_id for c in claims if c is not None]
    while (late := await registry.claim("w-late", LEASE_S)) is not None:
        taken.append(late.run.run_id)
    assert sorted(taken) == [f"run-{i}" for i in range(6)]


async def test_a_beat_shows_progress_and_raises_the_revision_only_for_changes(registry: Registry) -> None:
    claim = await claimed(registry, run())
    beat = await registry.beat(claim, "w1", LEASE_S, 0.5, "training", 7)
    assert (beat.held, beat.cancel) == (True, False)
    seen = await registry.run("default", "run-1")
    assert (seen.progress, seen.phase, seen.train_window_count) == (0.5, "training", 7)
    await registry.beat(claim, "w1", LEASE_S, 0.5, "training", 7)
    assert (await registry.run("default", "run-1")).revision == seen.revision


async def test_a_lost_run_is_taken_once_more_and_then_fails_with_a_remedy(registry: Registry) -> None:
    first = await claimed(registry, run(), "w1")
    assert await registry.give_back("w1") == 1
    second = await registry.claim("w2", LEASE_S)
    assert second is not None
    assert second.attempt == 2
    assert not (await registry.beat(first, "w1", LEASE_S, 0.9, "late", 1)).held
    assert await registry.finish(first, "w1", replace(first.run, state=RunState.SUCCEEDED), (version(),), 1) is None
    await registry.give_back("w2")
    assert await registry.claim("w3", LEASE_S) is None
    ended = await registry.run("default", "run-1")
    assert (ended.state, ended.error_reason, ended.phase) == (RunState.FAILED, "INTERNAL", "failed")
    assert "start" in ended.error_message
    assert ended.end_time_us > 0
    assert await registry.models("default", 10, "") == ()


async def test_a_lease_ends_by_itself(registry: Registry) -> None:
    await registry.create_run("default", run(), "", "")
    assert await registry.claim("w1", 0.05) is not None
    await asyncio.sleep(0.15)
    second = await registry.claim("w2", LEASE_S)
    assert second is not None
    assert second.attempt == 2


async def test_a_run_put_back_does_not_count_as_an_attempt(registry: Registry) -> None:
    claim = await claimed(registry, run())
    await registry.requeue(claim, "w1")
    assert (await registry.run("default", "run-1")).state is RunState.QUEUED
    again = await registry.claim("w2", LEASE_S)
    assert again is not None
    assert again.attempt == 1


async def test_cancelling_a_queued_run_ends_it(registry: Registry) -> None:
    await registry.create_run("default", run(), "", "")
    assert (await registry.cancel_run("default", "run-1")).state is RunState.CANCELLED
    assert await registry.claim("w1", LEASE_S) is None
    with pytest.raises(FailedPrecondition) as error:
        await registry.cancel_run("default", "run-1")
    assert error.value.reason == Reason.RUN_ENDED
    with pytest.raises(NotFound):
        await registry.cancel_run("default", "run-9")


async def test_a_running_run_hears_of_its_cancellation_and_registers_nothing(registry: Registry) -> None:
    claim = await claimed(registry, run())
    asked = await registry.cancel_run("default", "run-1")
    assert (asked.state, asked.phase) == (RunState.RUNNING, "cancelling")
    assert (await registry.beat(claim, "w1", LEASE_S, 0.5, "training", 0)).cancel
    done = replace(claim.run, state=RunState.SUCCEEDED, phase="done")
    ended = await registry.finish(claim, "w1", done, (version(),), 1)
    assert ended is not None
    assert (ended.state, ended.promoted_version) == (RunState.CANCELLED, 0)
    assert await registry.models("default", 10, "") == ()


async def test_a_cancelled_run_of_a_dead_worker_is_cancelled(registry: Registry) -> None:
    await claimed(registry, run())
    await registry.cancel_run("default", "run-1")
    await registry.give_back("w1")
    assert await registry.claim("w2", LEASE_S) is None
    assert (await registry.run("default", "run-1")).state is RunState.CANCELLED


async def test_versions_are_dense_and_one_is_in_production(registry: Registry) -> None:
    first = await finished(registry, run("run-1"), version(), version(family=Family.MLP), promote=2)
    assert first.promoted_version == 2
    assert [e.model_version for e in first.evaluations] == [1, 2]
    second = await finished(registry, run("run-2"), version(), promote=1)
    assert second.promoted_version == 3
    listed = await registry.versions("default", "m", None, Page(size=10), golden=True)
    assert [(v.version, v.stage) for _, v in listed] == [
        (3, Stage.PRODUCTION),
        (2, Stage.RETIRED),
        (1, Stage.CANDIDATE),
    ]
    assert replace(listed[-1][1], version=0, create_time_us=0) == version()
    (model,) = await registry.models("default", 10, "")
    assert (model.production_version, model.latest_version) == (3, 3)


async def test_a_run_without_promotion_promotes_nothing(registry: Registry) -> None:
    await finished(registry, run(), version())
    with pytest.raises(NotFound) as error:
        await registry.version("default", "m", 0)
    assert error.value.reason == Reason.MODEL_NOT_FOUND
    assert (await registry.version("default", "m", 1)).stage is Stage.CANDIDATE
    assert await registry.versions("default", "", Stage.PRODUCTION, Page(size=10), golden=False) == ()


async def test_promotion_respects_the_gate_unless_forced(registry: Registry) -> None:
    await finished(registry, run(), version(passed=False), version(), promote=2)
    with pytest.raises(FailedPrecondition):
        await registry.promote("default", "m", 1, force=False)
    assert (await registry.version("default", "m", 0)).version == 2
    forced = await registry.promote("default", "m", 1, force=True)
    assert (forced.version, forced.stage) == (1, Stage.PRODUCTION)
    assert (await registry.promote("default", "m", 1, force=False)) == forced
    back = await registry.promote("default", "m", 2, force=False)
    assert back.stage is Stage.PRODUCTION
    assert (await registry.version("default", "m", 1)).stage is Stage.RETIRED
    for missing in (0, 9):
        with pytest.raises(NotFound):
            await registry.promote("default", "m", missing, force=True)


async def test_versions_are_paged_and_belong_to_their_tenant(registry: Registry) -> None:
    await finished(registry, run("run-1", "a"), version("a"), version("a"))
    await finished(registry, run("run-2", "b"), version("b"))
    first = await registry.versions("default", "", None, Page(size=2), golden=False)
    second = await registry.versions("default", "", None, Page(size=2, after=first[-1][0]), golden=False)
    assert [(v.model_id, v.version) for _, v in (*first, *second)] == [("b", 1), ("a", 2), ("a", 1)]
    assert first[0][1].golden is None
    assert await registry.versions("other", "", None, Page(size=2), golden=False) == ()
    assert [m.model_id for m in await registry.models("default", 1, "")] == ["a"]
    assert [m.model_id for m in await registry.models("default", 9, "a")] == ["b"]
    assert await registry.models("other", 9, "") == ()


async def test_a_model_answers_one_task(registry: Registry) -> None:
    await finished(registry, run(), version())
    with pytest.raises(AlreadyExists):
        await registry.create_run("default", run("run-2", "m", Task.DYNAMICS), "", "")


async def test_watched_runs_are_read_together(registry: Registry) -> None:
    await registry.create_run("default", run("run-1"), "", "")
    await registry.create_run("other", run("run-1"), "", "")
    found = await registry.changed_runs((("default", "run-1"), ("other", "run-1"), ("default", "run-9")))
    assert set(found) == {("default", "run-1"), ("other", "run-1")}


def position(offset: int, incarnation: str = "i") -> LogPosition:
    return LogPosition(incarnation=incarnation, offset=offset)


def erased(offset: int, twin_id: str = "T1", tenant: str = "default") -> ErasedTwin:
    return ErasedTwin(tenant=tenant, twin_id=twin_id, offset=offset)


async def test_what_learned_from_a_twin_before_it_was_erased_is_invalidated(registry: Store) -> None:
    await finished(registry, run(), version(), version(), promote=1)
    # The versions' data are as of offset 9: an older erasure, another twin's and another tenant's do not concern them.
    await registry.note([erased(8), erased(12, "T2"), erased(12, tenant="other")], position(12))
    assert (await registry.version("default", "m", 2)).erased_twin_ids == ()
    assert (await registry.run("default", "run-1")).erased_twin_ids == ()
    for _ in range(2):  # told again it changes nothing
        await registry.note([erased(20)], position(20))
    for number in (1, 2):
        assert (await registry.version("default", "m", number)).erased_twin_ids == ("T1",)
    listed = await registry.versions("default", "m", None, Page(size=9), golden=True)
    assert [found.erased_twin_ids for _, found in listed] == [("T1",), ("T1",)]
    assert (await registry.run("default", "run-1")).erased_twin_ids == ("T1",)
    assert [r.erased_twin_ids for r in await registry.runs("default", "m", Page(size=9))] == [("T1",)]
    # Windows of the data go, but for the version that serves, which needs them to be loaded again.
    assert [found.golden is not None for _, found in listed] == [False, True]
    assert await registry.followed() == position(20)


async def test_an_invalidated_version_is_not_promoted_even_by_force(registry: Store) -> None:
    await finished(registry, run(), version(), version(passed=False), promote=1)
    await registry.note([erased(20)], position(20))
    with pytest.raises(FailedPrecondition) as error:
        await registry.promote("default", "m", 2, force=True)
    assert (error.value.reason, error.value.metadata["twin_ids"]) == (Reason.DATA_ERASED, "T1")
    assert (await registry.promote("default", "m", 1, force=False)).stage is Stage.PRODUCTION  # it serves already
    # One that learned afterwards takes over; with that the windows of the old one go too.
    fresh = replace(version(), lineage=replace(version().lineage, as_of_offset=21, run_id="run-2"))
    await finished(registry, run("run-2"), fresh, promote=1)
    assert (await registry.version("default", "m", 3)).erased_twin_ids == ()
    old = await registry.version("default", "m", 1)
    assert (old.stage, old.golden) == (Stage.RETIRED, None)


async def test_a_run_that_had_read_a_twin_before_its_erasure_registers_invalidated_versions(registry: Store) -> None:
    await registry.note([erased(20)], position(20))
    ended = await finished(registry, run(), version(), promote=1)
    assert ended.promoted_version == 0
    made = await registry.version("default", "m", 1)
    assert (made.stage, made.erased_twin_ids, made.golden) == (Stage.CANDIDATE, ("T1",), None)


async def test_an_erasure_of_another_incarnation_counts_as_newer(registry: Store) -> None:
    await finished(registry, run(), version())
    await registry.note([erased(3)], position(3, "after a restore"))
    assert (await registry.version("default", "m", 1)).erased_twin_ids == ("T1",)
