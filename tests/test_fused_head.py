"""The fused head: as published, beside a reference of plain torch, and on what families hand it."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
import timm_models
import torch
import torch.nn.functional as F
from torch import nn

from nas.commands import find_space
from nas.errors import UsageError
from nas.families import load_space, model_names
from nas.lowering.onnx import lower
from nas.network.fused import Fused
from nas.network.macs import sum_macs, sum_params
from nas.network.network import Network
from nas.network.standalone import build, inputs, run
from nas.report.schedules import schedule
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from nas.tasks.segmentation import Segmentation
from nas.training.pretrained import load_weights
from search_spaces.efficientvit import EfficientVit
from search_spaces.vit import Leave, ToMap, WindowSort

# The table of the official repository: millions of parameters, billions of MACs at a side of the
# picture; Cityscapes is 1024 x 2048, twice the square of 1024.
PUBLISHED = {
    "b0_cityscapes": ("0.7", "4.4"),
    "b1_cityscapes": ("4.8", "25"),
    "b2_cityscapes": ("15", "74"),
    "b3_cityscapes": ("40", "179"),
    "l1_cityscapes": ("40", "282"),
    "l2_cityscapes": ("53", "396"),
    "b1_ade20k": ("4.8", "3.1"),
    "b2_ade20k": ("15", "9.1"),
    "b3_ade20k": ("39", "22"),
    "l1_ade20k": ("40", "36"),
    "l2_ade20k": ("51", "45"),
}


def as_published(number: float, published: str) -> bool:
    """Whether a number is the published one, cut or rounded to its digits."""
    unit = 10.0 ** -len(published.partition(".")[2])
    return -unit / 2 <= number - float(published) < unit


@pytest.mark.parametrize("name", PUBLISHED)
def test_segmenters_have_the_published_parameters_and_macs(name):
    space = load_space(f"efficientvit_seg_{name}")
    layers = space.layers(space.largest)
    wide = 2 if "cityscapes" in name else 1
    assert as_published(sum_params(layers) / 1e6, PUBLISHED[name][0])
    assert as_published(wide * sum_macs(layers).total / 1e9, PUBLISHED[name][1])
    assert space.task == Segmentation(19 if wide == 2 else 150)


def test_every_segmenter_is_looked_at():
    assert {f"efficientvit_seg_{name}" for name in PUBLISHED} == {
        name for name in model_names() if "_seg_" in name
    }


class Conv(nn.Module):
    def __init__(self, inputs, outputs, kernel=1, groups=1, norm=True, act=None, eps=1e-5):
        super().__init__()
        bias = not norm
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, 1, groups, bias)
        if norm:
            self.norm = nn.BatchNorm2d(outputs, eps)
        self.act = act or nn.Identity()

    def forward(self, x):
        y = self.conv(x)
        return self.act(self.norm(y) if hasattr(self, "norm") else y)


class Ops(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.op_list = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.op_list:
            x = part(x)
        return x


class Up(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return F.interpolate(x, scale_factor=self.factor, mode="bicubic", align_corners=False)


class Inner(nn.Module):
    """The inside of a residual block, its convolutions in the order of their names."""

    def __init__(self, **convs):
        super().__init__()
        for name, conv in convs.items():
            self.add_module(name, conv)

    def forward(self, x):
        for conv in self.children():
            x = conv(x)
        return x


class Added(nn.Module):
    def __init__(self, main):
        super().__init__()
        self.main = main

    def forward(self, x):
        return x + self.main(x)


class ReferenceHead(nn.Module):
    """The head from its description, with the names of the official checkpoints."""

    def __init__(self, channels, width, depth, expansion, final, classes, large):
        super().__init__()
        act = nn.GELU(approximate="tanh") if large else nn.Hardswish()
        eps = 1e-7 if large else 1e-5
        first, second, third = (Conv(c, width, eps=eps) for c in channels)
        self.input_ops = nn.ModuleList([Ops(first, Up(4)), Ops(second, Up(2)), third])
        hidden = width * expansion
        middle = []
        for _ in range(depth):
            if large:
                inner = Inner(
                    spatial_conv=Conv(width, hidden, 3, act=act, eps=eps),
                    point_conv=Conv(hidden, width, eps=eps),
                )
            else:
                inner = Inner(
                    inverted_conv=Conv(width, hidden, act=act),
                    depth_conv=Conv(hidden, hidden, 3, hidden, act=act),
                    point_conv=Conv(hidden, width),
                )
            middle.append(Added(inner))
        self.middle = Ops(*middle)
        last = [Conv(width, width * final, act=act, eps=eps)] if final else []
        last.append(Conv(width * (final or 1), classes, norm=False))
        self.output_ops = nn.ModuleList([Ops(*last)])

    def forward(self, maps):
        x = sum(op(x) for op, x in zip(self.input_ops, maps))
        return self.output_ops[0](self.middle(x))


OFFICIAL = (  # what timm calls the backbone's layers, and the official code
    (r"^stem\.in_conv\.", "input_stem.op_list.0."),
    (r"^stem\.res(\d+)\.", lambda m: f"input_stem.op_list.{int(m[1]) + 1}."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1.op_list."),
)


def official(name):
    for pattern, theirs in OFFICIAL:
        name = re.sub(pattern, theirs, name)
    return f"backbone.{name}"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("b0_cityscapes", ((128, 64, 32), 32, 1, 4, 4, 19, False)),
        ("b1_ade20k", ((256, 128, 64), 64, 3, 4, 0, 150, False)),
        pytest.param(
            "l1_cityscapes", ((512, 256, 128), 256, 3, 1, 0, 19, True), marks=pytest.mark.slow
        ),
        pytest.param(
            "l1_ade20k", ((512, 256, 128), 128, 3, 4, 8, 150, True), marks=pytest.mark.slow
        ),
    ],
)
def test_outputs_are_those_of_a_reference_with_the_official_names(name, head):
    torch.manual_seed(0)
    backbone = timm_models.create(f"efficientvit_{name[:2]}")
    reference = timm_models.randomized(ReferenceHead(*head)).eval()
    state = {official(n): t for n, t in backbone.state_dict().items() if not n.startswith("head.")}
    state |= {f"head.{n}": t for n, t in reference.state_dict().items()}
    space = load_space(f"efficientvit_seg_{name}@96")
    network = Network.empty(space, space.largest)
    assert load_weights(network, state) == []
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        x, maps = backbone.stem(images), []
        for stage in backbone.stages:
            x = stage(x)
            maps.insert(0, x)
        logits = reference(maps[:3])
        expected = F.interpolate(logits, (96, 96), mode="bilinear", align_corners=False)
        ours = network(images)
    scale = float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("swin:tiny", "swin_tiny_patch4_window7_224"),
        ("vit:tiny", "vit_tiny_patch16_224"),
        ("efficientvit:b0", "efficientvit_b0"),
        ("mobilevit:xxs", "mobilevit_xxs"),
        ("mobilenetv3:small", "mobilenetv3_small_100"),
    ],
)
def test_weights_of_a_classifier_start_a_segmenter(name, theirs):
    space = load_space(name, Segmentation(3))
    network = Network.empty(space, space.largest)
    left = load_weights(network, timm_models.timm.create_model(theirs).state_dict())
    assert {path.partition(".")[0] for path in left} == {
        layer.path
        for layer in space.layers(space.largest)
        if layer.path.startswith(("lateral", "refine")) or layer.path == "head"
    }


def test_the_number_of_classes_is_that_of_the_task_of_the_space():
    assert find_space("swin:seg-micro", 5).task == Segmentation(5)
    assert find_space("swin:micro", 5).task == Classification(5)
    assert find_space("swin:seg-micro", None).task == Segmentation()
    with pytest.raises(UsageError, match="classes are 300"):
        find_space("swin:seg-micro", 300)


def test_tokens_left_behind_are_put_back_where_they_were():
    """Left twice, and changed in between: each patch is as it was when it was left."""
    torch.manual_seed(0)
    first, grid, width = 1, 4, 6
    place = {"first": first, "grid": grid}
    x = torch.randn(2, first + grid**2, width)
    original = x.clone()
    sort = Layer.of("sort", WindowSort, (17, width), window=2, **place)
    leaves = [
        Layer.of(f"leave{tokens}", Leave, (before, width), tokens=tokens, **place)
        for before, tokens in ((17, 13), (13, 5))
    ]
    back = Layer.of("map", ToMap, (5, width), width=width, **place)
    norm = back.build()
    with torch.no_grad():
        state = sort.build().run((x, None), **sort.elastic)
        order = state[1]
        state = leaves[0].build().run(state, **leaves[0].elastic)
        state[0].add_(1)
        state = leaves[1].build().run(state, **leaves[1].elastic)
        state[0].add_(1)
        map_, rest = norm.run(state, **back.elastic)
    added = torch.tensor([2.0] * 4 + [1.0] * 8 + [0.0] * 4)  # by place after sorting
    expected = original[:, 1:].clone()
    for image in range(2):
        expected[image, order[image]] += added[:, None]
    expected = F.layer_norm(expected, (width,), eps=1e-6).view(2, grid, grid, width)
    torch.testing.assert_close(map_, expected)
    assert rest is None


@pytest.mark.parametrize("family", ["efficientvit", "mobilenetv3", "mobilevit", "swin", "vit"])
def test_every_pixel_has_a_label_however_much_is_dropped(family):
    """Logits depend on every part of the picture, also on windows that are dropped."""
    space = load_space(f"{family}:debug", Segmentation(3))
    sparse = space.restrict("sparsity", 50).restrict("precision", "fp32").largest
    torch.manual_seed(0)
    network = timm_models.randomized(Network(space, space.largest)).eval()
    images = torch.randn(1, *space.example(sparse), requires_grad=True)
    logits = network(images, sparse)
    assert logits.shape == (1, 3, sparse.resolution, sparse.resolution)
    (slope,) = torch.autograd.grad(logits.square().sum(), images)
    assert (F.max_pool2d(slope.abs().sum(1), sparse.resolution // 4) > 0).all()


@pytest.mark.parametrize("family", ["efficientvit", "mobilenetv3", "mobilevit", "swin"])
def test_maps_of_several_sides_are_fused_at_the_largest(family):
    space = load_space(f"{family}:debug", Segmentation(3))
    layers = space.layers(space.largest)
    laterals = [layer for layer in layers if layer.path.startswith("lateral")]
    sides = [layer.sizes["size"] for layer in laterals]
    assert sides == sorted(set(sides))
    assert len(sides) > 1
    assert {layer.sizes["side"] for layer in laterals} == {sides[-1]}
    assert sum(layer.sizes.get("tap", 0) for layer in layers) == len(sides) - 1


def test_what_waits_is_not_written_to():
    """Not by the layer that taps it; and a network that clones all gives the same numbers."""
    for family in ("efficientvit", "mobilenetv3", "mobilevit", "swin", "vit"):
        space = load_space(f"{family}:debug", Segmentation(3))
        sparse = space.restrict("sparsity", 50).restrict("precision", "fp32").largest
        torch.manual_seed(0)
        network = timm_models.randomized(Network(space, sparse)).eval()
        images = torch.randn(2, *space.example(sparse))
        with torch.no_grad():
            expected = network(images)
            state = (images,)
            for layer in space.layers(sparse):
                before = state[0].clone()
                state = network.module(layer).run(state, **layer.elastic)
                tapped = "tap" not in layer.sizes or any(
                    torch.is_tensor(x) and torch.equal(x, before) for x in state[1:]
                )
                assert tapped, layer.path
                state = tuple(x.clone() if torch.is_tensor(x) else x for x in state)
        assert torch.equal(state[0], expected)


@pytest.mark.parametrize(("family", "sparsity"), [("efficientvit", 0), ("vit", 50)])
def test_models_composed_of_layers_carry_what_waits(family, sparsity):
    space = load_space(f"{family}:debug", Segmentation(3))
    layers = space.layers(
        space.restrict("sparsity", sparsity).restrict("precision", "fp32").smallest
    )
    session = onnxruntime.InferenceSession(lower(layers).model)
    (images,) = inputs(layers[0], 1)
    with torch.no_grad():
        (expected,) = run(build(layers), (images,))
    (given,) = session.get_inputs()
    (logits,) = session.run(None, {given.name: images.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_only_tasks_with_an_answer_for_each_pixel_have_the_head():
    assert not isinstance(load_space("swin:micro").parts, Fused)
    assert isinstance(load_space("swin:micro", Segmentation(3)).parts, Fused)
    assert load_space("swin:seg-micro").task == Segmentation()
    with pytest.raises(UsageError, match="each pixel"):
        load_space("swin:seg-micro", Classification(3))


def test_the_report_calls_the_last_stage_the_head():
    space = load_space("efficientvit:debug", Segmentation(3))
    stages = schedule(space, space.smallest)
    assert [stage.name for stage in stages] == ["stage 0", "stage 1", "stage 2", "head"]
    assert stages[-1].width == space.smallest.stages[-1].width
    assert stages[-1].blocks[0].kept_percent < 100


def test_a_family_that_cannot_make_maps_is_named(monkeypatch):
    monkeypatch.setattr(EfficientVit, "to_map", lambda parts, state: state.missing)
    with pytest.raises(UsageError, match="efficientvit:debug: it cannot make maps"):
        load_space("efficientvit:debug", Segmentation(3))
    assert load_space("efficientvit:debug").task == Classification()


@pytest.mark.parametrize("name", ["efficientvit:seg-micro", "swin:seg-micro"])
def test_no_window_of_the_small_segmenters_is_padded(name):
    space = load_space(name)
    for resolution in space.positions[0].values:
        for layer in space.layers(space.at(resolution).largest)[1:]:
            side = layer.input_shape[0]
            window = layer.sizes.get("window", side)
            assert side % window == 0
            assert window in (side, 7, 8)
            assert layer.sizes.get("size", side) == side or layer.path.startswith("lateral")
