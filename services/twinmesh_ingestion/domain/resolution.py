"""From a batch's dictionary to numbers by handle: who each row is, in which unit, and what its channel allows.

A dictionary is resolved once and its `SeriesTable` kept: producers send the same one again and again, so that the cost
by row is a few gathers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core import wire
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.ids import entity_id_violation, name_violation, quoted
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.observations import HANDLE, SeriesKey
from twinmesh_core.quality import FlagReason
from twinmesh_core.registry import DEFAULT_MAX_SILENCE_US, ChannelSpec
from twinmesh_core.registry_fold import RegistryFold
from twinmesh_core.units import TABLE, Conversion, Units
from twinmesh_ingestion.domain.ports import NewSeries

NOWHERE: Final = np.uint32(0xFFFF_FFFF)
"""The landed handle of series that are refused."""
NO_STUCK: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A dictionary entry that names a channel of a living twin."""

    spec: ChannelSpec
    conversion: Conversion
    landed: SeriesKey
    """The entry as it lands; series_id is 0 until storage has issued it."""

    def new_series(self) -> NewSeries:
        """Return what storage must know to issue the id."""
        return NewSeries(
            twin_id=self.landed.twin_id,
            channel=self.landed.channel,
            unit=self.landed.unit,
            kind=self.landed.kind,
            expected_interval_us=self.spec.expected_interval_us,
            retention_class=self.spec.retention_class,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A dictionary entry whose rows go to quarantine, and why."""

    reason: FlagReason
    message: str


Resolution = Resolved | Refused


def resolve(fold: RegistryFold, tenant: str, key: SeriesKey, path: str, units: Units = TABLE) -> Resolution:
    """Decide one dictionary entry against the registry; `path` names it in the message, `units` are those there are."""
    refusal = _malformed(key, path)
    if refusal is not None:
        return refusal
    twin = fold.twin(tenant, key.twin_id)
    if twin is None:
        remedy = fold.remedy(tenant, key.twin_id)
        return Refused(
            reason=FlagReason.UNKNOWN_TWIN,
            message=f"{path}.twin_id: twin {quoted(key.twin_id)} does not exist; create it with `{remedy}`, "
            "then send the rows again",
        )
    twin_type = fold.type_of(tenant, twin)
    spec = twin_type.channel(key.channel)
    if spec is None:
        return Refused(
            reason=FlagReason.UNKNOWN_CHANNEL,
            message=f"{path}.channel: twin {quoted(key.twin_id)} ({twin_type.twin_type_id}@{twin_type.version}) "
            f"has no channel {quoted(key.channel)}; it has: {twin_type.channel_names()}",
        )
    stated = spec.unit
    kept = twin.kept_unit(key.channel)
    try:
        if kept is not None:
            # Its series began under another version of the type and goes on in that unit.
            spec = in_unit(spec, kept.unit, units)
        unit = units.canonical(spec.unit)  # an alias names the same unit, so bounds written in it hold as they are
        change = units.conversion(key.unit or stated, spec.unit, field=f"{path}.unit")
    except TwinmeshError as error:
        return Refused(
            reason=FlagReason.INCOMPATIBLE_UNIT,
            message=f"{path}.unit: {error.message}; the unit of channel {quoted(key.channel)} is {quoted(stated)}",
        )
    landed = SeriesKey(
        twin_id=key.twin_id,
        channel=key.channel,
        unit=unit,
        twin_type_id=twin_type.twin_type_id,
        twin_type_version=twin_type.version,
        kind=spec.kind,
    )
    return Resolved(spec=spec, conversion=change, landed=landed)


def in_unit(spec: ChannelSpec, unit: str, units: Units) -> ChannelSpec:
    """Return the channel with its bounds in another unit; raises `InvalidArgument` if it measures something else."""
    change = units.conversion(spec.unit, unit)
    rate = units.conversion(spec.unit, unit, difference=True).scale
    low, high = (None if bound is None else change.apply(bound) for bound in (spec.min_value, spec.max_value))
    return replace(
        spec,
        unit=unit,
        min_value=low,
        max_value=high,
        max_rate_per_s=None if spec.max_rate_per_s is None else spec.max_rate_per_s * rate,
        tolerance=spec.tolerance * rate,
        upper_limit=None if spec.upper_limit is None else change.apply(spec.upper_limit),
        deadband=None if spec.deadband is None else spec.deadband * rate,
    )


def _malformed(key: SeriesKey, path: str) -> Refused | None:
    twin = entity_id_violation(f"{path}.twin_id", key.twin_id)
    if twin is not None:
        return Refused(reason=FlagReason.UNKNOWN_TWIN, message=f"{twin.field}: {twin.description}")
    channel = name_violation(f"{path}.channel", key.channel)
    if channel is not None:
        return Refused(reason=FlagReason.UNKNOWN_CHANNEL, message=f"{channel.field}: {channel.description}")
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesTable:
    """A resolved dictionary of n entries as columns, indexed by handle, and the dictionary that lands instead.

    Attributes:
        keys: the dictionary as sent.
        refused: why an entry's rows are quarantined, None for those that land.
        refusal: uint8 [n], the same as `FlagReason` numbers; 0 for entries that land.
        kind: uint8 [n], `ChannelKind` numbers; 0 for refused entries.
        counts: bool [n], whether the channel is a counter.
        scale, offset: float64 [n], ``value * scale + offset`` is in the channel's unit.
        converts: whether any entry converts at all.
        low, high: float64 [n], valid range; infinite where there is no bound.
        max_rate: float64 [n], highest change per second; infinite where off.
        stuck_us: int64 [n], longest time unchanged; the greatest number where off.
        spike: float64 [n], Hampel threshold; infinite where off.
        band: float64 [n], deadband in the channel's unit; negative where off.
        silence_us: int64 [n], longest time that a deadband may keep a value from being stored.
        untimed: bool [n], event times are not judged by the receive time.
        unmerged: bool [n], repetitions are kept.
        ranged, rated, sticky, spiky, banded, lax, repeats: whether any entry has such a check, or does without it.
        landed_handle: uint32 [n], index into `landed`; `NOWHERE` where refused.
        lands_as_sent: whether every handle stays what it is.
        landed: the dictionary that lands: each series once.
        landed_numbers: those of its entries that are numbers; the same object where all are.
        landed_bytes: its encoding.
    """

    keys: tuple[SeriesKey, ...]
    refused: tuple[Refused | None, ...]
    refusal: npt.NDArray[np.uint8]
    kind: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.bool_]
    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    converts: bool
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    ranged: bool
    max_rate: npt.NDArray[np.float64]
    rated: bool
    stuck_us: npt.NDArray[np.int64]
    sticky: bool
    spike: npt.NDArray[np.float64]
    spiky: bool
    band: npt.NDArray[np.float64]
    silence_us: npt.NDArray[np.int64]
    banded: bool
    untimed: npt.NDArray[np.bool_]
    lax: bool
    unmerged: npt.NDArray[np.bool_]
    repeats: bool
    landed_handle: npt.NDArray[np.uint32]
    lands_as_sent: bool
    landed: tuple[SeriesKey, ...]
    landed_numbers: tuple[SeriesKey, ...]
    landed_bytes: bytes

    @property
    def remembers(self) -> bool:
        """Whether any check looks at what came before."""
        return self.rated or self.sticky or self.spiky or self.banded


def build_table(
    keys: tuple[SeriesKey, ...], resolutions: Sequence[Resolution], landed_keys: Sequence[SeriesKey | None]
) -> SeriesTable:
    """Lay resolved entries out in columns.

    Args:
        keys: the dictionary as sent.
        resolutions: one for each entry.
        landed_keys: the entry as it lands, with its series id; None where refused.
    """
    index: dict[SeriesKey, int] = {}
    handles = [NOWHERE if key is None else index.setdefault(key, len(index)) for key in landed_keys]
    landed = tuple(index)
    specs = [r.spec if isinstance(r, Resolved) else None for r in resolutions]
    changes = [r.conversion if isinstance(r, Resolved) else None for r in resolutions]
    inf = np.inf
    ranges = [None if _off(s, PipelineStage.RANGE) else s for s in specs]
    low = np.array([-inf if s is None or s.min_value is None else s.min_value for s in ranges], np.float64)
    high = np.array([inf if s is None or s.max_value is None else s.max_value for s in ranges], np.float64)
    rate = np.array([_rate(s) for s in specs], np.float64)
    stuck = np.array([_stuck_us(s) for s in specs], np.int64)
    spike = np.array([_spike(s) for s in specs], np.float64)
    band = np.array([_band(s) for s in specs], np.float64)
    silence = np.array([(s.max_silence_us if s else 0) or DEFAULT_MAX_SILENCE_US for s in specs], np.int64)
    untimed = np.array([_off(s, PipelineStage.TIME) for s in specs], np.bool_)
    unmerged = np.array([_off(s, PipelineStage.REPETITION) for s in specs], np.bool_)
    scale = np.array([1.0 if c is None else c.scale for c in changes], np.float64)
    offset = np.array([0.0 if c is None else c.offset for c in changes], np.float64)
    return SeriesTable(
        keys=keys,
        refused=tuple(r if isinstance(r, Refused) else None for r in resolutions),
        refusal=np.array([r.reason if isinstance(r, Refused) else 0 for r in resolutions], np.uint8),
        kind=np.array([ChannelKind.UNSPECIFIED if s is None else s.kind for s in specs], np.uint8),
        counts=np.array([s is not None and s.kind == ChannelKind.COUNTER for s in specs], np.bool_),
        scale=scale,
        offset=offset,
        converts=bool((scale != 1.0).any() or offset.any()),
        low=low,
        high=high,
        ranged=bool(np.isfinite(low).any() or np.isfinite(high).any()),
        max_rate=rate,
        rated=bool(np.isfinite(rate).any()),
        stuck_us=stuck,
        sticky=bool((stuck != NO_STUCK).any()),
        spike=spike,
        spiky=bool(np.isfinite(spike).any()),
        band=band,
        silence_us=silence,
        banded=bool((band >= 0).any()),
        untimed=untimed,
        lax=bool(untimed.any()),
        unmerged=unmerged,
        repeats=bool(unmerged.any()),
        landed_handle=np.array(handles, HANDLE),
        lands_as_sent=handles == list(range(len(keys))),
        landed=landed,
        landed_numbers=_numbers(landed),
        landed_bytes=wire.encode_dictionary(landed),
    )


def _off(spec: ChannelSpec | None, stage: PipelineStage) -> bool:
    return spec is not None and stage in spec.disabled_stages


def _rate(spec: ChannelSpec | None) -> float:
    if spec is None or spec.max_rate_per_s is None or _off(spec, PipelineStage.RATE):
        return float(np.inf)
    return spec.max_rate_per_s


def _stuck_us(spec: ChannelSpec | None) -> int:
    return NO_STUCK if spec is None or _off(spec, PipelineStage.STUCK) else spec.stuck_after_us or NO_STUCK


def _numbers(keys: tuple[SeriesKey, ...]) -> tuple[SeriesKey, ...]:
    numbers = tuple(key for key in keys if key.kind.numeric)
    return keys if len(numbers) == len(keys) else numbers


def _spike(spec: ChannelSpec | None) -> float:
    if spec is None or spec.kind != ChannelKind.GAUGE or not spec.spike_threshold or _off(spec, PipelineStage.SPIKE):
        return float(np.inf)
    return spec.spike_threshold


def _band(spec: ChannelSpec | None) -> float:
    band = spec.band() if spec is not None else None
    return -1.0 if band is None else band
