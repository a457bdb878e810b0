"""What time does: deadlines and times to live become entries, once, and on the right clock."""

from tests.unit.statesync.worlds import T0, TENANT, S, World

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.clockwork import Clockwork
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.entries import ExpireDesired, QueueCommand, SetDesired, UpdateCommand


def changes_of(world: World, action: SetDesired | QueueCommand) -> tuple[Change, ...]:
    return world.do(action).changes


def test_a_deadline_and_a_time_to_live_come_up_once_when_they_have_passed() -> None:
    world = World("a")
    clockwork = Clockwork()
    target = SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=world.now + 10 * S + 1_000)
    clockwork.notice(changes_of(world, target), monotonic_s=100.0)
    ttl = world.now + 20 * S + 1_000
    command = QueueCommand(command_id="c", twin_id="a", name="stop", args={}, expire_time_unix_us=ttl)
    clockwork.notice(changes_of(world, command), monotonic_s=100.0)
    assert clockwork.due(world.fold, monotonic_s=109.9) == []
    ((tenant, first),) = clockwork.due(world.fold, monotonic_s=110.0)
    assert tenant == TENANT
    assert first.action == ExpireDesired(twin_id="a", channels=("target",), set_offsets=(3,))
    ((_, second),) = clockwork.due(world.fold, monotonic_s=130.0)
    assert isinstance(second.action, UpdateCommand)
    assert second.action.state is CommandState.EXPIRED
    assert clockwork.due(world.fold, monotonic_s=999.0) == []


def test_a_newer_target_of_the_same_channel_has_its_own_deadline() -> None:
    world = World("a")
    clockwork = Clockwork()
    for seconds in (10, 50):
        target = SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=world.now + seconds * S)
        clockwork.notice(changes_of(world, target), monotonic_s=0.0)
    assert clockwork.due(world.fold, monotonic_s=49.0) == []
    ((_, entry),) = clockwork.due(world.fold, monotonic_s=51.0)
    assert entry.action == ExpireDesired(twin_id="a", channels=("target",), set_offsets=(4,))


def test_what_could_not_be_written_comes_up_again_under_the_same_id() -> None:
    world = World("a")
    clockwork = Clockwork()
    target = SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=T0)
    clockwork.notice(changes_of(world, target), monotonic_s=5.0)
    (due,) = clockwork.due(world.fold, monotonic_s=5.0)
    clockwork.again(due, at_monotonic_s=6.0)
    assert clockwork.due(world.fold, monotonic_s=5.9) == []
    assert clockwork.due(world.fold, monotonic_s=6.0) == [due]


def test_what_was_set_before_the_start_ends_by_the_wall_clock_and_what_was_met_is_left_alone() -> None:
    world = World("a")
    world.do(SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=T0 + S))
    world.do(SetDesired(twin_id="a", values={"stage": 1}, deadline_unix_us=T0 + 60 * S))
    world.report("a", "target", T0, 1.0)
    clockwork = Clockwork()
    clockwork.wind_up(world.fold, now_unix_us=T0 + 50 * S, monotonic_s=1_000.0)
    assert clockwork.due(world.fold, monotonic_s=1_009.0) == []
    found = [entry.action for _, entry in clockwork.due(world.fold, monotonic_s=1_010.0)]
    assert [action.channels for action in found if isinstance(action, ExpireDesired)] == [("stage",)]


def test_what_time_does_to_somebody_elses_twins_is_left_to_them_and_made_good_when_they_become_ours() -> None:
    world = World("a", "b")
    clockwork = Clockwork()
    mine: set[str] = {"a"}
    is_mine = lambda _tenant, twin_id: twin_id in mine  # noqa: E731
    for twin_id in "ab":
        target = SetDesired(twin_id=twin_id, values={"target": 1.0}, deadline_unix_us=T0)
        clockwork.notice(changes_of(world, target), monotonic_s=0.0)
    told = clockwork.due(world.fold, monotonic_s=1.0, mine=is_mine)
    assert [entry.action.twin_id for _, entry in told if isinstance(entry.action, ExpireDesired)] == ["a"]
    mine.add("b")
    told = clockwork.due(world.fold, monotonic_s=2.0, mine=is_mine)
    assert [entry.action.twin_id for _, entry in told if isinstance(entry.action, ExpireDesired)] == ["b"]
