"""A fold that is cut off anywhere, its commit included, happened wholly or not at all, and is repeated to the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.contract.storage.history_world import T0, Row, S, World, block_world, work

from twinmesh_core.errors import Unavailable
from twinmesh_core.kinds import ChannelKind
from twinmesh_runtime.postgres import open_pool
from twinmesh_storage.adapters.postgres.blocks import BlockHistory
from twinmesh_storage.domain.folding import FoldWork, Hide
from twinmesh_storage.domain.series import Series
from twinmesh_testing.history_fake import FakeHistory
from twinmesh_testing.storage_fakes import FakeDatabase

pytestmark = pytest.mark.slow


class Cut:
    """Breaks the connection at the n-th thing that is sent from now on; `after` = once it was answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.after = False
        self.happened = False
        for owner, name, connection in (
            (psycopg.AsyncCursor, "execute", lambda me: me.connection),
            (psycopg.AsyncCopy, "write", lambda me: me.connection),
            (psycopg.AsyncConnection, "commit", lambda me: me),
        ):
            self._break(monkeypatch, owner, name, connection)

    def _break(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, connection: Callable[[Any], Any]) -> None:
        real = getattr(owner, name)

        async def breaking(me: Any, *args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            here = self.left == 0
            if not here or self.after:
                result = await real(me, *args, **kwargs)
            if here:
                self.happened = True
                connection(me).pgconn.finish()
                raise psycopg.OperationalError("cut off")
            return result

        monkeypatch.setattr(owner, name, breaking)


@asynccontextmanager
async def another(url: str, world: World) -> AsyncIterator[BlockHistory]:
    """Give a store as another process has it, which remembers nothing."""
    async with open_pool(url, min_size=1, max_size=2, schema="storage") as pool:
        yield BlockHistory(pool=pool, timeout_s=5, series_of=world.catalogue.require, small_rows=8, max_rows=32)


def next_work(rng: np.random.Generator, series: list[Series], first: int) -> FoldWork:
    """Return rows of three entries, late ones and corrections among them, and a deletion."""
    rows: list[tuple[Series, Row]] = []
    for offset in (first, first + 1, first + 3):
        for one in series:
            for tick in rng.integers(0, 4_000, 12).tolist():
                value: Any = b"%d" % tick if one.kind is ChannelKind.TEXT else int(rng.integers(1000))
                rows.append((one, (T0 + tick * 1_000 * S, value, 1, offset)))
    low, high = sorted(rng.integers(0, 4_000, 2).tolist())
    ids = frozenset(s.series_id for s in series[:2])
    hide = Hide(
        tenant="default", series_ids=ids, start=T0 + low * 1_000 * S, end=T0 + high * 1_000 * S, offset=first + 2
    )
    return work(first + 3, rows, [hide])


@pytest.mark.parametrize("after", [False, True], ids=["before the answer", "after the answer"])
async def test_a_fold_is_cut_off_everywhere(database_url: str, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    async with block_world(database_url, small_rows=8, max_rows=32) as world:
        series = await world.resolve(ChannelKind.GAUGE, ChannelKind.TEXT, ChannelKind.STATE)
        database = FakeDatabase(epoch=world.lease.epoch, series=list(series))
        model = World(
            FakeHistory(database, world.catalogue.require), world.log, world.series, world.catalogue, world.lease
        )
        rng = np.random.default_rng(3)
        cut = Cut(monkeypatch)
        offset, places = 1, 0
        while True:
            todo = next_work(rng, series, offset)
            before = await model.read(*series)
            await model.store.fold(world.lease, todo)
            then = await model.read(*series)
            async with another(database_url, world) as broken:
                cut.left, cut.after, cut.happened = places + 1, after, False
                with suppress(Unavailable):
                    await broken.fold(world.lease, todo)
                cut.left = -1
            now = await world.read(*series)
            assert now in (before, then), f"half a fold after {places} steps"
            if not cut.happened:
                break
            async with another(database_url, world) as successor:
                result = await successor.fold(world.lease, todo)
            assert result.repeated is (now == then)
            assert await world.read(*series) == then
            offset, places = offset + 4, places + 1
        for as_of in range(0, offset + 4, 9):
            for one in series:
                assert await world.read_as_of(one, as_of) == await model.read_as_of(one, as_of)
        assert places > 12
