"""What a newcomer copies must run as it is written: examples/first.py, the README, the long snippet."""

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import twinmesh_client as tm

pytestmark = pytest.mark.timeout(180)
ROOT = Path(__file__).resolve().parents[3]
SNIPPET = """
import pandas as pd, twinmesh_client as tm
with tm.connect() as mesh:  # context "local"; or tm.connect("mesh:7400")
    t1 = mesh.twins.create("T1", type="transformer@1", time_zone="Europe/Berlin", if_absent=True)
    ack = t1.write(pd.read_csv("t1.csv", index_col="time"), time_zone="Europe/Berlin", units={"oil": "degF"})
    print(ack)
    day = t1.read("oil", last="1d", every="5min", agg="mean", min_offset=ack.offset).to_pandas()
    fc = t1.forecast("oil", horizon="6h", quantiles=(0.1, 0.5, 0.9), max_staleness="10min")
    print(fc.at, fc.model, fc.valid_until, fc.to_pandas().tail(1))
    want = t1.set_desired({"cooling_stage": 2}, if_revision=t1.get().desired.revision, deadline="60s")
    for e in t1.watch(resume_after=want.before):  # resumes by itself; a gap raises, never passes
        print(e.offset, e.kind, e.reported, e.delta)
        if e.converged(want): break
"""
TYPE = tm.twin_type(
    "transformer@1",
    [tm.channel("oil", "Cel", every="1min"), tm.channel("cooling_stage", kind="state", controllable=True)],
)


def recorded(path: Path, days: float) -> None:
    """Write a naive CSV in Berlin's local time, in degrees Fahrenheit, that ends now."""
    times = pd.date_range(end=pd.Timestamp.now(tz="Europe/Berlin").floor("5min"), periods=int(days * 288), freq="5min")
    rng = np.random.default_rng(1)
    weather = pd.Series(rng.normal(0, 1, len(times))).ewm(alpha=0.01).mean().to_numpy() * 30
    # A cycle of nine hours: what was a day ago is a poor forecast of it at any time of day that this is run.
    oil = 140 + 20 * np.sin(2 * np.pi * np.arange(len(times)) / (9 * 12)) + weather
    pd.DataFrame({"oil": oil.round(2)}, index=times.tz_localize(None).rename("time")).to_csv(path)


@contextmanager
def device(target: str):
    """Stand for the transformer: report the stage that is wanted, a moment after it is."""
    stop = threading.Event()

    def obey() -> None:
        with tm.connect(target) as mesh:
            while not stop.is_set():
                with suppress(tm.NotFound):
                    for channel, item in mesh.twins["T1"].get().delta.items():
                        mesh.twins["T1"].write_values({channel: item.desired})
                time.sleep(0.1)

    thread = threading.Thread(target=obey)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run(program: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)], cwd=cwd, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_example_runs_and_runs_again(target, tmp_path):
    for _ in range(2):
        said = run(ROOT / "examples/first.py", tmp_path)
        assert "accepted 90  flagged 0  quarantined 0" in said
        assert "has no channel 'pressure'" in said
        assert "converged at offset" in said


def test_the_snippet_of_the_readme_runs_as_it_is_written(target, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    programs = [b for b in blocks if "tm.connect()" in b]
    assert programs
    recorded(tmp_path / "t1.csv", days=1)
    with device(target):
        for program in programs:
            (tmp_path / "snippet.py").write_text(program, encoding="utf-8")
            assert "accepted 288" in run(tmp_path / "snippet.py", tmp_path)


def test_the_long_snippet_runs_with_a_forecast(target, tmp_path):
    recorded(tmp_path / "t1.csv", days=6)
    with tm.connect() as mesh:
        mesh.types.create(TYPE)
        t1 = mesh.twins.create("T1", type="transformer@1", time_zone="Europe/Berlin", if_absent=True)
        t1.write(pd.read_csv(tmp_path / "t1.csv", index_col="time"), time_zone="Europe/Berlin", units={"oil": "degF"})
        run_ = mesh.models.train(
            "oil", twins=["T1"], target="oil", step="15min", context_steps=24, horizon_steps=24, families=["ridge"]
        )
        version = mesh.models.wait(run_.run_id).promoted_version
        assert version
        deadline = time.monotonic() + 60
        while not any(d.serving and d.version == version for d in mesh.models.deployments("oil")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    (tmp_path / "snippet.py").write_text(SNIPPET, encoding="utf-8")
    with device(target):
        said = run(tmp_path / "snippet.py", tmp_path)
    assert f"oil@{version}" in said
    assert "CHANGED" in said


def test_the_page_of_devices_shows_the_example_as_it_is():
    page = (ROOT / "docs/devices.md").read_text(encoding="utf-8")
    program = (ROOT / "examples/device.py").read_text(encoding="utf-8")
    assert program[program.index("import time") :].strip() in page


def test_the_device_of_the_docs_works_until_it_is_stopped(target, tmp_path):
    program = [sys.executable, "-W", "error", str(ROOT / "examples/device.py")]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as device:
        try:
            assert device.stdout is not None
            assert device.stderr is not None
            assert device.stdout.readline() == "fan-1 is at work\n"
            with tm.connect() as mesh:
                fan = mesh.twins["fan-1"]
                want = fan.set_desired({"speed": 40.0}, deadline="30s")
                for event in fan.watch(resume_after=want.before):
                    if event.converged(want):
                        break
                order = fan.send_command("calibrate")
                while not (order := fan.command(order.command_id)).ended:
                    time.sleep(0.1)
                assert (order.state, order.result, order.progress_message) == (
                    "SUCCEEDED",
                    {"offset": 0.3},
                    "spinning up",
                )
        finally:
            device.send_signal(signal.SIGINT)
        device.wait(20)
        assert "KeyboardInterrupt" in device.stderr.read()


def test_a_device_that_was_offline_catches_up_in_order(target, tmp_path):
    said = run(ROOT / "examples/device_offline.py", tmp_path)
    back = said[said.index("4. It comes back") :]
    order = [line.split()[2] for line in back.splitlines() if line.startswith("  device")]
    assert order == ["flush", "position", "close"]
    assert "STALE" in said
    assert "In the end: position APPLIED" in said
    assert "delta {}" in said.splitlines()[-1]
