"""The command line as scripts and people meet it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer

from nas import cli
from nas.budget import Budget
from nas.commands import listings
from nas.errors import UsageError
from nas.family import load_space, model_names
from nas.graph import space_layers

OPTIONS = {
    "search": {"--budget", "--space", "--data", "--device", "--supernet", "--out", "--resume",
               "--evaluations", "--search-images", "--test-images", "--sampler", "--fresh",
               "--table", "--confidence", "--seed", "--json"},
    "profile": {"--space", "--device", "--classes", "--out", "--rounds", "--minutes", "--context", "--from", "--rows", "--again",
                "--json"},
    "audit": {"--json"},
    "import": {"--out", "--format", "--unit", "--device", "--json"},
    "train": {"--space", "--data", "--out", "--images", "--init", "--device", "--resume", "--seed",
              "--json"},
    "report": {"--out", "--json"},
    "measure": {"--space", "--device", "--classes", "--rounds", "--out", "--json"},
    "export": {"--format", "--out", "--json"},
    "quantize": {"--space", "--data", "--supernet", "--weights", "--images", "--calibration", "--out",
                 "--json"},
    "inspect": {"--space", "--resolution", "--device", "--classes", "--json"},
    "macs": {"--models", "--resolutions", "--out", "--json"},
    "list": {"--json"},
}  # fmt: skip


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


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_has_one_sentence_and_an_example(command, capsys):
    code, text, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"Example: vitnas {command}" in text


def test_help_and_listing_devices_import_neither_torch_nor_ray():
    code = (
        "import sys; from nas import cli\n"
        "for words in (['--help'], ['list', 'devices'], ['search', '--budget', '20']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


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
        (("inspect", "vit_base_patch16_224", "--resolution", "230"), "multiples of 16; use 224"),
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
    with pytest.raises(ZeroDivisionError):
        cli.main(["list", "devices", "--debug"])


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
    assert err == "vitnas: architecture.stages[0].width must be one of 8, 12, got 9\n"


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
    assert json.loads(out)["rows"] == len(space_layers(load_space("vit:debug"), 10))
    code, out, _ = call(capsys, "measure", small, "--space", "vit:debug", "--rounds", "5")
    assert "predicted" in out
    assert "block0" in out
