"""What the storage domain relies on, held against the fakes and against PostgreSQL alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest

from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_core.time import SystemClock
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_storage.adapters.postgres.catalogue import PostgresSeries
from twinmesh_storage.adapters.postgres.log import PostgresLog
from twinmesh_storage.domain.entries import (
    Appended,
    EntryKind,
    NewEntry,
    ProducerStamp,
    QuarantineChange,
    QuarantineRow,
    QuarantineVerdict,
)
from twinmesh_storage.domain.packing import Packer
from twinmesh_storage.domain.ports import LeaseLost, LogStore, SeriesFilter, SeriesStore
from twinmesh_storage.domain.series import SeriesRequest
from twinmesh_testing.storage_fakes import FakeDatabase, FakeLog, FakeSeries


@dataclass(frozen=True, slots=True)
class Ports:
    log: LogStore
    rival: LogStore
    series: SeriesStore


@pytest.fixture(params=["fake", "postgres"])
async def ports(request: Any) -> AsyncIterator[Ports]:
    if request.param == "fake":
        database = FakeDatabase()
        clock = SystemClock()
        yield Ports(FakeLog(database, clock), FakeLog(database, clock), FakeSeries(database))
        return
    url = request.getfixturevalue("database_url")
    async with AsyncExitStack() as stack:
        await migrate(url, "storage", "twinmesh_storage")
        pool = await stack.enter_async_context(open_pool(url, min_size=1, max_size=3, schema="storage"))
        logs = []
        for _ in range(2):
            log = PostgresLog(pool=pool, url=url, schema="storage", lease_s=30, request_keep_s=60, timeout_s=5)
            stack.push_async_callback(log.close)
            logs.append(log)
        yield Ports(logs[0], logs[1], PostgresSeries(pool=pool, timeout_s=5))


def entry(content: str, *, tenant: str = "default", kind: EntryKind = EntryKind.CONTROL, **fields: Any) -> NewEntry:
    body = content.encode()
    return NewEntry(tenant=tenant, kind=kind, body=body, content_hash=blake2b(body, digest_size=16).digest(), **fields)


def offsets(answers: tuple[Any, ...]) -> list[int]:
    return [a.offset for a in answers if isinstance(a, Appended)]


async def test_groups_get_dense_offsets_and_one_commit_time_that_never_falls(ports: Ports) -> None:
    lease = await ports.log.acquire("me")
    assert lease is not None
    first = await ports.log.commit(lease, 0, "5b1c5a3c-0000-4000-8000-000000000001", [entry("a"), entry("b")])
    second = await ports.log.commit(lease, 2, "5b1c5a3c-0000-4000-8000-000000000002", [entry("c")])
    assert (offsets(first.answers), offsets(second.answers)) == ([1, 2], [3])
    times = [e.commit_time_unix_us for e in (*first.entries, *second.entries)]
    assert times[0] == times[1] <= times[2]
    position = await ports.log.position()
    assert (position.head, position.commit_time_unix_us) == (3, times[2])
    assert position.last_group == "5b1c5a3c-0000-4000-8000-000000000002"
    page = await ports.log.read(0, 3, tenant=None, kinds=(), max_bytes=1 << 20)
    assert [(e.offset, e.body) for e in page.entries] == [(1, b"a"), (2, b"b"), (3, b"c")]
    assert [e.commit_time_unix_us for e in page.entries] == times
    assert page.through == 3


async def test_a_body_that_is_packed_at_rest_is_read_as_it_was(ports: Ports) -> None:
    keys = tuple(SeriesKey(twin_id="t", channel=f"c{i}", series_id=i + 1, kind=ChannelKind.GAUGE) for i in range(50))
    columns = np.tile(np.arange(50), 20), np.repeat(np.arange(20), 50) * 1_000_000, np.ones(1_000)
    body = wire.encode(ObservationBatch(series=keys, doubles=double_section(*columns)))
    packed = Packer().pack(body)
    assert len(packed) < len(body) / 10
    lease = await ports.log.acquire("me")
    assert lease is not None
    group = [
        NewEntry(tenant="t1", kind=EntryKind.OBSERVATIONS, body=body, content_hash=bytes(16), at_rest=packed),
        NewEntry(tenant="t1", kind=EntryKind.OBSERVATIONS, body=body, content_hash=bytes(16)),
    ]
    done = await ports.log.commit(lease, 0, "5b1c5a3c-0000-4000-8000-000000000001", group)
    page = await ports.log.read(0, 2, tenant=None, kinds=(), max_bytes=1 << 20)
    assert [e.body for e in page.entries] == [e.body for e in done.entries] == [body, body]


async def test_reads_are_filtered_bounded_and_say_how_far_they_are_complete(ports: Ports) -> None:
    lease = await ports.log.acquire("me")
    assert lease is not None
    group = [
        entry("0" * 100, tenant="t1"),
        entry("1" * 100, tenant="t2", kind=EntryKind.OBSERVATIONS),
        entry("2" * 100, tenant="t1", kind=EntryKind.OBSERVATIONS),
        entry("3" * 100, tenant="t1"),
    ]
    await ports.log.commit(lease, 0, "5b1c5a3c-0000-4000-8000-000000000001", group)

    async def read(after: int, through: int = 4, **fields: Any) -> tuple[list[int], int]:
        arguments = {"tenant": None, "kinds": (), "max_bytes": 1 << 20} | fields
        page = await ports.log.read(after, through, **arguments)
        return [e.offset for e in page.entries], page.through

    assert await read(0, tenant="t1") == ([1, 3, 4], 4)
    assert await read(0, kinds={EntryKind.OBSERVATIONS}) == ([2, 3], 4)
    assert await read(0, tenant="t1", kinds={EntryKind.CONTROL}) == ([1, 4], 4)
    assert await read(0, 2) == ([1, 2], 2)
    assert await read(3, tenant="t2") == ([], 4)
    taken, through = await read(0, max_bytes=150)
    assert (taken, through) == ([1, 2], 2)
    assert await read(through, max_bytes=1) == ([3], 3)


async def test_a_commit_under_an_old_lease_or_head_writes_nothing(ports: Ports) -> None:
    mine = await ports.log.acquire("me")
    assert mine is not None
    assert await ports.rival.acquire("rival") is None
    assert await ports.log.renew(mine)
    newer = await ports.log.acquire("me")
    assert newer is not None
    assert newer.epoch == mine.epoch + 1
    assert not await ports.log.renew(mine)
    for lease, head in ((mine, 0), (newer, 1)):
        with pytest.raises(LeaseLost):
            await ports.log.commit(lease, head, "5b1c5a3c-0000-4000-8000-000000000001", [entry("a")])
    assert (await ports.log.position()).head == 0


async def test_the_lease_of_a_session_that_is_gone_is_free(ports: Ports) -> None:
    mine = await ports.log.acquire("me")
    assert mine is not None
    if isinstance(ports.log, PostgresLog):
        await ports.log.close()
    elif isinstance(ports.log, FakeLog):
        ports.log.depose()
    async with asyncio.timeout(3):
        while (rivals := await ports.rival.acquire("rival")) is None:  # noqa: ASYNC110 -- the database tells by polling
            await asyncio.sleep(0.02)
    assert rivals.epoch == mine.epoch + 1
    answer = await ports.rival.commit(rivals, 0, "5b1c5a3c-0000-4000-8000-000000000001", [entry("a")])
    assert offsets(answer.answers) == [1]


async def test_stamps_and_request_ids_are_durable(ports: Ports) -> None:
    lease = await ports.log.acquire("me")
    assert lease is not None
    session = await ports.log.open_producer("default", "p")
    one = entry("1", producer=ProducerStamp(producer_id="p", epoch=session.epoch, sequence=1), receipt=b"r1")
    two = entry("2", producer=ProducerStamp(producer_id="p", epoch=session.epoch, sequence=2), receipt=b"r2")
    named = entry("n", request_id="n", receipt=b"rn")
    first = await ports.log.commit(
        lease, 0, "5b1c5a3c-0000-4000-8000-000000000001", [one, two, two, named, named, entry("x", request_id="n")]
    )
    assert offsets(first.answers) == [1, 2, 2, 3, 3]
    assert isinstance(first.answers[-1], InvalidArgument)
    again = await ports.log.commit(lease, 3, "5b1c5a3c-0000-4000-8000-000000000002", [two, named, one])
    assert not again.entries
    assert [(a.offset, a.replayed, a.receipt) for a in again.answers if isinstance(a, Appended)] == [
        (2, True, b"r2"),
        (3, True, b"rn"),
        (2, True, b""),
    ]
    times = {a.commit_time_unix_us for a in (*first.answers, *again.answers) if isinstance(a, Appended)}
    assert len(times) == 1
    newer = await ports.log.open_producer("default", "p")
    assert (newer.epoch, newer.last_sequence) == (session.epoch + 1, 2)
    fenced = await ports.log.commit(lease, 3, "5b1c5a3c-0000-4000-8000-000000000003", [two])
    assert isinstance(fenced.answers[0], FailedPrecondition)
    assert (await ports.log.open_producer("other", "p")).last_sequence == 0
    with pytest.raises(FailedPrecondition):
        await ports.log.open_producer("default", "p", session.epoch)
    assert (await ports.log.open_producer("default", "p", newer.epoch)).epoch == newer.epoch + 1
    assert (await ports.log.position()).last_group == "5b1c5a3c-0000-4000-8000-000000000001"


async def test_series_ids_are_lasting_and_of_one_tenant(ports: Ports) -> None:
    asked = [SeriesRequest(twin_id="t", channel=c, kind=ChannelKind.GAUGE, unit="Cel") for c in ("a", "b", "a")]
    first = await ports.series.resolve("default", asked)
    assert first[0] == first[2]
    assert await ports.series.resolve("default", asked) == first
    others = await ports.series.resolve("other", asked)
    assert not {s.series_id for s in first} & {s.series_id for s in others}
    for wrong in (
        SeriesRequest(twin_id="t", channel="a", kind=ChannelKind.STATE, unit="Cel"),
        SeriesRequest(twin_id="t", channel="a", kind=ChannelKind.GAUGE, unit="K"),
    ):
        with pytest.raises(InvalidArgument):
            await ports.series.resolve("default", [wrong])
    assert await ports.series.find_ids("other", [first[0].series_id]) == []
    assert {s.retention_class for s in first} == {""}
    assert {s.channel for s in await ports.series.list_twins("default", ["t"])} == {"a", "b"}
    assert [s.channel for s in await ports.series.page("default", SeriesFilter(twin_id="t"), ("", ""), 10)] == [
        "a",
        "b",
    ]
    assert [s.channel for s in await ports.series.page("default", SeriesFilter(), ("t", "a"), 10)] == ["b"]
    assert await ports.series.page("default", SeriesFilter(twin_id="t"), ("t", "b"), 10) == []


async def test_the_class_of_retention_that_was_told_as_of_the_latest_offset_counts(ports: Ports) -> None:
    def asked(channel: str, name: str | None, at: int) -> SeriesRequest:
        return SeriesRequest(
            twin_id="t", channel=channel, kind=ChannelKind.GAUGE, unit="", retention_class=name, registry_offset=at
        )

    async def classes(tenant: str = "default") -> dict[str, str]:
        found = await ports.series.list_twins(tenant, ["t"])
        return {s.channel: s.retention_class for s in found}

    for tenant in ("default", "other"):
        await ports.series.resolve(tenant, [asked("a", None, 0), asked("b", None, 0)])
    await ports.series.classify("default", [asked("a", "fast", 5), asked("b", "slow", 5), asked("absent", "slow", 5)])
    assert await classes() == {"a": "fast", "b": "slow"}
    await ports.series.classify("default", [asked("a", "slow", 4), asked("b", "", 6)])
    assert await classes() == {"a": "fast", "b": ""}, "what an older registry says changes nothing"
    await ports.series.classify("default", [asked("b", "fast", 6), asked("b", "fast", 7)])
    assert (await ports.series.page("default", SeriesFilter(), ("t", "a"), 10))[0].retention_class == "fast"
    await ports.series.resolve("default", [asked("a", None, 9)])
    assert await classes() == {"a": "fast", "b": "fast"}
    assert await classes("other") == {"a": "", "b": ""}


GROUP_IDS = [f"5b1c5a3c-0000-4000-8000-0000000000{i:02d}" for i in range(10, 20)]


def kept_aside(n: int) -> tuple[QuarantineRow, ...]:
    return tuple(
        QuarantineRow(
            twin_id="ghost", channel="c", unit="", time_unix_us=i, value=b"", quality=1, reason=1, message="create it"
        )
        for i in range(n)
    )


async def test_rows_leave_quarantine_with_an_entry_once_and_all_or_none(ports: Ports) -> None:
    lease = await ports.log.acquire("me")
    assert lease is not None
    await ports.log.commit(lease, 0, GROUP_IDS[0], [entry("rows", request_id="q", quarantine=kept_aside(4))])
    kept = (QuarantineVerdict(quarantine_id=4, reason=2, message="no such channel"),)
    change = QuarantineChange(replayed=(1, 2), discarded=(3,), kept=kept, principal="me")
    replay = entry("replay", kind=EntryKind.OBSERVATIONS, request_id="r1", receipt=b"done", quarantine_change=change)
    rival = entry("rival", kind=EntryKind.OBSERVATIONS, request_id="r2", quarantine_change=change)
    outcome = await ports.log.commit(lease, 1, GROUP_IDS[1], [replay, rival, replay])
    first, refused, again = outcome.answers
    assert isinstance(first, Appended)
    assert (first.offset, first.replayed) == (2, False)
    assert isinstance(refused, FailedPrecondition)
    assert refused.reason == "QUARANTINE_CHANGED"
    assert isinstance(again, Appended)
    assert (again.offset, again.replayed, again.receipt) == (2, True, b"done")
    # Half of it is gone already: nothing of the change happens; the row that was kept can still leave.
    half = QuarantineChange(replayed=(2,), discarded=(4,))
    late = entry("half", kind=EntryKind.OBSERVATIONS, request_id="r3", quarantine_change=half)
    last = QuarantineChange(discarded=(4,))
    rest = entry("rest", kind=EntryKind.OBSERVATIONS, request_id="r4", quarantine_change=last)
    outcome = await ports.log.commit(lease, 2, GROUP_IDS[2], [late, rest, replay])
    assert isinstance(outcome.answers[0], FailedPrecondition)
    assert offsets(outcome.answers) == [3, 2]
    # A refused request id is free: the same id may come again with what is there.
    outcome = await ports.log.commit(lease, 3, GROUP_IDS[3], [entry("new", request_id="r3")])
    assert offsets(outcome.answers) == [4]


async def test_the_catalogue_is_filtered_and_held_to_what_a_first_page_could_list(ports: Ports) -> None:
    asked = [
        SeriesRequest(twin_id=t, channel=c, kind=kind, unit="")
        for t in ("t1", "t2")
        for c, kind in (("a", ChannelKind.GAUGE), ("b", ChannelKind.STATE))
    ]
    assert await ports.series.newest_id("default") == 0
    await ports.series.resolve("default", asked)
    newest = await ports.series.newest_id("default")
    await ports.series.resolve("default", [SeriesRequest(twin_id="t1", channel="c", kind=ChannelKind.TEXT, unit="")])

    async def names(**fields: Any) -> list[tuple[str, str]]:
        page = await ports.series.page("default", SeriesFilter(**fields), ("", ""), 10)
        return [(s.twin_id, s.channel) for s in page]

    assert await names() == [("t1", "a"), ("t1", "b"), ("t1", "c"), ("t2", "a"), ("t2", "b")]
    assert await names(newest_id=newest, twin_id="t1") == [("t1", "a"), ("t1", "b")]
    assert await names(channel="a") == [("t1", "a"), ("t2", "a")]
    assert await names(kinds=(ChannelKind.STATE, ChannelKind.TEXT)) == [("t1", "b"), ("t1", "c"), ("t2", "b")]
