"""A folder of an exported network is all that is needed: files, preprocessing, examples, answers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import DEBUG_SPACES

from nas.deployment import IR_VERSION, OPSET, Card
from nas.export import export_network
from nas.families import load_space
from nas.network.calibration import calibrate
from nas.network.network import Network
from nas.records import read_json
from nas.space.architecture import at_precision

ROOT = Path(__file__).parents[1]


def plain(space, architecture, images, seed=0):
    """A network of random weights that answers differently to different pictures."""
    torch.manual_seed(seed)
    network = Network(space, architecture).eval()
    if architecture != at_precision(architecture, "fp32"):
        calibrate(network, images)
    return network


def deploy(folder, name, data, formats, *, precision="fp32", smaller=False, **more):
    """Export a network of a debug space for a data set; returns it and its inputs."""
    space = load_space(name, data.task)
    space = space if precision == "fp32" else space.with_int8()
    chosen = at_precision(space.smallest if smaller else space.largest, precision)
    first = data.first(data.test, 4, space.largest.resolution)["images"]
    inputs = space.parts.resized(first, chosen.resolution)
    network = plain(space, chosen, inputs)
    examples = inputs[: more.pop("batch", 1)]
    with torch.no_grad():
        expected = network(examples)
    card = Card.of(space, chosen, data)
    found = export_network(network, examples, expected, folder, formats, card=card, **more)
    return network, inputs, found


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_a_pt2_file_runs_as_the_documentation_of_torch_calls_it(name, photo_data, tmp_path):
    """Gradients are on by default, and parameters that have some cannot be written into."""
    network, inputs, _ = deploy(tmp_path, name, photo_data, ["pt2"])
    given = inputs[:1].clone()
    program = torch.export.load(tmp_path / "model.pt2").module()
    outputs = program(given)
    assert not outputs.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(outputs, network(inputs[:1]))
    torch.testing.assert_close(given, inputs[:1], rtol=0, atol=0)  # layers write into their maps
    assert not any(p.requires_grad for p in program.parameters())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_onnx_file_says_what_it_takes_and_nothing_of_this_machine(
    precision, photo_data, tmp_path
):
    onnx = pytest.importorskip("onnx")
    deploy(tmp_path, "vit:debug", photo_data, ["onnx", "pt2"], precision=precision)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [x.name for x in model.graph.input] == ["images"]
    assert [x.name for x in model.graph.output] == ["outputs"]
    # What the oldest ONNX Runtime that is stated knows: 1.17 came with ONNX 1.15.
    assert [(x.domain, x.version) for x in model.opset_import] == [("", OPSET)] == [("", 20)]
    assert model.ir_version == IR_VERSION == 9
    metadata = {x.key: x.value for x in model.metadata_props}
    card = read_json(tmp_path / "preprocess.json")
    assert {**json.loads(metadata["preprocess"]), "files": card["files"]} == card
    data = (tmp_path / "model.onnx").read_bytes()
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        data += b"".join(archive.read(name) for name in archive.namelist())
    for word in (str(ROOT), "search_spaces/vit.py", "nas/network", ".py", "stack_trace"):
        assert word.encode() not in data, word
