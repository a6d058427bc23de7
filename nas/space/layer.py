"""A layer as data: the unit of which networks, latency tables and counts are made."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nas.layers.elastic import ElasticModule


@dataclass(frozen=True, slots=True)
class Layer:
    """A piece of a network: builder of a module, row of a latency table, unit of MAC counting.

    `path` says where in the network its weights live; it is no part of the `key`, so equal layers
    at different places share one measurement. `input_shape` is without the batch axis.
    """

    path: str
    module: type[ElasticModule]
    args: tuple[tuple[str, int], ...]
    input_shape: tuple[int, ...]

    @classmethod
    def of(
        cls, path: str, module: type[ElasticModule], input_shape: tuple[int, ...], **args: int
    ) -> Layer:
        return cls(path, module, _pairs(tuple(args), tuple(args.values())), input_shape)

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.args)

    @property
    def key(self) -> str:
        """E.g. `Mlp(hidden=768, width=192)@196x192`."""
        return _key(self.module.__name__, self.args, self.input_shape)

    def build(self) -> ElasticModule:
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
