"""The sequencer on a log in memory: exactly once under every outcome a commit can have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.time import SystemClock
from twinmesh_storage.domain.admission import Accept, Answer, ProducerState, Refuse, Repeat, admit
from twinmesh_storage.domain.catchup import CatchUp
from twinmesh_storage.domain.entries import Appended, EntryKind, NewEntry, ProducerStamp
from twinmesh_storage.domain.follow import Follower
from twinmesh_storage.domain.follow_filter import Filter
from twinmesh_storage.domain.frame_shelf import Frame
from twinmesh_storage.domain.landing import Landing
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.rows import Lane, Segment
from twinmesh_storage.domain.sequencer import Sequencer, SequencerLimits
from twinmesh_storage.domain.series import Catalogue, SeriesRequest
from twinmesh_testing.storage_fakes import FakeDatabase, FakeLog, FakeSeries


def entry(name: str, sequence: int = 0, epoch: int = 1, **fields: Any) -> NewEntry:
    body = f"{name}{sequence}".encode()
    return NewEntry(
        tenant="default",
        kind=EntryKind.CONTROL,
        body=body,
        content_hash=blake2b(body, digest_size=16).digest(),
        producer=ProducerStamp(producer_id=name, epoch=epoch, sequence=sequence) if sequence else None,
        **fields,
    )


class Rig:
    """A sequencer, its view and its log."""

    def __init__(
        self,
        database: FakeDatabase,
        holder: str = "me",
        limits: SequencerLimits | None = None,
        ring_bytes: int = 1 << 20,
    ) -> None:
        self.log = FakeLog(database, SystemClock())
        self.view = LogView(
            incarnation=database.incarnation, fold_offset=0, ring_bytes=ring_bytes, hot_rows=1000, clock=SystemClock()
        )
        series = FakeSeries(database)
        self.catalogue = Catalogue()
        self.catch_up = catch_up = CatchUp(
            log=self.log,
            series=series,
            catalogue=self.catalogue,
            view=self.view,
            landing=Landing(lambda _: ObservationBatch()),
        )
        self.events: list[str] = []
        self.sequencer = Sequencer(
            store=self.log,
            view=self.view,
            catch_up=catch_up,
            holder=holder,
            limits=limits or SequencerLimits(renew_s=0.05, poll_s=0.01),
            report=lambda event, **_: self.events.append(event),
        )

    async def append(self, new: NewEntry) -> Appended:
        return await self.sequencer.append(new)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.sequencer.run())
            while self.sequencer.lease is None and "standing_by" not in self.events:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            yield self
            task.cancel()


def as_json(frame: Frame, _incarnation: str) -> bytes:
    """Encode what matters of a frame here: the offsets of its entries, and where it leads to."""
    return json.dumps([[e.offset for e in frame.entries], frame.through]).encode()


async def test_waiting_entries_share_a_commit_and_become_visible_in_order() -> None:
    async with Rig(FakeDatabase()).running() as rig:
        answers = await asyncio.gather(*(rig.append(entry(f"e{i}")) for i in range(50)))
        assert [a.offset for a in answers] == list(range(1, 51))
        assert len({a.commit_time_unix_us for a in answers}) < 50
        recent = rig.view.recent(0, 1 << 20)
        assert recent is not None
        assert [e.offset for e in recent] == list(range(1, 51))


async def test_one_who_is_overtaken_by_a_fold_knows_the_series_it_passed_over() -> None:
    database = FakeDatabase()
    lagging = Rig(database, holder="other")
    async with Rig(database).running() as rig:
        new = SeriesRequest(twin_id="t", channel="c", kind=ChannelKind.GAUGE, unit="", expected_interval_us=0)
        await FakeSeries(database).resolve("default", [new])
        await rig.append(entry("a"))
    database.fold_offset = 1
    await lagging.catch_up.to_head()
    assert lagging.view.head == 1
    assert [s.channel for s in lagging.catalogue.of_twin("default", "t")] == ["c"]


@pytest.mark.parametrize("fault", ["lose_answers", "drop_commits"])
async def test_a_lost_answer_neither_loses_nor_doubles(fault: str) -> None:
    database = FakeDatabase()
    async with Rig(database).running() as rig:
        await rig.log.open_producer("default", "p")
        for sequence in range(1, 8):
            setattr(rig.log, fault, sequence % 2)
            answers = await asyncio.gather(rig.append(entry("p", sequence)), rig.append(entry(f"plain{sequence}")))
            assert not any(a.replayed for a in answers)
            assert rig.view.head == len(database.entries) == 2 * sequence
        bodies = [e.body for e in database.entries]
        assert len(set(bodies)) == len(bodies)
        assert "commit_outcome_unknown" in rig.events


async def test_a_poison_entry_fails_alone() -> None:
    database = FakeDatabase()
    async with Rig(database).running() as rig:
        rig.log.poison = {"bad"}
        new = [entry("a"), entry("b", request_id="bad"), entry("c")]
        answers = await asyncio.gather(*(rig.append(n) for n in new), return_exceptions=True)
        assert [getattr(a, "offset", None) for a in answers] == [1, None, 2]
        assert isinstance(answers[1], InvalidArgument)


async def test_an_environment_error_is_not_poison() -> None:
    database = FakeDatabase()
    async with Rig(database).running() as rig:
        rig.log.available = False
        with pytest.raises(Unavailable):
            await rig.append(entry("a"))
        rig.log.available = True
        async with asyncio.timeout(5):
            while True:
                try:
                    assert (await rig.append(entry("a"))).offset == 1
                    break
                except Unavailable:
                    await asyncio.sleep(0.01)


async def test_appends_are_shed_while_compaction_lags_in_rows_or_in_age() -> None:
    column = np.arange(4)
    rows = Segment(lane=Lane.NUMERIC, series=column, ts=column, value=column, quality=column.astype(np.uint8))
    new = NewEntry(tenant="default", kind=EntryKind.OBSERVATIONS, body=b"", content_hash=bytes(16), segments=(rows,))
    for limits in (SequencerLimits(tail_rows=3), SequencerLimits(tail_age_s=0.0)):
        async with Rig(FakeDatabase(), limits=limits).running() as rig:
            await rig.append(new)
            with pytest.raises(ResourceExhausted) as shed:
                await rig.append(new)
            assert shed.value.retry_after_s == 1.0
            await rig.view.folded_elsewhere(1)
            assert (await rig.append(entry("later"))).offset == 2


async def test_a_full_disk_is_told_for_as_long_as_callers_are_told_to_wait() -> None:
    async with Rig(FakeDatabase()).running() as rig:
        await rig.sequencer.check()
        rig.log.full = True
        with pytest.raises(ResourceExhausted):
            await rig.append(entry("a"))
        with pytest.raises(ResourceExhausted):
            await rig.sequencer.check()
        rig.log.full = False
        async with asyncio.timeout(5):
            while True:
                try:
                    assert (await rig.append(entry("a"))).offset == 1
                    break
                except ResourceExhausted:
                    await asyncio.sleep(0.01)


async def test_a_deposed_sequencer_writes_nothing_more_and_the_next_one_goes_on() -> None:
    database = FakeDatabase()
    async with Rig(database).running() as old:
        await old.append(entry("a"))
        async with Rig(database, "rival").running() as new:
            with pytest.raises(FailedPrecondition) as refused:
                await new.append(entry("x"))
            assert refused.value.reason == "NOT_SEQUENCER"
            old.log.depose()
            async with asyncio.timeout(5):
                while new.sequencer.lease is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert (await new.append(entry("b"))).offset == 2
            with pytest.raises(FailedPrecondition):
                await old.append(entry("c"))
            async with asyncio.timeout(5):
                while old.view.head < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert [e.body for e in database.entries] == [b"a0", b"b0"]


async def test_a_full_queue_sheds_and_says_when_to_come_back() -> None:
    rig = Rig(FakeDatabase(), limits=SequencerLimits(queue_entries=2))
    waiting = [asyncio.create_task(rig.append(entry(f"e{i}"))) for i in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as shed:
        await rig.append(entry("one too many"))
    assert shed.value.retry_after_s
    async with rig.running():
        assert [a.offset for a in await asyncio.gather(*waiting)] == [1, 2]


async def test_whoever_left_before_the_commit_is_not_written() -> None:
    database = FakeDatabase()
    rig = Rig(database)
    gone = asyncio.create_task(rig.append(entry("gone")))
    stays = asyncio.create_task(rig.append(entry("stays")))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    async with rig.running():
        assert (await stays).offset == 1
    assert [e.body for e in database.entries] == [b"stays0"]


async def test_a_follower_is_told_to_go_elsewhere_when_the_process_drains() -> None:
    rig = Rig(FakeDatabase())
    follower = Follower(log=rig.log, view=rig.view, twins_of=lambda _: None, encode=as_json)
    async with rig.running():
        await rig.append(entry("a"))
        frames = follower.follow(after=0, bookmark_s=5.0)
        assert json.loads(await anext(frames)) == [[1], 1]
        asyncio.get_running_loop().call_later(0.01, rig.view.close)
        with pytest.raises(Unavailable) as drained:
            await anext(frames)
        assert (drained.value.reason, drained.value.metadata["offset"]) == ("DRAINING", "1")


async def test_a_follower_that_fell_out_of_memory_goes_on_from_the_log_without_gap() -> None:
    rig = Rig(FakeDatabase(), ring_bytes=40)
    follower = Follower(log=rig.log, view=rig.view, twins_of=lambda _: None, encode=as_json)
    async with rig.running():
        for number in range(60):
            await rig.append(entry(f"entry{number}"))
        assert rig.view.recent(0, 100) is None
        seen: list[int] = []
        async for data in follower.follow(after=0, wanted=Filter(tenant="default"), bookmark_s=5.0):
            offsets, through = json.loads(data)
            seen += offsets
            if through == 60:
                break
        assert seen == list(range(1, 61))


SENT = st.lists(st.tuples(st.sampled_from("pq"), st.integers(1, 5), st.integers(1, 2), st.booleans()), max_size=30)


@given(SENT, st.lists(st.integers(1, 6), max_size=6))
def test_however_sends_are_grouped_each_sequence_is_accepted_once_and_in_order(
    sent: list[tuple[str, int, int, bool]], sizes: list[int]
) -> None:
    """The law of admission: duplicates, gaps, other content and old epochs, in any grouping, against a plain model."""
    opened = {("default", p): 2 for p in "pq"}
    none = Appended(offset=0, commit_time_unix_us=0)
    states = {k: ProducerState(epoch=e, last_sequence=0, last_hash=b"", last=none) for k, e in opened.items()}
    accepted: dict[str, list[int]] = {"p": [], "q": []}
    head = at = 0
    for size in [*sizes, len(sent)]:
        part, at = sent[at : at + size], at + size
        group = [entry(p, s, e, receipt=b"other" if other else b"") for p, s, e, other in part]
        group = [
            g if not other else NewEntry(
                tenant=g.tenant, kind=g.kind, body=g.body, content_hash=b"?" * 16, producer=g.producer
            )
            for g, (_, _, _, other) in zip(group, part, strict=True)
        ]  # fmt: skip
        verdicts = admit(group, states, {})
        ranks = [v.rank for v in verdicts if isinstance(v, Accept)]
        assert ranks == list(range(len(ranks)))
        for new, verdict in zip(group, verdicts, strict=True):
            stamp = new.producer
            assert stamp is not None
            last = len(accepted[stamp.producer_id])
            if stamp.epoch != 2 or stamp.sequence > last + 1:
                assert isinstance(verdict, Refuse)
            elif stamp.sequence == last + 1:
                assert isinstance(verdict, Accept)
                accepted[stamp.producer_id].append(stamp.sequence)
                states["default", stamp.producer_id] = ProducerState(
                    epoch=2,
                    last_sequence=stamp.sequence,
                    last_hash=new.content_hash,
                    last=Appended(offset=head + 1 + verdict.rank, commit_time_unix_us=0),
                )
            else:
                assert isinstance(verdict, Answer | Repeat | Refuse)
                if isinstance(verdict, Refuse):
                    assert verdict.error.reason == "SEQUENCE_REUSED"
        head += len(ranks)
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in accepted.values())


async def test_every_waiter_is_answered_when_the_sequencer_ends() -> None:
    rig = Rig(FakeDatabase())
    async with rig.running():
        rig.log.available = False
        waiting = asyncio.create_task(rig.append(entry("a")))
        with pytest.raises(TwinmeshError):
            await waiting
