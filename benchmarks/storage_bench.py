"""What the storage benchmarks share: servers, a storage process, and floors measured beside it."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psycopg

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.transport import call, open_channel
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, Section, SeriesKey
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian

T0 = 1_700_000_000_000_000
S = 1_000_000


@contextmanager
def database() -> Iterator[str]:
    """Yield the URL of a PostgreSQL of one's own, as durable as in production."""
    with server() as running:
        yield running.url()


@contextmanager
def server() -> Iterator[PostgresServer]:
    """Yield that PostgreSQL."""
    directory = Path(tempfile.mkdtemp(prefix="twinmesh-bench-"))
    directory.chmod(0o711)
    try:
        with Guardian(log=directory / "guardian.log") as guardian:
            postgres = PostgresServer(guardian, directory, log_dir=directory)
            postgres.start()
            yield postgres
            postgres.stop()
            postgres.remove_data()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage process and a client of it."""

    stub: storage_pb2_grpc.StorageServiceAsyncStub
    process: subprocess.Popen[bytes]
    target: str

    async def series(self, twin: str, count: int, interval_us: int = S) -> tuple[SeriesKey, ...]:
        """Return dictionary entries of `count` gauges of a twin."""
        channels = [f"c{i}" for i in range(count)]
        keys = [
            observation_pb2.SeriesKey(twin_id=twin, channel=c, kind=observation_pb2.CHANNEL_KIND_GAUGE)
            for c in channels
        ]
        request = storage_pb2.ResolveSeriesRequest(series=keys, expected_interval_us=[interval_us] * count)
        answer = await call(self.stub.ResolveSeries, request, timeout_s=60)
        return tuple(
            SeriesKey(twin_id=twin, channel=c, series_id=i, kind=ChannelKind.GAUGE)
            for c, i in zip(channels, answer.series_id, strict=True)
        )

    def cpu_s(self) -> float:
        """Return the CPU time the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> float:
        """Return the most memory the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


@asynccontextmanager
async def storage(url: str, **settings: str) -> AsyncIterator[Storage]:
    """Run a storage process on the database."""
    port = free_port()
    process = start_service("storage", port, DATABASE_URL=url, **{k.upper(): v for k, v in settings.items()})
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            stub = storage_pb2_grpc.StorageServiceStub(channel)
            started = time.monotonic()
            while True:
                try:
                    await call(stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=1)
                    break
                except TwinmeshError:
                    if time.monotonic() - started > 30:
                        raise
            yield Storage(stub, process, f"127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=20)


def start_service(token: str, port: int, mesh: str = "", **settings: str) -> subprocess.Popen[bytes]:
    """Start a service process; `mesh` is where storage listens."""
    environment = {
        **os.environ,
        f"TWINMESH_{token.upper()}_PORT": str(port),
        f"TWINMESH_{token.upper()}_METRICS_PORT": str(free_port()),
        f"TWINMESH_{token.upper()}_LOG_LEVEL": "WARNING",
        "TWINMESH_MESH_STORAGE": mesh,
        # Keeps large messages from being given back to the kernel and faulted in again.
        "MALLOC_MMAP_THRESHOLD_": "268435456",
        "MALLOC_TRIM_THRESHOLD_": "268435456",
        "MALLOC_ARENA_MAX": "2",
        **{f"TWINMESH_{token.upper()}_{name}": value for name, value in settings.items()},
    }
    return subprocess.Popen([sys.executable, "-m", f"twinmesh_{token}"], env=environment)


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def narrow_copy(series: npt.NDArray[np.int64], ts: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> bytes:
    """Return a binary COPY file of the narrow table (series int8, ts timestamptz, value float8, quality int2)."""
    row = np.dtype(
        [("n", ">i2"), ("l0", ">i4"), ("s", ">i8"), ("l1", ">i4"), ("t", ">i8"), ("l2", ">i4"), ("v", ">f8"),
         ("l3", ">i4"), ("q", ">i2")]
    )  # fmt: skip
    rows = np.empty(len(ts), row)
    rows["n"], rows["l0"], rows["l1"], rows["l2"], rows["l3"] = 4, 8, 8, 8, 2
    rows["s"], rows["t"], rows["v"], rows["q"] = series, ts - 946_684_800_000_000, values, 1
    return b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0) + rows.tobytes() + struct.pack("!h", -1)


def create_narrow(conn: psycopg.Connection[tuple[object, ...]], name: str, unique: bool) -> None:
    """Create an empty narrow table."""
    conn.execute(f"drop table if exists {name}")
    key = ", unique (series, ts)" if unique else ""
    conn.execute(f"create table {name} (series int8, ts timestamptz, value float8, quality int2{key})")
    conn.commit()


def copy_floor(url: str, name: str, unique: bool, copy: bytes) -> float:
    """Return the seconds that COPY of prebuilt bytes takes from one client, commit included: what ``\\copy`` does."""
    with psycopg.connect(url) as conn:
        create_narrow(conn, name, unique)
        started = time.perf_counter()
        with conn.cursor() as cursor, cursor.copy(f"copy {name} from stdin (format binary)") as sink:
            for at in range(0, len(copy), 1 << 18):
                sink.write(copy[at : at + (1 << 18)])
        conn.commit()
        return time.perf_counter() - started


def batch(keys: tuple[SeriesKey, ...], first_tick: int, ticks: int, step_us: int = S) -> ObservationBatch:
    """Return `ticks` steps of all series, in the order in which live telemetry arrives."""
    n = len(keys) * ticks
    tick = np.repeat(np.arange(first_tick, first_tick + ticks), len(keys))
    handle = np.tile(np.arange(len(keys), dtype=np.uint32), ticks)
    return ObservationBatch(
        series=keys,
        doubles=Section(
            series=handle,
            time_unix_us=T0 + tick * step_us,
            quality=np.ones(n, np.uint8),
            values=np.round(20 + np.sin(tick / 500 + handle) * 5, 2),
        ),
    )
