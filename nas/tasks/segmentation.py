"""Segmentation: one of several classes for every pixel, scored by the mean IoU of the classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nas.space.task import ClassTask, Meaning, Metric, share_variance

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from nas.space.task import Batch, Observed

IGNORED = 255  # label of a pixel that is neither learned from nor scored
MOST_CLASSES = 255  # labels are bytes
BACKGROUND = "background"  # the class of this name is not painted
_OPACITY = 0.6
_GRID = 64  # pixels of a side on which networks are compared
_LEAST_POINTS = 1.0  # of the standard deviation that one sample has


class MeanIoU(Metric):
    """The mean over classes of intersection over union, from one confusion matrix of all pixels.

    Of that matrix each sample gives the diagonal and the two margins, which are all that is needed.
    A class counts if it occurs in the labels or in the answers.
    """

    name = "miou"
    label = "mean IoU"
    heading = "mIoU"

    def observe(self, outputs: Tensor, batch: Batch) -> Observed:
        """Counts of pixels (samples, 3, classes): classified correctly, labelled, and answered."""
        import torch

        labels, classes = batch["labels"].long(), outputs.shape[1]
        pairs = labels * classes + _largest(_at_side_of(labels, outputs))
        least = (IGNORED + 1) * classes
        counts = [own.flatten().bincount(minlength=least).view(-1, classes) for own in pairs]
        matrices = torch.stack(counts)[:, :classes]  # (samples, label, answer)
        margins = matrices.diagonal(dim1=1, dim2=2), matrices.sum(2), matrices.sum(1)
        observed: Observed = torch.stack(margins, 1).cpu().numpy()
        return observed

    def percent(self, observed: Observed) -> float:
        """The mean IoU, from 0 to 100; 0 where no pixel is labelled."""
        shares = [percent for percent in self.by_class(observed) if percent is not None]
        return float(np.mean(shares)) if shares else 0.0

    def by_class(self, observed: Observed) -> tuple[float | None, ...]:
        """The IoU of each class, from 0 to 100; None for one in neither labels nor answers."""
        both, either = _overlaps(observed.sum(0))
        return tuple(100 * float(b) / float(e) if e else None for b, e in zip(both, either))

    def variance(self, observed: Observed) -> float:
        """The variance of the mean IoU over draws of as many samples, by the delta method.

        A share of sums moves with each sample by (intersection - share * union) / sum of unions:
        what a bootstrap of samples finds, without the draws. It is never below that of samples
        whose scores differ by a point, because samples that are alike do not prove certainty.
        """
        samples = len(observed)
        if samples < 2:
            return share_variance(self.percent(observed), samples)
        both, either = (own.astype(np.float64) for own in _overlaps(observed))
        occurs = either.sum(0) > 0
        both, either = both[:, occurs], either[:, occurs]
        shares = both.sum(0) / either.sum(0)
        moved = 100 * ((both - shares * either) / either.sum(0)).sum(1) / max(1, occurs.sum())
        found = float(np.square(moved).sum() * samples / (samples - 1))
        return max(found, _LEAST_POINTS**2 / samples)

    def outcomes(self, observed: Observed) -> NDArray[np.float64]:
        """How well each sample did (samples,): its mean IoU over the classes that it has.

        Their mean is not the score, which sums over samples first, but follows it. Classes that are
        answered and not there count as pixels that the others lose. With an IoU of 0 for each of
        them, the mean of networks that confuse classes would follow the score no longer, because
        what a few pixels of a rare class do to one sample they hardly do to the sum.
        """
        both, either = _overlaps(observed)
        there = observed[:, 1] > 0
        shares = (both * there / np.maximum(either, 1)).sum(1) / np.maximum(there.sum(1), 1)
        outcomes: NDArray[np.float64] = np.where(there.any(1), shares, 1.0)
        return outcomes


def _overlaps(observed: Observed) -> tuple[Observed, Observed]:
    """Pixels (..., classes) in both labels and answers, and in either, of counts (..., 3, ...)."""
    both, labelled, answered = np.moveaxis(observed, -2, 0)
    return both, labelled + answered - both


def _at_side_of(labels: Tensor, outputs: Tensor) -> Tensor:
    """Outputs (samples, classes, ...) at the size of labels (..., height, width), bilinear."""
    from torch.nn.functional import interpolate

    if outputs.shape[-2:] == labels.shape[-2:]:
        return outputs
    return interpolate(outputs.float(), labels.shape[-2:], mode="bilinear")


def _largest(outputs: Tensor) -> Tensor:
    """The channel with the largest output; on CPUs five times as fast as `argmax`."""
    return outputs.max(1).indices


def _lost(both: Tensor, either: Tensor, counted: Tensor) -> Tensor:
    """One less the mean over the counted classes of intersection (classes,) over union."""
    shares = both / either.clamp(min=1e-6)
    return 1 - (shares * counted).sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class Segmentation(ClassTask):
    """One of `classes` for every pixel, by logits (samples, classes, height, width).

    Labels are integers (samples, height, width), 255 where a pixel does not count; logits of
    another size are resized to theirs. Small objects are a few pixels among many, so that the
    cross-entropy alone is content with the background. The loss therefore adds what the IoU of each
    class lacks, by probabilities instead of answers. Weights of classes would have to follow the
    size of pictures: training begins with small ones, on which an object is a large part.

    As many classes as the shipped scenes have, unless somebody says how many. `colours` are those
    of the classes in pictures, as `#rrggbb`; without them each class has one of its own.
    """

    classes: int = 11
    colours: tuple[str, ...] = field(default=(), compare=False)

    metric: ClassVar[Metric] = MeanIoU()
    scales: ClassVar[int] = 3
    dense: ClassVar[bool] = True
    usual: ClassVar[Mapping[str, str]] = {"space": "efficientvit:seg-micro", "data": "scenes:masks"}

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= MOST_CLASSES:
            raise ValueError(f"classes are {self.classes}, not from 2 to {MOST_CLASSES}")
        if not isinstance(self.colours, tuple):
            raise ValueError(f"colours are {self.colours!r}, no list")
        if self.colours and len(self.colours) != self.classes:
            raise ValueError(f"{len(self.colours)} colours are given to {self.classes} classes")
        if wrong := [c for c in self.colours if not re.fullmatch("#[0-9a-fA-F]{6}", c)]:
            raise ValueError(f"the colour {wrong[0]!r} is not written as #rrggbb")

    @classmethod
    def of(cls, names: Sequence[str], colours: Sequence[str] = ()) -> Segmentation:
        """Segmentation into the classes of these names, in pictures of these colours."""
        return cls(len(names), tuple(names), tuple(colours))

    @property
    def chance_percent(self) -> float:
        """The most that one answer for all pixels gets, when all pixels are of its class."""
        return 100 / self.classes

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy with the labels, and what the IoU of the classes that occur lacks."""
        labels = batch["labels"].long()
        known = labels != IGNORED
        labels = labels.where(known, 0)[:, None]
        logs = _at_side_of(labels, outputs).log_softmax(1)
        right = logs.gather(1, labels)[:, 0]
        entropy = -(right * known).sum() / known.sum().clamp(min=1)
        none = logs.new_zeros(self.classes)
        both = none.index_add(0, labels.flatten(), (right.exp() * known).flatten())
        there = labels.flatten().bincount(known.flatten(), minlength=self.classes).to(none.dtype)
        answered = (logs.exp() * known[:, None]).sum((0, 2, 3))
        return entropy + _lost(both, there + answered - both, there > 0)

    def distillation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The cross-entropy with the teacher's probabilities, and what the IoU with them lacks.

        Intersection and union are those of probabilities on both sides, so that the loss is least
        where they are equal (the Jaccard metric loss of Wang et al., NeurIPS 2023). Of the classes
        those count that the teacher answers somewhere. Large outputs are compared on a grid: heads
        interpolate what lies between.
        """
        step = max(1, max(teacher.shape[-2:]) // _GRID)
        logs = _at_side_of(teacher, outputs)[..., ::step, ::step].log_softmax(1)
        teacher = teacher[..., ::step, ::step]
        theirs, ours = teacher.softmax(1), logs.exp()
        entropy = -(theirs * logs).sum(1).mean()
        apart = (ours - theirs).abs().sum((0, 2, 3))
        whole = (ours + theirs).sum((0, 2, 3))
        answered = _largest(teacher).flatten().bincount(minlength=self.classes) > 0
        return entropy + _lost((whole - apart) / 2, (whole + apart) / 2, answered)

    def answers(self, outputs: Tensor) -> Tensor:
        """The class with the largest logit for every pixel (samples, height, width), as bytes."""
        return _largest(outputs).byte()

    def painted(self, answers: Tensor) -> Tensor:
        """The colours of the classes; pixels that do not count are grey, the background is bare."""
        import torch

        colours = torch.tensor([0.5, 0.5, 0.5, _OPACITY]).repeat(IGNORED + 1, 1)
        for i in range(self.classes):
            colours[i, :3] = torch.tensor(self._colour(i))
            if self.names and self.names[i] == BACKGROUND:
                colours[i, 3] = 0
        return colours[answers.long()]

    def legend(self) -> dict[str, tuple[float, float, float]]:
        """The names of the classes but for the background, each with its colour."""
        named = {self.called(i): self._colour(i) for i in range(self.classes)}
        named.pop(BACKGROUND, None)
        return named

    def _colour(self, label: int) -> tuple[float, float, float]:
        """The colour of a class: red, green and blue in [0, 1]."""
        text = self.colours[label] if self.colours else default_colour(label)
        red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue

    def caption(self, outputs: Tensor, batch: Batch) -> str:
        """The mean IoU of this sample alone."""
        return f"mIoU {self.metric.percent(self.metric.observe(outputs, batch)):.0f} %"

    def meaning(self, outputs: Tensor, top: int) -> Meaning:
        """The classes that cover most of a picture, with their shares of the pixels."""
        counts = self.answers(outputs)[0].flatten().bincount(minlength=self.classes)
        percent = 100 * counts / counts.sum()
        return self.most(percent, min(top, int(counts.count_nonzero())))

    def describe(self) -> dict[str, Any]:
        """The names of the classes under the key `classes`, where they are known, and `colours`."""
        colours = {"colours": list(self.colours)} if self.colours else {}
        return {**super().describe(), **colours}


def default_colour(label: int) -> str:
    """A colour for a class, as Pascal VOC gives it: three bits of the label to each place."""
    channels = [0, 0, 0]
    for place in range(3):
        for channel in range(3):
            channels[channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
    return "#" + "".join(f"{value:02x}" for value in channels)


TASK = Segmentation
