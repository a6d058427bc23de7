"""Scores are the same to the bit however they are obtained: parts, threads, reused activations."""

from __future__ import annotations

import json
from itertools import pairwise
from random import Random

import numpy as np
import pytest
import torch
from conftest import DEBUG_SPACES
from hypothesis import given
from hypothesis import strategies as st

from nas.data import Dataset, Split
from nas.evaluation.accuracy import Evaluator, Scored
from nas.evaluation.batch_norm import recalibrate
from nas.evaluation.racing import Race
from nas.evaluation.score_task import record_of, rival_in, unpack, variance_in
from nas.evaluation.shared_prefixes import Prefixes, Step, copied, count_bytes, depth_first, forks
from nas.families import load_space
from nas.layers import attention
from nas.network.calibration import calibrate
from nas.network.network import Network
from nas.run.scores import Scores
from nas.space.architecture import at_precision
from nas.tasks.classification import Classification, Top1

CLASSES, IMAGES = 30, 40


class Noise(Split):
    """Images that have nothing to do with their labels."""

    def batch(self, indices, canvas):
        rng = np.random.default_rng(len(self.name))
        pixels = rng.integers(0, 256, (self.size, 3, canvas, canvas)).astype(np.uint8)
        labels = rng.integers(0, CLASSES, self.size)
        return {"images": pixels[list(indices)], "labels": labels[list(indices)]}


@pytest.fixture(scope="session")
def noise():
    splits = {name: Noise(name, size) for name, size in (("train", 80), ("search", IMAGES))}
    return Dataset(
        "noise", Classification(CLASSES), **splits, test=splits["search"],
        mean=(0.5,) * 3, std=(0.25,) * 3, fingerprint="",
    )  # fmt: skip


@pytest.fixture(scope="module", params=DEBUG_SPACES)
def supernet(request, noise):
    torch.manual_seed(0)
    space = load_space(request.param, Classification(CLASSES))
    network = Network(space, space.largest).eval()
    images = noise.first(noise.train, 16, space.largest.resolution)["images"]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        recalibrate(network, images)
    calibrate(network, images, method="minmax")
    return network


def mutated(space, parent, rng):
    """Each choice of the parent with probability 0.8, where it is allowed."""
    state, values = None, []
    for i, (position, value) in enumerate(zip(space.positions, space.domain.flatten(parent))):
        parts = {v: part for v in position.values if (part := space.advance(i, state, v))}
        if value not in parts or rng.random() < 0.2:
            value = rng.choice(list(parts))
        values.append(value)
        state = parts[value].state
    return space.domain.assemble(iter(values))


def family(space, seed):
    rng = Random(seed)
    parents = [space.draw(rng) for _ in range(3)]
    return [*parents, *(mutated(space, rng.choice(parents), rng) for _ in range(6))]


def logits(evaluator, architecture):
    subnet = evaluator.subnet(architecture).deploy()
    return torch.cat(evaluator._run(subnet, evaluator._prefixes, lambda outputs, _: outputs))


def test_reused_activations_change_no_bit(supernet, noise, monkeypatch):
    skipped = []
    longest = Prefixes._longest

    def spied(self, chunk, names):
        found = longest(self, chunk, names)
        skipped.append(found[0])
        return found

    monkeypatch.setattr(Prefixes, "_longest", spied)
    plain = Evaluator(supernet, noise, noise.search, IMAGES, reuse=0)
    reusing = Evaluator(supernet, noise, noise.search, IMAGES)
    planned = family(supernet.space, 0)
    expected = {a: logits(plain, a) for a in planned}
    assert not any(skipped)
    for order in (reusing.plan(planned), planned):  # the best one, and any other
        for architecture in order:
            assert torch.equal(logits(reusing, architecture), expected[architecture])
    assert np.mean(np.array(skipped) > 0) > 0.3


def test_a_small_store_forgets_and_changes_no_bit(supernet, noise):
    plain = Evaluator(supernet, noise, noise.search, IMAGES, reuse=0)
    small = Evaluator(supernet, noise, noise.search, IMAGES, reuse=20_000)
    for architecture in small.plan(family(supernet.space, 7)):
        assert torch.equal(logits(small, architecture), logits(plain, architecture))
        assert small._prefixes.bytes <= 20_000
        kept = small._prefixes._kept.values()
        assert small._prefixes.bytes == sum(count_bytes(state) for state, _ in kept)


def test_statistics_of_norms_are_reused_exactly(supernet, noise):
    if not supernet.batch_norms:
        return
    plain = Evaluator(supernet, noise, noise.search, IMAGES, reuse=0)
    reusing = Evaluator(supernet, noise, noise.search, IMAGES)
    for architecture in reusing.plan(family(supernet.space, 3)):
        expected = dict(plain.subnet(architecture).named_buffers())
        for name, buffer in reusing.subnet(architecture).named_buffers():
            assert torch.equal(buffer, expected[name])


def test_statistics_of_norms_are_the_mean_over_batches(supernet, noise):
    """As the running statistics of training, when each batch weighs as much as all before it."""
    architecture = at_precision(supernet.space.draw(Random(5)), "fp32")
    images = noise.first(noise.train, 80, supernet.space.largest.resolution)["images"]
    ours, theirs = (supernet.inherit(architecture).eval() for _ in range(2))
    recalibrate(ours, images)
    norms = [m for m in theirs.modules() if hasattr(m, "running_var")]
    for i, batch in enumerate(images.split(64)):
        for norm in norms:
            norm.train().momentum = 1 / (i + 1)
        with torch.no_grad():
            theirs(supernet.space.parts.resized(batch, architecture.resolution))
    expected = dict(theirs.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in ours.modules())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_parts_change_no_bit(supernet, noise, threads):
    architecture = supernet.space.draw(Random(1))
    usual = Evaluator(supernet, noise, noise.search, IMAGES)
    other = Evaluator(supernet, noise, noise.search, IMAGES, threads=threads)
    torch.set_num_threads(2)
    assert torch.equal(logits(other, architecture), logits(usual, architecture))
    assert torch.get_num_threads() == 2
    whole = usual.observed(architecture)
    assert whole.shape == (IMAGES,)
    for parts in ((0, 16, 32, IMAGES), (0, 5, 17, 33, IMAGES)):
        hits = [other.observed(architecture, *part) for part in pairwise(parts)]
        np.testing.assert_array_equal(np.concatenate(hits), whole)
    raced = other.score(architecture, whole, Race((7, 16, IMAGES)))
    np.testing.assert_array_equal(raced.observed, whole)
    assert not raced.dropped
    assert raced.percent == usual.percent(architecture) == 100 * whole.mean()


@pytest.mark.parametrize("values", [np.arange(9) % 2 == 0, np.linspace(0, 1, 9)])
def test_outcomes_in_a_journal_race_as_those_in_memory(values):
    class Mean(Top1):
        def observe(self, outputs, batch):
            return values

    scored = Scored(Mean(), values)
    record = json.loads(json.dumps(record_of(scored)))
    np.testing.assert_array_equal(unpack(rival_in(record), 9), scored.outcomes)
    assert variance_in(record, scored.metric) == pytest.approx(scored.variance, rel=1e-12)
    assert list(record)[3:] == (["hits"] if values.dtype == bool else ["variance", "outcomes"])


@pytest.fixture
def evaluator(debug_supernet, photo_data):
    from nas.training.supernet import load_supernet

    network, _ = load_supernet(debug_supernet, "swin:debug", photo_data)
    return Evaluator(network, photo_data, photo_data.train, 20)


def test_a_subnet_that_loses_a_race_is_dropped(evaluator):
    smallest = evaluator.network.space.smallest
    whole = evaluator.score(smallest)
    assert (whole.images, whole.dropped) == (20, False)
    misses = ~whole.observed
    assert misses[:8].any()
    early = evaluator.score(smallest, np.ones(20, bool), Race((8, 20), error=0.6))
    assert (early.images, early.dropped) == (8, True)
    np.testing.assert_array_equal(early.observed, whole.observed[:8])
    assert early.percent == 100 * whole.observed[:8].mean()


def test_where_only_the_whole_has_a_score_nothing_is_raced(evaluator, monkeypatch):
    monkeypatch.setattr(Top1, "outcomes", lambda self, observed: None)
    scored = evaluator.score(
        evaluator.network.space.smallest, np.ones(20, bool), Race((8, 20), 0.6)
    )
    assert (scored.images, scored.dropped, scored.outcomes) == (20, False, None)
    record = record_of(scored)
    assert rival_in(record) == ""
    assert variance_in(record, scored.metric) == scored.variance
    assert record.keys() == {"top1_percent", "images", "dropped", "variance"}


def test_answers_of_a_plain_network_are_those_of_its_forward(evaluator):
    """Though samples are held as bytes, and prepared batch by batch."""
    network = evaluator.subnet(evaluator.network.space.smallest).deploy()
    resized, loaded = network.space.parts.resized, evaluator.loaded
    assert loaded["images"].dtype == np.uint8
    images = resized(evaluator.data.prepare(loaded)["images"], network.architecture.resolution)
    with torch.inference_mode():
        expected = network(images).argmax(1).numpy()
    outputs = evaluator.outputs(network)
    np.testing.assert_array_equal(outputs.argmax(1), expected)
    right = evaluator.observed_by(network)
    np.testing.assert_array_equal(right, expected == evaluator.loaded["labels"])
    percent, answers = evaluator.answered_by(network)
    assert percent == 100 * right.mean()
    np.testing.assert_array_equal(answers, expected)


def test_the_kernel_of_attention_can_be_told_instead_of_timed(monkeypatch):
    monkeypatch.setattr("nas.network.network.fastest_in_windows", lambda: pytest.fail("timed"))
    space, ran = load_space("swin:debug").restrict("precision", "fp32"), []
    images = torch.zeros(1, 3, space.smallest.resolution, space.smallest.resolution)
    for told in (attention.explicit, attention.fused):

        def kernel(*tensors, told=told):
            ran.append(told)
            return told(*tensors)

        supernet = Network(space, space.largest).eval().use_in_windows(kernel)
        with torch.inference_mode():
            for network in (supernet, supernet.inherit(space.smallest).deploy()):
                ran.clear()
                network(images, space.smallest)
                assert ran
                assert set(ran) == {told}


LISTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=8)


@given(LISTS)
def test_depth_first_leaves_no_gap_between_lists_that_begin_alike(lists):
    order = depth_first(lists)
    assert sorted(order) == list(range(len(lists)))
    for length in range(1, 6):
        begun = [tuple(lists[i][:length]) for i in order]
        changes = 1 + sum(a != b for a, b in pairwise(begun))
        assert not lists or changes == len(set(begun))


@given(LISTS)
def test_forks_are_the_longest_that_two_lists_share(lists):
    expected = set()
    for i, a in enumerate(lists):
        for b in lists[:i]:
            shared = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            expected |= {tuple(a[:shared])} - {()}
    assert forks(lists) == expected


@given(LISTS)
def test_depth_first_runs_each_step_of_the_tree_once(lists):
    prefixes, ran = Prefixes(10**6), []

    def step(name):
        def run(state):
            ran.append(name)
            return (state[0].add_(3**name),)  # writes into what it is given, as blocks do

        return Step(name, run)

    prefixes.plan(lists)
    for i in depth_first(lists):
        (total,) = prefixes.run("chunk", [step(x) for x in lists[i]], lambda: (torch.zeros(1),))
        assert total == sum(3**x for x in lists[i])
    assert len(ran) == len({tuple(x[:k]) for x in lists for k in range(1, len(x) + 1)})


def test_copies_keep_values_and_layout_and_share_nothing():
    x = torch.arange(24.0).view(2, 3, 4)
    state = (x.permute(0, 2, 1), (x[:, :, :2], None), 7)
    a, (b, none), seven = copied(state)
    assert (none, seven) == (None, 7)
    for copy, original in ((a, state[0]), (b, state[1][0])):
        assert torch.equal(copy, original)
        assert copy.stride() == original.stride()
        assert copy.data_ptr() != original.data_ptr()
    assert count_bytes(copied((x, (x, None)))) == 2 * 24 * 4


def test_the_noise_of_a_dropped_candidate_is_that_of_its_few_images_alone():
    """The images are the same for all full scores, and so is a half of their noise."""
    space = load_space("swin:debug", Classification(2))
    full, dropped = space.largest, space.smallest
    records = [
        {"architecture": a.to_json(), "top1_percent": 80.0, "images": n, "dropped": n < 400}
        for a, n in ((full, 400), (dropped, 64))
    ]
    scores = Scores(space, None, 400, space.task.metric, imported=records)
    assert scores.noise(dropped) == pytest.approx(100**2 * 0.8 * 0.2 / 64, rel=0.05)
    assert scores.noise(full) == pytest.approx(100**2 * 0.8 * 0.2 / 400 / 2, rel=0.05)
    assert scores.full(space) == [full]
