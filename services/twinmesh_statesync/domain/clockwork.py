"""What time does to twins: deadlines, times to live and silence, each written to the log as an entry.

The fold reads no clock, so somebody must say that time has passed, once and at one offset for every fold. The ids of
these entries follow from what they are about; several processes that notice the same thing write it once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Final

from twinmesh_core.time import US_PER_MINUTE, US_PER_S
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.entries import (
    Action,
    ControlEntry,
    ExpireDesired,
    SetConnectivity,
    UpdateCommand,
)
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.replica import DesiredState
from twinmesh_statesync.domain.twin_state import TwinState

PRINCIPAL: Final = "statesync"
REPLAY_LAG_US: Final = 2 * US_PER_MINUTE
"""Event times that lie further behind their arrival than this are a recording."""
UNKNOWN_INTERVAL_S: Final = 60.0
"""Taken where no channel of a type states how often it is expected."""
STALE_INTERVALS: Final = 3
OFFLINE_INTERVALS: Final = 10
_STALE_AT_LEAST_S: Final = 5.0
_OFFLINE_AT_LEAST_S: Final = 30.0
_AGAIN_S: Final = 5.0
"""An entry that was written and is not folded yet is not written again for so long."""

Due = tuple[str, ControlEntry]
"""A tenant and the entry to write for it."""
Mine = Callable[[str, str], bool]
"""Whether this process writes what time brings about for a twin, by tenant and twin id."""


def everybodys(_tenant: str, _twin_id: str) -> bool:
    """Write for every twin."""
    return True


class Clockwork:
    """Finds what is due; remembers only timers and when it last saw each twin's arrivals change."""

    def __init__(self) -> None:
        self._timers: list[tuple[int, str, str, str]] = []
        self._arrivals: dict[tuple[str, str], tuple[int, float]] = {}
        self._written: dict[tuple[str, str], tuple[Connectivity, int, float]] = {}

    def wind_up(self, fold: Fold) -> None:
        """Begin anew with everything that a fold holds: after a start or a reset."""
        self._arrivals.clear()
        self._written.clear()
        self.rearm(fold)

    def rearm(self, fold: Fold) -> None:
        """Set every timer anew, arrivals being known: after more twins became this process's to write for."""
        self._timers.clear()
        for tenant in fold.tenants():
            for state in fold.states(tenant).values():
                self._arm(tenant, state)

    def notice(self, changes: Sequence[Change]) -> None:
        """Take the deadlines and times to live that changes bring."""
        for change in changes:
            for target in change.desired:
                if target.deadline_unix_us is not None and not target.ever_met:
                    self._push(target.deadline_unix_us, change.tenant, change.twin.twin_id, f"desired:{target.channel}")
            for command in change.commands:
                if command.expire_time_unix_us is not None and not command.state.ended:
                    key = f"command:{command.command_id}"
                    self._push(command.expire_time_unix_us, change.tenant, change.twin.twin_id, key)

    def due(self, fold: Fold, *, now_unix_us: int, mine: Mine = everybodys) -> list[Due]:
        """Return the entries for deadlines and times to live that have passed; each is returned once.

        Those of twins that are not `mine` are forgotten until `rearm`: somebody else writes them.
        """
        found: list[Due] = []
        told: set[str] = set()
        while self._timers and self._timers[0][0] <= now_unix_us:
            _, tenant, twin_id, key = heapq.heappop(self._timers)
            state = fold.state(tenant, twin_id) if mine(tenant, twin_id) else None
            entry = _expiry(state, key, now_unix_us) if state is not None and state.alive else None
            if entry is not None and (tenant + entry.request_id) not in told:
                told.add(tenant + entry.request_id)
                found.append((tenant, entry))
        return found

    def again(self, entry: Due, *, at_unix_us: int) -> None:
        """Have an expiry that could not be written come up again."""
        tenant, control = entry
        action = control.action
        if isinstance(action, ExpireDesired):
            self._push(at_unix_us, tenant, action.twin_id, f"desired:{action.channels[0]}")
        elif isinstance(action, UpdateCommand):
            self._push(at_unix_us, tenant, action.twin_id, f"command:{action.command_id}")

    def connectivity(
        self, fold: Fold, *, now_unix_us: int, monotonic_s: float, mine: Mine = everybodys
    ) -> Iterator[Due]:
        """Yield an entry for each twin, of those that are `mine`, whose connectivity is not what the fold says.

        Arrivals are noticed for all: whoever takes a twin over goes on measuring the same silence.

        Silence is measured on the monotonic clock from when this process saw the last arrival, so a wall clock that
        jumps takes nobody offline; only for what happened before the start the commit time must do.
        """
        for tenant in fold.tenants():
            for twin_id, state in fold.states(tenant).items():
                if not state.alive or not state.last_arrival_unix_us:
                    continue
                silent_s = self._silent_s((tenant, twin_id), state, now_unix_us, monotonic_s)
                wanted = derive(state, silent_s)
                if wanted is state.replica.connectivity or not mine(tenant, twin_id):
                    continue
                if self._just_written((tenant, twin_id), state, wanted, monotonic_s):
                    continue
                self._written[tenant, twin_id] = (wanted, state.last_arrival_unix_us, monotonic_s)
                action = SetConnectivity(
                    twin_id=twin_id, connectivity=wanted, last_arrival_unix_us=state.last_arrival_unix_us
                )
                # The revision tells apart the same state reached twice from one arrival.
                key = f"{twin_id}:{wanted.name}:{state.last_arrival_unix_us}:{state.replica.revision}"
                yield tenant, _entry(f"connectivity:{key}", action)

    def _silent_s(self, key: tuple[str, str], state: TwinState, now_unix_us: int, monotonic_s: float) -> float:
        seen = self._arrivals.get(key)
        if seen is None:
            before_s = max(0, now_unix_us - state.last_arrival_unix_us) / US_PER_S
            seen = self._arrivals[key] = (state.last_arrival_unix_us, monotonic_s - before_s)
        elif seen[0] != state.last_arrival_unix_us:
            seen = self._arrivals[key] = (state.last_arrival_unix_us, monotonic_s)
        return monotonic_s - seen[1]

    def _just_written(self, key: tuple[str, str], state: TwinState, wanted: Connectivity, monotonic_s: float) -> bool:
        written = self._written.get(key)
        return (
            written is not None
            and written[:2] == (wanted, state.last_arrival_unix_us)
            and monotonic_s - written[2] < _AGAIN_S
        )

    def _arm(self, tenant: str, state: TwinState) -> None:
        for target in state.replica.desired.values.values():
            if target.deadline_unix_us is not None and not target.ever_met:
                self._push(target.deadline_unix_us, tenant, state.twin.twin_id, f"desired:{target.channel}")
        for command in state.open_commands():
            if command.expire_time_unix_us is not None:
                self._push(command.expire_time_unix_us, tenant, state.twin.twin_id, f"command:{command.command_id}")

    def _push(self, at_unix_us: int, tenant: str, twin_id: str, key: str) -> None:
        heapq.heappush(self._timers, (at_unix_us, tenant, twin_id, key))


def derive(state: TwinState, silent_s: float) -> Connectivity:
    """Return the connectivity that follows from the silence since the last arrival and from how old its facts were."""
    interval_s = expected_interval_s(state)
    if silent_s > max(OFFLINE_INTERVALS * interval_s, _OFFLINE_AT_LEAST_S):
        return Connectivity.OFFLINE
    if silent_s > max(STALE_INTERVALS * interval_s, _STALE_AT_LEAST_S):
        return Connectivity.STALE
    return Connectivity.REPLAY if state.last_lag_us > REPLAY_LAG_US else Connectivity.ONLINE


def expected_interval_s(state: TwinState) -> float:
    """Return how often anything is expected from a twin: the shortest interval of its channels."""
    stated = [spec.expected_interval_us for spec in state.specs.values() if spec.expected_interval_us > 0]
    return min(stated) / US_PER_S if stated else UNKNOWN_INTERVAL_S


def _expiry(state: TwinState, key: str, now_unix_us: int) -> ControlEntry | None:
    what, name = key.split(":", 1)
    twin_id = state.twin.twin_id
    if what == "desired":
        target = state.replica.desired.values.get(name)
        if target is None or target.deadline_unix_us is None or target.deadline_unix_us > now_unix_us:
            return None
        if target.ever_met or target.progress is DesiredState.EXPIRED:
            return None
        action = ExpireDesired(twin_id=twin_id, channels=(name,), set_offsets=(target.offset,))
        return _entry(f"expire-desired:{twin_id}:{name}:{target.offset}", action)
    command = state.commands.get(name)
    if command is None or command.state.ended or command.expire_time_unix_us is None:
        return None
    if command.expire_time_unix_us > now_unix_us:
        return None
    move = UpdateCommand(
        command_id=name, twin_id=twin_id, state=CommandState.EXPIRED, message="Its time to live ran out."
    )
    return _entry(f"expire-command:{twin_id}:{name}", move)


def _entry(about: str, action: Action) -> ControlEntry:
    # Hashed, since a twin's id alone may take all the room that a request id has.
    digest = blake2b(about.encode(), digest_size=16).hexdigest()
    return ControlEntry(request_id=f"clock-{digest}", principal=PRINCIPAL, action=action)
