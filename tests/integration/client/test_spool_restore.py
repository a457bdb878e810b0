"""A mesh that is restored from a backup gets again, from the spool, what the backup did not have."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from tests.integration.client.conftest import RunningMesh
from tests.integration.client.log_values import values_of

import twinmesh_client as tm
from twinmesh_client.aio.mesh import connect_async
from twinmesh_client.aio.producer import open_writer_async
from twinmesh_client.gathering import column_batch
from twinmesh_local.accounts import remove_home

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]
TYPE = tm.twin_type("restored@1", [tm.channel("n")])


@pytest.fixture
def data_dir():
    base = Path(tempfile.mkdtemp(prefix="twinmesh-restore-"))
    base.chmod(0o711)
    yield base / "data"
    for name in ("data", "backup"):
        remove_home(base / name / "postgresql")
    shutil.rmtree(base, ignore_errors=True)


def copied(source: Path, target: Path) -> None:
    """Copy the directory of a mesh that is stopped, owners and modes included."""
    if target.exists():
        remove_home(target / "postgresql")
        shutil.rmtree(target)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


async def test_what_a_restored_mesh_lacks_is_sent_again(data_dir, tmp_path):
    backup = data_dir.with_name("backup")

    async def lived(first: int, count: int) -> list[float]:
        """Start the mesh, write numbers through the spool, read all that it has, and stop it."""
        running = RunningMesh(data_dir)
        running.start()
        try:
            async with connect_async(running.target, timeout_s=20) as mesh:
                await mesh.types.create(TYPE)
                await mesh.twins.create("restored", type="restored@1", if_absent=True)
                async with open_writer_async(
                    "restored", target=running.target, spool=tmp_path / "spool", spool_keep_bytes=1_000_000
                ) as writer:
                    for number in range(first, first + count):
                        values = np.array([float(number)])
                        await writer.write(column_batch("restored", "n", [1_700_000_000_000_000 + number], values))
                    await writer.flush()
                return (await values_of(mesh, "restored")).get("n", [])
        finally:
            running.stop()

    assert await lived(0, 10) == list(range(10))
    copied(data_dir, backup)
    assert await lived(10, 10) == list(range(20))
    copied(backup, data_dir)
    assert await lived(20, 5) == list(range(25))
