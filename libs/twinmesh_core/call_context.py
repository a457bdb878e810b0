"""What a call carries through a process: how long is left, and by which ids its log lines are found.

The server's interceptor sets it, the client's `call` reads it: a deadline therefore only ever shrinks on its way
inward, and one request keeps one id across all five services.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

REQUEST_ID_KEY = "twinmesh-request-id"
"""Metadata key of the id that a caller, or else the first server, gave to this request."""
TRACEPARENT_KEY = "traceparent"
"""Metadata key of the W3C trace context, passed on unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """The call that the running task serves.

    Attributes:
        deadline_s: when it must have ended, on the clock of `time.monotonic`; None when it may go on.
        request_id: finds this request in every service's log.
        traceparent: W3C trace context as received, "" when there was none.
    """

    deadline_s: float | None
    request_id: str
    traceparent: str = ""

    @property
    def trace_id(self) -> str:
        """The 32 hex digits of the trace id, or "" when the caller does not trace."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""


_current: ContextVar[CallContext | None] = ContextVar("twinmesh_call", default=None)


def current_call() -> CallContext | None:
    """Return the call that this task serves, or None outside of any (start-up, background work)."""
    return _current.get()


def enter_call(call: CallContext) -> None:
    """Make `call` the one this task serves, until the task ends; tasks it starts inherit it."""
    _current.set(call)


def remaining_s() -> float | None:
    """Return the seconds left for the call this task serves (0.0 when none), or None when nothing bounds it."""
    call = _current.get()
    if call is None or call.deadline_s is None:
        return None
    return max(0.0, call.deadline_s - time.monotonic())
