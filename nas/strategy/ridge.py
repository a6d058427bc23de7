"""Ridge regression from the choices of a path to its score, as a sum that the trellis can maximise.

Its maximum over all paths that fit is exact: it seeds the search, and bounds what can be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nas.space.rules import Position
from nas.strategy.features import Fields
from nas.strategy.gaussian_process import telling
from nas.strategy.threads import one_thread
from nas.trellis.graph import Floats, Ints
from nas.trellis.within import Within

_MOST_FIRST = 32  # every weight of its own takes one dynamic program over the whole trellis


@dataclass(frozen=True)
class Ridge:
    """Ridge regression that is additive given the first choice.

    The first position (in our spaces the resolution) scales everything after it, so every feature
    of the others has a weight of its own for each value of the first, besides the one for all;
    unless that has more than `_MOST_FIRST`, of which no search could learn each by itself.
    `error` is the root mean square of the leave-one-out error, in the unit of scores.
    """

    fields: Fields
    weights: Floats
    mean: float
    error: float

    @classmethod
    @one_thread()
    def fit(
        cls,
        positions: Sequence[Position],
        paths: Ints,
        scores: Floats,
        fields: Fields | None = None,
    ) -> Ridge:
        """Fit paths (n, positions) to scores (n,), by the penalty of least leave-one-out error.

        `fields` are those of the positions, where they are there already. Of very many scores it is
        fitted to the part that is `telling`.
        """
        own = fields or Fields(positions)
        some = telling(scores)
        paths, scores = paths[some], scores[some]
        x, mean = cls._features(own, paths), float(scores.mean())
        y = scores - mean
        # Not by LAPACK's SVD, which fails to converge on one in a hundred such tables of zeros and
        # ones (OpenBLAS 0.3.31, AMD Zen 3), and takes three times as long.
        wide = x.shape[0] <= x.shape[1]
        spectrum, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
        spectrum = spectrum.clip(min=0.0)
        rows = vectors * np.sqrt(spectrum) if wide else x @ vectors
        along, squared = rows.T @ y, rows**2
        best: tuple[float, Floats] = (np.inf, np.zeros(x.shape[1]))
        for penalty in np.logspace(-2, 3, 21):
            share = 1 / (spectrum + penalty)
            residual = y - rows @ (share * along)
            left_out = residual / np.maximum(1 - squared @ share, 1e-6)
            error = float((left_out**2).mean())
            if error < best[0]:
                best = (error, x.T @ residual / penalty)
        return cls(own, best[1], mean, best[0] ** 0.5)

    @staticmethod
    def _features(fields: Fields, paths: Ints) -> Floats:
        values = len(fields.tables[0])
        first = np.eye(values)[paths[:, 0]]
        rest = fields(paths)[:, fields.tables[0].shape[1] :]
        own = values if values <= _MOST_FIRST else 0
        by_first = [rest * first[:, [k]] for k in range(own)]
        return np.concatenate([first, rest, *by_first], axis=1)

    @one_thread()
    def predict(self, paths: Ints) -> Floats:
        """The expected scores (n,) of paths (n, positions)."""
        return self.mean + self._features(self.fields, paths) @ self.weights

    @cached_property
    def tables(self) -> list[list[Floats]]:
        """What each value of each position adds to the score, given each value of the first.

        `tables[k][position]` (values,) holds for paths whose first choice is value `k`; the other
        values of the first position have minus infinity there. Where no weight depends on the
        first, `tables[0]` holds for all.
        """
        values = len(self.fields.tables[0])
        rest = sum(t.shape[1] for t in self.fields.tables[1:])
        shared = self.weights[values : values + rest]
        if values > _MOST_FIRST:
            return [[self.mean + self.weights[:values], *self._rest(shared)]]
        found = []
        for k in range(values):
            own = shared + self.weights[values + rest * (k + 1) : values + rest * (k + 2)]
            start = np.full(values, -np.inf)
            start[k] = self.mean + self.weights[k]
            found.append([start, *self._rest(own)])
        return found

    def _rest(self, weights: Floats) -> list[Floats]:
        """What each value of each position but the first adds, by the weights of their features."""
        tables, at = [], 0
        for table in self.fields.tables[1:]:
            tables.append(table @ weights[at : at + table.shape[1]])
            at += table.shape[1]
        return tables

    def maximise(self, within: Within) -> tuple[Ints, float]:
        """Of the paths that fit the one (positions,) of highest expected score, and that score."""
        return max((within.best(tables) for tables in self.tables), key=lambda found: found[1])
