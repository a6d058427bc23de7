"""A layer as data: the unit of which networks, latency tables and counts are made."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nas.layers.elastic import ElasticModule


@dataclass(frozen=True, slots=True)
class Layer:
    """A piece of a network: builder of a module, row of a latency table, unit of MAC counting.

    `path` says where in the network its weights live; it is no part of the `key`, so equal layers
    at different places share one measurement. `input_shape` is without the batch axis. Layers run
    in the order in which a family emits them; those of a later `phase` run after all of an earlier
    one. A network whose layers run in every phase (scale by scale generation) emits each of them
    once a phase, with the same path: the weights are the same, and are counted once.
    """

    path: str
    module: type[ElasticModule]
    args: tuple[tuple[str, int], ...]
    input_shape: tuple[int, ...]
    phase: int = 0

    @classmethod
    def of(
        cls,
        path: str,
        module: type[ElasticModule],
        input_shape: tuple[int, ...],
        *,
        phase: int = 0,
        **args: int,
    ) -> Layer:
        """A layer of the sizes `args`, which the module is built with and called with."""
        return cls(path, module, _pairs(tuple(args), tuple(args.values())), input_shape, phase)

    @property
    def sizes(self) -> dict[str, int]:
        """What the module is built with and called with, by name."""
        return dict(self.args)

    @property
    def key(self) -> str:
        """The name of its row in a latency table, e.g. `Mlp(hidden=768, width=192)@196x192`."""
        return _key(self.module.__name__, self.args, self.input_shape)

    def build(self) -> ElasticModule:
        """A module with weights of this layer's sizes."""
        return self.module(**self.sizes)


# The graph of a large space has a hundred thousand layers, but only some thousand different ones.
@cache
def _pairs(names: tuple[str, ...], values: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(zip(names, values)))


@cache
def _key(module: str, args: tuple[tuple[str, int], ...], input_shape: tuple[int, ...]) -> str:
    sizes = ", ".join(f"{k}={v}" for k, v in args)
    return f"{module}({sizes})@{'x'.join(map(str, input_shape))}"


class Part(NamedTuple):
    """What a choice adds to the network, and the state in which it leaves it."""

    layers: tuple[Layer, ...]
    state: Hashable


def in_phases(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """These layers in the order in which they run: by phase, within one as they were emitted."""
    return tuple(sorted(layers, key=lambda layer: layer.phase))


def by_path(layers: Iterable[Layer]) -> dict[str, Layer]:
    """One layer for each place of weights: the first of those that share it."""
    found: dict[str, Layer] = {}
    for layer in layers:
        found.setdefault(layer.path, layer)
    return found
