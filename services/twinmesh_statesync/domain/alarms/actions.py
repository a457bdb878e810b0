"""What people do to alarms and events: acknowledging, shelving, taking out of service, ending an event."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from twinmesh_core.errors import Conflict, NotFound, Reason, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.time import US_PER_DAY
from twinmesh_statesync.domain.alarms.alarm import Happening, acknowledged, in_service, shelved, unshelved, wrong_state
from twinmesh_statesync.domain.alarms.desk import AlarmDesk, desk_of
from twinmesh_statesync.domain.alarms.rulebook import Rule, Rulebook

if TYPE_CHECKING:
    from twinmesh_statesync.domain.twin_state import Draft, TwinState

MAX_SHELVING_US: Final = 30 * US_PER_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgeAlarm:
    """Acknowledges an alarm; `if_raise_count` 0 = however often it was raised."""

    twin_id: str
    rule: str
    note: str = ""
    if_raise_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelveAlarm:
    """Shelves an alarm until a time."""

    twin_id: str
    rule: str
    until_unix_us: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnshelveAlarm:
    """Ends the shelving of an alarm."""

    twin_id: str
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAlarmService:
    """Takes an alarm out of service, or puts it back."""

    twin_id: str
    rule: str
    out_of_service: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAtAlarms:
    """Says that time has passed."""

    twin_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndEvent:
    """Ends an event that was still going on."""

    twin_id: str
    event_id: str
    end_time_unix_us: int


AlarmAction = AcknowledgeAlarm | ShelveAlarm | UnshelveAlarm | SetAlarmService | LookAtAlarms | EndEvent


def act_on_alarms(draft: Draft, action: AlarmAction, principal: str) -> None:
    """Do what an action asks of a twin's alarms or events.

    Raises:
        NotFound: RULE_NOT_FOUND, EVENT_NOT_FOUND.
        FailedPrecondition: ALARM_STATE.
        Conflict: the alarm was raised again, or the event has another end.
        InvalidArgument: a time that cannot be.
    """
    if isinstance(action, EndEvent):
        _end_event(draft, action)
        return
    book = draft.state.rulebook
    if isinstance(action, LookAtAlarms):
        if book is not None:
            desk_of(draft, book).pass_time()
        return
    rule, book = require_rule(draft.state, action.rule)
    desk = desk_of(draft, book)
    desk.pass_time()
    at = Happening(offset=draft.offset, time_unix_us=draft.commit_time_unix_us, principal=principal)
    _act(desk, rule, action, at)


def require_rule(state: TwinState, name: str) -> tuple[Rule, Rulebook]:
    """Return a rule of the twin's type, and all its rules; raises `NotFound` (RULE_NOT_FOUND) naming those it has."""
    book = state.rulebook
    rule = book.rules.get(name) if book is not None else None
    if book is None or rule is None:
        names = ", ".join(list(book.rules)[:20]) if book is not None else "none"
        raise NotFound(
            f"The type of {quoted(state.twin.twin_id)} has no rule {quoted(name)}; it has: {names}.",
            reason=Reason.RULE_NOT_FOUND,
            metadata={"rules": names},
        )
    return rule, book


def _act(
    desk: AlarmDesk,
    rule: Rule,
    action: AcknowledgeAlarm | ShelveAlarm | UnshelveAlarm | SetAlarmService,
    at: Happening,
) -> None:
    alarm = desk.alarm(rule)
    match action:
        case AcknowledgeAlarm():
            desk.put(acknowledged(alarm, action.note, action.if_raise_count, at))
        case ShelveAlarm():
            if not at.time_unix_us < action.until_unix_us <= at.time_unix_us + MAX_SHELVING_US:
                raise invalid_field("until", "must lie ahead, by at most 30 days")
            desk.put(shelved(alarm, action.until_unix_us, action.note, at))
        case UnshelveAlarm():
            if not alarm.shelved_until_unix_us:
                raise wrong_state(alarm, "it is not shelved")
            desk.put(unshelved(alarm, at))
        case SetAlarmService():
            desk.put(in_service(alarm, action.out_of_service, at))


def _end_event(draft: Draft, action: EndEvent) -> None:
    event = draft.state.events.get(action.event_id)
    if event is None:
        raise NotFound(
            f"{quoted(action.twin_id)} has no event {quoted(action.event_id)}; list them with ListEvents.",
            reason=Reason.EVENT_NOT_FOUND,
        )
    if event.end_time_unix_us == action.end_time_unix_us:
        return
    if event.end_time_unix_us is not None:
        raise Conflict(
            f"Event {quoted(action.event_id)} has ended already, at another time.",
            metadata={"end_time_unix_us": str(event.end_time_unix_us)},
        )
    if action.end_time_unix_us < event.start_time_unix_us:
        raise invalid_field("end_time", "must not be before the event's start_time")
    draft.events.append(replace(event, end_time_unix_us=action.end_time_unix_us))
