"""Arrivals and silence: what they make of a twin's connectivity, decided at the entry's own offset.

An arrival brings a twin back in the very event that it makes. That nothing arrives cannot be seen in the log; it is
stated by entries of the clockwork, which an arrival between their writing and their offset makes void.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twinmesh_core.errors import invalid_field
from twinmesh_core.time import US_PER_MINUTE
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.entries import ConnectivityChange, SetConnectivity
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.reduce import Fact
from twinmesh_statesync.domain.twin_state import Draft, TwinState, reported_change, take_news
from twinmesh_statesync.domain.values import ReportedValue

REPLAY_LAG_US: Final = 2 * US_PER_MINUTE
"""A twin whose newest fact lies further behind its arrival than this is fed by a recording, or catches up."""
SILENT: Final = (Connectivity.STALE, Connectivity.OFFLINE)


def note_arrival(draft: Draft, newest_event_time_unix_us: int, *, seeding: bool = False) -> None:
    """Take the arrival of facts, the newest of which has this event time; call it after `Draft.observe`.

    ONLINE or REPLAY follows from the newest fact known, so late rows sent beside live ones take nobody back in time.
    Facts that a fold is seeded with arrived at a time unknown: they leave a connectivity that is known as it is.
    """
    state, now = draft.state, draft.commit_time_unix_us
    state.last_arrival_unix_us = now
    state.last_arrival_offset = draft.offset
    lag_us = now - newest_event_time_unix_us
    state.last_lag_us = lag_us
    if lag_us > REPLAY_LAG_US:
        known = state.last_event_time_unix_us
        lag_us = lag_us if known is None else min(lag_us, now - known)
    heard = Connectivity.REPLAY if lag_us > REPLAY_LAG_US else Connectivity.ONLINE
    if seeding:
        heard = state.replica.connectivity or Connectivity.ONLINE
    if state.replica.connectivity is not heard:
        draft.connectivity = heard


def arrive_quietly(state: TwinState, facts: Sequence[Fact], offset: int, commit_time_unix_us: int) -> Change | None:
    """Take facts from which nothing but themselves follows; call it for who `is_quiet`. None = none of them is news.

    Args:
        state: the twin.
        facts: of one entry.
        offset: of that entry.
        commit_time_unix_us: of that entry.
    """
    version = state.version
    fresh: dict[str, ReportedValue] = {}
    take_news(state, facts, fresh)
    state.last_arrival_unix_us = commit_time_unix_us
    state.last_arrival_offset = offset
    state.last_lag_us = commit_time_unix_us - newest_time(facts)
    return reported_change(state, fresh, offset, version, quiet=True) if fresh else None


def is_quiet(state: TwinState, facts: Sequence[Fact], commit_time_unix_us: int) -> bool:
    """Whether nothing but the facts themselves follows from an arrival: no target, rule or prediction looks at them."""
    replica = state.replica
    return (
        state.rulebook is None
        and not (state.tracks or replica.desired.values)
        and replica.connectivity is Connectivity.ONLINE
        and commit_time_unix_us - newest_time(facts) <= REPLAY_LAG_US
    )


def newest_time(facts: Sequence[Fact]) -> int:
    """Return the greatest event time among facts, of which there must be one."""
    if len(facts) == 1:
        return facts[0][1].event_time_unix_us
    return max([fact.event_time_unix_us for _, fact in facts])


def fall_silent(draft: Draft, item: ConnectivityChange) -> None:
    """Take that a twin fell silent, unless it was heard from since."""
    state = draft.state
    void = item.connectivity not in SILENT or state.last_arrival_offset > item.last_arrival_offset
    if void or not state.last_arrival_unix_us or state.replica.connectivity is item.connectivity:
        return
    draft.connectivity = item.connectivity


def set_connectivity(draft: Draft, action: SetConnectivity) -> None:
    """Take a connectivity as an earlier release wrote it."""
    if action.connectivity is Connectivity.UNSPECIFIED:
        # A watch cannot tell it from "unchanged", and nothing that was heard from becomes unheard of.
        raise invalid_field("connectivity", "must be ONLINE, STALE, OFFLINE or REPLAY")
    if draft.state.replica.connectivity is not action.connectivity:
        draft.connectivity = action.connectivity
