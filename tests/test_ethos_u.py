"""Ethos-U: Vela's own counts, its fallbacks, and sums of rows against whole networks."""

from __future__ import annotations

from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest

from nas.errors import PreparationError
from nas.families import families, load_space
from nas.network.macs import sum_macs
from nas.runtimes import ethos_u as ethos
from nas.runtimes import load_runtime, runtimes
from nas.runtimes.ethos_u import SETTINGS, Compiled, EthosU
from nas.space.layer import Layer

try:
    version("ethos-u-vela")
except PackageNotFoundError:
    pytest.skip("needs Vela: pip install 'vitnas[ethos-u]'", allow_module_level=True)

DEVICES = list(SETTINGS)


def dense_network(family: str) -> tuple[Layer, ...]:
    space = load_space(f"{family}:debug").restrict("sparsity", 0)
    return space.layers(space.largest)


def pruned_layer() -> Layer:
    space = load_space("swin:debug").restrict("sparsity", 50)
    layers = space.layers(space.largest)
    return next(layer for layer in layers if "kept=8" in layer.key or "kept=4" in layer.key)


@pytest.mark.parametrize(("place", "family"), list(enumerate(families())))
def test_vela_counts_the_macs_that_we_count(place, family):
    runtime = EthosU(DEVICES[place % len(DEVICES)])
    layers = dense_network(family)
    whole = runtime.compiled(layers)
    if not whole.host:
        assert whole.cycles > 0
        assert whole.macs == sum_macs(layers).total
        return
    assert whole == Compiled(0, 0, ("RESIZE_BILINEAR",))  # MobileViT: maps of odd size
    for layer in {layer.key: layer for layer in layers}.values():
        compiled = runtime.compiled((layer,))
        assert compiled.host or compiled.macs == sum_macs([layer]).total, layer.key


@pytest.mark.parametrize("device", DEVICES)
def test_rows_add_up_to_the_whole_network(device):
    runtime = load_runtime(device)
    layers = dense_network("efficientvit")[:4]
    rows = runtime.prepare(layers, fused=False)()
    (whole,) = runtime.prepare(layers, fused=True)()
    assert len(rows) == len(layers)
    assert sum(row.wall for row in rows) == pytest.approx(whole.wall, rel=0.03)
    assert {row.cpu for row in rows} == {0}


def test_two_profiles_are_equal_to_the_last_bit(tmp_path, monkeypatch):
    layers = dense_network("vit")[:2]
    found = []
    for name in ("first", "second"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        found.append(EthosU("ethos-u85-256").prepare(layers, fused=False)())
    assert found[0] == found[1]


def test_what_was_compiled_once_is_not_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layers = dense_network("swin")[:2]
    first = EthosU("ethos-u55-128")
    assert list(first.ahead(layers)) == list(layers)
    monkeypatch.setattr(ethos, "run_vela", None)
    second = EthosU("ethos-u55-128")
    assert second.compiled(layers[:1]) == first.compiled(layers[:1])
    (entry, *_) = tmp_path.rglob("*.json")
    entry.write_text("torn")
    with pytest.raises(TypeError):  # it would be compiled anew
        for layer in layers:
            EthosU("ethos-u55-128").compiled((layer,))


def test_pruned_windows_run_on_the_host_and_get_no_time():
    runtime = EthosU("ethos-u85-256")
    layer = pruned_layer()
    assert runtime.note(layer) == "fallback: GATHER, SCATTER_ND"
    for fused in (False, True):
        with pytest.raises(PreparationError, match="fallback: GATHER"):
            runtime.prepare([layer], fused)
    assert runtime.note(dense_network("swin")[0]) == ""


def test_operators_that_vela_leaves_to_the_host_are_named():
    from nas.lowering.tflite.model import Model

    model = Model(int8=True)
    rows, columns = model.input((4, 8)), model.numbers([2, 0])
    model.output(model.operator("GATHER", [rows, columns], (2, 8), axis=0))
    setting = SETTINGS["ethos-u55-128"]
    assert ethos.run_vela(model.to_bytes(), "ethos-u55-128", setting).host == ("GATHER",)


def test_failures_are_one_line_and_never_a_time(monkeypatch):
    setting = SETTINGS["ethos-u85-256"]
    with pytest.raises(PreparationError, match="Vela failed: ") as failed:
        ethos.run_vela(b"no model", "ethos-u85-256", setting)
    assert "\n" not in str(failed.value)
    monkeypatch.setattr(ethos, "TIME_LIMIT_S", 0.01)
    with pytest.raises(PreparationError, match="took more than"):
        ethos.run_vela(b"no model", "ethos-u85-256", setting)


@pytest.mark.parametrize("device", DEVICES)
def test_settings_are_sections_of_velas_own_file(device):
    spec = find_spec("ethosu")
    assert spec is not None
    assert spec.submodule_search_locations
    config = ConfigParser(inline_comment_prefixes=";")
    config.read(Path(next(iter(spec.submodule_search_locations))) / "config_files/Arm/vela.ini")
    setting = SETTINGS[device]
    assert config.has_section(f"Memory_Mode.{setting.memory}")
    clock = config.getfloat(f"System_Config.{setting.system}", "core_clock")
    described = load_runtime(device).describe()
    assert described["clock_mhz"] == setting.clock_mhz == clock / 1e6
    assert described["runtime_version"] == version("ethos-u-vela")
    assert device in runtimes()


def test_no_row_is_called_measured():
    assert EthosU("ethos-u65-512").source == "vendor-model"
    assert EthosU.exact


def test_the_precision_of_a_block_changes_nothing():
    """Everything is int8 here."""
    space = load_space("vit:debug").restrict("sparsity", 0)
    narrow, wide = (space.restrict("precision", word).draw(Random(1)) for word in ("int8", "fp32"))
    runtime = EthosU("ethos-u55-128")
    a, b = (runtime.compiled(space.layers(arch)) for arch in (narrow, wide))
    assert a == b
