"""The registry in memory: for tests, held to the same contract as PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from twinmesh_core.time import Clock, SystemClock
from twinmesh_training.domain import faults
from twinmesh_training.domain.ports import Beat, Claim, Page
from twinmesh_training.domain.values import ErasedTwin, Evaluation, LogPosition, Model, Run, RunState, Stage, Version

_MOST_ATTEMPTS = 2


@dataclass(slots=True)
class _Held:
    tenant: str
    run: Run
    request_id: str
    digest: str
    owner: str = ""
    attempt: int = 0
    lease_until_s: float = 0.0
    cancel: bool = False


@dataclass(slots=True)
class _Models:
    versions: dict[str, list[tuple[int, Version]]] = field(default_factory=dict)


class MemoryRegistry:
    """See `twinmesh_training.domain.ports.Registry`; lives and dies with the process."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._runs: list[_Held] = []
        self._tenants: dict[str, _Models] = {}
        self._numbers = 0
        self._followed = LogPosition(incarnation="", offset=0)
        self._erased: dict[ErasedTwin, str] = {}

    async def create_run(self, tenant: str, run: Run, request_id: str, digest: str) -> Run:
        """Queue a run, once per request_id."""
        for held in self._runs:
            if request_id and held.tenant == tenant and held.request_id == request_id:
                if held.digest != digest:
                    raise faults.request_id_reused()
                return held.run
        versions = self._of(tenant).get(run.spec.model_id)
        if versions and versions[0][1].task is not run.spec.task:
            raise faults.model_has_task(run.spec.model_id, versions[0][1].task, run.spec.task)
        number = len(self._runs) + 1
        created = replace(run, number=number, phase="queued", create_time_us=self._now(), revision=1)
        self._runs.append(_Held(tenant=tenant, run=created, request_id=request_id, digest=digest))
        return created

    async def run(self, tenant: str, run_id: str) -> Run:
        """Return a run."""
        return self._shown(self._find(tenant, run_id))

    async def runs(self, tenant: str, model_id: str, page: Page) -> tuple[Run, ...]:
        """Return runs, newest first."""
        found = [
            self._shown(held)
            for held in reversed(self._runs)
            if held.tenant == tenant
            and model_id in {"", held.run.spec.model_id}
            and (page.after == 0 or held.run.number < page.after)
        ]
        return tuple(found[: page.size])

    async def changed_runs(self, tenants_and_ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Run]:
        """Return the present state of many runs."""
        wanted = set(tenants_and_ids)
        return {(h.tenant, h.run.run_id): self._shown(h) for h in self._runs if (h.tenant, h.run.run_id) in wanted}

    async def cancel_run(self, tenant: str, run_id: str) -> Run:
        """Cancel a queued run, or ask the worker of a running one."""
        held = self._find(tenant, run_id)
        if held.run.state.final:
            raise faults.run_ended(run_id)
        if held.run.state is RunState.QUEUED:
            self._change(held, state=RunState.CANCELLED, phase="cancelled", end_time_us=self._now())
        else:
            held.cancel = True
            self._change(held, phase="cancelling")
        return held.run

    async def claim(self, owner: str, lease_s: float) -> Claim | None:
        """Take the oldest run that waits or was lost by its worker."""
        for held in self._runs:
            lost = held.run.state is RunState.RUNNING and held.lease_until_s < self._clock.monotonic_s()
            if lost and held.cancel:
                self._change(held, state=RunState.CANCELLED, phase="cancelled", end_time_us=self._now())
            elif lost and held.attempt >= _MOST_ATTEMPTS:
                self._change(
                    held,
                    state=RunState.FAILED,
                    phase="failed",
                    error_reason="INTERNAL",
                    error_message="Two workers ended while they trained this run; start a smaller one.",
                    end_time_us=self._now(),
                )
            elif lost or held.run.state is RunState.QUEUED:
                held.owner, held.attempt = owner, held.attempt + 1
                held.lease_until_s = self._clock.monotonic_s() + lease_s
                start = held.run.start_time_us or self._now()
                self._change(held, state=RunState.RUNNING, phase="starting", progress=0.0, start_time_us=start)
                return Claim(tenant=held.tenant, run=held.run, attempt=held.attempt)
        return None

    async def beat(self, claim: Claim, owner: str, lease_s: float, progress: float, phase: str, windows: int) -> Beat:
        """Extend the lease and record progress."""
        held = self._held(claim, owner)
        if held is None:
            return Beat(held=False, cancel=False)
        held.lease_until_s = self._clock.monotonic_s() + lease_s
        shown = held.run.phase if held.cancel else phase
        if (progress, shown, windows) != (held.run.progress, held.run.phase, held.run.train_window_count):
            self._change(held, progress=progress, phase=shown, train_window_count=windows)
        return Beat(held=True, cancel=held.cancel)

    async def finish(self, claim: Claim, owner: str, run: Run, versions: Sequence[Version], promote: int) -> Run | None:
        """End the run and register its versions."""
        held = self._held(claim, owner)
        if held is None:
            return None
        if held.cancel:
            versions, promote = (), 0
            run = replace(held.run, state=RunState.CANCELLED, phase="cancelled")
        first = self._register(claim.tenant, versions) if versions else 0
        if promote and self._erased_of(claim.tenant, versions[promote - 1]):
            promote = 0
        if promote:
            self._point(claim.tenant, versions[0].model_id, first + promote - 1)
        evaluations = tuple(
            Evaluation(
                family=e.family,
                metrics=e.metrics,
                origin_count=e.origin_count,
                model_version=first + e.model_version - 1 if e.model_version and first else 0,
            )
            for e in run.evaluations
        )
        self._change(
            held,
            state=run.state,
            progress=run.progress,
            phase=run.phase,
            error_reason=run.error_reason,
            error_message=run.error_message,
            evaluations=evaluations,
            promoted_version=first + promote - 1 if promote else 0,
            train_window_count=run.train_window_count,
            end_time_us=self._now(),
        )
        return held.run

    async def give_back(self, owner: str) -> int:
        """End the leases of a dead worker."""
        lost = [h for h in self._runs if h.owner == owner and h.run.state is RunState.RUNNING]
        for held in lost:
            held.lease_until_s = float("-inf")
        return len(lost)

    async def requeue(self, claim: Claim, owner: str) -> None:
        """Put a run back untouched."""
        held = self._held(claim, owner)
        if held is not None:
            held.owner, held.attempt = "", held.attempt - 1
            self._change(held, state=RunState.QUEUED, phase="queued", progress=0.0)

    async def models(self, tenant: str, size: int, after: str) -> tuple[Model, ...]:
        """Return models by id."""
        found = []
        for model_id, versions in sorted(self._of(tenant).items()):
            serving = next((v.version for _, v in versions if v.stage is Stage.PRODUCTION), 0)
            if model_id > after:
                task = versions[0][1].task
                latest = versions[-1][1].version
                found.append(Model(model_id=model_id, task=task, production_version=serving, latest_version=latest))
        return tuple(found[:size])

    async def versions(
        self, tenant: str, model_id: str, stage: Stage | None, page: Page, *, golden: bool
    ) -> tuple[tuple[int, Version], ...]:
        """Return versions, newest first."""
        found = [
            (number, self._told(tenant, version if golden else replace(version, golden=None)))
            for name, versions in self._of(tenant).items()
            for number, version in versions
            if model_id in {"", name}
            and (stage is None or version.stage is stage)
            and (page.after == 0 or number < page.after)
        ]
        return tuple(sorted(found, key=lambda pair: -pair[0])[: page.size])

    async def version(self, tenant: str, model_id: str, version: int) -> Version:
        """Return a version, 0 = the one in production."""
        for _, found in self._of(tenant).get(model_id, []):
            if found.version == version or (version == 0 and found.stage is Stage.PRODUCTION):
                return self._told(tenant, found)
        raise faults.version_not_found(model_id, version)

    async def promote(self, tenant: str, model_id: str, version: int, *, force: bool) -> Version:
        """Make a version the one that serves."""
        if version < 1:
            raise faults.version_not_found(model_id, version)
        found = await self.version(tenant, model_id, version)
        if found.stage is not Stage.PRODUCTION:
            if found.erased_twin_ids:
                raise faults.data_erased(model_id, version, found.erased_twin_ids)
            if not found.passed_gate and not force:
                raise faults.gate_not_passed(model_id, version)
            self._point(tenant, model_id, version)
        return await self.version(tenant, model_id, version)

    async def followed(self) -> LogPosition:
        """Return up to where the log was looked through for erased twins."""
        return self._followed

    async def note(self, erased: Sequence[ErasedTwin], through: LogPosition) -> None:
        """Note erased twins, and up to where the log was looked through."""
        for twin in erased:
            self._erased.setdefault(twin, through.incarnation)
        self._followed = through

    def _erased_of(self, tenant: str, version: Version) -> tuple[str, ...]:
        lineage = version.lineage
        found = {
            twin.twin_id
            for twin, incarnation in self._erased.items()
            if twin.tenant == tenant
            and twin.twin_id in lineage.twin_ids
            and (incarnation != lineage.incarnation or twin.offset > lineage.as_of_offset)
        }
        return tuple(sorted(found))

    def _told(self, tenant: str, version: Version) -> Version:
        erased = self._erased_of(tenant, version)
        kept = not erased or version.stage is Stage.PRODUCTION
        return replace(version, erased_twin_ids=erased, golden=version.golden if kept else None)

    def _shown(self, held: _Held) -> Run:
        made = [
            v for _, v in self._of(held.tenant).get(held.run.spec.model_id, ()) if v.lineage.run_id == held.run.run_id
        ]
        erased = {twin_id for version in made for twin_id in self._erased_of(held.tenant, version)}
        return replace(held.run, erased_twin_ids=tuple(sorted(erased)))

    def _of(self, tenant: str) -> dict[str, list[tuple[int, Version]]]:
        return self._tenants.setdefault(tenant, _Models()).versions

    def _find(self, tenant: str, run_id: str) -> _Held:
        for held in self._runs:
            if held.tenant == tenant and held.run.run_id == run_id:
                return held
        raise faults.run_not_found(run_id)

    def _held(self, claim: Claim, owner: str) -> _Held | None:
        held = self._find(claim.tenant, claim.run.run_id)
        mine = held.owner == owner and held.attempt == claim.attempt and held.run.state is RunState.RUNNING
        return held if mine else None

    def _change(self, held: _Held, **changes: object) -> None:
        held.run = replace(held.run, revision=held.run.revision + 1, **changes)  # type: ignore[arg-type]  # named by callers here

    def _register(self, tenant: str, versions: Sequence[Version]) -> int:
        known = self._of(tenant).setdefault(versions[0].model_id, [])
        if known and known[0][1].task is not versions[0].task:
            raise faults.model_has_task(versions[0].model_id, known[0][1].task, versions[0].task)
        first = len(known) + 1
        for index, version in enumerate(versions):
            self._numbers += 1
            registered = replace(version, version=first + index, stage=Stage.CANDIDATE, create_time_us=self._now())
            known.append((self._numbers, registered))
        return first

    def _point(self, tenant: str, model_id: str, version: int) -> None:
        known = self._of(tenant)[model_id]
        for index, (number, found) in enumerate(known):
            if found.version == version:
                known[index] = (number, replace(found, stage=Stage.PRODUCTION))
            elif found.stage is Stage.PRODUCTION:
                known[index] = (number, replace(found, stage=Stage.RETIRED))

    def _now(self) -> int:
        return self._clock.now_unix_us()
