"""Texts as arrays of bytes, so that captions travel in a batch beside their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Texts = Sequence[str]


def packed(samples: Sequence[Texts]) -> NDArray[np.uint8]:
    """The texts of each sample in UTF-8 (samples, texts, bytes), zeros behind them.

    A sample with fewer texts than others has empty ones behind its own.
    """
    encoded = [[text.encode() for text in texts] for texts in samples]
    most = max((len(texts) for texts in encoded), default=0)
    longest = max((len(text) for texts in encoded for text in texts), default=0)
    array = np.zeros((len(encoded), most, longest), np.uint8)
    for i, texts in enumerate(encoded):
        for j, text in enumerate(texts):
            array[i, j, : len(text)] = np.frombuffer(text, np.uint8)
    return array


def unpacked(array: NDArray[np.uint8]) -> list[list[str]]:
    """The texts of each sample that `packed` made an array of; empty ones are left out."""
    found = [[bytes(text).rstrip(b"\0").decode(errors="replace") for text in own] for own in array]
    return [[text for text in texts if text] for texts in found]
