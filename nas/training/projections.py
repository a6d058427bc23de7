"""Projections of the features of networks of all sizes, and the losses that compare them.

A projector takes features of any width up to the largest, so one serves all subnets. Here stand the
losses of two publications: MoCo v3 (Chen et al., ICCV 2021, https://arxiv.org/abs/2104.02057) and
SimCLR (Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.data import Dataset, Split
from nas.errors import UsageError
from nas.layers.elastic import ElasticLinear
from nas.network.network import Network
from nas.space.family import SearchSpace
from nas.space.task import Task
from nas.tasks.embedding import Embedding
from nas.training.objectives import Made, Objective

DIMENSIONS = 256  # of what is compared
TEMPERATURE = 0.2
_SHOWN, _KNOWN, _NEAREST = 6, 256, 5  # pictures of the report of a training
_HIDDEN = 4096  # at most; four times the features of smaller networks


class Projector(nn.Sequential):
    """Linear layers without bias, each followed by a BatchNorm: ReLU between, no scale at the end.

    Features (n, width) may be narrower than it was built for. Statistics are always those of the
    batch, as no projection is needed after the training.
    """

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        sizes = [width, *[hidden] * (layers - 1), DIMENSIONS]
        parts: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            last = i == layers - 1
            norm = nn.BatchNorm1d(outputs, affine=not last, track_running_stats=False)
            parts += [ElasticLinear(inputs, outputs, bias=False), norm]
            parts += [] if last else [nn.ReLU(inplace=True)]
        super().__init__(*parts)
        for linear in self:
            if isinstance(linear, ElasticLinear):
                nn.init.kaiming_uniform_(linear.weight, a=5**0.5)  # as torch's, and so MoCo's


def hidden_width(features: int) -> int:
    """The width of hidden layers of a projector."""
    return min(_HIDDEN, 4 * features)


@torch.no_grad()
def features_of(network: Network) -> int:
    """The length of the vectors that a network makes; `UsageError` if it makes others."""
    inputs = torch.zeros(1, *network.space.example(network.architecture))
    before = network.training
    outputs = network.eval()(inputs.to(next(network.parameters()).device))
    network.train(before)
    if network.space.task.labelled or outputs.ndim != 2:
        raise UsageError(
            f"views are compared by vectors, not by the outputs of a {network.space.task.name}",
            "train with the task embedding",
        )
    return int(outputs.shape[1])


def check_batches(batches: Sequence[int]) -> None:
    """Raise `UsageError` unless every batch has samples to compare with each other."""
    if (least := min(batches, default=2)) < 2:
        raise UsageError(
            f"a sample is told from others of its batch: batches need 2 samples, one has {least}",
            "raise `batches` of the recipe (nas.Recipe)",
        )


class TwoViews(Objective):
    """What objectives have in common that tell pictures apart by two views of each."""

    takes = "images"
    augments = True

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space)
        self.different: int | None = None  # pictures to learn from, where data were studied

    @classmethod
    def task(cls, posed: Task) -> Task:
        """Networks that make features."""
        return Embedding()

    def study(self, data: Dataset) -> None:
        """Count the pictures to learn from."""
        self.different = data.train.size

    def begin(self, network: Network, batches: Sequence[int]) -> None:
        """Raise `UsageError` where a batch is a single picture, or holds one twice."""
        check_batches(batches)
        if self.different is not None and self.different < (most := max(batches, default=0)):
            raise UsageError(
                f"a batch of {most} holds some of {self.different} pictures twice, and each would "
                "be told from itself",
                f"give {most} pictures to train on, or learn by --objective mae; from Python, "
                "lower `batches` of the recipe (nas.Recipe)",
            )

    def distil(self, small: Made, large: Made) -> Tensor:
        """How far the projections of both views are from those of the larger network."""
        return disagreement(small[:2], large[:2])

    def pictures(self, network: Network, data: Dataset) -> dict[str, Tensor]:
        """Pictures of the search split beside their nearest neighbours."""
        return neighbours(network, data)


def moco_loss(queries: Tensor, keys: Tensor) -> Tensor:
    """How badly queries (n, d) find the key (n, d) of the same sample among all: MoCo v3, eq. 1.

    The factor of twice the temperature keeps gradients as large at any temperature.
    """
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / TEMPERATURE
    own = torch.arange(len(logits), device=logits.device)
    return 2 * TEMPERATURE * F.cross_entropy(logits, own)


def nt_xent(a: Tensor, b: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The mean over all 2n views of how badly each (n, d) finds its other: SimCLR, equation 1.

    A view is not compared with itself. The official code returns the sum of two means, twice this.
    """
    z = F.normalize(torch.cat((a, b)), dim=1)
    logits = (z @ z.T / temperature).masked_fill(
        torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf
    )
    other = torch.arange(len(z), device=z.device).roll(len(a))
    return F.cross_entropy(logits, other)


def disagreement(small: Sequence[Tensor], large: Sequence[Tensor]) -> Tensor:
    """The mean of 2 - 2 cos between the projections (n, d) of two networks, view by view.

    It is the squared distance of the normalised vectors (BYOL, Grill et al., NeurIPS 2020, eq. 2).
    A larger network that tells samples apart keeps the smaller from collapsing.
    """
    cosines = [F.cosine_similarity(own, theirs, dim=1).mean() for own, theirs in zip(small, large)]
    return 2 - 2 * torch.stack(cosines).mean()


@torch.no_grad()
def neighbours(network: Network, data: Dataset) -> dict[str, Tensor]:
    """Pictures (rows, columns, 3) by their caption: some of the search split, each in a row with
    the train split's pictures whose features are nearest to its own by their cosine."""
    space, architecture = network.space, network.architecture

    def first(split: Split, count: int) -> tuple[Tensor, Tensor]:
        images = data.first(split, count, architecture.resolution)[space.parts.takes]
        made = [network(part) for part in torch.split(images, 16)]
        return images, F.normalize(torch.cat(made), dim=1)

    seen, ours = first(data.search, _SHOWN)
    known, theirs = first(data.train, _KNOWN)
    nearest = (ours @ theirs.T).topk(min(_NEAREST, len(known))).indices
    gap = torch.full_like(seen[0, ..., : 1 + seen.shape[-1] // 8], float(seen.max()))
    rows = [torch.cat([image, gap, *known[at]], 2) for image, at in zip(seen, nearest)]
    mosaic = torch.cat(rows, 1).permute(1, 2, 0)
    return {
        f"On the left pictures of the search split, each beside those of {len(known)} of the "
        "train split whose features are nearest": data.colours(mosaic)
    }
