"""What happens around every call: identity, deadline, admission, decoding, errors, metrics and one log line.

It is one interceptor and not a chain, since each link costs every call; and a method's wrapped handler is made once.
Messages are decoded here and not by gRPC: bytes that are no message then end in INVALID_ARGUMENT with a reason, where
gRPC would answer UNKNOWN with Python's own words.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from twinmesh_client.rpc_status import DETAILS_KEY, error_from_rpc, status_from_error
from twinmesh_core.call_context import REQUEST_ID_KEY, TRACEPARENT_KEY, CallContext, enter_call
from twinmesh_core.errors import DeadlineExceeded, Internal, Reason, TwinmeshError, Unavailable, Unimplemented
from twinmesh_runtime.admission import Admission
from twinmesh_runtime.caller import Caller, enter_caller
from twinmesh_runtime.codec import StreamContext, decoder, encoder
from twinmesh_runtime.logs import log
from twinmesh_runtime.telemetry import counter, histogram

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,64}")
_QUIET_PREFIX: Final = "/grpc."
"""Health and reflection: neither logged at info level nor counted against the service's own calls."""

RawMetadata = Iterable[tuple[str, str | bytes]]
Authenticate = Callable[[RawMetadata], Caller]


@dataclass(slots=True, kw_only=True)
class _Method:
    """One method, and its metrics, resolved once."""

    path: str
    label: str
    quiet: bool
    streaming: bool
    seconds: Any
    counts: dict[str, Any]


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of one server.

    Args:
        token: the service's token, for metric names.
        authenticate: turns a call's metadata into its caller, or raises Unauthenticated.
        admission: bounds what is served at once.
        max_message_bytes: largest answer; a larger one is an error that says so.
        max_request_bytes: tighter bounds of requests, by method path.
        default_deadline_s: deadline of a unary call that came without one.
    """

    def __init__(
        self,
        *,
        token: str,
        authenticate: Authenticate,
        admission: Admission,
        max_message_bytes: int,
        max_request_bytes: Mapping[str, int],
        default_deadline_s: float,
    ) -> None:
        self._authenticate = authenticate
        self._admission = admission
        self._max_message_bytes = max_message_bytes
        self._max_request_bytes = max_request_bytes
        self._default_deadline_s = default_deadline_s
        self._handlers: dict[str, Any] = {}
        self._calls = counter(token, "rpc", "Calls ended, by method and code.", ("method", "code"))
        self._seconds = histogram(token, "rpc_seconds", "Duration of unary calls.", ("method",))
        self._unbounded = counter(token, "rpc_without_deadline", "Unary calls whose caller set no deadline.")
        self._incidents = counter(token, "incidents", "Defects met while serving; each is in the log with its id.")

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Return the wrapped handler of the method called, or None when nobody serves it."""
        handler = self._handlers.get(details.method)
        if handler is None:
            original = await continuation(details)
            if original is None:
                return None  # and nothing is kept: callers choose the names of methods that do not exist
            handler = self._handlers[details.method] = self._wrap(details.method, original)
        return handler

    def _wrap(self, path: str, original: Any) -> Any:
        method = _Method(
            path=path,
            label=path.rsplit(".", 1)[-1],
            quiet=path.startswith(_QUIET_PREFIX),
            streaming=original.response_streaming or original.request_streaming,
            seconds=self._seconds.labels(path.rsplit(".", 1)[-1]),
            counts={},
        )
        limit = min(self._max_request_bytes.get(path, self._max_message_bytes), self._max_message_bytes)
        decode = decoder(original.request_deserializer, limit)
        encode = encoder(original.response_serializer, self._max_message_bytes)
        match (original.request_streaming, original.response_streaming):
            case (False, False):
                behaviour = original.unary_unary

                async def unary(raw: bytes, context: Any) -> bytes | None:
                    async def work() -> bytes:
                        return encode(await _result(behaviour(decode(raw), context)))

                    return await self._serve(method, context, work)

                return grpc.unary_unary_rpc_method_handler(unary)
            case (True, False):
                behaviour = original.stream_unary

                async def collect(_: Any, context: Any) -> bytes | None:
                    stream = StreamContext(context, decode, encode)

                    async def work() -> bytes:
                        return encode(await _result(behaviour(stream.requests(), stream)))

                    return await self._serve(method, context, work)

                return grpc.stream_unary_rpc_method_handler(collect)
            case (False, True):
                behaviour = original.unary_stream

                async def answer(raw: bytes, context: Any) -> None:
                    stream = StreamContext(context, decode, encode)
                    await self._serve(method, context, lambda: _send(behaviour(decode(raw), stream), stream))

                return grpc.unary_stream_rpc_method_handler(answer)
            case _:
                behaviour = original.stream_stream

                async def converse(_: Any, context: Any) -> None:
                    stream = StreamContext(context, decode, encode)
                    await self._serve(method, context, lambda: _send(behaviour(stream.requests(), stream), stream))

                return grpc.stream_stream_rpc_method_handler(converse)

    async def _serve(self, method: _Method, context: Any, work: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        """Run `work` as one call: return its answer, or end the call with the status of its failure."""
        started = time.perf_counter()
        code = "CANCELLED"
        tenant = ""
        try:
            try:
                caller = self._identify(method, context)
                tenant = caller.tenant
                with self._admission.admit(streaming=method.streaming, exempt=method.quiet):
                    if method.streaming or context.time_remaining() is not None:
                        answer = await work()
                    else:
                        answer = await self._within_default(work)
                code = "OK"
                return answer
            except asyncio.CancelledError:
                if _is_cancelled():
                    code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
                    raise
                # Something inside was cancelled, not this call: gRPC would leave the caller without any answer.
                error: TwinmeshError = Unavailable("The service stopped working on this call; try again.")
            except grpc.aio.AbortError:
                code = getattr(context.code(), "name", "UNKNOWN")
                raise
            except Exception as failure:  # every failure becomes a status; _error_of logs defects
                if isinstance(failure, grpc.aio.BaseError):
                    raise  # the transport's own: the client is gone, or the server has stopped
                error = self._error_of(failure, method)
            code = error.code
            await _abort(context, error)
            return None
        finally:
            self._record(method, code, tenant, time.perf_counter() - started)

    def _identify(self, method: _Method, context: Any) -> Caller:
        request_id = traceparent = ""
        metadata = context.invocation_metadata()
        for key, value in metadata:
            if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
                request_id = value
            elif key == TRACEPARENT_KEY and isinstance(value, str) and len(value) <= 128:
                traceparent = value
        left = context.time_remaining()
        if left is None and not method.streaming:
            left = self._default_deadline_s
        enter_call(
            CallContext(
                deadline_s=None if left is None else time.monotonic() + left,
                request_id=request_id or os.urandom(8).hex(),
                traceparent=traceparent,
            )
        )
        caller = self._authenticate(metadata)
        enter_caller(caller)
        return caller

    async def _within_default(self, work: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        self._unbounded.inc()
        limit = asyncio.timeout(self._default_deadline_s)
        try:
            async with limit:
                return await work()
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"The call came without a deadline and did not end within {self._default_deadline_s:g} s.",
            ) from None

    def _error_of(self, failure: Exception, method: _Method) -> TwinmeshError:
        """Return what the caller is told of `failure`; of a defect, only the id under which the log has it."""
        match failure:
            case TwinmeshError() if failure.code != TwinmeshError.code:
                return failure
            case grpc.RpcError():
                return error_from_rpc(failure)
            case NotImplementedError():
                return Unimplemented("This server does not have the method.")
        incident = os.urandom(6).hex()
        self._incidents.inc()
        log("incident", level="error", error=failure, incident=incident, method=method.label)
        if isinstance(failure, TimeoutError):
            return Unavailable(
                "A part that this service needs did not answer in time; try again.", metadata={"incident": incident}
            )
        return Internal(
            f"The service met a defect; its log tells more under incident {incident}.",
            reason=Reason.INTERNAL,
            metadata={"incident": incident},
        )

    def _record(self, method: _Method, code: str, tenant: str, seconds: float) -> None:
        count = method.counts.get(code)
        if count is None:
            count = method.counts[code] = self._calls.labels(method.label, code)
        count.inc()
        if not method.streaming:
            method.seconds.observe(seconds)
        log(
            "rpc",
            level="debug" if method.quiet else "info",
            method=method.label,
            code=code,
            ms=round(seconds * 1e3, 3),
            tenant=tenant,
        )


async def _result(result: Any) -> Any:
    """Await what an asynchronous handler returned; a generated default is synchronous and has raised by now."""
    return await result if asyncio.iscoroutine(result) or isinstance(result, Awaitable) else result


async def _send(result: Any, stream: StreamContext) -> None:
    """Send what a streaming handler yields; one that writes by its context only has to end."""
    if not hasattr(result, "__aiter__"):
        await _result(result)
        return
    # Closed in any case, so that the handler's `finally` runs now and not when the collector comes by.
    async with aclosing(result) as responses:
        async for response in responses:
            await stream.write(response)


async def _abort(context: Any, error: TwinmeshError) -> None:
    """End the call with `error`. Aborting sends trailers only, which is what lets a client's retry policy act."""
    status = status_from_error(error)
    await context.abort(
        getattr(grpc.StatusCode, error.code, grpc.StatusCode.UNKNOWN),
        status.message,
        ((DETAILS_KEY, status.SerializeToString()),),
    )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
