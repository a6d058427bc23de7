"""A layer as data: the unit of which networks, latency tables and counts are made."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

from nas.errors import UnknownNameError, UsageError
from nas.size import Sides, Size

if TYPE_CHECKING:
    from torch import Tensor

    from nas.layers.elastic import ElasticModule


@dataclass(frozen=True, slots=True)
class Layer:
    """A piece of a network: builder of a module, row of a latency table, unit of MAC counting.

    `path` says where in the network its weights live; it is no part of the `key`, so equal layers
    at different places share one measurement. `input_shape` is without the batch axis. Layers run
    in the order in which a family emits them; those of a later `phase` run after all of an earlier
    one. A network whose layers run in every phase (scale by scale generation) emits each of them
    once a phase, with the same path: the weights are the same, and are counted once.

    A module names its sizes as keyword-only arguments: those of `__init__` are given when it is
    built, those of `forward` in every call (they are elastic: a module runs at any size up to the
    one that it was built with), those of `kept` when what it keeps is drawn. A size may be named by
    several of them. A size is a whole number, or the height and width of what is not square. Every
    module has the size `tap` (see `ElasticModule.run`). The input's width is read from the input.
    """

    path: str
    module: type[ElasticModule]
    args: tuple[tuple[str, Size], ...]
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
        **sizes: Size,
    ) -> Layer:
        """A layer of these sizes; raises `UsageError` unless they are those that `module` names."""
        names, values = tuple(sizes), tuple(sizes.values())
        kind: Any = module  # a class is hashable, which mypy does not see
        return cls(path, module, _checked(kind, names, values), input_shape, phase)

    @property
    def sizes(self) -> dict[str, Size]:
        """Every size by name."""
        return dict(self.args)

    @property
    def elastic(self) -> dict[str, Any]:
        """The sizes that the module is run with; all others are fixed when it is built."""
        return self._taken("forward", "run")

    @property
    def key(self) -> str:
        """The name of its row in a latency table, e.g. `Mlp(hidden=768, width=192)@196x192`."""
        return _key(self.module.__name__, self.args, self.input_shape)

    def build(self) -> ElasticModule:
        """A module with weights of this layer's sizes."""
        return self.module(**self._taken("__init__"))

    def inputs(self, batch: int) -> tuple[Any, ...]:
        """Random inputs of the right shapes: the state as it arrives."""
        return self.module.inputs(batch, self.input_shape, **self.sizes)

    def kept(self, module: ElasticModule, state: tuple[Any, ...]) -> Tensor | None:
        """Which tokens of the first image `module` works on; see `ElasticModule.kept`."""
        return module.kept(*state[: module.takes], **self._taken("kept"))

    def tapped(self) -> Layer:
        """This layer, but what it is given stays in the state, for a later one."""
        return replace(self, args=tuple(sorted((*self.args, ("tap", 1)))))

    def at_bits(self, bits: int) -> Layer:
        """This layer at another precision, where it has one."""
        args = tuple((name, bits if name == "bits" else value) for name, value in self.args)
        return replace(self, args=args)

    def _taken(self, *methods: str) -> dict[str, Any]:
        module: Any = self.module
        names = [name for method in methods for name in _named(module, method)]
        return {name: value for name, value in self.args if name in names}


@cache
def _named(module: type, method: str) -> Mapping[str, bool]:
    """The sizes that a method names, and whether it needs each; `**` would hide a misspelt one."""
    parameters = signature(getattr(module, method, _takes_none)).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}


def _takes_none() -> None:
    """The signature of a method that a module does not have."""


# The graph of a large space has a hundred thousand layers, but only some thousand different ones.
@cache
def _checked(
    module: type, names: tuple[str, ...], values: tuple[Size, ...]
) -> tuple[tuple[str, Size], ...]:
    """The sizes of a module, sorted by name."""
    known: dict[str, bool] = {}
    for method in ("__init__", "forward", "run", "kept"):
        for name, needed in _named(module, method).items():
            known[name] = known.get(name, False) or needed
    if extra := sorted(set(names) - set(known)):
        if extra[0] in signature(module).parameters:
            raise UsageError(
                f"{module.__name__} takes the size {extra[0]!r} by position",
                "sizes are keyword-only arguments: put a * before them",
            )
        raise UnknownNameError(f"size of {module.__name__}", extra[0], known)
    if missing := sorted(name for name in known if known[name] and name not in names):
        raise UsageError(
            f"{module.__name__} lacks the size {missing[0]!r}",
            f"give Layer.of {missing[0]}=..., or a default to the argument",
        )
    for name, value in zip(names, values):
        if not isinstance(value, int | Sides):
            raise UsageError(
                f"the size {name!r} of {module.__name__} must be a whole number, got {value!r}",
                f"e.g. {name}=int(...)",
            )
    return tuple(sorted(zip(names, values)))


@cache
def _key(module: str, args: tuple[tuple[str, Size], ...], input_shape: tuple[int, ...]) -> str:
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
