"""Each service has the same rooms, and every module opens with a promise."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKENS = ("inference", "ingestion", "statesync", "storage", "training")
ROOMS = {"adapters", "domain", "migrations", "rpc"}
OPTIONAL_ROOMS = {"migrations"}
FILES = {"__init__.py", "__main__.py", "main.py", "settings.py"}
MOST_LINES = 400


SHIPPED = ("libs", "services", "tools", "benchmarks", "examples")


def our_modules(*tops: str) -> Iterator[Path]:
    """Yield every Python file of ours; generated code is not ours."""
    for top in tops or (*SHIPPED, "tests"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if (ROOT / "libs" / "twinmesh") not in path.parents and "__pycache__" not in path.parts:
                yield path


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("token", TOKENS)
def test_a_service_has_its_rooms_and_no_other(token: str) -> None:
    service = ROOT / "services" / f"twinmesh_{token}"
    found = {path.name for path in service.iterdir() if path.is_dir() and path.name != "__pycache__"}
    # A room grows by splitting a module into a package of the same name, never by a sixth room.
    files_as_packages = {name.removesuffix(".py") for name in FILES}
    assert found - ROOMS - files_as_packages == set(), "a room that the layout does not know"
    assert (ROOMS - OPTIONAL_ROOMS) - found == set(), "a room is missing"
    assert {name for name in FILES if not (service / name).exists() and not (service / name[:-3]).is_dir()} == set()
    assert (service / "domain" / "ports.py").exists() or (service / "domain" / "ports").is_dir()


@pytest.mark.parametrize("token", TOKENS)
def test_a_service_with_tables_numbers_its_migrations_without_a_gap(token: str) -> None:
    migrations = ROOT / "services" / f"twinmesh_{token}" / "migrations"
    numbers = sorted(int(path.name.split("_")[0]) for path in migrations.glob("*.sql"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_there_is_no_service_beyond_the_five() -> None:
    found = {path.name for path in (ROOT / "services").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found == {f"twinmesh_{token}" for token in TOKENS}


def test_every_module_opens_with_a_docstring() -> None:
    silent = [
        name_of(path)
        for path in our_modules()
        if path.stat().st_size > 0 and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_a_module_fits_in_one_reading() -> None:
    long = {
        name_of(path): lines
        for path in our_modules()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


def test_nothing_is_left_for_later_in_the_code() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "raise Not" + "ImplementedError", "X" + "XX")
    found = [
        f"{name_of(path)}: {word}"
        for path in our_modules(*SHIPPED)
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


def test_every_package_tells_its_types() -> None:
    packages = [path for top in ("libs", "services") for path in (ROOT / top).glob("twinmesh*") if path.is_dir()]
    assert [name_of(path) for path in packages if not (path / "py.typed").exists()] == []
