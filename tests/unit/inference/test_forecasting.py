"""A forecast from a window: what is refused, what is cut, what is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.unit.inference.fakes import (
    AT_US,
    FakeExecutor,
    FakeRecorder,
    FakeRepository,
    FakeServer,
    FakeTwins,
    FakeWindows,
    HandClock,
    quiet,
    transformer,
)
from tests.unit.inference.graphs import STEP_US, build

from twinmesh_core.calendar import calendar_features
from twinmesh_core.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, Reason, Unavailable
from twinmesh_core.time import US_PER_S
from twinmesh_inference.adapters.memory import MemoryDeploymentStore
from twinmesh_inference.domain.coalescer import Coalescer
from twinmesh_inference.domain.deployments import Deployments
from twinmesh_inference.domain.forecasting import Forecast, Forecaster, ForecastQuestion
from twinmesh_inference.domain.models import DeploymentState, Endpoint
from twinmesh_inference.domain.rollout import deployment_of

TENANT = "default"


@dataclass
class Bench:
    """A forecaster on fakes; `answer` is float32 [6, 3], what the graph gives."""

    answer: np.ndarray
    windows: FakeWindows = field(default_factory=FakeWindows)
    recorder: FakeRecorder = field(default_factory=FakeRecorder)
    twins: FakeTwins = field(default_factory=lambda: FakeTwins({"T1": transformer(), "T2": transformer("T2")}))
    clock: HandClock = field(default_factory=HandClock)
    seen: list[Sequence[bytes]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    store: MemoryDeploymentStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryDeploymentStore(self.clock)

    def respond(self, endpoint: Endpoint, rows: int, inputs: Sequence[bytes]) -> bytes:
        if endpoint.version in self.gone:
            raise Unavailable("The model is being loaded.", reason=Reason.MODEL_NOT_READY)
        self.seen.append(inputs)
        return self.answer.astype("<f4").tobytes() * rows

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Forecaster]:
        store = self.store
        for model_id in ("oil", "pressure-of-oil"):
            version = build(model_id, 1, twin_ids=("T1",) if model_id == "oil" else ("T9",)).version
            await store.put_deployment(TENANT, deployment_of(version, DeploymentState.READY, ready_time_us=1))
            await store.move_pointer(TENANT, model_id, 1)
        server = FakeServer(FakeRepository())
        deployments = Deployments(
            store=store, server=server, tenants=(TENANT,), max_batch_size=16, poll_s=1, report=quiet
        )
        await deployments.refresh(TENANT)
        coalescer = Coalescer(FakeExecutor(self.respond), self.clock)
        task = asyncio.create_task(coalescer.run())
        await asyncio.sleep(0)
        try:
            yield Forecaster(
                deployments=deployments,
                coalescer=coalescer,
                windows=self.windows,
                twins=self.twins,
                recorder=self.recorder,
                clock=self.clock,
                infer_timeout_s=5,
            )
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def ask(self, **question: object) -> Forecast:
        async with self.running() as forecaster:
            return await forecaster.forecast(TENANT, ForecastQuestion(**{"twin_id": "T1", **question}))  # type: ignore[arg-type]


def steady(median: float = 80.0) -> np.ndarray:
    """Quantiles that rise by 2 a step: median 80, 82, .. 90."""
    steps = median + 2.0 * np.arange(6)
    return np.stack((steps - 1, steps, steps + 1), axis=1)


async def test_the_graph_sees_the_window_with_its_gaps_and_the_local_calendar() -> None:
    values = np.arange(16.0).reshape(8, 2)
    values[3, 1] = np.nan
    bench = Bench(steady(), windows=FakeWindows(values=values))
    found = await bench.ask(channel="oil_temp")
    window, calendar = bench.seen[0]
    np.testing.assert_array_equal(np.frombuffer(window, "<f4").reshape(8, 2), values.astype(np.float32))
    expected = calendar_features(np.array([AT_US]), "Europe/Berlin")
    np.testing.assert_array_equal(np.frombuffer(calendar, "<f4"), expected[0])
    assert found.input_coverage == pytest.approx(15 / 16)
    assert found.prediction.model_id == "oil"
    assert found.prediction.at_unix_us == AT_US
    assert not bench.recorder.recorded
    assert not found.recorded


async def test_horizon_and_levels_are_cut_and_validity_follows() -> None:
    found = await Bench(steady()).ask(
        channel="oil_temp", horizon_us=2 * STEP_US + 1, quantile_levels=(0.9, 0.1), record=True
    )
    assert found.prediction.quantile_levels == (0.1, 0.9)
    np.testing.assert_array_equal(found.prediction.values, [[79, 81], [81, 83], [83, 85]])
    assert found.prediction.valid_until_unix_us == AT_US + 3 * STEP_US
    assert found.recorded


async def test_crossed_quantiles_are_put_in_order() -> None:
    found = await Bench(steady()[:, ::-1]).ask(channel="oil_temp")
    assert (np.diff(found.prediction.values, axis=1) >= 0).all()


async def test_the_limit_crossing_is_the_first_step_above_it() -> None:
    bench = Bench(steady(), twins=FakeTwins({"T1": transformer(upper_limit=85.0)}))
    found = await bench.ask(channel="oil_temp", quantile_levels=(0.9,))
    assert found.upper_limit == 85.0
    assert found.limit_crossing_unix_us == AT_US + 3 * STEP_US
    assert (await Bench(steady(70)).ask(channel="oil_temp")).limit_crossing_unix_us is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_a_value_that_is_no_number_is_a_failure_and_never_recorded(bad: float) -> None:
    answer = steady()
    answer[5, 2] = bad
    bench = Bench(answer)
    with pytest.raises(Internal, match="not a finite number"):
        await bench.ask(channel="oil_temp", record=True, horizon_us=STEP_US)
    assert not bench.recorder.recorded


async def test_a_window_without_enough_of_the_target_is_refused_with_the_counts() -> None:
    values = np.ones((8, 2))
    values[:5, 0] = np.nan
    bench = Bench(steady(), windows=FakeWindows(values=values))
    with pytest.raises(FailedPrecondition) as refused:
        await bench.ask(channel="oil_temp")
    assert refused.value.reason == Reason.NOT_ENOUGH_HISTORY
    assert dict(refused.value.metadata) == {"needed": "4", "available": "3"}
    assert not bench.seen
    values[4, 0] = 1.0
    await bench.ask(channel="oil_temp")


async def test_inputs_older_than_allowed_are_refused() -> None:
    values = np.ones((8, 2))
    values[6:] = np.nan
    bench = Bench(steady(), windows=FakeWindows(values=values), clock=HandClock(AT_US))
    await bench.ask(channel="oil_temp", max_staleness_us=2 * STEP_US)
    with pytest.raises(FailedPrecondition, match="600 s old") as refused:
        await bench.ask(channel="oil_temp", max_staleness_us=2 * STEP_US - US_PER_S)
    assert refused.value.reason == Reason.NOT_ENOUGH_HISTORY


async def test_another_unit_than_the_learned_one_is_refused() -> None:
    bench = Bench(steady(), windows=FakeWindows(units=("K", "1")))
    with pytest.raises(FailedPrecondition) as refused:
        await bench.ask(channel="oil_temp")
    assert refused.value.reason == Reason.INCOMPATIBLE_UNIT


async def test_time_and_offsets_are_passed_to_storage() -> None:
    bench = Bench(steady())
    offsets = {"min_offset": 3, "as_of_offset": 7, "incarnation": "inc"}
    found = await bench.ask(channel="oil_temp", at_unix_us=AT_US - STEP_US, **offsets)
    assert bench.windows.asked == [{"at": AT_US - STEP_US, **offsets}]
    assert found.prediction.input_offset == found.as_of.offset == 7


@pytest.mark.parametrize(
    ("question", "field"),
    [
        ({"channel": "load", "model_id": "oil"}, "channel"),
        ({"channel": "oil_temp", "horizon_us": 7 * STEP_US}, "horizon"),
        ({"channel": "oil_temp", "horizon_us": STEP_US - 1}, "horizon"),
        ({"channel": "oil_temp", "quantile_levels": (0.5, 0.7)}, "quantile_levels"),
    ],
)
async def test_what_does_not_fit_the_model_is_named(question: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await Bench(steady()).ask(**question)
    assert refused.value.field_violations[0].field == field


async def test_an_unknown_twin_and_an_unknown_channel_are_told_apart() -> None:
    with pytest.raises(NotFound) as no_twin:
        await Bench(steady()).ask(twin_id="T7", channel="oil_temp")
    assert no_twin.value.reason == Reason.TWIN_NOT_FOUND
    with pytest.raises(NotFound) as no_channel:
        await Bench(steady()).ask(channel="pressure")
    assert no_channel.value.reason == Reason.CHANNEL_NOT_FOUND
    assert no_channel.value.metadata["channels"] == "load, oil_temp, stage"


async def test_a_call_follows_a_roll_that_another_replica_made_meanwhile() -> None:
    bench = Bench(steady(), gone={1})
    async with bench.running() as forecaster:
        with pytest.raises(Unavailable):
            await forecaster.forecast(TENANT, ForecastQuestion(twin_id="T1", model_id="oil"))
        second = deployment_of(build("oil", 2).version, DeploymentState.READY, ready_time_us=2)
        await bench.store.put_deployment(TENANT, second)
        await bench.store.move_pointer(TENANT, "oil", 2)
        found = await forecaster.forecast(TENANT, ForecastQuestion(twin_id="T1", model_id="oil"))
    assert found.prediction.model_version == 2


async def test_a_channel_never_written_is_too_little_history_and_one_the_type_lacks_is_unknown() -> None:
    bench = Bench(steady())
    bench.windows.failure = NotFound("nobody has it", reason=Reason.CHANNEL_NOT_FOUND)
    with pytest.raises(FailedPrecondition) as empty:
        await bench.ask(channel="oil_temp")
    assert empty.value.reason == Reason.NOT_ENOUGH_HISTORY
    assert dict(empty.value.metadata) == {"needed": "4", "available": "0"}
    del bench.twins.twins["T2"].channels["load"]
    with pytest.raises(NotFound, match="needs 'load'") as lacking:
        await bench.ask(twin_id="T2", model_id="oil")
    assert lacking.value.reason == Reason.CHANNEL_NOT_FOUND
