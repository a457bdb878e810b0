"""A service whose handlers a test chooses, one per kind of method, with strings as messages."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from twinmesh_runtime.service import Service

SERVICE = "twinmesh.test.v1.EchoService"


async def echo(request: StringValue, context: Any) -> StringValue:
    """The handler of Say where a test chooses none."""
    return request


def echo_service(
    *, say: Any = echo, count: Any = None, total: Any = None, chat: Any = None, raw: Any = None, **service: Any
) -> Service:
    """A `Service` with the handlers given: Say (unary), Count, Total, Chat (streams), Raw (unary, bytes)."""
    codec = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}
    kinds: dict[str, tuple[Callable[..., Any], Any, dict[str, Any]]] = {
        "Say": (grpc.unary_unary_rpc_method_handler, say, codec),
        "Count": (grpc.unary_stream_rpc_method_handler, count, codec),
        "Total": (grpc.stream_unary_rpc_method_handler, total, codec),
        "Chat": (grpc.stream_stream_rpc_method_handler, chat, codec),
        "Raw": (grpc.unary_unary_rpc_method_handler, raw, {}),
    }
    handlers = {name: make(handler, **options) for name, (make, handler, options) in kinds.items() if handler}

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    return Service(register=register, service_names=(), **service)


class EchoStub:
    """Calls the echo service; `raw_say` sends bytes to Say as they are."""

    def __init__(self, channel: Any) -> None:
        codec: dict[str, Any] = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self.say = channel.unary_unary(f"/{SERVICE}/Say", **codec)
        self.count = channel.unary_stream(f"/{SERVICE}/Count", **codec)
        self.total = channel.stream_unary(f"/{SERVICE}/Total", **codec)
        self.chat = channel.stream_stream(f"/{SERVICE}/Chat", **codec)
        self.raw = channel.unary_unary(f"/{SERVICE}/Raw")
        self.raw_say = channel.unary_unary(f"/{SERVICE}/Say")
        self.raw_chat = channel.stream_stream(f"/{SERVICE}/Chat")
        self.missing = channel.unary_unary(f"/{SERVICE}/Missing")


def text(value: str) -> StringValue:
    """`value` as a message."""
    return StringValue(value=value)
