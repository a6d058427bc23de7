"""A linear classifier on features, fitted to few labels: a score of what is easy to read off them.

Ridge regression on the classes, one column each, has its solution in closed form; how strong it is
held back is chosen among the same references, by leaving each of them out once. Every network gets
the strength that suits it, as linear probes are tuned for each network (e.g. Radford et al., ICML
2021, appendix A.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nas.data import Dataset
from nas.scores import check_labels
from nas.space.task import Hits

if TYPE_CHECKING:
    from nas.space.task import Batch, Observed

STRENGTHS = tuple(10.0**power for power in range(-4, 5))  # of the ridge, for each reference


@dataclass(frozen=True, eq=False)
class Probe(Hits):
    """The share of samples that a linear classifier on the features gets right.

    `weights` (d + 1, classes), the offsets in the last row, are those of one network.
    """

    references: int
    weights: Tensor | None = None

    name = "probe"
    label = "accuracy of a linear probe"
    heading = "probe"
    vectors = True

    def fitted(self, outputs: Tensor, batch: Batch) -> Probe:
        """Fit the classifier to the reference samples."""
        labels = batch["labels"].long()
        classes = torch.nn.functional.one_hot(labels).double()
        return replace(self, weights=ridge(outputs.double(), classes))

    def observe(self, outputs: Tensor, batch: Batch) -> Observed:
        """Which samples are classified correctly (samples,), bool."""
        assert self.weights is not None, "a network is fitted first"
        answers = outputs.double() @ self.weights[:-1] + self.weights[-1]
        hits: Observed = (answers.argmax(1) == batch["labels"]).numpy()
        return hits


def ridge(x: Tensor, y: Tensor, strengths: tuple[float, ...] = STRENGTHS) -> Tensor:
    """Weights (d + 1, k), the offsets last, that fit targets (n, k) from x (n, d), in float64.

    Columns of x are brought to one scale first, and the offsets are free. Of the strengths that is
    taken whose predictions of left-out samples have the least squared error: one decomposition
    gives them all (Hastie, Tibshirani and Friedman, 2009, equation 7.64).
    """
    centre, scale = x.mean(0), x.std(0, correction=0)
    scale = scale.where(scale > 0, 1.0)
    u, s, v = torch.linalg.svd((x - centre) / scale, full_matrices=False)
    mean = y.mean(0)
    inner = u.T @ (y - mean)

    def left_out(strength: float) -> float:
        kept = s**2 / (s**2 + strength * len(x))
        residual = y - mean - u @ (kept[:, None] * inner)
        lever = 1 - (u**2 @ kept) - 1 / len(x)
        return float((residual / lever.clamp(min=1e-9)[:, None]).square().sum())

    best = min(strengths, key=left_out) * len(x)
    weights = (v.T @ ((s / (s**2 + best))[:, None] * inner)) / scale[:, None]
    return torch.cat((weights, (mean - centre @ weights)[None]))


def load(data: Dataset, supernet: Path, references: int) -> Probe:
    """The score for a data set with one label for each sample."""
    check_labels("probe", data)
    return Probe(references)
