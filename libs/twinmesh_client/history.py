"""Which part of history is meant: ``last="1d"`` and its relatives, resolved against the data and not the wall clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from twinmesh_client.durations import Moment, Span, moment_us, span_us
from twinmesh_client.readings import Reading
from twinmesh_core.errors import invalid_field


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A half-open range of event time in microseconds, UTC; None = unbounded."""

    start_us: int | None
    end_us: int | None


async def resolve_window(
    latest: Callable[[], Awaitable[Reading]],
    *,
    last: Span | None,
    start: Moment | None,
    end: Moment | None,
    at: Moment | None,
) -> Window:
    """Return the range that the caller means.

    ``last`` ends just after `at`, or just after the newest event time that `latest` finds, so that it is included.

    Raises:
        InvalidArgument: contradicting arguments.
    """
    if last is None:
        if at is not None:
            raise invalid_field("at", "is the end of `last`; give `last` too, or `end` instead")
        window = Window(
            start_us=None if start is None else moment_us(start, "start"),
            end_us=None if end is None else moment_us(end, "end"),
        )
        if window.start_us is not None and window.end_us is not None and window.start_us >= window.end_us:
            raise invalid_field("start", "must be before end")
        return window
    if start is not None or end is not None:
        raise invalid_field("last", "excludes start and end; use `at` to end it elsewhere than at the newest value")
    length_us = span_us(last, "last")
    if at is not None:
        end_us = moment_us(at, "at")
    else:
        newest = [int(s.time_unix_us[-1]) for s in (await latest()).series if len(s)]
        end_us = max(newest, default=0) + 1
    return Window(start_us=end_us - length_us, end_us=end_us)
