"""Records of the cache, as bytes: sealed, so that a record proves what it is, or it is none.

A sealed record begins with a digest over its own name and everything in it: incarnation, fold offset, reach, body. So
an old answer, another record's bytes, another log's, a torn write and plain garbage are all told from the record that
was asked for; none of them needs a case of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np

from twinmesh_storage.domain.hot import HotSeries
from twinmesh_storage.domain.rows import Rows

_MAGIC: Final = b"TMC2"
_DIGEST: Final = 16
_INCARNATION: Final = 40
SEAL_BYTES: Final = len(_MAGIC) + _DIGEST + _INCARNATION + 16
"""What a seal adds to a body."""

WINDOW_SLOT_SERIES: Final = 16
"""Series per slot of windows: consecutive ids, so mostly the channels of one or two twins."""
WINDOW_ROWS: Final = 1_024
"""Newest rows kept per series; a longer window is read from blocks."""

_ENTRY: Final = np.dtype([("slot", "<i8"), ("fold", "<i8"), ("bytes", "<i8")])
_SERIES: Final = np.dtype([("id", "<i8"), ("since", "<i8"), ("rows", "<i8")])
_ROW: Final = np.dtype([("ts", "<i8"), ("value", "<i8"), ("offset", "<i8"), ("quality", "u1")])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a record is as of.

    Attributes:
        fold_offset: everything folded up to here is in it, as far as it concerns the record.
        reach: nothing in it came with a later offset than this.
    """

    incarnation: str
    fold_offset: int
    reach: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouched:
    """What a manifest says of one slot: the fold offset that its record has, and its size with the seal."""

    fold_offset: int
    size: int


def seal(name: str, stamp: Stamp, body: bytes) -> bytes:
    """Return the record of this name."""
    head = b"".join(
        (
            stamp.incarnation.encode().ljust(_INCARNATION, b"\0"),
            stamp.fold_offset.to_bytes(8, "little", signed=True),
            stamp.reach.to_bytes(8, "little", signed=True),
        )
    )
    return b"".join((_MAGIC, _digest(name, head, body), head, body))


def unseal(name: str, data: bytes) -> tuple[Stamp, bytes] | None:
    """Return stamp and body of the record of this name; None = the bytes are not one."""
    if len(data) < SEAL_BYTES or not data.startswith(_MAGIC):
        return None
    start = len(_MAGIC) + _DIGEST
    head, body = data[start:SEAL_BYTES], data[SEAL_BYTES:]
    if data[len(_MAGIC) : start] != _digest(name, head, body):
        return None
    return Stamp(
        incarnation=head[:_INCARNATION].rstrip(b"\0").decode(errors="replace"),
        fold_offset=int.from_bytes(head[_INCARNATION : _INCARNATION + 8], "little", signed=True),
        reach=int.from_bytes(head[_INCARNATION + 8 :], "little", signed=True),
    ), body


def _digest(name: str, head: bytes, body: bytes) -> bytes:
    digest = blake2b(name.encode() + b"\0" + head, digest_size=_DIGEST)
    digest.update(body)
    return digest.digest()


def encode_manifest(slots: dict[int, Vouched]) -> bytes:
    """Return the body of a manifest."""
    entries = np.zeros(len(slots), _ENTRY)
    entries["slot"] = list(slots)
    entries["fold"] = [v.fold_offset for v in slots.values()]
    entries["bytes"] = [v.size for v in slots.values()]
    return entries.tobytes()


def decode_manifest(body: bytes) -> dict[int, Vouched] | None:
    """Return the slots of a manifest, in the order written; None = it is none."""
    if len(body) % _ENTRY.itemsize:
        return None
    entries = np.frombuffer(body, _ENTRY)
    slots = {
        slot: Vouched(fold_offset=fold, size=size)
        for slot, fold, size in zip(
            entries["slot"].tolist(), entries["fold"].tolist(), entries["bytes"].tolist(), strict=True
        )
    }
    return slots if len(slots) == len(entries) else None


def encode_windows(series: Iterable[tuple[int, HotSeries]]) -> bytes:
    """Return the newest rows of some series of one slot, by ascending id, each from a moment on complete."""
    kept = [(series_id, _newest(hot)) for series_id, hot in series]
    index = np.zeros(len(kept), _SERIES)
    index["id"] = [series_id for series_id, _ in kept]
    index["since"] = [hot.since for _, hot in kept]
    index["rows"] = [len(hot.rows) for _, hot in kept]
    columns = [
        np.concatenate([getattr(hot.rows, column) for _, hot in kept]).astype(_ROW[name], copy=False).tobytes()
        for column, name in (("ts", "ts"), ("value", "value"), ("offset", "offset"), ("quality", "quality"))
        if kept
    ]
    return b"".join((len(kept).to_bytes(4, "little"), index.tobytes(), *columns))


def _newest(hot: HotSeries) -> HotSeries:
    if len(hot.rows) <= WINDOW_ROWS:
        return hot
    rows = hot.rows.take(slice(len(hot.rows) - WINDOW_ROWS, None))
    return HotSeries(since=int(rows.ts[0]), rows=rows)


def decode_windows(slot: int, body: bytes) -> dict[int, HotSeries] | None:
    """Return the series of a slot; None = the bytes are no such slot."""
    if len(body) < 4:
        return None
    count = int.from_bytes(body[:4], "little")
    at = 4 + count * _SERIES.itemsize
    if count > WINDOW_SLOT_SERIES or len(body) < at:
        return None
    index = np.frombuffer(body, _SERIES, count, 4)
    rows = index["rows"].tolist()
    total = sum(rows)
    if any(not 0 <= n <= WINDOW_ROWS for n in rows) or len(body) != at + total * _ROW.itemsize:
        return None
    columns = {}
    for name in ("ts", "value", "offset", "quality"):
        columns[name] = np.frombuffer(body, _ROW[name], total, at)
        at += columns[name].nbytes
    found: dict[int, HotSeries] = {}
    start = 0
    for series_id, since, n in zip(index["id"].tolist(), index["since"].tolist(), rows, strict=True):
        part = slice(start, start + n)
        start += n
        ts = columns["ts"][part]
        if series_id // WINDOW_SLOT_SERIES != slot or series_id in found or not _ascending(ts, since):
            return None
        found[series_id] = HotSeries(
            since=since,
            rows=Rows(
                series=np.full(n, series_id, np.int64),
                ts=ts,
                value=columns["value"][part],
                quality=columns["quality"][part],
                offset=columns["offset"][part],
            ),
        )
    return found


def _ascending(ts: Sequence[int] | np.ndarray[tuple[int], np.dtype[np.int64]], since: int) -> bool:
    times = np.asarray(ts)
    return not len(times) or bool(times[0] >= since and (times[1:] > times[:-1]).all())
