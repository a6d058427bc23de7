"""Training in int8: what is trained is, bit by bit, what is deployed, and it learns."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from random import Random

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from nas.errors import RunError
from nas.export import export_network, saturates
from nas.families import families, load_space
from nas.layers.conv import ConvNorm
from nas.layers.precision import Packed, Quantizer, conv2d, linear, scale_zero
from nas.network.calibration import calibrate, quantizers
from nas.network.network import Network
from nas.quantization import quantize
from nas.saved_network import subject
from nas.space.architecture import at_precision
from nas.space.task import Task
from nas.tasks.classification import Classification
from nas.tasks.segmentation import Segmentation
from nas.training.rounding import round_in_training, train_rounded, trained_product
from nas.training.trainer import DivergedError, Trainer, fit

FIVE, MAPS = Classification(5), Segmentation(3)
SEGMENTERS = ("swin", "efficientvit")


def ranged(low: float, high: float) -> Quantizer:
    made = Quantizer()
    made.clip.copy_(torch.tensor([low, high]))
    return made


def learning(low: float, high: float) -> Quantizer:
    made = ranged(low, high)
    made.rounding = trained_product
    return made


@pytest.fixture
def still(monkeypatch):
    monkeypatch.setattr("nas.training.rounding._FOLLOWED", 0.0)


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def hats(x, weight, bias, low, high):
    """Rounded inputs and weights as floats, and where inputs are not clipped."""
    scale, zero = scale_zero(low, high)
    packed = Packed.of(weight, bias, torch.tensor([low, high]))
    q = torch.clamp(torch.round(x.detach() / scale) + zero, -128, 127)
    unit = (packed.unit / packed.scale).view(-1, *[1] * (weight.ndim - 1))
    inside = (x >= (-128 - zero) * scale) & (x <= (127 - zero) * scale)
    return (q - zero) * scale, packed.weight * unit, inside


def test_gradients_of_a_linear_layer_are_those_of_what_was_rounded(still):
    x, weight, bias, g = drawn((5, 7), (3, 7), (3,), (5, 3))
    y = linear(x, weight, bias, learning(-1.0, 1.2), 8)
    y.backward(g.detach())
    x_hat, w_hat, inside = hats(x, weight, bias, -1.0, 1.2)
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(x.grad, g @ w_hat * inside)
    torch.testing.assert_close(weight.grad, g.T @ x_hat)
    torch.testing.assert_close(bias.grad, g.sum(0))
    assert torch.equal(y, linear(x, weight, bias, ranged(-1.0, 1.2).eval(), 8))


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_gradients_of_a_convolution_are_those_of_what_was_rounded(stride, padding, still):
    x, weight, bias = drawn((2, 4, 6, 6), (3, 4, 3, 3), (3,))
    y = conv2d(x, weight, bias, learning(-2.0, 1.0), 8, stride, padding)
    y.square().sum().backward()
    x_hat, w_hat, inside = hats(x, weight, bias, -2.0, 1.0)
    x_hat, w_hat = x_hat.requires_grad_(), w_hat.detach().requires_grad_()
    F.conv2d(x_hat, w_hat, None, stride, padding).backward(2 * y.detach())
    torch.testing.assert_close(x.grad, x_hat.grad * inside)
    torch.testing.assert_close(weight.grad, w_hat.grad)
    torch.testing.assert_close(bias.grad, 2 * y.detach().sum((0, 2, 3)))
    assert torch.equal(y, conv2d(x, weight, bias, ranged(-2.0, 1.0).eval(), 8, stride, padding))


def test_a_range_is_the_moving_average_of_what_is_seen():
    own, expected = learning(-1.0, 1.0), torch.tensor([-1.0, 1.0])
    for i in range(5):
        (x,) = drawn((9, 4))
        seen = (x * (i + 1)).detach()
        linear(seen, torch.ones(2, 4), None, own, 8)
        expected += 0.01 * (torch.stack(seen.aminmax()) - expected)
    torch.testing.assert_close(own.clip, expected)
    before = own.clip.clone()
    linear(seen, torch.ones(2, 4), None, own.eval(), 8)
    linear(torch.full((9, 4), math.nan), torch.ones(2, 4), None, own.train(), 8)
    assert torch.equal(own.clip, before)


@pytest.mark.parametrize("inputs", [60, 3000])
def test_sums_are_exact_however_many_are_added(inputs, still):
    x, weight = drawn((3, inputs), (2, inputs))
    y = linear(x, weight.sign(), None, learning(-4.0, 4.0), 8)
    assert torch.equal(y, linear(x, weight.sign(), None, ranged(-4.0, 4.0).eval(), 8))


def test_a_norm_is_folded_and_learns_all_the_same(still):
    torch.manual_seed(0)
    conv = ConvNorm(4, 6, 3, activation="hardswish")
    conv.norm.running_mean.normal_()
    conv.norm.running_var.uniform_(0.5, 2)
    conv.input.clip.copy_(torch.tensor([-2.0, 2.0]))
    conv.input.rounding, conv.norm.frozen = trained_product, True
    x = torch.randn(2, 5, 5, 4)
    y = conv(x, bits=8)
    y.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in conv.parameters())
    deployed = deepcopy(conv).eval()
    deployed.deploy()
    assert torch.equal(y, conv.eval()(x, bits=8))
    torch.testing.assert_close(y, deployed(x, bits=8), rtol=1e-5, atol=1e-6)


def quantized(family: str, task: Task = FIVE) -> tuple[Network, torch.Tensor]:
    """A small calibrated network of a family in int8 with lively weights, and images for it."""
    space = load_space(f"{family}:debug", task).restrict("sparsity", 0).with_int8()
    architecture = at_precision(space.draw(Random(1)), "int8")
    torch.manual_seed(0)
    network = Network(space, architecture).eval()
    images = torch.randn(16, *space.example(architecture))
    calibrate(network, images, method="minmax")
    return network, images


@pytest.mark.parametrize(
    ("family", "task"), [*((f, FIVE) for f in families()), *((f, MAPS) for f in SEGMENTERS)]
)
def test_a_network_trains_with_the_numbers_that_it_answers_with(family, task, still):
    network, images = quantized(family, task)
    answers = round_in_training(network).train()(images)
    answers.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        expected = network.eval()(images)
        floats = network(images, at_precision(network.architecture, "fp32"))
    off = (answers.detach() - expected).norm() / expected.norm()
    # Whatever differs by a last digit before a rounding may differ by a unit of int8 after it.
    assert off < 0.2 * (floats - expected).norm() / expected.norm()


@pytest.mark.parametrize("family", families())
def test_the_onnx_file_answers_what_was_trained(family, tmp_path):
    """ONNX Runtime's answers are within `nas.export.tolerance`, or `export_network` raises."""
    pytest.importorskip("onnxruntime")
    network, images = quantized(family)
    before = [q.clip.clone() for q in quantizers(network) if q.clip.any()]
    optimizer = torch.optim.Adam(round_in_training(network).train().parameters(), lr=1e-3)
    for _ in range(2):
        network(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = network.eval()
    after = [q.clip for q in quantizers(learned) if q.clip.any()]
    assert not all(torch.equal(a, b) for a, b in zip(before, after))
    with torch.no_grad():
        expected = learned(images)
    differences = export_network(learned, images[:1], expected[:1], tmp_path, ["onnx"])
    assert differences["model.onnx"] < 0.05 * float(expected[:1].abs().max())
    if torch.cpu._is_vnni_supported():
        assert not saturates(learned, images[:4], tmp_path)


def test_kernels_that_saturate_are_found(tmp_path, monkeypatch):
    network, images = quantized("vit")
    with torch.no_grad():
        expected = network(images[:4])
    answers = iter([*expected[:3].split(1), expected[3:] + 1.0] * 2)
    monkeypatch.setattr("nas.export._run_onnx", lambda *_, **__: next(answers))
    assert not saturates(network, images[:4], tmp_path)
    next(answers), next(answers), next(answers)
    assert saturates(network, images[3:4], tmp_path)


def test_a_network_that_is_not_told_to_round_trains_in_float32():
    network, images = quantized("mobilenetv3")
    wide, twin = at_precision(network.architecture, "fp32"), deepcopy(network)
    assert torch.equal(network.train()(images), twin.train()(images, wide))


@pytest.mark.parametrize("family", ["swin", "mobilenetv3"])
def test_training_lowers_the_loss_and_the_file_is_what_was_trained(family, photo_data, tmp_path):
    space = load_space(f"{family}:debug", photo_data.task).restrict("sparsity", 0).with_int8()
    torch.manual_seed(0)
    teacher = Network(space, at_precision(space.smallest, "fp32")).eval()
    network = teacher.inherit(at_precision(space.smallest, "int8")).eval()
    size = space.largest.resolution
    images = space.parts.resized(
        photo_data.first(photo_data.train, 8, size)["images"], space.smallest.resolution
    )
    calibrate(network, images)
    before = [q.clip.clone() for q in quantizers(network)]
    start = deepcopy(network)
    trained = train_rounded(network, teacher, photo_data, 300, tmp_path / "training")
    curve = (tmp_path / "training" / "loss.jsonl").read_text().splitlines()
    assert len(curve) == 1  # ten steps of 32 images
    assert not trained.training
    assert any(not torch.equal(a, q.clip) for a, q in zip(before, quantizers(trained)))
    again = train_rounded(start, teacher, photo_data, 300, tmp_path / "training")
    assert all(
        torch.equal(a, b)
        for a, b in zip(trained.state_dict().values(), again.state_dict().values())
    )
    with torch.no_grad():
        expected = trained(images[:1])
    differences = export_network(
        trained, images[:1], expected, tmp_path / "out", ("safetensors", "pt2")
    )
    assert max(differences.values()) < 1e-4


@pytest.fixture
def rounding(photo_data):
    """A float32 network, and the same calibrated in int8, for the photos."""
    space = load_space("mobilenetv3:debug", photo_data.task).restrict("sparsity", 0).with_int8()
    torch.manual_seed(0)
    teacher = Network(space, at_precision(space.smallest, "fp32")).eval()
    network = teacher.inherit(at_precision(space.smallest, "int8")).eval()
    first = photo_data.first(photo_data.train, 8, space.largest.resolution)["images"]
    calibrate(network, space.parts.resized(first, space.smallest.resolution))
    return network, teacher


def weights(network):
    return torch.cat([w.flatten() for w in network.state_dict().values()])


def test_a_killed_training_goes_on_as_if_it_had_not_been(
    rounding, photo_data, tmp_path, monkeypatch
):
    network, teacher = rounding
    killed, again, step = deepcopy(network), deepcopy(network), Trainer.train_step
    whole = train_rounded(network, teacher, photo_data, 1280, tmp_path / "whole")

    def until_30(self):
        if self.step == 30:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr("nas.training.rounding.fit", partial(fit, checkpoint_s=0.0))
    monkeypatch.setattr(Trainer, "train_step", until_30)
    with pytest.raises(KeyboardInterrupt):
        train_rounded(killed, teacher, photo_data, 1280, tmp_path / "killed")
    monkeypatch.setattr(Trainer, "train_step", step)
    resumed = train_rounded(again, teacher, photo_data, 1280, tmp_path / "killed")
    assert torch.equal(weights(resumed), weights(whole))
    with pytest.raises(RunError, match="another recipe"):
        train_rounded(deepcopy(again), teacher, photo_data, 1280, tmp_path / "killed", 1e-5)


@pytest.mark.parametrize("where", ["weights", "loss"])
def test_a_loss_that_is_no_number_names_its_step_and_keeps_the_state_before(
    where, rounding, photo_data, tmp_path, monkeypatch
):
    network, teacher = rounding
    step = Trainer.train_step

    def spoiled(self):
        if self.step == 25 and where == "weights":
            for parameter in self.network.parameters():
                parameter.data.fill_(math.nan)
        bad = math.nan if self.step == 25 and where == "loss" else 0.0
        distil = self.objective.distil
        monkeypatch.setattr(self.objective, "distil", lambda *made: distil(*made) + bad)
        found = step(self)
        monkeypatch.setattr(self.objective, "distil", distil)
        return found

    monkeypatch.setattr("nas.training.rounding.fit", partial(fit, checkpoint_s=0.0))
    monkeypatch.setattr(Trainer, "train_step", spoiled)
    with pytest.raises(DivergedError, match=r"at step 26 .*a --rate below 0.0001"):
        train_rounded(network, teacher, photo_data, 1280, tmp_path)
    kept = load_file(tmp_path / "checkpoint-20.safetensors")
    assert all(w.isfinite().all() for w in kept.values())


def test_a_network_that_has_int8_blocks_keeps_its_choice(debug_supernet, photo_data, tmp_path):
    space = load_space("swin:debug+int8", photo_data.task)
    draws = (space.draw(Random(i)) for i in range(50))
    mixed = next(a for a in draws if a not in [at_precision(a, p) for p in ("fp32", "int8")])
    network, data = subject(mixed.to_json(), "swin:debug", photo_data.name, str(debug_supernet), "")
    result = quantize(network, data, images=4, calibration=4, train=32, out=tmp_path)
    assert result["architecture"] == asdict(mixed)
    assert "trained" in result["methods"]
