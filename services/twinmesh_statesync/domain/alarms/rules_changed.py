"""What becomes of a twin's alarms when it comes to another version of its type."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from twinmesh_statesync.domain.alarms.alarm import Alarm, AlarmState, Transition
from twinmesh_statesync.domain.alarms.desk import fresh_memory
from twinmesh_statesync.domain.alarms.memory import NEVER
from twinmesh_statesync.domain.alarms.rulebook import Rulebook

if TYPE_CHECKING:
    from twinmesh_statesync.domain.twin_state import TwinState


def take_rules(state: TwinState, before: Rulebook | None, offset: int, commit_time_unix_us: int) -> tuple[Alarm, ...]:
    """Go on with the rules that stayed the same, begin anew with the others; returns the alarms that are cleared.

    An open alarm of a rule that is gone, or says something else now, is cleared: nothing would ever end it.
    """
    after = state.rulebook
    if before is after:
        return ()
    same = {
        name
        for name, rule in (after.rules if after is not None else {}).items()
        if before is not None and name in before.rules and before.rules[name].spec == rule.spec
    }
    cleared = tuple(
        replace(
            alarm,
            state=AlarmState.CLEARED,
            shelved_until_unix_us=0,
            out_of_service_by="",
            suppressed_by="",
            transition=Transition.CLEARED,
            transition_unix_us=commit_time_unix_us,
            offset=offset,
        )
        for _, alarm in sorted(state.replica.alarms.items())
        if alarm.rule not in same and alarm.open
    )
    kept = {rule: alarm for rule, alarm in state.replica.alarms.items() if rule in same}
    state.replica = replace(state.replica, alarms=kept)
    memory, fresh = state.alarm_memory, fresh_memory(after, commit_time_unix_us)
    known = {name: standing for name, standing in memory.standings.items() if name in same}
    state.alarm_memory = replace(
        fresh,
        standings={**fresh.standings, **known},
        suppressed_by=memory.suppressed_by if after is not None else "",
        looked_unix_us=memory.looked_unix_us,
        # Early is without effect, and tells when to look again.
        due_unix_us=min(fresh.due_unix_us, memory.due_unix_us) if after is not None else NEVER,
    )
    return cleared
