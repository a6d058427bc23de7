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

from collections.abc import Iterable
from difflib import get_close_matches


class VitnasError(Exception):
    """An error with the fix beside it; the command line prints it as one line."""

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message}; {fix}" if fix else message)
        self.message = message
        self.fix = fix

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
        close = get_close_matches(str(name), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
        super().__init__(f"unknown {what} {name!r}", f"{hint} {fix}".strip())

    @property
    def kind(self) -> str:
        """The name `unknown_name`: two words, where the class gives one."""
        return "unknown_name"


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
