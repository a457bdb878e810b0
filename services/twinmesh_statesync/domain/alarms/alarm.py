"""The alarm of one rule of one twin, and its life (ISA-18.2): every function returns a new alarm, or the same one.

::

                 raised                    acknowledged
    CLEARED ----------------> ACTIVE ----------------------> ACKNOWLEDGED
       ^  ^                   ^    |                             |
       |  |            raised |    | returned to normal          | returned to normal
       |  |                   |    v                             |
       |  +---acknowledged--- RETURNED                           |
       +---------------------------------------------------------+

Shelving, suppression and being out of service are beside it: the life goes on, only nobody is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from twinmesh_core.errors import Conflict, FailedPrecondition, Reason
from twinmesh_core.ids import quoted
from twinmesh_statesync.domain.values import Value


class AlarmState(IntEnum):
    """Where an alarm is in its life; numbers equal ``twinmesh.type.v1.AlarmState``."""

    UNSPECIFIED = 0
    ACTIVE = 1
    ACKNOWLEDGED = 2
    RETURNED = 3
    CLEARED = 4


class Transition(IntEnum):
    """What happened to an alarm last; numbers equal ``twinmesh.type.v1.AlarmTransition``."""

    UNSPECIFIED = 0
    RAISED = 1
    LEVEL_CHANGED = 2
    ACKNOWLEDGED = 3
    RETURNED = 4
    CLEARED = 5
    SHELVED = 6
    UNSHELVED = 7
    SUPPRESSED = 8
    UNSUPPRESSED = 9
    OUT_OF_SERVICE = 10
    IN_SERVICE = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alarm as it stands; times are commit times, 0 = never (or not now).

    Attributes:
        twin_id: the twin.
        rule: the rule of its type; with the twin it names the alarm.
        channel: what it is about; "" = none in particular.
        state: where it is in its life.
        severity: 1 to 1,000.
        level: which limit is crossed.
        message: words for people, made when it was raised or its level changed.
        value: the value that did that; None = none.
        limit: the limit that it crossed; None = none.
        raise_count: how often it was raised, ever.
        first_raise_unix_us: when first.
        last_raise_unix_us: when last.
        return_unix_us: when the condition was last over; 0 while it holds.
        acknowledge_unix_us: when it was acknowledged; 0 = not since it was raised last.
        acknowledged_by: who did.
        acknowledge_note: what they noted.
        shelved_until_unix_us: nobody is told until then; 0 = not shelved.
        shelved_by: who did.
        shelve_note: what they noted.
        suppressed_by: the maintenance event that covers the twin; "" = none.
        out_of_service_by: who took it out of service; "" = in service.
        transition: what happened last.
        transition_unix_us: when that was.
        offset: the entry that did it.
    """

    twin_id: str
    rule: str
    channel: str = ""
    state: AlarmState = AlarmState.CLEARED
    severity: int = 0
    level: str = ""
    message: str = ""
    value: Value | None = None
    limit: float | None = None
    raise_count: int = 0
    first_raise_unix_us: int = 0
    last_raise_unix_us: int = 0
    return_unix_us: int = 0
    acknowledge_unix_us: int = 0
    acknowledged_by: str = ""
    acknowledge_note: str = ""
    shelved_until_unix_us: int = 0
    shelved_by: str = ""
    shelve_note: str = ""
    suppressed_by: str = ""
    out_of_service_by: str = ""
    transition: Transition = Transition.UNSPECIFIED
    transition_unix_us: int = 0
    offset: int = 0

    @property
    def active(self) -> bool:
        """Whether the condition holds."""
        return self.state in (AlarmState.ACTIVE, AlarmState.ACKNOWLEDGED)

    @property
    def told(self) -> bool:
        """Whether anybody is told of it."""
        return not (self.shelved_until_unix_us or self.suppressed_by or self.out_of_service_by)

    @property
    def open(self) -> bool:
        """Whether it is worth a place in the replica: not cleared, or kept from being told by somebody's decision."""
        kept = self.shelved_until_unix_us or self.out_of_service_by
        return self.state is not AlarmState.CLEARED or bool(kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """At which entry, when, and by whom something happens to an alarm."""

    offset: int
    time_unix_us: int
    principal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a rule says of a twin now.

    Attributes:
        level: which limit is crossed; "" = none, all is normal.
        value: the value that was judged; None = none.
        limit: the limit of the level; None = none.
    """

    level: str = ""
    value: Value | None = None
    limit: float | None = None


NORMAL: Final = Judgement()


def raised(alarm: Alarm, said: Judgement, severity: int, message: str, at: Happening) -> Alarm:
    """Return the alarm raised, by an entry that may come later than `at` says."""
    return _moved(
        replace(
            alarm,
            state=AlarmState.ACTIVE,
            severity=severity,
            level=said.level,
            message=message,
            value=said.value,
            limit=said.limit,
            raise_count=alarm.raise_count + 1,
            first_raise_unix_us=alarm.first_raise_unix_us or at.time_unix_us,
            last_raise_unix_us=at.time_unix_us,
            return_unix_us=0,
            acknowledge_unix_us=0,
            acknowledged_by="",
            acknowledge_note="",
        ),
        Transition.RAISED,
        at,
    )


def level_changed(alarm: Alarm, said: Judgement, severity: int, message: str, at: Happening) -> Alarm:
    """Return an active alarm at another level; one that became worse asks for a new acknowledgement."""
    worse = severity > alarm.severity
    moved = replace(
        alarm,
        state=AlarmState.ACTIVE if worse else alarm.state,
        severity=severity,
        level=said.level,
        message=message,
        value=said.value,
        limit=said.limit,
    )
    if worse:
        moved = replace(moved, acknowledge_unix_us=0, acknowledged_by="", acknowledge_note="")
    return _moved(moved, Transition.LEVEL_CHANGED, at)


def returned(alarm: Alarm, at: Happening) -> Alarm:
    """Return an active alarm whose condition is over: RETURNED, or CLEARED if somebody knows."""
    known = alarm.state is AlarmState.ACKNOWLEDGED
    state, transition = (
        (AlarmState.CLEARED, Transition.CLEARED) if known else (AlarmState.RETURNED, Transition.RETURNED)
    )
    return _moved(replace(alarm, state=state, return_unix_us=at.time_unix_us), transition, at)


def acknowledged(alarm: Alarm, note: str, if_raise_count: int, at: Happening) -> Alarm:
    """Return the alarm acknowledged.

    Raises:
        Conflict: it was raised again meanwhile.
        FailedPrecondition: ALARM_STATE, there is nothing to acknowledge.
    """
    if if_raise_count and if_raise_count != alarm.raise_count:
        raise Conflict(
            f"Alarm {quoted(alarm.rule)} of {quoted(alarm.twin_id)} was raised {alarm.raise_count} times, not "
            f"{if_raise_count}; look at it again, and send its raise_count.",
            metadata={"current_raise_count": str(alarm.raise_count)},
        )
    if alarm.state is AlarmState.ACKNOWLEDGED:
        return alarm
    if alarm.state is AlarmState.CLEARED:
        raise wrong_state(alarm, "there is nothing to acknowledge")
    known = replace(alarm, acknowledge_unix_us=at.time_unix_us, acknowledged_by=at.principal, acknowledge_note=note)
    if alarm.state is AlarmState.RETURNED:
        return _moved(replace(known, state=AlarmState.CLEARED), Transition.CLEARED, at)
    return _moved(replace(known, state=AlarmState.ACKNOWLEDGED), Transition.ACKNOWLEDGED, at)


def shelved(alarm: Alarm, until_unix_us: int, note: str, at: Happening) -> Alarm:
    """Return the alarm shelved until a time, or longer than it was."""
    if alarm.shelved_until_unix_us == until_unix_us and alarm.shelve_note == note:
        return alarm
    kept = replace(alarm, shelved_until_unix_us=until_unix_us, shelved_by=at.principal, shelve_note=note)
    return _moved(kept, Transition.SHELVED, at)


def unshelved(alarm: Alarm, at: Happening) -> Alarm:
    """Return the alarm told of again."""
    free = replace(alarm, shelved_until_unix_us=0, shelved_by="", shelve_note="")
    return _moved(free, Transition.UNSHELVED, at)


def suppressed(alarm: Alarm, event_id: str, at: Happening) -> Alarm:
    """Return the alarm covered by a maintenance event; "" = by none any more."""
    transition = Transition.SUPPRESSED if event_id else Transition.UNSUPPRESSED
    return _moved(replace(alarm, suppressed_by=event_id), transition, at)


def in_service(alarm: Alarm, out_of_service: bool, at: Happening) -> Alarm:
    """Return the alarm taken out of service, or put back."""
    if bool(alarm.out_of_service_by) is out_of_service:
        return alarm
    if out_of_service:
        return _moved(replace(alarm, out_of_service_by=at.principal or "unknown"), Transition.OUT_OF_SERVICE, at)
    return _moved(replace(alarm, out_of_service_by=""), Transition.IN_SERVICE, at)


def wrong_state(alarm: Alarm, why: str) -> FailedPrecondition:
    """Return the error for something that the alarm's state does not allow."""
    return FailedPrecondition(
        f"Alarm {quoted(alarm.rule)} of {quoted(alarm.twin_id)} is {alarm.state.name}: {why}.",
        reason=Reason.ALARM_STATE,
        metadata={"state": alarm.state.name},
    )


def _moved(alarm: Alarm, transition: Transition, at: Happening) -> Alarm:
    return replace(alarm, transition=transition, transition_unix_us=at.time_unix_us, offset=at.offset)
