"""What inference asks of the world, as Protocols; the first argument of whatever belongs to somebody is the tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from twinmesh_inference.domain.models import Deployment, Endpoint, ModelVersion, Pointer, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """A point in the log: what an answer reflects."""

    incarnation: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A twin's recent past, aligned to a step.

    Attributes:
        values: float64 [steps, channels] in channel units; NaN = missing.
        at_unix_us: end of the last step (excluded), microseconds since the Unix epoch.
        units: unit of each channel as storage knows it; empty where it never saw the channel.
        as_of: what it reflects.
    """

    values: npt.NDArray[np.float64]
    at_unix_us: int
    units: tuple[str, ...]
    as_of: LogPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """What inference needs to know of a channel.

    Attributes:
        name: its name.
        unit: canonical unit.
        upper_limit: alarm and planning limit, None = none.
    """

    name: str
    unit: str
    upper_limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """What inference needs to know of a twin.

    Attributes:
        twin_id: its id.
        time_zone: IANA name.
        channels: channels of its type, by name.
    """

    twin_id: str
    time_zone: str
    channels: dict[str, Channel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A forecast of one channel with its uncertainty.

    Attributes:
        channel: what is predicted.
        unit: its unit.
        model_id: the model.
        model_version: its version.
        at_unix_us: end of the window used.
        input_offset: log offset that the inputs reflect.
        step_us: distance of the steps.
        quantile_levels: increasing.
        values: float32 [steps, levels] in `unit`, finite, not decreasing along the levels.
    """

    channel: str
    unit: str
    model_id: str
    model_version: int
    at_unix_us: int
    input_offset: int
    step_us: int
    quantile_levels: tuple[float, ...]
    values: npt.NDArray[np.float32]

    @property
    def valid_until_unix_us(self) -> int:
        """End of the last step."""
        return self.at_unix_us + self.step_us * len(self.values)


class Executor(Protocol):
    """Runs graphs."""

    async def infer(self, endpoint: Endpoint, rows: int, inputs: Sequence[bytes], *, timeout_s: float) -> bytes:
        """Return the output's bytes for `rows` rows; `inputs` are float32, little-endian, row-major, in endpoint order.

        Raises:
            Unavailable: MODEL_NOT_READY when the version is not loaded, DEPENDENCY_UNAVAILABLE when nobody answers.
            InvalidArgument, Internal: the call's content was refused or made the graph fail.
            DeadlineExceeded: no answer in time.
        """
        ...


class ModelServer(Protocol):
    """Decides what is loaded."""

    async def loaded(self) -> frozenset[tuple[str, int]]:
        """Return the (name, version) pairs that are ready; raises `Unavailable` when the server does not answer."""
        ...

    async def load(self, name: str) -> None:
        """Load what the repository holds under `name`, keeping loaded versions in service while it does.

        Raises:
            FailedPrecondition: the server refused, with its reason; what was loaded before stays.
            Unavailable: the server does not answer.
        """
        ...

    async def unload(self, name: str) -> None:
        """Unload all versions of a name that no pointer names any more; no error if it is not loaded."""
        ...

    async def is_ready(self, name: str, version: int) -> bool:
        """Say whether this version answers calls; raises `Unavailable` when the server does not answer."""
        ...


class Artifact(Protocol):
    """A model file on its way: what it must be, and its bytes."""

    @property
    def size_bytes(self) -> int:
        """Size that the sender states."""
        ...

    @property
    def sha256(self) -> str:
        """Digest (hex) that the sender states."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes, once."""
        ...


class ModelRegistry(Protocol):
    """Knows which versions should serve, and holds their files."""

    async def production_versions(self, tenant: str) -> tuple[ModelVersion, ...]:
        """Return the version of each model that should serve, without golden checks."""
        ...

    async def version(self, tenant: str, model_id: str, version: int) -> ModelVersion:
        """Return one version with its golden check."""
        ...

    def artifact(self, tenant: str, model_id: str, version: int) -> AbstractAsyncContextManager[Artifact]:
        """Open a version's file for reading."""
        ...


class ModelRepository(Protocol):
    """The directory that the model server loads from."""

    async def holds(self, endpoint: Endpoint, sha256: str) -> bool:
        """Say whether the version's file is there and is this one."""
        ...

    async def place(self, endpoint: Endpoint, artifact: Artifact, *, size_bytes: int, sha256: str) -> None:
        """Write the version so that a load sees all of it or nothing.

        Raises:
            DataLoss: size or digest are not the stated ones; nothing is left behind.
        """
        ...

    async def configure(self, endpoint: Endpoint) -> None:
        """Write the configuration that all versions under this name share."""
        ...

    async def versions(self, name: str) -> tuple[int, ...]:
        """Return the versions there under `name`, ascending."""
        ...

    async def discard(self, name: str, version: int | None = None) -> None:
        """Remove a version, or with None all of `name`; no error if it is not there."""
        ...


class DeploymentStore(Protocol):
    """Remembers what should be loaded and where calls go, for all replicas of this service."""

    async def acquire_lease(self, tenant: str, holder: str, ttl_s: float) -> bool:
        """Take or renew the right to reconcile a tenant; False while another holder has it."""
        ...

    async def release_lease(self, tenant: str, holder: str) -> None:
        """Give the right back, if this holder has it."""
        ...

    async def deployments(self, tenant: str) -> tuple[Deployment, ...]:
        """Return all deployments, by model, newest version first."""
        ...

    async def pointers(self, tenant: str) -> tuple[Pointer, ...]:
        """Return all traffic pointers, by model."""
        ...

    async def put_deployment(self, tenant: str, deployment: Deployment) -> None:
        """Insert or replace one deployment."""
        ...

    async def remove_deployment(self, tenant: str, model_id: str, version: int) -> None:
        """Forget one deployment; no error if there is none."""
        ...

    async def move_pointer(self, tenant: str, model_id: str, version: int) -> Pointer:
        """Send a model's unpinned calls to `version`, remember the one before, and return the pointer, atomically."""
        ...


class WindowReader(Protocol):
    """Reads the past."""

    async def read(
        self,
        tenant: str,
        twin_id: str,
        signature: Signature,
        *,
        at_unix_us: int | None,
        min_offset: int,
        as_of_offset: int,
        incarnation: str,
    ) -> Window:
        """Return the window that a model of this signature eats; gaps stay NaN, since the graph fills them."""
        ...


class TwinDirectory(Protocol):
    """Knows the twins."""

    async def twin(self, tenant: str, twin_id: str, *, min_offset: int, incarnation: str) -> Twin:
        """Return a twin that reflects at least `min_offset`.

        Args:
            incarnation: of the log that `min_offset` belongs to; "" = not checked.

        Raises:
            NotFound: TWIN_NOT_FOUND.
            FailedPrecondition: LOG_REWOUND, the log is another one.
        """
        ...


class PredictionRecorder(Protocol):
    """Writes predictions to replicas."""

    async def record(self, tenant: str, twin_id: str, prediction: Prediction) -> bool:
        """Write it and say whether it is now the twin's prediction (False: one from newer inputs was there)."""
        ...
