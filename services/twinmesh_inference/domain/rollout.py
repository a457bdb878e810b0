"""One version's way into service: file, load, proof, pointer. What serves meanwhile is never touched."""

from __future__ import annotations

from twinmesh_core.errors import DataLoss, FailedPrecondition, NotFound
from twinmesh_core.time import Clock
from twinmesh_inference.domain.catalogue import Catalogue
from twinmesh_inference.domain.golden import golden_problem, prove
from twinmesh_inference.domain.models import Deployment, DeploymentState, Endpoint, ModelVersion, Pointer
from twinmesh_inference.domain.naming import endpoint_of
from twinmesh_inference.domain.ports import DeploymentStore, Executor, ModelRegistry, ModelRepository, ModelServer

_KEPT_FAILURES = 5


class Rejected(Exception):  # noqa: N818  not an error of the program: the verdict on a version
    """The version may not serve; the text says why, for a person."""


class Rollout:
    """Brings versions into the model server and forgets those that nobody needs any more.

    Args:
        registry: holds the files.
        repository: where the model server loads from.
        server: loads and unloads.
        executor: runs golden checks.
        store: remembers what was proven, and the pointers.
        clock: dates what is ready.
        max_batch_size: most rows of one call to the model server.
        prove_timeout_s: longest golden check; the first call of a graph may be slow.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        repository: ModelRepository,
        server: ModelServer,
        executor: Executor,
        store: DeploymentStore,
        clock: Clock,
        max_batch_size: int,
        prove_timeout_s: float,
    ) -> None:
        self._registry = registry
        self._repository = repository
        self._server = server
        self._executor = executor
        self._store = store
        self._clock = clock
        self._max_batch_size = max_batch_size
        self._prove_timeout_s = prove_timeout_s

    def endpoint(self, tenant: str, one: Deployment | ModelVersion) -> Endpoint:
        """Return where this version is, or will be, called."""
        return endpoint_of(tenant, one.model_id, one.version, one.signature, self._max_batch_size)

    async def advance(self, tenant: str, wanted: ModelVersion, catalogue: Catalogue) -> Pointer:
        """Make `wanted` the version that serves, and return the moved pointer.

        A version that is loaded and was proven only needs the pointer: this is what makes a roll-back instant.

        Raises:
            Rejected: it may not serve; the store says so, and what served before goes on.
            Unavailable, DeadlineExceeded: somebody needed is away; nothing is decided, try again.
        """
        known = catalogue.deployments.get((wanted.model_id, wanted.version))
        proven = known is not None and known.state is DeploymentState.READY
        if not proven or known is None or known.artifact_sha256 != wanted.artifact_sha256:
            try:
                await self._deploy(tenant, wanted, catalogue)
            except Rejected as verdict:
                failed = deployment_of(wanted, DeploymentState.FAILED, message=str(verdict))
                await self._store.put_deployment(tenant, failed)
                raise
            ready = deployment_of(wanted, DeploymentState.READY, ready_time_us=self._clock.now_unix_us())
            await self._store.put_deployment(tenant, ready)
        return await self._store.move_pointer(tenant, wanted.model_id, wanted.version)

    async def restore(self, tenant: str, deployment: Deployment, catalogue: Catalogue) -> None:
        """Load again a version that was proven before: the same file, by its digest, needs no second proof.

        Raises:
            Rejected: the model server refuses it now, or the file is gone for good.
            Unavailable, DeadlineExceeded: somebody needed is away; try again.
        """
        endpoint = self.endpoint(tenant, deployment)
        pointer = catalogue.pointers[deployment.model_id]
        other = pointer.previous if deployment.version == pointer.serving else pointer.serving
        await self._load(tenant, endpoint, deployment.model_id, deployment.artifact_sha256, None, (other,))

    async def forget(self, tenant: str, wanted: tuple[ModelVersion, ...], catalogue: Catalogue) -> bool:
        """Drop what neither serves, nor served last, nor is wanted; say whether anything was dropped."""
        keep = {(one.model_id, one.version) for one in wanted}
        for pointer in catalogue.pointers.values():
            keep |= {(pointer.model_id, pointer.serving), (pointer.model_id, pointer.previous)}
        in_use = {self.endpoint(tenant, one).name for key, one in catalogue.deployments.items() if key in keep}
        failures: dict[str, int] = {}
        dropped = False
        for key, one in sorted(catalogue.deployments.items(), reverse=True):
            if key in keep:
                continue
            if one.state is DeploymentState.FAILED:
                # A failure is worth reading after its successor serves; a bounded number of them.
                failures[one.model_id] = failures.get(one.model_id, 0) + 1
                if failures[one.model_id] <= _KEPT_FAILURES:
                    continue
            endpoint = self.endpoint(tenant, one)
            if endpoint.name in in_use:
                await self._repository.discard(endpoint.name, endpoint.version)
            else:
                await self._server.unload(endpoint.name)
                await self._repository.discard(endpoint.name)
            await self._store.remove_deployment(tenant, one.model_id, one.version)
            dropped = True
        return dropped

    async def _deploy(self, tenant: str, wanted: ModelVersion, catalogue: Catalogue) -> None:
        try:
            full = await self._registry.version(tenant, wanted.model_id, wanted.version)
        except NotFound:
            raise Rejected("the registry does not know it any more") from None
        problem = full.signature.problem(full.task)
        if problem:
            raise Rejected(f"its signature cannot be served: {problem}")
        endpoint = self.endpoint(tenant, full)
        problem = golden_problem(endpoint, full.golden)
        if problem or full.golden is None:
            raise Rejected(problem)
        pointer = catalogue.pointers.get(full.model_id)
        serving = catalogue.deployments.get((full.model_id, pointer.serving)) if pointer is not None else None
        shares_name = serving is not None and self.endpoint(tenant, serving).name == endpoint.name
        beside = (serving.version,) if serving and shares_name and serving.version != full.version else ()
        await self._load(tenant, endpoint, full.model_id, full.artifact_sha256, full.artifact_bytes, beside)
        problem = await prove(self._executor, endpoint, full.golden, timeout_s=self._prove_timeout_s)
        if problem:
            await self._withdraw(endpoint, beside)
            raise Rejected(problem)

    async def _load(
        self, tenant: str, endpoint: Endpoint, model_id: str, sha256: str, size: int | None, beside: tuple[int, ...]
    ) -> None:
        """Load a version together with those `beside` it under the same name; raises `Rejected`."""
        # The model server loads the two highest versions that it finds: nothing else may lie there.
        for there in await self._repository.versions(endpoint.name):
            if there not in (*beside, endpoint.version):
                await self._repository.discard(endpoint.name, there)
        if not await self._repository.holds(endpoint, sha256):
            try:
                async with self._registry.artifact(tenant, model_id, endpoint.version) as artifact:
                    await self._repository.place(
                        endpoint, artifact, size_bytes=artifact.size_bytes if size is None else size, sha256=sha256
                    )
            except (DataLoss, NotFound) as error:
                raise Rejected(error.message) from None
        await self._repository.configure(endpoint)
        try:
            await self._server.load(endpoint.name)
        except FailedPrecondition as error:
            await self._withdraw(endpoint, beside)
            raise Rejected(error.message) from None
        if not await self._server.is_ready(endpoint.name, endpoint.version):
            await self._withdraw(endpoint, beside)
            raise Rejected("the model server loaded it but does not call it ready")

    async def _withdraw(self, endpoint: Endpoint, beside: tuple[int, ...]) -> None:
        """Take a refused version away again, so that a restart of the model server does not meet it."""
        if not set(await self._repository.versions(endpoint.name)) & set(beside):
            await self._server.unload(endpoint.name)
            await self._repository.discard(endpoint.name)
            return
        await self._repository.discard(endpoint.name, endpoint.version)
        try:
            await self._server.load(endpoint.name)
        except FailedPrecondition:
            # What serves stays loaded whatever this load said: it was there before and its file did not change.
            return


def deployment_of(
    version: ModelVersion, state: DeploymentState, *, message: str = "", ready_time_us: int = 0
) -> Deployment:
    """Return the deployment of a version in a state."""
    return Deployment(
        model_id=version.model_id,
        version=version.version,
        task=version.task,
        signature=version.signature,
        twin_ids=version.twin_ids,
        artifact_sha256=version.artifact_sha256,
        state=state,
        message=message,
        ready_time_us=ready_time_us,
    )
