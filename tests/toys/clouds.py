"""A toy data set: clouds of points, some on the left and some on the right."""

from __future__ import annotations

import numpy as np

from nas.data import SPLITS, Dataset, Split
from nas.tasks.classification import Classification

SIDES = {"left": -3, "right": 3}


class Clouds(Split):
    def batch(self, indices, size):
        labels = np.array([i % 2 for i in indices])
        points = np.stack([self._cloud(i, size) for i in indices])
        return {"points": points, "labels": labels}

    def _cloud(self, index, size):
        rng = np.random.default_rng((SPLITS.index(self.name), index))
        middle = (list(SIDES.values())[index % 2], 0, 0)
        return rng.normal(middle, 1, (size, 3)).astype(np.float32)


def load(argument, seed):
    splits = {name: Clouds(name, 400) for name in SPLITS}
    return Dataset("toys.clouds", Classification.of(tuple(SIDES)), fingerprint="clouds", **splits)
