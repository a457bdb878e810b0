"""Random twins, random filters, and what a filter means, said a second time in the plainest way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from random import Random
from typing import Any

from hypothesis import strategies as st

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import Quality
from twinmesh_core.registry import ChannelSpec, Relationship, Twin, TwinType
from twinmesh_statesync.domain.events import Connectivity, Prediction
from twinmesh_statesync.domain.filter import expressions as ex
from twinmesh_statesync.domain.filter.fields import CONNECTIVITY
from twinmesh_statesync.domain.index import TwinIndex
from twinmesh_statesync.domain.replica import (
    DeltaItem,
    Desired,
    DesiredState,
    DesiredValue,
    Predicted,
    Replica,
    Reported,
)
from twinmesh_statesync.domain.values import Json, ReportedValue
from twinmesh_statesync.domain.version import TwinVersion

IDS = ("a", "b", "c", "d", "e")
RELATIONS = ("feeds", "reported")
T0 = 1_700_000_000_000_000
S = 1_000_000


def _type(name: str, unit: str) -> TwinType:
    return TwinType(
        twin_type_id=name,
        version=1,
        channels=(
            ChannelSpec(name="temp", kind=ChannelKind.GAUGE, unit=unit),
            ChannelSpec(name="on", kind=ChannelKind.BOOL),
            ChannelSpec(name="label", kind=ChannelKind.TEXT),
        ),
    )


TYPES = (_type("pump", "Cel"), _type("fan", "K"), _type("odd", "bar"))

VALUES: tuple[Any, ...] = (0.0, 10.0, 50.0, 283.15, 323.15, 0, 10, 50, True, False, "", "x", "xy", "50", Json("{}"))
CHANNELS = ("temp", "on", "label", "no")
TEXTS = ("", "x", "xy", "a", "b", "pump", "fan", "50", "north", 'q"\\*')
QUALITIES = tuple(q for q in Quality if q)
STATES = tuple(s for s in DesiredState if s)


def _some(r: Random, items: Iterable[Any], most: int = 3) -> list[Any]:
    pool = list(items)
    return r.sample(pool, r.randint(0, min(most, len(pool))))


def _time(r: Random) -> int:
    return T0 + r.randint(0, 4) * S


def a_replica(r: Random) -> Replica:
    """Return a replica of any content."""
    facts = [
        ReportedValue(channel, r.choice(VALUES), r.choice(QUALITIES), _time(r), r.randint(0, 5))
        for channel in _some(r, CHANNELS[:3])
    ]
    targets = [
        DesiredValue(
            channel=channel,
            value=r.choice(VALUES),
            progress=r.choice(STATES),
            deadline_unix_us=r.choice([None, _time(r)]),
            offset=r.randint(0, 5),
        )
        for channel in _some(r, CHANNELS[:3])
    ]
    forecasts = [
        Prediction(
            channel=channel,
            model_id=model,
            model_version=1,
            at_unix_us=_time(r),
            input_offset=r.randint(0, 5),
            valid_until_unix_us=_time(r),
            step_us=S,
            quantile_levels=(0.1, 0.5, 0.9),
            values=tuple(r.choice([0.0, 10.0, 50.0]) for _ in range(6)),
            unit="Cel",
        )
        for channel, model in _some(r, [(c, m) for c in CHANNELS[:3] for m in "mn"])
    ]
    return Replica(
        revision=r.randint(0, 5),
        offset=r.randint(0, 5),
        reported=Reported(revision=1, values={f.channel: f for f in facts}),
        desired=Desired(revision=1, values={t.channel: t for t in targets}),
        predicted=Predicted(revision=1, predictions={(p.channel, p.model_id): p for p in forecasts}),
        delta=tuple(DeltaItem(channel=t.channel, desired=t.value, reported=None) for t in targets[:1]),
        connectivity=r.choice(tuple(Connectivity)),
    )


def a_version(r: Random, twin_id: str) -> TwinVersion:
    """Return a twin of any content."""
    twin_type = r.choice(TYPES)
    edges = _some(r, [(name, target) for name in RELATIONS for target in IDS])
    twin = Twin(
        twin_id=twin_id,
        twin_type_id=twin_type.twin_type_id,
        twin_type_version=1,
        display_name=r.choice(TEXTS),
        attributes={key: r.choice(TEXTS) for key in _some(r, ["site", "a b"])},
        relationships=tuple(Relationship(name=name, target_twin_id=target) for name, target in edges),
        create_time_unix_us=_time(r),
    )
    return TwinVersion(twin, twin_type, a_replica(r))


def a_population(seed: int) -> dict[str, TwinVersion]:
    """Return some of five twins that point at one another and at twins that do not live."""
    r = Random(seed)  # noqa: S311  nothing secret
    return {twin_id: a_version(r, twin_id) for twin_id in _some(r, IDS, len(IDS))}


populations = st.integers(0, 1 << 32).map(a_population)
whole = st.integers(0, 5)
texts = st.sampled_from(TEXTS)
times = whole.map(lambda n: T0 + n * S)


class Still:
    """A population that does not move."""

    def __init__(self, twins: dict[str, TwinVersion]) -> None:
        self.twins = twins
        self.memo: dict[tuple[int, str], bool] = {}

    def version(self, twin_id: str) -> TwinVersion | None:
        return self.twins.get(twin_id)

    def sources(self, relation: str, twin_id: str) -> Iterable[TwinVersion]:
        return (v for v in self.twins.values() if _edge(v, relation, twin_id))

    def index(self) -> TwinIndex:
        index = TwinIndex()
        for twin_id, version in self.twins.items():
            index.move(twin_id, None, version)
        return index


def _edge(version: TwinVersion, relation: str, twin_id: str) -> bool:
    return any((e.name, e.target_twin_id) == (relation, twin_id) for e in version.twin.relationships)


# What may be asked ---------------------------------------------------------------------------------------------------

EQUALITY = (ex.Op.EQUAL, ex.Op.NOT_EQUAL)
ORDER = (ex.Op.LESS, ex.Op.LESS_OR_EQUAL, ex.Op.GREATER, ex.Op.GREATER_OR_EQUAL)
exact = texts.map(lambda text: ex.Pattern((text,)))
patterns = exact | st.lists(texts, min_size=2, max_size=3).map(lambda pieces: ex.Pattern(tuple(pieces)))
moments = times.map(ex.Moment)
quantities = st.builds(
    ex.Quantity,
    st.sampled_from([0, 10, 50, 0.0, 50.0, 122.0, 323.15]),
    st.sampled_from(["", "", "Cel", "K", "[degF]", "bar"]),
)


def _field(root: str, keys: Iterable[str] = ("",), parts: Iterable[str] = ("",)) -> st.SearchStrategy[ex.Field]:
    return st.builds(ex.Field, st.just(root), st.sampled_from(list(keys)), st.sampled_from(list(parts)))


text_fields = (
    st.sampled_from(["twin_id", "display_name", "time_zone"]).map(ex.Field)
    | _field("attributes", ["site", "a b", "no"])
    | _field("relationships", [*RELATIONS, "no"])
    | _field("predicted", CHANNELS, ["model_id"])
)
time_fields = (
    st.sampled_from(["create_time", "last_event_time"]).map(ex.Field)
    | _field("reported", CHANNELS, ["event_time"])
    | _field("desired", CHANNELS, ["deadline"])
    | _field("predicted", CHANNELS, ["at", "valid_until"])
)
whole_fields = st.sampled_from(["revision", "offset"]).map(ex.Field) | _field("reported", CHANNELS, ["offset"])
value_fields = st.builds(ex.Field, st.sampled_from(["reported", "desired", "predicted"]), st.sampled_from(CHANNELS))
collections = st.sampled_from(["attributes", "relationships", "reported", "desired", "predicted", "delta"])
choices = st.sampled_from(sorted(CONNECTIVITY.items())).map(lambda pair: ex.Choice(*pair))
quality = st.sampled_from(QUALITIES).map(lambda q: ex.Choice(q.name, int(q)))
state = st.sampled_from(STATES).map(lambda s: ex.Choice(s.name, int(s)))


def _compare(fields: Any, ops: Iterable[ex.Op], literals: Any) -> st.SearchStrategy[ex.Expression]:
    return st.builds(ex.Compare, fields, st.sampled_from(list(ops)), literals)


type_names = st.sampled_from([("pump",), ("fan@1",), ("p", "")]).map(ex.Pattern)
leaves: st.SearchStrategy[ex.Expression] = st.one_of(
    _compare(text_fields, EQUALITY, patterns),
    _compare(text_fields, ORDER, exact),
    _compare(text_fields, [ex.Op.HAS], exact.filter(lambda p: p.pieces != ("", ""))),
    _compare(st.just(ex.Field("twin_type")), EQUALITY, type_names),
    _compare(time_fields, (*EQUALITY, *ORDER), moments),
    _compare(whole_fields, (*EQUALITY, *ORDER), whole.map(ex.Quantity)),
    _compare(_field("predicted", CHANNELS, ["horizon"]), (*EQUALITY, *ORDER), st.sampled_from([S, 2 * S]).map(ex.Span)),
    _compare(value_fields, (*EQUALITY, *ORDER), quantities),
    _compare(value_fields, ORDER, exact),
    _compare(value_fields, EQUALITY, patterns | st.booleans()),
    _compare(st.just(ex.Field("connectivity")), EQUALITY, choices),
    _compare(_field("reported", CHANNELS, ["quality"]), EQUALITY, quality),
    _compare(_field("desired", CHANNELS, ["state"]), EQUALITY, state),
    st.builds(ex.Present, collections.map(ex.Field)),
    st.builds(ex.Present, _field("delta", CHANNELS)),
    st.builds(ex.Present, value_fields | text_fields | time_fields),
)  # fmt: skip


def _many(parts: Any) -> Any:
    return st.lists(parts, min_size=2, max_size=3).map(tuple)


def filters(*, hopping: bool = True) -> st.SearchStrategy[ex.Expression]:
    """Return checked trees, at most three hops deep."""
    flat = st.recursive(
        leaves, lambda p: st.builds(ex.Not, p) | st.builds(ex.And, _many(p)) | st.builds(ex.Or, _many(p)), max_leaves=6
    )
    if not hopping:
        return flat
    steps = st.builds(ex.Step, st.sampled_from(RELATIONS), st.booleans())
    once = st.builds(ex.Hop, steps, flat)
    twice = st.builds(ex.Hop, steps, once | st.builds(ex.And, st.tuples(once, flat)))
    return flat | once | twice | st.builds(ex.Not, once) | st.builds(ex.And, st.tuples(flat, once))


# What it means -------------------------------------------------------------------------------------------------------

CELSIUS = {"": lambda n: n, "Cel": lambda n: n, "K": lambda n: n - 273.15, "[degF]": lambda n: (n - 32) / 1.8}


def matches(expression: ex.Expression, version: TwinVersion, twins: dict[str, TwinVersion]) -> bool:
    """Say whether a twin matches, without anything of the code that is tested."""
    match expression:
        case ex.And(parts):
            return all(matches(part, version, twins) for part in parts)
        case ex.Or(parts):
            return any(matches(part, version, twins) for part in parts)
        case ex.Not(part):
            return not matches(part, version, twins)
        case ex.Hop(step, inner):
            ends = [other for other in twins.values() if _leads(step, version, other)]
            return any(matches(inner, other, twins) for other in ends)
        case ex.Present(field):
            return bool(list(_found(field, version)))
        case ex.Compare(field, op, literal):
            found = list(_found(field, version))
            if op is ex.Op.NOT_EQUAL:
                return bool(found) and not any(_holds(field, ex.Op.EQUAL, v, unit, literal) for v, unit in found)
            return any(_holds(field, op, value, unit, literal) for value, unit in found)
    raise AssertionError(expression)


def _leads(step: ex.Step, here: TwinVersion, there: TwinVersion) -> bool:
    begin, end = (there, here) if step.reverse else (here, there)
    return _edge(begin, step.relation, end.twin.twin_id)


def _found(field: ex.Field, v: TwinVersion) -> Iterator[tuple[Any, str]]:
    """Yield what the twin has of a field, each with its unit."""
    twin, replica = v.twin, v.replica
    if field.root == "attributes":
        yield from ((text, "") for key, text in twin.attributes.items() if field.key in ("", key))
    elif field.root == "relationships":
        yield from ((e.target_twin_id, "") for e in twin.relationships if field.key in ("", e.name))
    elif field.root == "delta":
        yield from ((i, "") for i in replica.delta if field.key in ("", i.channel))
    elif field.root in ("reported", "desired"):
        yield from _channel_values(field, v)
    elif field.root == "predicted":
        yield from _predicted_values(field, v)
    elif field.root == "twin_type":
        yield twin.twin_type_id, ""
    elif field.root == "create_time":
        yield twin.create_time_unix_us, ""
    elif field.root == "last_event_time":
        seen = [f.event_time_unix_us for f in replica.reported.values.values()]
        yield from ((time, "") for time in sorted(seen)[-1:])
    elif field.root in ("revision", "offset", "connectivity"):
        yield int(getattr(replica, field.root)), ""
    else:
        yield getattr(twin, field.root), ""


def _channel_values(field: ex.Field, v: TwinVersion) -> Iterator[tuple[Any, str]]:
    unit = next((c.unit for c in v.twin_type.channels if c.name == field.key), "none")
    if field.root == "reported":
        for fact in v.replica.reported.values.values():
            if field.key in ("", fact.channel):
                parts = {"": fact.value, "quality": int(fact.quality), "event_time": fact.event_time_unix_us}
                yield (parts | {"offset": fact.offset})[field.part], unit
    else:
        for target in v.replica.desired.values.values():
            found: dict[str, Any] = {"": target.value, "state": int(target.state), "deadline": target.deadline_unix_us}
            if field.key in ("", target.channel) and found[field.part] is not None:
                yield found[field.part], unit


def _predicted_values(field: ex.Field, v: TwinVersion) -> Iterator[tuple[Any, str]]:
    found = [p for p in v.replica.predicted.predictions.values() if field.key in ("", p.channel)]
    for p in sorted(found, key=lambda p: (p.input_offset, p.at_unix_us, p.model_id))[-1:]:
        if field.part == "":
            yield from ((value, p.unit) for value in p.values[1::3])
        else:
            parts = {
                "model_id": p.model_id,
                "at": p.at_unix_us,
                "valid_until": p.valid_until_unix_us,
                "horizon": len(p.values) // 3 * S,
            }
            yield parts[field.part], ""


def _holds(field: ex.Field, op: ex.Op, value: Any, unit: str, literal: ex.Literal) -> bool:
    if isinstance(literal, bool):
        return isinstance(value, bool) and value == literal
    if isinstance(literal, ex.Pattern):
        if isinstance(value, Json) or not isinstance(value, str):
            return False
        if field.root == "twin_type" and "@" in "".join(literal.pieces):
            value += "@1"
        return _text(op, value, literal.pieces)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(literal, ex.Quantity):
        return _number(op, value, unit, literal)
    number = {ex.Span: "us", ex.Moment: "unix_us", ex.Choice: "number"}[type(literal)]
    return _order(op, value, getattr(literal, number))


def _number(op: ex.Op, value: float, unit: str, literal: ex.Quantity) -> bool:
    if literal.unit in ("", unit):
        return _order(op, value, literal.number)
    if literal.unit == "bar" or unit not in ("Cel", "K"):
        return False
    wanted = CELSIUS[literal.unit](literal.number) + (273.15 if unit == "K" else 0.0)
    return _order(op, round(value, 6), round(wanted, 6))


def _order(op: ex.Op, left: Any, right: Any) -> bool:
    verdicts = {"=": left == right, "<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}
    return verdicts[op.value]


def _text(op: ex.Op, text: str, pieces: tuple[str, ...]) -> bool:
    if op.orders:
        return _order(op, text, pieces[0])
    if op is ex.Op.HAS:
        return "*".join(pieces) in text if len(pieces) == 1 else fnmatchcase(text, _glob(("", *pieces, "")))
    return fnmatchcase(text, _glob(pieces))


def _glob(pieces: tuple[str, ...]) -> str:
    return "*".join("".join(f"[{c}]" if c in "*?[" else c for c in piece) for piece in pieces)


def moment_text(time_unix_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_unix_us)).isoformat()
