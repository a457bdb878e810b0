"""State-sync and Valkey killed under watch load: every watcher's whole history is judged, and every replica."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.faults.report import Outcome
from tests.faults.watch_judge import Truth, violations
from tests.faults.watch_story import load_all, save_all
from tests.faults.watchers import Load, Watcher, answers, clients, statesync_process, truth
from tests.faults.world import Service
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync
from tests.unit.statesync.checker import normal

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.verifying import verify_replicas
from twinmesh_client.transport import call
from twinmesh_local.processes import Guardian
from twinmesh_local.valkey import ValkeyServer
from twinmesh_statesync.rpc.mapping.replicas import replica_to_message
from twinmesh_storage.main import compose as compose_storage
from twinmesh_storage.settings import StorageSettings
from twinmesh_testing.inprocess import serve

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
Report = Callable[[Outcome, Path], None]
SEED = int(os.environ.get("TWINMESH_FAULTS_SEED", "7"))
TWINS = tuple(f"t{i}" for i in range(12))
TEMPERS = ("prompt", "slow", "frozen", "vanishing")


class Watched:
    """Processes of state-sync over one storage, watched while they are killed."""

    def __init__(self, target: str, processes: Sequence[Service], syncs: Sequence[StateSync]) -> None:
        self.target = target
        self.processes = processes
        self.syncs = syncs
        self.faults: Counter[str] = Counter()

    async def kill(self, number: int) -> None:
        """Kill -9 one process and start it again at once."""
        self.faults["killed"] += 1
        await self.processes[number].kill()
        self.processes[number].start()

    async def freeze(self, number: int, for_s: float) -> None:
        """Stop one process for longer than its lease, then let it go on."""
        self.faults["frozen"] += 1
        self.processes[number].signal(signal.SIGSTOP)
        await asyncio.sleep(for_s)
        self.processes[number].signal(signal.SIGCONT)

    async def end(self, number: int) -> None:
        """Ask one process to end, and start it again."""
        self.faults["drained"] += 1
        assert await self.processes[number].stop() == 0
        self.processes[number].start()


@asynccontextmanager
async def watched(
    guardian: Guardian, directory: Path, database_url: str, count: int, *, redis_url: str = "", **settings: object
) -> AsyncIterator[Watched]:
    async with AsyncExitStack() as stack:
        chosen = StorageSettings(database_url=database_url, redis_url=redis_url, port=0)
        storage = await compose_storage(chosen, stack)
        target = await stack.enter_async_context(serve(storage, token="storage", settings=chosen))
        processes = [
            statesync_process(guardian, directory, database_url, target, number, **settings) for number in range(count)
        ]
        for process in processes:
            stack.callback(process.end)
            process.start()
        syncs = await stack.enter_async_context(clients(target, [process.port for process in processes]))
        for sync in syncs:
            await answers(sync)
        yield Watched(target, processes, syncs)


def crowd(syncs: Sequence[StateSync], each: int) -> list[Watcher]:
    """Return watchers of every temper: of everything, of some twins, and with policy LATEST."""
    made = [Watcher(syncs, temper, seed=10 * i + j) for i, temper in enumerate(TEMPERS) for j in range(each)]
    made += [Watcher(syncs, "prompt", seed=100 + j, twin_ids=frozenset(TWINS[j : j + 3])) for j in range(each)]
    made += [Watcher(syncs, "slow", seed=200 + j, latest=True) for j in range(each)]
    return made


async def under_load(
    world: Watched,
    directory: Path,
    watchers: Sequence[Watcher],
    nemesis: Callable[[], Awaitable[None]],
    longest_s: float,
) -> tuple[list[str], int]:
    """Let all of them work until the nemesis has ended, then judge; returns what is wrong, and events checked."""
    writes = Load(world.syncs, TWINS, seed=SEED)
    await writes.begin(world.syncs[0])
    over, goal = asyncio.Event(), 0
    async with asyncio.timeout(longest_s), asyncio.TaskGroup() as group:
        watching = [group.create_task(w.run(lambda through: bool(goal) and through >= goal)) for w in watchers]
        writing = group.create_task(writes.run(lambda: not over.is_set()))
        await nemesis()
        over.set()
        await writing
        for sync in world.syncs:
            await answers(sync)
        goal = await writes.facts()
        for task in watching:
            await task
        head: Any = Head(world)
        proofs = await verify_replicas(head, from_checkpoint=False, patience_s=60.0)
    stories = [watcher.story for watcher in watchers]
    save_all(stories, directory)
    judge = await truth(world.target)
    wrong = [violation for story in load_all(directory) for violation in violations(story, judge)]
    for sync in world.syncs:
        wrong += await differing(sync, judge)
    wrong += [f"{proof.endpoint}: verify: {proof.differences}" for proof in proofs if not proof.equal]
    if len({proof.digest for proof in proofs}) != 1:
        wrong.append(f"all: verify: the processes differ: {[proof.digest for proof in proofs]}")
    wrong += [f"{w.story.name}: reset: it had to begin anew {w.resets} times" for w in watchers if w.resets]
    (directory / "violations.txt").write_text("\n".join(wrong))
    return wrong, sum(story.events for story in stories)


class Head:
    """What `verify_replicas` needs of a connection."""

    def __init__(self, world: Watched) -> None:
        self.storage = world.syncs[0].store
        self.endpoints = {"statesync": ",".join(sync.target for sync in world.syncs)}
        self.timeout_s = TIMEOUT_S


async def differing(sync: StateSync, judge: Truth) -> list[str]:
    """Return where replicas that a process hands out are not the judge's; only the clock still writes."""
    wrong = []
    for twin_id in TWINS:
        answer = await call(
            sync.replicas.GetReplica, statesync_pb2.GetReplicaRequest(twin_id=twin_id), timeout_s=TIMEOUT_S
        )
        state = judge.fold.state("default", twin_id)
        assert state is not None
        if answer.replica.offset <= judge.fold.offset:
            wanted = normal(replica_to_message(state.twin, state.replica))
            if answer.replica.offset == state.replica.offset and normal(answer.replica) != wanted:
                wrong.append(f"{sync.target}: replica: {twin_id} is not the fold of the log")
            elif answer.replica.offset < state.replica.offset <= answer.as_of.offset:
                wrong.append(f"{sync.target}: replica: {twin_id} is older than its answer says")
    return wrong


async def _restart(guardian: Guardian, server: ValkeyServer) -> None:
    """Kill -9 Valkey and start it again at its port."""
    port, pid = server.port, server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while guardian.exit_of(pid) is None:  # noqa: ASYNC110 -- a child of the guardian, which tells us
        await asyncio.sleep(0.005)
    await asyncio.to_thread(server.start, port=port)


def told(outcome: list[str]) -> str:
    return "; ".join(outcome[:3])


async def test_one_of_two_killed_under_watch(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    """The short form: some watchers of each kind, one process killed once."""
    async with watched(guardian, run_dir, database_url, 2) as world:
        watchers = crowd(world.syncs, 1)

        async def nemesis() -> None:
            await asyncio.sleep(1.0)
            await world.kill(0)
            await asyncio.sleep(1.0)

        wrong, events = await under_load(world, run_dir, watchers, nemesis, 50)
    outcome = Outcome(
        name="watch-one-of-two-short", seed=SEED, faults=1, ops=events, violations=len(wrong),
        note=f"{len(watchers)} histories; {told(wrong)}",
    )  # fmt: skip
    report(outcome, run_dir)
    assert wrong == []
    assert events > 100


@pytest.mark.slow
async def test_two_processes_killed_frozen_and_drained_in_turn_and_valkey_too(
    guardian: Guardian, database_url: str, mortal_valkey: ValkeyServer, run_dir: Path, report: Report
) -> None:
    rng = random.Random(SEED)  # noqa: S311 -- chooses faults
    async with watched(guardian, run_dir, database_url, 2, redis_url=mortal_valkey.url()) as world:
        watchers = crowd(world.syncs, 3)

        async def nemesis() -> None:
            for round_number in range(12):
                await asyncio.sleep(rng.uniform(0.5, 1.5))
                number = round_number % 2
                kind = ("kill", "kill", "freeze", "valkey", "drain", "kill")[round_number % 6]
                if kind == "kill":
                    await world.kill(number)
                elif kind == "freeze":
                    await world.freeze(number, 3.0)
                elif kind == "drain":
                    await world.end(number)
                else:
                    world.faults["valkey"] += 1
                    await _restart(guardian, mortal_valkey)
                await answers(world.syncs[number])

        wrong, events = await under_load(world, run_dir, watchers, nemesis, 280)
    outcome = Outcome(
        name="watch-two-processes", seed=SEED, faults=world.faults.total(), ops=events, violations=len(wrong),
        note=f"{len(watchers)} histories; {dict(world.faults)}; {told(wrong)}",
    )  # fmt: skip
    report(outcome, run_dir)
    assert wrong == []
    assert world.faults.total() == 12


@pytest.mark.slow
async def test_the_only_process_killed_again_and_again(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    rng = random.Random(SEED)  # noqa: S311 -- chooses moments
    async with watched(guardian, run_dir, database_url, 1) as world:
        watchers = crowd(world.syncs, 3)

        async def nemesis() -> None:
            for _ in range(8):
                await asyncio.sleep(rng.uniform(0.3, 1.5))
                await world.kill(0)
                await answers(world.syncs[0])

        wrong, events = await under_load(world, run_dir, watchers, nemesis, 280)
    outcome = Outcome(
        name="watch-only-process", seed=SEED, faults=world.faults.total(), ops=events, violations=len(wrong),
        note=f"{len(watchers)} histories; {told(wrong)}",
    )  # fmt: skip
    report(outcome, run_dir)
    assert wrong == []
