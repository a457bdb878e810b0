"""Lists of the past: filtered, ordered, paged, and every page of one list at the position of its first.

What is chosen or ordered is found once for the whole list, and kept for its next pages as references to values that
never change. Had it to go, it is found again; a page that would not go on where the last one ended says so.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import builtins
import heapq
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.errors import OutOfRange, Reason
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.filter import Expression, compiled
from twinmesh_statesync.domain.live import rewound
from twinmesh_statesync.domain.mask import read_mask
from twinmesh_statesync.domain.ordering import SortKey, ordered, read_order
from twinmesh_statesync.domain.past import with_facts
from twinmesh_statesync.domain.then import Then
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.rpc.listing import filter_of, foreign_token, require_replicas, summary
from twinmesh_statesync.rpc.mapping.values import position_to_message
from twinmesh_statesync.rpc.past import Asked, PastReads
from twinmesh_statesync.rpc.reading import Reading, page_size

_KEPT_TWINS: Final = 200_000
"""References to twins that kept lists hold together, and whatever of the past they keep alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    """What is asked for, apart from where and how much of it is told.

    Attributes:
        judged: some field of the twins decides which are told, or in which order.
    """

    tenant: str
    expression: Expression
    order: tuple[SortKey, ...]
    time_unix_us: int | None
    judged: bool

    def fingerprint(self) -> str:
        """Return what a page token is bound to."""
        return blake2b(repr(self).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """Where a list goes on: after so many twins, of which this was the last, as of the position of its first page."""

    position: Position
    fingerprint: str
    skip: int
    last: str

    def encode(self) -> str:
        parts = [self.position.incarnation, self.position.offset, self.fingerprint, self.skip, self.last]
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


class PastLists:
    """Answers lists of the past.

    Args:
        reading: read access to the present.
        past: read access to the past.
    """

    def __init__(self, reading: Reading, past: PastReads) -> None:
        self._reading = reading
        self._past = past
        self._kept: OrderedDict[tuple[Position, str], Sequence[TwinVersion]] = OrderedDict()
        self._kept_twins = 0
        reading.live.listeners.on_erasure(lambda _change: self._forget())

    async def list(
        self, tenant: str, request: statesync_pb2.ListTwinsRequest, asked: Asked
    ) -> statesync_pb2.ListTwinsResponse:
        """Answer one page of the twins as they were.

        Raises:
            InvalidArgument: the request is malformed: the filter with its column, the order, the mask, the token.
            OutOfRange: COMPACTED, AS_OF_PRUNED, PAGE_EXPIRED.
            FailedPrecondition: LOG_REWOUND, the token is of a log that was restored since.
        """
        size, order = page_size(request.page_size), read_order(request.order_by)
        query = _Query(
            tenant=tenant,
            expression=filter_of(request.filter, request.twin_type_id),
            order=order,
            time_unix_us=asked.time_unix_us,
            judged=bool(request.filter or order),
        )
        mask = read_mask(request.read_mask.paths, "read_mask")
        require_replicas(request, mask)
        fingerprint = query.fingerprint()
        token = _read_token(request.page_token)
        if token is not None:
            if token.fingerprint != fingerprint or request.at_offset not in (0, token.position.offset):
                raise foreign_token()
            if token.position.incarnation != self._reading.live.incarnation:
                raise rewound()
            # A token is what a caller sends: nothing is waited for that has not happened.
            await self._reading.at_least(token.position.offset)
            asked = replace(asked, as_of=token.position)
        skip = 0 if token is None else token.skip
        if query.judged:
            found = await self._found(query, fingerprint, asked, keep_beyond=skip + size)
            if token is not None and (skip > len(found) or found[skip - 1].twin.twin_id != token.last):
                raise _expired(asked.as_of.offset)
            page, more = list(found[skip : skip + size]), len(found) > skip + size
        else:
            page, more = await self._by_id(query, asked, "" if token is None else token.last, size)
        following = ""
        if more:
            last = page[-1].twin.twin_id
            following = _Token(position=asked.as_of, fingerprint=fingerprint, skip=skip + len(page), last=last).encode()
        shown = mask if request.include_replica else None
        return statesync_pb2.ListTwinsResponse(
            twins=(summary(version, shown) for version in page),
            next_page_token=following,
            as_of=position_to_message(asked.as_of),
        )

    async def _by_id(
        self, query: _Query, asked: Asked, after: str, size: int
    ) -> tuple[builtins.list[TwinVersion], bool]:
        """Return a page of twins that only their type chooses, and whether more follow."""
        test, nobody = compiled(query.expression), Then(())
        states = (await self._past.fold(query.tenant, asked)).states(query.tenant)
        # No await up to the replicas of the page: this may be the live fold.
        living = (
            twin_id
            for twin_id, state in states.items()
            if twin_id > after and (version := state.version) is not None and test(version, nobody)
        )
        ids = heapq.nsmallest(size + 1, living)
        page = [states[twin_id] for twin_id in ids[:size]]
        replicas = await self._past.replicas(query.tenant, page, asked)
        versions = [TwinVersion(s.twin, s.twin_type, replica) for s, replica in zip(page, replicas, strict=True)]
        return versions, len(ids) > size

    async def _found(self, query: _Query, fingerprint: str, asked: Asked, *, keep_beyond: int) -> Sequence[TwinVersion]:
        """Return all twins that match, in order."""
        key = (asked.as_of, fingerprint)
        known = self._kept.get(key)
        if known is not None:
            self._kept.move_to_end(key)
            return known
        async with self._past.place():
            found = await self._judged(query, asked)
        if keep_beyond < len(found) <= _KEPT_TWINS and key not in self._kept:
            self._kept[key] = found
            self._kept_twins += len(found)
            while self._kept_twins > _KEPT_TWINS:
                self._kept_twins -= len(self._kept.popitem(last=False)[1])
        return found

    async def _judged(self, query: _Query, asked: Asked) -> Sequence[TwinVersion]:
        fold = await self._past.fold(query.tenant, asked)
        if query.time_unix_us is None:
            # Values that stay, whatever becomes of the fold: it may be the live one.
            versions = [v for state in fold.states(query.tenant).values() if (v := state.version) is not None]

            def choose() -> builtins.list[TwinVersion]:
                return ordered(Then(versions).matching(query.expression), query.order)

        else:
            states = [state for state in fold.states(query.tenant).values() if state.alive]
            facts = await self._past.facts(query.tenant, [state.twin.twin_id for state in states], asked)

            def choose() -> builtins.list[TwinVersion]:
                then = Then(
                    TwinVersion(s.twin, s.twin_type, with_facts(s, s.replica, facts.get(s.twin.twin_id, {})))
                    for s in states
                )
                return ordered(then.matching(query.expression), query.order)

        return await asyncio.to_thread(choose)

    def _forget(self) -> None:
        self._kept.clear()
        self._kept_twins = 0


def _read_token(text: str) -> _Token | None:
    if not text:
        return None
    try:
        incarnation, offset, fingerprint, skip, last = json.loads(base64.urlsafe_b64decode(text.encode("ascii")))
    except (binascii.Error, ValueError, TypeError):
        raise foreign_token() from None
    if type(offset) is not int or type(skip) is not int or offset < 0 or skip < 1:
        raise foreign_token()
    position = Position(incarnation=str(incarnation), offset=offset)
    return _Token(position=position, fingerprint=str(fingerprint), skip=skip, last=str(last))


def _expired(offset: int) -> OutOfRange:
    return OutOfRange(
        f"The twins as they were at offset {offset} are not those of the pages before: some were erased, or left "
        "history; begin the list again.",
        reason=Reason.PAGE_EXPIRED,
        metadata={"offset": str(offset)},
    )
