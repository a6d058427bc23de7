"""Every named model against timm's: parameters, MACs, and outputs with timm's weights."""

from __future__ import annotations

import pytest
import timm_models
import torch
from timm_models import timm
from torch.utils.flop_counter import FlopCounterMode

from nas.errors import UnknownNameError, UsageError
from nas.families import load_space, model_names
from nas.network.macs import count_macs, count_params
from nas.network.network import Network
from nas.space.family import SearchSpace
from nas.tasks.classification import Classification
from nas.training.pretrained import load_weights
from search_spaces import swin, vit

MODELS = sorted(set(model_names()) & set(timm.list_models()))
CLASSES = 1000
TOLERANCE = 5e-6  # of the largest logit, or of 1: float32 sums in another order
WHOLE = 90e6  # parameters up to which the whole network runs; larger ones with fewer blocks
QUICK = 60e6  # and up to which it takes about a second


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=CLASSES).eval()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_macs_are_timms(name):
    """MACs: convolutions, linear layers, attention products; timm's own code, counted by torch."""
    model, space = on_meta(name), load_space(name)
    layers = space.layers(space.largest)
    assert space.smallest == space.largest
    assert parameters(name) == sum(p.numel() for p in model.parameters())
    resolution = space.largest.resolution
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, resolution, resolution, device="meta"))
    assert sum(count_macs(layer).total for layer in layers) == counter.get_total_flops() // 2


def parameters(name):
    space = load_space(name)
    return sum(map(count_params, space.layers(space.largest)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if parameters(name) < QUICK else pytest.mark.slow)
        for name in MODELS
        if parameters(name) < WHOLE
    ],
)
def test_outputs_are_timms(name):
    compare(load_space(name, Classification(10)), timm_models.create(name, num_classes=10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "entry", "depth"),
    [
        ("vit_large_patch16_224", vit.model(16, 1024, 2, 16), {"depth": 2}),
        ("vit_large_patch32_224", vit.model(32, 1024, 2, 16), {"depth": 2}),
        ("vit_large_patch16_384", vit.model(16, 1024, 2, 16, 384), {"depth": 2}),
        ("vit_huge_patch14_224", vit.model(14, 1280, 2, 16), {"depth": 2}),
        ("swin_large_patch4_window7_224", swin.model(192, (1, 1, 1, 1)), {"depths": (2, 2, 2, 2)}),
    ],
)
def test_outputs_of_the_largest_are_timms_with_fewer_blocks(name, entry, depth):
    assert parameters(name) >= WHOLE
    compare(
        SearchSpace(name, *entry, Classification(10)),
        timm_models.create(name, num_classes=10, **depth),
    )


def compare(space, model):
    network = Network.empty(space, space.largest)
    assert load_weights(network, model.state_dict()) == []
    r = space.largest.resolution
    images = torch.randn(1, 3, r, r, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        limit = TOLERANCE * max(1.0, float(expected.abs().max()))
        assert float((network(images) - expected).abs().max()) <= limit
        network.deploy()
        assert float((network(images) - expected).abs().max()) <= limit


def test_an_unknown_model_lists_the_closest():
    with pytest.raises(UnknownNameError, match="swin_tiny_patch4_window7_224"):
        load_space("swin_tiny_patch4_window8_224")


def test_another_resolution_is_part_of_the_name():
    space = load_space("swin_tiny_patch4_window7_224@256")
    assert space.largest.resolution == 256
    with pytest.raises(UsageError, match="multiples of 4 from 28; use 256"):
        load_space("swin_tiny_patch4_window7_224").at(255)
    with pytest.raises(UsageError, match="resolution in pixels"):
        load_space("swin_tiny_patch4_window7_224@big")
