"""Objectives, tasks, data and families of one's own go the whole way by the usual commands."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import export_weights_alone
from safetensors.torch import load_file

from nas import cli
from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import (
    Payload,
    Scorer,
    Scoring,
    cargo,
    load_scorer,
    rival_in,
    unpack,
    variance_in,
)
from nas.families import load_space
from nas.network.network import Network
from nas.records import Journal
from nas.training.objectives import load_objective
from nas.training.recipe import Recipe
from nas.training.trainer import fit

TOYS = Path(__file__).parent / "toys"
SHORT = Recipe(images=(64, 64, 64), batches=(8, 8, 8))
WAYS = {  # by what is one's own: the space, the data, the objective, and how many files it took
    "objective": ("toys.pointset:debug", "toys.clouds", "toys.average", ["average"]),
    "task": ("toys.pyramid:debug", "toys.squares", "supervised", ["pixels", "squares"]),
    "input": ("toys.pointset:debug", "toys.clouds", "supervised", ["pointset"]),
    "phases": ("toys.phased:debug", "toys.clouds", "supervised", ["phased"]),
}


def call(capsys, *words):
    """What a command prints as JSON."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert not ended.value.code, out + err
    return json.loads(out)


@pytest.mark.quiet  # a table of one round, of networks that take microseconds
@pytest.mark.parametrize("own", WAYS)
def test_what_is_ones_own_goes_the_whole_way(own, tmp_path, capsys, monkeypatch):
    space_name, data_name, objective, _ = WAYS[own]
    on, data = ["--space", space_name], ["--data", data_name]
    supernet, run, table = (tmp_path / name for name in ("supernet", "run", "table"))
    task = load_data(data_name).task
    metric, space = task.metric, load_space(space_name, task)

    learning = ["--objective", objective, "--images", 3000, "--out", supernet]
    card = call(capsys, "train", *on, *data, *learning)
    losses = [r["loss"] for r in Journal(supernet / "loss.jsonl").read()]
    assert losses[-1] < 0.8 * losses[0]
    assert card["training"]["objective"] == objective
    if objective == "supervised":  # else the head is as it was
        assert card[f"largest_search_{metric.key}"] > task.chance_percent + 20

    classes = ["--classes", 2] if own != "task" else []
    profiled = call(capsys, "profile", *on, "--rounds", 1, "--out", table, *classes)
    assert profiled["manifest"]["task"] == task.name

    limits = ["--evaluations", 4, "--search-images", 70, "--test-images", 32]
    with monkeypatch.context() as patched:
        export_weights_alone(patched)
        result = call(
            capsys, "search", "--budget=900ms", *on, *data, "--supernet", supernet,
            "--table", table, "--out", run, *limits,
        )  # fmt: skip
    assert result["evaluations"] == 4
    winner = space.parse(json.dumps(result["winner"]["architecture"]))
    assert 0 < result["winner"]["measured_ms"] < 900
    assert 0 <= result["winner"][f"test_{metric.key}"] <= 100

    assert call(capsys, "measure", run, "--rounds", 1)["measured_ms"] > 0
    assert metric.heading in Path(call(capsys, "report", run)["report"]).read_text()
    network = Network(space, winner).eval()
    params = sum(p.numel() for p in network.parameters())
    assert call(capsys, "inspect", run)["params"] == params

    formats = ["--format", "safetensors", "--format", "pt2"]
    exported = call(capsys, "export", run, *formats, "--out", tmp_path)
    assert max(exported["largest_difference"].values()) < 1e-3
    network.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    example = torch.randn(1, *space.example(winner))
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(example), network(example), rtol=1e-4, atol=1e-5)


def test_what_is_ones_own_is_one_file_or_two():
    """A task is two with its data; nothing elsewhere knows of them, nor asks what the task is."""
    assert {own: len(files) for own, (*_, files) in WAYS.items()} == {
        "objective": 1, "task": 2, "input": 1, "phases": 1,
    }  # fmt: skip
    assert all((TOYS / f"{name}.py").exists() for *_, files in WAYS.values() for name in files)
    for path in (TOYS.parents[1] / "nas").rglob("*.py"):
        text = path.read_text()
        assert "toys" not in text, path
        assert "task.name ==" not in text, path
        assert "Classification)" not in text.replace("import Classification)", ""), path


def test_weights_of_an_objective_are_trained_and_resumed_but_not_shipped(tmp_path):
    data, space = load_data("toys.clouds"), load_space("toys.pointset:debug")

    def trained(folder, **options):
        torch.manual_seed(0)
        network, own = Network(space, space.largest), load_objective("toys.average", space)
        before = own.readout.weight.detach().clone()
        fit(network, data, SHORT, own, folder, bf16=False, **options)  # which else is timed
        return network, own, before

    network, own, before = trained(tmp_path / "whole")
    assert not torch.equal(own.readout.weight, before)
    assert not any("readout" in name for name in network.state_dict())
    calls = iter(range(10**6))
    trained(tmp_path / "parts", stop=lambda: next(calls) == 9)
    again, same, _ = trained(tmp_path / "parts", resume=True)
    for ours, theirs in ((again, network), (same, own)):
        assert all(torch.equal(x, theirs.state_dict()[n]) for n, x in ours.state_dict().items())


@pytest.fixture
def evaluator():
    data = load_data("toys.squares")
    space = load_space("toys.pyramid:debug", data.task)
    torch.manual_seed(0)
    network = Network(space, space.largest).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Evaluator(network, data, data.search, 80)


def test_the_score_is_of_one_matrix_over_all_pixels(evaluator):
    """And not a mean over images, nor does it depend on the parts in which they are looked at."""
    network = evaluator.subnet(evaluator.network.space.largest)
    outputs, masks = evaluator.outputs(network), torch.as_tensor(evaluator.loaded["masks"])
    answers = outputs.argmax(1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    masks = masks[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    own = [((answers == c) & (masks == c), (answers == c) | (masks == c)) for c in (0, 1)]
    expected = 100 * np.mean([float(both.sum() / either.sum()) for both, either in own])
    scored = evaluator.score(network.architecture)
    assert scored.percent == pytest.approx(expected, rel=1e-6)
    assert scored.percent != pytest.approx(100 * scored.outcomes.mean(), rel=1e-3)
    parts = [
        evaluator.observed(network.architecture, *part) for part in ((0, 7), (7, 40), (40, 80))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), scored.observed)


def test_workers_race_by_outcomes_that_are_no_hits(evaluator):
    """A worker with a copy of everything gives the record that this process gives."""
    space = evaluator.network.space
    here = Scorer(evaluator, 0.9)
    settings = Scoring(space.name, space.task, 80, race_error=0.9)
    there = load_scorer(settings, pickle.loads(pickle.dumps(cargo(evaluator))))
    first = here(Payload(space.largest.to_json()))
    rival = rival_in(first)
    assert rival.startswith("float16:")
    assert unpack(rival, 80).shape == (80,)
    assert variance_in(first, space.task.metric) == first["variance"] > 0
    again = here(Payload(space.largest.to_json(), rival))
    assert not again["dropped"]  # equal to its rival, to the last digit that is written down
    assert again == there(Payload(space.largest.to_json(), rival)) == first
    better = rival_in({"outcomes": "float16:" + np.ones(80, "<f2").tobytes().hex()})
    worse = [scorer(Payload(space.smallest.to_json(), better)) for scorer in (here, there)]
    assert worse[0] == worse[1]
    assert worse[0]["dropped"]
    assert worse[0]["images"] == 64
