"""The thread under the sync SDK: results, errors, Ctrl-C, closing."""

import asyncio
import threading
import time

import pytest

import twinmesh_client as tm
from twinmesh_client.portal import Portal


@pytest.fixture
def portal():
    opened = Portal()
    yield opened
    opened.close()


async def echo(value):
    await asyncio.sleep(0)
    return value


async def fail(error):
    await asyncio.sleep(0)
    raise error


def test_results_and_errors_come_through(portal):
    assert portal.run(echo(3)) == 3
    assert portal.call(lambda: threading.current_thread().name) == "twinmesh-sdk"
    with pytest.raises(KeyError):
        portal.run(fail(KeyError("x")))


def test_iterating_closes_the_generator_when_left_early(portal):
    closed = []

    async def numbers():
        try:
            for i in range(10):
                await asyncio.sleep(0)
                yield i
        finally:
            await asyncio.sleep(0.01)
            closed.append(True)

    assert list(portal.iterate(numbers())) == list(range(10))
    for i in portal.iterate(numbers()):
        if i == 3:
            break
    assert closed == [True, True]


def test_an_error_in_a_generator_reaches_the_loop(portal):
    async def numbers():
        yield 1
        raise tm.Unavailable("gone")

    found = portal.iterate(numbers())
    assert next(found) == 1
    with pytest.raises(tm.Unavailable):
        next(found)


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt, which pytest would take for its own."""


def test_ctrl_c_cancels_the_call_and_waits_for_its_end(portal, monkeypatch):
    ended = threading.Event()

    async def long():
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.05)
            ended.set()

    from concurrent import futures

    def interrupted(_self, timeout=None):
        time.sleep(0.05)
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(futures.Future, "result", interrupted)
        with pytest.raises(Interrupted):
            portal.run(long())
    assert ended.is_set()
    assert portal.run(echo(1)) == 1


def test_closing_cancels_what_runs_and_refuses_what_comes_later():
    portal = Portal()
    cancelled = threading.Event()

    async def background():
        try:
            await asyncio.sleep(30)
        finally:
            cancelled.set()

    async def start():
        # Kept by the loop's own set of tasks until the portal closes.
        tasks.append(asyncio.get_running_loop().create_task(background()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    portal.run(start())
    portal.close()
    portal.close()
    assert cancelled.is_set()
    with pytest.raises(tm.FailedPrecondition, match="connection is closed"):
        portal.run(echo(1))


def test_a_callback_that_calls_the_sdk_is_told_so_instead_of_hanging(portal):
    def callback():
        return portal.run(echo(1))

    with pytest.raises(tm.FailedPrecondition, match="callback"):
        portal.call(callback)


def test_threads_share_it(portal):
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append(portal.run(echo(i)))) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(found) == list(range(8))
