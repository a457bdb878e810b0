"""Commands at work: progress, results, and being asked to give up."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.statesync.worlds import World

from twinmesh_core.errors import Reason
from twinmesh_core.registry_fold import Outcome
from twinmesh_statesync.domain.commands import Command, CommandState
from twinmesh_statesync.domain.entries import CancelCommand, QueueCommand, UpdateCommand
from twinmesh_statesync.domain.room import MAX_OPEN_COMMANDS


def queued() -> World:
    world = World("a")
    world.do(QueueCommand(command_id="c", twin_id="a", name="stop", args={}))
    return world


def moves(world: World, state: CommandState, **more: Any) -> Any:
    return world.do(UpdateCommand(command_id="c", twin_id="a", state=state, **more))


def cancel(world: World, **more: Any) -> Any:
    return world.do(CancelCommand(command_id="c", twin_id="a", message="not needed", **more))


def now(world: World) -> Command:
    found: Command = world.commands("a")["c"]
    return found


def test_progress_is_told_as_often_as_it_changes() -> None:
    world = queued()
    moves(world, CommandState.DELIVERED)
    taken = world.now
    (change,) = moves(world, CommandState.DELIVERED, progress_percent=20.0, progress_message="opening").changes
    assert change.commands[0].progress_percent == 20.0
    assert moves(world, CommandState.DELIVERED, progress_percent=20.0).changes == ()
    moves(world, CommandState.DELIVERED, progress_percent=80.0)
    assert (now(world).progress_percent, now(world).progress_message) == (80.0, "opening")
    moves(world, CommandState.SUCCEEDED, message="open", result={"position": 99.5})
    assert (now(world).state, now(world).result, now(world).message) == (
        CommandState.SUCCEEDED,
        {"position": 99.5},
        "open",
    )
    assert now(world).deliver_time_unix_us == taken
    late = moves(world, CommandState.DELIVERED, progress_percent=90.0).verdict
    assert late.error.metadata["state"] == "SUCCEEDED"


def test_a_waiting_command_is_cancelled_at_once() -> None:
    world = queued()
    cancel(world)
    assert (now(world).state, now(world).message) == (CommandState.CANCELLED, "not needed")
    assert now(world).deliver_time_unix_us is None
    assert cancel(world).verdict.outcome is Outcome.NO_OP


@pytest.mark.parametrize("answer", [CommandState.CANCELLED, CommandState.SUCCEEDED, CommandState.FAILED])
def test_a_delivered_command_is_asked_of_the_device_which_has_the_last_word(answer: CommandState) -> None:
    world = queued()
    moves(world, CommandState.DELIVERED)
    (change,) = cancel(world).changes
    assert change.commands[0].cancel_requested
    assert (now(world).state, now(world).cancel_reason) == (CommandState.DELIVERED, "not needed")
    assert cancel(world).changes == (), "asked once"
    moves(world, answer)
    assert now(world).state is answer
    refused = cancel(world).verdict
    if answer is not CommandState.CANCELLED:
        assert refused.error.reason == Reason.COMMAND_STATE


def test_by_force_it_ends_without_the_device() -> None:
    world = queued()
    moves(world, CommandState.DELIVERED)
    cancel(world, force=True)
    assert now(world).state is CommandState.CANCELLED
    assert moves(world, CommandState.SUCCEEDED).verdict.error.reason == Reason.COMMAND_STATE


def test_a_full_queue_says_so_by_name() -> None:
    world = World("a")
    for number in range(MAX_OPEN_COMMANDS):
        world.do(QueueCommand(command_id=f"c{number}", twin_id="a", name="stop", args={}))
    full = world.do(QueueCommand(command_id="more", twin_id="a", name="stop", args={})).verdict
    assert full is not None
    assert full.error is not None
    assert (full.error.reason, full.error.metadata["limit"]) == (Reason.COMMAND_QUEUE_FULL, str(MAX_OPEN_COMMANDS))
    world.do(CancelCommand(command_id="c7", twin_id="a"))
    assert world.do(QueueCommand(command_id="more", twin_id="a", name="stop", args={})).changes


steps = st.lists(
    st.one_of(
        st.sampled_from([s for s in CommandState if s > CommandState.QUEUED]).map(lambda s: ("move", s)),
        st.booleans().map(lambda force: ("cancel", force)),
    ),
    max_size=8,
)


@given(steps=steps)
def test_a_command_that_ended_never_changes_again(steps: list[tuple[str, Any]]) -> None:
    world = queued()
    ended: Command | None = None
    for kind, argument in steps:
        if kind == "move":
            moves(world, argument, progress_percent=50.0)
        else:
            cancel(world, force=argument)
        if ended is not None:
            assert now(world) == ended
        elif now(world).state.ended:
            ended = now(world)
