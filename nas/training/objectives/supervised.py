"""Learning from labels, and smaller networks from the outputs of larger ones (BigNAS)."""

from __future__ import annotations

from random import Random

from torch import Tensor

from nas.data import Tensors
from nas.network.network import Network
from nas.space.architecture import Architecture
from nas.training.objectives import Made, Objective


class Supervised(Objective):
    """The losses of the space's task; it has no weights of its own."""

    needs_labels = True
    meaning = "that of the task on the labels"

    def forward(
        self, network: Network, architecture: Architecture, batch: Tensors, rng: Random
    ) -> Made:
        """The outputs of the network as float32, by themselves."""
        outputs: Tensor = network(batch[self.space.parts.takes], architecture)
        return (outputs.float(),)

    def loss(self, made: Made, batch: Tensors) -> Tensor:
        """The loss of the task on the labels."""
        return self.space.task.loss(made[0], batch)

    def distil(self, small: Made, large: Made) -> Tensor:
        """The loss of the task on the outputs of the larger network."""
        return self.space.task.distillation(small[0], large[0])


OBJECTIVE = Supervised
