"""One claimed run from beginning to end: hold the lease, train, register, and say in words why when it fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeVar
from uuid import uuid4

from twinmesh_core.errors import Reason, TwinmeshError, Unavailable
from twinmesh_training.domain.ports import (
    ArtifactStore,
    Claim,
    GraphExporter,
    HistoryReader,
    NetworkTrainer,
    Registry,
    Stopped,
)
from twinmesh_training.domain.training import Outcome, train
from twinmesh_training.domain.values import Lineage, Run, RunState, Version

ResultT = TypeVar("ResultT")

BEAT_S: Final = 0.5
_FINISH_TRIES: Final = 5


class Ending(Enum):
    """How work on a claimed run ended."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How it ended, and for a failure by a defect: the incident and the exception, for the log only."""

    ending: Ending
    incident: str = ""
    defect: Exception | None = None


class RunProgress:
    """See `twinmesh_training.domain.ports.Progress`: written by the training thread, read by the heartbeat."""

    def __init__(self) -> None:
        self.progress = 0.0
        self.phase = "starting"
        self.windows = 0
        self.why: Ending | None = None
        self._stop = threading.Event()
        self.stopped = asyncio.Event()

    def report(self, progress: float, phase: str) -> None:
        """Record progress; raises `Stopped`."""
        self.check()
        self.progress, self.phase = max(self.progress, min(progress, 1.0)), phase

    def check(self) -> None:
        """Raise `Stopped` if the run is to end."""
        if self._stop.is_set():
            raise Stopped

    def count(self, windows: int) -> None:
        """Record the number of fit windows."""
        self.windows = windows

    def stop(self, why: Ending) -> None:
        """End the run from the event loop; the first reason stays."""
        if self.why is None:
            self.why = why
        self._stop.set()
        self.stopped.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker works with."""

    registry: Registry
    reader: HistoryReader
    networks: NetworkTrainer
    exporter: GraphExporter
    artifacts: ArtifactStore
    owner: str
    lease_s: float
    code_version: str

    async def do(self, claim: Claim, progress: RunProgress) -> Ended:
        """Train a claimed run and end it in the registry; stops within a moment of `progress.stop`."""
        async with asyncio.TaskGroup() as group:
            heart = group.create_task(self._beat(claim, progress))
            try:
                return await self._train(claim, progress)
            finally:
                heart.cancel()

    async def _train(self, claim: Claim, progress: RunProgress) -> Ended:
        spec = claim.run.spec
        try:
            progress.report(0.02, "reading history")
            history = await _unless_stopped(progress, self.reader.read(claim.tenant, spec))
            outcome = await asyncio.to_thread(
                train,
                spec,
                history,
                networks=self.networks,
                exporter=self.exporter,
                progress=progress,
                counted=progress.count,
            )
            progress.report(0.98, "registering versions")
            lineage = Lineage(
                run_id=claim.run.run_id,
                twin_ids=spec.twin_ids,
                as_of_offset=history.as_of_offset,
                incarnation=history.incarnation,
                start_time_us=outcome.start_time_us,
                end_time_us=outcome.end_time_us,
                holdout_start_time_us=outcome.holdout_start_time_us,
                seed=spec.seed,
                code_version=self.code_version,
                dataset_sha256=outcome.dataset_sha256,
            )
            versions = await asyncio.to_thread(self._store, claim, outcome, lineage)
            ended = replace(
                claim.run,
                state=RunState.SUCCEEDED,
                progress=1.0,
                phase="done",
                evaluations=outcome.evaluations,
                train_window_count=outcome.train_window_count,
            )
            return await self._finish(claim, ended, versions, outcome.promoted, Ending.DONE)
        except Stopped:
            return await self._stopped(claim, progress)
        except TwinmeshError as error:
            return await self._failed(claim, progress, str(error.reason), error.message)
        except MemoryError:
            text = "The worker has too little memory for this run: take fewer twins or inputs, or a longer step."
            return await self._failed(claim, progress, str(Reason.OVERLOADED), text)
        except Exception as defect:  # noqa: BLE001  a defect must end the run with a reason, not the worker
            incident = uuid4().hex[:12]
            text = f"A defect ended this run; the worker's log tells more under incident {incident}."
            failed = await self._failed(claim, progress, str(Reason.INTERNAL), text)
            return replace(failed, incident=incident, defect=defect)

    def _store(self, claim: Claim, outcome: Outcome, lineage: Lineage) -> tuple[Version, ...]:
        """Write the artifacts; they are content-addressed, so a run that then fails leaves nothing anyone sees."""
        spec = claim.run.spec
        return tuple(
            Version(
                model_id=spec.model_id,
                task=spec.task,
                family=candidate.family,
                signature=candidate.signature,
                metrics=candidate.metrics,
                lineage=lineage,
                artifact_sha256=self.artifacts.put(candidate.graph),
                artifact_bytes=len(candidate.graph),
                passed_gate=candidate.passed_gate,
                golden=candidate.golden,
            )
            for candidate in outcome.candidates
        )

    async def _stopped(self, claim: Claim, progress: RunProgress) -> Ended:
        if progress.why is Ending.CANCELLED:
            cancelled = replace(claim.run, state=RunState.CANCELLED, progress=progress.progress, phase="cancelled")
            return await self._finish(claim, cancelled, (), 0, Ending.CANCELLED)
        if progress.why is Ending.RETURNED:
            await self.registry.requeue(claim, self.owner)
            return Ended(ending=Ending.RETURNED)
        return Ended(ending=Ending.LOST)

    async def _failed(self, claim: Claim, progress: RunProgress, reason: str, message: str) -> Ended:
        failed = replace(
            claim.run,
            state=RunState.FAILED,
            progress=progress.progress,
            phase="failed",
            error_reason=reason,
            error_message=message,
            train_window_count=progress.windows,
        )
        return await self._finish(claim, failed, (), 0, Ending.FAILED)

    async def _finish(
        self, claim: Claim, run: Run, versions: tuple[Version, ...], promote: int, ending: Ending
    ) -> Ended:
        """Write the end; a database that is away for a moment does not cost a trained model."""
        for attempt in range(_FINISH_TRIES):
            try:
                written = await self.registry.finish(claim, self.owner, run, versions, promote)
            except Unavailable:
                if attempt == _FINISH_TRIES - 1:
                    return Ended(ending=Ending.LOST)
                await asyncio.sleep(min(2.0**attempt, self.lease_s / 4))
            else:
                if written is None:
                    return Ended(ending=Ending.LOST)
                return Ended(ending=Ending.CANCELLED if written.state is RunState.CANCELLED else ending)
        return Ended(ending=Ending.LOST)

    async def _beat(self, claim: Claim, progress: RunProgress) -> None:
        """Hold the lease and carry progress out and cancellation in, until cancelled."""
        loop = asyncio.get_running_loop()
        held_until = loop.time() + self.lease_s
        while True:
            try:
                beat = await self.registry.beat(
                    claim, self.owner, self.lease_s, progress.progress, progress.phase, progress.windows
                )
            except TwinmeshError:
                # The database is away: the lease runs on, and another worker may take the run when it is over.
                if loop.time() > held_until:
                    progress.stop(Ending.LOST)
            else:
                held_until = loop.time() + self.lease_s
                if not beat.held:
                    progress.stop(Ending.LOST)
                elif beat.cancel:
                    progress.stop(Ending.CANCELLED)
            await asyncio.sleep(BEAT_S)


async def _unless_stopped(progress: RunProgress, work: Awaitable[ResultT]) -> ResultT:
    """Await, or raise `Stopped` as soon as the run is to end."""
    doing = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(progress.stopped.wait())
    try:
        await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise Stopped
        return doing.result()
    finally:
        for task in (doing, stopping):
            task.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)
