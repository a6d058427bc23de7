"""Every named model against timm's: parameters, MACs, and outputs with timm's weights."""

from __future__ import annotations

import pytest
import timm_models
import torch
from timm_models import timm
from torch.utils.flop_counter import FlopCounterMode

from nas.checkpoint import load_weights
from nas.elastic import Network, count_macs, count_params
from nas.errors import UnknownNameError, UsageError
from nas.family import load_space, model_names

MODELS = sorted(model_names())
CLASSES = 1000
# Twice the difference of float32 sums in another order: the tolerances that we promise.
TOLERANCE = {"mobilevit": 5e-5, "efficientvit": 5e-5}
COMPARED = 30_000_000  # parameters up to which the whole network runs; larger ones differ in size


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=CLASSES).eval()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_macs_are_timms(name):
    """MACs: convolutions, linear layers, attention products; timm's own code, counted by torch."""
    model, space = on_meta(name), load_space(name)
    layers = space.layers(space.largest, CLASSES)
    assert space.smallest == space.largest
    assert sum(map(count_params, layers)) == sum(p.numel() for p in model.parameters())
    resolution = space.largest.resolution
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, resolution, resolution, device="meta"))
    assert sum(count_macs(layer).total for layer in layers) == counter.get_total_flops() // 2


def small(name):
    return sum(p.numel() for p in on_meta(name).parameters()) < COMPARED


@pytest.mark.parametrize("name", [name for name in MODELS if small(name)])
def test_outputs_are_timms(name):
    space = load_space(name)
    model = timm_models.create(name, num_classes=10)
    network = Network.empty(space, space.largest, 10)
    assert load_weights(network, model.state_dict()) == []
    r = space.largest.resolution
    images = torch.randn(1, 3, r, r, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(images)
        scale = max(1.0, float(expected.abs().max()))
        limit = TOLERANCE.get(name.partition("_")[0], 2e-5) * scale
        assert float((network(images) - expected).abs().max()) <= limit
        network.deploy()
        assert float((network(images) - expected).abs().max()) <= 2 * limit


def test_an_unknown_model_lists_the_closest():
    with pytest.raises(UnknownNameError, match="swin_tiny_patch4_window7_224"):
        load_space("swin_tiny_patch4_window8_224")


def test_another_resolution_is_part_of_the_name():
    space = load_space("swin_tiny_patch4_window7_224@256")
    assert space.largest.resolution == 256
    with pytest.raises(UsageError, match="multiples of 4; use 256"):
        load_space("swin_tiny_patch4_window7_224").at(255)
    with pytest.raises(UsageError, match="resolution in pixels"):
        load_space("swin_tiny_patch4_window7_224@big")
