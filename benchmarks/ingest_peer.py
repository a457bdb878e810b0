"""Peers on the same machine: through their usual Python client, and by line protocol over HTTP; batches of 10,000.

The client is ``influxdb`` (``InfluxDBClient.write_points``), which VictoriaMetrics takes too; no dependency of ours:
``pip install influxdb``. It is given points that are dictionaries already; building them is not counted.

Debian's ``victoria-metrics`` and ``influxdb`` are started on a data directory of their own if they are installed. Their
durability is not ours: InfluxDB 1 syncs its log with every write, VictoriaMetrics keeps the newest seconds in memory.
"""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.storage_bench import T0, S, free_port

SERIES: Final = 1_000
ROWS: Final = 10_000
ROUNDS: Final = 3


def peers(points: int) -> dict[str, int]:
    """Return points per second of each peer that is installed, by each way; says on standard output what is not."""
    found = {}
    client = importlib.util.find_spec("influxdb") is not None
    if not client:
        print("peers by their Python client: skipped, influxdb is not installed (pip install influxdb)")
    for name, package, program, run in (
        ("victoria_metrics", "victoria-metrics", "victoria-metrics", _victoria),
        ("influxdb", "influxdb", "influxd", _influx),
    ):
        if shutil.which(program) is None:
            print(f"{name}: skipped, {program} is not installed (apt-get install {package})")
            continue
        with tempfile.TemporaryDirectory(prefix="twinmesh-peer-") as directory, run(Path(directory)) as port:
            found[f"{name}_http"] = round(_measure(port, points))
            if client:
                found[f"{name}_client"] = round(_measure_client(port, points))
    return found


def _measure_client(port: int, points: int) -> float:
    influxdb: Any = importlib.import_module("influxdb")
    client = influxdb.InfluxDBClient(host="127.0.0.1", port=port, database="bench", timeout=30, gzip=False)
    rates = []
    for number in range(ROUNDS):
        # After the rounds by HTTP: new times, as live telemetry has.
        first = (ROUNDS + number) * points // SERIES
        batches = [
            [
                {
                    "measurement": "m",
                    "tags": {"twin": f"t{i % SERIES // 8}", "channel": f"c{i % 8}"},
                    "time": T0 + (first + (start + i) // SERIES) * S,
                    "fields": {"v": 20 + i % 97 / 100},
                }
                for i in range(ROWS)
            ]
            for start in range(0, points, ROWS)
        ]
        started = time.perf_counter()
        for batch in batches:
            if not client.write_points(batch, time_precision="u"):
                raise SystemExit("the peer refused a batch")
        rates.append(points / (time.perf_counter() - started))
    client.close()
    return statistics.median(rates)


def _measure(port: int, points: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    rates = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        for start in range(0, points, ROWS):
            first = (number * points + start) // SERIES
            lines = "\n".join(
                f"m,twin=t{i % SERIES // 8},channel=c{i % 8} v={20 + i % 97 / 100} {T0 + (first + i // SERIES) * S}000"
                for i in range(ROWS)
            )
            connection.request("POST", "/write?db=bench", body=lines.encode())
            answer = connection.getresponse()
            answer.read()
            if answer.status // 100 != 2:
                raise SystemExit(f"the peer answered {answer.status}")
        rates.append(points / (time.perf_counter() - started))
    return statistics.median(rates)


@contextmanager
def _victoria(directory: Path) -> Iterator[int]:
    port = free_port()
    arguments = [f"-storageDataPath={directory}", f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=100y"]
    with _running(["victoria-metrics", *arguments]):
        _until(lambda: _answers(port, "GET", "/health"))
        yield port


@contextmanager
def _influx(directory: Path) -> Iterator[int]:
    port, rpc = free_port(), free_port()
    config = directory / "influxdb.conf"
    config.write_text(
        f"""reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{directory}/meta"
[data]
  dir = "{directory}/data"
  wal-dir = "{directory}/wal"
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
""",
        encoding="utf-8",
    )
    with _running(["influxd", "-config", str(config)]):
        _until(lambda: _answers(port, "POST", "/query?q=CREATE+DATABASE+bench"))
        yield port


@contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(port: int, method: str, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the peer did not start")
        time.sleep(0.1)
