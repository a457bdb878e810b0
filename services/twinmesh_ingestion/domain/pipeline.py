"""The pipeline: from a batch as sent to what lands, what is kept aside, and the account of every row.

Pure but for the series' memory, and vectorised over all series of a section at once. Stages, in the order in which a
row's first reason counts: identity, unit, kind, quality byte, time, finite value (quarantine); repetition (dropped);
range (BAD); rate of change, spike, stuck (UNCERTAIN); deadband (dropped). The sender's quality is respected and never
raised. A stage looks at all rows that came through those before it; what the deadband drops, the checks have seen.
Before all of them numbers go to the section of their channel's kind (`placing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, Section, TextSection
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_core.time import US_PER_DAY, US_PER_MINUTE
from twinmesh_ingestion.domain import checks, deadband
from twinmesh_ingestion.domain.account import Account
from twinmesh_ingestion.domain.memory import NEVER, Newest, SeriesMemory
from twinmesh_ingestion.domain.outcomes import DEADBANDED, DUPLICATE, Ack, QuarantinedRow
from twinmesh_ingestion.domain.placing import by_kind
from twinmesh_ingestion.domain.resolution import SeriesTable
from twinmesh_ingestion.domain.row_columns import is_json, is_utf8, of, ordering, pick
from twinmesh_ingestion.domain.skew import Skew

AHEAD_US: Final = 5 * US_PER_MINUTE
"""How far event times may lie ahead of the receive time: clocks differ."""
LIVE_PAST_US: Final = 3_653 * US_PER_DAY
"""How far back live event times may lie: ten years."""
UNTIMED_AHEAD_US: Final = 3_653 * US_PER_DAY
"""How far ahead event times of channels without the time stage may lie: ten years."""

_NONE: Final = int(FlagReason.UNSPECIFIED)
_EXACT: Final = 2.0**53
"""Whole numbers below this are exact as float64."""
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
    """What the pipeline made of a batch.

    Attributes:
        body: the encoded landed batch.
        quarantine: the rows kept aside.
        ack: the account of all rows.
        newest: the newest landed row of each series that is remembered.
    """

    body: bytes
    quarantine: tuple[QuarantinedRow, ...]
    ack: Ack
    newest: tuple[Newest, ...] = ()


def run(
    batch: ObservationBatch,
    table: SeriesTable,
    slots: npt.NDArray[np.intp],
    memory: SeriesMemory,
    *,
    receive_time_unix_us: int,
    backfill: bool,
    skew: Skew | None = None,
) -> Result:
    """Take a batch through every stage.

    Args:
        batch: as sent; its dictionary is the table's.
        table: the resolved dictionary.
        slots: int [landed], the memory's slot by landed handle; empty where no check needs the past.
        memory: newest values by series; moved on.
        receive_time_unix_us: when the batch arrived.
        backfill: the sender declares recorded history.
        skew: what is known of the sender's clock, for messages.

    Raises:
        ResourceExhausted: MESSAGE_TOO_LARGE, if more rows would be quarantined than one entry can carry.
    """
    earliest = 0 if backfill else max(0, receive_time_unix_us - LIVE_PAST_US)
    latest = receive_time_unix_us + AHEAD_US
    account = Account(table, earliest=earliest, receive_time=receive_time_unix_us, backfill=backfill, skew=skew)
    landed: dict[str, Any] = {}
    newest: list[Newest] = []
    for name, section in by_kind(batch, table).sections():
        if not len(section):
            continue
        stages = _Stages(name, section, table, slots, memory, earliest, latest, backfill=backfill)
        landed[name] = stages.land()
        account.add(name, section, stages.reason, stages.quality)
        if stages.newest is not None:
            newest.append(stages.newest)
    body = wire.encode(ObservationBatch(series=table.landed, **landed), dictionary=table.landed_bytes)
    return Result(body=body, quarantine=account.quarantine(), ack=account.ack(), newest=tuple(newest))


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
        *,
        backfill: bool,
    ) -> None:
        self._name = name
        self._section = section
        self._table = table
        self._slots = slots
        self._memory = memory
        self._bounds = earliest, latest
        self._backfill = backfill
        self.newest: Newest | None = None
        self.reason: Reasons = np.zeros(len(section), np.uint8)
        self.quality: npt.NDArray[np.uint8] = section.quality
        # Once to the index type: a gather by uint32 converts its index every time.
        self._handle: npt.NDArray[np.intp] = section.series.astype(np.intp)
        self._values: npt.NDArray[Any] = np.empty(0)

    def land(self) -> Section | TextSection:
        """Run the stages and return the rows that land."""
        self._identity()
        self._landed_handle: npt.NDArray[np.uint32] = (
            self._section.series if self._table.lands_as_sent else of(self._table.landed_handle, self._handle)
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
            future = time > latest
            if self._table.lax:
                future &= (time > latest + UNTIMED_AHEAD_US) | ~of(self._table.untimed, self._handle)
            self._refuse(future, FlagReason.TIME_IN_FUTURE)
        if int(time.min()) < earliest:
            past = time < earliest
            if self._table.lax:
                past &= (time < 0) | ~of(self._table.untimed, self._handle)
            self._refuse(past, FlagReason.TIME_IN_PAST)

    def _numbers(self, section: Section) -> None:
        values = section.values
        if self._table.converts:
            with np.errstate(over="ignore", invalid="ignore"):
                values = values * of(self._table.scale, self._handle)
                values += of(self._table.offset, self._handle)
        finite = np.isfinite(values)
        if not finite.all():
            self._refuse(~finite, FlagReason.NOT_FINITE)
        self._values = values

    def _documents(self, section: TextSection) -> None:
        wrong = np.zeros(len(section), np.bool_)
        well_formed = is_json if self._name == "jsons" else is_utf8
        for row, text in enumerate(section.texts()):
            wrong[row] = not well_formed(text)
        self._refuse(wrong, FlagReason.MALFORMED_VALUE)

    def _neighbours(self) -> None:
        """Find repetitions and flag: what needs rows in the order of series and event time."""
        if not len(self._table.landed):
            return
        order = ordering(self._landed_handle, self._section.time_unix_us, len(self._table.landed))
        if self.reason.any():
            kept = self.reason == _NONE
            order = np.flatnonzero(kept) if order is None else order[kept[order]]
        landed = pick(self._landed_handle, order)
        time = pick(self._section.time_unix_us, order)
        stated = self.quality if not self._table.remembers else self.quality.copy()
        self._drop_repetitions(order, landed, time)
        if isinstance(self._section, TextSection):
            return
        if self._table.remembers:
            self._drop_what_is_durable()
        if self._table.ranged and self._name != "bools":
            self._range()
        if self._table.remembers:
            self._history(order, landed, time)
            if self._table.banded:
                self._deadband(order)
            self._note_newest(order, landed, stated)

    def _drop_repetitions(self, order: npt.NDArray[np.intp] | None, landed: Any, time: Any) -> None:
        again = time[1:] == time[:-1]
        if not again.any():
            return
        again &= landed[1:] == landed[:-1]
        later = np.flatnonzero(again) + 1
        first, second = (later - 1, later) if order is None else (order[later - 1], order[later])
        same = (self.quality[first] == self.quality[second]) & self._same_values(first, second)
        if self._table.repeats:
            same &= ~self._table.unmerged.take(self._handle[second])
        self.reason[second[same]] = DUPLICATE

    def _drop_what_is_durable(self) -> None:
        """Drop rows that repeat the newest durable value of their series."""
        newest = self._memory.durable_time[self._slots[self._slots >= 0]].max(initial=NEVER)
        if newest < self._section.time_unix_us.min():
            return  # all that is durable is older: how it is in a live stream
        slot = self._slots.take(self._landed_handle, mode="clip")
        again = (self.reason == _NONE) & (slot >= 0)
        again &= self._memory.durable_time.take(slot, mode="clip") == self._section.time_unix_us
        if not again.any():
            return
        again &= self._memory.durable_value.take(slot, mode="clip") == self._values
        again &= self._memory.durable_quality.take(slot, mode="clip") == self.quality
        if self._table.repeats:
            again &= ~of(self._table.unmerged, self._handle)
        if self._name == "int64s":
            again &= np.abs(self._values.astype(np.float64)) < _EXACT
        self.reason[again] = DUPLICATE

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
        outside = self._values < of(self._table.low, self._handle)
        outside |= self._values > of(self._table.high, self._handle)
        if outside.any():
            self._flag(outside & (self.reason == _NONE), FlagReason.OUT_OF_RANGE, Quality.BAD)

    def _history(self, order: npt.NDArray[np.intp] | None, landed: Any, time: Any) -> None:
        """Rate, spikes and stuck, over the rows that may be believed: a wild value must not condemn its neighbours."""
        usable = (self.reason == _NONE) & (self.quality < Quality.BAD)
        rows = order
        if not usable.all():
            kept = pick(usable, order)
            if not kept.any():
                return
            rows = np.flatnonzero(kept) if order is None else order[kept]
            landed, time = landed[kept], time[kept]
        table, memory, handle = self._table, self._memory, pick(self._handle, rows)
        values = pick(self._values, rows).astype(np.float64, copy=False)
        runs = checks.runs_of(landed, time, values, self._slots, memory)
        since = None
        counting = bool(table.counts.any())
        # A counter's small fall is a reset, and may be a great change: it is looked at row by row.
        if table.rated and (counting or checks.any_faster(runs, float(table.max_rate.min()), memory)):
            counter = table.counts.take(handle) if counting else None
            self._flag_rows(rows, checks.too_fast(runs, of(table.max_rate, handle), counter, memory), "rate")
        if table.spiky and self._name == "doubles":
            found = checks.spikes(runs, of(table.spike, handle), memory, centred=self._backfill)
            self._flag_rows(rows, found, "spike")
        if table.sticky:
            still, since = checks.stuck(runs, of(table.stuck_us, handle), memory)
            self._flag_rows(rows, still, "stuck")
        checks.remember(runs, since, memory, tails=table.spiky)

    def _deadband(self, order: npt.NDArray[np.intp] | None) -> None:
        """Drop rows close to the one stored before; whatever is flagged was seen by somebody as worth storing."""
        table = self._table
        rows = self._stored_rows(order)
        rows = rows[of(table.band, self._handle[rows]) >= 0]
        if not len(rows):
            return
        handle = self._handle[rows]
        values = self._values[rows].astype(np.float64, copy=False)
        plain = (self.quality[rows] == Quality.GOOD) & (self.reason[rows] == _NONE)
        if self._name == "int64s":
            plain &= np.abs(values) < _EXACT
        time = self._section.time_unix_us[rows]
        runs = checks.runs_of(self._landed_handle[rows], time, values, self._slots, self._memory)
        counter = table.counts.take(handle)
        band, silence = table.band.take(handle), table.silence_us.take(handle)
        self.reason[rows[deadband.redundant(runs, plain, band, silence, counter, self._memory)]] = DEADBANDED

    def _stored_rows(self, order: npt.NDArray[np.intp] | None) -> npt.NDArray[np.intp]:
        stored = _STORED.take(self.reason)
        return np.flatnonzero(stored) if order is None else order[stored.take(order)]

    def _note_newest(
        self, order: npt.NDArray[np.intp] | None, landed: npt.NDArray[np.uint32], stated: npt.NDArray[np.uint8]
    ) -> None:
        """Note each series' newest stored row: once durable, its repetition is known as one."""
        if self.reason.any():
            order = self._stored_rows(order)
            landed = self._landed_handle[order]
        if not len(landed):
            return
        last = np.append(np.flatnonzero(landed[1:] != landed[:-1]), len(landed) - 1)
        last = last if order is None else order[last]
        slot = self._slots.take(self._landed_handle[last])
        last, slot = last[slot >= 0], slot[slot >= 0]
        self.newest = Newest(
            slot=slot,
            time=self._section.time_unix_us[last],
            value=self._values[last].astype(np.float64),
            quality=stated[last],
        )

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
_STORED[[DUPLICATE, DEADBANDED]] = False
_KIND_FITS: Final = {name: np.isin(np.arange(256), [int(k) for k in kinds]) for name, kinds in _KINDS.items()}
