"""Classification of images into one of several classes, scored by top-1 accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nas.space.task import Hits, Meaning, Metric, Task

if TYPE_CHECKING:
    from torch import Tensor

    from nas.space.task import Batch, Observed


class Top1(Hits):
    """The share of samples whose class has the largest logit."""

    name = "top1"
    label = "top-1 accuracy"
    heading = "top-1"

    def observe(self, outputs: Tensor, batch: Batch) -> Observed:
        """Which samples are classified correctly (samples,), bool."""
        hits: Observed = (outputs.argmax(1) == batch["labels"]).cpu().numpy()
        return hits


@dataclass(frozen=True)
class Classification(Task):
    """One of `classes`, by logits (samples, classes); labels are integers (samples,).

    As many as the shipped data has, unless somebody says how many.
    """

    classes: int = 10
    names: tuple[str, ...] = field(default=(), compare=False)

    metric: ClassVar[Metric] = Top1()

    @classmethod
    def of_imagenet(cls) -> Classification:
        """Classification as the published models of all families do it."""
        return cls(1000)

    @classmethod
    def of(cls, names: Sequence[str]) -> Classification:
        """Classification into the classes of these names."""
        return cls(len(names), tuple(names))

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """The task of a number of classes or a list of their names, under `classes`."""
        classes = data["classes"]
        if isinstance(classes, list) and classes and all(isinstance(c, str) for c in classes):
            return cls(len(classes), tuple(classes))
        if type(classes) is not int or classes < 1:
            raise ValueError(f"classes is {classes!r}, neither their number nor a list of names")
        return cls(classes)

    @property
    def outputs(self) -> int:
        """The number of classes."""
        return self.classes

    @property
    def chance_percent(self) -> float:
        """The accuracy of a guess when classes are equally frequent."""
        return 100 / self.classes

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy with the labels."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, batch["labels"])

    def distillation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The cross-entropy with the teacher's probabilities."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, teacher.softmax(-1))

    def answers(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit (samples,)."""
        return outputs.argmax(1)

    def caption(self, outputs: Tensor, batch: Batch) -> str:
        """The class, and where the answer differs, the answer below it."""
        right, answer = int(batch["labels"][0]), int(outputs[0].argmax())
        return (
            f"{self._called(right)} ✓"
            if right == answer
            else (f"{self._called(right)} \n✗ {self._called(answer)}")
        )

    def meaning(self, outputs: Tensor, top: int) -> Meaning:
        """The most probable classes, the best one first."""
        percent = 100 * outputs[0].float().softmax(0)
        best = percent.argsort(descending=True)[:top].tolist()
        answers = [{"class": self._called(i), "percent": round(float(percent[i]), 2)} for i in best]
        line = ", ".join(f"{answer['class']} {answer['percent']:.1f} %" for answer in answers)
        return Meaning(line, {"answers": answers})

    def _called(self, label: int) -> str:
        return self.names[label] if self.names else str(label)

    def describe(self) -> dict[str, Any]:
        """The names of the classes under the key `classes`, where they are known."""
        return {"task": self.name, "classes": list(self.names) or self.classes}


TASK = Classification
