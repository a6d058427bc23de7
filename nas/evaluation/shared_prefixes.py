"""Activations kept where networks part: one that begins like an earlier one goes on from there.

A network is a list of steps; what it holds after some of them depends on these alone. Of a batch of
networks the lists form a tree. Run depth first, each state that several of them need is computed
once, and what must be kept at a time is one state for each fork above the current network: with as
little memory as that, keeping only at forks saves more than keeping every stage and dropping what
was least recently used.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nas.layers.elastic import ElasticModule
    from nas.space.layer import Layer

State = tuple[Any, ...]  # tensors, tuples of them, or anything that is never written to
Names = tuple[Hashable, ...]


class Step(NamedTuple):
    """One step of a network: equal names after equal names before compute equal states."""

    name: Hashable
    run: Callable[[State], State]


def layer_names(layers: Iterable[Layer]) -> list[tuple[str, str]]:
    """What each layer is and where its weights live: what it computes of what came before."""
    return [(layer.path, layer.key) for layer in layers]


def layer_steps(layers: Sequence[Layer], modules: Sequence[ElasticModule]) -> list[Step]:
    """The steps of a plain network whose layers these modules run."""

    def run(module: ElasticModule, sizes: dict[str, int], state: State) -> State:
        return module.run(state, **sizes)

    return [
        Step(name, partial(run, module, layer.elastic))
        for name, module, layer in zip(layer_names(layers), modules, layers)
    ]


def depth_first(lists: Sequence[Sequence[Any]]) -> list[int]:
    """An order of lists in which those that begin alike, however far, are consecutive."""
    return sorted(range(len(lists)), key=lambda i: tuple(lists[i]))


def forks(lists: Iterable[Sequence[Hashable]]) -> set[Names]:
    """The longest beginnings that two or more lists have in common, empty ones left out."""
    ways: defaultdict[Names, Counter[Any]] = defaultdict(Counter)
    for names in map(tuple, lists):
        for i in range(1, len(names) + 1):
            ways[names[:i]][names[i:] and (names[i],)] += 1
    return {begun for begun, on in ways.items() if len(on) > 1 or on[()] > 1}


class Prefixes:
    """States at the forks of planned networks, up to `capacity` bytes; the longest unused go first.

    Threads may share it. What `run` returns is the same to the bit with any capacity.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.bytes = capacity, 0
        self._forks: set[Names] = set()
        self._kept: OrderedDict[Hashable, tuple[State, int]] = OrderedDict()
        self._lock = Lock()

    def plan(self, lists: Iterable[Sequence[Hashable]]) -> None:
        """Say which lists of steps, by name, are going to be run; instead of those said before."""
        self._forks = forks(lists) if self.capacity else set()

    def run(self, chunk: Hashable, steps: Sequence[Step], enter: Callable[[], State]) -> State:
        """The state after all steps of the chunk of data that `enter` gives, in no grad mode."""
        names = tuple(step.name for step in steps)
        start, state = self._longest(chunk, names)
        if not start:
            state = enter()
        for i, step in enumerate(steps[start:], start + 1):
            state = step.run(state)
            if names[:i] in self._forks:
                self._keep((chunk, names[:i]), state)
        return state

    def _longest(self, chunk: Hashable, names: Names) -> tuple[int, State]:
        """How many of the steps can be skipped, and the state after them."""
        with self._lock:
            lengths = range(len(names), 0, -1) if self._kept else ()
            key = next((k for i in lengths if (k := (chunk, names[:i])) in self._kept), None)
            if key is None:
                return 0, ()
            self._kept.move_to_end(key)
            state, _ = self._kept[key]
        return len(key[1]), copied(state)  # blocks write into what they are given

    def _keep(self, key: Hashable, state: State) -> None:
        state = copied(state)
        size = count_bytes(state)
        with self._lock:
            if key in self._kept or size > self.capacity:
                return
            self._kept[key] = state, size
            self.bytes += size
            while self.bytes > self.capacity:
                self.bytes -= self._kept.popitem(last=False)[1][1]


def copied(state: Any) -> Any:
    """The same with memory of its own, laid out alike: kernels round by layout."""
    if isinstance(state, Tensor):
        like = torch.empty_strided(
            state.shape, state.stride(), dtype=state.dtype, device=state.device
        )
        return like.copy_(state)
    return tuple(map(copied, state)) if isinstance(state, tuple) else state


def count_bytes(state: Any) -> int:
    """Memory that the tensors of a state take."""
    if isinstance(state, Tensor):
        return state.untyped_storage().nbytes()
    return sum(map(count_bytes, state)) if isinstance(state, tuple) else 0
