"""How methods are served: who calls, and how handlers are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeAlias

import grpc
import grpc.aio

from twinmesh_core.errors import PermissionDenied
from twinmesh_runtime.caller import ALL_TENANTS, current_caller

SERVICE_NAME: Final = "twinmesh.storage.v1.StorageService"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Servicer(Protocol):
    """Some of the service's methods."""

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        ...


def own_tenant() -> str:
    """Return the caller's tenant.

    Raises:
        PermissionDenied: the caller stands for all tenants, which only Follow allows.
    """
    caller = current_caller()
    if caller.tenant == ALL_TENANTS:
        raise PermissionDenied("Name one tenant; only Follow spans all of them.")
    return caller.tenant


def unary(call: Callable[..., Any], request: Any, response: Any) -> Handler:
    """Return the handler of a unary method with typed messages."""
    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=response.SerializeToString
    )


def from_bytes(call: Callable[..., Any], response: Any) -> Handler:
    """Return the handler of a unary method that reads its request from bytes."""
    return grpc.unary_unary_rpc_method_handler(call, response_serializer=response.SerializeToString)


def byte_conversation(call: Callable[..., Any]) -> Handler:
    """Return the handler of a method with streams both ways that reads and writes bytes."""
    return grpc.stream_stream_rpc_method_handler(call)


def byte_stream(call: Callable[..., Any], request: Any) -> Handler:
    """Return the handler of a streaming method that writes its answers as bytes."""
    return grpc.unary_stream_rpc_method_handler(call, request_deserializer=request.FromString)


def byte_unary(call: Callable[..., Any], request: Any) -> Handler:
    """Return the handler of a unary method that writes its answer as bytes."""
    return grpc.unary_unary_rpc_method_handler(call, request_deserializer=request.FromString)


def register(server: grpc.aio.Server, *parts: Mapping[str, Handler]) -> None:
    """Add the service to a server; each part holds the handlers of some of its methods."""
    handlers = {name: handler for part in parts for name, handler in part.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
