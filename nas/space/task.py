"""Tasks: what the outputs of a network mean, how wrong they are, and how good.

A task is part of a search space, because the head of a network depends on it. Everything else that
differs between tasks (the loss on labels, the score of a subnet, the names of classes) stands in
the one file of the task in `nas/tasks`, and nothing elsewhere asks for a task's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nas.extensions import member_name

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Batch = Mapping[str, Tensor]  # named tensors, the samples along the first axis
    Observed = NDArray[Any]  # (samples, ...)


class Metric(ABC):
    """How good the outputs of a network are on a split, in percent; more is better.

    `observe` says of each sample what it adds to the total, so that splits are evaluated in parts.
    """

    name: ClassVar[str]  # as in the key `search_top1_percent` of a run
    label: ClassVar[str]  # as a reader sees it, e.g. "top-1 accuracy"
    heading: ClassVar[str] = ""  # of a column, e.g. "top-1"; empty for the name
    vectors: ClassVar[bool] = False  # whether it is given features, whatever the network's task
    references: int = 0  # labelled samples of the train split that each network is fitted to first

    @property
    def key(self) -> str:
        """The key of the score in the journal of a run, e.g. `top1_percent`."""
        return f"{self.name}_percent"

    def fitted(self, outputs: Tensor, batch: Batch) -> Metric:
        """This metric for the network that gives these outputs for the reference samples."""
        return self

    def searched(self, network: Any, data: Any) -> Any:
        """The `Network` that is searched instead of a supernet, e.g. with another head.

        By default itself; `data` is the `Dataset`.
        """
        return network

    def keep(self, network: Any, folder: Path) -> None:
        """Write what belongs beside an exported network, given as it was before `searched`."""
        return

    @abstractmethod
    def observe(self, outputs: Tensor, batch: Batch) -> Observed:
        """What each sample of a batch adds to the total: an array (samples, ...)."""

    @abstractmethod
    def percent(self, observed: Observed) -> float:
        """The total over samples, from 0 to 100."""

    @abstractmethod
    def variance(self, observed: Observed) -> float:
        """The variance of `percent` over draws of as many samples, in percentage points squared."""

    def by_class(self, observed: Observed) -> tuple[float | None, ...]:
        """The score of each class, from 0 to 100; None for one that does not occur.

        Empty, the default, where classes have no scores of their own.
        """
        return ()

    def outcomes(self, observed: Observed) -> NDArray[np.bool_] | NDArray[np.float64] | None:
        """How well each sample did (samples,), as hits or from 0 to 1; what a race compares.

        None where only the whole set has a score: candidates then are not raced.
        """
        return None


class Hits(Metric):
    """A metric whose total is the share of samples that are right: `observe` says which."""

    def percent(self, observed: Observed) -> float:
        """The share of samples that are right, from 0 to 100."""
        return float(100 * observed.mean())

    def variance(self, observed: Observed) -> float:
        """The binomial variance of the share, in percentage points squared."""
        return share_variance(self.percent(observed), len(observed))

    def outcomes(self, observed: Observed) -> NDArray[np.bool_]:
        """Which samples are right (samples,), bool."""
        return observed


@dataclass(frozen=True)
class Meaning:
    """What the outputs of a network say of one sample: a line for people, and the same as JSON."""

    line: str
    facts: dict[str, Any]


def share_variance(percent: float, samples: int) -> float:
    """The variance of a share of hits among so many samples, in percentage points squared.

    A few hits do not prove certainty: the share counts as at least 2 and at most 98 percent.
    """
    share = min(max(percent / 100, 0.02), 0.98)
    return 1e4 * share * (1 - share) / samples


@dataclass(frozen=True)
class Task(ABC):
    """What the outputs of a network mean. Fields of a subclass are sizes that its head depends on.

    Fields that are not compared (such as names of classes) may differ between equal tasks.
    """

    metric: ClassVar[Metric]
    scales: ClassVar[int] = 1  # how many of the last stages the head reads, at most
    usual: ClassVar[Mapping[str, str]] = {}  # settings of who names the task and no more
    labelled: ClassVar[bool] = True  # whether data pose it by labels; else all data do
    dense: ClassVar[bool] = False  # whether outputs are maps over the input

    @property
    def name(self) -> str:
        """The name of its file in `nas/tasks`, or of the module of one's own."""
        return member_name("nas.tasks", type(self).__module__)

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Channels of the network's output."""

    @property
    @abstractmethod
    def chance_percent(self) -> float:
        """What a guess gets by the metric, in percent."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean loss of `outputs` on the labels of a batch, a scalar."""

    @abstractmethod
    def distillation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The mean loss of `outputs` on the outputs of a larger network, a scalar."""

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """The task that `to_json` or `describe` wrote into `data`, which may hold other keys."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})

    def answers(self, outputs: Tensor) -> Tensor | None:
        """What each output says, e.g. its class: (samples, ...), equal where they say the same.

        None, the default, where outputs have no such reading: changed answers are not counted.
        """
        return None

    def painted(self, answers: Tensor) -> Tensor:
        """What to lay over a sample to show answers (height, width): colours and opacity.

        Answers are those of `answers`, or labels; (height, width, 4) in [0, 1] is returned. Dense
        tasks have it.
        """
        raise NotImplementedError(f"the answers of {self.name} are not laid out over the input")

    def legend(self) -> dict[str, tuple[float, float, float]]:
        """What the colours that `painted` gives stand for: names, each with its colour."""
        return {}

    @abstractmethod
    def caption(self, outputs: Tensor, batch: Batch) -> str:
        """What a report writes below one sample, given its output and its labels, each (1, ...)."""

    def meaning(self, outputs: Tensor, top: int) -> Meaning:
        """What outputs (1, ...) say of one sample; of several answers the best, up to `top`.

        A task that does not say so gives its outputs as they are.
        """
        shape = " x ".join(map(str, outputs.shape[1:]))
        return Meaning(f"{shape} outputs", {"outputs": outputs[0].tolist()})

    def to_json(self) -> dict[str, Any]:
        """What `nas.tasks.load_task` makes an equal task of."""
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return {"task": self.name, **sizes}

    def describe(self) -> dict[str, Any]:
        """What a run or a supernet says about its task: all fields, e.g. the names of classes."""
        return {"task": self.name, **asdict(self)}


@dataclass(frozen=True)
class ClassTask(Task):
    """A task whose outputs are logits of `classes`, whose names may be known."""

    classes: int = 10
    names: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """The task of a number of classes or a list of their names, under `classes`."""
        classes = data["classes"]
        own = {f.name for f in fields(cls)} - {"classes", "names"}
        more = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in own}
        if isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes):
            return cls(len(classes), tuple(classes), **more)
        if type(classes) is not int or classes < 1:
            raise ValueError(f"classes is {classes!r}, neither their number nor a list of names")
        return cls(classes, **more)

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return self.classes

    def called(self, label: int) -> str:
        """The name of a class, or its number where names are not known."""
        return self.names[label] if self.names else str(label)

    def most(self, percent: Tensor, top: int) -> Meaning:
        """The `top` classes of which there is most, given the share (classes,) of each."""
        best = percent.argsort(descending=True)[:top].tolist()
        answers = [{"class": self.called(i), "percent": round(float(percent[i]), 2)} for i in best]
        line = ", ".join(f"{answer['class']} {answer['percent']:.1f} %" for answer in answers)
        return Meaning(line, {"answers": answers})

    def describe(self) -> dict[str, Any]:
        """The names of the classes under the key `classes`, where they are known."""
        return {"task": self.name, "classes": list(self.names) or self.classes}
