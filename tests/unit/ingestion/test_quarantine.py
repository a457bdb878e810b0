"""Replay and discard of rows kept aside: each row once, each with its outcome, whatever gets lost on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.unit.ingestion.plant import NOW, PUMP, Monotonic, S, gauges, intake, landed, registry

from twinmesh_core.errors import FailedPrecondition, InvalidArgument, Reason
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_core.quality import FlagReason
from twinmesh_core.registry import Twin
from twinmesh_ingestion.adapters.memory import MemoryLog
from twinmesh_ingestion.domain.outcomes import Sweep
from twinmesh_ingestion.domain.ports import QuarantineFilter
from twinmesh_ingestion.domain.quarantine import Order, Quarantine
from twinmesh_ingestion.rpc.acks import AckReceipts

ALL = QuarantineFilter()


class Desk:
    """One ingestion on one log, and orders of replay and discard."""

    def __init__(self):
        self.log = MemoryLog()
        self.registry = registry()
        self.taking = intake(self.log, self.registry)
        self.quarantine = Quarantine(self.taking, self.log, AckReceipts())
        self._orders = 0

    async def write(self, batch):
        prepared = await self.taking.prepare("default", batch, content_hash=b"h" * 16, backfill=False)
        return await self.taking.append("default", prepared, request_id="")

    def order(self, wanted=ALL, **fields):
        self._orders += 1
        settings = {"after": 0, "max_rows": 10_000, "principal": "ann", "dry_run": False, "content_hash": b"o" * 16}
        return Order(wanted=wanted, **{**settings, "request_id": f"order-{self._orders}", **fields})

    async def replay(self, wanted=ALL, **fields):
        return await self.quarantine.replay("default", self.order(wanted, **fields))

    async def discard(self, wanted=ALL, **fields):
        return await self.quarantine.discard("default", self.order(wanted, comment="not wanted", **fields))

    async def kept(self):
        return (await self.log.kept("default", ALL, after=0, limit=10_000)).rows

    def make(self, twin_id):
        self.registry.create(Twin(twin_id=twin_id, twin_type_id=PUMP.twin_type_id))

    def values(self):
        return sorted(float(v) for i in range(len(self.log.entries)) for v in landed(self.log, i).doubles.values)


@pytest.fixture
def desk():
    return Desk()


async def test_rows_land_once_their_twin_is_there_and_the_others_stay(desk):
    await desk.write(gauges("temperature", [20.0, 21.0, 500.0], twin="P9"))
    await desk.write(gauges("temperature", [30.0], twin="P8"))
    desk.make("P9")
    sweep = await desk.replay()
    assert (sweep.examined, sweep.skipped, sweep.matched, sweep.next_after) == (4, 0, 4, 0)
    # The pipeline flags as in any write.
    assert (sweep.ack.accepted_count, sweep.ack.flagged_count, sweep.ack.quarantined_count) == (3, 1, 1)
    assert desk.values() == [20.0, 21.0, 500.0]
    assert [row.observation.key.twin_id for row in await desk.kept()] == ["P8"]
    again = await desk.replay()
    assert (again.examined, again.ack.accepted_count) == (1, 0)
    assert desk.values() == [20.0, 21.0, 500.0]


async def test_a_row_that_stays_has_the_reason_found_now(desk):
    await desk.write(gauges("altitude", [1.0], twin="P9"))
    desk.make("P9")
    sweep = await desk.replay()
    (row,) = await desk.kept()
    assert row.reason == FlagReason.UNKNOWN_CHANNEL
    assert "it has: temperature" in row.message
    assert sweep.ack.outcomes[0].reason == FlagReason.UNKNOWN_CHANNEL


async def test_the_same_request_has_one_effect_and_one_answer_whatever_is_lost(desk):
    await desk.write(gauges("temperature", [20.0], twin="P9"))
    desk.make("P9")
    order = desk.order()
    desk.log.faults.lose_answers = 2
    first = await desk.quarantine.replay("default", order)
    again = await desk.quarantine.replay("default", order)
    assert (first.ack.accepted_count, first.examined) == (again.ack.accepted_count, again.examined) == (1, 1)
    assert again.ack.replayed
    assert again.ack.offset == first.ack.offset
    assert desk.values() == [20.0]
    with pytest.raises(InvalidArgument) as reused:
        await desk.quarantine.replay("default", replace(order, content_hash=b"x" * 16))
    assert reused.value.reason == "REQUEST_ID_REUSED"


async def test_two_who_replay_the_same_rows_land_them_once(desk):
    await desk.write(gauges("temperature", [20.0, 21.0], twin="P9"))
    desk.make("P9")
    rival = Quarantine(desk.taking, desk.log, AckReceipts())
    page = await desk.log.kept("default", ALL, after=0, limit=10)
    read = desk.log.kept

    async def stale(*_, **__):
        desk.log.kept = read  # as read before the other one was done; the next look is fresh
        await rival.replay("default", desk.order())
        return page

    desk.log.kept = stale
    sweep = await desk.replay()
    assert sweep.ack.accepted_count == 0
    assert desk.values() == [20.0, 21.0]


async def test_who_never_finds_the_rows_in_peace_is_told(desk):
    refused = [FailedPrecondition("gone", reason=Reason.QUARANTINE_CHANGED) for _ in range(9)]
    await desk.write(gauges("temperature", [20.0], twin="P9"))
    desk.log.faults.refuse_appends = refused
    with pytest.raises(FailedPrecondition, match="gone"):
        await desk.replay()
    assert len(refused) == 4


async def test_pages_are_bounded_and_go_on_after_rows_that_stay(desk):
    await desk.write(gauges("temperature", np.arange(7.0), twin="P9"))
    await desk.write(gauges("temperature", [9.0], twin="P8"))
    desk.make("P8")
    after = 0
    sweeps: list[Sweep] = []
    while not sweeps or after:
        sweeps.append(await desk.replay(after=after, max_rows=3))
        after = sweeps[-1].next_after
    assert [s.examined for s in sweeps] == [3, 3, 2]
    assert desk.values() == [9.0]


async def test_a_dry_run_changes_nothing(desk):
    await desk.write(gauges("temperature", [20.0], twin="P9"))
    desk.make("P9")
    sweep = await desk.replay(dry_run=True)
    assert sweep.ack.accepted_count == 1
    assert (await desk.discard(dry_run=True)).examined == 1
    assert len(await desk.kept()) == 1
    assert len(desk.log.entries) == 1


async def test_rows_ahead_of_their_time_are_replayed_only_by_name(desk):
    await desk.write(gauges("temperature", [20.0], start=NOW + 3_600 * S))
    assert (await desk.replay()).skipped == 1
    desk.taking = intake(desk.log, desk.registry)
    clock = Monotonic()
    clock.jump(7_200)
    desk.taking._clock = clock
    desk.quarantine = Quarantine(desk.taking, desk.log, AckReceipts())
    assert (await desk.replay()).skipped == 1
    named = await desk.replay(QuarantineFilter(reasons=(FlagReason.TIME_IN_FUTURE,)))
    assert (named.skipped, named.ack.accepted_count) == (0, 1)


async def test_rows_without_a_series_stay_as_they_are(desk):
    batch = ObservationBatch(series=(), doubles=double_section([3], [NOW], [1.0]))
    await desk.write(batch)
    sweep = await desk.replay()
    assert (sweep.examined, sweep.skipped) == (1, 1)
    assert (await desk.kept())[0].reason == FlagReason.UNKNOWN_HANDLE
    assert (await desk.discard()).examined == 1
    assert not await desk.kept()


async def test_every_kind_of_value_is_kept_whole_and_lands_as_it_was_sent(desk):
    names = ("temperature", "stage", "running", "note", "config")
    keys = tuple(SeriesKey(twin_id="P9", channel=name) for name in names)
    at = NOW - 100 * S
    long = "x" * 50_000 + "\0ü"
    await desk.write(
        ObservationBatch(
            series=keys,
            doubles=double_section([0, 0], [at, at + 1], [1.5, np.nan], [2, 0]),
            int64s=int64_section([1], [at], [-(2**62)]),
            bools=bool_section([2], [at], [1]),
            texts=text_section([3, 3], [at, at + 1], [long.encode(), b"\xff\xfe"]),
            jsons=text_section([4], [at], ['{"a": 1}']),
        )
    )
    desk.make("P9")
    sweep = await desk.replay()
    assert (sweep.ack.accepted_count, sweep.ack.quarantined_count) == (5, 2)
    batch = landed(desk.log)
    assert (batch.doubles.values.tolist(), batch.doubles.quality.tolist()) == ([1.5], [2])
    assert batch.int64s.values.tolist() == [-(2**62)]
    assert batch.bools.values.tolist() == [1]
    assert list(batch.texts.texts()) == [long.encode()]
    assert list(batch.jsons.texts()) == [b'{"a": 1}']
    # Bytes that are no text never land as the words that show them.
    assert {row.reason for row in await desk.kept()} == {FlagReason.NOT_FINITE, FlagReason.MALFORMED_VALUE}


async def test_discarded_rows_are_gone_from_the_filter_alone(desk):
    await desk.write(gauges("temperature", [1.0, 2.0], twin="P9"))
    await desk.write(gauges("temperature", [3.0], twin="P8"))
    sweep = await desk.discard(QuarantineFilter(twin_id="P9"))
    assert (sweep.examined, sweep.matched) == (2, 2)
    assert [row.observation.value for row in await desk.kept()] == [3.0]
    change = desk.log.entries[-1].submission.change
    assert (change.principal, change.comment) == ("ann", "not wanted")
