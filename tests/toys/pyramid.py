"""A toy family with an answer for every pixel, made of the maps at the ends of two stages.

Between layers travel a map and, in the second stage, the map at the end of the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nas.layers.elastic import ElasticLinear, ElasticMlp, ElasticModule
from nas.network.inputs import Images
from nas.space.architecture import Architecture, Stage
from nas.space.domains import Choice, Fixed, Repeat, Space
from nas.space.layer import Layer, Part
from toys.pixels import Pixels


def patches(x_BSSC):
    """Each 2x2 pixels as one, with four times the channels: (B, S/2, S/2, 4C)."""
    b, s, _, c = x_BSSC.shape
    x = x_BSSC.reshape(b, s // 2, 2, s // 2, 2, c).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(b, s // 2, s // 2, 4 * c)


class Stem(ElasticModule):
    def __init__(self, *, width):
        super().__init__()
        self.fc = ElasticLinear(12, width)

    def forward(self, images, *, width):
        return (self.fc(patches(images.permute(0, 2, 3, 1)), width),)


class Mix(ElasticModule):
    """An MLP on each pixel; `before` is the width of a map that passes by, 0 for none."""

    def __init__(self, *, width, hidden, before):
        super().__init__()
        self.mlp = ElasticMlp(width, hidden)

    @classmethod
    def inputs(cls, batch, input_shape, *, before, **sizes):
        side, _, width = input_shape
        earlier = (torch.randn(batch, 2 * side, 2 * side, before),) if before else ()
        return torch.randn(batch, side, side, width), *earlier

    def forward(self, x_BSSC, *earlier, width, hidden, before):
        return x_BSSC + self.mlp(x_BSSC, hidden), *earlier


class Merge(ElasticModule):
    """To half the side; the map that arrives is kept beside the new one."""

    def __init__(self, *, before, width):
        super().__init__()
        self.fc = ElasticLinear(4 * before, width)

    def forward(self, x_BSSC, *, before, width):
        return self.fc(patches(x_BSSC), width), x_BSSC


class Answer(ElasticModule):
    def __init__(self, *, width, before, outputs):
        super().__init__()
        self.deep, self.shallow = ElasticLinear(width, outputs), ElasticLinear(before, outputs)

    inputs = Mix.inputs

    def forward(self, x_BSSC, earlier, *, width, before, outputs):
        deep = self.deep(x_BSSC).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return ((deep + self.shallow(earlier)).permute(0, 3, 1, 2),)


@dataclass(frozen=True)
class Block:
    hidden: int
    sparsity: int
    precision: str


@dataclass(frozen=True)
class Pyramid(Images):
    multiple = 4

    def stem(self, resolution, width):
        layer = Layer.of("stem", Stem, self.example(resolution), width=width)
        return Part((layer,), (resolution // 2, width, 0))

    def transition(self, stage, state, width):
        side, before, _ = state
        layer = Layer.of(f"merge{stage}", Merge, (side, side, before), before=before, width=width)
        return Part((layer,), (side // 2, width, before))

    def block(self, stage, index, state, block):
        side, width, before = state
        sizes = {"width": width, "hidden": block.hidden, "before": before}
        return Part((Layer.of(f"block{stage}_{index}", Mix, (side, side, width), **sizes),), state)

    def head(self, state, task):
        side, width, before = state
        sizes = {"width": width, "before": before, "outputs": task.outputs}
        return (Layer.of("head", Answer, (side, side, width), **sizes),)

    def origin(self, path, name):
        return f"{path}.{name}", None


BLOCK = Space(Block, hidden=Choice(8, 16), sparsity=Choice(0), precision=Choice("fp32"))
STAGE = Space(Stage, width=Choice(8, 12), blocks=Repeat(BLOCK, Choice(1, 2)))
DOMAIN = Space(Architecture, resolution=Choice(16, 32), stages=Fixed(STAGE, STAGE))
PRESETS = {"debug": (DOMAIN, Pyramid())}
TASK = Pixels()
