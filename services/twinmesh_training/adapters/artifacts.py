"""Artifacts on disk, named by what they contain: written apart, synced, renamed, so that no half file is ever seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import Final
from uuid import uuid4

from twinmesh_core.errors import DataLoss, Reason

CHUNK_BYTES: Final = 1024 * 1024


class DiskArtifacts:
    """See `twinmesh_training.domain.ports.ArtifactStore`.

    Args:
        directory: made if absent; shared by the service and its workers.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, content: bytes) -> str:
        """Store durably and return the sha256."""
        name = new_sha256(content).hexdigest()
        path = self._path(name)
        if path.exists() and new_sha256(path.read_bytes()).hexdigest() == name:
            return name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{name}.{uuid4().hex}.part")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return name

    def chunks(self, sha256: str, size_bytes: int) -> Iterator[bytes]:
        """Yield the content in parts of at most 1 MiB; the last part only if the whole is what it should be."""
        state, seen, held = new_sha256(), 0, b""
        try:
            with self._path(sha256).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    if held:
                        yield held
                    state.update(chunk)
                    seen += len(chunk)
                    held = chunk
        except OSError:
            raise _damaged() from None
        if seen != size_bytes or state.hexdigest() != sha256:
            raise _damaged()
        if held:
            yield held

    def _path(self, sha256: str) -> Path:
        return self._directory / sha256[:2] / f"{sha256}.onnx"


def _damaged() -> DataLoss:
    return DataLoss(
        "The stored model file is missing or damaged; restore the artifact directory from a backup, or train again.",
        reason=Reason.CHECKSUM_MISMATCH,
    )
