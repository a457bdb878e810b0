"""``python -m twinmesh_training.worker``: takes runs from the database and trains them, one at a time.

It imports torch once and then waits, so that a run starts at once. Started by the service it ends with it: its standard
input is a pipe that closes with its parent, and on Linux the kernel signals the parent's death as well. SIGTERM puts
the run in hand back into the queue, untouched.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from contextlib import AsyncExitStack
from importlib.metadata import version as installed_version
from typing import Final
from uuid import uuid4

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from twinmesh.statesync.v1 import statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2_grpc
from twinmesh_client.transport import open_channel
from twinmesh_core.errors import TwinmeshError
from twinmesh_runtime.logs import configure_logs
from twinmesh_runtime.postgres import open_pool
from twinmesh_runtime.settings import SettingsError, load_settings
from twinmesh_runtime.telemetry import log
from twinmesh_training.adapters.artifacts import DiskArtifacts
from twinmesh_training.adapters.onnx_graphs import OnnxExporter
from twinmesh_training.adapters.postgres import PostgresRegistry
from twinmesh_training.adapters.storage_history import StorageHistory
from twinmesh_training.adapters.torch_network import TorchNetworkTrainer
from twinmesh_training.domain.work import Ending, RunProgress, Work
from twinmesh_training.settings import TrainingSettings

POLL_S: Final = 0.3
_LAST_RESORT_S: Final = 5.0
_PR_SET_PDEATHSIG: Final = 1
_NICE: Final = 5


async def serve(settings: TrainingSettings, owner: str, stop: asyncio.Event) -> None:
    """Train runs until `stop` is set; then put the run in hand back."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(settings.database_url, min_size=1, max_size=3, schema="training", name="training-worker")
        )
        storage = await stack.enter_async_context(open_channel(settings.mesh_storage))
        statesync = await stack.enter_async_context(open_channel(settings.mesh_statesync))
        work = Work(
            registry=PostgresRegistry(pool),
            reader=StorageHistory(
                storage_pb2_grpc.StorageServiceStub(storage), statesync_pb2_grpc.TwinServiceStub(statesync)
            ),
            networks=TorchNetworkTrainer(threads=settings.threads),
            exporter=OnnxExporter(),
            artifacts=DiskArtifacts(settings.artifact_dir),
            owner=owner,
            lease_s=settings.lease_s,
            code_version=installed_version("twinmesh"),
        )
        log("worker_ready", owner=owner)
        while not stop.is_set():
            if not await _next(work, stop):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), POLL_S)


async def _next(work: Work, stop: asyncio.Event) -> bool:
    """Take and train one run; False when none waits or the database is away."""
    try:
        claim = await work.registry.claim(work.owner, work.lease_s)
    except TwinmeshError as error:
        log("claim_failed", level="warning", reason=error.reason)
        await asyncio.sleep(1.0)
        return False
    if claim is None:
        return False
    log("run_taken", run_id=claim.run.run_id, model_id=claim.run.spec.model_id, attempt=claim.attempt)
    progress = RunProgress()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(_stop_with(stop, progress))
        ended = await work.do(claim, progress)
        watching.cancel()
    level = "error" if ended.defect else "info"
    log(
        "run_left",
        level="error" if level == "error" else "info",
        error=ended.defect,
        run_id=claim.run.run_id,
        ending=ended.ending.value,
        incident=ended.incident,
    )
    return True


async def _stop_with(stop: asyncio.Event, progress: RunProgress) -> None:
    await stop.wait()
    progress.stop(Ending.RETURNED)


async def _run(settings: TrainingSettings, owner: str, supervised: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def end() -> None:
        if not stop.is_set():
            # Linear algebra may hold the training thread for a while; nobody waits for it longer than this.
            timer = threading.Timer(_LAST_RESORT_S, os._exit, (1,))
            timer.daemon = True
            timer.start()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if supervised:
        threading.Thread(target=_wait_for_parent, args=(loop, end), daemon=True).start()
    await serve(settings, owner, stop)


def _wait_for_parent(loop: asyncio.AbstractEventLoop, end: object) -> None:
    """Read the pipe that the parent holds; its end is the parent's."""
    while os.read(sys.stdin.fileno(), 64):
        pass
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
        loop.call_soon_threadsafe(end)  # type: ignore[arg-type]  # a callable without arguments


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies, where it can (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def main() -> int:
    """Run a worker until it is told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m twinmesh_training.worker", description=__doc__)
    parser.add_argument("--owner", default="", help="name under which runs are held; unique per process")
    parser.add_argument("--supervised", action="store_true", help="end when standard input closes")
    arguments = parser.parse_args()
    try:
        settings = load_settings(TrainingSettings, "training", os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if arguments.supervised:
        _die_with_parent()
    # Serving and watching go first; training takes what is left.
    os.nice(_NICE)
    # Torch is told apart; this is for the linear algebra of numpy, however the worker was started.
    threadpool_limits(settings.threads)
    configure_logs(token="training-worker", level=settings.log_level, form=settings.log_format)  # noqa: S106  a service's name
    owner = arguments.owner or f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
    asyncio.run(_run(settings, owner, arguments.supervised))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
