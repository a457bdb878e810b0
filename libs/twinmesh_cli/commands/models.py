"""Learning: `train`, `models`, `forecast`."""

from __future__ import annotations

import argparse
import asyncio
from argparse import Namespace
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from twinmesh_cli.errors import FAILED, CommandFailedError, UsageError
from twinmesh_cli.output import Output, show_number, show_time, sparkline
from twinmesh_cli.session import on_mesh

if TYPE_CHECKING:
    from twinmesh_client.aio.mesh import Mesh
    from twinmesh_client.aio.twin import Twin
    from twinmesh_client.planning import ModelSizes
    from twinmesh_client.runs import Candidate, TrainingRun

_SERVING_TIMEOUT_S = 90.0


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    _add_train(commands, common)
    group = commands.add_parser("models", help="trained models, their versions, and what serves")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[common], help="versions in production")
    listing.set_defaults(run=on_mesh(_list))
    versions = actions.add_parser("versions", parents=[common], help="every version of a model")
    versions.add_argument("model", nargs="?", default="")
    versions.set_defaults(run=on_mesh(_versions))
    promote = actions.add_parser("promote", parents=[common], help="make a version the one that serves")
    promote.add_argument("version", metavar="MODEL@VERSION")
    promote.add_argument("--force", action="store_true", help="even if it did not pass the gate")
    promote.set_defaults(run=on_mesh(_promote))
    deployments = actions.add_parser("deployments", parents=[common], help="what Triton holds")
    deployments.add_argument("model", nargs="?", default="")
    deployments.set_defaults(run=on_mesh(_deployments))
    forecast = commands.add_parser("forecast", parents=[common], help="forecast a channel, with its uncertainty")
    forecast.add_argument("twin")
    forecast.add_argument("channel")
    forecast.add_argument("--horizon", metavar="SPAN", help="e.g. 6h (default: all that the model says)")
    forecast.add_argument("--at", metavar="TIME", help="as of then: nothing later is seen (default: the newest value)")
    forecast.add_argument("--model", default="", metavar="MODEL[@VERSION]", help="default: the one that serves")
    forecast.add_argument("--quantiles", default="", metavar="0.1,0.5,0.9", help="levels (default: the model's)")
    forecast.add_argument("--record", action="store_true", help="write it to the twin's predicted state")
    forecast.add_argument(
        "--limit", type=int, default=24, metavar="ROWS", help="rows of the table (default: 24; 0 = all)"
    )
    forecast.set_defaults(run=on_mesh(_forecast))


def _add_train(commands: Any, common: argparse.ArgumentParser) -> None:
    train = commands.add_parser("train", parents=[common], help="train a forecast model and, if it wins, serve it")
    train.add_argument("--twin", action="append", required=True, metavar="TWIN", help="learn from it; repeatable")
    train.add_argument("--channel", metavar="CHANNEL", help="what to predict (default: the one that has a limit)")
    train.add_argument("--input", action="append", metavar="CHANNEL", help="also look at it (default: all numbers)")
    train.add_argument(
        "--control", action="append", default=[], metavar="CHANNEL", help="learn its effect: for optimising"
    )
    train.add_argument("--model", metavar="NAME", help="default: TYPE-CHANNEL")
    train.add_argument("--step", metavar="SPAN", help="default: from the data")
    train.add_argument("--lookback", metavar="SPAN", help="how far the model looks back (default: about a day)")
    train.add_argument("--horizon", metavar="SPAN", help="how far it looks ahead (default: about half a day)")
    train.add_argument("--holdout", metavar="SPAN", help="the tail it is judged on (default: one third)")
    train.add_argument("--end", metavar="TIME", help="nothing later is seen")
    train.add_argument("--family", action="append", default=[], choices=("ridge", "mlp"), help="default: both")
    train.add_argument("--time-budget", metavar="SPAN", help="bound of each family's training")
    train.add_argument("--seed", type=int, default=1)
    train.add_argument("--no-promotion", action="store_true", help="register only")
    train.add_argument("--no-wait", action="store_true", help="start the run and return")
    train.set_defaults(run=on_mesh(_train))


async def _train(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    from twinmesh_client.durations import span_us

    spec = await _plan(mesh, arguments)
    step_us = span_us(spec["step"], "--step")
    run = await mesh.models.train(**spec)
    seen = ", ".join((spec["target"], *spec["inputs"], *spec["controls"]))
    out.line(
        f"{run.run_id}: {run.model_id} predicts {spec['target']} {spec['horizon_steps'] * step_us / 3.6e9:g} h ahead "
        f"in steps of {step_us / 6e7:g} min, from {spec['context_steps']} steps of {seen}"
    )
    if arguments.no_wait:
        out.document(run)
        return 0
    run = await _follow(mesh, run, quiet=out.as_json)
    out.table(("model", "MAE", "vs naive", "band covers", "worst day", "training", ""), _candidate_rows(run))
    out.document(run)
    if run.state != "SUCCEEDED":
        raise CommandFailedError(f"the run ended {run.state}: {run.error or run.phase}")
    if not run.promoted_version:
        out.line(
            "not promoted: nothing was clearly better than the naive forecast" if not arguments.no_promotion else ""
        )
        return 0
    await _await_serving(mesh, run.model_id, run.promoted_version)
    out.line(f"{run.model_id}@{run.promoted_version} serves")
    out.line(f"  -> twinmesh forecast {arguments.twin[0]} {spec['target']}")
    return 0


async def _plan(mesh: Mesh, arguments: Namespace) -> dict[str, Any]:
    """Return the arguments of the run, what was not said taken from the twin's type and its data."""
    from twinmesh_client.durations import span_us

    twin = mesh.twins[arguments.twin[0]]
    kind = await twin.type()
    target = arguments.channel or _only([c.name for c in kind.channels if c.upper_limit is not None])
    numeric = [c.name for c in kind.channels if c.kind.numeric]
    if target is None:
        raise UsageError(
            f"say which channel to predict: {', '.join(numeric)}",
            remedy=f"twinmesh train --twin {arguments.twin[0]} --channel {numeric[0] if numeric else 'CHANNEL'}",
        )
    heard = {s.channel for s in await twin.series() if s.point_count}
    controls = tuple(arguments.control)
    inputs = tuple(arguments.input or (c for c in numeric if c != target and c in heard and c not in controls))
    step_us = span_us(arguments.step, "--step") if arguments.step else 0
    spec: dict[str, Any] = {}
    if not (step_us and arguments.lookback and arguments.horizon):
        sizes = await _sizes(twin, target)
        step_us = step_us or span_us(sizes.step, "step")
        spec = {"context_steps": sizes.context_steps, "horizon_steps": sizes.horizon_steps}
    for name, option, said in (
        ("context_steps", "--lookback", arguments.lookback),
        ("horizon_steps", "--horizon", arguments.horizon),
    ):
        if said:
            spec[name] = max(1, round(span_us(said, option) / step_us))
    return {
        "model_id": arguments.model or f"{kind.twin_type_id}-{target}".lower(),
        "task": "dynamics" if controls else "forecast",
        "twins": arguments.twin,
        "target": target,
        "inputs": inputs,
        "controls": controls,
        "step": step_us / 1e6,
        "holdout": arguments.holdout,
        "end": arguments.end,
        "families": arguments.family,
        "time_budget": arguments.time_budget,
        "seed": arguments.seed,
        "promote": not arguments.no_promotion,
        **spec,
    }


async def _sizes(twin: Twin, target: str) -> ModelSizes:
    import numpy as np

    from twinmesh_client.planning import suggest_sizes, usual_interval
    from twinmesh_client.readings import Reading

    summary = next((s for s in await twin.series() if s.channel == target and s.point_count), None)
    if summary is None or summary.first_time is None or summary.last_time is None:
        raise CommandFailedError(
            f"{twin.twin_id} has no history of {target}", remedy=f"twinmesh write {twin.twin_id} --csv FILE --backfill"
        )
    newest = await twin.read(target, last="2d")
    times = newest.series[0].time_unix_us if isinstance(newest, Reading) and newest.series else np.empty(0, np.int64)
    return suggest_sizes(usual_interval(times), summary.last_time - summary.first_time)


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None


async def _follow(mesh: Mesh, run: TrainingRun, *, quiet: bool) -> TrainingRun:
    from twinmesh_cli.progress import bar

    with bar("training", 1.0, quiet=quiet) as advance:
        shown = 0.0
        async with aclosing(mesh.models.watch_run(run.run_id)) as states:
            async for run in states:
                advance(run.progress - shown, run.phase)
                shown = run.progress
    return run


def _candidate_rows(run: TrainingRun) -> list[tuple[str, ...]]:
    naive = next((c.metrics.get("mae") for c in run.candidates if c.family == "SEASONAL_NAIVE"), None)
    return [_candidate_row(c, naive, run) for c in run.candidates]


def _candidate_row(candidate: Candidate, naive: float | None, run: TrainingRun) -> tuple[str, ...]:
    m = candidate.metrics
    gain = (
        f"{100 * (m['mae'] / naive - 1):+.0f} %"
        if naive and "mae" in m and candidate.family != "SEASONAL_NAIVE"
        else ""
    )
    won = candidate.model_version != 0 and candidate.model_version == run.promoted_version
    return (
        candidate.family.lower().replace("_", " "),
        show_number(m.get("mae")),
        gain,
        f"{100 * m['coverage']:.1f} %" if "coverage" in m else "-",
        show_number(m.get("worst_day_mae")),
        f"{m.get('train_seconds', 0.0):.1f} s",
        "PROMOTED" if won else "",
    )


async def _await_serving(mesh: Mesh, model_id: str, version: int) -> None:
    try:
        async with asyncio.timeout(_SERVING_TIMEOUT_S):
            while True:
                for d in await mesh.models.deployments(model_id):
                    if d.version == version and d.state == "FAILED":
                        raise CommandFailedError(f"Triton could not load {model_id}@{version}: {d.message}")
                    if d.version == version and d.serving:
                        return
                await asyncio.sleep(0.25)
    except TimeoutError:
        raise CommandFailedError(
            f"{model_id}@{version} is promoted, but does not serve yet",
            remedy=f"twinmesh models deployments {model_id}",
        ) from None


async def _list(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    found = await mesh.models.versions(stage="production")
    serving = {(d.model_id, d.version): d for d in await mesh.models.deployments()}
    out.table(
        ("model", "predicts", "family", "MAE", "from", "served"),
        (
            (
                f"{v.model_id}@{v.version}",
                v.target,
                v.family.lower(),
                show_number(v.metrics.get("mae")),
                ", ".join(v.twin_ids),
                serving[v.model_id, v.version].state.lower() if (v.model_id, v.version) in serving else "no",
            )
            for v in found
        ),
        empty="no model serves yet; train one: twinmesh train --twin TWIN --channel CHANNEL",
    )
    out.document(found)
    return 0


async def _versions(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    found = await mesh.models.versions(arguments.model)
    out.table(
        ("version", "stage", "family", "MAE", "band covers", "gate", "made", "run"),
        (
            (
                f"{v.model_id}@{v.version}",
                v.stage,
                v.family.lower(),
                show_number(v.metrics.get("mae")),
                f"{100 * v.metrics['coverage']:.1f} %" if "coverage" in v.metrics else "-",
                "data erased" if v.invalidated else "passed" if v.passed_gate else "not passed",
                show_time(v.create_time),
                v.run_id,
            )
            for v in found
        ),
        empty="no version; train one: twinmesh train --twin TWIN --channel CHANNEL",
    )
    out.document(found)
    return 0


async def _promote(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    name, _, version = arguments.version.partition("@")
    if not version.isdigit():
        raise UsageError(
            "say which version", remedy=f"twinmesh models promote {name}@2   (twinmesh models versions {name})"
        )
    promoted = await mesh.models.promote(name, int(version), force=arguments.force)
    await _await_serving(mesh, name, int(version))
    out.line(f"{name}@{version} serves")
    out.document(promoted)
    return 0


async def _deployments(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    found = await mesh.models.deployments(arguments.model)
    out.table(
        ("version", "state", "serves", "message"),
        ((f"{d.model_id}@{d.version}", d.state, "yes" if d.serving else "no", d.message) for d in found),
        empty="nothing is deployed",
    )
    out.document(found)
    failed = any(d.state == "FAILED" for d in found)
    return FAILED if failed else 0


async def _forecast(mesh: Mesh, arguments: Namespace, out: Output) -> int:
    levels = _levels(arguments.quantiles)
    f = await mesh.twins[arguments.twin].forecast(
        arguments.channel,
        horizon=arguments.horizon,
        quantiles=levels,
        at=arguments.at,
        model=arguments.model,
        record=arguments.record,
    )
    median = f.values[:, len(f.levels) // 2]
    top = int(median.argmax())
    out.line(
        f"{arguments.twin} {f.channel} by {f.model}, at {show_time(f.at)}, valid until {show_time(f.valid_until)}, "
        f"inputs of offset {f.input_offset:,} ({100 * f.input_coverage:.0f} % present)"
    )
    out.line(f"peak {median[top]:.4g} {f.unit} at {show_time(f.times[top])}   low {median.min():.4g} {f.unit}")
    out.line(f"  {sparkline(median.tolist())}")
    if f.upper_limit is not None:
        crossed = f"is exceeded from {show_time(f.limit_crossing)}" if f.limit_crossing else "is kept"
        out.line(f"limit {f.upper_limit:g} {f.unit} {crossed}")
    picked = _spread(len(f.times), arguments.limit)
    out.table(
        ("time", *(f"{q:g}" for q in f.levels)),
        ((show_time(f.times[i]), *(f"{v:.4g}" for v in f.values[i])) for i in picked),
    )
    if len(picked) < len(f.times):
        out.line(f"{len(picked)} of {len(f.times)} steps; all of them: --limit 0")
    out.document(f)
    return 0


def _levels(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(q) for q in text.split(",") if q.strip())
    except ValueError:
        raise UsageError(f"--quantiles {text!r} are no numbers", remedy="--quantiles 0.1,0.5,0.9") from None


def _spread(n: int, limit: int) -> list[int]:
    """Return at most `limit` of n positions, evenly, the last one included; 0 = all."""
    if limit <= 0 or n <= limit:
        return list(range(n))
    return sorted({round(i * (n - 1) / (limit - 1)) for i in range(limit)} if limit > 1 else {n - 1})
