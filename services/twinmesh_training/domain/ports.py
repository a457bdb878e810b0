"""What training needs from outside. The first argument of everything that touches a tenant's things is the tenant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from twinmesh_training.domain.dataset import Batch, History
from twinmesh_training.domain.predictor import Network, Predictor
from twinmesh_training.domain.values import ErasedTwin, LogPosition, Model, Run, Signature, Stage, TrainingSpec, Version

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class Stopped(Exception):  # noqa: N818  it is not an error: somebody asked for it
    """The run was cancelled, or its worker lost it: stop at once and leave no trace."""


class Progress(Protocol):
    """Told by the training what it does; the only place where it may be stopped."""

    def report(self, progress: float, phase: str) -> None:
        """Record progress (0 to 1) and what comes next, in words; raises `Stopped`."""
        ...

    def check(self) -> None:
        """Raise `Stopped` if the run is to end; cheap, called often."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadHistory:
    """History as of one log position; `units` are the canonical units of the spec's channels, in order."""

    histories: tuple[History, ...]
    units: tuple[str, ...]
    as_of_offset: int
    incarnation: str


class HistoryReader(Protocol):
    """Reads the past of twins, as training and serving see it alike."""

    async def read(self, tenant: str, spec: TrainingSpec) -> ReadHistory:
        """Return matrices of all channels of the spec on one grid.

        Raises:
            NotFound: a twin or channel that was never heard from.
            FailedPrecondition: NOT_ENOUGH_HISTORY.
            Unavailable, DeadlineExceeded: storage or state-sync does not answer.
        """
        ...


class NetworkTrainer(Protocol):
    """Fits a network to what the gate leaves over."""

    def fit(
        self, features: Float32, residual: Float32, *, validation: int, seed: int, budget_s: float, progress: Progress
    ) -> Network:
        """Return the network with the least error on the last `validation` rows; equal inputs give equal networks.

        Args:
            features: float32 [n, features], in time order.
            residual: float32 [n, horizon], normalised units.
            validation: rows at the end that are not fitted on (a purged gap before them is the caller's to leave).
            seed: of all randomness.
            budget_s: no epoch starts after this many seconds.
            progress: 0 to 1 over the fit.
        """
        ...


class GraphExporter(Protocol):
    """Turns a predictor into an ONNX graph, and runs one as a server would."""

    def export(self, predictor: Predictor, signature: Signature) -> bytes:
        """Return the serialized graph."""
        ...

    def run(self, graph: bytes, batch: Batch) -> Float32:
        """Return the graph's quantiles [n, horizon, levels] for the batch."""
        ...


class ArtifactStore(Protocol):
    """Keeps artifacts by the sha256 of their bytes."""

    def put(self, content: bytes) -> str:
        """Store durably and return the sha256 (hex); the same content again is free."""
        ...

    def chunks(self, sha256: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the content in parts of at most 1 MiB, checked as it goes.

        Raises:
            DataLoss: CHECKSUM_MISMATCH: absent or damaged; raised before the last part is yielded.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run that a worker took; it holds it until the lease ends or another worker holds a later attempt."""

    tenant: str
    run: Run
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The answer to a heartbeat: whether the worker still holds the run, and whether to cancel it."""

    held: bool
    cancel: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list: at most `size` items, from after `after` (0 or "" = the beginning)."""

    size: int
    after: int = 0


class Registry(Protocol):
    """Runs, models and versions. Reads never see half a change."""

    async def create_run(self, tenant: str, run: Run, request_id: str, digest: str) -> Run:
        """Queue the run, or return the one that the same request_id queued before.

        Raises:
            InvalidArgument: REQUEST_ID_REUSED with another digest.
        """
        ...

    async def run(self, tenant: str, run_id: str) -> Run:
        """Return a run; raises `NotFound` RUN_NOT_FOUND."""
        ...

    async def runs(self, tenant: str, model_id: str, page: Page) -> tuple[Run, ...]:
        """Return runs, newest first, of one model ("" = all); `page.after` is the number of the last run seen."""
        ...

    async def changed_runs(self, tenants_and_ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Run]:
        """Return the present state of the runs named; those that do not exist are absent."""
        ...

    async def cancel_run(self, tenant: str, run_id: str) -> Run:
        """Cancel: a queued run now, a running one when its worker hears it. Raises RUN_ENDED, RUN_NOT_FOUND."""
        ...

    async def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Take the oldest run that waits, or whose worker fell silent; a run whose second worker fell silent fails."""
        ...

    async def beat(self, claim: Claim, owner: str, lease_s: float, progress: float, phase: str, windows: int) -> Beat:
        """Extend the lease and record progress."""
        ...

    async def finish(self, claim: Claim, owner: str, run: Run, versions: Sequence[Version], promote: int) -> Run | None:
        """End the run and register its versions, all in one step; None if the worker no longer holds it.

        Args:
            claim: what the worker took.
            owner: the worker.
            run: its final state; evaluations name versions by their position in `versions`, 1 = the first.
            versions: to register, in order; numbers and stages are given here, dense from 1 per model.
            promote: position (from 1) of the version that becomes PRODUCTION; 0 = none. One whose data were erased
                meanwhile does not.
        """
        ...

    async def give_back(self, owner: str) -> int:
        """End the leases of a worker that died, so that its runs are taken again now; returns how many."""
        ...

    async def requeue(self, claim: Claim, owner: str) -> None:
        """Put a run back untouched: its worker was told to stop. It does not count as an attempt."""
        ...

    async def models(self, tenant: str, size: int, after: str) -> tuple[Model, ...]:
        """Return models by id, from after `after`."""
        ...

    async def versions(
        self, tenant: str, model_id: str, stage: Stage | None, page: Page, *, golden: bool
    ) -> tuple[tuple[int, Version], ...]:
        """Return (number, version), newest first; `page.after` is the number of the last version seen."""
        ...

    async def version(self, tenant: str, model_id: str, version: int) -> Version:
        """Return a version, 0 = the one in PRODUCTION; raises `NotFound` MODEL_NOT_FOUND."""
        ...

    async def promote(self, tenant: str, model_id: str, version: int, *, force: bool) -> Version:
        """Make a version PRODUCTION and retire the one before; the same again changes nothing.

        Raises:
            FailedPrecondition: it did not pass the gate, and `force` is not set; DATA_ERASED, whatever `force` says.
            NotFound: MODEL_NOT_FOUND.
        """
        ...


class ErasedTwins(Protocol):
    """Which twins were erased, and how far the log was looked through for them.

    Whatever learned from a twin before its erasure is invalidated from the moment it is noted, or registered.
    """

    async def followed(self) -> LogPosition:
        """Return up to where the log was looked through; at first its beginning."""
        ...

    async def note(self, erased: Sequence[ErasedTwin], through: LogPosition) -> None:
        """Note erased twins, those known already too, and up to where the log was looked through.

        The golden checks of versions that learned from them are emptied, for they hold windows of the data; that of a
        version in PRODUCTION is when it leaves it.
        """
        ...
