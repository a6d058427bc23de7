"""Objectives: what a network learns from. A file for each; `OBJECTIVE` is its class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from random import Random
from typing import ClassVar

from torch import Tensor, nn

from nas.data import Dataset, Tensors
from nas.errors import UsageError
from nas.extensions import load_member, member_name, parse_options
from nas.families import families, load_space
from nas.network.network import Network
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.task import Task

Made = tuple[Tensor, ...]


class Objective(nn.Module, ABC):
    """What the networks of a space learn from.

    It is a module: what it holds besides the network (a decoder, a projector, a text tower) is
    trained and checkpointed together with the network, and neither searched, measured nor shipped.
    """

    needs_labels: ClassVar[bool] = False
    takes: ClassVar[str] = ""  # the kind of inputs it is for, e.g. "images"; any where it is empty
    augments: ClassVar[bool] = False  # itself, instead of the data
    sources: ClassVar[tuple[str, ...]] = ()  # options that name what it starts from
    meaning: ClassVar[str] = ""  # of its loss, for people: a sentence without a full stop
    usual: ClassVar[Mapping[str, str]] = {}  # settings of who names the objective and no more

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.options = ""  # as they were given behind its name
        self.starts: dict[str, str] = {}  # fingerprints of what it starts from besides the network

    @property
    def name(self) -> str:
        """The name of its file in this folder, or of the module of one's own; with its options."""
        return member_name(__name__, type(self).__module__) + self.options

    @classmethod
    def task(cls, posed: Task) -> Task:
        """The task of the networks that it trains: the one that the data pose, unless it says so.

        One that learns vectors trains networks of `Embedding`, whose head is no classifier. It may
        name options of the objective, as keyword-only arguments, that this depends on.
        """
        return posed

    def prepare(self, network: Network) -> None:
        """Set what is fixed in a new network, before it gets weights to start from, if any."""

    def begin(self, network: Network, batches: Sequence[int]) -> None:
        """Make what depends on the network that is going to be trained; by default nothing.

        `batches` are the sizes of the batches of all steps. What is made here is trained and
        checkpointed, too; weights of a checkpoint are loaded later.
        """

    def after_step(self, network: Network) -> None:
        """Follow the weights of the network, which a step has just changed; by default nothing."""

    def study(self, data: Dataset) -> None:
        """Make what depends on the data to learn from; by default nothing."""

    def keep(self, folder: Path) -> None:
        """Write what is used beside the weights in the folder of a supernet; by default nothing."""

    def take(self, folder: Path) -> None:
        """Go on from what `keep` wrote into the folder of a supernet; by default nothing.

        Called before `study`, which then makes what is lacking.
        """

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

    def pictures(self, network: Network, data: Dataset) -> dict[str, Tensor]:
        """What shows what a trained network has learned, for the report of its training.

        Pictures (rows, columns, 3 or 1) in [0, 1] by their captions; none by default.
        """
        return {}


def find_objective(name: str) -> type[Objective]:
    """The class of the objective called `name`; `UnknownNameError` for none."""
    plain = name.partition(",")[0]
    made: type[Objective] = load_member("objective", __name__, plain, "OBJECTIVE")
    return made


def starts_elsewhere(name: str) -> bool:
    """Whether options of an objective name what it starts from, besides the network."""
    given = {word.partition("=")[0] for word in name.split(",")[1:]}
    return not given.isdisjoint(find_objective(name).sources)


def task_of(name: str, data: Dataset) -> Task:
    """The task of networks that learn these data by an objective.

    Raises `UsageError` for an objective that needs the labels which the data do not have.
    """
    made = find_objective(name)
    if made.needs_labels and not data.task.labelled:
        raise UsageError(
            f"{name} learns from labels, and {data.name} has none",
            "learn without them first, e.g. --objective mae; or give data with labels",
        )
    return learned_task(name, data.task)


def learned_task(name: str, posed: Task) -> Task:
    """The task of networks that learn by an objective from data that pose another."""
    made = find_objective(name)
    options = parse_options(name, made, name.split(",")[1:])
    named = signature(made.task).parameters
    return made.task(posed, **{key: value for key, value in options.items() if key in named})


def load_objective(name: str, space: SearchSpace) -> Objective:
    """The objective that `NAME[,option=value...]` names, for the networks of a space.

    Options are keyword-only arguments of its class. Raises `UsageError` for those that it has not,
    and where the networks of the space cannot learn from it.
    """
    made = find_objective(name)
    plain, *words = name.split(",")
    if made.takes not in ("", space.parts.takes):
        able = [own for own in families() if load_space(f"{own}:debug").parts.takes == made.takes]
        raise UsageError(
            f"{plain} learns from {made.takes}, and {space.family} takes {space.parts.takes}",
            f"use a space of {', '.join(able)}",
        )
    objective = made(space, **parse_options(name, made, words))
    objective.options = name.removeprefix(plain)
    return objective


def is_largest(architecture: Architecture, network: Network) -> bool:
    """Whether an architecture is the one that a network was built at, at any size of the input."""
    own = network.architecture
    return replace(architecture, resolution=own.resolution) == own
