"""``demo --csv FILE``: twin a recorded file, learn from its first four fifths, and face what then happened."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.aio.twin import Twin
from twinmesh_client.durations import describe_us
from twinmesh_client.forecasts import Forecast
from twinmesh_client.frames import frame_batches
from twinmesh_client.planning import ModelSizes, suggest_sizes
from twinmesh_client.runs import TrainingRun
from twinmesh_connectors.files.columns import describe_columns
from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_core.kinds import ChannelKind
from twinmesh_demo import learn, plots, report
from twinmesh_demo.progress import Story, size
from twinmesh_demo.recorded_csv import Recording, read_recording

__all__ = ["Recording", "read_recording", "tell"]

KNOWN_SHARE = 0.8
"""The model learns from this much of the recording; the rest stays unseen until it is judged."""
ORIGINS = 40
ROWS_PER_BATCH = 20_000
SEED = 13
_NAMED = 4
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How forecasts of the unseen tail did.

    Attributes:
        mae: mean absolute error of the median, over all origins and steps.
        naive_mae: of repeating what was a whole number of days before.
        inside: share of the facts inside the band.
        band: what that share should be.
        steps: forecast steps that were compared with a fact.
    """

    mae: float
    naive_mae: float
    inside: float
    band: float
    origins: int
    steps: int


async def tell(mesh: Mesh, recording: Recording, *, story: Story, out: Path) -> None:
    """Twin a recorded file and say what came of it; writes ``report.html`` and its picture into `out`."""
    _say_guesses(recording, story)
    twin = await _create(mesh, recording)
    await _write(mesh, twin, recording, story)
    parts = [report.listing("How the columns were understood", "\n".join(describe_columns(recording.columns)))]
    target = recording.target
    try:
        sizes = suggest_sizes(recording.interval, KNOWN_SHARE * recording.span)
    except FailedPrecondition as error:
        if error.reason != Reason.NOT_ENOUGH_HISTORY:
            raise
        story.say("train", f"left out: {error.message}")
        _write_report(recording, parts, story, out)
        return
    cut = _cut(recording, sizes)
    run = await _train(mesh, twin, recording, sizes, cut, story)
    parts.insert(0, _model_section(run, recording, cut))
    if run.promoted_version:
        await learn.until_serving(mesh, run.model_id, run.promoted_version)
        forecast, verdict = await _face_the_facts(twin, recording, sizes, cut, story)
        picture = out / f"forecast_{target.channel}.png"
        await plots.forecast_figure(
            twin,
            forecast,
            zone=recording.zone,
            title=f"{target.column}: forecast made at {_when(cut, recording.zone)}, and what then happened",
            path=picture,
        )
        parts.insert(0, _picture_section(forecast, verdict, recording, picture))
        parts.insert(0, _tiles(recording, verdict))
        story.say("look", f"{out / 'report.html'}   {picture}")
    else:
        story.say("forecast", "none: no model was clearly better than repeating the day before, so none is served")
    _write_report(recording, parts, story, out)


def _say_guesses(recording: Recording, story: Story) -> None:
    table = recording.table
    story.say(
        "csv",
        f"{recording.name}: {len(table.frame):,} rows, one every {describe_us(recording.interval // _MICROSECOND)}, "
        f"over {recording.span.days} days; time = column {table.time_column!r}, {table.time_meaning}",
    )
    for line in describe_columns(recording.columns):
        story.say("", line)
    story.say("", f"to forecast: {recording.target.column} (another: --target-column NAME)")
    for broken in table.broken[:_NAMED]:
        story.say("", f"left out: {broken}")
    if len(table.broken) > _NAMED:
        story.say("", f"left out: {len(table.broken) - _NAMED:,} more")


async def _create(mesh: Mesh, recording: Recording) -> Twin:
    kind = await mesh.types.create(recording.twin_type())
    return await mesh.twins.create(
        recording.twin_id,
        type=f"{kind.twin_type_id}@{kind.version}",
        time_zone=recording.zone,
        display_name=recording.name,
        if_absent=True,
    )


async def _write(mesh: Mesh, twin: Twin, recording: Recording, story: Story) -> None:
    table = recording.table
    frame = table.frame[[c.column for c in recording.columns]]
    sent = acknowledged = 0
    with story.bar("history", "sending", table.value_count) as bar:

        def on_ack(ack: WriteAck) -> None:
            nonlocal acknowledged
            acknowledged += ack.sent
            bar.move(acknowledged, f"{acknowledged:,} points")

        began = pd.Timestamp.now()
        async with mesh.writer(f"demo-csv-{recording.twin_id}", backfill=True, on_ack=on_ack) as writer:
            for batch in frame_batches(
                frame,
                twin_id=recording.twin_id,
                kinds={c.channel: c.kind for c in recording.columns},
                columns={c.column: c.channel for c in recording.columns},
                max_rows=ROWS_PER_BATCH,
            ):
                sent += batch.point_count()
                await writer.write(batch)
            ack = await writer.flush()
        seconds = (pd.Timestamp.now() - began).total_seconds()
    # Reading at the last offset waits until history holds everything that was acknowledged.
    await twin.latest(recording.target.channel, min_offset=ack.offset)
    counts = await mesh.statistics(recording.twin_id)
    repeated = table.value_count - recording.distinct_points
    lost = sent - repeated - counts.points - counts.quarantined
    story.say(
        "history",
        f"twin {recording.twin_id!r}: sent {sent:,} points in {seconds:.1f} s ({sent / seconds / 1e3:,.0f} k/s)"
        f"{' = ' if lost == 0 else ' != '}{counts.points:,} stored + {counts.quarantined:,} quarantined"
        + (f" + {repeated:,} of times that the file gives twice (the later row counts)" if repeated else "")
        + f"; {size((await mesh.statistics()).disk_bytes)} on disk",
    )
    for outcome in ack.outcomes:
        what = f"flagged {outcome.quality.name}" if outcome.quality else "quarantined"
        story.say("", f"{what} {outcome.count:,}: {outcome.example}")


def _cut(recording: Recording, sizes: ModelSizes) -> datetime:
    """Return where the known part ends, on the grid of the model's steps."""
    index = recording.table.frame.index
    moment: datetime = (index.min() + KNOWN_SHARE * (index.max() - index.min())).floor(sizes.step).to_pydatetime()
    return moment


async def _train(
    mesh: Mesh, twin: Twin, recording: Recording, sizes: ModelSizes, cut: datetime, story: Story
) -> TrainingRun:
    target = recording.target.channel
    inputs = [c.channel for c in recording.columns if c.kind is ChannelKind.GAUGE and c.channel != target]
    with story.bar("train", f"{recording.target.column}", 1) as bar:
        run = await mesh.models.train(
            f"{recording.twin_id.lower()}-{target}"[:120],
            twins=[twin.twin_id],
            target=target,
            inputs=inputs,
            step=sizes.step,
            context_steps=sizes.context_steps,
            horizon_steps=sizes.horizon_steps,
            end=cut,
            time_budget=timedelta(seconds=30),
            seed=SEED,
        )
        async with aclosing(mesh.models.watch_run(run.run_id)) as states:
            async for state in states:
                bar.move(state.progress, state.phase)
        run = await mesh.models.wait(run.run_id)
    origins = max((c.origin_count for c in run.candidates), default=0)
    story.say(
        "train",
        f"{recording.target.column}, {describe_us(sizes.horizon // _MICROSECOND)} ahead in steps of "
        f"{describe_us(sizes.step // _MICROSECOND)}; sees nothing after {_when(cut, recording.zone)}; judged on the "
        f"last third of what it sees, {origins} origins",
    )
    story.say("", learn.header().replace("MAE K", f"MAE {recording.target.unit}".strip()[:9].rjust(5)))
    for line in learn.rows(run):
        story.say("", line)
    return run


async def _face_the_facts(
    twin: Twin, recording: Recording, sizes: ModelSizes, cut: datetime, story: Story
) -> tuple[Forecast, Verdict]:
    target = recording.target
    first = await twin.forecast(target.channel, at=cut, record=True)
    top = int(np.argmax(first.quantile(0.5)))
    story.say(
        "forecast",
        f"at {_when(first.at, recording.zone)}: peak {first.quantile(0.5)[top]:.4g} {target.unit} "
        f"[{first.values[top, 0]:.4g} .. {first.values[top, -1]:.4g}] at {_when(first.times[top], recording.zone)}; "
        f"model {first.model}, {first.input_coverage:.0%} of its inputs present",
    )
    end: datetime = recording.table.frame.index.max().to_pydatetime()
    last = end - sizes.horizon
    every = max(sizes.step, (last - cut) / ORIGINS)
    origins = [cut + i * every for i in range(ORIGINS) if cut + i * every <= last] or [cut]
    with story.bar("then", "forecasting the unseen tail", len(origins)) as bar:
        forecasts = []
        for i, origin in enumerate(origins):
            forecasts.append(await _forecast_or_none(twin, target.channel, origin, sizes))
            bar.move(i + 1)
    made = [f for f in forecasts if f is not None]
    verdict = await _judge(twin, recording, sizes, made or [first], cut, end)
    gain = f"{100 * (verdict.mae / verdict.naive_mae - 1):+.0f} % against the day before" if verdict.naive_mae else ""
    story.say(
        "then",
        f"{verdict.origins} forecasts of the {1 - KNOWN_SHARE:.0%} that nobody had seen, against what happened: "
        f"MAE {verdict.mae:.3g} {target.unit} ({gain}), {verdict.inside:.0%} of {verdict.steps:,} facts inside "
        f"the {verdict.band:.0%} band",
    )
    skipped = len(forecasts) - len(made)
    if skipped:
        story.say("", f"{skipped} more could not be made: too little of the day before them was recorded")
    return first, verdict


async def _forecast_or_none(twin: Twin, channel: str, origin: datetime, sizes: ModelSizes) -> Forecast | None:
    at: datetime = pd.Timestamp(origin).floor(sizes.step).to_pydatetime()
    try:
        return await twin.forecast(channel, at=at)
    except FailedPrecondition as error:
        if error.reason != Reason.NOT_ENOUGH_HISTORY:
            raise
        return None


async def _judge(
    twin: Twin, recording: Recording, sizes: ModelSizes, forecasts: list[Forecast], cut: datetime, end: datetime
) -> Verdict:
    days = -(-sizes.horizon // timedelta(days=1))
    season = timedelta(days=days)
    buckets = await twin.read(recording.target.channel, start=cut - season, end=end, every=sizes.step)
    facts: pd.Series[float] = buckets.to_pandas()[recording.target.channel]
    errors: list[npt.NDArray[np.float64]] = []
    naive: list[npt.NDArray[np.float64]] = []
    inside: list[npt.NDArray[np.bool_]] = []
    for forecast in forecasts:
        times = pd.DatetimeIndex(forecast.times)
        actual = facts.reindex(times).to_numpy(np.float64)
        before = facts.reindex(times - season).to_numpy(np.float64)
        known = np.isfinite(actual) & np.isfinite(before)
        errors.append(np.abs(actual - forecast.quantile(0.5))[known])
        naive.append(np.abs(actual - before)[known])
        inside.append(((actual >= forecast.values[:, 0]) & (actual <= forecast.values[:, -1]))[known])
    compared = np.concatenate(errors)
    if not len(compared):
        raise FailedPrecondition(
            f"Nothing was recorded of {recording.target.column} where it was forecast; choose another --target-column.",
            reason=Reason.NOT_ENOUGH_HISTORY,
        )
    return Verdict(
        mae=float(compared.mean()),
        naive_mae=float(np.concatenate(naive).mean()),
        inside=float(np.concatenate(inside).mean()),
        band=float(forecasts[0].levels[-1] - forecasts[0].levels[0]),
        origins=len(forecasts),
        steps=len(compared),
    )


def _tiles(recording: Recording, verdict: Verdict) -> str:
    unit = recording.target.unit
    gain = 100 * (verdict.mae / verdict.naive_mae - 1) if verdict.naive_mae else 0.0
    return report.tiles(
        [
            (f"{recording.table.value_count:,}", f"points of {len(recording.columns)} channels"),
            (f"{verdict.mae:.3g} {unit}".strip(), f"mean error of {verdict.origins} forecasts of unseen data"),
            (f"{gain:+.0f} %", "against repeating the day before"),
            (f"{verdict.inside:.0%}", f"of {verdict.steps:,} facts inside the {verdict.band:.0%} band"),
        ]
    )


def _picture_section(forecast: Forecast, verdict: Verdict, recording: Recording, path: Path) -> str:
    return report.picture(
        f"{recording.target.column}: the forecast against what happened",
        path,
        f"Made by {forecast.model} as of {_when(forecast.at, recording.zone)}, the end of what the model was trained "
        "on: not the best of many, but the first of the unseen tail. "
        f"Over {verdict.origins} origins the mean error is {verdict.mae:.3g} {recording.target.unit}.",
    )


def _model_section(run: TrainingRun, recording: Recording, cut: datetime) -> str:
    naive = next((c.metrics.get("mae") for c in run.candidates if c.family == "SEASONAL_NAIVE"), None)
    rows = []
    for c in run.candidates:
        mae = c.metrics.get("mae", float("nan"))
        rows.append(
            (
                learn.TITLES.get(c.family, c.family.lower())
                + (" - promoted" if c.model_version and c.model_version == run.promoted_version else ""),
                f"{mae:.3g}",
                f"{100 * (mae / naive - 1):+.0f} %" if naive and c.family != "SEASONAL_NAIVE" else "",
                f"{100 * c.metrics['coverage']:.1f} %" if "coverage" in c.metrics else "-",
                f"{c.metrics.get('train_seconds', 0.0):.1f}",
            )
        )
    unit = f", {recording.target.unit}" if recording.target.unit else ""
    head = ("", f"MAE{unit}", "against naive", "80 % band covers", "training, s")
    return report.table(f"Honest models: trained on what was known at {_when(cut, recording.zone)}", head, rows)


def _write_report(recording: Recording, parts: list[str], story: Story, out: Path) -> None:
    title = f"Twinmesh: {recording.name}"
    lead = f"{len(recording.table.frame):,} recorded rows, twinned. Every figure was measured in this run."
    whole = [*parts, report.listing("The whole output", "\n".join(story.lines))]
    (out / "report.html").write_text(report.page(title, lead, whole), encoding="utf-8")


def _when(moment: datetime, zone: str) -> str:
    return f"{pd.Timestamp(moment).tz_convert(zone):%Y-%m-%d %H:%M}"
