"""Which form history has in this database, and the store for it."""

from __future__ import annotations

from twinmesh_runtime.postgres import Pool
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.adapters.timescale.history import TimescaleHistory
from twinmesh_storage.adapters.timescale.tables import HYPERTABLE, choose_form, create_tables, probe
from twinmesh_storage.domain.blocks import SeriesOf
from twinmesh_storage.domain.ports import HistoryStore
from twinmesh_storage.domain.sequencer import Report


async def open_history(
    pool: Pool, *, wanted: str, timeout_s: float, series_of: SeriesOf, report: Report
) -> HistoryStore:
    """Probe the database, choose the form as `choose_form` says, create what it needs, and return its store.

    Raises:
        FailedPrecondition: the wanted form is not possible, or history has another one already.
    """
    extension = await probe(pool, timeout_s)
    form = await choose_form(pool, wanted, extension, timeout_s)
    report(
        "history_form",
        form=form,
        timescaledb=extension.version if extension else "",
        licence=extension.licence if extension else "",
        trusted=extension.is_trusted if extension else None,
    )
    if form == HYPERTABLE:
        await create_tables(pool, 10 * timeout_s)
        return TimescaleHistory(pool=pool, timeout_s=timeout_s, series_of=series_of)
    return BlockHistory(pool=pool, timeout_s=timeout_s, series_of=series_of)
