"""The laws of sharing a batch: every caller gets exactly its rows, whatever its neighbours do."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest
from tests.unit.inference.fakes import FakeExecutor

from twinmesh_core.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
)
from twinmesh_core.time import SystemClock
from twinmesh_inference.domain.coalescer import Coalescer
from twinmesh_inference.domain.models import Endpoint, TensorSpec

POISON = 0xFFFF_FFFF


def endpoint(name: str = "m", version: int = 1, max_batch_size: int = 64) -> Endpoint:
    return Endpoint(
        name=name,
        version=version,
        inputs=(TensorSpec(name="window", dims=(2,)), TensorSpec(name="calendar", dims=(1,))),
        output=TensorSpec(name="quantiles", dims=(1,)),
        max_batch_size=max_batch_size,
    )


def echo(target: Endpoint, rows: int, inputs: Sequence[bytes]) -> bytes:
    """Answer each row with the first number of its window; refuse a batch that holds a poisoned row."""
    numbers = struct.unpack(f"<{2 * rows}I", inputs[0])[::2]
    assert len(inputs[1]) == 4 * rows
    assert rows <= target.max_batch_size
    if POISON in numbers:
        raise Internal("the graph failed")
    return struct.pack(f"<{rows}I", *numbers)


def row_bytes(numbers: Sequence[int]) -> tuple[bytes, bytes]:
    window = b"".join(struct.pack("<II", number, 0) for number in numbers)
    return window, bytes(4 * len(numbers))


async def ask(coalescer: Coalescer, target: Endpoint, numbers: Sequence[int], timeout_s: float = 30.0) -> list[int]:
    answer = await coalescer.submit(target, len(numbers), row_bytes(numbers), timeout_s=timeout_s)
    return list(struct.unpack(f"<{len(answer) // 4}I", answer))


@asynccontextmanager
async def running(executor: FakeExecutor, **bounds: Any) -> AsyncIterator[Coalescer]:
    coalescer = Coalescer(executor, SystemClock(), **bounds)
    task = asyncio.create_task(coalescer.run())
    await asyncio.sleep(0)
    try:
        yield coalescer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_every_caller_gets_exactly_its_rows_among_errors_cancels_and_sizes() -> None:
    """12,000 requests for three model versions; some poisoned, some cancelled, some out of time."""
    random = Random(20)  # noqa: S311  chooses cases, not secrets
    executor = FakeExecutor(echo)
    targets = [endpoint("a", 1), endpoint("a", 2, max_batch_size=7), endpoint("b", 1)]
    outcomes = {"answered": 0, "failed": 0, "cancelled": 0, "late": 0}

    async def one(index: int, coalescer: Coalescer) -> None:
        target = random.choice(targets)
        numbers = [index * 8 + offset for offset in range(random.randint(1, 7))]
        fate = random.random()
        if fate < 0.03:
            numbers[random.randrange(len(numbers))] = POISON
        try:
            if fate > 0.97:
                async with asyncio.timeout(random.random() * 0.01):
                    found = await ask(coalescer, target, numbers)
            else:
                found = await ask(coalescer, target, numbers, timeout_s=1e-9 if fate > 0.94 else 30.0)
        except TimeoutError:
            outcomes["cancelled"] += 1
        except DeadlineExceeded:
            assert fate > 0.94
            outcomes["late"] += 1
        except Internal:
            assert POISON in numbers, "a neighbour's row failed this one"
            outcomes["failed"] += 1
        else:
            assert found == numbers
            outcomes["answered"] += 1

    async with running(executor, max_queued_rows=10**6) as coalescer:
        for wave in range(12):
            async with asyncio.TaskGroup() as group:
                for index in range(1_000):
                    group.create_task(one(wave * 1_000 + index, coalescer))
        assert coalescer.queued_rows == 0
    assert sum(outcomes.values()) == 12_000
    assert outcomes["answered"] > 10_500
    assert outcomes["failed"] > 200
    assert outcomes["late"] > 200
    assert len(executor.calls) < 8_000, "calls did not share batches"


async def test_one_call_is_in_flight_per_version_and_versions_do_not_wait_for_each_other() -> None:
    executor = FakeExecutor(echo, delay_s=0.005)
    async with running(executor) as coalescer:
        await asyncio.gather(*(ask(coalescer, endpoint("a", 1), [n]) for n in range(200)))
        assert executor.most_running == 1
        await asyncio.gather(*(ask(coalescer, endpoint("a", n % 2), [n]) for n in range(200)))
        assert executor.most_running == 2


async def test_a_lone_call_is_sent_at_once_and_those_behind_it_share_the_next() -> None:
    executor = FakeExecutor(echo, delay_s=0.02)
    async with running(executor) as coalescer:
        first = asyncio.create_task(ask(coalescer, endpoint(), [1]))
        await asyncio.sleep(0.005)
        rest = [asyncio.create_task(ask(coalescer, endpoint(), [n])) for n in range(2, 30)]
        await asyncio.gather(first, *rest)
    assert executor.calls == [1, 28]


async def test_batches_count_rows_not_requests() -> None:
    executor = FakeExecutor(echo)
    target = endpoint(max_batch_size=10)
    async with running(executor) as coalescer:
        await asyncio.gather(*(ask(coalescer, target, list(range(n, n + 4))) for n in range(8)))
    assert executor.calls == [8, 8, 8, 8]


async def test_batches_are_bounded_in_bytes_too() -> None:
    executor = FakeExecutor(echo)
    async with running(executor, max_batch_bytes=12 * 5) as coalescer:
        await asyncio.gather(*(ask(coalescer, endpoint(), [n]) for n in range(20)))
        with pytest.raises(InvalidArgument, match="1 to 5 rows"):
            await ask(coalescer, endpoint(), list(range(6)))
    assert max(executor.calls) == 5


async def test_cancelled_and_expired_rows_are_never_sent() -> None:
    executor = FakeExecutor(echo, delay_s=0.05)
    async with running(executor) as coalescer:
        first = asyncio.create_task(ask(coalescer, endpoint(), [0]))
        await asyncio.sleep(0.01)
        cancelled = asyncio.create_task(ask(coalescer, endpoint(), [1, 2, 3]))
        expired = asyncio.create_task(ask(coalescer, endpoint(), [4, 5], timeout_s=0.01))
        kept = asyncio.create_task(ask(coalescer, endpoint(), [6]))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await first == [0]
        assert await kept == [6]
        with pytest.raises(DeadlineExceeded) as late:
            await expired
        assert late.value.metadata["waiting_for"] == "triton"
        assert coalescer.queued_rows == 0
    assert executor.calls == [1, 1]


async def test_a_full_queue_says_when_to_come_back() -> None:
    executor = FakeExecutor(echo, delay_s=0.02)
    async with running(executor, max_queued_rows=10) as coalescer:
        waiting = [asyncio.create_task(ask(coalescer, endpoint(), [n, n])) for n in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted) as full:
            await ask(coalescer, endpoint(), [1])
        assert full.value.reason == Reason.OVERLOADED
        assert full.value.retry_after_s is not None
        assert 0 < full.value.retry_after_s <= 5
        await asyncio.gather(*waiting)
        assert await ask(coalescer, endpoint(), [9]) == [9]


async def test_an_answer_of_another_size_is_given_to_nobody() -> None:
    executor = FakeExecutor(lambda target, rows, inputs: bytes(4 * rows - 4))
    async with running(executor) as coalescer:
        results = await asyncio.gather(*(ask(coalescer, endpoint(), [n]) for n in range(3)), return_exceptions=True)
    assert all(isinstance(one, Unavailable) for one in results)


async def test_tensors_of_the_wrong_size_are_refused_before_they_meet_neighbours() -> None:
    async with running(FakeExecutor(echo)) as coalescer:
        with pytest.raises(InvalidArgument, match="window has 8 bytes; 2 rows need 16"):
            await coalescer.submit(endpoint(), 2, (bytes(8), bytes(8)), timeout_s=1)


@pytest.mark.parametrize("failure", [Unavailable("away"), RuntimeError("a defect")])
async def test_a_failure_that_is_not_about_rows_reaches_every_caller_once(failure: Exception) -> None:
    def fail(target: Endpoint, rows: int, inputs: Sequence[bytes]) -> bytes:
        raise failure

    executor = FakeExecutor(fail)
    async with running(executor) as coalescer:
        results = await asyncio.gather(*(ask(coalescer, endpoint(), [n]) for n in range(4)), return_exceptions=True)
        assert [type(one) for one in results] == [type(failure)] * 4
        assert len({id(one) for one in results}) == 4
        assert executor.calls == [4]


async def test_stopping_tells_those_who_wait_to_go_elsewhere() -> None:
    executor = FakeExecutor(echo, delay_s=10)
    calls: list[Awaitable[list[int]]] = []
    async with running(executor) as coalescer:
        calls = [asyncio.create_task(ask(coalescer, endpoint(), [n])) for n in range(70)]
        await asyncio.sleep(0.01)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, TwinmeshError) and one.reason == Reason.DRAINING for one in results)
    submit: Callable[[], Awaitable[list[int]]] = lambda: ask(coalescer, endpoint(), [1])  # noqa: E731  one use
    with pytest.raises(Unavailable):
        await submit()
