"""Lists of twins: filtered, ordered, paged, and every page of one list at the offset of its first.

A list that is longer than a page is kept for a while, as references to values that never change; when it had to go, it
is found again at its offset from what the ring keeps of the past, else the token has expired, and says so.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import replica_pb2
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.ids import require_resource_id
from twinmesh_runtime.registry_mapping import time_to_message, twin_to_message
from twinmesh_statesync.domain.catalogue import Catalogue
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.filter import EVERYTHING, Expression, parse_filter
from twinmesh_statesync.domain.filter.expressions import And, Compare, Field, Op, Pattern
from twinmesh_statesync.domain.live import rewound
from twinmesh_statesync.domain.mask import ALL, Mask, read_mask
from twinmesh_statesync.domain.ordering import SortKey, ordered, read_order
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.rpc.mapping.replicas import replica_to_message
from twinmesh_statesync.rpc.mapping.values import position_to_message
from twinmesh_statesync.rpc.reading import Reading, page_size

KEPT_TWINS: Final = 500_000
"""References to twins that kept lists hold together; 8 bytes each, and whatever of the past they keep alive."""

_SORTED_HERE: Final = 2_000
"""Lists longer than this are sorted outside the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    tenant: str
    expression: Expression
    order: tuple[SortKey, ...]

    def fingerprint(self) -> str:
        """Return what a page token is bound to."""
        return blake2b(repr(self).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    """Where a list goes on: after so many twins, at the offset that all its pages reflect."""

    incarnation: str
    offset: int
    skip: int
    fingerprint: str

    def encode(self) -> str:
        parts = [self.incarnation, self.offset, self.skip, self.fingerprint]
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def _read_token(text: str) -> _Token | None:
    if not text:
        return None
    try:
        incarnation, offset, skip, fingerprint = json.loads(base64.urlsafe_b64decode(text.encode("ascii")))
    except (binascii.Error, ValueError, TypeError):
        raise foreign_token() from None
    if type(offset) is not int or type(skip) is not int or min(offset, skip) < 0:
        raise foreign_token()
    return _Token(incarnation=str(incarnation), offset=offset, skip=skip, fingerprint=str(fingerprint))


def foreign_token() -> InvalidArgument:
    """Return the error for a page token that is of another list, or of nobody."""
    return invalid_field(
        "page_token", "is not a token of this list; take it from the previous answer and repeat the rest of the request"
    )


class Listing:
    """Answers lists and counts of twins.

    Args:
        reading: read access to the fold.
        catalogue: searches it.
    """

    def __init__(self, reading: Reading, catalogue: Catalogue) -> None:
        self._reading = reading
        self._catalogue = catalogue
        self._kept: OrderedDict[tuple[str, str, int], list[TwinVersion]] = OrderedDict()
        self._kept_twins = 0
        reading.live.listeners.on_erasure(self._forget)

    async def list(self, tenant: str, request: statesync_pb2.ListTwinsRequest) -> statesync_pb2.ListTwinsResponse:
        """Answer one page.

        Raises:
            InvalidArgument: names what is wrong: the filter with its column, the order, the mask, the token.
            OutOfRange: PAGE_EXPIRED, FUTURE_OFFSET.
            FailedPrecondition: LOG_REWOUND, the token is of a log that was restored since.
        """
        size = page_size(request.page_size)
        query = _Query(
            tenant=tenant,
            expression=filter_of(request.filter, request.twin_type_id),
            order=read_order(request.order_by),
        )
        mask = read_mask(request.read_mask.paths, "read_mask")
        require_replicas(request, mask)
        token, fingerprint = _read_token(request.page_token), query.fingerprint()
        if token is not None and token.fingerprint != fingerprint:
            raise foreign_token()
        await self._reading.at_least(
            max(request.min_offset, token.offset if token is not None else 0), request.incarnation
        )
        live = self._reading.live
        if token is not None and token.incarnation != live.incarnation:
            raise rewound()
        position = live.position if token is None else Position(incarnation=token.incarnation, offset=token.offset)
        skip = 0 if token is None else token.skip
        found = await self._found(query, fingerprint, position, keep_beyond=skip + size)
        page, more = found[skip : skip + size], len(found) > skip + size
        following = _Token(
            incarnation=position.incarnation, offset=position.offset, skip=skip + size, fingerprint=fingerprint
        )
        shown = mask if request.include_replica else None
        return statesync_pb2.ListTwinsResponse(
            twins=(summary(version, shown) for version in page),
            next_page_token=following.encode() if more else "",
            as_of=position_to_message(position),
        )

    async def count(self, tenant: str, request: statesync_pb2.CountTwinsRequest) -> statesync_pb2.CountTwinsResponse:
        """Count the twins that match; raises as `list`."""
        expression = filter_of(request.filter, request.twin_type_id)
        await self._reading.at_least(request.min_offset, request.incarnation)
        index = await self._catalogue.index(tenant)
        position = self._reading.live.position
        if expression == EVERYTHING:
            count = len(index)
        else:
            count = len(await self._catalogue.select(tenant, expression, position.offset))
        return statesync_pb2.CountTwinsResponse(count=count, as_of=position_to_message(position))

    def _forget(self, _erasure: Change) -> None:
        self._kept.clear()
        self._kept_twins = 0

    async def _found(
        self, query: _Query, fingerprint: str, position: Position, *, keep_beyond: int
    ) -> Sequence[TwinVersion]:
        key = (position.incarnation, fingerprint, position.offset)
        known = self._kept.get(key)
        if known is not None:
            self._kept.move_to_end(key)
            return known
        selected = await self._catalogue.select(query.tenant, query.expression, position.offset)
        if len(selected) > _SORTED_HERE:
            # They never change, so the fold may go on meanwhile.
            found = await asyncio.to_thread(ordered, selected, query.order)
        else:
            found = ordered(selected, query.order)
        if keep_beyond < len(found) <= KEPT_TWINS and key not in self._kept:
            self._kept[key] = found
            self._kept_twins += len(found)
            while self._kept_twins > KEPT_TWINS:
                self._kept_twins -= len(self._kept.popitem(last=False)[1])
        return found


def filter_of(text: str, twin_type_id: str) -> Expression:
    """Return the filter of a request, its twin type included; raises `InvalidArgument`."""
    expression = parse_filter(text)
    if not twin_type_id:
        return expression
    require_resource_id(twin_type_id, "twin_type_id")
    of_type = Compare(Field("twin_type"), Op.EQUAL, Pattern((twin_type_id,)))
    return of_type if expression == EVERYTHING else And((of_type, expression))


def require_replicas(request: statesync_pb2.ListTwinsRequest, mask: Mask) -> None:
    """Raise `InvalidArgument` if parts of replicas are named that nobody asked for."""
    if not (mask.whole or request.include_replica):
        raise invalid_field("read_mask", "is of the replica; set include_replica too")


def summary(version: TwinVersion, mask: Mask | None = None) -> statesync_pb2.TwinSummary:
    """Return one twin of a list, with the parts of its replica that are wanted."""
    replica = version.replica
    summary = statesync_pb2.TwinSummary(
        twin=twin_to_message(version.twin),
        connectivity=replica_pb2.Connectivity.ValueType(replica.connectivity),
        delta_count=len(replica.delta),
    )
    times = [value.event_time_unix_us for value in replica.reported.values.values()]
    if times:
        summary.last_event_time.CopyFrom(time_to_message(max(times)))
    if mask is not None:
        summary.replica.CopyFrom(masked_replica(version, mask))
    return summary


def masked_replica(version: TwinVersion, mask: Mask = ALL) -> replica_pb2.Replica:
    """Return a replica with the parts wanted."""
    return replica_to_message(mask.cut_twin(version.twin), mask.cut_replica(version.replica))
