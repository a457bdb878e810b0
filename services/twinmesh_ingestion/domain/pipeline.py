"""The pipeline: from a batch as sent to what lands, what is kept aside, and the account of every row.

Pure but for the series' memory, and vectorised over all series of a section at once. Stages, in the order in which a
row's first reason counts: identity, unit, kind, quality byte, time, finite value (quarantine); repetition (dropped);
range (BAD); rate of change, spike, stuck (UNCERTAIN). The sender's quality is respected and never raised.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, Section, TextSection
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_core.time import US_PER_DAY, US_PER_MINUTE
from twinmesh_ingestion.domain import checks
from twinmesh_ingestion.domain.account import Account
from twinmesh_ingestion.domain.memory import SeriesMemory
from twinmesh_ingestion.domain.outcomes import Ack, QuarantinedRow
from twinmesh_ingestion.domain.resolution import SeriesTable

AHEAD_US: Final = 5 * US_PER_MINUTE
"""How far event times may lie ahead of the receive time: clocks differ."""
LIVE_PAST_US: Final = 3_653 * US_PER_DAY
"""How far back live event times may lie: ten years."""

_NONE: Final = int(FlagReason.UNSPECIFIED)
_DROPPED: Final = 255
"""Mark of a repetition; no reason of the contract has this number."""
Reasons = npt.NDArray[np.uint8]
_KINDS: Final = {
    "doubles": (ChannelKind.GAUGE, ChannelKind.COUNTER),
    "int64s": (ChannelKind.STATE,),
    "bools": (ChannelKind.BOOL,),
    "texts": (ChannelKind.TEXT,),
    "jsons": (ChannelKind.JSON,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the pipeline made of a batch: the encoded landed batch, the rows kept aside, and the account of all."""

    body: bytes
    quarantine: tuple[QuarantinedRow, ...]
    ack: Ack


def run(
    batch: ObservationBatch,
    table: SeriesTable,
    slots: npt.NDArray[np.intp],
    memory: SeriesMemory,
    *,
    receive_time_unix_us: int,
    backfill: bool,
) -> Result:
    """Take a batch through every stage.

    Args:
        batch: as sent; its dictionary is the table's.
        table: the resolved dictionary.
        slots: int [landed], the memory's slot by landed handle; empty where no check needs the past.
        memory: newest values by series; moved on.
        receive_time_unix_us: when the batch arrived.
        backfill: the sender declares recorded history.

    Raises:
        ResourceExhausted: MESSAGE_TOO_LARGE, if more rows would be quarantined than one entry can carry.
    """
    earliest = 0 if backfill else max(0, receive_time_unix_us - LIVE_PAST_US)
    latest = receive_time_unix_us + AHEAD_US
    account = Account(table, earliest=earliest, receive_time=receive_time_unix_us, backfill=backfill)
    landed: dict[str, Any] = {}
    for name, section in batch.sections():
        if not len(section):
            continue
        stages = _Stages(name, section, table, slots, memory, earliest, latest)
        landed[name] = stages.land()
        account.add(name, section, stages.reason, stages.quality, _DROPPED)
    body = wire.encode(ObservationBatch(series=table.landed, **landed), dictionary=table.landed_bytes)
    return Result(body=body, quarantine=account.quarantine(), ack=account.ack())


class _Stages:
    """One section on its way; `reason` and `quality` say per row what was decided."""

    def __init__(
        self,
        name: str,
        section: Section | TextSection,
        table: SeriesTable,
        slots: npt.NDArray[np.intp],
        memory: SeriesMemory,
        earliest: int,
        latest: int,
    ) -> None:
        self._name = name
        self._section = section
        self._table = table
        self._slots = slots
        self._memory = memory
        self._bounds = earliest, latest
        self.reason: Reasons = np.zeros(len(section), np.uint8)
        self.quality: npt.NDArray[np.uint8] = section.quality
        # Once to the index type: a gather by uint32 converts its index every time.
        self._handle: npt.NDArray[np.intp] = section.series.astype(np.intp)
        self._values: npt.NDArray[Any] = np.empty(0)

    def land(self) -> Section | TextSection:
        """Run the stages and return the rows that land."""
        self._identity()
        self._landed_handle: npt.NDArray[np.uint32] = (
            self._section.series if self._table.lands_as_sent else _of(self._table.landed_handle, self._handle)
        )
        self._stated_quality()
        self._time()
        if isinstance(self._section, TextSection):
            self._documents(self._section)
        elif self._name == "doubles":
            self._numbers(self._section)
        else:
            self._values = self._section.values
            if self._name == "bools":
                self._refuse(self._values > 1, FlagReason.MALFORMED_VALUE)
        self._neighbours()
        return self._landed()

    def _refuse(self, wrong: npt.NDArray[np.bool_], reason: FlagReason) -> None:
        if wrong.any():
            self.reason[wrong & (self.reason == _NONE)] = reason

    def _identity(self) -> None:
        table = self._table
        known = len(table.keys)
        if int(self._handle.max()) >= known:
            strange = self._handle >= known
            self.reason[strange] = FlagReason.UNKNOWN_HANDLE
            self._handle = np.where(strange, 0, self._handle)
            if not known:
                return
        if table.refusal.any():
            free = self.reason == _NONE
            self.reason[free] = table.refusal.take(self._handle)[free]
        fits = _KIND_FITS[self._name].take(table.kind)
        if not fits.all():
            self._refuse(~fits.take(self._handle), FlagReason.WRONG_KIND)

    def _stated_quality(self) -> None:
        stated = self.quality
        if int(stated.max()) > Quality.BAD:
            self._refuse(stated > Quality.BAD, FlagReason.INVALID_QUALITY)
        self.quality = np.maximum(stated, np.uint8(Quality.GOOD))

    def _time(self) -> None:
        time = self._section.time_unix_us
        earliest, latest = self._bounds
        if int(time.max()) > latest:
            self._refuse(time > latest, FlagReason.TIME_IN_FUTURE)
        if int(time.min()) < earliest:
            self._refuse(time < earliest, FlagReason.TIME_IN_PAST)

    def _numbers(self, section: Section) -> None:
        values = section.values
        if self._table.converts:
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * _of(self._table.scale, self._handle)
                values += _of(self._table.offset, self._handle)
        finite = np.isfinite(values)
        if not finite.all():
            self._refuse(~finite, FlagReason.NOT_FINITE)
        self._values = values

    def _documents(self, section: TextSection) -> None:
        wrong = np.zeros(len(section), np.bool_)
        well_formed = _is_json if self._name == "jsons" else _is_utf8
        for row, text in enumerate(section.texts()):
            wrong[row] = not well_formed(text)
        self._refuse(wrong, FlagReason.MALFORMED_VALUE)

    def _neighbours(self) -> None:
        """Find repetitions and flag: what needs rows in the order of series and event time."""
        if not len(self._table.landed):
            return
        order = _order(self._landed_handle, self._section.time_unix_us, len(self._table.landed))
        if self.reason.any():
            kept = self.reason == _NONE
            order = np.flatnonzero(kept) if order is None else order[kept[order]]
        landed = _pick(self._landed_handle, order)
        time = _pick(self._section.time_unix_us, order)
        self._drop_repetitions(order, landed, time)
        if isinstance(self._section, TextSection):
            return
        if self._table.ranged and self._name != "bools":
            self._range()
        if self._table.remembers:
            self._history(order, landed, time)

    def _drop_repetitions(self, order: npt.NDArray[np.intp] | None, landed: Any, time: Any) -> None:
        again = time[1:] == time[:-1]
        if not again.any():
            return
        again &= landed[1:] == landed[:-1]
        later = np.flatnonzero(again) + 1
        first, second = (later - 1, later) if order is None else (order[later - 1], order[later])
        same = (self.quality[first] == self.quality[second]) & self._same_values(first, second)
        self.reason[second[same]] = _DROPPED

    def _same_values(self, first: npt.NDArray[np.intp], second: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        if isinstance(self._section, TextSection):
            text = self._section.text_bytes
            return np.array([text(int(a)) == text(int(b)) for a, b in zip(first, second, strict=True)], np.bool_)
        same: npt.NDArray[np.bool_] = self._values[first] == self._values[second]
        return same

    def _range(self) -> None:
        # Two scalars first: where every value lies within the narrowest bounds, no row's own are looked up.
        if float(self._values.min()) >= self._table.low.max() and float(self._values.max()) <= self._table.high.min():
            return
        outside = self._values < _of(self._table.low, self._handle)
        outside |= self._values > _of(self._table.high, self._handle)
        if outside.any():
            self._flag(outside & (self.reason == _NONE), FlagReason.OUT_OF_RANGE, Quality.BAD)

    def _history(self, order: npt.NDArray[np.intp] | None, landed: Any, time: Any) -> None:
        """Rate, spikes and stuck, over the rows that may be believed: a wild value must not condemn its neighbours."""
        usable = (self.reason == _NONE) & (self.quality < Quality.BAD)
        rows = order
        if not usable.all():
            kept = _pick(usable, order)
            if not kept.any():
                return
            rows = np.flatnonzero(kept) if order is None else order[kept]
            landed, time = landed[kept], time[kept]
        table, memory, handle = self._table, self._memory, _pick(self._handle, rows)
        values = _pick(self._values, rows).astype(np.float64, copy=False)
        runs = checks.runs_of(landed, time, values, self._slots, memory)
        since = None
        if table.rated and checks.any_faster(runs, float(table.max_rate.min()), memory):
            counter = table.counts.take(handle) if table.counts.any() else None
            self._flag_rows(rows, checks.too_fast(runs, _of(table.max_rate, handle), counter, memory), "rate")
        if table.spiky and self._name == "doubles":
            self._flag_rows(rows, checks.spikes(runs, _of(table.spike, handle), memory), "spike")
        if table.sticky:
            still, since = checks.stuck(runs, _of(table.stuck_us, handle), memory)
            self._flag_rows(rows, still, "stuck")
        checks.remember(runs, since, memory, tails=table.spiky)

    def _flag_rows(self, rows: npt.NDArray[np.intp] | None, failing: npt.NDArray[np.bool_], check: str) -> None:
        if failing.any():
            mask = np.zeros(len(self.reason), np.bool_)
            mask[np.flatnonzero(failing) if rows is None else rows[failing]] = True
            self._flag(mask & (self.reason == _NONE), _CHECKS[check], Quality.UNCERTAIN)

    def _flag(self, rows: npt.NDArray[np.bool_], reason: FlagReason, quality: Quality) -> None:
        """Lower the quality of these rows where the sender's is not as low already."""
        lowered = rows & (self.quality < quality)
        self.reason[lowered] = reason
        self.quality[lowered] = quality

    def _landed(self) -> Section | TextSection:
        table, section = self._table, self._section
        if int(self.quality.max()) > Quality.GOOD:
            self.reason[(self.reason == _NONE) & (self.quality > Quality.GOOD)] = FlagReason.BY_SENDER
        if not len(table.landed):
            return section.select(np.empty(0, np.intp))
        handle = self._landed_handle
        if isinstance(section, TextSection):
            whole: Section | TextSection = TextSection(
                series=handle,
                time_unix_us=section.time_unix_us,
                quality=self.quality,
                end_offset=section.end_offset,
                heap=section.heap,
            )
        else:
            whole = Section(series=handle, time_unix_us=section.time_unix_us, quality=self.quality, values=self._values)
        if not self.reason.any():
            return whole
        stored = _STORED.take(self.reason)
        return whole if stored.all() else whole.select(stored)


_CHECKS: Final = {"rate": FlagReason.RATE_OF_CHANGE, "spike": FlagReason.SPIKE, "stuck": FlagReason.STUCK}
_STORED: Final = np.array([not (r in set(FlagReason) and FlagReason(r).quarantines) for r in range(256)])
_STORED[_DROPPED] = False
_KIND_FITS: Final = {name: np.isin(np.arange(256), [int(k) for k in kinds]) for name, kinds in _KINDS.items()}


def _order(landed: npt.NDArray[np.uint32], time: npt.NDArray[np.int64], series: int) -> npt.NDArray[np.intp] | None:
    """Return the rows in order of series, then event time, repetitions in the order sent; None = they are in order.

    Batches come ordered by series, or by time: both are recognised, since a full sort costs more than all checks.
    """
    if not (landed[1:] < landed[:-1]).any():
        late = time[1:] < time[:-1]
        if not late.any() or not (late & (landed[1:] == landed[:-1])).any():
            return None
    rounds = _rounds(landed, time)
    if rounds is not None:
        return rounds
    # Few series: numpy sorts 16-bit keys by counting, in linear time.
    by_series = np.argsort(landed.astype(np.uint16) if series < 65_535 else landed, kind="stable")
    handle, when = landed.take(by_series), time.take(by_series)
    if not ((when[1:] < when[:-1]) & (handle[1:] == handle[:-1])).any():
        return by_series
    return np.lexsort((time, landed))


def _rounds(landed: npt.NDArray[np.uint32], time: npt.NDArray[np.int64]) -> npt.NDArray[np.intp] | None:
    """Return the order of rows sent round after round: every series once, ascending, then again; None = they are not.

    So live telemetry comes; recognising it costs a tenth of sorting.
    """
    again = np.flatnonzero(landed[1:] == landed[0])
    if not len(again):
        return None
    series, rows = int(again[0]) + 1, len(landed)
    if rows % series or (landed[series:] != landed[:-series]).any() or (time[series:] < time[:-series]).any():
        return None
    if (landed[1:series] <= landed[: series - 1]).any():
        return None
    return _transposed(rows, series)


@lru_cache(maxsize=8)
def _transposed(rows: int, series: int) -> npt.NDArray[np.intp]:
    order = np.arange(rows).reshape(-1, series).T.ravel()
    order.flags.writeable = False
    return order


def _of(by_handle: npt.NDArray[Any], handle: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Return the entry of each row; rows of an empty dictionary, which are all refused, get zeros."""
    return by_handle.take(handle) if len(by_handle) else np.zeros(len(handle), by_handle.dtype)


def _pick(column: npt.NDArray[Any], order: npt.NDArray[np.intp] | None) -> npt.NDArray[Any]:
    return column if order is None else column.take(order)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are Python's, not RFC 8259's
