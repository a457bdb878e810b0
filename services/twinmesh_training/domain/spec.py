"""What a training spec may ask: every wrong field is named at once, with what would be right."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Final

from twinmesh_core.errors import FieldViolation, InvalidArgument
from twinmesh_core.ids import entity_id_violation, name_violation, quoted, resource_id_violation
from twinmesh_core.time import MAX_SPAN_US, MAX_TIME_UNIX_US, MIN_TIME_UNIX_US
from twinmesh_training.domain.values import Family, Task, TrainingSpec

MIN_STEP_US: Final = 1_000_000
MAX_STEPS: Final = 4096
MAX_TWINS: Final = 1_000
MAX_CHANNELS: Final = 256
MAX_ORIGINS: Final = 100_000
MAX_LEVELS: Final = 99
MAX_DYNAMICS_HORIZON: Final = 512
"""A dynamics graph holds one block per step of the horizon; beyond this it would no longer load in a moment."""
MAX_CONTROLS: Final = 16
MAX_WINDOW_CELLS: Final = 262_144
"""Steps x channels of one window: 1 MiB of float32 per served row."""
MAX_TIME_BUDGET_US: Final = 24 * 3_600 * 1_000_000


def check(spec: TrainingSpec) -> TrainingSpec:
    """Return the spec in its normal form (defaults filled, names unique), or raise with all that cannot work.

    Raises:
        InvalidArgument: INVALID_FIELD; one violation per field, spelt as in the proto below ``spec.``.
    """
    found = [*_names(spec), *_shape(spec), *_levels(spec), *_times(spec), *_families(spec)]
    if found:
        first = f"{found[0].field}: {found[0].description}"
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidArgument(f"The training spec cannot work: {first}{more}", field_violations=found)
    # The gate is always trained, and first: everything else is compared with it.
    families = (Family.RIDGE, *(f for f in dict.fromkeys(spec.families) if f is not Family.RIDGE))
    return replace(
        spec,
        families=families,
        twin_ids=tuple(dict.fromkeys(spec.twin_ids)),
        inputs=tuple(c for c in dict.fromkeys(spec.inputs) if c != spec.target),
        seed=spec.seed or 1,
    )


def _violation(field: str, description: str) -> FieldViolation:
    return FieldViolation(field=f"spec.{field}", description=description)


def _names(spec: TrainingSpec) -> list[FieldViolation]:
    found = [resource_id_violation("spec.model_id", spec.model_id), name_violation("spec.target", spec.target)]
    found += [name_violation(f"spec.inputs[{i}]", name) for i, name in enumerate(spec.inputs)]
    found += [name_violation(f"spec.controls[{i}]", name) for i, name in enumerate(spec.controls)]
    if not 1 <= len(spec.twin_ids) <= MAX_TWINS:
        found.append(_violation("twin_ids", f"has {len(spec.twin_ids)} twins; name 1 to {MAX_TWINS:,} to learn from"))
    else:
        found += [entity_id_violation(f"spec.twin_ids[{i}]", twin) for i, twin in enumerate(spec.twin_ids)]
    if len(spec.channels) > MAX_CHANNELS:
        found.append(_violation("inputs", f"makes {len(spec.channels)} channels; at most {MAX_CHANNELS} fit a window"))
    return [v for v in found if v is not None] + _controls(spec)


def _controls(spec: TrainingSpec) -> list[FieldViolation]:
    found = []
    if spec.task is Task.DYNAMICS and not spec.controls:
        found.append(
            _violation("controls", "is required for DYNAMICS: name the channels whose planned values it takes")
        )
    if spec.task is Task.FORECAST and spec.controls:
        found.append(_violation("controls", "is for DYNAMICS only; list the channel in inputs, or set task DYNAMICS"))
    if len(spec.controls) > MAX_CONTROLS:
        found.append(_violation("controls", f"has {len(spec.controls)} channels; at most {MAX_CONTROLS}"))
    if len(set(spec.controls)) < len(spec.controls):
        found.append(_violation("controls", "names a channel twice; name each once"))
    if spec.target in spec.controls:
        found.append(
            _violation("controls", f"holds the target {quoted(spec.target)}; a model cannot predict its own control")
        )
    return found


def _shape(spec: TrainingSpec) -> list[FieldViolation]:
    found = []
    if spec.step_us < MIN_STEP_US:
        found.append(_violation("step", "must be at least 1 s, e.g. 600s"))
    if not 2 <= spec.context_steps <= MAX_STEPS:
        found.append(_violation("context_steps", f"is {spec.context_steps}; choose 2 to {MAX_STEPS:,}"))
    elif spec.context_steps * len(spec.channels) > MAX_WINDOW_CELLS:
        cells = spec.context_steps * len(spec.channels)
        found.append(
            _violation(
                "context_steps",
                f"x channels is {cells:,}; at most {MAX_WINDOW_CELLS:,}: shorten it or take fewer inputs",
            )
        )
    if not 1 <= spec.horizon_steps <= MAX_STEPS:
        found.append(_violation("horizon_steps", f"is {spec.horizon_steps}; choose 1 to {MAX_STEPS:,}"))
    elif spec.task is Task.DYNAMICS and spec.horizon_steps > MAX_DYNAMICS_HORIZON:
        found.append(
            _violation(
                "horizon_steps",
                f"is {spec.horizon_steps}; DYNAMICS takes at most {MAX_DYNAMICS_HORIZON}: use a longer step",
            )
        )
    if not 0 <= spec.origins <= MAX_ORIGINS:
        found.append(_violation("origins", f"is {spec.origins}; choose 0 (the default) to {MAX_ORIGINS:,}"))
    return found


def _levels(spec: TrainingSpec) -> list[FieldViolation]:
    levels = spec.quantile_levels
    if not levels or len(levels) > MAX_LEVELS:
        return [_violation("quantile_levels", f"has {len(levels)} levels; give 1 to {MAX_LEVELS}")]
    if not all(math.isfinite(q) and 0 < q < 1 for q in levels):
        return [_violation("quantile_levels", "must lie between 0 and 1, both excluded")]
    if any(b <= a for a, b in pairwise(levels)):
        return [_violation("quantile_levels", "must increase, e.g. 0.1, 0.5, 0.9")]
    if 0.5 not in levels:
        return [_violation("quantile_levels", "must hold 0.5, the median forecast")]
    return []


def _times(spec: TrainingSpec) -> list[FieldViolation]:
    found = []
    if spec.start_time_us is not None and spec.end_time_us is not None and spec.start_time_us >= spec.end_time_us:
        found.append(_violation("end_time", "must lie after start_time"))
    for name, time_us in (("start_time", spec.start_time_us), ("end_time", spec.end_time_us)):
        if time_us is not None and not MIN_TIME_UNIX_US <= time_us <= MAX_TIME_UNIX_US:
            found.append(_violation(name, "must lie within the years 1 to 9999"))
    for name, span_us in (("holdout", spec.holdout_us), ("season", spec.season_us)):
        if span_us > MAX_SPAN_US:
            found.append(_violation(name, "is longer than 100 years"))
    if spec.holdout_us < 0:
        found.append(_violation("holdout", "must not be negative; leave it out for one third of the data"))
    elif spec.holdout_us and spec.step_us >= MIN_STEP_US and spec.holdout_us < spec.horizon_steps * spec.step_us:
        found.append(_violation("holdout", "is shorter than the horizon; hold out at least one horizon"))
    if spec.season_us <= 0 or (spec.step_us >= MIN_STEP_US and spec.season_us < spec.step_us):
        found.append(_violation("season", "must be at least one step; leave it out for 1 day"))
    if not 0 < spec.time_budget_us <= MAX_TIME_BUDGET_US:
        found.append(_violation("time_budget", "must be more than 0 and at most 24 h; leave it out for 60 s"))
    return found


def _families(spec: TrainingSpec) -> list[FieldViolation]:
    if Family.SEASONAL_NAIVE in spec.families:
        return [
            _violation(
                "families", "SEASONAL_NAIVE is always measured as the floor and cannot be trained; use RIDGE, MLP"
            )
        ]
    return []
