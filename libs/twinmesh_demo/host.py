"""This machine as a twin: real telemetry at 1 Hz, nothing downloaded."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import psutil

from twinmesh_client.aio.twin import Twin
from twinmesh_core.errors import TwinmeshError


class HostSampler:
    """Reads what the operating system says of itself; rates are differences since the last reading."""

    def __init__(self) -> None:
        psutil.cpu_percent(None)
        self._last_s = time.monotonic()
        # A machine without disks or networks has no counters, whatever the stubs say.
        self._disk: Any = psutil.disk_io_counters()
        self._net: Any = psutil.net_io_counters()

    def sample(self) -> dict[str, float | int]:
        """Return one value per channel that this machine has; containers often hide temperatures and disks."""
        now_s = time.monotonic()
        elapsed_s = max(now_s - self._last_s, 1e-3)
        memory = psutil.virtual_memory()
        values: dict[str, float | int] = {
            "cpu": float(psutil.cpu_percent(None)),
            "load_1min": os.getloadavg()[0],
            "memory_used": float(memory.percent),
            "memory_available": memory.available / 2**20,
            "disk_used": float(psutil.disk_usage("/").percent),
            "processes": len(psutil.pids()),
        }
        disk: Any = psutil.disk_io_counters()
        net: Any = psutil.net_io_counters()
        if disk is not None and self._disk is not None:
            values["disk_read"] = (disk.read_bytes - self._disk.read_bytes) / 1e3 / elapsed_s
            values["disk_write"] = (disk.write_bytes - self._disk.write_bytes) / 1e3 / elapsed_s
        if net is not None and self._net is not None:
            values["net_received"] = (net.bytes_recv - self._net.bytes_recv) / 1e3 / elapsed_s
            values["net_sent"] = (net.bytes_sent - self._net.bytes_sent) / 1e3 / elapsed_s
        hottest = _hottest()
        if hottest is not None:
            values["temperature"] = hottest
        self._last_s, self._disk, self._net = now_s, disk, net
        return values


def _hottest() -> float | None:
    read: Any = getattr(psutil, "sensors_temperatures", None)
    readings = read() if read is not None else {}
    values = [float(s.current) for group in readings.values() for s in group if s.current and s.current > 0]
    return max(values, default=None)


async def stream_host(twin: Twin, counts: dict[str, int]) -> None:
    """Write this machine's values every second, for ever; keeps going while the mesh restarts.

    Args:
        twin: the twin to write.
        counts: gets ``sent`` and ``channels``.
    """
    sampler = HostSampler()
    while True:
        values = sampler.sample()
        try:
            ack = await twin.write_values(values)
        except TwinmeshError:
            # The demo kills a service on purpose; live telemetry of that second is lost, and the next one goes on.
            counts["missed"] = counts.get("missed", 0) + len(values)
        else:
            counts["sent"] = counts.get("sent", 0) + ack.accepted
            counts["channels"] = len(values)
        await asyncio.sleep(1.0)
