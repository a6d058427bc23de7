"""What every runtime must do: one contract for all files of nas/runtimes, whichever they are.

A new runtime passes it without a test of its own. One that cannot be used here says why, and that
is checked instead; runtimes at an address (`ssh://`) need somebody there.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from random import Random
from statistics import median

import pytest
import tomli_w
import torch
from conftest import DEBUG_SPACES

from nas.errors import PreparationError, UsageError, VitnasError
from nas.families import load_space
from nas.layers.elastic import ElasticModule
from nas.runtimes import CONTEXTS, SOURCES, Runtime, load_runtime, runtimes
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.tasks.classification import Classification

NAMES = list(runtimes())
REQUIRED = {
    "name", "processor", "machine", "runtime", "runtime_version", "threads", "dtype", "batch",
}  # fmt: skip
SPACES = {
    name: load_space(name, Classification(3)).restrict("precision", "fp32") for name in DEBUG_SPACES
}
SLOW = {"torch-compile"}  # seconds for each layer: one family


def is_pruned(architecture: Architecture) -> bool:
    return any(getattr(b, "sparsity", 0) for stage in architecture.stages for b in stage.blocks)


def network(space: SearchSpace, pruned: bool) -> tuple[Layer, ...]:
    """The one with the fewest layers: some runtimes take a second for each."""
    drawn = [space.draw(Random(seed)) for seed in range(100)]
    found = [space.layers(a) for a in drawn if is_pruned(a) == pruned]
    return min(found, key=lambda layers: len({layer.key for layer in layers}))


WHOLE = {f"{name} dense": network(space, False) for name, space in SPACES.items()}
WHOLE["swin:debug pruned"] = network(SPACES["swin:debug"], True)
CHEAPEST = WHOLE["vit:debug dense"]


def usable(name: str) -> Runtime:
    if name.endswith("://"):
        pytest.skip(f"{name} needs an address")
    runtime = load_runtime(name)
    try:
        runtime.describe()
    except VitnasError as error:
        pytest.skip(str(error))
    return runtime


@pytest.fixture(params=NAMES)
def runtime(request):
    return usable(request.param)


def flushes() -> bool:
    """Whether a denormal number times one is zero."""
    return bool((torch.tensor([1e-40]) * torch.tensor([1.0])).item() == 0)


def positive(samples, count):
    assert len(samples) == count
    for sample in samples:
        assert math.isfinite(sample.wall)
        assert sample.wall > 0
        assert math.isfinite(sample.cpu)
        assert sample.cpu >= 0


def printable(value) -> bool:
    if isinstance(value, dict):
        return all(printable(k) and printable(v) for k, v in value.items())
    return value.isprintable() and bool(value) if isinstance(value, str) else value is not None


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("://")])
def test_a_runtime_is_described_or_says_what_is_missing(name):
    runtime = load_runtime(name)
    assert runtime.kind in ("cpu", "gpu", "arm", "npu")
    assert runtime.source in SOURCES
    assert runtime.context in CONTEXTS
    assert runtime.unit in ("ms", "Minstructions")
    assert runtime.unit == "ms" or runtime.source != "measured"
    try:
        device = runtime.describe()
    except VitnasError as error:
        assert error.fix, "an error names its fix"
        assert str(error).isprintable(), "an error is one line"
        assert name in str(error)
        return
    assert device.keys() >= REQUIRED
    assert device["name"] == name
    assert device == load_runtime(name).describe(), "the same device every time"
    for record in (device, runtime.conditions()):
        assert printable(record), record
        assert json.loads(json.dumps(record)) == record
        tomli_w.dumps(record)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused(name):
    device = f"{name}somewhere" if name.endswith("://") else name
    with pytest.raises(UsageError, match="colour"):
        load_runtime(f"{device},colour=blue")
    with pytest.raises(UsageError):
        load_runtime(f"{device},batch=0")


@pytest.mark.parametrize("name", [n for n in NAMES if not n.endswith("://")])
def test_every_option_is_in_the_description_of_the_device(name):
    """Or tables of another setting would be taken for its own."""
    runtime = usable(name)
    if not hasattr(runtime, "batch"):
        pytest.skip(f"{name} has no batch")
    other = load_runtime(f"{name},batch=2").describe()
    assert other["batch"] == 2
    assert {**other, "name": name, "batch": 1} == runtime.describe()


def pair(name: str, which: str):
    """Vela compiles for each Ethos-U in the same way: one of them stands for all."""
    alike = name.startswith("ethos-u") and name != "ethos-u85-256" and which != "vit:debug dense"
    return pytest.param(name, which, marks=pytest.mark.slow if alike else ())


@pytest.mark.parametrize(
    ("runtime", "which"), [pair(n, w) for w in WHOLE for n in NAMES], indirect=["runtime"]
)
def test_whole_networks_as_one_piece_and_layer_by_layer(runtime, which):
    if runtime.device in SLOW and WHOLE[which] is not CHEAPEST:
        pytest.skip(f"{runtime.device} takes seconds for each layer")
    layers = WHOLE[which]
    with runtime:
        try:
            whole = runtime.prepare(layers, fused=True)
        except PreparationError as error:
            assert layers is not CHEAPEST
            pytest.skip(f"{runtime.device} cannot run it: {error}")
        apart = runtime.prepare(layers, fused=False)
        for _ in range(3):  # in turns, as they are measured: neither disturbs the other
            positive(whole(), 1)
            positive(apart(), len(layers))


def test_numbers_that_are_exact_repeat(runtime):
    with runtime:
        first = runtime.prepare(CHEAPEST[:2], fused=False)
        again = runtime.prepare(CHEAPEST[:2], fused=False)
        samples = [first(), again(), first()]
    if runtime.exact:
        assert samples[0] == samples[1] == samples[2]
    else:
        assert len({s for run in samples for s in run}) > 1


def test_the_process_is_left_as_it_was(runtime):
    threads, arithmetic = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    assert not flushes()
    try:
        with runtime:
            positive(runtime.prepare(CHEAPEST[:1], fused=True)(), 1)
        assert torch.get_num_threads() == 2
        assert not flushes()
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert torch.get_float32_matmul_precision() == arithmetic
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)


def test_an_error_inside_leaves_the_process_as_it_was(runtime):
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), runtime:
        _ = 1 / 0
    assert torch.get_num_threads() == 2
    assert not flushes()


def test_a_runtime_can_be_entered_again(runtime):
    for _ in range(2):
        with runtime:
            positive(runtime.prepare(CHEAPEST[:1], fused=True)(), 1)


class Impossible(ElasticModule):
    """A layer whose sizes do not fit its input."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(width, width))

    def forward(self, x, *, width):
        return (x @ self.weight,)


def test_layers_that_cannot_run_are_preparation_errors(runtime):
    layer = Layer.of("impossible", Impossible, (4, 3), width=5)
    for fused in (True, False):
        with runtime, pytest.raises(PreparationError) as caught:
            runtime.prepare([layer], fused)
        assert str(caught.value).isprintable()
        assert "Impossible" in str(caught.value)


def test_a_note_is_one_line(runtime):
    with runtime:
        for layer in CHEAPEST:
            note = runtime.note(layer)
            assert note == "" or note.isprintable()


def test_layers_add_up_to_the_network():
    """Without other people's code in between; of processor time, whatever else the machine does."""
    layers = WHOLE["swin:debug dense"]
    with load_runtime("torch-cpu") as runtime:
        whole, apart = (runtime.prepare(layers, fused) for fused in (True, False))
        totals, sums = [], []
        for _ in range(60):
            totals.append(whole()[0].cpu)
            sums.append(sum(sample.cpu for sample in apart()))
    assert 0.5 < median(sums) / median(totals) < 2


@pytest.mark.parametrize("name", ["explicit", "fused"])
def test_torch_computes_attention_in_windows_as_it_is_told(name, monkeypatch):
    used = []
    monkeypatch.setattr("nas.network.standalone.deploy", lambda module, kernel: used.append(kernel))
    with load_runtime("torch-cpu") as runtime:
        runtime.kernel = name
        runtime.prepare(WHOLE["swin:debug dense"][:2], fused=True)
    assert {kernel.__name__ for kernel in used} == {name}


def test_listing_runtimes_imports_nothing_heavy():
    """`vitnas --help` and `vitnas list devices` name them all."""
    heavy = ["torch", "onnx", "onnxruntime", "onnxscript", "openvino", "tensorrt", "ethosu"]
    code = (
        "import sys; from nas.runtimes import runtimes, load_runtime\n"
        "from nas.errors import VitnasError\n"
        "for name in runtimes():\n"
        "    if name.endswith('://'): load_runtime(name + 'somewhere'); continue\n"
        "    try: load_runtime(name).describe()\n"
        "    except VitnasError: pass\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert answer.stdout.strip() == "[]", answer.stdout + answer.stderr
