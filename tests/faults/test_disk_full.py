"""The disk fills up: appends are refused, nothing acknowledged is lost, and once there is room all goes on by itself.

PostgreSQL lies on small file systems in memory, which only root may mount; others see these tests skipped.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.faults.history import History
from tests.faults.nemesis import end_and_start
from tests.faults.points import Plan, producers
from tests.faults.producers import StampedProducer, resolve
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import World, world

from twinmesh.storage.v1 import storage_pb2
from twinmesh_local.accounts import server_account
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian

Report = Callable[[Outcome, Path], None]
pytestmark = [pytest.mark.faults, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(180)]
GROWN = "2g"


class Volume:
    """A small file system in memory, owned by whom PostgreSQL runs as."""

    def __init__(self, directory: Path, size: str) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        account = server_account(directory.parent)
        owner = f",uid={account.uid},gid={account.gid}" if account else ""
        mounted = _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700{owner}", "tmpfs", str(directory))
        if mounted.returncode:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")

    def grow(self) -> None:
        """Make room."""
        assert _run("mount", "-o", f"remount,size={GROWN}", str(self.directory)).returncode == 0

    def unmount(self) -> None:
        """Remove it, in use or not."""
        _run("umount", "-l", str(self.directory))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)


@contextmanager
def small_server(
    guardian: Guardian, directory: Path, *, data: str = "", wal: str = ""
) -> Iterator[tuple[PostgresServer, Volume]]:
    """Yield a server whose data, or else whose write-ahead log, lie on a small volume of this size."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    directory.mkdir()
    directory.chmod(0o711)
    with ExitStack() as stack:
        volumes = []
        if data:
            volumes.append(Volume(directory / "postgresql", data))
            stack.callback(volumes[-1].unmount)
        if wal:
            volumes.append(Volume(directory / "wal", wal))
            stack.callback(volumes[-1].unmount)
        server = PostgresServer(guardian, directory, log_dir=directory, name=f"small-{directory.name}")
        server.start()
        stack.callback(server.remove_data)
        stack.callback(server.stop)
        server.stop()
        inside = (directory / "postgresql").resolve() / "data" / "pg_wal"
        assert _run("cp", "-a", "--no-target-directory", str(inside), str(directory / "wal")).returncode == 0
        shutil.rmtree(inside)
        inside.symlink_to(directory / "wal")
        server.start()
        yield server, volumes[0]


async def fill(w: World, ledger: History, full: Callable[[], bool]) -> None:
    """Wait until the disk is full, and see that what is there can be read."""
    while not full():  # noqa: ASYNC110 -- plain data
        await asyncio.sleep(0.02)
    for method, request in (
        ("GetHead", storage_pb2.GetHeadRequest()),
        ("GetStatistics", storage_pb2.GetStatisticsRequest()),
        ("ListSeries", storage_pb2.ListSeriesRequest()),
    ):
        await w.store.ask(method, request)


async def again(ledger: History) -> float:
    """Return how long it takes until something is acknowledged."""
    before, began = ledger.acks, time.monotonic()
    while ledger.acks == before:  # noqa: ASYNC110 -- plain data
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_a_full_disk_refuses_and_heals(
    guardian: Guardian, mortal_dir: Path, run_dir: Path, report: Report
) -> None:
    """The write-ahead log lies elsewhere: PostgreSQL goes on, and says that it has no room."""
    plan = Plan(name="disk full", seed=801, rows=20_000)
    with (
        small_server(guardian, mortal_dir / "full-data", data="160m") as (server, volume),
        History(run_dir / "history.jsonl", plan) as ledger,
    ):
        async with world(guardian, run_dir, server.url(), seed=plan.seed) as w:
            every = [StampedProducer(w.store, n, ledger, await resolve(w.store, n)) for n in producers(3)]
            resumed_s = 0.0

            async def nemesis() -> None:
                nonlocal resumed_s
                await fill(w, ledger, lambda: ledger.reasons["OVERLOADED"] >= 20)
                pid = w.storage.pid
                volume.grow()
                resumed_s = await again(ledger)
                assert w.storage.pid == pid
                assert w.storage.runs, "storage fell over"

            found = await load(w, every, ledger, until=lambda: True, nemesis=nemesis)
            outcome = judged(
                w, found, faults=1, note=f"refused {ledger.reasons}, first acknowledgement {resumed_s:.2f} s after"
            )
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert set(ledger.reasons) == {"OVERLOADED"}, "a full disk must be told as such"
    assert resumed_s < 10


async def test_a_full_write_ahead_log(guardian: Guardian, mortal_dir: Path, run_dir: Path, report: Report) -> None:
    """PostgreSQL panics and cannot even recover until there is room; what it acknowledged is there afterwards."""
    plan = Plan(name="log disk full", seed=802, rows=20_000)
    with (
        small_server(guardian, mortal_dir / "full-wal", wal="96m") as (server, volume),
        History(run_dir / "history.jsonl", plan) as ledger,
    ):
        async with world(guardian, run_dir, server.url(), seed=plan.seed) as w:
            every = [StampedProducer(w.store, n, ledger, await resolve(w.store, n)) for n in producers(3)]
            resumed_s = 0.0

            async def nemesis() -> None:
                nonlocal resumed_s
                while "PANIC" not in server.log.read_text():  # noqa: ASYNC110 -- a file
                    await asyncio.sleep(0.05)
                volume.grow()
                # The postmaster may have given up by now.
                await end_and_start(w, server, signal.SIGQUIT)
                resumed_s = await again(ledger)

            found = await load(w, every, ledger, until=lambda: True, nemesis=nemesis)
            outcome = judged(
                w, found, faults=1, note=f"refused {ledger.reasons}, first acknowledgement {resumed_s:.2f} s after"
            )
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert ledger.reasons.total() > 0
