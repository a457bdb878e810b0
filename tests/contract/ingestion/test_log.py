"""What ingestion needs of a log, held against the one in memory and against storage."""

from __future__ import annotations

import pytest
from tests.integration.storage.mesh import storage

from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section, int64_section
from twinmesh_core.quality import FlagReason
from twinmesh_ingestion.adapters.memory import MemoryLog
from twinmesh_ingestion.adapters.storage import StorageLog
from twinmesh_ingestion.domain.outcomes import QuarantinedRow
from twinmesh_ingestion.domain.ports import NewSeries, Stamp, Submission

GAUGE = NewSeries(twin_id="P1", channel="t", unit="Cel", kind=ChannelKind.GAUGE, expected_interval_us=0)


@pytest.fixture(params=["memory", "storage"])
async def log(request):
    if request.param == "memory":
        yield MemoryLog()
        return
    async with storage(request.getfixturevalue("database_url")) as store:
        log = StorageLog(store.channel, append_timeout_s=10.0)
        yield log
        await log.close()


async def submission(log, text, **key):
    (series_id,) = await log.resolve_series("default", [GAUGE], 1)
    named = SeriesKey(twin_id="P1", channel="t", unit="Cel", series_id=series_id, kind=ChannelKind.GAUGE)
    value = float(len(text))
    body = wire.encode(ObservationBatch(series=(named,), doubles=double_section([0], [1], [value], [1])))
    row = QuarantinedRow(
        twin_id="P\x009", channel="t", unit="", time_unix_us=-5, section="doubles", value=float("nan"), quality=9,
        reason=FlagReason.UNKNOWN_TWIN, message="create it",
    )  # fmt: skip
    return Submission(
        body=body, content_hash=text.encode().ljust(16)[:16], receipt=f"ack {text}".encode(), quarantine=[row], **key
    )


def stamp(epoch, sequence):
    return Stamp(producer_id="edge", epoch=epoch, sequence=sequence)


async def test_series_ids_are_the_same_every_time_and_per_tenant(log):
    other = NewSeries(twin_id="P1", channel="u", unit="1", kind=ChannelKind.STATE, expected_interval_us=1_000_000)
    first = await log.resolve_series("default", [GAUGE, other], 1)
    assert len(set(first)) == 2
    assert await log.resolve_series("default", [other, GAUGE], 1) == first[::-1]
    assert await log.resolve_series("elsewhere", [GAUGE], 1) != first[:1]


async def test_a_session_counts_up_and_fences_the_one_before(log):
    first = await log.open_producer("default", "edge")
    second = await log.open_producer("default", "edge")
    assert (first.last_sequence, second.epoch) == (0, first.epoch + 1)
    with pytest.raises(FailedPrecondition) as fenced:
        await log.append("default", await submission(log, "a", stamp=stamp(first.epoch, 1)))
    assert fenced.value.reason == "PRODUCER_FENCED"
    assert (await log.open_producer("elsewhere", "edge")).last_sequence == 0


async def test_a_session_that_goes_on_fences_nobody_newer(log):
    first = await log.open_producer("default", "edge")
    again = await log.open_producer("default", "edge", first.epoch)
    newer = await log.open_producer("default", "edge")
    with pytest.raises(FailedPrecondition) as fenced:
        await log.open_producer("default", "edge", again.epoch)
    assert fenced.value.reason == "PRODUCER_FENCED"
    await log.append("default", await submission(log, "a", stamp=stamp(newer.epoch, 1)))
    assert (await log.open_producer("default", "new", 7)).epoch == 1


async def test_the_last_batch_again_gives_the_first_answer(log):
    epoch = (await log.open_producer("default", "edge")).epoch
    first = await log.append("default", await submission(log, "a", stamp=stamp(epoch, 1)))
    again = await log.append("default", await submission(log, "a", stamp=stamp(epoch, 1)))
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.offset, again.receipt, again.incarnation) == (first.offset, b"ack a", first.incarnation)
    second = await log.append("default", await submission(log, "b", stamp=stamp(epoch, 2)))
    assert second.offset == first.offset + 1
    older = await log.append("default", await submission(log, "a", stamp=stamp(epoch, 1)))
    assert (older.replayed, older.receipt) == (True, b"")
    assert (await log.open_producer("default", "edge")).last_sequence == 2


async def test_gaps_and_other_bytes_are_refused_without_effect(log):
    epoch = (await log.open_producer("default", "edge")).epoch
    await log.append("default", await submission(log, "a", stamp=stamp(epoch, 1)))
    with pytest.raises(FailedPrecondition) as gap:
        await log.append("default", await submission(log, "c", stamp=stamp(epoch, 3)))
    assert (gap.value.reason, gap.value.metadata["expected_sequence"]) == ("SEQUENCE_GAP", "2")
    with pytest.raises(InvalidArgument) as reused:
        await log.append("default", await submission(log, "x", stamp=stamp(epoch, 1)))
    assert reused.value.reason == "SEQUENCE_REUSED"
    assert (await log.open_producer("default", "edge")).last_sequence == 1


async def test_a_request_id_deduplicates_and_keeps_its_receipt(log):
    first = await log.append("default", await submission(log, "a", request_id="r1"))
    again = await log.append("default", await submission(log, "a", request_id="r1"))
    assert (again.replayed, again.offset, again.receipt) == (True, first.offset, b"ack a")
    with pytest.raises(InvalidArgument) as reused:
        await log.append("default", await submission(log, "b", request_id="r1"))
    assert reused.value.reason == "REQUEST_ID_REUSED"
    other = await log.append("elsewhere", await submission_elsewhere(log))
    assert not other.replayed


async def submission_elsewhere(log):
    await log.resolve_series("elsewhere", [GAUGE], 1)
    (series_id,) = await log.resolve_series("elsewhere", [GAUGE], 1)
    key = SeriesKey(twin_id="P1", channel="t", unit="Cel", series_id=series_id, kind=ChannelKind.GAUGE)
    body = wire.encode(ObservationBatch(series=(key,), doubles=double_section([0], [1], [1.0], [1])))
    return Submission(body=body, content_hash=b"h" * 16, receipt=b"", quarantine=[], request_id="r1")


async def test_the_newest_values_of_numbers_are_told_by_series(log):
    other = NewSeries(twin_id="P1", channel="u", unit="1", kind=ChannelKind.STATE, expected_interval_us=0)
    never = NewSeries(twin_id="P2", channel="t", unit="Cel", kind=ChannelKind.GAUGE, expected_interval_us=0)
    ids = await log.resolve_series("default", [GAUGE, other, never], 1)
    keys = tuple(
        SeriesKey(twin_id=s.twin_id, channel=s.channel, unit=s.unit, series_id=i, kind=s.kind)
        for i, s in zip(ids, (GAUGE, other, never), strict=True)
    )
    batch = ObservationBatch(
        series=keys[:2],
        doubles=double_section([0, 0], [2_000_000, 1_000_000], [5.5, 4.5], [2, 1]),
        int64s=int64_section([1], [7], [-3], [1]),
    )
    await log.append("default", Submission(body=wire.encode(batch), content_hash=b"h" * 16, receipt=b"", quarantine=[]))
    found = await log.latest("default", keys)
    rows = zip(found.series_id, found.time_unix_us, found.value, found.quality, strict=True)
    assert sorted((int(a), int(b), float(c), int(d)) for a, b, c, d in rows) == sorted(
        [(ids[0], 2_000_000, 5.5, 2), (ids[1], 7, -3.0, 1)]
    )
    assert len((await log.latest("default", [])).series_id) == 0
