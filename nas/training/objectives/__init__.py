"""Objectives: what a network learns from. A file for each; `OBJECTIVE` is its class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from random import Random

from torch import Tensor, nn

from nas.data import Tensors
from nas.extensions import load_member, member_name
from nas.network.network import Network
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace

Made = tuple[Tensor, ...]


class Objective(nn.Module, ABC):
    """What the networks of a space learn from.

    It is a module: what it holds besides the network (a decoder, a projector, a text tower) is
    trained and checkpointed together with the network, and neither searched, measured nor shipped.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space

    @property
    def name(self) -> str:
        """The name of its file in this folder, or of the module of one's own."""
        return member_name(__name__, type(self).__module__)

    @abstractmethod
    def forward(
        self, network: Network, architecture: Architecture, batch: Tensors, rng: Random
    ) -> Made:
        """What one architecture of a network makes of a batch, for `loss` and `distil`.

        The inputs in the batch have the size of the architecture. Within a step `rng` starts in the
        same state for every architecture, so that all of them can hide the same parts of a sample.
        """

    @abstractmethod
    def loss(self, made: Made, batch: Tensors) -> Tensor:
        """The mean loss (a scalar) on a batch, whose inputs have the size that it was loaded at."""

    @abstractmethod
    def distil(self, small: Made, large: Made) -> Tensor:
        """The mean loss (a scalar) of what a network made by what a larger one made of the batch.

        `large` carries no gradients.
        """


def load_objective(name: str, space: SearchSpace) -> Objective:
    """The objective called `name` for the networks of a space."""
    made: type[Objective] = load_member("objective", __name__, name, "OBJECTIVE")
    return made(space)
