"""The local mesh: servers and services started together, kept running, and stopped together."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

from twinmesh_client.context import Context, load_context, process_start_of, remove_context, save_context
from twinmesh_local.datadir import DataDir, default_data_dir
from twinmesh_local.errors import LocalMeshError
from twinmesh_local.members import Member, ServerMember, ServiceMember
from twinmesh_local.ports import LOOPBACK, MAX_FURTHER, SERVICE_TOKENS, PortBlock, claim_port_block
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian, ProcessExit, ProcessSpec
from twinmesh_local.services import Backends, Command, python_module, service_environment, service_spec
from twinmesh_local.status import Report, ServerState, ServerStatus
from twinmesh_local.triton import TritonServer
from twinmesh_local.valkey import ValkeyServer

T = TypeVar("T")
MemberT = TypeVar("MemberT", bound=Member)

DEFAULT_CONTEXT = "local"
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 60.0
_CHECK_EVERY_S = 1.0
_BACKOFF_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_AFTER_S = 30.0
"""A server that ran this long starts again without delay should it end."""


class LocalMesh:
    """PostgreSQL, Valkey, Triton and the services on loopback, for the length of an ``async with``.

    Leaving the block stops everything in order; whatever ends this process otherwise, even SIGKILL, its guardian does
    the same. A server that ends by itself is started again on the same port.

    Args:
        data_dir: where everything is kept; None = `datadir.default_data_dir`.
        services: tokens of the services to start.
        with_triton: start Triton too; without it inference cannot answer, everything else works.
        statesync: how many processes of state-sync share its work, 1 to 6.
        ports: first port of the block for the services; None = 7400, or the next free block.
        context: name to save the context under; None saves none. A name that another running mesh holds is left to it.
        report: told about every change of a server's state.
        environment: more environment variables for the services; they win over what the mesh decides.
        command: program and arguments of a service by its token; for tests.
        start_timeout_s: longest wait for each server to be ready.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        services: Collection[str] = SERVICE_TOKENS,
        with_triton: bool = True,
        statesync: int = 1,
        ports: int | None = None,
        context: str | None = DEFAULT_CONTEXT,
        report: Report | None = None,
        environment: Mapping[str, str] | None = None,
        command: Command = python_module,
        start_timeout_s: float = _START_TIMEOUT_S,
    ) -> None:
        unknown = sorted(set(services) - set(SERVICE_TOKENS))
        if unknown:
            raise LocalMeshError(
                f"no service is called {unknown[0]}", remedy=f"choose from {', '.join(SERVICE_TOKENS)}"
            )
        if not 1 <= statesync <= MAX_FURTHER + 1:
            raise LocalMeshError(
                f"{statesync} processes of state-sync cannot run here", remedy=f"choose 1 to {MAX_FURTHER + 1}"
            )
        self._processes = {"statesync": statesync}
        self._data = DataDir(data_dir or default_data_dir())
        self._tokens = tuple(t for t in SERVICE_TOKENS if t in services)
        self._with_triton = with_triton
        self._wanted_ports = ports
        self._wanted_context = context
        self._report = report or _tell_nobody
        self._environment = dict(environment or {})
        self._command = command
        self._start_timeout_s = start_timeout_s
        self._members: dict[str, Member] = {}
        self._lost = asyncio.Event()
        self._stack = AsyncExitStack()
        self._guardian: Guardian | None = None
        self._block: PortBlock | None = None
        self._backends: Backends | None = None
        self._context: Context | None = None
        self._triton: TritonServer | None = None

    # --- what callers ask ---

    @property
    def data_dir(self) -> Path:
        """Where everything is kept."""
        return self._data.path

    @property
    def endpoints(self) -> Mapping[str, str]:
        """``host:port`` of each service that was started, by token; several processes are joined by commas."""
        return MappingProxyType({t: self._target(t) for t in self._tokens})

    @property
    def metrics(self) -> Mapping[str, str]:
        """``host:port`` of each started service's Prometheus metrics, by token."""
        return MappingProxyType({t: f"{LOOPBACK}:{self.ports.metrics[t]}" for t in self._tokens})

    @property
    def ports(self) -> PortBlock:
        """The block of ports in use."""
        return _started(self._block)

    @property
    def backends(self) -> Backends:
        """What the services stand on; its URLs hold passwords."""
        return _started(self._backends)

    @property
    def context(self) -> Context | None:
        """The saved context; None when none was to be saved, or its name belongs to another running mesh."""
        return self._context

    def status(self) -> tuple[ServerStatus, ...]:
        """Every server as it is now, in the order they were started."""
        return tuple(m.status for m in self._members.values())

    def kill(self, name: str, number: int) -> None:
        """Send a signal to one server, as a fault would; it is started again if that ends it.

        Args:
            name: a service's token, ``postgresql``, ``valkey`` or ``triton``.
            number: the signal, e.g. ``signal.SIGKILL``.
        """
        if not _started(self._guardian).signal(name, number):
            running = ", ".join(s.name for s in self.status() if s.pid)
            raise LocalMeshError(f"{name} is not running", remedy=f"running are: {running}")

    async def until_ready(self, name: str, *, restarts: int = 0, timeout_s: float = 30.0) -> ServerStatus:
        """Wait until a server is ready, and has been started again at least `restarts` times; raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                status = self._members[name].status
                if status.state is ServerState.READY and status.restarts >= restarts:
                    return status
                await asyncio.sleep(0.01)

    async def until_lost(self) -> None:
        """Return if the guardian is killed, which takes every server with it; otherwise never."""
        await self._lost.wait()

    # --- life ---

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            # Whatever it was, cancellation included: nothing that was started may stay.
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        for member in self._members.values():
            member.mark_stopped()

    async def _start(self) -> None:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._data.open)
        self._stack.callback(self._data.close)
        claim = claim_port_block(self._wanted_ports)
        self._block = claim.block
        self._stack.callback(claim.close)
        self._guardian = Guardian(
            log=self._data.logs / "guardian.log",
            on_exit=lambda ended: loop.call_soon_threadsafe(self._on_exit, ended),
            on_lost=lambda: loop.call_soon_threadsafe(self._lost.set),
            keep_open=(self._data.lock_fd,),
        ).start()
        self._stack.push_async_callback(asyncio.to_thread, self._guardian.close, timeout_s=_STOP_TIMEOUT_S)
        await self._start_servers(began)
        await self._start_services(began)
        self._save_context()
        keepers = await self._stack.enter_async_context(asyncio.TaskGroup())
        tasks = [keepers.create_task(self._keep(member)) for member in self._members.values()]
        tasks.append(keepers.create_task(self._check_now_and_then()))
        for task in tasks:
            self._stack.callback(task.cancel)

    async def _start_servers(self, began: float) -> None:
        guardian, directory, logs = _started(self._guardian), self._data.path, self._data.logs
        postgres = PostgresServer(guardian, directory, log_dir=logs, stage=0)
        valkey = ValkeyServer(guardian, self._data.run, log_dir=logs, stage=10)
        # Only inference calls it, which is gone by then.
        self._triton = TritonServer(guardian, directory, log_dir=logs, stage=30)
        self._add(ServerMember("postgresql", guardian, self._report, postgres))
        self._add(ServerMember("valkey", guardian, self._report, valkey))
        if self._with_triton:
            self._add(ServerMember("triton", guardian, self._report, self._triton))
        await self._start_together(tuple(self._members.values()), began)
        self._backends = Backends(
            database_url=postgres.url(),
            redis_url=valkey.url(),
            triton_url=self._triton.grpc_url if self._with_triton else "",
            model_repository=self._triton.model_repository,
            artifact_dir=self._data.artifacts,
        )

    async def _start_services(self, began: float) -> None:
        services = [
            self._add(
                ServiceMember(
                    _started(self._guardian),
                    self._report,
                    spec=partial(self._service_spec, token, number),
                    endpoint=f"{LOOPBACK}:{self.ports.port_of(token, number)}",
                )
            )
            for token in self._tokens
            for number in range(self._count(token))
        ]
        await self._start_together(services, began)

    def _service_spec(self, token: str, number: int) -> ProcessSpec:
        everybody = {t: self._target(t) for t in SERVICE_TOKENS}
        environment = service_environment(
            token, self.ports, self.backends, self._environment, endpoints=everybody, number=number
        )
        return service_spec(
            token,
            command=self._command,
            environment=environment,
            logs=self._data.logs,
            cwd=self._data.run,
            number=number,
        )

    def _count(self, token: str) -> int:
        return self._processes.get(token, 1)

    def _target(self, token: str) -> str:
        return ",".join(f"{LOOPBACK}:{self.ports.port_of(token, n)}" for n in range(self._count(token)))

    def _add(self, member: MemberT) -> MemberT:
        self._members[member.name] = member
        self._stack.push_async_callback(member.close)
        return member

    async def _start_together(self, members: Collection[Member], began: float) -> None:
        try:
            async with asyncio.TaskGroup() as starting:
                for member in members:
                    starting.create_task(member.start(timeout_s=self._start_timeout_s, began=began))
        except ExceptionGroup as failures:
            # One failure stops the others; the first is the cause, and all that a person can use.
            raise failures.exceptions[0] from None

    def _on_exit(self, ended: ProcessExit) -> None:
        member = self._members.get(ended.name)
        if member is not None:
            member.wake()

    async def _keep(self, member: Member) -> None:
        """Start a server again whenever it has ended, sooner if it had run well."""
        failures = 0
        while True:
            ready_since = time.monotonic()
            await member.ended()
            if time.monotonic() - ready_since > _HEALTHY_AFTER_S:
                failures = 0
            while True:
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                try:
                    await member.restart(timeout_s=self._start_timeout_s)
                except LocalMeshError:
                    if self._lost.is_set():
                        return
                    # Its log has the reason; the next attempt comes after a longer pause.
                    continue
                break

    async def _check_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            for member in self._members.values():
                await member.check()

    def _save_context(self) -> None:
        name = self._wanted_context
        if name is None or not self._tokens:
            return
        present = load_context(name)
        if present is not None and present.pid not in {0, os.getpid()}:
            return
        self._context = Context(
            name=name,
            endpoints=self.endpoints,
            metrics=self.metrics,
            data_dir=os.fspath(self.data_dir),
            pid=os.getpid(),
            process_start=process_start_of(os.getpid()),
        )
        save_context(self._context)
        self._stack.callback(remove_context, name, pid=os.getpid())


def _started(value: T | None) -> T:
    if value is None:
        raise LocalMeshError("the local mesh has not been started", remedy="use it inside `async with LocalMesh(...)`")
    return value


def _tell_nobody(_status: ServerStatus) -> None:
    """Report to nobody."""
