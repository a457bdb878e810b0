"""A `DeploymentStore` in this process's memory: the fake of the real one, held to the same contract."""

from __future__ import annotations

from twinmesh_core.time import Clock
from twinmesh_inference.domain.models import Deployment, Pointer


class MemoryDeploymentStore:
    """Forgets everything with the process; otherwise behaves as the store in PostgreSQL."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._deployments: dict[tuple[str, str, int], Deployment] = {}
        self._pointers: dict[tuple[str, str], Pointer] = {}
        self._leases: dict[str, tuple[str, float]] = {}

    async def acquire_lease(self, tenant: str, holder: str, ttl_s: float) -> bool:
        """Take or renew the right to reconcile a tenant; False while another holder has it."""
        now_s = self._clock.monotonic_s()
        owner, expires_s = self._leases.get(tenant, (holder, now_s))
        if owner != holder and expires_s > now_s:
            return False
        self._leases[tenant] = (holder, now_s + ttl_s)
        return True

    async def release_lease(self, tenant: str, holder: str) -> None:
        """Give the right back, if this holder has it."""
        if self._leases.get(tenant, ("", 0.0))[0] == holder:
            del self._leases[tenant]

    async def deployments(self, tenant: str) -> tuple[Deployment, ...]:
        """Return all deployments, by model, newest version first."""
        mine = [one for key, one in self._deployments.items() if key[0] == tenant]
        return tuple(sorted(mine, key=lambda one: (one.model_id, -one.version)))

    async def pointers(self, tenant: str) -> tuple[Pointer, ...]:
        """Return all traffic pointers, by model."""
        mine = [one for key, one in self._pointers.items() if key[0] == tenant]
        return tuple(sorted(mine, key=lambda one: one.model_id))

    async def put_deployment(self, tenant: str, deployment: Deployment) -> None:
        """Insert or replace one deployment."""
        self._deployments[tenant, deployment.model_id, deployment.version] = deployment

    async def remove_deployment(self, tenant: str, model_id: str, version: int) -> None:
        """Forget one deployment; no error if there is none."""
        self._deployments.pop((tenant, model_id, version), None)

    async def move_pointer(self, tenant: str, model_id: str, version: int) -> Pointer:
        """Send a model's unpinned calls to `version` and return the pointer; see `DeploymentStore`."""
        before = self._pointers.get((tenant, model_id))
        if before is None:
            moved = Pointer(model_id=model_id, serving=version)
        elif before.serving == version:
            moved = before
        else:
            moved = Pointer(model_id=model_id, serving=version, previous=before.serving)
        self._pointers[tenant, model_id] = moved
        return moved
