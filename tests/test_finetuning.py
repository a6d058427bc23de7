"""Fine-tuning of a run's networks: what it starts from, what it changes, what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import export_weights_alone, searched
from safetensors.torch import load_file

import nas
import nas.run.finetuning
from nas import cli
from nas.errors import RunError, WeightsError
from nas.families import load_space
from nas.latency.end_to_end import Measurement
from nas.records import read_json, write_json
from nas.report.saved_run import SavedRun
from nas.run.finetuning import RECIPE, finetune
from nas.tasks.classification import Classification

SPACE = load_space("swin:debug", Classification(2))
SHORT = replace(RECIPE, images=(0, 0, 96), batches=(8, 8, 8))
STILL = replace(SHORT, learning_rate=0.0, weight_decay=0.0)


@pytest.fixture(scope="module")
def finished(photo_data, debug_supernet, tmp_path_factory):
    """A run of one budget, its weights alone exported."""
    folder = tmp_path_factory.mktemp("finetuning")
    return searched(SPACE, folder, photo_data, debug_supernet, evaluations=6)


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    """A copy of the run, on a device whose times are made up."""
    export_weights_alone(monkeypatch)
    monkeypatch.setattr(
        nas.run.finetuning, "measure_fresh",
        lambda device, space, found, *_, **__: [Measurement([3.0, 1.0, 2.0], [], 1.0)] * len(found),
    )  # fmt: skip
    return shutil.copytree(finished, tmp_path / "run")


def test_without_a_rate_everything_stays_as_inherited(run):
    found = finetune(run, recipe=STILL)
    record = SavedRun.load(run).record
    rival = record.answers[0].baseline("best dense")
    wanted = {c.id: c for c in (record.answers[0].winner, rival) if c}
    assert {own.id for own in found.networks} == wanted.keys()
    for own in found.networks:
        assert own.search_percent == own.inherited_search_percent == wanted[own.id].search_percent
        assert own.test_percent == own.inherited_test_percent == wanted[own.id].test_percent
        assert own.measured_ms == 2.0
    ours, theirs = (load_file(run / f / "weights.safetensors") for f in ("finetuned", "winner"))
    same = [name for name in theirs if not name.endswith("clip")]
    assert all(torch.equal(ours[name], theirs[name]) for name in same)


def test_training_changes_the_weights_and_the_report_says_both_accuracies(run, monkeypatch):
    assert "no network was fine-tuned" in (run / "report.html").read_text()
    found = finetune(run, recipe=SHORT)
    assert found == SavedRun.load(run).finetuned
    ours, theirs = (load_file(run / f / "weights.safetensors") for f in ("finetuned", "winner"))
    assert not all(torch.equal(ours[name], theirs[name]) for name in theirs)
    page = (run / "report.html").read_text()
    assert "no network was fine-tuned" not in page
    assert "96 images of the train split" in page
    assert found.networks[0].folder == "finetuned"
    assert not (run / "finetuning").exists()
    with pytest.raises(RunError, match="is fine-tuned already"):
        finetune(run, recipe=SHORT)
    monkeypatch.setattr(nas.run.finetuning, "train_alone", lambda *_, **__: pytest.fail("trained"))
    assert finetune(run, recipe=SHORT, resume=True) == found  # there is nothing to go on with


def test_a_stopped_training_goes_on_to_the_same_weights(run, finished, tmp_path):
    calls = iter(range(10**6))
    assert finetune(run, recipe=SHORT, checkpoint_s=0, stop=lambda: next(calls) == 7) is None
    assert not (run / "finetuned.json").exists()
    with pytest.raises(RunError, match="--resume"):
        finetune(run, recipe=SHORT)
    resumed = finetune(run, recipe=SHORT, resume=True)
    other = shutil.copytree(finished, tmp_path / "other")
    whole = finetune(other, recipe=SHORT)
    assert replace(resumed, seconds=0.0) == replace(whole, seconds=0.0)
    ours, theirs = (load_file(r / "finetuned" / "weights.safetensors") for r in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_command_prints_both_and_trains_the_winner_alone_on_request(run, capsys):
    with_another_rival(run)
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(["finetune", str(run), "--images", "32", "--no-dense", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == 32
    assert len(printed["networks"]) == 1
    assert {"inherited_test_top1_percent", "test_top1_percent"} <= printed["networks"][0].keys()
    assert "No dense network was fine-tuned" in (run / "report.html").read_text()


def test_other_images_or_another_supernet_are_refused(run, debug_supernet, tmp_path):
    settings = read_json(run / "settings.json")
    write_json(run / "settings.json", settings | {"data_fingerprint": "0" * 12})
    with pytest.raises(RunError, match="have changed"):
        finetune(run)
    write_json(run / "settings.json", settings | {"supernet": str(tmp_path / "gone")})
    with pytest.raises(WeightsError, match="no finished supernet"):
        finetune(run)
    write_json(run / "settings.json", settings)
    record = read_json(run / "run.json")
    record["supernet"]["fingerprint"] = "0" * 12
    write_json(run / "run.json", record)
    with pytest.raises(RunError, match="holds other weights"):
        finetune(run)


def test_a_winner_that_is_dense_is_its_own_comparison(run):
    answer = SavedRun.load(run).record.answers[0]
    assert answer.winner.id == answer.baseline("best dense").id
    assert len(finetune(run, recipe=STILL).networks) == 1
    assert "No dense network was fine-tuned" not in (run / "report.html").read_text()


@pytest.mark.parametrize("above", [5.0, -5.0])
def test_the_teacher_is_the_largest_unless_that_is_worse(run, monkeypatch, above):
    """Points of the largest network above the winner, as both are expected."""
    record = read_json(run / "run.json")
    for answer in (record, *record["answers"]):
        answer["winner"]["expected_top1_percent"] = 50.0
        for baseline in answer["baselines"]:
            baseline["expected_top1_percent"] = 50.0 + above
    write_json(run / "run.json", record)
    taught = []

    def fit(network, *_, teacher, **__):
        taught.append((network.architecture, teacher.architecture))

    monkeypatch.setattr(nas.run.finetuning, "fit", fit)
    assert finetune(run, recipe=SHORT, dense=False) is None
    [(student, teacher)] = taught
    assert teacher == (SPACE.largest if above > 0 else student)
    assert student != SPACE.largest


def with_another_rival(run):
    """The largest network takes the place of the best dense one, which is the winner itself."""
    record = read_json(run / "run.json")
    for answer in (record, *record["answers"]):
        others = answer["baselines"]
        (largest,) = (b for b in others if b["name"] == "largest dense")
        answer["baselines"] = [
            largest | {"name": "best dense"} if b["name"] == "best dense" else b for b in others
        ]
    write_json(run / "run.json", record)


def test_the_best_dense_network_is_trained_as_long(run):
    with_another_rival(run)
    winner, rival = finetune(run, recipe=SHORT).networks
    assert (winner.name, rival.name) == ("winner", "best dense")
    assert (winner.folder, rival.folder) == ("finetuned", "")
    assert "No dense network was fine-tuned" not in (run / "report.html").read_text()
