"""A family is its parts; model, latency rows, MACs and the trellis are derived from them.

All families share one skeleton: a stem, stages (each entered by a transition, made of blocks) and
a head. `Parts` says which `Layer`s each of them emits for a choice, given the small state that
came before. `SearchSpace.advance` is the only walk over that skeleton.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from nas.errors import UsageError
from nas.extensions import member_name
from nas.size import Size, each, sides
from nas.space.architecture import Architecture
from nas.space.domains import Choice, Space, restrict, rewrite
from nas.space.layer import Layer, Part, in_phases
from nas.space.origins import Origin
from nas.space.rules import ENDED, Position, Walk
from nas.space.task import Task

if TYPE_CHECKING:
    from torch import Tensor


LARGEST = 4096  # side of an input: tables of windows grow with the square of it

BITS = {"fp32": 32, "int8": 8}  # a block's precision, as its layers call it


class Parts(Protocol):
    """One model family at fixed patch, window and head sizes: which layers its choices emit.

    **The domain** of a preset is a `Space` of `Architecture`: `resolution` is a `Choice`, `stages`
    are `Fixed`, each a `Space` of `Stage` whose `width` is a `Choice` and whose `blocks` are a
    `Repeat`. Values stand from the cheapest to the most expensive; the architecture of all last
    values holds every weight of the space.

    **A block** is a dataclass of its own in each family. Two of its fields mean the same in all:
    `precision` is `fp32` or `int8`, and layers that can be int8 then have the size `bits` (see
    `BITS`); `sparsity` is how many percent of its windows or tokens a block leaves out, from 0 to
    99. A family without one of them cannot be widened to int8, or is not pruned.

    **A state** is whatever later layers depend on (the side of a feature map, its width, ...):
    hashable and small, because the trellis has a node for each.

    **The input** of a network is a tensor of the batch; its size is an architecture's first choice
    (`Architecture.resolution`). `Images` gives the five attributes that say so for families of
    pictures, whose size is one number for a square and else height and width (see `nas.size`). A
    family may add `smallest`: sides are at least this number, e.g. one window of the first map.

    **Tasks with an output for each pixel** get a fused head if the parts can make a map (see
    `nas.network.fused.MapParts`); otherwise `head` makes such outputs itself.

    `load_space` checks what is quick to check (`nas.space.contract`), and `tests/test_families.py`
    the rest on every family in `search_spaces/`.
    """

    @property
    def takes(self) -> str:
        """The name of the input in a batch, e.g. `images`."""

    @property
    def unit(self) -> str:
        """The unit of the input's size, e.g. `px`."""

    @property
    def multiple(self) -> int:
        """Sizes of the input, or their sides, are whole multiples of this number."""

    def example(self, size: Size) -> tuple[int, ...]:
        """The shape of one input of this size, without the batch axis."""

    def resized(self, inputs: Tensor, size: Size) -> Tensor:
        """Inputs (batch, ...) of a larger size at this one."""

    def stem(self, resolution: Size, width: int) -> Part:
        """The layers from the input to the first stage of this width."""

    def transition(self, stage: int, state: Any, width: int) -> Part:
        """The layers from the end of the stage before to `stage` (1, 2, ...) of this width."""

    def block(self, stage: int, index: int, state: Any, block: Any) -> Part | None:
        """The layers of one block; None where the choice is not allowed after `state`."""

    def head(self, state: Any, task: Task) -> tuple[Layer, ...]:
        """The layers from the end of the last stage to `task.outputs` channels of output."""

    def origin(self, path: str, name: str) -> Origin:
        """Where timm's checkpoints keep tensor `name` of the layer at `path`."""


# Of values, those that are allowed, each with the state after it.
Ways = Callable[[Iterable[Any]], Iterator[tuple[Any, Any]]]


class _State(NamedTuple):
    """Where a walk over the choices is: what layers depend on, and what rules remember."""

    parts: Any = None
    rules: Any = None


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """A domain for architectures, the parts that turn each of them into layers, and the task."""

    name: str
    domain: Space[Architecture]
    parts: Parts
    task: Task

    @cached_property
    def positions(self) -> tuple[Position, ...]:
        """The choices of an architecture, in the order of its layers."""
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
        return Part((), state) if value is ENDED else self.parts.block(stage, i, state, value)

    def finish(self, state: Any) -> tuple[Layer, ...]:
        """The head's layers after the state of the last position."""
        return self.parts.head(state.parts, self.task)

    def layers(self, architecture: Architecture) -> tuple[Layer, ...]:
        """The network as the list of its layers, in the order in which they run."""
        body, head, _ = _layers(self, architecture)
        return body + head

    def head(self, architecture: Architecture) -> tuple[Layer, ...]:
        """The last of its layers: those that make outputs of the features before them."""
        return _layers(self, architecture)[1]

    def state(self, architecture: Architecture) -> Any:
        """The state of the parts behind the last block, which enters the head."""
        return _layers(self, architecture)[2]

    def example(self, architecture: Architecture) -> tuple[int, ...]:
        """The shape of one input of this architecture, without the batch axis."""
        return self.parts.example(architecture.resolution)

    def at(self, resolution: Size) -> SearchSpace:
        """This space at one size of the input, whether or not it has that choice.

        Raises `UsageError` with the nearest size that the family takes if this is none.
        """
        step, unit = self.parts.multiple, self.parts.unit
        least = getattr(self.parts, "smallest", step)
        if max(sides(resolution)) > LARGEST:
            raise UsageError(f"{resolution} {unit} is more than is meant", f"use {LARGEST} or less")
        first, last = -(-least // step) * step, LARGEST // step * step
        near = each(lambda side: min(max(first, round(side / step) * step), last), resolution)
        if near != resolution:
            raise UsageError(
                f"{self.name} cannot take {resolution} {unit}: it takes multiples of {step}"
                + f" from {first}" * (first > step),
                f"use {near}",
            )
        domain = rewrite(self.domain, "resolution", lambda _: Choice(resolution))
        return replace(self, name=f"{self.name.partition('@')[0]}@{resolution}", domain=domain)

    def with_int8(self) -> SearchSpace:
        """This space with int8 as a choice of every block; the same weights serve both."""
        found: list[Choice] = []

        def widened(choice: Choice) -> Choice:
            found.append(choice)
            return Choice("int8", "fp32")

        domain = rewrite(self.domain, "precision", widened)
        if not found:
            raise UsageError(
                f"{self.name} has no int8: its blocks have no `precision`", "leave out +int8"
            )
        plain, at, resolution = self.name.partition("@")
        return replace(
            self, name=f"{plain.removesuffix('+int8')}+int8{at}{resolution}", domain=domain
        )

    @property
    def family(self) -> str:
        """The name of its file in `search_spaces/`, or of the module of one's own."""
        parts = getattr(self.parts, "backbone", self.parts)
        return member_name("search_spaces", type(parts).__module__)

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
        except (ValueError, RecursionError) as error:
            why = "it is nested too deep" if isinstance(error, RecursionError) else error
            raise UsageError(
                f"the architecture is not JSON: {why}",
                "an example is the file architecture.json of a winner",
            ) from None
        architecture = self.domain.parse(data)
        _layers(self, architecture)
        return architecture

    def draw(self, rng: Random) -> Architecture:
        """A random architecture: at each position one of the values that lead on."""

        def shuffled(values: Sequence[Any], ways: Ways) -> Iterator[tuple[Any, Any]]:
            left = list(ways(values))
            while left:
                yield left.pop(rng.randrange(len(left)))

        return self._first(shuffled)

    @cached_property
    def largest(self) -> Architecture:
        """The architecture that holds every weight of the space: the last value everywhere."""
        return self._first(lambda values, ways: ways(values[::-1]))

    @cached_property
    def smallest(self) -> Architecture:
        """The architecture of the first value everywhere."""
        return self._first(lambda values, ways: ways(values))

    def _first(
        self, order: Callable[[Sequence[Any], Ways], Iterable[tuple[Any, Any]]]
    ) -> Architecture:
        """The first way to the end, if `order` says in which order values are tried.

        It gets the values of a position and a function that keeps those which are allowed, each
        with the state after it. Rules may leave a choice without any way on; it is then taken back.
        """
        dead: set[tuple[int, Any]] = set()

        def onward(index: int, state: Any) -> list[Any] | None:
            if index == len(self.positions):
                return []

            def ways(values: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
                tried = ((value, self.advance(index, state, value)) for value in values)
                yield from ((value, part.state) for value, part in tried if part is not None)

            for value, after in order(self.positions[index].values, ways):
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
def _layers(
    space: SearchSpace, architecture: Architecture
) -> tuple[tuple[Layer, ...], tuple[Layer, ...], Any]:
    """The layers before the head, those of the head, and the state of the parts between them."""
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
    return in_phases(layers), space.finish(state), state.parts
