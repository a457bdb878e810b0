"""From "what may be done" to "what is best": plans of one control, judged by a learned dynamics model in one batch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.call_context import remaining_s
from twinmesh_core.errors import FailedPrecondition, NotFound, Reason, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.time import US_PER_HOUR, US_PER_S
from twinmesh_inference.domain import plans, rows
from twinmesh_inference.domain.catalogue import Catalogue
from twinmesh_inference.domain.coalescer import Coalescer
from twinmesh_inference.domain.deployments import Deployments
from twinmesh_inference.domain.models import Deployment, ModelTask, Signature
from twinmesh_inference.domain.past import window_of
from twinmesh_inference.domain.ports import LogPosition, Prediction, Twin, TwinDirectory, Window, WindowReader

_MAX_VALUES: Final = 4_000_000
"""Bound of candidates x steps x levels held at once: 16 MB of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeQuestion:
    """What to decide.

    Attributes:
        twin_id: the twin.
        control: the control to plan.
        values: its allowed values, in the channel's unit.
        cost_per_hour: what each value costs.
        limit: the predicted channel must stay at or below this, at `limit_quantile`.
        limit_quantile: a level of the model.
        target: soft target of the median; None = the limit.
        target_weight: weight of the quadratic term; 0 = off.
        switch_cost: cost of one change.
        max_switches: most changes after the first choice.
        min_dwell_us: shortest time between changes; None = an eighth of the horizon.
        model_id: the model; empty = chosen.
        at_unix_us: end of the window; None = the newest event time of its inputs.
        min_offset: inputs must reflect this offset.
        as_of_offset: inputs after this offset are not seen; 0 = the present.
        incarnation: of the log that the offsets belong to; "" = not checked.
    """

    twin_id: str
    control: str
    values: tuple[float, ...]
    cost_per_hour: tuple[float, ...]
    limit: float
    limit_quantile: float = 0.9
    target: float | None = None
    target_weight: float = 0.0
    switch_cost: float = 0.0
    max_switches: int = 0
    min_dwell_us: int | None = None
    model_id: str = ""
    at_unix_us: int | None = None
    min_offset: int = 0
    as_of_offset: int = 0
    incarnation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlan:
    """A plan with what the model expects of it.

    Attributes:
        steps: (start, microseconds since the Unix epoch; value), the first one at the window's end.
        cost: the whole cost.
        control_cost: the option costs alone.
        predicted: what the model predicts under it.
        peak: highest predicted median.
        peak_at_limit_quantile: highest predicted value at the limit quantile.
        feasible: whether it keeps the limit.
    """

    steps: tuple[tuple[int, float], ...]
    cost: float
    control_cost: float
    predicted: Prediction
    peak: float
    peak_at_limit_quantile: float
    feasible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The plan chosen, and what would happen otherwise.

    Attributes:
        best: the cheapest feasible plan, else the one with the lowest peak.
        constant_plans: one per option, in their order.
        candidate_count: plans evaluated.
        limit_binding: whether a cheaper plan would break the limit.
        as_of: what the inputs reflect.
        infeasible: whether no plan keeps the limit.
    """

    best: ControlPlan
    constant_plans: tuple[ControlPlan, ...]
    candidate_count: int
    limit_binding: bool
    as_of: LogPosition
    infeasible: bool


class Optimizer:
    """Answers `OptimizeQuestion`s."""

    def __init__(
        self,
        *,
        deployments: Deployments,
        coalescer: Coalescer,
        windows: WindowReader,
        twins: TwinDirectory,
        infer_timeout_s: float,
    ) -> None:
        self._deployments = deployments
        self._coalescer = coalescer
        self._windows = windows
        self._twins = twins
        self._infer_timeout_s = infer_timeout_s

    async def optimize(self, tenant: str, question: OptimizeQuestion) -> Decision:
        """Decide the planned values of one control.

        Raises:
            NotFound: TWIN_NOT_FOUND, CHANNEL_NOT_FOUND, MODEL_NOT_FOUND.
            FailedPrecondition: NOT_ENOUGH_HISTORY, LOG_REWOUND.
            Unavailable: MODEL_NOT_READY, DEPENDENCY_UNAVAILABLE.
            InvalidArgument: the question does not fit the model; values that it never saw are refused.
        """
        twin = await self._twins.twin(
            tenant, question.twin_id, min_offset=question.min_offset, incarnation=question.incarnation
        )
        return await self._deployments.answer(
            tenant,
            lambda catalogue: _choose(catalogue, twin, question),
            lambda deployment: self._answer(tenant, twin, deployment, question),
        )

    async def _answer(self, tenant: str, twin: Twin, deployment: Deployment, question: OptimizeQuestion) -> Decision:
        signature = deployment.signature
        rule = _cost_rule(question, signature)
        _require_seen(question, signature)
        min_dwell = _dwell_steps(question, signature)
        window = await window_of(
            self._windows,
            tenant,
            twin,
            signature,
            at_unix_us=question.at_unix_us,
            min_offset=question.min_offset,
            as_of_offset=question.as_of_offset,
            incarnation=question.incarnation,
        )
        held = _held_controls(question.control, window, signature)
        bound = _MAX_VALUES // (signature.horizon_steps * len(signature.quantile_levels))
        candidates = await asyncio.to_thread(
            plans.enumerate_plans,
            options=len(question.values),
            steps=signature.horizon_steps,
            max_switches=question.max_switches,
            min_dwell=min_dwell,
            max_candidates=max(len(question.values), min(plans.MAX_CANDIDATES, bound)),
        )
        future = await asyncio.to_thread(_futures, candidates, question, signature, held)
        quantiles = await self._run(tenant, deployment, twin, window, future)
        appraisal = await asyncio.to_thread(plans.appraise, candidates, quantiles, rule)
        best, binding = plans.choose(candidates, appraisal)

        def plan_of(index: int) -> ControlPlan:
            return _control_plan(candidates[index], quantiles[index], appraisal, index, question, deployment, window)

        return Decision(
            best=plan_of(best),
            # The enumeration begins with the constant plans, in the order of the options.
            constant_plans=tuple(plan_of(index) for index in range(len(question.values))),
            candidate_count=len(candidates),
            limit_binding=binding,
            as_of=window.as_of,
            infeasible=not bool(appraisal.feasible.any()),
        )

    async def _run(
        self,
        tenant: str,
        deployment: Deployment,
        twin: Twin,
        window: Window,
        future: npt.NDArray[np.float32],
    ) -> rows.Quantiles:
        endpoint = self._deployments.endpoint(tenant, deployment)
        past, calendar = rows.window_bytes(window), rows.calendar_bytes(window, twin.time_zone)
        chunk = self._coalescer.max_rows(endpoint)
        answers = []
        # One chunk after the other: between them, other callers of this model have their turn.
        for start in range(0, len(future), chunk):
            part = future[start : start + chunk]
            left_s = remaining_s()
            answer = await self._coalescer.submit(
                endpoint,
                len(part),
                (past * len(part), calendar * len(part), part.tobytes()),
                timeout_s=self._infer_timeout_s if left_s is None else min(left_s, self._infer_timeout_s),
            )
            answers.append(rows.quantiles_of(answer, len(part), deployment))
        return np.concatenate(answers)


def _choose(catalogue: Catalogue, twin: Twin, question: OptimizeQuestion) -> Deployment:
    if question.control not in twin.channels:
        there = ", ".join(sorted(twin.channels))
        raise NotFound(
            f"The twin {quoted(twin.twin_id)} has no channel {quoted(question.control)}; it has: {there}.",
            reason=Reason.CHANNEL_NOT_FOUND,
            metadata={"channels": there},
        )
    if not question.model_id:
        return catalogue.choose(
            twin,
            ModelTask.DYNAMICS,
            f"predicts what {quoted(question.control)} of {quoted(twin.twin_id)} brings about",
            lambda one: question.control in one.signature.controls,
        )
    found = catalogue.named(question.model_id, 0, ModelTask.DYNAMICS)
    if question.control not in found.signature.controls:
        known = ", ".join(found.signature.controls)
        raise invalid_field("control", f"the model {quoted(found.model_id)} takes other controls: {known}")
    return found


def _cost_rule(question: OptimizeQuestion, signature: Signature) -> plans.CostRule:
    if question.limit_quantile not in signature.quantile_levels:
        known = ", ".join(f"{level:g}" for level in signature.quantile_levels)
        raise invalid_field(
            "limit_quantile", f"{question.limit_quantile:g} is not a level of the model; it has: {known}"
        )
    return plans.CostRule(
        step_hours=signature.step_us / US_PER_HOUR,
        option_cost_per_hour=question.cost_per_hour,
        switch_cost=question.switch_cost,
        target=question.limit if question.target is None else question.target,
        target_weight=question.target_weight,
        limit=question.limit,
        limit_column=signature.quantile_levels.index(question.limit_quantile),
        median_column=signature.quantile_levels.index(0.5),
    )


def _require_seen(question: OptimizeQuestion, signature: Signature) -> None:
    column = signature.controls.index(question.control)
    low, high = signature.control_min[column], signature.control_max[column]
    for index, value in enumerate(question.values):
        if not low <= value <= high:
            raise invalid_field(
                f"options[{index}].value",
                f"{value:g} is outside of what the model has seen of {quoted(question.control)} ({low:g} to {high:g}); "
                "choose a value within, or train on history that holds this one",
            )


def _dwell_steps(question: OptimizeQuestion, signature: Signature) -> int:
    if question.min_dwell_us is None:
        return max(1, -(-signature.horizon_steps // 8))
    if question.min_dwell_us > signature.horizon_us:
        raise invalid_field(
            "min_dwell", f"is longer than the model's horizon of {signature.horizon_us / US_PER_S:g} s; make it shorter"
        )
    return max(1, -(-question.min_dwell_us // signature.step_us))


def _held_controls(planned: str, window: Window, signature: Signature) -> dict[int, float]:
    """Return the newest value of each other control of the model, by its column in "future": they are held."""
    held = {}
    for column, name in enumerate(signature.controls):
        if name == planned:
            continue
        known = window.values[:, signature.channels.index(name)] if name in signature.channels else np.empty(0)
        present = known[np.isfinite(known)]
        low, high = signature.control_min[column], signature.control_max[column]
        if not len(present) or not low <= present[-1] <= high:
            found = f"is at {present[-1]:g}, outside of {low:g} to {high:g}" if len(present) else "has no value"
            raise FailedPrecondition(
                f"The model also needs {quoted(name)}, which is held at its newest value; in the window it {found}.",
                reason=Reason.NOT_ENOUGH_HISTORY,
                metadata={"channel": name, "needed": "1", "available": "0"},
            )
        held[column] = float(present[-1])
    return held


def _futures(
    candidates: list[plans.Plan], question: OptimizeQuestion, signature: Signature, held: dict[int, float]
) -> npt.NDArray[np.float32]:
    """Return the graph's input "future": float32 [plans, steps, controls]."""
    future = np.empty((len(candidates), signature.horizon_steps, len(signature.controls)), np.float32)
    for column, value in held.items():
        future[:, :, column] = value
    values = np.array(question.values, np.float32)
    future[:, :, signature.controls.index(question.control)] = plans.future_of(
        candidates, values, signature.horizon_steps
    )
    return future


def _control_plan(
    plan: plans.Plan,
    quantiles: rows.Quantiles,
    appraisal: plans.Appraisal,
    index: int,
    question: OptimizeQuestion,
    deployment: Deployment,
    window: Window,
) -> ControlPlan:
    signature = deployment.signature
    return ControlPlan(
        steps=tuple(
            (window.at_unix_us + start * signature.step_us, question.values[choice])
            for start, choice in zip(plan.starts, plan.choices, strict=True)
        ),
        cost=float(appraisal.cost[index]),
        control_cost=float(appraisal.control_cost[index]),
        predicted=Prediction(
            channel=signature.target,
            unit=signature.target_unit,
            model_id=deployment.model_id,
            model_version=deployment.version,
            at_unix_us=window.at_unix_us,
            input_offset=window.as_of.offset,
            step_us=signature.step_us,
            quantile_levels=signature.quantile_levels,
            values=quantiles,
        ),
        peak=float(appraisal.peak[index]),
        peak_at_limit_quantile=float(appraisal.peak_at_limit[index]),
        feasible=bool(appraisal.feasible[index]),
    )
