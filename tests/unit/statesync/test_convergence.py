"""How a desired value gets on: each state it can be in, by each way there, and what it remembers."""

from typing import Any

import pytest
from tests.unit.statesync.worlds import T0, TENANT, S, World, all_kinds

from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, capture_all, digest, restore
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.entries import (
    AcknowledgeDesired,
    CancelCommand,
    DesiredAcknowledgement,
    ExpireDesired,
    SetDesired,
    UpdateCommand,
)
from twinmesh_statesync.domain.events import EventKind
from twinmesh_statesync.domain.replica import DesiredState
from twinmesh_statesync.domain.values import Json


class Target:
    """One desired value of twin ``a``, directed without a command."""

    def __init__(self, channel: str = "target", value: Any = 10.0, **more: Any) -> None:
        self.world = World("a")
        self.channel = channel
        folded = self.world.do(SetDesired(twin_id="a", values={channel: value}, **more))
        assert folded.verdict is not None
        self.offset = folded.verdict.offset
        self.set_time = self.world.now

    def now(self) -> Any:
        return self.world.replica("a").desired.values[self.channel]

    @property
    def open(self) -> bool:
        return bool(self.world.replica("a").delta)

    def says(self, state: DesiredState, reason: str = "", offset: int = 0) -> Any:
        item = DesiredAcknowledgement(
            channel=self.channel, set_offset=offset or self.offset, state=state, reason=reason
        )
        return self.world.do(AcknowledgeDesired(twin_id="a", items=(item,)))

    def reports(self, value: float, at: int) -> Any:
        return self.world.report("a", self.channel, T0 + at * S, value)

    def expire(self) -> Any:
        return self.world.do(ExpireDesired(twin_id="a", channels=(self.channel,), set_offsets=(self.offset,)))

    def restart(self) -> None:
        """Go on from a checkpoint, as after a restart."""
        before = self.world.fold
        position = Position(incarnation="i", offset=before.offset)
        self.world.fold = restore(Checkpoint(position=position, records=tuple(capture_all(before).records())))
        assert digest(self.world.fold) == digest(before)


@pytest.mark.parametrize("restarts", [False, True])
def test_every_state_is_reached_and_survives_a_restart(restarts: bool) -> None:
    def step(target: Target) -> None:
        if restarts:
            target.restart()

    target = Target(deadline_unix_us=T0 + S)
    step(target)
    assert target.now().state is DesiredState.PENDING
    assert target.now().delta_since_unix_us == target.set_time == target.now().set_time_unix_us
    target.says(DesiredState.DELIVERED)
    step(target)
    assert target.now().state is DesiredState.DELIVERED
    target.says(DesiredState.REJECTED, "the valve is locked")
    step(target)
    assert (target.now().state, target.now().rejection) == (DesiredState.REJECTED, "the valve is locked")
    target.expire()
    step(target)
    assert target.now().state is DesiredState.REJECTED, "what the device said is worth more than that time has passed"
    target.reports(10.0, 1)
    met = target.world.now
    step(target)
    assert target.now().state is DesiredState.APPLIED
    assert (target.now().rejection, target.now().delta_since_unix_us, target.now().first_met_unix_us) == ("", None, met)
    assert not target.open
    target.reports(11.0, 2)
    step(target)
    drifted = target.world.now
    assert target.now().state is DesiredState.DELIVERED
    assert (target.now().drift_count, target.now().ever_met, target.now().delta_since_unix_us) == (1, True, drifted)
    assert target.open
    target.reports(12.0, 3)
    assert target.now().delta_since_unix_us == drifted, "still the same difference"
    target.reports(10.0, 4)
    assert (target.now().state, target.now().first_met_unix_us, target.now().drift_count) == (
        DesiredState.APPLIED,
        met,
        1,
    )


def test_a_missed_deadline_is_one_event_and_a_late_report_still_applies() -> None:
    target = Target(deadline_unix_us=T0 + S)
    (change,) = target.expire().changes
    (event,) = change.events
    assert (event.kind, event.start_time_unix_us) == (EventKind.NOT_CONVERGED, T0 + S)
    assert target.now().state is DesiredState.EXPIRED
    assert target.expire().changes == (), "told once"
    target.reports(10.0, 5)
    assert target.now().state is DesiredState.APPLIED
    target.reports(9.0, 6)
    assert target.now().state is DesiredState.DELIVERED


def test_the_event_of_a_refused_target_says_why() -> None:
    target = Target(deadline_unix_us=T0 + S)
    target.says(DesiredState.REJECTED, "locked")
    (change,) = target.expire().changes
    assert change.events[0].message.endswith("the device refused it: locked.")
    assert target.expire().changes == ()


def test_what_is_said_of_a_target_that_was_replaced_has_no_effect() -> None:
    target = Target()
    target.world.do(SetDesired(twin_id="a", values={"target": 20.0}))
    assert target.says(DesiredState.REJECTED, "no").changes == ()
    assert target.now().state is DesiredState.PENDING
    assert target.says(DesiredState.DELIVERED, offset=target.now().offset).changes
    assert target.says(DesiredState.DELIVERED, offset=target.now().offset).changes == (), "said again"


def test_a_target_with_a_command_follows_it() -> None:
    for ends, state, reason in (
        (CommandState.SUCCEEDED, DesiredState.DELIVERED, ""),
        (CommandState.FAILED, DesiredState.REJECTED, "why"),
        (CommandState.CANCELLED, DesiredState.REJECTED, "why"),
        (CommandState.EXPIRED, DesiredState.EXPIRED, ""),
    ):
        target = Target("speed")
        order = target.now().command_id
        target.world.do(UpdateCommand(command_id=order, twin_id="a", state=CommandState.DELIVERED))
        assert target.now().state is DesiredState.DELIVERED
        target.world.do(UpdateCommand(command_id=order, twin_id="a", state=ends, message="why"))
        assert (target.now().state, target.now().rejection) == (state, reason)


def test_a_target_met_before_its_command_is_delivered_still_waits_for_it_once_it_drifts() -> None:
    target = Target("speed")
    target.reports(10.0, 1)
    assert target.now().state is DesiredState.APPLIED
    target.reports(20.0, 2)
    assert target.now().state is DesiredState.PENDING
    target.world.do(CancelCommand(command_id=target.now().command_id, twin_id="a", message="not needed"))
    assert target.now().state is DesiredState.REJECTED


def test_a_target_may_have_a_tolerance_of_its_own() -> None:
    target = Target("target", 10.0, tolerances={"target": 2.0})
    target.reports(11.9, 1)
    assert target.now().state is DesiredState.APPLIED
    target.reports(12.1, 2)
    assert target.open
    exact = Target("speed", 10.0, tolerances={"speed": 0.0})
    exact.reports(10.4, 1)
    assert exact.open, "stricter than the type's 0.5"


def test_documents_are_met_by_content() -> None:
    target = Target("document", Json('{"n": 3.0, "list": [1, 2]}'))
    target.world.see(all_kinds("a", T0 + S, 3))
    assert target.open
    target = Target("document", Json('{"n":3.0}'), tolerances={"document": 1.0})
    target.world.see(all_kinds("a", T0 + S, 4))
    assert not target.open, "numbers agree within the tolerance"
    target.world.see(all_kinds("a", T0 + 2 * S, 5))
    assert target.open


def test_removing_a_target_ends_its_story() -> None:
    target = Target()
    target.world.do(SetDesired(twin_id="a", values={}, remove=("target",)))
    state = target.world.fold.state(TENANT, "a")
    assert state is not None
    assert not state.replica.desired.values
    assert not state.replica.delta
