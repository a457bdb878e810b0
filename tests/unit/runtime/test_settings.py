"""Settings: read from the environment, explained, and refused with the variable, the value and what is allowed."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest

from twinmesh_runtime.settings import (
    ServiceSettings,
    SettingsError,
    describe_settings,
    load_settings,
    public_settings,
    setting,
    unknown_variables,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServiceSettings):
    port: int = setting(7499, help="gRPC port.", unit="port", minimum=0, maximum=65535)
    database_url: str = setting(help="Where the database is.", unit="libpq URL", secret=True)
    pause_s: float = setting(0.5, help="Pause.", unit="s", minimum=0.1)
    folder: Path = setting(Path("/var/lib/twinmesh"), help="Folder.")
    names: tuple[str, ...] = setting((), help="Names.")
    sizes: tuple[int, ...] = setting((1, 2), help="Sizes.", minimum=1)
    limit: int | None = setting(None, help="Limit.")
    kind: Literal["a", "b"] = setting("a", help="Kind.")
    colour: Colour = setting(Colour.RED, help="Colour.")
    on: bool = setting(False, help="On.")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit > self.port:
            raise ValueError("limit must not exceed port")


def load(**variables: str) -> Settings:
    environ = {"TWINMESH_ECHO_DATABASE_URL": "postgresql://u:secret@h/d", **variables}
    return load_settings(Settings, "echo", environ)


def test_defaults_hold_where_nothing_is_set() -> None:
    settings = load()
    assert (settings.port, settings.pause_s, settings.names, settings.limit) == (7499, 0.5, (), None)
    assert settings.host == "127.0.0.1"


def test_every_type_is_read() -> None:
    settings = load(
        TWINMESH_ECHO_PORT=" 1234 ",
        TWINMESH_ECHO_PAUSE_S="2.5",
        TWINMESH_ECHO_FOLDER="/srv/x",
        TWINMESH_ECHO_NAMES="a, b,",
        TWINMESH_ECHO_SIZES="3,4",
        TWINMESH_ECHO_LIMIT="7",
        TWINMESH_ECHO_KIND="B",
        TWINMESH_ECHO_COLOUR="blue",
        TWINMESH_ECHO_ON="yes",
        TWINMESH_MESH_STORAGE="storage:7401",
    )
    assert settings.port == 1234
    assert settings.pause_s == 2.5
    assert settings.folder == Path("/srv/x")
    assert settings.names == ("a", "b")
    assert settings.sizes == (3, 4)
    assert settings.limit == 7
    assert settings.kind == "b"
    assert settings.colour is Colour.BLUE
    assert settings.on is True
    assert settings.mesh_storage == "storage:7401"
    assert load(TWINMESH_ECHO_LIMIT="").limit is None


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("TWINMESH_ECHO_PORT", "tcp://10.0.0.1:7401", "a whole number (port) from 0 to 65535"),
        ("TWINMESH_ECHO_PORT", "70000", "from 0 to 65535"),
        ("TWINMESH_ECHO_PAUSE_S", "0", "a number (s), at least 0.1"),
        ("TWINMESH_ECHO_PAUSE_S", "nan", "a number"),
        ("TWINMESH_ECHO_SIZES", "1,0", "a comma-separated list, each a whole number, at least 1"),
        ("TWINMESH_ECHO_KIND", "c", "one of a, b"),
        ("TWINMESH_ECHO_COLOUR", "green", "one of red, blue"),
        ("TWINMESH_ECHO_ON", "perhaps", "true or false"),
        ("TWINMESH_ECHO_MODE", "closed", "one of open"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(variable: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**{variable: value})
    [problem] = caught.value.problems
    assert variable in problem
    assert value in problem
    assert allowed in problem


def test_all_problems_are_told_at_once_and_secrets_never() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, "echo", {"TWINMESH_ECHO_PORT": "x", "TWINMESH_ECHO_ON": "y"})
    assert len(caught.value.problems) == 3
    assert any("TWINMESH_ECHO_DATABASE_URL is not set" in problem for problem in caught.value.problems)
    assert "secret" not in str(public_settings(load()))
    assert public_settings(load())["database_url"] == "(hidden)"


def test_invariants_between_fields_are_problems_too() -> None:
    with pytest.raises(SettingsError, match="limit must not exceed port"):
        load(TWINMESH_ECHO_LIMIT="9000")


def test_help_tells_every_variable_its_form_default_and_reason() -> None:
    text = describe_settings(Settings, "echo")
    assert "TWINMESH_ECHO_PAUSE_S\n      a number (s), at least 0.1; default 0.5\n      Pause." in text
    assert "TWINMESH_ECHO_DATABASE_URL\n      a text (libpq URL); required" in text
    assert "TWINMESH_MESH_INFERENCE" in text
    assert text.count("TWINMESH_") >= 26


def test_unknown_variables_are_found() -> None:
    environ = {"TWINMESH_ECHO_PROT": "1", "TWINMESH_ECHO_PORT": "1", "TWINMESH_OTHER_X": "1"}
    assert unknown_variables(Settings, "echo", environ) == ("TWINMESH_ECHO_PROT",)
