"""What every family must satisfy; a new file in `search_spaces/` needs no new tests."""

from __future__ import annotations

from copy import deepcopy
from random import Random

import pytest
import torch
from conftest import DEBUG_SPACES

from nas.errors import EvaluationError, UsageError
from nas.evaluation.batch_norm import recalibrate
from nas.families import load_space, space_names
from nas.network.calibration import calibrate
from nas.network.macs import count_macs, count_params
from nas.network.network import Network
from nas.space.architecture import at_precision
from nas.tasks.classification import Classification
from nas.tasks.segmentation import Segmentation
from nas.trellis.graph import Graph, space_layers

SPACES = list(space_names())
CLASSES = 5


TASKS = {"classes": Classification(CLASSES), "pixels": Segmentation(CLASSES)}


@pytest.fixture(
    params=[f"{name} {task}" for task in TASKS for name in DEBUG_SPACES], scope="module"
)
def space(request):
    name, task = request.param.split()
    return load_space(name, TASKS[task])


@pytest.fixture(scope="module")
def calibrated(space):
    torch.manual_seed(0)
    network = Network(space, space.largest).eval()
    with torch.no_grad():  # biases and scales away from 0 and 1, so that a slip shows
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        recalibrate(network, images_for(space.largest, 8))
    calibrate(network, images_for(space.largest, 8), method="mse")
    return network


@pytest.fixture
def supernet(calibrated):
    """Its own for each test, which may change it."""
    return deepcopy(calibrated)


def images_for(architecture, n=2):
    generator = torch.Generator().manual_seed(1)
    r = architecture.resolution
    return torch.randn(n, 3, r, r, generator=generator)


@pytest.mark.parametrize("name", SPACES)
def test_every_family_has_debug_micro_and_a_paper_size(name):
    presets = {n.partition(":")[2] for n in SPACES if n.startswith(name.partition(":")[0] + ":")}
    assert {"debug", "micro"} < presets


@pytest.mark.parametrize("seed", range(6))
def test_subnet_equals_the_plain_model_that_inherits_its_weights(space, supernet, seed):
    architecture = space.draw(Random(seed))
    images = images_for(architecture)
    with torch.no_grad():
        plain = supernet.inherit(architecture)
        torch.testing.assert_close(
            plain(images), supernet(images, architecture), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_deployed_network_gives_the_same_numbers(space, supernet, precision):
    for seed in range(3):
        architecture = space.restrict("precision", precision).draw(Random(seed))
        images = images_for(architecture)
        plain = supernet.inherit(architecture)
        with torch.no_grad():
            expected = plain(images)
            plain.deploy()
            torch.testing.assert_close(plain(images), expected, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(plain(images), plain(images), rtol=0, atol=0)


def test_int8_is_near_fp32_and_not_the_same(space, supernet):
    dense = space.restrict("sparsity", 0)
    wide = dense.restrict("precision", "fp32").largest
    narrow = dense.restrict("precision", "int8").largest
    images = images_for(wide)
    with torch.no_grad():
        exact, rough = supernet(images, wide), supernet(images, narrow)
    error = float((rough - exact).norm() / (exact - exact.mean()).norm())
    assert 1e-6 < error < 0.2


def test_int8_without_a_calibrated_range_is_an_error(space):
    network = Network(space, space.restrict("precision", "int8").largest).eval()
    with torch.no_grad(), pytest.raises(EvaluationError, match="calibrate"):
        network(images_for(network.architecture))


def test_reordering_by_importance_changes_small_networks_and_not_the_largest(space, supernet):
    dense = space.restrict("sparsity", 0).restrict("precision", "fp32")
    images, small = images_for(dense.largest), images_for(dense.smallest)
    with torch.no_grad():
        large_before = supernet(images, dense.largest)
        small_before = supernet(small, dense.smallest)
        supernet.reorder()
        large_after = supernet(images, dense.largest)
        small_after = supernet(small, dense.smallest)
    torch.testing.assert_close(large_after, large_before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small_after, small_before, rtol=1e-4, atol=1e-5)


def test_statistics_of_a_subnet_do_not_depend_on_its_precision(space, supernet):
    narrow = space.restrict("precision", "int8").smallest
    plain = {p: supernet.inherit(at_precision(narrow, p)) for p in ("fp32", "int8")}
    for network in plain.values():
        recalibrate(network, images_for(space.largest, 8))
    exact = dict(plain["fp32"].named_buffers())
    for name, buffer in plain["int8"].named_buffers():
        torch.testing.assert_close(buffer, exact[name], rtol=0, atol=0)


def test_maps_of_any_size_fit_their_layers(space, supernet):
    """Odd maps too, pruned: what the parts say of a size is what the layers make of it."""
    sparse = space.restrict("sparsity", 50).restrict("precision", "fp32")
    for resolution in range(13, 50, 3):
        if resolution % space.parts.multiple == 0:
            architecture = sparse.at(resolution).largest
            with torch.no_grad():
                logits = supernet(images_for(architecture), architecture)
            assert logits.isfinite().all()


def test_images_of_another_size_are_refused(space, supernet):
    wrong = torch.randn(1, 3, space.largest.resolution + 8, space.largest.resolution + 8)
    with pytest.raises(UsageError, match="images of the shape"):
        supernet(wrong)
    with pytest.raises(UsageError, match="images of the shape"):
        calibrate(supernet, wrong)


def test_the_callers_images_stay_as_they_are(space, supernet):
    images = images_for(space.largest)
    before = images.clone()
    with torch.inference_mode():
        first = supernet(images)
        assert torch.equal(supernet(images), first)
    assert torch.equal(images, before)


def test_the_plain_model_holds_no_more_than_its_layers(space, supernet):
    architecture = space.draw(Random(3))
    plain = supernet.inherit(architecture)
    counted = sum(count_params(layer) for layer in space.layers(architecture))
    assert sum(p.numel() for p in plain.parameters()) == counted


def test_the_largest_architecture_holds_every_weight(space, supernet):
    for seed in range(30):
        for layer in space.layers(space.draw(Random(seed))):
            with torch.device("meta"):
                small = dict(layer.build().named_parameters())
            large = dict(supernet.layers[layer.path].named_parameters()) if small else {}
            for name, parameter in small.items():
                assert all(a <= b for a, b in zip(parameter.shape, large[name].shape))


def test_images_of_a_batch_do_not_influence_each_other(space, supernet):
    """In float32: int8 may round a last digit of the matrix products differently, as a step."""
    for seed in range(4):
        architecture = space.restrict("precision", "fp32").draw(Random(seed))
        images = images_for(architecture, 3)
        with torch.no_grad():
            together = supernet(images, architecture)
            alone = torch.cat([supernet(image[None], architecture) for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_training_and_inference_give_the_same_numbers(space, supernet):
    architecture = space.restrict("precision", "fp32").draw(Random(2))
    images = images_for(architecture)
    with torch.no_grad():
        inference = supernet(images, architecture)
    torch.testing.assert_close(supernet(images, architecture), inference, rtol=1e-5, atol=1e-6)


def test_pruning_matters_and_can_be_drawn(space, supernet):
    dense = space.restrict("sparsity", 0).largest
    sparse = space.restrict("sparsity", 50).largest
    images = images_for(dense)
    with torch.no_grad():
        assert not torch.allclose(supernet(images, dense), supernet(images, sparse))
    dense_maps = supernet.inherit(dense).kept(images)
    sparse_maps = supernet.inherit(sparse).kept(images)
    assert dense_maps.keys() == sparse_maps.keys()
    assert all(m.all() for m in dense_maps.values())
    assert any(0 < m.float().mean() < 1 for m in sparse_maps.values())
    assert all(m.ndim == 2 and m.shape[0] == m.shape[1] for m in sparse_maps.values())


def test_every_row_runs_on_its_own(space):
    for layer in space_layers(space).values():
        with torch.no_grad():
            module = layer.build()
            module.run(layer.inputs(1), **layer.elastic)
        assert count_macs(layer).total >= 0


def test_macs_of_the_layers_are_those_of_the_network(space):
    from torch.utils.flop_counter import FlopCounterMode

    architecture = space.restrict("precision", "fp32").draw(Random(5))
    # The counter knows the CPU's fused attention only by what it is made of on meta tensors.
    network = Network(space, architecture).eval().to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images_for(architecture, 1).to("meta"))
    macs = sum(count_macs(layer).total for layer in space.layers(architecture))
    assert macs == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", SPACES)
def test_largest_and_smallest_are_the_extremes_in_macs(name):
    space = load_space(name)
    for architecture in (space.smallest, space.largest):
        assert architecture in space
    if name in DEBUG_SPACES:
        macs = [
            sum(count_macs(layer).total for layer in space.layers(a))
            for a in (space.smallest, *(space.draw(Random(i)) for i in range(8)), space.largest)
        ]
        assert macs[0] == min(macs)
        assert macs[-1] == max(macs)
    assert Graph.of(space).count > 100


def test_gradients_reach_every_parameter_of_the_largest(space, supernet):
    supernet.zero_grad()
    supernet(images_for(space.largest), space.largest).square().sum().backward()
    missing = [n for n, p in supernet.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
