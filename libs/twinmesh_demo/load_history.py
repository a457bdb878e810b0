"""The history load: two gateways, the dirt, and storage killed once in the middle of it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from twinmesh_client.acks import WriteAck, total
from twinmesh_client.aio.mesh import Mesh
from twinmesh_demo.progress import Bar
from twinmesh_demo.recorded import Recording, batches, skewed_batch

CRASH_AT = 0.61
"""Share of the history that is sent when storage is killed."""
LEFTOVERS_S = 0.1
"""Acknowledgements that were on their way when storage was killed arrive within this time."""


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What was sent and what was acknowledged.

    Attributes:
        sent: points handed to the writers.
        acks: the sum of all acknowledgements.
        seconds: from the first point sent to the last one acknowledged, the crash included.
        crash_share: share sent at the kill.
        crash_recovery_s: from the kill to the next acknowledgement.
        reconnects: sessions that the writers opened again.
        durable_without_ack: points whose acknowledgement was lost with a connection although they were stored.
    """

    sent: int = 0
    acks: WriteAck = field(default_factory=WriteAck)
    seconds: float = 0.0
    crash_share: float = 0.0
    crash_recovery_s: float = 0.0
    reconnects: int = 0
    durable_without_ack: int = 0


class Crash:
    """Kills storage once, when enough was sent, and times how long the next acknowledgement takes.

    At that moment batches are under way: some committed but not acknowledged, some not even received.
    """

    def __init__(self, kill: Callable[[str, int], None], expected_points: int) -> None:
        self._kill = kill
        self._expected = expected_points
        self._killed_at: float | None = None
        self._sent = 0
        self.share = 0.0
        self.recovery_s = 0.0

    def sent(self, points: int) -> None:
        """Take note of points handed to a writer."""
        self._sent += points
        if self._killed_at is None and self._sent >= CRASH_AT * self._expected:
            self._kill("storage", signal.SIGKILL)
            self._killed_at, self.share = time.monotonic(), self._sent / self._expected

    def acknowledged(self) -> None:
        """Take note of an acknowledgement: the first that is no leftover of the killed process ends the outage."""
        if self._killed_at is None or self.recovery_s:
            return
        elapsed_s = time.monotonic() - self._killed_at
        if elapsed_s > LEFTOVERS_S:
            self.recovery_s = elapsed_s


async def load(mesh: Mesh, recordings: dict[str, Recording], kill: Callable[[str, int], None], bar: Bar) -> Ledger:
    """Send the recorded past, each transformer through a producer session of its gateway, with the crash in between.

    Returns:
        The ledger; every point sent is in `sent`, whatever became of it.
    """
    ledger = Ledger()
    crash = Crash(kill, sum(r.point_count for r in recordings.values()))
    acknowledged = 0

    def on_ack(ack: WriteAck) -> None:
        nonlocal acknowledged
        acknowledged += ack.sent
        crash.acknowledged()
        bar.move(acknowledged, f"{acknowledged:,} points")

    began = time.monotonic()
    acks: list[WriteAck] = []
    async with asyncio.TaskGroup() as group:
        senders = [
            group.create_task(_send(mesh, recording, on_ack, crash, ledger)) for recording in recordings.values()
        ]
    acks.extend(task.result() for task in senders)
    ledger.seconds = time.monotonic() - began
    async with mesh.writer("demo-gateway-skewed") as writer:
        batch = skewed_batch(recordings["T2"], datetime.now(UTC))
        ledger.sent += batch.point_count()
        await writer.write(batch)
        acks.append(await writer.flush())
    ledger.acks = total(acks)
    ledger.crash_share, ledger.crash_recovery_s = crash.share, crash.recovery_s
    return ledger


async def _send(
    mesh: Mesh, recording: Recording, on_ack: Callable[[WriteAck], None], crash: Crash, ledger: Ledger
) -> WriteAck:
    async with mesh.writer(f"demo-gateway-{recording.twin_id}", backfill=True, on_ack=on_ack) as writer:
        for batch in batches(recording):
            ledger.sent += batch.point_count()
            await writer.write(batch)
            crash.sent(batch.point_count())
        acks = await writer.flush()
        ledger.reconnects += writer.reconnects
        ledger.durable_without_ack += writer.durable_without_ack
        return acks
