"""Swin against torchvision where maps need padding, and pruned blocks against the slow way."""

from __future__ import annotations

import warnings
from itertools import combinations

import pytest
import timm_models
import torch

from nas.families import load_space
from nas.layers.windows import most_real, shift_mask, window_orders, window_tokens
from nas.network.macs import count_params, sum_macs
from nas.network.network import Network
from nas.network.pruning import kept_windows
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from nas.training.pretrained import load_weights
from search_spaces.swin import Block, Swin, WindowBlock


@pytest.mark.parametrize("resolution", [224, 256, 168])
def test_swin_tiny_is_torchvisions_where_maps_need_padding(resolution):
    """256 px pads every stage (64, 32, 16 and 8 tokens by windows of 7), 168 px the last two.

    torchvision pads maps as the paper's detection code does (before the roll), timm after it.
    """
    from torchvision.models import swin_t

    torch.manual_seed(0)
    model = timm_models.perturbed(swin_t(weights=None, num_classes=10).eval())
    space = load_space(f"swin_tiny_patch4_window7_224@{resolution}", Classification(10))
    network = Network.empty(space, space.largest)
    assert load_weights(network, model.state_dict()) == []
    images = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=0, atol=2e-5)
    images.requires_grad_()
    ours, theirs = (torch.autograd.grad(m(images)[0, 3], images)[0] for m in (network, model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_parameters_and_macs_of_the_papers():
    """Swin-T: 28.3 M and 4.5 G (Swin, table 1); ViT-Ti: 5.7 M, 1.3 G (DeiT, table 5)."""
    swin, vit = load_space("swin_tiny_patch4_window7_224"), load_space("vit_tiny_patch16_224")
    swin_layers = swin.layers(swin.largest)
    vit_layers = vit.layers(vit.largest)
    assert sum(map(count_params, swin_layers)) == 28_288_354
    assert sum(map(count_params, vit_layers)) == 5_717_416
    assert sum_macs(swin_layers).total / 1e9 == pytest.approx(4.5, abs=0.05)
    n, c = 197, 192  # closed form: qkv and projection, two attention products, MLP
    macs = 12 * (4 * n * c * c + 2 * n * n * c + 8 * n * c * c) + 196 * 768 * c + c * 1000
    assert sum_macs(vit_layers).total == macs


def test_macs_agree_with_fvcore(monkeypatch):
    """fvcore counts explicit products rightly, and norms besides, which are left out here."""

    def explicit(q, k, v, bias, in_windows):
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v

    monkeypatch.setattr("nas.layers.attention.attend", explicit)
    space = load_space("vit:micro")
    network = Network(space, space.largest).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore traces with torch.jit, which is deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, torch.randn(1, 3, 224, 224))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    counted = sum(v for k, v in by_operator.items() if k in ("linear", "matmul", "conv"))
    assert counted == sum_macs(space.layers(space.largest)).total


@pytest.mark.parametrize(("size", "window", "shift"), [(14, 7, 3), (12, 3, 1), (8, 4, 2)])
def test_shift_mask_is_timms(size, window, shift):
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(
        dim=8, input_resolution=(size, size), num_heads=1, window_size=window, shift_size=shift,
        always_partition=True,
    )  # fmt: skip
    ours = shift_mask(size, window, shift, torch.device("cpu"))
    torch.testing.assert_close(ours, block.attn_mask)


def slow_block(module, x, chosen, sizes):
    """One window after another, in place, as the definition says."""
    side = x.shape[1]
    tokens = window_tokens(sizes["size"], sizes["window"], sizes["shift"], x.device)
    flat = x.reshape(len(x), side * side, -1).clone()
    dense_sizes = {**sizes, "kept": len(tokens)}
    whole, *_ = module(x.clone(), None, None, **dense_sizes)
    whole = whole.reshape(flat.shape)
    for b in range(len(x)):
        for w in chosen[b].tolist():
            flat[b, tokens[w]] = whole[b, tokens[w]]
    return flat.view(x.shape)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(("size", "kept"), [(28, 5), (25, 5), (25, 14), (22, 1), (22, 15)])
def test_pruned_block_runs_the_kept_windows_and_leaves_the_others(size, kept, shift):
    torch.manual_seed(0)
    sizes = dict(width=16, heads=2, head_dim=8, hidden=32, size=size, window=7, shift=shift,
                 kept=kept, bits=32)  # fmt: skip
    layer = Layer.of("block", WindowBlock, (28, 28, 16), **sizes)
    module = layer.build().eval()
    x = torch.randn(3, 28, 28, 16)
    if size < 28:
        x[:, size:], x[:, :, size:] = 0, 0
    orders = window_orders(x, size, 7, (0, 3))
    with torch.no_grad():
        y, *_ = module(x.clone(), *orders, **layer.elastic)
        expected = slow_block(module, x, orders[shift > 0][:, :kept], layer.elastic)
    real = slice(0, size)
    torch.testing.assert_close(y[:, real, real], expected[:, real, real], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "shift", "kept"),
    [(11, 0, 3), (11, 3, 3), (11, 3, 2), (11, 0, 4), (8, 3, 4), (15, 3, 8)],
)
@pytest.mark.parametrize("grad", [False, True])
def test_padding_neither_reaches_the_mlp_nor_matters(size, shift, kept, grad, monkeypatch):
    torch.manual_seed(0)
    side = -(-size // 7) * 7
    total = (side // 7) ** 2
    sizes = dict(width=16, heads=2, head_dim=8, hidden=32, size=size, window=7, shift=shift,
                 kept=kept, bits=32)  # fmt: skip
    layer = Layer.of("block", WindowBlock, (side, side, 16), **sizes)
    module = layer.build().eval()
    seen = []
    module.mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0][..., 0].numel()))
    x, order = torch.randn(1, side, side, 16), torch.randperm(total)[None]
    other = torch.randn_like(x)
    other[:, :size, :size] = x[:, :size, :size]
    with torch.set_grad_enabled(grad):
        y, *_ = module(x, order, order, **layer.elastic)
        again, *_ = module(other, order, order, **layer.elastic)
    assert torch.equal(y[:, :size, :size], again[:, :size, :size])
    real = (window_tokens(size, 7, shift, x.device) // side < size) & (
        window_tokens(size, 7, shift, x.device) % side < size
    )
    counts = real.sum(1).tolist()
    most = max(sum(counts[w] for w in chosen) for chosen in combinations(range(total), kept))
    assert most == most_real(size, 7, shift, 1, kept)
    assert sum(seen) == 2 * (most if most <= 0.9 * 49 * kept else 49 * kept)


def test_window_scores_are_the_norm_of_the_mean_activation():
    torch.manual_seed(0)
    x = torch.randn(2, 12, 12, 6)
    (order,) = window_orders(x, 12, 4, (0,))
    for b in range(2):
        scores = []
        for i in range(3):
            for j in range(3):
                window = x[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
                scores.append(float(window.abs().mean(-1).square().sum().sqrt()))
        assert order[b].tolist() == sorted(range(9), key=lambda w: -scores[w])


def test_kept_windows_counts_in_integers():
    assert [kept_windows(10, s) for s in (0, 10, 50, 90, 99, 100)] == [10, 9, 5, 1, 1, 1]
    assert [kept_windows(64, s) for s in (20, 40, 60, 80)] == [52, 39, 26, 13]
    assert kept_windows(1, 90) == 1


def test_sparsity_never_falls_inside_a_stage():
    parts = Swin()
    state = parts.stem(224, 96).state
    first = parts.block(0, 0, state, Block(3, 4, 60, "fp32"))
    assert parts.block(0, 1, first.state, Block(3, 4, 40, "fp32")) is None
    assert parts.block(0, 1, first.state, Block(3, 4, 60, "fp32")) is not None
    names = [layer.module.__name__ for layer in first.layers]
    assert names == ["WindowScore", "WindowBlock", "WindowBlock"]
    later = parts.block(0, 1, first.state, Block(3, 4, 80, "fp32"))
    assert [layer.module.__name__ for layer in later.layers] == ["WindowBlock", "WindowBlock"]


def test_the_shift_is_off_when_the_map_is_one_window():
    parts = Swin()
    state = replace_size(parts.stem(224, 96).state, 7)
    layers = parts.block(0, 0, state, Block(3, 4, 0, "fp32")).layers
    assert [layer.sizes["shift"] for layer in layers] == [0, 0]


def replace_size(state, size):
    return state._replace(size=size)
