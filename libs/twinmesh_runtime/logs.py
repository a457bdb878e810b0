"""Structured logs: a constant event name and fields, as text for people or as one JSON object a line.

``log("batch_landed", points=1000, offset=17)``. Events are constants so that they can be counted and alerted on;
whatever varies is a field. Lines go to standard error; one per request, none per observation.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from twinmesh_core.call_context import current_call

Level = Literal["debug", "info", "warning", "error"]
_LEVELS: Final[dict[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_logger: Final = logging.getLogger("twinmesh")
# Made once: json.dumps would build an encoder for every line.
_JSON: Final = json.JSONEncoder(default=str, ensure_ascii=False)
_COLOURS: Final = {logging.DEBUG: "2", logging.INFO: "36", logging.WARNING: "33", logging.ERROR: "31"}


def log(event: str, *, level: Level = "info", error: BaseException | None = None, **fields: object) -> None:
    """Log `event` with `fields`; inside a call its request and trace ids are added.

    Args:
        event: constant name, ``snake_case``.
        level: how much it matters.
        error: an exception whose traceback belongs to the line (it stays in the log; callers never see it).
        fields: what varies; numbers stay numbers in JSON.
    """
    number = _LEVELS[level]
    if not _logger.isEnabledFor(number):
        return
    call = current_call()
    if call is not None:
        fields.setdefault("request_id", call.request_id)
        if call.trace_id:
            fields.setdefault("trace_id", call.trace_id)
    _logger.log(number, event, exc_info=error, extra={"fields": fields})


def configure_logs(*, token: str, level: str, form: Literal["text", "json"], stream: TextIO | None = None) -> None:
    """Send this process's logs, other libraries' included, to `stream` (standard error by default)."""
    target = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(JsonFormatter(token) if form == "json" else TextFormatter(token, colour=target.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _logger.setLevel(level)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, service, event, fields, and the traceback where there is one."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._token,
            **_event_and_fields(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _JSON.encode(fields)


class TextFormatter(logging.Formatter):
    """One line for a person: time, service, event, ``key=value``; the traceback below where there is one."""

    def __init__(self, token: str, *, colour: bool) -> None:
        super().__init__()
        self._token = token
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        shown = _event_and_fields(record)
        event = str(shown.pop("event"))
        if self._colour:
            event = f"\033[{_COLOURS.get(record.levelno, '0')}m{event}\033[0m"
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        pairs = " ".join(f"{key}={_text(value)}" for key, value in shown.items())
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()} "
        line = f"{clock} {self._token:<10} {level}{event} {pairs}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _event_and_fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] | None = getattr(record, "fields", None)
    if fields is not None:
        return {"event": record.msg, **fields}
    return {"event": "library_message", "logger": record.name, "message": record.getMessage()}


def _text(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or '"' in text or "\n" in text else text
