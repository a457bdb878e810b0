"""Reading the logs of local servers, to show the few lines that explain a failure."""

from __future__ import annotations

from pathlib import Path

_TAIL_BYTES = 4096


def log_tail(path: Path, *, lines: int = 5) -> str:
    """The last lines of a log, each indented; empty when there is no log."""
    try:
        with path.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "".join(f"\n     {line}" for line in text.splitlines()[-lines:])
