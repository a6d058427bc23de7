"""The nearest neighbours of a sample by features of its class: a score that needs no training.

Wu et al., CVPR 2018, https://arxiv.org/abs/1805.01978, section 3.4, with the settings that DINO
made usual (Caron et al., ICCV 2021): 20 neighbours, cosine similarity, votes by exp(cos / 0.07).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data import Dataset
from nas.scores import check_labels
from nas.space.task import Hits

if TYPE_CHECKING:
    from nas.space.task import Batch, Observed

NEIGHBOURS = 20
_TEMPERATURE = 0.07


@dataclass(frozen=True, eq=False)
class Nearest(Hits):
    """The share of samples whose class wins the votes of the reference samples nearest to them.

    `bank` (references, d) are the normalised features of one network, `labels` their classes.
    """

    references: int
    bank: Tensor | None = None
    labels: Tensor | None = None

    name = "knn"
    label = "accuracy of the nearest neighbours"
    heading = "kNN"
    vectors = True

    def fitted(self, outputs: Tensor, batch: Batch) -> Nearest:
        """Keep the features of the reference samples."""
        bank = F.normalize(outputs.float(), dim=1)
        return replace(self, bank=bank, labels=batch["labels"].long())

    def observe(self, outputs: Tensor, batch: Batch) -> Observed:
        """Which samples get their own class (samples,), bool."""
        assert self.bank is not None, "a network is fitted first"
        assert self.labels is not None
        cosines = F.normalize(outputs.float(), dim=1) @ self.bank.T
        nearest, at = cosines.topk(min(NEIGHBOURS, len(self.bank)))
        votes = torch.zeros(len(outputs), int(self.labels.max()) + 1)
        votes.scatter_add_(1, self.labels[at], (nearest / _TEMPERATURE).exp())
        hits: Observed = (votes.argmax(1) == batch["labels"]).numpy()
        return hits


def load(data: Dataset, supernet: Path, references: int) -> Nearest:
    """The score for a data set with one label for each sample."""
    check_labels("knn", data)
    return Nearest(references)
