"""What a person sees of a run: words and numbers against what they stand for, and whole pages."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import statistics
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import export_weights_alone, made_up_table, measure_as_predicted
from scipy.stats import norm

import nas
import nas.run.main
from nas import cli
from nas.commands.search import _print_agreement as print_agreement
from nas.commands.search import _print_answer as print_answer
from nas.errors import RunError
from nas.families import load_space
from nas.records import Journal, read_json, write_json
from nas.report import wording as page
from nas.report.pictures import convergence
from nas.report.report import write_report
from nas.report.saved_run import SavedRun
from nas.report.schedules import schedule
from nas.run_record import RunRecord
from nas.settings import Settings
from nas.strategy.quality import Quality
from nas.tasks import load_task
from nas.tasks.classification import Classification
from nas.trellis.graph import Graph, decode
from nas.trellis.trellis import Trellis

SPACE = load_space("swin:debug", Classification(2))
NEW = ("answers", "budgets", "quality", "hypervolume", "dropped", "set_aside", "imported_scores",
       "verb", "limit_ms", "searcher", "batch", "surrogate", "race_error", "max_params", "max_macs",
       "source_run", "dense_evaluations", "dense_known")  # fmt: skip


@pytest.fixture(scope="module")
def finished(photo_data, debug_supernet, tmp_path_factory):
    """A run of two budgets whose networks take exactly what is predicted; weights alone exported."""
    folder = tmp_path_factory.mktemp("report")
    table = made_up_table(SPACE, folder / "table")
    trellis = table.trellis(SPACE)
    wide = round(trellis.fastest + trellis.slowest, 3)

    with pytest.MonkeyPatch.context() as patch:
        measure_as_predicted(patch, table)
        export_weights_alone(patch)
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
    quality = Quality(60.0, 1.0, 1.5, 0.0, 10, 5, 0.5)
    assert page.verdict(quality) == "within its error"
    assert page.verdict(replace(quality, gap=1.6)) == "more than its error"


def test_a_ladder_is_the_best_within_each_round_budget():
    rng = np.random.default_rng(0)
    archive = [
        (ms, percent) for ms, percent in zip(rng.uniform(0.7, 30, 40), rng.uniform(20, 80, 40))
    ]
    steps = page.ladder(archive, lambda ms: 0.9 * ms)
    rounded = [f * 10.0**d for d in (-1, 0, 1) for f in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)]
    for budget in rounded:
        fits = [percent for ms, percent in archive if ms <= 0.9 * budget]
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
    settings = Settings(**{**wanted, "budgets": tuple(wanted["budgets"])})
    found = {}

    def search_networks(budgets, **given):
        device = given["device"]
        found.update(given, budgets=nas.budget.alternatives(budgets, device))
        raise KeyboardInterrupt

    monkeypatch.setattr(nas.run.main, "search_networks", search_networks)
    line = page.command(settings)
    with pytest.raises(SystemExit):
        cli.main(shlex.split(line)[1:])
    assert {k: found[k] for k in wanted} == wanted
    assert all(list(b) == list(w) for b, w in zip(found["budgets"], wanted["budgets"]))


def test_a_command_says_only_what_is_not_a_default():
    """Of settings as version 0.1 recorded them, which had no finals."""

    def early_command(recorded):
        return page.command(Settings.from_json(recorded))

    assert early_command({"device": "torch-cpu", "budget_ms": 20.0}) == (
        "vitnas search --budget 20ms --final-images 0"
    )
    assert early_command({"device": "x", "budget_ms": 1.5, "source_run": "runs/a"}) == (
        "vitnas search --budget 1.5ms --device x --from runs/a --final-images 0"
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
        blocks = [b for stage in schedule(SPACE, architecture) for b in stage.blocks]
        rows = [layer for layer in SPACE.layers(architecture) if layer.path.endswith("_regular")]
        for block, sizes in zip(blocks, (row.sizes for row in rows), strict=True):
            across, rest = divmod(sizes["size"], sizes["window"])
            if not rest:  # a padded map has windows that are partly empty
                assert block.kept_percent == pytest.approx(100 * sizes["kept"] / across**2)
        found |= {block.fields["precision"] for block in blocks if block.kept_percent < 100}
    assert found == {"fp32", "int8"}


def test_the_answers_are_in_order_and_the_first_stays_the_one_exported(finished):
    run = SavedRun.load(finished)
    low, high = run.record.by_budget
    assert low.budget_ms < high.budget_ms == run.record["budget_ms"]
    assert run.winner().architecture.id == run.record["winner"]["id"]
    best = Fraction(high.quality.within_budget, 6656)
    assert 0 < best <= 1


def test_candidates_that_failed_or_lost_a_race_can_be_drawn(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "raced")
    journal = Journal(folder / "candidates.jsonl")
    records = journal.read()
    own = [record for record in records if record["origin"] == "search"]
    own[0]["dropped"] = True
    del own[1]["top1_percent"]
    own[1]["error"] = "out of memory"
    journal.path.unlink()
    for record in records:
        journal.append(record)
    run = SavedRun.load(folder)
    assert len(run.scored) == len(own) - 1
    assert [candidate.dropped for candidate in run.scored].count(True) == 1
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


def test_a_table_of_a_busy_machine_and_a_quantile_are_said(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "busy")
    result = read_json(folder / "run.json")
    assert "busy" not in write_report([folder]).read_text()
    result["table_manifest"]["held_up_percent"] = 44.4
    result["quantile"] = 0.9
    for answer in result["answers"]:
        answer["winner"]["measured_quantile_ms"] = 7.77
    write_json(folder / "run.json", result)
    text = write_report([folder]).read_text()
    assert "rounds on a busy machine (44 % of samples held up)" in text
    assert "p90 [ms]" in text
    assert "7.77" in text
    assert "measures in 90 % of inferences within" in text


def test_what_version_0_1_0_recorded_is_read_and_written_again():
    """The file is what version 0.1.0 wrote, its lists cut short; metric, task, counts of dense and quantile are new."""
    file = Path(__file__).parent / "run_of_version_0_1_0.json"
    record = RunRecord.read(file)
    again = dict(record)
    assert again.pop("metric") == {"name": "top1", "label": "top-1 accuracy", "heading": "top-1"}
    assert [again.pop(f"dense_{of}") for of in ("evaluations", "known")] == [None, None]
    assert again.pop("quantile") == 0.5
    (answer,) = again["answers"]
    assert answer.pop("random_draws") == again["random_draws"] == 12
    assert [own.pop("above_dense_error_points") for own in (answer, again)] == [None, None]
    assert json.dumps(again) == json.dumps(read_json(file))
    assert load_task(record.task) == Classification(2)
    assert page.headline(record).endswith("above the best dense network found within it.")


def test_a_record_is_the_same_after_it_was_written_and_read(finished):
    record = RunRecord.read(finished / "run.json")
    assert json.dumps(dict(record)) == json.dumps(read_json(finished / "run.json"))
    assert record.task["task"] == "classification"
    assert json.dumps(record) == json.dumps(dict(record))  # it is a dict, as people expect
    assert RunRecord.from_json(json.loads(json.dumps(record))) == record


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("winner", "measured_ms"), "fast", "winner.measured_ms must be a number, got 'fast'"),
        (("quality", "bound"), [1], "quality.bound must be a number, got [1]"),
        (("front",), {}, "front must be a list, got {}"),
        (("feasible", "architectures"), 1.5, "feasible.architectures must be of the type int"),
        (("winner", "upper_ms"), None, "the key answers[0].winner.upper_ms is missing"),
        (("exported",), 3, "exported must be an object, got 3"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_match_is_refused_in_one_line(path, value, problem, tmp_path):
    """It names the file, the key, and the version that wrote it."""
    recorded = read_json(Path(__file__).parent / "run_of_version_0_1_0.json")
    *parents, last = path
    inner = recorded["answers"][0]
    for key in parents:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    write_json(tmp_path / "run.json", recorded)
    with pytest.raises(RunError) as error:
        RunRecord.read(tmp_path / "run.json")
    assert problem in str(error.value)
    assert f"{tmp_path / 'run.json'}, written by vitnas 0.1.0:" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_of_version_0_1_still_has_its_page(finished, tmp_path):
    old = as_version_0_1(finished, tmp_path)
    text = write_report([old]).read_text()
    assert "not known" in text
    assert "Every budget from this run" not in text
    (answer,) = SavedRun.load(old).record.answers
    assert answer.quality.within_budget == answer.feasible.within_budget
    assert f"vitnas search --budget {answer.budget_ms:g}ms --space swin:debug" in text.replace(
        "<span>", "").replace("</span>", "")  # fmt: skip
    both = write_report([old, finished], tmp_path / "both.html").read_text()
    assert both.count("<h2>How good is the answer") == 1
    assert both.count("<h1>") == 2


@pytest.mark.parametrize("text", ["[" * 10**5, '{"winner": 3}', "[]", "{"])
def test_a_run_starts_from_one_whose_result_cannot_be_read_and_says_so(
    finished, photo_data, debug_supernet, tmp_path, monkeypatch, capfd, text
):
    """Its scores have checksums of their own; a report of it is refused."""
    folder = shutil.copytree(finished, tmp_path / "cut")
    (folder / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"cut/run\.json"):
        SavedRun.load(folder)
    table = made_up_table(SPACE, tmp_path / "table")
    measure_as_predicted(monkeypatch, table)
    export_weights_alone(monkeypatch)
    monkeypatch.setattr("nas.report.report.write_report", lambda *_: None)
    known = len(Journal(folder / "candidates.jsonl").read())
    result = nas.search(
        table.trellis(SPACE).slowest, space="swin:debug", data=photo_data.name,
        supernet=debug_supernet, table=tmp_path / "table", source_run=folder, evaluations=1,
        search_images=10, test_images=10, out=tmp_path / "run",
    )  # fmt: skip
    assert result["imported_scores"] == known
    assert "its scores are used all the same" in " ".join(capfd.readouterr().err.split())


def test_the_directory_of_an_earlier_version_is_reported_and_continued_or_refused(
    finished, photo_data, debug_supernet, tmp_path
):
    old = as_version_0_1(finished, tmp_path)
    assert write_report([old]).exists()
    before = read_json(old / "settings.json")
    for key in ("layer_code", "data_fingerprint"):
        before.pop(key)
    write_json(old / "settings.json", before)
    with pytest.raises(RunError, match="old was made with another data_fingerprint and layer_code"):
        nas.search(
            "20ms", space="swin:debug", data=photo_data.name, supernet=debug_supernet,
            table=finished / "table", source_run=old, search_images=10, out=tmp_path / "run",
        )  # fmt: skip


def test_accuracies_are_of_as_many_images_as_a_split_has(finished, photo_data, capsys):
    """Ten were asked for, and the split has two."""
    record = RunRecord.read(finished / "run.json")
    assert (record.search_images, record.test_images) == (2, 2)
    assert (photo_data.search.size, photo_data.test.size) == (2, 2)
    page = write_report([finished]).read_text()
    assert "Test: 2 images" in page
    assert "10 images" not in page
    print_answer(record.answers[0], record)
    shown = " ".join(capsys.readouterr().out.split())
    assert "few samples: 2 of the search split, 2 of the test split" in shown
    print_answer(record.answers[0], replace(record, search_images=400, test_images=500))
    assert "few samples" not in " ".join(capsys.readouterr().out.split())


def test_a_report_is_written_again_when_the_images_have_moved(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    before = write_report([run]).read_text()
    record = read_json(run / "run.json")
    write_json(run / "run.json", {**record, "data": f"imagefolder:{tmp_path}/gone"})
    after = write_report([run]).read_text()
    picture = re.findall(r'src="data:image/png;base64,[^"]+"', before)
    assert len(picture) == 1
    assert re.findall(r'src="data:image/png;base64,[^"]+"', after) == picture
    (run / "pictures" / "kept.png").unlink()
    assert "What each block looks at" not in write_report([run]).read_text()


def changed(folder, tmp_path, change):
    """A copy of a finished run whose `run.json` was changed."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    result = read_json(copy / "run.json")
    change(result)
    write_json(copy / "run.json", result)
    return copy


def test_a_table_is_judged_by_the_networks_that_the_run_measured(finished, tmp_path, capsys):
    """On the page and in the terminal; by hand, with the quantile of SciPy."""
    ratios = np.random.default_rng(0).uniform(0.9, 1.0, 500)

    def change(result):
        for c, ratio in zip(result["measured"], ratios):
            c["measured_ms"] = round(c["predicted_ms"] * ratio, 4)
        result["answers"][0]["feasible"]["slowest_ms"] = 9.9  # all of the other budget fits it

    folder = changed(finished, tmp_path, change)
    run, result = SavedRun.load(folder), read_json(folder / "run.json")
    bias, p95 = (result["table"][f"{of}_percent"] / 100 for of in ("bias", "p95"))
    inside, errors, seen = 0, [], []
    for c in result["measured"]:
        reach = norm.ppf(0.975) * max(p95, 0.001) / 1.96
        center = c["predicted_ms"] / (1 + bias)
        inside += center * (1 - reach) <= c["measured_ms"] <= center * (1 + reach)
        errors.append(100 * abs(c["predicted_ms"] / c["measured_ms"] - 1))
        seen.append(c["measured_ms"] / c["predicted_ms"])
    n = len(seen)
    assert 0 < n < len(ratios)
    line = (
        f"{n} networks of this run took {statistics.median(seen):.3f} of what the table predicted "
        f"(median): it erred by {statistics.mean(errors):.1f} % in the mean, and {inside} of {n} "
        "lie inside its 95 % interval"
    )
    assert page.agreed(run.agreement, run.record) == line
    text = write_report([folder]).read_text()
    made = text.partition("<h2>How it was made")[2]
    figure = text.partition("<h2>Predicted and measured")[2].partition("</figure>")[0]
    assert line in made
    assert "what differs between processes and hours" in made
    assert line in figure
    print_agreement(replace(run.record, agreement=run.agreement))
    shown = " ".join(capsys.readouterr().out.split())
    assert line in shown
    # What is left of each budget, by which the search could have aimed higher.
    faster = 1 - statistics.median(seen)
    assert f"networks ran {100 * faster:.1f} % faster than predicted" in shown
    for answer in run.record.by_budget:
        left = min(faster * answer.budget_ms, answer.budget_ms - answer.winner.measured_ms)
        said = f"{left:.2g} ms of {answer.budget_ms:g} ms" in shown
        assert said == (answer.feasible.slowest_ms > answer.limit_ms)
    slow = replace(run.agreement, ratio=1.02)
    assert page.unused(slow, run.record) == ""


def test_a_run_says_in_its_record_how_its_table_agrees(finished):
    result = read_json(finished / "run.json")
    assert result["agreement"]["networks"] == len(result["measured"])
    assert result["agreement"]["ratio"] == pytest.approx(1, abs=1e-3)  # measured as predicted
    assert result["agreement"]["mape_percent"] == pytest.approx(0, abs=0.1)
    assert SavedRun.load(finished).agreement == RunRecord.read(finished / "run.json").agreement
    assert all(a["winner"]["chance_within_budget"] == 1 for a in result["answers"])


def as_answer(record, winner, **baselines):
    """The record with one answer, of which winner and baselines are (ms, test percent, id)."""
    answer = record.answers[0]
    one = answer.baselines[0]

    def made(c, ms, percent, own):
        return replace(c, measured_ms=ms, test_percent=percent, id=own)

    others = tuple(
        replace(made(one, *own), name=name.replace("_", " "), difference_error_points=1.25)
        for name, own in baselines.items()
    )
    won = made(answer.winner, *winner)
    answer = replace(answer, winner=won, baselines=others, above_dense_error_points=1.55)
    return replace(record, answers=(answer,))


def test_the_lead_stands_with_its_error_in_headline_and_terminal(finished, tmp_path, capsys):
    run = RunRecord.read(finished / "run.json")
    record = as_answer(run, (9.0, 78.0, "w"), best_dense=(9.5, 75.6, "d"))
    assert page.headline(record).endswith(
        "; it is 2.4 ± 1.6 points above the best dense network found within it."
    )
    print_answer(record.answers[0], record)
    assert "the winner is 2.4 ± 1.6 points above the best dense" in capsys.readouterr().out
    unknown = replace(record.answers[0], above_dense_error_points=None)
    assert "; it is 2.4 points above" in page.headline(replace(record, answers=(unknown,)))

    def change(result):
        for answer in result["answers"]:
            answer["above_dense_error_points"] = 1.55
            answer["winner"]["test_top1_percent"] = 50.0
            for c in answer["baselines"]:
                c["test_top1_percent"] = 47.6
            answer["winner"]["id"] = "another"

    text = write_report([changed(finished, tmp_path, change)]).read_text()
    assert text.count("<td>+2.4 ± 1.6</td>") == len(run.answers)
    assert "that of a difference, written after ±, is of pairs" in text


def test_a_winner_that_prunes_nothing_is_called_dense(finished, tmp_path, capsys):
    run = RunRecord.read(finished / "run.json")
    record = as_answer(run, (9.0, 78.0, "w"), best_dense=(9.0, 78.0, "w"))
    assert page.headline(record).endswith(
        "; it is itself dense: the best dense network found within it."
    )
    assert "points" not in page.headline(record)
    print_answer(record.answers[0], record)
    shown = capsys.readouterr().out
    assert "winner, itself dense" in shown
    assert "the winner is itself dense: the best dense network." in shown

    def change(result):
        for answer in result["answers"]:
            (dense,) = (c for c in answer["baselines"] if c["name"] == "best dense")
            answer["winner"]["id"] = dense["id"]

    text = write_report([changed(finished, tmp_path, change)]).read_text()
    assert text.count("<td>winner, itself dense</td>") == len(run.answers)
    assert text.count("<td>is itself dense</td>") == len(run.answers)


@pytest.mark.parametrize(
    ("uniform", "drawn", "said"),
    [
        (
            (8.0, 79.6, "u"),
            (8.5, 79.0, "r"),
            "best uniform sparsity is faster and, on the test split, 1.6 ± 1.2",
        ),
        (
            (8.0, 78.5, "u"),
            (8.5, 79.0, "r"),
            "best of random draws is faster and, on the test split, 1.0 ± 1.2",
        ),
        ((9.1, 79.6, "u"), (8.5, 77.9, "r"), ""),  # slower; less accurate
        ((9.0, 79.6, "u"), (8.5, 78.0, "w"), ""),  # as fast; as accurate
    ],
)
def test_a_baseline_that_is_faster_and_better_is_said(finished, uniform, drawn, said):
    run = RunRecord.read(finished / "run.json")
    record = as_answer(
        run, (9.0, 78.0, "w"), best_uniform_sparsity=uniform, best_dense=(9.5, 75.6, "d"),
        best_of_random_draws=drawn,
    )  # fmt: skip
    assert page.better(record.answers[0]) == (
        f" The {said} points above the winner." if said else ""
    )
    assert page.headline(record).endswith(page.better(record.answers[0]))


def test_draws_are_said_where_there_are_any(finished):
    run = RunRecord.read(finished / "run.json")

    def drawn(*counts):
        answers = [replace(a, random_draws=n) for a, n in zip(run.answers, counts)]
        return page.draws(replace(run, answers=tuple(answers)))

    high, low = (answer.budget_ms for answer in run.answers)
    assert drawn(0, 0) == ""
    assert drawn(1200, 1200) == " The random baseline is the best of 1,200 draws."
    each = f"5 draws within {low:g} ms, 7 draws within {high:g} ms"
    assert drawn(7, 5) == f" The random baseline is the best of {each}."
    assert drawn(7, 0) == f" The random baseline is the best of 7 draws within {high:g} ms."


@pytest.mark.parametrize(
    ("threads", "said"), [(1, "1 thread, "), (4, "4 threads, "), (None, "batch 1")]
)
def test_threads_are_counted(finished, tmp_path, threads, said):
    folder = changed(finished, tmp_path, lambda r: r["device_described"].update(threads=threads))
    text = write_report([folder]).read_text()
    note = text.partition("in turn in a fresh process, ")[2]
    assert note.startswith(said)
    assert (text.count(" thread, ") + text.count(" threads, ")) == (2 if threads else 0)


def test_the_convergence_of_several_budgets_hides_nothing(finished):
    """The legend lies beside the panels, and the numbers of an axis are whole ones."""
    run = SavedRun.load(finished)
    volumes = tuple(0.6872 + 1e-5 * np.linspace(0, 1, len(run.record.hypervolume)))
    figure = convergence([replace(run, record=replace(run.record, hypervolume=volumes))])
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{answer.budget_ms:g} ms" for answer in run.record.by_budget
    ]
    for axes in figure.axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert axes.yaxis.get_offset_text().get_text() == ""
