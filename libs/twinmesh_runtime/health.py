"""Health as gRPC defines it, under two names: ``live`` (the process runs) and ``ready`` (send it calls).

A service may add names for parts of it that can fail while the rest serves (``storage.append`` on a full disk).

The empty name and the names of the service's protos say the same as ``ready``. Clients opened by
`twinmesh_client.transport.open_channel` watch ``ready`` and send nothing to a server that is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from twinmesh_core.errors import NotFound

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """Answers health checks; starts live and not ready.

    gRPC's own servicer ends its watches only with the server, so that every drain would last its whole grace; this
    one ends them when it is closed.
    """

    def __init__(self, service_names: Iterable[str], capabilities: Iterable[str] = ()) -> None:
        self._names = frozenset({"", "ready", HEALTH_SERVICE, *service_names})
        self._ready = False
        self._capable = dict.fromkeys(capabilities, False)
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether calls should be sent here."""
        return self._ready

    def set_ready(self, ready: bool) -> None:
        """Tell every watcher, if this is news."""
        if ready != self._ready:
            self._ready = ready
            self._announce()

    def set_capable(self, name: str, capable: bool) -> None:
        """Tell every watcher of a capability, if this is news."""
        if capable != self._capable[name]:
            self._capable[name] = capable
            self._announce()

    async def until_ready(self) -> None:
        """Wait until calls should be sent here."""
        while not self._ready:
            await self._changed.wait()

    def close(self) -> None:
        """End every watch, present and future."""
        self._closed = True
        self._announce()

    async def Check(  # noqa: N802  named by the proto
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of one name; NOT_FOUND for a name that is not known here."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            raise NotFound(f"Nothing called {request.service!r} is served here; ask for live, ready or a service name.")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802  named by the proto
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status of one name now and whenever it changes."""
        last: int | None = None
        while not self._closed:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            else:
                await changed.wait()

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to `server`."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def _status(self, name: str) -> Any:
        if name == "live":
            return _SERVING
        if name in self._names:
            return _SERVING if self._ready else _NOT_SERVING
        if name in self._capable:
            return _SERVING if self._ready and self._capable[name] else _NOT_SERVING
        return _UNKNOWN

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
