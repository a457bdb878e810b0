"""What a device has done, kept over restarts: a command takes effect once, however often it is delivered.

One line of JSON per step, forced to disk before the step counts. A line that a crash cut off is dropped: what it was
about to say had not happened yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

KEPT: Final = 10_000
"""Outcomes remembered; only commands that the mesh has not heard the end of come again, and those are fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a command; `state` "" = it was begun and its end is not known."""

    state: str = ""
    message: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """Outcomes by command; in memory alone where there is no path.

    Args:
        path: the file; None = nothing is kept over a restart.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Outcome] = {}
        self._lines = 0
        if path is not None and path.exists():
            self._load(path)

    def get(self, key: str) -> Outcome | None:
        """Return what is known of a command; None = it was never begun."""
        return self._known.get(key)

    def begin(self, key: str) -> None:
        """Note that a command is about to be done; returns once that is on disk."""
        self._note(key, Outcome())

    def end(self, key: str, outcome: Outcome) -> None:
        """Note what became of it; returns once that is on disk."""
        self._note(key, outcome)

    def _note(self, key: str, outcome: Outcome) -> None:
        self._known.pop(key, None)
        self._known[key] = outcome
        while len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        if self._path is None:
            return
        if self._lines >= 3 * KEPT:
            self._rewrite(self._path)
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(key, outcome))
            file.flush()
            os.fsync(file.fileno())
        self._lines += 1

    def _load(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            path.write_text(text, encoding="utf-8")
        for line in text.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                key = entry.pop("key")
                self._known.pop(key, None)
                self._known[key] = Outcome(**entry)
            self._lines += 1

    def _rewrite(self, path: Path) -> None:
        new = path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            file.writelines(_line(key, outcome) for key, outcome in self._known.items())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        self._lines = len(self._known)


def _line(key: str, outcome: Outcome) -> str:
    return json.dumps({"key": key, **asdict(outcome)}, separators=(",", ":")) + "\n"
