"""Our error tree as ``google.rpc.Status``, in both directions: the only module that knows that encoding.

Server: `status_from_error`. Client: `error_from_rpc`. The round trip keeps class, message, reason, metadata, field
violations and the pause before a retry (a test over a real server holds it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from twinmesh_core.errors import (
    ERROR_DOMAIN,
    ERROR_TYPES,
    FieldViolation,
    Internal,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
)

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata key of the serialised ``google.rpc.Status``."""
_MAX_VIOLATIONS: Final = 32
_MAX_TEXT: Final = 1_000
"""Bounds of what an error carries: trailers travel as headers, and gRPC refuses more than about 8 kB of those."""
_SEND_FAILED: Final = "Internal error from Core"
_TOO_LARGE: Final = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)", re.IGNORECASE)


def status_from_error(error: TwinmeshError) -> status_pb2.Status:
    """Return `error` as a status: ErrorInfo always, BadRequest and RetryInfo where they apply; bounded in size."""
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.code) if error.code in code_pb2.Code.keys() else code_pb2.UNKNOWN,  # noqa: SIM118 the wrapper is no dict
        message=_cut(error.message),
    )
    info = error_details_pb2.ErrorInfo(reason=str(error.reason), domain=ERROR_DOMAIN)
    for key, value in list(error.metadata.items())[:_MAX_VIOLATIONS]:
        info.metadata[key] = _cut(value)
    status.details.add().Pack(info)
    if error.field_violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.field_violations[:_MAX_VIOLATIONS]:
            bad.field_violations.add(field=violation.field, description=_cut(violation.description, 160))
        status.details.add().Pack(bad)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(round(error.retry_after_s * 1e6))
        status.details.add().Pack(retry)
    return status


def error_from_rpc(error: grpc.RpcError) -> TwinmeshError:
    """Return the error of our tree that `error` stands for, whether a server of ours or the transport made it."""
    status = _status_of(error)
    if status is not None:
        return error_from_status(status)
    code = _code_name(error)
    text = _details(error)
    too_large = _TOO_LARGE.search(text)
    if too_large is not None:
        size, limit = too_large.groups()
        return ResourceExhausted(
            f"The message has {size} bytes and the limit is {limit}; send or ask for less at once.",
            reason=Reason.MESSAGE_TOO_LARGE,
            metadata={"size_bytes": size, "limit_bytes": limit},
        )
    if code == "UNAVAILABLE":
        return Unavailable(_unreachable(text))
    if code == "INTERNAL" and text == _SEND_FAILED:
        # grpc.aio says so, in place of the call's own status, when a call ends while a message is being sent to it.
        return Unavailable("The call ended while something was being sent to it; try again.")
    if code == "CANCELLED":
        # Cancelling on our own side raises CancelledError: this one came from a server that stopped.
        return Unavailable("The server ended the call before it was answered; try again.", reason=Reason.DRAINING)
    if code == "DEADLINE_EXCEEDED":
        return ERROR_TYPES[code]("No answer within the time allowed for the call.")
    return ERROR_TYPES.get(code, Internal)(text or f"The call failed with {code}.")


def error_from_status(status: status_pb2.Status) -> TwinmeshError:
    """Return the error that `status` describes; details of kinds unknown here are passed over."""
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(bad.DESCRIPTOR):
            detail.Unpack(bad)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToMicroseconds() / 1e6
    kind = ERROR_TYPES.get(code_pb2.Code.Name(status.code), Internal)
    return kind(
        status.message,
        reason=info.reason or None,
        metadata=dict(info.metadata),
        field_violations=tuple(
            FieldViolation(field=violation.field, description=violation.description)
            for violation in bad.field_violations
        ),
        retry_after_s=retry_after_s,
    )


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    trailers: Any = getattr(error, "trailing_metadata", None)
    metadata: Iterable[tuple[str, str | bytes]] = (trailers() if callable(trailers) else None) or ()
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _code_name(error: grpc.RpcError) -> str:
    code: Any = getattr(error, "code", None)
    found = code() if callable(code) else None
    return found.name if isinstance(found, grpc.StatusCode) else "UNKNOWN"


def _details(error: grpc.RpcError) -> str:
    details: Any = getattr(error, "details", None)
    return (details() if callable(details) else None) or ""


def _unreachable(text: str) -> str:
    """Say who cannot be reached, without the transport's own wording, which names sockets and errno values."""
    address = re.search(r"ipv[46]:(?:%5B|\[)?[0-9a-fA-F.:]+(?:%5D|\])?:\d+", text)
    where = f" at {address.group().split(':', 1)[1]}" if address is not None else ""
    if "resolving" in text or "resolution" in text:
        return "The service's host name cannot be resolved; check the endpoint."
    return f"The service{where} cannot be reached, or is not ready yet; it is asked again when you call again."


def _cut(text: str, limit: int = _MAX_TEXT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
