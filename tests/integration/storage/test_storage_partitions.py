"""Where blocks lie in PostgreSQL: partitions come with the data, go as tables, and two compactors do not collide."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from tests.contract.storage.history_world import HIGH, LOW, T0, S, block_world, stored, work

from twinmesh_core.kinds import ChannelKind
from twinmesh_runtime.postgres import open_pool
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.adapters.postgres.partitions import Partitions
from twinmesh_storage.domain.partitions import Partition
from twinmesh_storage.domain.ports import LeaseLost

DAY = 86_400 * S
pytestmark = pytest.mark.slow


def tables(url: str) -> dict[str, int]:
    """Return the rows of each partition of blocks that has a range."""
    with psycopg.connect(url, options="-c search_path=storage") as conn:
        names = conn.execute(
            "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid "
            "where c.relkind = 'r' and c.relname like 'block\\_%'"
        ).fetchall()
        return {name: conn.execute(f"select coalesce(sum(n), 0) from {name}").fetchone()[0] for (name,) in names}  # type: ignore[index]  # noqa: S608 -- names of the catalogue


async def test_partitions_follow_the_expected_interval(database_url: str) -> None:
    async with block_world(database_url) as world:
        for tenant, interval_us, n in (("khz", 1_000, 20_000), ("hz", S, 20_000), ("hours", 3600 * S, 87_600)):
            (series,) = await world.resolve(ChannelKind.GAUGE, tenant=tenant, interval_us=interval_us)
            offset = (await world.log.position()).fold_offset + 1
            await world.fold(offset, [(series, (T0 + i * interval_us, i % 97, 1, offset)) for i in range(n)])
            page = await world.store.read(tenant, [series], LOW, HIGH, 1_000_000)
            assert sum(part.n for part in page.parts) == n
            assert n / len(page.parts) > 1_000, tenant
        ranges = [name for name, rows in tables(database_url).items() if rows and name != "block_rest"]
        assert {name.split("_")[1] for name in ranges} == {"1", "2", "4"}
        assert len(ranges) <= 6


async def test_retention_of_all_series_drops_tables_and_late_rows_come_back(database_url: str) -> None:
    async with block_world(database_url) as world:
        one, two = await world.resolve(ChannelKind.GAUGE, ChannelKind.GAUGE)
        times = [T0 + day * DAY for day in range(0, 120, 2)]
        await world.fold(1, [(s, (t, 1, 1, 1)) for s in (one, two) for t in times])
        before = tables(database_url)
        limit = T0 + 60 * DAY
        assert await world.store.drop_before("default", [one], limit) == 30
        assert set(tables(database_url)) == set(before), "the other series still has rows there"
        assert await world.store.drop_before("default", [one, two], limit) == 30
        assert len(tables(database_url)) < len(before)
        late = (T0 + 2 * DAY, 7, 1, 2)
        await world.fold(2, [(one, late)])  # the store still believes in the partition that is gone
        left = [(t, 1, 1, 1) for t in times if t >= limit]
        assert await world.read(one, two) == [stored(one, late, *left), stored(two, *left)]


async def test_a_partition_that_is_being_read_is_emptied_instead_of_waited_for(database_url: str) -> None:
    async with block_world(database_url) as world:
        (one,) = await world.resolve(ChannelKind.GAUGE)
        await world.fold(1, [(one, (T0, 1, 1, 1))])
        async with await psycopg.AsyncConnection.connect(database_url) as reader:
            await reader.execute("select count(*) from storage.block")
            assert await world.store.drop_before("default", [one], T0 + 100 * DAY) == 1
            assert (await world.read(one))[0] == []
        assert await world.store.drop_before("default", [one], T0 + 100 * DAY) == 0
        assert set(tables(database_url)) == {"block_rest"}


async def test_beyond_the_most_partitions_blocks_are_kept_in_the_rest(database_url: str, monkeypatch: Any) -> None:
    async with block_world(database_url) as world:
        monkeypatch.setattr(world.store, "_partitions", Partitions(most=2))
        (one,) = await world.resolve(ChannelKind.GAUGE)
        rows = [(T0 + i * 40 * DAY, i, 1, 1) for i in range(6)]
        await world.fold(1, [(one, row) for row in rows])
        counts = tables(database_url)
        assert len(counts) == 3
        assert counts["block_rest"] == 4
        again = [(row[0], 9, 1, 2) for row in rows]
        assert (await world.fold(2, [(one, row) for row in again])).superseded == 6
        assert (await world.read(one))[0] == stored(one, *again)
        assert await world.store.drop_before("default", [one], T0 + 100 * DAY) == 3
        assert (await world.read(one))[0] == stored(one, *again[3:])


async def test_two_that_believe_to_lead_create_partitions_at_once_and_one_folds(database_url: str) -> None:
    async with block_world(database_url) as world:
        (one,) = await world.resolve(ChannelKind.GAUGE)
        rows = [(one, (T0 + i * 40 * DAY, i, 1, 1)) for i in range(12)]
        async with open_pool(database_url, min_size=1, max_size=2, schema="storage") as pool:
            rival = BlockHistory(pool=pool, timeout_s=5, series_of=world.catalogue.require)
            results = await asyncio.gather(
                world.store.fold(world.lease, work(1, rows)),
                rival.fold(world.lease, work(1, rows)),
                return_exceptions=True,
            )
            assert sorted(getattr(r, "repeated", "failed") for r in results) == [False, True]
            assert await world.log.acquire("me") is not None
            with pytest.raises(LeaseLost):
                await rival.fold(world.lease, work(2, [(one, (T0, 1, 1, 2))]))
        assert (await world.read(one))[0] == stored(one, *(row for _, row in rows))


async def test_blocks_from_before_there_were_partitions_are_read_merged_and_dropped(database_url: str) -> None:
    async with block_world(database_url) as world:
        (one,) = await world.resolve(ChannelKind.GAUGE)
        rows = [(T0 + i * S, i, 1, 1) for i in range(100)]
        await world.fold(1, [(one, row) for row in rows])
        with psycopg.connect(database_url, options="-c search_path=storage") as conn:
            conn.execute("update block set width = 0")
        assert tables(database_url)["block_rest"] == 100
        await world.fold(2, [(one, (T0, -1, 1, 2))])
        assert (await world.read(one))[0] == stored(one, (T0, -1, 1, 2), *rows[1:])
        assert tables(database_url)["block_rest"] == 0


def test_edges_of_partitions_meet(database_url: str) -> None:
    for width in range(1, 5):
        for index in (-3, -1, 0, 20):
            assert Partition(width, index).end == Partition(width, index + 1).start
    assert Partition(2, -3).name == "block_2_m3"
