"""Composed ONNX networks against torch."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from conftest import DEBUG_SPACES

from nas.errors import PreparationError
from nas.families import load_space
from nas.layers.elastic import ElasticModule
from nas.lowering.onnx import lower, lower_ahead
from nas.network.standalone import build, inputs, run, slots
from nas.space.layer import Layer
from nas.tasks.classification import Classification

ort = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_a_network_composed_of_layers_is_the_network(name):
    """Sparse, with int8 blocks among them, in one model and as a chain of models."""
    space = load_space(name, Classification(5))
    sparse = space.restrict("sparsity", *[v for v in (50, 80) if _has(space, v)])
    drawn = [sparse.layers(sparse.draw(Random(seed))) for seed in range(100)]
    mixed = [x for x in drawn if {8, 32} <= {layer.sizes.get("bits") for layer in x}]
    layers = min(mixed, key=lambda x: len({layer.key for layer in x}))  # each takes half a second
    torch.manual_seed(0)
    image = inputs(layers[0], 1)
    with torch.inference_mode():
        expected = slots(run(build(layers), image))[0].numpy()
    piece = lower(layers)
    assert (piece.takes, piece.writes) == ((0,), (0,))
    whole = ort.InferenceSession(piece.model).run(None, {"in0": image[0].numpy()})[0]
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    state = [image[0].numpy()]
    for layer in layers:
        one = lower([layer])
        session = ort.InferenceSession(one.model)
        state = one.after(state, session.run(None, {f"in{i}": state[i] for i in one.takes}))
    np.testing.assert_allclose(state[0], expected, atol=1e-6)


def _has(space, sparsity):
    return any(getattr(v, "sparsity", 0) == sparsity for p in space.positions for v in p.values)


def test_a_layer_is_exported_once(monkeypatch):
    space = load_space("vit:debug", Classification(5))
    (layer, *_) = space.layers(space.smallest)
    first = lower([layer])
    monkeypatch.setattr("nas.lowering.onnx._export", None)
    assert lower([layer]) == first
    assert list(lower_ahead([layer], 1, 1)) == [layer]


def test_what_has_no_onnx_form_is_named():
    class Odd(ElasticModule):
        def forward(self, x):
            return (torch.linalg.svd(x).U,)

        @classmethod
        def inputs(cls, batch, shape, **_):
            return (torch.randn(batch, *shape),)

    with pytest.raises(PreparationError, match=r"Odd\(\)@3x3 has no ONNX form"):
        lower([Layer.of("odd", Odd, (3, 3))])
