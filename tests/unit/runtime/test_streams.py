"""Streams through the interceptor: both styles of handlers, errors before, during and after, garbage, cancellation."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from tests.unit.runtime.echo import EchoStub, echo_service, text

from twinmesh_client.transport import call, open_channel, rpc_errors, stream
from twinmesh_core.errors import Internal, InvalidArgument, NotFound, Reason, ResourceExhausted, Unavailable
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.settings import ServiceSettings
from twinmesh_testing.inprocess import serve


async def sent(*values: str) -> AsyncIterator[StringValue]:
    for value in values:
        yield text(value)


async def chat_by_generator(requests: Any, context: Any) -> AsyncIterator[StringValue]:
    async for request in requests:
        yield text(request.value.upper() + current_caller().tenant)


async def chat_by_context(requests: Any, context: Any) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(text(request.value.upper() + current_caller().tenant))


@pytest.mark.parametrize("chat", [chat_by_generator, chat_by_context])
async def test_a_conversation_in_both_styles(chat: Any) -> None:
    async with serve(echo_service(chat=chat)) as target, open_channel(target) as channel:
        answers = [a.value async for a in stream(EchoStub(channel).chat, sent("a", "b"), timeout_s=5)]
        assert answers == ["Adefault", "Bdefault"]
        by_hand = EchoStub(channel).chat()
        with rpc_errors():
            await by_hand.write(text("c"))
            assert (await by_hand.read()).value == "Cdefault"
            await by_hand.done_writing()
            assert await by_hand.read() is grpc.aio.EOF


async def test_a_stream_of_requests_has_one_answer() -> None:
    async def total(requests: Any, context: Any) -> StringValue:
        return text("".join([request.value async for request in requests]))

    async with serve(echo_service(total=total)) as target, open_channel(target) as channel:
        answer: StringValue = await call(EchoStub(channel).total, sent("a", "b", "c"), timeout_s=5)
        assert answer.value == "abc"


async def test_an_error_after_answers_arrives_after_them() -> None:
    async def count(request: Any, context: Any) -> AsyncIterator[StringValue]:
        yield text("1")
        yield text("2")
        raise NotFound("No third.", reason=Reason.RUN_NOT_FOUND)

    async with serve(echo_service(count=count)) as target, open_channel(target) as channel:
        got = []
        with pytest.raises(NotFound) as caught:  # noqa: PT012  the answers before the error are the point
            async for answer in stream(EchoStub(channel).count, text("3"), timeout_s=5):
                got.append(answer.value)
        assert got == ["1", "2"]
        assert caught.value.reason is Reason.RUN_NOT_FOUND


async def test_a_defect_in_a_stream_is_an_incident() -> None:
    async def count(request: Any, context: Any) -> AsyncIterator[StringValue]:
        yield text("1")
        raise ZeroDivisionError("secret")

    async with serve(echo_service(count=count)) as target, open_channel(target) as channel:
        with pytest.raises(Internal) as caught:
            async for _ in stream(EchoStub(channel).count, text("3"), timeout_s=5):
                pass
        assert "secret" not in caught.value.message


@pytest.mark.parametrize("chat", [chat_by_generator, chat_by_context])
async def test_garbage_within_a_stream_is_an_invalid_argument(chat: Any) -> None:
    async def garbage() -> AsyncIterator[bytes]:
        yield text("fine").SerializeToString()
        yield b"\xff\xff\xff"

    async with serve(echo_service(chat=chat)) as target, open_channel(target) as channel:
        with pytest.raises(InvalidArgument) as caught:
            async for _ in stream(EchoStub(channel).raw_chat, garbage(), timeout_s=5):
                pass
        assert caught.value.reason is Reason.MALFORMED_MESSAGE


async def test_leaving_the_loop_ends_the_handler_and_runs_its_cleanup() -> None:
    ended = asyncio.Event()

    async def count(request: Any, context: Any) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield text("tick")
                await asyncio.sleep(0.01)
        finally:
            ended.set()

    async with serve(echo_service(count=count)) as target, open_channel(target) as channel:
        async with aclosing(stream(EchoStub(channel).count, text(""), timeout_s=None)) as answers:
            async for _ in answers:
                break
        async with asyncio.timeout(5):
            await ended.wait()


async def test_streams_have_no_default_deadline_and_their_own_bound() -> None:
    async def count(request: Any, context: Any) -> AsyncIterator[StringValue]:
        yield text("1")
        await asyncio.sleep(0.4)
        yield text("2")

    settings = ServiceSettings(default_deadline_s=0.1, max_concurrent_streams=1)
    async with serve(echo_service(count=count), settings=settings) as target, open_channel(target) as channel:
        stub = EchoStub(channel)
        async with aclosing(stream(stub.count, text(""), timeout_s=None)) as answers:
            assert (await anext(answers)).value == "1"
            with pytest.raises(ResourceExhausted):
                async for _ in stream(stub.count, text(""), timeout_s=5):
                    pass
            # Unary calls are bounded apart.
            assert (await call(stub.say, text("x"), timeout_s=5)).value == "x"
            assert [answer.value async for answer in answers] == ["2"]


async def test_a_burst_waits_its_turn_and_is_dropped_by_nobody() -> None:
    """Left to itself, gRPC drops calls that wait, by chance from a thousand on, with a bare CANCELLED."""

    async def count(request: Any, context: Any) -> AsyncIterator[StringValue]:
        yield text("1")

    async def first(stub: EchoStub) -> str:
        async with aclosing(stream(stub.count, text(""), timeout_s=50)) as answers:
            return str((await anext(answers)).value)

    async with serve(echo_service(count=count)) as target, open_channel(target) as channel:
        answers = await asyncio.gather(*(first(EchoStub(channel)) for _ in range(4_000)), return_exceptions=True)
    assert {str(answer) for answer in answers} == {"1"}


async def test_a_server_that_goes_away_ends_a_stream_with_unavailable() -> None:
    async def count(request: Any, context: Any) -> AsyncIterator[StringValue]:
        yield text("1")
        await asyncio.sleep(60)

    async with open_channel_to_dying_server(count) as (channel, leave):
        answers = stream(EchoStub(channel).count, text(""), timeout_s=None)
        assert (await anext(answers)).value == "1"
        leave.set()
        with pytest.raises(Unavailable):
            await anext(answers)


class open_channel_to_dying_server:  # noqa: N801  reads as a function
    """A channel to a server that stops, without a drain, when the event given is set."""

    def __init__(self, count: Any) -> None:
        self._count = count
        self._leave = asyncio.Event()

    async def __aenter__(self) -> tuple[grpc.aio.Channel, asyncio.Event]:
        serving: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def live() -> None:
            async with serve(echo_service(count=self._count)) as target:
                serving.set_result(target)
                await self._leave.wait()

        self._life = asyncio.create_task(live())
        self._channel = open_channel(await serving)
        return self._channel, self._leave

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
        self._leave.set()
        await self._life
