"""Masked autoencoding against plain torch and timm's modules, and what every family makes of it."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from conftest import DEBUG_SPACES
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from nas.data import SPLITS, Dataset, Held
from nas.errors import RunError, UnknownNameError, UsageError
from nas.families import load_space
from nas.network.network import Network
from nas.records import Journal, read_json
from nas.report.training import write_training_report
from nas.space.choices import DENSE, FLOAT
from nas.space.domains import Choice
from nas.space.family import SearchSpace
from nas.space.origins import ATTENTION, renamed
from nas.tasks.embedding import Embedding
from nas.training.objectives import load_objective
from nas.training.pretrained import load_weights
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet
from nas.training.train import check_training, train
from nas.training.trainer import Trainer
from search_spaces import vit

timm_models = pytest.importorskip("timm_models")
from timm.models.vision_transformer import Block, VisionTransformer  # noqa: E402

WIDTH, DEPTH, SIDE, PATCH = 64, 2, 48, 8


@pytest.fixture(scope="module")
def model():
    """A plain transformer without a classifier, by timm."""
    torch.manual_seed(0)
    made = VisionTransformer(SIDE, PATCH, embed_dim=WIDTH, depth=3, num_heads=4, num_classes=0)
    return timm_models.perturbed(made.eval())


@pytest.fixture(scope="module")
def space():
    domain = vit.space(
        Choice(32, SIDE), Choice(32, WIDTH), Choice(2, 3), Choice(2, 4), Choice(2, 4),
        sparsity=DENSE, precision=FLOAT,
    )  # fmt: skip
    return SearchSpace("vit:small", domain, vit.ViT(PATCH, head_dim=WIDTH // 4), Embedding())


@pytest.fixture(scope="module")
def network(space, model):
    made = Network(space, space.largest)
    load_weights(made, model.state_dict())
    return made.eval()


@pytest.fixture(scope="module")
def objective(space):
    torch.manual_seed(1)
    made = load_objective(f"mae,width={WIDTH},depth={DEPTH}", space)
    return timm_models.randomized(made.eval())


def sin_cos(width, grid):
    """Positions of the official code, number by number; the column comes first."""
    table = np.zeros((grid * grid, width))
    quarter = width // 4
    for place in range(grid * grid):
        row, column = divmod(place, grid)
        for half, value in enumerate((column, row)):
            for i in range(quarter):
                angle = value / 10_000 ** (i / quarter)
                table[place, 2 * half * quarter + i] = math.sin(angle)
                table[place, (2 * half + 1) * quarter + i] = math.cos(angle)
    return torch.from_numpy(table).float()


def decoder_of(objective):
    """The same decoder of timm's blocks."""
    ours = objective.encoder
    blocks = nn.Sequential(*[Block(WIDTH, WIDTH // 32, 4, qkv_bias=True) for _ in range(DEPTH)])
    for block in blocks:
        block.norm1.eps = block.norm2.eps = 1e-6
    for i, block in enumerate(ours.blocks):
        theirs = blocks[i].state_dict()
        for name, tensor in block.state_dict().items():
            if not name.endswith("clip"):
                own = theirs[renamed(ATTENTION, "x", name).removeprefix("x.")]
                own.copy_(tensor.reshape(own.shape))
    return blocks


def reference(model, objective, images, noise, masked=0.75):
    """The forward pass as the paper's code does it, sample by sample where it can."""
    decoder, ours = decoder_of(objective), objective.encoder
    tokens = model.patch_embed(images) + model.pos_embed[:, 1:]
    b, length, _ = tokens.shape
    keep = int(length * (1 - masked))
    latents, predictions, masks, losses = [], [], [], []
    for i in range(b):
        shuffled = noise[i].argsort().tolist()
        visible = torch.stack([tokens[i, p] for p in shuffled[:keep]])
        first = model.cls_token[0] + model.pos_embed[:, 0]
        latent = model.norm(model.blocks(torch.cat([first, visible])[None]))[0]
        embedded = nn.functional.linear(latent, ours.embed.weight, ours.embed.bias)
        full = [ours.hidden_token] * length
        for token, place in zip(embedded[1:], shuffled):
            full[place] = token
        places = torch.stack(full) + sin_cos(WIDTH, math.isqrt(length))
        x = decoder(torch.cat([embedded[:1], places])[None])
        x = nn.functional.layer_norm(x, (WIDTH,), ours.norm.weight, ours.norm.bias, 1e-6)
        drawn = nn.functional.linear(x, ours.draw.weight, ours.draw.bias)[0, 1:]
        mask = torch.ones(length)
        mask[shuffled[:keep]] = 0
        for place in shuffled[keep:]:
            row, column = (PATCH * n for n in divmod(place, math.isqrt(length)))
            patch = images[i, :, row : row + PATCH, column : column + PATCH]
            pixels = patch.permute(1, 2, 0).flatten()
            target = (pixels - pixels.mean()) / (pixels.var(unbiased=True) + 1e-6) ** 0.5
            losses.append(((drawn[place] - target) ** 2).mean())
        latents.append(latent)
        predictions.append(drawn)
        masks.append(mask)
    return map(torch.stack, (latents, predictions, masks, [torch.stack(losses).mean()]))


def test_latent_prediction_mask_and_loss_are_those_of_the_paper(space, model, network, objective):
    images, batch = torch.randn(3, 3, SIDE, SIDE), {}
    noise = torch.Generator().manual_seed(Random("mae").getrandbits(63))
    noise = torch.rand(3, (SIDE // PATCH) ** 2, generator=noise)
    with torch.no_grad():
        made = objective(network, space.largest, {"images": images}, Random("mae"))
        latent, drawn, mask, loss = reference(model, objective, images, noise)
        encoder, order = objective.encoder, noise.argsort(1)
        ours = encoder.latent(network, space.largest, images, order)
    assert ours.shape == (3, 1 + 9, WIDTH)
    for own, right in ((ours, latent), (made[0], drawn), (made[2], mask)):
        assert float((own - right).abs().max()) <= 2e-5 * max(1, float(right.abs().max()))
    assert float(objective.loss(made, batch)) == pytest.approx(float(loss), rel=2e-5)
    assert int(mask.sum()) == 3 * 27


def test_plain_pixels_are_not_normalised(space, network):
    torch.manual_seed(2)
    objective = load_objective("mae,pixels=plain", space)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        drawn, right, hidden = objective(network, space.largest, {"images": images}, Random(5))
    for place in (0, 7, 35):
        row, column = (PATCH * n for n in divmod(place, SIDE // PATCH))
        patch = images[1, :, row : row + PATCH, column : column + PATCH]
        assert torch.equal(right[1, place], patch.permute(1, 2, 0).flatten())
    errors = (drawn - right).square().mean(2)[hidden > 0].mean()
    assert float(objective.loss((drawn, right, hidden), {})) == pytest.approx(float(errors))
    with pytest.raises(UnknownNameError, match="did you mean plain"):
        load_objective("mae,pixels=plane", space)


def test_gradients_are_those_of_the_paper(space, model, network, objective):
    images = torch.randn(2, 3, SIDE, SIDE)
    noise = torch.Generator().manual_seed(Random(0).getrandbits(63))
    noise = torch.rand(2, (SIDE // PATCH) ** 2, generator=noise)
    made = objective(network, space.largest, {"images": images}, Random(0))
    ours = torch.autograd.grad(objective.loss(made, {}), network.layers["block1"].mlp.fc1.weight)
    (loss,) = [*reference(model, objective, images, noise)][3]
    theirs = torch.autograd.grad(loss, model.blocks[1].mlp.fc1.weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_positions_are_fixed_sines_and_cosines(space):
    network = Network(space, space.largest)
    load_objective("mae", space).prepare(network)
    stem = network.layers["stem"]
    grid = SIDE // PATCH
    torch.testing.assert_close(stem.position.view(grid**2, -1), sin_cos(WIDTH, grid))
    assert not stem.class_position.any()
    fixed = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert fixed == {"layers.stem.position", "layers.stem.class_position"}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vit_base_patch16_224", 111.907840),
        ("vit_large_patch16_224", 329.541888),
        ("vit_huge_patch14_224", 657.074508),
    ],
)
def test_parameters_are_those_of_the_paper(name, millions):
    """Beside the table of the decoder's positions, which the official code counts."""
    space = load_space(name, Embedding())
    with torch.device("meta"):
        network = Network(space, space.largest)
        objective = load_objective("mae,width=512,depth=8", space)
    counted = sum(p.numel() for m in (network, objective) for p in m.parameters())
    grid = 224 // space.parts.patch
    assert counted + (1 + grid**2) * 512 == round(millions * 1e6)


def test_the_encoder_runs_on_visible_patches_alone(space, network, objective):
    """What is hidden changes nothing: neither the latent nor what is drawn of it."""
    images = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        drawn, _, hidden = objective(network, space.largest, {"images": images}, Random(2))
        other = torch.randn_like(images)
        cells = hidden.view(1, 1, SIDE // PATCH, SIDE // PATCH)
        mask = cells.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
        changed = images * (1 - mask) + other * mask
        again, _, same = objective(network, space.largest, {"images": changed}, Random(2))
    assert torch.equal(hidden, same)
    torch.testing.assert_close(drawn, again)


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_every_size_of_every_family_learns_from_hidden_patches(name):
    torch.manual_seed(0)
    space = load_space(name, Embedding())
    network, objective = Network(space, space.largest), load_objective("mae", space)
    objective.prepare(network)
    rng = Random(0)
    for architecture in (space.largest, *(space.draw(rng) for _ in range(3))):
        for size in (architecture.resolution, architecture.resolution // 2):
            own = replace(architecture, resolution=size)
            images = torch.randn(2, *space.example(own))
            drawn, right, hidden = objective(network, own, {"images": images}, Random(1))
            assert drawn.shape == right.shape
            assert hidden.shape == drawn.shape[:2]
            visible = hidden.shape[1] - hidden.sum(1)
            assert visible.tolist() == [max(1, hidden.shape[1] // 4)] * 2
    made = objective(network, space.largest, {"images": images_of(space)}, Random(1))
    objective.loss(made, {}).backward()
    untrained = {n for n, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert {n.split(".")[1] for n in untrained} <= {"head"}
    assert all(p.grad is not None for p in objective.parameters())


def images_of(space):
    return torch.randn(2, *space.example(space.largest))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_masked_inputs_hide_what_is_to_be_drawn(name):
    """Pixels of hidden patches reach the loss as what is right, and the network not at all."""
    space = load_space(name, Embedding())
    network = Network(space, space.largest).eval()
    objective = load_objective("mae", space).eval()
    images = images_of(space).requires_grad_()
    drawn, right, hidden = objective(network, space.largest, {"images": images}, Random(1))
    (seen,) = torch.autograd.grad(drawn.square().sum(), images, retain_graph=True)
    (drawn_of,) = torch.autograd.grad((right * hidden[..., None]).square().sum(), images)
    assert not ((seen != 0) & (drawn_of != 0)).any()
    assert (seen != 0).any()


@torch.no_grad()
def test_smaller_networks_learn_from_the_pixels_too(space, network, objective):
    small = objective(network, space.smallest, {"images": torch.randn(2, 3, 32, 32)}, Random(3))
    large = objective(network, space.largest, {"images": torch.randn(2, 3, 48, 48)}, Random(3))
    errors = (small[0] - small[1]).square().mean(2)[small[2] > 0]
    assert float(objective.distil(small, large)) == pytest.approx(float(errors.mean()), rel=1e-5)


def test_what_cannot_be_masked_is_refused(tmp_path):
    space = load_space("vit:debug", Embedding())
    for given, what in (
        ("mae,masked=99", "leaves none of 36 patches"),
        ("mae,masked=100", "leaves none"),
        ("mae,masked=200", "leaves none"),
        ("mae,masked=0", "a number from 1 on"),
        ("mae,share=75", "has no option 'share'.*masked=75"),
        ("mae,width=33", "multiple of 32"),
    ):
        with pytest.raises(UsageError, match=what):
            load_objective(given, space)
    with pytest.raises(UsageError, match="leaves none") as caught:
        check_training("vit:debug", tmp_path / "x", False, "", "mae,masked=99")
    assert "masked=75" in str(caught.value)
    for given in ("mae,width=64", "mae,depth=2"):
        with pytest.raises(UsageError, match="swin draws patches by one layer"):
            load_objective(given, load_space("swin:debug", Embedding()))


def test_a_family_without_patches_is_refused_with_those_that_can():
    with pytest.raises(UsageError, match="mae hides patches of pictures") as caught:
        load_objective("mae", load_space("toys.pointset:debug"))
    assert "vit" in str(caught.value)
    assert "swin" in str(caught.value)


def test_a_teacher_of_labels_is_refused(debug_supernet, tmp_path):
    given = {"objective": "mae", "teacher": str(debug_supernet)}
    with pytest.raises(UsageError, match="leave out --teacher"):
        check_training("vit:debug", tmp_path / "x", False, "", **given)


RECIPE = Recipe(images=(320, 320, 800), batches=(16, 16, 16), learning_rate=1e-2)


@pytest.fixture(scope="module")
def ramps():
    """Pictures that get lighter to the right or to the bottom, which only other patches tell."""
    images = np.stack([np.mgrid[:24, :24][i % 2] for i in range(64)]) * 10
    images = images.astype(np.uint8)[:, None].repeat(3, 1)
    splits = {name: Held(name, {"images": images}) for name in SPLITS}
    return Dataset("ramps", Embedding(), fingerprint="r", mean=(0.5,), std=(0.3,), **splits)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ramps):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mae") / "supernet"
    return train("vit:debug", ramps, folder, RECIPE, objective="mae")


def losses_of(folder):
    return [r["loss"] for r in Journal(folder / "loss.jsonl").read()]


def test_a_supernet_learns_to_draw_what_is_hidden(trained, ramps):
    losses = losses_of(trained)
    assert losses[-1] < 0.2  # 0.5 without a look at the other patches
    network, card = load_supernet(trained, "vit:debug", ramps)
    assert card["training"]["objective"] == "mae"
    stem, grid = network.layers["stem"], 24 // 4
    fixed = sin_cos(12, grid).half().float()
    assert torch.equal(stem.position.view(grid**2, -1), fixed)
    assert not any("decoder" in n or "encoder" in n for n, _ in network.named_parameters())


def test_a_stopped_training_resumes_to_the_same_curve_and_decoder(trained, ramps, tmp_path):
    calls = iter(range(10**6))
    stop = {"checkpoint_s": 0, "stop": lambda: next(calls) == 60}
    folder = train("vit:debug", ramps, tmp_path / "x", RECIPE, objective="mae", **stop)
    assert not (folder / "supernet.json").exists()
    with pytest.raises(RunError, match="another objective"):
        train("vit:debug", ramps, folder, RECIPE, objective="mae,masked=50", resume=True)
    train("vit:debug", ramps, folder, RECIPE, objective="mae", resume=True)
    assert losses_of(folder) == losses_of(trained)
    ours, theirs = (load_file(next(f.glob("checkpoint-*"))) for f in (folder, trained))
    assert any(name.startswith("objective/encoder.blocks") for name in theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_labels_come_after(trained, photo_data, tmp_path, capfd):
    recipe = Recipe(images=(0, 32, 32), batches=(8, 8, 8))
    folder = train("vit:debug", photo_data, tmp_path / "x", recipe, init=str(trained))
    assert "head: 2 tensors start anew" in capfd.readouterr().err
    card = read_json(folder / "supernet.json")
    assert card["training"]["before"]["objective"] == "mae"
    assert card["classes"] == ["bright", "dark"]


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_steps_in_bfloat16_are_close_to_those_in_float32(name, photo_data):
    space = load_space(name, Embedding())
    losses = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        network, objective = Network(space, space.largest), load_objective("mae", space)
        objective.prepare(network)
        losses.append(Trainer(network, photo_data, RECIPE, objective, bf16=bf16).train_step())
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.02)


def test_the_page_of_a_training_shows_the_curve_and_what_is_drawn(trained, ramps, tmp_path):
    page = write_training_report(trained, ramps).read_text()
    assert "Training of vit:debug (objective: mae)" in page
    assert "the mean squared error of the pixels of hidden patches" in page
    assert page.count("<svg") == 1
    assert page.count("data:image/png;base64,") == 1
    strip = np.asarray(Image.open(trained / "pictures" / "0.png").convert("RGB"), float) / 255
    assert strip.shape == (3 * 24, 6 * 24, 3)
    masked, drawn, right = (strip[24 * i : 24 * (i + 1)] for i in range(3))
    hidden = np.abs(masked - right).max(-1) > 0.02
    assert 0.5 < hidden.mean() < 0.8
    assert np.abs(drawn - right)[~hidden].max() < 0.03
    assert np.abs(drawn - right)[hidden].mean() < 0.25 * np.abs(masked - right)[hidden].mean()
    bare = shutil.copytree(trained, tmp_path / "bare")
    for path in bare.glob("checkpoint*"):
        path.unlink()
    assert "What was learned" not in write_training_report(bare, ramps).read_text()
