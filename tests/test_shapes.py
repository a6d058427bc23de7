"""Pictures that are not square, in every family; a new file in `search_spaces/` needs no tests."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import timm_models
import torch
from conftest import DEBUG_SPACES, made_up_table
from PIL import Image

import nas
from nas.cli import main
from nas.data import load_data, scenes
from nas.data.imagefolder import crop_and_flip
from nas.data.masks.augmentation import scale_crop_and_flip
from nas.errors import UsageError
from nas.export import export_network
from nas.families import load_space
from nas.layers.windows import shift_mask, window_orders
from nas.network.fused import fit_for_task
from nas.network.macs import sum_macs
from nas.network.network import Network
from nas.network.pruning import map_window
from nas.prediction import predict, write_overlays
from nas.preprocessing import PictureReader, central
from nas.size import Sides, area, divided, each, read_size, sides, size_of
from nas.space.architecture import Architecture
from nas.space.choices import stages
from nas.space.domains import Choice
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.tasks.classification import Classification
from nas.tasks.embedding import Embedding
from nas.tasks.segmentation import Segmentation
from nas.training.objectives import load_objective
from nas.training.pretrained import load_weights
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet, save_supernet
from nas.training.train import train
from search_spaces import mobilenetv3
from search_spaces.swin import WindowBlock

TASKS = {"classes": Classification(5), "pixels": Segmentation(5)}


def oblong(name, task):
    """A supernet of a debug space at its smallest side and half as much again, in multiples."""
    space = load_space(name, TASKS[task])
    step, short = space.parts.multiple, space.positions[0].values[0]
    space = load_space(f"{name}@{short}x{-(-3 * short // (2 * step)) * step}", TASKS[task])
    space = space.restrict("precision", "fp32")
    torch.manual_seed(0)
    return timm_models.randomized(Network(space, space.largest).eval())


@pytest.fixture(
    params=[f"{name} {task}" for task in TASKS for name in DEBUG_SPACES], scope="module"
)
def network(request):
    return oblong(*request.param.split())


@pytest.fixture(params=DEBUG_SPACES, scope="module")
def segmenter(request):
    return oblong(request.param, "pixels")


def images_for(network, n=2, seed=1):
    shape = network.space.example(network.space.largest)
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def test_a_subnet_equals_the_plain_model_and_its_deployed_form(network):
    images = images_for(network)
    for seed in range(3):
        architecture = network.space.draw(Random(seed))
        plain = network.inherit(architecture)
        with torch.no_grad():
            outputs = network(images, architecture)
            torch.testing.assert_close(plain(images), outputs, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(plain.deploy()(images), outputs, rtol=1e-3, atol=1e-3)
        if network.space.task.dense:
            assert outputs.shape[-2:] == images.shape[-2:]


def test_an_architecture_says_its_height_and_width(network):
    space = network.space
    architecture = space.draw(Random(0))
    height, width = json.loads(architecture.to_json())["resolution"]
    assert (height, width) == space.example(architecture)[1:]
    assert space.parse(architecture.to_json()) == architecture
    square = load_space(space.name.partition("@")[0], space.task)
    assert type(json.loads(square.largest.to_json())["resolution"]) is int


def test_every_layer_of_a_pruned_network_runs_on_its_own(network):
    sparse = network.space.restrict("sparsity", 50).largest
    for layer in network.space.layers(sparse):
        with torch.no_grad():
            layer.build().eval().run(layer.inputs(1), **layer.elastic)
    images = images_for(network, 1)
    height, width = images.shape[-2:]
    maps = network.inherit(sparse).kept(images)
    assert any(0 < m.float().mean() < 1 for m in maps.values())
    for kept in maps.values():
        assert kept.shape[0] < kept.shape[1] or kept.shape[1] < 4
        assert kept.shape[0] / height == pytest.approx(kept.shape[1] / width, abs=0.07)


def transposed(network, turned):
    """Give a network for turned pictures the weights that do the same there."""
    for (name, x), (_, y) in zip(network.named_parameters(), turned.named_parameters()):
        if x.ndim == 3 and name.endswith("position"):  # of a grid
            x = x.transpose(0, 1)
        elif x.ndim == 2 and name.endswith("position"):  # of pairs in a square window
            side = int(x.shape[1] ** 0.5)
            x = x.view(-1, side, side).mT.flatten(1)
        elif name.endswith("reduction"):  # of the four neighbours that Swin merges
            x = x[:, [0, 2, 1, 3]]
        elif "merge" in name:
            x = x[[0, 2, 1, 3]]
        elif (name.endswith("weight") and x.ndim == 4) or name.endswith("attention.depthwise"):
            x = x.mT if x.shape[-1] == x.shape[-2] else x
        with torch.no_grad():
            y.copy_(x)
    for x, y in zip(network.buffers(), turned.buffers()):
        y.copy_(x)


def test_turned_networks_answer_the_same_to_turned_pictures(network):
    """Height and width are told apart everywhere: the mirror at the diagonal exchanges them."""
    space = network.space
    height, width = sides(space.largest.resolution)
    there = load_space(f"{space.base}@{width}x{height}", space.task)
    there = there.restrict("precision", "fp32")
    turned = Network(there, there.largest).eval()
    transposed(network, turned)
    images = images_for(network)
    for seed in range(3):
        own = space.draw(Random(seed))
        other = Architecture(Sides(width, height), own.stages)
        with torch.no_grad():
            expected, found = network(images, own), turned(images.mT.contiguous(), other)
        found = found.mT if space.task.dense else found
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_files_of_every_family_answer_as_the_network(segmenter, tmp_path):
    pytest.importorskip("onnxruntime")
    sparse = segmenter.space.restrict("sparsity", 50).largest
    plain, images = segmenter.inherit(sparse), images_for(segmenter, 1)
    with torch.no_grad():
        expected = plain(images)
    differences = export_network(plain, images, expected, tmp_path, ["onnx", "pt2"])
    assert max(differences.values()) < 5e-6 * float(expected.abs().max())
    card = json.loads((tmp_path / "preprocess.json").read_text())
    assert card["input"]["shape"] == list(images.shape[1:])


def test_tensorflow_lite_layers_do_what_torch_does(segmenter):
    pytest.importorskip("ai_edge_litert")
    import test_tflite as tflite

    for layer in segmenter.space.layers(segmenter.space.restrict("sparsity", 0).largest):
        steps, state = tflite.with_random_weights([layer]), tflite.inputs(layer, 1)
        lowered = tflite.lower_steps(steps, state, int8=False)
        assert not lowered.dynamic
        before, after = tflite.tensors(state), tflite.tensors(tflite.run(steps, state))
        passed = {id(t) for t in before} & {id(t) for t in after}
        given = [t for t in before if id(t) not in passed]
        if len(given) < len(tflite.litert(lowered.data).get_input_details()):
            given = before
        outputs = tflite.run_litert(lowered.data, [tflite.as_cameras_do(t) for t in given])
        for output, wanted in zip(outputs, [t for t in after if id(t) not in passed], strict=True):
            wanted = wanted.detach().numpy()
            limit = 5e-6 * np.abs(wanted).max()
            np.testing.assert_allclose(output.ravel(), wanted.ravel(), atol=limit, rtol=1e-4)


# --- against timm, and against squares ---


@pytest.mark.parametrize(
    ("name", "shape", "settings"),
    [
        ("swin_tiny_patch4_window7_224", (224, 448), {"img_size": (224, 448)}),
        ("vit_tiny_patch16_224", (96, 160), {"img_size": (96, 160)}),
        ("mobilevit_xxs", (97, 144), {}),
        ("efficientvit_b0", (96, 160), {}),
        ("mobilenetv3_small_050", (97, 160), {}),
    ],
)
def test_outputs_are_timms(name, shape, settings):
    """A Swin of 224x448 has maps of whole windows; in the last stage one of 7 in each column."""
    model = timm_models.create(name, num_classes=10, **settings)
    space = load_space(f"{name}@{shape[0]}x{shape[1]}", Classification(10))
    network = Network.empty(space, space.largest)
    assert load_weights(network, model.state_dict()) == []
    images = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=0, atol=2e-5)


def test_positions_of_a_square_checkpoint_are_resized_as_timm_does():
    from timm.models.vision_transformer import checkpoint_filter_fn

    name, shape = "vit_tiny_patch16_224", (96, 160)
    source = timm_models.create(name, num_classes=10, depth=1).state_dict()
    model = timm_models.create(name, num_classes=10, depth=1, img_size=shape)
    model.load_state_dict(checkpoint_filter_fn(dict(source), model))
    space = load_space(f"{name}@96x160", Classification(10))
    stem = Network.empty(space, space.largest).layers["stem"]
    _, ours_of = space.parts.origin("stem", "position")
    found = ours_of(source["pos_embed"], tuple(stem.position.shape))
    expected = model.state_dict()["pos_embed"][0, 1:].view(6, 10, -1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "window", "shift"), [((14, 7), 7, (3, 0)), ((8, 12), 4, 2)])
def test_masks_of_shifted_windows_are_timms(size, window, shift):
    from timm.models.swin_transformer import SwinTransformerBlock

    block = SwinTransformerBlock(
        dim=8, input_resolution=size, num_heads=1, window_size=window, shift_size=window // 2,
    )  # fmt: skip
    assert block.shift_size == (shift if isinstance(shift, tuple) else (shift, shift))
    ours = shift_mask(Sides(*size), window, size_of(*sides(shift)), torch.device("cpu"))
    torch.testing.assert_close(ours, block.attn_mask)


@pytest.mark.parametrize("kept", [8, 3])
def test_windows_that_tile_are_those_of_a_square_of_which_the_rest_is_empty(kept):
    """The windows of zeros are the least active, so the others are kept in the same order."""
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "head_dim": 8, "hidden": 32, "window": 7, "shift": 0}
    sizes |= {"kept": kept, "bits": 32}
    flat, square = (
        Layer.of("block", WindowBlock, (*sides(size), 16), size=size, **sizes)
        for size in (Sides(14, 28), 28)
    )
    module = timm_models.randomized(flat.build().eval())
    x = torch.randn(1, 14, 28, 16)
    whole = torch.cat([x, torch.zeros_like(x)], 1)
    with torch.no_grad():
        states = (
            (x.clone(), *window_orders(x, Sides(14, 28), 7, (0,)) * 2),
            (whole.clone(), *window_orders(whole, 28, 7, (0,)) * 2),
        )
        ours, theirs = (
            module.run(state, **layer.elastic)[0] for layer, state in zip((flat, square), states)
        )
    torch.testing.assert_close(ours, theirs[:, :14], rtol=0, atol=1e-5)
    assert not torch.equal(ours, x)


def test_a_convolutional_segmenter_answers_as_for_a_square_away_from_the_border():
    """Without gates, which see the whole map; 40 rows are more than its layers look down."""
    domain, parts = mobilenetv3.PRESETS["debug"]
    parts = replace(parts, kinds=tuple(kind._replace(gate=False) for kind in parts.kinds))
    domain = stages(Choice(128), *dict(domain.domains)["stages"].items)
    space = fit_for_task(SearchSpace("test:gateless", domain, parts, Segmentation(5)))
    space = space.restrict("precision", "fp32").restrict("sparsity", 0)
    wide = space.at(Sides(64, 128))
    torch.manual_seed(0)
    network = timm_models.randomized(Network(space, space.largest).eval())
    images = torch.randn(1, 3, 128, 128)
    images[:, :, 64:] = 0
    with torch.no_grad():
        square = network(images)
        half = Network.empty(wide, wide.largest)
        half.load_state_dict(network.state_dict())
        found = half(images[:, :, :64])
    assert found.shape == (1, 5, 64, 128)
    torch.testing.assert_close(found[:, :, :24], square[:, :, :24], rtol=0, atol=1e-4)
    assert not torch.allclose(found[:, :, -8:], square[:, :, 56:64], atol=1e-3)


@pytest.mark.parametrize(("name", "gmacs"), [("b0", 4.4), ("b1", 25)])
def test_macs_of_the_segmenters_at_the_published_size(name, gmacs):
    """Cityscapes at 1024x2048, table of the official code's README."""
    space = load_space(f"efficientvit_seg_{name}_cityscapes@1024x2048")
    assert space.example(space.largest) == (3, 1024, 2048)
    macs = sum_macs(space.layers(space.largest)).total
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.02)
    half = load_space(f"efficientvit_seg_{name}_cityscapes")
    assert macs == pytest.approx(2 * sum_macs(half.layers(half.largest)).total, rel=1e-3)


# --- sizes, names and what is refused ---


def test_sizes_are_one_number_or_height_and_width():
    assert size_of(7, 7) == 7
    assert size_of(7, 14) == Sides(7, 14)
    assert str(Sides(7, 14)) == "7x14"
    assert area(Sides(7, 14)) == 98
    assert divided(Sides(7, 14), 4) == Sides(2, 4)
    assert divided(Sides(7, 8), 4) == 2
    assert each(max, Sides(7, 14), 10) == Sides(10, 14)
    assert map_window(Sides(14, 26)) == Sides(7, 26)
    assert read_size("512x1024") == Sides(512, 1024)
    assert read_size("512x512") == read_size("512") == 512
    for text in ("", "x", "5x", "x5", "5x5x5", "5X6", "-5", "5.0", "1" * 10):
        assert read_size(text) is None


def test_rows_are_named_by_height_and_width():
    layers = load_space("swin:debug@16x24").layers(load_space("swin:debug@16x24").largest)
    assert layers[-1].key.endswith("size=4x6, width=16)@6x6x16")
    assert "size=8x12" in layers[1].key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "swin:micro@225x448",
            "cannot take 225x448 px: it takes multiples of 4 from 28; use 224x448",
        ),
        ("swin:micro@224x16", "cannot take 224x16 px: it takes multiples of 4 from 28; use 224x28"),
        ("swin:micro@16", "cannot take 16 px: it takes multiples of 4 from 28; use 28"),
        ("vit_tiny_patch16_224@512x1020", "use 512x1024"),
        ("vit:micro@24x320", "from 32; use 32x320"),
        ("efficientvit:micro@0x64", "use 1x64"),
        ("efficientvit:micro@64x5000", "64x5000 px is more than is meant; use 4096 or less"),
        ("efficientvit:micro@64x", "a resolution in pixels, or height x width"),
        ("efficientvit:micro@64x64x64", "e.g. efficientvit:micro@256 or"),
        ("toys.pointset:debug@8x16", "the family of toys.pointset:debug@8x16"),
    ],
)
def test_what_a_family_cannot_take_names_the_nearest(name, message):
    with pytest.raises(UsageError) as error:
        load_space(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def code(*words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


def test_commands_take_shapes(capsys):
    for options in (("efficientvit:debug@32x48",), ("efficientvit:debug", "--resolution", "32x48")):
        assert code("inspect", *options, "--json") == 0
        assert json.loads(capsys.readouterr().out)["resolution"] == [32, 48]
    assert code("inspect", "efficientvit:debug@32x48") == 0
    assert "at 32x48 px" in capsys.readouterr().out
    assert code("inspect", "vit:debug", "--resolution", "30x40") == 2
    assert "use 32x40" in capsys.readouterr().err
    assert code("inspect", "vit:debug", "--resolution", "0x40") == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


# --- data ---


@pytest.mark.parametrize("picture", [(90, 60), (60, 90), (100, 40)])
def test_pictures_are_cut_at_the_centre_to_the_shape(picture, tmp_path):
    """A picture of its own coordinates comes out as those of the largest piece of the shape."""
    across, down = picture
    y, x = np.mgrid[:down, :across]
    pixels = np.stack([x, y, 0 * x], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = PictureReader().pixels(tmp_path / "a.png", Sides(20, 40)).astype(float)
    assert found.shape == (3, 20, 40)
    width, height = min(across, 2 * down), min(down, across / 2)
    left, top = (across - width) // 2, (down - height) // 2
    centres = left + (np.arange(40) + 0.5) * width / 40 - 0.5
    np.testing.assert_allclose(found[0, 10], centres, atol=1)
    rows = top + (np.arange(20) + 0.5) * height / 20 - 0.5
    np.testing.assert_allclose(found[1, :, 20], rows, atol=1)


def test_squares_are_cut_as_ever():
    for across, down, crop in ((500, 333, 0.875), (333, 500, 0.9), (224, 224, 1.0), (7, 1001, 0.7)):
        square = crop * min(across, down)
        left, top = (across - square) // 2, (down - square) // 2
        found = central(Image.new("L", (across, down)), 224, crop)
        assert found == (left, top, left + square, top + square)


@pytest.mark.parametrize("augment", [crop_and_flip, scale_crop_and_flip])
def test_pictures_and_masks_vary_together(augment):
    labels = torch.arange(24 * 40).view(1, 24, 40) // 160
    batch = {
        "images": labels[:, None].float().expand(8, 3, -1, -1),
        "labels": labels.expand(8, -1, -1),
    }
    varied = augment(batch, Random(0))
    assert varied["images"].shape == (8, 3, 24, 40)
    inside = varied["labels"] != 255
    apart = (varied["images"][:, 0].round() - varied["labels"])[inside]
    assert apart.abs().max() <= 1  # at edges pictures are mixed
    assert (apart == 0).float().mean() > 0.85
    assert not torch.equal(varied["labels"], batch["labels"])


@pytest.mark.parametrize("size", [Sides(64, 160), Sides(160, 64), Sides(24, 60)])
def test_scenes_have_any_shape(size):
    masked = load_data("scenes:masks").search.batch([3], size)
    plain = load_data("scenes").search.batch([3], size)
    assert masked["images"].shape == (1, 1, *size)
    assert masked["labels"].shape == (1, *size)
    assert np.array_equal(masked["images"], plain["images"])
    assert set(np.unique(masked["labels"])) == {0, 1 + int(plain["labels"][0])}
    lit = (masked["labels"] > 0).nonzero()
    long = [np.ptp(axis) + 1 for axis in lit[1:]]
    assert max(long) <= 40 * max(1, min(size) / 40)
    assert scenes._canvas(Sides(24, 60)) == Sides(40, 100)


def test_masks_are_cut_as_their_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for folder in ("images", "masks"):
            (tmp_path / split / folder).mkdir(parents=True)
        for i in range(3):
            mask = rng.integers(0, 2, (6, 9)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
            Image.fromarray(mask * 200).save(tmp_path / split / "images" / f"{i}.png")
    batch = load_data(f"masks:{tmp_path}").search.batch(range(3), Sides(15, 45))
    assert batch["images"].shape == (3, 1, 15, 45)
    assert ((batch["images"][:, 0] > 100) == batch["labels"]).mean() > 0.9


# --- the whole way ---


def test_positions_of_a_supernet_serve_other_shapes(photo_data, tmp_path):
    """A supernet of squares, at another shape, and one of that shape, at another again."""
    for trained, used in (("vit:debug", "vit:debug@16x32"), ("vit:debug@16x32", "vit:debug@24x20")):
        space = load_space(trained, photo_data.task)
        torch.manual_seed(0)
        large = Network(space, space.largest).eval()
        folder = tmp_path / trained.replace(":", "-")
        save_supernet(folder, large, photo_data, {})
        small, _ = load_supernet(folder, used, photo_data)
        architecture = small.space.largest
        images = torch.randn(1, *small.space.example(architecture))
        again = Network.empty(space, space.largest)
        again.load_state_dict(large.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(
                small(images), again.inherit(architecture)(images), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", ["vit:debug@16x24", "swin:debug@16x24"])
def test_masked_autoencoders_learn_from_any_shape(name):
    space = load_space(name, Embedding())
    objective = load_objective("mae,masked=50", space)
    network = Network(space, space.largest)
    objective.prepare(network)
    torch.manual_seed(0)
    images = torch.randn(3, 3, 16, 24)
    drawn, right, hidden = objective(network, space.largest, {"images": images}, Random(0))
    assert drawn.shape == right.shape
    assert hidden.mean(1).tolist() == [0.5] * 3
    side = images.shape[-1] * images.shape[-2] // right.shape[1]
    first = images[0, :, : int(side**0.5), : int(side**0.5)].permute(1, 2, 0).flatten()
    expected = (first - first.mean()) / (first.var() + 1e-6).sqrt()
    torch.testing.assert_close(right[0, 0], expected)


def test_a_search_goes_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.export.onnx_installed", lambda: False)
    name, data = "efficientvit:debug@32x48", load_data("scenes:masks")
    space = load_space(name, data.task)
    folder = train(name, data, tmp_path / "supernet", Recipe((16, 16, 8), (8, 8, 8)))
    made_up_table(space, tmp_path / "table")
    result = nas.search(
        "10s", space=name, data=data.name, supernet=folder, table=tmp_path / "table",
        out=tmp_path / "run", evaluations=3, search_images=10, test_images=10,
    )  # fmt: skip
    assert result["winner"]["architecture"]["resolution"] == [32, 48]
    assert result["winner"]["measured_ms"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Input 32x48 px" in page
    photo = tmp_path / "photo.png"
    Image.fromarray(scenes.render("test", 0, Sides(60, 100))[0]).save(photo)
    (found,) = predict(tmp_path / "run", photo)
    assert found.pixels.shape == (32, 48, 3)
    (overlay,) = write_overlays([found], tmp_path)
    with Image.open(overlay) as painted:
        assert painted.size == (48, 32)
