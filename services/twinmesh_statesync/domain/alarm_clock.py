"""Has the log told that time has passed for a twin's alarms: one timer for each twin, for the next thing that is due.

What is due is decided by commit times; the way there is measured on the monotonic clock, so that a wall clock which is
set forth or back in between raises nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Final

from twinmesh_core.time import US_PER_S
from twinmesh_statesync.domain.alarms.actions import LookAtAlarms
from twinmesh_statesync.domain.alarms.memory import NEVER
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.clockwork import Due, Mine, entry_about, everybodys
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.twin_state import TwinState

_AGAIN_S: Final = 5.0
"""An entry that was not folded yet, or came too early by the log's clock, is written again after so long."""
_NOT_MINE_S: Final = 1.0


class AlarmClock:
    """Finds the twins whose alarms are due; remembers only timers."""

    def __init__(self) -> None:
        self._timers: list[tuple[float, str, str]] = []
        self._armed: dict[tuple[str, str], tuple[float, int]] = {}

    def wind_up(self, fold: Fold, *, now_unix_us: int, monotonic_s: float) -> None:
        """Begin anew with everything that a fold holds: after a start or a reset."""
        self._timers.clear()
        self._armed.clear()
        for tenant in fold.tenants():
            for state in fold.states(tenant).values():
                self._arm(tenant, state, now_unix_us, monotonic_s)

    def notice(self, changes: Sequence[Change], fold: Fold, *, now_unix_us: int, monotonic_s: float) -> None:
        """Take what became due earlier by changes that were just folded."""
        for change in changes:
            state = fold.state(change.tenant, change.twin.twin_id)
            if state is not None and state.rulebook is not None:
                self._arm(change.tenant, state, now_unix_us, monotonic_s)

    def due(self, fold: Fold, *, now_unix_us: int, monotonic_s: float, mine: Mine = everybodys) -> list[Due]:
        """Return the entries for twins whose alarms are due; those of twins that are not `mine` are kept."""
        found: list[Due] = []
        while self._timers and self._timers[0][0] <= monotonic_s:
            at_s, tenant, twin_id = heapq.heappop(self._timers)
            armed = self._armed.get((tenant, twin_id))
            if armed is None or armed[0] != at_s:
                continue  # an earlier time took its place
            del self._armed[tenant, twin_id]
            state = fold.state(tenant, twin_id)
            if state is None or not state.alive:
                continue
            due = state.alarm_memory.due_unix_us
            if due != armed[1]:
                self._arm(tenant, state, now_unix_us, monotonic_s)
            elif not mine(tenant, twin_id):
                self._push(monotonic_s + _NOT_MINE_S, tenant, twin_id, due)
            else:
                self._push(monotonic_s + _AGAIN_S, tenant, twin_id, due)
                # Each attempt has an id of its own, or one that came too early would have decided for ever.
                attempt = (now_unix_us - due) // int(_AGAIN_S * US_PER_S)
                about = f"alarms:{twin_id}:{state.twin.create_offset}:{due}:{attempt}"
                found.append((tenant, entry_about(about, LookAtAlarms(twin_id=twin_id))))
        return found

    def _arm(self, tenant: str, state: TwinState, now_unix_us: int, monotonic_s: float) -> None:
        due, key = state.alarm_memory.due_unix_us, (tenant, state.twin.twin_id)
        armed = self._armed.get(key)
        if due == NEVER or (armed is not None and armed[1] <= due):
            return
        self._push(monotonic_s + max(0, due - now_unix_us) / US_PER_S, *key, due)

    def _push(self, at_s: float, tenant: str, twin_id: str, due_unix_us: int) -> None:
        self._armed[tenant, twin_id] = (at_s, due_unix_us)
        heapq.heappush(self._timers, (at_s, tenant, twin_id))
