"""Contrastive objectives: losses, momentum and views against arithmetic of their own."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DEBUG_SPACES
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from nas.data import Dataset, Held
from nas.errors import UsageError, WeightsError
from nas.families import load_space
from nas.network.network import Network
from nas.records import Journal
from nas.report.training import write_training_report
from nas.tasks.embedding import Embedding
from nas.training import views
from nas.training.objectives import load_objective, task_of
from nas.training.projections import Projector, disagreement, moco_loss, nt_xent
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet
from nas.training.train import train
from nas.training.trainer import Trainer
from nas.training.views import two_views, view

BOTH = ("contrastive", "simclr")


@pytest.fixture(scope="module")
def noise():
    """A data set without labels: 32 pictures of smooth noise in colour, the size of the largest."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (32, 3, 6, 6)))
    pictures = F.interpolate(coarse, (24, 24), mode="bilinear").round().byte().numpy()
    split = Held("train", {"images": pictures})
    return Dataset(
        "noise", Embedding(), split, split, split, "noise", mean=(0.5,) * 3, std=(0.2,) * 3
    )


def trainer_for(name, objective, data, images=(8, 16, 16), batch=8):
    torch.manual_seed(0)
    space = load_space(name, task_of(objective, data))
    network = Network(space, space.largest)
    recipe = Recipe(images=images, batches=(batch,) * 3, learning_rate=1e-3)
    learned = load_objective(objective, space)
    learned.prepare(network)
    return Trainer(network, data, recipe, learned)


def batch_for(architecture, trainer):
    """Six pictures at the size that an architecture takes."""
    images = trainer.data.first(trainer.data.train, 6, 24)["images"]
    return {"images": trainer.network.space.parts.resized(images, architecture.resolution)}


def nt_xent_by_hand(a, b, temperature):
    """Loss and gradients by the definition: each view as the anchor, sums of exponentials."""
    x = np.concatenate([a, b])
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    z, n = x / lengths, len(a)
    loss, on_z = 0.0, np.zeros_like(z)
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [k for k in range(2 * n) if k != i]
        weights = np.exp([z[i] @ z[k] / temperature for k in others])
        loss += -z[i] @ z[j] / temperature + np.log(weights.sum())
        for k, share in zip(others, weights / weights.sum()):
            pull = (share - (k == j)) / temperature
            on_z[i] += pull * z[k]
            on_z[k] += pull * z[i]
    # Through the normalisation: what points along a vector does not change its direction.
    on_x = (on_z - (on_z * z).sum(1, keepdims=True) * z) / lengths
    return loss / (2 * n), on_x / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_and_its_gradient_are_those_of_the_definition(temperature):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7))
    wanted, gradient = nt_xent_by_hand(a, b, temperature)
    ours_a, ours_b = (torch.tensor(x, requires_grad=True) for x in (a, b))
    loss = nt_xent(ours_a, ours_b, temperature)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-12)
    np.testing.assert_allclose(torch.cat((ours_a.grad, ours_b.grad)).numpy(), gradient, atol=1e-12)


def test_the_loss_of_moco_is_that_of_the_definition():
    rng = np.random.default_rng(1)
    queries, keys = rng.normal(size=(2, 6, 9))
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, keys))
    each = [-math.log(math.exp(q[i] @ k[i] / 0.2) / np.exp(k @ q[i] / 0.2).sum()) for i in range(6)]
    loss = moco_loss(torch.tensor(queries), torch.tensor(keys))
    assert float(loss) == pytest.approx(2 * 0.2 * np.mean(each), abs=1e-12)


def test_networks_that_agree_lose_nothing_and_opposite_ones_most():
    z = torch.randn(4, 5)
    assert float(disagreement((z, z), (3 * z, z))) == pytest.approx(0, abs=1e-6)
    assert float(disagreement((z, z), (-z, -z))) == pytest.approx(4, abs=1e-6)
    unit = [F.normalize(torch.randn(4, 5), dim=1) for _ in range(4)]
    squares = [(a - b).square().sum(1).mean() for a, b in ((unit[0], unit[2]), (unit[1], unit[3]))]
    assert float(disagreement(unit[:2], unit[2:])) == pytest.approx(float(sum(squares) / 2))


def test_a_projector_is_made_of_the_layers_of_the_paper():
    """Against `torch.nn` at the full width, and its leading columns at a smaller one."""
    torch.manual_seed(0)
    projector = Projector(12, 20, layers=3).double()
    weights = [p for p in projector.parameters() if p.ndim == 2]
    assert [tuple(w.shape) for w in weights] == [(20, 12), (20, 20), (256, 20)]
    assert len(list(projector.parameters())) == 3 + 2 * 2  # no bias, no scale at the end
    x = torch.randn(9, 12).double()
    for width in (12, 7):
        y = x[:, :width] @ weights[0][:, :width].T
        for i in range(3):
            y = (y - y.mean(0)) / (y.var(0, correction=0) + 1e-5).sqrt()
            y = y if i == 2 else y.clamp(min=0) @ weights[i + 1].T
        torch.testing.assert_close(projector(x[:, :width]), y)


def test_the_copy_follows_by_a_momentum_that_rises_along_a_cosine(noise):
    trainer = trainer_for("vit:debug", "contrastive", noise, images=(24, 8, 0))
    objective, total = trainer.objective, 4
    modules = (trainer.network, objective.projector)

    def weights(of):
        return [p.detach().clone() for module in of for p in module.parameters()]

    slow = weights(objective.slow)
    assert all(torch.equal(a, b) for a, b in zip(slow, weights(modules)))
    for step in range(1, total + 1):
        trainer.train_step()
        momentum = 1 - 0.5 * (1 + math.cos(math.pi * step / total)) * (1 - 0.99)
        assert float(objective.momentum()) == pytest.approx(momentum, abs=1e-12)
        slow = [momentum * a + (1 - momentum) * b for a, b in zip(slow, weights(modules))]
        for wanted, ours in zip(slow, weights(objective.slow), strict=True):
            torch.testing.assert_close(ours, wanted, atol=1e-7, rtol=1e-5)
    assert momentum == 1
    assert not any(p.requires_grad or p.grad is not None for p in objective.slow.parameters())


def test_a_step_makes_queries_of_one_view_and_keys_of_the_other(noise):
    """The whole of `made` and the loss, put together here from the modules."""
    trainer = trainer_for("swin:debug", "contrastive", noise)
    network, objective = trainer.network, trainer.objective
    batch = batch_for(network.architecture, trainer)
    made = objective(network, network.architecture, batch, Random(5))
    x1, x2 = two_views(batch["images"], Random(5))
    z1, z2 = (objective.projector(network(x)) for x in (x1, x2))
    q1, q2 = (objective.predictor(z) for z in (z1, z2))
    wanted = (z1, z2, q1, q2, z1, z2)  # the copy is still the network itself
    for ours, own in zip(made, wanted, strict=True):
        torch.testing.assert_close(ours, own)
    assert [x.requires_grad for x in made] == [True] * 4 + [False] * 2
    unit = [F.normalize(x, dim=1) for x in (q1, q2, z1, z2)]
    logs = [(a @ b.T / 0.2).log_softmax(1).diagonal() for a, b in (unit[::3], unit[1:3])]
    wanted = -2 * 0.2 * (logs[0].mean() + logs[1].mean())
    torch.testing.assert_close(objective.loss(made, batch), wanted)
    assert objective.predictor[0].weight.shape[1] == objective.projector[-2].weight.shape[0] == 256


@pytest.mark.parametrize("objective", BOTH)
@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_networks_of_every_family_and_size_learn(name, objective, noise):
    trainer = trainer_for(name, objective, noise)
    network, space = trainer.network, trainer.network.space
    assert space.task == Embedding()
    before = {k: v.detach().clone() for k, v in network.named_parameters()}
    losses = [float(trainer.train_step()) for _ in range(4)]
    assert np.isfinite(losses).all()
    trainer.bf16 = True
    assert trainer.train_step().isfinite()
    frozen = {k for k, v in network.named_parameters() if torch.equal(before[k], v)}
    fixed = ("weight", "bias", "position", "class_position")
    patches = {f"layers.stem.{name}" for name in fixed}
    is_moco_of_vit = objective == "contrastive" and name.startswith("vit")
    assert frozen == (patches if is_moco_of_vit else set())
    # The smallest network learns the projections of the largest, by its own weights alone.
    batch = batch_for(space.smallest, trainer)
    target = tuple(torch.randn(6, 256) for _ in range(2))
    small = trainer.objective(network, space.smallest, batch, Random(0))
    assert len(small) == 2
    assert small[0].shape == (6, 256)
    trainer.objective.distil(small, target).backward()
    got = {k for k, v in network.named_parameters() if v.grad is not None and v.grad.any()}
    assert got
    assert {
        k for k in got if k.split(".")[1] not in {x.path for x in space.layers(space.smallest)}
    } == set()


def test_a_batch_of_one_is_refused_before_the_first_step(noise):
    for objective in (*BOTH, "clip"):
        with pytest.raises(UsageError, match="batches need 2 samples, one has 1"):
            trainer_for("vit:debug", objective, noise, images=(8, 8, 8), batch=1)
    space = load_space("vit:debug")  # which classifies
    with pytest.raises(UsageError, match="not by the outputs of a classification"):
        load_objective("simclr", space).begin(Network(space, space.largest), [8])


@pytest.mark.parametrize("objective", BOTH)
def test_a_picture_is_not_told_from_itself(objective, noise):
    space = load_space("vit:debug", Embedding())
    learned = load_objective(objective, space)
    learned.study(noise)  # 32 pictures
    with pytest.raises(UsageError, match="a batch of 33 holds some of 32 pictures twice"):
        learned.begin(Network(space, space.largest), [8, 33])
    learned.begin(Network(space, space.largest), [8, 32])


@pytest.mark.parametrize("objective", BOTH)
def test_views_are_drawn_from_whole_pictures(objective, noise):
    """Not from crops, which data bring for other objectives."""
    cropped = replace(noise, augment=lambda batch, rng: pytest.fail("a crop of a crop"))
    trainer_for("vit:debug", objective, cropped).train_step()


@pytest.mark.parametrize("objective", [*BOTH, "clip"])
def test_families_that_take_no_pictures_are_refused(objective):
    with pytest.raises(UsageError, match="learns from images, and toys") as caught:
        load_objective(objective, load_space("toys.pointset:debug"))
    assert caught.value.fix.startswith("use a space of efficientvit, ")


@pytest.mark.parametrize("objective", BOTH)
def test_a_stopped_training_resumes_to_the_same_curve_and_weights(objective, photo_data, tmp_path):
    recipe = Recipe(images=(160, 80, 80), batches=(8, 8, 8), learning_rate=1e-3)
    stop = iter(range(10**6))
    whole, stopped = (
        ("mobilevit:debug", photo_data, tmp_path / name, recipe) for name in ("whole", "stopped")
    )
    train(*whole, objective=objective)
    train(*stopped, objective=objective, checkpoint_s=0, stop=lambda: next(stop) == 20)
    train(*stopped, objective=objective, resume=True)
    files = [tmp_path / name for name in ("whole", "stopped")]
    whole, again = (load_file(file / "weights.safetensors") for file in files)
    assert all(torch.equal(again[k], whole[k]) for k in whole)
    curves = [Journal(file / "loss.jsonl").read() for file in files]
    assert [entry["step"] for entry in curves[0]] == [20, 40]
    assert curves[0] == curves[1]
    network, card = load_supernet(files[0], "mobilevit:debug", photo_data)
    assert card["task"] == "embedding"
    assert card["training"]["objective"] == objective
    assert network.space.task == Embedding()
    # It may be searched on other pictures; of its own the test split must still be the same one.
    changed = replace(photo_data, fingerprint="changed")
    load_supernet(files[0], "mobilevit:debug", replace(changed, name="others"))
    with pytest.raises(WeightsError, match="have changed"):
        load_supernet(files[0], "mobilevit:debug", changed)
    taught = {"objective": objective, "teacher": str(files[0])}
    with pytest.raises(UsageError, match="leave out --teacher"):
        train("mobilevit:debug", photo_data, tmp_path / "taught", recipe, **taught)
    page = write_training_report(files[0], photo_data).read_text()
    assert "whose features are nearest" in page
    (caption,) = (shown := load_objective(objective, network.space).pictures(network, photo_data))
    assert "nearest" in caption
    assert shown[caption].shape == (2 * 24, 6 * 24 + 4, 3)  # a gap behind the first


def test_views_follow_from_the_random_numbers_alone():
    images = torch.randn(6, 3, 20, 28)  # not square
    first, second = two_views(images, Random("objective 0 7"))
    assert first.shape == images.shape
    again = two_views(images, Random("objective 0 7"))
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(view(images, Random("objective 0 8")), first)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    seen = view(grey, Random(1))
    torch.testing.assert_close(seen, seen[:, :1].expand(-1, 3, -1, -1), atol=1e-5, rtol=1e-5)
    small = torch.randn(4, 3, 2, 2)
    assert view(small, Random(0)).isfinite().all()
    if torch.cuda.is_available():
        there = two_views(images.cuda(), Random("objective 0 7"))
        torch.testing.assert_close(there[0].cpu(), first, atol=1e-4, rtol=1e-4)


class Drawn:
    """One sample's draws, nothing changed unless it is said."""

    def __init__(self, **given):
        own = dict(
            height=1.0, width=1.0, y=0.0, x=0.0, mirror=1, shift=0.0, contrast=1.0, saturation=1.0
        )
        self.__dict__ |= {**own, "sigma": 0.0, **given}


def test_a_crop_is_the_rectangle_at_the_size_of_the_picture():
    """Against `interpolate` on slices, up to the border, which only a slice does not see beyond."""
    images = torch.randn(2, 3, 16, 24)
    whole = views._cropped(images, [Drawn(), Drawn(mirror=-1)])
    torch.testing.assert_close(whole, torch.stack((images[0], images[1].flip(-1))))
    # Rows 4 to 12 of 16, columns 12 to 24 of 24.
    own = Drawn(height=0.5, width=0.5, y=0.0, x=0.5)
    made = views._cropped(images[:1], [own])
    wanted = F.interpolate(images[:1, :, 4:12, 12:24], (16, 24), mode="bilinear")
    torch.testing.assert_close(made[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], atol=1e-5, rtol=1e-4)


def test_colours_change_about_the_mean_and_a_blur_is_a_gaussian():
    image = torch.randn(1, 3, 24, 24)
    grey = np.tensordot((0.299, 0.587, 0.114), image[0].numpy(), 1)
    own = Drawn(shift=0.3, contrast=1.2, saturation=0.5)
    wanted = grey + 0.5 * (image[0].numpy() - grey)
    wanted = grey.mean() + 0.3 + 1.2 * (wanted - grey.mean())
    np.testing.assert_allclose(views._coloured(image.clone(), [own])[0], wanted, atol=1e-5)
    for sigma_px in (0.1, 0.2):
        made = views._blurred(image, [sigma_px / 24])
        wanted = gaussian_filter(image[0].numpy(), (0, sigma_px, sigma_px), mode="mirror", radius=1)
        np.testing.assert_allclose(made[0], wanted, atol=1e-5)
    large = torch.randn(2, 3, 224, 224)
    made = views._blurred(large, [1.5 / 224, 0.7 / 224])
    for i, sigma_px in enumerate((1.5, 0.7)):
        wanted = gaussian_filter(large[i].numpy(), (0, sigma_px, sigma_px), mode="mirror", radius=6)
        np.testing.assert_allclose(made[i], wanted, atol=1e-5)


def test_what_is_drawn_covers_its_ranges():
    drawn = [views._Draw(Random(i)) for i in range(2000)]
    areas = [own.height * own.width for own in drawn]
    assert 0.19 < min(areas) < 0.25
    assert 0.9 < max(areas) <= 1
    for size, place in (("height", "y"), ("width", "x")):
        assert all(abs(getattr(d, place)) <= 1 - getattr(d, size) + 1e-9 for d in drawn)
    assert np.mean([own.mirror < 0 for own in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([own.saturation == 0 for own in drawn]) == pytest.approx(0.2, abs=0.04)
    assert np.mean([own.sigma > 0 for own in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([own.shift != 0 for own in drawn]) == pytest.approx(0.8, abs=0.04)
