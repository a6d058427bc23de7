"""The command line as scripts and people meet it."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_overloads

import pytest
import typer

import nas
from nas import cli
from nas.budget import Budget, alternatives, parse_count, readable_ms
from nas.commands import listings
from nas.data import load_data
from nas.entry import search
from nas.errors import UsageError
from nas.extensions import load_member
from nas.families import load_space, model_names
from nas.problem.search import search_space
from nas.records import read_json, write_json
from nas.run.main import search_networks
from nas.run.request import read_budgets
from nas.settings import Distribution, Settings
from nas.trellis.graph import space_layers

OPTIONS = {
    "search": {"--budget", "--task", "--space", "--data", "--device", "--confidence", "--quantile", "--max-params",
               "--max-macs", "--min-params", "--min-macs", "--supernet", "--table", "--out", "--resume", "--from", "--fresh",
               "--evaluations", "--search-images", "--final-images", "--test-images", "--score", "--reference-images", "--searcher", "--sampler",
               "--batch", "--surrogate", "--race-error", "--workers", "--ray-address",
               "--gpus-per-worker", "--task-timeout", "--reuse-mb", "--finetune", "--seed", "--json"},
    "profile": {"--space", "--device", "--classes", "--out", "--rounds", "--minutes", "--context", "--from", "--rows", "--again",
                "--json"},
    "audit": {"--json"},
    "import": {"--out", "--format", "--unit", "--device", "--json"},
    "train": {"--task", "--space", "--data", "--out", "--images", "--rate", "--init", "--adapt", "--teacher", "--objective",
              "--device", "--resume", "--seed", "--json"},
    "finetune": {"--images", "--rate", "--dense", "--resume", "--seed", "--json"},
    "report": {"--out", "--json"},
    "measure": {"--space", "--device", "--classes", "--rounds", "--out", "--json"},
    "export": {"--format", "--out", "--batch", "--space", "--data", "--supernet", "--weights", "--json"},
    "predict": {"--top", "--labels", "--out", "--json"},
    "quantize": {"--space", "--data", "--supernet", "--weights", "--images", "--calibration",
                 "--train", "--rate", "--out", "--json"},
    "inspect": {"--space", "--resolution", "--device", "--classes", "--json"},
    "macs": {"--models", "--resolutions", "--out", "--json"},
    "list": {"--json", "--out"},
}  # fmt: skip


CONTRADICTORY = [f"--budget={name}={ms}ms" for name in ("a", "b") for ms in (1, 2)]
BAD = {  # options of a search, and what the line that refuses them must say
    ("--budget=20",): "has no unit",
    ("--budget=ssh=",): "cannot read the budget 'ssh='",
    ("--budget=ssh://pi@x=",): "--budget 20ms",
    (*CONTRADICTORY,): "give several budgets for one device only",
    ("--budget=20ms", "--max-params=5X"): "e.g. 5M, 300k or 1.5G",
    ("--budget=20ms", "--min-params=-3M"): "not a positive number of parameters",
    ("--budget=20ms", "--min-params=6M", "--max-params=5M"): "lower min_params, or raise max",
    ("--budget=20ms", "--max-macs=-3M"): "not a positive number of MACs",
    ("--budget=20ms", "--searcher=evolutoin"): "did you mean evolution?",
    ("--budget=20ms", "--confidence=1.5"): "e.g. 0.95",
    ("--budget=20ms", "--confidence=0.9999999999999999"): "from 0.5 to 0.999999",
    ("--budget=20ms", "--quantile=95"): "at most 0.99, got 95",
    ("--budget=20ms", "--race-error=1"): "e.g. 0.05",
    ("--budget=20ms", "--seed=-1"): "at least 0",
    ("--budget=20ms", "--gpus-per-worker=1"): "add --workers",
    ("--budget=20ms", "--task=segmentatoin"): "did you mean segmentation",
    ("--budget=20ms", "--batch=0"): "greater than or equal to 1; see vitnas search --help",
    ("--budget=20ms", "--sampler=grid"): "'trellis', 'rejection'; see vitnas search --help",
    ("--budjet=20ms",): "--budget",
    ("--budget=20ms", "--from=nowhere"): "nowhere is not a run; give --from the directory of a run",
}


def call(capsys, *arguments):
    """Exit code, stdout and stderr of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_the_commands_and_their_options_are_these():
    group = typer.main.get_command(cli.app)
    found = {
        name: {o for p in command.params for o in p.opts if o.startswith("--")} - {"--help"}
        for name, command in group.commands.items()
    }
    assert found == OPTIONS


def test_settings_are_the_same_in_their_classes_in_python_and_on_the_command_line():
    """Names and defaults of `nas.search`, its overloads and `vitnas search`, against the classes."""
    settings = {
        f.name: f.default for kind in (Settings, Distribution) for f in fields(kind) if f.metadata
    }
    assert len(settings) == len(fields(Settings)) - 1 + len(fields(Distribution))

    def keywords(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    own = keywords(search_networks)
    assert {"device", "table", "out", "resume"} == own.keys() - settings.keys()
    assert {name: own[name] for name in settings} == settings
    networks, problem = get_overloads(search)
    assert keywords(networks).keys() == own.keys()
    assert keywords(problem).keys() == {"space", "latency", "score", *keywords(search_space)}
    command = typer.main.get_command(cli.app).commands["search"]
    defaults = {p.name: p.default for p in command.params}
    assert {name: defaults[name] for name in settings} == settings
    assert defaults["device"] == own["device"]


def test_a_task_is_another_default_for_space_and_data(monkeypatch, capsys):
    """What is given beside it counts, also where it is the usual default."""
    asked = []
    monkeypatch.setattr(
        "nas.run.main.search_networks", lambda *a, **given: asked.append(given) or 1 / 0
    )
    usual = {"space": Settings.space, "data": Settings.data}
    masks = {"space": "efficientvit:seg-micro", "data": "scenes:masks"}
    for words, wanted in (
        ([], usual),
        (["--task", "classification"], usual),
        (["--task", "segmentation"], masks),
        (["--task=segmentation", "--space", Settings.space], {**masks, "space": Settings.space}),
        (["--data", "masks:x", "--task", "segmentation"], {**masks, "data": "masks:x"}),
    ):
        call(capsys, "search", "--budget=20ms", *words)
        assert {name: asked[-1][name] for name in usual} == wanted
    for task in ("segmentation", "classification"):
        own = {**usual, **load_member("task", "nas.tasks", task, "TASK").usual}
        space = load_space(own["space"], load_data(own["data"]).task)
        assert space.task.name == task


def test_an_unknown_keyword_of_a_search_is_named():
    """By the name that the user called, not that of a function inside, and with the nearest one."""
    with pytest.raises(UsageError, match=r"nas.search 'evaluatoins'; did you mean evaluations\?"):
        nas.search("20ms", evaluatoins=3)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_has_one_sentence_and_an_example(command, capsys):
    code, text, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"Example: vitnas {command}" in text


def test_help_listings_and_refusals_import_neither_torch_nor_ray():
    calls = [["--help"], ["list", "devices"], ["list", "runs"]]
    calls += [["search", *options] for options in BAD]
    code = (
        "import sys; from nas import cli\n"
        f"for words in {calls}:\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("options", BAD)
def test_bad_options_of_a_search_are_one_line_with_the_fix(options, capsys):
    code, out, err = call(capsys, "search", *options)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert BAD[options] in err


def test_the_help_of_a_search_reads_at_80_columns(capsys, monkeypatch):
    """Options that go together stand together, whatever is new among them."""
    monkeypatch.setenv("COLUMNS", "80")
    code, text, _ = call(capsys, "search", "--help")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    order = re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
    for together in (
        ["--budget", "--task", "--space", "--data", "--device"],
        ["--confidence", "--quantile", "--max-params", "--max-macs", "--min-params", "--min-macs"],
        ["--out", "--resume", "--from", "--fresh"],
        ["--evaluations", "--search-images", "--final-images", "--test-images"],
        ["--searcher", "--sampler", "--batch", "--surrogate", "--race-error"],
        ["--workers", "--ray-address", "--gpus-per-worker", "--task-timeout", "--reuse-mb"],
    ):
        start = order.index(together[0])
        assert order[start : start + len(together)] == together


def test_import_nas_is_light_and_complete():
    code = "import sys, nas; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    import nas

    assert nas.__all__ == sorted(nas.__all__)
    assert all(getattr(nas, name) is not None for name in nas.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nas.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("text", "ms"), [("20ms", 20), ("1.5 ms", 1.5), ("250us", 0.25), ("250µs", 0.25), ("2s", 2000)]
)
def test_budgets_are_read(text, ms):
    assert Budget.parse(text).latency_ms == pytest.approx(ms)


@pytest.mark.parametrize(
    ("ms", "text"),
    [(20.0, "20.00"), (0.1, "0.10"), (0.0999, "0.0999"), (0.0123456, "0.0123"), (1e-3, "0.001"),
     (0.0, "0.00"), (None, "-")],
)  # fmt: skip
def test_a_time_of_any_size_is_read_to_two_digits(ms, text):
    assert readable_ms(ms) == text


@pytest.mark.parametrize(
    ("text", "device", "ms"),
    [
        ("20ms", "", 20),
        ("ethos-u85-256=8ms", "ethos-u85-256", 8),
        ("ssh://pi@x,threads=4=40ms", "ssh://pi@x,threads=4", 40),
        ("torch-cpu,dtype=bfloat16 = 1s", "torch-cpu,dtype=bfloat16", 1000),
    ],
)
def test_budgets_name_their_device(text, device, ms):
    budget = Budget.parse(text)
    assert budget == Budget(ms, device)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["20ms"], [{"here": 20}]),
        (["20ms", "12ms", "20ms"], [{"here": 20}, {"here": 12}]),  # one by one, each once
        (["20ms", "npu=8ms"], [{"here": 20, "npu": 8}]),  # together
        (["npu=8ms", "20ms"], [{"npu": 8, "here": 20}]),  # searched on the first
        (["npu=8ms", "20ms", "12ms"], [{"here": 20, "npu": 8}, {"here": 12, "npu": 8}]),
        (["here=20ms", "12ms"], [{"here": 20}, {"here": 12}]),
    ],
)
def test_budgets_are_answered_one_by_one_or_hold_together(texts, wanted):
    found = alternatives(map(Budget.parse, texts), "here")
    assert [list(answer.items()) for answer in found] == [list(a.items()) for a in wanted]


def test_budgets_that_can_be_combined_in_many_ways_are_refused():
    texts = ["a=1ms", "b=1ms", "a=2ms", "b=2ms"]
    with pytest.raises(UsageError, match="a and b"):
        alternatives(map(Budget.parse, texts), "here")
    with pytest.raises(UsageError, match="needs a budget"):
        alternatives([], "here")


@pytest.mark.parametrize(
    ("text", "count"), [("5M", 5e6), ("300k", 3e5), ("1.5G", 1.5e9), ("2b", 2e9), (" 70 ", 70)]
)
def test_counts_are_read(text, count):
    assert parse_count(text, "parameters") == count


@pytest.mark.parametrize("text", ["5X", "", "M", "-1M", "0", "nan", "infk", "5 M M", "1e6"])
def test_wrong_counts_are_refused(text):
    with pytest.raises(UsageError, match=r"5M, 300k or 1\.5G"):
        parse_count(text, "parameters")


@pytest.mark.parametrize(
    "text", ["20", "-5ms", "NaNms", "infms", "20 parsecs", "0ms", "", "ms", "2 0ms"]
)
def test_wrong_budgets_are_one_line_with_the_fix(text, capsys):
    with pytest.raises(UsageError):
        Budget.parse(text)
    code, out, err = call(capsys, "search", f"--budget={text}")
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "--budget 20ms" in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("search", "--budget", "20ms", "--space", "swin:mirco"), "swin:micro"),
        (("search", "--budget", "20ms", "--device", "cpus"), "cpu"),
        (("search", "--budget", "20ms", "--data", "scene"), "scenes"),
        (("profile", "--space", "vitt:debug"), "vit:debug"),
        (("inspect", "nothing.json"), "give a run directory"),
        (("inspect", "vit_bas_patch16_224"), "vit_base_patch16_224"),
        (
            ("inspect", "vit_base_patch16_224", "--resolution", "230"),
            "multiples of 16 from 32; use 224",
        ),
        (("inspect", '{"resolution": 1}', "--space", "vit:debug"), "must be an object"),
        (("train", "--device", "gpu"), "cpu"),
    ],
)
def test_unknown_names_suggest_the_closest(arguments, hint, capsys):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert hint in err


def test_errors_as_json(capsys):
    code, out, _ = call(capsys, "search", "--budget", "20", "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert error.keys() == {"kind", "message", "fix"}
    assert error["kind"] == "usage"


def test_an_unexpected_error_is_one_line_and_debug_shows_it(capsys, monkeypatch):
    def broken():
        raise ZeroDivisionError("a defect")

    monkeypatch.setitem(listings._LISTINGS, listings.Listing.devices, broken)
    code, _, err = call(capsys, "list", "devices")
    assert code == 1
    assert err.count("\n") == 1
    assert "--debug" in err
    code, _, err = call(capsys, "list", "devices", "--debug")
    assert code == 1
    assert 'raise ZeroDivisionError("a defect")' in err


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setitem(listings._LISTINGS, listings.Listing.devices, interrupted)
    code, _, err = call(capsys, "list", "devices")
    assert code == 130
    assert "--resume" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("what", [w.value for w in listings.Listing])
def test_listings_as_json(what, capsys):
    code, out, _ = call(capsys, "list", what, "--json")
    assert code == 0
    assert isinstance(json.loads(out)[what], list)


def test_runs_are_listed_budget_by_budget(capsys, monkeypatch, tmp_path):
    """A run of several budgets, one that was stopped, and one of an earlier version."""
    recorded = read_json(Path(__file__).parent / "run_of_version_0_1_0.json")
    monkeypatch.chdir(tmp_path)

    def answer(ms, measured, test, **others):
        winner = {**recorded["winner"], "measured_ms": measured, "test_top1_percent": test}
        return {**recorded["answers"][0], "budget_ms": ms, "budgets": {"npu": ms, **others},
                "winner": winner}  # fmt: skip

    settings = {"space": "swin:micro", "device": "npu", "budget_ms": 20.0}
    several = [answer(20.0, 18.5, 60.0, gpu=2.0), answer(12.0, 11.25, 58.0, gpu=2.0)]
    budgets = {"budgets": [a["budgets"] for a in several]}
    done = {**recorded, **settings, **several[0], "answers": several, "verb": "modelled"}
    early = {**recorded, **settings, **answer(20.0, 19.0, 61.0)}
    for key in ("budgets", "answers"):
        del early[key]
    for name, before, after in (
        ("a", {**settings, **budgets}, done),
        ("b", {**settings, **budgets}, None),
        ("c", settings, early),
    ):
        write_json(tmp_path / "runs" / name / "settings.json", before)
        if after:
            write_json(tmp_path / "runs" / name / "run.json", after)
    code, out, _ = call(capsys, "list", "runs", "--json")
    assert code == 0
    rows = json.loads(out)["runs"]
    assert [[row[k] for k in ("run", "budget", "test")] for row in rows] == [
        ["runs/a", "12 ms & 2 ms", "58.0 %"],
        ["runs/a", "20 ms & 2 ms", "60.0 %"],
        ["runs/b", "12 ms & 2 ms", ""],
        ["runs/b", "20 ms & 2 ms", ""],
        ["runs/c", "20 ms", "61.0 %"],
    ]
    assert [row["measured"] for row in rows] == [
        "11.25 ms modelled", "18.50 ms modelled", "unfinished", "unfinished", "19.00 ms",
    ]  # fmt: skip
    for where in ("runs", str(tmp_path / "runs")):  # wherever --out of the search was
        code, out, _ = call(capsys, "list", "runs", "--json", "--out", where)
        assert len(json.loads(out)["runs"]) == len(rows)
    code, out, _ = call(capsys, "list", "runs", "--json", "--out", "runs/a")
    assert {row["run"] for row in json.loads(out)["runs"]} == {"runs/a"}
    code, _, err = call(capsys, "list", "runs", "--out", "x" * 5000)
    assert (code, "give another --out" in err) == (1, True)
    code, out, _ = call(capsys, "list", "runs")
    assert max(map(len, out.splitlines())) <= 80
    write_json(tmp_path / "runs" / "c" / "run.json", {**early, "winner": 3})
    code, out, err = call(capsys, "list", "runs", "--json")
    assert [row["run"] for row in json.loads(out)["runs"]] == [row["run"] for row in rows[:4]]
    assert err.startswith("vitnas: runs/c/run.json, written by vitnas 0.1.0: answers[0].winner")
    for name, text in (("d", "["), ("e", "[]"), ("f", "{}"), ("g", json.dumps({**settings, "seed": "0"})),
                       ("h", json.dumps({**settings, "budget_ms": None})), ("i", "[" * 10**5)):  # fmt: skip
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "settings.json").write_text(text)
    code, out, err = call(capsys, "list", "runs", "--json")
    assert (code, [row["run"] for row in json.loads(out)["runs"]]) == (
        0,
        [r["run"] for r in rows[:4]],
    )
    said = err.splitlines()[1:]
    assert [line.split("/")[1] for line in said] == [*"defghi"]
    assert all("restore it" in line for line in said)


def test_inspect_counts_what_the_layers_say(capsys):
    code, out, _ = call(capsys, "inspect", "--space", "vit:tiny", "--classes", "1000", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["params"] == 5_717_416
    assert result["macs"] == sum(layer["macs"] for layer in result["layers"])
    assert result["name"].startswith("vit:tiny ")
    code, out, _ = call(capsys, "inspect", "--space", "vit:debug")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "sum" in out


def test_inspect_takes_a_named_model_at_any_resolution(capsys):
    """ViT-Ti/16 in its paper's sizes: parameters with positions of 14 x 14 or 24 x 24 patches."""
    for options, resolution, grid, classes in (
        ((), 224, 14, 1000),
        (("--resolution", "384"), 384, 24, 1000),
        (("--classes", "10"), 224, 14, 10),
    ):
        code, out, _ = call(capsys, "inspect", "vit_tiny_patch16_224", *options, "--json")
        result = json.loads(out)
        assert code == 0
        assert result["name"] == "vit_tiny_patch16_224"
        assert result["resolution"] == resolution
        assert result["layers"][0].keys() >= {"key", "params", "macs"}
        c = 192
        embedding = (3 * 16**2 + 1) * c + (grid**2 + 2) * c
        blocks = 12 * (12 * c * c + 13 * c)
        assert result["params"] == embedding + blocks + 2 * c + (c + 1) * classes


def test_inspect_names_the_field_the_value_and_what_is_allowed(capsys):
    architecture = json.loads(load_space("vit:debug").smallest.to_json())
    architecture["stages"][0]["width"] = 9
    code, _, err = call(capsys, "inspect", json.dumps(architecture), "--space", "vit:debug")
    assert code == 2
    assert (
        err
        == "vitnas: architecture.stages[0].width must be one of 8, 12, got 9; the closest is 8\n"
    )


def test_named_models_are_listed_with_their_family_and_size(capsys):
    code, out, _ = call(capsys, "list", "models", "--json")
    rows = {row["model"]: row for row in json.loads(out)["models"]}
    assert code == 0
    assert rows["vit_base_patch16_224"] == {
        "model": "vit_base_patch16_224", "family": "vit", "resolution": 224,
        "params M": 86.568, "MACs G": 17.564,
    }  # fmt: skip
    assert set(rows) == set(model_names())


def test_measure_and_profile_an_architecture(capsys):
    small = load_space("vit:debug").smallest.to_json()
    code, out, err = call(
        capsys, "measure", small, "--space", "vit:debug", "--rounds", "5", "--json"
    )
    result = json.loads(out)
    assert code == 0, err
    assert result["predicted_ms"] is None
    assert 0 < result["measured_min_ms"] <= result["measured_ms"] <= result["measured_p95_ms"]
    code, out, err = call(capsys, "profile", "--space", "vit:debug", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == len(space_layers(load_space("vit:debug")))
    code, out, _ = call(capsys, "measure", small, "--space", "vit:debug", "--rounds", "5")
    assert "predicted" in out
    assert "block0" in out


@pytest.mark.parametrize(
    ("budgets", "tables", "given"),
    [
        (["20ms"], ["lr=0.1/table"], {"torch-cpu": "lr=0.1/table"}),
        (["20ms"], ["cpu=a"], {"torch-cpu": "a"}),
        (["cpu=20ms"], ["torch-cpu=a"], {"torch-cpu": "a"}),
        (["cpu=20ms", "torch-cpu=10ms"], ["a"], {"torch-cpu": "a"}),
        (["20ms"], ["torch-cpu=lr=0.1/table"], {"torch-cpu": "lr=0.1/table"}),
        (["board=8ms"], ["a"], {"board": "a"}),
        (["20ms", "board=8ms"], ["board=x=y", "a"], {"board": "x=y", "torch-cpu": "a"}),
        (["cpu,threads=1=20ms"], ["torch-cpu,threads=1=a"], {"torch-cpu,threads=1": "a"}),
        (["20ms"], ["torchcpu=a"], None),
        (["20ms"], ["board=a"], None),
        (["20ms"], ["a", "cpu=b"], None),
        (["20ms"], ["=a"], None),
    ],
)
def test_a_table_is_of_a_device_with_a_budget_or_refused(
    budgets, tables, given, monkeypatch, tmp_path
):
    """`lr=0.1/table` is there as a folder; `board` is the label of a table of another machine."""
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1/table").mkdir(parents=True)
    Path("lr=0.1/table/manifest.toml").touch()
    if given is None:
        with pytest.raises(UsageError, match="table") as error:
            read_budgets(budgets, "torch-cpu", tables)
        assert error.value.fix
        return
    found = read_budgets(budgets, "torch-cpu", tables).given
    assert {device: str(folder) for device, folder in found.items()} == given
