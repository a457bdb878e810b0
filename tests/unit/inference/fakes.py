"""Fakes of inference's ports: small, honest, and slow or broken on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from tests.unit.inference.graphs import Built

from twinmesh_core.errors import DataLoss, FailedPrecondition, NotFound, Reason, Unavailable
from twinmesh_inference.domain.catalogue import triton_away
from twinmesh_inference.domain.models import Endpoint, ModelVersion, Signature
from twinmesh_inference.domain.ports import Artifact, Channel, LogPosition, Prediction, Twin, Window
from twinmesh_testing.clock import FakeClock

AT_US = 1_700_000_100 * 1_000_000


class HandClock(FakeClock):
    """The runtime's fake clock in the shape that domains ask for."""

    def monotonic_s(self) -> float:
        """Return the seconds since this clock was made."""
        return self.monotonic()


def quiet(event: str, **fields: object) -> None:
    """Report nothing."""


@dataclass
class FakeExecutor:
    """Answers with `respond`, which sees the joined tensors; counts calls and watches how many run at once."""

    respond: Callable[[Endpoint, int, Sequence[bytes]], bytes]
    delay_s: float = 0.0
    calls: list[int] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def infer(self, endpoint: Endpoint, rows: int, inputs: Sequence[bytes], *, timeout_s: float) -> bytes:
        self.calls.append(rows)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            return self.respond(endpoint, rows, inputs)
        finally:
            self.running -= 1


@dataclass
class FakeWindows:
    """Gives one window of rising values."""

    values: np.ndarray | None = None
    at_unix_us: int = AT_US
    units: tuple[str, ...] | None = None
    asked: list[dict[str, object]] = field(default_factory=list)
    failure: Exception | None = None

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
        offsets = {"min_offset": min_offset, "as_of_offset": as_of_offset, "incarnation": incarnation}
        self.asked.append({"at": at_unix_us, **offsets})
        if self.failure is not None:
            raise self.failure
        shape = (signature.context_steps, len(signature.channels))
        values = np.arange(shape[0] * shape[1], dtype=np.float64).reshape(shape) if self.values is None else self.values
        return Window(
            values=values,
            at_unix_us=self.at_unix_us if at_unix_us is None else at_unix_us,
            units=signature.units if self.units is None else self.units,
            as_of=LogPosition(incarnation="inc", offset=as_of_offset or 42),
        )


@dataclass
class FakeTwins:
    """Knows the twins given."""

    twins: dict[str, Twin] = field(default_factory=dict)
    asked: list[tuple[int, str]] = field(default_factory=list)

    async def twin(self, tenant: str, twin_id: str, *, min_offset: int, incarnation: str) -> Twin:
        self.asked.append((min_offset, incarnation))
        if twin_id not in self.twins:
            raise NotFound(f"There is no twin {twin_id}.", reason=Reason.TWIN_NOT_FOUND)
        return self.twins[twin_id]


def transformer(twin_id: str = "T1", *, upper_limit: float | None = 90.0, time_zone: str = "Europe/Berlin") -> Twin:
    return Twin(
        twin_id=twin_id,
        time_zone=time_zone,
        channels={
            "oil_temp": Channel(name="oil_temp", unit="Cel", upper_limit=upper_limit),
            "load": Channel(name="load", unit="1"),
            "stage": Channel(name="stage", unit="1"),
        },
    )


@dataclass
class FakeRecorder:
    """Keeps what was recorded."""

    applied: bool = True
    recorded: list[tuple[str, str, Prediction]] = field(default_factory=list)

    async def record(self, tenant: str, twin_id: str, prediction: Prediction) -> bool:
        self.recorded.append((tenant, twin_id, prediction))
        return self.applied


class FakeRegistry:
    """A registry of built models; one production version each."""

    def __init__(self) -> None:
        self.built: dict[tuple[str, int], Built] = {}
        self.production: dict[str, int] = {}
        self.away = False
        self.tamper: Callable[[bytes], bytes] = lambda content: content

    def promote(self, built: Built) -> None:
        self.built[built.version.model_id, built.version.version] = built
        self.production[built.version.model_id] = built.version.version

    async def production_versions(self, tenant: str) -> tuple[ModelVersion, ...]:
        self._answer()
        return tuple(replace(self.built[key].version, golden=None) for key in self.production.items())

    async def version(self, tenant: str, model_id: str, version: int) -> ModelVersion:
        self._answer()
        return self.built[model_id, version].version

    @asynccontextmanager
    async def artifact(self, tenant: str, model_id: str, version: int) -> AsyncIterator[Artifact]:
        self._answer()
        built = self.built[model_id, version]
        yield FakeArtifact(built.version.artifact_bytes, built.version.artifact_sha256, self.tamper(built.onnx))

    def _answer(self) -> None:
        if self.away:
            raise Unavailable("training is away", metadata={"dependency": "training"})


@dataclass
class FakeArtifact:
    size_bytes: int
    sha256: str
    content: bytes

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.content), 1_000):
            yield self.content[start : start + 1_000]


class FakeRepository:
    """A model repository in memory."""

    def __init__(self) -> None:
        self.files: dict[str, dict[int, str]] = {}
        self.configured: set[str] = set()
        self.damaged = 0

    async def holds(self, endpoint: Endpoint, sha256: str) -> bool:
        return self.files.get(endpoint.name, {}).get(endpoint.version) == sha256

    async def place(self, endpoint: Endpoint, artifact: Artifact, *, size_bytes: int, sha256: str) -> None:
        if self.damaged:
            self.damaged -= 1
            raise DataLoss("the file that arrived is not the one that was registered")
        self.files.setdefault(endpoint.name, {})[endpoint.version] = sha256

    async def configure(self, endpoint: Endpoint) -> None:
        self.configured.add(endpoint.name)

    async def versions(self, name: str) -> tuple[int, ...]:
        return tuple(sorted(self.files.get(name, {})))

    async def discard(self, name: str, version: int | None = None) -> None:
        if version is None:
            self.files.pop(name, None)
        else:
            self.files.get(name, {}).pop(version, None)


class FakeServer:
    """A model server that loads the two highest versions it finds, as Triton is told to."""

    def __init__(self, repository: FakeRepository) -> None:
        self.repository = repository
        self.up = True
        self.ready: dict[str, set[int]] = {}
        self.broken: set[str] = set()
        self.unloaded: list[str] = []

    async def loaded(self) -> frozenset[tuple[str, int]]:
        self._answer()
        return frozenset((name, version) for name, versions in self.ready.items() for version in versions)

    async def load(self, name: str) -> None:
        self._answer()
        wanted = sorted(self.repository.files.get(name, {}))[-2:]
        if any(self.repository.files[name][version] in self.broken for version in wanted):
            raise FailedPrecondition("the model server refused to load it", reason=Reason.MODEL_NOT_READY)
        self.ready[name] = set(wanted)

    async def unload(self, name: str) -> None:
        self._answer()
        self.unloaded.append(name)
        self.ready.pop(name, None)

    async def is_ready(self, name: str, version: int) -> bool:
        self._answer()
        return version in self.ready.get(name, set())

    def restart(self) -> None:
        self.up = True
        self.ready.clear()

    def _answer(self) -> None:
        if not self.up:
            raise triton_away()
