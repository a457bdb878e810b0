"""Following: entries after an offset, in order, without gap or duplicate, from memory where possible.

A follower holds one frame at a time, and shares it with the others that stand where it stands; if it reads slowly, it
falls out of the memory ring and goes on from the database. So any number of slow followers cost neither memory nor the
fast ones anything. With many followers each gets fewer and larger frames: their number, not the log's pace, would else
decide what following costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from twinmesh_core.errors import FailedPrecondition, Reason, ResourceExhausted, Unavailable
from twinmesh_storage.domain.follow_filter import EVERYTHING, Filter, TwinsOf
from twinmesh_storage.domain.frame_shelf import EncodeFrame, FrameShelf
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import LogStore

MAX_FOLLOWERS: Final = 2_000
"""Followers of one process at once; further ones are shed."""
_STEPS_PER_S: Final = 5_000
"""Of all followers at the head together: one of 100 followers gets a frame every 20 ms."""
_LONGEST_GAP_S: Final = 0.25


class Follower:
    """Follows the log for callers.

    Args:
        twins_of: the twins that an entry names.
        encode: frames to what is sent.
    """

    def __init__(self, *, log: LogStore, view: LogView, twins_of: TwinsOf, encode: EncodeFrame) -> None:
        self._view = view
        self._shelf = FrameShelf(log=log, view=view, twins_of=twins_of, encode=encode)

    @property
    def followers(self) -> int:
        """How many follow now."""
        return self._shelf.followers

    def forget(self) -> None:
        """Keep no encoded frame: bodies of entries were rewritten."""
        self._shelf.clear()

    async def follow(
        self, *, after: int, wanted: Filter = EVERYTHING, bookmark_s: float
    ) -> AsyncGenerator[bytes, None]:
        """Yield encoded frames for ever; the caller has checked the position.

        Args:
            wanted: what is sent.
            bookmark_s: longest silence.

        Raises:
            Unavailable: DRAINING, the process ends; follow another one from the last `through`.
            FailedPrecondition: LOG_REWOUND.
            OutOfRange: COMPACTED, observations after the position have left the log.
            ResourceExhausted: OVERLOADED, too many follow this process.
        """
        if self.followers >= MAX_FOLLOWERS:
            raise ResourceExhausted(
                f"{self.followers} streams follow this server already; try another one, or later.", retry_after_s=5.0
            )
        self._shelf.followers += 1
        try:
            async for data in self._steps(after, wanted, bookmark_s):
                yield data
        finally:
            self._shelf.followers -= 1

    async def _steps(self, through: int, wanted: Filter, bookmark_s: float) -> AsyncGenerator[bytes, None]:
        view, shelf = self._view, self._shelf
        incarnation = view.incarnation
        clock = asyncio.get_running_loop().time
        sent_s = clock()
        while True:
            self._check(incarnation, through)
            left_s = sent_s + bookmark_s - clock()
            if view.head <= through:
                if left_s > 0:
                    await view.wait_beyond(through, left_s)
                    continue
                yield shelf.bookmark(through)
                sent_s = clock()
                continue
            stepped_s = clock()
            step = await shelf.after(through, wanted)
            through = step.through
            if step.data is not None:
                yield step.data
                sent_s = clock()
            elif left_s <= 0:
                # What does not pass is told by a bookmark, and those only now and then.
                yield shelf.bookmark(through)
                sent_s = clock()
            if view.head <= through:
                await self._pause(stepped_s)

    async def _pause(self, stepped_s: float) -> None:
        """Leave a gap between the steps of a follower at the head, so that many of them stay affordable."""
        gap_s = min(_LONGEST_GAP_S, self.followers / _STEPS_PER_S)
        left_s = stepped_s + gap_s - asyncio.get_running_loop().time()
        if left_s > 0.0005 and not self._view.closed:
            await asyncio.sleep(left_s)

    def _check(self, incarnation: str, through: int) -> None:
        view = self._view
        view.check_position(incarnation, 0)
        if view.head < through:
            raise FailedPrecondition(
                "The log was restored to an earlier point; start again from a snapshot.",
                reason=Reason.LOG_REWOUND,
                metadata={"incarnation": view.incarnation},
            )
        if view.closed:
            raise Unavailable(
                "This server drains; follow again from the last position.",
                reason=Reason.DRAINING,
                metadata={"offset": str(through), "incarnation": incarnation},
                retry_after_s=0.1,
            )
