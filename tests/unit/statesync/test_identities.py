"""Bulk creation, updates and migrations as the fold decides them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from tests.unit.statesync.worlds import PUMP_2, TENANT, TWINS, UNITS_2, World, bodies, grown, prediction

from twinmesh_client.registry_mapping import fold_control_entry
from twinmesh_core.migration import MigrationEffect, MigrationOutcome
from twinmesh_core.registry import Relationship, Twin
from twinmesh_core.registry_fold import Outcome, RegistryFold
from twinmesh_core.value_specs import ArgumentSpec, ValueKind
from twinmesh_statesync.domain import fold as fold_module
from twinmesh_statesync.domain.changes import ChangeKind, merge
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.entries import (
    ControlEntry,
    CreateTwin,
    CreateTwins,
    CreateTwinType,
    MigrateTwins,
    QueueCommand,
    RecordPrediction,
    SetDesired,
    UpdateTwin,
)
from twinmesh_statesync.domain.migration import plan_state
from twinmesh_statesync.rpc.mapping.control import control_to_message

T = 1_700_000_000_000_000


@given(steps=bodies)
def test_ingestion_s_registry_and_state_sync_s_agree_at_every_entry(steps: list[Any]) -> None:
    world = grown(steps)
    registry = RegistryFold()
    for entry in world.entries:
        if isinstance(entry.body, ControlEntry):
            fold_control_entry(
                registry,
                tenant=TENANT,
                offset=entry.offset,
                commit_time_unix_us=entry.commit_time_unix_us,
                entry=control_to_message(entry.body),
            )
    ours, theirs = world.fold.registry.snapshot(), registry.snapshot()
    assert (ours.twins, ours.twin_types) == (theirs.twins, theirs.twin_types)
    assert [t.revision for _, t in ours.twins] == [t.revision for _, t in theirs.twins]
    for twin_id in TWINS:
        state = world.fold.state(TENANT, twin_id)
        if state is not None and state.alive:
            assert state.twin == registry.twin(TENANT, twin_id)


@settings(max_examples=100)
@given(steps=bodies)
def test_a_dry_run_tells_what_the_real_run_does(steps: list[Any]) -> None:
    world = grown(steps)
    world.do(CreateTwinType(twin_type=PUMP_2))
    registry = world.fold.registry
    for version in (2, 1):
        target = registry.require_twin_type(TENANT, "pump", version)
        told = []
        for plan in registry.plan_migrations(TENANT, TWINS, target, 0, UNITS_2):
            state = world.fold.state(TENANT, plan.twin_id)
            steps_told = plan.steps
            if plan.outcome is MigrationOutcome.MIGRATED:
                assert state is not None
                steps_told += plan_state(state, plan, target, 10**9, 0).steps
            told.append((plan.twin_id, plan.from_version, plan.outcome, steps_told))
        folded = world.do(MigrateTwins(twin_type_id="pump", to_version=version, twin_ids=TWINS, units=UNITS_2))
        assert folded.verdict is not None
        real = [(p.twin_id, p.from_version, p.outcome, p.steps) for p in folded.verdict.migrations]
        assert real == told
        for twin_id, _, outcome, steps_real in real:
            blocked = any(step.effect is MigrationEffect.BLOCKS for step in steps_real)
            assert blocked == (outcome is MigrationOutcome.BLOCKED)
            twin = registry.twin(TENANT, twin_id)
            if outcome is MigrationOutcome.MIGRATED:
                assert twin is not None
                assert twin.twin_type_version == version


def old_world() -> World:
    world = World("a", "b")
    world.report("a", "temperature", T, 20.0)
    world.report("a", "target", T, 1.0)
    world.do(SetDesired(twin_id="a", values={"speed": 3.0, "target": 7.0, "stage": 2}))
    world.do(RecordPrediction(twin_id="a", prediction=prediction()))
    world.do(QueueCommand(command_id="c", twin_id="a", name="stop", args={}))
    world.do(CreateTwinType(twin_type=PUMP_2))
    return world


def test_a_migration_carries_converts_defaults_and_drops_and_says_so() -> None:
    world = old_world()
    folded = world.do(MigrateTwins(twin_type_id="pump", to_version=2, twin_ids=("a",), units=UNITS_2))
    assert folded.verdict is not None
    told = {(step.part, step.effect.name) for step in folded.verdict.migrations[0].steps}
    assert told >= {
        ("channels", "CARRIED"),
        ("channels.temperature", "CONVERTED"),
        ("channels.target", "DROPPED"),
        ("properties.power", "DEFAULTED"),
        ("desired", "CARRIED"),
        ("desired.target", "DROPPED"),
        ("desired.stage", "DROPPED"),
        ("predicted.temperature", "DROPPED"),
        ("commands.c", "DROPPED"),
    }
    replica = world.replica("a")
    assert replica.reported.values["temperature"].value == pytest.approx(293.15)
    assert set(replica.reported.values) == {"temperature"}
    assert set(replica.desired.values) == {"speed"}
    assert not replica.predicted.predictions
    assert world.commands("a")["c"].state is CommandState.CANCELLED
    change = folded.changes[0]
    assert (change.kind, change.replica, change.twin.twin_type_version) == (ChangeKind.CHANGED, replica, 2)
    assert "desired.target" in change.events[0].message


def test_history_goes_on_in_its_unit_and_the_replica_has_the_version_s() -> None:
    world = old_world()
    world.do(MigrateTwins(twin_type_id="pump", to_version=2, twin_ids=("a",), units=UNITS_2))
    world.report("a", "temperature", T + 1, 30.0)  # as ingestion lands it: in the unit of the series
    assert world.replica("a").reported.values["temperature"].value == pytest.approx(303.15)
    world.do(MigrateTwins(twin_type_id="pump", to_version=1, twin_ids=("a",), units=UNITS_2))
    twin = world.fold.registry.require_twin(TENANT, "a")
    assert [kept.channel for kept in twin.kept_units if kept.scale != 1 or kept.offset] == []
    assert world.replica("a").reported.values["temperature"].value == pytest.approx(30.0)
    world.report("a", "temperature", T + 2, 31.0)
    assert world.replica("a").reported.values["temperature"].value == 31.0


def test_a_twin_that_is_blocked_stays_as_it_is() -> None:
    world = old_world()
    two = tuple(Relationship(name="feeds", target_twin_id=target) for target in ("a", "b"))
    world.do(UpdateTwin(twin=Twin(twin_id="b", twin_type_id="", relationships=two), paths=("relationships",)))
    folded = world.do(MigrateTwins(twin_type_id="pump", to_version=2, limit=10, units=UNITS_2))
    assert folded.verdict is not None
    outcomes = {plan.twin_id: plan.outcome for plan in folded.verdict.migrations}
    assert outcomes == {"a": MigrationOutcome.MIGRATED, "b": MigrationOutcome.BLOCKED}
    assert world.fold.registry.require_twin(TENANT, "b").twin_type_version == 1
    without = world.do(MigrateTwins(twin_type_id="pump", to_version=1, twin_ids=("a",)))
    assert without.verdict is not None
    assert without.verdict.migrations[0].outcome is MigrationOutcome.BLOCKED  # no way from K to Cel is stated


def test_a_migration_goes_through_a_type_in_pieces_and_a_repetition_says_the_same() -> None:
    world = World(*TWINS)
    world.do(CreateTwinType(twin_type=PUMP_2))
    first = MigrateTwins(twin_type_id="pump", to_version=2, limit=2, units=UNITS_2)
    done = world.do(first, request_id="m/0").verdict
    assert done is not None
    assert [plan.twin_id for plan in done.migrations] == ["a", "b"]
    assert done.more
    again = world.do(first, request_id="m/0")
    assert again.verdict == done
    assert not again.changes
    last = world.do(replace(first, after_twin_id="b"), request_id="m/1").verdict
    assert last is not None
    assert ([plan.twin_id for plan in last.migrations], last.more) == (["c"], False)


def test_many_twins_are_created_at_one_offset_each_with_its_verdict() -> None:
    world = World("a")
    twins = tuple(Twin(twin_id=name, twin_type_id="pump") for name in ("a", "x", "-", "y"))
    folded = world.do(CreateTwins(twins=twins, if_absent=True))
    assert [change.twin.twin_id for change in folded.changes] == ["x", "y"]
    assert {change.offset for change in folded.changes} == {len(world.entries)}
    assert folded.verdict is not None
    assert [(t.place, t.twin_id, t.outcome) for t in folded.verdict.twins] == [
        (0, "a", Outcome.NO_OP),
        (2, "-", Outcome.REJECTED),
    ]
    none = world.do(CreateTwins(twins=(*twins, Twin(twin_id="z", twin_type_id="pump")), all_or_nothing=True))
    assert not none.changes
    assert world.fold.state(TENANT, "z") is None


def test_what_is_remembered_of_bulk_verdicts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "MAX_REMEMBERED", 10)
    world = World()
    refused = CreateTwins(twins=tuple(Twin(twin_id="-", twin_type_id="pump") for _ in range(4)))
    for number in range(4):
        world.do(refused, request_id=f"b{number}")
    kept = world.fold.verdicts(TENANT)
    assert list(kept) == ["b2", "b3"]
    assert sum(verdict.weight for verdict in kept.values()) == 10


def test_an_update_is_told_to_watchers_and_moves_no_facet() -> None:
    world = World("a")
    before = world.replica("a")
    twin = Twin(twin_id="a", twin_type_id="", display_name="Pump A", attributes={"site": "north"})
    folded = world.do(UpdateTwin(twin=twin, paths=("display_name", "attributes")))
    change = folded.changes[0]
    assert change.identity
    assert (change.twin.display_name, change.revision) == ("Pump A", before.revision + 1)
    assert world.replica("a").reported is before.reported
    later = world.report("a", "temperature", T, 1.0).changes[0]
    assert merge(change, later).identity
    assert not world.do(UpdateTwin(twin=twin, paths=("attributes",))).changes


def test_arguments_are_held_to_the_command_s_schema() -> None:
    world = World()
    speed = ArgumentSpec(name="value", kind=ValueKind.NUMBER, unit="%", max_value=100.0)
    ramp = ArgumentSpec(name="ramp", kind=ValueKind.NUMBER, unit="s", default=5.0)
    spec = replace(world.fold.registry.require_twin_type(TENANT, "pump").commands[0], args=(speed, ramp))
    kind = world.fold.registry.require_twin_type(TENANT, "pump")
    channels = tuple(replace(c, set_command="") for c in kind.channels)
    world.do(CreateTwinType(twin_type=replace(kind, version=3, commands=(spec,), channels=channels)))
    world.do(CreateTwin(twin=Twin(twin_id="n", twin_type_id="pump")))

    def send(command_id: str, **more: Any) -> Any:
        action = QueueCommand(**{"command_id": command_id, "twin_id": "n", "name": "set_speed", "args": {}, **more})
        return world.do(action).verdict

    assert send("c1", args={"value": 40}).outcome is Outcome.ACCEPTED
    assert world.commands("n")["c1"].args == {"value": 40.0, "ramp": 5.0}
    for args, words in (
        ({}, "requires: value"),
        ({"value": 101.0}, "100 %"),
        ({"value": "fast"}, "a number"),
        ({"value": 1.0, "x": 1.0}, "it has: value, ramp"),
    ):
        assert words in str(send("c2", args=args).error)
    assert send("c3", args={"value": 1.0}, type_version=1).error.reason == "REVISION_CONFLICT"
    assert send("c4", args={"value": 1.0}, type_version=3).outcome is Outcome.ACCEPTED
