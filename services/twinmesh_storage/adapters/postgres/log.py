"""The log in PostgreSQL: lease, group commit and replay detection in one transaction each.

All appends of this process go through one connection of its own, the *commit line*: its backend is also what tells
other processes that the lease holder lives. Offsets are therefore given and become visible one group after another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from twinmesh_core.errors import Reason, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_core.time import from_datetime
from twinmesh_runtime.postgres import Pool, connection, deadline
from twinmesh_storage.adapters.postgres import log_sql as sql
from twinmesh_storage.adapters.postgres.commits import Closing, Connection, Decided, Found, look
from twinmesh_storage.adapters.postgres.copying import (
    bytea_head,
    copy_rows,
    int2,
    int8,
    row_head,
    text,
    timestamptz,
)
from twinmesh_storage.adapters.postgres.log_rows import (
    answers,
    log_columns,
    log_pieces,
    new_entries,
    quarantine_moves,
)
from twinmesh_storage.domain.admission import (
    Accept,
    Verdict,
    admit,
    taken_over,
)
from twinmesh_storage.domain.entries import (
    EntryKind,
    Lease,
    LogEntry,
    NewEntry,
    Position,
    ProducerSession,
)
from twinmesh_storage.domain.packing import Packer
from twinmesh_storage.domain.ports import ContentRefused, GroupOutcome, LeaseLost, LogPage, OutcomeUnknown

_PAGE_ENTRIES: Final = 2_000
_SMALL_BYTES: Final = 64 << 10
"""Groups up to this weight are written by INSERT, within the round trip that commits them; larger ones by COPY."""
_OF_CONTENT: Final = ("22", "23", "54")
"""SQLSTATE classes that a row's values cause: data exception, integrity violation, program limit."""


class PostgresLog:
    """`LogStore` on PostgreSQL.

    Args:
        pool: for everything but the commits.
        url: where the commit line connects.
        schema: first on its search path.
        lease_s: seconds after which a lease that nobody renewed may be taken even though its backend lives.
        request_keep_s: seconds that the request id of a unary write is remembered.
        timeout_s: bound of each call.
        address: where other processes reach this one, told in the lease.
    """

    def __init__(
        self,
        *,
        pool: Pool,
        url: str,
        schema: str,
        lease_s: float,
        request_keep_s: float,
        timeout_s: float,
        address: str = "",
    ) -> None:
        self._pool = pool
        self._conninfo = make_conninfo(
            url,
            application_name="twinmesh-sequencer",
            connect_timeout=5,
            options=f"-c search_path={schema} -c synchronous_commit=on -c idle_in_transaction_session_timeout=60000",
        )
        self._lease_s = lease_s
        self._request_keep_s = request_keep_s
        self._timeout_s = timeout_s
        self._address = address
        self._packer = Packer()
        self._line: Connection | None = None

    async def close(self) -> None:
        """Close the commit line."""
        line, self._line = self._line, None
        if line is not None:
            await line.close()

    # --- lease ---

    async def acquire(self, holder: str) -> Lease | None:
        """See `LogStore.acquire`."""
        line = await self._open_line()
        try:
            async with deadline(line, self._timeout_s):
                looked = await (await line.execute(sql.LEASE, {"holder": holder})).fetchone()
                if looked is None or not looked[1]:
                    return None
                row = await self._take_lease(line, before=looked[0], holder=holder)
        except TwinmeshError:
            await self.close()
            raise
        return None if row is None else Lease(holder=holder, epoch=row[0])

    async def _take_lease(self, line: Connection, *, before: str, holder: str) -> tuple[Any, ...] | None:
        """Take the lease from who had it before; afterwards no transaction of theirs is open."""
        arguments = {"holder": holder, "address": self._address, "lease_s": self._lease_s}
        if before == holder:
            return await (await line.execute(sql.ACQUIRE, arguments)).fetchone()
        with suppress(psycopg.errors.InsufficientPrivilege):  # another role's: their locks are waited for
            await line.execute(sql.END_SESSIONS, {"holder": before, "tag": before.rpartition("/")[2]})
        async with line.transaction():
            await line.execute(sql.LOCK_PARTITION)
            return await (await line.execute(sql.ACQUIRE, arguments)).fetchone()

    async def renew(self, lease: Lease) -> bool:
        """See `LogStore.renew`."""
        line = self._line
        if line is None:
            return False
        try:
            async with deadline(line, self._timeout_s):
                cursor = await line.execute(sql.RENEW, {"epoch": lease.epoch, "lease_s": self._lease_s})
        except TwinmeshError:
            await self.close()
            raise
        return cursor.rowcount == 1

    async def _open_line(self) -> Connection:
        if self._line is not None and not self._line.closed:
            return self._line
        try:
            self._line = await AsyncConnection.connect(self._conninfo, autocommit=True)
        except psycopg.OperationalError as error:
            raise Unavailable("The database cannot be reached; try again.", retry_after_s=1.0) from error
        return self._line

    # --- append ---

    async def commit(self, lease: Lease, head: int, group_id: str, group: Sequence[NewEntry]) -> GroupOutcome:
        """See `LogStore.commit`."""
        line = self._line
        if line is None:
            raise LeaseLost
        outcome: GroupOutcome | None = None  # known once COMMIT may have been sent
        try:
            if _is_small(group):
                async with deadline(line, self._timeout_s), line.pipeline():
                    decided = await self._insert(line, lease, head, group_id, group)
                    outcome = decided.outcome
                    await decided.closing.send(line)
            else:
                async with deadline(line, self._timeout_s):
                    decided = await self._copy(line, lease, head, group_id, group)
                outcome = decided.outcome
                async with deadline(line, self._timeout_s), line.pipeline():
                    await decided.closing.send(line)
        except LeaseLost:
            await self._roll_back(line)
            raise
        except psycopg.Error as error:
            await self._roll_back(line)
            raise _refused(error) from error
        except (Unavailable, ResourceExhausted) as error:
            await self.close()
            if outcome is None or _told(error):  # COMMIT was not sent, or not reached
                raise
            raise OutcomeUnknown(outcome) from error
        return outcome

    async def _insert(
        self, line: Connection, lease: Lease, head: int, group_id: str, group: Sequence[NewEntry]
    ) -> Decided:
        """Look and write in the pipeline that also commits: two round trips in all, where COPY makes it six."""
        decided = self._decide(await look(line, group), lease, head, group_id, group)
        if decided.outcome.entries:
            await line.execute(sql.INSERT_LOG, log_columns(group, decided.verdicts, decided.outcome.entries))
        return decided

    async def _copy(
        self, line: Connection, lease: Lease, head: int, group_id: str, group: Sequence[NewEntry]
    ) -> Decided:
        """Look and write by COPY, which no pipeline can hold; `Closing` is left."""
        async with line.pipeline():
            found = await look(line, group)
        decided = self._decide(found, lease, head, group_id, group)
        entries, verdicts = decided.outcome.entries, decided.verdicts
        if entries:
            await copy_rows(line, sql.COPY_LOG, log_pieces(group, verdicts, entries))
            await self._copy_quarantine(line, group, verdicts, entries)
            await self._change_quarantine(line, group, verdicts, entries)
        return decided

    def _decide(self, found: Found, lease: Lease, head: int, group_id: str, group: Sequence[NewEntry]) -> Decided:
        """Return what becomes of a group, by what is there; raises `LeaseLost` if the log is not as it was left."""
        fenced = found.fenced
        if fenced is None or fenced[0] != lease.epoch or fenced[1] != head:
            raise LeaseLost
        commit_time = from_datetime(fenced[2])
        verdicts = admit(group, found.producers, found.requests, found.quarantined)
        entries = new_entries(group, verdicts, head, commit_time)
        closing = Closing(
            lease=lease,
            lease_s=self._lease_s,
            keep_s=self._request_keep_s,
            group_id=group_id,
            head=head + len(entries),
            commit_time_unix_us=commit_time,
            accepted=tuple(
                (entry, entries[v.rank].offset)
                for entry, v in zip(group, verdicts, strict=True)
                if isinstance(v, Accept)
            ),
        )
        outcome = GroupOutcome(answers=answers(group, verdicts, entries), entries=entries)
        return Decided(outcome=outcome, verdicts=verdicts, closing=closing)

    async def _copy_quarantine(
        self, line: Connection, group: Sequence[NewEntry], verdicts: Sequence[Verdict], entries: Sequence[LogEntry]
    ) -> None:
        pieces = []
        for entry, verdict in zip(group, verdicts, strict=True):
            if not isinstance(verdict, Accept):
                continue
            at = entries[verdict.rank]
            for row in entry.quarantine:
                pieces.append(
                    row_head(len(sql.QUARANTINE_COLUMNS))
                    + text(entry.tenant)
                    + int8(at.offset)
                    + timestamptz(at.commit_time_unix_us)
                    + text(row.twin_id)
                    + text(row.channel)
                    + text(row.unit)
                    + int8(row.time_unix_us)
                    + bytea_head(len(row.value))
                    + row.value
                    + int2(row.quality)
                    + int2(row.reason)
                    + text(row.message)
                    + bytea_head(len(row.raw_value))
                    + row.raw_value
                )
        if pieces:
            await copy_rows(line, sql.COPY_QUARANTINE, pieces)

    async def _change_quarantine(
        self, line: Connection, group: Sequence[NewEntry], verdicts: Sequence[Verdict], entries: Sequence[LogEntry]
    ) -> None:
        for entry, verdict in zip(group, verdicts, strict=True):
            if entry.quarantine_change is None or not isinstance(verdict, Accept):
                continue
            for statement, arguments in quarantine_moves(
                entry.tenant, entry.quarantine_change, entries[verdict.rank].offset
            ):
                await line.execute(statement, arguments)

    async def _roll_back(self, line: Connection) -> None:
        try:
            async with deadline(line, self._timeout_s):
                await line.execute("rollback")
            # After a pipeline that failed, statements prepared later on this connection were found to be gone (26000);
            # one that prepares nothing more has none to miss.
            line.prepare_threshold = None
        except (TwinmeshError, psycopg.Error):
            await self.close()

    # --- everything else ---

    async def open_producer(self, tenant: str, producer_id: str, last_epoch: int = 0) -> ProducerSession:
        """See `LogStore.open_producer`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            cursor = await conn.execute(sql.OPEN_PRODUCER, (tenant, producer_id, last_epoch, last_epoch))
            row = await cursor.fetchone()
        if row is None:
            raise taken_over(producer_id, last_epoch)
        return ProducerSession(epoch=row[0], last_sequence=row[1])

    async def position(self) -> Position:
        """See `LogStore.position`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            row = await (await conn.execute(sql.POSITION)).fetchone()
        if row is None:
            raise Unavailable("The log is not there yet; try again.", retry_after_s=1.0)
        return Position(
            incarnation=str(row[0]),
            head=row[1],
            commit_time_unix_us=from_datetime(row[2]) if row[2] is not None else 0,
            last_group=str(row[3]) if row[3] is not None else "",
            fold_offset=row[4],
            lease_address=row[5],
        )

    async def read(
        self, after: int, through: int, *, tenant: str | None, kinds: Collection[EntryKind], max_bytes: int
    ) -> LogPage:
        """See `LogStore.read`."""
        statement = sql.read_statement(tenant is not None, frozenset(kinds))
        arguments = {
            "after": after,
            "through": through,
            "tenant": tenant,
            "entries": _PAGE_ENTRIES,
            "max_bytes": max_bytes,
        }
        async with connection(self._pool, timeout_s=self._timeout_s) as conn, conn.cursor(binary=True) as cursor:
            await cursor.execute(statement, arguments)
            rows = await cursor.fetchall()
            # After the page: whatever it lacks was trimmed under a mark that is visible by now.
            trimmed = await (await cursor.execute(sql.TRIM_OFFSET)).fetchone()
        entries = tuple(
            LogEntry(
                offset=row[0],
                tenant=row[1],
                kind=EntryKind(row[2]),
                commit_time_unix_us=from_datetime(row[3]),
                point_count=row[4],
                body=self._packer.unpack(row[5]),
            )
            for row in rows
        )
        cut = len(entries) >= _PAGE_ENTRIES or sum(len(row[5]) + sql.POINT_BYTES * row[4] for row in rows) >= max_bytes
        return LogPage(
            entries=entries,
            through=entries[-1].offset if cut else through,
            trim_offset=trimmed[0] if trimmed is not None else 0,
        )

    async def prune_requests(self) -> int:
        """See `LogStore.prune_requests`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            return (await conn.execute(sql.PRUNE_REQUESTS)).rowcount


def _is_small(group: Sequence[NewEntry]) -> bool:
    """Whether a group is so small that round trips cost more than rows, and only the log gets rows."""
    return sum(entry.weight for entry in group) <= _SMALL_BYTES and not any(
        entry.quarantine or entry.quarantine_change for entry in group
    )


def _told(error: TwinmeshError) -> bool:
    """Whether the server itself said that a statement failed, in a session that goes on: then nothing is committed."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and cause.diag.severity_nonlocalized == "ERROR"


def _refused(error: psycopg.Error) -> ContentRefused | Unavailable:
    """Tell content that cannot be stored from everything else that can be wrong, which no entry is to blame for."""
    if (error.sqlstate or "").startswith(_OF_CONTENT):
        return ContentRefused()
    return Unavailable(
        "The database refused to append; an operator must look at it.",
        reason=Reason.DEPENDENCY_UNAVAILABLE,
        metadata={"dependency": "postgres", "sqlstate": error.sqlstate or ""},
        retry_after_s=1.0,
    )
