"""The main job end to end on a debug space: what it writes, keeps, and survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import export_weights_alone, made_up_table, measure_as_predicted

import nas
from nas import cli
from nas.budget import Budget, readable_ms
from nas.errors import (
    EvaluationError,
    InfeasibleError,
    RunError,
    TableError,
    UnknownNameError,
    UsageError,
)
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.latency import end_to_end
from nas.latency.table import LatencyTable
from nas.network.macs import count_params, sum_macs
from nas.records import Journal, read_json, write_json
from nas.report.report import write_report
from nas.report.saved_run import SavedRun, known_scores
from nas.run.known import shipped_scores
from nas.run.request import claimed_folder
from nas.run.stopwatch import Samples
from nas.settings import Settings
from nas.tasks.classification import Classification
from nas.versions import layer_code

SPACE = load_space("swin:debug", Classification(2))
KEYS = {
    "budget_ms", "space", "device", "seed", "run_dir", "evaluations", "proposals", "rejections",
    "feasible", "winner", "baselines", "front", "table", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    made_up_table(SPACE, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _as_predicted(table):
    """So no noise decides these tests; a real stopwatch is in those of the whole way."""
    with pytest.MonkeyPatch.context() as patch:
        measure_as_predicted(patch, nas.LatencyTable.load(table))
        yield


@pytest.fixture(autouse=True)
def _weights_alone(monkeypatch):
    """The run that is `finished` is made before this, and its winner exported in every format."""
    export_weights_alone(monkeypatch)


@pytest.fixture(scope="module")
def settings(table, photo_data, debug_supernet):
    trellis = nas.LatencyTable.load(table).trellis(SPACE)
    return dict(
        budget=Budget(0.75 * (trellis.fastest + trellis.slowest)), space="swin:debug", data=photo_data.name,
        supernet=debug_supernet, table=table, evaluations=6, search_images=10, test_images=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, nas.search(out=folder, **settings)


def test_the_result_has_the_documented_keys(finished, settings):
    _, result = finished
    assert result.keys() >= KEYS
    assert result["feasible"].keys() == {
        "fastest_ms",
        "slowest_ms",
        "architectures",
        "within_budget",
    }
    assert result["winner"].keys() >= {
        "architecture", "predicted_ms", "measured_ms", "measured_p95_ms",
        "search_top1_percent", "test_top1_percent",
    }  # fmt: skip
    assert result["table"].keys() >= {"mape_percent", "p95_percent", "kendall_tau"}
    assert result["seconds"].keys() >= {"table", "search", "measure", "report", "total"}
    assert {"largest dense", "best uniform sparsity", "best dense", "best of random draws"} == {
        b["name"] for b in result["baselines"]
    }
    assert result["feasible"]["architectures"] == 6656


def test_the_dense_baseline_has_as_many_evaluations_and_all_known_scores(
    finished, settings, tmp_path
):
    folder, result = finished
    dense = SPACE.restrict("sparsity", 0)

    def scored(run, origin):
        records = Journal(run / "candidates.jsonl").read()
        return {r["id"]: r for r in records if r["origin"] == origin}

    assert result["dense_evaluations"] == len(scored(folder, "dense")) == result["evaluations"] == 6
    assert result["dense_known"] == 0
    assert all(SPACE.parse(r["architecture"]) in dense for r in scored(folder, "dense").values())
    more = nas.search(out=tmp_path / "more", source_run=folder, **{**settings, "evaluations": 24})
    known = [SPACE.parse(r["architecture"]) for r in known_scores(folder, "top1")]
    assert more["dense_known"] == sum(a in dense for a in known) >= 6
    assert more["dense_evaluations"] == 24
    assert not scored(folder, "dense").keys() & scored(tmp_path / "more", "dense").keys()
    # The best of it is the best of all dense scores that are known, whoever asked for them.
    (best,) = (b for b in more["baselines"] if b["name"] == "best dense")
    everything = [*known_scores(tmp_path / "more", "top1")]
    table, budget = nas.LatencyTable.load(settings["table"]), settings["budget"].latency_ms
    fitting = [
        r["top1_percent"]
        for r in everything
        if not r["dropped"]
        and (a := SPACE.parse(r["architecture"])) in dense
        and table.predict(SPACE, a) <= table.limit(budget, 0.95)
    ]
    assert best["search_top1_percent"] <= max(fitting)
    page = (tmp_path / "more" / "report.html").read_text()
    assert f"besides {more['dense_known']} known scores of dense networks" in page


def test_the_winner_is_the_best_that_fits_as_measured(finished, settings):
    _, result = finished
    winner, budget = result["winner"], settings["budget"].latency_ms
    assert winner["upper_ms"] <= budget
    assert SPACE.domain.parse(winner["architecture"]) in SPACE
    fitting = [c["search_top1_percent"] for c in result["measured"] if c["measured_ms"] <= budget]
    assert winner["search_top1_percent"] >= max(fitting)


def test_everything_is_written_and_loads(finished):
    folder, result = finished
    names = {p.name for p in folder.iterdir()}
    assert names >= {"run.json", "settings.json", "candidates.jsonl", "front.csv", "cloud.csv",
                     "report.html", "pictures", "winner", "table", "measured.jsonl", "test.jsonl"}  # fmt: skip
    assert read_json(folder / "run.json") == json.loads(json.dumps(dict(result)))
    assert {p.name for p in (folder / "winner").iterdir()} >= {
        "architecture.json", "weights.safetensors", "model.pt2"}  # fmt: skip
    assert max(result["exported"]["differences"].values()) < 1e-4
    assert (
        SPACE.parse((folder / "winner" / "architecture.json").read_text()).id
        == result["winner"]["id"]
    )
    records = Journal(folder / "candidates.jsonl").read()
    assert sum(r["origin"] == "search" for r in records) == 6


def test_the_report_is_one_page_that_needs_nothing_else(finished, tmp_path):
    folder, result = finished
    page = (folder / "report.html").read_text()
    assert page.count("<svg") >= 4
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://matplotlib.org", "").replace(
        "http://purl.org", "").replace("http://creativecommons.org", "")  # fmt: skip
    assert "<script" not in page
    assert f"{readable_ms(result['winner']['measured_ms'])} ms" in page
    both = write_report([folder, folder], tmp_path / "both.html")
    assert both.read_text().count("Winner and baselines") == 1
    (folder / "report.html").unlink()
    assert write_report([folder]).exists()


def test_the_same_seed_gives_the_same_candidates(finished, settings, tmp_path):
    folder, _ = finished
    nas.search(out=tmp_path / "again", **settings)
    assert (tmp_path / "again" / "candidates.jsonl").read_text() == (
        folder / "candidates.jsonl"
    ).read_text()


@pytest.mark.slow
def test_a_killed_search_resumes_to_the_same_result(finished, settings, tmp_path):
    folder, result = finished
    again = tmp_path / "again"
    keywords = {
        k: str(v) for k, v in settings.items() if k in ("space", "data", "supernet", "table")
    }
    numbers = {k: v for k, v in settings.items() if isinstance(v, int)}
    call = f"nas.search({settings['budget'].latency_ms!r}, out={str(again)!r}, **{keywords | numbers!r}"
    code = f"import nas; {call})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while len(Journal(again / "candidates.jsonl").read()) < 4:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (again / "run.json").exists()
    resumed = nas.search(out=again, resume=True, **settings)
    assert (again / "candidates.jsonl").read_text() == (folder / "candidates.jsonl").read_text()
    points = [[(c["id"], c["predicted_ms"], c["search_top1_percent"]) for c in r["front"]]
              for r in (resumed, result)]  # fmt: skip
    assert points[0] == points[1]


@pytest.mark.parametrize("name", ["explicit", "fused"])
def test_a_resumed_run_is_measured_with_the_kernel_that_it_began_with(
    name, finished, settings, table, tmp_path, monkeypatch
):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "measured.jsonl").unlink()  # killed before it measured, resumed on another day
    known = {k: v for k, v in read_json(folder / "settings.json").items() if k != "check"}
    write_json(folder / "settings.json", {**known, "explicit_in_windows": name == "explicit"})
    asked, measure = [], end_to_end.measure_fresh

    def told(*arguments, kernel, **more):
        asked.append(kernel)
        return measure(*arguments, kernel=kernel, **more)

    monkeypatch.setattr(end_to_end, "measure_fresh", told)
    nas.search(out=folder, resume=True, **settings)
    assert set(asked) == {name}


def test_resume_refuses_other_settings_and_names_them(finished, settings):
    folder, _ = finished
    with pytest.raises(RunError, match="another evaluations"):
        nas.search(out=folder, resume=True, **{**settings, "evaluations": 7})


def test_an_existing_directory_is_not_overwritten(finished, settings):
    folder, _ = finished
    with pytest.raises(RunError, match="exists already; add --resume"):
        nas.search(out=folder, **settings)
    with pytest.raises(RunError, match="is not a run"):
        nas.search(out=folder / "winner", resume=True, **settings)


def test_a_directory_is_of_one_search_at_a_time(settings, tmp_path, monkeypatch):
    """The second one writes nothing; without a name each gets a directory of its own."""
    monkeypatch.chdir(tmp_path)
    asked = Settings(({"torch-cpu": 20.0},))
    with claimed_folder(asked, "one") as folder:
        with pytest.raises(RunError, match="another process is writing"):
            nas.search(out="one", **settings)
        assert [p.name for p in folder.iterdir()] == [".candidates.jsonl.lock"]
        write_json(folder / "settings.json", asked.to_json())
        (folder / "table").mkdir()
    with claimed_folder(asked, "one") as folder:  # nothing had been computed: it is begun anew
        assert [p.name for p in folder.iterdir()] == [".candidates.jsonl.lock"]
        write_json(folder / "settings.json", asked.to_json())
    for name in ("thesis.tex", "candidates.jsonl"):  # something else is in it, or was computed
        (folder / name).touch()
        with pytest.raises(RunError, match="exists already"), claimed_folder(asked, "one"):
            pass
        assert (folder / "settings.json").exists()
        (folder / name).unlink()
    at_once, chosen = threading.Barrier(8), []

    def choose():
        at_once.wait()
        with claimed_folder(asked, None) as folder:
            chosen.append(str(folder))
            at_once.wait()

    threads = [threading.Thread(target=choose) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = ["mobilevit-micro-320-20ms", *(f"mobilevit-micro-320-20ms-{i}" for i in range(2, 9))]
    assert sorted(chosen) == sorted(f"runs/{name}" for name in names)
    assert not list((tmp_path / "runs").iterdir())  # nothing came into them


def test_resume_without_a_name_takes_the_latest_run_of_the_same_budgets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def asked(*ms, **more):
        return Settings(tuple({"torch-cpu": x} for x in ms), **more)

    for i, (name, own) in enumerate({
        "a": asked(20.0), "b": asked(20.0, seed=1), "c": asked(20.0, 30.0), "d": asked(200.0),
        "e": asked(20.0, space="vit:micro"), "done": asked(20.0),
    }.items()):  # fmt: skip
        write_json(Path("runs") / name / "settings.json", own.to_json())
        os.utime(Path("runs") / name / "settings.json", (i, i))
    (Path("runs") / "done" / "report.html").touch()
    (Path("runs") / "damaged").mkdir()
    (Path("runs") / "damaged" / "settings.json").write_text("[")
    for own, folder in (
        (asked(20.0), "b"),
        (asked(20.0, 30.0), "c"),
        (asked(20.0, space="vit:micro"), "e"),
        (asked(2.0), "mobilevit-micro-320-2ms"),  # a new one
    ):
        with claimed_folder(own, None, resume=True) as found:
            assert found == Path("runs") / folder


def test_a_search_whose_scores_all_fail_names_the_cause(settings, tmp_path, monkeypatch, capfd):
    def score(*_):
        raise MemoryError("too large")

    few = {**settings, "evaluations": 3}
    scored = Evaluator.score
    monkeypatch.setattr(Evaluator, "score", score)
    with pytest.raises(EvaluationError, match=r"none of 3 .* MemoryError: too large .*; mend"):
        nas.search(out=tmp_path / "run", **few)
    largest = load_space("swin:debug", Classification(2)).largest
    monkeypatch.setattr(
        Evaluator, "score", lambda self, a, *r: (scored if a == largest else score)(self, a, *r)
    )
    with pytest.raises(EvaluationError, match=r"none of 3 .* MemoryError: too large"):
        nas.search(out=tmp_path / "run", resume=True, **few)
    seen = []

    def sometimes(self, architecture, *rest):
        seen.append(architecture)
        return (score if architecture == seen[0] else scored)(self, architecture, *rest)

    monkeypatch.setattr(Evaluator, "score", sometimes)
    assert nas.search(out=tmp_path / "run", resume=True, **few)["set_aside"] == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "1 of 3 candidates were set aside; the last: MemoryError: too large" in said


def test_an_impossible_budget_names_the_smallest(settings, tmp_path):
    with pytest.raises(InfeasibleError, match=r"smallest possible takes .* --budget") as error:
        nas.search(out=tmp_path / "none", **{**settings, "budget": "0.001ms"})
    assert error.value.exit_code == 3
    assert not (tmp_path / "none").exists()


def test_a_machine_slower_than_its_table_is_searched_further_inside(
    settings, table, tmp_path, monkeypatch, capfd
):
    budget = settings["budget"].latency_ms
    table = nas.LatencyTable.load(table)
    slower = budget / (1.1 * table.trellis(SPACE).fastest)
    measure_as_predicted(monkeypatch, table, slower, noise=0.1)
    few = {**settings, "budget": budget, "evaluations": 3}
    result = nas.search(out=tmp_path / "run", **few)
    assert "searching on within" in " ".join(capfd.readouterr().err.split())
    assert result["winner"]["measured_ms"] <= budget
    assert result["winner"]["predicted_ms"] <= budget / slower / 0.9
    resumed = nas.search(out=tmp_path / "run", resume=True, **few)
    same = ("winner", "front", "evaluations", "proposals", "rejections")
    assert result["rejections"].keys() >= {"duplicate", "over_budget"}
    assert [resumed[key] for key in same] == [result[key] for key in same]
    measure_as_predicted(monkeypatch, table, 40)
    with pytest.raises(InfeasibleError, match=r"measured over predicted: torch-cpu 40.00\)"):
        nas.search(out=tmp_path / "none", **few)
    assert Journal(tmp_path / "none" / "candidates.jsonl").read()


@pytest.mark.parametrize("budgets", [(1.0,), (1.0, 1.6)])
def test_on_a_machine_half_as_fast_everything_that_is_compared_is_measured(
    budgets, settings, table, tmp_path, monkeypatch, capsys
):
    """The kept table says half of what networks take: the search goes on further inside."""
    true = nas.LatencyTable.load(table)
    fit = true.manifest["calibration"]
    half = {**fit, "scale": fit["scale"] / 2, "overhead": fit["overhead"] / 2}
    LatencyTable(true.rows, {**true.manifest, "calibration": half}).save(tmp_path / "table")
    measure_as_predicted(monkeypatch, true)
    fastest, dense = true.trellis(SPACE).fastest, true.trellis(SPACE.restrict("sparsity", 0))
    words = [word for x in budgets for word in ("--budget", f"{1.06 * x * fastest:.9f}ms")]
    for name in ("space", "data", "supernet", "evaluations", "search_images", "test_images"):
        words += [f"--{name.replace('_', '-')}", str(settings[name])]
    words += ["--table", str(tmp_path / "table"), "--out", str(tmp_path / "run")]
    outputs = []
    for more in ([], ["--resume"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(["search", *words, *more])
        captured = capsys.readouterr()
        assert (stop.value.code or 0) == 0, captured.err
        outputs.append(captured.out.partition(" s in all")[0])
        record = read_json(tmp_path / "run" / "run.json")
        for answer in record["answers"]:
            assert answer["winner"]["measured_ms"] <= answer["budget_ms"]
            known = [*answer["baselines"], *answer["front"]]
            if dense.fastest <= answer["budget_ms"] / 1.1:
                assert {b["name"] for b in answer["baselines"]} >= {
                    "largest dense", "best dense", "best of random draws"
                }  # fmt: skip
            assert all(
                c["measured_ms"] == pytest.approx(2 * c["predicted_ms"], abs=2e-4) for c in known
            )
    assert "searching on within" in " ".join(captured.err.split())
    assert "largest dense" in captured.out
    first, again = (text.splitlines()[:-1] for text in outputs)
    assert first == again


def test_several_budgets_are_answered_from_one_run(settings, tmp_path):
    low = settings["budget"].latency_ms
    result = nas.search(out=tmp_path / "two", **{**settings, "budget": [low, 2 * low]})
    assert [a["budget_ms"] for a in result["answers"]] == [low, 2 * low]
    for answer in result["answers"]:
        assert answer["winner"]["upper_ms"] <= answer["budget_ms"]
        assert answer["feasible"]["within_budget"] <= 6656
        assert {b["name"] for b in answer["baselines"]} > {"largest dense", "best dense"}
        where = tmp_path / "two" / answer["exported"]["folder"]
        assert SPACE.parse((where / "architecture.json").read_text()).id == answer["winner"]["id"]
        assert (where / "weights.safetensors").exists()
    assert result["winner"] == result["answers"][0]["winner"]
    assert result["exported"]["folder"] == "winner"
    known = read_json(tmp_path / "two" / "settings.json")
    assert known["budgets"] == [{"torch-cpu": low}, {"torch-cpu": 2 * low}]
    rows = (tmp_path / "two" / "archive.csv").read_text().splitlines()
    assert rows[0].startswith("up_to_ms,id,predicted_ms,expected_top1_percent")
    assert len(rows) > 2


def test_another_run_answers_at_once_or_is_gone_on_from(finished, settings, tmp_path):
    folder, before = finished
    own = {k: v for k, v in settings.items() if k != "table"}
    again = nas.search(out=tmp_path / "again", source_run=folder, **own)
    assert again["evaluations"] == 0
    assert again["imported_scores"] == len(Journal(folder / "candidates.jsonl").read())
    assert not Journal(tmp_path / "again" / "candidates.jsonl").read()
    assert again["winner"]["search_top1_percent"] == before["winner"]["search_top1_percent"]
    more = nas.search(out=tmp_path / "more", source_run=folder, **{**own, "evaluations": 24})
    assert more["evaluations"] == 24
    new = {r["id"] for r in Journal(tmp_path / "more" / "candidates.jsonl").read()}
    assert not new & {r["id"] for r in Journal(folder / "candidates.jsonl").read()}
    with pytest.raises(RunError, match="another search_images"):
        nas.search(out=tmp_path / "no", source_run=folder, **{**own, "search_images": 12})
    with pytest.raises(RunError, match="is not a run"):
        nas.search(out=tmp_path / "no", source_run=tmp_path, **own)


def test_a_run_is_inspected_by_its_own_table_and_its_exported_folders_too(finished, capsys):
    folder, record = finished
    found = {}
    for what in (folder, folder / "winner"):
        with pytest.raises(SystemExit, match="0"):
            cli.main(["inspect", str(what), "--json"])
        found[what] = json.loads(capsys.readouterr().out)
    assert found[folder]["predicted_ms"] == record["winner"]["predicted_ms"]
    assert found[folder / "winner"]["predicted_ms"] is None  # no table of this space is known here
    assert len({own["params"] for own in found.values()}) == 1


def test_dense_networks_are_searched_where_those_of_another_run_do_not_answer(
    finished, settings, tmp_path
):
    folder, _ = finished
    base = shutil.copytree(folder, tmp_path / "base")
    journal = base / "candidates.jsonl"
    dense, lines = SPACE.restrict("sparsity", 0), journal.read_text().splitlines(keepends=True)
    pruned = [x for x in lines if SPACE.parse(json.loads(x)["architecture"]) not in dense]
    journal.write_text("".join(pruned))
    assert len(pruned) >= settings["evaluations"]
    own = {k: v for k, v in settings.items() if k != "table"}
    again = nas.search(out=tmp_path / "again", source_run=base, **own)
    assert again["evaluations"] == 0
    scored = Journal(tmp_path / "again" / "candidates.jsonl").read()
    assert {r["origin"] for r in scored} == {"largest", "dense"}
    assert again["dense_evaluations"] == settings["evaluations"]


def test_random_draws_are_counted_for_each_budget_and_with_those_of_the_run_before(
    finished, settings, tmp_path
):
    """Against the journals: what was drawn within each budget, and has a score of all images."""
    folder, before = finished
    low = settings["budget"].latency_ms
    drawn = {r["id"] for r in known_scores(folder, "top1") if r["origin"] == "random"}
    assert before.answers[0].random_draws == before["random_draws"] > 0
    assert drawn
    page = (folder / "report.html").read_text()
    assert f"The random baseline is the best of {before['random_draws']} draws." in page
    same = nas.search(out=tmp_path / "same", source_run=folder, **settings)
    assert same["evaluations"] == 0
    assert same.answers[0].random_draws == before.answers[0].random_draws
    assert same.answers[0].baseline("best of random draws") is not None
    table = nas.LatencyTable.load(settings["table"])
    budgets = [0.7 * low, low]
    own = {**settings, "budget": budgets, "evaluations": 3}
    again = nas.search(out=tmp_path / "again", source_run=folder, **own)
    own_scores = Journal(tmp_path / "again" / "candidates.jsonl").read()
    everything = {r["id"]: SPACE.parse(r["architecture"]) for r in known_scores(folder, "top1")}
    everything |= {r["id"]: SPACE.parse(r["architecture"]) for r in own_scores}
    drawn |= {r["id"] for r in own_scores if r["origin"] == "random"}
    for answer in again.answers:
        limit = table.limit(answer.budget_ms, 0.95)
        fits = {i for i in drawn if table.predict(SPACE, everything[i]) <= limit}
        # A draw that the search had scored as something else counts as well.
        assert len(fits) <= answer.random_draws <= len(fits) + 3
        assert (answer.baseline("best of random draws") is None) == (answer.random_draws == 0)


def test_scores_of_other_layers_are_not_gone_on_from(finished, settings, tmp_path):
    folder, _ = finished
    base = tmp_path / "base"
    base.mkdir()
    before = read_json(folder / "settings.json")
    write_json(base / "settings.json", {**before, "layer_code": "0" * 12})
    with pytest.raises(RunError, match="with another layer_code; search without --from"):
        nas.search(out=tmp_path / "no", source_run=base, **settings)


def test_shipped_scores_are_used_where_weights_layers_data_and_images_are_theirs(
    debug_supernet, photo_data, tmp_path, capfd
):
    folder = shutil.copytree(debug_supernet, tmp_path / "supernet")
    card = read_json(folder / "supernet.json")
    record = {"architecture": SPACE.largest.to_json(), "drawn": "random", "top1_percent": 50.0}
    Journal(folder / "scores.jsonl").append(record)
    head = {
        "weights_fingerprint": card["fingerprint"],
        "data_fingerprint": photo_data.fingerprint,
        "search_images": 10,
        "layer_code": layer_code("swin"),
    }
    write_json(folder / "scores.json", head)
    assert shipped_scores(folder, SPACE, card, photo_data, 10) == [record]
    assert not capfd.readouterr().err
    for key in head:
        write_json(folder / "scores.json", {**head, key: 0})
        assert shipped_scores(folder, SPACE, card, photo_data, 10) == []
        assert "they are not used" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"max_params": "5X"}, "cannot read '5X' as a number of max_params"),
        ({"max_macs": -1}, "max_macs must be a positive number, got -1"),
        ({"max_params": True}, "max_params must be a positive number"),
        ({"out": 3}, "out must be the path of a folder, got 3"),
        ({"evaluations": 0}, "evaluations must be a whole number, at least 1, got 0"),
        ({"evaluations": 2.5}, "evaluations must be a whole number"),
        ({"batch": "8"}, "batch must be a whole number"),
        ({"seed": None}, "seed must be a whole number"),
        ({"search_images": 3}, "search_images must be a whole number, at least 10"),
        ({"confidence": "high"}, "confidence must be a number"),
        ({"fresh": "no"}, "fresh must be True or False"),
        ({"data": 7}, "data must be e.g. 'scenes'"),
        ({"searcher": 3}, "searcher must be e.g. 'evolution'"),
        ({"workers": -1}, "workers must be a whole number, at least 0"),
        ({"timeout_s": 0}, "timeout_s must be a number, at least 1"),
        ({"evalutions": 3}, "unknown keyword of nas.search 'evalutions'; did you mean evaluations"),
        ({"latency": 3}, "unknown keyword of nas.search 'latency'"),
    ],
)
def test_from_python_settings_have_the_bounds_of_the_command_line(changed, match, tmp_path):
    with pytest.raises(UsageError, match=match) as error:
        nas.search("20ms", **{"out": tmp_path / "run", **changed})
    assert len(str(error.value)) < 300
    assert not any(tmp_path.iterdir())


def test_counts_may_be_text_from_python_too():
    asked = ({"cpu": 20.0},)
    assert Settings(asked, max_params="5M", max_macs="0.3G") == Settings(
        asked, max_params=5e6, max_macs=3e8
    )


def test_further_limits_hold_for_winner_and_candidates(settings, tmp_path):
    def params(architecture):
        return sum(count_params(layer) for layer in SPACE.layers(architecture))

    def macs(architecture):
        return sum_macs(SPACE.layers(architecture)).total

    most = (params(SPACE.smallest) + params(SPACE.largest)) / 2
    result = nas.search(out=tmp_path / "small", max_params=most, max_macs=macs(SPACE.largest) / 2,
                        **settings)  # fmt: skip
    for entry in [result["winner"], *result["front"]]:
        architecture = SPACE.parse(json.dumps(entry["architecture"]))
        assert params(architecture) <= most
        assert macs(architecture) <= macs(SPACE.largest) / 2
    with pytest.raises(InfeasibleError, match=r"at most parameters 10: the smallest possible"):
        nas.search(out=tmp_path / "none", max_params=10, **settings)
    result = nas.search(out=tmp_path / "large", min_params=most, max_params="1G", **settings)
    for entry in [result["winner"], *result["front"]]:
        assert params(SPACE.parse(json.dumps(entry["architecture"]))) >= most
    assert result["min_params"] == most
    with pytest.raises(
        InfeasibleError, match=r"parameters of at least 1e.12: the largest possible"
    ):
        nas.search(out=tmp_path / "none", min_params="1T", **settings)


def test_a_second_device_holds_too_and_is_called_predicted(settings, table, tmp_path):
    other = tmp_path / "board"
    shutil.copytree(table, other)
    trellis = nas.LatencyTable.load(other).trellis(SPACE)
    budget = (trellis.fastest + trellis.slowest) / 2
    result = nas.search(
        out=tmp_path / "run",
        **{**settings, "budget": [settings["budget"], Budget(budget, "board")],
           "table": [f"torch-cpu={table}", f"board={other}"]},
    )  # fmt: skip
    on = result["winner"]["other_devices"]["board"]
    assert on["predicted_ms"] <= budget
    assert on["measured_ms"] is None
    assert result["budgets"] == {"torch-cpu": settings["budget"].latency_ms, "board": budget}
    assert (tmp_path / "run" / "table-board" / "rows.csv").exists()


@pytest.mark.parametrize("searcher", ["nsga2", "random"])
def test_other_searchers_run_the_whole_way(searcher, settings, tmp_path):
    result = nas.search(out=tmp_path / "run", searcher=searcher, race_error=0.0, reuse_mb=0,
                        surrogate=False, **settings)  # fmt: skip
    assert result["evaluations"] == 6
    assert result["dropped"] == 0
    assert result["surrogate_rank_correlation"] is None


def test_the_rejection_sampler_works_and_counts(settings, tmp_path):
    fastest = nas.LatencyTable.load(settings["table"]).trellis(SPACE)
    budget = fastest.fastest + 0.4 * (fastest.slowest - fastest.fastest)
    result = nas.search(
        out=tmp_path / "r", **{**settings, "budget": budget, "sampler": "rejection"}
    )
    assert result["rejections"]["over_budget"] > 0


def test_unknown_names_are_refused_before_anything_runs(settings):
    for key, value in (("space", "swin:x"), ("device", "gpu"), ("sampler", "x"), ("data", "scens")):
        with pytest.raises(UnknownNameError):
            nas.search(**{**settings, key: value})
    with pytest.raises(UsageError):
        nas.search(**{**settings, "budget": "20"})


def test_the_upper_limit_of_a_median():
    """Order statistics: of 100 samples the 95 % limit of the median is about the 60th."""
    samples = Samples(tuple(float(i) for i in range(1, 101)))
    assert samples.median_ms == 50.5
    assert samples.upper_ms == 61.0
    assert Samples(()).upper_ms == float("inf")


def test_a_run_that_is_not_finished_has_no_report(tmp_path):
    with pytest.raises(RunError, match="vitnas search"):
        SavedRun.load(tmp_path)


@pytest.mark.parametrize("budget", [20.0, Budget(20.0, "board")])
def test_a_search_refuses_a_table_that_was_altered_by_hand(settings, table, tmp_path, budget):
    """That of this machine, and that of a board which is only the label of a table."""
    folder = Path(shutil.copytree(table, tmp_path / "table"))
    text = (folder / "rows.csv").read_text()
    row = text.splitlines()[1]
    (folder / "rows.csv").write_text(text.replace(row, row.replace(",0.00", ",0.01", 1)))
    with pytest.raises(TableError, match="was altered after it was measured; restore its files"):
        nas.search(out=tmp_path / "run", **{**settings, "budget": budget, "table": folder})
    assert not (tmp_path / "run").exists()
