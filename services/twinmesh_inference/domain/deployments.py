"""What this replica knows of deployments: a picture per tenant, refreshed from the store and the model server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

from twinmesh_core.errors import Reason, TwinmeshError, Unavailable
from twinmesh_inference.domain.catalogue import Catalogue
from twinmesh_inference.domain.models import Deployment, DeploymentState, Endpoint
from twinmesh_inference.domain.naming import endpoint_of
from twinmesh_inference.domain.ports import DeploymentStore, ModelServer

_AnswerT = TypeVar("_AnswerT")


class Report(Protocol):
    """Writes one line of the service's log."""

    def __call__(
        self,
        event: str,
        *,
        level: Literal["debug", "info", "warning", "error"] = "info",
        error: BaseException | None = None,
        **fields: object,
    ) -> None:
        """Write `event`, a constant name, with its fields."""
        ...


class Deployments:
    """Keeps a `Catalogue` per tenant current; the only thing that a call needs to know where to go.

    Args:
        store: what should be loaded, shared by all replicas.
        server: what is loaded.
        tenants: whose models are served.
        max_batch_size: most rows of one call to the model server.
        poll_s: how often the picture is renewed.
        report: the log.
    """

    def __init__(
        self,
        *,
        store: DeploymentStore,
        server: ModelServer,
        tenants: tuple[str, ...],
        max_batch_size: int,
        poll_s: float,
        report: Report,
    ) -> None:
        self._store = store
        self._server = server
        self._tenants = tenants
        self._max_batch_size = max_batch_size
        self._poll_s = poll_s
        self._report = report
        self._catalogues: dict[str, Catalogue] = {}

    def catalogue(self, tenant: str) -> Catalogue:
        """Return the newest picture of a tenant's deployments; empty for a tenant without any."""
        return self._catalogues.get(tenant, Catalogue())

    def endpoint(self, tenant: str, deployment: Deployment) -> Endpoint:
        """Return where calls to this deployment go."""
        return endpoint_of(tenant, deployment.model_id, deployment.version, deployment.signature, self._max_batch_size)

    async def refresh(self, tenant: str) -> Catalogue:
        """Renew and return the picture of one tenant; raises `Unavailable` when the store is away."""
        deployments = await self._store.deployments(tenant)
        pointers = await self._store.pointers(tenant)
        try:
            loaded: frozenset[tuple[str, int]] | None = await self._server.loaded()
        except TwinmeshError:
            loaded = None
        shown = [self._as_seen(tenant, one, loaded or frozenset()) for one in deployments]
        self._catalogues[tenant] = Catalogue.of(shown, pointers, server_live=loaded is not None)
        return self._catalogues[tenant]

    async def answer(
        self, tenant: str, choose: Callable[[Catalogue], Deployment], ask: Callable[[Deployment], Awaitable[_AnswerT]]
    ) -> _AnswerT:
        """Return what the chosen deployment answers; look and choose once more if it is not loaded any more.

        Another replica may have rolled on twice since this one last looked, and then what was chosen is gone.
        """
        chosen = choose(self.catalogue(tenant))
        try:
            return await ask(chosen)
        except Unavailable as error:
            if error.reason != Reason.MODEL_NOT_READY:
                raise
            again = choose(await self.refresh(tenant))
            if (again.model_id, again.version) == (chosen.model_id, chosen.version):
                raise
            return await ask(again)

    async def check(self) -> None:
        """Raise `Unavailable` until every tenant's picture was read once: before that, calls would see no model."""
        missing = [tenant for tenant in self._tenants if tenant not in self._catalogues]
        if missing:
            raise Unavailable("The deployments are not read yet.")

    async def run(self) -> None:
        """Renew all pictures for ever; while the store is away the last ones stay in use."""
        away = False
        while True:
            for tenant in self._tenants:
                try:
                    await self.refresh(tenant)
                    away = False
                except TwinmeshError as error:
                    if not away:
                        self._report("deployments_unreadable", level="warning", tenant=tenant, problem=str(error))
                    away = True
            await asyncio.sleep(self._poll_s)

    def _as_seen(self, tenant: str, deployment: Deployment, loaded: frozenset[tuple[str, int]]) -> Deployment:
        # The store remembers what was proven; a model server that started again holds nothing until told.
        endpoint = self.endpoint(tenant, deployment)
        if deployment.state is DeploymentState.READY and (endpoint.name, endpoint.version) not in loaded:
            return replace(deployment, state=DeploymentState.LOADING)
        return deployment
