"""A toy objective: tell the mean of an input, e.g. its brightness, from the network's features."""

from __future__ import annotations

import torch.nn.functional as F

from nas.layers.elastic import ElasticLinear
from nas.training.objectives import Objective


class Average(Objective):
    def __init__(self, space):
        super().__init__(space)
        self.readout = ElasticLinear(space.largest.stages[-1].width, 1)

    def forward(self, network, architecture, batch, rng):
        x = network.features(batch[self.space.parts.takes], architecture)[0]
        return (self.readout(x.flatten(1, -2).mean(1)).float(),)

    def loss(self, made, batch):
        return F.mse_loss(made[0][:, 0], batch[self.space.parts.takes].flatten(1).mean(1))

    def distil(self, small, large):
        return F.mse_loss(small[0], large[0])


OBJECTIVE = Average
