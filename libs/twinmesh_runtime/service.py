"""What a service gives the runtime, and `run`, the whole of its ``__main__``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar

import grpc.aio

from twinmesh_runtime.settings import ServiceSettings

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)
Compose = Callable[[SettingsT, AsyncExitStack], Awaitable["Service"]]
"""A service's composition root: opens what it needs on the stack, which is closed after the server has stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What `compose` returns: a service, ready to be run.

    Attributes:
        register: adds servicers or generic handlers to the server.
        service_names: full proto names, for reflection and health.
        checks: readiness of its own pools, by name; asked every second, raising means not ready.
        capabilities: the same for parts of the service, by the name under which health tells of them; while one fails
            the service stays ready.
        background: long-lived coroutines; they run before the first call and until after the last, and one that raises
            ends the process with a non-zero code.
        drain: called on SIGTERM after balancers have heard and before the server stops: ends streams with a position
            to resume from.
        max_request_bytes: bounds of requests that are tighter than the server's, by path
            (``/twinmesh.storage.v1.StorageService/GetHead``).
    """

    register: Callable[[grpc.aio.Server], None]
    service_names: tuple[str, ...]
    checks: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    capabilities: Mapping[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    background: tuple[Callable[[], Awaitable[None]], ...] = ()
    drain: Callable[[], Awaitable[None]] | None = None
    max_request_bytes: Mapping[str, int] = field(default_factory=dict)


def run(token: str, settings_type: type[SettingsT], compose: Compose[SettingsT]) -> None:
    """Run a service until it is told to stop; ends the process with its exit code.

    ``--help`` prints every setting. Exit codes: 0 after a drain, 1 when it cannot start or a part of it failed, 2 when
    its settings cannot be used.

    Args:
        token: ingestion, storage, statesync, training or inference.
        settings_type: its settings.
        compose: its composition root.
    """
    # The process needs the server, the server needs `Service` above.
    from twinmesh_runtime.process import main

    raise SystemExit(main(token, settings_type, compose))
