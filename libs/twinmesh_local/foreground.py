"""Running the local mesh in a terminal, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from twinmesh_local import triton_install
from twinmesh_local.errors import LocalMeshError
from twinmesh_local.mesh import DEFAULT_CONTEXT, LocalMesh
from twinmesh_local.services import Command, python_module
from twinmesh_local.status import ServerState, ServerStatus

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_foreground(
    *,
    out: Callable[[str], None],
    data_dir: Path | None = None,
    with_triton: bool = True,
    statesync: int = 1,
    ports: int | None = None,
    context: str | None = DEFAULT_CONTEXT,
    command: Command = python_module,
) -> int:
    """Bring the mesh up, say a line per server as it becomes ready, stop it at a signal; the exit status.

    Args:
        out: prints one line.
        data_dir: as in `LocalMesh`, like the rest.
        with_triton: start Triton.
        statesync: processes of state-sync.
        ports: first port of the services' block.
        context: name to save the context under.
        command: program and arguments of a service by its token; for tests.
    """
    began = time.monotonic()
    if with_triton and not triton_install.is_installed():
        out("Triton is not installed yet; fetching it now, once")
    mesh = LocalMesh(
        data_dir=data_dir,
        with_triton=with_triton,
        statesync=statesync,
        ports=ports,
        context=context,
        command=command,
        report=lambda status: out(line_of(status)),
    )
    with _cancelled_by_signals() as stop:
        try:
            async with mesh:
                out(f"the mesh is ready in {time.monotonic() - began:.1f} s   data: {mesh.data_dir}")
                await mesh.until_lost()
            out("error: the guardian of the servers was killed, and they ended with it")
            return 1
        except LocalMeshError as error:
            out(f"error: {error}")
            return 1
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
            return 0


def line_of(status: ServerStatus) -> str:
    """One line about one server, for a person."""
    match status.state:
        case ServerState.READY:
            again = f"  (restart {status.restarts})" if status.restarts else ""
            return f"{status.name:<11} ready in {status.ready_after_s:5.1f} s   {status.endpoint}{again}"
        case ServerState.RESTARTING:
            return f"{status.name:<11} ended ({_end_of(status.last_exit)}), starting it again   {status.log}"
        case state:
            return f"{status.name:<11} {state}   {status.endpoint}"


@contextlib.contextmanager
def _cancelled_by_signals() -> Iterator[asyncio.Event]:
    """Let the first signal cancel the present task, setting the event; later ones change nothing."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_signal() -> None:
        # Once: a second Ctrl-C must not interrupt the tidying up.
        if not stop.is_set() and task is not None:
            stop.set()
            task.cancel()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
        if stop.is_set() and task is not None:
            task.uncancel()


def _end_of(code: int | None) -> str:
    if code is None:
        return "no status"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
