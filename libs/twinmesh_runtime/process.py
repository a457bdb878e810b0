"""The life of a service's process: settings, start, serving, drain, and what is said when one of them fails."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Final, Self, TypeVar

from twinmesh_core.errors import TwinmeshError
from twinmesh_runtime.collector import calm_collector
from twinmesh_runtime.logs import configure_logs, log
from twinmesh_runtime.mesh import version
from twinmesh_runtime.server import ServiceServer, refuse_open_bind
from twinmesh_runtime.service import Compose, Service, SettingsT
from twinmesh_runtime.settings import (
    ServiceSettings,
    SettingsError,
    describe_settings,
    load_settings,
    public_settings,
    unknown_variables,
)
from twinmesh_runtime.telemetry import serve_metrics

EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2
_SWITCH_S: Final = 0.0005
"""How long a thread that works (a fold, a decode) may keep the event loop from going on; Python's own 5 ms come up each
time the loop has waited for something, several times in one call."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
ResultT = TypeVar("ResultT")


def main(
    token: str, settings_type: type[SettingsT], compose: Compose[SettingsT], argv: Sequence[str] | None = None
) -> int:
    """Run the service `token` and return the process's exit code; see `service.run`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m twinmesh_{token}",
        description=f"The {token} service of Twinmesh {version()}. SIGTERM drains it; a second one ends it at once.",
        epilog="settings, from the environment:\n\n" + describe_settings(settings_type, token),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version())
    parser.parse_args(argv)
    try:
        settings = load_settings(settings_type, token, os.environ)
        configure_logs(token=token, level=settings.log_level, form=settings.log_format)
        refuse_open_bind(token, settings)
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        sys.stderr.write(f"See python -m twinmesh_{token} --help for every setting.\n")
        return EXIT_SETTINGS
    sys.setswitchinterval(_SWITCH_S)
    log("starting", version=version(), settings=public_settings(settings))
    for name in unknown_variables(settings_type, token, os.environ):
        log("unknown_setting", level="warning", variable=name)
    return asyncio.run(run_service(token, settings, compose))


async def run_service(token: str, settings: SettingsT, compose: Compose[SettingsT]) -> int:
    """Compose, serve and drain one service; returns the exit code and raises nothing but cancellation."""
    with StopSignals() as signals:
        try:
            async with AsyncExitStack() as stack:
                service = await signals.interruptible(compose(settings, stack))
                if service is None:
                    return EXIT_STOPPED
                with calm_collector():
                    return await _serve(token, settings, service, signals)
        except Exception as error:  # noqa: BLE001  the last line of defence: logged, and the exit code is not zero
            _tell(error)
        return EXIT_FAILED


async def _serve(token: str, settings: ServiceSettings, service: Service, signals: StopSignals) -> int:
    server = ServiceServer(token, settings, service)
    code = EXIT_STOPPED
    with _metrics(settings):
        try:
            async with asyncio.TaskGroup() as group:
                background = [group.create_task(_ended(task)) for task in service.background]
                port = await server.start()
                readiness = group.create_task(server.keep_ready())
                log("serving", host=settings.host, port=port)
                await signals.stop.wait()
                log("draining", grace_s=settings.drain_grace_s)
                readiness.cancel()  # before the drain, or it would say ready again
                await server.drain()
                for task in background:
                    task.cancel()
        except* Exception as failures:  # noqa: BLE001  each is logged, and the exit code is not zero
            code = EXIT_FAILED
            for failure in failures.exceptions:
                _tell(failure)
        finally:
            await server.stop()
    log("stopped", code=code)
    return code


async def _ended(task: Callable[[], Awaitable[None]]) -> None:
    await task()


def _tell(failure: Exception) -> None:
    """Log why the process ends: a sentence where the cause is outside, the traceback where it is a defect."""
    if isinstance(failure, TwinmeshError | OSError | SettingsError):
        log("failed", level="error", problem=str(failure))
    else:
        log("failed", level="error", error=failure, problem=type(failure).__name__)


@contextmanager
def _metrics(settings: ServiceSettings) -> Iterator[None]:
    if not settings.metrics_port:
        yield
        return
    try:
        server, thread = serve_metrics(host=settings.host, port=settings.metrics_port)
    except OSError:
        raise OSError(
            f"the metrics address {settings.host}:{settings.metrics_port} is taken or not one of this machine"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class StopSignals:
    """SIGTERM and SIGINT: the first one asks for a drain (`stop` is set), a second one ends the process at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._starting: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._received, number)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    async def interruptible(self, start: Awaitable[ResultT]) -> ResultT | None:
        """Await `start`; None when a signal came meanwhile, which cancels it."""
        self._starting = asyncio.current_task()
        try:
            return await start
        except asyncio.CancelledError:
            if not self.stop.is_set() or self._starting is None:
                raise
            self._starting.uncancel()
            log("stopped_while_starting")
            return None
        finally:
            self._starting = None

    def _received(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            log("stopped_at_once", level="warning", signal=number.name)
            os._exit(128 + number)
        self.stop.set()
        if self._starting is not None:
            self._starting.cancel()
