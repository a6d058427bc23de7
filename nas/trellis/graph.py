"""A space as a layered graph: every architecture is one path from the first position to the end.

A state is what the choices so far leave for those to come; an edge is one value chosen in a state.
From the reachable states follow the exact number of architectures and the exact set of layers, of
which an architecture is one path of value indices (positions,).
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
from nas.space.rules import Position, Walk

S = TypeVar("S")
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Advance says what a value adds at a position after a state: its items (of any kind) and the next
# state, or None where it is not allowed. Items are what is costed: layers, in our own spaces.
Advance = Callable[[int, Any, Any], "Part | tuple[tuple[Any, ...], Hashable] | None"]
Finish = Callable[[Any], tuple[Any, ...]]

_START: Hashable = None


@dataclass(frozen=True)
class Level:
    """The edges of one position; an edge is a source state, a value index and a target state."""

    sources: int
    values: int
    source: Ints
    value: Ints
    target: Ints
    items: tuple[tuple[Any, ...], ...]

    def only(self, edges: Ints) -> Level:
        """Some of its edges, between the same states."""
        items = tuple(self.items[e] for e in edges.tolist())
        columns = (self.source[edges], self.value[edges], self.target[edges])
        return Level(self.sources, self.values, *columns, items)

    @cached_property
    def edge(self) -> Ints:
        """(sources, values): the number of the edge, -1 where the value is not allowed."""
        edge = np.full((self.sources, self.values), -1)
        edge[self.source, self.value] = np.arange(len(self.source))
        return edge

    @cached_property
    def degree(self) -> Ints:
        """(sources,): the number of edges that leave each state."""
        return np.bincount(self.source, minlength=self.sources)

    @cached_property
    def out(self) -> Ints:
        """(sources, largest degree): the edges that leave each state by value, then -1."""
        order = np.lexsort((self.value, self.source))
        first = np.cumsum(self.degree) - self.degree
        out = np.full((self.sources, max(1, self.degree.max(initial=0))), -1)
        source = self.source[order]
        out[source, np.arange(len(order)) - first[source]] = order
        return out


@dataclass(frozen=True)
class Graph:
    """The reachable states of every position, and the edges between them."""

    levels: tuple[Level, ...]

    @classmethod
    def build(cls, positions: Sequence[Sequence[Any]], advance: Advance, finish: Finish) -> Graph:
        """`positions` holds the values of each position; the last level is the finish."""
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
        """The graph of a family's space; its items are layers."""
        return cls.build(
            [position.values for position in space.positions],
            space.advance,
            space.finish,
        )

    @classmethod
    def choices(cls, space: Space[Any]) -> Graph:
        """The graph of a space over any dataclass; its items are pairs (name, value) of positions.

        A `Repeat` that has ended adds none.
        """
        positions = _positions(space)
        walk = Walk(positions)

        def advance(index: int, state: Any, value: Any) -> tuple[tuple[Any, ...], Hashable] | None:
            if (after := walk.advance(index, state, value)) is None:
                return None
            return () if value is None else ((positions[index].name, value),), after

        return cls.build([position.values for position in positions], advance, lambda _: ())

    def without(self, items: Collection[Hashable]) -> Graph:
        """This graph without the edges that contain one of these items (their `key`s).

        Nor those that only they lead to.
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
        """For each level and state: whether some path leads from it to the end."""
        alive = [np.ones(1, bool)]
        for level in reversed(self.levels):
            states = np.zeros(level.sources, bool)
            np.logical_or.at(states, level.source, alive[0][level.target])
            alive.insert(0, states)
        return alive

    def items(self) -> dict[Any, Any]:
        """Every item that occurs on some complete path, by its `key` (layers) or itself."""
        return {
            getattr(item, "key", item): item
            for level, alive in zip(self.levels, self.alive[1:])
            for items, target in zip(level.items, level.target)
            if alive[target]
            for item in items
        }

    def before(self) -> dict[Any, dict[Any, Any]]:
        """For each item, by `key`, the items that can stand just before it, by theirs."""
        found: dict[Any, dict[Any, Any]] = {}
        last: list[dict[Any, Any]] = [{}]
        for level, alive in zip(self.levels, self.alive[1:]):
            after: list[dict[Any, Any]] = [{} for _ in alive]
            edges = zip(level.source.tolist(), level.target.tolist(), level.items)
            for source, target, items in edges:
                if not alive[target]:
                    continue
                ahead = last[source]
                for item in items:
                    key = getattr(item, "key", item)
                    found.setdefault(key, {}).update(ahead)
                    ahead = {key: item}
                after[target].update(ahead)
            last = after
        return found

    def tours(self, wanted: Collection[Hashable] | None = None, seed: int = 0) -> list[Ints]:
        """Few paths that together contain every item, or those `wanted` (by their `key`s).

        Greedy, from paths through missing items.
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
        """A random path that takes this edge of this level."""
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
        """The items of one path of value indices (positions,), in order."""
        state = 0
        items: list[Any] = []
        for level, value in zip(self.levels, [*path.tolist(), 0]):
            edge = level.edge[state, value]
            items += level.items[edge]
            state = int(level.target[edge])
        return items

    @cached_property
    def count(self) -> int:
        """How many paths there are, exactly."""
        ways = [1]
        for level in reversed(self.levels):
            before = [0] * level.sources
            for source, target in zip(level.source.tolist(), level.target.tolist()):
                before[source] += ways[target]
            ways = before
        return ways[0]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Much is made here and nothing thrown away; to look for garbage took a third of the time."""
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
    """The architecture of a path of value indices."""
    values = (position.values[v] for position, v in zip(_positions(space), path.tolist()))
    return _domain(space).assemble(values)


def encode(space: SearchSpace | Space[Any], architecture: Any) -> Ints:
    """The path of value indices of an architecture."""
    values = _domain(space).flatten(architecture)
    return np.array([p.values.index(v) for p, v in zip(_positions(space), values)])


def _domain(space: SearchSpace | Space[Any]) -> Space[Any]:
    return space if isinstance(space, Space) else space.domain


def _positions(space: SearchSpace | Space[Any]) -> tuple[Position, ...]:
    return space.choices if isinstance(space, Space) else space.positions


def space_layers(space: SearchSpace) -> dict[str, Layer]:
    """Exactly the layers that some architecture of the space needs, by key."""
    return Graph.of(space).items()
