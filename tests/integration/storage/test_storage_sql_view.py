"""The SQL view for people and dashboards gives what reads give, of every kind and packing, in either form."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.contract.storage.history_world import T0, Row, S, World, block_world, hypertable_world

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import from_datetime, to_datetime
from twinmesh_storage.domain.series import Series

QUALITY = {1: "GOOD", 2: "UNCERTAIN", 3: "BAD"}
HYPERTABLE = pytest.param("hypertable", marks=pytest.mark.slow)
DOUBLES: dict[str, Any] = {
    "const": lambda i: 21.5,
    "runs": lambda i: float(i // 40),
    "decimals": lambda i: round(20 + np.sin(i * 7) * 50, 2),
    "slope": lambda i: round(20 + np.sin(i / 50), 2),
    "any": lambda i: [0.1 * i, -1e300 / (i + 1), 5e-324, -0.0, 1.7976931348623157e308, -2.5e-310, 2.0**60][i % 7],
}
INTS: dict[str, Any] = {
    "steps": lambda i: 3 * i,
    "small": lambda i: (i * 7919) % 1000 - 500,
    "wide": lambda i: (i * 7919) % 100_003,
    "huge": lambda i: (-1) ** i * (2**62 - i),
}


@pytest.fixture(params=["blocks", HYPERTABLE])
async def world(request: Any) -> AsyncIterator[World]:
    name = "database_url" if request.param == "blocks" else "timescale_url"
    url = request.getfixturevalue(name)
    async with (block_world if request.param == "blocks" else hypertable_world)(url) as found:
        yield found


@pytest.fixture
def url(request: Any, world: World) -> str:
    return str(request.getfixturevalue("database_url" if world.store.form == "blocks" else "timescale_url"))


def select(url: str, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
    """Ask as anybody does: with the search path that a session has who knows nothing of the service."""
    with psycopg.connect(url, options="-c search_path=public", prepare_threshold=None) as conn:
        return conn.execute(statement, arguments).fetchall()  # type: ignore[arg-type]


BY_CHANNEL = """
select time, value, text, quality, log_offset from storage.observations
where tenant = 'default' and twin_id = 't' and channel = %s order by time
"""


async def test_the_view_gives_what_reads_give(world: World, url: str) -> None:
    doubles = await world.resolve(*[ChannelKind.GAUGE] * len(DOUBLES))
    rng = np.random.default_rng(7)
    rows: list[tuple[Series, Row]] = []
    jitter = np.cumsum(rng.integers(1, 2_000_000, 400)).tolist()
    for index, (one, value) in enumerate(zip(doubles, DOUBLES.values(), strict=True)):
        times = [T0 + i * S for i in range(400)] if index % 2 else [T0 + t for t in jitter]
        rows += [(one, (t, value(i), 1 + (i % 11 == 0) + (i % 13 == 0), 1 + i // 100)) for i, t in enumerate(times)]
    await world.fold(4, rows)
    for one in doubles:
        expected = [
            (to_datetime(ts), float(np.int64(bits).view(np.float64)), None, QUALITY[q], offset)
            for ts, bits, q, offset in (await world.read(one))[0]
        ]
        assert len(expected) == 400
        found = select(url, BY_CHANNEL, one.channel)
        assert found == expected
        assert np.signbit([row[1] for row in found]).tolist() == np.signbit([row[1] for row in expected]).tolist()


async def test_whole_numbers_and_texts_too(world: World, url: str) -> None:
    kinds = [ChannelKind.STATE] * len(INTS) + [ChannelKind.BOOL, ChannelKind.TEXT, ChannelKind.JSON]
    series = await world.resolve(*kinds)
    makers = [*INTS.values(), lambda i: i % 2, lambda i: f"text {i} ü€".encode() * (i % 3), lambda i: b'{"n":%d}' % i]
    rows = [(s, (T0 + i * S, make(i), 1, 1)) for s, make in zip(series, makers, strict=True) for i in range(300)]
    await world.fold(1, rows)
    for one in series:
        expected = [
            (to_datetime(ts), float(value), None, "GOOD", 1)
            if one.kind.numeric
            else (to_datetime(ts), None, value.decode(), "GOOD", 1)
            for ts, value, _, _ in (await world.read(one))[0]
        ]
        assert select(url, BY_CHANNEL, one.channel) == expected


async def test_a_part_of_the_time_reads_its_blocks_alone(world: World, url: str) -> None:
    (one,) = await world.resolve(ChannelKind.GAUGE)
    await world.fold(1, [(one, (T0 + i * 600 * S, i, 1, 1)) for i in range(20_000)])
    between = "from storage.observations_between(%s, %s) where twin_id = 't' and channel = 'c0'"
    start, end = to_datetime(T0 + 6_000_000 * S), to_datetime(T0 + 6_060_000 * S)
    found = select(url, f"select time, value {between} order by time", start, end)
    assert [(from_datetime(t), v) for t, v in found] == [(T0 + i * 600 * S, i) for i in range(10_000, 10_100)]
    plan = str(select(url, f"explain (analyze, format json) select count(*) {between}", start, end)[0][0])
    if world.store.form == "blocks":
        assert len(set(re.findall(r"'block_\d_m?\d+'", plan))) <= 2
    assert select(url, f"select count(*) {between}", start, start) == [(0,)]
    everything = select(
        url, f"select count(*) {between}", datetime(1, 1, 2, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    )
    assert everything == [(20_000,)]


@pytest.mark.slow
async def test_a_day_at_one_hertz_is_quick_enough_for_a_chart(world: World, url: str) -> None:
    (one,) = await world.resolve(ChannelKind.GAUGE)
    for part in range(9):
        numbers = range(part * 9_600, (part + 1) * 9_600)
        await world.fold(part + 1, [(one, (T0 + i * S, round(20 + np.sin(i / 500), 2), 1, part + 1)) for i in numbers])
    started = time.perf_counter()
    ((count, mean),) = select(url, "select count(*), avg(value) from storage.observations where channel = 'c0'")
    print(f"a day at 1 Hz through the view ({world.store.form}): {(time.perf_counter() - started) * 1e3:.0f} ms")
    assert (count, round(mean)) == (86_400, 20)
