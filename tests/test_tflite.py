"""Layers as TensorFlow Lite models: against LiteRT, its schema, and torch itself."""

from __future__ import annotations

import inspect
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas.errors import PreparationError
from nas.families import families, load_space
from nas.layers.elastic import ElasticModule
from nas.lowering.tflite.layout import Value, concatenated, plain, reshaped, rolled, sliced
from nas.lowering.tflite.lowering import at_one_precision, lower, lower_steps
from nas.lowering.tflite.model import OPERATORS, Model
from nas.network.standalone import build, inputs, run, slots
from nas.space.layer import Layer
from nas.tasks.segmentation import Segmentation

interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="needs LiteRT: pip install ai-edge-litert"
)

FAMILIES = list(families())


def litert(data: bytes):
    kernels = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    found = interpreter.Interpreter(model_content=data, experimental_op_resolver_type=kernels)
    found.allocate_tensors()
    return found


def run_litert(data: bytes, arrays: list[np.ndarray]) -> list[np.ndarray]:
    model = litert(data)
    details = model.get_input_details()
    assert [tuple(d["shape"]) for d in details] == [a.shape for a in arrays]
    for detail, array in zip(details, arrays):
        model.set_tensor(detail["index"], np.ascontiguousarray(array))
    model.invoke()
    return [model.get_tensor(d["index"]) for d in model.get_output_details()]


def test_numbers_of_operators_and_slots_of_options_are_those_of_the_schema():
    from ai_edge_litert import schema_py_generated as schema

    kinds = {v: k for k, v in vars(schema.BuiltinOptions).items() if isinstance(v, int)}
    for name, operator in OPERATORS.items():
        assert getattr(schema.BuiltinOperator, name) == operator.code
        plain_name = name.replace("_", "").removesuffix("2D").lower()
        kind = kinds[operator.options].lower()
        assert operator.options == 0 or kind.startswith((plain_name, "reducer")), name
        for option, (slot, scalar) in operator.slots.items():
            camel = "".join(word.title() for word in option.split("_"))
            writer = getattr(schema, f"{kinds[operator.options]}Add{camel}")
            assert f"Prepend{scalar}Slot({slot}," in inspect.getsource(writer)


def dense_layers(family: str) -> list[Layer]:
    space = load_space(f"{family}:debug").restrict("sparsity", 0)
    drawn = [space.smallest, space.largest, space.draw(Random(0))]
    layers = {layer.key: layer for a in drawn for layer in space.layers(a)}
    return list(layers.values())


def with_random_weights(layers: list[Layer]):
    torch.manual_seed(0)
    steps = build([at_one_precision(layer) for layer in layers])
    for module, _ in steps:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1)
    return steps


def tensors(state) -> list[Tensor]:
    return [t for t in slots(state) if t is not None and t.is_floating_point() and t.numel()]


def as_cameras_do(t: Tensor) -> np.ndarray:
    return (t.permute(0, 2, 3, 1) if t.ndim == 4 and t.shape[1] == 3 else t).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_every_layer_does_what_torch_does(family):
    for layer in dense_layers(family):
        steps, state = with_random_weights([layer]), inputs(layer, 1)
        lowered = lower_steps(steps, state, int8=False)
        assert not lowered.dynamic
        before, after = tensors(state), tensors(run(steps, state))
        # What a layer passes on is no output of its model, and no input if it is not used.
        passed = {id(t) for t in before} & {id(t) for t in after}
        expected = [t.detach().numpy() for t in after if id(t) not in passed]
        given = [t for t in before if id(t) not in passed]
        if len(given) < len(litert(lowered.data).get_input_details()):
            given = before
        outputs = run_litert(lowered.data, [as_cameras_do(t) for t in given])
        assert outputs
        for output, wanted in zip(outputs, expected, strict=True):
            limit = 5e-6 * np.abs(wanted).max()
            np.testing.assert_allclose(output.ravel(), wanted.ravel(), atol=limit, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_int8_every_network_runs_and_has_four_axes_at_most(family):
    space = load_space(f"{family}:debug").restrict("sparsity", 0)
    layers = space.layers(space.draw(Random(3)))
    model = litert(lower(layers).data)
    model.invoke()
    (output,) = model.get_output_details()
    assert output["dtype"] is np.int8
    assert int(np.prod(output["shape"])) == 10
    details = model.get_tensor_details()
    assert max(len(d["shape"]) for d in details) <= 4
    assert not {str(np.dtype(d["dtype"])) for d in details} - {"int8", "int32"}


@pytest.mark.parametrize("family", FAMILIES)
def test_segmenters_run_in_int8_and_give_a_logit_for_every_pixel(family):
    space = load_space(f"{family}:debug", Segmentation(3)).restrict("sparsity", 0)
    architecture = space.draw(Random(3))
    lowered = lower(space.layers(architecture))
    assert not lowered.dynamic
    model = litert(lowered.data)
    model.invoke()
    (output,) = model.get_output_details()
    assert output["dtype"] is np.int8
    assert int(np.prod(output["shape"])) == 3 * architecture.resolution**2


def test_equal_layers_give_equal_files():
    space = load_space("swin:debug").restrict("sparsity", 0)
    layers = space.layers(space.largest)
    assert lower(layers).data == lower(layers).data


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_layers_name_what_depends_on_the_data(family):
    space = load_space(f"{family}:debug").restrict("sparsity", 50)
    layers = {layer.key: layer for layer in space.layers(space.largest)}
    found = {name for layer in layers.values() for name in lower([layer]).dynamic}
    assert {"TOPK_V2", "GATHER"} <= found <= {"TOPK_V2", "GATHER", "GATHER_ND", "SCATTER_ND"}


class Traced(ElasticModule):
    """What `lower_steps` takes as a layer."""

    def __init__(self, forward):
        super().__init__()
        self.function = forward

    def forward(self, *state):
        return (self.function(*state),)


def check(forward, *state: Tensor) -> list[str]:
    """Compare with torch; returns the operators."""
    data = lower_steps([(Traced(forward), {})], state, int8=False).data
    (output,) = run_litert(data, [as_cameras_do(t) for t in state])
    expected = forward(*state).detach().numpy()
    np.testing.assert_allclose(output.ravel(), expected.ravel(), atol=1e-5, rtol=1e-4)
    model = litert(data)
    return [d["op_name"] for d in model._get_ops_details()]


def test_packed_projections_are_computed_apart_and_whole_where_the_whole_is_used():
    weight, x = torch.randn(24, 8), torch.randn(1, 5, 8)

    def apart(x):
        y = nn.functional.linear(x, weight).view(1, 5, 3, 2, 4)
        q, k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
        return q * k + v

    def whole(x):
        y = nn.functional.linear(x, weight)
        q, k, v = y.view(1, 5, 3, 8).unbind(2)
        return q * k + v + y[..., :8]

    assert check(apart, x).count("FULLY_CONNECTED") == 3
    assert check(whole, x).count("FULLY_CONNECTED") == 1


def test_patches_need_one_transposition():
    weight, images = torch.randn(8, 3, 4, 4), torch.randn(1, 3, 16, 16)
    operators = check(lambda x: nn.functional.conv2d(x, weight, stride=4), images)
    assert "CONV_2D" not in operators
    assert operators.count("FULLY_CONNECTED") == 1
    assert operators.count("TRANSPOSE") <= 3  # two steps, and what is compared is channel-first


def test_a_bias_added_afterwards_costs_nothing():
    weight, bias = torch.randn(6, 8), torch.randn(6)
    operators = check(lambda x: nn.functional.linear(x, weight).add_(bias), torch.randn(3, 8))
    assert operators == ["FULLY_CONNECTED"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_convolutions_pad_as_torch_does(stride, size, padding):
    weight, x = torch.randn(4, 2, 3, 3), torch.randn(1, 2, size, size)
    check(lambda x: nn.functional.conv2d(x, weight, None, stride, padding), x)
    deep = torch.randn(2, 1, 3, 3)
    check(lambda x: nn.functional.conv2d(x, deep, None, stride, padding, groups=2), x)


def test_an_operator_without_lowering_is_named():
    with pytest.raises(PreparationError, match=r"aten\.cumsum"):
        check(lambda x: x.cumsum(0), torch.randn(3, 4))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_views_of_stored_axes_are_those_of_numpy(data):
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=4)))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    model = Model(int8=False)
    value = Value.of(model.input(shape), shape)
    wanted = array
    for _ in range(data.draw(st.integers(1, 5))):
        step = data.draw(st.sampled_from(["permute", "reshape", "slice", "roll", "concat"]))
        axis = data.draw(st.integers(0, wanted.ndim - 1))
        if step == "permute":
            axes = data.draw(st.permutations(range(wanted.ndim)))
            value, wanted = value.permuted(axes), wanted.transpose(axes)
        elif step == "reshape":
            sizes = data.draw(st.permutations([*wanted.shape, 1]))
            if data.draw(st.booleans()):
                sizes = [sizes[0] * sizes[1], *sizes[2:]]
            value, wanted = reshaped(model, value, sizes), wanted.reshape(sizes)
        elif step == "slice":
            start = data.draw(st.integers(0, wanted.shape[axis] - 1))
            end = data.draw(st.integers(start + 1, wanted.shape[axis]))
            value = sliced(model, value, axis, start, end)
            wanted = wanted.take(range(start, end), axis)
        elif step == "roll":
            shift = data.draw(st.integers(0, 3))
            value, wanted = rolled(model, value, {axis: shift}), np.roll(wanted, -shift, axis)
        else:
            other = plain(model, value)
            value = concatenated(model, [value, other], axis)
            wanted = np.concatenate([wanted, wanted], axis)
    end = plain(model, value)
    ones = model.constant(np.ones(1, np.float32))
    model.output(model.operator("MUL", [end.tensor, ones], model.shape(end.tensor)))
    (output,) = run_litert(model.to_bytes(), [array])
    np.testing.assert_array_equal(output.reshape(wanted.shape), wanted)
