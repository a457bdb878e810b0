"""Erasing a twin: a job that removes its values from everywhere storage keeps them, and looks whether they are gone.

It begins with an entry in the log that hides every observation of the twin; from there on no read shows them. What
follows removes them from where they lie: history and superseded rows, bodies of the log, quarantine, receipts, cache.
Offsets, hashes and high-water marks stay, so a replay of an old batch is a duplicate as ever. Observations that arrive
after the entry are a new beginning and are left alone.

The row of the job is written before anything else and after each step, and every step can be repeated. So after a kill
at any point whoever leads goes on from the last step noted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from twinmesh_storage.domain.entries import LogEntry
from twinmesh_storage.domain.series import Series


class Step(IntEnum):
    """What an erasure does next; numbers are stored."""

    HIDE = 1
    FOLD = 2
    HISTORY = 3
    LOG = 4
    ROWS = 5
    CACHE = 6
    VERIFY = 7
    DONE = 8


class ErasureState(IntEnum):
    """Numbers equal ``twinmesh.storage.v1.ErasureState``."""

    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One erasure.

    Attributes:
        erasure_id: unique within the tenant.
        principal: who asked for it.
        step: what is to be done next.
        offset: of the entry that hid the observations; 0 = not written yet.
        done_offset: in LOG and VERIFY: the log is dealt with up to here.
        rounds: how often it began again because values were still there.
        entries_rewritten: entries of the log whose body was changed.
        rows_erased: superseded rows removed.
        scrubbed: quarantined rows and receipts emptied.
        message: why it failed; "" otherwise.
        end_time_unix_us: 0 while it runs.
    """

    tenant: str
    erasure_id: str
    twin_id: str
    principal: str
    content_hash: bytes
    create_time_unix_us: int
    state: ErasureState = ErasureState.RUNNING
    step: Step = Step.HIDE
    offset: int = 0
    done_offset: int = 0
    rounds: int = 0
    entries_rewritten: int = 0
    rows_erased: int = 0
    scrubbed: int = 0
    message: str = ""
    end_time_unix_us: int = 0


class ErasureStore(Protocol):
    """The jobs, and what only an erasure does to the tables."""

    async def create(self, erasure: Erasure) -> tuple[Erasure, bool]:
        """Keep a new erasure, or return the one of this id that is there; the flag says whether it was there."""
        ...

    async def get(self, tenant: str, erasure_id: str) -> Erasure | None:
        """Return an erasure."""
        ...

    async def page(self, tenant: str, twin_id: str, after: str, limit: int) -> list[Erasure]:
        """Return erasures of a twin ("" = of all) with ids after `after`, in the order of ids."""
        ...

    async def running(self) -> list[Erasure]:
        """Return the erasures of all tenants that are not over, the oldest first."""
        ...

    async def save(self, erasure: Erasure) -> None:
        """Keep how far an erasure is; one that is over does not change any more."""
        ...

    async def rewrite(self, tenant: str, bodies: Sequence[tuple[int, bytes]]) -> None:
        """Replace the bodies of entries, each given as (offset, body); all in one transaction, with their receipts.

        Their offsets, hashes and counts stay; the receipts given with them are emptied.
        """
        ...

    async def quarantined(self, tenant: str, twin_id: str) -> bool:
        """Whether rows of a twin are or were in quarantine."""
        ...

    async def scrub(self, tenant: str, twin_id: str, through: int) -> int:
        """Empty values and messages of the twin's quarantined rows and receipts of entries up to an offset."""
        ...

    async def unscrubbed(self, tenant: str, twin_id: str, through: int) -> int:
        """Return how many rows `scrub` would change."""
        ...


class ErasableHistory(Protocol):
    """History as an erasure needs it."""

    async def erase(self, tenant: str, series: Sequence[Series], before_offset: int) -> int:
        """Forget the superseded rows of these series with a lower offset; returns how many."""
        ...

    async def remaining(self, tenant: str, series: Sequence[Series], before_offset: int) -> int:
        """Return how many rows of these series with a lower offset are kept, superseded ones included."""
        ...


Redact = Callable[[LogEntry, str, frozenset[int]], bytes | None]
"""Returns an entry's body without what concerns a twin and its series (ids); None = it holds nothing of it."""

HideTwin = Callable[[Erasure, Sequence[Series]], Awaitable[int]]
"""Appends the entry that hides a twin's observations, and returns its offset; repeated, that of the first time."""
