"""Linear algebra on one thread, so that a search is the same on any number of cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """Run linear algebra on one thread inside the block.

    On two threads it rounds in another way, so that a search would go another way on another number
    of cores; and while other processes use these, it takes ten times as long.
    """
    with _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    """The libraries of linear algebra in this process; to look for them takes milliseconds."""
    return ThreadpoolController()
