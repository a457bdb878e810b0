"""Notices: what others may want to be told, in the order of the log, kept for as long as it takes to tell them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Final

from twinmesh_statesync.domain.alarms.alarm import Alarm, Transition
from twinmesh_statesync.domain.events import Connectivity, Event

if TYPE_CHECKING:
    from twinmesh_statesync.domain.changes import Change

MAX_NOTICES: Final = 10_000
"""Notices of each kind kept per tenant: what a subscription may lie behind without missing one."""
_CREATED: Final = 2
_DELETED: Final = 4
_TRIM: Final = 1_000


class NoticeKind(IntEnum):
    """What a notice is about; numbers equal ``twinmesh.statesync.v1.NoticeKind``."""

    UNSPECIFIED = 0
    ALARM = 1
    EVENT = 2
    TWIN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One thing that happened to one twin.

    Attributes:
        offset: the entry that brought it.
        number: its place among the notices of that entry.
        time_unix_us: commit time of the entry.
        twin_id: the twin.
        twin_type_id: its type.
        what: of an alarm what happened (``raised``), of a twin ``created``, ``deleted`` or ``connectivity``, of an
            event ``recorded``.
        alarm: the alarm after it; None = it is about something else.
        event: the event.
        connectivity: of the twin, where that changed.
    """

    offset: int
    number: int
    time_unix_us: int
    twin_id: str
    twin_type_id: str
    what: str
    alarm: Alarm | None = None
    event: Event | None = None
    connectivity: Connectivity = Connectivity.UNSPECIFIED

    @property
    def kind(self) -> NoticeKind:
        """What it is about."""
        if self.alarm is not None:
            return NoticeKind.ALARM
        return NoticeKind.EVENT if self.event is not None else NoticeKind.TWIN

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the order of the log."""
        return (self.offset, self.number)

    @property
    def key(self) -> str:
        """Its name within the tenant; names sort as places do."""
        return place_of(self.offset, self.number)

    @property
    def subject(self) -> str:
        """What must be told in order: the alarm, or else the twin."""
        return f"{self.twin_id}/{self.alarm.rule}" if self.alarm is not None else self.twin_id


def place_of(offset: int, number: int) -> str:
    """Return a place as text that sorts as places do."""
    return f"{offset:019d}.{number:05d}"


def notices_of(change: Change, first: int, commit_time_unix_us: int) -> Iterator[Notice]:
    """Yield the notices that a change brings, numbered from `first`."""
    found: list[tuple[str, Alarm | None, Event | None, Connectivity]] = []
    if change.kind == _CREATED:
        found.append(("created", None, None, Connectivity.UNSPECIFIED))
    found += [(alarm.transition.name.lower(), alarm, None, Connectivity.UNSPECIFIED) for alarm in change.alarms]
    found += [("recorded", None, event, Connectivity.UNSPECIFIED) for event in change.events]
    if change.connectivity is not None:
        found.append(("connectivity", None, None, change.connectivity))
    if change.kind == _DELETED:
        found.append(("deleted", None, None, Connectivity.UNSPECIFIED))
    for number, (what, alarm, event, connectivity) in enumerate(found, first):
        yield Notice(
            offset=change.offset,
            number=number,
            time_unix_us=commit_time_unix_us,
            twin_id=change.twin.twin_id,
            twin_type_id=change.twin.twin_type_id,
            what=what,
            alarm=alarm,
            event=event,
            connectivity=connectivity,
        )


def worth_telling(alarm: Alarm) -> bool:
    """Whether anybody is told of what happened to an alarm: not while it is kept quiet, save that it is from now on."""
    quiet = (Transition.SHELVED, Transition.SUPPRESSED, Transition.OUT_OF_SERVICE)
    audible = (Transition.UNSHELVED, Transition.UNSUPPRESSED, Transition.IN_SERVICE)
    if alarm.transition in quiet:
        return alarm.active
    return alarm.told and (alarm.active or alarm.transition not in audible)


class Journal:
    """The newest notices of one tenant, of each kind for itself: many of one push out none of another."""

    def __init__(self) -> None:
        self._notices: dict[NoticeKind, list[Notice]] = {}

    def __iter__(self) -> Iterator[Notice]:
        return merge(*self._notices.values(), key=lambda notice: notice.place)

    def note(self, notice: Notice) -> list[Notice]:
        """Add the newest notice; returns those that are forgotten for it."""
        kept = self._notices.setdefault(notice.kind, [])
        kept.append(notice)
        if len(kept) <= MAX_NOTICES + _TRIM:
            return []
        forgotten = kept[: len(kept) - MAX_NOTICES]
        del kept[: len(forgotten)]
        return forgotten

    def forget(self, twin_id: str) -> list[Notice]:
        """Drop what came of entries that an erasure takes out of the log; returns it. That a twin is there stays."""
        gone = [n for n in self if n.twin_id == twin_id and n.what not in ("created", "deleted")]
        for kind in {notice.kind for notice in gone}:
            self._notices[kind] = [n for n in self._notices[kind] if n not in gone]
        return gone

    def after(self, offset: int, kinds: Iterable[NoticeKind], limit: int) -> list[Notice]:
        """Return at most `limit` of the notices of these kinds after an offset, in order; whole offsets only."""
        found = merge(*(self._tail(kind, offset) for kind in kinds), key=lambda notice: notice.place)
        taken = list(islice(found, limit))
        last = taken[-1].offset if len(taken) == limit else 0
        for notice in found:
            if notice.offset != last:
                break
            taken.append(notice)
        return taken

    def floor(self, kinds: Iterable[NoticeKind]) -> int:
        """Return the offset up to which notices of these kinds may be missing."""
        full = (self._notices.get(kind, []) for kind in kinds)
        return max((kept[0].offset for kept in full if len(kept) >= MAX_NOTICES), default=0)

    def _tail(self, kind: NoticeKind, offset: int) -> Iterator[Notice]:
        kept = self._notices.get(kind, [])
        start = bisect_right(kept, offset, key=lambda notice: notice.offset)
        return iter(kept[start:])


class Journals:
    """The notices of all tenants."""

    def __init__(self) -> None:
        self._journals: dict[str, Journal] = {}

    def of(self, tenant: str) -> Journal:
        """Return the notices of a tenant; not to be written to."""
        return self._journals.get(tenant) or Journal()

    def tenants(self) -> tuple[str, ...]:
        """Return the tenants with notices."""
        return tuple(self._journals)

    def put(self, tenant: str, notice: Notice) -> list[Notice]:
        """Add the newest notice of a tenant, or put one back from a checkpoint; returns those that are forgotten."""
        return self._journals.setdefault(tenant, Journal()).note(notice)

    def note(self, tenant: str, changes: Iterable[Change], commit_time_unix_us: int) -> Iterator[tuple[Notice, bool]]:
        """Add what one entry's changes bring; yields every notice that is new (true) or forgotten for it (false)."""
        number = 0
        for change in changes:
            for notice in notices_of(change, number, commit_time_unix_us):
                number += 1
                yield notice, True
                for forgotten in self.put(tenant, notice):
                    yield forgotten, False
