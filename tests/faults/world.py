"""The real service processes under fault tests, children of a guardian, and the proxies between them."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import grpc.aio
import psycopg
from tests.faults.points import PROBE
from tests.faults.proxy import Http2Reader, PostgresReader, Proxy, Scissors, proxy
from tests.integration.storage.mesh import Storage

from twinmesh.ingestion.v1 import ingestion_pb2_grpc
from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import entry_pb2, twin_pb2
from twinmesh_client.registry_mapping import twin_type_to_message
from twinmesh_client.transport import open_channel
from twinmesh_core.errors import TwinmeshError
from twinmesh_local.processes import Guardian, ProcessSpec

ROOT: Final = Path(__file__).resolve().parents[2]
_names = itertools.count(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """One service process on a port of its own, which it keeps over its lives.

    Args:
        token: storage or ingestion.
        program: what Python runs, ``-m twinmesh_<token>`` by default; canaries run a broken one.
    """

    def __init__(
        self, guardian: Guardian, log: Path, token: str, program: Sequence[str] = (), **settings: object
    ) -> None:
        self.port = free_port()
        self.log = log
        self.kills = 0
        self.pid = 0
        self._guardian = guardian
        self._name = f"faults-{token}-{next(_names)}"
        self._argv = [sys.executable, *(program or ("-m", f"twinmesh_{token}"))]
        prefix = f"TWINMESH_{token.upper()}_"
        self._env = {
            **os.environ,
            f"{prefix}PORT": str(self.port),
            f"{prefix}METRICS_PORT": "0",
            **{f"{prefix}{name.upper()}": str(value) for name, value in settings.items()},
        }

    def configure(self, **variables: str) -> None:
        """Set whole variables for the next start."""
        self._env.update(variables)

    def start(self) -> None:
        """Start it; returns before it serves."""
        self.pid = self._guardian.spawn(
            ProcessSpec(name=self._name, argv=self._argv, log=self.log, env=self._env, cwd=ROOT)
        )

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return bool(self.pid) and self._guardian.exit_of(self.pid) is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._guardian.signal(self._name, number)

    async def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        if self.runs:
            self.kills += 1
            self.signal(signal.SIGKILL)
            await self._gone()

    async def stop(self) -> int:
        """Stop it properly; returns its exit code."""
        self.signal(signal.SIGTERM)
        await self._gone()
        ended = self._guardian.exit_of(self.pid)
        assert ended is not None
        return ended.code

    async def _gone(self) -> None:
        while self.runs:  # noqa: ASYNC110 -- a child of the guardian, which tells us
            await asyncio.sleep(0.005)

    def end(self) -> None:
        """End it whatever it does; for clean-up."""
        if self.runs:
            self.signal(signal.SIGCONT)
            self._guardian.stop(self._name)


@dataclass(slots=True)
class World:
    """Storage processes, with ingestion before them if wanted, and proxies on every hop.

    Attributes:
        database_url: PostgreSQL itself, without a proxy.
        storages: the storage processes, of which one leads.
        stores: a client of each, without a proxy.
        postgres_hop: between storage and PostgreSQL.
        storage_hops: before each storage process; the others reach it there too.
        ingestion_hop: before ingestion.
        on_copy: told when storage begins to copy a fold.
    """

    guardian: Guardian
    directory: Path
    database_url: str
    postgres_hop: Proxy
    on_copy: list[Callable[[], None]]
    storages: list[Service] = field(default_factory=list)
    stores: list[Storage] = field(default_factory=list)
    storage_hops: list[Proxy] = field(default_factory=list)
    ingestion: Service | None = None
    ingestion_hop: Proxy | None = None

    @property
    def storage(self) -> Service:
        """The first storage process."""
        return self.storages[0]

    @property
    def store(self) -> Storage:
        """Its client."""
        return self.stores[0]

    @property
    def storage_hop(self) -> Proxy:
        """The proxy before it."""
        return self.storage_hops[0]

    @property
    def hops(self) -> tuple[Proxy, ...]:
        """Every proxy."""
        return (self.postgres_hop, *self.storage_hops, *((self.ingestion_hop,) if self.ingestion_hop else ()))

    @property
    def kills(self) -> int:
        """How often services were killed by `Service.kill`."""
        return sum(s.kills for s in self.storages) + (self.ingestion.kills if self.ingestion else 0)

    async def leader(self) -> Service:
        """Return the storage process that holds the lease."""
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as connection:
            while True:
                cursor = await connection.execute("select lease_holder from storage.partition_state")
                row = await cursor.fetchone()
                for storage in self.storages:
                    if row is not None and f"/{storage.pid}/" in row[0] and storage.runs:
                        return storage
                await asyncio.sleep(0.02)

    async def all_ready(self) -> int:
        """Wait until every storage process answers and knows the head; returns it."""
        for store in self.stores:
            await ready(store)
        heads = [0]
        while True:
            found = [
                (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position.offset for store in self.stores
            ]
            if len(set(found)) == 1 and found[0] >= max(heads):
                return found[0]
            heads += found
            await asyncio.sleep(0.05)

    async def folded(self) -> None:
        """Wait until every observation is in blocks; the offset of the fold has no public way to be read."""
        async with await psycopg.AsyncConnection.connect(self.database_url, autocommit=True) as connection:
            while True:
                cursor = await connection.execute(
                    "select (select fold_offset from storage.fold_state) >="
                    " coalesce((select max(log_offset) from storage.log where kind = 1), 0)"
                )
                row = await cursor.fetchone()
                if row is not None and row[0]:
                    return
                await asyncio.sleep(0.05)

    async def make_twins(self, twins: Sequence[str]) -> None:
        """Create the type and the twins, as state-sync does."""
        made = entry_pb2.CreateTwinTypeEntry(twin_type=twin_type_to_message(PROBE))
        await self.control("type", create_twin_type=made)
        for twin in twins:
            created = entry_pb2.CreateTwinEntry(twin=twin_pb2.Twin(twin_id=twin, twin_type_id="probe"))
            await self.control(f"twin-{twin}", create_twin=created)

    async def control(self, request_id: str, **action: Any) -> None:
        """Append a control entry."""
        entry = entry_pb2.ControlEntry(request_id=request_id, principal="faults", **action)
        await self.store.ask("Append", storage_pb2.AppendRequest(control=entry, request_id=request_id))


async def ready(store: Storage, timeout_s: float = 40.0) -> float:
    """Wait until storage appends; returns how long that took."""
    started = time.monotonic()
    number = itertools.count(1)
    while True:
        try:
            # A producer of nobody: it must reach the database, and writes nothing to the log.
            request = storage_pb2.OpenProducerRequest(producer_id=f"probe-{next(number)}")
            await store.ask("OpenProducer", request, timeout_s=2.0)
            return time.monotonic() - started
        except TwinmeshError:
            if time.monotonic() - started > timeout_s:
                raise
            await asyncio.sleep(0.05)


def through(url: str, port: int) -> str:
    """Return the URL with another port."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rsplit(':', 1)[0]}:{port}"))


@asynccontextmanager
async def storage_client(port: int) -> AsyncIterator[Storage]:
    """Yield a client of a storage process."""
    async with open_channel(f"127.0.0.1:{port}") as channel:
        assert isinstance(channel, grpc.aio.Channel)
        yield Storage(f"127.0.0.1:{port}", channel, storage_pb2_grpc.StorageServiceStub(channel))


@asynccontextmanager
async def ingestion_client(port: int) -> AsyncIterator[Any]:
    """Yield a stub of an ingestion process."""
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield ingestion_pb2_grpc.IngestionServiceStub(channel)


@asynccontextmanager
async def world(
    guardian: Guardian,
    directory: Path,
    database_url: str,
    *,
    seed: int,
    with_ingestion: bool = False,
    lose: Mapping[str, float] = MappingProxyType({}),
    program: Sequence[str] = (),
    processes: int = 1,
    **settings: object,
) -> AsyncIterator[World]:
    """Run storage (and ingestion) behind proxies.

    Args:
        lose: share of answers that are lost, by kind: those of `PostgresReader`; ``append`` = of storage on their way
            to ingestion, or to whoever appends; ``ack`` = of ingestion on their way to the producers.
        program: run instead of storage.
        processes: how many storage processes.
        settings: of storage.
    """
    rng = random.Random(seed)  # noqa: S311 -- chooses faults
    port = urlsplit(database_url).port
    assert port is not None
    on_copy: list[Callable[[], None]] = []

    def copying() -> None:
        for told in on_copy:
            told()

    def scissors(kinds: Iterable[str]) -> Scissors:
        return Scissors(random.Random(rng.random()), {k: lose.get(k, 0.0) for k in kinds})  # noqa: S311 -- likewise

    async with AsyncExitStack() as stack:
        postgres_hop = await stack.enter_async_context(
            proxy(port, lambda: PostgresReader(copying), scissors(("commit", "early", "fold", "read")))
        )
        made = World(guardian, directory, database_url, postgres_hop, on_copy)
        chosen: dict[str, object] = {"fold_after_s": 0.2, "fold_rows": 5_000, "database_timeout_s": 5.0, **settings}
        url = through(database_url, postgres_hop.port)
        for number in range(processes):
            log = directory / f"storage-{number}.log"
            storage = Service(guardian, log, "storage", program, database_url=url, **chosen)
            reader = partial(Http2Reader, "append", streamed=False, stream=b"AppendStream")
            hop = await stack.enter_async_context(proxy(storage.port, reader, scissors(("append",))))
            storage.configure(TWINMESH_STORAGE_ADVERTISE=f"127.0.0.1:{hop.port}")
            stack.callback(storage.end)
            storage.start()
            made.storages.append(storage)
            made.storage_hops.append(hop)
            made.stores.append(await stack.enter_async_context(storage_client(storage.port)))
        if with_ingestion:
            made.ingestion = Service(
                guardian, directory / "ingestion.log", "ingestion", append_timeout_s=3.0, storage_patience_s=20.0
            )
            made.ingestion.configure(
                TWINMESH_MESH_STORAGE=",".join(f"127.0.0.1:{hop.port}" for hop in made.storage_hops)
            )
            stack.callback(made.ingestion.end)
            made.ingestion.start()
            made.ingestion_hop = await stack.enter_async_context(
                proxy(made.ingestion.port, lambda: Http2Reader("ack", streamed=True), scissors(("ack",)))
            )
        await made.all_ready()
        yield made
