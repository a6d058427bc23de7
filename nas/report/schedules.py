"""What the networks of a run are made of: stages and blocks, sizes, milliseconds by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nas.network.calibration import run_layer
from nas.network.fused import Fused
from nas.network.macs import sum_macs, sum_params
from nas.network.network import Network
from nas.report.saved_run import SavedRun
from nas.run_record import Answer, Candidate
from nas.size import Size
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.rules import ENDED


@dataclass(frozen=True)
class BlockMade:
    """The choices of a block by name, and the percentage of its tokens that it works on."""

    fields: dict[str, Any]
    kept_percent: float


@dataclass(frozen=True)
class StageMade:
    """A stage by its name and width, and its blocks."""

    name: str
    width: int
    blocks: list[BlockMade]


@dataclass(frozen=True)
class Made:
    """What the winner of a budget is made of: its input, its size, and its blocks by stage."""

    budget_ms: float
    resolution: Size
    params: int
    macs: int
    stages: list[StageMade]


def winner_made(run: SavedRun, answer: Answer) -> Made:
    """What the winner of an answer is made of."""
    space, architecture = run.space, run.architecture(answer.winner)
    layers = space.layers(architecture)
    return Made(
        answer.budget_ms,
        architecture.resolution,
        sum_params(layers),
        sum_macs(layers).total,
        schedule(space, architecture),
    )


def schedule(space: SearchSpace, architecture: Architecture) -> list[StageMade]:
    """An architecture stage by stage, with the share of its tokens that each block works on."""
    shares_of = _shares(Network(space, architecture).eval())
    stages: list[StageMade] = []
    state: Any = None
    for i, value in enumerate(space.domain.flatten(architecture)):
        part = space.advance(i, state, value)
        assert part is not None
        state = part.state
        if isinstance(value, int) and i:  # the width that opens a stage
            is_head = isinstance(space.parts, Fused) and len(stages) == space.parts.stages
            stages.append(StageMade("head" if is_head else f"stage {len(stages)}", value, []))
        elif i and value is not ENDED:
            paths = [layer.path for layer in part.layers]
            shares = [shares_of[path] for path in paths if path in shares_of]
            share = float(np.mean(shares)) if shares else 1.0  # a block that cannot prune
            fields = {k: v for k, v in vars(value).items() if k != "sparsity"}
            stages[-1].blocks.append(BlockMade(fields, 100 * share))
    return stages


def _shares(network: Network) -> dict[str, float]:
    """The share of its tokens that each layer that can prune works on, by path.

    It depends neither on weights nor on precision, and int8 would need ranges; on the image only
    where a map is padded, by which windows are kept.
    """
    size = network.architecture.resolution
    state: tuple[Any, ...] = (torch.zeros(1, *network.space.parts.example(size)),)
    shares = {}
    with torch.no_grad():
        for layer in network.space.layers(network.architecture):
            module: Any = network.module(layer)
            if (kept := layer.kept(module, state)) is not None:
                shares[layer.path] = float(kept.double().mean())
            state = run_layer(module, layer, state, bits=32)
    return shares


def layer_times(run: SavedRun) -> list[tuple[str, list[tuple[str, float]]]]:
    """By name the winners and the largest dense network: milliseconds by path of the layer."""
    answers = run.record.by_budget
    dense = answers[0].baseline("largest dense")
    assert dense is not None  # every answer is compared with it
    several = len(answers) > 1
    named: list[tuple[str, Candidate]] = [
        (f"winner within {a.budget_ms:g} ms" if several else "winner", a.winner) for a in answers
    ]
    return [
        (
            name,
            [
                (layer.path, run.table.cost(layer))
                for layer in run.space.layers(run.architecture(candidate))
            ],
        )
        for name, candidate in [*named, ("largest dense", dense)]
    ]
