"""EfficientViT: linear attention from its definition, and windows pruned the slow way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from nas.families import load_space
from nas.layers.inverted_residual import InvertedResidual
from nas.network.macs import count_macs
from nas.network.pruning import kept_windows
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from search_spaces.efficientvit import (
    AttentionBlock,
    ConvBlock,
    FusedResidual,
    MultiScaleLinearAttention,
    linear_attention,
)

BATCH = 3


def randomized(module):
    """Every parameter and statistic away from where it starts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return module.eval()


def kept_map(order, kept, size, window):
    """(B, S, S, 1): whether the token is in one of the first `kept` windows of its image."""
    side = size // window
    mask = torch.zeros(len(order), size, size, 1, dtype=torch.bool)
    for image, windows in enumerate(order[:, :kept].tolist()):
        for w in windows:
            y, x = (w // side) * window, (w % side) * window
            mask[image, y : y + window, x : x + window] = True
    return mask


def convolved(conv, x, **settings):
    """A ConvNorm's convolution and norm on (B, C, S, S)."""
    y = F.conv2d(x, conv.weight, conv.bias, **settings)
    if conv.norm is not None:
        n = conv.norm
        y = F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
    return y


def quadratic(q, k, v):
    """Weights relu(q).relu(k) of every pair, normalised over the keys; (N, D) each."""
    weights = torch.relu(q) @ torch.relu(k).T
    return weights @ v / (weights.sum(1, keepdim=True) + 1e-15)


def attention_added(attention, x, mask):
    """x (B, C, S, S) with the attention of the kept tokens added to them, head by head."""
    heads, _, d, width = attention.qkv.shape
    groups = 3 * heads * d
    qkv = F.conv2d(x, attention.qkv.reshape(groups, width, 1, 1))
    depthwise = attention.depthwise.reshape(groups, 1, 5, 5)
    pointwise = attention.pointwise.reshape(groups, d, 1, 1)
    pooled = F.conv2d(qkv, depthwise, padding=2, groups=groups)
    pooled = F.conv2d(pooled, pointwise, groups=3 * heads)
    mixed = torch.zeros(len(x), 2 * heads * d, *x.shape[2:])
    for image in range(len(x)):
        kept = mask[image, ..., 0]
        for head in range(heads):
            for s, scale in enumerate((qkv, pooled)):
                own = scale[image, head * 3 * d : (head + 1) * 3 * d][:, kept].T
                y = quadratic(*own.split(d, dim=1))
                first = (2 * head + s) * d
                mixed[image, first : first + d, kept] = y.T
    y = convolved(attention.project, mixed)
    return torch.where(mask.permute(0, 3, 1, 2), x + y, x)


def local_added(local, x, activation):
    y = activation(convolved(local.expand, x))
    y = activation(convolved(local.depthwise, y, padding=1, groups=y.shape[1]))
    return x + convolved(local.project, y)


@pytest.mark.parametrize("large", [0, 1])
@pytest.mark.parametrize(("size", "window"), [(6, 3), (12, 4), (9, 3)])
@pytest.mark.parametrize("sparsity", [0, 20, 50, 80])
def test_pruned_attention_block_is_its_definition(size, window, sparsity, large):
    """Windows of 3 or 4 tokens in maps this small: nearly every halo of 2 crosses an edge."""
    torch.manual_seed(sparsity)
    sizes = {"width": 8, "heads": 2, "head_dim": 4, "hidden": 16, "large": large, "eps": 15}
    total = (size // window) ** 2
    kept = kept_windows(total, sparsity)
    windows = {"window": window, "kept": kept, "bits": 32}
    layer = Layer.of("block", AttentionBlock, (size, size, 8), **sizes, **windows)
    block = randomized(layer.build())
    x = torch.randn(BATCH, size, size, 8)
    order = torch.rand(BATCH, total).argsort(1)
    mask = kept_map(order, kept, size, window)
    activation = (F.hardswish, lambda y: F.gelu(y, approximate="tanh"))[large]
    with torch.no_grad():
        after = attention_added(block.attention, x.permute(0, 3, 1, 2), mask)
        dense = local_added(block.local, after, activation)
        expected = torch.where(mask.permute(0, 3, 1, 2), dense, after).permute(0, 2, 3, 1)
        y, _ = block(x.clone(), order, **layer.elastic)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y[~mask[..., 0]], x[~mask[..., 0]], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["separable", "inverted", "fused", "dense"])
@pytest.mark.parametrize(("size", "window"), [(6, 3), (12, 4)])
@pytest.mark.parametrize("sparsity", [20, 50, 80])
def test_pruned_convolution_block_is_the_dense_one_on_kept_windows(kind, size, window, sparsity):
    entry, fused = kind in ("separable", "dense"), kind in ("fused", "dense")
    hidden = 8 if entry else 24
    sizes = {"width_in": 8, "width": 8, "hidden": hidden, "stride": 1, "large": int(fused),
             "entry": int(entry), "fused": int(fused), "biased": int(kind == "inverted")}  # fmt: skip
    layer = Layer.of("block", ConvBlock, (size, size, 8), **sizes, bits=32, window=window)
    block = randomized(layer.build())
    assert isinstance(block.body, FusedResidual if fused else InvertedResidual)
    total = (size // window) ** 2
    kept = kept_windows(total, sparsity)
    torch.manual_seed(sparsity)
    x = torch.randn(BATCH, size, size, 8)
    order = torch.rand(BATCH, total).argsort(1)
    mask = kept_map(order, kept, size, window)
    with torch.no_grad():
        dense, _ = block(x.clone(), None, **layer.elastic, kept=total)
        y, _ = block(x.clone(), order, **layer.elastic, kept=kept)
    torch.testing.assert_close(y, torch.where(mask, dense, x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dense, x)


def test_linear_attention_is_the_normalised_quadratic_one():
    qkv = torch.randn(2, 4, 3, 8, 50)
    y = linear_attention(qkv, 1e-15)
    for b in range(2):
        for h in range(4):
            expected = quadratic(*qkv[b, h].mT).T
            torch.testing.assert_close(y[b, h], expected, rtol=1e-4, atol=1e-5)


def test_eps_of_the_official_code_keeps_small_weights_and_a_large_one_does_not():
    """With equal values the result is that value, however small queries and keys are."""
    qkv = torch.rand(1, 1, 3, 8, 50) * 1e-4
    qkv[:, :, 2] = 3.0
    torch.testing.assert_close(linear_attention(qkv, 1e-15), qkv[:, :, 2])
    assert float(linear_attention(qkv, 1e-5).max()) < 1.5


def test_a_query_without_any_match_gives_zero():
    qkv = torch.randn(1, 1, 3, 4, 20)
    qkv[:, :, 0, :, 7] = -1.0
    assert torch.equal(linear_attention(qkv, 1e-15)[0, 0, :, 7], torch.zeros(4))


class Attends(torch.nn.Module):
    def forward(self, qkv):
        return linear_attention(qkv, 1e-15)


@pytest.mark.filterwarnings("ignore")
def test_a_query_without_any_match_gives_zero_in_onnx():
    """The exporter's optimizer drops additions of less than 1e-8."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    qkv = torch.randn(1, 1, 3, 4, 20)
    qkv[:, :, 0, :, 7] = -1.0
    program = torch.onnx.export(Attends(), (qkv,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (y,) = session.run(None, {session.get_inputs()[0].name: qkv.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), linear_attention(qkv, 1e-15))


def test_under_bf16_autocast_the_products_are_float32():
    """To the last digit: what float32 gives for the same inputs, rounded once."""
    torch.manual_seed(0)
    qkv = torch.rand(1, 2, 3, 8, 3136, requires_grad=True)
    narrow = qkv.bfloat16()
    expected = linear_attention(narrow.float(), 1e-15)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear_attention(narrow, 1e-15)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    assert qkv.grad.isfinite().all()


def test_whole_attention_under_autocast_stays_near_float32_and_trains():
    torch.manual_seed(0)
    attention = MultiScaleLinearAttention(16, 2, 4, eps=1e-15, norm_eps=1e-5)
    x = torch.randn(2, 8, 8, 16)
    sizes = {"heads": 2, "kept": 4, "window": 4, "bits": 32}
    exact = attention.eval()(x, None, **sizes)
    with torch.autocast("cpu", torch.bfloat16):
        rough = attention(x, None, **sizes)
    rough.float().square().sum().backward()
    with torch.no_grad():
        assert float((rough - exact).norm() / (exact - x).norm()) < 0.05
    assert all(p.grad is not None and p.grad.any() for p in attention.parameters())


def test_mixing_within_groups_is_a_grouped_convolution():
    attention = randomized(MultiScaleLinearAttention(8, 3, 4, eps=1e-15, norm_eps=1e-5))
    x = torch.randn(2, 5, 5, 24)  # two of the three heads
    weight = attention.pointwise[:2].reshape(24, 4, 1, 1)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, groups=6)
    torch.testing.assert_close(
        attention._mixed(x, 2), expected.view(2, 6, 4, 25), rtol=1e-4, atol=1e-5
    )


def test_macs_of_the_attention_are_those_of_its_formula():
    space = load_space("efficientvit_b1", Classification(10))
    layers = {layer.path: layer for layer in space.layers(space.largest)}
    macs = count_macs(layers["stage3_1"])
    n, c, t, d = 14**2, 128, 8 * 16, 16  # tokens, width, heads * head_dim
    products = 2 * 8 * 2 * n * d * (d + 1)  # scales, heads, both products, one column of ones
    assert macs.attention_products == products
    assert macs.attention == n * (3 * t * c + 3 * t * (25 + d) + 2 * t * c) + products


def test_blocks_carry_the_sizes_of_the_paper():
    """Official code, `efficientvit_cls_b0` and `efficientvit_cls_l1`: strides and hidden widths."""
    for name, sides, hidden in (
        ("efficientvit_b0", (112, 56, 28, 14, 7), (8, 32, 64, 128, 256)),
        ("efficientvit_l1", (112, 56, 28, 14, 7), (32, 512, 1024, 2048, 6144)),
    ):
        space = load_space(name, Classification(10))
        layers = {layer.path: layer for layer in space.layers(space.largest)}
        for stage, (side, wide) in enumerate(zip(sides, hidden)):
            assert layers[f"stage{stage}_0"].sizes["hidden"] == wide
            if stage:
                assert layers[f"stage{stage}_1"].input_shape[0] == side


def test_more_windows_cannot_come_back_inside_a_stage():
    space = load_space("efficientvit:debug")
    largest = space.largest
    last = largest.stages[2]
    first, second = (replace(block, sparsity=s) for block, s in zip(last.blocks[1:], (50, 0)))
    blocks = (last.blocks[0], first, second)
    stages = (*largest.stages[:2], replace(last, blocks=blocks))
    assert replace(largest, stages=stages) not in space
