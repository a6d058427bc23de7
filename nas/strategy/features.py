"""The features of a path: what the surrogates see of its choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

import numpy as np

from nas.space.rules import ENDED, Position
from nas.trellis.graph import Floats, Ints


class Fields:
    """The features of paths, field by field.

    A field is one of the dataclass that a position chooses, or the position itself. Its values are
    categories; those of three or more numbers are levels besides, which count as another field. The
    features of a field have norm 1, so that the inner product of two paths within it is their
    likeness: 1 where they agree; where they differ, -1 / (values - 1) for categories, and falling
    to -1 with the distance for levels.

    `tables` holds (values, features) for each position, `owner` (features,) the number of the field
    of each feature, and `count` how many fields there are.
    """

    def __init__(self, positions: Sequence[Position]) -> None:
        self.tables: list[Floats] = []
        owner: list[int] = []
        for position in positions:
            blocks = [block for column in _columns(position.values) for block in _codes(column)]
            for block in blocks:
                owner += [len(set(owner))] * block.shape[1]
            empty = np.zeros((len(position.values), 0))
            self.tables.append(np.concatenate([empty, *blocks], axis=1))
        self.owner = np.array(owner, dtype=np.int64)
        self.count = len(set(owner))

    def __call__(self, paths: Ints) -> Floats:
        """The features (n, features) of paths (n, positions)."""
        return np.concatenate([t[paths[:, i]] for i, t in enumerate(self.tables)], axis=1)


def _columns(values: Sequence[Any]) -> list[list[Any]]:
    """The values of a position by field, in which no two values are the same.

    What has no such field has `ENDED` there (so all of an ended `Repeat`). Values of several kinds
    are told apart by a column of classes, in which other values stand for themselves.
    """
    names = [[f.name for f in fields(v)] if _is_record(v) else [] for v in values]
    order = dict.fromkeys(name for own in names for name in own)
    if not order:
        return [list(values)]
    columns = [
        [getattr(v, name) if name in own else ENDED for v, own in zip(values, names)]
        for name in order
    ]
    kinds = [type(v) if _is_record(v) else v for v in values]
    if len(set(kinds) - {ENDED}) > 1:
        columns.insert(0, kinds)
    if len(set(zip(*(map(_key, column) for column in columns)))) < len(values):
        columns.append(list(values))
    return columns


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _key(value: Any) -> Any:
    """The value itself, or its text where it has no hash."""
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _codes(column: list[Any]) -> list[Floats]:
    """The features of a field's values: categories, and levels if there are three or more numbers.

    A field with one value has no features.
    """
    column = [_key(value) for value in column]
    kinds = {value: i for i, value in enumerate(dict.fromkeys(column))}
    n = len(kinds)
    if n < 2:
        return []
    index = [kinds[value] for value in column]
    simplex = (np.eye(n) - 1 / n) * np.sqrt(n / (n - 1))
    blocks = [simplex[index]]
    levels = sorted(float(v) for v in kinds if isinstance(v, Real) and math.isfinite(v))
    if len(levels) > 2:
        steps = np.sign(np.subtract.outer(levels, np.add(levels[1:], levels[:-1]) / 2))
        code = dict(zip(levels, steps / np.sqrt(len(levels) - 1)))
        none = np.zeros(len(levels) - 1)
        blocks.append(np.array([code.get(v, none) for v in column]))
    return blocks
