"""Models in TensorFlow Lite's format, written without TensorFlow.

Operators, their options and the slots of the file's tables are those of TensorFlow's
`tflite/schema.fbs` (version 3). A model is float32 or int8. In int8 its numbers mean nothing: all
activations have the same scale and weights are drawn from a normal distribution, as compilers
compress weights and so the time depends on how they are distributed, but on no single one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SCALE, ZERO = 0.05, -128  # of all int8 activations: RSQRT is only defined above the zero point
UNIT_SCALE = 1 / 256  # prescribed for softmax and the logistic function
WEIGHT_SCALE, WEIGHT_SPREAD = 0.01, 32  # 127 is four standard deviations
_TYPES = {"float32": 0, "int32": 2, "int8": 9}


class Operator(NamedTuple):
    """An operator's numbers in BuiltinOperator and BuiltinOptions; slot and type of each option."""

    code: int
    options: int = 0
    slots: Mapping[str, tuple[int, str]] = MappingProxyType({})


_WINDOW = {"padding": (0, "Int8"), "stride_w": (1, "Int32"), "stride_h": (2, "Int32")}

OPERATORS = {
    "ADD": Operator(0, 11),
    "CONCATENATION": Operator(2, 10, {"axis": (0, "Int32")}),
    "CONV_2D": Operator(3, 1, _WINDOW),
    "DEPTHWISE_CONV_2D": Operator(4, 2, {**_WINDOW, "depth_multiplier": (3, "Int32")}),
    "FULLY_CONNECTED": Operator(9, 8, {"keep_num_dims": (2, "Bool")}),
    "LOGISTIC": Operator(14),
    "MUL": Operator(18, 21),
    "RELU": Operator(19),
    "RELU6": Operator(21),
    "RESHAPE": Operator(22, 17),
    "RESIZE_BILINEAR": Operator(23, 15, {"half_pixel_centers": (3, "Bool")}),
    "SOFTMAX": Operator(25, 9, {"beta": (0, "Float32")}),
    "PAD": Operator(34, 22),
    "GATHER": Operator(36, 23, {"axis": (0, "Int32")}),
    "TRANSPOSE": Operator(39, 26),
    "MEAN": Operator(40, 27, {"keep_dims": (0, "Bool")}),
    "SUB": Operator(41, 28),
    "PADV2": Operator(60, 43),
    "SLICE": Operator(65, 48),
    "RSQRT": Operator(76),
    "SQUARED_DIFFERENCE": Operator(99, 76),
    "HARD_SWISH": Operator(117, 91),
    "BATCH_MATMUL": Operator(126, 101, {"adj_x": (0, "Bool"), "adj_y": (1, "Bool")}),
    "GELU": Operator(150, 116, {"approximate": (0, "Bool")}),
}


# Operators that leave the numbers as they are.
_MOVES = ("RESHAPE", "TRANSPOSE", "SLICE", "PAD", "GATHER", "CONCATENATION")


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    data: bytes
    scales: NDArray[np.float32] | None  # one, or one for each entry of `axis`
    zero: int
    axis: int


class Model:
    """A graph under construction; tensors are known by their number."""

    def __init__(self, int8: bool) -> None:
        self.int8 = int8
        self._tensors: list[_Tensor] = []
        self._operators: list[tuple[str, list[int], int, dict[str, Any]]] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._rng = np.random.default_rng(0)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._tensors[tensor].shape

    def input(self, shape: Sequence[int]) -> int:
        """A new input of the model; the number of its tensor."""
        self._inputs.append(self._activation(shape))
        return self._inputs[-1]

    def output(self, tensor: int) -> None:
        """Make a tensor the next output of the model."""
        self._outputs.append(tensor)

    def numbers(self, values: Sequence[int] | Sequence[Sequence[int]]) -> int:
        """An int32 constant: a shape, an axis, a permutation."""
        array = np.asarray(values, np.int32)
        return self._add(array.shape, "int32", array.tobytes())

    def constant(self, values: NDArray[np.float32]) -> int:
        """A constant operand of an operator that could take an activation there."""
        if not self.int8:
            return self._add(values.shape, "float32", np.ascontiguousarray(values).tobytes())
        return self._activation(values.shape, self._drawn(values.shape))

    def weights(self, values: NDArray[np.float32], axis: int) -> int:
        """Weights with a scale for each output channel along `axis`."""
        if not self.int8:
            return self._add(values.shape, "float32", np.ascontiguousarray(values).tobytes())
        scales = np.full(values.shape[axis], WEIGHT_SCALE, np.float32)
        return self._add(values.shape, "int8", self._drawn(values.shape), scales, 0, axis)

    def bias(self, values: NDArray[np.float32]) -> int:
        """The bias that belongs to the weights given last; int32 zeros in int8."""
        if not self.int8:
            return self._add(values.shape, "float32", np.ascontiguousarray(values).tobytes())
        scales = np.full(values.shape, WEIGHT_SCALE * SCALE, np.float32)
        return self._add(values.shape, "int32", bytes(4 * values.size), scales)

    def operator(
        self, name: str, inputs: Sequence[int], shape: Sequence[int], **options: Any
    ) -> int:
        """Append an operator with one output of this shape."""
        scale = SCALE
        if name in ("SOFTMAX", "LOGISTIC"):
            scale = UNIT_SCALE
        elif name in _MOVES and (scales := self._tensors[inputs[0]].scales) is not None:
            scale = float(scales[0])
        output = self._activation(shape, scale=scale)
        self._operators.append((name, list(inputs), output, options))
        return output

    def _drawn(self, shape: Sequence[int]) -> bytes:
        values = self._rng.normal(0, WEIGHT_SPREAD, tuple(shape)).round().clip(-127, 127)
        return values.astype(np.int8).tobytes()

    def _activation(self, shape: Sequence[int], data: bytes = b"", scale: float = SCALE) -> int:
        if not self.int8:
            return self._add(shape, "float32", data)
        return self._add(shape, "int8", data, np.array([scale], np.float32), ZERO)

    def _add(
        self,
        shape: Sequence[int],
        dtype: str,
        data: bytes,
        scales: NDArray[np.float32] | None = None,
        zero: int = 0,
        axis: int = 0,
    ) -> int:
        self._tensors.append(_Tensor(tuple(map(int, shape)), dtype, data, scales, zero, axis))
        return len(self._tensors) - 1

    def to_bytes(self) -> bytes:
        """The model as the bytes of a `.tflite` file."""
        return _File(self._tensors, self._operators, self._inputs, self._outputs).data


class _File:
    """Flatbuffers are written from the leaves up, each table before what points to it."""

    def __init__(
        self,
        tensors: list[_Tensor],
        operators: list[tuple[str, list[int], int, dict[str, Any]]],
        inputs: list[int],
        outputs: list[int],
    ) -> None:
        import flatbuffers  # type: ignore[import-untyped,unused-ignore]

        self.builder: Any = flatbuffers.Builder(1 << 16)
        codes = sorted({name for name, *_ in operators}, key=lambda name: OPERATORS[name].code)
        buffers = [b"", *(tensor.data for tensor in tensors if tensor.data)]
        buffer_offsets = self._offsets([self._buffer(data) for data in buffers])
        subgraph = self._subgraph(tensors, operators, inputs, outputs, codes)
        subgraphs = self._offsets([subgraph])
        code_offsets = self._offsets([self._code(OPERATORS[name].code) for name in codes])
        model = self._table(
            {0: ("Uint32", 3), 1: code_offsets, 2: subgraphs, 4: buffer_offsets}, slots=5
        )
        self.builder.Finish(model, b"TFL3")
        self.data = bytes(self.builder.Output())

    def _table(self, fields: dict[int, Any], slots: int) -> int:
        """Write a table; `fields` maps slots to offsets, or to the type and value of a scalar."""
        self.builder.StartObject(slots)
        for slot, field in fields.items():
            if isinstance(field, tuple):
                kind, value = field
                # A default that no value equals: what is given is always written.
                getattr(self.builder, f"Prepend{kind}Slot")(slot, value, None)
            elif field is not None:
                self.builder.PrependUOffsetTRelativeSlot(slot, field, 0)
        return self.builder.EndObject()  # type: ignore[no-any-return]

    def _offsets(self, items: Sequence[int]) -> int:
        self.builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            self.builder.PrependUOffsetTRelative(item)
        return self.builder.EndVector()  # type: ignore[no-any-return]

    def _vector(self, values: Sequence[int] | NDArray[Any], dtype: type) -> int:
        return self.builder.CreateNumpyVector(np.asarray(values, dtype))  # type: ignore[no-any-return]

    def _buffer(self, data: bytes) -> int:
        if not data:
            return self._table({}, slots=1)
        self.builder.StartVector(1, len(data), 16)  # the format wants buffers aligned
        self.builder.head -= len(data)
        self.builder.Bytes[self.builder.head : self.builder.head + len(data)] = data
        return self._table({0: self.builder.EndVector()}, slots=1)

    def _code(self, code: int) -> int:
        old = ("Int8", min(code, 127))  # readers before 2020 know no larger ones
        return self._table({0: old, 2: ("Int32", 1), 3: ("Int32", code)}, slots=4)

    def _tensor(self, label: str, tensor: _Tensor, buffer: int) -> int:
        quantization = None
        if tensor.scales is not None:
            scales = self._vector(tensor.scales, np.float32)
            zeros = self._vector(np.full(len(tensor.scales), tensor.zero), np.int64)
            axis = ("Int32", tensor.axis)
            quantization = self._table({2: scales, 3: zeros, 6: axis}, slots=7)
        name = self.builder.CreateString(label)
        shape = self._vector(tensor.shape, np.int32)
        fields = {0: shape, 1: ("Int8", _TYPES[tensor.dtype]), 2: ("Uint32", buffer), 3: name}
        return self._table({**fields, 4: quantization, 8: ("Bool", True)}, slots=9)

    def _operator(
        self, code: int, kind: Operator, inputs: list[int], output: int, values: dict[str, Any]
    ) -> int:
        fields: dict[int, Any] = {}
        for name, value in values.items():
            slot, scalar = kind.slots[name]
            fields[slot] = (scalar, value)
        options = self._table(fields, slots=7) if kind.options else None
        ends = self._vector(inputs, np.int32), self._vector([output], np.int32)
        return self._table(
            {0: ("Uint32", code), 1: ends[0], 2: ends[1], 3: ("Uint8", kind.options), 4: options},
            slots=5,
        )

    def _subgraph(
        self,
        tensors: list[_Tensor],
        operators: list[tuple[str, list[int], int, dict[str, Any]]],
        inputs: list[int],
        outputs: list[int],
        codes: list[str],
    ) -> int:
        buffer, tensor_offsets = 0, []
        writers = {output: name for name, _, output, _ in operators}  # what compilers show
        for i, tensor in enumerate(tensors):
            buffer += bool(tensor.data)
            label = f"{writers.get(i, 'T')}/{i}"
            tensor_offsets.append(self._tensor(label, tensor, buffer if tensor.data else 0))
        operator_offsets = [
            self._operator(codes.index(name), OPERATORS[name], ins, out, values)
            for name, ins, out, values in operators
        ]
        fields = {
            0: self._offsets(tensor_offsets),
            1: self._vector(inputs, np.int32),
            2: self._vector(outputs, np.int32),
            3: self._offsets(operator_offsets),
            4: self.builder.CreateString("main"),
        }
        return self._table(fields, slots=5)
