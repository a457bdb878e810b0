"""The fake clock: time passes only when told, and sleepers wake in order."""

import asyncio

from twinmesh_testing.clock import START_UNIX_US, FakeClock


async def test_sleepers_wake_at_their_own_time_and_in_order() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            await clock.sleep(seconds)
            woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("late", 5))
        group.create_task(sleeper("often", 1, times=3))
        await clock.advance(0.5)
        assert woken == []
        await clock.advance(3)
        assert woken == [("often", 1.0), ("often", 2.0), ("often", 3.0)]
        await clock.advance(10)
    assert woken[-1] == ("late", 5.0)
    assert clock.monotonic_s() == clock.monotonic() == 13.5
    assert clock.now_unix_us() == START_UNIX_US + 13_500_000


async def test_a_cancelled_sleeper_is_no_trouble() -> None:
    clock = FakeClock()
    task = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    await clock.advance(2)
    assert task.cancelled()


def test_jumping_is_for_synchronous_code() -> None:
    clock = FakeClock(start_unix_us=0)
    clock.jump(1.5)
    assert clock.now().isoformat() == "1970-01-01T00:00:01.500000+00:00"
