"""Who fell silent: measured on a clock of listening, which runs only while this process hears the log.

No wall clock has a say. What is measured is how long this process has listened since it folded a twin's last arrival.
While it is cut off from the log, behind it, or standing still, that clock stands too, and after such a break every twin
gets one more interval before it is judged: the server's own outage is not the device's silence. For what lies before
the start the log itself is the clock: how far the twin's last arrival lies behind the newest arrival of anybody.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from twinmesh_core.registry import ChannelSpec
from twinmesh_core.time import US_PER_S
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.clockwork import Mine, everybodys
from twinmesh_statesync.domain.entries import ConnectivityChange
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.twin_state import TwinState

UNKNOWN_INTERVAL_S: Final = 60.0
"""Taken where no channel of a type states how often it is expected."""
STALE_INTERVALS: Final = 3
OFFLINE_INTERVALS: Final = 10
STALE_AT_LEAST_S: Final = 5.0
OFFLINE_AT_LEAST_S: Final = 30.0
_LONGEST_STEP_S: Final = 3.0
"""Between two looks; a longer pause means that this process stood still, and heard nothing."""
_AGAIN_S: Final = 5.0
"""What was found and is not folded yet is found again after so long."""
_LOOK_AGAIN_S: Final = 60.0
"""Every twin is looked at this often, since its type may have changed."""
_NOT_MINE_S: Final = 1.0
_SAMPLES: Final = 4_096

_TwinKey = tuple[str, str]


class Silence:
    """Finds twins that are STALE or OFFLINE by now; costs a look at each about once per tolerated silence.

    Args:
        fold: everything that is known now: after a start, after a reset, or when this process takes over.
    """

    def __init__(self, fold: Fold) -> None:
        self._listened_s = 0.0
        self._streak_s = 0.0
        self._looked_s: float | None = None
        self._begin_offset = fold.offset
        self._offsets: list[int] = []
        self._times_s: list[float] = []
        self._timers: list[tuple[float, str, str]] = []
        self._armed: dict[_TwinKey, float] = {}
        self._intervals: dict[tuple[str, str, int], float] = {}
        states = [(tenant, state) for tenant in fold.tenants() for state in fold.states(tenant).values()]
        self._log_time_unix_us = max((state.last_arrival_unix_us for _, state in states), default=0)
        for tenant, state in states:
            if state.alive and state.last_arrival_unix_us:
                self._arm((tenant, state.twin.twin_id), 0.0)

    def interrupt(self) -> None:
        """Note that this process does not hear the log just now, or not all of it."""
        self._looked_s = None

    def notice(self, changes: Iterable[Change]) -> None:
        """Take twins that are heard from (again)."""
        for change in changes:
            if change.connectivity in (Connectivity.ONLINE, Connectivity.REPLAY):
                self._arm((change.tenant, change.twin.twin_id), self._listened_s + STALE_AT_LEAST_S)

    def look(self, fold: Fold, *, monotonic_s: float, mine: Mine = everybodys) -> dict[str, list[ConnectivityChange]]:
        """Listen until now, and return all that `judge` finds."""
        self.listen(fold.offset, monotonic_s)
        return self.judge(fold, mine=mine)

    def listen(self, offset: int, monotonic_s: float) -> None:
        """Note that everything up to an offset was heard by now; call it about every second."""
        step_s = None if self._looked_s is None else monotonic_s - self._looked_s
        self._looked_s = monotonic_s
        if step_s is None or not 0 <= step_s <= _LONGEST_STEP_S:
            self._streak_s = self._listened_s
        else:
            self._listened_s += step_s
        if self._offsets and self._offsets[-1] == offset:
            return
        self._offsets.append(offset)
        self._times_s.append(self._listened_s)
        if len(self._offsets) > _SAMPLES:
            # The older half gets coarser: a silence is known to about a thousandth of its length.
            half = _SAMPLES // 2
            self._offsets[:half] = self._offsets[1:half:2]
            self._times_s[:half] = self._times_s[1:half:2]

    @property
    def due(self) -> bool:
        """Whether there are twins to be judged now."""
        return bool(self._timers) and self._timers[0][0] <= self._listened_s

    def judge(
        self, fold: Fold, *, mine: Mine = everybodys, most: int | None = None
    ) -> dict[str, list[ConnectivityChange]]:
        """Return by tenant which twins are silent for too long, looking at `most` of those that are `due`.

        All twins are listened to, so that those that become `mine` are known; only of mine it is told.
        """
        found: dict[str, list[ConnectivityChange]] = {}
        while self.due and most != 0:
            most = None if most is None else most - 1
            due_s, tenant, twin_id = heapq.heappop(self._timers)
            if self._armed.get((tenant, twin_id)) != due_s:
                continue  # there is an earlier one
            del self._armed[tenant, twin_id]
            state = fold.state(tenant, twin_id)
            if state is None or not state.alive or not state.last_arrival_unix_us:
                continue
            wanted, again_s = self._judge(tenant, state)
            if wanted is not None and not mine(tenant, twin_id):
                again_s = self._listened_s + _NOT_MINE_S
            elif wanted is not None:
                found.setdefault(tenant, []).append(
                    ConnectivityChange(
                        twin_id=twin_id, connectivity=wanted, last_arrival_offset=state.last_arrival_offset
                    )
                )
            if again_s is not None:
                self._arm((tenant, twin_id), again_s)
        return found

    def _judge(self, tenant: str, state: TwinState) -> tuple[Connectivity | None, float | None]:
        """Return what the twin has become, if anything, and when to look again; None = only an arrival changes it."""
        now_s, interval_s = self._listened_s, self._interval_s(tenant, state)
        heard_s = self._heard_s(state)
        stale_s = heard_s + max(STALE_INTERVALS * interval_s, STALE_AT_LEAST_S)
        offline_s = heard_s + max(OFFLINE_INTERVALS * interval_s, OFFLINE_AT_LEAST_S)
        judged_from_s = self._streak_s + max(interval_s, STALE_AT_LEAST_S) if heard_s < self._streak_s else heard_s
        present = state.replica.connectivity
        if present in (Connectivity.OFFLINE, Connectivity.UNSPECIFIED):
            return None, None
        if now_s < judged_from_s:
            return None, judged_from_s
        if now_s > offline_s:
            return Connectivity.OFFLINE, now_s + _AGAIN_S
        if now_s > stale_s and present is not Connectivity.STALE:
            return Connectivity.STALE, now_s + _AGAIN_S
        next_s = offline_s if present is Connectivity.STALE else stale_s
        # Beyond the limit, not at it: and never at this very look again.
        return None, min(max(next_s, now_s) + 1e-3, now_s + _LOOK_AGAIN_S)

    def _heard_s(self, state: TwinState) -> float:
        if state.last_arrival_offset > self._begin_offset:
            at = bisect_left(self._offsets, state.last_arrival_offset)
            return self._times_s[at] if at < len(self._times_s) else self._listened_s
        return min(0.0, (state.last_arrival_unix_us - self._log_time_unix_us) / US_PER_S)

    def _interval_s(self, tenant: str, state: TwinState) -> float:
        key = (tenant, state.twin_type.twin_type_id, state.twin_type.version)
        found = self._intervals.get(key)
        if found is None:
            found = self._intervals[key] = expected_interval_s(state.twin_type.channels)
        return found

    def _arm(self, key: _TwinKey, due_s: float) -> None:
        if due_s < self._armed.get(key, float("inf")):
            self._armed[key] = due_s
            heapq.heappush(self._timers, (due_s, *key))


def expected_interval_s(channels: Sequence[ChannelSpec]) -> float:
    """Return how often anything is expected of a twin with these channels: the shortest interval that one promises.

    A steady value behind a deadband is stored once per longest silence, however often the device sends it.
    """
    stated = [
        max(spec.expected_interval_us, spec.longest_silence_us()) for spec in channels if spec.expected_interval_us > 0
    ]
    return min(stated) / US_PER_S if stated else UNKNOWN_INTERVAL_S
