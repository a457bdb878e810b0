"""Runs the clockwork: looks every so often what is due, and writes it to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.shards import shard_of
from twinmesh_core.time import Clock
from twinmesh_statesync.domain.alarm_clock import AlarmClock
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.clockwork import Clockwork, Due, silences
from twinmesh_statesync.domain.entries import ConnectivityChange
from twinmesh_statesync.domain.keeping import Report
from twinmesh_statesync.domain.leases import Everything, Holding
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.ports import Log
from twinmesh_statesync.domain.silence import Silence

_LOOK_S: Final = 0.2
_LISTEN_S: Final = 1.0
_AGAIN_S: Final = 1.0
_JUDGED_AT_ONCE: Final = 200
"""About two milliseconds; a fleet whose arrivals come together is due together."""
_AT_ONCE: Final = 16
"""Entries written at the same time."""


class Timekeeper:
    """Writes what time brings about, while the fold keeps up with the log.

    Of several processes each does so for the shards it holds, and listens to all.

    Args:
        log: where entries go.
        live: the fold they are derived from.
        clock: monotonic clock for spans, wall clock for what was set before the start.
        report: told about entries that could not be written.
        leases: for which shards this process writes.
    """

    def __init__(
        self, *, log: Log, live: LiveFold, clock: Clock, report: Report, leases: Holding | None = None
    ) -> None:
        self._log = log
        self._live = live
        self._clock = clock
        self._report = report
        self._clockwork = Clockwork()
        self._silence = Silence(live.fold)
        self._alarms = AlarmClock()
        self._generation = -1
        self._head_before: int | None = None
        self._leases: Holding = leases or Everything()
        live.listeners.on_loud_changes(self._notice)

    async def run(self) -> None:
        """Look for ever."""
        self._generation = -1
        try:
            listened_s = float("-inf")
            while True:
                await asyncio.sleep(_LOOK_S)
                if not self._keeps_up():
                    self._silence.interrupt()
                    continue
                if self._generation != self._live.generation:
                    self._wind_up()
                now_s = self._clock.monotonic_s()
                due = self._clockwork.due(self._live.fold, monotonic_s=now_s, mine=self._mine)
                now_unix_us = self._clock.now_unix_us()
                due += self._alarms.due(self._live.fold, now_unix_us=now_unix_us, monotonic_s=now_s, mine=self._mine)
                if now_s - listened_s >= _LISTEN_S:
                    listened_s = now_s
                    due += await self._listen(now_s)
                await self._write(due)
        finally:
            # Nothing is noticed while it does not run: the next run winds it up.
            self._generation = -1

    def _keeps_up(self) -> bool:
        """Whether the fold has reached by now what was the head of the log at the look before."""
        if not self._live.caught_up:
            self._head_before = None
            return False
        before, self._head_before = self._head_before, self._live.head_offset
        return before is not None and self._live.fold.offset >= before

    def _wind_up(self) -> None:
        self._generation = self._live.generation
        now_s = self._clock.monotonic_s()
        now_unix_us = self._clock.now_unix_us()
        self._clockwork.wind_up(self._live.fold, now_unix_us=now_unix_us, monotonic_s=now_s)
        self._alarms.wind_up(self._live.fold, now_unix_us=now_unix_us, monotonic_s=now_s)
        self._silence = Silence(self._live.fold)

    async def _listen(self, now_s: float) -> list[Due]:
        """Return the entries about who fell silent by now, handing the event loop back between small portions."""
        silence, fold = self._silence, self._live.fold
        silence.listen(fold.offset, now_s)
        found: dict[str, list[ConnectivityChange]] = {}
        while silence.due:
            for tenant, items in silence.judge(fold, mine=self._mine, most=_JUDGED_AT_ONCE).items():
                found.setdefault(tenant, []).extend(items)
            await asyncio.sleep(0)
        if fold is not self._live.fold:
            return []  # the log began anew meanwhile
        return [entry for tenant, items in found.items() for entry in silences(tenant, items)]

    async def _write(self, due: Sequence[Due]) -> None:
        for start in range(0, len(due), _AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for entry in due[start : start + _AT_ONCE]:
                    group.create_task(self._append(entry))

    async def _append(self, due: Due) -> None:
        tenant, entry = due
        try:
            # Whoever notices the same thing writes the same id, and means the same by it.
            digest = blake2b(entry.request_id.encode(), digest_size=16).digest()
            await self._log.append(tenant, entry, content_hash=digest)
        except TwinmeshError as error:
            self._report("timely_entry_not_written", {"request_id": entry.request_id, "reason": str(error.reason)})
            self._clockwork.again(due, at_monotonic_s=self._clock.monotonic_s() + _AGAIN_S)

    def _mine(self, tenant: str, twin_id: str) -> bool:
        return self._leases.holds(shard_of(tenant, twin_id))

    def _notice(self, changes: Sequence[Change]) -> None:
        # Before it is wound up there is nothing to add to: winding up looks at everything.
        if self._generation == self._live.generation:
            self._clockwork.notice(changes, monotonic_s=self._clock.monotonic_s())
            self._silence.notice(changes)
            self._alarms.notice(
                changes, self._live.fold, now_unix_us=self._clock.now_unix_us(), monotonic_s=self._clock.monotonic_s()
            )
