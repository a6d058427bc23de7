"""Every family goes the whole way: trained, searched, measured, exported, reported.

With tables that are made up; the stopwatch is real.
"""

from __future__ import annotations

import pytest
import torch
from conftest import DEBUG_SPACES, made_up_table
from safetensors.torch import load_file, save_file

import nas
from nas.families import load_space
from nas.network.network import Network
from nas.tasks.classification import Classification
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet
from nas.training.train import train

RECIPE = Recipe(images=(32, 32, 16), batches=(16, 16, 8))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_from_images_to_a_measured_winner(name, photo_data, tmp_path, monkeypatch):
    monkeypatch.setattr("nas.export.onnx_installed", lambda: False)  # ten seconds, tested elsewhere
    space = load_space(name, Classification(2))
    supernet = train(name, photo_data, tmp_path / "supernet", RECIPE)
    made_up_table(space, tmp_path / "table")
    result = nas.search(
        "10s", space=name, data=photo_data.name, supernet=supernet,
        table=tmp_path / "table", out=tmp_path / "run", evaluations=3, search_images=10,
        test_images=10,
    )  # fmt: skip
    assert result["winner"]["measured_ms"] > 0
    assert {"weights.safetensors", "model.pt2"} <= result["exported"]["differences"].keys()
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_training_starts_from_a_checkpoint_with_the_important_channels_first(
    name, photo_data, tmp_path
):
    """A learning rate of zero leaves the initial weights, reordered; in timm's names."""
    space = load_space(name, Classification(2))
    torch.manual_seed(3)
    largest = space.restrict("precision", "fp32").largest
    source = Network(space, largest).eval()
    names = {}
    for layer in space.layers(largest):
        for own, tensor in source.layers[layer.path].state_dict().items():
            theirs, transform = space.parts.origin(layer.path, own)
            if not own.endswith(".clip") and transform is None:
                names[theirs] = tensor.clone()
    if any(
        space.parts.origin(layer.path, own)[1]
        for layer in space.layers(largest)
        for own in source.layers[layer.path].state_dict()
        if not own.endswith(".clip")
    ):
        pytest.skip("some tensors of this family are not a plain reshape of timm's")
    save_file({k: v.contiguous() for k, v in names.items()}, tmp_path / "init.safetensors")
    folder = train(
        name, photo_data, tmp_path / "supernet", Recipe(RECIPE.images, RECIPE.batches, 0.0),
        init=str(tmp_path / "init.safetensors"),
    )  # fmt: skip
    trained, _ = load_supernet(folder, name, photo_data)
    expected = dict(source.reorder().named_parameters())
    for key, value in trained.named_parameters():
        torch.testing.assert_close(value, expected[key].half().float(), rtol=1e-3, atol=1e-6)
    assert load_file(folder / "weights.safetensors")
