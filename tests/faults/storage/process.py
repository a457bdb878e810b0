"""A storage process of its own, to be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from tests.integration.storage.mesh import Storage

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh_client.transport import open_channel
from twinmesh_core.errors import TwinmeshError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StorageProcess:
    """``python -m twinmesh_storage`` on a port of its own, which it keeps over its lives."""

    def __init__(self, database_url: str, log: Path, **settings: str) -> None:
        self.port = free_port()
        self._log = log
        self._environment = {
            **os.environ,
            "TWINMESH_STORAGE_DATABASE_URL": database_url,
            "TWINMESH_STORAGE_PORT": str(self.port),
            "TWINMESH_STORAGE_METRICS_PORT": str(free_port()),
            **{f"TWINMESH_STORAGE_{name.upper()}": value for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "twinmesh_storage"], env=self._environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Stop it properly; returns its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=20)


async def ready(store: Storage, timeout_s: float = 20.0) -> float:
    """Wait until the process answers; returns how long that took."""
    started = time.monotonic()
    while True:
        try:
            await store.ask("GetHead", storage_pb2.GetHeadRequest(), timeout_s=1.0)
            return time.monotonic() - started
        except TwinmeshError:
            if time.monotonic() - started > timeout_s:
                raise
            await asyncio.sleep(0.05)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Storage]:
    """Yield a client of the process, without retries of its own that would blur the ledger."""
    async with open_channel(f"127.0.0.1:{port}") as channel:
        assert isinstance(channel, grpc.aio.Channel)
        yield Storage(f"127.0.0.1:{port}", channel, storage_pb2_grpc.StorageServiceStub(channel))
