"""The account of a batch: every row under one outcome, quarantined rows with words that mend them."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import Reason, ResourceExhausted
from twinmesh_core.ids import quoted
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import Section, SeriesKey, TextSection
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_core.time import US_PER_DAY, format_time
from twinmesh_ingestion.domain.outcomes import DEADBANDED, DUPLICATE, Ack, OutcomeCount, QuarantinedRow, Scalar
from twinmesh_ingestion.domain.resolution import SeriesTable
from twinmesh_ingestion.domain.skew import Skew, span_words

MAX_QUARANTINED_ROWS: Final = 50_000
MAX_QUARANTINED_BYTES: Final = 12 << 20
"""Most rows of one batch that can be kept aside, and most bytes: they travel in one message to storage."""
_ROW_BYTES: Final = 200
_SHOWN_ESCAPED: Final = 256
"""Longest text shown of bytes that are not UTF-8, in characters; the bytes are kept as well."""
_SURELY_NO_CLOCK_US: Final = 3_650 * US_PER_DAY
"""No clock is ten years ahead: the times are in another unit."""

_NO_KEY: Final = SeriesKey(twin_id="", channel="")
_SECTION_OF: Final = {
    ChannelKind.GAUGE: "doubles",
    ChannelKind.COUNTER: "doubles",
    ChannelKind.STATE: "int64s",
    ChannelKind.BOOL: "bools",
    ChannelKind.TEXT: "texts",
    ChannelKind.JSON: "jsons",
}


class Account:
    """Collects what was decided about the rows of a batch, section by section."""

    def __init__(
        self, table: SeriesTable, *, earliest: int, receive_time: int, backfill: bool, skew: Skew | None = None
    ) -> None:
        self._table = table
        self._earliest = earliest
        self._receive_time = receive_time
        self._backfill = backfill
        self._skew = skew
        self._rows: list[QuarantinedRow] = []
        self._bytes = 0
        self._sent = 0
        self._duplicates = 0
        self._deadbanded = 0
        self._counts: dict[tuple[FlagReason, Quality], int] = {}
        self._examples: dict[tuple[FlagReason, Quality], str] = {}

    def add(
        self,
        name: str,
        section: Section | TextSection,
        reason: npt.NDArray[np.uint8],
        quality: npt.NDArray[np.uint8],
    ) -> None:
        """Enter the rows of one section; `reason` holds a `FlagReason` per row, `DUPLICATE` or `DEADBANDED`.

        Raises:
            ResourceExhausted: MESSAGE_TOO_LARGE, beyond `MAX_QUARANTINED_ROWS`.
        """
        self._sent += len(section)
        if not reason.any():
            return
        tally = np.bincount(reason, minlength=256)
        self._duplicates += int(tally[DUPLICATE])
        self._deadbanded += int(tally[DEADBANDED])
        for number in np.flatnonzero(tally).tolist():
            if number in (DUPLICATE, DEADBANDED, FlagReason.UNSPECIFIED):
                continue
            why = FlagReason(number)
            rows = np.flatnonzero(reason == number)
            if why.quarantines:
                self._keep_aside(name, section, why, rows)
                continue
            for level in (Quality.UNCERTAIN, Quality.BAD):
                of_level = rows[quality[rows] == level]
                if len(of_level):
                    self._count(why, level, len(of_level), self._flag_example(name, section, why, int(of_level[0])))

    def quarantine(self) -> tuple[QuarantinedRow, ...]:
        """Return the rows kept aside."""
        return tuple(self._rows)

    def ack(self) -> Ack:
        """Return the acknowledgement, offset and incarnation not filled in."""
        flagged = sum(
            count
            for (why, level), count in self._counts.items()
            if level != Quality.UNSPECIFIED and why != FlagReason.BY_SENDER
        )
        return Ack(
            accepted_count=self._sent - len(self._rows) - self._duplicates - self._deadbanded,
            flagged_count=flagged,
            quarantined_count=len(self._rows),
            duplicate_count=self._duplicates,
            deadbanded_count=self._deadbanded,
            clock_skew_us=self._skew.ahead_us if self._skew is not None else None,
            outcomes=tuple(
                OutcomeCount(reason=why, quality=level, count=count, example=self._examples[why, level])
                for (why, level), count in sorted(self._counts.items())
            ),
        )

    def _count(self, why: FlagReason, level: Quality, rows: int, example: str) -> None:
        self._counts[why, level] = self._counts.get((why, level), 0) + rows
        self._examples.setdefault((why, level), example)

    def _keep_aside(
        self, name: str, section: Section | TextSection, why: FlagReason, rows: npt.NDArray[np.intp]
    ) -> None:
        # What a row takes beside its value: names, unit and some words.
        self._bytes += _text_bytes(section, rows) + _ROW_BYTES * len(rows)
        if len(self._rows) + len(rows) > MAX_QUARANTINED_ROWS or self._bytes > MAX_QUARANTINED_BYTES:
            example = self._message(name, why, int(section.series[rows[0]]), int(section.time_unix_us[rows[0]]))
            raise ResourceExhausted(
                f"more than {MAX_QUARANTINED_ROWS} rows or {MAX_QUARANTINED_BYTES >> 20} MiB of this batch would be "
                f"quarantined; mend the cause or send fewer rows at once; the first: {example}",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        messages: dict[int, str] = {}
        times, qualities = section.time_unix_us[rows].tolist(), section.quality[rows].tolist()
        for row, handle, time, quality in zip(
            rows.tolist(), section.series[rows].tolist(), times, qualities, strict=True
        ):
            message = messages.get(handle)
            if message is None:
                message = messages[handle] = self._message(name, why, handle, int(time))
            key = self._table.keys[handle] if handle < len(self._table.keys) else _NO_KEY
            self._rows.append(
                QuarantinedRow(
                    twin_id=key.twin_id,
                    channel=key.channel,
                    unit=key.unit,
                    time_unix_us=time,
                    section=name,
                    value=_value(name, section, row),
                    quality=quality,
                    reason=why,
                    message=message,
                    row=row,
                    raw_value=_raw(section, row),
                )
            )
        self._count(why, Quality.UNSPECIFIED, len(rows), next(iter(messages.values())))

    def _message(self, name: str, why: FlagReason, handle: int, time_unix_us: int) -> str:
        keys = self._table.keys
        if why == FlagReason.UNKNOWN_HANDLE:
            return f"batch.{name}.series: handle {handle} is not in the dictionary, which has {len(keys)} entries"
        refused = self._table.refused[handle]
        if refused is not None and refused.reason == why:
            return refused.message
        series = f"{quoted(keys[handle].twin_id)} {quoted(keys[handle].channel)}"
        if why == FlagReason.WRONG_KIND:
            kind = ChannelKind.of(int(self._table.kind[handle]))
            if name in ("doubles", "int64s") and kind in _NUMBER_WORDS:
                return f"batch.{name}: channel {series} is a {kind.name}, {_NUMBER_WORDS[kind]}"
            return (
                f"batch.{name}: channel {series} is a {kind.name}, whose values belong into {_SECTION_OF[kind]}; "
                "send them there, or in the simple form with a value of that kind"
            )
        return f"batch.{name}, {series}: {self._row_fault(name, why, time_unix_us)}"

    def _row_fault(self, name: str, why: FlagReason, time_unix_us: int) -> str:
        if why == FlagReason.NOT_FINITE:
            return "value is NaN or infinite (as sent, or in the channel's unit); leave missing values out"
        if why == FlagReason.TIME_IN_FUTURE:
            ahead_us = time_unix_us - self._receive_time
            if ahead_us > _SURELY_NO_CLOCK_US:
                return f"event time is {format_time(time_unix_us)}; send microseconds since 1970, UTC"
            span = span_words(ahead_us)
            skewed = self._skew.words() if self._skew is not None else ""
            return (
                f"event time is {span} ahead of the server's clock, 5 min are allowed{skewed}; set the sender's clock"
            )
        if why == FlagReason.TIME_IN_PAST:
            remedy = (
                "times before 1970 are not kept"
                if self._backfill or not self._earliest
                else "set backfill for recorded history, or send microseconds since 1970, UTC"
            )
            return f"event time is {format_time(time_unix_us)}, before {format_time(self._earliest)}; {remedy}"
        if why == FlagReason.INVALID_QUALITY:
            return "quality byte is not 0 (not stated), 1 (GOOD), 2 (UNCERTAIN) or 3 (BAD)"
        form = {"jsons": "JSON (RFC 8259)", "bools": "0 or 1"}.get(name, "UTF-8")
        return f"value is not {form}; mend the sender and send the row again"

    def _flag_example(self, name: str, section: Section | TextSection, why: FlagReason, row: int) -> str:
        key = self._table.keys[int(section.series[row])]
        value = _value(name, section, row)
        unit = f" {key.unit}" if key.unit else ""
        when = format_time(int(section.time_unix_us[row]))
        return f"{key.twin_id} {key.channel} = {str(value)[:80]}{unit} at {when}: {_FLAG_WORDS[why]}"


_NUMBER_WORDS: Final = {
    ChannelKind.STATE: "which takes doubles that are whole and within 2^53 of zero; send such, or int64s",
    ChannelKind.GAUGE: "which takes int64s within 2^53 of zero, those that a double holds exactly; send doubles",
    ChannelKind.COUNTER: "which takes int64s within 2^53 of zero, those that a double holds exactly; send doubles",
}
_FLAG_WORDS: Final = {
    FlagReason.OUT_OF_RANGE: "outside the channel's min_value to max_value",
    FlagReason.RATE_OF_CHANGE: "changed faster than the channel's max_rate_per_s",
    FlagReason.SPIKE: "far from its neighbours, beyond the channel's spike_threshold",
    FlagReason.STUCK: "unchanged for longer than the channel's stuck_after",
    FlagReason.BY_SENDER: "quality as the sender stated it",
}


def _value(name: str, section: Section | TextSection, row: int) -> Scalar:
    if isinstance(section, TextSection):
        text = section.text_bytes(row)
        try:
            return text.decode()
        except UnicodeDecodeError:
            return text.decode(errors="backslashreplace")[:_SHOWN_ESCAPED]
    value = section.values[row]
    if name == "doubles":
        return float(value)
    return bool(value) if name == "bools" and int(value) <= 1 else int(value)


def _raw(section: Section | TextSection, row: int) -> bytes:
    if not isinstance(section, TextSection):
        return b""
    text = section.text_bytes(row)
    try:
        text.decode()
    except UnicodeDecodeError:
        return text
    return b""


def _text_bytes(section: Section | TextSection, rows: npt.NDArray[np.intp]) -> int:
    if not isinstance(section, TextSection):
        return 0
    ends = section.end_offset.astype(np.int64)
    return int(np.diff(ends, prepend=0)[rows].sum())
