"""Finals: the best candidates meet once more, on samples of the search split that chose none."""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import export_weights_alone, made_up_table, measure_as_predicted

import nas
from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.network.network import Network
from nas.records import Journal, read_json, write_json
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
    assert f"{FINAL} further images of that split decide" in page


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


def test_without_finals_the_best_expected_wins(settings, tmp_path):
    result = nas.search(out=tmp_path / "run", final_images=0, **settings)
    winner = result.answers[0].winner
    assert winner.final_percent is None
    assert not (tmp_path / "run" / "finals.jsonl").exists()
    fitting = [c.expected_percent for c in result.measured if c.measured_ms <= settings["budget"]]
    assert winner.expected_percent == pytest.approx(max(fitting))
    assert RunRecord.read(tmp_path / "run" / "run.json").final_images == 0


def test_finals_of_shipped_scores_are_known(settings, scenes, tmp_path):
    """What a supernet says of the same samples is believed; of other samples it is not."""
    supernet = shutil.copytree(settings["supernet"], tmp_path / "supernet")
    space = load_space("mobilenetv3:debug", scenes.task)
    card = read_json(supernet / "supernet.json")
    smallest = {"architecture": space.smallest.to_json(), "drawn": "smallest"}
    head = {
        "weights_fingerprint": card["fingerprint"], "data_fingerprint": scenes.fingerprint,
        "search_images": SEARCHED, "layer_code": layer_code("mobilenetv3"),
    }  # fmt: skip
    write_json(supernet / "scores.json", head)
    own = {**settings, "supernet": supernet, "evaluations": 2}
    for images, believed in ((FINAL, True), (FINAL + 1, False)):
        final = {"top1_percent": 99.0, "final_top1_percent": 98.0, "final_images": images}
        Journal(supernet / "scores.jsonl").write([smallest | final])
        result = nas.search(out=tmp_path / str(images), final_images=FINAL, **own)
        percents = {c.id: c.final_percent for c in result.measured}
        assert (percents[space.smallest.id] == 98.0) is believed
        assert (space.smallest.id in examined(tmp_path / str(images))) is not believed
