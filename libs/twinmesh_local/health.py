"""Asking a service over gRPC whether it is ready.

The health protocol's two tiny messages are written out as bytes, so that whoever starts a mesh needs no generated code.
"""

from __future__ import annotations

import grpc

_CHECK = "/grpc.health.v1.Health/Check"
_READY = b"\x0a\x05ready"
"""HealthCheckRequest{service: "ready"}."""
_SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}."""


async def is_ready(channel: grpc.aio.Channel, *, timeout_s: float = 1.0) -> bool:
    """Whether the service behind the channel says that calls should be sent to it."""
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_CHECK)
    try:
        return await check(_READY, timeout=timeout_s) == _SERVING
    except grpc.RpcError:
        return False


def open_health_channel(target: str) -> grpc.aio.Channel:
    """A channel that tries again quickly: a service that was just started refuses connections for a moment."""
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
            # Not the process-wide connection pool: a restart must be noticed here at once.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
