"""A progress bar on standard error, for people who wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(text: str, total: float, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """Show a bar while the block runs; yields ``advance(amount, note="")``. A pipe gets none.

    Args:
        text: what is being done.
        total: what is 100 %.
        quiet: show nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    console = Console(file=sys.stderr)
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(text, total=total, note="")

        def advance(amount: float, note: str = "") -> None:
            progress.update(task, advance=amount, note=note)

        yield advance
