"""A producer that is going to be killed: numbers batches, writes them through a spool, and says how far it was told.

    python spool_producer.py TARGET DIRECTORY TWIN FIRST [--tells-too-early] [--poison]

Each line ``told N`` on standard output says that every number up to N is spooled. With ``--poison`` some batches are
malformed, so that the mesh refuses them as a whole.
"""

import asyncio
import random
import sys
import time
from pathlib import Path

import numpy as np

from twinmesh.type.v1 import observation_pb2
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_client.aio.spooling import SpoolBacklog
from twinmesh_client.gathering import column_batch

TOO_EARLY_S = 0.05


def tell_too_early() -> None:
    """Make the SDK what it must not be: it says that a batch is taken, and writes it a little later."""
    real = SpoolBacklog.put
    late: set[asyncio.Task[int]] = set()

    async def put(self: SpoolBacklog, columns: bytes, points: int, *, backfill: bool) -> int:
        async def write() -> int:
            await asyncio.sleep(TOO_EARLY_S)
            return await real(self, columns, points, backfill=backfill)

        late.add(asyncio.create_task(write()))
        await asyncio.sleep(0.005)
        return self.taken + len(late)

    SpoolBacklog.put = put  # type: ignore[method-assign]


def malformed(number: int) -> bytes:
    """Return a batch whose columns have unequal lengths."""
    message = observation_pb2.ObservationBatch()
    message.doubles.value.append(number)
    return message.SerializeToString()


async def produce(target: str, directory: Path, twin: str, first: int) -> None:
    """Write for ever; numbers are values, and each has an event time of its own."""
    dice = random.Random(first)  # noqa: S311
    start_us = time.time_ns() // 1_000
    number = first
    async with open_writer_async("spool-test", target=target, spool=directory, spool_max_bytes=2_000_000) as writer:
        print("open", flush=True)
        while True:
            if "--poison" in sys.argv and dice.random() < 0.02:
                await writer._backlog.put(malformed(number), 1, backfill=False)
            count = dice.randint(1, 60)
            values = np.arange(number, number + count, dtype=np.float64)
            if dice.random() < 0.5:
                await writer.write(column_batch(twin, "n", start_us + values.astype(np.int64), values))
            else:
                for value in values:
                    await writer.observe(twin, "n", value, time=start_us + int(value))
                await writer.sync()
            number += count
            print(f"told {number - 1}", flush=True)


if __name__ == "__main__":
    if "--tells-too-early" in sys.argv:
        tell_too_early()
    asyncio.run(produce(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
