"""A small world for the fold: one type with every kind of channel, entries by the shortest way, random histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.migration import UnitChange, UnitChanges
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_core.registry import ChannelSpec, CommandSpec, Relationship, RelationshipSpec, Twin, TwinType
from twinmesh_core.value_specs import PropertySpec, ValueKind
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.conditions import ConditionFacet, ConditionOperator, StateCondition
from twinmesh_statesync.domain.entries import (
    AcknowledgeDesired,
    Action,
    CancelCommand,
    ConnectivityChange,
    ControlEntry,
    CreateTwin,
    CreateTwins,
    CreateTwinType,
    DeleteTwin,
    DesiredAcknowledgement,
    ExpireDesired,
    LogEntry,
    MigrateTwins,
    QueueCommand,
    RecordEvent,
    RecordPrediction,
    SetConnectivities,
    SetConnectivity,
    SetDesired,
    UpdateCommand,
    UpdateTwin,
)
from twinmesh_statesync.domain.events import Connectivity, Event, EventKind, Prediction
from twinmesh_statesync.domain.fold import Fold, Folded
from twinmesh_statesync.domain.replica import DesiredState

T0 = 1_700_000_000_000_000
S = 1_000_000
TENANT = "default"
TWINS = ("a", "b", "c")

PUMP = TwinType(
    twin_type_id="pump",
    version=1,
    channels=(
        ChannelSpec(name="temperature", kind=ChannelKind.GAUGE, unit="Cel", expected_interval_us=S),
        ChannelSpec(
            name="speed",
            kind=ChannelKind.GAUGE,
            min_value=0.0,
            max_value=100.0,
            tolerance=0.5,
            controllable=True,
            set_command="set_speed",
        ),
        ChannelSpec(name="target", kind=ChannelKind.GAUGE, controllable=True),
        ChannelSpec(name="stage", kind=ChannelKind.STATE, controllable=True),
        ChannelSpec(name="on", kind=ChannelKind.BOOL, controllable=True),
        ChannelSpec(name="label", kind=ChannelKind.TEXT),
        ChannelSpec(name="document", kind=ChannelKind.JSON, controllable=True),
    ),
    commands=(CommandSpec(name="set_speed", required_args=("value",)), CommandSpec(name="stop")),
)

PUMP_2 = replace(
    PUMP,
    version=2,
    channels=(
        replace(PUMP.channels[0], unit="K"),
        replace(PUMP.channels[1], max_value=4.0, set_command=""),
        replace(PUMP.channels[3], controllable=False),
        PUMP.channels[4],
        PUMP.channels[5],
        ChannelSpec(name="pressure", kind=ChannelKind.GAUGE, unit="bar"),
    ),
    properties=(
        PropertySpec(name="power", kind=ValueKind.NUMBER, unit="kW", min_value=0.0, default=1.0),
        PropertySpec(name="serial", kind=ValueKind.TEXT),
    ),
    commands=(CommandSpec(name="set_speed", required_args=("value",)),),
    relationships=(RelationshipSpec(name="feeds", target_twin_type_id="pump", max_count=1, allow_missing_target=True),),
)
"""The next version: temperature in another unit, a narrower speed, no target, no stop, properties, at most one edge."""
UNITS_2 = UnitChanges(
    channels=(
        UnitChange(name="temperature", from_unit="Cel", offset=273.15),
        UnitChange(name="temperature", from_unit="K", offset=-273.15),
    )
)
"""Both ways: entries for version 2 use the first, entries back to version 1 the second."""


def doubles(rows: list[tuple[str, str, int, float, int]]) -> ObservationBatch:
    """Return a batch of (twin, channel, time, value, quality) rows of gauges."""
    keys = list(dict.fromkeys((twin, channel) for twin, channel, *_ in rows))
    return ObservationBatch(
        series=tuple(SeriesKey(twin_id=t, channel=c, kind=ChannelKind.GAUGE) for t, c in keys),
        doubles=double_section(
            [keys.index((t, c)) for t, c, *_ in rows],
            [row[2] for row in rows],
            [row[3] for row in rows],
            [row[4] for row in rows],
        ),
    )


def all_kinds(twin: str, time: int, number: int) -> ObservationBatch:
    """Return a batch with one row of each kind of column."""
    names = ("temperature", "stage", "on", "label", "document")
    return ObservationBatch(
        series=tuple(SeriesKey(twin_id=twin, channel=name) for name in names),
        doubles=double_section([0], [time], [number / 2], [1]),
        int64s=int64_section([1], [time], [number], [1]),
        bools=bool_section([2], [time], [number % 2 == 1], [2]),
        texts=text_section([3], [time], [f"t{number}"], [1]),
        jsons=text_section([4], [time], [f'{{"n": {number}}}'], [1]),
    )


class World:
    """A fold with a log that grows by what it is told."""

    def __init__(self, *twins: str) -> None:
        self.fold = Fold()
        self.entries: list[LogEntry] = []
        self.now = T0
        self.do(CreateTwinType(twin_type=PUMP))
        for twin in twins:
            self.create(twin)

    def do(self, action: Action, request_id: str = "") -> Folded:
        """Fold a control entry."""
        number = len(self.entries) + 1
        return self.add(ControlEntry(request_id=request_id or f"r{number}", principal="test", action=action))

    def create(self, twin: str, twin_type: str = "pump") -> Folded:
        return self.do(CreateTwin(twin=Twin(twin_id=twin, twin_type_id=twin_type)))

    def see(self, batch: ObservationBatch) -> Folded:
        """Fold an observation entry."""
        return self.add(batch)

    def report(self, twin: str, channel: str, time: int, value: float, quality: int = 1) -> Folded:
        return self.add(doubles([(twin, channel, time, value, quality)]))

    def add(self, body: Any) -> Folded:
        self.now += 1_000
        entry = LogEntry(offset=len(self.entries) + 1, tenant=TENANT, commit_time_unix_us=self.now, body=body)
        self.entries.append(entry)
        return self.fold.apply(entry)

    def replica(self, twin: str) -> Any:
        state = self.fold.state(TENANT, twin)
        assert state is not None
        return state.replica

    def commands(self, twin: str) -> Any:
        state = self.fold.state(TENANT, twin)
        assert state is not None
        return state.commands


def prediction(
    channel: str = "temperature",
    model: str = "m",
    input_offset: int = 1,
    at: int = T0,
    version: int = 1,
    steps: int = 1,
) -> Prediction:
    return Prediction(
        channel=channel,
        model_id=model,
        model_version=version,
        at_unix_us=at,
        input_offset=input_offset,
        valid_until_unix_us=at + steps * S,
        step_us=S,
        quantile_levels=(0.1, 0.5, 0.9),
        values=(1.0, 2.0, 3.0) * steps,
        unit="Cel",
    )


twin_ids = st.sampled_from(TWINS)
numbers = st.integers(0, 8).map(float)
times = st.integers(-5, 40).map(lambda step: T0 + step * S)
observation_rows = st.lists(
    st.tuples(
        twin_ids, st.sampled_from(["temperature", "speed", "target", "nothing"]), times, numbers, st.integers(1, 3)
    ),
    min_size=1,
    max_size=6,
)
batches = st.one_of(observation_rows.map(doubles), st.builds(all_kinds, twin_ids, times, st.integers(0, 5)))
targets = st.dictionaries(st.sampled_from(["speed", "target"]), numbers, max_size=2)
conditions = st.lists(
    st.builds(
        StateCondition,
        facet=st.sampled_from([ConditionFacet.REPORTED, ConditionFacet.DESIRED]),
        channel=st.just("target"),
        operator=st.sampled_from([ConditionOperator.ABSENT, ConditionOperator.LESS, ConditionOperator.EQUAL]),
        value=numbers,
    ),
    max_size=1,
).map(tuple)
command_ids = st.sampled_from(["c1", "c2", "c3"])
edges = st.lists(
    st.builds(Relationship, name=st.sampled_from(["feeds", "near"]), target_twin_id=twin_ids), max_size=2
).map(tuple)
fuller_twins = st.builds(
    Twin,
    twin_id=twin_ids,
    twin_type_id=st.just("pump"),
    twin_type_version=st.integers(0, 2),
    attributes=st.dictionaries(st.sampled_from(["site", "serial"]), st.sampled_from(["x", "y"]), max_size=2),
    relationships=edges,
    properties=st.dictionaries(st.sampled_from(["power", "serial"]), st.sampled_from([-1.0, 2.0, "s"]), max_size=1),
)
masks = st.lists(
    st.sampled_from(
        ["display_name", "attributes", "attributes.site", "properties", "properties.power", "relationships",
         "relationships.feeds", "nothing"]
    ),
    max_size=2,
).map(tuple)  # fmt: skip
identity_actions: st.SearchStrategy[Action] = st.one_of(
    st.just(CreateTwinType(twin_type=PUMP_2)),
    st.builds(
        CreateTwins,
        twins=st.lists(fuller_twins, min_size=1, max_size=3).map(tuple),
        if_absent=st.booleans(),
        all_or_nothing=st.booleans(),
    ),
    st.builds(UpdateTwin, twin=fuller_twins, paths=masks, if_revision=st.one_of(st.none(), st.integers(2, 9))),
    st.builds(
        MigrateTwins,
        twin_type_id=st.just("pump"),
        to_version=st.integers(1, 3),
        twin_ids=st.lists(twin_ids, max_size=2).map(tuple),
        limit=st.integers(1, 3),
        from_version=st.integers(0, 2),
        units=st.just(UNITS_2),
    ),
)
twins = st.builds(
    Twin,
    twin_id=twin_ids,
    twin_type_id=st.just("pump"),
    attributes=st.sampled_from([{}, {"site": "north"}, {"site": "south"}]),
    relationships=st.sampled_from([(), *((Relationship(name="feeds", target_twin_id=t),) for t in TWINS)]),
)
FILTERS = (
    "",
    "attributes.site = north",
    "reported.temperature > 3",
    "NOT reported.temperature > 3",
    "delta:*",
    "connectivity = ONLINE",
    "desired.speed.state = PENDING",
    "predicted.temperature:*",
    "reported.speed < 5 AND NOT delta:*",
    "twin_id = a OR reported.target >= 4",
    "reported.temperature.quality != GOOD",
    "relationships.feeds = b",
)
"""Filters that twins of random histories come to match and cease to."""
HOPPING = ("feeds.reported.temperature > 3", "~feeds:*", "~feeds.feeds.delta:* OR attributes.site = south")
actions: st.SearchStrategy[Action] = st.one_of(
    identity_actions,
    st.builds(CreateTwin, twin=twins),
    st.builds(DeleteTwin, twin_id=twin_ids),
    st.builds(
        SetDesired,
        twin_id=twin_ids,
        values=targets,
        remove=st.lists(st.sampled_from(["stage", "target"]), max_size=1).map(tuple),
        if_revision=st.one_of(st.none(), st.integers(0, 4)),
        deadline_unix_us=st.one_of(st.none(), st.just(T0 + S)),
        tolerances=st.dictionaries(st.just("target"), st.sampled_from([0.0, 2.0]), max_size=1),
        conditions=conditions,
    ),
    st.builds(
        AcknowledgeDesired,
        twin_id=twin_ids,
        items=st.tuples(
            st.builds(
                DesiredAcknowledgement,
                channel=st.sampled_from(["speed", "target"]),
                set_offset=st.integers(4, 12),
                state=st.sampled_from([DesiredState.DELIVERED, DesiredState.REJECTED]),
                reason=st.just("no"),
            )
        ),
    ),
    st.builds(
        RecordPrediction,
        twin_id=twin_ids,
        prediction=st.builds(
            prediction,
            st.just("temperature"),
            st.sampled_from(["m", "n"]),
            st.integers(0, 20),
            st.sampled_from([T0, T0 + 3 * S]),
            st.integers(1, 2),
            st.integers(1, 6),
        ),
    ),
    st.builds(QueueCommand, command_id=command_ids, twin_id=twin_ids, name=st.just("stop"), args=st.just({})),
    st.builds(
        UpdateCommand,
        command_id=command_ids,
        twin_id=twin_ids,
        state=st.sampled_from([s for s in CommandState if s > CommandState.QUEUED]),
        message=st.just("said"),
        progress_percent=st.one_of(st.none(), st.floats(0, 100)),
        result=st.dictionaries(st.just("reached"), numbers, max_size=1),
    ),
    st.builds(CancelCommand, command_id=command_ids, twin_id=twin_ids, message=st.just("stop it"), force=st.booleans()),
    st.builds(
        RecordEvent,
        event=st.builds(
            Event,
            event_id=st.sampled_from(["e1", "e2"]),
            twin_id=twin_ids,
            kind=st.just(EventKind.NOTE),
            start_time_unix_us=times,
        ),
    ),
    st.builds(
        ExpireDesired,
        twin_id=twin_ids,
        channels=st.just(("speed", "target")),
        set_offsets=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    ),
    st.builds(
        SetConnectivity,
        twin_id=twin_ids,
        connectivity=st.sampled_from(Connectivity),
        last_arrival_unix_us=st.just(T0),
    ),
    st.builds(
        SetConnectivities,
        items=st.lists(
            st.builds(
                ConnectivityChange,
                twin_id=twin_ids,
                connectivity=st.sampled_from(Connectivity),
                last_arrival_offset=st.integers(0, 20),
            ),
            max_size=3,
        ).map(tuple),
    ),
)
bodies = st.lists(st.one_of(batches, batches, actions), max_size=40)
"""What a log may hold, in any order; creations, deletions and refusals included."""


def grown(steps: list[Any]) -> World:
    """Return a world with two of three twins, grown by the steps."""
    world = World("a", "b")
    for step in steps:
        if isinstance(step, ObservationBatch):
            world.see(step)
        else:
            world.do(step)
    return world
