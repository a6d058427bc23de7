"""What a person sees of a run: words and numbers against what they stand for, and whole pages."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest
from conftest import made_up_table, measure_as_predicted

import nas
import nas.run.main
from nas import cli, export
from nas.export import export_network
from nas.families import load_space
from nas.records import read_json, write_json
from nas.report import wording as page
from nas.report.report import Run, _schedule, write_report
from nas.settings import Settings
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph, decode
from nas.trellis.trellis import Trellis

SPACE = load_space("swin:debug", Classification(2))
NEW = ("answers", "budgets", "quality", "hypervolume", "dropped", "set_aside", "imported_scores",
       "verb", "limit_ms", "searcher", "batch", "surrogate", "race_error", "max_params", "max_macs",
       "source_run")  # fmt: skip


@pytest.fixture(scope="module")
def finished(photo_data, debug_supernet, tmp_path_factory):
    """A run of two budgets whose networks take exactly what is predicted; weights alone exported."""
    folder = tmp_path_factory.mktemp("report")
    table = made_up_table(SPACE, folder / "table")
    trellis = table.trellis(SPACE)
    wide = round(trellis.fastest + trellis.slowest, 3)

    def export_weights(network, images, expected, where, formats):
        return export_network(network, images, expected, where, ["safetensors"])

    with pytest.MonkeyPatch.context() as patch:
        measure_as_predicted(patch, table)
        patch.setattr(export, "export_network", export_weights)
        nas.search(
            [2 * wide, wide], space="swin:debug", data=photo_data.name, supernet=debug_supernet,
            table=folder / "table", evaluations=6, search_images=10, test_images=10,
            out=folder / "run", max_params=1e6,
        )  # fmt: skip
    return folder / "run"


def as_version_0_1(folder, tmp_path):
    """The same run as it was recorded before several budgets could be given."""
    old = shutil.copytree(folder, tmp_path / "old")
    for name in ("run.json", "settings.json"):
        record = read_json(old / name)
        write_json(old / name, {k: v for k, v in record.items() if k not in NEW})
    (old / "archive.csv").unlink()
    return old


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (9_999_999, "9,999,999"),
        (12_345_678, "1.2 \N{MULTIPLICATION SIGN} 10⁷"),
        (99_999_999, "1.0 \N{MULTIPLICATION SIGN} 10⁸"),
        (37 * 10**400, "3.7 \N{MULTIPLICATION SIGN} 10⁴⁰¹"),
    ],
)
def test_counts_are_written_to_be_read(n, text):
    assert page.number(n) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 10, "none"), (10, 10, "100 %"), (1, 10, "10 %"), (1, 16, "1 in 16"),
        (3, 10**6, "1 in 333,333"), (10**300, 10**320, "1 in 1.0 \N{MULTIPLICATION SIGN} 10²⁰"),
    ],
)  # fmt: skip
def test_the_share_of_draws_that_fit_is_written_to_be_read(part, whole, text):
    assert page.odds(part, whole) == text


def test_a_gap_says_something_only_beyond_the_error():
    assert page.verdict({"gap": 1.0, "error": 1.5}) == "within its error"
    assert page.verdict({"gap": 1.6, "error": 1.5}) == "more than its error"


def test_a_ladder_is_the_best_within_each_round_budget():
    rng = np.random.default_rng(0)
    archive = [
        {"predicted_ms": ms, "expected_top1_percent": top}
        for ms, top in zip(rng.uniform(0.7, 30, 40), rng.uniform(20, 80, 40))
    ]
    steps = page.ladder(archive, lambda ms: 0.9 * ms)
    rounded = [f * 10.0**d for d in (-1, 0, 1) for f in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
    for budget in rounded:
        fits = [r["expected_top1_percent"] for r in archive if r["predicted_ms"] <= 0.9 * budget]
        shown = [best for step, best in steps if step <= budget * (1 + 1e-9)]
        assert bool(fits) == bool(shown)
        if fits:
            assert max(fits) == pytest.approx(shown[-1], abs=0.05)
    assert [best for _, best in steps] == sorted({best for _, best in steps})


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"budgets": [{"torch-cpu": 20.0}, {"torch-cpu": 12.5}]},
        {"budgets": [{"npu,clock=2": 8.0, "torch-cpu": 20.0}, {"npu,clock=2": 4.0, "torch-cpu": 20.0}]},
        {"data": "imagefolder:my photos", "max_params": 2.5e6, "max_macs": 123_456.0, "seed": 3},
        {"searcher": "tpe", "sampler": "rejection", "batch": 64, "race_error": 0.0,
         "confidence": 0.9, "fresh": True, "evaluations": 500},
        {"surrogate": False, "space": "vit:micro", "supernet": "a/b", "search_images": 100},
    ],
)  # fmt: skip
def test_the_command_of_a_run_makes_the_same_settings(changed, monkeypatch, capsys):
    """Read back by the command line itself."""
    wanted = {f.name: f.default for f in fields(Settings)}
    wanted |= {"budgets": [{"torch-cpu": 20.0}], **changed}
    found = {}

    def search_networks(budgets, **given):
        device = given["device"]
        found.update(given, budgets=nas.budget.alternatives(budgets, device))
        raise KeyboardInterrupt

    monkeypatch.setattr(nas.run.main, "search_networks", search_networks)
    line = page.command(wanted)
    with pytest.raises(SystemExit):
        cli.main(shlex.split(line)[1:])
    assert {k: found[k] for k in wanted} == wanted
    assert all(list(b) == list(w) for b, w in zip(found["budgets"], wanted["budgets"]))


def test_a_command_says_only_what_is_not_a_default():
    assert page.command({"device": "torch-cpu", "budget_ms": 20.0}) == "vitnas search --budget 20ms"
    assert page.command({"device": "x", "budget_ms": 1.5, "source_run": "runs/a"}) == (
        "vitnas search --budget 1.5ms --device x --from runs/a"
    )


def test_the_page_tells_every_budget(finished):
    result, text = read_json(finished / "run.json"), (finished / "report.html").read_text()
    for answer in result["answers"]:
        assert f"within {answer['budget_ms']:g} ms" in text
        assert f"{answer['winner']['measured_ms']:.2f}" in text
        q = answer["quality"]
        assert page.odds(q["within_budget"], q["architectures"]) in text
    for title in ("How good is the answer", "Every budget from this run", "The winners"):
        assert text.count(f"<h2>{title}") == 1
    assert "(of 1 M allowed)" in text
    assert "undefined" not in text
    assert "None" not in text


def test_the_schedule_of_any_precision_says_how_many_windows_a_block_keeps():
    """By the row's own count of windows; int8 layers have no ranges here, and need none."""
    graph = Graph.of(SPACE)
    paths = Trellis(graph, lambda _: 0.0).within(0.0, ticks=1).sample(40, np.random.default_rng(0))
    found = set()
    for path in paths:
        architecture = decode(SPACE, path)
        blocks = [b for stage in _schedule(SPACE, architecture) for b in stage["blocks"]]
        rows = [layer for layer in SPACE.layers(architecture) if layer.path.endswith("_regular")]
        for block, sizes in zip(blocks, (row.sizes for row in rows), strict=True):
            across, rest = divmod(sizes["size"], sizes["window"])
            if not rest:  # a padded map has windows that are partly empty
                assert block["kept"] == pytest.approx(100 * sizes["kept"] / across**2)
        found |= {block["fields"]["precision"] for block in blocks if block["kept"] < 100}
    assert found == {"fp32", "int8"}


def test_the_answers_are_in_order_and_the_first_stays_the_one_exported(finished):
    run = Run.load(finished)
    assert run.answers[0]["budget_ms"] < run.answers[1]["budget_ms"] == run.result["budget_ms"]
    assert run.winner().architecture.id == run.result["winner"]["id"]
    best = Fraction(run.answers[1]["quality"]["within_budget"], 6656)
    assert 0 < best <= 1


def test_candidates_that_failed_or_lost_a_race_can_be_drawn(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "raced")
    lines = (folder / "candidates.jsonl").read_text().splitlines()
    own = [i for i, line in enumerate(lines) if json.loads(line)["origin"] == "search"]
    lost, failed = (json.loads(lines[i]) for i in own[:2])
    lines[own[0]] = json.dumps({**lost, "dropped": True})
    del failed["top1_percent"]
    lines[own[1]] = json.dumps({**failed, "error": "out of memory"})
    (folder / "candidates.jsonl").write_text("\n".join(lines) + "\n")
    run = Run.load(folder)
    assert len(run.scored()) == len(own) - 1
    assert [r.get("dropped") for r in run.scored()].count(True) == 1
    assert write_report([folder]).exists()


def test_another_device_is_never_called_measured_when_it_is_not(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "others")
    result = read_json(folder / "run.json")
    one, two = result["answers"]
    one["winner"]["other_devices"] = {
        "npu": {"budget_ms": 8.0, "predicted_ms": 7.5, "measured_ms": 7.75, "verb": "modelled"}
    }
    two["winner"]["other_devices"] = {
        "phone": {"budget_ms": 9.0, "predicted_ms": 8.5, "measured_ms": None, "verb": "measured"}
    }
    write_json(folder / "run.json", result)
    text = write_report([folder]).read_text()
    table = text.partition("On other devices</h2>")[2].partition("</table>")[0]
    assert "<td>7.75 modelled</td>" in table
    assert "<td>8.50</td><td>not measured</td>" in table


def test_a_run_of_version_0_1_still_has_its_page(finished, tmp_path):
    old = as_version_0_1(finished, tmp_path)
    text = write_report([old]).read_text()
    assert "not known" in text
    assert "Every budget from this run" not in text
    (answer,) = Run.load(old).answers
    assert answer["quality"]["within_budget"] == answer["feasible"]["within_budget"]
    assert f"vitnas search --budget {answer['budget_ms']:g}ms --space swin:debug" in text.replace(
        "<span>", "").replace("</span>", "")  # fmt: skip
    both = write_report([old, finished], tmp_path / "both.html").read_text()
    assert both.count("<h2>How good is the answer") == 1
    assert both.count("<h1>") == 2
