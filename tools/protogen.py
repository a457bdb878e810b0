"""Generate the Python code of the contract from protos/, or prove that the committed code is current.

    python tools/protogen.py            write libs/twinmesh/ (only files whose content changes)
    python tools/protogen.py --check    compare without writing; exit 1 and name what differs

The generators are pinned (constraints.txt): the runtime must import beside tritonclient on protobuf 6.33.
What is written: `<name>_pb2.py` with `<name>_pb2.pyi` for every file, `<name>_pb2_grpc.py` with its stub for files
that declare a service, one `__init__.py` per package and `py.typed`. Anything else below libs/twinmesh is removed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from google.rpc import status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "libs" / "twinmesh"
PINNED = {"grpcio-tools": "1.81.1", "mypy-protobuf": "5.1.0"}
DECLARES_SERVICE = re.compile(r"^service\s+\w+", re.MULTILINE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 when the committed code is (now) current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 when the committed code is stale")
    check: bool = parser.parse_args(argv).check
    if mismatch := wrong_generators():
        print("protogen: " + "; ".join(mismatch) + ". Run `make setup`.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="twinmesh-protos-") as scratch:
        if not generate(Path(scratch)):
            return 2
        fresh = read_tree(Path(scratch) / "twinmesh")
    committed = read_tree(TARGET)
    changed = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    if check:
        for name in changed:
            print(f"protogen: libs/twinmesh/{name} is {drift(name, fresh, committed)}", file=sys.stderr)
        if changed:
            print("protogen: run `make protos` and commit the result", file=sys.stderr)
        return 1 if changed else 0
    for name in changed:
        apply(name, fresh)
    remove_empty_directories(TARGET)
    print(f"protogen: {len(fresh)} files, {len(changed)} changed")
    return 0


def wrong_generators() -> list[str]:
    """Name each generator whose installed version is not the pinned one; their output differs by version."""
    return [f"{name} is {version(name)}, want {want}" for name, want in PINNED.items() if version(name) != want]


def generate(out: Path) -> bool:
    """Compile every proto into `out`, which must exist; False when the compiler has printed an error."""
    sources = sorted(PROTOS.rglob("*.proto"))
    with_service = [path for path in sources if DECLARES_SERVICE.search(path.read_text(encoding="utf-8"))]
    include = [
        f"-I{PROTOS}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"-I{Path(status_pb2.__file__).parents[2]}",  # google/rpc/*.proto of googleapis-common-protos
    ]
    scripts = Path(sys.executable).parent
    messages = [
        f"--python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
    ]
    services = [
        f"--grpc_python_out={out}",
        f"--mypy_grpc_out=quiet:{out}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
    ]
    if compile_protos(include, messages, sources) != 0 or compile_protos(include, services, with_service) != 0:
        return False
    write_packages(out / "twinmesh")
    return True


def compile_protos(include: Sequence[str], plugins: Sequence[str], sources: Sequence[Path]) -> int:
    """Call the compiler once for `sources`; its exit status, 0 also when there is nothing to compile."""
    if not sources:
        return 0
    status: int = protoc.main(["protoc", *include, *plugins, *(str(path) for path in sources)])
    return status


def write_packages(package_root: Path) -> None:
    """Give every generated directory an `__init__.py`, and the whole a `py.typed`."""
    package_root.mkdir(exist_ok=True)
    for directory in [package_root, *directories(package_root)]:
        dotted = ".".join(directory.relative_to(package_root.parent).parts)
        text = f'"""Generated from protos/ by tools/protogen.py: package {dotted}. Do not edit."""\n'
        (directory / "__init__.py").write_text(text, encoding="utf-8")
    (package_root / "py.typed").write_bytes(b"")


def directories(root: Path) -> Iterator[Path]:
    """Yield every directory below `root` that is not a bytecode cache."""
    return (path for path in sorted(root.rglob("*")) if path.is_dir() and path.name != "__pycache__")


def read_tree(root: Path) -> dict[str, bytes]:
    """Read all files below `root` by their relative name, leaving out bytecode caches."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def drift(name: str, fresh: dict[str, bytes], committed: dict[str, bytes]) -> str:
    """Say in one word how the committed file differs from the fresh one."""
    if name not in committed:
        return "missing"
    return "left over" if name not in fresh else "stale"


def apply(name: str, fresh: dict[str, bytes]) -> None:
    """Write or remove one file of the target; a reader never sees half a file."""
    path = TARGET / name
    if name not in fresh:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".new")
    half.write_bytes(fresh[name])
    half.replace(path)


def remove_empty_directories(root: Path) -> None:
    """Remove directories that hold no generated file any more."""
    for directory in sorted(directories(root), reverse=True):
        if not any(path.is_file() for path in directory.rglob("*") if "__pycache__" not in path.parts):
            for left in sorted(directory.rglob("*"), reverse=True):
                left.unlink() if left.is_file() else left.rmdir()
            directory.rmdir()


if __name__ == "__main__":
    raise SystemExit(main())
