"""The gRPC server of one service: bounded, watched by its health, and stopped without failing a call."""

from __future__ import annotations

import asyncio
import ipaddress
from functools import partial
from typing import Final

import grpc.aio
from grpc_reflection.v1alpha import reflection

from twinmesh_runtime.admission import Admission
from twinmesh_runtime.caller import open_mode_caller
from twinmesh_runtime.health import HEALTH_SERVICE, Health
from twinmesh_runtime.interceptors import ServiceInterceptor
from twinmesh_runtime.logs import log
from twinmesh_runtime.mesh import MESH_SERVICE, MeshServicer
from twinmesh_runtime.readiness import keep_readiness
from twinmesh_runtime.service import Service
from twinmesh_runtime.settings import ServiceSettings, SettingsError

CONNECTION_AGE_GRACE_S: Final = 30.0
_LONGEST_TURN_S: Final = 120
"""How long a call may wait before the service takes it up; its own deadline is what usually ends that."""


class ServiceServer:
    """Serves one `Service`; `start`, then `keep_ready` beside it, then `drain` or `stop`."""

    def __init__(self, token: str, settings: ServiceSettings, service: Service) -> None:
        refuse_open_bind(token, settings)
        self._settings = settings
        self._service = service
        self.health = Health((*service.service_names, MESH_SERVICE), service.capabilities)
        self._server = grpc.aio.server(
            interceptors=(
                ServiceInterceptor(
                    token=token,
                    authenticate=open_mode_caller,
                    admission=Admission(
                        token=token,
                        max_calls=settings.max_concurrent_rpcs,
                        max_streams=settings.max_concurrent_streams,
                    ),
                    max_message_bytes=settings.max_message_bytes,
                    max_request_bytes=service.max_request_bytes,
                    default_deadline_s=settings.default_deadline_s,
                ),
            ),
            options=_options(settings),
        )
        service.register(self._server)
        self.health.register(self._server)
        MeshServicer(token, settings).register(self._server)
        reflection.enable_server_reflection(
            (*service.service_names, MESH_SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME), self._server
        )

    async def start(self) -> int:
        """Listen and serve; not ready yet. Returns the port, which `settings.port` 0 leaves to the system.

        Raises:
            OSError: the address cannot be bound.
        """
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        try:
            port = self._server.add_insecure_port(f"{host}:{self._settings.port}")
        except RuntimeError:
            raise OSError(f"{host}:{self._settings.port} is taken or not an address of this machine") from None
        await self._server.start()
        return port

    async def keep_ready(self) -> None:
        """Follow the service's own checks with the health; runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(keep_readiness(self._service.checks, self.health.set_ready))
            for name, check in self._service.capabilities.items():
                follow = partial(self.health.set_capable, name)
                group.create_task(keep_readiness({name: check}, follow, capability=name))

    async def drain(self) -> None:
        """Stop without failing a call: not ready, a pause, streams ended, calls in flight served, closed."""
        self.health.set_ready(False)
        await asyncio.sleep(self._settings.drain_propagation_s)
        if self._service.drain is not None:
            try:
                async with asyncio.timeout(self._settings.drain_grace_s):
                    await self._service.drain()
            except Exception as error:  # noqa: BLE001  a drain that fails must not keep the process from stopping
                log("drain_failed", level="error", error=error)
        await self.stop(self._settings.drain_grace_s)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Refuse new calls, give those in flight `grace_s` seconds, close."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._server.stop(grace_s))
            # After the server has begun to refuse, or clients would take up their health watches again and again.
            await asyncio.sleep(0)
            self.health.close()


def refuse_open_bind(token: str, settings: ServiceSettings) -> None:
    """Check that open mode listens on loopback only, unless its operator has said that the network is closed.

    Raises:
        SettingsError: it would be open to the network.
    """
    if _is_loopback(settings.host):
        return
    variable = f"TWINMESH_{token.upper()}_ALLOW_INSECURE_BIND"
    if not settings.allow_insecure_bind:
        raise SettingsError(
            (
                f"TWINMESH_{token.upper()}_HOST: {settings.host!r} is refused in open mode, since whoever reaches the "
                f"port would be admin; use 127.0.0.1, or set {variable}=true where nobody else reaches the network.",
            )
        )
    log(
        "open_mode_beyond_loopback",
        level="warning",
        host=settings.host,
        because=variable,
        meaning="whoever reaches this port is admin",
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _options(settings: ServiceSettings) -> list[tuple[str, int]]:
    waiting = settings.max_concurrent_rpcs + settings.max_concurrent_streams
    options = [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # Our own check answers first and says what to do; this bound is for what goes around it.
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Two servers on one port would each get some of the calls: a second one must fail to start instead.
        ("grpc.so_reuseport", 0),
        # Clients of ours ping every 20 s, also without calls.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A burst waits for its turn and for `Admission`, which says what to do: from 1,000 calls that wait on, gRPC
        # drops some by chance, and all that waited 30 s, with nothing but CANCELLED.
        ("grpc.server.max_pending_requests", waiting),
        ("grpc.server.max_pending_requests_hard_limit", 2 * waiting),
        ("grpc.server_max_unrequested_time_in_server", _LONGEST_TURN_S),
    ]
    if settings.max_connection_age_s > 0:
        options += [
            ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1e3)),
            ("grpc.max_connection_age_grace_ms", round(CONNECTION_AGE_GRACE_S * 1e3)),
        ]
    return options
