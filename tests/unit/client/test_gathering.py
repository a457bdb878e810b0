"""Single rows and columns become batches that hold exactly them."""

import asyncio
import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import twinmesh_client as tm
from twinmesh_client.aio.writer import Writer
from twinmesh_client.gathering import Gatherer, column_batch, pieces
from twinmesh_core.errors import FailedPrecondition, InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.quality import Quality

VALUES = st.one_of(
    st.floats(allow_nan=False), st.booleans(), st.text(max_size=5), st.dictionaries(st.text(max_size=2), st.integers())
)
ROWS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), VALUES, st.integers(-9, 9)), max_size=30)


def rows_of(batch: ObservationBatch) -> dict[str, list[tuple]]:
    """Every row by section, in order."""
    found = {}
    for name, section in batch.sections():
        values = section.values.tolist() if hasattr(section, "values") else list(section.texts())
        keys = [batch.series[i] for i in section.series.tolist()]
        found[name] = [
            (k.twin_id, k.channel, k.unit, t, v, q)
            for k, t, v, q in zip(keys, section.time_unix_us.tolist(), values, section.quality.tolist(), strict=True)
        ]
    return found


@given(ROWS, st.integers(1, 10))
def test_rows_come_out_as_they_went_in_however_they_are_cut(rows, size):
    gatherer, batches = Gatherer(), []
    for i, (twin, channel, value, time) in enumerate(rows):
        gatherer.add(twin, channel, value, time)
        if i % size == 0:
            batches.append(gatherer.take())
    batches.append(gatherer.take())
    together = Gatherer()
    for batch in batches:
        together.add_batch(batch)
    assert together.rows == len(rows)
    everything = rows_of(together.take())
    for name, kind in (("doubles", float), ("bools", bool), ("texts", str), ("jsons", dict)):
        expected = [(t, c, time, v) for t, c, v, time in rows if type(v) is kind]
        assert [(t, c, time) for t, c, _, time, _, _ in everything[name]] == [(t, c, m) for t, c, m, _ in expected]
    assert [v for *_, v, _ in everything["doubles"]] == [v for _, _, v, _ in rows if type(v) is float]
    assert gatherer.rows == gatherer.bytes == 0


@pytest.mark.parametrize(
    ("value", "kind", "section", "stored"),
    [
        (3, None, "doubles", 3.0),
        (np.float32(1.5), None, "doubles", 1.5),
        (3, ChannelKind.STATE, "int64s", 3),
        (3.0, ChannelKind.STATE, "int64s", 3),
        (2**62 + 1, ChannelKind.STATE, "int64s", 2**62 + 1),
        (True, None, "bools", 1),
        (0, ChannelKind.BOOL, "bools", 0),
        (7, ChannelKind.COUNTER, "doubles", 7.0),
        ("ü", None, "texts", "ü".encode()),
        ({"a": 1}, None, "jsons", b'{"a": 1}'),
        ([1], None, "jsons", b"[1]"),
        ('{"a":1}', ChannelKind.JSON, "jsons", b'{"a":1}'),
        (5, ChannelKind.JSON, "jsons", b"5"),
        (math.inf, None, "doubles", math.inf),
    ],
)
def test_a_value_goes_where_its_kind_says(value, kind, section, stored):
    gatherer = Gatherer()
    gatherer.add("t", "c", value, 1, kind=kind, unit="K", quality=Quality.BAD)
    assert rows_of(gatherer.take())[section] == [("t", "c", "K", 1, stored, Quality.BAD)]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, None),
        (object(), None),
        ("warm", ChannelKind.GAUGE),
        (1.5, ChannelKind.STATE),
        (math.nan, ChannelKind.STATE),
        (2**63, ChannelKind.STATE),
        (2, ChannelKind.BOOL),
        (1, ChannelKind.TEXT),
        ({"a": math.nan}, None),
        (10**400, None),
    ],
)
def test_a_value_that_its_kind_does_not_take_is_refused_and_alone(value, kind):
    gatherer = Gatherer()
    gatherer.add("t", "c", 1.0, 1)
    with pytest.raises(InvalidArgument, match="spring"):
        gatherer.add("t", "spring", value, 1, kind=kind)
    assert gatherer.take().point_count() == 1


def test_a_column_is_taken_as_numpy_has_it():
    times = np.array(["2026-01-01T00:00:00", "2026-01-01T00:00:01"], "M8[s]")
    batch = column_batch("t", "c", times, np.array([1, 2], np.int32), unit="K", quality=[1, 3])
    assert rows_of(batch)["doubles"] == [
        ("t", "c", "K", 1_767_225_600_000_000, 1.0, 1),
        ("t", "c", "K", 1_767_225_601_000_000, 2.0, 3),
    ]
    assert rows_of(column_batch("t", "c", [1], [2.0], kind=ChannelKind.STATE))["int64s"][0][4] == 2
    assert rows_of(column_batch("t", "c", [1], [True]))["bools"][0][4] == 1
    assert rows_of(column_batch("t", "c", [1], ["on"]))["texts"][0][4] == b"on"


@pytest.mark.parametrize(
    ("times", "values", "kind"),
    [
        ([1, 2], [1.0], None),
        ([1.5], [1.0], None),
        ([1], ["a"], ChannelKind.GAUGE),
        ([1], [1.5], ChannelKind.STATE),
        ([1], [math.nan], ChannelKind.STATE),
    ],
)
def test_a_column_that_does_not_fit_is_refused(times, values, kind):
    with pytest.raises(InvalidArgument):
        column_batch("t", "c", times, values, kind=kind)


@given(ROWS, st.integers(1, 7))
def test_pieces_hold_all_rows_in_order(rows, size):
    gatherer = Gatherer()
    for row in rows:
        gatherer.add(*row)
    batch = gatherer.take()
    parts = pieces(batch, size)
    assert all(len(section) <= size for part in parts for _, section in part.sections())
    for name, expected in rows_of(batch).items():
        assert [row for part in parts for row in rows_of(part)[name]] == expected


@pytest.fixture
def writer(client):
    def build(**options) -> Writer:
        return client.writer("p", **options)

    return build


async def test_a_batch_is_closed_by_size_and_by_time(writer, fake):
    async with writer(gather_rows=100, gather_delay_s=0.02) as w:
        taken = [await w.observe("t", "c", float(v), time=v + 1) for v in range(230)]
        async with asyncio.timeout(5):
            assert await taken[-1].written() == 3
            await taken[-1].durable()
        assert w.durable == 3
    producer = fake.ingestion.producers["p"]
    assert producer.points == {1: 100, 2: 100, 3: 30}
    assert producer.all_values() == list(range(230))


async def test_batches_and_rows_keep_the_order_of_the_calls(writer, fake):
    async with writer(gather_delay_s=10) as w:
        await w.observe("t", "c", 1.0)
        await w.observe_many("t", "c", [1, 2], [2.0, 3.0])
        await w.observe("t", "c", 4.0, time=datetime(2026, 1, 1, tzinfo=UTC))
        await w.write(column_batch("t", "c", [1], [5.0]))
        await w.observe("t", "c", 6.0)
        await w.flush()
    assert fake.ingestion.producers["p"].all_values() == [1, 2, 3, 4, 5, 6]
    assert len(fake.ingestion.producers["p"].points) == 3


async def test_a_long_column_goes_in_pieces(writer, fake):
    async with writer() as w:
        await w.observe_many("t", "c", np.arange(250_000), np.arange(250_000.0))
        await w.flush()
    assert fake.ingestion.producers["p"].all_values() == list(range(250_000))
    assert max(fake.ingestion.producers["p"].points.values()) <= 100_000


async def test_a_frame_goes_through_the_writer(writer, fake):
    import pandas as pd

    frame = pd.DataFrame({"c": [1.0, None, 3.0]}, index=pd.date_range("2026-01-01", periods=3, tz="UTC"))
    async with writer() as w:
        assert await w.write_frame(frame, twin_id="t") == 1
    assert fake.ingestion.producers["p"].all_values() == [1.0, 3.0]


async def test_observing_waits_while_too_much_is_unacknowledged(writer, fake, monkeypatch):
    from twinmesh_client.aio import backlog

    monkeypatch.setattr(backlog, "MAX_UNACKED_POINTS", 20)
    async with writer(gather_rows=10) as w:
        fake.ingestion.hold.clear()

        async def all_rows():
            for v in range(100):
                await w.observe("t", "c", float(v), time=v + 1)

        rows = asyncio.create_task(all_rows())
        await asyncio.sleep(0.1)
        assert not rows.done()
        assert w._pump.rows <= 10
        fake.ingestion.hold.set()
        await rows
        await w.flush()
    assert fake.ingestion.producers["p"].all_values() == list(range(100))


async def test_a_cancelled_caller_takes_nobodys_rows_along(writer, fake):
    async with writer(gather_rows=5) as w:
        fake.ingestion.hold.clear()
        first = [asyncio.create_task(w.observe("t", "c", float(v), time=v + 1)) for v in range(20)]
        await asyncio.sleep(0.02)
        waiting = [task for task in first if not task.done()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        fake.ingestion.hold.set()
        await w.flush()
    assert fake.ingestion.producers["p"].all_values() == [float(v) for v in range(20 - len(waiting))]


async def test_a_bad_row_is_refused_at_once_and_alone(writer, fake):
    async with writer() as w:
        await w.observe("t", "c", 1.0)
        with pytest.raises(InvalidArgument):
            await w.observe("t", "c", None)
        assert (await w.flush()).accepted == 1


async def test_rows_are_not_taken_outside_the_block(writer):
    w = writer()
    with pytest.raises(FailedPrecondition, match="not open"):
        await w.observe("t", "c", 1.0)
    with pytest.raises(FailedPrecondition, match="not open"):
        await w.write(column_batch("t", "c", [1], [1.0]))
    async with w:
        pass
    with pytest.raises(tm.TwinmeshError, match="closed"):
        await w.observe("t", "c", 1.0)


async def test_a_lost_session_is_told_to_whoever_waits_for_rows(writer, fake):
    fake.ingestion.refuse = FailedPrecondition("no", reason="PRODUCER_FENCED")
    async with writer() as w:
        taken = await w.observe("t", "c", 1.0)
        with pytest.raises(FailedPrecondition):
            await taken.written()
        with pytest.raises(FailedPrecondition):
            await w.flush()
        w.abandon()
