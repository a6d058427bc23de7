"""Learning to tell pictures apart by two views of each, without a second network: SimCLR.

Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709. It is the form of `contrastive` that has
no second network to run, and needs larger batches, as views are compared with those of the same
step only.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from nas.data import Tensors
from nas.network.network import Network
from nas.space.architecture import Architecture
from nas.training.objectives import Made
from nas.training.projections import (
    Projector,
    TwoViews,
    features_of,
    hidden_width,
    nt_xent,
)
from nas.training.views import two_views


class SimClr(TwoViews):
    """The normalised and tempered cross-entropy (NT-Xent) of two views of each picture."""

    meaning = (
        "how badly a view finds the other view of its picture among all others of the batch (cross-"
        "entropy): the logarithm of their number is a guess"
    )

    projector: Projector

    def begin(self, network: Network, batches: Sequence[int]) -> None:
        """Make the projector for the features of the network."""
        super().begin(network, batches)
        width = features_of(network)
        self.projector = Projector(width, hidden_width(width), layers=2)

    def forward(
        self, network: Network, architecture: Architecture, batch: Tensors, rng: Random
    ) -> Made:
        """Projections (n, d) of the first views and of the second ones, which share a batch."""
        views = torch.cat(two_views(batch[self.space.parts.takes], rng))
        projected: Tensor = self.projector(network(views, architecture))
        return tuple(projected.float().chunk(2))

    def loss(self, made: Made, batch: Tensors) -> Tensor:
        """NT-Xent over the views of the batch."""
        first, second = made
        return nt_xent(first, second)


OBJECTIVE = SimClr
