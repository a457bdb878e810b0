"""The rules of one twin type, ready to be asked: which of them a change touches, and what each says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from twinmesh_core.rules import AlarmRule, severity_name
from twinmesh_statesync.domain.alarms.alarm import NORMAL, Judgement
from twinmesh_statesync.domain.alarms.conditions import (
    View,
    beyond_limits,
    crosses,
    holds,
    not_met,
    too_fast,
)
from twinmesh_statesync.domain.alarms.expression import Expression, compiled
from twinmesh_statesync.domain.alarms.standing import Standing

if TYPE_CHECKING:
    from twinmesh_core.registry import ChannelSpec, Twin, TwinType
    from twinmesh_statesync.domain.twin_state import Draft

_OUTER: Final = frozenset({"LOW_LOW", "HIGH_HIGH"})
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
MAX_MESSAGE_CHARACTERS: Final = 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule with its expression compiled; an expression that cannot be compiled never says anything."""

    spec: AlarmRule
    expression: Expression | None = None

    @property
    def raise_after_us(self) -> int:
        """How long its condition must hold."""
        own = self.spec.absence or self.spec.not_converging
        return own.after_us if own is not None else self.spec.on_delay_us

    def judge(self, view: View, standing: Standing) -> tuple[Judgement | None, Standing]:
        """Return what it says now, None if that cannot be told, and what it must remember."""
        spec = self.spec
        if spec.threshold is not None:
            return beyond_limits(spec.threshold, view, standing.said.level), standing
        if spec.rate is not None:
            return too_fast(spec.rate, view, standing)
        if spec.not_converging is not None:
            said, about = not_met(spec.not_converging.channel, view)
            return said, replace(standing, about=about) if about != standing.about else standing
        if spec.prediction is not None:
            return crosses(spec.prediction, view, standing.said.level), standing
        if self.expression is not None:
            return holds(self.expression, view), standing
        # An absence: only an arrival makes it look, and then it is none.
        return (NORMAL if spec.absence is not None else None), standing

    def severity(self, level: str) -> int:
        """Return how severe its alarm is at a level."""
        outer = self.spec.threshold.outer_severity if self.spec.threshold is not None else 0
        return outer if outer and level in _OUTER else self.spec.severity

    def words(self, said: Judgement, twin: Twin, spec: ChannelSpec | None) -> str:
        """Return the message of its alarm; what is put in is never read as a template."""
        known = {
            "twin": twin.twin_id,
            "name": twin.display_name or twin.twin_id,
            "rule": self.spec.name,
            "channel": self.spec.channel,
            "value": _shown(said.value),
            "limit": _shown(said.limit),
            "level": said.level,
            "unit": spec.unit if spec is not None else "",
            "severity": severity_name(self.severity(said.level)),
        }

        def put(found: re.Match[str]) -> str:
            name = found[1]
            if name.startswith("attributes."):
                return twin.attributes.get(name.removeprefix("attributes."), "")
            return known.get(name, found[0])

        text = _PLACEHOLDER.sub(put, self.spec.message) if self.spec.message else self._sentence(known)
        return text[:MAX_MESSAGE_CHARACTERS]

    def _sentence(self, known: Mapping[str, str]) -> str:
        unit = f" {known['unit']}" if known["unit"] not in ("", "1") else ""
        spec = self.spec
        if spec.threshold is not None:
            return f"{known['channel']} is {known['value']}{unit} ({known['level']}: limit {known['limit']}{unit})."
        if spec.absence is not None:
            return f"No value of {known['channel']} for {spec.absence.after_us / 1e6:g} s."
        if spec.rate is not None:
            return f"{known['channel']} changes by {known['value']}{unit} per s (limit {known['limit']}{unit} per s)."
        if spec.not_converging is not None:
            what = known["channel"] or "A desired value"
            return f"{what} does not reach {known['value']} within {spec.not_converging.after_us / 1e6:g} s."
        if spec.prediction is not None:
            return f"{known['channel']} is predicted to reach {known['value']}{unit} (limit {known['limit']}{unit})."
        return spec.description or f"The condition of rule {spec.name} holds."


class Rulebook:
    """The rules of one version of a twin type.

    Args:
        specs: its rules.

    Attributes:
        rules: by name, in the order of the type.
    """

    __slots__ = ("_connectivity", "_desired", "_every_fact", "_order", "_predicted", "_reported", "rules")

    def __init__(self, specs: Iterable[AlarmRule]) -> None:
        self.rules: dict[str, Rule] = {}
        self._reported: dict[str, set[str]] = {}
        self._every_fact: set[str] = set()
        self._desired: set[str] = set()
        self._predicted: set[str] = set()
        self._connectivity: set[str] = set()
        for spec in specs:
            found = compiled(spec.expression) if spec.expression else None
            rule = Rule(spec=spec, expression=found if isinstance(found, Expression) else None)
            self.rules[spec.name] = rule
            self._note_inputs(rule)
        self._order = {name: i for i, name in enumerate(self.rules)}

    def touched(self, draft: Draft) -> list[Rule]:
        """Return the rules of which an input changed, in order."""
        names: set[str] = set()
        if draft.reported:
            names |= self._every_fact
            for channel in draft.reported:
                names |= self._reported.get(channel, _NONE)
        if draft.desired is not None:
            names |= self._desired
        if draft.predicted:
            names |= self._predicted
        if draft.connectivity is not None:
            names |= self._connectivity
        return [self.rules[name] for name in sorted(names, key=self._order.__getitem__)]

    def _note_inputs(self, rule: Rule) -> None:
        spec, name = rule.spec, rule.spec.name
        if spec.not_converging is not None:
            # Facts that meet a target, or no longer do, move the target.
            self._desired.add(name)
        elif spec.prediction is not None:
            self._predicted.add(name)
        elif rule.expression is not None:
            self._note_names(name, rule.expression)
        elif spec.channel:
            self._reported.setdefault(spec.channel, set()).add(name)

    def _note_names(self, name: str, expression: Expression) -> None:
        if "reported" in expression.whole:
            self._every_fact.add(name)
        for facet, channel in expression.channels:
            if facet == "reported":
                self._reported.setdefault(channel, set()).add(name)
        for facet, index in (
            ("desired", self._desired),
            ("delta", self._desired),
            ("predicted", self._predicted),
            ("connectivity", self._connectivity),
        ):
            if facet in expression.names:
                index.add(name)


_NONE: Final[frozenset[str]] = frozenset()


def rulebook_of(twin_type: TwinType) -> Rulebook | None:
    """Return the rules of a type, shared by its twins; None = it has none, and its twins cost nothing."""
    return _rulebook(twin_type.rules) if twin_type.rules else None


@lru_cache(maxsize=1_024)
def _rulebook(specs: tuple[AlarmRule, ...]) -> Rulebook:
    return Rulebook(specs)


def expression_problems(rules: Iterable[AlarmRule], channels: Iterable[str]) -> dict[int, str]:
    """Return what is wrong with expressions, by the number of the rule: words for its author."""
    known = list(channels)
    problems = {}
    for i, rule in enumerate(rules):
        found = compiled(rule.expression) if rule.expression else None
        if isinstance(found, str):
            problems[i] = found
        elif found is not None:
            strange = sorted(channel for _, channel in found.channels if channel not in known)
            if strange:
                problems[i] = f"names the channel {strange[0]!r}; the type has {', '.join(known[:20])}"
    return problems


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)[:200]
