"""What one commit of a group of entries finds, decides and sends: the steps of `PostgresLog.commit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from twinmesh_core.time import to_datetime
from twinmesh_storage.adapters.postgres import log_sql as sql
from twinmesh_storage.adapters.postgres.log_rows import (
    producer_moves,
    producer_states,
    request_columns,
    request_states,
)
from twinmesh_storage.domain.admission import Key, ProducerState, RequestState, RowKey, Verdict
from twinmesh_storage.domain.entries import Lease, NewEntry
from twinmesh_storage.domain.ports import GroupOutcome

Connection = AsyncConnection[tuple[Any, ...]]


class Closing:
    """The last statements of a group: producers, requests and head move, and the transaction commits."""

    def __init__(
        self,
        *,
        lease: Lease,
        lease_s: float,
        keep_s: float,
        group_id: str,
        head: int,
        commit_time_unix_us: int,
        accepted: tuple[tuple[NewEntry, int], ...],
    ) -> None:
        self._move = {
            "epoch": lease.epoch,
            "lease_s": lease_s,
            "group_id": group_id,
            "head": head,
            "moved": bool(accepted),
            "commit_time": to_datetime(commit_time_unix_us),
        }
        self._producers = producer_moves(accepted, commit_time_unix_us)
        self._requests = request_columns(accepted, commit_time_unix_us, keep_s)

    async def send(self, line: Connection) -> None:
        """Send it all into the pipeline that is open."""
        if self._producers is not None:
            await line.execute(sql.MOVE_PRODUCERS, self._producers)
        if self._requests is not None:
            await line.execute(sql.INSERT_REQUESTS, self._requests)
        await line.execute(sql.MOVE_HEAD, self._move)
        await line.execute("commit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a group meets: the partition's state, its producers and requests, and rows in quarantine that it changes."""

    fenced: tuple[Any, ...] | None
    producers: dict[Key, ProducerState]
    requests: dict[Key, RequestState]
    quarantined: list[RowKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What becomes of a group, and the statements that end it."""

    outcome: GroupOutcome
    verdicts: Sequence[Verdict]
    closing: Closing


async def look(line: Connection, group: Sequence[NewEntry]) -> Found:
    """Begin the transaction, lock and read what decides about a group; in the pipeline that is open."""
    stamped = sorted({(e.tenant, e.producer.producer_id) for e in group if e.producer is not None})
    named = sorted({(e.tenant, e.request_id) for e in group if e.request_id})
    changed = sorted({(e.tenant, i) for e in group if e.quarantine_change for i in e.quarantine_change.ids()})
    await line.execute("begin")
    fence = await line.execute(sql.FENCE)
    producer_rows = await _fetch_keyed(line, sql.LOCK_PRODUCERS, stamped)
    request_rows = await _fetch_keyed(line, sql.READ_REQUESTS, named)
    quarantined_rows = await _fetch_keyed(line, sql.LOCK_QUARANTINE, changed)
    return Found(
        fenced=await fence.fetchone(),
        producers=producer_states(await producer_rows.fetchall() if producer_rows else []),
        requests=request_states(await request_rows.fetchall() if request_rows else []),
        quarantined=await quarantined_rows.fetchall() if quarantined_rows else [],
    )


async def _fetch_keyed(line: Connection, statement: str, keys: Sequence[Key] | Sequence[RowKey]) -> Any:
    if not keys:
        return None
    return await line.execute(statement, ([k[0] for k in keys], [k[1] for k in keys]), binary=True)
