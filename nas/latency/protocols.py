"""Ways of timing the rows of a space: the pieces that a device runs, and what their samples say.

A piece is a run of consecutive layers that a runtime prepares at once. Which pieces there are
depends on the context, i.e. on what stands around a layer while it is timed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from nas.latency.noise import Visit, Visits, undisturbed
from nas.runtimes import KEPT, WARM_UP_MS
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.trellis.graph import Graph, decode

PROTOCOL = 5  # raised when the way of measuring changes
PROTOCOLS = {
    "network": "layers timed in network order inside whole networks",
    "isolated": "each layer on its own",
    "stacked": "a layer twice in a row less once",
    "added": "a layer behind another less that one",
}
VISIT = f"; a visit warms up for {WARM_UP_MS:g} ms and keeps {KEPT} calls"
_BEHIND = " > "


@dataclass(frozen=True)
class Piece:
    """Consecutive layers that are visited together, and what they are for.

    A `tour` is a network timed layer by layer. A `row` is a layer alone, a `pair` one layer behind
    another. A `network` is a reference, timed as a whole.
    """

    what: str
    about: str  # the architecture as JSON, or the keys of the layers
    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, what: str, space: SearchSpace, architecture: str) -> Piece:
        """The piece of all layers of an architecture, given as JSON, in their running order."""
        return cls(what, architecture, space.layers(space.parse(architecture)))

    @property
    def name(self) -> str:
        """What the piece is called in `samples.jsonl`."""
        return f"{self.what} {self.about}"

    @property
    def fused(self) -> bool:
        """Whether the layers are timed as a whole, not one by one."""
        return self.what != "tour"


def pieces(
    space: SearchSpace,
    graph: Graph,
    context: str,
    rows: Mapping[str, Layer],
    alone: Collection[str],
) -> list[Piece]:
    """The pieces from whose samples the numbers of all `rows` (layers by key) follow.

    `graph` is what is left of the space; `alone` are keys of layers that cannot be timed behind
    another one.
    """
    if context == "network":
        tours = (decode(space, path) for path in graph.tours(rows.keys()))
        return [Piece.of("tour", space, a.to_json()) for a in tours]
    pairs = list(_pairs(graph, context, [x for key, x in rows.items() if key not in alone]))
    singles = {**rows, **{first.key: first for first, _ in pairs}}
    found = [Piece("row", x.key, (x,)) for x in singles.values()]
    return found + [Piece("pair", _BEHIND.join((a.key, b.key)), (a, b)) for a, b in pairs]


def _pairs(graph: Graph, context: str, rows: Sequence[Layer]) -> Iterator[tuple[Layer, Layer]]:
    """For each row that is timed behind another layer: that layer, and the row's own."""
    from nas.network.macs import count_macs  # imports torch, which listings of tables do not need

    before = graph.before() if context == "added" else {}
    for layer in rows:
        if context == "stacked" and stackable(layer):
            yield layer, replace(layer, path=f"{layer.path} again")  # weights of its own
        elif ahead := before.get(layer.key):
            # The cheaper the other one is, the less of its noise is in the difference.
            yield min(ahead.values(), key=lambda x: (count_macs(x).total, x.key)), layer


def stackable(layer: Layer) -> bool:
    """Whether a layer can follow itself: what it leaves has the shapes of what it takes."""
    import torch

    from nas.network.standalone import build, inputs, run, slots

    with torch.no_grad():
        before = inputs(layer, 1)
        after = run(build([layer]), before)
    shapes = [None if t is None else t.shape for t in slots(before)]
    return shapes == [None if t is None else t.shape for t in slots(after)]


def samples_by_row(
    space: SearchSpace, rows: Collection[str], visits: Visits, serial: bool = True
) -> dict[str, Visit]:
    """The samples of every row, by key, that the visits of all pieces so far give.

    Of layers that were timed alone, those count that are among `rows`: the others were only timed
    to be subtracted. `serial` is that of `nas.latency.noise.undisturbed`.
    """
    found: dict[str, Visit] = {}
    alone: dict[str, Sequence[Visit]] = {}
    behind: dict[str, Sequence[Visit]] = {}
    for name, own in visits.items():
        what, _, about = name.partition(" ")
        if what == "tour":
            layers = Piece.of(what, space, about).layers
            for visit in own:
                for layer, sample in zip(cycle(layers), visit):
                    found.setdefault(layer.key, []).append(sample)
        elif what == "row":
            alone[about] = own
        elif what == "pair":
            behind[about] = own
    for key, own in alone.items():
        if key in rows:
            found[key] = [sample for visit in own for sample in visit]
    for about, own in behind.items():
        first, _, key = about.partition(_BEHIND)
        both = zip(_middles(own, serial), _middles(alone[first], serial))
        # A processor time of 0 is an unknown one, and stays that.
        found[key] = [np.where(two > 0, np.maximum(two - one, 1e-5), 0).tolist()
                      for two, one in both]  # fmt: skip
    return found


def _middles(visits: Sequence[Visit], serial: bool) -> Iterator[NDArray[np.float64]]:
    """The median wall and processor time of each visit, without what held it up."""
    return (np.median(undisturbed(np.array(visit), serial), 0) for visit in visits)
