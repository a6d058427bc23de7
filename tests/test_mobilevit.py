"""MobileViT: pruned stages against the definition, and timm's numbers at other resolutions."""

from __future__ import annotations

import pytest
import timm_models
import torch
import torch.nn.functional as F

from nas.families import load_space
from nas.layers.activations import activate
from nas.layers.conv import BatchNorm
from nas.layers.maps import MapScore, fold, unfold
from nas.network.network import Network
from nas.network.pruning import kept_windows
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from nas.training.pretrained import load_weights
from search_spaces.mobilevit import (
    Block,
    Inner,
    MobileBlock,
    MobileViT,
    Residual,
    resized,
)

PARTS = MobileViT((None, Inner(3, 2, 6)), window=4)


@torch.no_grad()
def perturbed(module):
    """Everything away from 0 and 1, so that a slip shows."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    for norm in module.modules():
        if isinstance(norm, BatchNorm):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize("sparsity", [25, 50, 80])
@pytest.mark.parametrize(("size", "kernel"), [(12, 3), (12, 5), (8, 5)])
def test_pruned_residual_is_the_dense_one_on_the_best_windows(size, kernel, sparsity):
    torch.manual_seed(0)
    window = 4
    grid = size // window
    kept = kept_windows(grid**2, sparsity)
    sizes = dict(inputs=6, width=6, hidden=12, kernel=kernel, stride=1, bits=32, window=window)
    layer = Layer.of("block", MobileBlock, (size, size, 6), **sizes)
    module = perturbed(layer.build())
    x = torch.randn(3, size, size, 6)
    with torch.no_grad():
        dense, _ = module(x.clone(), None, **layer.elastic, kept=grid**2)
        _, order = MapScore()(x, None, window=window)
        pruned, _ = module(x.clone(), order, **layer.elastic, kept=kept)
    expected = x.clone()
    for b in range(3):
        windows = [(i, j) for i in range(0, size, window) for j in range(0, size, window)]
        windows.sort(key=lambda w: -score(x[b, w[0] : w[0] + window, w[1] : w[1] + window]))
        for i, j in windows[:kept]:
            here = (b, slice(i, i + window), slice(j, j + window))
            expected[here] = dense[here]
    torch.testing.assert_close(pruned, expected, rtol=1e-5, atol=1e-6)


def score(tokens):
    """Of the tokens (..., C) of a window."""
    return float(tokens.abs().mean(-1).square().sum().sqrt())


def slow_stage(modules, layers, x):
    """One image after another, tokens at their places in the map, never sorted."""
    by_path = {layer.path: layer.sizes for layer in layers}
    size, outputs = x.shape[1], []
    width = by_path["exit1"]["width"]
    enter, leave = modules["enter1"], modules["exit1"]
    for image in x.split(1):
        y = enter.project(enter.local(image, width))
        y = y if size % 2 == 0 else resized(y, size + 1)
        y = y[0]
        grid = len(y) // 2
        window = 2 if grid % 2 == 0 else 1
        pixels = 2 * window
        corners = [(i, j) for i in range(0, 2 * grid, pixels) for j in range(0, 2 * grid, pixels)]
        for path, sizes in by_path.items():
            if path == "sort1":
                scores = {(i, j): score(y[i : i + pixels, j : j + pixels]) for i, j in corners}
                corners.sort(key=scores.__getitem__, reverse=True)
            if not path.startswith("layer1"):
                continue
            kept = torch.zeros(2 * grid, 2 * grid, dtype=torch.bool)
            for i, j in corners[: sizes["patches"] // window**2]:
                kept[i : i + pixels, j : j + pixels] = True
            module, before = modules[path], y.clone()
            for dy in (0, 1):
                for dx in (0, 1):
                    own = kept[dy::2, dx::2]
                    tokens = before[dy::2, dx::2][own][None]
                    tokens = tokens + module.attention(module.norm1(tokens), sizes["heads"])
                    tokens = tokens + module.mlp(module.norm2(tokens), sizes["hidden"])
                    y[dy::2, dx::2][own] = tokens[0]
        y = leave.norm(y)[None]
        y = leave.project(y if size % 2 == 0 else resized(y, size), width)
        outputs.append(leave.fuse(torch.cat([image, y], -1), width))
    return torch.cat(outputs)


@pytest.mark.parametrize("size", [12, 13, 6])  # patches in windows of 4, and one by one
@pytest.mark.parametrize("sparsities", [(0, 0, 0), (0, 40, 40), (25, 50, 80), (60, 60, 90)])
def test_pruned_stage_leaves_tokens_behind_and_returns_them(size, sparsities):
    torch.manual_seed(0)
    state = PARTS.transition(1, PARTS.stem(4 * size, 8).state, 8).state
    state = PARTS.block(1, 0, state, Residual(1, 3, 0, "fp32")).state
    assert state.size == size
    layers = []
    for i, sparsity in enumerate(sparsities):
        part = PARTS.block(1, 1 + i, state, Block(1 + i % 2, 1.5, sparsity, "fp32"))
        layers, state = [*layers, *part.layers], part.state
    layers.append(PARTS.head(state, Classification(5))[0])
    assert (layers[1].path == "sort1") == (sparsities[0] > 0)
    modules = {layer.path: perturbed(layer.build()) for layer in layers}
    x = torch.randn(3, size, size, 8)
    with torch.no_grad():
        expected = slow_stage(modules, layers, x)
        running = (x, None)
        for layer in layers:
            running = modules[layer.path](*running, **layer.elastic)
    torch.testing.assert_close(running[0], expected, rtol=1e-4, atol=1e-5)


def test_patches_are_two_by_two_pixels():
    x = torch.randn(2, 6, 6, 3)
    tokens = unfold(x, 2)
    assert tokens.shape == (2, 4, 9, 3)
    assert torch.equal(tokens[1, 2, 5], x[1, 2 * 1 + 1, 2 * 2])  # lower left pixel of patch (1, 2)
    assert torch.equal(fold(tokens, 2, 6), x)


def test_resize_puts_pixels_where_their_centres_are():
    line = torch.arange(3.0)
    at = (torch.arange(4) + 0.5) * 3 / 4 - 0.5
    expected = at.clamp(0, 2)
    found = resized(line[None, :, None, None].expand(1, 3, 3, 1), 4)[0, :, 0, 0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("resolution", [96, 97, 144, 240])
def test_other_resolutions_are_timms(resolution):
    """96: maps of 12, 6 and 3; 97: 13, 7 and 4; 144: 18, 9 and 5; 240: 30, 15 and 8."""
    model = timm_models.create("mobilevit_xxs", num_classes=10)
    for name, tensor in model.named_buffers():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    space = load_space(f"mobilevit_xxs@{resolution}", Classification(10))
    network = Network.empty(space, space.largest)
    load_weights(network, model.state_dict())
    images = torch.randn(2, 3, resolution, resolution)
    with torch.no_grad():
        expected = model(images)
        assert not torch.allclose(expected[0], expected[1], rtol=0.01)
        torch.testing.assert_close(network(images), expected, rtol=0, atol=5e-5)


def test_the_papers_sizes():
    """Table 4: 1.3, 2.3 and 5.6 M parameters; the largest of each space is the paper's model."""
    for size, millions in (("xxs", 1.3), ("xs", 2.3), ("s", 5.6)):
        space, model = (
            load_space(f"mobilevit:{size}", Classification(1000)),
            load_space(f"mobilevit_{size}"),
        )
        ours, paper = (s.layers(s.largest) for s in (space, model))
        assert ours == paper
        with torch.device("meta"):
            network = Network(model, model.largest)
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions


def test_what_cannot_prune_does_not():
    wider = MobileViT((None, None), stem_part=2, window=4)
    state = wider.stem(48, 8).state
    assert wider.block(0, 0, state, Residual(2, 3, 50, "fp32")) is None  # changes the width
    state = wider.block(0, 0, state, Residual(2, 3, 0, "fp32")).state
    pruned = wider.block(0, 1, state, Residual(2, 3, 50, "fp32"))
    assert [layer.path for layer in pruned.layers] == ["score0", "residual0_1"]
    assert wider.block(0, 2, pruned.state, Residual(2, 3, 0, "fp32")) is None  # more than before
    entered = wider.transition(1, pruned.state, 8).state
    assert wider.block(1, 0, entered, Residual(2, 3, 50, "fp32")) is None  # strided


def test_convolutions_around_the_layers_share_the_precision_of_the_nearest():
    state = PARTS.transition(1, PARTS.stem(48, 8).state, 8).state
    state = PARTS.block(1, 0, state, Residual(1, 3, 0, "fp32")).state
    first = PARTS.block(1, 1, state, Block(1, 1, 0, "int8"))
    last = PARTS.block(1, 2, first.state, Block(1, 1, 0, "fp32"))
    layers = [*first.layers, *last.layers, PARTS.head(last.state, Classification(5))[0]]
    assert [(layer.path, layer.sizes["bits"]) for layer in layers] == [
        ("enter1", 8), ("layer1_1", 8), ("layer1_2", 32), ("exit1", 32),
    ]  # fmt: skip


def test_silu_is_torchs():
    x = torch.randn(5)
    expected = F.silu(x)
    assert torch.equal(activate("silu", x), expected)
    with torch.no_grad():
        assert torch.equal(activate("silu", x), expected)
