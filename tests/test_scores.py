"""Scores of features: knn and probe against arithmetic of their own, and a search by each."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from conftest import DEBUG_SPACES, export_weights_alone, made_up_table, measure_as_predicted

import nas
from nas.data import load_data
from nas.errors import UnknownNameError, UsageError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import Payload, Scorer, Scoring, cargo, load_scorer
from nas.families import load_space
from nas.network.calibration import calibrate
from nas.network.network import Network, embedding
from nas.records import read_json
from nas.scores import load_score, score_names
from nas.scores.knn import Nearest
from nas.scores.probe import STRENGTHS, Probe, ridge
from nas.tasks.embedding import Embedding
from nas.training.supernet import save_supernet


def clusters(count, width, seed, spread=2.0):
    """Features and labels (count,) of three overlapping clouds, one of which is rare."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=(0.45, 0.45, 0.1))
    centres = np.random.default_rng(0).normal(0, 1, (3, width))
    features = centres[labels] + spread * rng.normal(0, 1, (count, width))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def votes_by_hand(features, labels, queries, k=20, temperature=0.07):
    """The class of each query by the definition, sample by sample, in float64."""
    bank = features.double().numpy()
    answers = []
    for query in queries.double().numpy():
        cosines = bank @ query / (np.linalg.norm(bank, axis=1) * np.linalg.norm(query))
        votes = np.zeros(int(labels.max()) + 1)
        for i in np.argsort(-cosines)[:k]:
            votes[labels[i]] += np.exp(cosines[i] / temperature)
        answers.append(votes.argmax())
    return np.array(answers)


@pytest.mark.parametrize("references", [7, 20, 300])
def test_votes_of_neighbours_are_those_of_the_definition(references):
    features, labels = clusters(references, 8, seed=1)
    queries, truth = clusters(200, 8, seed=2)
    metric = Nearest(references).fitted(features, {"labels": labels})
    hits = metric.observe(queries, {"labels": truth})
    answers = votes_by_hand(features, labels, queries)
    assert (hits == (answers == truth.numpy())).all()
    assert 0.4 < hits.mean() < 1  # neither trivial nor chance
    share = hits.mean()
    assert metric.percent(hits) == pytest.approx(100 * share)
    assert metric.variance(hits) == pytest.approx(1e4 * share * (1 - share) / 200)
    assert metric.outcomes(hits) is hits


def ridge_by_hand(x, y, strength):
    """Weights and offsets by least squares: rows that pull each weight to 0, offsets free."""
    scaled = (x - x.mean(0)) / x.std(0)
    n, d = scaled.shape
    penalty = np.hstack([np.sqrt(strength * n) * np.eye(d), np.zeros((d, 1))])
    rows = np.vstack([np.hstack([scaled, np.ones((n, 1))]), penalty])
    targets = np.vstack([y, np.zeros((d, y.shape[1]))])
    weights = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return lambda z: np.hstack([(z - x.mean(0)) / x.std(0), np.ones((len(z), 1))]) @ weights


@pytest.mark.parametrize("width", [5, 60])  # fewer and more columns than samples
def test_the_probe_is_ridge_regression_of_least_error_on_left_out_samples(width):
    features, labels = clusters(40, width, seed=3)
    x, y = features.double(), torch.nn.functional.one_hot(labels).double()
    for strength in (1e-3, 1.0, 100.0):
        weights = ridge(x, y, (strength,))
        ours = x @ weights[:-1] + weights[-1]
        wanted = ridge_by_hand(x.numpy(), y.numpy(), strength)(x.numpy())
        np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-9)

    def left_out(strength):
        """The error on each sample of a fit without it, at the scale and penalty of all."""
        scaled = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
        total, penalty = 0.0, np.diag([strength * len(x)] * width + [0.0])
        for i in range(len(x)):
            rows = np.delete(np.hstack([scaled, np.ones((len(x), 1))]), i, 0)
            weights = np.linalg.solve(rows.T @ rows + penalty, rows.T @ np.delete(y.numpy(), i, 0))
            total += np.square(y.numpy()[i] - np.append(scaled[i], 1) @ weights).sum()
        return total

    best = min(STRENGTHS, key=left_out)
    torch.testing.assert_close(ridge(x, y), ridge(x, y, (best,)))
    assert STRENGTHS[0] < best < STRENGTHS[-1]
    metric = Probe(40).fitted(features, {"labels": labels})
    queries, truth = clusters(100, width, seed=4)
    answers = ridge_by_hand(x.numpy(), y.numpy(), best)(queries.double().numpy()).argmax(1)
    assert (metric.observe(queries, {"labels": truth}) == (answers == truth.numpy())).all()


def test_a_column_that_never_changes_is_no_harm():
    features, labels = clusters(30, 4, seed=5)
    features[:, 2] = 3.0
    weights = ridge(features.double(), torch.nn.functional.one_hot(labels).double())
    assert weights.isfinite().all()


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_features_of_a_classifier_are_what_its_last_layer_reads(name):
    """For every family, also when it is deployed and in any size."""
    torch.manual_seed(0)
    space = load_space(name)
    network = Network(space, space.largest).eval()
    calibrate(network, torch.randn(4, *space.example(space.largest)))
    seen = []
    for architecture in (space.largest, space.smallest, space.draw(Random(1))):
        plain = network.inherit(architecture).deploy()
        features = embedding(plain)
        assert features.space.task == Embedding()
        inputs = torch.randn(2, *space.example(architecture))
        with torch.no_grad():
            made = features(inputs)
            logits = plain(inputs)
        head = plain.layers["head"]
        last = getattr(head, "fc2", None) or head.fc
        with torch.no_grad():
            torch.testing.assert_close(last(made), logits, atol=1e-5, rtol=1e-4)
        seen.append(made.shape[1])
    assert seen[0] >= seen[1]
    assert embedding(features) is features


@pytest.fixture(scope="module")
def supernet(photo_data):
    torch.manual_seed(0)
    space = load_space("vit:debug", photo_data.task)
    network = Network(space, space.largest).eval()
    calibrate(network, torch.randn(4, *space.example(space.largest)))
    return network


@pytest.mark.parametrize("score", ["knn", "probe"])
def test_workers_and_races_see_what_the_evaluator_sees(score, supernet, photo_data, tmp_path):
    metric = load_score(score, photo_data, tmp_path, 9)
    data = photo_data
    evaluator = Evaluator(supernet, data, data.train, 12, metric=metric)
    own = supernet.space.draw(Random(2))
    whole = evaluator.score(own)
    assert whole.images == 12
    parts = [evaluator.observed(own, 0, 5), evaluator.observed(own, 5, 12)]
    assert (np.concatenate(parts) == whole.observed).all()
    assert (whole.observed == evaluator.observed_by(evaluator.subnet(own).deploy())).all()
    settings = Scoring("vit:debug", data.task, 12)
    remote = load_scorer(settings, cargo(evaluator))
    here = Scorer(evaluator, 0.05)
    payload = Payload(own.to_json())
    assert remote(payload) == here(payload)
    assert here(payload)[f"{score}_percent"] == whole.percent
    # By hand: features of the subnet for the references and the samples.
    plain = embedding(supernet.inherit(own)).eval()
    first = data.first(data.train, 12, supernet.space.largest.resolution)
    with torch.no_grad():
        made = plain(supernet.space.parts.resized(first["images"], own.resolution))
    fitted = metric.fitted(made[:9], {"labels": first["labels"][:9]})
    assert (fitted.observe(made, first) == whole.observed).all()


def test_what_a_score_needs_is_said_in_one_line(photo_data, tmp_path):
    assert {"knn", "probe"} <= set(score_names())
    with pytest.raises(UnknownNameError, match="did you mean knn"):
        load_score("knm", photo_data, tmp_path, 9)
    unlabelled = replace(photo_data, task=Embedding())
    for name in ("knn", "probe"):
        with pytest.raises(UsageError, match=r"has no labels.*give --data with a class"):
            load_score(name, unlabelled, tmp_path, 9)
        with pytest.raises(UsageError, match="is for segmentation"):
            load_score(name, load_data("scenes:masks"), tmp_path, 9)
    with pytest.raises(UnknownNameError, match="score"):
        nas.search("20ms", score="knm")
    with pytest.raises(UsageError, match="reference_images"):
        nas.search("20ms", reference_images=0)


@pytest.mark.parametrize("task", ["classification", "embedding"])
def test_a_search_by_neighbours_says_so_everywhere(task, photo_data, tmp_path, monkeypatch):
    """Of a classifier, and of a supernet that has no score of its own."""
    torch.manual_seed(0)
    own = Embedding() if task == "embedding" else photo_data.task
    space = load_space("vit:debug", own)
    save_supernet(tmp_path / "supernet", Network(space, space.largest).eval(), photo_data, {})
    table = made_up_table(space, tmp_path / "table")
    trellis = table.trellis(space)
    measure_as_predicted(monkeypatch, table)
    export_weights_alone(monkeypatch)

    def run(folder, **more):
        return nas.search(
            round(trellis.fastest + trellis.slowest, 3), space=space.name, data=photo_data.name,
            supernet=tmp_path / "supernet", table=tmp_path / "table", evaluations=4,
            search_images=10, test_images=10, out=tmp_path / folder, **more,
        )  # fmt: skip

    record = run("run", score="knn", reference_images=8)
    written = read_json(tmp_path / "run" / "run.json")
    assert written["metric"]["name"] == "knn"
    assert written["reference_images"] == 8
    assert 0 <= written["winner"]["search_knn_percent"] <= 100
    assert 0 <= written["winner"]["test_knn_percent"] <= 100
    assert "search_top1_percent" not in json.dumps(written)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "test kNN" in report
    assert "8 labelled" in report
    # The figure on the test split is that of the same score, of the network that was exported.
    network = nas.load_run(tmp_path / "run").winner() if hasattr(nas, "load_run") else None
    assert network is None or network.space.task.name == task
    assert record.task["task"] == task
    again = run("again", source_run=tmp_path / "run", score="knn", reference_images=8)
    assert again.imported_scores
    with pytest.raises(nas.VitnasError, match="another reference_images"):
        run("other", source_run=tmp_path / "run", score="knn", reference_images=9)
    if task == "embedding":
        with pytest.raises(UsageError, match="--score knn"):
            run("unscored")
