"""What readers and the compactor rely on of history, held against the fake and against each form it is kept in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests.contract.storage.history_world import (
    HIGH,
    LOW,
    T0,
    Row,
    S,
    World,
    as_rows,
    bits,
    block_world,
    fake_world,
    hypertable_world,
    stored,
)

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.folding import Hide
from twinmesh_storage.domain.ports import LeaseLost, SupersededPruned
from twinmesh_storage.domain.series import Series
from twinmesh_testing.history_fake import FakeHistory
from twinmesh_testing.storage_fakes import FakeDatabase

# Small blocks meet more cases; blocks of their real size are what the integration tests read from.
BLOCKS = pytest.param("blocks", marks=pytest.mark.slow)
HYPERTABLE = pytest.param("hypertable", marks=pytest.mark.slow)


@pytest.fixture(params=["fake", "small blocks", BLOCKS, HYPERTABLE])
async def world(request: Any) -> AsyncIterator[World]:
    if request.param == "fake":
        yield await fake_world()
        return
    if request.param == "hypertable":
        async with hypertable_world(request.getfixturevalue("timescale_url")) as found:
            yield found
        return
    sizes = {"small_rows": 8, "max_rows": 32} if request.param == "small blocks" else {}
    async with block_world(request.getfixturevalue("database_url"), **sizes) as found:
        yield found


async def test_rows_come_back_of_every_kind_page_by_page(world: World) -> None:
    kinds = [kind for kind in ChannelKind if kind is not ChannelKind.UNSPECIFIED]
    series = await world.resolve(*kinds)
    values: dict[ChannelKind, Any] = {
        ChannelKind.GAUGE: lambda i: i / 7,
        ChannelKind.COUNTER: float,
        ChannelKind.STATE: lambda i: (1 << 62) - i,
        ChannelKind.BOOL: lambda i: i % 2,
        ChannelKind.TEXT: lambda i: f"text {i} ü".encode(),
        ChannelKind.JSON: lambda i: b"" if i % 5 == 0 else b'{"n":%d}' % i,
    }
    rows = {s: [(T0 + i * S, values[s.kind](i), 1 + i % 3, 1) for i in range(130)] for s in series}
    result = await world.fold(1, [(s, row) for s in series for row in rows[s]])
    assert (result.superseded, result.repeated) == (0, False)
    for one in series:
        assert (await world.read(one))[0] == stored(one, *rows[one]), one.kind
    middle = (await world.read(series[0], start=T0 + 60 * S, end=T0 + 70 * S))[0]
    assert middle == stored(series[0], *rows[series[0]][60:70])
    page = await world.store.read("default", series, LOW, HIGH, 10_000)
    assert list(dict.fromkeys(p.series_id for p in page.parts)) == [s.series_id for s in series]
    assert page.done == len(series)
    assert (await world.store.read("other", series, LOW, HIGH, 10_000)).parts == []
    counts = await world.store.counts("default", "")
    assert (counts.folded_points, counts.series_count, counts.fold_offset) == ((264, 258, 258), 6, 1)
    assert (await world.store.counts("default", "nobody")).folded_points == (0, 0, 0)
    spans = await world.store.spans("default", series)
    assert {(s.point_count, s.first_time_unix_us, s.last_time_unix_us) for s in spans.values()} == {
        (130, T0, T0 + 129 * S)
    }


async def test_pages_hold_whole_series_while_they_fit(world: World) -> None:
    series = await world.resolve(*[ChannelKind.GAUGE] * 3)
    await world.fold(1, [(s, (T0 + i * S, i, 1, 1)) for s in series for i in range(40)])
    page = await world.store.read("default", series, LOW, HIGH, 100)
    assert 1 <= page.done <= 2
    assert {p.series_id for p in page.parts} == {s.series_id for s in series[: page.done]}
    assert sum(p.n for p in page.parts) == 40 * page.done
    backwards = await world.store.read("default", series[::-1], LOW, HIGH, 1_000)
    assert list(dict.fromkeys(p.series_id for p in backwards.parts)) == [s.series_id for s in series[::-1]]


async def test_the_newest_rows_and_those_before_a_moment(world: World) -> None:
    one, two, none = await world.resolve(ChannelKind.GAUGE, ChannelKind.TEXT, ChannelKind.GAUGE)
    await world.fold(1, [(one, (T0 + i * 3600 * S, i, 1, 1)) for i in range(50)])
    await world.fold(2, [(two, (T0, b"a", 1, 2)), (two, (T0 + S, b"b", 2, 2))])
    last = {p.series_id: as_rows(p.rows())[-1] for p in await world.store.read_last("default", [two, none, one])}
    assert last == {
        one.series_id: (T0 + 49 * 3600 * S, bits(49), 1, 1),
        two.series_id: (T0 + S, b"b", 2, 2),
    }
    moments = [T0, T0 + S, T0 + 20 * 3600 * S]
    parts = await world.store.read_before("default", [none, two, one], moments)
    found = {p.series_id: p for p in parts}
    assert set(found) == {one.series_id, two.series_id}
    for series, moment in ((two, moments[1]), (one, moments[2])):
        part = found[series.series_id]
        whole = (await world.read(series, start=part.t0, end=moment))[0]
        assert [row for row in as_rows(part.rows()) if row[0] < moment] == whole != []
    assert await world.store.read_before("default", [two], [T0]) == []


async def test_the_highest_offset_wins_and_losers_are_moved_aside(world: World) -> None:
    (one,) = await world.resolve(ChannelKind.GAUGE)
    await world.fold(2, [(one, (T0, 1, 1, 1)), (one, (T0 + S, 1, 1, 2))])
    result = await world.fold(6, [(one, (T0, 2, 2, 3)), (one, (T0, 3, 1, 5)), (one, (T0 + S, 9, 3, 6))])
    assert result.superseded == 3
    assert (await world.read(one))[0] == stored(one, (T0, 3, 1, 5), (T0 + S, 9, 3, 6))
    history = {
        1: [(T0, 1, 1, 1)],
        2: [(T0, 1, 1, 1), (T0 + S, 1, 1, 2)],
        3: [(T0, 2, 2, 3), (T0 + S, 1, 1, 2)],
        4: [(T0, 2, 2, 3), (T0 + S, 1, 1, 2)],
        5: [(T0, 3, 1, 5), (T0 + S, 1, 1, 2)],
        6: [(T0, 3, 1, 5), (T0 + S, 9, 3, 6)],
    }
    for as_of, rows in history.items():
        assert await world.read_as_of(one, as_of) == stored(one, *rows), as_of
    assert (await world.store.counts("default", "")).folded_points == (1, 0, 1)


async def test_a_hide_covers_what_came_before_it_and_nothing_that_comes_after(world: World) -> None:
    one, two, text = await world.resolve(ChannelKind.GAUGE, ChannelKind.GAUGE, ChannelKind.TEXT)
    before = [(T0 + i * 60 * S, i, 1, 1) for i in range(200)]
    await world.fold(1, [(s, row) for s in (one, two) for row in before] + [(text, (T0 + 6060 * S, b"x", 1, 1))])
    hide = Hide(
        tenant="default",
        series_ids=frozenset((one.series_id, text.series_id)),
        start=T0 + 3000 * S,
        end=T0 + 9000 * S,
        offset=3,
    )
    early, late = (T0 + 3001 * S, 7, 1, 2), (T0 + 6000 * S, 8, 1, 4)
    result = await world.fold(4, [(one, early), (one, late)], [hide])
    left = [row for row in before if not hide.start <= row[0] < hide.end]
    assert (await world.read(one))[0] == stored(one, *sorted([*left, late]))
    assert (await world.read(two, text)) == [stored(two, *before), []]
    assert await world.read_as_of(one, 2) == stored(one, *sorted([*before, early]))
    assert await world.read_as_of(one, 3) == stored(one, *left)
    assert await world.read_as_of(text, 2) == [(T0 + 6060 * S, b"x", 1, 1)]
    assert not result.repeated
    other = Hide(tenant="other", series_ids=frozenset([two.series_id]), start=LOW, end=HIGH, offset=5)
    await world.fold(5, (), [other])
    assert (await world.read(two))[0] == stored(two, *before)


async def test_a_fold_that_happened_changes_nothing_again(world: World) -> None:
    (one,) = await world.resolve(ChannelKind.GAUGE)
    first, second = (one, (T0, 1, 1, 1)), (one, (T0, 2, 1, 2))
    await world.fold(2, [first, second])
    assert (await world.fold(2, [first, second])).repeated
    # Of a generation that is folded in part already, only what is new counts.
    assert (await world.fold(3, [first, second, (one, (T0 + S, 3, 1, 3))])).superseded == 0
    assert await world.read_as_of(one, 1) == stored(one, (T0, 1, 1, 1))
    assert (await world.read(one))[0] == stored(one, (T0, 2, 1, 2), (T0 + S, 3, 1, 3))
    assert (await world.log.position()).fold_offset == 3


async def test_a_fold_under_an_old_lease_writes_nothing(world: World) -> None:
    (one,) = await world.resolve(ChannelKind.GAUGE)
    await world.fold(1, [(one, (T0, 1, 1, 1))])
    assert await world.log.acquire("me") is not None
    with pytest.raises(LeaseLost):
        await world.fold(2, [(one, (T0, 2, 1, 2))])
    assert (await world.read(one))[0] == stored(one, (T0, 1, 1, 1))
    assert (await world.log.position()).fold_offset == 1


async def test_pruning_is_remembered(world: World) -> None:
    (one,) = await world.resolve(ChannelKind.GAUGE)
    for offset in range(1, 6):
        await world.fold(offset, [(one, (T0, offset, 1, offset))])
    assert await world.store.superseded_floor() == 0
    gone = 0
    while pruned := await world.store.prune_superseded(4 * S, 1):
        gone += pruned
    assert gone == 2  # superseded by the entries of 2 s and 3 s
    assert await world.store.superseded_floor() == 3
    assert await world.read_as_of(one, 3) == stored(one, (T0, 3, 1, 3))
    with pytest.raises(SupersededPruned) as refused:
        await world.read_as_of(one, 2)
    assert refused.value.floor == 3


async def test_erased_series_are_gone_with_all_they_were(world: World) -> None:
    one, two = await world.resolve(ChannelKind.GAUGE, ChannelKind.TEXT)
    for offset in (1, 2):
        await world.fold(offset, [(one, (T0, offset, 1, offset)), (two, (T0, b"%d" % offset, 1, offset))])
    assert await world.store.erase("other", [one]) == 0
    assert await world.store.erase("default", [one]) == 1
    assert await world.read(one, two) == [[], [(T0, b"2", 1, 2)]]
    assert await world.read_as_of(one, 1) == []
    assert await world.read_as_of(two, 1) == [(T0, b"1", 1, 1)]
    await world.fold(3, [(one, (T0, 3, 1, 3))])
    assert (await world.read(one))[0] == stored(one, (T0, 3, 1, 3))


@pytest.mark.parametrize("interval_us", [1_000, S, 3600 * S])
async def test_rows_before_a_time_are_dropped_to_the_row(world: World, interval_us: int) -> None:
    one, two = await world.resolve(ChannelKind.GAUGE, ChannelKind.TEXT, interval_us=interval_us)
    rows = [(T0 + i * interval_us, i, 1, 1) for i in range(300)]
    texts = [(T0 + i * interval_us, b"%d" % i, 1, 1) for i in range(300)]
    await world.fold(1, [*((one, row) for row in rows), *((two, row) for row in texts)])
    await world.fold(2, [(one, (row[0], -1, 1, 2)) for row in rows[90:110]])
    limit = T0 + 100 * interval_us
    assert await world.store.drop_before("default", [one], limit) == 100
    assert await world.store.drop_before("default", [one], limit) == 0
    left = [(row[0], -1, 1, 2) if row in rows[90:110] else row for row in rows[100:]]
    assert (await world.read(one, two)) == [stored(one, *left), texts]
    assert await world.read_as_of(one, 1) == stored(one, *rows[100:])
    assert await world.store.drop_before("default", [one, two], HIGH) == 500
    assert await world.read(one, two) == [[], []]


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
async def test_any_sequence_of_folds_reads_like_the_simplest_model(world: World, seed: int) -> None:
    """Late rows, corrections and hides in any order, over cells of several sizes, as of any offset."""
    rng = np.random.default_rng(seed)
    series = await world.resolve(ChannelKind.GAUGE, ChannelKind.STATE, ChannelKind.TEXT, interval_us=10_000)
    database = FakeDatabase(epoch=world.lease.epoch, series=list(series))
    model = World(FakeHistory(database, world.catalogue.require), world.log, world.series, world.catalogue, world.lease)
    offset = 0
    for _ in range(8):
        rows: list[tuple[Series, Row]] = []
        hides = []
        for _ in range(int(rng.integers(1, 6))):
            offset += 1
            if rng.random() < 0.2:
                low, high = sorted(rng.integers(0, 600, 2).tolist())
                chosen = frozenset(s.series_id for s in series if rng.random() < 0.6)
                hides.append(
                    Hide(
                        tenant="default",
                        series_ids=chosen,
                        start=T0 + low * S // 10,
                        end=T0 + high * S // 10,
                        offset=offset,
                    )
                )
                continue
            for one in series:
                for tick in rng.integers(0, 600, int(rng.integers(0, 80))).tolist():
                    value: Any = b"%d" % rng.integers(9) if one.kind is ChannelKind.TEXT else int(rng.integers(1000))
                    rows.append((one, (T0 + tick * S // 10, value, int(rng.integers(1, 4)), offset)))
        result = await world.fold(offset, rows, hides)
        expected = await model.fold(offset, rows, hides)
        assert await world.read(*series) == await model.read(*series)
        assert result.superseded == expected.superseded or hides
    for as_of in range(offset + 1):
        for one in series:
            assert await world.read_as_of(one, as_of) == await model.read_as_of(one, as_of), (as_of, one.kind)
    now, then = await world.store.counts("default", ""), await model.store.counts("default", "")
    assert (now.folded_points, now.fold_offset) == (then.folded_points, then.fold_offset)
    assert await world.store.spans("default", series) == await model.store.spans("default", series)


async def test_summaries_tell_of_parts_what_their_rows_say(world: World) -> None:
    gauge, state, text = await world.resolve(ChannelKind.GAUGE, ChannelKind.STATE, ChannelKind.TEXT)
    rows: list[tuple[Series, Row]] = [(gauge, (T0 + i * S, float(i % 7), 1 + i % 3, 1 + i % 2)) for i in range(5_000)]
    rows += [(state, (T0, 4, 3, 1)), (text, (T0, b"x", 1, 2))]
    await world.fold(2, rows)
    asked = [text, gauge, state]
    if await world.store.summaries(world.tenant, asked, LOW, HIGH, 10) is None:
        page = await world.store.read(world.tenant, asked, LOW, HIGH, 10_000_000)
        assert all(part.statistics is None for part in page.parts)
        return
    found, lower = [], LOW
    while asked:  # two at a time, as few as a page may have
        group = asked if lower == LOW else asked[:1]
        summaries = await world.store.summaries(world.tenant, group, lower, HIGH, 2)
        assert summaries is not None
        found += summaries.records.tolist()
        lower = LOW if summaries.done else summaries.until
        asked = asked[summaries.done :]
    page = await world.store.read(world.tenant, [text, gauge, state], LOW, HIGH, 10_000_000)
    assert len(found) == len(page.parts) > 3
    for record, part in zip(found, page.parts, strict=True):
        assert record[:7] == (part.series_id, part.t0, part.t1, *part.counts, part.max_offset)
        s = part.statistics
        expected = [np.nan] * 6 if s is None else [s.minimum, s.maximum, s.sum, s.m2, s.first, s.last]
        np.testing.assert_array_equal(record[7:], expected)
    cut = await world.store.summaries(world.tenant, [gauge], T0 + 10 * S, T0 + 11 * S, 10)
    assert cut is not None
    assert len(cut.records) == 1
    assert len(cut.records) == cut.done
