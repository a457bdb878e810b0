"""A writer with a spool: on disk before it says so, sent in order when the mesh is there, once, whatever happens."""

import asyncio

import numpy as np
import pytest

from twinmesh_client.aio import session as session_module
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, Reason, ResourceExhausted, Unavailable
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section


def batch(value: float, n: int = 1) -> ObservationBatch:
    section = double_section(np.zeros(n, np.uint32), np.arange(n, dtype=np.int64), np.full(n, value))
    return ObservationBatch(series=(SeriesKey(twin_id="t", channel="c"),), doubles=section)


async def removed(writer) -> None:
    """Wait until files of acknowledged batches are gone, which happens after the acknowledgement."""
    changed = writer._backlog.changed
    async with asyncio.timeout(10), changed:
        await changed.wait_for(lambda: writer.spool_bytes < 1_000_000 / 16)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch):
    monkeypatch.setattr(session_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(session_module, "LONGEST_PAUSE_S", 0.02)


@pytest.fixture
def spooled(fake, tmp_path):
    def build(**options):
        return open_writer_async("p", target=options.pop("target", fake.target), spool=tmp_path / "spool", **options)

    return build


NOWHERE = "127.0.0.1:1"


async def test_without_a_mesh_batches_are_taken_and_a_later_process_sends_them(spooled, fake):
    async with spooled(target=NOWHERE) as writer:
        assert [await writer.write(batch(v)) for v in (1, 2, 3)] == [1, 2, 3]
        assert (writer.taken, writer.durable, writer.connected) == (3, 0, False)
        assert writer.spool_bytes > 0
    async with spooled(target=NOWHERE) as writer:
        assert await writer.write(batch(4)) == 4
    async with spooled() as writer:
        assert await writer.write(batch(5)) == 5
        assert (await writer.flush()).accepted == 5
        assert (writer.durable, writer.taken) == (5, 5)
    assert fake.ingestion.producers["p"].all_values() == [1, 2, 3, 4, 5]


async def test_a_block_that_ends_before_the_mesh_is_reached_delivers_all_the_same(spooled, fake):
    async with spooled() as writer:
        await writer.write(batch(1))
    assert writer.acknowledged.accepted == 1
    assert fake.ingestion.producers["p"].all_values() == [1]


async def test_a_new_spool_goes_on_behind_what_the_producer_wrote_without_one(spooled, fake):
    async with open_writer_async("p", target=fake.target) as writer:
        for value in (1, 2):
            await writer.write(batch(value))
    async with spooled(target=NOWHERE) as writer:
        await writer.write(batch(3))
    async with spooled() as writer:
        await writer.write(batch(4))
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values() == [1, 2, 3, 4]


async def test_broken_sessions_and_lost_answers_store_nothing_twice(spooled, fake):
    faults = iter([None, "lose", None, Unavailable("gone"), "lose", None])
    fake.ingestion.fault = lambda _: next(faults, None)
    async with spooled() as writer:
        for value in range(10):
            await writer.write(batch(value))
        await writer.flush()
        assert writer.reconnects >= 3
    assert fake.ingestion.producers["p"].all_values() == list(range(10))


async def test_acknowledged_batches_leave_the_disk(spooled):
    async with spooled(spool_max_bytes=1_000_000) as writer:
        for value in range(40):
            await writer.write(batch(value, 5_000))
        await writer.flush()
        await removed(writer)


async def test_a_full_spool_waits_for_the_mesh(spooled, fake):
    fake.ingestion.hold.clear()
    async with spooled(spool_max_bytes=1_000_000) as writer:
        for value in range(9):
            await writer.write(batch(value, 5_000))
        late = asyncio.create_task(writer.write(batch(9, 5_000)))
        await asyncio.sleep(0.05)
        assert not late.done()
        assert writer.spool_bytes <= 1_000_000
        fake.ingestion.hold.set()
        assert await late == 10
        await writer.flush()
    assert len(fake.ingestion.producers["p"].all_values()) == 50_000


async def test_a_full_spool_is_an_error_where_that_was_chosen(spooled):
    async with spooled(target=NOWHERE, spool_max_bytes=1_000_000, spool_full="error") as writer:
        for value in range(9):
            await writer.write(batch(value, 5_000))
        with pytest.raises(ResourceExhausted, match="nothing was taken"):
            await writer.write(batch(9, 5_000))
        assert writer.taken == 9
        await writer.write(batch(1))
        # Rows that were gathered are not dropped in silence either.
        taken = await writer.observe_batch(batch(7, 5_000))
        with pytest.raises(ResourceExhausted):
            await taken.written()
        with pytest.raises(ResourceExhausted):
            await writer.flush()


async def test_a_batch_that_never_fits_is_refused(spooled):
    async with spooled(target=NOWHERE, spool_max_bytes=1_000_000) as writer:
        with pytest.raises(ResourceExhausted):
            await writer.write(batch(1, 50_000))


async def test_the_memory_is_bounded_however_long_the_mesh_is_away(spooled, fake, monkeypatch):
    async with spooled() as writer:
        fake.ingestion.hold.clear()
        for value in range(200):
            await writer.write(batch(value, 5_000))
        assert writer._backlog.window.points <= 400_000 + 4 * 1024 * 1024 // 20
        fake.ingestion.hold.set()
        await writer.flush()
    assert len(fake.ingestion.producers["p"].all_values()) == 1_000_000


async def test_concurrent_writes_share_a_flush_to_disk_and_keep_their_order(spooled, fake, monkeypatch):
    async with spooled(target=NOWHERE) as writer:
        appended: list[int] = []
        real = writer._backlog._spool.append

        def count(batches):
            appended.append(len(batches))
            return real(batches)

        monkeypatch.setattr(writer._backlog._spool, "append", count)
        numbers = await asyncio.gather(*(writer.write(batch(v)) for v in range(50)))
        assert numbers == list(range(1, 51))
        assert len(appended) < 10
    async with spooled() as writer:
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values() == list(range(50))


async def test_a_cancelled_caller_does_not_disturb_the_others(spooled, fake):
    async with spooled() as writer:
        tasks = [asyncio.create_task(writer.write(batch(v))) for v in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await writer.flush()
    told = {v for v, outcome in enumerate(outcomes) if isinstance(outcome, int)}
    stored = fake.ingestion.producers["p"].all_values()
    assert told <= set(stored)
    assert len(stored) == len(set(stored))


async def test_damage_on_disk_is_counted_and_not_sent(spooled, fake, tmp_path):
    async with spooled(target=NOWHERE) as writer:
        for value in range(6):
            await writer.write(batch(value))
    (path,) = (tmp_path / "spool").glob("*.spool")
    data = bytearray(path.read_bytes())
    size = len(data) // 6
    for hit in (1, 2, 5):
        data[hit * size + 40] ^= 4
    path.write_bytes(data)
    async with spooled() as writer:
        await writer.flush()
        assert (writer.spool_damaged, writer.durable) == (3, 6)
        await writer.write(batch(9))
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values() == [0, 3, 4, 9]
    async with spooled() as writer:
        await writer.write(batch(10))
        await writer.flush()
        assert writer.spool_damaged == 3
    assert fake.ingestion.producers["p"].all_values() == [0, 3, 4, 9, 10]


async def test_damage_to_what_the_mesh_has_already_is_no_loss(spooled, fake, tmp_path):
    async with spooled() as writer:
        for value in range(4):
            await writer.write(batch(value))
        await writer.flush()
    (path,) = (tmp_path / "spool").glob("*.spool")
    data = bytearray(path.read_bytes())
    data[40] ^= 4
    path.write_bytes(data)
    async with spooled() as writer:
        await writer.write(batch(4))
        await writer.flush()
        assert writer.spool_damaged == 0
    assert fake.ingestion.producers["p"].all_values() == list(range(5))


async def test_a_restored_mesh_gets_again_what_the_spool_still_has(spooled, fake):
    async with spooled(spool_keep_bytes=500_000) as writer:
        for value in range(10):
            await writer.write(batch(value))
        await writer.flush()
        fake.ingestion.producers["p"].restore(4)
        fake.ingestion.fault = lambda _: None if fake.ingestion.sessions > 1 else Unavailable("restored")
        await writer.write(batch(10))
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values() == list(range(11))


@pytest.fixture
async def lacking(spooled, fake):
    """A spool whose acknowledged files are gone, and a mesh that was restored to before them."""
    async with spooled(spool_max_bytes=1_000_000) as writer:
        for value in range(10):
            await writer.write(batch(value, 5_000))
        await writer.flush()
        await removed(writer)
    fake.ingestion.producers["p"].restore(4)


async def test_a_restored_mesh_that_lacks_what_is_gone_is_an_error_that_names_it(spooled, fake, lacking):
    async with spooled(spool_max_bytes=1_000_000) as writer:
        await writer.write(batch(10))
        with pytest.raises(FailedPrecondition, match="5 to 10") as caught:
            await writer.flush()
        assert caught.value.reason == Reason.LOG_REWOUND
        assert caught.value.metadata == {"first_missing": "5", "last_missing": "10"}
        writer.abandon()


async def test_a_gap_is_accepted_where_that_was_chosen(spooled, fake, lacking):
    async with spooled(spool_max_bytes=1_000_000, accept_gap=True) as writer:
        await writer.write(batch(10))
        await writer.flush()
    async with spooled(spool_max_bytes=1_000_000) as writer:
        await writer.write(batch(11))
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values()[20_000:] == [10, 11]


async def test_a_copy_of_a_spool_is_noticed(spooled, fake, tmp_path):
    async with spooled(target=NOWHERE) as writer:
        await writer.write(batch(1))
    async with spooled() as writer:
        await writer.flush()
        fake.ingestion.producers["p"].last_sequence = 9
        fake.ingestion.fault = lambda _: Unavailable("gone")
        await writer.write(batch(2))
        with pytest.raises(FailedPrecondition) as caught:
            await writer.flush()
        assert caught.value.reason == Reason.PRODUCER_FENCED
        writer.abandon()


async def test_rows_are_gathered_into_batches_on_disk(spooled, fake):
    async with spooled(target=NOWHERE, gather_rows=100, gather_delay_s=10) as writer:
        taken = [await writer.observe("t", "c", float(v), time=v + 1) for v in range(250)]
        assert await taken[0].written() == 1
        assert await taken[199].written() == 2
        assert writer.taken == 2
        assert await writer.sync() == 3
        assert await taken[249].written() == 3
    async with spooled() as writer:
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values() == list(range(250))
    assert list(fake.ingestion.producers["p"].points.values()) == [100, 100, 50]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"spool_max_bytes": 10}, "spool_max_bytes"),
        ({"spool_keep_bytes": -1}, "spool_keep_bytes"),
        ({"spool_keep_bytes": 900_000_000}, "spool_keep_bytes"),
        ({"spool_full": "drop"}, "spool_full"),
    ],
)
async def test_bounds_that_make_no_sense_are_refused(spooled, options, field):
    with pytest.raises(InvalidArgument, match=field):
        async with spooled(**options):
            pass


async def test_leaving_with_an_error_keeps_what_is_on_disk(spooled, fake):
    async def use():
        async with spooled(target=NOWHERE) as writer:
            await writer.write(batch(1))
            raise KeyError

    with pytest.raises(KeyError):
        await use()
    async with spooled() as writer:
        await writer.flush()
    assert fake.ingestion.producers["p"].all_values() == [1]


async def test_whoever_still_writes_when_the_block_is_left_is_told(spooled):
    async with spooled(target=NOWHERE, spool_max_bytes=1_000_000) as writer:
        for value in range(9):
            await writer.write(batch(value, 5_000))
        late = asyncio.create_task(writer.write(batch(9, 5_000)))
        await asyncio.sleep(0.02)
    with pytest.raises(Unavailable, match="closed"):
        await late
