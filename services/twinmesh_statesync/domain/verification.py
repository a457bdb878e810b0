"""Proof that replicas are what the log says: the log folded anew beside them, and both compared at one offset.

The live fold stands still only while references to its immutable values are taken; the new fold runs in the background
in short slices, and needs as much memory as the replicas do. One verification runs at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from twinmesh_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    OutOfRange,
    Reason,
    ResourceExhausted,
    invalid_field,
)
from twinmesh_core.shards import shard_of
from twinmesh_core.time import Clock
from twinmesh_statesync.domain.checkpoint import (
    EVENT,
    TWIN,
    Captured,
    Position,
    Record,
    capture_all,
    restore,
)
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.live import LiveFold, rewound
from twinmesh_statesync.domain.ports import CheckpointStore, Log

_SLICE_S: Final = 0.002
_TOLD_S: Final = 0.5
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A twin that is not what the log says; revision 0 = it is not there."""

    twin_id: str
    revision: int
    expected_revision: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """Hashes of what a fold holds of one tenant.

    Attributes:
        by_twin: of each twin with its events, tombstones included.
        rest: of twin types and remembered verdicts.
    """

    by_twin: dict[str, bytes]
    rest: bytes

    def shards(self, tenant: str) -> dict[int, tuple[int, bytes]]:
        """Return how many twins each shard has, and their digest."""
        ids: dict[int, list[str]] = defaultdict(list)
        for twin_id in sorted(self.by_twin):
            ids[shard_of(tenant, twin_id)].append(twin_id)
        return {
            shard: (len(twins), _hash(f"{twin_id}\0{self.by_twin[twin_id].hex()}" for twin_id in twins))
            for shard, twins in sorted(ids.items())
        }

    def whole(self) -> bytes:
        """Return one digest of everything."""
        return _hash(
            [*(f"{twin_id}\0{self.by_twin[twin_id].hex()}" for twin_id in sorted(self.by_twin)), self.rest.hex()]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a verification is.

    Attributes:
        at: where both folds are compared.
        start_offset: where the new one began; 0 = at the beginning of the log.
        folded_through: how far it is.
    """

    at: Position
    start_offset: int
    folded_through: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified(Progress):
    """What a verification found.

    Attributes:
        digests: of the replicas.
        difference_count: twins that differ.
        differences: the first of them, by id.
        registry_equal: whether twin types and verdicts are equal.
    """

    digests: Digests
    difference_count: int
    differences: tuple[Difference, ...]
    registry_equal: bool


class Verifier:
    """Verifies the replicas of this process.

    Args:
        log: folded anew.
        live: what is examined.
        checkpoints: where the new fold may begin.
        clock: for slices and progress.
    """

    def __init__(self, *, log: Log, live: LiveFold, checkpoints: CheckpointStore, clock: Clock) -> None:
        self._log = log
        self._live = live
        self._checkpoints = checkpoints
        self._clock = clock
        self._busy = False

    async def verify(
        self, tenant: str, *, at_offset: int, from_checkpoint: bool, max_differences: int, timeout_s: float
    ) -> AsyncGenerator[Progress, None]:
        """Yield progress, and `Verified` as the last.

        Args:
            tenant: whose replicas.
            at_offset: where; 0 = where they are now.
            from_checkpoint: begin from the kept checkpoint even if the log is whole.
            max_differences: named at most.
            timeout_s: for the log to reach `at_offset`.

        Raises:
            ResourceExhausted: another verification runs.
            InvalidArgument: the replicas are beyond `at_offset`.
            DeadlineExceeded: the log did not reach it in time.
            OutOfRange: COMPACTED, and no checkpoint.
            FailedPrecondition: LOG_REWOUND meanwhile.
            Unavailable: the log or the checkpoint cannot be read.
        """
        if self._busy:
            raise ResourceExhausted("This process is verifying already; try again when it is done.", retry_after_s=5.0)
        self._busy = True
        try:
            anew = await self._kept() if from_checkpoint else Fold()
            wanted = at_offset or max(self._live.fold.offset, anew.offset)
            at, captured = await self._captured(tenant, wanted, timeout_s)
            start_offset = anew.offset
            try:
                async for folded_through in self._fold(anew, at):
                    yield Progress(at=at, start_offset=start_offset, folded_through=folded_through)
            except OutOfRange as error:
                if error.reason != Reason.COMPACTED:
                    raise
                # Observations left the log; a checkpoint stands in for them, and the answer says so.
                anew = await self._kept()
                start_offset = anew.offset
                async for folded_through in self._fold(anew, at):
                    yield Progress(at=at, start_offset=start_offset, folded_through=folded_through)
            yield await asyncio.to_thread(_compared, tenant, at, start_offset, captured, anew, max_differences)
        finally:
            self._busy = False

    async def _captured(self, tenant: str, offset: int, timeout_s: float) -> tuple[Position, Captured]:
        live = self._live
        if offset < live.fold.offset:
            raise invalid_field("at_offset", f"is passed: the replicas reflect {live.fold.offset}; name a later one")
        generation = live.generation
        with live.holds.at(offset, live.fold.offset) as hold:
            try:
                async with asyncio.timeout(timeout_s):
                    await hold.reached.wait()
            except TimeoutError:
                raise DeadlineExceeded(
                    f"The replicas reflect offset {live.fold.offset} and did not reach {offset} in time.",
                    metadata={"waiting_for": f"offset {offset}", "current_offset": str(live.fold.offset)},
                ) from None
            if live.generation != generation:
                raise rewound()
            position = Position(incarnation=live.incarnation, offset=offset)
            return position, await asyncio.to_thread(capture_all, live.fold, tenant)

    async def _kept(self) -> Fold:
        checkpoint = await self._checkpoints.load()
        if checkpoint is None or checkpoint.position.incarnation != self._live.incarnation:
            raise OutOfRange("There is no checkpoint of this log to begin from.", reason=Reason.COMPACTED)
        return await asyncio.to_thread(restore, checkpoint)

    async def _fold(self, anew: Fold, at: Position) -> AsyncGenerator[int, None]:
        """Bring a fold to a position, a little at a time; yields how far it is."""
        if anew.offset > at.offset:
            raise invalid_field("at_offset", f"lies before the checkpoint to begin from, which is at {anew.offset}")
        resumed = told = self._clock.monotonic_s()
        async with aclosing(self._log.follow(Position(incarnation=at.incarnation, offset=anew.offset))) as frames:
            async for frame in frames:
                if frame.through.incarnation != at.incarnation:
                    raise FailedPrecondition("The log began anew meanwhile.", reason=Reason.LOG_REWOUND)
                for entry in frame.entries:
                    if entry.offset > at.offset:
                        break
                    anew.apply(entry)
                    if self._clock.monotonic_s() - resumed > _SLICE_S:
                        # As long a pause as the work before: who reads and watches has at least half of the time.
                        await asyncio.sleep(_SLICE_S)
                        resumed = self._clock.monotonic_s()
                anew.take_unsaved()
                anew.advance(min(frame.through.offset, at.offset))
                if anew.offset == at.offset:
                    return
                if self._clock.monotonic_s() - told > _TOLD_S:
                    told = self._clock.monotonic_s()
                    yield anew.offset


def digests_of(records: Iterable[Record]) -> Digests:
    """Return the hashes of what records describe."""
    twins: dict[str, list[bytes]] = defaultdict(list)
    rest: list[bytes] = []
    for record in records:
        line = _hash([f"{record.kind}\0{record.key}\0{record.body}"])
        if record.kind in (TWIN, EVENT):
            twins[record.key.split("/", 1)[0]].append(line)
        else:
            rest.append(line)
    return Digests(
        by_twin={twin_id: _hash(sorted(line.hex() for line in lines)) for twin_id, lines in twins.items()},
        rest=_hash(sorted(line.hex() for line in rest)),
    )


def _compared(
    tenant: str, at: Position, start_offset: int, captured: Captured, anew: Fold, max_differences: int
) -> Verified:
    expected = capture_all(anew, tenant)
    found, wanted = digests_of(captured.records()), digests_of(expected.records())
    both = found.by_twin.keys() | wanted.by_twin.keys()
    differing = sorted(t for t in both if found.by_twin.get(t) != wanted.by_twin.get(t))
    named = set(differing[:max_differences])
    ours, theirs = _plain(captured, named), _plain(expected, named)
    return Verified(
        at=at,
        start_offset=start_offset,
        folded_through=at.offset,
        digests=found,
        difference_count=len(differing),
        differences=tuple(_difference(t, ours.get(t, {}), theirs.get(t, {})) for t in sorted(named)),
        registry_equal=found.rest == wanted.rest,
    )


def _plain(captured: Captured, twin_ids: set[str]) -> dict[str, dict[str, Any]]:
    """Return the fields of twins by name; all their events count as one."""
    fields: dict[str, dict[str, Any]] = {}
    for record in captured.records():
        twin_id = record.key.split("/", 1)[0]
        if record.kind == TWIN and twin_id in twin_ids:
            fields.setdefault(twin_id, {}).update(json.loads(record.body or "{}"))
        elif record.kind == EVENT and twin_id in twin_ids:
            fields.setdefault(twin_id, {}).setdefault("events", {})[record.key] = record.body
    return fields


def _difference(twin_id: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Difference:
    return Difference(
        twin_id=twin_id,
        revision=ours.get("revision", 0),
        expected_revision=theirs.get("revision", 0),
        parts=tuple(sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))),
    )


def _hash(lines: Iterable[str]) -> bytes:
    total = blake2b(digest_size=_DIGEST_BYTES)
    for line in lines:
        total.update(line.encode())
        total.update(b"\0")
    return total.digest()
