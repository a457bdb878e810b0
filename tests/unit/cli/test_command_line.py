"""The command line: grammar, exit codes, errors without a traceback, a quick start."""

import json
import subprocess
import sys
import time

import pytest

from twinmesh_cli import __main__ as cli
from twinmesh_cli.commands import types
from twinmesh_cli.errors import CommandFailedError, UsageError
from twinmesh_cli.options import build_parser, spelled_out
from twinmesh_core.errors import InvalidArgument, NotFound, Reason, invalid_field
from twinmesh_core.registry import TwinType
from twinmesh_core.registry_rules import remedy_for_unknown_twin

COMMANDS = (
    *("up", "demo", "doctor", "smoke", "env", "types", "twins", "write", "latest"),
    *("range", "watch", "train", "models", "forecast", "desired", "quarantine", "delete", "erase"),
    *("statistics", "retention", "import", "connect", "host"),
)


@pytest.fixture(autouse=True)
def _no_mesh(monkeypatch, tmp_path):
    monkeypatch.setenv("TWINMESH_CONFIG_DIR", str(tmp_path))
    for name in ("TWINMESH_TARGET", "TWINMESH_CONTEXT", "TWINMESH_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(list(arguments))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_help_names_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(f"\n    {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "demo"])
def test_every_command_explains_itself(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"usage: twinmesh {command}" in out


def test_help_starts_fast_and_loads_nothing_heavy():
    program = (
        "import sys\nfrom twinmesh_cli.__main__ import main\nmain(['--help'])\n"
        "heavy = {'pandas', 'torch', 'matplotlib', 'grpc', 'rich', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - began)
    # 0.1 s alone; other tests may hold the processor.
    assert min(seconds) < 1.0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["twins"],
        ["twins", "create", "T1"],
        ["range", "T1", "--limit", "many"],
        ["train"],
    ],
)
def test_wrong_usage_is_2(capsys, arguments):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "usage: twinmesh" in err


def test_no_mesh_is_1_and_says_how_to_start_one(capsys):
    status, out, err = run(capsys, "twins", "list")
    assert (status, out) == (1, "")
    assert err.startswith("error: No mesh is known")
    assert "twinmesh up" in err


def test_errors_for_programs_are_json(capsys):
    for arguments in (["--json", "twins", "list"], ["twins", "list", "--json"]):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (1, "")
        assert json.loads(err)["error"]["code"] == "UNAVAILABLE"


def test_options_stand_before_or_after_the_command():
    parser = build_parser()
    before = parser.parse_args(["--target", "a:1", "--json", "latest", "T1"])
    after = parser.parse_args(["latest", "T1", "--target", "a:1", "--json"])
    assert (before.target, before.json) == (after.target, after.json) == ("a:1", True)
    assert parser.parse_args(["latest", "T1"]).timeout == "30s"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["models"], ["models", "list"]),
        (["models", "hotspot"], ["models", "versions", "hotspot"]),
        (["models", "--json"], ["models", "list", "--json"]),
        (["models", "promote", "a@1"], ["models", "promote", "a@1"]),
        (["--context", "models", "models", "x"], ["--context", "models", "models", "versions", "x"]),
        (["latest", "models"], ["latest", "models"]),
        (["models", "--help"], ["models", "--help"]),
    ],
)
def test_models_takes_a_name(given, meant):
    assert spelled_out(given) == meant


def with_failure(monkeypatch, error: BaseException) -> None:
    class Parser:
        def parse_args(self, _arguments):
            raise error

    monkeypatch.setattr(cli, "build_parser", Parser)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UsageError("say which", remedy="twinmesh x"), 2, "error: say which\n  -> twinmesh x\n"),
        (CommandFailedError("no", remedy="y"), 1, "error: no\n  -> y\n"),
        (
            NotFound("no such twin", reason=Reason.TWIN_NOT_FOUND, metadata={"remedy": "twinmesh twins create T1"}),
            1,
            "error: no such twin [TWIN_NOT_FOUND]\n  -> twinmesh twins create T1\n",
        ),
        (invalid_field("oil", "is hot"), 1, "error: oil: is hot [INVALID_FIELD]\n"),
        (
            ExceptionGroup("g", [ExceptionGroup("h", [InvalidArgument("bad")])]),
            1,
            "error: bad [INVALID_FIELD]\n",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.json"), 1, "error: x.json: no such file or directory\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), 130, ""),
    ],
)
def test_every_error_is_told_in_words(capsys, monkeypatch, error, status, said):
    with_failure(monkeypatch, error)
    assert run(capsys, "x") == (status, "", said)


def test_a_defect_is_no_traceback_unless_asked_for(capsys, monkeypatch):
    with_failure(monkeypatch, ZeroDivisionError("secret"))
    status, _, err = run(capsys, "x")
    assert status == 1
    assert "defect" in err
    assert "TWINMESH_DEBUG=1" in err
    assert "secret" not in err
    assert "Traceback" not in err
    monkeypatch.setenv("TWINMESH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["x"])


def test_a_closed_pipe_is_no_error():
    program = "import sys; from twinmesh_cli.__main__ import main; sys.exit(main(['types', 'example']))"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{program}" | true'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_remedies_of_the_services_are_commands_as_they_are_printed():
    parser = build_parser()
    remedies = (
        remedy_for_unknown_twin("pump-7", TwinType(twin_type_id="pump", version=1)),
        "twinmesh types create FILE",
        "twinmesh train --twin T1",
        "twinmesh models hotspot",
        "twinmesh quarantine list",
        "twinmesh up",
    )
    for remedy in remedies:
        program, *arguments = remedy.split()
        assert program == "twinmesh"
        assert callable(parser.parse_args(spelled_out(arguments)).run)


def test_a_missing_extra_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "twinmesh_local.foreground", None)
    status, _, err = run(capsys, "up")
    assert status == 1
    assert "pip install 'twinmesh[local]'" in err


def test_doctor_needs_no_mesh(capsys):
    _, out, _ = run(capsys, "doctor", "--json")
    findings = json.loads(out)["findings"]
    assert {"check", "level", "found", "remedy"} <= findings[0].keys()


# --- twin types from files ---


def test_the_example_is_a_type(capsys, tmp_path):
    status, out, _ = run(capsys, "types", "example")
    assert status == 0
    found = types.parse(json.loads(out))
    assert (found.twin_type_id, found.version) == ("pump", 1)
    assert [c.name for c in found.channels] == ["flow", "bearing", "speed", "running"]
    assert types.parse(types.document(found)) == found


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "needs a name"),
        ({"type": "a@1", "chanels": []}, "no field 'chanels'"),
        ({"type": "a@1", "channels": [{"name": "x", "untis": "Cel"}]}, r"channels\[0\] has no field 'untis'"),
        ({"type": "a@1", "channels": [{"unit": "Cel"}]}, 'each with a "name"'),
        ({"type": "a@1", "channels": "x"}, "must be a list"),
    ],
)
def test_a_wrong_type_file_is_named(body, said):
    with pytest.raises(UsageError, match=said):
        types.parse(body)


def test_a_file_that_is_no_json_names_the_line(capsys, tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{\n "type": \n}')
    with pytest.raises(UsageError, match="line 3"):
        types.read_json(str(path))
