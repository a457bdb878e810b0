"""The law of reads as of an offset, over the real store: histories drawn at random, folded at random moments."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from hypothesis import HealthCheck, given, settings
from tests.unit.storage.test_storage_as_of import SERIES, Delete, FoldNow, Write, histories, run

from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_storage.adapters.postgres.blocks import BlockHistory


async def over_postgres(url: str, steps: list[Write | Delete | FoldNow]) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(url, min_size=1, max_size=2, schema="storage"))
        async with pool.connection() as conn:
            await conn.execute("truncate block, superseded")
            await conn.execute("update fold_state set fold_offset = 0, superseded_floor = 0")
        store = BlockHistory(pool=pool, timeout_s=5, series_of=lambda series_id: SERIES[series_id - 1])
        await run(steps, store, 0)


def test_a_read_as_of_every_offset_is_the_replay_up_to_there(database_url: str) -> None:
    asyncio.run(migrate(database_url, "storage", "twinmesh_storage"))

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(histories)
    def law(steps: list[Write | Delete | FoldNow]) -> None:
        asyncio.run(over_postgres(database_url, steps))

    law()
