"""A stream read by a thread: everything in order, errors after what came before, bounded, and ended by its reader."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Iterator
from contextlib import aclosing

import grpc
import pytest

from twinmesh_client.read_ahead import MAX_WAITING, read_ahead
from twinmesh_core.errors import Unavailable


class Away(grpc.RpcError):
    """What gRPC raises when a server is gone."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "gone"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Answers:
    """A blocking call with so many answers; `error` ends it, None = it goes on until it is cancelled."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.read = 0
        self.cancelled = threading.Event()
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[int]:
        try:
            yield from self._numbers()
        finally:
            self.ended.set()

    def _numbers(self) -> Iterator[int]:
        for number in range(self.count):
            if self.cancelled.is_set():
                return
            self.read += 1
            yield number
        if self.error is not None:
            raise self.error
        self.cancelled.wait(10)

    def cancel(self) -> None:
        self.cancelled.set()


async def collect(answers: AsyncIterable[int], seen: list[int]) -> None:
    """Add every answer to `seen`."""
    async for answer in answers:
        seen.append(answer)


async def test_answers_come_in_order_and_the_error_after_them() -> None:
    seen: list[int] = []
    with pytest.raises(Unavailable):
        await collect(read_ahead(Answers(100, Away()), lambda number: number * 2), seen)
    assert seen == [number * 2 for number in range(100)]


async def test_what_cannot_be_converted_is_told_where_the_stream_is_used() -> None:
    def convert(number: int) -> int:
        return 10 // (3 - number)

    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        await collect(read_ahead(Answers(10), convert), seen)
    assert seen == [3, 5, 10]


async def test_no_more_is_read_ahead_than_may_wait() -> None:
    call = Answers(1_000)
    async with aclosing(read_ahead(call, lambda number: number)) as answers:
        assert await anext(answers) == 0
        await asyncio.sleep(0.2)
        assert call.read <= MAX_WAITING + 2
        assert [await anext(answers) for _ in range(999)] == list(range(1, 1_000))


async def test_the_thread_ends_with_its_reader() -> None:
    call = Answers(1_000)
    async with aclosing(read_ahead(call, lambda number: number)) as answers:
        await anext(answers)
        assert [t.name for t in threading.enumerate()].count("read-ahead") == 1
    await asyncio.to_thread(call.ended.wait, 5)
    await asyncio.sleep(0.05)
    assert call.cancelled.is_set()
    assert "read-ahead" not in [t.name for t in threading.enumerate()]


async def test_others_get_their_turn_while_much_is_handed_over() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        beside = group.create_task(other())
        with pytest.raises(Unavailable):
            await collect(read_ahead(Answers(400, Away()), lambda number: number), [])
        beside.cancel()
    assert turns >= 400 // 8
