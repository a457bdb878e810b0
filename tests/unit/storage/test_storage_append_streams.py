"""A stream of appends answers every entry once, in order; and what arrives is read as protobuf reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, position_pb2
from twinmesh_client.rpc_status import error_from_status
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, Reason, TwinmeshError, Unavailable
from twinmesh_storage.rpc.append_streams import AppendStreams
from twinmesh_storage.rpc.appends import ReceivedAppend, read_append, read_appends

STAMPS = st.builds(
    storage_pb2.ProducerStamp,
    producer_id=st.text(max_size=5),
    epoch=st.integers(0, 2**40),
    sequence=st.integers(0, 2**40),
)
BATCHES = st.builds(
    storage_pb2.AppendRequest,
    observations=st.binary(max_size=300),
    producer=st.none() | STAMPS,
    request_id=st.text(max_size=5),
    content_hash=st.binary(max_size=16),
    receipt=st.binary(max_size=16),
    quarantine=st.lists(st.builds(storage_pb2.QuarantinedRow, twin_id=st.text(max_size=3)), max_size=2),
)
CONTROL = st.builds(
    storage_pb2.AppendRequest, control=st.builds(entry_pb2.ControlEntry, request_id=st.text(max_size=5))
)
REQUESTS = BATCHES | CONTROL | st.just(storage_pb2.AppendRequest())


def typed(data: bytes) -> storage_pb2.AppendRequest:
    return storage_pb2.AppendRequest.FromString(data)


@given(st.lists(st.tuples(REQUESTS, st.booleans()), max_size=4))
def test_entries_are_read_as_the_typed_parser_reads_them(entries: list[tuple[storage_pb2.AppendRequest, bool]]) -> None:
    message = storage_pb2.AppendStreamRequest()
    for request, _ in entries:
        message.entries.append(request)
    found = read_appends(message.SerializeToString())
    assert [f.whole() for f in found] == list(message.entries)
    assert [f.observations is not None for f in found] == [r.WhichOneof("body") == "observations" for r, _ in entries]


@given(REQUESTS, REQUESTS)
def test_messages_that_are_merged_on_the_wire_are_read_alike(
    one: storage_pb2.AppendRequest, other: storage_pb2.AppendRequest
) -> None:
    data = one.SerializeToString() + other.SerializeToString()
    assert read_append(data).whole() == typed(data)


@given(BATCHES, st.integers(1, 20))
def test_truncated_entries_are_refused_or_read_alike(request: storage_pb2.AppendRequest, cut: int) -> None:
    data = request.SerializeToString()[:-cut]
    try:
        expected = typed(data)
    except Exception:  # noqa: BLE001 -- whatever protobuf says of it
        with pytest.raises(InvalidArgument):
            read_append(data)
    else:
        assert read_append(data).whole() == expected


class Sent:
    """A call that keeps what is written to it."""

    def __init__(self) -> None:
        self.outcomes: list[storage_pb2.AppendOutcome] = []
        self.grown = asyncio.Event()

    async def write(self, message: bytes) -> None:
        self.outcomes += storage_pb2.AppendStreamResponse.FromString(message).outcomes
        self.grown.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.outcomes) < count:
                self.grown.clear()
                await self.grown.wait()

    def told(self) -> list[int | str]:
        return [
            o.appended.position.offset
            if o.HasField("appended")
            else error_from_status(status_pb2.Status.FromString(o.refusal)).reason
            for o in self.outcomes
        ]


def entries(*names: str) -> bytes:
    message = storage_pb2.AppendStreamRequest()
    for name in names:
        message.entries.add(observations=name.encode())
    return message.SerializeToString()


def answer(offset: int) -> storage_pb2.AppendResponse:
    return storage_pb2.AppendResponse(position=position_pb2.LogPosition(offset=offset))


class Asked:
    """Appends that are answered when the test says so."""

    def __init__(self) -> None:
        self.waiting: dict[str, asyncio.Future[storage_pb2.AppendResponse]] = {}
        self.order: list[str] = []

    async def append(self, received: ReceivedAppend) -> storage_pb2.AppendResponse:
        assert received.observations is not None
        name = received.observations.decode()
        self.order.append(name)
        return await self.of(name)

    def of(self, name: str) -> asyncio.Future[storage_pb2.AppendResponse]:
        return self.waiting.setdefault(name, asyncio.get_running_loop().create_future())


async def served(
    drive: Callable[[asyncio.Queue[bytes | None], Asked, Sent, AppendStreams], Awaitable[None]],
) -> tuple[Asked, Sent]:
    requests: asyncio.Queue[bytes | None] = asyncio.Queue()
    asked, sent, streams = Asked(), Sent(), AppendStreams()

    async def arriving() -> AsyncIterator[bytes]:
        while (data := await requests.get()) is not None:
            yield data

    serving = asyncio.create_task(streams.serve(arriving(), sent, asked.append))
    try:
        await drive(requests, asked, sent, streams)
        async with asyncio.timeout(5):
            await serving
    finally:
        serving.cancel()
    return asked, sent


async def test_answers_keep_the_order_of_the_entries_and_a_refusal_ends_nothing() -> None:
    async def drive(requests: asyncio.Queue[bytes | None], asked: Asked, sent: Sent, _: AppendStreams) -> None:
        requests.put_nowait(entries("a", "b"))
        requests.put_nowait(entries("c"))
        asked.of("c").set_result(answer(3))
        asked.of("b").set_exception(FailedPrecondition("skips", reason=Reason.SEQUENCE_GAP))
        asked.of("a").set_result(answer(1))
        await sent.until(3)
        requests.put_nowait(entries("d"))
        asked.of("d").set_result(answer(4))
        requests.put_nowait(None)

    asked, sent = await served(drive)
    assert asked.order == ["a", "b", "c", "d"]
    assert sent.told() == [1, Reason.SEQUENCE_GAP, 3, 4]


async def test_what_is_durable_is_told_before_the_next_is_waited_for() -> None:
    async def drive(requests: asyncio.Queue[bytes | None], asked: Asked, sent: Sent, _: AppendStreams) -> None:
        requests.put_nowait(entries("a", "b"))
        asked.of("a").set_result(answer(1))
        await sent.until(1)
        asked.of("b").set_result(answer(2))
        requests.put_nowait(None)

    assert (await served(drive))[1].told() == [1, 2]


async def test_a_drain_answers_what_is_on_its_way_and_says_so() -> None:
    async def drive(requests: asyncio.Queue[bytes | None], asked: Asked, sent: Sent, streams: AppendStreams) -> None:
        requests.put_nowait(entries("a", "b"))
        asked.of("a").set_result(answer(1))
        await sent.until(1)
        streams.drain()
        asked.of("b").set_result(answer(2))
        await sent.until(2)

    with pytest.raises(Unavailable) as drained:
        await served(drive)
    assert drained.value.reason == Reason.DRAINING


@pytest.mark.parametrize("failure", [ZeroDivisionError(), InvalidArgument("no message")])
async def test_a_defect_ends_the_stream_after_the_answers_before_it(failure: Exception) -> None:
    told: list[int | str] = []

    async def drive(requests: asyncio.Queue[bytes | None], asked: Asked, sent: Sent, _: AppendStreams) -> None:
        requests.put_nowait(entries("a", "b", "c"))
        asked.of("b").set_exception(failure)
        asked.of("a").set_result(answer(1))
        asked.of("c").set_result(answer(3))
        await sent.until(1)
        requests.put_nowait(None)
        told.extend(sent.told())

    if isinstance(failure, TwinmeshError):
        assert (await served(drive))[1].told() == [1, failure.reason, 3]
        return
    with pytest.raises(ZeroDivisionError):
        await served(drive)
    assert told == [1]
