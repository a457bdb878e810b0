"""The committed code is what protos/ says, and the proto files follow the layout."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))


def test_the_generated_code_has_no_drift() -> None:
    done = subprocess.run(
        [sys.executable, "tools/protogen.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_a_proto_lies_where_its_package_says(path: Path) -> None:
    package = re.search(r"^package ([a-z0-9_.]+);", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert package is not None
    assert path.parent.relative_to(ROOT / "protos").as_posix() == package.group(1).replace(".", "/")


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_every_rpc_has_its_own_request_and_response(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for rpc, request, response in re.findall(
        r"rpc (\w+)\((?:stream )?([\w.]+)\)\s+returns \((?:stream )?([\w.]+)\)", text
    ):
        assert (request, response) == (f"{rpc}Request", f"{rpc}Response")
