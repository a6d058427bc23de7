"""The task of a class for every pixel: against scikit-learn's formula, bootstraps and autograd."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UsageError
from nas.tasks import load_task
from nas.tasks.segmentation import IGNORED, Segmentation, default_colour

NOISE = np.random.default_rng(0)
CLASSES = 4
TASK = Segmentation(CLASSES)
METRIC = TASK.metric


def logits_of(answers, classes=CLASSES):
    """Logits whose largest one is that of each answer."""
    return (
        torch.nn.functional.one_hot(torch.as_tensor(answers).long(), classes).movedim(-1, 1) * 5.0
    )


def seen(answers, labels, classes=CLASSES):
    """What the metric observes of answers and labels (samples, side, side)."""
    labels = torch.as_tensor(np.asarray(labels, np.uint8))
    return METRIC.observe(logits_of(answers, classes), {"labels": labels})


def by_hand(answers, labels, classes=CLASSES):
    """The IoU of each class in percent, pixel by pixel, from sets; None where it is in neither."""
    pixels = [
        (i, int(a), int(r))
        for i, (a, r) in enumerate(zip(np.ravel(answers), np.ravel(labels)))
        if r != IGNORED
    ]
    found = []
    for c in range(classes):
        answered = {i for i, a, _ in pixels if a == c}
        right = {i for i, _, r in pixels if r == c}
        either = answered | right
        found.append(100 * len(answered & right) / len(either) if either else None)
    return tuple(found)


def drawn(samples, side=6, classes=CLASSES, wrong=0.3, rng=NOISE):
    """Labels in patches, some ignored, and answers of which a share is wrong, more in some."""
    coarse = rng.integers(0, classes, (samples, side // 3, side // 3))
    labels = coarse.repeat(3, 1).repeat(3, 2)
    other = rng.integers(0, classes, labels.shape)
    hard = rng.random((samples, 1, 1)) * 2 * wrong
    answers = np.where(rng.random(labels.shape) < hard, other, labels)
    return answers, np.where(rng.random(labels.shape) < 0.1, IGNORED, labels)


pixels = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.sampled_from([*range(CLASSES), IGNORED])),
    min_size=8,
    max_size=8,
)


@given(pixels)
def test_the_score_is_that_of_sets_of_pixels(pairs):
    """With ignored pixels, classes that occur nowhere, and pictures of one class."""
    answers, labels = np.array(pairs).T.reshape(2, 2, 2, 2)
    observed = seen(answers, labels)
    expected = by_hand(answers, labels)
    assert METRIC.by_class(observed) == pytest.approx(expected)
    there = [percent for percent in expected if percent is not None]
    assert METRIC.percent(observed) == pytest.approx(np.mean(there) if there else 0)
    assert np.isfinite(METRIC.variance(observed))
    assert ((outcomes := METRIC.outcomes(observed)) >= 0).all()
    assert (outcomes <= 1).all()


def test_the_score_is_that_of_one_confusion_matrix():
    """That of scikit-learn over all pixels that count, and its mean over the classes."""
    from sklearn.metrics import confusion_matrix, jaccard_score

    answers, labels = drawn(20)
    known = labels != IGNORED
    matrix = confusion_matrix(labels[known], answers[known], labels=range(CLASSES))
    each = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    observed = seen(answers, labels)
    assert METRIC.by_class(observed) == pytest.approx(100 * each)
    mean = jaccard_score(labels[known], answers[known], average="macro")
    assert METRIC.percent(observed) == pytest.approx(100 * mean)


def test_parts_of_a_split_add_up_to_the_whole_and_their_mean_is_another_number():
    answers, labels = drawn(12)
    parts = [seen(answers[i : i + 5], labels[i : i + 5]) for i in (0, 5, 10)]
    whole = seen(answers, labels)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert METRIC.percent(whole) != pytest.approx(np.mean([METRIC.percent(p) for p in parts]))


@pytest.mark.parametrize("samples", [40, 400])
@pytest.mark.parametrize("wrong", [0.05, 0.4])
def test_the_noise_is_that_of_a_bootstrap_over_samples(samples, wrong):
    rng = np.random.default_rng(1)
    observed = seen(*drawn(samples, wrong=wrong, rng=rng))
    draws = [METRIC.percent(observed[rng.integers(0, samples, samples)]) for _ in range(1500)]
    assert np.sqrt(METRIC.variance(observed)) == pytest.approx(np.std(draws), rel=0.12)


def test_the_noise_is_that_of_new_samples():
    """Where a tenth of the pixels of a picture is right or wrong together, and one class is rare."""
    rng = np.random.default_rng(2)

    def some():
        labels = np.where(rng.random((100, 1, 1)) < 0.2, 3, rng.integers(0, 3, (100, 4, 4)))
        right = rng.random((100, 1, 1)) < 0.7
        return seen(np.where(right, labels, (labels + 1) % CLASSES), labels)

    many = [some() for _ in range(300)]
    found = np.std([METRIC.percent(observed) for observed in many])
    stated = np.sqrt(np.mean([METRIC.variance(observed) for observed in many]))
    assert stated == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_nothing_is_certain_because_samples_are_alike(samples):
    labels = np.zeros((samples, 4, 4), int)
    observed = seen(labels, labels)
    assert METRIC.percent(observed) == 100
    assert METRIC.variance(observed) > 0


def test_outcomes_order_samples_as_a_person_would():
    """An object that is found, found in part, taken for another, missed; stray pixels; a blank."""
    labels = np.zeros((7, 20, 20), int)
    labels[:, 4:8, 4:8] = 1
    answers = labels.copy()
    answers[1, 4:8, 4:6] = 0
    answers[2, 4:8, 4:8] = 2
    answers[3] = 0
    answers[4, 0, 0] = 3
    answers[5, 10:16, 10:16] = 3
    labels[6], answers[6] = IGNORED, 2
    found, part, other, missed, stray, ghost, blank = METRIC.outcomes(seen(answers, labels))
    assert found == blank == 1
    assert 1 > stray > ghost > part > 0.7 > other > missed > 0.45


def test_means_of_outcomes_follow_the_score_however_classes_are_confused():
    """Object by object, or pixel by pixel: then many classes are answered that are not there."""
    rng, classes, found = np.random.default_rng(3), 11, []
    labels = np.zeros((300, 12, 12), int)
    labels[:, 3:9, 3:9] = rng.integers(1, classes, (300, 1, 1))
    for right, by in ((0.30, (300, 1, 1)), (0.36, labels.shape), (0.42, (300, 1, 1)),
                      (0.48, labels.shape), (0.54, (300, 1, 1))):  # fmt: skip
        answers = np.where(rng.random(by) < right, labels, rng.integers(1, classes, by))
        observed = seen(np.where(labels > 0, answers, 0), labels, classes)
        found.append((METRIC.percent(observed), METRIC.outcomes(observed).mean()))
    assert found == sorted(found)
    assert (np.diff([mean for _, mean in found]) > 0).all()


def test_logits_of_another_side_are_resized_to_the_labels():
    labels = np.zeros((1, 8, 8), int)
    labels[:, :, 4:] = 1
    small = labels[:, ::4, ::4]
    assert METRIC.percent(METRIC.observe(logits_of(small), {"labels": torch.tensor(labels)})) == 100
    loss = TASK.loss(20 * logits_of(small), {"labels": torch.tensor(labels)})
    assert loss < 0.7  # the two columns beside the edge are not certain


def losses(outputs, labels):
    """The loss by its formulas, with probabilities of every class for every pixel."""
    probabilities = outputs.softmax(1)
    right = torch.nn.functional.one_hot(labels.where(labels != IGNORED, 0).long(), CLASSES)
    known = (labels != IGNORED)[:, None]
    right = right.movedim(-1, 1) * known
    entropy = -(right * outputs.log_softmax(1)).sum() / known.sum()
    lost = []
    for c in range(CLASSES):
        ours, theirs = probabilities[:, c] * known[:, 0], right[:, c]
        if theirs.any():
            both = (ours * theirs).sum()
            lost.append(1 - both / (ours.sum() + theirs.sum() - both))
    return entropy + sum(lost) / len(lost)


def test_the_loss_and_its_gradient_are_those_of_the_formulas():
    _, labels = drawn(3)
    labels = torch.tensor(np.where(labels == 2, 1, labels))  # a class that does not occur
    outputs = torch.randn(3, CLASSES, 6, 6, dtype=torch.double, requires_grad=True)
    ours, theirs = TASK.loss(outputs, {"labels": labels}), losses(outputs, labels)
    assert ours.item() == pytest.approx(theirs.item())
    gradients = [torch.autograd.grad(loss, outputs)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    ignored = (labels == IGNORED)[:, None].expand_as(outputs)
    assert not gradients[0][ignored].any()


def test_labels_that_are_all_ignored_teach_nothing():
    outputs = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    loss = TASK.loss(outputs, {"labels": torch.full((2, 4, 4), IGNORED, dtype=torch.uint8)})
    loss.backward()
    assert loss.isfinite()
    assert not outputs.grad.any()


def test_a_copy_of_the_teacher_has_nothing_left_to_learn():
    torch.manual_seed(0)
    teacher = torch.randn(2, CLASSES, 5, 5)
    copy = teacher.clone().requires_grad_()
    entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1).mean()
    loss = TASK.distillation(copy, teacher)
    assert loss.item() == pytest.approx(entropy.item(), rel=1e-5)
    for _ in range(5):
        assert TASK.distillation(teacher + 0.1 * torch.randn_like(teacher), teacher) > loss


def test_distillation_from_certain_answers_is_learning_from_labels():
    labels = torch.tensor(drawn(2)[1])
    labels = labels.where(labels != IGNORED, 0)
    outputs = torch.randn(2, CLASSES, 6, 6)
    teacher = 100 * logits_of(labels)
    expected = TASK.loss(outputs, {"labels": labels})
    torch.testing.assert_close(TASK.distillation(outputs, teacher), expected)
    halves = TASK.distillation(outputs[..., ::2, ::2], teacher)  # of a network that sees less
    assert halves.isfinite()


def test_large_outputs_are_distilled_on_a_grid():
    ours, theirs = torch.randn(2, 2, CLASSES, 200, 200)
    wanted = TASK.distillation(ours[..., ::3, ::3], theirs[..., ::3, ::3])
    assert torch.equal(TASK.distillation(ours, theirs), wanted)


def test_small_objects_are_learned_beside_a_large_background():
    """A logistic regression on three of a thousand pixels, where the cross-entropy sees nothing."""
    torch.manual_seed(0)
    two = Segmentation(2)
    x = torch.randn(4, 1, 64, 64)
    labels = torch.zeros(4, 64, 64, dtype=torch.long)
    labels[:, 10:14, 10:13] = 1
    x[labels[:, None] == 1] += 2.5

    def learned(loss):
        weight, bias = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([weight, bias], 0.1)
        for _ in range(300):
            outputs = x * weight.view(1, 2, 1, 1) + bias.view(1, 2, 1, 1)
            optimizer.zero_grad()
            loss(outputs).backward()
            optimizer.step()
        return two.metric.percent(two.metric.observe(outputs.detach(), {"labels": labels}))

    alone = learned(lambda outputs: torch.nn.functional.cross_entropy(outputs, labels))
    assert learned(lambda outputs: two.loss(outputs, {"labels": labels})) > alone + 3


def test_the_task_is_read_from_what_it_says_of_itself():
    task = Segmentation.of(("background", "cat"), ("#000000", "#ff0080"))
    again = load_task(task.describe())
    assert (again.names, again.colours) == (task.names, task.colours)
    assert again == task == load_task(task.to_json())
    assert (task.outputs, task.dense, task.metric.key) == (2, True, "miou_percent")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "the key 'classes' is missing"),
        ({"classes": "many"}, "'many'"),
        ({"classes": 1}, "not from 2 to 255"),
        ({"classes": 300}, "not from 2 to 255"),
        ({"classes": 2, "colours": ["#000000"]}, "1 colours are given to 2 classes"),
        ({"classes": 2, "colours": ["#000000", "red"]}, "'red' is not written as #rrggbb"),
        ({"classes": 2, "colours": 3}, "colours are 3, no list"),
    ],
)
def test_what_is_no_task_is_one_line(wrong, words):
    with pytest.raises(UsageError) as error:
        load_task({"task": "segmentation", **wrong})
    assert words in str(error.value)
    assert error.value.fix


def test_answers_are_painted_but_for_the_background():
    task = Segmentation.of(("background", "cat"), ("#000000", "#ff0080"))
    painted = task.painted(torch.tensor([[0, 1], [1, IGNORED]], dtype=torch.uint8))
    assert painted.shape == (2, 2, 4)
    assert painted[0, 0, 3] == 0
    assert painted[0, 1, :3].tolist() == pytest.approx([1, 0, 128 / 255])
    assert painted[1, 1, 3] > 0
    colours = {default_colour(i) for i in range(255)}
    assert len(colours) == 255
    assert [default_colour(i) for i in (0, 1, 2, 255)] == [
        "#000000", "#800000", "#008000", "#e0e0c0",
    ]  # fmt: skip


def test_what_is_seen_is_said_with_the_share_of_the_picture():
    task = Segmentation.of(("background", "cat", "dog"))
    answers = np.zeros((1, 10, 10), int)
    answers[0, 0, :7] = 1
    meaning = task.meaning(logits_of(answers, 3), top=5)
    assert meaning.line == "background 93.0 %, cat 7.0 %"
    assert meaning.facts["answers"][1] == {"class": "cat", "percent": 7.0}
    assert task.meaning(logits_of(answers, 3), top=1).line == "background 93.0 %"
    labels = {"labels": torch.zeros(1, 10, 10)}
    assert task.caption(logits_of(answers, 3), labels) == "mIoU 46 %"


def test_every_pair_of_classes_is_told_apart():
    for right, answer in product(range(CLASSES), repeat=2):
        observed = seen(np.full((1, 2, 2), answer), np.full((1, 2, 2), right))
        assert METRIC.percent(observed) == (100 if right == answer else 0)
