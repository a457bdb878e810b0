"""A boiler with a rule of every kind, and a world whose clock a test moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.unit.statesync.worlds import T0, TENANT, S, doubles

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import ChannelSpec, Twin, TwinType
from twinmesh_core.rules import Absence, AlarmRule, NotConverging, PredictedCrossing, RateOfChange, Threshold
from twinmesh_statesync.domain.alarms.actions import LookAtAlarms
from twinmesh_statesync.domain.alarms.alarm import Alarm
from twinmesh_statesync.domain.entries import Action, ControlEntry, CreateTwin, CreateTwinType, LogEntry
from twinmesh_statesync.domain.fold import Fold, Folded

HOT = AlarmRule(
    name="hot",
    severity=500,
    message="{name}: {channel} is {value} {unit}, limit {limit} ({level}) at {attributes.site}",
    on_delay_us=2 * S,
    off_delay_us=3 * S,
    threshold=Threshold(channel="oil", low=0.0, high=90.0, high_high=110.0, hysteresis=5.0, outer_severity=900),
)
SILENT = AlarmRule(name="silent", severity=700, absence=Absence(channel="oil", after_us=30 * S))
SURGE = AlarmRule(
    name="surge", severity=300, rate=RateOfChange(channel="oil", max_rise_per_s=10.0, max_fall_per_s=20.0)
)
STUCK = AlarmRule(name="stuck", severity=400, not_converging=NotConverging(channel="speed", after_us=10 * S))
SOON = AlarmRule(
    name="soon", severity=600, prediction=PredictedCrossing(channel="oil", high=100.0, quantile=0.9, within_us=2 * S)
)
ODD = AlarmRule(
    name="odd", severity=200, expression="reported.oil > 50.0 && connectivity == 'ONLINE' && size(delta) == 0"
)
BOILER = Twin(twin_id="b", twin_type_id="boiler", display_name="Boiler", attributes={"site": "{twin}"})
RULES = (HOT, SILENT, SURGE, STUCK, SOON, ODD)


def boiler(*rules: AlarmRule) -> TwinType:
    """Return the boiler's type with these rules."""
    return TwinType(
        twin_type_id="boiler",
        version=1,
        channels=(
            ChannelSpec(name="oil", kind=ChannelKind.GAUGE, unit="Cel"),
            ChannelSpec(name="speed", kind=ChannelKind.GAUGE, controllable=True, tolerance=0.5),
            ChannelSpec(name="on", kind=ChannelKind.BOOL),
        ),
        rules=rules,
    )


class Boilers:
    """A fold with boilers; entries get the commit times that a test chooses."""

    def __init__(self, *rules: AlarmRule, twins: tuple[str, ...] = ("b",)) -> None:
        self.fold = Fold()
        self.entries: list[LogEntry] = []
        self.now = T0
        self.do(CreateTwinType(twin_type=boiler(*rules)))
        for twin in twins:
            self.do(CreateTwin(twin=replace(BOILER, twin_id=twin)))

    def at(self, second: float) -> Boilers:
        """Let the next entries be committed so many seconds after the beginning."""
        self.now = T0 + int(second * S)
        return self

    def do(self, action: Action, request_id: str = "", principal: str = "ann") -> Folded:
        number = len(self.entries) + 1
        return self.add(ControlEntry(request_id=request_id or f"r{number}", principal=principal, action=action))

    def oil(self, value: float, quality: int = 1, twin: str = "b") -> Folded:
        """Report a temperature of now."""
        return self.add(doubles([(twin, "oil", self.now, value, quality)]))

    def look(self, twin: str = "b") -> Folded:
        """Say that time has passed."""
        return self.do(LookAtAlarms(twin_id=twin))

    def add(self, body: Any) -> Folded:
        entry = LogEntry(offset=len(self.entries) + 1, tenant=TENANT, commit_time_unix_us=self.now, body=body)
        self.entries.append(entry)
        return self.fold.apply(entry)

    def alarm(self, rule: str, twin: str = "b") -> Alarm:
        state = self.fold.state(TENANT, twin)
        assert state is not None
        return state.replica.alarms.get(rule) or Alarm(twin_id=twin, rule=rule)
