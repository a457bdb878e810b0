"""Conditional writes: of any number of racers one wins, and the others learn what they met."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.statesync.worlds import T0, S, World, prediction

from twinmesh_core.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound, Reason
from twinmesh_core.registry_fold import Outcome
from twinmesh_statesync.domain.conditions import ConditionFacet as F
from twinmesh_statesync.domain.conditions import ConditionOperator as Op
from twinmesh_statesync.domain.conditions import StateCondition
from twinmesh_statesync.domain.entries import QueueCommand, RecordPrediction, SetConnectivity, SetDesired
from twinmesh_statesync.domain.events import Connectivity


def when(facet: F, operator: Op, channel: str = "target", value: Any = None, unit: str = "") -> StateCondition:
    return StateCondition(facet=facet, operator=operator, channel=channel, value=value, unit=unit)


def verdict(world: World, *conditions: StateCondition) -> Any:
    folded = world.do(SetDesired(twin_id="a", values={"stage": 1}, conditions=conditions))
    assert folded.verdict is not None
    return folded.verdict


def holds(world: World, *conditions: StateCondition) -> bool:
    found = verdict(world, *conditions)
    if found.error is not None:
        assert found.error.reason == Reason.CONDITION_NOT_MET, found.error
    return found.outcome is Outcome.ACCEPTED


def test_comparisons_of_what_is_reported_and_desired() -> None:
    world = World("a")
    assert holds(world, when(F.REPORTED, Op.ABSENT), when(F.DESIRED, Op.ABSENT), when(F.DELTA, Op.ABSENT))
    assert not holds(world, when(F.REPORTED, Op.NOT_EQUAL, value=1.0)), "what is absent meets no comparison"
    world.report("a", "target", T0, 40.0)
    world.report("a", "speed", T0, 40.2)
    for operator, value, expected in (
        (Op.EQUAL, 40.0, True),
        (Op.EQUAL, 40.1, False),
        (Op.NOT_EQUAL, 40.1, True),
        (Op.LESS, 41.0, True),
        (Op.LESS, 40.0, False),
        (Op.LESS_OR_EQUAL, 40, True),
        (Op.GREATER, 39.0, True),
        (Op.GREATER, 40.0, False),
        (Op.GREATER_OR_EQUAL, 40.0, True),
        (Op.PRESENT, None, True),
        (Op.ABSENT, None, False),
    ):
        assert holds(world, when(F.REPORTED, operator, value=value)) is expected, (operator, value)
    assert holds(world, when(F.REPORTED, Op.EQUAL, "speed", 40.0)), "within the channel's tolerance"
    world.do(SetDesired(twin_id="a", values={"speed": 40.0, "on": True}))
    assert not holds(world, when(F.DESIRED, Op.EQUAL, "speed", 40.2)), "targets are what they are"
    assert holds(
        world, when(F.DELTA, Op.ABSENT, "speed"), when(F.DELTA, Op.PRESENT, "on"), when(F.DELTA, Op.PRESENT, "")
    )
    assert holds(world, when(F.DESIRED, Op.EQUAL, "on", True))


def test_connectivity_and_predictions_can_be_asked_for() -> None:
    world = World("a")
    assert holds(world, when(F.CONNECTIVITY, Op.ABSENT, ""), when(F.PREDICTED, Op.ABSENT, "temperature"))
    world.do(SetConnectivity(twin_id="a", connectivity=Connectivity.ONLINE, last_arrival_unix_us=T0))
    world.do(RecordPrediction(twin_id="a", prediction=prediction()))
    assert holds(world, when(F.CONNECTIVITY, Op.EQUAL, "", "ONLINE"), when(F.PREDICTED, Op.PRESENT, "temperature"))
    assert not holds(world, when(F.CONNECTIVITY, Op.NOT_EQUAL, "", "ONLINE"))


def test_a_bad_fact_proves_nothing() -> None:
    world = World("a")
    world.report("a", "target", T0, 40.0, quality=3)
    assert not holds(world, when(F.REPORTED, Op.EQUAL, value=40.0))
    assert holds(world, when(F.REPORTED, Op.PRESENT))


def test_what_cannot_be_compared_is_refused_by_name() -> None:
    world = World("a")
    world.report("a", "target", T0, 1.0)
    assert isinstance(verdict(world, when(F.REPORTED, Op.EQUAL, "nothing", 1.0)).error, NotFound)
    for condition, field in (
        (when(F.REPORTED, Op.EQUAL, "on", 1.0), "conditions[0].value"),
        (when(F.REPORTED, Op.EQUAL), "conditions[0].value"),
        (when(F.PREDICTED, Op.LESS, value=1.0), "conditions[0].operator"),
        (when(F.CONNECTIVITY, Op.LESS, "", "ONLINE"), "conditions[0].operator"),
        (when(F.UNSPECIFIED, Op.EQUAL, value=1.0), "conditions[0].facet"),
        (when(F.REPORTED, Op.UNSPECIFIED, value=1.0), "conditions[0].operator"),
    ):
        error = verdict(world, condition).error
        assert isinstance(error, InvalidArgument)
        assert error.field_violations[0].field == field
    changed = verdict(world, when(F.REPORTED, Op.EQUAL, "temperature", 1.0, unit="degF")).error
    assert isinstance(changed, FailedPrecondition)
    assert changed.reason == Reason.INCOMPATIBLE_UNIT


def test_the_loser_is_told_the_state_it_met() -> None:
    world = World("a")
    world.do(SetDesired(twin_id="a", values={"target": 40.0}))
    lost = world.do(SetDesired(twin_id="a", values={"target": 50.0}, if_revision=0)).verdict
    assert lost is not None
    assert isinstance(lost.error, Conflict)
    assert lost.error.metadata["current_revision"] == "1"
    current = json.loads(lost.error.metadata["current"])
    assert current["channels"]["target"] == {"desired": 40.0, "state": "PENDING", "offset": 3}
    unmet = verdict(world, when(F.DESIRED, Op.ABSENT)).error
    assert json.loads(unmet.metadata["current"])["channels"]["target"]["desired"] == 40.0
    assert unmet.metadata["condition"] == "desired[target] is absent"


def test_predictions_and_commands_take_conditions_too() -> None:
    world = World("a")
    first = world.do(RecordPrediction(twin_id="a", prediction=prediction(), if_revision=0)).verdict
    second = world.do(RecordPrediction(twin_id="a", prediction=prediction(model="n"), if_revision=0)).verdict
    assert first is not None
    assert second is not None
    assert (first.outcome, second.outcome) == (Outcome.ACCEPTED, Outcome.REJECTED)
    only_online = (when(F.CONNECTIVITY, Op.EQUAL, "", "ONLINE"),)
    refused = world.do(QueueCommand(command_id="c", twin_id="a", name="stop", args={}, conditions=only_online))
    assert refused.verdict is not None
    assert refused.verdict.error is not None
    assert not world.commands("a")


racers = st.lists(st.tuples(st.sampled_from(["revision", "absence", "predicate"]), st.integers(1, 9)), min_size=2)


@given(racers=racers)
def test_of_any_number_of_racers_exactly_one_wins(racers: list[tuple[str, int]]) -> None:
    world = World("a")
    world.report("a", "stage", T0 + S, 0.0)
    winners = []
    for kind, value in racers:
        demands: dict[str, dict[str, Any]] = {
            "revision": {"if_revision": 0},
            "absence": {"conditions": (when(F.DESIRED, Op.ABSENT),)},
            "predicate": {"conditions": (when(F.DELTA, Op.ABSENT, ""),)},
        }
        found = world.do(SetDesired(twin_id="a", values={"target": float(value)}, **demands[kind])).verdict
        assert found is not None
        if found.outcome is Outcome.ACCEPTED:
            winners.append(value)
        else:
            assert found.error is not None
            current = json.loads(found.error.metadata["current"])
            assert current["revisions"]["desired"] == 1
            if "target" in current["channels"]:
                assert current["channels"]["target"]["desired"] == winners[0]
    assert winners == [racers[0][1]]
    assert world.replica("a").desired.values["target"].value == winners[0]
