"""Subnets that training steps draw: reproducible, of the largest sizes, or of one band of cost."""

from __future__ import annotations

import json
from random import Random

import numpy as np

from nas.families import load_space
from nas.network.macs import count_macs
from nas.training.subnets import Subnets


def megamacs(space, architecture):
    return sum(count_macs(layer).total for layer in space.layers(architecture)) / 1e6


def test_subnets_of_a_step_are_the_same_again_and_as_many_as_asked_for():
    space = load_space("swin:debug")
    rates = {"smallest": 0.25, "random": 1.0, "scheduled": 2.0, "band": 1.0}
    steps = [Subnets(space, rates).of(step) for step in range(200)]
    assert steps == [Subnets(space, rates).of(step) for step in range(200)]
    # Of 200 draws with a chance of a quarter, 50 are expected; the standard deviation is 6.1.
    assert 30 < sum(len(found) == 5 for found in steps) < 70
    assert {len(found) for found in steps} == {4, 5}


def test_scheduled_subnets_have_the_largest_sizes_under_every_schedule():
    space = load_space("vit:debug")
    drawn = {a for step in range(400) for a in Subnets(space, {"scheduled": 1.0}).of(step)}
    dense = {
        space.restrict("resolution", r).restrict("sparsity", 0).largest
        for r in space.positions[0].values
    }
    assert {space.restrict("sparsity", 0).parse(_dense(a)) for a in drawn} == dense
    assert all(a in space for a in drawn)
    schedules = {tuple(b.sparsity for s in a.stages for b in s.blocks) for a in drawn}
    every = [space.draw(Random(i)) for i in range(3000)]
    deepest = max(len(s) for s in ([b for st in a.stages for b in st.blocks] for a in every))
    possible = {
        found
        for a in every
        if len(found := tuple(b.sparsity for s in a.stages for b in s.blocks)) == deepest
    }
    assert schedules == possible


def _dense(architecture):
    data = json.loads(architecture.to_json())
    for stage in data["stages"]:
        for block in stage["blocks"]:
            block["sparsity"] = 0
    return json.dumps(data)


def test_neighbouring_steps_draw_from_one_band_of_cost():
    space = load_space("efficientvit:debug")
    subnets = Subnets(space, {"band": 1.0})
    low, high = megamacs(space, space.smallest), megamacs(space, space.largest)
    edges = np.geomspace(low, high, 7)
    bands = set()
    for first in range(0, 320, 16):
        costs = [megamacs(space, a) for step in range(16) for a in subnets.of(first + step)]
        band = int(np.searchsorted(edges, costs[0], "left")) - 1
        bands.add(max(band, 0))
        assert all(
            edges[max(band, 0)] * 0.97 <= c <= edges[max(band, 0) + 1] * 1.001 for c in costs
        )
    assert len(bands) > 3
