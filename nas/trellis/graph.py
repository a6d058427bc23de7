"""A space as a layered graph, in which every architecture is one path from the start to the end.

Each position has a level of edges. A state holds all that the choices so far mean for those to come
(the width, the resolution, what rules remember); an edge is one value chosen in one state. The
number of architectures and the set of their layers follow exactly from the states that can be
reached. A path is written as the index of its value at each position: integers (positions,).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from nas.space.architecture import Architecture
from nas.space.domains import Space
from nas.space.family import SearchSpace
from nas.space.layer import Layer, Part
from nas.space.rules import ENDED, Position, Walk

S = TypeVar("S")
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# `advance(position, state, value)` gives the items that choosing a value adds, and the state after
# it; None where the value is not allowed in that state. Items are what has a cost: the layers of a
# family, in other spaces the choices themselves. `finish(state)` gives the items after all choices.
Advance = Callable[[int, Any, Any], "Part | tuple[tuple[Any, ...], Hashable] | None"]
Finish = Callable[[Any], tuple[Any, ...]]

_START: Hashable = None


@dataclass(frozen=True)
class Level:
    """The edges of one position, from its states to those of the next.

    Edge `e` leads from state `source[e]` by value `value[e]` to state `target[e]` and adds
    `items[e]`. `sources` is the number of states, `values` that of values.
    """

    sources: int
    values: int
    source: Ints
    value: Ints
    target: Ints
    items: tuple[tuple[Any, ...], ...]

    def only(self, edges: Ints) -> Level:
        """The level of some of these edges, between the same states."""
        items = tuple(self.items[e] for e in edges.tolist())
        columns = (self.source[edges], self.value[edges], self.target[edges])
        return Level(self.sources, self.values, *columns, items)

    @cached_property
    def edge(self) -> Ints:
        """The edge of each state and value (sources, values); -1 where the value is not allowed."""
        edge = np.full((self.sources, self.values), -1)
        edge[self.source, self.value] = np.arange(len(self.source))
        return edge

    @cached_property
    def degree(self) -> Ints:
        """The number of edges that leave each state (sources,)."""
        return np.bincount(self.source, minlength=self.sources)

    @cached_property
    def out(self) -> Ints:
        """The edges that leave each state (sources, largest degree), by value and then -1."""
        order = np.lexsort((self.value, self.source))
        first = np.cumsum(self.degree) - self.degree
        out = np.full((self.sources, max(1, self.degree.max(initial=0))), -1)
        source = self.source[order]
        out[source, np.arange(len(order)) - first[source]] = order
        return out


@dataclass(frozen=True)
class Graph:
    """The levels of all positions, with the states that can be reached, and one for the finish."""

    levels: tuple[Level, ...]

    @classmethod
    def build(cls, positions: Sequence[Sequence[Any]], advance: Advance, finish: Finish) -> Graph:
        """The graph over `positions`, which holds the values of each; `None` is the first state."""
        states: dict[Hashable, int] = {_START: 0}
        levels = []
        with _no_collection():
            for i, values in enumerate(positions):
                reached: dict[Hashable, int] = {}
                edges, items = [], []
                for state, source in states.items():
                    for v, value in enumerate(values):
                        if (part := advance(i, state, value)) is not None:
                            added, after = part
                            edges.append((source, v, reached.setdefault(after, len(reached))))
                            items.append(tuple(added))
                levels.append(_level(len(states), len(values), edges, items))
                states = reached
        edges = [(source, 0, 0) for source in states.values()]
        levels.append(_level(len(states), 1, edges, [tuple(finish(state)) for state in states]))
        return cls(tuple(levels))

    @classmethod
    def of(cls, space: SearchSpace) -> Graph:
        """The graph of a family's space, whose items are layers."""
        return cls.build(
            [position.values for position in space.positions],
            space.advance,
            space.finish,
        )

    @classmethod
    def choices(cls, space: Space[Any]) -> Graph:
        """The graph of a space over any dataclass, whose items are the choices as (name, value).

        A position after the end of a `Repeat` adds none.
        """
        positions = _positions(space)
        walk = Walk(positions)

        def advance(index: int, state: Any, value: Any) -> tuple[tuple[Any, ...], Hashable] | None:
            if (after := walk.advance(index, state, value)) is None:
                return None
            return () if value is ENDED else ((positions[index].name, value),), after

        return cls.build([position.values for position in positions], advance, lambda _: ())

    def without(self, items: Collection[Hashable]) -> Graph:
        """This graph without the edges that add one of these items, given by `key`.

        Edges that can no longer be reached are left out too.
        """
        if not items:
            return self
        levels = []
        reached = np.ones(1, bool)
        for level, after in zip(self.levels, [*self.levels[1:], None]):
            allowed = [
                all(getattr(item, "key", item) not in items for item in own) for own in level.items
            ]
            kept = np.flatnonzero(reached[level.source] & np.array(allowed, bool))
            reached = np.zeros(after.sources if after else 1, bool)
            reached[level.target[kept]] = True
            levels.append(level.only(kept))
        return Graph(tuple(levels))

    @cached_property
    def alive(self) -> list[NDArray[np.bool_]]:
        """Whether some path leads from a state to the end: booleans (states,) for each level."""
        alive = [np.ones(1, bool)]
        for level in reversed(self.levels):
            states = np.zeros(level.sources, bool)
            np.logical_or.at(states, level.source, alive[0][level.target])
            alive.insert(0, states)
        return alive

    def items(self) -> dict[Any, Any]:
        """All items of complete paths, by `key` if they have one (layers), else by themselves."""
        return {
            getattr(item, "key", item): item
            for level, alive in zip(self.levels, self.alive[1:])
            for items, target in zip(level.items, level.target)
            if alive[target]
            for item in items
        }

    def before(self) -> dict[Any, dict[Any, Any]]:
        """The items that can run just before each item, both by `key`.

        Where items (layers) have a `phase`, they are of the same one; before those of the finish
        come the last ones of the last phase.
        """
        found: dict[Any, dict[Any, Any]] = {}
        last: list[dict[int, dict[Any, Any]]] = [{}]  # by phase
        for level, alive in zip(self.levels, self.alive[1:]):
            after: list[dict[int, dict[Any, Any]]] = [{} for _ in alive]
            edges = zip(level.source.tolist(), level.target.tolist(), level.items)
            for source, target, items in edges:
                if not alive[target]:
                    continue
                ahead = dict(last[source])
                for item in items:
                    key, phase = getattr(item, "key", item), getattr(item, "phase", 0)
                    if level is self.levels[-1]:
                        phase = max(ahead, default=0)
                    found.setdefault(key, {}).update(ahead.get(phase, {}))
                    ahead[phase] = {key: item}
                for phase, own in ahead.items():
                    after[target].setdefault(phase, {}).update(own)
            last = after
        return found

    def tours(self, wanted: Collection[Hashable] | None = None, seed: int = 0) -> list[Ints]:
        """A few paths that together contain every item, or every item `wanted` (by `key`).

        Each is the one with the most missing items of 24 random paths through one of these.
        """
        rng = np.random.default_rng(seed)
        where: dict[Any, list[tuple[int, int]]] = {}
        for i, (level, alive) in enumerate(zip(self.levels, self.alive[1:])):
            for e, (items, target) in enumerate(zip(level.items, level.target)):
                for item in items if alive[target] else ():
                    key = getattr(item, "key", item)
                    if wanted is None or key in wanted:
                        where.setdefault(key, []).append((i, e))
        tours: list[Ints] = []
        while where:
            missing = list(where)
            paths = []
            for _ in range(24):
                edges = where[missing[rng.integers(len(missing))]]
                paths.append(self._through(*edges[rng.integers(len(edges))], rng))
            covers = [
                {getattr(i, "key", i) for i in self.along(path)} & where.keys() for path in paths
            ]
            best = max(range(len(paths)), key=lambda i: len(covers[i]))
            tours.append(paths[best])
            for key in covers[best]:
                del where[key]
        return tours

    def _through(self, index: int, edge: int, rng: np.random.Generator) -> Ints:
        """A random path through an edge of the level `index`."""
        levels = self.levels
        path = np.zeros(len(levels), np.int64)
        path[index] = levels[index].value[edge]
        state = levels[index].source[edge]
        for i in range(index - 1, -1, -1):
            into = np.flatnonzero(levels[i].target == state)
            chosen = into[rng.integers(len(into))]
            path[i], state = levels[i].value[chosen], levels[i].source[chosen]
        state = levels[index].target[edge]
        for i in range(index + 1, len(levels)):
            out = np.flatnonzero((levels[i].source == state) & self.alive[i + 1][levels[i].target])
            chosen = out[rng.integers(len(out))]
            path[i], state = levels[i].value[chosen], levels[i].target[chosen]
        return path[:-1]

    def along(self, path: Ints) -> list[Any]:
        """The items of one path (positions,), in the order in which they are added."""
        state = 0
        items: list[Any] = []
        for level, value in zip(self.levels, [*path.tolist(), 0]):
            edge = level.edge[state, value]
            items += level.items[edge]
            state = int(level.target[edge])
        return items

    @cached_property
    def count(self) -> int:
        """The exact number of paths."""
        ways = [1]
        for level in reversed(self.levels):
            before = [0] * level.sources
            for source, target in zip(level.source.tolist(), level.target.tolist()):
                before[source] += ways[target]
            ways = before
        return ways[0]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no garbage: a graph makes much and throws nothing away, and looking took a third."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _level(
    sources: int, values: int, edges: list[tuple[int, int, int]], items: list[tuple[Any, ...]]
) -> Level:
    columns = np.array(edges, dtype=np.int64).reshape(-1, 3)
    return Level(sources, values, columns[:, 0], columns[:, 1], columns[:, 2], tuple(items))


@overload
def decode(space: SearchSpace, path: Ints) -> Architecture: ...
@overload
def decode(space: Space[S], path: Ints) -> S: ...
def decode(space: SearchSpace | Space[Any], path: Ints) -> Any:
    """The architecture of a path (positions,)."""
    values = (position.values[v] for position, v in zip(_positions(space), path.tolist()))
    return _domain(space).assemble(values)


def encode(space: SearchSpace | Space[Any], architecture: Any) -> Ints:
    """The path (positions,) of an architecture."""
    values = _domain(space).flatten(architecture)
    return np.array([p.values.index(v) for p, v in zip(_positions(space), values)])


def _domain(space: SearchSpace | Space[Any]) -> Space[Any]:
    return space if isinstance(space, Space) else space.domain


def _positions(space: SearchSpace | Space[Any]) -> tuple[Position, ...]:
    return space.choices if isinstance(space, Space) else space.positions


def space_layers(space: SearchSpace) -> dict[str, Layer]:
    """The layers that some architecture of the space has, and no others, by key."""
    return Graph.of(space).items()
