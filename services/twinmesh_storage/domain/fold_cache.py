"""What folds leave in a shared cache for other processes and for the next life, and when it may be believed.

A record holds what a *slot* (some consecutive series) was as of a fold. It is right beside a tail that begins at or
before that fold, and beside no other. A slot that later folds did not touch is still right, which only the *manifest*
can say: it names the newest fold, and of each slot the fold that its record must have. So a record that an old copy, a
lost write, a late writer or a foreign hand left there contradicts the manifest, and a manifest that is behind the tail
or ahead of the log is no manifest. In doubt the answer is a miss: it costs a read of blocks, and no answer changes.

The writer is the process that folds. Records go first, the manifest last; whatever ends it in between leaves records
that nobody vouches for. When a write fails, or another process folded since, the manifest is begun anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh_storage.domain.cache_records import (
    SEAL_BYTES,
    Stamp,
    Vouched,
    decode_manifest,
    encode_manifest,
    seal,
    unseal,
)
from twinmesh_storage.domain.ports import RecordStore

_MANIFEST: Final = "manifest"
_MANIFEST_BYTES: Final = 8 << 20
_READ_BYTES: Final = 1 << 20
"""Asked for in one command: no call may need longer than its deadline because it asks for much."""

_THREAD_BYTES: Final = 256 << 10  # checking more takes over a quarter of a millisecond

Count = Callable[[str, str, int], None]
"""Told (event, reason, how many) of "hit", "miss" and "bypass"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a reader can use: records of this log that its tail continues.

    Attributes:
        oldest_fold: the reader's tail has every entry after this offset.
        head: the newest entry the reader has.
    """

    incarnation: str
    oldest_fold: int
    head: int


class FoldCache:
    """Records of one kind, by slot.

    Args:
        store: where the bytes are.
        kind: begins every name.
        max_bytes: bound of all records vouched for; those folded longest ago go first.
        count: told of hits and misses.
    """

    def __init__(self, *, store: RecordStore, kind: str, max_bytes: int, count: Count) -> None:
        self._store = store
        self._kind = kind
        self._max_bytes = max_bytes
        self._count = count
        self._vouched: dict[int, Vouched] | None = None
        self._last_fold = 0
        self._floor = 0

    @property
    def enabled(self) -> bool:
        """Whether storing is worth the work."""
        return self._store.enabled

    @property
    def vouched(self) -> Collection[int]:
        """The slots whose records are vouched for, as far as this process knows."""
        return self._vouched or ()

    def distrust_before(self, offset: int) -> None:
        """Believe no record of a fold before `offset`: something was deleted there. Never lowered."""
        self._floor = max(self._floor, offset)

    async def load(self, bounds: Bounds, slots: Sequence[int]) -> dict[int, bytes]:
        """Return the bodies of those slots whose records are right beside the reader's tail."""
        if not self._store.enabled:
            self._count("bypass", "", len(slots))
            return {}
        known, reason = await self._read_manifest(bounds)
        loaded: dict[int, bytes] = {}
        wanted = [slot for slot in slots if slot in known]
        self._count("miss", reason or "unlisted", len(slots) - len(wanted))
        for part in _parts(wanted, known):
            names = [self._name(slot) for slot in part]
            values = await self._store.get(names, [known[slot].size for slot in part])
            expected = [known[slot] for slot in part]
            big = sum(kept.size for kept in expected) > _THREAD_BYTES
            opened = (
                await asyncio.to_thread(self._open_all, names, values, expected, bounds)
                if big
                else self._open_all(names, values, expected, bounds)
            )
            for slot, (body, reason) in zip(part, opened, strict=True):
                if body is None:
                    self._count("miss", reason, 1)
                else:
                    loaded[slot] = body
        self._count("hit", "", len(loaded))
        return loaded

    async def store(self, stamp: Stamp, after: int, records: Mapping[int, bytes], touched: Collection[int]) -> bool:
        """Keep records as of a fold; returns whether they are vouched for now.

        Args:
            after: the fold offset before this fold.
            records: bodies by slot.
            touched: every slot that the fold changed: those without a record here are not vouched for any more.
        """
        if not self._store.enabled:
            self._vouched = None
            return False
        if self._vouched is None or self._last_fold != after:
            # Another process folded last, or an earlier life: what it vouched for holds if nothing was folded since.
            bounds = Bounds(incarnation=stamp.incarnation, oldest_fold=after, head=stamp.reach)
            self._vouched, _ = await self._read_manifest(bounds)
        vouched = {slot: kept for slot, kept in self._vouched.items() if slot not in touched and slot not in records}
        sizes = {slot: len(body) + SEAL_BYTES for slot, body in records.items()}
        vouched |= {slot: Vouched(fold_offset=stamp.fold_offset, size=size) for slot, size in sizes.items()}
        gone = _overflow(vouched, self._max_bytes)
        for slot in gone:
            del vouched[slot]
        # Nothing is vouched for until the manifest is there; should this end here, the next one begins anew.
        self._vouched = None
        named = {
            self._name(slot): seal(self._name(slot), stamp, body) for slot, body in records.items() if slot in vouched
        }
        if not await self._store.put(named) or (gone and not await self._store.drop([self._name(s) for s in gone])):
            return False
        manifest = seal(self._name(_MANIFEST), stamp, encode_manifest(vouched))
        if not await self._store.put({self._name(_MANIFEST): manifest}):
            return False
        self._vouched, self._last_fold = vouched, stamp.fold_offset
        return True

    async def forget(self, slots: Collection[int]) -> bool:
        """Remove the records of slots from the cache itself; False = it could not be reached, try again.

        Beside this, `distrust_before` keeps what could not be removed from being believed.
        """
        if self._vouched is not None:
            self._vouched = {slot: kept for slot, kept in self._vouched.items() if slot not in slots}
        return await self._store.drop([self._name(slot) for slot in slots])

    async def _read_manifest(self, bounds: Bounds) -> tuple[dict[int, Vouched], str]:
        """Return what is vouched for, and why it is nothing."""
        name = self._name(_MANIFEST)
        (data,) = await self._store.get([name], [_MANIFEST_BYTES])
        if data is None:
            return {}, "absent"
        opened = unseal(name, data)
        if opened is None:
            return {}, "damaged"
        stamp, body = opened
        reason = self._unfit(stamp, bounds)
        if reason:
            return {}, reason
        slots = decode_manifest(body)
        return (slots, "") if slots is not None else ({}, "damaged")

    def _open_all(
        self, names: Sequence[str], values: Sequence[bytes | None], expected: Sequence[Vouched], bounds: Bounds
    ) -> list[tuple[bytes | None, str]]:
        return [self._open(*one, bounds) for one in zip(names, values, expected, strict=True)]

    def _open(self, name: str, data: bytes | None, vouched: Vouched, bounds: Bounds) -> tuple[bytes | None, str]:
        if data is None:
            return None, "absent"
        opened = unseal(name, data)
        if opened is None:
            return None, "damaged"
        stamp, body = opened
        if stamp.incarnation != bounds.incarnation:
            return None, "incarnation"
        if stamp.fold_offset != vouched.fold_offset:
            return None, "stale"
        if stamp.fold_offset < self._floor:
            return None, "deleted"
        return (None, "ahead") if stamp.reach > bounds.head else (body, "")

    def _unfit(self, stamp: Stamp, bounds: Bounds) -> str:
        """Return why a manifest cannot be used beside a tail; empty = it can."""
        if stamp.incarnation != bounds.incarnation:
            return "incarnation"
        if stamp.fold_offset < bounds.oldest_fold:
            return "behind"
        return "ahead" if stamp.reach > bounds.head or stamp.fold_offset > bounds.head else ""

    def _name(self, slot: int | str) -> str:
        return f"{self._kind}:{slot}"


def _parts(slots: Sequence[int], known: Mapping[int, Vouched]) -> list[list[int]]:
    """Cut slots into parts of about `_READ_BYTES`."""
    parts: list[list[int]] = []
    room = 0
    for slot in slots:
        if room < known[slot].size or not parts:
            parts.append([])
            room = _READ_BYTES
        parts[-1].append(slot)
        room -= known[slot].size
    return parts


def _overflow(vouched: Mapping[int, Vouched], max_bytes: int) -> list[int]:
    """Return the slots that must leave for the rest to fit; the first ones were folded longest ago."""
    excess = sum(kept.size for kept in vouched.values()) - max_bytes
    gone: list[int] = []
    for slot, kept in vouched.items():
        if excess <= 0:
            break
        gone.append(slot)
        excess -= kept.size
    return gone
