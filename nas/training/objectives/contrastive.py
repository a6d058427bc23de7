"""Learning what two views of a picture have in common, without labels: MoCo v3, for all sizes.

Chen et al., ICCV 2021, https://arxiv.org/abs/2104.02057. The largest network predicts what a slowly
following copy of it makes of the other view, and tells it from the other pictures of the batch.
Subnets learn the largest's projections of the same views: POA (Zhang et al., ECCV 2024,
https://arxiv.org/abs/2408.01031) does likewise with one random subnet. `simclr` needs no copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from random import Random

import torch
from torch import Tensor, nn

from nas.data import Tensors
from nas.layers.elastic import PatchEmbedding
from nas.network.network import Network
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.training.objectives import Made, is_largest
from nas.training.projections import (
    DIMENSIONS,
    Projector,
    TwoViews,
    features_of,
    hidden_width,
    moco_loss,
)
from nas.training.views import two_views

MOMENTUM = 0.99  # at the start; it rises to 1 along half a cosine


class Contrastive(TwoViews):
    """The symmetric loss of MoCo v3 on two views of each picture.

    The projection of patches of a ViT stays as it was drawn, because training it makes the training
    unstable (section 4 of the paper).
    """

    meaning = (
        "how badly a prediction finds the other view of its picture among those of the batch, both "
        "ways: 0.8 times the logarithm of the batch's size is a guess"
    )

    projector: Projector
    predictor: Projector
    slow: nn.ModuleList  # network and projector, as they were on average
    steps: Tensor

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.total = 1

    def prepare(self, network: Network) -> None:
        """Leave the projection of patches as it is drawn, at positions that are not learned."""
        for layer in network.layers.values():
            if isinstance(layer, PatchEmbedding):
                layer.fix_positions()
                layer.freeze_projection()

    def begin(self, network: Network, batches: Sequence[int]) -> None:
        """Make projector and predictor for the network's features, and a copy of it all."""
        super().begin(network, batches)
        self.total = len(batches)
        width = features_of(network)
        self.projector = Projector(width, hidden_width(width), layers=3)
        self.predictor = Projector(DIMENSIONS, hidden_width(width), layers=2)
        self.slow = deepcopy(nn.ModuleList([network, self.projector])).requires_grad_(False)

    def forward(
        self, network: Network, architecture: Architecture, batch: Tensors, rng: Random
    ) -> Made:
        """Projections of both views; of the largest also predictions, and the slow copy's keys."""
        views = two_views(batch[self.space.parts.takes], rng)
        projected = [self.projector(network(x, architecture)) for x in views]
        if not is_largest(architecture, network):
            return tuple(z.float() for z in projected)
        predicted = [self.predictor(z) for z in projected]
        slow, projector = self.slow
        # Not under `no_grad`: layers would write where they read. Nothing here asks for gradients.
        keys = [projector(slow(x, architecture)) for x in views]
        return tuple(z.float() for z in (*projected, *predicted, *keys))

    def loss(self, made: Made, batch: Tensors) -> Tensor:
        """The loss of the first view's predictions on the second's keys, and the other way."""
        _, _, q1, q2, k1, k2 = made
        return moco_loss(q1, k2) + moco_loss(q2, k1)

    @torch.no_grad()
    def after_step(self, network: Network) -> None:
        """Let the copy follow the weights; statistics of its norms are its own."""
        self.steps += 1
        weight = (1 - self.momentum()).float()
        for slow, module in zip(self.slow, (network, self.projector)):
            for own, theirs in zip(slow.parameters(), module.parameters()):
                own.lerp_(theirs, weight)

    def momentum(self) -> Tensor:
        """The share of itself that the copy keeps in this step (a scalar)."""
        done = self.steps / self.total
        return 1 - (1 - MOMENTUM) * 0.5 * (1 + torch.cos(math.pi * done))


OBJECTIVE = Contrastive
