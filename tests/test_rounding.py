"""Training in int8: what is trained is, bit by bit, what is deployed, and it learns."""

from __future__ import annotations

from copy import deepcopy
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas.export import export_network
from nas.families import families, load_space
from nas.layers.conv import ConvNorm
from nas.layers.precision import Packed, Quantizer, conv2d, linear, scale_zero
from nas.network.calibration import calibrate, quantizers
from nas.network.network import Network
from nas.space.architecture import at_precision
from nas.tasks.classification import Classification
from nas.training.rounding import round_in_training, train_rounded


def aware(low: float, high: float) -> Quantizer:
    made = Quantizer()
    made.aware = True
    made.clip.copy_(torch.tensor([low, high]))
    return made


def still(monkeypatch) -> None:
    monkeypatch.setattr("nas.layers.precision._FOLLOWED", 0.0)


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def hats(x, weight, bias, low, high):
    """Rounded inputs and weights as floats, and where inputs are not clipped."""
    scale, zero = scale_zero(low, high)
    own = Quantizer()
    own.clip.copy_(torch.tensor([low, high]))
    packed = Packed.of(weight, bias, own)
    q = torch.clamp(torch.round(x.detach() / scale) + zero, -128, 127)
    unit = (packed.unit / packed.scale).view(-1, *[1] * (weight.ndim - 1))
    inside = (x >= (-128 - zero) * scale) & (x <= (127 - zero) * scale)
    return (q - zero) * scale, packed.weight * unit, inside


def test_gradients_of_a_linear_layer_are_those_of_what_was_rounded(monkeypatch):
    still(monkeypatch)
    x, weight, bias, g = drawn((5, 7), (3, 7), (3,), (5, 3))
    y = linear(x, weight, bias, aware(-1.0, 1.2), 8)
    y.backward(g.detach())
    x_hat, w_hat, inside = hats(x, weight, bias, -1.0, 1.2)
    assert 0 < inside.sum() < inside.numel()
    torch.testing.assert_close(x.grad, g @ w_hat * inside)
    torch.testing.assert_close(weight.grad, g.T @ x_hat)
    torch.testing.assert_close(bias.grad, g.sum(0))
    assert torch.equal(y, linear(x, weight, bias, aware(-1.0, 1.2).eval(), 8))


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0)])
def test_gradients_of_a_convolution_are_those_of_what_was_rounded(stride, padding, monkeypatch):
    still(monkeypatch)
    x, weight, bias = drawn((2, 4, 6, 6), (3, 4, 3, 3), (3,))
    y = conv2d(x, weight, bias, aware(-2.0, 1.0), 8, stride, padding)
    y.square().sum().backward()
    x_hat, w_hat, inside = hats(x, weight, bias, -2.0, 1.0)
    x_hat, w_hat = x_hat.requires_grad_(), w_hat.detach().requires_grad_()
    F.conv2d(x_hat, w_hat, None, stride, padding).backward(2 * y.detach())
    torch.testing.assert_close(x.grad, x_hat.grad * inside)
    torch.testing.assert_close(weight.grad, w_hat.grad)
    torch.testing.assert_close(bias.grad, 2 * y.detach().sum((0, 2, 3)))
    assert torch.equal(y, conv2d(x, weight, bias, aware(-2.0, 1.0).eval(), 8, stride, padding))


def test_a_range_is_the_moving_average_of_what_is_seen():
    own, expected = aware(-1.0, 1.0), np.array([-1.0, 1.0])
    for i in range(5):
        (x,) = drawn((9, 4))
        linear(x * (i + 1), torch.ones(2, 4), None, own, 8)
        seen = (x * (i + 1)).detach()
        expected += 0.01 * (np.array([float(seen.min()), float(seen.max())]) - expected)
    np.testing.assert_allclose(own.clip.numpy(), expected, rtol=1e-5)
    before = own.clip.clone()
    linear(x, torch.ones(2, 4), None, own.eval(), 8)
    assert torch.equal(own.clip, before)


def test_a_norm_is_folded_and_learns_all_the_same(monkeypatch):
    still(monkeypatch)
    torch.manual_seed(0)
    conv = ConvNorm(4, 6, 3, activation="hardswish")
    conv.norm.running_mean.normal_()
    conv.norm.running_var.uniform_(0.5, 2)
    conv.input.clip.copy_(torch.tensor([-2.0, 2.0]))
    conv.input.aware = conv.norm.frozen = True
    x = torch.randn(2, 5, 5, 4)
    y = conv(x, bits=8)
    y.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in conv.parameters())
    deployed = deepcopy(conv).eval()
    deployed.deploy()
    assert torch.equal(y, conv.eval()(x, bits=8))
    torch.testing.assert_close(y, deployed(x, bits=8), rtol=1e-5, atol=1e-6)


def quantized(family: str) -> tuple[Network, torch.Tensor]:
    """A small calibrated network of a family in int8 with lively weights, and images for it."""
    space = load_space(f"{family}:debug", Classification(5)).restrict("sparsity", 0).with_int8()
    architecture = at_precision(space.draw(Random(1)), "int8")
    torch.manual_seed(0)
    network = Network(space, architecture).eval()
    images = torch.randn(16, *space.example(architecture))
    calibrate(network, images, method="minmax")
    return network, images


@pytest.mark.parametrize("family", families())
def test_a_network_trains_with_the_numbers_that_it_answers_with(family, monkeypatch):
    still(monkeypatch)
    network, images = quantized(family)
    answers = round_in_training(network).train()(images)
    answers.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad():
        expected = network.eval()(images)
        floats = network(images, at_precision(network.architecture, "fp32"))
    off = (answers.detach() - expected).norm() / expected.norm()
    # Whatever differs by a last digit before a rounding may differ by a unit of int8 after it.
    assert off < 0.2 * (floats - expected).norm() / expected.norm()


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
