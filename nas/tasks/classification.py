"""Classification of images into one of several classes, scored by top-1 accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nas.space.task import ClassTask, Hits, Meaning, Metric

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
class Classification(ClassTask):
    """One of `classes`, by logits (samples, classes); labels are integers (samples,).

    As many as the shipped data has, unless somebody says how many.
    """

    metric: ClassVar[Metric] = Top1()

    @classmethod
    def of_imagenet(cls) -> Classification:
        """Classification as the published models of all families do it."""
        return cls(1000)

    @classmethod
    def of(cls, names: Sequence[str]) -> Classification:
        """Classification into the classes of these names."""
        return cls(len(names), tuple(names))

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
            f"{self.called(right)} ✓"
            if right == answer
            else (f"{self.called(right)} \n✗ {self.called(answer)}")
        )

    def meaning(self, outputs: Tensor, top: int) -> Meaning:
        """The most probable classes, the best one first."""
        percent = 100 * outputs[0].float().softmax(0)
        return self.most(percent, top)


TASK = Classification
