"""The report of the demo: pictures, tables, and calls to copy."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from twinmesh_client.aio.mesh import Mesh
from twinmesh_demo import plots, report
from twinmesh_demo.learn import HOLDOUT, HORIZON_STEPS, STEP
from twinmesh_demo.plant import MINUTE
from twinmesh_demo.play import PLAY_MINUTES
from twinmesh_demo.progress import Story, local, size
from twinmesh_demo.story import Facts
from twinmesh_demo.thermal import LIMIT_C
from twinmesh_demo.twins import FLEET

CALLS = """. .venv/bin/activate
twinmesh up --data-dir {data_dir}    # this mesh again, with all it holds; Ctrl-C ends it. In another shell:

grpcurl -plaintext -d '{{"observations":[{{"twin_id":"T1","channel":"oil","value":{{"double_value":61.5}}}}]}}' \\
    127.0.0.1:7400 twinmesh.ingestion.v1.IngestionService/Write

python -c 'import twinmesh_client as tm
with tm.connect() as mesh:
    print(mesh.twins["T1"].get().reported["oil"])'

twinmesh latest T1
twinmesh forecast T2 hot_spot
twinmesh quarantine list"""


async def write_report(mesh: Mesh, facts: Facts, story: Story, out: Path, data_dir: Path) -> Path:
    """Draw the pictures, write ``report.html`` with everything in it, say where they are; returns the report's path."""
    end = facts.start + PLAY_MINUTES * MINUTE
    twins = {name: mesh.twins[name] for name in FLEET}
    forecast_png, control_png, dirt_png = (out / f"{n}.png" for n in ("forecast_T2", "control_T1_T2", "dirt"))
    await plots.forecast_figure(
        twins["T2"],
        facts.forecasts["T2"],
        zone=facts.zone,
        title=f"T2: forecast made at {local(facts.forecasts['T2'].at, facts.zone)}, and what then happened",
        path=forecast_png,
    )
    await plots.control_figure(twins, start=facts.start, end=end, zone=facts.zone, path=control_png)
    await plots.dirt_figure(twins, facts.dirt, zone=facts.zone, path=dirt_png)
    path = out / "report.html"
    story.say("look", f"{path}   {forecast_png}   {control_png}   {dirt_png}")
    calls = CALLS.format(data_dir=data_dir)
    for number, line in enumerate(line for line in calls.splitlines() if line):
        story.say("" if number else "try", line)
    path.write_text(_page(facts, story, calls, forecast_png, control_png, dirt_png), encoding="utf-8")
    return path


def _page(facts: Facts, story: Story, calls: str, forecast_png: Path, control_png: Path, dirt_png: Path) -> str:
    t1, t2 = facts.meters["T1"], facts.meters["T2"]
    mae, inside, _ = facts.scores["T2"]
    hours = HORIZON_STEPS * STEP // timedelta(hours=1)
    parts = [
        report.tiles([
            (f"{facts.ledger.sent:,}", "points sent; lost 0, twice 0 through a kill -9"
             if facts.stored + facts.quarantined == facts.ledger.sent else "points sent"),
            (f"{facts.ledger.sent / facts.ledger.seconds / 1e3:,.0f} k/s", "through ingestion into PostgreSQL"),
            (size(facts.disk_bytes), "on disk"),
            (f"{mae:.1f} K", f"error of the {hours} h forecast; {inside:.0%} of the facts inside its 80 % band"),
        ]),
        report.picture(
            "The forecast against what happened", forecast_png,
            f"Made as of the log's offset {facts.forecasts['T2'].input_offset:,}, before the plant played on. "
            "T2 keeps its own thermostat, so nothing was done about what the forecast said.",
        ),
        report.picture(
            "The decision against the thermostat", control_png,
            f"T1 follows the set-points that Twinmesh chose; T2 is the control group under the same load and weather. "
            f"Peak {t1.peak_c:.1f} against {t2.peak_c:.1f} °C, {t1.minutes_above_limit} against "
            f"{t2.minutes_above_limit} minutes above {LIMIT_C:g} °C.",
        ),
        report.table(
            "Side by side", ("", "peak, °C", f"minutes above {LIMIT_C:g} °C", "fans, kWh", "insulation life used, h"),
            [(n, f"{m.peak_c:.1f}", str(m.minutes_above_limit), f"{m.fan_kwh:.1f}", f"{m.life_used_h:.1f}")
             for n, m in (("T1 with Twinmesh", t1), ("T2 own thermostat", t2))],
        ),
    ]  # fmt: skip
    for run, title in (
        (facts.forecast_run, "Honest models: forecast"),
        (facts.dynamics_run, "Honest models: response to planned cooling"),
    ):
        if run is not None:
            words = (
                f"Trained through the API on 90 days of both transformers; the last {HOLDOUT.days} days were held out "
                "and forecast from rolling origins. A model that does not beat the gate is not promoted."
            )
            parts.append(report.model_table(title, words, run))
    parts.append(
        report.picture(
            "The dirt, as it is kept", dirt_png,
            "Nothing is dropped or invented: doubtful values carry a flag, the gap stays a gap, rows from a clock that "
            f"is hours ahead wait in quarantine ({facts.quarantined}).",
        )
    )  # fmt: skip
    parts.append(report.listing("Calls to copy", calls))
    parts.append(report.listing("The whole output", "\n".join(story.lines)))
    when = local(facts.start, facts.zone)
    lead = f"Two transformers at {facts.zone}, from {when} on. Every figure was measured in this run."
    return report.page("Twinmesh: the whole loop", lead, parts)
