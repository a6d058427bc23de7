"""Every error a user can cause: one line that says what must hold, what came, and what mends it.

VitnasError
├── UsageError              a value that cannot be understood (exit code 2)
│   └── UnknownNameError    a space, device, data set or model that does not exist
├── InfeasibleError         no architecture fits the budget (exit code 3)
├── DataError               a data set that cannot be used
├── TableError              a latency table that is missing, incomplete or of another machine
├── WeightsError            supernet weights that are missing or do not fit the space
├── RunError                a run directory that cannot be used or resumed
├── DeviceError             a device that cannot be reached, or stopped answering
├── MissingPackageError     an optional package that is not installed
├── PreparationError        layers that a runtime cannot run
└── EvaluationError         a subnet whose score or latency could not be obtained
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_LONGEST = 297  # characters of an error and its fix, without the `; ` between them
_FIX = 150  # characters of a fix that are kept at the cost of the error


def printable(text: object, length: int = 160) -> str:
    """A text from elsewhere as one line that a terminal can show."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= length else line[: length - 1] + "…"


class VitnasError(Exception):
    """An error with the fix beside it; the command line prints it as one line.

    Whatever they are made of, both are printable and together below 300 characters.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        line = _one_line(message)
        self.fix = _without_middle(_one_line(fix), max(_FIX, _LONGEST - len(line)))
        self.message = _without_middle(line, _LONGEST - len(self.fix))
        super().__init__(f"{self.message}; {self.fix}" if fix else self.message)

    @property
    def kind(self) -> str:
        """The stable name of this error in `--json` output, e.g. `infeasible`."""
        return type(self).__name__.removesuffix("Error").lower()


class UsageError(VitnasError):
    """A value that cannot be understood, or does not fit the others."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not one of those known, with the closest ones that are."""

    def __init__(self, what: str, name: str, known: Iterable[str], fix: str = "") -> None:
        known = sorted(known)
        close = get_close_matches(str(name)[:200], known, n=3, cutoff=0.4)
        message = f"unknown {what} {_without_middle(str(name), 80)!r}"
        room = _LONGEST - len(f"{message}known:  and 9999 more {fix}")
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {_first(known, room)}"
        super().__init__(message, f"{hint} {fix}".strip())

    @property
    def kind(self) -> str:
        """The name `unknown_name`: two words, where the class gives one."""
        return "unknown_name"


def _one_line(text: str) -> str:
    """A text in one printable line; spaces stay as they are, for paths may have several."""
    broken = "".join(c if c.isprintable() else "\n" for c in text)
    return re.sub(r"\s*\n\s*", " ", broken).strip()


def _without_middle(line: str, length: int) -> str:
    """A line of at most that length: what is too long begins and ends as it did."""
    end = (length - 1) // 3
    return line if len(line) <= length else f"{line[: length - 1 - end]}…{line[len(line) - end :]}"


def _first(names: Sequence[str], length: int) -> str:
    """Names separated by commas; where they are longer than that, the first and how many follow."""
    shown = [name for i, name in enumerate(names) if len(", ".join(names[: i + 1])) <= length]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


class InfeasibleError(VitnasError):
    """No architecture keeps every limit."""

    exit_code = 3


class DataError(VitnasError):
    """A data set that is missing, damaged or too small."""


class TableError(VitnasError):
    """A latency table that is missing, incomplete, or of another machine or version."""


class WeightsError(VitnasError):
    """Weights that are missing, damaged, or do not fit the space."""


class RunError(VitnasError):
    """A run directory that cannot be used or resumed, or workers that all ended."""


class MissingPackageError(VitnasError):
    """An optional package that is not installed."""


class DeviceError(VitnasError):
    """A device or cluster that cannot be reached, or stopped answering."""


class PreparationError(VitnasError):
    """Layers that a runtime cannot run; a campaign records why and goes on."""


class EvaluationError(VitnasError):
    """A network whose score or latency could not be obtained."""
