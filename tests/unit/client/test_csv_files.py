"""A recorded file is read as it is meant; what cannot be read is named by line, column, cell and remedy."""

import gzip

import numpy as np
import pytest

from twinmesh_client.csv_files import CsvTable, read_csv
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind


@pytest.fixture
def read(tmp_path):
    def reader(text: str | bytes, *, name: str = "x.csv", **options) -> CsvTable:
        path = tmp_path / name
        data = text.encode() if isinstance(text, str) else text
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return read_csv(path, **options)

    return reader


PLAIN = "time,oil,on\n2026-11-23 08:00:00,61.5,true\n2026-11-23 08:01:00,,false\n"


def test_a_plain_file(read):
    table = read(PLAIN, time_zone="Europe/Berlin")
    assert [str(t) for t in table.frame.index] == ["2026-11-23 07:00:00+00:00", "2026-11-23 07:01:00+00:00"]
    assert table.frame["oil"].tolist()[0] == 61.5
    assert np.isnan(table.frame["oil"].tolist()[1])
    assert table.frame["on"].tolist() == ["true", "false"]
    assert (table.time_column, table.value_count, table.broken) == ("time", 3, ())


def test_compressed_with_a_mark_and_semicolons_and_decimal_commas(read):
    table = read("﻿Zeit;Öl\n2026-11-23T08:00:00Z;61,5\n".encode(), name="x.csv.gz")
    assert table.frame["Öl"].tolist() == [61.5]
    assert table.time_meaning == "each with its offset"


def test_the_time_is_found_by_its_name_or_said(read):
    assert read("oil,Timestamp\n1,2026-01-01T00:00:00Z\n").time_column == "Timestamp"
    assert read("when,oil\n2026-01-01T00:00:00Z,1\n").time_column == "when"
    assert read("a,b\n1,2026-01-01T00:00:00Z\n", time_column="b").time_column == "b"
    with pytest.raises(InvalidArgument, match=r"'c' is no column; there are a, b .*--time-column"):
        read("a,b\n1,2\n", time_column="c")


@pytest.mark.parametrize(
    ("number", "unit"),
    [("1767225600", "s"), ("1767225600000", "ms"), ("1767225600000000", "us"), ("1767225600e9", "ns")],
)
def test_numbers_since_1970(read, number, unit):
    table = read(f"time,oil\n{number},1\n")
    assert str(table.frame.index[0]) == "2026-01-01 00:00:00+00:00"
    assert table.time_meaning == f"{unit} since 1970"


def test_a_format_may_be_said(read):
    table = read("time,oil\n23.11.2026 08:00,1\n", time_format="%d.%m.%Y %H:%M", time_zone="UTC")
    assert str(table.frame.index[0]) == "2026-11-23 08:00:00+00:00"
    with pytest.raises(InvalidArgument, match=r"'23.11.2026 08:00' in line 2; .*--time-format"):
        read("time,oil\n23.11.2026 08:00,1\n", time_zone="UTC")


def test_naive_times_need_a_zone(read):
    with pytest.raises(
        InvalidArgument, match=r"column 'time' have no offset, e.g. '2026-11-23 08:00:00'.*--tz Europe/Berlin"
    ):
        read(PLAIN)
    with pytest.raises(InvalidArgument, match="'Mars/Base' is no IANA time zone"):
        read(PLAIN, time_zone="Mars/Base")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2026-11-23T08:01:00Z,hot,1", r"line 3, column 'oil': 'hot' is no number"),
        ("2026-11-23T08:01:00Z,1", r"line 3: '2026-11-23T08:01:00Z,1' has 2 cells, but the header has 3"),
        ("2026-11-23T08:01:00Z,1,2,3", "line 3: .* has 4 cells"),
        ("2026-13-23T08:01:00Z,1,2", r"line 3, column 'time': '2026-13-23T08:01:00Z' is no time"),
        ("2026-11-23T08:01:00,1,2", r"line 3, column 'time': .* with an offset, as the others are"),
    ],
)
def test_a_broken_row_is_named_or_skipped_and_counted(read, row, said):
    text = f"time,oil,load\n2026-11-23T08:00:00Z,61.5,1\n{row}\n2026-11-23T08:02:00Z,62,2\n2026-11-23T08:03:00Z,62,2\n"
    with pytest.raises(InvalidArgument, match=f"x.csv, {said}.*--skip-broken.*1 in this file") as caught:
        read(text)
    assert caught.value.metadata["line"] == "3"
    table = read(text, skip_broken=True)
    assert len(table.broken) == 1
    assert table.frame["oil"].dropna().tolist() == [61.5, 62, 62]


def test_lines_are_counted_through_quoted_line_breaks(read):
    text = 'time,note,oil\n2026-11-23T08:00:00Z,"two\nlines",1\n2026-11-23T08:01:00Z,x,hot\n2026-11-23T08:02:00Z,x,3\n'
    (broken,) = read(text, skip_broken=True, kinds={"oil": ChannelKind.GAUGE}).broken
    assert (broken.line, broken.column, broken.cell) == (4, "oil", "hot")


def test_a_kind_that_is_known_decides_what_a_cell_must_be(read):
    text = "time,a\n2026-11-23T08:00:00Z,x\n2026-11-23T08:01:00Z,y\n"
    assert read(text).frame["a"].tolist() == ["x", "y"]
    with pytest.raises(InvalidArgument, match="'x' is no number"):
        read(text, kinds={"a": ChannelKind.GAUGE})
    with pytest.raises(InvalidArgument, match="neither true nor false"):
        read(text, kinds={"a": ChannelKind.BOOL})
    assert read("time,a\n2026-11-23T08:00:00Z,1\n", kinds={"a": ChannelKind.TEXT}).frame["a"].tolist() == ["1"]


def test_hours_that_clocks_make_doubtful_are_named_by_line(read):
    hours = [f"2026-10-25 {h:02}:00:00,1" for h in range(5)] + [f"2026-03-29 {h:02}:00:00,1" for h in range(5)]
    text = "time,oil\n" + "\n".join(hours) + "\n"
    with pytest.raises(
        InvalidArgument, match=r"line 4, column 'time': '2026-10-25 02:00:00' occurs twice.*2 in this file"
    ):
        read(text, time_zone="Europe/Berlin")
    table = read(text, time_zone="Europe/Berlin", skip_broken=True)
    assert [(b.line, "twice" in b.problem) for b in table.broken] == [(4, True), (9, False)]
    assert len(table.frame) == 8
    assert len(read(text, time_zone="Etc/GMT-1").frame) == 10


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"time,oil\n", "no readable row"),
        (b"time,oil,oil\n1,2,3\n", "'oil' twice"),
        ("time,öl\n2026-01-01,1\n".encode("latin1"), "not UTF-8.*iconv"),
    ],
)
def test_files_that_are_none(read, data, said):
    with pytest.raises(InvalidArgument, match=said):
        read(data, time_zone="UTC")


def test_a_damaged_archive_is_no_python_error(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"time,oil\n" * 1000)[:40])
    with pytest.raises(InvalidArgument, match="damaged"):
        read_csv(path, time_zone="UTC")


def test_columns_may_be_dropped(read):
    assert list(read(PLAIN, time_zone="UTC", drop=["on"]).frame.columns) == ["oil"]
    with pytest.raises(InvalidArgument, match="'off', which is no column"):
        read(PLAIN, time_zone="UTC", drop=["off"])
