"""Judges the rules of one twin at one entry, and moves its alarms: the part of a draft that alarms need.

First comes what time has done since the entry before, in the order in which it happened; then what the entry changed.
So an alarm does not depend on whether the clock's own entry came early, late, twice, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from twinmesh_statesync.domain.alarms.alarm import (
    NORMAL,
    Alarm,
    AlarmState,
    Happening,
    Judgement,
    Transition,
    level_changed,
    raised,
    returned,
    suppressed,
    unshelved,
)
from twinmesh_statesync.domain.alarms.conditions import View
from twinmesh_statesync.domain.alarms.memory import NEVER, NO_MEMORY, AlarmMemory
from twinmesh_statesync.domain.alarms.rulebook import Rule, Rulebook
from twinmesh_statesync.domain.alarms.standing import Pending, Standing
from twinmesh_statesync.domain.events import Event, EventKind

if TYPE_CHECKING:
    from twinmesh_statesync.domain.twin_state import Draft


class AlarmDesk:
    """The alarms of one twin while one entry is folded; nothing is written to the twin's state before `settle`.

    Args:
        draft: what the entry does to the twin.
        book: the rules of the twin's type.

    Attributes:
        told: alarms that something happened to, in order.
    """

    def __init__(self, draft: Draft, book: Rulebook) -> None:
        self.told: list[Alarm] = []
        self._draft = draft
        self._book = book
        self._now = draft.commit_time_unix_us
        self._alarms = dict(draft.state.replica.alarms)
        memory = draft.state.alarm_memory
        self._standings = dict(memory.standings)
        self._suppressed_by = memory.suppressed_by
        self._looked = memory.looked_unix_us
        self._due = memory.due_unix_us
        self._passing = False

    def begin(self) -> None:
        """Begin to count silences, and look who suppresses: the twin was created, perhaps once more."""
        self._cover(self._now)
        for rule in self._book.rules.values():
            if rule.spec.absence is not None:
                self._standings[rule.spec.name] = Standing(rule=rule.spec.name, about=self._now)

    def end(self) -> None:
        """Clear every alarm: the twin is deleted."""
        at = self._at(self._now)
        for alarm in self._by_rule():
            if alarm.open:
                over = replace(alarm, shelved_until_unix_us=0, out_of_service_by="", suppressed_by="")
                self.put(
                    replace(
                        over,
                        state=AlarmState.CLEARED,
                        transition=Transition.CLEARED,
                        transition_unix_us=at.time_unix_us,
                        offset=at.offset,
                    )
                )

    def alarm(self, rule: Rule) -> Alarm:
        """Return the alarm of a rule as it stands; one that was never raised is CLEARED."""
        name = rule.spec.name
        return self._alarms.get(name) or Alarm(
            twin_id=self._draft.state.twin.twin_id, rule=name, channel=rule.spec.channel, severity=rule.spec.severity
        )

    def put(self, alarm: Alarm) -> None:
        """Take what became of an alarm; one that stayed as it was is no news."""
        if alarm.state is AlarmState.CLEARED and alarm.suppressed_by:
            alarm = replace(alarm, suppressed_by="")
        if self._alarms.get(alarm.rule) != alarm:
            self._alarms[alarm.rule] = alarm
            self.told.append(alarm)

    def pass_time(self) -> None:
        """Do what became due up to the entry's commit time, in the order in which it became due.

        Time passed without the events of this entry: nobody knew of them, whatever time they state.
        """
        if self._now < self._due:
            return
        self._passing = True
        self._pass_time()
        self._passing = False

    def _pass_time(self) -> None:
        while True:
            due, _, rule = min(self._dues(), key=lambda found: found[:2], default=(NEVER, "", None))
            if due > self._now:
                return
            if rule is None:
                self._cover(due)
            elif self.alarm(rule).shelved_until_unix_us == due:
                self.put(unshelved(self.alarm(rule), self._at(due)))
            else:
                self._be_due(rule, due)

    def judge(self, rule: Rule) -> None:
        """Judge one rule of which an input changed."""
        name = rule.spec.name
        standing = self._standings.get(name) or Standing(rule=name)
        before = standing.about
        said, standing = rule.judge(View(self._draft), standing)
        if rule.spec.absence is not None:
            standing = replace(standing, about=self._now)
        elif standing.about != before and said is not None and said.level:
            # Another target has all the time of its own.
            standing = self._say(rule, standing, NORMAL, self._now)
        self._standings[name] = self._say(rule, standing, said, self._now)

    def cover(self) -> None:
        """Look whether a maintenance event covers the twin now: one was recorded, or has ended."""
        self._cover(self._now)

    def settle(self) -> tuple[Mapping[str, Alarm], AlarmMemory]:
        """Return the alarms by rule, and what must be remembered."""
        before = self._draft.state.alarm_memory
        same = before.standings == self._standings
        memory = AlarmMemory(
            standings=before.standings if same else self._standings,
            suppressed_by=self._suppressed_by,
            looked_unix_us=self._looked,
            due_unix_us=min((due for due, _, _ in self._dues()), default=NEVER),
        )
        alarms = self._draft.state.replica.alarms
        return (self._alarms if self.told else alarms), memory

    def _say(self, rule: Rule, standing: Standing, said: Judgement | None, time_unix_us: int) -> Standing:
        """Take what a rule says at a time: begin, go on with or end a delay, and move its alarm when it is over."""
        alarm = self.alarm(rule)
        if said is None:
            held = Judgement(level=alarm.level, value=alarm.value, limit=alarm.limit) if alarm.active else NORMAL
            return replace(standing, said=held, pending=Pending.NONE, since_unix_us=0)
        standing = replace(standing, said=said)
        wanted = Pending.NONE
        if bool(said.level) is not alarm.active:
            wanted = Pending.RAISE if said.level else Pending.RETURN
        elif alarm.active and said.level != alarm.level:
            self.put(
                level_changed(alarm, said, rule.severity(said.level), self._words(rule, said), self._at(time_unix_us))
            )
        if wanted is Pending.NONE:
            return replace(standing, pending=Pending.NONE, since_unix_us=0)
        since = standing.since_unix_us if standing.pending is wanted else time_unix_us
        if time_unix_us - since < _delay_us(rule, wanted):
            return replace(standing, pending=wanted, since_unix_us=since)
        if wanted is Pending.RAISE:
            fresh = replace(alarm, suppressed_by=self._suppressed_by)
            words = self._words(rule, said)
            self.put(raised(fresh, said, rule.severity(said.level), words, self._at(time_unix_us)))
        else:
            self.put(returned(alarm, self._at(time_unix_us)))
        return replace(standing, pending=Pending.NONE, since_unix_us=0)

    def _be_due(self, rule: Rule, due: int) -> None:
        """Let a delay be over, or a silence be too long."""
        standing = self._standings[rule.spec.name]
        said = standing.said
        if standing.pending is Pending.NONE or _delay_over(rule, standing) != due:
            said = Judgement(level="ABSENT")
        self._standings[rule.spec.name] = self._say(rule, standing, said, due)

    def _dues(self) -> Iterator[tuple[int, str, Rule | None]]:
        """Yield what will be due by itself: when, what decides between equals, and the rule (None = maintenance)."""
        for name, standing in self._standings.items():
            rule = self._book.rules.get(name)
            if rule is None:
                continue
            if standing.pending is not Pending.NONE:
                yield _delay_over(rule, standing), f"1{name}", rule
            if rule.spec.absence is not None and standing.said.level != "ABSENT":
                yield standing.about + rule.spec.absence.after_us, f"2{name}", rule
        for name, alarm in self._alarms.items():
            if alarm.shelved_until_unix_us and name in self._book.rules:
                yield alarm.shelved_until_unix_us, f"0{name}", self._book.rules[name]
        for event in self._maintenance():
            for boundary in (event.start_time_unix_us, event.end_time_unix_us):
                if boundary is not None and boundary > self._looked:
                    yield boundary, "", None

    def _cover(self, time_unix_us: int) -> None:
        # Never back: what is over is forgotten, by a fold that goes on and by one that is resumed alike.
        self._looked = max(self._looked, time_unix_us)
        covering = [e for e in self._maintenance() if _covers(e, time_unix_us)]
        found = min(covering, key=lambda e: (e.start_time_unix_us, e.event_id), default=None)
        event_id = found.event_id if found is not None else ""
        if event_id == self._suppressed_by:
            return
        self._suppressed_by = event_id
        for alarm in self._by_rule():
            if alarm.open and alarm.suppressed_by != event_id:
                self.put(suppressed(alarm, event_id, self._at(time_unix_us)))

    def _by_rule(self) -> list[Alarm]:
        """Return the alarms in an order that a fold resumed from a checkpoint has as well."""
        return [self._alarms[rule] for rule in sorted(self._alarms)]

    def _maintenance(self) -> list[Event]:
        known = self._draft.state.maintenance
        if self._draft.events and not self._passing:
            known = {**known, **maintenance_among(self._draft.events)}
        return [e for e in known.values() if e.end_time_unix_us is None or e.end_time_unix_us > self._looked]

    def _words(self, rule: Rule, said: Judgement) -> str:
        state = self._draft.state
        return rule.words(said, state.twin, state.specs.get(rule.spec.channel))

    def _at(self, time_unix_us: int) -> Happening:
        return Happening(offset=self._draft.offset, time_unix_us=time_unix_us)


def judge(draft: Draft, book: Rulebook) -> None:
    """Judge the rules that an entry concerns, as the last thing before its draft is finished."""
    touched = book.touched(draft)
    idle = draft.commit_time_unix_us < draft.state.alarm_memory.due_unix_us
    if not touched and idle and not draft.events:
        return
    desk = desk_of(draft, book)
    desk.pass_time()
    if maintenance_among(draft.events):
        desk.cover()
    for rule in touched:
        desk.judge(rule)


def fresh_memory(book: Rulebook | None, now_unix_us: int) -> AlarmMemory:
    """Return the memory of a twin of which nothing is known: its silences are counted from now."""
    if book is None:
        return NO_MEMORY
    silent = {
        rule.spec.name: (Standing(rule=rule.spec.name, about=now_unix_us), rule.spec.absence.after_us)
        for rule in book.rules.values()
        if rule.spec.absence is not None
    }
    return AlarmMemory(
        standings={name: standing for name, (standing, _) in silent.items()},
        due_unix_us=min((now_unix_us + after_us for _, after_us in silent.values()), default=NEVER),
    )


def maintenance_among(events: Iterable[Event]) -> dict[str, Event]:
    """Return the events that may suppress alarms, by id."""
    return {event.event_id: event for event in events if event.kind is EventKind.MAINTENANCE}


def desk_of(draft: Draft, book: Rulebook) -> AlarmDesk:
    """Return the desk of a draft, made when it is first needed."""
    if draft.desk is None:
        draft.desk = AlarmDesk(draft, book)
    return draft.desk


def _delay_us(rule: Rule, pending: Pending) -> int:
    if pending is Pending.RETURN:
        return rule.spec.off_delay_us
    # The silence of an absence is over when it is said to be.
    return 0 if rule.spec.absence is not None else rule.raise_after_us


def _delay_over(rule: Rule, standing: Standing) -> int:
    return standing.since_unix_us + _delay_us(rule, standing.pending)


def _covers(event: Event, time_unix_us: int) -> bool:
    end = event.end_time_unix_us
    return event.start_time_unix_us <= time_unix_us and (end is None or time_unix_us < end)
