"""What people and programs see."""

import json
from datetime import UTC, datetime, timedelta
from enum import Enum

import numpy as np
import pytest

from twinmesh_cli.commands.models import _spread
from twinmesh_cli.commands.write import parse_value, producer_of
from twinmesh_cli.errors import UsageError
from twinmesh_cli.output import Output, plain, show_number, show_time, sparkline
from twinmesh_cli.session import pairs
from twinmesh_client.modelling import channel, twin_type
from twinmesh_client.replicas import Position


class Colour(Enum):
    RED = 1


def test_everything_becomes_plain_json():
    value = {
        "nan": float("nan"),
        "array": np.array([1.0, np.inf]),
        "time": datetime(2026, 11, 23, tzinfo=UTC),
        "span": timedelta(minutes=1),
        "enum": Colour.RED,
        "object": Position(incarnation="i", offset=3),
        "set": {1},
        "none": None,
        "truth": True,
    }
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "nan": None,
        "array": [1.0, None],
        "time": "2026-11-23T00:00:00Z",
        "span": 60.0,
        "enum": "RED",
        "object": {"incarnation": "i", "offset": 3},
        "set": [1],
        "none": None,
        "truth": True,
    }


def test_a_table_in_a_pipe_is_never_cut(capsys):
    Output(as_json=False).table(("name", "n"), [("[bold]x[/]" + "y" * 150, "1,000"), ("z", "-")])
    lines = capsys.readouterr().out.splitlines()
    assert any("[bold]x[/]" + "y" * 150 in line for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_json_keeps_tables_and_lines_to_itself(capsys):
    out = Output(as_json=True)
    out.line("for people")
    out.table(("a",), [("b",)])
    out.document({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_an_empty_table_says_so(capsys):
    Output(as_json=False).table(("a",), [], empty="nothing yet")
    assert capsys.readouterr().out == "nothing yet\n"


def test_numbers_and_times_for_people():
    assert [show_number(v) for v in (61.499999999, float("nan"), None, True, 3, "x")] == [
        "61.5", "-", "-", "True", "3", "x",
    ]  # fmt: skip
    assert show_time(None) == "-"
    assert show_time(datetime(2026, 1, 1, 0, 0, 0, 5_000, tzinfo=UTC)) == "2026-01-01 00:00:00.005Z"


def test_sparklines():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert len(sparkline(list(range(500)), width=60)) == 60
    assert sparkline([float("nan")]) == " "
    assert sparkline([]) == ""


def test_rows_of_a_forecast_are_spread_evenly_with_the_last():
    assert _spread(48, 4) == [0, 16, 31, 47]
    assert _spread(3, 0) == [0, 1, 2]
    assert _spread(48, 1) == [47]


def test_pairs():
    assert pairs(["a=1", "b=x=y"], "value", "a=1") == {"a": "1", "b": "x=y"}
    assert pairs(["a=b=oil"], "--map", "") == {"a=b": "oil"}
    with pytest.raises(UsageError, match="NAME=VALUE"):
        pairs(["oil"], "value", "oil=61.5")


def test_values_are_taken_as_their_channel_is():
    kind = twin_type(
        "t@1", [channel("oil"), channel("note", kind="text"), channel("on", kind="bool"), channel("raw", kind="json")]
    )
    assert parse_value("61.5", "oil", kind) == 61.5
    assert parse_value("30000", "oil", kind) == 30_000
    assert parse_value("42", "note", kind) == "42"
    assert parse_value("True", "on", kind) is True
    assert parse_value('{"a": 1}', "raw", kind) == {"a": 1}
    assert parse_value("hello", "unknown", None) == "hello"
    with pytest.raises(UsageError, match="oil is a GAUGE channel"):
        parse_value("hot", "oil", kind)
    with pytest.raises(UsageError, match="takes JSON"):
        parse_value("{", "raw", kind)


def test_a_file_is_one_producer_for_a_twin(tmp_path):
    assert producer_of(tmp_path / "a.csv", "T1") == producer_of(tmp_path / "b" / ".." / "a.csv", "T1")
    assert producer_of(tmp_path / "a.csv", "T1") != producer_of(tmp_path / "a.csv", "T2")
    assert len(producer_of(tmp_path / "a.csv", "T" * 128)) <= 128
