"""Watchers of every temper, the load they watch, and the state-sync processes that are killed under them."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from tests.faults.watch_judge import Truth
from tests.faults.watch_story import Session, Story
from tests.faults.world import Service
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, connect

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2, twin_pb2
from twinmesh_client.transport import call, open_blocking_channel, open_channel, stream, tenant_metadata
from twinmesh_core import wire
from twinmesh_core.errors import Reason, TwinmeshError
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_local.processes import Guardian
from twinmesh_statesync.adapters.storage_log import StorageLog
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.entries import LogEntry
from twinmesh_statesync.rpc.mapping.control import control_from_message, control_to_message

_RESET: Final = (Reason.COMPACTED, Reason.LOG_REWOUND, Reason.FUTURE_OFFSET)
_SLOW_S: Final = 0.05
_FROZEN_S: Final = 1.5


class Watcher:
    """One watcher, which writes down all it is told and comes back whenever its stream ends.

    Args:
        syncs: the processes; each session goes to the next of them.
        temper: prompt; slow (pauses after each frame); frozen (stops reading for a while, now and then); vanishing
            (leaves after a few frames and comes back).
        seed: of what it does when.
    """

    def __init__(
        self,
        syncs: Sequence[StateSync],
        temper: str,
        *,
        seed: int,
        twin_ids: frozenset[str] = frozenset(),
        latest: bool = False,
    ) -> None:
        self.story = Story(f"{temper}-{seed}", twin_ids, latest, prompt=temper == "prompt")
        self.through = -1
        self.resets = 0
        self._next = itertools.cycle(syncs)
        self._temper = temper
        self._rng = random.Random(seed)  # noqa: S311 -- chooses moments
        for _ in range(seed % len(syncs)):
            next(self._next)

    async def run(self, done: Callable[[int], bool]) -> None:
        """Watch until `done` says that a position is far enough."""
        resume = self.through if self.through >= 0 else None
        while not done(self.through):
            session = Session(resume)
            self.story.sessions.append(session)
            try:
                await self._session(session, done)
            except TwinmeshError as error:
                session.ended = str(error.reason or error.code)
                if error.reason in _RESET:
                    self.resets += 1
                    self.through = -1
            resume = self.through if self.through >= 0 else None
            await asyncio.sleep(0.05)

    async def _session(self, session: Session, done: Callable[[int], bool]) -> None:
        request = statesync_pb2.WatchRequest(
            twin_ids=sorted(self.story.twin_ids),
            policy=statesync_pb2.WATCH_POLICY_LATEST if self.story.latest else statesync_pb2.WATCH_POLICY_RELIABLE,
            bookmark_interval=Duration(nanos=500_000_000),
        )
        if session.resume is not None:
            request.resume_after.CopyFrom(position_pb2.LogPosition(offset=session.resume))
        frames_wanted = self._rng.randint(1, 20) if self._temper == "vanishing" else 0
        synced = session.resume is not None
        async with aclosing(stream(next(self._next).replicas.Watch, request, timeout_s=None)) as frames:
            async for frame in frames:
                session.frames.append(frame.SerializeToString())
                session.at_s.append(time.monotonic())
                synced = synced or frame.synced
                if synced and frame.HasField("through"):
                    self.through = max(self.through, frame.through.offset)
                if done(self.through) or len(session.frames) == frames_wanted:
                    session.ended = "left"
                    return
                if self._temper == "slow":
                    await asyncio.sleep(_SLOW_S)
                elif self._temper == "frozen" and self._rng.random() < 0.02:
                    await asyncio.sleep(_FROZEN_S)
        session.ended = "ended"


class Load:
    """Facts for several twins in one entry, desired values, and twins that come and go.

    Args:
        syncs: any of them is written to.
        twins: ids of those that stay.
    """

    def __init__(self, syncs: Sequence[StateSync], twins: Sequence[str], *, seed: int = 1) -> None:
        self.offset = 0
        self.entries = 0
        self._syncs = itertools.cycle(syncs)
        self._store = syncs[0].store
        self._twins = list(twins)
        self._rng = random.Random(seed)  # noqa: S311 -- chooses what is written
        self._series: dict[str, SeriesKey] = {}
        # Of now, not of the import: values that lie minutes behind are a replay to the server.
        self._time = time.time_ns() // 1_000

    async def begin(self, sync: StateSync) -> None:
        """Create the type and the twins."""
        await sync.make_type()
        for twin_id in self._twins:
            await sync.make_twin(twin_id)
        keys = [
            observation_pb2.SeriesKey(
                twin_id=t, channel="temperature", unit="Cel", kind=observation_pb2.CHANNEL_KIND_GAUGE
            )
            for t in self._twins
        ]
        ids = await self._ask("ResolveSeries", storage_pb2.ResolveSeriesRequest(series=keys))
        for twin_id, series_id in zip(self._twins, ids.series_id, strict=True):
            self._series[twin_id] = SeriesKey(
                twin_id=twin_id, channel="temperature", unit="Cel", kind=ChannelKind.GAUGE, series_id=series_id,
                twin_type_id="pump", twin_type_version=1,
            )  # fmt: skip

    async def run(self, goes_on: Callable[[], bool], pause_s: float = 0.004) -> None:
        """Write until told to stop; what fails while a process is away is left."""
        for number in itertools.count():
            if not goes_on():
                return
            try:
                await self._write(number)
                self.entries += 1
            except TwinmeshError:
                await asyncio.sleep(0.05)
            await asyncio.sleep(pause_s)

    async def facts(self, count: int = 4) -> int:
        """Append one entry with facts of several twins; returns its offset."""
        chosen = self._rng.sample(self._twins, min(count, len(self._twins)))
        self._time += 1_000
        batch = ObservationBatch(
            series=tuple(self._series[t] for t in chosen),
            doubles=double_section(
                list(range(len(chosen))),
                [self._time] * len(chosen),
                [self._rng.random() for _ in chosen],
                [1] * len(chosen),
            ),
        )
        answer = await self._ask("Append", storage_pb2.AppendRequest(observations=wire.encode(batch)))
        self.offset = max(self.offset, answer.position.offset)
        return self.offset

    async def _write(self, number: int) -> None:
        if number % 40 == 17:
            sync = next(self._syncs)
            request = statesync_pb2.SetDesiredRequest(
                twin_id=self._rng.choice(self._twins),
                values={"target": observation_pb2.Value(double_value=self._rng.random())},
            )
            await call(sync.replicas.SetDesired, request, timeout_s=2.0)
        elif number % 200 == 99:
            sync, name = next(self._syncs), f"guest-{number % 3}"
            twin = twin_pb2.Twin(twin_id=name, twin_type_id="pump")
            await call(sync.twins.CreateTwin, statesync_pb2.CreateTwinRequest(twin=twin, if_absent=True), timeout_s=2.0)
            await call(sync.twins.DeleteTwin, statesync_pb2.DeleteTwinRequest(twin_id=name), timeout_s=2.0)
        else:
            await self.facts()

    async def _ask(self, method: str, request: Any) -> Any:
        return await call(
            getattr(self._store, method), request, timeout_s=TIMEOUT_S, metadata=tenant_metadata("default")
        )


def statesync_process(
    guardian: Guardian, directory: Path, database_url: str, storage_target: str, number: int = 0, **settings: object
) -> Service:
    """Return a state-sync process that is not started yet."""
    chosen: dict[str, object] = {
        "database_url": database_url,
        "checkpoint_interval_s": 0.5,
        "lease_s": 2.0,
        "lease_beat_s": 0.2,
        "drain_grace_s": 2.0,
        **settings,
    }
    made = Service(guardian, directory / f"statesync-{number}.log", "statesync", (), **chosen)
    made.configure(TWINMESH_MESH_STORAGE=storage_target)
    return made


@asynccontextmanager
async def clients(storage_target: str, ports: Sequence[int]) -> AsyncIterator[list[StateSync]]:
    """Yield a client of each process, with a channel of its own."""
    async with AsyncExitStack() as stack:
        yield [await connect(stack, f"127.0.0.1:{port}", storage_target) for port in ports]


async def answers(sync: StateSync, timeout_s: float = 40.0) -> None:
    """Wait until a process answers."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                await call(sync.twins.ListTwins, statesync_pb2.ListTwinsRequest(), timeout_s=2.0)
                return
            except TwinmeshError:
                await asyncio.sleep(0.05)


async def whole_log(storage_target: str) -> list[LogEntry]:
    """Return every entry up to the head."""
    async with open_channel(storage_target) as channel:
        reading = open_blocking_channel(storage_target)
        log = StorageLog(channel, reading=reading, encode=control_to_message, decode=control_from_message)
        head = await log.head()
        entries: list[LogEntry] = []
        async with aclosing(log.follow(Position(incarnation="", offset=0))) as frames, asyncio.timeout(TIMEOUT_S):
            async for frame in frames:
                entries += frame.entries
                if frame.through.offset >= head.offset:
                    return entries
    raise AssertionError("a follow ended by itself")


async def truth(storage_target: str) -> Truth:
    """Return the log's own fold."""
    return Truth(await whole_log(storage_target))
