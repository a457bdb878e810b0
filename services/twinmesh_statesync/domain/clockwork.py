"""What time does to twins: deadlines and times to live, each written to the log as an entry.

The fold reads no clock, so somebody must say that time has passed, once and at one offset for every fold. The ids of
these entries follow from what they are about; several processes that notice the same thing write it once.

Spans run on the monotonic clock from when their entry was folded here: a wall clock that is set an hour forth or back
ends nothing early and keeps nothing late. Only for what happened before the start the wall clock must do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final

from twinmesh_core.time import US_PER_S
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.commands import Command, CommandState
from twinmesh_statesync.domain.entries import (
    Action,
    ConnectivityChange,
    ControlEntry,
    ExpireDesired,
    SetConnectivities,
    UpdateCommand,
)
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.replica import DesiredState, DesiredValue
from twinmesh_statesync.domain.targets import not_converged_id
from twinmesh_statesync.domain.twin_state import TwinState

PRINCIPAL: Final = "statesync"
MOST_AT_ONCE: Final = 1_000
"""Twins in one entry about connectivity."""

_NOT_MINE_S: Final = 1.0
"""What somebody else should write is looked at again after so long: whose it is may have changed."""

Due = tuple[str, ControlEntry]
"""A tenant and the entry to write for it."""
Mine = Callable[[str, str], bool]
"""Whether this process writes for a twin (tenant, twin id)."""


def everybodys(_tenant: str, _twin_id: str) -> bool:
    """Say that this process writes for every twin."""
    return True


class Clockwork:
    """Finds what is due; remembers only timers."""

    def __init__(self) -> None:
        self._timers: list[tuple[float, str, str, str, str]] = []

    def wind_up(self, fold: Fold, *, now_unix_us: int, monotonic_s: float) -> None:
        """Begin anew with everything that a fold holds: after a start or a reset."""
        self._timers.clear()
        for tenant in fold.tenants():
            for twin_id, state in fold.states(tenant).items():
                for target in state.replica.desired.values.values():
                    self._take_target(tenant, twin_id, target, now_unix_us, monotonic_s)
                for command in state.open_commands():
                    self._take_command(tenant, twin_id, command, now_unix_us, monotonic_s)

    def notice(self, changes: Sequence[Change], *, monotonic_s: float) -> None:
        """Take the deadlines and times to live that changes bring."""
        for change in changes:
            twin_id = change.twin.twin_id
            for target in change.desired:
                if target.offset == change.offset:
                    self._take_target(change.tenant, twin_id, target, target.set_time_unix_us, monotonic_s)
            for command in change.commands:
                if command.create_offset == change.offset:
                    self._take_command(change.tenant, twin_id, command, command.create_time_unix_us, monotonic_s)

    def due(self, fold: Fold, *, monotonic_s: float, mine: Mine = everybodys) -> list[Due]:
        """Return the entries for deadlines and times to live that have passed; each is returned once.

        Those of twins that are not `mine` are kept: somebody else writes them, or this process once they are its own.
        """
        found: list[Due] = []
        while self._timers and self._timers[0][0] <= monotonic_s:
            _, tenant, twin_id, what, name = heapq.heappop(self._timers)
            state = fold.state(tenant, twin_id)
            entry = _expiry(state, what, name) if state is not None and state.alive else None
            if entry is None:
                continue
            if mine(tenant, twin_id):
                found.append((tenant, entry))
            else:
                self._push(monotonic_s + _NOT_MINE_S, tenant, twin_id, what, name)
        return found

    def again(self, entry: Due, *, at_monotonic_s: float) -> None:
        """Have an expiry that could not be written come up again."""
        tenant, control = entry
        action = control.action
        if isinstance(action, ExpireDesired):
            self._push(
                at_monotonic_s, tenant, action.twin_id, "desired", f"{action.set_offsets[0]}:{action.channels[0]}"
            )
        elif isinstance(action, UpdateCommand):
            self._push(at_monotonic_s, tenant, action.twin_id, "command", action.command_id)

    def _take_target(
        self, tenant: str, twin_id: str, target: DesiredValue, from_unix_us: int, monotonic_s: float
    ) -> None:
        if target.deadline_unix_us is not None and not target.ever_met:
            at_s = monotonic_s + (target.deadline_unix_us - from_unix_us) / US_PER_S
            self._push(at_s, tenant, twin_id, "desired", f"{target.offset}:{target.channel}")

    def _take_command(self, tenant: str, twin_id: str, command: Command, from_unix_us: int, monotonic_s: float) -> None:
        if command.expire_time_unix_us is not None and not command.state.ended:
            at_s = monotonic_s + (command.expire_time_unix_us - from_unix_us) / US_PER_S
            self._push(at_s, tenant, twin_id, "command", command.command_id)

    def _push(self, at_s: float, tenant: str, twin_id: str, what: str, name: str) -> None:
        heapq.heappush(self._timers, (at_s, tenant, twin_id, what, name))


def silences(tenant: str, items: Sequence[ConnectivityChange]) -> Iterable[Due]:
    """Yield the entries that state that twins of a tenant fell silent: few, however many twins."""
    for start in range(0, len(items), MOST_AT_ONCE):
        part = tuple(items[start : start + MOST_AT_ONCE])
        about = ",".join(f"{i.twin_id}:{i.connectivity.name}:{i.last_arrival_offset}" for i in part)
        yield tenant, entry_about(f"silence:{about}", SetConnectivities(items=part))


def _expiry(state: TwinState, what: str, name: str) -> ControlEntry | None:
    twin_id = state.twin.twin_id
    if what == "desired":
        offset, channel = name.split(":", 1)
        target = state.replica.desired.values.get(channel)
        if target is None or target.offset != int(offset) or target.ever_met:
            return None
        if target.progress is DesiredState.EXPIRED or not_converged_id(channel, target.offset) in state.events:
            return None
        action = ExpireDesired(twin_id=twin_id, channels=(channel,), set_offsets=(target.offset,))
        return entry_about(f"expire-desired:{twin_id}:{channel}:{target.offset}", action)
    command = state.commands.get(name)
    if command is None or command.state.ended:
        return None
    move = UpdateCommand(
        command_id=name, twin_id=twin_id, state=CommandState.EXPIRED, message="Its time to live ran out."
    )
    return entry_about(f"expire-command:{twin_id}:{name}", move)


def entry_about(about: str, action: Action) -> ControlEntry:
    """Return an entry of the clock; its id follows from what it is about."""
    # Hashed, since a twin's id alone may take all the room that a request id has.
    digest = blake2b(about.encode(), digest_size=16).hexdigest()
    return ControlEntry(request_id=f"clock-{digest}", principal=PRINCIPAL, action=action)
