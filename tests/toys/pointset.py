"""A toy family of networks on sets of points, whose size is the number of points."""

from __future__ import annotations

from dataclasses import dataclass

from nas.layers.elastic import ElasticLinear, ElasticMlp, ElasticModule
from nas.space.architecture import Architecture, Stage
from nas.space.domains import Choice, Fixed, Repeat, Space
from nas.space.layer import Layer, Part


class Embed(ElasticModule):
    def __init__(self, *, width):
        super().__init__()
        self.fc = ElasticLinear(3, width)

    def forward(self, x_BNC, *, width):
        return (self.fc(x_BNC, width).relu(),)


class Spread(ElasticModule):
    """Every point sees itself and the largest value of each channel in the set."""

    def __init__(self, *, width, hidden):
        super().__init__()
        self.mlp = ElasticMlp(width, hidden)

    def forward(self, x_BNC, *, width, hidden):
        return (x_BNC + self.mlp(x_BNC + x_BNC.amax(1, keepdim=True), hidden),)


class Answer(ElasticModule):
    def __init__(self, *, width, outputs):
        super().__init__()
        self.fc = ElasticLinear(width, outputs)

    def forward(self, x_BNC, *, width, outputs):
        return (self.fc(x_BNC.mean(1)),)


@dataclass(frozen=True)
class Block:
    hidden: int
    sparsity: int
    precision: str


@dataclass(frozen=True)
class PointSet:
    takes = "points"
    unit = "points"
    multiple = 1

    def example(self, size):
        return size, 3

    def resized(self, inputs, size):
        return inputs[:, :size]

    def stem(self, resolution, width):
        return Part((Layer.of("embed", Embed, (resolution, 3), width=width),), (resolution, width))

    def block(self, stage, index, state, block):
        sizes = {"width": state[1], "hidden": block.hidden}
        return Part((Layer.of(f"block{index}", Spread, state, **sizes),), state)

    def head(self, state, task):
        width = state[1]
        return (Layer.of("head", Answer, state, width=width, outputs=task.outputs),)

    def origin(self, path, name):
        return f"{path}.{name}", None


BLOCK = Space(Block, hidden=Choice(4, 8, 16), sparsity=Choice(0), precision=Choice("fp32"))
STAGE = Space(Stage, width=Choice(8, 16), blocks=Repeat(BLOCK, Choice(1, 2)))
DOMAIN = Space(Architecture, resolution=Choice(8, 16, 32), stages=Fixed(STAGE))
PRESETS = {"debug": (DOMAIN, PointSet())}
