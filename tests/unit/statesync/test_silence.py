"""Connectivity: an arrival shows at once, silence on a clock that neither outages nor wall clocks can move."""

from dataclasses import replace

import pytest
from tests.unit.statesync.worlds import PUMP, TENANT, S, World, doubles

from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, capture_all, restore
from twinmesh_statesync.domain.clockwork import MOST_AT_ONCE, silences
from twinmesh_statesync.domain.entries import ConnectivityChange, CreateTwinType, SetConnectivities
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.silence import UNKNOWN_INTERVAL_S, Silence, expected_interval_s

ONLINE, STALE, OFFLINE, REPLAY = Connectivity.ONLINE, Connectivity.STALE, Connectivity.OFFLINE, Connectivity.REPLAY


class Listener:
    """A world that somebody listens to, second by second; what is found is folded."""

    def __init__(self, *twins: str) -> None:
        self.world = World(*twins)
        self.monotonic_s = 1_000.0
        self.entries = 0
        self.start()

    def start(self) -> None:
        """Begin to listen, as a process that starts, or takes over."""
        self.silence = Silence(self.world.fold)

    def restart(self, *, down_s: float = 0.0) -> None:
        """Begin again from a checkpoint, with another monotonic clock, after a while."""
        position = Position(incarnation="i", offset=self.world.fold.offset)
        records = tuple(capture_all(self.world.fold).records())
        self.world.fold = restore(Checkpoint(position=position, records=records))
        self.world.now += int(down_s * S)
        self.monotonic_s = 5.0
        self.start()

    def arrives(self, *twins: str, age_s: float = 0.0) -> None:
        rows = [(twin, "temperature", self.world.now - int(age_s * S), float(self.world.now), 1) for twin in twins]
        self.silence.notice(self.world.see(doubles(rows)).changes)

    def passes(self, seconds: float, *, step_s: float = 1.0) -> None:
        """Let time pass and listen."""
        for _ in range(round(seconds / step_s)):
            self.monotonic_s += step_s
            self.world.now += int(step_s * S)
            for tenant, items in self.silence.look(self.world.fold, monotonic_s=self.monotonic_s).items():
                for _, entry in silences(tenant, items):
                    self.entries += 1
                    assert entry.action is not None
                    self.silence.notice(self.world.do(entry.action, request_id=entry.request_id).changes)

    def of(self, twin: str) -> Connectivity:
        found: Connectivity = self.world.replica(twin).connectivity
        return found


def fell(twin: str, connectivity: Connectivity, offset: int) -> SetConnectivities:
    item = ConnectivityChange(twin_id=twin, connectivity=connectivity, last_arrival_offset=offset)
    return SetConnectivities(items=(item,))


def test_an_arrival_brings_a_twin_back_in_the_event_that_it_makes() -> None:
    world = World("a")
    (change,) = world.report("a", "temperature", world.now, 1.0).changes
    assert change.connectivity is ONLINE
    (change,) = world.report("a", "temperature", world.now + S, 2.0).changes
    assert change.connectivity is None
    world.do(fell("a", STALE, 4))
    assert world.replica("a").connectivity is STALE
    (change,) = world.report("a", "temperature", world.now + 2 * S, 2.0).changes
    assert change.connectivity is ONLINE


def test_silence_is_stale_then_offline_within_a_second_of_its_limit() -> None:
    listener = Listener("a")
    listener.passes(100)
    assert listener.of("a") is Connectivity.UNSPECIFIED, "what was never heard from is not silent"
    listener.arrives("a")
    listener.passes(5)
    assert listener.of("a") is ONLINE
    listener.passes(2)
    assert listener.of("a") is STALE
    listener.passes(23)
    assert listener.of("a") is STALE
    listener.passes(2)
    assert listener.of("a") is OFFLINE
    listener.arrives("a")
    assert listener.of("a") is ONLINE
    listener.passes(7)
    assert listener.of("a") is STALE


def test_a_twin_that_reports_as_expected_costs_no_entry() -> None:
    listener = Listener("a")
    for _ in range(100):
        listener.arrives("a")
        listener.passes(3)
    assert (listener.of("a"), listener.entries) == (ONLINE, 0)


@pytest.mark.parametrize("jump_s", [-3_600, 3_600])
def test_wall_clocks_that_jump_take_nobody_offline(jump_s: int) -> None:
    listener = Listener("a", "b")
    listener.arrives("a", "b")
    listener.world.now += jump_s * S
    listener.passes(3)
    listener.arrives("a")
    listener.passes(4)
    assert listener.of("a") in (ONLINE, REPLAY)
    assert listener.of("b") is STALE, "seven seconds of silence, whatever the wall clock says"
    assert listener.entries == 1


def test_an_outage_of_the_server_is_not_the_silence_of_its_devices() -> None:
    listener = Listener("a")
    listener.arrives("a")
    listener.passes(2)
    listener.silence.interrupt()
    listener.monotonic_s += 600
    listener.passes(4)
    assert listener.of("a") is ONLINE
    listener.passes(4)
    assert listener.of("a") is STALE, "one more interval, and then it counts"


def test_a_process_that_stood_still_has_heard_nothing() -> None:
    listener = Listener("a")
    listener.arrives("a")
    listener.passes(4)
    listener.monotonic_s += 900
    listener.passes(1)
    assert listener.of("a") is ONLINE
    listener.arrives("a")
    listener.passes(5)
    assert listener.of("a") is ONLINE


def test_a_restart_after_a_long_downtime_declares_nobody_offline_who_was_heard_meanwhile() -> None:
    listener = Listener("a", "b")
    listener.arrives("a", "b")
    listener.passes(3)
    listener.restart(down_s=600)
    listener.arrives("a")
    listener.start()
    listener.passes(4)
    assert (listener.of("a"), listener.of("b")) == (ONLINE, ONLINE), "nobody is judged at once"
    listener.arrives("a")
    listener.passes(3)
    assert (listener.of("a"), listener.of("b")) == (ONLINE, OFFLINE), "others were heard for ten minutes, b was not"


def test_a_restart_of_the_whole_mesh_gives_everybody_their_time() -> None:
    listener = Listener("a", "b")
    listener.arrives("a", "b")
    listener.restart(down_s=36_000)
    listener.passes(4)
    assert listener.entries == 0
    listener.arrives("a")
    listener.passes(4)
    assert (listener.of("a"), listener.of("b")) == (ONLINE, STALE)


def test_silence_is_remembered_over_a_restart() -> None:
    listener = Listener("a")
    listener.arrives("a")
    listener.passes(40)
    assert listener.of("a") is OFFLINE
    listener.restart(down_s=5)
    listener.passes(10)
    assert (listener.of("a"), listener.entries) == (OFFLINE, 2)
    listener.arrives("a")
    assert listener.of("a") is ONLINE


def test_recorded_input_is_a_replay_and_late_rows_beside_live_ones_are_not() -> None:
    listener = Listener("a", "b")
    listener.arrives("a", age_s=3_600)
    assert listener.of("a") is REPLAY
    listener.arrives("a", age_s=60)
    assert listener.of("a") is ONLINE
    listener.arrives("a", age_s=7_200)
    assert listener.of("a") is ONLINE, "a back-fill beside the live stream"
    listener.arrives("b", age_s=3_600)
    listener.passes(7)
    assert listener.of("b") is STALE, "a recording that ends is silent too"


def test_a_thousand_twins_that_vanish_at_once_cost_one_entry_each_time() -> None:
    twins = [f"t{i}" for i in range(1_000)]
    listener = Listener(*twins)
    listener.arrives(*twins)
    listener.passes(7)
    assert listener.entries == 1
    listener.passes(30)
    assert listener.entries == 2
    assert {listener.of(twin) for twin in twins} == {OFFLINE}
    many = [ConnectivityChange(twin_id=f"t{i}", connectivity=STALE, last_arrival_offset=1) for i in range(10_000)]
    assert len(list(silences(TENANT, many))) == 10_000 / MOST_AT_ONCE == 10


def test_a_fleet_is_judged_in_portions_without_leaving_anybody_out() -> None:
    twins = [f"t{i}" for i in range(25)]
    listener = Listener(*twins)
    listener.arrives(*twins)
    fold, found = listener.world.fold, []
    for second in range(10):
        listener.silence.listen(fold.offset, second)
        while listener.silence.due:
            portion = listener.silence.judge(fold, most=10).get(TENANT, [])
            assert len(portion) <= 10
            found += [item.twin_id for item in portion]
    assert sorted(set(found)) == sorted(twins)


def test_an_arrival_on_the_way_makes_the_verdict_void() -> None:
    world = World("a")
    world.report("a", "temperature", world.now, 1.0)
    world.report("a", "temperature", world.now, 2.0)
    assert world.do(fell("a", OFFLINE, 3)).changes == ()
    assert world.do(fell("gone", OFFLINE, 3)).changes == ()
    assert world.replica("a").connectivity is ONLINE


def test_what_is_not_folded_yet_is_found_again_under_the_same_id() -> None:
    listener = Listener("a")
    listener.arrives("a")
    found = []
    for second in range(20):
        for tenant, items in listener.silence.look(listener.world.fold, monotonic_s=second).items():
            found += [entry.request_id for _, entry in silences(tenant, items)]
    assert len(found) == 3
    assert len(set(found)) == 1


def test_what_is_expected_is_the_shortest_promise_of_the_type() -> None:
    slow, fast = PUMP.channels[0], replace(PUMP.channels[1], expected_interval_us=10 * S)
    assert expected_interval_s((slow, fast)) == 1.0
    assert expected_interval_s((fast, PUMP.channels[2])) == 10.0
    assert expected_interval_s(PUMP.channels[2:]) == UNKNOWN_INTERVAL_S
    quiet = replace(slow, deadband=0.5)
    assert expected_interval_s((quiet,)) == 600.0, "a steady value is stored once in ten minutes"
    assert expected_interval_s((replace(quiet, max_silence_us=30 * S),)) == 30.0


def test_each_type_has_its_own_patience() -> None:
    listener = Listener("fast")
    channels = (replace(PUMP.channels[0], expected_interval_us=900 * S),)
    listener.world.do(CreateTwinType(twin_type=replace(PUMP, twin_type_id="meter", channels=channels, commands=())))
    listener.world.create("slow", "meter")
    listener.arrives("fast", "slow")
    listener.passes(60)
    assert (listener.of("fast"), listener.of("slow")) == (OFFLINE, ONLINE)
    listener.passes(2_640, step_s=2.0)
    assert listener.of("slow") is ONLINE
    listener.passes(4)
    assert listener.of("slow") is STALE


def test_a_silence_taken_over_is_measured_from_where_it_was_heard_here_too() -> None:
    listener = Listener("a")
    listener.arrives("a")
    fold = listener.world.fold
    for second in range(10):
        assert listener.silence.look(fold, monotonic_s=second, mine=lambda _tenant, _twin_id: False) == {}
    (item,) = listener.silence.look(fold, monotonic_s=10)[TENANT]
    assert item.connectivity is STALE
