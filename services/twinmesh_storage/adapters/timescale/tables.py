"""The hypertables: which series lies where, how they are made, and what the database can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.sql import SQL, Composed, Identifier, Literal

from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.adapters.timescale.sql import WITH_EXTENSION
from twinmesh_storage.domain.partitions import WIDTHS, width_of
from twinmesh_storage.domain.rows import Lane
from twinmesh_storage.domain.series import Series

Connection = AsyncConnection[Any]

BLOCKS, HYPERTABLE = "blocks", "hypertable"
OLDEST_TRUSTED: Final = (2, 29, 2)
"""SkipScan over the columnstore dropped rows in releases before it, and direct compress by COPY is older than that."""
_CHUNK_DAYS: Final = {1: 1, 2: 7, 3: 28, 4: 2016}
"""Per width class: a series gives at least about 1,000 rows a chunk, which is one batch of the columnstore."""
_COMPRESS_AFTER_DAYS: Final = {1: 1, 2: 1, 3: 7, 4: 28}

_TURN: Final = "select pg_advisory_xact_lock(hashtextextended(current_schema() || '.observation', 0))"
_PROBE: Final = """
select e.extversion, coalesce(current_setting('timescaledb.license', true), '')
from pg_extension e where e.extname = 'timescaledb'
"""
_REMEMBER: Final = """
update fold_state set form = coalesce(form, case when fold_offset > 0 then 'blocks' else %s end)
where partition_id = 0 returning form
"""
_VALUE_COLUMNS: Final = {
    # A number is a double, or a whole number of a state or bool; the other column is null and takes no room.
    Lane.NUMERIC: SQL("value double precision, whole bigint"),
    Lane.TEXT: SQL("body bytea not null"),
}
_CREATE: Final = SQL("""
create table {table} (
    tenant text not null, series_id bigint not null, time timestamptz not null, {values},
    quality smallint not null, log_offset bigint not null)
""")
_HYPERTABLE: Final = SQL(
    "select create_hypertable({name}, by_range('time', interval {chunk}), create_default_indexes => false)"
)
_INDEX: Final = SQL("create index on {table} (tenant, series_id, time)")
_COLUMNSTORE: Final = SQL(
    "alter table {table} set (timescaledb.enable_columnstore, timescaledb.segmentby = 'tenant, series_id', "
    "timescaledb.orderby = 'time')"
)
# Of the same signature as the one over blocks that the migrations make, so the view over it stays.
_OBSERVATIONS: Final = SQL("""
create or replace function observations_between(start_time timestamptz, end_time timestamptz)
returns table (tenant text, twin_id text, channel text, unit text, "time" timestamptz, value double precision,
               "text" text, quality text, log_offset bigint)
language sql stable parallel safe
begin atomic
    select o.tenant, s.twin_id, s.channel, s.unit, o.time, o.value, o.text,
           (array['GOOD', 'UNCERTAIN', 'BAD'])[o.quality], o.log_offset
    from series s join ({tables}) o on o.tenant = s.tenant and o.series_id = s.series_id
    where o.time >= start_time and o.time < end_time;
end
""")
_OF_LANE: Final = {
    Lane.NUMERIC: SQL(
        "select tenant, series_id, time, coalesce(value, whole::double precision) as value, null::text as text, "
        "quality, log_offset from {}"
    ),
    Lane.TEXT: SQL(
        "select tenant, series_id, time, null::double precision as value, convert_from(body, 'UTF8') as text, "
        "quality, log_offset from {}"
    ),
}
_POLICY: Final = SQL("call add_columnstore_policy({name}, after => interval {after}, if_not_exists => true)")


@dataclass(frozen=True, slots=True)
class Table:
    """One hypertable: a width class of one lane."""

    lane: Lane
    width: int

    @property
    def name(self) -> str:
        """Its name in the service's schema."""
        return f"observation_{self.lane.name.lower()}_{self.width}"

    @property
    def identifier(self) -> Identifier:
        """The name as part of a statement."""
        return Identifier(self.name)


TABLES: Final = tuple(Table(lane, width.number) for lane in Lane for width in WIDTHS)


def table_of(series: Series) -> Table:
    """Return the hypertable that holds a series."""
    return Table(Lane.of(series.kind), width_of(series.cell_us).number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What the database has of TimescaleDB."""

    version: str
    licence: str

    @property
    def has_columnstore(self) -> bool:
        """Whether the columnstore may be used: it is under the Timescale licence, not in the Apache build."""
        return self.licence == "timescale"

    @property
    def is_trusted(self) -> bool:
        """Whether reads of this release are known to be right."""
        numbers = tuple(int(n) for n in self.version.split("-")[0].split(".")[:3] if n.isdigit())
        return numbers >= OLDEST_TRUSTED


async def probe(pool: Pool, timeout_s: float) -> Extension | None:
    """Return what the database has; None = nothing."""
    async with connection(pool, timeout_s=timeout_s) as conn:
        row = await (await conn.execute(_PROBE)).fetchone()
    return None if row is None else Extension(version=row[0], licence=row[1])


async def choose_form(pool: Pool, wanted: str, extension: Extension | None, timeout_s: float) -> str:
    """Return the form of this history: what it has been since its first row, else what is wanted and possible.

    Args:
        wanted: "auto", "blocks" or "hypertable".

    Raises:
        FailedPrecondition: the wanted form is not possible here, or history has another one already.
    """
    possible = extension is not None and extension.has_columnstore
    if wanted == HYPERTABLE and not possible:
        raise FailedPrecondition(
            "history_form: hypertable needs the TimescaleDB extension with its Timescale licence in this database; "
            "create it there, or choose blocks.",
            reason=Reason.DEPENDENCY_UNAVAILABLE,
        )
    first = wanted
    if wanted == "auto":
        first = HYPERTABLE if extension is not None and possible and extension.is_trusted else BLOCKS
    async with connection(pool, timeout_s=timeout_s) as conn:
        row = await (await conn.execute(_REMEMBER, (first,))).fetchone()
        form = str(row[0]) if row else first
        if wanted not in ("auto", form) or (form == HYPERTABLE and not possible):
            raise FailedPrecondition(
                f"history_form: this history is kept as {form}, which is never changed in place; choose {form}, "
                "or begin in another schema.",
                reason=Reason.DEPENDENCY_UNAVAILABLE,
            )
    return form


async def create_tables(pool: Pool, timeout_s: float) -> None:
    """Create what is missing of the hypertables, their columnstore settings and policies."""
    async with connection(pool, timeout_s=timeout_s) as conn:
        await conn.execute(_TURN)
        await conn.execute(WITH_EXTENSION)
        for table in TABLES:
            found = await (await conn.execute("select to_regclass(%s)", (table.name,))).fetchone()
            if found is not None and found[0] is None:
                for statement in _statements(table):
                    await conn.execute(statement)
        tables = SQL(" union all ").join(_OF_LANE[table.lane].format(table.identifier) for table in TABLES)
        await conn.execute(_OBSERVATIONS.format(tables=tables))


def _statements(table: Table) -> list[Composed]:
    name, days = Identifier(table.name), _CHUNK_DAYS[table.width]
    return [
        _CREATE.format(table=name, values=_VALUE_COLUMNS[table.lane]),
        _HYPERTABLE.format(name=Literal(table.name), chunk=Literal(f"{days} days")),
        _INDEX.format(table=name),
        _COLUMNSTORE.format(table=name),
        _POLICY.format(name=Literal(table.name), after=Literal(f"{_COMPRESS_AFTER_DAYS[table.width]} days")),
    ]
