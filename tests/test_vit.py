"""Vision transformers: pruned blocks the slow way, positions of other grids, two answers of DeiT."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm_models
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn

from nas.families import load_space
from nas.layers.attention import ElasticAttention
from nas.layers.elastic import ElasticMlp
from nas.network.macs import count_params
from nas.network.network import Network
from nas.network.pruning import kept_windows
from nas.space.architecture import Architecture, Stage
from nas.space.family import SearchSpace
from nas.tasks.classification import Classification
from nas.training.pretrained import load_weights
from search_spaces.vit import DEBUG, Block, ViT

CLASSES = 5


def random_network(space, architecture=None):
    torch.manual_seed(0)
    network = Network(space, architecture or space.largest).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def norm(x, module):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (var + module.eps).sqrt() * module.weight.double() + module.bias.double()


def attend(x, module, heads, bias=None):
    """Of one image (N, C), in float64, head by head."""
    y = module.out_bias.double()
    for h in range(heads):
        weights, offsets = module.qkv[:, h].double(), module.qkv_bias[:, h].double()
        q, k, v = (x @ w.T + b for w, b in zip(weights, offsets))
        logits = q @ k.T / q.shape[-1] ** 0.5
        logits = logits if bias is None else logits + bias[h].double()
        y = y + logits.softmax(-1) @ v @ module.out[:, h].double().T
    return y


def mlp(x, module, hidden):
    fc1, fc2 = module.fc1, module.fc2
    y = x @ fc1.weight[:hidden].double().T + fc1.bias[:hidden].double()
    y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    return y @ fc2.weight[:, :hidden].double().T + fc2.bias.double()


def most_active(patches, grid, window, kept):
    """The tokens of the `kept` windows with the largest L2 norm of the mean of |x|."""
    n = grid // window
    scores, members = [], []
    for row in range(n):
        for column in range(n):
            ys = range(row * window, (row + 1) * window)
            xs = range(column * window, (column + 1) * window)
            members.append([y * grid + x for y in ys for x in xs])
            scores.append(sum(float(patches[t].abs().mean()) ** 2 for t in members[-1]))
    best = sorted(range(len(scores)), key=lambda w: -scores[w])[:kept]
    return [t for w in best for t in members[w]]


def slow(network, architecture, image, first):
    """One image in float64: after each block the tokens of the dropped windows are forgotten."""
    grid = architecture.resolution // 4
    window = 2 if grid % 2 == 0 else 1
    total = (grid // window) ** 2
    stem = network.layers["stem"]
    sizes = network.space.layers(architecture)[0].sizes
    tokens = stem(image[None], **sizes)[0][0].double()
    rest, best = tokens[first:], None
    tokens = tokens[:first]
    for i, block in enumerate(architecture.stages[0].blocks):
        kept = kept_windows(total, block.sparsity)
        if kept < total:
            if best is None:
                best = most_active(rest, grid, window, total)
                rest = rest[best]
            rest = rest[: kept * window**2]
        module = network.layers[f"block{i}"]
        x = torch.cat([tokens, rest])
        x = x + attend(norm(x, module.norm1), module.attention, block.heads)
        x = x + mlp(norm(x, module.norm2), module.mlp, int(12 * block.mlp_ratio))
        tokens, rest = x[:first], x[first:]
    head = network.layers["head"]
    answers = [head.fc, head.distillation] if first == 2 else [head.fc]
    logits = [
        norm(tokens[i], head.norm) @ fc.weight.double().T + fc.bias.double()
        for i, fc in enumerate(answers)
    ]
    return sum(logits) / first


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("resolution", [16, 20, 24])
@pytest.mark.parametrize("sparsity", [(0, 0, 0), (50, 50, 50), (0, 40, 90)])
def test_a_pruned_network_forgets_the_least_active_windows(sparsity, resolution, distilled):
    """20 px give a grid of 5, which windows of 2 do not divide."""
    parts = ViT(patch=4, head_dim=4, distilled=distilled)
    network = random_network(SearchSpace("test", DEBUG, parts, Classification(CLASSES)))
    blocks = tuple(Block(2, ratio, s, "fp32") for ratio, s in zip((1, 1.5, 2), sparsity))
    architecture = Architecture(resolution, (Stage(12, blocks),))
    images = torch.randn(3, 3, resolution, resolution)
    with torch.no_grad():
        expected = [slow(network, architecture, image, parts.first) for image in images]
        torch.testing.assert_close(
            network(images, architecture).double(), torch.stack(expected), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
@pytest.mark.parametrize("resolution", [160, 384])
def test_positions_of_another_grid_are_timms(name, resolution):
    """A checkpoint of 224 px in networks for other resolutions, by timm's own resampling there."""
    source = timm_models.create(name, num_classes=10).state_dict()
    model = timm_models.create(name, num_classes=10, img_size=resolution)
    model.load_state_dict(checkpoint_filter_fn(dict(source), model))
    space = load_space(f"{name}@{resolution}", Classification(10))
    network = Network.empty(space, space.largest)
    assert load_weights(network, source) == []
    images = torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("resolution", [16, 24])
def test_a_subnet_resizes_the_positions_as_timm_does(resolution):
    space = load_space("vit:debug")
    network = random_network(space)
    architecture = replace(space.largest, resolution=resolution)
    with torch.no_grad():
        table = network.layers["stem"].position.reshape(1, 36, 12)
        expected = resample_abs_pos_embed(table, [resolution // 4] * 2, num_prefix_tokens=0)
        plain = network.inherit(architecture).layers["stem"].position
        torch.testing.assert_close(plain.reshape(1, -1, 12), expected, rtol=1e-5, atol=1e-6)


def test_a_resolution_that_is_no_multiple_of_the_patch_is_padded_with_zeros():
    space = load_space("vit:debug")
    network = random_network(space)
    architecture = replace(space.restrict("precision", "fp32").largest, resolution=24)
    images = torch.randn(2, 3, 22, 22)
    padded = torch.zeros(2, 3, 24, 24)
    padded[..., :22, :22] = images
    with torch.no_grad():
        small = replace(architecture, resolution=22)
        torch.testing.assert_close(network(images, small), network(padded, architecture))


@pytest.mark.parametrize("bias_shape", [None, (3, 50, 50), (4, 3, 50, 50)])
def test_attention_and_mlp_are_their_definitions(bias_shape):
    """With and without autograd, which take different kernels; the residual may be overwritten."""
    torch.manual_seed(0)
    attention, block_mlp = ElasticAttention(24, 4, 8), ElasticMlp(24, 48)
    for parameter in (*attention.parameters(), *block_mlp.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    x, residual = torch.randn(4, 50, 24), torch.randn(4, 50, 24)
    bias = None if bias_shape is None else torch.randn(bias_shape)
    each = [None] * 4 if bias is None else bias.expand(4, 3, 50, 50)
    attended = torch.stack([attend(a.double(), attention, 3, b) for a, b in zip(x, each)])
    mixed = torch.stack([mlp(image.double(), block_mlp, 40) for image in x])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y = attention(x, 3, bias)
            torch.testing.assert_close(y.double(), attended, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(block_mlp(x, 40).double(), mixed, rtol=1e-5, atol=1e-5)
            for got, expected in (
                (attention(x, 3, bias, residual=residual.clone()), attended),
                (block_mlp(x, 40, residual=residual.clone()), mixed),
                (block_mlp(x, 40, residual=residual.mT.clone().mT), mixed),  # not contiguous
            ):
                total = residual.double() + expected
                torch.testing.assert_close(got.double(), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "depth", "width", "heads", "hidden"),
    [("tiny", 14, 240, 4, 960), ("small", 14, 448, 7, 1792), ("base", 16, 624, 10, 2496)],
)
def test_the_largest_of_the_spaces_of_autoformer(preset, depth, width, heads, hidden):
    """AutoFormer, table 2, with heads of 64 channels whatever the width."""
    space = load_space(f"vit:autoformer-{preset}", Classification(1000))
    attention = 4 * width * heads * 64 + 3 * heads * 64 + width
    block = attention + 2 * width * hidden + hidden + width + 4 * width
    ends = 768 * width + 199 * width + 2 * width + 1000 * (width + 1)
    counted = sum(map(count_params, space.layers(space.largest)))
    assert counted == depth * block + ends


def test_the_hidden_width_follows_a_ratio_that_is_no_whole_number():
    space = load_space("vit:autoformer-tiny")
    block = space.smallest.stages[0].blocks[0]
    (layer,) = space.parts.block(0, 0, space.parts.stem(224, 216).state, block).layers
    assert block.mlp_ratio == 3.5
    assert layer.sizes["hidden"] == 756


@pytest.mark.parametrize(
    ("preset", "model"),
    [("tiny", "deit_tiny"), ("small", "deit_small"), ("base", "vit_base")],
)
def test_the_largest_of_a_paper_space_is_the_papers_model(preset, model):
    space, paper = (
        load_space(f"vit:{preset}", Classification(1000)),
        load_space(f"{model}_patch16_224"),
    )
    assert space.layers(space.largest) == paper.layers(paper.largest)
