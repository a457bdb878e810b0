"""What every read settles first: which offset it waits for and reflects, and which range it means."""

from __future__ import annotations

from collections.abc import Sequence

from twinmesh_core.errors import NotFound, Reason, invalid_field
from twinmesh_core.time import MIN_TIME_UNIX_US
from twinmesh_storage.domain.history import MAX_TIME, Seen
from twinmesh_storage.domain.latest_reader import LatestReader
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.series import Series
from twinmesh_storage.rpc.questions import Range


async def settle(view: LogView, min_offset: int, as_of_offset: int = 0, incarnation: str = "") -> int:
    """Wait until reads reflect what is asked for; returns the offset that the answer reflects at least.

    Args:
        view: the log as this process has it.
        min_offset: what the answer must reflect.
        as_of_offset: what it must not go beyond; 0 = the present.
        incarnation: the log's that the offsets are of; "" = nobody says.

    Raises:
        FailedPrecondition: LOG_REWOUND, they are of another incarnation.
        OutOfRange: FUTURE_OFFSET when one of the offsets lies beyond the head.
    """
    view.check_position(incarnation, 0)
    await view.wait_for(min_offset)
    await view.wait_for(as_of_offset, "as_of_offset")
    return as_of_offset or view.head


async def bounds(
    latest: LatestReader, tenant: str, series: Sequence[Series], asked: Range, seen: Seen, *, newest: bool = False
) -> tuple[int, int, int | None]:
    """Return start and end (excluded) of a range, and for a relative one where it ends (included).

    A relative range of series without any row is empty.

    Args:
        newest: the range is relative even without a length: the newest rows up to `at` are wanted.
    """
    if asked.last_us is None and asked.at is None and not (newest and asked.end == MAX_TIME):
        return asked.start, asked.end, None
    at = asked.at if asked.at is not None else await latest.newest_time(tenant, series, seen)
    if at is None:
        return 0, 0, None
    start = asked.start if asked.last_us is None else max(MIN_TIME_UNIX_US, at - asked.last_us + 1)
    return start, at + 1, at


def require_numeric(grid: Sequence[Sequence[Series | None]], channels: Sequence[str]) -> None:
    """Refuse channels without numbers, and names that no twin of the request has.

    Args:
        grid: per twin, the series of each channel.

    Raises:
        InvalidArgument: a channel of text or JSON.
        NotFound: CHANNEL_NOT_FOUND.
    """
    for index, channel in enumerate(channels):
        column = [twin[index] for twin in grid if twin[index] is not None]
        if not column:
            raise NotFound(
                f"channels[{index}]: none of the twins has observations of channel {channel!r}; "
                "check the names (list series), or write some first.",
                reason=Reason.CHANNEL_NOT_FOUND,
                metadata={"channel": channel},
            )
        for series in column:
            if series is not None and not series.kind.numeric:
                raise invalid_field(
                    f"channels[{index}]", f"{series.twin_id}/{channel} is {series.kind.name}; only numbers can be used"
                )
