"""Starts worker processes, keeps them running, and hands the runs of a dead one on at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Final
from uuid import uuid4

from twinmesh_core.errors import TwinmeshError
from twinmesh_runtime.telemetry import counter, gauge, log
from twinmesh_training.domain.ports import Registry

_STOP_S: Final = 7.0
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0
_HEALTHY_S: Final = 30.0
_THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerSupervisor:
    """Supervises `count` processes of ``python -m twinmesh_training.worker``; a background task of the service.

    Args:
        registry: told when a worker died, so that its run need not wait for the lease to end.
        count: how many.
        threads: of linear algebra in each.
    """

    def __init__(self, registry: Registry, *, count: int, threads: int) -> None:
        self._registry = registry
        self._count = count
        self._threads = threads
        self._instance = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
        self._running = gauge("training", "workers", "Worker processes running.")
        self._died = counter("training", "worker_deaths", "Worker processes that ended unasked.")

    async def run(self) -> None:
        """Keep the workers running until cancelled; then stop them, and kill what does not stop."""
        async with asyncio.TaskGroup() as group:
            for slot in range(self._count):
                group.create_task(self._keep(slot))
            if not self._count:
                await asyncio.Event().wait()

    async def _keep(self, slot: int) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_S
        generation = 0
        while True:
            generation += 1
            owner = f"{self._instance}-{slot}.{generation}"
            started = loop.time()
            process = await self._spawn(owner)
            log("worker_started", slot=slot, pid=process.pid)
            self._running.inc()
            try:
                code = await process.wait()
            finally:
                self._running.dec()
                await _stop(process)
            self._died.inc()
            log("worker_died", level="error", slot=slot, pid=process.pid, exit_code=code)
            pause = _FIRST_PAUSE_S if loop.time() - started > _HEALTHY_S else min(pause * 2, _LONGEST_PAUSE_S)
            await self._give_back(owner)
            await asyncio.sleep(pause)

    async def _spawn(self, owner: str) -> asyncio.subprocess.Process:
        """Start a worker; one that is being started when we are cancelled is stopped too, not forgotten."""
        spawning = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "twinmesh_training.worker",
                "--supervised",
                "--owner",
                owner,
                stdin=asyncio.subprocess.PIPE,
                env=os.environ | dict.fromkeys(_THREAD_VARIABLES, str(self._threads)),
            )
        )
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await _stop(await spawning)
            raise

    async def _give_back(self, owner: str) -> None:
        # Without it the lease ends by itself, only later.
        with contextlib.suppress(TwinmeshError):
            if lost := await self._registry.give_back(owner):
                log("run_handed_on", level="warning", owner=owner, runs=lost)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End a worker: close its pipe, ask, and after a grace kill. Shielded, since it runs while being cancelled."""
    if process.returncode is not None:
        return
    if process.stdin is not None:
        process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(asyncio.shield(process.wait()), _STOP_S)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
