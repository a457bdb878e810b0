"""The members of a local mesh: each knows how to start once more and what to say about itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from twinmesh_local.errors import LocalMeshError, ServerFailedError
from twinmesh_local.health import is_ready, open_health_channel
from twinmesh_local.logs import log_tail
from twinmesh_local.ports import LOOPBACK, listens_on
from twinmesh_local.processes import Guardian, ProcessSpec
from twinmesh_local.status import Report, ServerState, ServerStatus

_POLL_S = 0.05


class LocalServer(Protocol):
    """PostgreSQL, Valkey or Triton, as this package starts them."""

    pid: int | None

    @property
    def log(self) -> Path:
        """Its log file."""

    @property
    def port(self) -> int:
        """The port it listens on."""

    def start(self, *, timeout_s: float = ..., port: int | None = None) -> None:
        """Start, blocking, and return when it serves."""


class Member:
    """One server of the mesh and where it is in its life.

    Args:
        name: of its process.
        guardian: parent of the process.
        report: told about changes.
        log: its log file.
    """

    def __init__(self, name: str, guardian: Guardian, report: Report, *, log: Path) -> None:
        self.name = name
        self.pid = 0
        self._guardian = guardian
        self._report = report
        self._log = log
        self._state = ServerState.STARTING
        self._restarts = 0
        self._last_exit: int | None = None
        self._ready_after_s = 0.0
        self._endpoint = ""
        self._exited = asyncio.Event()

    @property
    def status(self) -> ServerStatus:
        """What is known about it now."""
        return ServerStatus(
            name=self.name,
            state=self._state,
            endpoint=self._endpoint,
            pid=self.pid,
            restarts=self._restarts,
            last_exit=self._last_exit,
            ready_after_s=self._ready_after_s,
            log=self._log,
        )

    def wake(self) -> None:
        """Called whenever a process of this name has ended."""
        self._exited.set()

    async def start(self, *, timeout_s: float, began: float) -> None:
        """Start it and return when it is ready.

        Args:
            timeout_s: longest wait.
            began: `time.monotonic` of the moment that `ready_after_s` counts from.

        Raises:
            ServerFailedError: it ended, or was not ready in time.
        """
        await self._start(timeout_s)
        self._ready_after_s = time.monotonic() - began
        self._change(ServerState.READY)

    async def restart(self, *, timeout_s: float) -> None:
        """Start it again on the same port after it ended; raises as `start`."""
        self._restarts += 1
        await self.start(timeout_s=timeout_s, began=time.monotonic())

    async def ended(self) -> None:
        """Return when its process has ended by itself."""
        while (found := self._guardian.exit_of(self.pid)) is None:
            self._exited.clear()
            await self._exited.wait()
        self._last_exit = found.code
        self.pid = 0
        self._change(ServerState.RESTARTING)

    async def check(self) -> None:
        """Ask it how it is, where it can be asked."""

    def mark_stopped(self) -> None:
        """Note that it was stopped with the mesh."""
        self.pid = 0
        self._change(ServerState.STOPPED)

    async def close(self) -> None:
        """Let go of what is needed to watch it."""

    async def _start(self, timeout_s: float) -> None:
        raise LocalMeshError(f"{self.name} cannot be started", remedy="use ServerMember or ServiceMember")

    def _change(self, state: ServerState) -> None:
        if state != self._state:
            self._state = state
            self._report(self.status)


class ServerMember(Member):
    """PostgreSQL, Valkey or Triton: it knows itself when it is ready, and checks itself while it starts."""

    def __init__(self, name: str, guardian: Guardian, report: Report, server: LocalServer) -> None:
        super().__init__(name, guardian, report, log=server.log)
        self._server = server
        self._port: int | None = None

    async def _start(self, timeout_s: float) -> None:
        await asyncio.to_thread(self._server.start, timeout_s=timeout_s, port=self._port)
        self.pid = self._server.pid or 0
        self._port = self._server.port
        self._endpoint = f"{LOOPBACK}:{self._port}"


class ServiceMember(Member):
    """One of the five services: ready when its health service says so.

    Args:
        spec: makes the description of its process; called anew for each start.
        endpoint: ``host:port`` of its gRPC.
    """

    def __init__(self, guardian: Guardian, report: Report, *, spec: Callable[[], ProcessSpec], endpoint: str) -> None:
        self._make_spec = spec
        first = spec()
        super().__init__(first.name, guardian, report, log=first.log)
        self._endpoint = endpoint
        self._port = int(endpoint.rpartition(":")[2])
        self._channel = open_health_channel(endpoint)

    async def check(self) -> None:
        """Follow its own word on whether it is ready."""
        if self._state in {ServerState.READY, ServerState.NOT_READY}:
            ready = await is_ready(self._channel)
            # It may have ended while we asked, which is told elsewhere.
            if self._state in {ServerState.READY, ServerState.NOT_READY}:
                self._change(ServerState.READY if ready else ServerState.NOT_READY)

    async def close(self) -> None:
        """Close the channel it was asked through."""
        await self._channel.close()

    async def _start(self, timeout_s: float) -> None:
        self.pid = await asyncio.to_thread(self._guardian.spawn, self._make_spec())
        deadline = time.monotonic() + timeout_s
        # Its own word counts only if it is the one who speaks: another program may have taken the port meanwhile.
        while not (await is_ready(self._channel) and listens_on(self.pid, self._port)):
            ended = self._guardian.exit_of(self.pid)
            if ended is not None:
                raise ServerFailedError(
                    f"{self.name} ended with status {ended.code} while it started:{log_tail(self._log)}",
                    remedy=f"see {self._log}",
                )
            if time.monotonic() > deadline:
                await asyncio.to_thread(self._guardian.stop, self.name)
                raise ServerFailedError(
                    f"{self.name} was not ready within {timeout_s:.0f} s:{log_tail(self._log)}",
                    remedy=f"see {self._log}",
                )
            await asyncio.sleep(_POLL_S)
