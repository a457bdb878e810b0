"""Leases: evenly spread whoever comes and goes, believed only while they last; and checkpoints that change hands."""

import asyncio
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.worlds import bodies, grown

from twinmesh_core.errors import Unavailable
from twinmesh_core.shards import SHARDS
from twinmesh_core.time import SystemClock
from twinmesh_statesync.adapters.memory import MemoryCheckpoints, MemoryLeases, MemoryLog
from twinmesh_statesync.domain.checkpoint import digest, restore
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.leases import CHECKPOINT, DUTIES, Fence, Leases, Roll, divide
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_testing.clock import FakeClock

names = st.sampled_from("abcdefg")


@given(
    living=st.sets(names, min_size=1),
    holders=st.lists(st.sampled_from(["", *"abcdefgxyz"]), min_size=DUTIES, max_size=DUTIES),
)
def test_whatever_lay_where_two_rounds_spread_it_evenly_and_move_no_more_than_they_must(
    living: set[str], holders: list[str]
) -> None:
    def roll() -> Roll:
        leases = tuple(Fence(duty=d, holder=h, epoch=e) for d, (h, e) in enumerate(zip(holders, epochs, strict=True)))
        return Roll(living=tuple(sorted(living)), leases=leases)

    before, epochs = list(holders), [0] * DUTIES
    for _ in range(2):
        for me in sorted(living):
            division = divide(me, roll())
            for duty in division.give_up:
                assert holders[duty] == me
                holders[duty] = ""
            for fence in division.claim:
                assert holders[fence.duty] not in living
                holders[fence.duty], epochs[fence.duty] = me, fence.epoch + 1
    counts = [holders[:SHARDS].count(name) for name in living]
    assert sum(counts) == SHARDS
    assert max(counts) - min(counts) <= 1
    assert holders[CHECKPOINT] in living
    too_much = sum(max(0, before[:SHARDS].count(name) - holders[:SHARDS].count(name)) for name in living)
    homeless = sum(name not in living for name in before[:SHARDS])
    assert sum(a != b for a, b in zip(before[:SHARDS], holders[:SHARDS], strict=True)) == too_much + homeless


def process(store: MemoryLeases, name: str, clock: FakeClock, lease_s: float = 5.0) -> Leases:
    return Leases(store=store, holder=name, clock=clock, lease_s=lease_s, beat_s=0.5)


async def test_a_process_alone_holds_everything_shares_with_who_joins_and_takes_over_from_who_leaves() -> None:
    clock = FakeClock()
    store = MemoryLeases(clock)
    one, two = process(store, "one", clock), process(store, "two", clock)
    await one.beat()
    assert one.held == frozenset(range(DUTIES))
    await two.beat()
    assert not two.held
    await one.beat()
    await two.beat()
    assert (len(one.held), len(two.held)) == (33, 32)
    assert not one.held & two.held
    assert one.holds(CHECKPOINT)
    assert all(two.epoch(shard) == 2 for shard in two.held)
    versions = one.version, two.version
    await two.leave()
    await two.beat()
    assert not two.held
    await one.beat()
    assert one.held == frozenset(range(DUTIES))
    assert one.version > versions[0]


async def test_a_process_that_hung_believes_in_nothing_until_it_has_looked_again() -> None:
    clock = FakeClock()
    store = MemoryLeases(clock)
    hung, other = process(store, "hung", clock), process(store, "other", clock)
    await hung.beat()
    clock.jump(5.0)
    assert not hung.held
    assert hung.fence(CHECKPOINT) is None
    assert hung.epoch(3) == 0
    await other.beat()
    assert other.held == frozenset(range(DUTIES))
    await hung.beat()
    assert not hung.held
    assert not hung.holds(CHECKPOINT)


async def test_what_lapsed_and_came_back_counts_as_gained() -> None:
    clock = FakeClock()
    alone = process(MemoryLeases(clock), "alone", clock)
    await alone.beat()
    version = alone.version
    await alone.beat()
    assert alone.version == version
    clock.jump(6.0)
    await alone.beat()
    assert alone.version > version


class Duty:
    """Says by hand who saves."""

    version = 0

    def __init__(self, store: MemoryLeases, name: str) -> None:
        self.store, self.name, self.mine = store, name, None

    mine: Fence | None

    def holds(self, duty: int) -> bool:
        return self.mine is not None

    def fence(self, duty: int) -> Fence | None:
        return self.mine

    async def take(self) -> None:
        roll = await self.store.beat(self.name, lease_s=600)
        (self.mine,) = await self.store.claim(self.name, roll.leases[CHECKPOINT:])


class Flaky(MemoryCheckpoints):
    """Fails when told to."""

    fails = False

    async def save(self, *arguments: Any) -> bool:
        if self.fails:
            raise Unavailable("no database")
        return await super().save(*arguments)


moves = st.lists(
    st.tuples(
        st.sampled_from(["save", "save", "take", "fail", "grow", "grow", "restart"]),
        st.integers(0, 2),
        st.integers(1, 9),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(steps=bodies, moves=moves)
def test_whoever_saves_when_the_kept_checkpoint_is_the_fold_of_its_position(
    steps: list[Any], moves: list[tuple[str, int, int]]
) -> None:
    """Three processes, one of them behind; the duty is taken by anybody at any time, zombies go on saving."""
    world = grown(steps)

    async def scene() -> None:
        store = MemoryLeases(SystemClock())
        checkpoints = Flaky(store)
        duties = [Duty(store, name) for name in "abc"]
        log = MemoryLog(SystemClock())
        lives = [LiveFold(log=log, checkpoints=checkpoints, clock=SystemClock(), leases=duty) for duty in duties]
        for live in lives:
            live.incarnation = "memory-1"
        newest = 0
        for move, who, amount in [*moves, ("mend", 0, 0), ("take", 0, 0), ("grow", 0, 99), ("save", 0, 0)]:
            if move == "take":
                await duties[who].take()
            elif move == "fail":
                checkpoints.fails = not checkpoints.fails
            elif move == "mend":
                checkpoints.fails = False
            elif move == "grow":
                live = lives[who]
                for entry in world.entries[live.fold.offset : live.fold.offset + amount]:
                    live._apply(entry)
            elif move == "restart":
                lives[who] = LiveFold(log=log, checkpoints=checkpoints, clock=SystemClock(), leases=duties[who])
                await lives[who]._start()
                lives[who].incarnation = "memory-1"
            else:
                with suppress(Unavailable):
                    await lives[who].save()
            kept = await checkpoints.load()
            if kept is None:
                continue
            assert kept.position.offset >= newest, "the checkpoint went back"
            newest = kept.position.offset
            truth = Fold()
            for entry in world.entries[:newest]:
                truth.apply(entry)
            assert digest(restore(kept)) == digest(truth)
        assert newest == len(world.entries)

    asyncio.run(scene())
