"""Each service starts from its own extra alone, and a client from the base install.

The whole development environment is installed here, so a missing requirement would not show. Each package is
therefore imported, with all its modules, in a process that refuses every distribution its extra does not bring.
"""

import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# importing torch from a cold disk takes its time
pytestmark = pytest.mark.timeout(180)

SERVICES = ("inference", "ingestion", "statesync", "storage", "training")
OURS = {
    "twinmesh",
    *(f"twinmesh_{lib}" for lib in ("cli", "client", "connectors", "core", "demo", "local", "runtime", "testing")),
    *(f"twinmesh_{token}" for token in SERVICES),
}
# What must never come along: the weight that would make five images one.
HEAVY = {
    "inference": {"torch", "sklearn", "redis"},
    "ingestion": {"torch", "sklearn", "tritonclient", "redis", "psycopg"},
    "statesync": {"torch", "sklearn", "tritonclient", "redis"},
    "storage": {"torch", "sklearn", "tritonclient"},
    "training": {"tritonclient", "redis"},
}
IMPORT_ALL = r"""
import importlib, pkgutil, sys
package, refused = sys.argv[1], set(sys.argv[2].split(","))

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is not part of this extra", name=name)

sys.meta_path.insert(0, Gate())
root = importlib.import_module(package)
for module in pkgutil.walk_packages(getattr(root, "__path__", ()), package + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


def closure(extra: str) -> set[str]:
    """List the distributions, by canonical name, that `pip install twinmesh[extra]` brings; "" is the base."""
    found: set[str] = set()
    waiting: list[tuple[str, frozenset[str]]] = [("twinmesh", frozenset({extra} if extra else ()))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        name, extras = step
        found.add(name)
        for line in requires(name) or []:
            requirement = Requirement(line)
            wanted = [{"extra": one} for one in extras] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(one) for one in [*wanted, {"extra": ""}]):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def import_names(distributions: set[str]) -> set[str]:
    """List the top-level modules that these distributions install."""
    return {
        module
        for module, owners in packages_distributions().items()
        if any(canonicalize_name(owner) in distributions for owner in owners)
    }


def import_with_only(package: str, extra: str, ours: set[str]) -> subprocess.CompletedProcess[str]:
    """Import all of `package` in a new process that knows of `ours` and of what the extra brings."""
    return import_without(package, (set(packages_distributions()) - import_names(closure(extra))) | (OURS - ours))


def import_without(package: str, refused: set[str]) -> subprocess.CompletedProcess[str]:
    """Import all of `package` in a new process that refuses these top-level modules."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, package, ",".join(sorted(refused))],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.parametrize(
    "token", [pytest.param(token, marks=() if token == "statesync" else pytest.mark.slow) for token in SERVICES]
)
def test_a_service_imports_from_its_own_extra_alone(token: str) -> None:
    package = f"twinmesh_{token}"
    ours = {package, "twinmesh", "twinmesh_core", "twinmesh_runtime", "twinmesh_client"}
    done = import_with_only(package, token, ours)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("token", SERVICES)
def test_an_extra_brings_no_foreign_weight(token: str) -> None:
    assert import_names(closure(token)) & HEAVY[token] == set()


def test_the_sdk_imports_from_the_base_install() -> None:
    done = import_with_only("twinmesh_client", "", {"twinmesh_client", "twinmesh", "twinmesh_core"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("runner", ""),
        pytest.param("config", "", marks=pytest.mark.slow),
        pytest.param("files.importing", "", marks=pytest.mark.slow),
        ("files.parquet", "files"),
        pytest.param("host", "host", marks=pytest.mark.slow),
    ],
)
def test_a_connector_imports_from_its_own_extra_alone(module: str, extra: str) -> None:
    ours = {"twinmesh_connectors", "twinmesh_client", "twinmesh", "twinmesh_core"}
    done = import_with_only(f"twinmesh_connectors.{module}", extra, ours)
    assert done.returncode == 0, done.stderr


def test_the_command_line_imports_from_the_base_install() -> None:
    done = import_with_only("twinmesh_cli", "", {"twinmesh_cli", "twinmesh_client", "twinmesh", "twinmesh_core"})
    assert done.returncode == 0, done.stderr


def test_core_imports_numpy_and_the_standard_library_only() -> None:
    done = import_without("twinmesh_core", (set(packages_distributions()) - {"numpy"}) | (OURS - {"twinmesh_core"}))
    assert done.returncode == 0, done.stderr
