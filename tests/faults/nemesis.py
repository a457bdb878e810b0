"""What happens to the mesh meanwhile: a schedule of faults that follows from a seed, each undone before the next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from statistics import median

import psutil
import psycopg
from tests.faults.history import History
from tests.faults.world import Service, World

from twinmesh_local.errors import ServerFailedError
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.valkey import ValkeyServer

KILLS = ("storage", "folding", "ingestion", "postmaster", "valkey")
OTHERS = ("fast restart", "immediate restart", "storage stopped", "commit line stopped", "postgres stopped")
POSTGRES = ("postmaster", "fast restart", "immediate restart")
LEADERS = ("leader", "leader stopped", "leader asked to end")
_FOLD_PATIENCE_S = 3.0
_START_ATTEMPTS = 20


class Nemesis:
    """Does one fault after the other, and measures how long until the next batch is acknowledged.

    Args:
        world: what suffers.
        ledger: tells when something was acknowledged again.
        postgres: a server that may be killed.
        valkey: likewise.
        seed: of the schedule.
        patience_s: longest time from a fault's end to the next acknowledgement.

    Attributes:
        done: faults by kind.
        taken_over: how often another process appended while the leader was stopped.
        recovery_s: from the fault to the next acknowledgement.
        after_s: likewise, of faults of PostgreSQL, from the moment that it accepted connections again.
    """

    def __init__(
        self,
        world: World,
        ledger: History,
        *,
        seed: int,
        postgres: PostgresServer | None = None,
        valkey: ValkeyServer | None = None,
        patience_s: float = 30.0,
    ) -> None:
        self.done: Counter[str] = Counter()
        self.recovery_s: list[float] = []
        self.after_s: list[float] = []
        self.taken_over = 0
        self._world = world
        self._ledger = ledger
        self._postgres = postgres
        self._valkey = valkey
        self._rng = random.Random(seed)  # noqa: S311 -- chooses faults
        self._patience_s = patience_s
        self._acts: dict[str, Callable[[], Awaitable[None]]] = {
            "storage": lambda: self._kill(world.storage),
            "folding": self._kill_folding,
            "ingestion": self._kill_ingestion,
            "postmaster": lambda: self._restart_postgres(signal.SIGKILL),
            "fast restart": lambda: self._restart_postgres(signal.SIGINT),
            "immediate restart": lambda: self._restart_postgres(signal.SIGQUIT),
            "valkey": self._kill_valkey,
            "storage stopped": self._stop_storage,
            "commit line stopped": self._stop_commit_line,
            "postgres stopped": self._stop_postgres,
            "leader": self._kill_leader,
            "leader stopped": self._stop_leader,
            "leader asked to end": self._end_leader,
        }

    def schedule(self, kinds: Iterable[str], count: int) -> list[str]:
        """Return `count` faults, each kind at least once if there is room, in an order that follows from the seed."""
        kinds = list(kinds)
        chosen = [kinds[i % len(kinds)] for i in range(count)]
        self._rng.shuffle(chosen)
        return chosen

    async def run(self, schedule: Iterable[str], *, pause_s: tuple[float, float] = (0.3, 1.2)) -> None:
        """Do the faults at random moments."""
        for kind in schedule:
            await asyncio.sleep(self._rng.uniform(*pause_s))
            began = time.monotonic()
            await self._acts[kind]()
            self.done[kind] += 1
            before, back = self._ledger.acks, time.monotonic()
            while self._ledger.acks == before:
                if time.monotonic() - began > self._patience_s:
                    raise AssertionError(f"nothing was acknowledged within {self._patience_s} s after: {kind}")
                await asyncio.sleep(0.01)
            self.recovery_s.append(time.monotonic() - began)
            if kind in POSTGRES:
                self.after_s.append(time.monotonic() - back)

    def told(self) -> str:
        """Return the figures of the run."""
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(self.done.items()))
        told += f"; recovery median {median(self.recovery_s):.2f} s, longest {max(self.recovery_s):.2f} s"
        if self.after_s:
            told += f"; once PostgreSQL accepts {median(self.after_s):.2f} s, longest {max(self.after_s):.2f} s"
        return told

    async def _kill(self, service: Service) -> None:
        await service.kill()
        service.start()

    async def _kill_ingestion(self) -> None:
        assert self._world.ingestion is not None
        await self._kill(self._world.ingestion)

    async def _kill_leader(self) -> None:
        await self._kill(await self._world.leader())

    async def _stop_leader(self) -> None:
        """Stop it for longer than its lease: another takes over, and it wakes up as a leader of the past."""
        leader = await self._world.leader()
        leader.signal(signal.SIGSTOP)
        try:
            before = self._ledger.acks
            async with asyncio.timeout(self._patience_s):
                while self._ledger.acks == before or await self._world.leader() is leader:  # noqa: ASYNC110 -- data
                    await asyncio.sleep(0.05)
            self.taken_over += 1
        finally:
            leader.signal(signal.SIGCONT)

    async def _end_leader(self) -> None:
        leader = await self._world.leader()
        assert await leader.stop() == 0
        leader.start()

    async def _kill_folding(self) -> None:
        """Kill storage while it copies blocks, or between that and their commit."""
        began = asyncio.Event()
        self._world.on_copy.append(began.set)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(began.wait(), _FOLD_PATIENCE_S)
            await asyncio.sleep(self._rng.uniform(0, 0.01))
            await self._kill(self._world.storage)
        finally:
            self._world.on_copy.remove(began.set)

    async def _restart_postgres(self, number: signal.Signals) -> None:
        assert self._postgres is not None
        await end_and_start(self._world, self._postgres, number)

    async def _kill_valkey(self) -> None:
        server = self._valkey
        assert server is not None
        assert server.pid is not None
        port = server.port
        os.kill(server.pid, signal.SIGKILL)
        await _gone(self._world, server.pid)
        await asyncio.sleep(self._rng.uniform(0.0, 0.5))
        await asyncio.to_thread(server.start, port=port)

    async def _stop_storage(self) -> None:
        self._world.storage.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.uniform(0.2, 2.0))
        finally:
            self._world.storage.signal(signal.SIGCONT)

    async def _stop_commit_line(self) -> None:
        async with stopped(await backends(self._world.database_url, "twinmesh-sequencer")):
            await asyncio.sleep(self._rng.uniform(0.2, 2.0))

    async def _stop_postgres(self) -> None:
        assert self._postgres is not None
        async with stopped(family(self._postgres)):
            await asyncio.sleep(self._rng.uniform(0.2, 2.0))


async def end_and_start(world: World, server: PostgresServer, number: signal.Signals) -> None:
    """Send the postmaster a signal that ends it, and start it again on its port."""
    assert server.pid is not None
    port, pid = server.port, server.pid
    if world.guardian.exit_of(pid) is None:
        os.kill(pid, number)
    await _gone(world, pid)
    for attempt in range(_START_ATTEMPTS):
        try:
            await asyncio.to_thread(server.start, port=port)
            return
        except ServerFailedError:
            # Backends of the killed postmaster notice its end in their own time, and until then a new one refuses.
            if attempt == _START_ATTEMPTS - 1:
                raise
            await asyncio.sleep(0.2)


async def _gone(world: World, pid: int) -> None:
    while world.guardian.exit_of(pid) is None:  # noqa: ASYNC110 -- a child of the guardian, which tells us
        await asyncio.sleep(0.005)


async def backends(url: str, application: str) -> list[int]:
    """Return the processes that serve connections whose name begins like this."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(
            "select pid from pg_stat_activity where starts_with(application_name, %s) and datname = current_database()",
            (application,),
        )
        return [row[0] for row in await cursor.fetchall()]


def family(server: PostgresServer) -> list[int]:
    """Return the postmaster and all its children."""
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    return [postmaster.pid, *(child.pid for child in postmaster.children(recursive=True))]


@contextlib.asynccontextmanager
async def stopped(pids: list[int]) -> AsyncIterator[None]:
    """Stop processes for a while; they go on in any case."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
