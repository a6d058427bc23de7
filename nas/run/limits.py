"""Limits that the answers of a run keep: milliseconds by device, parameters, MACs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf

from nas.budget import readable_ms
from nas.errors import InfeasibleError
from nas.latency.table import LatencyTable
from nas.network.fused import Fused
from nas.network.macs import count_macs, count_params
from nas.progress import track
from nas.run_record import Feasible
from nas.settings import Settings
from nas.space.family import SearchSpace
from nas.space.layer import Layer, by_path
from nas.strategy.constraints import Limit, Region
from nas.trellis.graph import Graph
from nas.trellis.trellis import Trellis, edge_costs

_TICKS = 8192  # into which a budget is divided to count the architectures that fit it


@dataclass(frozen=True, eq=False)
class Goal:
    """One budget to be answered: milliseconds by device, and the region that is predicted to fit.

    The first device is the one that is searched on.
    """

    budgets: dict[str, float]
    feasible: Feasible
    region: Region

    @property
    def budget_ms(self) -> float:
        """The budget of the device that is searched on."""
        return next(iter(self.budgets.values()))

    @property
    def limit_ms(self) -> float:
        """What a prediction may be to measure within the budget with the confidence asked for."""
        return self.region.limits[0].bound


class Limits:
    """The graph of a space, and a trellis over it for everything that limits an answer.

    There is a table for each device. No architecture has a layer that one of them calls unusable.
    """

    def __init__(
        self,
        settings: Settings,
        space: SearchSpace,
        tables: Mapping[str, LatencyTable],
    ) -> None:
        self.settings, self.space, self.tables = settings, space, tables
        unusable = {key for t in tables.values() for key, row in t.rows.items() if not row.usable}
        self.graph = Graph.of(space).without(unusable)
        self.times = {
            device: Trellis(self.graph, table.cost, fixed=table.calibration.overhead)
            for device, table in tables.items()
        }

    @cached_property
    def counts(self) -> list[Limit]:
        """The limits of parameters and MACs, where there are any."""
        found = []
        own = self.settings
        for name, least, most, count, once in (
            ("parameters", own.min_params, own.max_params, count_params, True),
            ("macs", own.min_macs, own.max_macs, lambda layer: count_macs(layer).total, False),
        ):
            if least or most:
                layers = self.graph.items()
                counted = track(layers.items(), name, len(layers), "layers")
                costs = {key: float(count(layer)) for key, layer in counted}
                trellis = _counted(self.graph, costs, once)
                if most:
                    floor = least or -inf
                    found.append(Limit(name, most, trellis.costs_of, trellis, floor=floor))
                if least:
                    found.append(Limit.at_least(name, least, trellis))
        return found

    def goal(self, budgets: dict[str, float]) -> Goal:
        """The goal of milliseconds by device; `InfeasibleError` where nothing fits."""
        return Goal(budgets, self.feasible(budgets), self.region(budgets))

    def region(
        self, wanted: Mapping[str, float], slower: Mapping[str, float] | None = None
    ) -> Region:
        """The architectures that are predicted within milliseconds by device and meet all counts.

        `slower` says how many times as long as its table says each device takes now, for the
        quantile that is asked for.
        """
        limits = []
        for device, ms in wanted.items():
            reach = self._reach(device, ms / (slower or {}).get(device, self._tail(device)))
            name = "budget" if device == self.settings.device else device
            limits.append(Limit.additive(name, reach, self.times[device], "ms"))
        return Region(self.graph, [*limits, *self.counts], self.settings.sampler)

    def _reach(self, device: str, budget_ms: float) -> float:
        """What a prediction may be, to measure within the budget with the confidence asked for."""
        limit = self.tables[device].limit(budget_ms, self.settings.confidence)
        return limit if self.times[device].fastest <= limit else budget_ms

    def _tail(self, device: str) -> float:
        """How many times its median the quantile of inferences is that the budget holds for."""
        return self.tables[device].tail(self.settings.quantile)

    def feasible(self, wanted: Mapping[str, float]) -> Feasible:
        """The range of the space in time, and how many architectures fit the first device's budget.

        Raises `InfeasibleError` with the smallest possible, and what it is made of.
        """
        for device, ms in wanted.items():
            if (fastest := self.times[device].fastest * self._tail(device)) > ms:
                least, more = readable_ms(fastest), f"{float(f'{1.1 * fastest:.2g}'):g}ms"
                share = (
                    f" for {100 * q:g} % of inferences"
                    if (q := self.settings.quantile) > 0.5
                    else ""
                )
                where = "this machine" if len(wanted) == 1 else device
                named = "" if len(wanted) == 1 else f"{device}="
                raise InfeasibleError(
                    f"no architecture of {self.space.name} fits {ms:g} ms on {where}: the smallest "
                    f"possible takes {least} ms (predicted{share}): {self._made_of(device)}",
                    f"raise the budget: --budget {named}{more}",
                )
        device, trellis = self.settings.device, self.times[self.settings.device]
        budget = wanted[device] / self._tail(device)
        everything = budget >= trellis.slowest
        within = self.graph.count
        if not everything:
            within = trellis.within(budget, ticks=_TICKS).count
        return Feasible(
            round(trellis.fastest, 4), round(trellis.slowest, 4), self.graph.count, within
        )

    def _made_of(self, device: str) -> str:
        """The kinds of layers that take longest in the fastest architecture, as text.

        A fused head is named first: it may be the most of it.
        """
        trellis, table, parts = self.times[device], self.tables[device], self.space.parts
        total: defaultdict[str, float] = defaultdict(float)
        layers = self.graph.along(trellis.cheapest_path())
        for layer in layers:
            total[layer.module.__name__] += table.cost(layer)
        dearest = sorted(total.items(), key=lambda item: -item[1])
        said = [f"{name} {readable_ms(ms)}" for name, ms in dearest[:4] if ms > 0]
        if isinstance(parts, Fused):
            head_ms = sum(table.cost(layer) for layer in layers if parts.is_head(layer.path))
            said.insert(0, f"{readable_ms(head_ms)} in the head; by kind {said.pop(0)}")
        return ", ".join([*said, f"overhead {readable_ms(trellis.fixed)}"])


def _counted(graph: Graph, costs: Mapping[str, float], once: bool) -> Trellis:
    """The trellis of a count by key; a layer of several phases counts in each, or `once`."""

    def total(layers: tuple[Layer, ...]) -> float:
        return sum(costs[layer.key] for layer in (by_path(layers).values() if once else layers))

    return Trellis(graph, edge_costs(graph, total))
