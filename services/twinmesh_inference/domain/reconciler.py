"""Makes the model server hold what the registry promoted, one round a second, for the tenants whose lease it holds.

When training or the model server is away, the last desired set stands and is asserted again as soon as they are back.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.time import Clock
from twinmesh_inference.domain.catalogue import Catalogue
from twinmesh_inference.domain.deployments import Deployments, Report
from twinmesh_inference.domain.models import DeploymentState, ModelVersion
from twinmesh_inference.domain.ports import DeploymentStore, ModelRegistry
from twinmesh_inference.domain.rollout import Rejected, Rollout, deployment_of

_FIRST_RETRY_S = 2.0
_LONGEST_RETRY_S = 300.0
_Key = tuple[str, str, int]


@dataclass(slots=True, kw_only=True)
class _Backoff:
    attempts: int = 0
    not_before_s: float = 0.0


class Reconciler:
    """Reconciles the tenants whose lease it holds.

    Args:
        registry: which versions should serve.
        rollout: brings a version into service.
        store: holds the leases.
        deployments: this replica's picture, renewed after each change.
        clock: its monotonic side spaces retries.
        tenants: whose models are served.
        holder: names this process in leases; the same after a restart, so that it need not wait for itself.
        poll_s: how often the registry is asked.
        lease_ttl_s: after which a silent holder loses its lease.
        report: the log.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        rollout: Rollout,
        store: DeploymentStore,
        deployments: Deployments,
        clock: Clock,
        tenants: tuple[str, ...],
        holder: str,
        poll_s: float,
        lease_ttl_s: float,
        report: Report,
    ) -> None:
        self._registry = registry
        self._rollout = rollout
        self._store = store
        self._deployments = deployments
        self._clock = clock
        self._tenants = tenants
        self._holder = holder
        self._poll_s = poll_s
        self._lease_ttl_s = lease_ttl_s
        self._report = report
        self._held: set[str] = set()
        self._backoff: dict[_Key, _Backoff] = {}
        self._troubles: dict[tuple[str, str], str] = {}

    async def run(self) -> None:
        """Hold leases and reconcile for ever; gives the leases back when cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_leases())
                group.create_task(self._reconcile_for_ever())
        finally:
            await self._release()

    async def reconcile(self, tenant: str) -> None:
        """Bring one tenant's models one round closer to what the registry wants; assumes the lease.

        Raises:
            Unavailable: the store is away. What else fails is reported and tried again.
        """
        wanted = await self._wanted(tenant)
        catalogue = await self._deployments.refresh(tenant)
        if await self._announce(tenant, wanted, catalogue):
            catalogue = await self._deployments.refresh(tenant)
        self._trouble(tenant, "triton", "" if catalogue.server_live else "does not answer")
        if not catalogue.server_live:
            return
        restored = [await self._restore(tenant, key, catalogue) for key in _lost(catalogue)]
        if any(restored):
            catalogue = await self._deployments.refresh(tenant)
        moved = [await self._advance(tenant, version, catalogue) for version in wanted]
        if any(moved):
            catalogue = await self._deployments.refresh(tenant)
        if await self._rollout.forget(tenant, wanted, catalogue):
            await self._deployments.refresh(tenant)

    async def _keep_leases(self) -> None:
        while True:
            for tenant in self._tenants:
                try:
                    held = await self._store.acquire_lease(tenant, self._holder, self._lease_ttl_s)
                except TwinmeshError:
                    held = False
                (self._held.add if held else self._held.discard)(tenant)
            await asyncio.sleep(self._lease_ttl_s / 3)

    async def _reconcile_for_ever(self) -> None:
        while True:
            for tenant in sorted(self._held):
                try:
                    await self.reconcile(tenant)
                    self._trouble(tenant, "deployments", "")
                except TwinmeshError as error:
                    self._trouble(tenant, "deployments", str(error))
            await asyncio.sleep(self._poll_s)

    async def _release(self) -> None:
        for tenant in sorted(self._held):
            try:
                await self._store.release_lease(tenant, self._holder)
            except TwinmeshError as error:
                # It runs out by itself; nothing else is at stake on the way out.
                self._report("lease_not_released", level="warning", tenant=tenant, problem=str(error))

    async def _wanted(self, tenant: str) -> tuple[ModelVersion, ...]:
        try:
            wanted = await self._registry.production_versions(tenant)
        except TwinmeshError as error:
            self._trouble(tenant, "training", str(error))
            return ()
        self._trouble(tenant, "training", "")
        return wanted

    async def _announce(self, tenant: str, wanted: tuple[ModelVersion, ...], catalogue: Catalogue) -> bool:
        """Make versions visible before they are ready, so that callers hear "being loaded", not "unknown"."""
        new = [one for one in wanted if (one.model_id, one.version) not in catalogue.deployments]
        for version in new:
            await self._store.put_deployment(tenant, deployment_of(version, DeploymentState.LOADING))
        return bool(new)

    async def _restore(self, tenant: str, key: tuple[str, int], catalogue: Catalogue) -> bool:
        retry_key = (tenant, *key)
        if not self._due(retry_key):
            return False
        try:
            await self._rollout.restore(tenant, catalogue.deployments[key], catalogue)
        except (TwinmeshError, Rejected) as error:
            self._postpone(retry_key)
            self._note("deployment_not_restored", retry_key, level="warning", problem=str(error))
            return False
        self._backoff.pop(retry_key, None)
        self._note("deployment_restored", retry_key)
        return True

    async def _advance(self, tenant: str, wanted: ModelVersion, catalogue: Catalogue) -> bool:
        key = (tenant, wanted.model_id, wanted.version)
        if _serves(catalogue, wanted) or not self._due(key):
            return False
        started_s = self._clock.monotonic_s()
        try:
            moved = await self._rollout.advance(tenant, wanted, catalogue)
        except (TwinmeshError, Rejected) as error:
            self._postpone(key)
            event = "deployment_rejected" if isinstance(error, Rejected) else "deployment_delayed"
            self._note(event, key, level="warning", problem=str(error))
            return True
        self._backoff.pop(key, None)
        took_s = round(self._clock.monotonic_s() - started_s, 3)
        self._note("deployment_serving", key, previous=moved.previous, took_s=took_s)
        return True

    def _due(self, key: _Key) -> bool:
        waiting = self._backoff.get(key)
        return waiting is None or self._clock.monotonic_s() >= waiting.not_before_s

    def _postpone(self, key: _Key) -> None:
        if len(self._backoff) > 10_000:
            self._backoff.clear()
        waiting = self._backoff.setdefault(key, _Backoff())
        pause_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(waiting.attempts, 16))
        waiting.attempts += 1
        waiting.not_before_s = self._clock.monotonic_s() + pause_s

    def _note(self, event: str, key: _Key, *, level: Literal["info", "warning"] = "info", **fields: Any) -> None:
        tenant, model_id, version = key
        self._report(event, level=level, tenant=tenant, model=model_id, version=version, **fields)

    def _trouble(self, tenant: str, with_whom: str, words: str) -> None:
        """Report a trouble once when it begins and once when it ends, not every second."""
        before = self._troubles.get((tenant, with_whom), "")
        self._troubles[tenant, with_whom] = words
        if words and not before:
            self._report("reconcile_hindered", level="warning", tenant=tenant, dependency=with_whom, problem=words)
        elif before and not words:
            self._report("reconcile_resumed", tenant=tenant, dependency=with_whom)


def _serves(catalogue: Catalogue, wanted: ModelVersion) -> bool:
    pointer = catalogue.pointers.get(wanted.model_id)
    known = catalogue.deployments.get((wanted.model_id, wanted.version))
    if pointer is None or known is None or pointer.serving != wanted.version:
        return False
    # A registry that was set up anew counts from 1 again: the same number may be another model.
    return known.artifact_sha256 == wanted.artifact_sha256


def _lost(catalogue: Catalogue) -> list[tuple[str, int]]:
    """Return what a pointer names and the model server does not hold: it was started again."""
    named = [
        (pointer.model_id, version)
        for pointer in catalogue.pointers.values()
        for version in (pointer.serving, pointer.previous)
    ]
    return [
        key
        for key in named
        if key in catalogue.deployments and catalogue.deployments[key].state is DeploymentState.LOADING
    ]
