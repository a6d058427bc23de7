"""Progress bars with rate and remaining time, on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
console = Console(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "", style="dim")


class Advance(Protocol):
    """A function that moves a bar on."""

    def __call__(self, steps: float = 1, note: str = "") -> None:
        """Move the bar on by `steps`, and show a note behind it."""


@contextmanager
def bar(title: str, total: float | None, unit: str = "") -> Iterator[Advance]:
    """A bar of `total` steps; call what it gives with the steps done and a short note."""
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="cyan"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(title, total=total, note="", unit=unit)

        def advance(steps: float = 1, note: str = "") -> None:
            progress.update(task, advance=steps)
            if note:
                progress.update(task, note=note)

        yield advance


def track(items: Iterable[T], title: str, total: int, unit: str = "") -> Iterator[T]:
    """Yield the items while a bar counts them."""
    with bar(title, total, unit) as advance:
        for item in items:
            yield item
            advance()
