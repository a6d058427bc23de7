"""torch-compile: compiled pieces compute what the layers do, each with code of its own."""

from __future__ import annotations

import shutil

import pytest
import torch

from nas.errors import VitnasError
from nas.families import load_space
from nas.network.standalone import build, inputs, run
from nas.runtimes import load_runtime, torch_compile
from nas.tasks.classification import Classification

SPACE = load_space("vit:debug", Classification(3))
LAYERS = SPACE.restrict("precision", "fp32").layers(SPACE.largest)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def copied(state):
    """Layers may write into what they are given."""
    return tuple(None if x is None else x.clone() for x in state)


@needs_compiler
def test_pieces_of_one_class_compute_what_their_layers_do():
    """Blocks share `forward`, and guards are off: each must still run its own weights."""
    block = next(layer for layer in LAYERS if layer.module.__name__ == "TransformerBlock")
    built = [build([block]) for _ in range(2)]
    outputs = []
    with torch.no_grad(), torch_compile._quiet():
        for parameter in built[1][0][0].parameters():
            parameter.normal_(std=0.3)
        state = inputs(block, 1)
        pieces = [torch_compile._compile(steps, copied(state), fused=True) for steps in built]
        for (piece,), steps in zip(pieces, built):
            outputs.append(piece(*copied(state))[0].clone())
            expected = run(steps, copied(state))[0]
            torch.testing.assert_close(outputs[-1], expected, rtol=1e-4, atol=1e-4)
    assert (outputs[0] - outputs[1]).abs().max() > 0.1


@needs_compiler
def test_nothing_is_compiled_while_it_is_timed():
    with load_runtime("torch-compile") as runtime:
        program = runtime.prepare(LAYERS[:1], fused=True)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        first, second = program(), program()
    assert compiled > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert first[0].wall < 1000
    assert second[0].wall < 1000


def test_a_missing_compiler_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "g++-nowhere")
    with pytest.raises(VitnasError, match=r"needs the C\+\+ compiler g\+\+-nowhere; apt install"):
        load_runtime("torch-compile").describe()
