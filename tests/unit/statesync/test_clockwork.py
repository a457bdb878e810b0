"""What time does: deadlines, times to live and silence become entries, once, and on the right clock."""

from tests.unit.statesync.worlds import T0, TENANT, S, World

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.clockwork import Clockwork
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.entries import ExpireDesired, QueueCommand, SetConnectivity, SetDesired, UpdateCommand
from twinmesh_statesync.domain.events import Connectivity


def changes_of(world: World, action: SetDesired | QueueCommand) -> tuple[Change, ...]:
    return world.do(action).changes


def test_a_deadline_and_a_time_to_live_come_up_once_when_they_have_passed() -> None:
    world = World("a")
    clockwork = Clockwork()
    clockwork.notice(changes_of(world, SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=T0 + 10 * S)))
    command = QueueCommand(command_id="c", twin_id="a", name="stop", args={}, expire_time_unix_us=T0 + 20 * S)
    clockwork.notice(changes_of(world, command))
    assert clockwork.due(world.fold, now_unix_us=T0 + 9 * S) == []
    ((tenant, first),) = clockwork.due(world.fold, now_unix_us=T0 + 10 * S)
    assert tenant == TENANT
    assert first.action == ExpireDesired(twin_id="a", channels=("target",), set_offsets=(3,))
    ((_, second),) = clockwork.due(world.fold, now_unix_us=T0 + 30 * S)
    assert isinstance(second.action, UpdateCommand)
    assert second.action.state is CommandState.EXPIRED
    assert clockwork.due(world.fold, now_unix_us=T0 + 99 * S) == []


def test_what_could_not_be_written_comes_up_again_under_the_same_id() -> None:
    world = World("a")
    clockwork = Clockwork()
    clockwork.notice(changes_of(world, SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=T0)))
    (due,) = clockwork.due(world.fold, now_unix_us=T0)
    clockwork.again(due, at_unix_us=T0 + S)
    assert clockwork.due(world.fold, now_unix_us=T0) == []
    assert clockwork.due(world.fold, now_unix_us=T0 + S) == [due]


def test_a_target_that_was_met_is_left_alone_also_after_a_restart() -> None:
    world = World("a")
    world.do(SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=T0 + S))
    world.do(SetDesired(twin_id="a", values={"stage": 1}, deadline_unix_us=T0 + S))
    world.report("a", "target", T0, 1.0)
    clockwork = Clockwork()
    clockwork.wind_up(world.fold)
    found = [entry.action for _, entry in clockwork.due(world.fold, now_unix_us=T0 + S)]
    assert [action.channels for action in found if isinstance(action, ExpireDesired)] == [("stage",)]


def connectivity(clockwork: Clockwork, world: World, *, now: int, monotonic_s: float) -> list[Connectivity]:
    found = []
    for _, entry in clockwork.connectivity(world.fold, now_unix_us=now, monotonic_s=monotonic_s):
        assert isinstance(entry.action, SetConnectivity)
        found.append(entry.action.connectivity)
        world.do(entry.action, request_id=entry.request_id)
    return found


def test_silence_is_stale_then_offline_and_an_arrival_brings_it_back() -> None:
    world = World("a")
    clockwork = Clockwork()
    assert connectivity(clockwork, world, now=T0, monotonic_s=0.0) == []
    world.report("a", "temperature", world.now, 1.0)
    at = world.now
    assert connectivity(clockwork, world, now=at, monotonic_s=0.0) == [Connectivity.ONLINE]
    assert connectivity(clockwork, world, now=at, monotonic_s=4.9) == []
    assert connectivity(clockwork, world, now=at, monotonic_s=5.1) == [Connectivity.STALE]
    assert connectivity(clockwork, world, now=at, monotonic_s=30.1) == [Connectivity.OFFLINE]
    world.report("a", "temperature", world.now, 2.0)
    assert connectivity(clockwork, world, now=at, monotonic_s=31.0) == [Connectivity.ONLINE]


def test_a_wall_clock_that_jumps_takes_nobody_offline() -> None:
    world = World("a")
    clockwork = Clockwork()
    world.report("a", "temperature", world.now, 1.0)
    assert connectivity(clockwork, world, now=world.now, monotonic_s=0.0) == [Connectivity.ONLINE]
    assert connectivity(clockwork, world, now=world.now + 86_400 * S, monotonic_s=1.0) == []


def test_silence_goes_on_over_a_restart() -> None:
    world = World("a")
    world.report("a", "temperature", world.now, 1.0)
    restarted = Clockwork()
    assert connectivity(restarted, world, now=world.now + 60 * S, monotonic_s=1_000.0) == [Connectivity.OFFLINE]


def test_event_times_well_behind_their_arrival_are_a_replay() -> None:
    world = World("a")
    clockwork = Clockwork()
    world.report("a", "temperature", world.now - 121 * S, 1.0)
    assert connectivity(clockwork, world, now=world.now, monotonic_s=0.0) == [Connectivity.REPLAY]
    world.report("a", "temperature", world.now - 60 * S, 1.0)
    assert connectivity(clockwork, world, now=world.now, monotonic_s=1.0) == [Connectivity.ONLINE]


def test_an_entry_on_its_way_is_not_written_again_at_once() -> None:
    world = World("a")
    clockwork = Clockwork()
    world.report("a", "temperature", world.now, 1.0)
    first = list(clockwork.connectivity(world.fold, now_unix_us=world.now, monotonic_s=0.0))
    assert len(first) == 1
    assert list(clockwork.connectivity(world.fold, now_unix_us=world.now, monotonic_s=1.0)) == []
    again = list(clockwork.connectivity(world.fold, now_unix_us=world.now, monotonic_s=5.1))
    assert again == [] or again[0][1].request_id != first[0][1].request_id


def test_what_time_does_to_somebody_elses_twins_is_left_to_them_and_made_good_when_they_become_ours() -> None:
    world = World("a", "b")
    clockwork = Clockwork()
    mine: set[str] = {"a"}
    is_mine = lambda _tenant, twin_id: twin_id in mine  # noqa: E731
    for twin_id in "ab":
        clockwork.notice(
            changes_of(world, SetDesired(twin_id=twin_id, values={"target": 1.0}, deadline_unix_us=T0 + S))
        )
    told = clockwork.due(world.fold, now_unix_us=T0 + S, mine=is_mine)
    assert [entry.action.twin_id for _, entry in told if isinstance(entry.action, ExpireDesired)] == ["a"]
    mine.add("b")
    assert clockwork.due(world.fold, now_unix_us=T0 + S, mine=is_mine) == []
    clockwork.rearm(world.fold)
    told = clockwork.due(world.fold, now_unix_us=T0 + S, mine=is_mine)
    # The first one's entry is not folded yet, so it comes up again, under the id it had before.
    assert [entry.action.twin_id for _, entry in told if isinstance(entry.action, ExpireDesired)] == ["a", "b"]


def test_a_silence_taken_over_is_measured_from_where_it_was_heard_here_too() -> None:
    world = World("a")
    clockwork = Clockwork()
    world.report("a", "temperature", world.now, 1.0)
    at, nobodys = world.now, lambda _tenant, _twin_id: False
    for monotonic_s in (0.0, 4.0):
        assert not list(clockwork.connectivity(world.fold, now_unix_us=at, monotonic_s=monotonic_s, mine=nobodys))
    assert connectivity(clockwork, world, now=at, monotonic_s=5.1) == [Connectivity.STALE]
