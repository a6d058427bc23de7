"""Dynamic programs over the ticks left of a budget, from the last level of a graph to the first.

`costs` are the whole ticks of each edge, by level; `end` (ticks + 1,) says with how many ticks left
a path may end. An edge that costs more than all ticks cannot be taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas.trellis.graph import Floats, Ints, Level

_POWER = 900  # of two: what a table is divided by that exceeds it; floats hold 1023


def count_ways(
    levels: Sequence[Level],
    costs: Sequence[Ints],
    end: NDArray[np.bool_],
    weights: Sequence[Floats] | None = None,
) -> tuple[list[Floats], list[int]]:
    """The number of ways to the end: tables (states, 2, ticks + 1) by level and for the end.

    Those of each table are to be multiplied by 2 to the power of its exponent, which the second
    list holds: 0 unless there are more than 2**900 ways, which floats could not hold for long. What
    is not 0 stays so, however small it is beside these.

    From a state with `l` ticks left `table[state, 1, l]` ways lead to a permitted end; with
    `weights` (edges,) of each level it is the sum of the products of their weights. `table[:, 0]`
    is zero, and lies just before: that is where an edge that costs `c > l` finds its ways, at
    `l - c`.
    """
    width = len(end)
    tables = [np.zeros((1, 2, width))]
    tables[0][0, 1] = end
    exponents = [0]
    for i in range(len(levels) - 1, -1, -1):
        level = levels[i]
        table = np.zeros((level.sources, 2, width))
        rows, after = list(table[:, 1]), list(tables[0][:, 1])
        weight = weights[i].tolist() if weights else itertools.repeat(1.0)
        edges = zip(level.source.tolist(), level.target.tolist(), costs[i].tolist(), weight)
        for s, t, c, w in edges:
            if c < width:
                row, on = rows[s][c:], after[t][: width - c]
                np.add(row, on if w == 1.0 else w * on, out=row)
        down = _POWER if table.max() > 2.0**_POWER else 0
        if down:
            some = table > 0
            table *= 2.0**-down
            table[some] = np.maximum(table[some], np.finfo(float).tiny)
        tables.insert(0, table)
        exponents.insert(0, exponents[0] + down)
    return tables, exponents


def highest_scores(
    levels: Sequence[Level],
    costs: Sequence[Ints],
    scores: Sequence[Floats],
    end: NDArray[np.bool_],
) -> list[Floats]:
    """The highest score of a way to the end: tables (states, ticks + 1) by level and for the end.

    A score is the sum of `scores[position][value]`; the last level has nothing to choose and so no
    score. Where no way leads to a permitted end it is minus infinity.
    """
    width = len(end)
    tables = [np.where(end, 0.0, -np.inf)[None]]
    gains = [*scores, np.zeros(1)]
    for level, cost, gain in zip(levels[::-1], costs[::-1], gains[::-1]):
        table = np.full((level.sources, width), -np.inf)
        rows, after = list(table), list(tables[0])
        edges = zip(level.source.tolist(), level.target.tolist(), cost.tolist(), gain[level.value])
        for s, t, c, g in edges:
            if c < width:
                np.maximum(rows[s][c:], g + after[t][: width - c], out=rows[s][c:])
        tables.insert(0, table)
    return tables
