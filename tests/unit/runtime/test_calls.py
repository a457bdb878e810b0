"""Calls over a real loopback server: what a client gets for every way in which a call can end."""

import asyncio
import os
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from tests.unit.runtime.echo import SERVICE, EchoStub, echo_service, text

from twinmesh_client.transport import call, error_from_rpc, open_channel, stream, tenant_metadata
from twinmesh_core.call_context import current_call, remaining_s
from twinmesh_core.errors import (
    ERROR_TYPES,
    DeadlineExceeded,
    FieldViolation,
    Internal,
    InvalidArgument,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
    Unimplemented,
)
from twinmesh_runtime.caller import Role, current_caller
from twinmesh_runtime.settings import ServiceSettings
from twinmesh_testing.inprocess import serve


async def say(target: str, message: str = "hello", **options: Any) -> str:
    async with open_channel(target) as channel:
        answer: StringValue = await call(EchoStub(channel).say, text(message), **{"timeout_s": 5, **options})
        return answer.value


async def failing(handler: Any, **options: Any) -> TwinmeshError:
    """The error that a client gets when Say is `handler`."""
    async with serve(echo_service(say=handler)) as target:
        with pytest.raises(TwinmeshError) as caught:
            await say(target, **options)
        return caught.value


async def test_a_call_is_answered() -> None:
    async with serve(echo_service()) as target:
        assert await say(target, "grüß dich") == "grüß dich"


@pytest.mark.parametrize("kind", ERROR_TYPES.values(), ids=lambda kind: kind.__name__)
async def test_every_error_arrives_as_it_was_raised(kind: type[TwinmeshError]) -> None:
    sent = kind(
        "What is wrong, and what would be right: ½ °C.",
        reason=Reason.SEQUENCE_GAP,
        metadata={"expected_sequence": "4", "remedy": "twinmesh twins create ü"},
        field_violations=(FieldViolation(field="batch.sequence", description="skips 4"),),
        retry_after_s=0.25,
    )

    async def handler(request: Any, context: Any) -> StringValue:
        raise sent

    got = await failing(handler)
    assert type(got) is kind
    assert got.message == sent.message
    assert got.reason is Reason.SEQUENCE_GAP
    assert dict(got.metadata) == dict(sent.metadata)
    assert got.field_violations == sent.field_violations
    assert got.retry_after_s == 0.25


async def test_a_huge_error_is_cut_and_not_lost() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        raise InvalidArgument(
            "x" * 100_000,
            field_violations=[FieldViolation(field=f"f[{i}]", description="y" * 500) for i in range(1000)],
        )

    got = await failing(handler)
    assert isinstance(got, InvalidArgument)
    assert 0 < len(got.field_violations) <= 32
    assert got.message.endswith("…")


async def test_a_defect_is_told_only_by_its_incident(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        raise KeyError("/etc/passwd select * from secrets")

    got = await failing(handler)
    assert isinstance(got, Internal)
    assert got.reason is Reason.INTERNAL
    assert set(got.metadata) == {"incident"}
    assert "secrets" not in str(got)
    assert "KeyError" not in str(got)
    [record] = [record for record in caplog.records if record.msg == "incident"]
    assert record.fields["incident"] == got.metadata["incident"]  # type: ignore[attr-defined]
    assert record.exc_info


async def test_what_is_not_a_message_is_an_invalid_argument() -> None:
    async with serve(echo_service()) as target, open_channel(target) as channel:
        for garbage in (b"\xff", os.urandom(1000), b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x0b" * 200_000):
            with pytest.raises(InvalidArgument) as caught:
                await call(EchoStub(channel).raw_say, garbage, timeout_s=5)
            assert caught.value.reason is Reason.MALFORMED_MESSAGE
        assert await say(target) == "hello"


async def test_raw_handlers_get_and_give_bytes() -> None:
    async def raw(request: bytes, context: Any) -> bytes:
        return request[::-1]

    async with serve(echo_service(raw=raw)) as target, open_channel(target) as channel:
        assert await call(EchoStub(channel).raw, b"\xff\x00abc", timeout_s=5) == b"cba\x00\xff"


async def test_an_oversized_request_names_the_limit_whoever_finds_it() -> None:
    settings = ServiceSettings(max_message_bytes=64 * 1024)
    tighter = {f"/{SERVICE}/Say": 1024}
    async with serve(echo_service(max_request_bytes=tighter), settings=settings) as target:
        for size, limit in ((2_000, "1024"), (100_000, str(64 * 1024))):
            with pytest.raises(ResourceExhausted) as caught:
                await say(target, "x" * size)
            assert caught.value.reason is Reason.MESSAGE_TOO_LARGE
            assert caught.value.metadata["limit_bytes"] == limit
            assert limit in caught.value.message
        async with open_channel(target, max_message_bytes=10_000) as channel:
            with pytest.raises(ResourceExhausted, match="limit is 10000"):
                await call(EchoStub(channel).say, text("x" * 20_000), timeout_s=5)
        assert await say(target) == "hello"


async def test_an_oversized_answer_is_an_error_that_says_so() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        return text("x" * 100_000)

    async with serve(echo_service(say=handler), settings=ServiceSettings(max_message_bytes=64 * 1024)) as target:
        with pytest.raises(ResourceExhausted, match="ask for less at once"):
            await say(target)


async def test_a_method_that_does_not_exist_is_unimplemented() -> None:
    async with serve(echo_service()) as target, open_channel(target) as channel:
        with pytest.raises(Unimplemented):
            await call(EchoStub(channel).missing, b"", timeout_s=5)


async def test_nobody_there_is_unavailable_and_says_where(unused_tcp_port: int) -> None:
    with pytest.raises(Unavailable, match=f"127.0.0.1:{unused_tcp_port}") as caught:
        await say(f"127.0.0.1:{unused_tcp_port}")
    assert "errno" not in caught.value.message.lower()
    with pytest.raises(Unavailable, match="cannot be resolved"):
        await say("no-such-host.invalid:7400", timeout_s=20)


async def test_the_clients_deadline_ends_the_handler() -> None:
    ended = asyncio.Event()

    async def handler(request: Any, context: Any) -> StringValue:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return text("late")

    async with serve(echo_service(say=handler)) as target:
        with pytest.raises(DeadlineExceeded) as caught:
            await say(target, timeout_s=0.2)
        assert caught.value.reason is Reason.DEADLINE
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_call_without_a_deadline_gets_the_default_one() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        assert remaining_s() is not None
        await asyncio.sleep(30)
        return text("late")

    async with (
        serve(echo_service(say=handler), settings=ServiceSettings(default_deadline_s=0.2)) as target,
        open_channel(target) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EchoStub(channel).say(text("x"))
        assert isinstance(error_from_rpc(caught.value), DeadlineExceeded)
        assert "without a deadline" in (caught.value.details() or "")


async def test_a_timeout_of_a_part_is_unavailable_and_not_a_defect() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(5)
        return text("late")

    got = await failing(handler)
    assert isinstance(got, Unavailable)


async def test_a_cancelled_client_cancels_the_handler() -> None:
    started = asyncio.Event()
    cancelled = asyncio.Event()

    async def handler(request: Any, context: Any) -> StringValue:
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return text("late")

    async with serve(echo_service(say=handler)) as target:
        task = asyncio.create_task(say(target))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            await cancelled.wait()


async def test_a_stray_cancellation_inside_still_answers_the_caller() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        inner = asyncio.create_task(asyncio.sleep(30))
        asyncio.get_running_loop().call_later(0.01, inner.cancel)
        await inner
        return text("never")

    assert isinstance(await failing(handler), Unavailable)


async def test_a_handler_may_abort_by_itself() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return text("never")

    got = await failing(handler)
    assert got.code == "NOT_FOUND"
    assert got.message == "gone"


async def test_generated_defaults_are_unimplemented() -> None:
    def handler(request: Any, context: Any) -> StringValue:
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        raise NotImplementedError("Method not implemented!")

    assert isinstance(await failing(handler), Unimplemented)


async def test_too_many_calls_are_shed_with_a_time_to_come_back() -> None:
    go_on = asyncio.Event()
    started = asyncio.Event()

    async def handler(request: Any, context: Any) -> StringValue:
        started.set()
        await go_on.wait()
        return request  # type: ignore[no-any-return]

    async with serve(echo_service(say=handler), settings=ServiceSettings(max_concurrent_rpcs=1)) as target:
        first = asyncio.create_task(say(target, "first"))
        await started.wait()
        with pytest.raises(ResourceExhausted) as caught:
            await say(target, "second")
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.retryable
        go_on.set()
        assert await first == "first"
        assert await say(target, "third") == "third"


async def test_open_mode_knows_its_callers() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        caller = current_caller()
        return text(f"{caller.tenant} {caller.role} {caller.principal}")

    async with serve(echo_service(say=handler)) as target:
        assert await say(target) == f"default {Role.ADMIN} local"
        assert await say(target, metadata=tenant_metadata("acme")) == "acme service service"
        assert await say(target, metadata=tenant_metadata("*")) == "* service service"
        with pytest.raises(InvalidArgument, match="tenant id"):
            await say(target, metadata=tenant_metadata("../x"))


async def test_request_id_trace_and_deadline_travel_inward() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def inner(request: Any, context: Any) -> StringValue:
        served = current_call()
        assert served is not None
        return text(f"{served.request_id} {served.trace_id} {context.time_remaining() < 3}")

    async with serve(echo_service(say=inner), token="inner") as inner_target:

        async def outer(request: Any, context: Any) -> StringValue:
            return text(await say(inner_target, timeout_s=60))

        async with serve(echo_service(say=outer), token="outer") as target:
            metadata = (("twinmesh-request-id", "r-17"), ("traceparent", trace))
            assert await say(target, timeout_s=3, metadata=metadata) == f"r-17 {trace[3:35]} True"


async def test_an_error_of_a_dependency_passes_through_as_itself() -> None:
    async def handler(request: Any, context: Any) -> StringValue:
        async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
            await EchoStub(channel).say(text("x"), timeout=1)
        return text("never")

    assert isinstance(await failing(handler), Unavailable)


async def test_streams_of_a_dead_server_raise_our_errors(unused_tcp_port: int) -> None:
    async with open_channel(f"127.0.0.1:{unused_tcp_port}") as channel:
        with pytest.raises(Unavailable):
            async for _ in stream(EchoStub(channel).count, text("1"), timeout_s=2):
                pass
