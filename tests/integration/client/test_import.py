"""`twinmesh import` and `twinmesh host` against the real services, killed and run again."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.integration.client.log_values import values_of

from twinmesh_client.aio.mesh import connect_async
from twinmesh_core.errors import TwinmeshError

pytestmark = pytest.mark.timeout(240)

CLI = (sys.executable, "-m", "twinmesh_cli")


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CLI, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def recorded(rows: int) -> pd.DataFrame:
    index = pd.date_range("2025-01-01", periods=rows, freq="1min", tz="UTC")
    rng = np.random.default_rng(3)
    columns = {f"c{i} (kW)": rng.normal(50, 5, rows).round(3) for i in range(5)}
    return pd.DataFrame({"time": index, **columns})


@pytest.mark.parametrize("form", ["csv.gz", "parquet"])
def test_a_file_becomes_history_and_again_only_what_is_missing(twinmesh, tmp_path, form):
    path, twin = tmp_path / f"press.{form}", f"import-{form.replace('.', '-')}"
    frame = recorded(3_000)
    if form == "parquet":
        pq.write_table(pa.Table.from_pandas(frame), path)
    else:
        frame.to_csv(path, index=False)
    status, out, err = twinmesh("import", str(path), "--twin", twin)
    assert status == 2, err
    assert "--create" in err
    status, out, err = twinmesh("import", str(path), "--twin", twin, "--create")
    assert status == 0, err
    assert "c0 (kW) -> c0" in out
    assert "3,000 rows, 15,000 values; sent 15,000" in out
    status, out, err = twinmesh("import", str(path), "--twin", twin)
    assert status == 0, err
    assert "sent 0" in out
    assert "15,000 values were stored already" in out
    assert "--again NAME" in err
    assert twinmesh("delete", twin, "--all")[0] == 0
    for sent in ("15,000", "0"):
        status, out, err = twinmesh("import", str(path), "--twin", twin, "--again", "after-the-deletion")
        assert status == 0, err
        assert f"sent {sent}" in out


def test_how_a_file_would_be_taken_is_shown_first(twinmesh, tmp_path):
    path = tmp_path / "plan.csv"
    path.write_text(
        "Date;Öl-Temp (degF);on\n2026-01-01 00:00:00;61,5;yes\n2026-01-01 00:01:00;oops;no\n2026-01-01 00:02:00;62;no\n"
    )
    status, out, err = twinmesh("import", str(path), "--twin", "import-plan", "--create", "--dry-run")
    assert status == 1
    assert "--tz" in err
    status, out, err = twinmesh(
        "import", str(path), "--twin", "import-plan", "--create", "--dry-run", "--tz", "Europe/Berlin"
    )
    assert status == 0, err
    assert "local time of Europe/Berlin" in out
    assert "ol_temp" in out
    assert "[degF]" in out
    assert "line 3" in err
    status, _, err = twinmesh("latest", "import-plan")
    assert status == 1, err


async def test_broken_cells_are_kept_aside_by_the_mesh(mesh, twinmesh_process, tmp_path):
    path = tmp_path / "broken.csv"
    path.write_text("time,oil\n2026-01-01T00:00:00Z,1.5\n2026-01-01T00:01:00Z,warm\n2026-01-01T00:02:00Z,2.5\n")
    done = await twinmesh_process("import", str(path), "--twin", "import-broken", "--create", "--broken", "quarantine")
    assert done[0] == 0, done
    rows = (await mesh.quarantine(twin_id="import-broken")).rows
    assert [(r.channel, r.reason.name) for r in rows] == [("oil", "WRONG_KIND")]
    assert (await mesh.statistics("import-broken")).points == 2


@pytest.fixture
def twinmesh_process(target):
    async def run(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.to_thread(started, *arguments)
        out, err = await asyncio.to_thread(process.communicate)
        return process.returncode, out, err

    return run


async def until_it_answers(target: str) -> None:
    """Wait until the service that is dialled is there again, once it was killed."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with connect_async(target, timeout_s=5):
                    return
            except TwinmeshError:
                await asyncio.sleep(0.1)


async def stored_now(mesh, twin_id: str) -> int:
    """Return how many points of a twin are stored, 0 while nobody can say."""
    try:
        return int((await mesh.statistics(twin_id)).points)
    except TwinmeshError:
        return 0


async def until_more_is_stored(mesh, twin_id: str, process: subprocess.Popen[str]) -> None:
    """Wait until the twin has more points than now, or the process has ended."""
    before = await stored_now(mesh, twin_id)
    for _ in range(3_000):
        if await stored_now(mesh, twin_id) > before or process.poll() is not None:
            return
        await asyncio.sleep(0.02)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 12])
async def test_an_import_that_is_killed_again_and_again_stores_each_value_once(
    running_mesh, mesh, target, tmp_path, kills
):
    rows = 40_000 * max(2, kills // 2)
    path, twin = tmp_path / "long.csv", f"import-killed-{kills}"
    recorded(rows).to_csv(path, index=False)
    arguments = ("import", str(path), "--twin", twin, "--create", "--json")
    dice = random.Random(kills)  # noqa: S311
    for i in range(kills):
        process = started(*arguments)
        # Killed when it has begun to write; sometimes a service with it.
        await until_more_is_stored(mesh, twin, process)
        await asyncio.sleep(dice.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if i % 4 == 3:
            running_mesh.kill("ingestion" if i % 8 == 3 else "storage", signal.SIGKILL)
        await until_it_answers(target)
    process = started(*arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    document = json.loads(out)
    assert document["progress"]["known"] > 0
    assert document["progress"]["values"] == 5 * rows
    stored = await values_of(mesh, twin)
    assert {channel: len(values) for channel, values in stored.items()} == {f"c{i}": rows for i in range(5)}
    assert stored["c3"] == recorded(rows)["c3 (kW)"].tolist()


ETT = Path(os.environ.get("TWINMESH_DATA", "../shared/data")) / "etth1" / "ETTh1.csv.gz"
"""Seventeen thousand hours of a real transformer; tried where they are."""


@pytest.mark.skipif(not ETT.exists(), reason="the recorded transformer is not here")
def test_a_real_recording(twinmesh):
    status, out, err = twinmesh("import", str(ETT), "--twin", "ETTh1", "--create", "--tz", "Asia/Shanghai")
    assert status == 0, err
    assert "17,420 rows, 121,940 values; sent 121,940" in out
    assert "OT" in out


def until_spooled(directory: Path, size: int) -> None:
    deadline = time.monotonic() + 30
    while sum(path.stat().st_size for path in directory.glob("*.spool")) < size:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def points_of(mesh, twin_id: str, least: int) -> int:
    """Wait until so many points are stored, through whatever happens to the mesh."""
    async with asyncio.timeout(60):
        while True:
            try:
                points = (await mesh.statistics(twin_id)).points
            except TwinmeshError:
                points = 0
            if points >= least:
                return points
            await asyncio.sleep(0.1)


@pytest.mark.faults
async def test_this_machine_is_written_through_an_absence_of_the_mesh(running_mesh, mesh, target, tmp_path):
    process = started("host", "--every", "100ms", "--spool", str(tmp_path / "spool"), "--twin", "import-host")
    try:
        points = await points_of(mesh, "import-host", 30)
        running_mesh.kill("ingestion", signal.SIGKILL)
        await points_of(mesh, "import-host", points + 200)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "host: stopped" in err
    assert (await mesh.statistics("import-host")).quarantined == 0
    # A reading every 100 ms or so, none twice: the absence left no hole longer than the machine was slow.
    values = (await values_of(mesh, "import-host"))["load_1min"]
    latest = await mesh.twins["import-host"].read("load_1min", last="1h")
    assert len(values) == len(latest["load_1min"].values)


@pytest.mark.slow
@pytest.mark.faults
async def test_a_reading_taken_while_no_mesh_is_there_arrives_later(mesh, target, tmp_path):
    spool = ("host", "--every", "50ms", "--spool", str(tmp_path / "spool"), "--twin", "import-early")
    process = started(*spool, "--target", "127.0.0.1:1")
    await asyncio.to_thread(until_spooled, tmp_path / "spool", 3_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = time.time()
    process = started(*spool)
    try:
        await points_of(mesh, "import-early", 30)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    first = min(s.first_time for s in await mesh.twins["import-early"].series())
    assert first.timestamp() < before
    assert (await mesh.statistics("import-early")).quarantined == 0
