"""Embedding: vectors instead of answers, for networks that learn without labels.

The head of a family ends before its classifier, or in one linear layer without a meaning of its
own. How good such vectors are only shows by what is made of them, so the task has no score itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from nas.errors import UsageError
from nas.space.task import Meaning, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor

    from nas.space.task import Batch, Observed


class Unscored(Metric):
    """No score: every call says how a network that learned without labels gets one."""

    name = "unscored"
    label = "no score"

    def observe(self, outputs: Tensor, batch: Batch) -> Observed:
        """Raise `UsageError`."""
        _refuse("have no score of their own")

    def percent(self, observed: Observed) -> float:
        """Raise `UsageError`."""
        _refuse("have no score of their own")

    def variance(self, observed: Observed) -> float:
        """Raise `UsageError`."""
        _refuse("have no score of their own")


@dataclass(frozen=True)
class Embedding(Task):
    """Vectors (samples, `size`), a projection of the features that a classifier would read.

    With a `size` of 0 they are these features themselves, as wide as the architecture has them.
    """

    size: int = 0

    metric: ClassVar[Metric] = Unscored()
    labelled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 0:
            raise ValueError(f"the size {self.size!r} is not a whole number of at least 0")

    @property
    def outputs(self) -> int:
        """The numbers of a vector; 0 for the features as they are."""
        return self.size

    @property
    def chance_percent(self) -> float:
        """Nothing is guessed."""
        return 0.0

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Raise `UsageError`: what vectors should be, no label says."""
        _refuse("are not learned from labels")

    def distillation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """Raise `UsageError`: an objective says what vectors of two sizes have in common."""
        _refuse("are not learned from those of another network by themselves")

    def meaning(self, outputs: Tensor, top: int) -> Meaning:
        """The vector of one sample, which nobody can read."""
        said = f"a vector of {outputs.shape[1]} numbers, and no class"
        return Meaning(said, {"outputs": outputs[0].tolist()})

    def caption(self, outputs: Tensor, batch: Batch) -> str:
        """The length of the vector."""
        return f"length {float(outputs.norm()):.1f}"


def _refuse(why: str) -> NoReturn:
    raise UsageError(
        f"the vectors of networks that learned without labels {why}",
        "continue with labels: vitnas train --init FOLDER --data DATA",
    )


TASK = Embedding
