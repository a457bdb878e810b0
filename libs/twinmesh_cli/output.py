"""How results are shown: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from io import StringIO
from typing import Any

WIDE = 240
"""Columns assumed where nobody looks at a terminal, so that no cell is cut in a pipe."""
_BLOCKS = "▁▂▃▄▅▆▇█"


class Output:
    """Where a command's results go: standard output, as text or as JSON.

    Args:
        as_json: one JSON document (or a line each, from commands that go on for ever) instead of text.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """Print one line for people; nothing with ``--json``."""
        if not self.as_json:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print one line beside the result, on standard error."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def document(self, value: Any) -> None:
        """Print the result as one JSON document; nothing without ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")

    def json_line(self, value: Any) -> None:
        """Print one line of JSON; nothing without ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")
            sys.stdout.flush()

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "none") -> None:
        """Print a table for people; columns whose cells are all numbers stand right.

        Args:
            head: titles of the columns.
            rows: their cells as text.
            empty: what to say when there is no row.
        """
        if self.as_json:
            return
        cells = [list(row) for row in rows]
        if not cells:
            self.line(empty)
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=sys.stdout, highlight=False)
        if not console.is_terminal:
            console = Console(file=StringIO(), highlight=False, width=WIDE)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for i, title in enumerate(head):
            numeric = all(_is_number(row[i]) for row in cells)
            table.add_column(title, justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        if isinstance(console.file, StringIO):
            # No trailing spaces for whoever reads the pipe.
            sys.stdout.write(
                "\n".join(text.rstrip() for text in console.file.getvalue().strip("\n").splitlines()) + "\n"
            )


def _is_number(text: str) -> bool:
    stripped = text.replace(",", "").replace("%", "").strip()
    if stripped in {"", "-", "–"}:
        return True
    try:
        float(stripped)
    except ValueError:
        return False
    return True


def plain(value: Any) -> Any:
    """Return a value as JSON can say it: NaN as null, times as RFC 3339, dataclasses as objects."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(v) for v in value]
    return str(value)


def show_time(moment: datetime | None) -> str:
    """Return a moment for people, UTC: ``2026-11-23 08:00:00Z``."""
    if moment is None:
        return "-"
    text = f"{moment:%Y-%m-%d %H:%M:%S}"
    return f"{text}.{moment.microsecond // 1000:03d}Z" if moment.microsecond else f"{text}Z"


def show_number(value: Any) -> str:
    """Return a value for people: six significant digits for fractions, everything else as it is."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """Return values as a row of blocks from the lowest to the highest, at most `width` of them."""
    if not values:
        return ""
    n = min(width, len(values))
    picked = [values[int((i + 0.5) * len(values) / n)] for i in range(n)]
    known = [v for v in picked if math.isfinite(v)]
    if not known:
        return " " * n
    low, high = min(known), max(known)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((v - low) * scale)] if math.isfinite(v) else " " for v in picked)
