"""A family of sets of vectors whose blocks run twice, on few vectors and then on twice as many.

Its size is the number of vectors, each of three numbers. All blocks run in the first phase; then
every vector is doubled, and the same blocks, with the same weights, run again.
"""

from __future__ import annotations

from dataclasses import dataclass

from nas.layers.elastic import ElasticLinear, ElasticMlp, ElasticModule
from nas.space.architecture import Architecture, Stage
from nas.space.domains import Choice, Fixed, Repeat, Space
from nas.space.layer import Layer, Part

NUMBERS = 3


class Embed(ElasticModule):
    def __init__(self, *, width):
        super().__init__()
        self.fc = ElasticLinear(NUMBERS, width)

    def forward(self, x, *, width):
        return (self.fc(x, width),)


class Twice(ElasticModule):
    def forward(self, x):
        return (x.repeat_interleave(2, 1),)


class Mix(ElasticModule):
    def __init__(self, *, width, hidden):
        super().__init__()
        self.mlp = ElasticMlp(width, hidden)

    def forward(self, x, *, width, hidden):
        return (x + self.mlp(x, hidden) + x.mean(1, keepdim=True),)


class Answer(ElasticModule):
    def __init__(self, *, width, outputs):
        super().__init__()
        self.fc = ElasticLinear(width, outputs)

    def forward(self, x, *, width, outputs):
        return (self.fc(x.mean(1)),)


@dataclass(frozen=True)
class Block:
    hidden: int
    precision: str = "fp32"
    sparsity: int = 0


@dataclass(frozen=True)
class Sets:
    takes = "points"
    unit = "points"
    multiple = 1

    def example(self, size):
        return size, NUMBERS

    def resized(self, inputs, size):
        return inputs[:, :size]

    def stem(self, resolution, width):
        embed = Layer.of("embed", Embed, (resolution, NUMBERS), width=width)
        twice = Layer.of("twice", Twice, (resolution, width), phase=1)
        return Part((embed, twice), (resolution, width))

    def block(self, stage, index, state, block):
        n, width = state
        sizes = {"width": width, "hidden": block.hidden}
        path = f"block{index}"
        once = Layer.of(path, Mix, (n, width), **sizes)
        return Part((once, Layer.of(path, Mix, (2 * n, width), phase=1, **sizes)), state)

    def head(self, state, task):
        n, width = state
        return (Layer.of("head", Answer, (2 * n, width), width=width, outputs=task.outputs),)

    def origin(self, path, name):
        return f"{path}.{name}", None


BLOCK = Space(Block, hidden=Choice(4, 12, 20), precision=Choice("fp32"), sparsity=Choice(0))
STAGE = Space(Stage, width=Choice(8, 16), blocks=Repeat(BLOCK, Choice(1, 2)))
DOMAIN = Space(Architecture, resolution=Choice(4, 6, 8), stages=Fixed(STAGE))
PRESETS = {"debug": (DOMAIN, Sets())}
