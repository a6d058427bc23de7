"""Matrix games: the mixture of choices that is best in the worst case."""

from __future__ import annotations

import numpy as np

from nas.trellis.graph import Floats


def solve_game(payoff: Floats) -> tuple[Floats, float]:
    """The shares (rows,) of the rows whose mixture has the largest smallest entry, and that entry.

    `payoff` (rows, columns) holds nothing negative. The simplex method with Bland's rule solves the
    column player's linear program; the shares are its shadow prices.
    """
    rows, columns = payoff.shape
    # Maximise sum(y) with (payoff + 1) y <= 1; the shadow price of a limit gives its row's share.
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
    prices = table[-1, columns:-1].clip(min=0.0)  # rounding may leave -1e-17
    return prices / prices.sum(), 1 / table[-1, -1] - 1
