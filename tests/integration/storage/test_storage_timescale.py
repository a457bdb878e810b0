"""History as hypertables, against the real TimescaleDB: which form is chosen, and what lies in the columnstore."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from tests.contract.storage.history_world import T0, S, bits, hypertable_world, stored
from tests.integration.storage.mesh import doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import FailedPrecondition
from twinmesh_core.kinds import ChannelKind
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_storage.adapters.history_forms import open_history
from twinmesh_storage.adapters.timescale.tables import Extension

HOUR = 3600 * S


async def test_a_mesh_on_timescaledb_appends_folds_corrects_and_reads(timescale_url: str) -> None:
    async with storage(timescale_url, fold_after_s=0.05, history_form="hypertable") as store:
        keys = await store.series("t1", ["oil"])
        await store.append(doubles(keys, [T0, T0 + S], [1.0, 2.0]), request_id="a")
        await folded(store, 1)
        await store.append(doubles(keys, [T0, T0 + 2 * S], [7.0, 3.0]), request_id="b")
        await folded(store, 2)
        statistics = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
        assert (statistics.history_form, statistics.point_count) == ("hypertable", 3)
        rows = await store.read([("t1", "oil")])
        assert rows["t1/oil"] == [(T0, 7.0, 1), (T0 + S, 2.0, 1), (T0 + 2 * S, 3.0, 1)]


async def folded(store: Any, offset: int) -> None:
    while (await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())).fold_offset < offset:
        pass


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        return conn.execute(statement).fetchall()  # type: ignore[arg-type]


CHUNKS = """
select chunk_name, is_compressed from timescaledb_information.chunks
where hypertable_schema = 'storage' and hypertable_name = 'observation_numeric_2' order by range_start
"""


@pytest.mark.slow
async def test_full_folds_go_to_the_columnstore_at_once_and_late_rows_find_their_way(timescale_url: str) -> None:
    async with hypertable_world(timescale_url) as world:
        (one,) = await world.resolve(ChannelKind.GAUGE)
        rows = [(T0 + i * 100 * S, i, 1, 1) for i in range(12_000)]
        await world.fold(1, [(one, row) for row in rows])
        chunks = ask(timescale_url, CHUNKS)
        assert len(chunks) >= 2
        assert all(compressed for _, compressed in chunks), "direct compress"
        late = [(T0 + 50 * S, -1, 1, 2), (T0 + 200 * S, -2, 3, 2)]
        result = await world.fold(2, [(one, row) for row in late])
        assert result.superseded == 1
        expected = stored(one, *sorted([*(r for r in rows if r[0] != late[1][0]), *late]))
        assert (await world.read(one))[0] == expected
        assert (await world.read_as_of(one, 1)) == stored(one, *rows)
        few = [(rows[-1][0] + i * S, i, 1, 3) for i in range(1, 6)]
        await world.fold(3, [(one, row) for row in few])
        (last,) = await world.store.read_last("default", [one])
        assert last.rows().value.tolist() == [bits(5)]
        before = len(chunks)
        assert await world.store.drop_before("default", [one], rows[9_000][0]) == 9_001
        assert len(ask(timescale_url, CHUNKS)) < before
        assert (await world.read(one))[0] == [
            row for row in [*expected, *stored(one, *few)] if row[0] >= rows[9_000][0]
        ]


@pytest.mark.slow
async def test_small_folds_wait_as_rows_for_the_columnstore_policy(timescale_url: str) -> None:
    async with hypertable_world(timescale_url) as world:
        (one,) = await world.resolve(ChannelKind.GAUGE)
        rows = [(T0 + i * S, i, 1, 1 + i // 10) for i in range(50)]
        for offset in range(1, 6):
            await world.fold(offset, [(one, row) for row in rows if row[3] == offset])
        assert [compressed for _, compressed in ask(timescale_url, CHUNKS)] == [False]
        (job,) = ask(
            timescale_url,
            "select job_id from timescaledb_information.jobs where hypertable_name = 'observation_numeric_2' "
            "and hypertable_schema = 'storage'",
        )
        with psycopg.connect(timescale_url, autocommit=True, prepare_threshold=None) as conn:
            conn.execute(f"call run_job({job[0]})")
        assert [compressed for _, compressed in ask(timescale_url, CHUNKS)] == [True]
        assert (await world.read(one))[0] == stored(one, *rows)
        assert (await world.fold(6, [(one, (T0, 9, 1, 6))])).superseded == 1
        assert (await world.read(one))[0] == stored(one, (T0, 9, 1, 6), *rows[1:])


async def test_the_form_is_chosen_by_what_the_database_has_and_stays(database_url: str) -> None:
    await migrate(database_url, "storage", "twinmesh_storage")
    seen: list[dict[str, Any]] = []

    def report(event: str, **fields: Any) -> None:
        seen.append({"event": event, **fields})

    async with open_pool(database_url, min_size=1, max_size=2, schema="storage") as pool:

        async def choose(wanted: str) -> str:
            return (
                await open_history(pool, wanted=wanted, timeout_s=5, series_of=lambda i: None, report=report)  # type: ignore[arg-type, return-value]
            ).form

        with pytest.raises(FailedPrecondition, match="needs the TimescaleDB extension"):
            await choose("hypertable")
        assert await choose("auto") == "blocks"
        assert seen[-1] == {
            "event": "history_form",
            "form": "blocks",
            "timescaledb": "",
            "licence": "",
            "trusted": None,
        }
        async with pool.connection() as conn:
            await conn.execute("update fold_state set form = 'hypertable'")
        with pytest.raises(FailedPrecondition, match="kept as hypertable"):
            await choose("blocks")


@pytest.mark.parametrize(
    ("version", "trusted"),
    [("2.29.2", True), ("2.31.0", True), ("3.0", True), ("2.29.1", False), ("2.23.0-dev", False)],
)
def test_releases_that_dropped_rows_are_not_trusted(version: str, trusted: bool) -> None:
    assert Extension(version=version, licence="timescale").is_trusted is trusted
    assert not Extension(version=version, licence="apache").has_columnstore
