"""How the demo speaks: one tagged line per fact, and bars where something takes time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

TAG_WIDTH = 11


class Story:
    """Prints the demo's lines and keeps them for the report."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.lines: list[str] = []

    def say(self, tag: str, text: str, *, style: str = "bold cyan") -> None:
        """Print one line under a tag; an empty tag continues the one before."""
        label = f"[{tag}]" if tag else ""
        self.lines.append(f"{label:<{TAG_WIDTH}}{text}")
        self.console.print(Text.assemble((f"{label:<{TAG_WIDTH}}", style), text))

    @contextmanager
    def bar(self, tag: str, text: str, total: float) -> Iterator[Bar]:
        """Show a progress bar while the block runs; a pipe gets no bar, only the lines."""
        columns = (
            TextColumn(f"[bold cyan]{escape(f'[{tag}]'.ljust(TAG_WIDTH))}[/]{{task.description}}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            yield Bar(progress, progress.add_task(text, total=total, note=""))


class Bar:
    """One running progress bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def move(self, completed: float, note: str = "") -> None:
        """Show how far it is."""
        self._progress.update(self._task, completed=completed, note=note)


def local(moment: datetime, zone: str) -> str:
    """Return a moment as the plant's clock shows it: ``11:40``."""
    return f"{moment.astimezone(ZoneInfo(zone)):%H:%M}"


def size(n_bytes: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1_000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1_000
    return f"{n_bytes:.1f} GB"


def table_line(cells: list[tuple[str, int]]) -> str:
    """Return cells in columns; a positive width aligns left, a negative one right."""
    return "".join(f"{text:<{width}}" if width > 0 else f"{text:>{-width}}" for text, width in cells)


def show_delta(delta: Any) -> str:
    """Return a delta as the demo writes it: ``{cooling_stage: want 2, has 1}``."""
    return "{" + ", ".join(f"{channel}: {item!r}" for channel, item in delta.items()) + "}"
