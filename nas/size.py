"""Sizes of pictures, maps and windows: one number for a square, height and width for what is none.

A square is always one number, so that equal sizes are equal values, and what names a size (a layer,
an architecture, a file) calls a square as it did when there was nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple


class Sides(NamedTuple):
    """The sides of what is not square, in pixels or tokens; JSON has a list of both."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


Size = int | Sides


def size_of(height: int, width: int) -> Size:
    """The size with these sides: one number where they are equal."""
    return height if height == width else Sides(height, width)


def sides(size: Size) -> tuple[int, int]:
    """The height and the width."""
    return (size[0], size[1]) if isinstance(size, tuple) else (size, size)


def area(size: Size) -> int:
    """The height times the width."""
    height, width = sides(size)
    return height * width


def each(rule: Callable[..., int], *sizes: Size) -> Size:
    """The size whose sides a rule makes, each of the same sides of all `sizes`."""
    height, width = (rule(*own) for own in zip(*map(sides, sizes)))
    return size_of(height, width)


def divided(size: Size, by: int) -> Size:
    """The size with a part of each side, rounded up."""
    return each(lambda side: -(-side // by), size)


def read_size(text: str) -> Size | None:
    """The size that `512` or `512x1024` (height x width) says; None for any other text."""
    if not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})?", text):
        return None
    height, _, width = text.partition("x")
    return size_of(int(height), int(width or height))
