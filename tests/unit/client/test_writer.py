"""A producer session stores each batch exactly once, and always ends: with an answer or with a reason."""

import asyncio
import itertools

import numpy as np
import pytest

import twinmesh_client as tm
from twinmesh_client.aio import backlog as backlog_module
from twinmesh_client.aio import session as session_module
from twinmesh_client.aio import writer as writer_module
from twinmesh_client.aio.session import Session
from twinmesh_client.aio.writer import Writer
from twinmesh_core.errors import FailedPrecondition, Internal, Reason, ResourceExhausted, Unavailable
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section


def batch(n: int = 10) -> ObservationBatch:
    section = double_section(np.zeros(n, np.uint32), np.arange(n, dtype=np.int64), np.ones(n))
    return ObservationBatch(series=(SeriesKey(twin_id="t", channel="c"),), doubles=section)


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch):
    monkeypatch.setattr(session_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(session_module, "LONGEST_PAUSE_S", 0.02)


def writer(client, **options) -> Writer:
    return Writer(client._connection.channels["ingestion"], "p", **options)


def once(sequence: int, what):
    """A fault for the first delivery of one sequence."""
    seen = itertools.count()
    return lambda s: what if s == sequence and next(seen) == 0 else None


async def test_batches_arrive_in_order_and_the_sum_is_told(client, fake):
    acks: list[tm.WriteAck] = []
    async with writer(client, on_ack=acks.append) as w:
        assert [await w.write(batch(n)) for n in (1, 2, 3)] == [1, 2, 3]
        total = await w.flush()
    assert (total.accepted, total.offset, len(acks)) == (6, 3, 3)
    assert fake.ingestion.producers["p"].points == {1: 1, 2: 2, 3: 3}


async def test_a_new_session_goes_on_after_the_last_durable_sequence(client):
    async with writer(client) as w:
        assert await w.write(batch()) == 1
    async with writer(client) as w:
        assert await w.write(batch()) == 2


async def test_a_broken_session_is_opened_again_and_nothing_is_stored_twice(client, fake):
    fake.ingestion.fault = once(3, Unavailable("gone"))
    async with writer(client) as w:
        for _ in range(5):
            await w.write(batch())
        total = await w.flush()
        assert w.reconnects >= 1
    assert total.accepted == 50
    assert fake.ingestion.producers["p"].points == dict.fromkeys(range(1, 6), 10)


async def test_a_batch_whose_answer_was_lost_is_answered_again(client, fake):
    fake.ingestion.fault = once(2, "lose")
    async with writer(client) as w:
        await w.write(batch())
        await w.write(batch())
        total = await w.flush()
        assert (total.accepted, w.replayed, w.durable_without_ack) == (20, 1, 0)
    assert fake.ingestion.deliveries.count(2) == 2


async def test_points_whose_acknowledgement_is_lost_for_good_are_counted_apart(client, fake):
    async with writer(client) as w:
        fake.ingestion.hold.clear()
        for _ in range(3):
            await w.write(batch())
        # The server made all three durable, but the connection broke before it said so.
        fake.ingestion.producers["p"].last_sequence = 3
        fake.ingestion.fault = once(1, Unavailable("gone"))
        fake.ingestion.hold.set()
        total = await w.flush()
        assert (w.durable_without_ack, total.accepted) == (20, 10)


@pytest.mark.parametrize(
    "error",
    [
        FailedPrecondition("a newer session", reason=Reason.PRODUCER_FENCED),
        FailedPrecondition("skipped", reason=Reason.SEQUENCE_GAP),
        tm.InvalidArgument("malformed", reason=Reason.MALFORMED_MESSAGE),
        ResourceExhausted("too large", reason=Reason.MESSAGE_TOO_LARGE),
    ],
)
async def test_what_trying_again_does_not_mend_ends_the_session_at_once(client, fake, error):
    fake.ingestion.fault = lambda _: error
    async with writer(client) as w:
        await w.write(batch())
        with pytest.raises(type(error)) as caught:
            await w.flush()
        assert caught.value.reason == error.reason
        with pytest.raises(type(error)):
            await w.write(batch())
        fake.ingestion.fault = lambda _: None
        w.abandon()
    assert fake.ingestion.sessions == 1


async def test_shedding_is_waited_out(client, fake):
    fake.ingestion.fault = once(1, ResourceExhausted("full", retry_after_s=0.01))
    async with writer(client) as w:
        await w.write(batch())
        assert (await w.flush()).accepted == 10


async def test_patience_ends(client, fake):
    fake.ingestion.refuse = Unavailable("away")
    async with writer(client, patience_s=0.1) as w:
        with pytest.raises(Unavailable, match="away"):
            await w.write(batch())
        with pytest.raises(Unavailable):
            await w.flush()
        w.abandon()


async def test_time_without_work_does_not_use_up_patience(client, fake):
    async with writer(client, patience_s=0.2) as w:
        await w.write(batch())
        await w.flush()
        await asyncio.sleep(0.3)
        fake.ingestion.fault = once(2, Unavailable("restarted"))
        await w.write(batch())
        assert (await w.flush()).accepted == 20


async def test_a_silent_server_is_left_for_a_new_session(client, fake):
    fake.ingestion.fault = once(1, "hang")
    async with writer(client, silence_s=0.2) as w:
        await w.write(batch())
        assert (await w.flush()).accepted == 10
    assert fake.ingestion.sessions == 2


async def test_writing_waits_while_too_much_is_unacknowledged(client, fake, monkeypatch):
    monkeypatch.setattr(backlog_module, "MAX_UNACKED_POINTS", 25)
    async with writer(client) as w:
        fake.ingestion.hold.clear()
        await w.write(batch())
        await w.write(batch())
        third = asyncio.create_task(w.write(batch()))
        await asyncio.sleep(0.05)
        assert not third.done()
        assert w._backlog.window.points == 20
        fake.ingestion.hold.set()
        assert await third == 3


async def test_bytes_are_bounded_like_points(client, fake, monkeypatch):
    monkeypatch.setattr(backlog_module, "MAX_UNACKED_BYTES", 500)
    async with writer(client) as w:
        fake.ingestion.hold.clear()
        await w.write(batch())
        late = asyncio.create_task(w.write(batch(20)))
        await asyncio.sleep(0.05)
        assert not late.done()
        fake.ingestion.hold.set()
        await late


async def test_a_batch_too_large_for_a_message_is_refused_before_it_is_taken(client, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_MESSAGE_BYTES", 2_000)
    async with writer(client) as w:
        with pytest.raises(ResourceExhausted) as caught:
            await w.write(batch(1_000))
        assert caught.value.reason == Reason.MESSAGE_TOO_LARGE
        assert await w.write(batch()) == 1


async def test_another_writer_of_the_same_name_is_noticed(client, fake):
    async with writer(client) as w:
        await w.write(batch())
        await w.flush()
        fake.ingestion.producers["p"].last_sequence = 9
        fake.ingestion.fault = lambda _: Unavailable("gone")
        await w.write(batch())
        with pytest.raises(FailedPrecondition) as caught:
            await w.flush()
        assert caught.value.reason == Reason.PRODUCER_FENCED
        w.abandon()


async def test_a_defect_reaches_whoever_waits(client, fake, monkeypatch):
    def broken(_self, _message):
        raise ZeroDivisionError

    monkeypatch.setattr(Session, "_take", broken)

    async def use():
        async with writer(client) as w:
            await w.write(batch())
            await w.flush()

    with pytest.raises(Internal):
        await use()


async def test_an_exception_in_the_block_does_not_wait_for_the_rest(client, fake):
    fake.ingestion.hold.clear()

    async def use():
        async with writer(client) as w:
            await w.write(batch())
            raise KeyError

    with pytest.raises(KeyError):
        await use()
    fake.ingestion.hold.set()


async def test_an_empty_batch_is_not_sent(client, fake):
    async with writer(client) as w:
        assert await w.write(ObservationBatch()) == 0
        assert (await w.flush()).accepted == 0
    assert fake.ingestion.deliveries == []


async def test_the_servers_credits_bound_what_is_on_its_way(client, fake):
    fake.ingestion.credits = (35, 0)
    async with writer(client) as w:
        fake.ingestion.hold.clear()
        for _ in range(6):
            await w.write(batch())
        await asyncio.sleep(0.05)
        assert (w._backlog.window.sent, w._backlog.window.unsent) == (3, 3)
        fake.ingestion.hold.set()
        assert (await w.flush()).accepted == 60
        # One batch always fits, however large.
        await w.write(batch(100))
        assert (await w.flush()).accepted == 160


async def test_credits_in_bytes_bound_likewise(client, fake):
    fake.ingestion.credits = (0, 700)
    async with writer(client) as w:
        fake.ingestion.hold.clear()
        for _ in range(6):
            await w.write(batch())
        await asyncio.sleep(0.05)
        assert w._backlog.window.sent == 700 // (w._backlog.window.bytes // 6) < 6
        fake.ingestion.hold.set()
        assert (await w.flush()).accepted == 60


async def test_one_acknowledgement_may_be_of_several_batches(client, fake):
    fake.ingestion.acks_per_message = 5
    acks: list[tm.WriteAck] = []
    async with writer(client, on_ack=acks.append) as w:
        for n in range(1, 11):
            await w.write(batch(n))
        total = await w.flush()
        assert (total.accepted, total.offset, w.durable) == (55, 10, 10)
    assert [ack.accepted for ack in acks] == [15, 40]
    assert fake.ingestion.acks_sent == 2


async def test_a_range_whose_acknowledgement_was_lost_is_accounted_for(client, fake):
    fake.ingestion.acks_per_message = 5
    fake.ingestion.fault = once(8, "lose")
    async with writer(client) as w:
        for _ in range(10):
            await w.write(batch())
        total = await w.flush()
        # 1 to 5 were acknowledged; 6 and 7 are durable; 8 was answered again; 9 and 10 anew.
        assert (total.accepted, w.durable_without_ack, w.replayed) == (80, 20, 1)
    assert fake.ingestion.producers["p"].points == dict.fromkeys(range(1, 11), 10)


async def test_a_session_is_not_gone_on_with_when_another_was_opened_since(client, fake):
    """The end of a fenced session may be heard as a broken connection: the newer one must not be fenced in turn."""
    async with writer(client) as w:
        await w.write(batch())
        await w.flush()
        fake.ingestion.producers["p"].epoch += 1
        fake.ingestion.fault = lambda _: Unavailable("The call ended while something was being sent to it; try again.")
        await w.write(batch())
        with pytest.raises(FailedPrecondition) as caught:
            await w.flush()
        assert caught.value.reason == Reason.PRODUCER_FENCED
        assert fake.ingestion.producers["p"].epoch == 2
        w.abandon()


async def test_an_own_session_that_was_opened_and_never_heard_of_fences_nobody(client, fake):
    async with writer(client) as w:
        await w.write(batch())
        await w.flush()
        fake.ingestion.fault = once(2, Unavailable("gone"))
        fake.ingestion.lost_welcomes = 2
        await w.write(batch())
        assert (await w.flush()).accepted == 20
    assert fake.ingestion.producers["p"].epoch == 4


async def test_an_older_server_lets_every_session_go_on(client, fake):
    fake.ingestion.knows_epochs = False
    async with writer(client) as w:
        await w.write(batch())
        await w.flush()
        fake.ingestion.producers["p"].epoch += 5
        fake.ingestion.fault = once(2, Unavailable("gone"))
        await w.write(batch())
        assert (await w.flush()).accepted == 20
