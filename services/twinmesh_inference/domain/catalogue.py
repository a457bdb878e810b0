"""Which version answers: an immutable picture of all deployments, replaced as a whole, and the rules of choosing.

A call that names a model gets that model. One that names only what it wants to know gets the newest serving model that
predicts it and learned from this very twin, else one that learned from another twin with the same channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import MappingProxyType

from twinmesh_core.errors import NotFound, Reason, Unavailable, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_inference.domain.models import Deployment, DeploymentState, ModelTask, Pointer
from twinmesh_inference.domain.ports import Twin

_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All deployments of a tenant at one moment.

    Attributes:
        deployments: by (model, version).
        pointers: by model.
        server_live: whether the model server answered when last asked.
    """

    deployments: MappingProxyType[tuple[str, int], Deployment] = field(default_factory=lambda: MappingProxyType({}))
    pointers: MappingProxyType[str, Pointer] = field(default_factory=lambda: MappingProxyType({}))
    server_live: bool = False

    @classmethod
    def of(cls, deployments: Iterable[Deployment], pointers: Iterable[Pointer], *, server_live: bool) -> Catalogue:
        """Build the picture from what the store holds."""
        return cls(
            deployments=MappingProxyType({(one.model_id, one.version): one for one in deployments}),
            pointers=MappingProxyType({one.model_id: one for one in pointers}),
            server_live=server_live,
        )

    def serving(self) -> tuple[Deployment, ...]:
        """Return the version of each model that answers unpinned calls."""
        found = (self.deployments.get((one.model_id, one.serving)) for one in self.pointers.values())
        return tuple(one for one in found if one is not None)

    def serves(self, deployment: Deployment) -> bool:
        """Say whether unpinned calls go to this version."""
        pointer = self.pointers.get(deployment.model_id)
        return pointer is not None and pointer.serving == deployment.version

    def named(self, model_id: str, version: int, task: ModelTask) -> Deployment:
        """Return the version of `model_id` that answers; `version` 0 = the one that serves.

        Raises:
            NotFound: MODEL_NOT_FOUND, no such model or version is deployed.
            Unavailable: MODEL_NOT_READY, it is on its way or failed; DEPENDENCY_UNAVAILABLE, the model server is away.
            InvalidArgument: the model answers another question.
        """
        pointer = self.pointers.get(model_id)
        wanted = version or (pointer.serving if pointer is not None else 0)
        found = self.deployments.get((model_id, wanted)) if wanted else self._newest(model_id)
        if found is None:
            raise self._not_found(model_id, version)
        if found.task is not task:
            raise invalid_field("model_id", f"{quoted(model_id)} is a {found.task} model; this call needs {task}")
        if pointer is None or (version and found.state is not DeploymentState.READY):
            raise self._not_ready(found)
        return found

    def choose(self, twin: Twin, task: ModelTask, question: str, fits: Callable[[Deployment], bool]) -> Deployment:
        """Return the serving model that `fits` and learned from `twin`, else from another twin; the newest of several.

        Args:
            twin: the twin asked about; only models whose channels it has are considered.
            task: what the model must answer.
            question: what is asked for, completing "no model that ...".
            fits: whether a deployment answers the question.

        Raises:
            NotFound: MODEL_NOT_FOUND.
            Unavailable: MODEL_NOT_READY or DEPENDENCY_UNAVAILABLE when the only ones are not loaded.
        """

        def suits(one: Deployment) -> bool:
            return one.task is task and fits(one) and _twin_has(twin, one)

        candidates = [one for one in self.serving() if suits(one)]
        if candidates:
            return max(candidates, key=lambda one: (twin.twin_id in one.twin_ids, one.ready_time_us, one.model_id))
        coming = [one for one in self.deployments.values() if suits(one)]
        if coming:
            raise self._not_ready(max(coming, key=lambda one: (twin.twin_id in one.twin_ids, one.version)))
        raise NotFound(
            f"No deployed model {question}; train one that passes its gate, or promote one.",
            reason=Reason.MODEL_NOT_FOUND,
            metadata={"remedy": f"twinmesh train --twin {twin.twin_id}", "task": str(task)},
        )

    def _newest(self, model_id: str) -> Deployment | None:
        versions = [one for one in self.deployments.values() if one.model_id == model_id]
        return max(versions, key=lambda one: one.version, default=None)

    def _not_found(self, model_id: str, version: int) -> NotFound:
        there = sorted(number for name, number in self.deployments if name == model_id)
        if there:
            listed = ", ".join(map(str, there))
            return NotFound(
                f"Version {version} of the model {quoted(model_id)} is not deployed; there are: {listed}.",
                reason=Reason.MODEL_NOT_FOUND,
                metadata={"versions": listed},
            )
        return NotFound(
            f"No model {quoted(model_id)} is deployed; promote a version of it and it is deployed within seconds.",
            reason=Reason.MODEL_NOT_FOUND,
            metadata={"remedy": f"twinmesh models {model_id}"},
        )

    def _not_ready(self, deployment: Deployment) -> Unavailable:
        name = f"Version {deployment.version} of the model {quoted(deployment.model_id)}"
        if deployment.state is DeploymentState.FAILED:
            return Unavailable(
                f"{name} could not be deployed: {deployment.message}",
                reason=Reason.MODEL_NOT_READY,
                metadata={"model": deployment.model_id},
            )
        if not self.server_live:
            return triton_away()
        return model_not_ready(deployment.model_id, deployment.version)


def model_not_ready(model_id: str, version: int) -> Unavailable:
    """Return the error for a version that is known but not loaded now."""
    return Unavailable(
        f"Version {version} of the model {quoted(model_id)} is being loaded; call again in a moment.",
        reason=Reason.MODEL_NOT_READY,
        metadata={"model": model_id, "version": str(version)},
        retry_after_s=_RETRY_AFTER_S,
    )


def triton_away() -> Unavailable:
    """Return the error for a model server that does not answer."""
    return Unavailable(
        "The model server (Triton) does not answer, so no model can be run; calls work again as soon as it does.",
        reason=Reason.DEPENDENCY_UNAVAILABLE,
        metadata={"dependency": "triton"},
        retry_after_s=_RETRY_AFTER_S,
    )


def _twin_has(twin: Twin, deployment: Deployment) -> bool:
    return all(name in twin.channels for name in (*deployment.signature.channels, *deployment.signature.controls))
