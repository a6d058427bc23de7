"""How the costs of one kind of layer go over from one device to another: by a line through a few.

Rows are pairs (rows, 2) of the cost on the old device and on the new one. Errors are relative.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PULL = 2.0  # a kind's factor is pulled to that of all rows as if so many more rows had it
_EARNED = 1.1  # the simplest fit wins whose left-out error is within this of the best
_FORMS = ("global", "shrunk", "scale", "affine")  # from the simplest


def choose_form(own: Floats, rest: Floats) -> tuple[str, float]:
    """The simplest form that predicts left-out rows about as well as any, and that error."""
    forms = [form for form in _FORMS if len(own) + (form == "global") * len(rest) >= _least(form)]
    errors = {form: _left_out(form, own, rest) for form in forms}
    best = min(errors.values())
    for form, error in errors.items():
        if error <= _EARNED * best + 0.001:
            return form, error
    raise AssertionError("the best is within the best")


def _least(form: str) -> int:
    """How many rows a form needs, so that one can be left out."""
    return 4 if form == "affine" else 2


def _left_out(form: str, own: Floats, rest: Floats) -> float:
    errors = []
    for i in range(len(own)):
        others = np.delete(own, i, 0)
        if not len(others) and (form != "global" or not len(rest)):
            return math.inf
        scale, offset = solve(form, others, rest)
        errors.append(abs(line(scale, offset, own[i, 0]) / own[i, 1] - 1))
    return float(np.mean(errors))


def solve(form: str, own: Floats, rest: Floats) -> tuple[float, float]:
    """Scale and offset by least relative squares, from this kind's rows and those of the rest."""
    if form == "affine":
        a = np.stack([own[:, 0], np.ones(len(own))], 1) / own[:, 1:]
        scale, offset = np.linalg.lstsq(a, np.ones(len(own)), rcond=None)[0]
        # A negative offset would make small rows free, a negative scale large ones.
        if scale > 0 and scale * own[:, 0].min() + offset > 0.2 * own[:, 1].min():
            return float(scale), float(offset)
    # A median: kinds differ, and one that is three times off must not decide for all.
    everything = np.concatenate([own, rest])
    common = float(np.median(np.log(everything[:, 1] / everything[:, 0])))
    if form == "global":
        return math.exp(common), 0.0
    if form == "shrunk":
        n = len(own)
        return math.exp((n * math.log(_scale(own)) + _PULL * common) / (n + _PULL)), 0.0
    return _scale(own), 0.0


def line(scale: float, offset: float, old: Any) -> Any:
    """New costs of old ones; an offset takes at most four fifths of a row."""
    return np.maximum(scale * old + offset, 0.2 * scale * old)


def _scale(pairs: Floats) -> float:
    ratio = pairs[:, 0] / pairs[:, 1]
    return float(ratio.sum() / (ratio**2).sum())
