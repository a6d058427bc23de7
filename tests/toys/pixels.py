"""A toy task: the class of every pixel, scored by the mean intersection over union."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from nas.space.task import Metric, Task


class MeanIoU(Metric):
    """One confusion matrix over all pixels of all images; a mean over images is another number."""

    name, label, heading = "miou", "mean IoU", "mIoU"

    def observe(self, outputs, batch):
        right = _at(batch["masks"], outputs)
        answers, classes = outputs.argmax(1), outputs.shape[1]
        pairs = F.one_hot(right * classes + answers, classes**2).flatten(1, 2).sum(1)
        return pairs.view(-1, classes, classes).cpu().numpy()

    def percent(self, observed):
        return float(100 * _iou(observed.sum(0)))

    def variance(self, observed):
        """By the jackknife: how much the total changes without each of the images."""
        n, total = len(observed), observed.sum(0)
        without = np.array([100 * _iou(total - one) for one in observed])
        return float((n - 1) * without.var())

    def outcomes(self, observed):
        return np.array([_iou(one) for one in observed])


def _iou(confusion):
    """The mean over classes that occur, of a matrix (right class, answer)."""
    both, either = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return float((both[either > 0] / either[either > 0]).mean())


def _at(masks, outputs):
    """Masks (samples, side, side) at the side of the outputs: the nearest pixel."""
    index = torch.arange(outputs.shape[-1]) * masks.shape[-1] // outputs.shape[-1]
    return masks[:, index[:, None], index]


@dataclass(frozen=True)
class Pixels(Task):
    """Outputs (samples, classes, side, side) of any side; `masks` are integers."""

    classes: int = 2
    metric = MeanIoU()
    scales = 2

    @property
    def outputs(self):
        return self.classes

    @property
    def chance_percent(self):
        return 100 / (2 * self.classes - 1)

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, _at(batch["masks"], outputs))

    def distillation(self, outputs, teacher):
        teacher = F.interpolate(teacher, outputs.shape[-2:])
        return F.cross_entropy(outputs, teacher.softmax(1))

    def answers(self, outputs):
        return outputs.argmax(1)

    def caption(self, outputs, batch):
        return f"IoU {self.metric.percent(self.metric.observe(outputs, batch)):.0f} %"


TASK = Pixels
