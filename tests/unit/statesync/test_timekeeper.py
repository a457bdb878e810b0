"""The timekeeper on a real loop: a wall clock that is set forth or back ends nothing early, and what is due is told."""

import asyncio

from tests.unit.statesync.worlds import PUMP, S, doubles

from twinmesh_core.registry import Twin
from twinmesh_core.time import SystemClock
from twinmesh_statesync.adapters.memory import MemoryCheckpoints, MemoryLog
from twinmesh_statesync.domain.entries import (
    Action,
    ControlEntry,
    CreateTwin,
    CreateTwinType,
    ExpireDesired,
    SetConnectivities,
    SetDesired,
)
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.timekeeper import Timekeeper


class Jumping(SystemClock):
    """The machine's clock, whose wall may be set."""

    off_s = 0

    def now_unix_us(self) -> int:
        return super().now_unix_us() + self.off_s * S


def written(log: MemoryLog) -> list[Action | None]:
    """What the timekeeper wrote."""
    bodies = [entry.body for entry in log.entries]
    return [body.action for body in bodies if isinstance(body, ControlEntry) and body.principal == "statesync"]


async def test_a_wall_clock_that_is_set_ends_nothing_early_and_a_deadline_is_kept() -> None:
    clock = Jumping()
    log = MemoryLog(clock)
    live = LiveFold(log=log, checkpoints=MemoryCheckpoints(), clock=clock)
    timekeeper = Timekeeper(log=log, live=live, clock=clock, report=lambda *_: None)

    async def do(number: int, action: Action) -> None:
        entry = ControlEntry(request_id=f"r{number}", principal="test", action=action)
        position = await log.append("default", entry, content_hash=b"")
        await live.wait_for(position.offset, timeout_s=5)

    tasks = [asyncio.create_task(live.run()), asyncio.create_task(timekeeper.run())]
    try:
        async with asyncio.timeout(20):
            await do(1, CreateTwinType(twin_type=PUMP))
            await do(2, CreateTwin(twin=Twin(twin_id="a", twin_type_id="pump")))
            log.observe("default", doubles([("a", "temperature", clock.now_unix_us(), 1.0, 1)]))
            await asyncio.sleep(0.8)
            hour = clock.now_unix_us() + 3_600 * S
            await do(3, SetDesired(twin_id="a", values={"target": 1.0}, deadline_unix_us=hour))
            clock.off_s = 2 * 3_600
            await asyncio.sleep(1.5)
            assert written(log) == [], "neither the deadline of an hour nor OFFLINE"
            soon = clock.now_unix_us() + S // 2
            await do(4, SetDesired(twin_id="a", values={"stage": 1}, deadline_unix_us=soon))
            clock.off_s = -2 * 3_600
            while not written(log):  # noqa: ASYNC110  told by the log
                await asyncio.sleep(0.05)
            assert [a.channels for a in written(log) if isinstance(a, ExpireDesired)] == [("stage",)]
            assert not [a for a in written(log) if isinstance(a, SetConnectivities)]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
