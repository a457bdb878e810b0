"""Training runs and the models they make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from twinmesh.inference.v1 import inference_pb2
from twinmesh.training.v1 import training_pb2
from twinmesh.type.v1 import model_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.durations import Moment, Span, moment_us, proto_moment, proto_span
from twinmesh_client.limits import PATIENCE_S
from twinmesh_client.runs import Deployment, ModelVersion, TrainingRun, deployment, model_version, training_run
from twinmesh_client.transport import call, stream
from twinmesh_client.values import enum_name
from twinmesh_core.errors import FailedPrecondition, Unavailable

PAUSE_S: Final = 0.5


class Models:
    """Training runs, the model registry, and what is deployed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def train(
        self,
        model_id: str,
        *,
        task: str = "forecast",
        twins: Sequence[str],
        target: str,
        inputs: Sequence[str] = (),
        controls: Sequence[str] = (),
        step: Span,
        context_steps: int,
        horizon_steps: int,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        start: Moment | None = None,
        end: Moment | None = None,
        holdout: Span | None = None,
        season: Span | None = None,
        families: Sequence[str] = (),
        time_budget: Span | None = None,
        seed: int = 1,
        origins: int = 0,
        promote: bool = True,
        request_id: str = "",
    ) -> TrainingRun:
        """Start a run and return it; follow it with `watch_run` or `wait`.

        Args:
            model_id: the model that gets new versions.
            task: ``forecast``, or ``dynamics`` with `controls`.
            twins: twins to learn from.
            target: the channel to predict.
            inputs: further channels of the window.
            controls: dynamics only: channels whose planned values the model takes.
            step: length of a step.
            context_steps: steps of the window.
            horizon_steps: steps of the horizon.
            quantiles: levels of the answer.
            start: start of the data; None = the beginning of history.
            end: end of the data, nothing later is seen; None = the newest event time.
            holdout: length of the held-out tail; None = one third.
            season: season of the naive baseline; None = a day.
            families: ``ridge``, ``mlp``; empty = both.
            time_budget: bound of each family's training.
            seed: of all randomness.
            origins: rolling origins evaluated; 0 = the service's choice.
            promote: whether the winner serves.
            request_id: idempotency key; empty = a fresh one.

        Raises:
            InvalidArgument: names the field of the spec that cannot work.
        """
        spec = training_pb2.TrainingSpec(
            model_id=model_id,
            task=model_pb2.ModelTask.Value(enum_name(model_pb2.ModelTask.keys(), "MODEL_TASK", task, "task")),
            twin_ids=twins,
            target=target,
            inputs=inputs,
            controls=controls,
            step=proto_span(step, "step"),
            context_steps=context_steps,
            horizon_steps=horizon_steps,
            quantile_levels=quantiles,
            families=[
                model_pb2.ModelFamily.Value(enum_name(model_pb2.ModelFamily.keys(), "MODEL_FAMILY", f, "families"))
                for f in families
            ],
            seed=seed,
            origins=origins,
            no_promotion=not promote,
        )
        if start is not None:
            spec.start_time.CopyFrom(proto_moment(moment_us(start, "start")))
        if end is not None:
            spec.end_time.CopyFrom(proto_moment(moment_us(end, "end")))
        for name, span in (("holdout", holdout), ("season", season), ("time_budget", time_budget)):
            if span is not None:
                getattr(spec, name).CopyFrom(proto_span(span, name))
        request = training_pb2.CreateTrainingRunRequest(spec=spec, request_id=request_id or new_request_id())
        answer = await call(self._connection.training.CreateTrainingRun, request, timeout_s=self._connection.timeout_s)
        return training_run(answer.run)

    async def run(self, run_id: str) -> TrainingRun:
        """Return a run; raises `NotFound`."""
        request = training_pb2.GetTrainingRunRequest(run_id=run_id)
        answer = await call(self._connection.training.GetTrainingRun, request, timeout_s=self._connection.timeout_s)
        return training_run(answer.run)

    async def runs(self, model_id: str = "", *, limit: int = 20) -> list[TrainingRun]:
        """Return the newest runs."""
        request = training_pb2.ListTrainingRunsRequest(model_id=model_id, page_size=limit)
        answer = await call(self._connection.training.ListTrainingRuns, request, timeout_s=self._connection.timeout_s)
        return [training_run(r) for r in answer.runs]

    async def cancel(self, run_id: str) -> TrainingRun:
        """Cancel a run that has not ended; raises `FailedPrecondition` (RUN_ENDED)."""
        request = training_pb2.CancelTrainingRunRequest(run_id=run_id)
        answer = await call(self._connection.training.CancelTrainingRun, request, timeout_s=self._connection.timeout_s)
        return training_run(answer.run)

    async def watch_run(self, run_id: str) -> AsyncGenerator[TrainingRun, None]:
        """Yield a run now and after each change, until it has ended; reconnects while the service restarts.

        Raises:
            NotFound: no such run.
            Unavailable: the service was away for too long.
        """
        request = training_pb2.WatchTrainingRunRequest(run_id=run_id)
        loop = asyncio.get_running_loop()
        heard_s = loop.time()
        while True:
            try:
                async with aclosing(
                    stream(self._connection.training.WatchTrainingRun, request, timeout_s=None)
                ) as answers:
                    async for answer in answers:
                        heard_s = loop.time()
                        state = training_run(answer.run)
                        yield state
                        if state.ended:
                            return
            except Unavailable:
                if loop.time() - heard_s > PATIENCE_S:
                    raise
            await asyncio.sleep(PAUSE_S)

    async def wait(self, run_id: str) -> TrainingRun:
        """Wait for the end of a run and return it.

        Raises:
            TwinmeshError: the run failed (with its reason), or was cancelled (FailedPrecondition).
        """
        last = await self.run(run_id)
        if not last.ended:
            async with aclosing(self.watch_run(run_id)) as states:
                async for last in states:
                    if last.ended:
                        break
        if last.state == "SUCCEEDED":
            return last
        raise FailedPrecondition(
            last.error or f"Run {run_id} was cancelled.", reason="RUN_ENDED", metadata={"run_id": run_id}
        )

    async def versions(self, model_id: str = "", *, stage: str = "", limit: int = 100) -> list[ModelVersion]:
        """Return versions, newest first."""
        request = training_pb2.ListModelVersionsRequest(model_id=model_id, page_size=limit, omit_golden=True)
        if stage:
            request.stage = model_pb2.ModelStage.Value(
                enum_name(model_pb2.ModelStage.keys(), "MODEL_STAGE", stage, "stage")
            )
        answer = await call(self._connection.models.ListModelVersions, request, timeout_s=self._connection.timeout_s)
        return [model_version(v) for v in answer.versions]

    async def promote(self, model_id: str, version: int, *, force: bool = False) -> ModelVersion:
        """Make a version the one that serves; raises `FailedPrecondition` when it did not pass the gate."""
        request = training_pb2.PromoteModelVersionRequest(model_id=model_id, version=version, force=force)
        answer = await call(self._connection.models.PromoteModelVersion, request, timeout_s=self._connection.timeout_s)
        return model_version(answer.version)

    async def deployments(self, model_id: str = "") -> list[Deployment]:
        """Return what Triton holds and which version serves."""
        request = inference_pb2.ListDeploymentsRequest(model_id=model_id)
        answer = await call(self._connection.inference.ListDeployments, request, timeout_s=self._connection.timeout_s)
        return [deployment(d) for d in answer.deployments]
