"""Torch's operators in those of TensorFlow Lite: what each of them writes into a model.

A writer gets the model, the shape of the result and the operator's arguments; of those, values
depend on the input and tensors are constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import gcd, isqrt, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.errors import PreparationError
from nas.layers.windows import window_tokens
from nas.lowering.tflite.elementwise import (
    array,
    binary,
    divided,
    gelu,
    hardsigmoid,
    layer_norm,
    mean_of,
    silu,
    softmax,
    unary,
)
from nas.lowering.tflite.layout import (
    Shape,
    Value,
    as_shape,
    concatenated,
    like,
    padded,
    plain,
    reshaped,
    rolled,
    sliced,
)
from nas.lowering.tflite.model import Model
from nas.lowering.tflite.products import attention, conv2d, linear, matmul
from nas.size import Size, sides, size_of


def pad(
    model: Model,
    _: Shape,
    x: Value,
    sides: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Value:
    """A value padded by a constant; `sides` begin with the last axis, as torch has them."""
    if mode != "constant":
        raise PreparationError(f"padding of the mode {mode!r} has no lowering here")
    rank = len(x.shape)
    amounts = {rank - 1 - i: tuple(sides[2 * i : 2 * i + 2]) for i in range(len(sides) // 2)}
    return padded(model, x, {a: s for a, s in amounts.items() if any(s)}, value or 0.0)  # type: ignore[misc]


def index_select(model: Model, shape: Shape, x: Value, dim: int, index: Tensor) -> Value:
    """Rows taken at constant places: views and slices where they are windows of a map."""
    found = _windows(index) if dim == 0 and len(x.shape) == 2 else None
    if found is None:
        x = plain(model, x)
        outer, size, inner = prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])
        tensor = as_shape(model, x.tensor, (outer, size, inner))
        given = [tensor, model.numbers(index.tolist())]
        y = model.operator("GATHER", given, (outer, len(index), inner), axis=1)
        return Value.of(y, shape)
    (height, width), (down, across), shift = map(sides, found)
    c, apart = x.shape[1], (height // down, down, width // across, across)
    x = rolled(model, reshaped(model, x, (height, width, c)), dict(enumerate(shift)))
    x = reshaped(model, x, (*apart, c)).permuted((0, 2, 1, 3, 4))
    return reshaped(model, x, shape)


def index_copy(
    model: Model, shape: Shape, x: Value, dim: int, index: Tensor, source: Value
) -> Value:
    """Windows written back to the places in the map that they were taken from."""
    found = _windows(index) if dim == 0 and len(x.shape) == 2 else None
    if found is None or len(index) != shape[0]:
        raise PreparationError("rows written to constant places have no lowering here")
    (height, width), (down, across), shift = map(sides, found)
    c, apart = shape[1], (height // down, width // across, down, across)
    y = reshaped(model, source, (*apart, c)).permuted((0, 2, 1, 3, 4))
    y = rolled(model, reshaped(model, y, (height, width, c)), {a: -s for a, s in enumerate(shift)})
    return reshaped(model, y, shape)


def _windows(index: Tensor) -> tuple[Size, Size, Size] | None:
    """(size, window, shift) if these are all tokens of a map in the order of its windows."""
    for size in _maps(index):
        height, width = sides(size)
        shift = size_of(*divmod(int(index[0]), width))
        common = gcd(height, width)
        for window in (w for w in range(1, common + 1) if common % w == 0):
            if torch.equal(window_tokens(size, window, shift, index.device).flatten(), index):
                return size, window, shift
    return None


def _maps(index: Tensor) -> Iterator[Size]:
    """The sizes that a map with these tokens may have, a square first.

    The tokens of the first row of the first window follow each other, and those below stand one
    width of the map further on. Where there is one window in a row, a column of tokens does.
    """
    tokens, side = len(index), isqrt(len(index))
    if side * side == tokens:
        yield side
    ends = (index.diff() != 1).nonzero().flatten()
    width = int(index[ends[0] + 1] - index[0]) if len(ends) else 0
    if 0 < width < tokens and tokens % width == 0:
        yield size_of(tokens // width, width)
    yield size_of(tokens, 1)


def taken(
    model: Model,
    _: Shape,
    x: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    """A slice along one axis, without steps."""
    size = x.shape[dim]
    first, last, step = slice(start, end, step).indices(size)
    if step != 1:
        raise PreparationError("slices with a step have no lowering here")
    return sliced(model, x, dim % len(x.shape), first, last)


def unbind(model: Model, _: Shape, x: Value, dim: int = 0) -> list[Value]:
    """The parts along an axis, each without that axis."""
    return [select(model, (), x, dim, i) for i in range(x.shape[dim])]


def select(model: Model, _: Shape, x: Value, dim: int, i: int) -> Value:
    """The part at one place of an axis, without that axis."""
    dim, i = dim % len(x.shape), i % x.shape[dim]
    rest = [s for a, s in enumerate(x.shape) if a != dim]
    return reshaped(model, sliced(model, x, dim, i, i + 1), rest)


def split(model: Model, _: Shape, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """Parts of given sizes along an axis, or of one size until the end."""
    total = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - at) for at in range(0, total, sizes)]
    ends = np.cumsum(sizes).tolist()
    return [sliced(model, x, dim % len(x.shape), e - s, e) for s, e in zip(sizes, ends)]


def chunk(model: Model, _: Shape, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    """So many parts of equal size along an axis; the last may be smaller."""
    return split(model, (), x, -(-x.shape[dim] // chunks), dim)


def cat(model: Model, _: Shape, values: Sequence[Value | Tensor], dim: int = 0) -> Value:
    """Values and constants one after the other along an axis."""
    whole = [
        Value.of(model.constant(array(v)), v.shape) if isinstance(v, Tensor) else v for v in values
    ]
    main = next(v for v in values if isinstance(v, Value))
    whole = [like(model, value, main) for value in whole]
    return concatenated(model, whole, dim % len(main.shape))


def stack(model: Model, shape: Shape, values: Sequence[Value | Tensor], dim: int = 0) -> Value:
    """Values and constants side by side along a new axis."""
    one = (*shape[: dim % len(shape)], 1, *shape[dim % len(shape) + 1 :])
    return cat(
        model,
        shape,
        [v.reshape(one) if isinstance(v, Tensor) else reshaped(model, v, one) for v in values],
        dim,
    )


def permute(model: Model, _: Shape, x: Value, dims: Sequence[int]) -> Value:
    """The axes in another order."""
    return x.permuted([d % len(x.shape) for d in dims])


def transpose(model: Model, _: Shape, x: Value, a: int = 0, b: int = 1) -> Value:
    """Two axes exchanged."""
    axes = list(range(len(x.shape)))
    axes[a], axes[b] = axes[b], axes[a]
    return x.permuted(axes)


def turned(model: Model, _: Shape, x: Value) -> Value:
    """The last two axes exchanged."""
    return transpose(model, (), x, -1, -2)


def view(model: Model, shape: Shape, x: Value, *_: Any, **__: Any) -> Value:
    """The same entries in another shape."""
    return reshaped(model, x, shape)


def same(model: Model, shape: Shape, x: Value, *_: Any, **__: Any) -> Value:
    """The value itself, for operators that only copy, move or expand to the same shape."""
    if x.shape != shape:
        raise PreparationError("values expanded to another shape have no lowering here")
    return x


def resized(model: Model, shape: Shape, x: Value, *_: Any, **__: Any) -> Value:
    """A map (n, channels, height, width) at another size, bilinear."""
    x = plain(model, x.permuted((0, 2, 3, 1)))
    out = (shape[0], shape[2], shape[3], shape[1])
    given = [as_shape(model, x.tensor, x.shape), model.numbers(list(out[1:3]))]
    y = model.operator("RESIZE_BILINEAR", given, out, half_pixel_centers=True)
    return Value.of(y, out).permuted((0, 3, 1, 2))


def _named(name: str, writer: Callable[..., Value]) -> Callable[..., Value]:
    def write(model: Model, shape: Shape, *args: Any, **kwargs: Any) -> Value:
        return writer(name, model, shape, *args, **kwargs)

    return write


_SAME = ("alias", "clone", "contiguous", "detach", "dropout", "expand", "lift_fresh_copy", "to")
WRITERS: dict[str, Callable[..., Any]] = {
    **{name: _named(name.upper(), binary) for name in ("add", "sub", "mul")},
    "relu": _named("RELU", unary),
    "hardswish": _named("HARD_SWISH", unary),
    "sigmoid": _named("LOGISTIC", unary),
    **dict.fromkeys(("view", "reshape", "flatten", "unsqueeze", "squeeze"), view),
    **dict.fromkeys(_SAME, same),
    "cat": cat,
    "chunk": chunk,
    "conv2d": conv2d,
    "div": divided,
    "gelu": gelu,
    "hardsigmoid": hardsigmoid,
    "index_copy": index_copy,
    "index_select": index_select,
    "layer_norm": layer_norm,
    "linear": linear,
    "mT": turned,
    "matmul": matmul,
    "mean": mean_of,
    "pad": pad,
    "permute": permute,
    "scaled_dot_product_attention": attention,
    "select": select,
    "silu": silu,
    "slice": taken,
    "softmax": softmax,
    "split": split,
    "stack": stack,
    "t": turned,
    "transpose": transpose,
    "unbind": unbind,
    "upsample_bilinear2d": resized,
}
