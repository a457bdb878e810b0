"""How Twinmesh is called: one way to open a channel, one way to make a call, one way to read an error.

`grpc.RpcError` ends here: every function of this module that awaits the network raises the tree of
`twinmesh_core.errors` instead, and passes `asyncio.CancelledError` through untouched.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

import grpc
import grpc.aio

from twinmesh_client.rpc_status import error_from_rpc
from twinmesh_core.call_context import REQUEST_ID_KEY, TRACEPARENT_KEY, current_call, remaining_s
from twinmesh_core.errors import DeadlineExceeded

__all__ = [
    "FORWARDED_KEY",
    "IDEMPOTENT_METHODS",
    "MAX_MESSAGE_BYTES",
    "READY_SERVICE",
    "TENANT_KEY",
    "call",
    "error_from_rpc",
    "open_channel",
    "rpc_errors",
    "service_config",
    "stream",
    "tenant_metadata",
]

RequestT = TypeVar("RequestT")
RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
ResponseT = TypeVar("ResponseT")
ResponseT_co = TypeVar("ResponseT_co", covariant=True)
Metadata = Sequence[tuple[str, str | bytes]]

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""Default bound of one message in either direction; equal to the services' default."""
READY_SERVICE: Final = "ready"
"""Name under which a server's health says whether it should be sent calls."""
TENANT_KEY: Final = "twinmesh-tenant"
"""Metadata key by which one service acts for a tenant towards another."""
FORWARDED_KEY: Final = "twinmesh-forwarded"
"""Metadata key of a call that one process of a service passes on to another one of it."""

IDEMPOTENT_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "twinmesh.mesh.v1.MeshService": ("GetMesh",),
    "twinmesh.storage.v1.StorageService": (
        "GetHead",
        "ReadRange",
        "ReadLatest",
        "ReadWindow",
        "Aggregate",
        "Downsample",
        "ListSeries",
        "ListQuarantine",
        "GetStatistics",
        "GetErasure",
        "ListErasures",
        "ListRetention",
    ),
    "twinmesh.statesync.v1.TwinService": ("GetTwinType", "ListTwinTypes", "GetTwin", "ListTwins"),
    "twinmesh.statesync.v1.ReplicaService": ("GetReplica",),
    "twinmesh.statesync.v1.CommandService": ("GetCommand", "ListCommands"),
    "twinmesh.statesync.v1.EventService": ("ListEvents",),
    "twinmesh.statesync.v1.AlarmService": ("ListAlarms", "GetAlarm"),
    "twinmesh.statesync.v1.SubscriptionService": ("GetSubscription", "ListSubscriptions"),
    "twinmesh.training.v1.TrainingService": ("GetTrainingRun", "ListTrainingRuns"),
    "twinmesh.training.v1.ModelService": ("ListModels", "ListModelVersions", "GetModelVersion", "DownloadArtifact"),
    "twinmesh.inference.v1.InferenceService": ("ListDeployments",),
}
"""Service to the reads that a channel repeats by itself when a server is UNAVAILABLE. Writes are not here: their
callers repeat them, knowingly, with the same `request_id` or producer stamp."""


class Method(Protocol[RequestT_contra, ResponseT_co]):
    """A stub's unary method, or anything that is called like one."""

    def __call__(
        self, request: RequestT_contra, /, *, timeout: float | None = ..., metadata: Any = ...
    ) -> Awaitable[ResponseT_co]:
        """Start the call."""
        ...


class StreamMethod(Protocol[RequestT_contra, ResponseT_co]):
    """A stub's method that answers with a stream, or anything that is called like one."""

    def __call__(
        self, request: RequestT_contra, /, *, timeout: float | None = ..., metadata: Any = ...
    ) -> AsyncIterable[ResponseT_co]:
        """Start the call."""
        ...


def open_channel(
    target: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """Open a channel that spreads calls over every ready server behind `target` and mends itself.

    Connecting happens in the background; the channel must be closed by its owner (``async with``).

    Args:
        target: ``host:port``, several of them joined by commas, or any gRPC target such as ``dns:///name:port``.
        max_message_bytes: bound of one message, sent or received.
        options: further gRPC channel arguments; they win over the ones chosen here.
    """
    return grpc.aio.insecure_channel(_resolvable(target), options=_arguments(target, max_message_bytes, options))


def open_blocking_channel(target: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.Channel:
    """Open a channel like `open_channel` for calls that a thread makes; see `twinmesh_client.read_ahead`.

    Args:
        target: see there.
        max_message_bytes: bound of one message, sent or received.
    """
    return grpc.insecure_channel(_resolvable(target), options=_arguments(target, max_message_bytes, ()))


def _arguments(target: str, max_message_bytes: int, options: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    chosen: dict[str, Any] = {
        "grpc.service_config": service_config(),
        "grpc.max_send_message_length": max_message_bytes,
        "grpc.max_receive_message_length": max_message_bytes,
        # A peer that froze or vanished is noticed within half a minute, also by a stream that only listens.
        "grpc.keepalive_time_ms": 20_000,
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        # A restarted server is found again at once: gRPC's own first pause is a whole second.
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.min_reconnect_backoff_ms": 1_000,
        "grpc.max_reconnect_backoff_ms": 3_000,
        # Two channels of one process to one server are two connections: a busy stream shares with nobody.
        "grpc.use_local_subchannel_pool": 1,
    }
    if _is_loopback(target):
        # http_proxy in the environment would otherwise send calls to this very machine through a proxy.
        chosen["grpc.enable_http_proxy"] = 0
    chosen.update(options)
    return list(chosen.items())


def service_config() -> str:
    """Return the gRPC service config, as JSON: balancing by ready servers, and retries of idempotent reads."""
    retried = [
        {"service": service, "method": method} for service, methods in IDEMPOTENT_METHODS.items() for method in methods
    ]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": READY_SERVICE},
            # Retries stop by themselves while more than about a tenth of the calls fail: no retry storm.
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
            "methodConfig": [
                {
                    "name": retried,
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.05s",
                        "maxBackoff": "1s",
                        "backoffMultiplier": 3,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
        }
    )


def tenant_metadata(tenant: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata by which a service acts for `tenant` (``*`` follows all of them)."""
    return ((TENANT_KEY, tenant),)


async def call(
    method: Method[RequestT, ResponseT], request: RequestT, *, timeout_s: float, metadata: Metadata = ()
) -> ResponseT:
    """Make one unary call that ends within `timeout_s` and raises only errors of our tree.

    Inside a handler the call also ends when the call being served does: deadlines only shrink on the way inward.

    Args:
        method: a method of a generated stub.
        request: its request message (for a client-streaming method, an async iterator of them).
        timeout_s: seconds until `DeadlineExceeded`.
        metadata: e.g. `tenant_metadata`.

    Raises:
        TwinmeshError: whatever the server or the transport answered.
    """
    timeout = _bounded(timeout_s)
    with rpc_errors():
        return await method(request, timeout=timeout, metadata=_outgoing(metadata))


async def stream(
    method: StreamMethod[RequestT, ResponseT], request: RequestT, *, timeout_s: float | None, metadata: Metadata = ()
) -> AsyncGenerator[ResponseT, None]:
    """Yield the answers of a streaming method, raising only errors of our tree; leaving the loop ends the call.

    Close it when leaving early (``async with contextlib.aclosing(stream(...)) as answers``).

    Args:
        method: a server-streaming method of a generated stub, or a bidirectional one.
        request: its request message (bidirectional: an async iterator of them).
        timeout_s: seconds until `DeadlineExceeded`; None for a stream that lives as long as its reader.
        metadata: e.g. `tenant_metadata`.
    """
    timeout = None if timeout_s is None else _bounded(timeout_s)
    answers = method(request, timeout=timeout, metadata=_outgoing(metadata))
    cancel: Callable[[], object] | None = getattr(answers, "cancel", None)
    try:
        with rpc_errors():
            async for answer in answers:
                yield answer
    finally:
        if cancel is not None:
            cancel()


@contextmanager
def rpc_errors() -> Iterator[None]:
    """Turn a `grpc.RpcError` raised in the block into our error: for code that reads and writes a call by hand."""
    try:
        yield
    except grpc.RpcError as error:
        # Without the chain: the transport's own exception holds nothing more, and its text is long.
        raise error_from_rpc(error) from None


def _bounded(timeout_s: float) -> float:
    left = remaining_s()
    if left is None or left > timeout_s:
        return timeout_s
    if left <= 0.0:
        raise DeadlineExceeded("The time for this call ran out before its next step could start.")
    return left


def _outgoing(metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
    current = current_call()
    if current is None:
        return tuple(metadata)
    carried: tuple[tuple[str, str | bytes], ...] = ((REQUEST_ID_KEY, current.request_id),)
    if current.traceparent:
        carried += ((TRACEPARENT_KEY, current.traceparent),)
    return (*metadata, *carried)


def _resolvable(target: str) -> str:
    if ":///" in target or target.startswith(("unix:", "dns:", "ipv4:", "ipv6:", "xds:")):
        return target
    # gRPC resolves a list of addresses only where they are numbers.
    return f"ipv4:{target}" if "," in target else f"dns:///{target}"


def _is_loopback(target: str) -> bool:
    address = target.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:").split(",")[0]
    host = address.rsplit(":", 1)[0].strip("[]")
    if host == "localhost" or target.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
