"""This machine as a twin: what the operating system says of itself, nothing downloaded."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final

import numpy as np
import psutil

from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.aio.writer import Writer
from twinmesh_client.modelling import channel, twin_type
from twinmesh_connectors.config import Table
from twinmesh_connectors.status import Status
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section, int64_section

TYPE: Final = twin_type(
    "host@1",
    [
        channel("cpu", "%", every="1s", minimum=0.0, maximum=100.0, description="Share of all cores that is busy"),
        channel("load_1min", every="1s", minimum=0.0, description="Run queue, averaged over a minute"),
        channel("memory_used", "%", every="1s", minimum=0.0, maximum=100.0),
        channel("memory_available", "MiBy", every="1s", minimum=0.0),
        channel("disk_used", "%", every="1s", minimum=0.0, maximum=100.0),
        channel("disk_read", "kBy/s", every="1s", minimum=0.0),
        channel("disk_write", "kBy/s", every="1s", minimum=0.0),
        channel("net_received", "kBy/s", every="1s", minimum=0.0),
        channel("net_sent", "kBy/s", every="1s", minimum=0.0),
        channel("processes", kind="state", every="1s", minimum=0.0),
        channel("temperature", "Cel", every="1s", minimum=-20.0, maximum=130.0, description="Hottest sensor"),
    ],
    display_name="This machine",
)
TWIN: Final = "this-machine"
_READINGS: Final = (
    "cpu",
    "load",
    "memory",
    "disk space",
    "processes",
    "disk traffic",
    "network traffic",
    "temperature",
)


class HostSampler:
    """Reads what the operating system says of itself; rates are differences since the last reading.

    A reading that this machine does not have, or that fails, is left out and counted in `missing`: containers often
    hide temperatures and disks, and a sensor may come and go.
    """

    def __init__(self) -> None:
        self.missing: dict[str, int] = {}
        self._last_s = time.monotonic()
        self._counters: dict[str, tuple[int, int]] = {}
        self.sample()

    def sample(self) -> dict[str, float | int]:
        """Return one value per channel that this machine has."""
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._last_s, 1e-3)
        self._last_s = now_s
        values: dict[str, float | int] = {}
        for name, read in zip(_READINGS, self._readers(elapsed_s), strict=True):
            try:
                values |= read()
            except (OSError, RuntimeError, AttributeError, NotImplementedError, psutil.Error):
                # psutil's answer to a missing sensor differs by system: an error, None, or no such function.
                self.missing[name] = self.missing.get(name, 0) + 1
        return values

    def _readers(self, elapsed_s: float) -> tuple[Any, ...]:
        return (
            lambda: {"cpu": float(psutil.cpu_percent(None))},
            lambda: {"load_1min": os.getloadavg()[0]},
            _memory,
            lambda: {"disk_used": float(psutil.disk_usage("/").percent)},
            lambda: {"processes": len(psutil.pids())},
            lambda: self._rates(psutil.disk_io_counters(), ("read_bytes", "write_bytes"), "disk", elapsed_s),
            lambda: self._rates(psutil.net_io_counters(), ("bytes_recv", "bytes_sent"), "net", elapsed_s),
            _hottest,
        )

    def _rates(self, counters: Any, names: tuple[str, str], key: str, elapsed_s: float) -> dict[str, float]:
        """Return kB/s of two counters; nothing the first time, and none that ran backwards (a disk went away)."""
        now = (int(getattr(counters, names[0])), int(getattr(counters, names[1])))
        before = self._counters.get(key)
        self._counters[key] = now
        if before is None:
            return {}
        channels = ("disk_read", "disk_write") if key == "disk" else ("net_received", "net_sent")
        return {
            name: (new - old) / 1e3 / elapsed_s
            for name, new, old in zip(channels, now, before, strict=True)
            if new >= old
        }


def _memory() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {"memory_used": float(memory.percent), "memory_available": memory.available / 2**20}


def _hottest() -> dict[str, float]:
    readings = psutil.sensors_temperatures()
    values = [float(s.current) for group in readings.values() for s in group if s.current and s.current > 0]
    return {"temperature": max(values)} if values else {}


class HostConnector:
    """Writes this machine's values at a steady rate, for ever.

    Args:
        name: in status lines.
        twin_id: the twin; of type `TYPE`, or any with channels of these names.
        every_s: time between two readings.
    """

    def __init__(self, name: str = "host", *, twin_id: str = TWIN, every_s: float = 1.0) -> None:
        self._name = name
        self._twin_id = twin_id
        self._every_s = every_s

    @property
    def name(self) -> str:
        """Name in status lines."""
        return self._name

    async def prepare(self, mesh: Mesh) -> None:
        """Create the twin if it is absent."""
        await mesh.types.create(TYPE)
        await mesh.twins.create(self._twin_id, type=TYPE.twin_type_id, time_zone="UTC", if_absent=True)

    async def run(self, writer: Writer, status: Status) -> None:
        """Sample and write; while the mesh is away without a spool, writing waits and readings are left out."""
        sampler = HostSampler()
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + self._every_s, loop.time())
            await asyncio.sleep(due_s - loop.time())
            values = await asyncio.to_thread(sampler.sample)
            await writer.write(batch_of(self._twin_id, values, time.time_ns() // 1_000))
            status.rows_read += len(values)
            status.note = f"no {', '.join(sampler.missing)}" if sampler.missing else ""


def batch_of(twin_id: str, values: dict[str, float | int], time_unix_us: int) -> ObservationBatch:
    """Return one batch of one value per channel; whole numbers are states."""
    whole = [name for name, value in values.items() if isinstance(value, int)]
    real = [name for name in values if name not in whole]
    order = real + whole
    times = np.full(len(order), time_unix_us, np.int64)
    handles = np.arange(len(order), dtype=np.uint32)
    n = len(real)
    return ObservationBatch(
        series=tuple(SeriesKey(twin_id=twin_id, channel=name) for name in order),
        doubles=double_section(handles[:n], times[:n], [values[name] for name in real]),
        int64s=int64_section(handles[n:], times[n:], [values[name] for name in whole]),
    )


def from_config(name: str, table: Table) -> HostConnector:
    """Build it from its table: ``twin`` (default this-machine) and ``every`` (default 1s)."""
    return HostConnector(name, twin_id=table.entity("twin", TWIN), every_s=table.span_s("every", "1s"))
