"""Int8 against integer arithmetic in numpy, closed forms and ONNX Runtime."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas import export
from nas.cli import main
from nas.data import load_data
from nas.errors import EvaluationError, UnknownNameError, UsageError, WeightsError
from nas.export import export_network, tolerance
from nas.families import load_space
from nas.layers.elastic import ElasticLinear
from nas.layers.precision import HIGH, LOW, Packed, Quantizer, conv2d, linear, rounded, scale_zero
from nas.lowering.onnx import quiet
from nas.network.calibration import CLIPS, METHODS, calibrate, quantizers, sensitivity
from nas.network.network import Network
from nas.quantization import changed_percent, quantize
from nas.saved_network import subject
from nas.space.architecture import at_precision
from nas.space.task import Task
from nas.tasks.classification import Classification


def quantizer(low: float, high: float) -> Quantizer:
    made = Quantizer().eval()
    made.clip.copy_(torch.tensor([low, high]))
    return made


def integers(x, scale, zero):
    """Equation 1 of Jacob et al., by numpy."""
    return np.clip(np.rint(x.numpy() / np.float32(scale)) + zero, LOW, HIGH).astype(np.int64) - zero


def weight_integers(weight):
    flat = weight.numpy().reshape(len(weight), -1)
    unit = np.abs(flat).max(1) / np.float32(127)
    return np.rint(weight.numpy() / unit.reshape(-1, *[1] * (weight.ndim - 1))).astype(
        np.int64
    ), unit


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (-0.17, 8.0), (0.0, 1.0), (-2.0, 0.0), (0.5, 2)]
)
def test_zero_is_exact_and_the_range_is_covered(low, high):
    scale, zero = scale_zero(low, high)
    assert LOW <= zero <= HIGH
    x = torch.tensor([0.0, min(low, 0), max(high, 0)])
    back = (rounded(x, scale, zero) - zero) * scale
    assert back[0] == 0
    torch.testing.assert_close(back, x, rtol=0, atol=scale)


def test_a_range_that_was_never_calibrated_is_an_error():
    with pytest.raises(EvaluationError, match="calibrate"):
        linear(torch.ones(1, 4), torch.ones(2, 4), None, Quantizer().eval(), bits=8)


@pytest.mark.parametrize("inputs", [4, 48, 3072])
def test_int8_linear_is_integer_arithmetic(inputs):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 5, inputs), torch.randn(7, inputs), torch.randn(7)
    own = quantizer(-2.5, 3.0)
    scale, zero = scale_zero(-2.5, 3.0)
    w, unit = weight_integers(weight)
    total = integers(x, scale, zero) @ w.T + np.rint(bias.numpy() / (unit * scale)).astype(np.int64)
    expected = torch.from_numpy(total * (unit * scale)).float()
    y = linear(x, weight, bias, own, bits=8)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("inputs", "kernel", "stride"), [(3, 3, 1), (70, 3, 2), (8, 1, 2)])
def test_int8_convolution_is_integer_arithmetic(inputs, kernel, stride):
    """70 x 3 x 3 products are more than a float32 sums exactly."""
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(2, inputs, 9, 9),
        torch.randn(5, inputs, kernel, kernel),
        torch.randn(5),
    )
    scale, zero = scale_zero(-3.0, 2.0)
    w, unit = weight_integers(weight)
    pad = kernel // 2
    q = np.pad(integers(x, scale, zero), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    side = (9 + 2 * pad - kernel) // stride + 1
    total = np.zeros((2, 5, side, side), np.int64)
    for i in range(side):
        for j in range(side):
            patch = q[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            total[:, :, i, j] = np.einsum("bckl,ockl->bo", patch, w)
    total += np.rint(bias.numpy() / (unit * scale)).astype(np.int64)[:, None, None]
    expected = torch.from_numpy(total * (unit * scale)[:, None, None]).float()
    y = conv2d(x, weight, bias, quantizer(-3.0, 2.0), 8, stride, pad)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-7, 1e-5])
def test_a_channel_of_nearly_nothing_but_bias_keeps_its_bias(size):
    """As folding a norm of scale 0 makes them; the bias must not overflow the accumulator."""
    weight, bias = size * torch.ones(2, 8), torch.tensor([0.5, -3.0])
    y = linear(torch.ones(1, 8), weight, bias, quantizer(-3.0, 2.0), bits=8)
    torch.testing.assert_close(y, bias[None] + weight.sum(1), rtol=1e-4, atol=1e-4)


def test_loading_weights_forgets_those_that_were_packed():
    layer = ElasticLinear(8, 4).eval()
    layer.input.clip.copy_(torch.tensor([-3.0, 3.0]))
    layer.input.deploy()
    x, other = torch.randn(2, 8), torch.randn(4, 8)
    layer(x, 4, 8)
    layer.load_state_dict({**layer.state_dict(), "weight": other})
    torch.testing.assert_close(layer(x, 4, 8), linear(x, other, layer.bias, layer.input, 8))


def test_weights_are_packed_once_only_when_they_are_fixed():
    own, x = quantizer(-3, 3), torch.randn(2, 8)
    weight = torch.randn(4, 8)
    linear(x, weight, None, own, bits=8)
    assert own.packed is None
    own.deploy()
    first = linear(x, weight, None, own, bits=8)
    assert isinstance(own.packed, Packed)
    torch.testing.assert_close(linear(x, weight, None, own, bits=8), first, rtol=0, atol=0)


def test_training_runs_in_float32():
    layer = ElasticLinear(8, 4)
    x = torch.randn(2, 8)
    torch.testing.assert_close(
        layer.train()(x, 4, 8), nn.functional.linear(x, layer.weight, layer.bias)
    )


class Both(nn.Module):
    """An int8 linear layer and an int8 convolution, as one network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = nn.Parameter(torch.randn(24, 16)), nn.Parameter(torch.randn(24))
        self.kernel = nn.Parameter(torch.randn(6, 24, 3, 3))
        self.first, self.second = quantizer(-3, 3), quantizer(-20, 20)
        for own in (self.first, self.second):
            own.deploy()

    def forward(self, x):
        y = linear(x, self.weight, self.bias, self.first, 8)
        return conv2d(y.permute(0, 3, 1, 2), self.kernel, None, self.second, 8, 1, 1)


def test_onnx_runtime_runs_the_same_integers():
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    model, x = Both().eval(), torch.randn(1, 6, 6, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        with quiet():
            program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    data = program.model_proto.SerializeToString()
    kinds = [node.op_type for node in onnx.load(io.BytesIO(data)).graph.node]
    assert kinds.count("QuantizeLinear") == 2
    assert kinds.count("DequantizeLinear") in (5, 6)  # the convolution has no bias of its own
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # no saturation without VNNI
    session = ort.InferenceSession(data, options)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    # A value between two steps may fall either way by its last digit: one step of one input.
    step = scale_zero(-20, 20)[0] * float(model.kernel.detach().abs().max())
    assert float((torch.from_numpy(y) - expected).abs().max()) <= 1.01 * step
    assert float((torch.from_numpy(y) - expected).abs().median()) <= 1e-4


def test_onnx_runtime_fuses_an_exported_block_into_int8_kernels(tmp_path):
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    space = load_space("vit:debug", Classification(5))
    torch.manual_seed(0)
    network = Network(space, space.restrict("precision", "int8").largest).eval()
    images = torch.randn(8, 3, 24, 24)
    calibrate(network, images)
    with torch.no_grad():
        expected = network(images[:1])
    export_network(network, images[:1], expected, tmp_path, ["onnx", "pt2", "safetensors"])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(tmp_path / "model.onnx", options)
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    blocks = len(network.architecture.stages[0].blocks)
    assert kinds.count("QGemm") == 4 * blocks


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_is_refused_beyond_what_small_changes_of_an_image_change(
    precision, tmp_path, monkeypatch
):
    space = load_space("vit:debug", Classification(5))
    torch.manual_seed(0)
    network = Network(space, space.restrict("precision", precision).largest).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.randn(8, 3, 24, 24)
    calibrate(network, images)
    with torch.no_grad():
        expected = network(images[:1])
    monkeypatch.setattr(export, "_NUDGE", 0.02)  # so small a network has no ties at 1e-5
    allowed = tolerance(network, images[:1], expected)
    assert allowed == 1e-3 if precision == "fp32" else allowed > 1e-3
    file, write, _ = export.WRITERS["safetensors"]

    def off_by(share):
        read = lambda *_: expected + share * allowed  # noqa: E731
        monkeypatch.setitem(export.WRITERS, "safetensors", (file, write, read))
        return export_network(network, images[:1], expected, tmp_path, ["safetensors"])

    assert off_by(0.9)[file] == pytest.approx(0.9 * allowed, rel=1e-2)
    with pytest.raises(EvaluationError, match=r"differ from the supernet's by"):
        off_by(1.1)


def test_large_logits_may_differ_by_their_rounding():
    """Sums of float32 in another order: 0.03 of 16,585 in a segmenter of random weights."""
    network = Network(space := load_space("vit:debug", Classification(5)), space.largest).eval()
    images = torch.randn(1, 3, 24, 24)
    assert tolerance(network, images, torch.tensor([[3.0, -20.0]])) == 1e-3
    assert tolerance(network, images, torch.tensor([[3.0, -2e4]])) == pytest.approx(0.2)


@pytest.mark.parametrize("jumps", [True, False])
def test_an_image_at_which_a_network_jumps_refuses_no_right_file(jumps, tmp_path, monkeypatch):
    """Files are compared at images beside it then; a wrong one differs there, too."""
    space = load_space("vit:debug", Classification(5))
    torch.manual_seed(0)
    network = Network(space, space.largest).eval()
    images = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        expected = network(images)

    def read(network, given, *_):
        off = torch.equal(given, images) if jumps else given.mean() > images.mean() - 1
        return network(given) + float(off)

    file, write, _ = export.WRITERS["safetensors"]
    monkeypatch.setitem(export.WRITERS, "safetensors", (file, write, read))
    if jumps:
        found = export_network(network, images, expected, tmp_path, ["safetensors"])
        assert found[file] < 1e-6
    else:
        with pytest.raises(EvaluationError, match="supernet's by 1"):
            export_network(network, images, expected, tmp_path, ["safetensors"])
        assert not (tmp_path / file).exists()


# --- calibration ---


def observed(x, method):
    layer = ElasticLinear(x.shape[-1], 4).eval()
    from nas.network.calibration import _observing

    with _observing([layer.input]) as (observer,):
        layer(x)
    return observer.clip(method)


def observed_in(calls, method):
    from nas.network.calibration import _Observer

    observer = _Observer()
    for x in calls:
        observer(x)
    return observer.clip(method)


def test_minmax_keeps_everything_and_percentile_cuts_outliers():
    x = torch.rand(400, 1000, generator=torch.Generator().manual_seed(0))
    x[0, 0], x[0, 1] = 50.0, -50.0
    assert observed(x, "minmax") == (-50.0, 50.0)
    low, high = observed(x, "percentile")
    assert low == pytest.approx(0.0, abs=1e-3)
    assert high == pytest.approx(1.0, abs=1e-3)


def normal(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


SEEN = {
    "one large call": lambda: [normal(6_000_000)],
    "many calls": lambda: list(normal(2_000_000).split(1_999)),
    "calls of every size": lambda: list(normal(500_000).split([1, 99, 9_900, 490_000])),
    "calls of different ranges": lambda: [10.0**i * normal(200_000, i) for i in range(-4, 4)],
    "all large values in one call": lambda: [normal(300_000) + 50, normal(3_000_000), -normal(9)],
    "a long tail": lambda: [normal(1_000_000).mul(3).exp()],
    "what a GELU leaves": lambda: [torch.nn.functional.gelu(normal(1_000_000, i)) for i in (1, 2)],
    "positive values": lambda: [normal(400_000).abs() + 3],
    "negative values": lambda: [-normal(400_000).abs() - 3],
    "mostly zeros": lambda: [normal(500_000) * (torch.arange(500_000) % 1_000 == 0)],
    "tiny values": lambda: [normal(100_000) * 1e-30],
    "half precision": lambda: [normal(100_000).bfloat16()],
    "a constant": lambda: [torch.full((70_000,), 0.3), torch.full((7,), 0.3)],
    "two values": lambda: [torch.tensor([-1.25, 2.5])],
    "one value": lambda: [torch.tensor([-0.7])],
    "10,000 values": lambda: [normal(10_000)],
    "10,001 values": lambda: [normal(10_001)],
    "not contiguous": lambda: [normal(400_000).view(200, 2_000).t()[::3]],
}


@pytest.mark.parametrize("seen", SEEN)
def test_percentile_is_numpys_quantile(seen):
    """At most one value in ten thousand is cut at each end; the range is at most 0.1 % wider."""
    calls = SEEN[seen]()
    values = np.concatenate([x.float().flatten().numpy() for x in calls]).astype(np.float64)
    low, high = observed_in(calls, "percentile")
    exact = (
        np.quantile(values, 1e-4, method="lower"),
        np.quantile(values, 1 - 1e-4, method="higher"),
    )
    slack = 2.0**-10 * np.abs(exact)
    assert exact[0] - slack[0] <= low <= exact[0]
    assert exact[1] <= high <= exact[1] + slack[1]
    assert (values < low).sum() <= 1e-4 * len(values)
    assert (values > high).sum() <= 1e-4 * len(values)
    if len(values) <= 10_000:
        assert (low, high) == (values.min(), values.max())
    mirrored = observed_in([-x for x in calls], "percentile")
    assert mirrored == (-high, -low)
    assert observed_in(calls, "minmax") == (values.min(), values.max())


FLOATS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=1), min_size=1, max_size=4))
def test_few_values_are_all_kept_and_every_method_stays_within_them(calls):
    calls = [torch.tensor(x) for x in calls]
    values = torch.cat(calls)
    ends = values.min().item(), values.max().item()
    if max(ends[1], 0) - min(ends[0], 0) <= 1e-30:
        ends = -1.0, 1.0  # nothing but 0, for which any range does
    assert observed_in(calls, "percentile") == observed_in(calls, "minmax") == ends
    low, high = observed_in(calls, "mse")
    assert min(ends[0], 0) <= low <= high <= max(ends[1], 0)


def test_rare_values_among_zeros_are_a_range_all_the_same():
    x = torch.zeros(100_000)
    x[3] = 2.5
    assert observed_in([x], "percentile") == observed_in([x], "minmax") == (0.0, 2.5)


@pytest.mark.parametrize("family", ["swin", "mobilenetv3"])
def test_a_layer_whose_input_is_always_zero_has_a_range(family):
    space = load_space(f"{family}:debug", Classification(5)).restrict("sparsity", 0).with_int8()
    network = Network(space, at_precision(space.smallest, "int8")).eval()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    images = torch.randn(2, *space.example(space.smallest))
    for method in METHODS:
        layers = calibrate(network, images, method=method)
        assert all(error == 0 for x in layers for error in x.error.values())
        with torch.no_grad():
            assert torch.equal(network(images), torch.zeros(2, 5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_have_no_range(value):
    with pytest.raises(EvaluationError, match="not finite"):
        observed_in([torch.ones(5), torch.tensor([1.0, value])], "minmax")


def test_mse_is_the_best_range_of_a_fine_grid():
    x = torch.randn(20, 1000, generator=torch.Generator().manual_seed(0)).exp()

    def error(low, high):
        scale, zero = scale_zero(low, high)
        return float(((rounded(x, scale, zero) - zero) * scale - x).square().mean())

    best = min(error(0.0, high) for high in np.linspace(1, float(x.max()), 200))
    assert error(*observed(x, "mse")) <= 1.05 * best
    assert error(*observed(x, "mse")) < error(*observed(x, "minmax"))


@pytest.fixture
def network():
    space = load_space("swin:debug", Classification(5))
    torch.manual_seed(0)
    return Network(space, space.restrict("sparsity", 0).largest).eval()


def test_best_takes_for_each_layer_the_method_of_least_error(network):
    images = torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    layers = calibrate(network, images)
    assert [x.layer for x in layers] == [p for p in network.layers if p.startswith("stage")]
    for x in layers:
        assert x.error[x.method] == min(x.error.values())
        assert set(x.error) == set(CLIPS)
    clips = [q.clip.clone() for q in quantizers(network)]
    calibrate(network, images)
    assert all(torch.equal(a, q.clip) for a, q in zip(clips, quantizers(network)))


def test_every_method_is_close_and_an_unknown_one_is_named(network):
    images = torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    narrow = at_precision(network.architecture, "int8")
    with torch.no_grad():
        exact = network(images)
        for method in METHODS:
            calibrate(network, images, method=method)
            assert (network(images, narrow) - exact).norm() < 0.1 * exact.norm()
    with pytest.raises(UnknownNameError, match="did you mean minmax"):
        calibrate(network, images, method="minmaks")


def test_sensitivity_is_the_error_of_one_int8_layer_at_a_time(network):
    images = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    calibrate(network, images)
    found = sensitivity(network, images)
    with torch.no_grad():
        exact = network(images)
        blocks = network.architecture.stages[1].blocks
        one = replace(blocks[0], precision="int8")
        stages = (
            network.architecture.stages[0],
            replace(network.architecture.stages[1], blocks=(one,)),
        )
        both = network(images, replace(network.architecture, stages=stages))
    pair = [found[p] for p in found if p.startswith("stage1")]
    total = float((both - exact).square().sum() / exact.square().sum())
    assert max(pair) / 10 < total < 10 * sum(pair)
    assert all(v > 0 for v in found.values())


# --- the workflow ---


def test_with_int8_widens_every_block_and_keeps_the_weights():
    space = load_space("swin:micro+int8", Classification(5))
    assert space.base == "swin:micro"
    assert space.largest == load_space("swin:micro", Classification(5)).largest
    drawn = {b.precision for i in range(4) for s in space.draw(Random(i)).stages for b in s.blocks}
    assert drawn == {"int8", "fp32"}
    assert (
        load_space("swin:micro+int8@112", Classification(5)).name
        == space.at(112).name
        == "swin:micro+int8@112"
    )


def test_quantize_compares_all_methods_and_never_sees_the_test_split(debug_supernet, photo_data):
    network, data = subject("", "swin:debug", photo_data.name, str(debug_supernet), "")
    hidden = replace(data, test=None)
    result = quantize(network, hidden, images=4, calibration=4)
    assert set(result["methods"]) == set(METHODS)
    assert {b["precision"] for s in result["architecture"]["stages"] for b in s["blocks"]} == {
        "int8"
    }
    assert len(result["layers"]) == len(network.space.layers(network.architecture)) - 3
    assert min(result["measured_ms"].values()) > 0


class TwoByTwo(Classification):
    """Two answers of two bits each, by the signs of its outputs."""

    def answers(self, outputs):
        return outputs.view(-1, 2, 2) > 0


def test_changed_answers_are_counted_as_the_task_reads_them():
    before = torch.tensor([[3.0, -1.0, 2.0, -2.0], [1.0, 2.0, 3.0, -1.0]])
    after = torch.tensor([[3.0, -1.0, 2.0, 0.5], [1.0, 2.0, -1.0, -1.0]])

    def changed(read, after):
        return changed_percent(read(before), read(after))

    assert changed(Classification(4).answers, after) == 50.0  # class 2 became class 1
    assert changed(TwoByTwo(4).answers, after) == 25.0  # two signs of eight
    assert changed(TwoByTwo(4).answers, before) == 0.0
    assert changed(lambda outputs: Task.answers(Classification(4), outputs), after) is None


def test_quantize_on_the_command_line(debug_supernet, photos, tmp_path, capsys):
    arguments = ["quantize", "--space", "swin:debug", "--data", f"imagefolder:{photos}"]
    arguments += ["--supernet", str(debug_supernet), "--images", "10", "--calibration", "4"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--train", "40"])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(tmp_path / "q"), "--train", "40", "--json"])
    assert not stop.value.code
    result = json.loads(capsys.readouterr().out)
    assert list(result["methods"]) == [*METHODS, "trained"]
    assert json.loads((tmp_path / "q/training/checkpoint.json").read_text())["step"] == 2
    assert "model.onnx" in result["exported"]
    saved = json.loads((tmp_path / "q" / "architecture.json").read_text())
    assert {b["precision"] for s in saved["stages"] for b in s["blocks"]} == {"int8"}


def test_quantize_prints_what_it_found(monkeypatch, capsys):
    space = load_space("swin:debug", Classification(5))
    network = Network.empty(space, space.smallest)
    row = {"top1_percent": 51.25, "changed_percent": None}
    found = {
        "fp32": row, "methods": {"best": row | {"changed_percent": 2.5}, "trained": row},
        "measured_ms": {"fp32": 2.0, "int8": 1.0},
        "layers": [{"layer": "stage0", "error": {"mse": 1e-4}, "method": "mse", "logit_error": 0.5}],
    }  # fmt: skip
    monkeypatch.setattr("nas.saved_network.subject", lambda *_: (network, None))
    monkeypatch.setattr("nas.quantization.quantize", lambda *_, **options: found)
    with pytest.raises(SystemExit):
        main(["quantize"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["int8", "best", "51.2", "%", "2.5", "%"]
    assert lines[3].split() == ["int8", "trained", "51.2", "%"]
    assert "relative squared error of a layer's output by method" in "\n".join(lines)


def test_what_cannot_be_quantized_is_said(photos):
    data = f"imagefolder:{photos}"
    with pytest.raises(UsageError, match="--weights"):
        subject("swin_tiny_patch4_window7_224", "swin:debug", data, "", "")
    with pytest.raises(UnknownNameError, match="swin_tiny_patch4_window7_224"):
        subject("swin_tiny_patch4_window7", "swin:debug", data, "", "")
    with pytest.raises(WeightsError):
        subject("", "swin:debug", data, "", "")
    assert load_data(data).task.names
