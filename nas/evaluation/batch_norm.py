"""Statistics of the BatchNorms of a subnet, which inherits those of wider networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nas.evaluation.shared_prefixes import Prefixes, State, Step, layer_steps
from nas.space.architecture import at_precision

if TYPE_CHECKING:
    from nas.network.network import Network

Map = Callable[..., Iterable[Any]]


def recalibrate(
    network: Network,
    inputs: Tensor,
    prefixes: Prefixes | None = None,
    map_: Map = map,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Give the BatchNorms of a plain network the statistics of `inputs`, of its size or larger.

    They are the mean over batches of what each norm sees (once-for-all, Cai et al., ICLR 2020).
    Those of a layer depend on the layers before it only, so that `prefixes` may hold them beside
    the activations. `map_` may run batches at the same time, `prepare` makes each of them what the
    network takes.
    """
    exact = at_precision(network.architecture, "fp32")  # int8 has the norms folded in
    space = network.space
    layers = space.layers(exact)
    modules = [network.eval().module(layer) for layer in layers]
    store = Prefixes(0) if prefixes is None else prefixes
    batches, device = torch.split(inputs, 64), next(network.parameters()).device

    @torch.no_grad()
    def statistics(number: int) -> Sequence[Tensor]:
        # Norms of its own, for batches that run at the same time; everything else is shared.
        own = deepcopy(modules, {id(p): p for p in network.parameters()})
        steps = [_observed(s, batch_norms(m)) for s, m in zip(layer_steps(layers, own), own)]

        def enter() -> State:
            batch = batches[number] if prepare is None else prepare(batches[number])
            return (space.parts.resized(batch.to(device), exact.resolution),), ()

        return store.run(("calibration", number), steps, enter)[1]  # type: ignore[no-any-return]

    seen = zip(*map_(statistics, range(len(batches))))
    with torch.no_grad():
        for norm in (norm for module in modules for norm in batch_norms(module)):
            norm.running_mean.copy_(torch.stack(next(seen)).mean(0))
            norm.running_var.copy_(torch.stack(next(seen)).mean(0))


def batch_norms(module: nn.Module) -> list[Any]:
    """The submodules that normalise by running statistics."""
    return [m for m in module.modules() if hasattr(m, "running_var")]


def _observed(step: Step, norms: Sequence[Any]) -> Step:
    """A step of (state, statistics) whose norms use, and append, the statistics of the batch."""
    for norm in norms:
        norm.train()
        norm.momentum = 1.0

    def run(both: State) -> State:
        state, seen = both
        state = step.run(state)
        return state, (*seen, *(s for n in norms for s in (n.running_mean, n.running_var)))

    return Step(step.name, run)
