"""Layers that run in several phases: one set of weights, a row for each run, in running order."""

from __future__ import annotations

import random

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from test_campaign import CALL, FIRST, Known, true_ms

import nas.runtimes
from nas.families import load_space
from nas.latency.end_to_end import measure_fresh
from nas.latency.profiling import profile
from nas.latency.protocols import stackable
from nas.lowering.onnx import lower
from nas.network.network import Network
from nas.network.standalone import build, inputs, run
from nas.runtimes import load_runtime
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph, space_layers


@pytest.fixture
def space(monkeypatch):
    monkeypatch.setenv("VITNAS_EXTENSIONS", "toys")
    return load_space("toys.phased:debug", Classification(2))


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(nas.runtimes, "runtimes", lambda: {"known": Known})
    return "known"


def test_layers_run_phase_by_phase(space):
    paths = [layer.path for layer in space.layers(space.largest)]
    assert paths == ["embed", "block0", "block1", "twice", "block0", "block1", "head"]  # fmt: skip


@pytest.mark.parametrize("context", ["network", "isolated", "stacked", "added"])
def test_every_run_of_a_layer_has_a_row(space, device, tmp_path, context):
    table = profile(space, device, tmp_path, context=context)
    layers = space_layers(space)
    assert table.rows.keys() == layers.keys()
    own = {"network": 0, "isolated": CALL, "stacked": CALL, "added": FIRST}[context]
    for key, layer in layers.items():
        first = context == "added" and ("Embed" in key or "Twice" in key)
        more = CALL if first else FIRST if context == "stacked" and stackable(layer) else own
        assert table.rows[key].median == pytest.approx(true_ms(layer) + more)


def test_a_layer_is_timed_behind_one_of_its_own_phase(space):
    before = Graph.of(space).before()
    for key, layer in space_layers(space).items():
        for ahead in before[key].values():
            with torch.no_grad():
                after = run(build([ahead]), inputs(ahead, 1))
            assert [t.shape for t in after] == [t.shape for t in inputs(layer, 1)]
    assert {x.path for k, x in space_layers(space).items() if not before[k]} == {"embed", "twice"}  # fmt: skip


def test_layers_of_one_path_share_a_module(space):
    steps = build(space.layers(space.largest))
    assert [steps[1][0], steps[2][0]] == [steps[4][0], steps[5][0]]
    assert steps[1][0] is not steps[2][0]


@pytest.mark.parametrize("device", ["torch-cpu", "onnxruntime-cpu"])
def test_it_runs_on_a_device_whole_and_by_layer(space, device, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(__import__("pathlib").Path(__file__).parent))
    (measured,) = measure_fresh(device, space, [space.largest], rounds=1, layers=True)
    assert len(measured.layers) == len(space.layers(space.largest))
    assert all(ms > 0 for own in [measured.samples, *measured.layers] for ms in own)


def test_a_composed_model_stores_shared_weights_once_and_is_the_network(space):
    architecture = space.draw(random.Random(1))
    layers = space.layers(architecture)
    model = onnx.load_from_string(lower(layers).model)
    stored = sum(np.prod(x.dims) for x in model.graph.initializer if x.data_type == 1)
    modules = {id(m): m for m, _ in build(layers)}.values()
    assert stored == sum(p.numel() for m in modules for p in m.parameters())
    network = Network(space, architecture).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
        x = torch.randn(1, *space.example(architecture))
        expected = network(x).numpy()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"in0": x.numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert load_runtime("onnxruntime-cpu").prepare(layers, fused=True)()
