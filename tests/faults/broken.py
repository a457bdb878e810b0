"""Broken builds of storage: ``python -m tests.faults.broken NAME``. Each breaks one promise; the judge must see it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from twinmesh_runtime.service import run
from twinmesh_storage.adapters.postgres import log_sql
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.domain.entries import Appended, Lease, NewEntry
from twinmesh_storage.domain.folding import FoldResult, FoldWork
from twinmesh_storage.domain.sequencer import Sequencer
from twinmesh_storage.main import compose
from twinmesh_storage.settings import StorageSettings

_LATE_S: Final = 0.15


def no_dedup() -> None:
    """Recognise nothing that comes again."""
    append = Sequencer.append

    async def forgetful(self: Sequencer, entry: NewEntry) -> Appended:
        return await append(self, replace(entry, producer=None, request_id=""))

    _replace(Sequencer, "append", forgetful)


def ack_before_commit() -> None:
    """Acknowledge at once and commit a moment later."""
    append = Sequencer.append
    late: set[asyncio.Task[None]] = set()
    given = 0

    async def commit(sequencer: Sequencer, entry: NewEntry) -> None:
        await asyncio.sleep(_LATE_S)
        await append(sequencer, entry)

    async def hasty(self: Sequencer, entry: NewEntry) -> Appended:
        nonlocal given
        given = max(given, self._view.head) + 1
        task = asyncio.create_task(commit(self, entry))
        late.add(task)
        task.add_done_callback(late.discard)
        return Appended(offset=given, commit_time_unix_us=time.time_ns() // 1_000, receipt=entry.receipt)

    _replace(Sequencer, "append", hasty)


def lossy_fold() -> None:
    """Drop the last row of every fold."""
    fold = BlockHistory.fold

    async def lossy(self: BlockHistory, lease: Lease, work: FoldWork) -> FoldResult:
        cut = {lane: rows.take(slice(0, -1)) for lane, rows in work.fresh.items() if len(rows) > 1}
        return await fold(self, lease, replace(work, fresh=cut))

    _replace(BlockHistory, "fold", lossy)


def no_fence() -> None:
    """Let every session of a producer write, however old."""
    fenced = "set epoch = producer.epoch + 1"
    assert fenced in log_sql.OPEN_PRODUCER
    _replace(log_sql, "OPEN_PRODUCER", log_sql.OPEN_PRODUCER.replace(fenced, "set epoch = producer.epoch"))


def lazy_disk() -> None:
    """Let PostgreSQL acknowledge commits that are not on disk."""
    from twinmesh_storage.adapters.postgres import log

    conninfo = getattr(log, "make_conninfo")  # noqa: B009 -- an import of that module, which is none of its exports

    def lazy(url: str, **settings: Any) -> str:
        settings["options"] = settings["options"].replace("synchronous_commit=on", "synchronous_commit=off")
        assert "synchronous_commit=off" in settings["options"]
        return conninfo(url, **settings)

    _replace(log, "make_conninfo", lazy)


BUILDS: Final[dict[str, Callable[[], None]]] = {
    build.__name__: build for build in (no_dedup, ack_before_commit, lossy_fold, no_fence, lazy_disk)
}


def _replace(owner: Any, name: str, broken: Any) -> None:
    assert hasattr(owner, name), f"{name} has moved, and the canary with it"
    setattr(owner, name, broken)


if __name__ == "__main__":
    BUILDS[sys.argv.pop(1)]()
    run("storage", StorageSettings, compose)
