"""Finals: the best candidates meet once more, on samples of the search split that chose none."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import export_weights_alone, made_up_table, measure_as_predicted
from scipy.stats import sem

import nas
from nas.data import load_data
from nas.errors import RunError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import AccuracyRecord
from nas.families import load_space
from nas.network.network import Network
from nas.records import Journal, read_json, write_json
from nas.run.contest import on_all
from nas.run.examination import Examined
from nas.run.scores import Candidate
from nas.run_record import RunRecord
from nas.training.supernet import load_supernet, save_supernet
from nas.versions import layer_code

SEARCHED, FINAL = 12, 40


@pytest.fixture(scope="module")
def scenes():
    return load_data("scenes")


@pytest.fixture(scope="module")
def settings(scenes, tmp_path_factory):
    space = load_space("mobilenetv3:debug", scenes.task)
    folder = tmp_path_factory.mktemp("finals")
    torch.manual_seed(0)
    save_supernet(folder / "supernet", Network(space, space.largest).eval(), scenes, {})
    made_up_table(space, folder / "table")
    trellis = nas.LatencyTable.load(folder / "table").trellis(space)
    return dict(
        budget=0.6 * (trellis.fastest + trellis.slowest), space=space.name, data="scenes",
        supernet=folder / "supernet", table=folder / "table", evaluations=8,
        search_images=SEARCHED, test_images=10,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(settings, monkeypatch):
    measure_as_predicted(monkeypatch, nas.LatencyTable.load(settings["table"]))
    export_weights_alone(monkeypatch)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        measure_as_predicted(patch, nas.LatencyTable.load(settings["table"]))
        export_weights_alone(patch)
        return folder, nas.search(out=folder, final_images=FINAL, **settings)


def examined(folder):
    return {r["id"]: r for r in Journal(folder / "finals.jsonl").read()}


def test_finals_are_the_samples_after_those_of_the_search(run, settings, scenes):
    folder, result = run
    network, _ = load_supernet(settings["supernet"], result.space, scenes)
    evaluator = Evaluator(network, scenes, scenes.search, SEARCHED + FINAL)
    for candidate in (result.answers[0].winner, *result.answers[0].baselines[1:]):
        own = network.space.domain.parse(candidate.architecture)
        hits = evaluator.observed(own)[SEARCHED:]
        assert candidate.final_percent == pytest.approx(100 * hits.mean())
        assert examined(folder)[candidate.id]["images"] == FINAL == len(hits)
    assert result.final_images == FINAL
    assert "final" in result.seconds
    page = (folder / "report.html").read_text()
    assert f"are scored on {FINAL} further images of that split" in page


def test_the_winner_has_the_best_mean_over_all_its_samples(run):
    """Of everything that was in the finals, weighted by the number of samples of each part."""
    folder, result = run
    expected = {c.id: c.expected_percent for c in result.measured}
    means = {
        name: SEARCHED * expected[name] + FINAL * record["top1_percent"]
        for name, record in examined(folder).items()
    }
    assert len(means) >= 4
    assert means[result.answers[0].winner.id] == pytest.approx(max(means.values()), abs=0.1)
    dense = [c for c in result.measured if c.name == "best dense" and c.id in means]
    chosen = result.answers[0].baseline("best dense")
    assert means[chosen.id] == pytest.approx(max(means[c.id] for c in dense), abs=0.1)


def test_a_resumed_run_examines_nothing_again(run, settings):
    folder, result = run
    (folder / "run.json").unlink()
    before = (folder / "finals.jsonl").read_bytes()
    again = nas.search(out=folder, final_images=FINAL, resume=True, **settings)
    assert again.answers[0].winner == result.answers[0].winner
    assert (folder / "finals.jsonl").read_bytes() == before


def test_the_lead_has_the_error_of_pairs(run, settings, scenes, tmp_path):
    """By the standard error of the mean of SciPy, on what each network answers to each image."""
    folder, result = run
    network, _ = load_supernet(settings["supernet"], result.space, scenes)
    evaluator = Evaluator(network, scenes, scenes.test, result.test_images)
    (answer,) = result.answers

    def hits(candidate):
        return evaluator.observed(network.space.domain.parse(candidate.architecture))

    for baseline in answer.baselines:
        pairs = 100.0 * hits(answer.winner) - 100.0 * hits(baseline)
        gain = answer.winner.test_percent - baseline.test_percent
        assert pairs.mean() == pytest.approx(gain)
        assert baseline.difference_error_points == pytest.approx(sem(pairs, ddof=0), abs=1e-4)
    dense = answer.baseline("best dense")
    assert result["above_dense_error_points"] == dense.difference_error_points
    kept = {r["id"]: r["hits"] for r in Journal(folder / "test.jsonl").read()}
    assert kept[dense.id] == np.packbits(hits(dense)).tobytes().hex()
    # Journals of before they were kept are gone on with, and the error then is not known.
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "run.json").unlink()
    for name in ("test", "finals"):
        records = Journal(old / f"{name}.jsonl").read()
        (old / f"{name}.jsonl").unlink()
        Journal(old / f"{name}.jsonl").write(
            [{k: v for k, v in r.items() if k not in ("hits", "check")} for r in records]
        )
    again = nas.search(out=old, final_images=FINAL, resume=True, **settings)
    assert again["above_dense_error_points"] is None
    assert again.answers[0].winner.test_percent == answer.winner.test_percent


def test_pairs_say_more_than_each_accuracy_alone():
    """Three of four samples each, by hand: as right on the same ones, or on others."""
    right = np.array([True, True, True, False] * 25)
    one, other = (Examined(75.0, 4.33, (), x) for x in (right, np.roll(right, 1)))
    assert one.difference_error_points(one) == 0
    assert one.difference_error_points(other) == pytest.approx(100 * 0.5**0.5 / 10)
    assert one.difference_error_points(Examined(75.0, 4.33)) is None


@pytest.mark.parametrize(
    ("hits", "whole"), [("ff00", True), ("", True), ("ff", False), ("zz00", False)]
)
def test_hits_are_of_as_many_images_as_their_record_says(hits, whole, tmp_path):
    journal = Journal(tmp_path / "finals.jsonl")
    journal.write([{"id": "a", "images": 16, "top1_percent": 50.0, "hits": hits}])
    with nullcontext() if whole else pytest.raises(RunError, match="line 1: "):
        assert len(journal.read(AccuracyRecord, "top1")) == 1


def test_without_finals_the_best_expected_wins(settings, tmp_path):
    result = nas.search(out=tmp_path / "run", final_images=0, **settings)
    winner = result.answers[0].winner
    assert winner.final_percent is None
    assert not (tmp_path / "run" / "finals.jsonl").exists()
    fitting = [c.expected_percent for c in result.measured if c.measured_ms <= settings["budget"]]
    assert winner.expected_percent == pytest.approx(max(fitting))
    assert RunRecord.read(tmp_path / "run" / "run.json").final_images == 0


def test_the_rest_of_a_cut_journal_is_examined_again(run, settings, tmp_path):
    folder, result = run
    cut = shutil.copytree(folder, tmp_path / "run")
    (cut / "run.json").unlink()
    first, *others = (cut / "finals.jsonl").read_text().splitlines(keepends=True)
    (cut / "finals.jsonl").write_text(first + others[0][:20])
    again = nas.search(out=cut, final_images=FINAL, resume=True, **settings)
    assert again.answers[0].winner == result.answers[0].winner
    assert examined(cut) == examined(folder)


def test_a_run_knows_the_finals_of_the_run_that_it_starts_from(run, settings, tmp_path):
    folder, result = run
    own = {**settings, "evaluations": 2, "out": tmp_path / "run", "source_run": folder}
    again = nas.search(final_images=FINAL, **own)
    assert not examined(tmp_path / "run").keys() & examined(folder).keys()
    assert again.answers[0].winner.final_percent >= result.answers[0].winner.final_percent - 1e-9


@pytest.mark.parametrize(("first", "second"), [(70.0, 76.0), (76.0, 70.0)])
def test_finals_count_by_their_samples(first, second):
    """400 samples at 80 and 78 %, and 800 in the finals: by hand."""
    found = [
        on_all(Candidate("candidate", own, 1.0, 0.0, expected), {own: Examined(final, 1.0)}, 400, 800)
        for own, expected, final in ((1, 80.0, first), (2, 78.0, second))
    ]  # fmt: skip
    assert found == pytest.approx(
        [(400 * 80 + 800 * first) / 1200, (400 * 78 + 800 * second) / 1200]
    )
    assert (found[1] > found[0]) == (second > first)
    assert on_all(Candidate("candidate", 1, 1.0, 0.0, 80.0), {}, 400, 800) == 80.0


@pytest.fixture
def scored(settings, scenes, tmp_path):
    """The supernet with a score and a final of its smallest network beside the weights."""
    supernet = shutil.copytree(settings["supernet"], tmp_path / "supernet")
    space, card = (
        load_space("mobilenetv3:debug", scenes.task),
        read_json(supernet / "supernet.json"),
    )
    head = {
        "weights_fingerprint": card["fingerprint"], "data_fingerprint": scenes.fingerprint,
        "search_images": SEARCHED, "layer_code": layer_code("mobilenetv3"),
    }  # fmt: skip
    write_json(supernet / "scores.json", head)
    write_json(
        supernet / "supernet.json", card | {"largest_test": {"images": 10, "top1_percent": 97.0}}
    )
    smallest = {"architecture": space.smallest.to_json(), "drawn": "smallest", "top1_percent": 99.0}
    Journal(supernet / "scores.jsonl").write([smallest])
    return supernet, space


def test_finals_of_shipped_scores_are_known(scored, settings, tmp_path):
    """What lies beside the weights is believed of the same samples, and of no others."""
    supernet, space = scored
    own = {**settings, "supernet": supernet, "evaluations": 2}
    for images, believed in ((FINAL, True), (FINAL + 1, False)):
        final = {"id": space.smallest.id, "top1_percent": 98.0, "images": images}
        Journal(supernet / "finals.jsonl").write([final])
        result = nas.search(out=tmp_path / str(images), final_images=FINAL, **own)
        percents = {c.id: c.final_percent for c in result.measured}
        assert (percents[space.smallest.id] == 98.0) is believed
        assert (space.smallest.id in examined(tmp_path / str(images))) is not believed
        assert result.answers[0].baseline("largest dense").test_percent == 97.0


def test_nothing_is_believed_of_pictures_of_another_size(scored, settings, tmp_path, capsys):
    supernet, base = scored
    size = base.largest.resolution // 2
    space = load_space(f"mobilenetv3:debug@{size}", load_data("scenes").task)
    table = made_up_table(space, tmp_path / "table")
    trellis = table.trellis(space)
    with pytest.MonkeyPatch.context() as patch:
        measure_as_predicted(patch, table)
        own = {
            **settings, "supernet": supernet, "space": space.name, "table": tmp_path / "table",
            "evaluations": 2, "budget": 0.6 * (trellis.fastest + trellis.slowest),
        }  # fmt: skip
        result = nas.search(out=tmp_path / "run", final_images=0, **own)
    assert "the shipped scores are of another size" in capsys.readouterr().err
    assert result.shipped_scores == 0
    assert result.answers[0].baseline("largest dense").test_percent != 97.0
