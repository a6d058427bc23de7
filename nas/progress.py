"""What the terminal is shown: text as it is, and progress bars with rate and remaining time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol, TypeVar

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

from nas.errors import printable

T = TypeVar("T")


class Terminal(Console):
    """A console that shows every text as it is: nothing in it is markup, an emoji or a command.

    Names come from tables, devices and folders of other people. A control character in one becomes
    a space; how a text looks is said beside it, by `style`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """The text without control characters; of cells of tables, too."""
        shown = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
        return super().render_str(shown, **settings)


console = Terminal(stderr=True)


def say(line: str) -> None:
    """Tell the user what is not as one may think, such as what was left out of a folder."""
    console.print(line, style="yellow", soft_wrap=True)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "", style="dim")


class Advance(Protocol):
    """A function that moves a bar on."""

    def __call__(self, steps: float = 1, note: str = "") -> None:
        """Move the bar on by `steps`, and show a note behind it."""


@contextmanager
def bar(title: str, total: float | None, unit: str = "", after_s: float = 0.0) -> Iterator[Advance]:
    """A bar of `total` steps; call what it gives with the steps done and a short note.

    It is shown after so many seconds, and not at all if the block ends before.
    """
    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", style="cyan", markup=False),
    )
    progress, begin, shown = (
        Progress(*columns, console=console, transient=False),
        monotonic(),
        False,
    )
    task = progress.add_task(title, total=total, note="", unit=unit)

    def show() -> None:
        nonlocal shown
        if not shown and monotonic() - begin >= after_s:
            shown = True
            progress.start()

    def advance(steps: float = 1, note: str = "") -> None:
        progress.update(task, advance=steps)
        if note:
            progress.update(task, note=printable(note))
        show()

    try:
        show()
        yield advance
    finally:
        if shown:
            progress.stop()


def track(items: Iterable[T], title: str, total: int, unit: str = "") -> Iterator[T]:
    """Yield the items while a bar counts them."""
    with bar(title, total, unit) as advance:
        for item in items:
            yield item
            advance()
