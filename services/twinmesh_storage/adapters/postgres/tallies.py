"""What the log and quarantine held as of an offset, counted in PostgreSQL."""

from __future__ import annotations

from typing import Final

from twinmesh_core.errors import OutOfRange, Reason
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.domain.counting import LogTally

_TALLY: Final = """
select
    (select count(*) from log where tenant = %(tenant)s)
        + coalesce((select entry_count from trimmed where tenant = %(tenant)s), 0)
        - (select count(*) from log where tenant = %(tenant)s and log_offset > %(as_of)s),
    (select coalesce(sum(point_count), 0) from log where tenant = %(tenant)s)
        + coalesce((select point_count from trimmed where tenant = %(tenant)s), 0)
        - (select coalesce(sum(point_count), 0) from log where tenant = %(tenant)s and log_offset > %(as_of)s),
    (select count(*) from quarantine
     where tenant = %(tenant)s and log_offset <= %(as_of)s and (state = 1 or resolve_offset > %(as_of)s)
        and (%(twin)s = '' or twin_id = %(twin)s)),
    (select fold_offset from fold_state where partition_id = 0),
    (select trim_offset from trim_state where partition_id = 0)
"""


class PostgresTallies:
    """Implements `domain.counting.LogTallies` in the schema of the pool."""

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def as_of(self, tenant: str, twin_id: str, offset: int) -> LogTally:
        """See `LogTallies.as_of`; one statement, hence one snapshot."""
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            found = await (await conn.execute(_TALLY, {"tenant": tenant, "twin": twin_id, "as_of": offset})).fetchone()
        entries, landed, quarantined, fold, trim = found or (0, 0, 0, 0, 0)
        if offset < trim:
            raise OutOfRange(
                f"as_of_offset: entries up to {trim} have left the log and are counted together; "
                f"the earliest offset to count as of is {trim}.",
                reason=Reason.AS_OF_PRUNED,
                metadata={"floor_offset": str(trim)},
            )
        return LogTally(
            entry_count=int(entries),
            landed_point_count=int(landed),
            quarantined_count=int(quarantined),
            fold_offset=int(fold),
            trim_offset=int(trim),
        )
