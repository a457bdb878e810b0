"""What all reads share: the offset they wait for, the page they return, and the twin they need."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from twinmesh.type.v1 import position_pb2
from twinmesh_core.errors import OutOfRange, Reason, invalid_field
from twinmesh_core.ids import require_twin_id
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.live import LiveFold, rewound
from twinmesh_statesync.domain.twin_state import TwinState
from twinmesh_statesync.domain.writer import time_left_s
from twinmesh_statesync.rpc.mapping.values import position_to_message

ItemT = TypeVar("ItemT")
MAX_PAGE: Final = 1_000
DEFAULT_PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PageToken:
    """Where a list goes on: the position that all its pages reflect, and the last key told."""

    position: Position
    key: str

    def encode(self) -> str:
        """Return the opaque text."""
        return base64.urlsafe_b64encode(
            f"{self.position.offset}:{self.position.incarnation}:{self.key}".encode()
        ).decode()


class Reading:
    """Read access to the live fold for handlers.

    Args:
        live: the fold.
    """

    def __init__(self, live: LiveFold) -> None:
        self.live = live

    async def at_least(self, min_offset: int, incarnation: str = "") -> None:
        """Return once the fold reflects `min_offset` of an incarnation of the log; "" = nobody says of which.

        Raises:
            InvalidArgument: it is negative.
            FailedPrecondition: LOG_REWOUND, the log has another incarnation.
            OutOfRange: FUTURE_OFFSET, it lies beyond the head of the log, so waiting would be in vain.
            DeadlineExceeded: the fold did not reach it in time.
        """
        if min_offset < 0:
            raise invalid_field("min_offset", "must be 0 (the present) or the offset of an entry")
        if incarnation and incarnation != self.live.incarnation:
            raise rewound()
        if min_offset <= self.live.fold.offset:
            return
        await self.not_beyond_head(min_offset)
        await self.live.wait_for(min_offset, timeout_s=time_left_s())

    async def not_beyond_head(self, offset: int) -> None:
        """Raise `OutOfRange` (FUTURE_OFFSET) at once if no entry has this offset yet."""
        if offset <= self.live.head_offset:
            return
        head = await self.live.head()
        if offset > head.offset:
            raise OutOfRange(
                f"Offset {offset} lies beyond the head of the log, {head.offset}.",
                reason=Reason.FUTURE_OFFSET,
                metadata={"head_offset": str(head.offset)},
            )

    async def twin(self, tenant: str, twin_id: str, min_offset: int = 0, incarnation: str = "") -> TwinState:
        """Return a living twin as of at least `min_offset`.

        Raises:
            InvalidArgument: the id is malformed.
            FailedPrecondition: LOG_REWOUND, see `at_least`.
            NotFound: TWIN_NOT_FOUND, with the command that creates it.
        """
        require_twin_id(twin_id)
        await self.at_least(min_offset, incarnation)
        self.live.fold.registry.require_twin(tenant, twin_id)
        state = self.live.fold.state(tenant, twin_id)
        if state is None:
            raise AssertionError("registry and replicas disagree")
        return state

    def pinned(self, token: PageToken | None) -> Position:
        """Return what all pages of a list reflect: what its first page did, which this is without a token."""
        return self.live.position if token is None else token.position

    def as_of(self) -> position_pb2.LogPosition:
        """Return what an answer given now reflects."""
        return position_to_message(self.live.position)


def page_size(asked: int) -> int:
    """Return the number of items of a page; raises `InvalidArgument` for one that is out of range."""
    if not 0 <= asked <= MAX_PAGE:
        raise invalid_field("page_size", f"must be 1 to {MAX_PAGE:,}, or 0 for {DEFAULT_PAGE}")
    return asked or DEFAULT_PAGE


def read_token(text: str, live: LiveFold) -> PageToken | None:
    """Return what a page token says, None for the first page.

    Raises:
        InvalidArgument: it is not ours.
        FailedPrecondition: LOG_REWOUND, it is of another incarnation of the log.
    """
    if not text:
        return None
    try:
        offset, incarnation, key = base64.urlsafe_b64decode(text.encode("ascii")).decode().split(":", 2)
        token = PageToken(position=Position(incarnation=incarnation, offset=int(offset)), key=key)
    except (binascii.Error, ValueError):
        raise invalid_field("page_token", "is not a token of this list; take it from the previous answer") from None
    if incarnation != live.incarnation:
        raise rewound()
    return token


def page_of(
    items: Sequence[ItemT], token: PageToken | None, key: Callable[[ItemT], str], size: int, pinned: Position
) -> tuple[list[ItemT], str]:
    """Return the items after the token's key, in the order given, and the token of the next page ("" = the end)."""
    start = 0
    if token is not None:
        start = next((i + 1 for i, item in enumerate(items) if key(item) == token.key), len(items))
    page = list(items[start : start + size])
    more = start + size < len(items)
    return page, PageToken(position=pinned, key=key(page[-1])).encode() if more and page else ""
