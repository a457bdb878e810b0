"""Erasures of twins in PostgreSQL: the jobs, and what they change in the log's tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from twinmesh_core.errors import InvalidArgument, Reason
from twinmesh_core.time import from_datetime, to_datetime
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.domain.erasure import Erasure, ErasureState, Step
from twinmesh_storage.domain.packing import Packer

_COLUMNS: Final = (
    "tenant, erasure_id, twin_id, principal, content_hash, create_time, state, step, log_offset, done_offset, rounds, "
    "entries_rewritten, rows_erased, scrubbed, message, end_time"
)
_CREATE: Final = f"""
insert into erasure ({_COLUMNS})
values (%(tenant)s, %(erasure_id)s, %(twin_id)s, %(principal)s, %(content_hash)s, %(create_time)s, 1, 1, 0, 0, 0,
        0, 0, 0, '', null)
on conflict (tenant, erasure_id) do nothing
"""  # noqa: S608 -- constants of this module
_GET: Final = f"select {_COLUMNS} from erasure where tenant = %s and erasure_id = %s"  # noqa: S608 -- likewise
_PAGE: Final = f"""
select {_COLUMNS} from erasure
where tenant = %(tenant)s and (%(twin)s = '' or twin_id = %(twin)s) and erasure_id > %(after)s
order by erasure_id limit %(limit)s
"""  # noqa: S608 -- likewise
_RUNNING: Final = f"select {_COLUMNS} from erasure where state = 1 order by create_time"  # noqa: S608 -- likewise
_SAVE: Final = """
update erasure set
    state = %(state)s, step = %(step)s, log_offset = %(log_offset)s, done_offset = %(done_offset)s,
    rounds = %(rounds)s, entries_rewritten = %(entries_rewritten)s, rows_erased = %(rows_erased)s,
    scrubbed = %(scrubbed)s, message = %(message)s, end_time = %(end_time)s
where tenant = %(tenant)s and erasure_id = %(erasure_id)s and state = 1
"""
_ASIDE: Final = "select from quarantine where tenant = %s and twin_id = %s limit 1"

_REWRITE: Final = """
update log l set body = v.body from unnest(%(offset)s::bigint[], %(body)b::bytea[]) as v (log_offset, body)
where l.tenant = %(tenant)s and l.log_offset = v.log_offset
"""
_EMPTY_RECEIPTS: Final = (
    "update request set receipt = '' where tenant = %(tenant)s and log_offset = any(%(offset)s) and receipt <> ''",
    "update producer set last_receipt = ''"
    " where tenant = %(tenant)s and last_offset = any(%(offset)s) and last_receipt <> ''",
)

# A receipt may name the twin. Where the body it came with has left the log, nobody can tell: it is emptied as well.
_RECEIPT_OF_TWIN: Final = """
(position(convert_to(%(twin)s, 'UTF8') in {receipt}) > 0
 or {offset} <= (select trim_offset from trim_state where partition_id = 0)
 or {offset} in (select log_offset from quarantine where tenant = %(tenant)s and twin_id = %(twin)s))
"""
_REQUESTS: Final = "tenant = %(tenant)s and log_offset <= %(through)s and receipt <> '' and " + _RECEIPT_OF_TWIN.format(
    receipt="receipt", offset="log_offset"
)
_PRODUCERS: Final = (
    "tenant = %(tenant)s and last_offset <= %(through)s and last_receipt <> '' and "
    + _RECEIPT_OF_TWIN.format(receipt="last_receipt", offset="last_offset")
)
# Open rows are discarded: what is left of them could not be replayed.
_QUARANTINED: Final = """
tenant = %(tenant)s and twin_id = %(twin)s and log_offset <= %(through)s
and (value <> '' or raw_value <> '' or message <> '' or comment <> '' or state = 1)
"""
_SCRUB: Final = (
    f"update quarantine set value = '', raw_value = '', message = '', comment = '', "  # noqa: S608 -- likewise
    f"state = case when state = 1 then 3 else state end where {_QUARANTINED}",
    f"update request set receipt = '' where {_REQUESTS}",  # noqa: S608 -- likewise
    f"update producer set last_receipt = '' where {_PRODUCERS}",  # noqa: S608 -- likewise
)
_UNSCRUBBED: Final = f"""
select (select count(*) from quarantine where {_QUARANTINED})
    + (select count(*) from request where {_REQUESTS}) + (select count(*) from producer where {_PRODUCERS})
"""  # noqa: S608 -- likewise


class PostgresErasures:
    """`ErasureStore` on PostgreSQL.

    Args:
        timeout_s: bound of a call; those that change the log's tables may take ten times as long.
    """

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._packer = Packer()

    async def create(self, erasure: Erasure) -> tuple[Erasure, bool]:
        """See `ErasureStore.create`.

        Raises:
            InvalidArgument: REQUEST_ID_REUSED, the erasure of this id is of other content.
        """
        arguments = {
            "tenant": erasure.tenant,
            "erasure_id": erasure.erasure_id,
            "twin_id": erasure.twin_id,
            "principal": erasure.principal,
            "content_hash": erasure.content_hash,
            "create_time": to_datetime(erasure.create_time_unix_us),
        }
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            created = await conn.execute(_CREATE, arguments)
            row = await (await conn.execute(_GET, (erasure.tenant, erasure.erasure_id))).fetchone()
        if row is None:
            raise AssertionError("an erasure that was just made is not there")
        kept = _erasure(row)
        if kept.content_hash != erasure.content_hash:
            raise InvalidArgument(
                "This request_id was used before with other content; choose a new one for new content.",
                reason=Reason.REQUEST_ID_REUSED,
            )
        return kept, created.rowcount == 0

    async def get(self, tenant: str, erasure_id: str) -> Erasure | None:
        """See `ErasureStore.get`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            row = await (await conn.execute(_GET, (tenant, erasure_id))).fetchone()
        return None if row is None else _erasure(row)

    async def page(self, tenant: str, twin_id: str, after: str, limit: int) -> list[Erasure]:
        """See `ErasureStore.page`."""
        return await self._list(_PAGE, {"tenant": tenant, "twin": twin_id, "after": after, "limit": limit})

    async def running(self) -> list[Erasure]:
        """See `ErasureStore.running`."""
        return await self._list(_RUNNING, {})

    async def _list(self, statement: str, arguments: dict[str, Any]) -> list[Erasure]:
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            return [_erasure(row) for row in await (await conn.execute(statement, arguments)).fetchall()]

    async def save(self, erasure: Erasure) -> None:
        """See `ErasureStore.save`."""
        arguments = {
            "tenant": erasure.tenant,
            "erasure_id": erasure.erasure_id,
            "state": int(erasure.state),
            "step": int(erasure.step),
            "log_offset": erasure.offset,
            "done_offset": erasure.done_offset,
            "rounds": erasure.rounds,
            "entries_rewritten": erasure.entries_rewritten,
            "rows_erased": erasure.rows_erased,
            "scrubbed": erasure.scrubbed,
            "message": erasure.message,
            "end_time": to_datetime(erasure.end_time_unix_us) if erasure.end_time_unix_us else None,
        }
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute(_SAVE, arguments)

    async def rewrite(self, tenant: str, bodies: Sequence[tuple[int, bytes]]) -> None:
        """See `ErasureStore.rewrite`."""
        arguments = {
            "tenant": tenant,
            "offset": [offset for offset, _ in bodies],
            "body": [self._packer.pack(body) for _, body in bodies],
        }
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await conn.execute(_REWRITE, arguments)
            for statement in _EMPTY_RECEIPTS:
                await conn.execute(statement, {"tenant": tenant, "offset": arguments["offset"]})

    async def quarantined(self, tenant: str, twin_id: str) -> bool:
        """See `ErasureStore.quarantined`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            return await (await conn.execute(_ASIDE, (tenant, twin_id))).fetchone() is not None

    async def scrub(self, tenant: str, twin_id: str, through: int) -> int:
        """See `ErasureStore.scrub`."""
        arguments = {"tenant": tenant, "twin": twin_id, "through": through}
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            return sum([(await conn.execute(statement, arguments)).rowcount for statement in _SCRUB])

    async def unscrubbed(self, tenant: str, twin_id: str, through: int) -> int:
        """See `ErasureStore.unscrubbed`."""
        arguments = {"tenant": tenant, "twin": twin_id, "through": through}
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            row = await (await conn.execute(_UNSCRUBBED, arguments)).fetchone()
        return int(row[0]) if row is not None else 0


def _erasure(row: tuple[Any, ...]) -> Erasure:
    return Erasure(
        tenant=row[0],
        erasure_id=row[1],
        twin_id=row[2],
        principal=row[3],
        content_hash=bytes(row[4]),
        create_time_unix_us=from_datetime(row[5]),
        state=ErasureState(row[6]),
        step=Step(row[7]),
        offset=row[8],
        done_offset=row[9],
        rounds=row[10],
        entries_rewritten=row[11],
        rows_erased=row[12],
        scrubbed=row[13],
        message=row[14],
        end_time_unix_us=from_datetime(row[15]) if row[15] is not None else 0,
    )
