"""A family is its parts; model, latency rows, MACs and the trellis are derived from them.

All families share one skeleton: a stem, stages (each entered by a transition, made of blocks) and
a head. `Parts` says which `Layer`s each of them emits for a choice, given the small state that
came before. `SearchSpace.advance` is the only walk over that skeleton.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from importlib import import_module
from pkgutil import iter_modules
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from nas.errors import UnknownNameError, UsageError
from nas.space.domains import Architecture, Choice, Position, Space, restrict, rewrite
from nas.space.rules import Walk

if TYPE_CHECKING:
    from torch import Tensor

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


# How a foreign checkpoint calls a tensor, and where a plain reshape is not enough, what makes ours
# of it (given theirs and our shape).
Origin = tuple[str, "Callable[[Tensor, tuple[int, ...]], Tensor] | None"]

LARGEST_PX = 4096  # tables of windows grow with the square of it

BITS = {"fp32": 32, "int8": 8}  # a block's precision, as its layers call it


class Parts(Protocol):
    """One model family at fixed patch, window and head sizes."""

    @property
    def multiple(self) -> int:
        """Resolutions are whole multiples of this many pixels."""

    def stem(self, resolution: int, width: int) -> Part: ...
    def transition(self, stage: int, state: Any, width: int) -> Part: ...
    def block(self, stage: int, index: int, state: Any, block: Any) -> Part | None:
        """None where the choice is not allowed after `state`."""

    def head(self, state: Any, classes: int) -> tuple[Layer, ...]: ...

    def origin(self, path: str, name: str) -> Origin:
        """Where timm's checkpoints keep tensor `name` of the layer at `path`."""


class _State(NamedTuple):
    """Where a walk over the choices is: what layers depend on, and what rules remember."""

    parts: Any = None
    rules: Any = None


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """A domain for architectures and the parts that turn each of them into layers."""

    name: str
    domain: Space[Architecture]
    parts: Parts

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        return tuple(self.domain.positions())

    @cached_property
    def walk(self) -> Walk:
        """The rules of the domain along its positions."""
        return Walk(self.positions)

    @cached_property
    def _kinds(self) -> tuple[tuple[str, int, int], ...]:
        """For each position: what it chooses, in which stage, at which index."""
        stages = dict(self.domain.domains)["stages"].items  # type: ignore[attr-defined]
        kinds = [("resolution", 0, 0)]
        for s, stage in enumerate(stages):
            times = dict(stage.domains)["blocks"].times
            kinds.append(("width", s, 0))
            kinds += [("block", s, i) for i in range(times.values[-1])]
        return tuple(kinds)

    def advance(self, index: int, state: Any, value: Any) -> Part | None:
        """What choosing `value` at position `index` adds after `state`; None if not allowed.

        `state` is that of the `Part` returned at the position before, None at the first.
        """
        own, last = state or _State()
        last = self.walk.advance(index, last, value)
        part = None if last is None else self._part(index, own, value)
        return None if part is None else Part(part.layers, _State(part.state, last))

    def _part(self, index: int, state: Any, value: Any) -> Part | None:
        kind, stage, i = self._kinds[index]
        if kind == "resolution":
            return Part((), value)
        if kind == "width":
            parts = self.parts
            return parts.transition(stage, state, value) if stage else parts.stem(state, value)
        return Part((), state) if value is None else self.parts.block(stage, i, state, value)

    def finish(self, state: Any, classes: int) -> tuple[Layer, ...]:
        return self.parts.head(state.parts, classes)

    def layers(self, architecture: Architecture, classes: int) -> tuple[Layer, ...]:
        """The network as the list of its layers, in the order in which they run."""
        return _layers(self, architecture, classes)

    def at(self, resolution: int) -> SearchSpace:
        """This space at one resolution in pixels, whether or not it has that choice."""
        step = self.parts.multiple
        if resolution > LARGEST_PX:
            raise UsageError(f"{resolution} px is more than is meant", f"use {LARGEST_PX} or less")
        if resolution < 1 or resolution % step:
            near = max(step, round(resolution / step) * step)
            raise UsageError(
                f"{self.name} cannot take {resolution} px: its resolutions are multiples of {step}",
                f"use {near}",
            )
        domain = rewrite(self.domain, "resolution", lambda _: Choice(resolution))
        return replace(self, name=f"{self.name.partition('@')[0]}@{resolution}", domain=domain)

    def with_int8(self) -> SearchSpace:
        """This space with int8 as a choice of every block; the same weights serve both."""
        domain = rewrite(self.domain, "precision", lambda _: Choice("int8", "fp32"))
        plain, at, resolution = self.name.partition("@")
        return replace(
            self, name=f"{plain.removesuffix('+int8')}+int8{at}{resolution}", domain=domain
        )

    @property
    def family(self) -> str:
        """The name of the file in `search_spaces/` that this space is of."""
        return type(self.parts).__module__.rpartition(".")[2]

    @property
    def base(self) -> str:
        """The name without resolution and precision: what weights are for."""
        return self.name.partition("@")[0].removesuffix("+int8")

    def restrict(self, field: str, *values: Any) -> SearchSpace:
        """The part of this space in which every choice of `field` is one of `values`."""
        return replace(self, domain=restrict(self.domain, field, *values))

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture):
            return False
        try:
            self.parse(architecture.to_json())
        except UsageError:
            return False
        return True

    def parse(self, text: str) -> Architecture:
        """The architecture that JSON `text` describes; `UsageError` names what is wrong."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"the architecture is not JSON: {error}") from None
        architecture = self.domain.parse(data)
        _layers(self, architecture, 2)
        return architecture

    def draw(self, rng: Random) -> Architecture:
        """A random architecture: at each position one of the values that lead on."""
        return self._first(rng.randrange)

    @cached_property
    def largest(self) -> Architecture:
        """The architecture that holds every weight of the space: the last value everywhere."""
        return self._first(lambda n: n - 1)

    @cached_property
    def smallest(self) -> Architecture:
        return self._first(lambda _: 0)

    def _first(self, pick: Callable[[int], int]) -> Architecture:
        """The first way to the end, if `pick` chooses among so many values not yet tried.

        Rules may leave a choice without any way on; it is then taken back.
        """
        dead: set[tuple[int, Any]] = set()

        def onward(index: int, state: Any) -> list[Any] | None:
            if index == len(self.positions):
                return []
            tried = ((v, self.advance(index, state, v)) for v in self.positions[index].values)
            allowed = [(v, part.state) for v, part in tried if part is not None]
            while allowed:
                value, after = allowed.pop(pick(len(allowed)))
                if (index, after) in dead:
                    continue
                if (rest := onward(index + 1, after)) is not None:
                    return [value, *rest]
                dead.add((index, after))
            return None

        if (values := onward(0, None)) is None:
            raise UsageError(f"no architecture of {self.name} obeys its rules", "loosen a rule")
        return self.domain.assemble(iter(values))


@lru_cache(maxsize=4096)
def _layers(space: SearchSpace, architecture: Architecture, classes: int) -> tuple[Layer, ...]:
    state: Any = None
    layers: list[Layer] = []
    for i, value in enumerate(space.domain.flatten(architecture)):
        part = space.advance(i, state, value)
        if part is None:
            raise UsageError(
                f"{space.positions[i].name} = {value} is not allowed after the choices before it",
                f"see `vitnas inspect --space {space.name}` for what the space allows",
            )
        layers += part.layers
        state = part.state
    return (*layers, *space.finish(state, classes))


def families() -> Iterator[str]:
    """The family files there are."""
    import search_spaces

    return (module.name for module in iter_modules(search_spaces.__path__))


def space_names() -> Iterator[str]:
    """Every `family:preset` there is; imports the families."""
    for family in families():
        yield from (f"{family}:{preset}" for preset in _of(family, "PRESETS"))


def model_names() -> Iterator[str]:
    """Every model of the papers by its name in timm; imports the families."""
    for family in families():
        yield from _of(family, "MODELS")


def load_space(name: str) -> SearchSpace:
    """The space called `family:preset`, or the one architecture of a named model.

    E.g. `swin:micro`, `swin_tiny_patch4_window7_224`; `NAME+int8` has int8 as a choice of every
    block, `NAME@384` is the same at 384 px. Raises `UnknownNameError` with the closest names.
    """
    plain, _, resolution = name.partition("@")
    space = _find(plain.removesuffix("+int8"))
    if plain.endswith("+int8"):
        space = space.with_int8()
    if not resolution:
        return space
    if not resolution.isdecimal():
        raise UsageError(f"{name!r}: after @ stands a resolution in pixels", f"e.g. {plain}@256")
    return space.at(int(resolution))


def _find(name: str) -> SearchSpace:
    family, colon, preset = name.partition(":")
    if colon:
        if family not in families() or preset not in _of(family, "PRESETS"):
            raise UnknownNameError("space", name, space_names())
        return SearchSpace(name, *_of(family, "PRESETS")[preset])
    for family in families():
        if name in _of(family, "MODELS"):
            return SearchSpace(name, *_of(family, "MODELS")[name])
    raise UnknownNameError("model or space", name, [*space_names(), *model_names()])


def _of(family: str, what: str) -> Mapping[str, tuple[Space[Architecture], Parts]]:
    found: Mapping[str, tuple[Space[Architecture], Parts]]
    found = getattr(import_module(f"search_spaces.{family}"), what)
    return found
