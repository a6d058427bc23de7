"""MobileNetV3: pruned blocks against the slow way, the paper's rounding and sizes."""

from __future__ import annotations

import pytest
import timm_models  # noqa: F401  # makes timm importable
import torch
import torch.nn.functional as F
from timm.layers import make_divisible

from nas.layers.windows import halo_tokens
from nas.network.macs import count_macs, count_params
from nas.network.pruning import MapState
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from search_spaces.mobilenetv3 import (
    LARGE_PARTS,
    MODELS,
    PRESETS,
    Block,
    Bottleneck,
    divisible,
)


def bottleneck(**sizes):
    """One with weights and statistics of which none is 0 or 1, and its sizes."""
    torch.manual_seed(0)
    args = dict(in_width=8, hidden=24, width=8, kernel=3, stride=1, squeezed=8, expand=1,
                hardswish=1, bits=32) | sizes  # fmt: skip
    layer = Layer.of("block", Bottleneck, (8, 8, 8), **args)
    module = layer.build().eval()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.add_(0.1 * torch.rand_like(tensor))
    return module, layer.elastic


def convolved(conv, x, groups=1):
    y = F.conv2d(x, conv.weight, padding=conv.weight.shape[-1] // 2, groups=groups)
    n = conv.norm
    y = (y - n.running_mean[:, None, None]) / (n.running_var[:, None, None] + n.eps).sqrt()
    return y * n.weight[:, None, None] + n.bias[:, None, None]


def slow(module, x, order, kept, window):
    """One image after the other; everything on the whole map but the gate and what is written."""
    parts, result = module.residual, x.clone()
    act = F.hardswish if parts.depthwise.activation == "hardswish" else F.relu
    for image in range(len(x)):
        y = x[image].permute(2, 0, 1)[None]
        y = y if parts.expand is None else act(convolved(parts.expand, y))
        y = act(convolved(parts.depthwise, y, groups=y.shape[1]))
        tokens = halo_tokens(x.shape[1], window, 0, x.device)[order[image, :kept]].flatten()
        if parts.gate is not None:
            reduce, expand = parts.gate.reduce, parts.gate.expand
            mean = y[0].flatten(1)[:, tokens].mean(1)
            gate = (
                expand.weight @ F.relu(reduce.weight @ mean + reduce.bias) + expand.bias + 3
            ) / 6
            y = y * gate.clamp(0, 1)[:, None, None]
        y = convolved(parts.project, y)[0].permute(1, 2, 0)
        for token in tokens.tolist():
            row, column = divmod(token, x.shape[1])
            result[image, row, column] += y[row, column]
    return result


@pytest.mark.parametrize("kept", [1, 2, 5, 8])
@pytest.mark.parametrize("sizes", [
    dict(kernel=3), dict(kernel=5), dict(kernel=7, hardswish=0), dict(kernel=5, squeezed=0),
    dict(kernel=3, expand=0, hidden=8, squeezed=0), dict(kernel=3, expand=0, hidden=8),
], ids=str)  # fmt: skip
def test_pruned_block_runs_the_kept_windows_and_leaves_the_others(sizes, kept):
    """From few windows with their surroundings to so many that the whole map is expanded."""
    module, args = bottleneck(**sizes)
    x = torch.randn(3, 24, 24, 8)
    order = torch.rand(3, 9).argsort(1)
    with torch.no_grad():
        expected = slow(module, x, order, kept, 8)
        y, after = module(x.clone(), order, **args, window=8, kept=kept)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert after is order
    training, _ = module(x, order, **args, window=8, kept=kept)
    torch.testing.assert_close(training, expected, rtol=1e-4, atol=1e-5)


def test_more_windows_never_take_fewer_macs():
    """Surroundings are computed again for each window, but never more than the whole map."""
    space = SearchSpace("mobilenetv3:micro", *PRESETS["micro"], Classification(10))
    state = MapState(14, 112, 112, 0)
    for kernel in (3, 5, 7):
        macs = []
        for sparsity in (80, 60, 40, 20, 0):
            part = space.parts.block(4, 1, state, Block(kernel, 6.0, sparsity, "fp32"))
            macs.append(count_macs(part.layers[-1]).total)
        assert macs == sorted(macs)


def test_nothing_is_pruned_where_nothing_could_pass_unchanged():
    block = Block(3, 3.0, 20, "fp32")
    assert LARGE_PARTS.block(1, 0, MapState(112, 16, 24, 0), block) is None  # strided
    assert LARGE_PARTS.block(4, 0, MapState(14, 80, 112, 0), block) is None  # wider
    assert LARGE_PARTS.block(4, 0, MapState(14, 112, 112, 0), block) is not None
    assert LARGE_PARTS.block(4, 1, MapState(14, 112, 112, 40), block) is None  # falls in the stage
    first = LARGE_PARTS.block(0, 0, MapState(112, 16, 16, 0), Block(3, 1.0, 60, "fp32"))
    assert [layer.path for layer in first.layers] == ["score0", "stage0_0"]


def test_input_is_added_where_widths_agree():
    wide, args = bottleneck(width=16)
    x = torch.randn(2, 6, 6, 8)
    with torch.no_grad():
        same, other = wide(x.clone(), None, **args | {"width": 8})[0], wide(x, None, **args)[0]
    torch.testing.assert_close(same - x, other[..., :8], rtol=1e-4, atol=1e-5)


def test_a_small_kernel_is_the_centre_of_the_large_one():
    large, args = bottleneck(kernel=5)
    x = torch.randn(2, 6, 6, 8)
    with torch.no_grad():
        small = large(x.clone(), None, **args | {"kernel": 3})[0]
        weight = large.residual.depthwise.weight
        weight[..., 0], weight[..., -1], weight[..., 0, :], weight[..., -1, :] = 0, 0, 0, 0
        torch.testing.assert_close(small, large(x.clone(), None, **args)[0], rtol=1e-4, atol=1e-5)


def test_squeezed_channels_are_ordered_by_importance_too():
    module, args = bottleneck()
    x = torch.randn(2, 6, 6, 8)
    with torch.no_grad():
        before = module(x.clone(), None, **args)[0]
        module.reorder()
        torch.testing.assert_close(module(x, None, **args)[0], before, rtol=1e-4, atol=1e-5)
    gate = module.residual.gate
    norms = gate.reduce.weight.abs().sum(1) + gate.expand.weight.abs().sum(0)
    assert norms.tolist() == sorted(norms.tolist(), reverse=True)


def test_channels_are_rounded_as_in_timm():
    for channels in (0.5, 8.0, 12.0, 18.0, 20.0, 88.08, 104.9, *map(float, range(1, 400))):
        assert divisible(channels) == make_divisible(channels, 8, round_limit=0.9)


@pytest.mark.parametrize(("name", "params", "macs"), [
    ("mobilenetv3_large_100", 5.4, 219), ("mobilenetv3_large_075", 4.0, 155),
    ("mobilenetv3_small_100", 2.5, 56), ("mobilenetv3_small_075", 2.0, 44),
])  # fmt: skip
def test_sizes_of_the_paper(name, params, macs):
    """Millions of parameters and of MACs: table 3."""
    space = SearchSpace(name, *MODELS[name], Classification(1000))
    layers = space.layers(space.largest)
    assert sum(map(count_params, layers)) / 1e6 == pytest.approx(params, abs=0.1)
    assert sum(count_macs(layer).total for layer in layers) / 1e6 == pytest.approx(macs, rel=0.02)


@pytest.mark.parametrize("size", ["large", "small"])
def test_the_largest_of_the_preset_is_the_papers_model(size):
    space, paper = (
        SearchSpace(size, *entry, Classification(10))
        for entry in (PRESETS[size], MODELS[f"mobilenetv3_{size}_100"])
    )
    ours, theirs = space.layers(space.largest), paper.layers(paper.largest)
    assert [(row.path, row.key) for row in ours] == [(row.path, row.key) for row in theirs]
