"""The simple form: one value after the other, as people and small scripts write them, turned into columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_core.quality import Quality
from twinmesh_ingestion.domain.outcomes import Scalar

MAX_OBSERVATIONS: Final = 1_000
"""Most values of one call."""
_INT64: Final = range(-(2**63), 2**63)
_Row = tuple[int, int, int, Scalar | bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleObservation:
    """One value with its series spelt out.

    Attributes:
        key: twin, channel and unit.
        time_unix_us: event time.
        value: as sent; bytes for a text that is not UTF-8.
        json: whether a text value is a JSON document.
        quality: as the sender stated it.
    """

    key: SeriesKey
    time_unix_us: int
    value: Scalar | bytes
    json: bool = False
    quality: int = Quality.UNSPECIFIED


def dictionary_of(observations: Iterable[SimpleObservation]) -> tuple[SeriesKey, ...]:
    """Return each series once, in order of appearance."""
    return tuple(dict.fromkeys(o.key for o in observations))


def to_batch(
    observations: Sequence[SimpleObservation], keys: tuple[SeriesKey, ...], kinds: Sequence[ChannelKind]
) -> ObservationBatch:
    """Return the observations as a batch, each in the section of its channel's kind where its value fits it.

    A number is taken for GAUGE, COUNTER and STATE alike, as long as a STATE's has no decimals. What does not fit stays
    in the section of its own type, where the pipeline quarantines it as of the wrong kind.

    Args:
        observations: the values.
        keys: `dictionary_of` them.
        kinds: the kind of each series; UNSPECIFIED where it is not known.
    """
    handles = {key: handle for handle, key in enumerate(keys)}
    rows: dict[str, list[_Row]] = {"doubles": [], "int64s": [], "bools": [], "texts": [], "jsons": []}
    for o in observations:
        handle = handles[o.key]
        section, value = _placed(o, kinds[handle])
        rows[section].append((handle, o.time_unix_us, int(o.quality), value))
    columns = {
        name: tuple(zip(*section, strict=True)) if section else ((), (), (), ()) for name, section in rows.items()
    }
    doubles, int64s, bools, texts, jsons = (columns[name] for name in rows)
    return ObservationBatch(
        series=keys,
        doubles=double_section(doubles[0], doubles[1], doubles[3], doubles[2]),
        int64s=int64_section(int64s[0], int64s[1], int64s[3], int64s[2]),
        bools=bool_section(bools[0], bools[1], bools[3], bools[2]),
        texts=text_section(texts[0], texts[1], texts[3], texts[2]),
        jsons=text_section(jsons[0], jsons[1], jsons[3], jsons[2]),
    )


def places(
    observations: Sequence[SimpleObservation], keys: tuple[SeriesKey, ...], kinds: Sequence[ChannelKind]
) -> dict[tuple[str, int], int]:
    """Return which observation became which row of `to_batch`: from section and row to position."""
    handles = {key: handle for handle, key in enumerate(keys)}
    filled: dict[str, int] = {}
    found = {}
    for position, o in enumerate(observations):
        section, _ = _placed(o, kinds[handles[o.key]])
        row = filled.get(section, 0)
        found[section, row] = position
        filled[section] = row + 1
    return found


def _placed(o: SimpleObservation, kind: ChannelKind) -> tuple[str, Scalar | bytes]:
    value = o.value
    if isinstance(value, str | bytes):
        return ("jsons" if o.json else "texts"), value
    if isinstance(value, bool):
        return "bools", value
    if kind == ChannelKind.STATE:
        whole = isinstance(value, int) or (value.is_integer() and int(value) in _INT64)
        return ("int64s", int(value)) if whole else ("doubles", value)
    if kind in (ChannelKind.GAUGE, ChannelKind.COUNTER):
        return "doubles", float(value)
    return ("int64s" if isinstance(value, int) else "doubles"), value
