"""Matrix games: the mixture of choices that does best against the worst that can come."""

from __future__ import annotations

import numpy as np

from nas.trellis.graph import Floats


def solve_game(payoff: Floats) -> tuple[Floats, float]:
    """The mixture of the rows whose smallest column is largest, and that value.

    The simplex method on the columns' problem, with Bland's rule; no payoff is negative.
    """
    rows, columns = payoff.shape
    # Maximise sum(y) with (payoff + 1) y <= 1; what each limit is worth is the row's share.
    table = np.zeros((rows + 1, columns + rows + 1))
    table[:rows, :columns] = payoff + 1
    table[:rows, columns:-1] = np.eye(rows)
    table[:rows, -1] = 1
    table[-1, :columns] = -1
    basis = np.arange(columns, columns + rows)
    while (entering := np.flatnonzero(table[-1, :-1] < -1e-9)).size:
        column = entering[0]
        steps = np.full(rows, np.inf)
        np.divide(table[:-1, -1], table[:-1, column], out=steps, where=table[:-1, column] > 1e-12)
        ties = np.flatnonzero(steps <= steps.min() + 1e-12)
        row = ties[np.argmin(basis[ties])]
        table[row] /= table[row, column]
        others = np.arange(rows + 1) != row
        table[others] -= np.outer(table[others, column], table[row])
        basis[row] = column
    worth = table[-1, columns:-1].clip(min=0.0)  # but for rounding it is
    return worth / worth.sum(), 1 / table[-1, -1] - 1
