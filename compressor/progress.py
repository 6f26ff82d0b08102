"""What a job tells while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PLAIN_WIDTH = 100
"""Columns of the tables where there is no terminal to ask."""
Report = Callable[[int, int, str], None]
"""(done, total, what)."""


class Teller:
    """The one place that prints while a job runs."""

    def __init__(self, console: Console | None = None) -> None:
        terminal = Console(highlight=False)
        self.console = console or (terminal if terminal.is_terminal else Console(highlight=False, width=PLAIN_WIDTH))

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[Report]:
        """A stage of the job: a bar while it runs, and one line with its time when it is done."""
        started = time.monotonic()
        if self.console.is_terminal:
            with Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[what]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            ) as bar:
                task = bar.add_task(title, total=None, what="")
                yield lambda done, total, what: bar.update(task, completed=done, total=total or None, what=what)
        else:
            self.line(f"{title} …")
            yield lambda done, total, what: None
        self.line(f"{title}: {time.monotonic() - started:.1f} s")
