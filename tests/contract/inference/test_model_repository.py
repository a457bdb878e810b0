"""The model repository on disk: what Triton finds there is whole, checked, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import text_format
from tests.unit.inference.fakes import FakeArtifact
from tests.unit.inference.graphs import Built, build, dynamics_signature
from tritonclient.grpc import model_config_pb2

from twinmesh_core.errors import DataLoss, Reason, Unavailable
from twinmesh_inference.adapters.repository import ModelFiles
from twinmesh_inference.domain.models import Endpoint
from twinmesh_inference.domain.naming import endpoint_of


def oil(version: int) -> tuple[Built, Endpoint]:
    built = build("oil", version, signature=dynamics_signature())
    return built, endpoint_of("default", "oil", version, built.version.signature, 32)


async def place(files: ModelFiles, built: Built, endpoint: Endpoint, content: bytes | None = None) -> None:
    artifact = FakeArtifact(len(built.onnx), built.version.artifact_sha256, built.onnx if content is None else content)
    await files.place(endpoint, artifact, size_bytes=built.version.artifact_bytes, sha256=built.version.artifact_sha256)


async def test_a_placed_version_is_held_and_described(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "models")
    await files.prepare()
    name = oil(1)[1].name
    for version in (1, 10, 9):
        built, endpoint = oil(version)
        assert not await files.holds(endpoint, built.version.artifact_sha256)
        await place(files, built, endpoint)
        assert await files.holds(endpoint, built.version.artifact_sha256)
        assert not await files.holds(endpoint, "another")
        await files.configure(endpoint)
    assert await files.versions(name) == (1, 9, 10)
    directory = tmp_path / "models" / name
    assert sorted(one.name for one in directory.iterdir()) == ["1", "10", "9", "config.pbtxt"]
    config = text_format.Parse((directory / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert config.backend == "onnxruntime"
    assert config.max_batch_size == 32
    assert config.version_policy.latest.num_versions == 2
    assert config.HasField("dynamic_batching")
    assert not config.instance_group
    assert [(one.name, list(one.dims)) for one in config.input] == [
        ("window", [8, 3]),
        ("calendar", [4]),
        ("future", [8, 1]),
    ]
    assert [(one.name, list(one.dims)) for one in config.output] == [("quantiles", [8, 3])]
    assert {one.data_type for one in (*config.input, *config.output)} == {model_config_pb2.TYPE_FP32}
    await files.discard(name, 9)
    await files.discard(name, 9)
    assert await files.versions(name) == (1, 10)
    await files.discard(name)
    assert not directory.exists()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"x" + b[1:], lambda b: b""])
async def test_a_damaged_file_never_gets_there(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    files = ModelFiles(tmp_path)
    built, endpoint = oil(1)
    with pytest.raises(DataLoss) as refused:
        await place(files, built, endpoint, damage(built.onnx))
    assert refused.value.reason == Reason.CHECKSUM_MISMATCH
    assert await files.versions(endpoint.name) == ()
    assert list((tmp_path / endpoint.name).iterdir()) == []


async def test_a_manifest_of_another_file_is_refused(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path)
    built, endpoint = oil(1)
    with pytest.raises(DataLoss):
        await files.place(
            endpoint,
            FakeArtifact(len(built.onnx), "0" * 64, built.onnx),
            size_bytes=len(built.onnx),
            sha256=built.version.artifact_sha256,
        )


async def test_leftovers_of_a_killed_process_are_removed_at_start(tmp_path: Path) -> None:
    for name in ("incoming-3-old", "incoming-4-young", "2"):
        (tmp_path / "m" / name).mkdir(parents=True)
    os.utime(tmp_path / "m" / "incoming-3-old", (0, 0))
    files = ModelFiles(tmp_path)
    await files.prepare()
    assert await files.versions("m") == (2,)
    assert sorted(one.name for one in (tmp_path / "m").iterdir()) == ["2", "incoming-4-young"]


async def test_a_repository_that_cannot_be_written_is_an_outage_with_a_name(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    built, endpoint = oil(1)
    with pytest.raises(Unavailable) as refused:
        await place(ModelFiles(blocked), built, endpoint)
    assert refused.value.metadata["dependency"] == "model_repository"
    assert str(tmp_path) not in refused.value.message
