"""A batch that the mesh refuses for good is set aside, once, and those behind it are stored once, in their order."""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import twinmesh_client as tm
from twinmesh_client.aio import session as session_module
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_client.spool import state as state_module
from twinmesh_client.spool.spool import Spool
from twinmesh_client.spool.state import State
from twinmesh_core.errors import InvalidArgument, Reason, ResourceExhausted, Unavailable
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section

POISON = 666.0
REFUSAL = InvalidArgument("batch.series: is no dictionary", reason=Reason.MALFORMED_MESSAGE)


def batch(value: float, n: int = 1) -> ObservationBatch:
    section = double_section(np.zeros(n, np.uint32), np.arange(n, dtype=np.int64), np.full(n, value))
    return ObservationBatch(series=(SeriesKey(twin_id="t", channel="c"),), doubles=section)


def poisoned(values: list[float]) -> InvalidArgument | None:
    return REFUSAL if POISON in values else None


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch):
    monkeypatch.setattr(session_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(session_module, "LONGEST_PAUSE_S", 0.02)


@pytest.fixture
def spooled(fake, tmp_path):
    fake.ingestion.poison = poisoned

    def build(**options):
        return open_writer_async("p", target=options.pop("target", fake.target), spool=tmp_path / "spool", **options)

    return build


NOWHERE = "127.0.0.1:1"
MIXED = [1, 2, POISON, 3, POISON, POISON, 4, POISON]


async def test_with_a_spool_it_is_kept_with_its_error_and_the_rest_goes_on(spooled, fake):
    heard: list[tm.RefusedBatch] = []
    async with spooled(target=NOWHERE) as writer:
        for value in MIXED:
            await writer.write(batch(value, 3))
    async with spooled(on_refused=heard.append) as writer:
        total = await writer.flush()
        assert (total.accepted, writer.refused_count, writer.refused_points) == (12, 4, 12)
        assert (writer.durable, writer.taken, writer.spool_damaged) == (8, 8, 0)
        kept = await writer.refused_batches()
        assert [r.number for r in kept] == [r.number for r in heard] == [3, 5, 6, 8]
        assert isinstance(kept[0].error, InvalidArgument)
        assert (kept[0].error.reason, kept[0].points) == (Reason.MALFORMED_MESSAGE, 3)
        assert kept[0].batch().doubles.values.tolist() == [POISON] * 3
        assert writer.last_refusal is not None
        assert await writer.write(batch(5)) == 9
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values() == [v for v in [1, 2, 3, 4] for _ in range(3)] + [5]
    assert sorted(fake.ingestion.producers["p"].values) == [1, 2, 3, 4, 5]
    async with spooled() as writer:
        assert (writer.refused_count, writer.refused_points, writer.spool_damaged) == (4, 12, 0)
        await writer.write(batch(6))
        await writer.flush()
        await writer.forget_refused()
        assert await writer.refused_batches() == []
        assert writer.refused_count == 4
    assert fake.ingestion.producers["p"].all_values()[-2:] == [5, 6]


@pytest.mark.parametrize("step", ["before it is kept", "before its sequence is given on", "after that"])
async def test_a_process_that_dies_while_it_sets_one_aside_leaves_it_to_the_next_one(
    spooled, fake, monkeypatch, tmp_path, step
):
    async with spooled(target=NOWHERE) as writer:
        for value in (1, POISON, 2):
            await writer.write(batch(value))
    spool = Spool(tmp_path / "spool", "p")
    spool.adopt(0)
    killed = pytest.raises(ZeroDivisionError) if step != "after that" else nullcontext()
    with monkeypatch.context() as patch, killed:
        if step == "before it is kept":
            patch.setattr(spool.refused, "append", lambda _: 1 / 0)
        elif step == "before its sequence is given on":
            patch.setattr(state_module, "save", lambda *_: 1 / 0)
        spool.set_aside(2, REFUSAL)
    spool.close()
    async with spooled() as writer:
        await writer.flush()
        assert (writer.refused_count, writer.refused_points, writer.spool_damaged) == (1, 1, 0)
        assert [r.number for r in await writer.refused_batches()] == [2]
    assert fake.ingestion.producers["p"].all_values() == [1, 2]


async def test_a_record_of_a_refused_batch_that_was_only_begun_is_written_anew(spooled, fake, tmp_path):
    path = tmp_path / "spool" / "refused"
    async with spooled() as writer:
        await writer.write(batch(POISON))
        await writer.flush()
    path.write_bytes(path.read_bytes() + path.read_bytes()[:-3])
    async with spooled() as writer:
        assert len(await writer.refused_batches()) == 1
        await writer.write(batch(POISON))
        await writer.flush()
        assert [r.number for r in await writer.refused_batches()] == [1, 2]


async def test_it_is_found_among_many_on_their_way_even_if_the_transport_hides_why(spooled, fake):
    masked = Unavailable("The call ended while something was being sent to it; try again.")
    sent_behind = 0

    def hidden(values: list[float]) -> tm.TwinmeshError | None:
        nonlocal sent_behind
        sent_behind = writer._backlog.window.sent
        # As grpc does: the reason is heard only where nothing else was being sent.
        return (masked if sent_behind > 1 else poisoned(values)) if POISON in values else None

    async with spooled() as writer:
        fake.ingestion.poison = hidden
        fake.ingestion.hold.clear()
        for value in [*range(20), POISON, *range(20, 40)]:
            await writer.write(batch(value))
        fake.ingestion.hold.set()
        await writer.flush()
        assert writer.refused_count == 1
    assert fake.ingestion.producers["p"].all_values() == list(range(40))


async def test_whoever_waits_for_a_refused_row_is_told(spooled, fake):
    async with spooled(gather_rows=1) as writer:
        good, bad = await writer.observe("t", "c", 1.0), await writer.observe("t", "c", POISON)
        await good.durable()
        with pytest.raises(InvalidArgument, match="is no dictionary"):
            await bad.durable()
        later = await writer.observe("t", "c", 2.0)
        await later.durable()


async def test_the_file_of_refused_batches_is_bounded_and_a_full_one_loses_nothing(spooled, fake):
    async with spooled(target=NOWHERE, spool_max_bytes=1_000_000) as writer:
        for _ in range(4):
            await writer.write(batch(POISON, 5_000))
        await writer.write(batch(1))
    async with spooled(spool_max_bytes=1_000_000) as writer:
        with pytest.raises(ResourceExhausted, match="forget_refused"):
            await writer.flush()
        assert writer.refused_count == 2
        await writer.forget_refused()
        writer.abandon()
    async with spooled(spool_max_bytes=1_000_000) as writer:
        await writer.flush()
        assert (writer.refused_count, writer.refused_points) == (4, 20_000)
    assert fake.ingestion.producers["p"].all_values() == [1]


async def test_without_a_spool_the_callback_gets_it(client, fake):
    fake.ingestion.poison = poisoned
    heard: list[tm.RefusedBatch] = []
    async with client.writer("p", on_refused=heard.append) as writer:
        for value in MIXED:
            await writer.write(batch(value))
        total = await writer.flush()
        assert (total.accepted, writer.refused_count, writer.durable) == (4, 4, 8)
        assert await writer.write(batch(5)) == 9
        await writer.flush()
    assert [r.number for r in heard] == [3, 5, 6, 8]
    assert fake.ingestion.producers["p"].all_values() == [1, 2, 3, 4, 5]


async def test_a_batch_that_is_durable_after_all_is_not_set_aside(spooled, fake):
    """An answer that contradicts the log: the log is right."""

    def stored_and_refused(sequence: int) -> tm.TwinmeshError | None:
        if sequence != 2:
            return None
        fake.ingestion.producers["p"].last_sequence = 2
        return REFUSAL

    fake.ingestion.fault = stored_and_refused
    async with spooled() as writer:
        for value in (1, 2, 3):
            await writer.write(batch(value))
        await writer.flush()
        assert (writer.refused_count, writer.durable_without_ack) == (0, 1)
    assert fake.ingestion.producers["p"].last_sequence == 3


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 5), st.integers(1, 31))
def test_numbers_and_sequences_agree_whatever_is_lost_and_forgotten(lost, base, below):
    state = State(producer_id="p", base=base)
    for number, gone in enumerate(lost, 1):
        if gone:
            state.lose(number, number)
    whole = [number for number, gone in enumerate([*lost, False], 1) if not gone]
    expected = {number: base + i for i, number in enumerate(whole, 1)}
    state.forget(below)
    assert state.lost_count == sum(lost)
    for number in whole:
        if number >= below:
            assert state.sequence_of(number) == expected[number]
            assert state.number_of(expected[number] - 1) + 1 == number
