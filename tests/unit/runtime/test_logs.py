"""Log lines: constant events and fields, for people and for programs."""

import io
import json
import logging
from collections.abc import Iterator
from contextvars import copy_context
from typing import Literal

import pytest

from twinmesh_core.call_context import CallContext, enter_call
from twinmesh_runtime.logs import configure_logs, log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.getLogger("twinmesh").level)
    yield
    root.handlers[:], level, own = before
    root.setLevel(level)
    logging.getLogger("twinmesh").setLevel(own)


def lines(form: Literal["text", "json"], level: str = "INFO") -> io.StringIO:
    stream = io.StringIO()
    configure_logs(token="echo", level=level, form=form, stream=stream)
    return stream


def test_json_lines_are_objects_with_the_calls_ids() -> None:
    stream = lines("json")
    trace = "0af7651916cd43dd8448eb211c80319c"

    def inside_a_call() -> None:
        enter_call(CallContext(deadline_s=None, request_id="r-1", traceparent=f"00-{trace}-b7ad6b7169203331-01"))
        log("landed", points=3, note='a "quoted"\nline')

    copy_context().run(inside_a_call)
    entry = json.loads(stream.getvalue())
    assert entry["event"] == "landed"
    assert entry["service"] == "echo"
    assert entry["points"] == 3
    assert entry["note"] == 'a "quoted"\nline'
    assert (entry["request_id"], entry["trace_id"]) == ("r-1", trace)
    assert entry["time"].endswith("+00:00")


def test_a_text_line_stays_one_line() -> None:
    stream = lines("text")
    log("landed", level="warning", note="two\nlines", empty="", ratio=0.123456789)
    [line] = stream.getvalue().splitlines()
    assert line.split(" ", 1)[1] == 'echo       warning landed note="two\\nlines" empty="" ratio=0.123457'


def test_an_exception_brings_its_traceback() -> None:
    for form in ("text", "json"):
        stream = lines(form)
        try:
            raise ValueError("why")
        except ValueError as error:
            log("failed", level="error", error=error)
        assert "ValueError: why" in stream.getvalue()


def test_levels_and_other_libraries() -> None:
    stream = lines("json", level="WARNING")
    log("quiet")
    logging.getLogger("some.library").warning("it said %s", "this")
    entry = json.loads(stream.getvalue())
    assert entry["event"] == "library_message"
    assert entry["message"] == "it said this"
