"""The directory that Triton loads models from; a load sees a version whole or not at all.

``<name>/config.pbtxt`` and ``<name>/<version>/model.onnx``: the layout is the same on a laptop's CPU and on GPUs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from uuid import uuid4

from twinmesh_core.errors import DataLoss, Reason, Unavailable
from twinmesh_inference.domain.models import Endpoint, TensorSpec
from twinmesh_inference.domain.ports import Artifact

MODEL_FILE: Final = "model.onnx"
CONFIG_FILE: Final = "config.pbtxt"
KEPT_VERSIONS: Final = 2
"""Versions that Triton keeps loaded of a name: the one that serves, and the one before it or the one to come."""
_INCOMING: Final = "incoming-"
_LEFTOVER_AGE_S: Final = 3_600.0
_READ_BYTES: Final = 1024 * 1024
_P = ParamSpec("_P")
_T = TypeVar("_T")


class ModelFiles:
    """The model repository on a file system that this service and Triton share.

    Args:
        root: the repository; created if absent.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def prepare(self) -> None:
        """Create the directory and remove what an earlier process left half-written."""
        await _off_loop(self._prepare)

    async def holds(self, endpoint: Endpoint, sha256: str) -> bool:
        """Say whether the version's file is there and is this one; see `ModelRepository`."""
        return await _off_loop(_digest, self._version_dir(endpoint) / MODEL_FILE) == sha256

    async def place(self, endpoint: Endpoint, artifact: Artifact, *, size_bytes: int, sha256: str) -> None:
        """Write the version so that a load sees all of it or nothing; see `ModelRepository`."""
        if artifact.sha256 != sha256 or artifact.size_bytes != size_bytes:
            raise _damaged()
        # Not a number, so Triton never takes it for a version.
        incoming = self._root / endpoint.name / f"{_INCOMING}{endpoint.version}-{uuid4().hex}"
        try:
            await self._receive(incoming, artifact, size_bytes, sha256)
            await _off_loop(_install, incoming, self._version_dir(endpoint))
        finally:
            await _off_loop(shutil.rmtree, incoming, ignore_errors=True)

    async def configure(self, endpoint: Endpoint) -> None:
        """Write the configuration that all versions under this name share, if it is not there already."""
        await _off_loop(_write_config, self._root / endpoint.name, config_of(endpoint))

    async def versions(self, name: str) -> tuple[int, ...]:
        """Return the versions there under `name`, ascending."""
        return await _off_loop(_versions, self._root / name)

    async def discard(self, name: str, version: int | None = None) -> None:
        """Remove a version, or with None all of `name`; no error if it is not there."""
        target = self._root / name if version is None else self._root / name / str(version)
        await _off_loop(_remove, target)

    def _version_dir(self, endpoint: Endpoint) -> Path:
        return self._root / endpoint.name / str(endpoint.version)

    def _prepare(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for leftover in self._root.glob(f"*/{_INCOMING}*"):
            # A young one may be another replica's, still being written.
            if leftover.stat().st_mtime < time.time() - _LEFTOVER_AGE_S:
                shutil.rmtree(leftover, ignore_errors=True)

    async def _receive(self, incoming: Path, artifact: Artifact, size_bytes: int, sha256: str) -> None:
        await _off_loop(incoming.mkdir, parents=True)
        digest, received = hashlib.sha256(), 0
        file = await _off_loop((incoming / MODEL_FILE).open, "wb")
        try:
            async for chunk in artifact.chunks():
                received += len(chunk)
                if received > size_bytes:
                    raise _damaged()
                digest.update(chunk)
                await _off_loop(file.write, chunk)
            if received != size_bytes or digest.hexdigest() != sha256:
                raise _damaged()
            await _off_loop(file.flush)
            await _off_loop(os.fsync, file.fileno())
        finally:
            await _off_loop(file.close)


def config_of(endpoint: Endpoint) -> str:
    """Return Triton's model configuration: what the signature says, and nothing that ties it to one kind of machine."""
    inputs = ",\n".join(_tensor(one) for one in endpoint.inputs)
    return (
        f'name: "{endpoint.name}"\n'
        'backend: "onnxruntime"\n'
        f"max_batch_size: {endpoint.max_batch_size}\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{_tensor(endpoint.output)}\n]\n"
        "dynamic_batching {}\n"
        f"version_policy {{ latest {{ num_versions: {KEPT_VERSIONS} }} }}\n"
    )


def _tensor(spec: TensorSpec) -> str:
    dims = ", ".join(map(str, spec.dims))
    return f'  {{ name: "{spec.name}", data_type: TYPE_FP32, dims: [ {dims} ] }}'


async def _off_loop(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function that touches the disk without holding up the event loop."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except OSError as error:
        raise Unavailable(
            f"The model repository cannot be read or written ({error.strerror or 'cause unknown'}); give it space and "
            "rights.",
            reason=Reason.DEPENDENCY_UNAVAILABLE,
            metadata={"dependency": "model_repository"},
        ) from error


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _versions(directory: Path) -> tuple[int, ...]:
    if not directory.is_dir():
        return ()
    return tuple(sorted(int(one.name) for one in directory.iterdir() if one.name.isdigit()))


def _install(incoming: Path, target: Path) -> None:
    _remove(target)
    incoming.rename(target)


def _write_config(directory: Path, text: str) -> None:
    path = directory / CONFIG_FILE
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    incoming = directory / f"{_INCOMING}{uuid4().hex}.pbtxt"
    incoming.write_text(text, encoding="utf-8")
    incoming.replace(path)


def _remove(target: Path) -> None:
    if not target.exists():
        return
    # Renamed first: a load that happens now sees the version whole or not at all.
    doomed = target.parent / f"{_INCOMING}removed-{uuid4().hex}"
    target.rename(doomed)
    shutil.rmtree(doomed)


def _damaged() -> DataLoss:
    return DataLoss(
        "the file that arrived is not the one that was registered: its size or sha256 differs; train the model again",
        reason=Reason.CHECKSUM_MISMATCH,
    )
