"""What an image installs is the built wheel, not this tree: nothing may be missing from it, and no test be in it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("libs", "services")


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """List the files of a freshly built wheel."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=150,
    )
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_every_package(wheel_files: set[str]) -> None:
    expected = {
        path.relative_to(ROOT / top).as_posix()
        for top in TOPS
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - wheel_files == set()


def test_the_wheel_holds_nothing_else(wheel_files: set[str]) -> None:
    packages = {path.name for top in TOPS for path in (ROOT / top).iterdir() if path.is_dir()}
    strangers = {name for name in wheel_files if name.partition("/")[0] not in packages}
    assert {name.partition("/")[0] for name in strangers} == {"twinmesh-0.1.0.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in strangers)
