"""`demo --csv`: guesses, exact accounts, forecasts of data that the model has not seen, a report."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from twinmesh_core.errors import InvalidArgument
from twinmesh_demo import csv_story
from twinmesh_demo.progress import Story
from twinmesh_demo.recorded_csv import read_recording

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def recorded(tmp_path):
    """Eighty days of hours in Berlin's local time, with clocks that never change, and three broken rows."""
    index = pd.date_range("2026-02-01", periods=24 * 80, freq="1h")
    rng = np.random.default_rng(2)
    weather = pd.Series(rng.normal(0, 1, len(index))).ewm(alpha=0.05).mean().to_numpy() * 20
    load = 50 + 20 * np.sin(2 * np.pi * np.arange(len(index)) / 24) + weather
    frame = pd.DataFrame({"Load [kW]": load.round(3), "Oil temp (°C)": (30 + 0.5 * load).round(3)})
    frame.insert(0, "date", index.strftime("%Y-%m-%d %H:%M:%S"))
    path = tmp_path / "my plant.csv"
    lines = frame.to_csv(index=False).splitlines()
    lines[10] = lines[10].replace(lines[10].split(",")[1], "broken")
    lines[20] += ",surplus"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_what_is_guessed_is_shown(recorded):
    recording = read_recording(recorded, "Europe/Berlin")
    assert recording.twin_id == "my-plant"
    assert [(c.channel, c.unit) for c in recording.columns] == [("load", "kW"), ("oil_temp", "Cel")]
    assert recording.target.column == "Oil temp (°C)"
    # A broken cell, a broken row, and the hour that spring leaves out.
    assert [b.line for b in recording.table.broken] == [11, 21, 1_348]
    assert len(recording.twin_type().channels) == 2


def test_a_zone_is_required_and_a_target_must_exist(recorded):
    with pytest.raises(InvalidArgument, match="--tz Europe/Berlin"):
        read_recording(recorded, None)
    with pytest.raises(InvalidArgument, match=r"'nope' is no column of numbers; there are Load \[kW\]"):
        read_recording(recorded, "UTC", "nope")
    with pytest.raises(InvalidArgument, match="there is no file"):
        read_recording(recorded.with_name("other.csv"), "UTC")


async def test_a_file_becomes_a_twin_with_an_honest_forecast(mesh, recorded, tmp_path):
    story = Story(Console(file=io.StringIO(), width=300))
    await csv_story.tell(mesh, read_recording(recorded, "Europe/Berlin"), story=story, out=tmp_path)
    said = "\n".join(story.lines)
    assert "left out: line 11, column 'Load [kW]': 'broken' is no number" in said
    assert "sent 3,835 points" in said
    assert "= 3,835 stored + 0 quarantined" in said
    assert "PROMOTED" in said
    assert "that nobody had seen" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "Honest models" in page
