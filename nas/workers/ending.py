"""Processes that end with the one that started them, so that a killed program leaves nothing."""

from __future__ import annotations

import contextlib
import ctypes
import signal

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """Have this process killed when the one that started it ends; on Linux, elsewhere nothing."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
