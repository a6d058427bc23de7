"""Torch's operators in those of TensorFlow Lite: what each of them writes into a model.

A writer gets the model, the shape of the result and the operator's arguments; of those, values
depend on the input and tensors are constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import isqrt, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import PreparationError
from nas.tflite import Model
from nas.tflite_layout import (
    RANK,
    Value,
    as_shape,
    concatenated,
    inverse,
    like,
    plain,
    replaced,
    reshaped,
    rolled,
    sliced,
    steps,
)
from nas.windows import window_tokens

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Linear layers that are computed apart once it is known which: y = x W[index]^T + b[index].

    Row axes of `index` are those along which it does not change (their stride is 0).
    """

    x: Value
    weight: Tensor
    bias: Tensor | None
    index: Tensor


@dataclass(frozen=True)
class Patches:
    """A value about to become `shape`, whose last axis is the last `merged` ones of the value.

    The linear layer that follows can take these in any order.
    """

    value: Value
    merged: int
    shape: Shape


def packed(x: Value, weight: Tensor, bias: Tensor | None = None) -> Packed:
    return Packed(x, weight, bias, torch.arange(len(weight)).expand(*x.shape[:-1], len(weight)))


def linear_part(model: Model, part: Packed) -> Value:
    index = part.index
    rows = [a for a in range(index.ndim) if index.stride(a) == 0]
    features = [a for a in range(index.ndim) if a not in rows]
    chosen = index.permute(*rows, *features)[(0,) * len(rows)]
    x = reshaped(model, part.x, [*(index.shape[a] for a in rows), part.x.shape[-1]])
    flat = chosen.flatten()
    bias = None if part.bias is None else part.bias[flat]
    y = linear(model, (), x, part.weight[flat], bias)
    y = reshaped(model, y, [*y.shape[:-1], *chosen.shape])
    return y.permuted(inverse([*rows, *features]))


def linear(
    model: Model, _: Shape, x: Value | Patches, weight: Tensor, bias: Tensor | None = None
) -> Value:
    """One FULLY_CONNECTED of all rows, in the order in which they are stored."""
    if isinstance(x, Patches):
        x, weight = _patch_rows(model, x, weight)
    x = _last_inside(model, x)
    rows, outputs, inputs = x.stored[:-1], *weight.shape
    tensor = as_shape(model, x.tensor, (prod(rows), inputs))
    given = [tensor, model.weights(array(weight), 0), model.bias(_bias(bias, outputs))]
    y = model.operator("FULLY_CONNECTED", given, (prod(rows), outputs), keep_num_dims=True)
    return Value(y, (*rows, outputs), x.order)


def _patch_rows(model: Model, patches: Patches, weight: Tensor) -> tuple[Value, Tensor]:
    """Inputs as they are stored; the weights follow, and nothing within a patch is moved."""
    value, rank = patches.value, len(patches.value.shape)
    rows = range(rank - patches.merged)
    inner = sorted(range(len(rows), rank), key=value.order.__getitem__)
    sizes = value.shape[len(rows) :]
    turned = weight.reshape(-1, *sizes).permute(0, *(a - len(rows) + 1 for a in inner))
    x = plain(model, value.permuted([*rows, *inner]))
    return reshaped(model, x, patches.shape), turned.flatten(1)


def _last_inside(model: Model, x: Value) -> Value:
    """The value with its last axis stored innermost."""
    return x if x.order[-1] == len(x.order) - 1 else plain(model, x)


def _bias(bias: Tensor | None, outputs: int) -> NDArray[np.float32]:
    return np.zeros(outputs, np.float32) if bias is None else array(bias)


def array(tensor: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    return values


def conv2d(
    model: Model,
    shape: Shape,
    x: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Value:
    kernel, stride, padding = weight.shape[-1], stride[-1], padding[-1]
    inputs, outputs = x.shape[1], len(weight)
    if set(dilation) != {1} or groups not in (1, inputs) or len(set(weight.shape[2:])) > 1:
        raise PreparationError("dilated, oblong and grouped convolutions have no lowering here")
    if kernel == stride and not padding and x.shape[-1] % kernel == 0 and groups == 1:
        return _patch_convolution(model, x, weight, bias)
    size, side = x.shape[-1], shape[-1]
    nhwc = plain(model, x.permuted((0, 2, 3, 1)))
    tensor = as_shape(model, nhwc.tensor, nhwc.shape)
    # SAME pads as torch does only where both sides get as much.
    same = max((side - 1) * stride + kernel - size, 0) == 2 * padding and x.shape[2] == size
    if padding and not same:
        nhwc = _padded(model, nhwc, {1: (padding, padding), 2: (padding, padding)}, 0.0)
        tensor = nhwc.tensor
    options = {"padding": 0 if same else 1, "stride_w": stride, "stride_h": stride}
    if groups == 1:
        name, weights = "CONV_2D", model.weights(array(weight.permute(0, 2, 3, 1)), 0)
    else:
        name, weights = "DEPTHWISE_CONV_2D", model.weights(array(weight.permute(1, 2, 3, 0)), 3)
        options["depth_multiplier"] = outputs // groups
    given = [tensor, weights, model.bias(_bias(bias, outputs))]
    out = (shape[0], shape[2], shape[3], outputs)
    return Value.of(model.operator(name, given, out, **options), out).permuted((0, 3, 1, 2))


def _patch_convolution(model: Model, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """Of patches that do not overlap: a product with each of them."""
    outputs, inputs, kernel, _ = weight.shape
    b, _, h, w = x.shape
    grid = h // kernel, w // kernel
    x = reshaped(model, x, (b, inputs, grid[0], kernel, grid[1], kernel))
    shape = (b, *grid, inputs * kernel**2)
    patches = Patches(x.permuted((0, 2, 4, 1, 3, 5)), 3, shape)
    return linear(model, (), patches, weight.flatten(1), bias).permuted((0, 3, 1, 2))


def batch_matmul(model: Model, shape: Shape, a: Value | Tensor, b: Value | Tensor) -> Value:
    if isinstance(b, Tensor) and b.ndim == 2 and isinstance(a, Value):
        return linear(model, shape, a, b.mT)
    rank = len(shape)
    values = [x for x in (a, b) if isinstance(x, Value)]
    # Products may come in any order: the one that moves least.
    batches = permutations(range(rank - 2))
    batch = min(batches, key=lambda order: sum(steps(_as_factor(x, order)[0]) for x in values))
    (left, adj_x), (right, adj_y) = (_factor(model, x, shape, batch) for x in (a, b))
    order = [*batch, rank - 2, rank - 1]
    stored = tuple(shape[axis] for axis in order)
    out = (prod(stored[:-2]), *stored[-2:])
    tensor = model.operator("BATCH_MATMUL", [left, right], out, adj_x=adj_x, adj_y=adj_y)
    return Value(tensor, stored, inverse(order))


def _as_factor(x: Value, batch: Sequence[int]) -> tuple[Value, bool]:
    """Its axes as a product takes them: the batch in this order, and rows before columns or not."""
    last = len(x.shape) - 1
    turned = x.order[last] < x.order[last - 1]
    inner = (last, last - 1) if turned else (last - 1, last)
    return x.permuted([*batch, *inner]), turned


def _factor(
    model: Model, x: Value | Tensor, shape: Shape, batch: Sequence[int]
) -> tuple[int, bool]:
    """A factor as (products, rows, columns), or True and (products, columns, rows)."""
    if isinstance(x, Tensor):
        values = x.expand(*shape[:-2], *x.shape[-2:]).permute(*batch, -2, -1)
        return model.constant(array(values.reshape(-1, *x.shape[-2:]))), False
    if x.shape[:-2] != shape[:-2]:
        raise PreparationError("products of batches of different shapes have no lowering here")
    factor, turned = _as_factor(x, batch)
    factor = plain(model, factor)
    return as_shape(model, factor.tensor, (prod(shape[:-2]), *factor.shape[-2:])), turned


def attention(
    model: Model,
    shape: Shape,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> Value:
    *batch, n, d = q.shape
    logits_shape = (*batch, n, k.shape[-2])
    rank = len(q.shape)
    q = scaled(model, q, d**-0.5 if scale is None else scale)
    turned = k.permuted([*range(rank - 2), rank - 1, rank - 2])
    logits = batch_matmul(model, logits_shape, q, turned)
    if attn_mask is not None:
        logits = binary("ADD", model, logits_shape, logits, attn_mask)
    return batch_matmul(model, shape, softmax(model, logits_shape, logits, -1), v)


def softmax(model: Model, shape: Shape, x: Value, dim: int, dtype: Any = None) -> Value:
    if dim % len(shape) != len(shape) - 1:
        turned = [a for a in range(len(shape)) if a != dim % len(shape)] + [dim % len(shape)]
        y = softmax(model, tuple(shape[a] for a in turned), x.permuted(turned), -1)
        return y.permuted(inverse(turned))
    x = _last_inside(model, x)
    tensor = as_shape(model, x.tensor, (prod(x.stored[:-2]), *x.stored[-2:]))
    return unary("SOFTMAX", model, shape, x.with_tensor(tensor), beta=1.0)


def unary(name: str, model: Model, _: Shape, x: Value, **options: Any) -> Value:
    return x.with_tensor(model.operator(name, [x.tensor], model.shape(x.tensor), **options))


def scaled(model: Model, x: Value, factor: float) -> Value:
    """In int8 the same numbers with another scale."""
    if model.int8:
        return x
    return binary("MUL", model, x.shape, x, torch.tensor(factor))


def binary(name: str, model: Model, shape: Shape, a: Any, b: Any, *, alpha: float = 1) -> Value:
    """ADD, SUB or MUL of values, constants and numbers, in the layout of the larger value."""
    if isinstance(b, int | float):
        b = torch.tensor(float(b))
    if isinstance(a, int | float):
        a = torch.tensor(float(a))
    if alpha != 1:
        raise PreparationError("sums with a factor have no lowering here")
    number = next((x for x in (a, b) if isinstance(x, Tensor) and x.numel() == 1), None)
    if model.int8 and number is not None:
        return a if isinstance(a, Value) else b  # type: ignore[no-any-return]
    main = max((x for x in (a, b) if isinstance(x, Value)), key=lambda x: prod(x.shape))
    main = reshaped(model, main, (*(1,) * (len(shape) - len(main.shape)), *main.shape))
    sides = [_in_layout(model, x, main) for x in (a, b)]
    stored = tuple(max(sizes) for sizes in zip(*(own for _, own in sides)))
    # A constant as large as the value is read in one go, whatever its channels.
    flat = any(isinstance(x, Tensor) and x.numel() == prod(shape) for x in (a, b))
    groups = _broadcast_groups([own for _, own in sides], flat)
    given = [as_shape(model, tensor, _sizes(own, groups)) for tensor, own in sides]
    return Value(model.operator(name, given, _sizes(stored, groups)), stored, main.order)


def _sizes(stored: Shape, groups: list[list[int]]) -> list[int]:
    return [prod(stored[i] for i in group) for group in groups]


def _in_layout(model: Model, x: Value | Tensor, main: Value) -> tuple[int, Shape]:
    """A tensor and the shape it has when its axes lie like those of `main`."""
    missing = (1,) * (len(main.shape) - (x.ndim if isinstance(x, Tensor) else len(x.shape)))
    if isinstance(x, Tensor):
        turned = x.reshape(*missing, *x.shape).permute(inverse(main.order))
        return model.constant(array(turned)), tuple(turned.shape)
    x = like(model, reshaped(model, x, (*missing, *x.shape)), main)
    return x.tensor, x.stored


def _broadcast_groups(shapes: Sequence[Shape], flat: bool) -> list[list[int]]:
    """Stored axes that may be seen as one: equal on both sides, or of one entry on the same one.

    Unless `flat` the innermost stays by itself: accelerators work by channels.
    """
    groups: list[list[int]] = []
    kinds: list[Any] = []
    for i, sizes in enumerate(zip(*shapes, strict=True)):
        if all(s == 1 for s in sizes):
            continue
        kind = tuple(s == 1 for s in sizes)
        if kinds and kinds[-1] == kind and (flat or i < len(shapes[0]) - 1):
            groups[-1].append(i)
        else:
            groups.append([i])
            kinds.append(kind)
    if len(groups) > RANK:
        raise PreparationError(f"operands that broadcast along more than {RANK} groups of axes")
    return groups or [[0]]


def divided(model: Model, shape: Shape, a: Value, b: Any, **_: Any) -> Value:
    if isinstance(b, int | float | Tensor):
        return binary("MUL", model, shape, a, 1 / b)
    root = unary("RSQRT", model, b.shape, b)
    return binary("MUL", model, shape, a, binary("MUL", model, b.shape, root, root))


def silu(model: Model, shape: Shape, x: Value) -> Value:
    return binary("MUL", model, shape, x, unary("LOGISTIC", model, shape, x))


def hardsigmoid(model: Model, shape: Shape, x: Value) -> Value:
    shifted = binary("ADD", model, shape, x, 3.0)
    return scaled(model, unary("RELU6", model, shape, shifted), 1 / 6)


def gelu(model: Model, shape: Shape, x: Value, approximate: str = "none") -> Value:
    return unary("GELU", model, shape, x, approximate=approximate == "tanh")


def layer_norm(
    model: Model,
    shape: Shape,
    x: Value,
    normalized: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Value:
    if len(normalized) != 1:
        raise PreparationError("LayerNorm over several axes has no lowering here")
    x = _last_inside(model, x)
    rows = Value.of(
        as_shape(model, x.tensor, (prod(x.stored[:-1]), x.stored[-1])),
        (prod(x.stored[:-1]), x.stored[-1]),
    )
    one = (rows.shape[0], 1)
    mean = mean_of(model, one, rows, [1], True)
    centred = binary("SUB", model, rows.shape, rows, mean)
    squares = binary("MUL", model, rows.shape, centred, centred)
    spread = binary("ADD", model, one, mean_of(model, one, squares, [1], True), eps)
    y = binary("MUL", model, rows.shape, centred, unary("RSQRT", model, one, spread))
    for name, constant in (("MUL", weight), ("ADD", bias)):
        y = y if constant is None else binary(name, model, rows.shape, y, constant)
    return x.with_tensor(y.tensor)


def mean_of(
    model: Model, shape: Shape, x: Value, dim: Sequence[int], keepdim: bool = False, **_: Any
) -> Value:
    axes = sorted(x.order[d % len(x.shape)] for d in dim)
    stored = tuple(1 if i in axes else s for i, s in enumerate(x.stored))
    if len(x.stored) > RANK:
        raise PreparationError(f"a mean over a tensor of more than {RANK} axes")
    tensor = as_shape(model, x.tensor, x.stored)
    tensor = model.operator("MEAN", [tensor, model.numbers(axes)], stored, keep_dims=True)
    y = Value(tensor, stored, x.order)
    return y if keepdim else reshaped(model, y, shape)


def pad(
    model: Model,
    _: Shape,
    x: Value,
    sides: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Value:
    rank = len(x.shape)
    amounts = {rank - 1 - i: tuple(sides[2 * i : 2 * i + 2]) for i in range(len(sides) // 2)}
    return _padded(model, x, {a: s for a, s in amounts.items() if any(s)}, value or 0.0)  # type: ignore[misc]


def _padded(model: Model, x: Value, amounts: dict[int, tuple[int, int]], value: float) -> Value:
    if any(side < 0 for sides in amounts.values() for side in sides):
        raise PreparationError("negative padding has no lowering here")
    by_stored = {x.order[a]: s for a, s in amounts.items()}
    runs: list[list[int]] = []  # axes without padding lie together where they can
    for i in range(len(x.stored)):
        if runs and i not in by_stored and runs[-1][-1] not in by_stored:
            runs[-1].append(i)
        else:
            runs.append([i])
    sides = [by_stored.get(run[0], (0, 0)) for run in runs]
    shape = [prod(x.stored[i] for i in run) for run in runs]
    tensor = as_shape(model, x.tensor, shape)
    given = [tensor, model.numbers([list(s) for s in sides])]
    if value:
        given.append(model.constant(np.full(1, value, np.float32)))
    out = [size + sum(side) for size, side in zip(shape, sides)]
    tensor = model.operator("PADV2" if value else "PAD", given, out)
    stored = tuple(s + sum(by_stored.get(i, (0, 0))) for i, s in enumerate(x.stored))
    return Value(tensor, stored, x.order)


def index_select(model: Model, shape: Shape, x: Value, dim: int, index: Tensor) -> Value:
    found = _windows(index) if dim == 0 and len(x.shape) == 2 else None
    if found is None:
        x = plain(model, x)
        outer, size, inner = prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])
        tensor = as_shape(model, x.tensor, (outer, size, inner))
        given = [tensor, model.numbers(index.tolist())]
        y = model.operator("GATHER", given, (outer, len(index), inner), axis=1)
        return Value.of(y, shape)
    side, window, shift = found
    n, c = side // window, x.shape[1]
    x = rolled(model, reshaped(model, x, (side, side, c)), {0: shift, 1: shift})
    x = reshaped(model, x, (n, window, n, window, c)).permuted((0, 2, 1, 3, 4))
    return reshaped(model, x, shape)


def index_copy(
    model: Model, shape: Shape, x: Value, dim: int, index: Tensor, source: Value
) -> Value:
    found = _windows(index) if dim == 0 and len(x.shape) == 2 else None
    if found is None or len(index) != len(range(shape[0])):
        raise PreparationError("rows written to constant places have no lowering here")
    side, window, shift = found
    n, c = side // window, shape[1]
    y = reshaped(model, source, (n, n, window, window, c)).permuted((0, 2, 1, 3, 4))
    y = rolled(model, reshaped(model, y, (side, side, c)), {0: -shift, 1: -shift})
    return reshaped(model, y, shape)


def _windows(index: Tensor) -> tuple[int, int, int] | None:
    """(side, window, shift) if these are all tokens of a map in the order of its windows."""
    side = isqrt(len(index))
    if side * side != len(index):
        return None
    shift = int(index[0]) // (side + 1)
    for window in (w for w in range(1, side + 1) if side % w == 0):
        if torch.equal(window_tokens(side, window, shift, index.device).flatten(), index):
            return side, window, shift
    return None


def taken(
    model: Model,
    _: Shape,
    x: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    size = x.shape[dim]
    first, last, step = slice(start, end, step).indices(size)
    if step != 1:
        raise PreparationError("slices with a step have no lowering here")
    return sliced(model, x, dim % len(x.shape), first, last)


def unbind(model: Model, _: Shape, x: Value, dim: int = 0) -> list[Value]:
    return [select(model, (), x, dim, i) for i in range(x.shape[dim])]


def select(model: Model, _: Shape, x: Value, dim: int, i: int) -> Value:
    dim, i = dim % len(x.shape), i % x.shape[dim]
    rest = [s for a, s in enumerate(x.shape) if a != dim]
    return reshaped(model, sliced(model, x, dim, i, i + 1), rest)


def split(model: Model, _: Shape, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    total = x.shape[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, total - at) for at in range(0, total, sizes)]
    ends = np.cumsum(sizes).tolist()
    return [sliced(model, x, dim % len(x.shape), e - s, e) for s, e in zip(sizes, ends)]


def chunk(model: Model, _: Shape, x: Value, chunks: int, dim: int = 0) -> list[Value]:
    return split(model, (), x, -(-x.shape[dim] // chunks), dim)


def cat(model: Model, _: Shape, values: Sequence[Value | Tensor], dim: int = 0) -> Value:
    whole = [
        Value.of(model.constant(array(v)), v.shape) if isinstance(v, Tensor) else v for v in values
    ]
    main = next(v for v in values if isinstance(v, Value))
    whole = [like(model, value, main) for value in whole]
    return concatenated(model, whole, dim % len(main.shape))


def stack(model: Model, shape: Shape, values: Sequence[Value | Tensor], dim: int = 0) -> Value:
    one = (*shape[: dim % len(shape)], 1, *shape[dim % len(shape) + 1 :])
    return cat(
        model,
        shape,
        [v.reshape(one) if isinstance(v, Tensor) else reshaped(model, v, one) for v in values],
        dim,
    )


def permute(model: Model, _: Shape, x: Value, dims: Sequence[int]) -> Value:
    return x.permuted([d % len(x.shape) for d in dims])


def transpose(model: Model, _: Shape, x: Value, a: int = 0, b: int = 1) -> Value:
    axes = list(range(len(x.shape)))
    axes[a], axes[b] = axes[b], axes[a]
    return x.permuted(axes)


def turned(model: Model, _: Shape, x: Value) -> Value:
    return transpose(model, (), x, -1, -2)


def view(model: Model, shape: Shape, x: Value, *_: Any, **__: Any) -> Value:
    return reshaped(model, x, shape)


def same(model: Model, shape: Shape, x: Value, *_: Any, **__: Any) -> Value:
    if x.shape != shape:
        raise PreparationError("values expanded to another shape have no lowering here")
    return x


def resized(model: Model, shape: Shape, x: Value, *_: Any, **__: Any) -> Value:
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
    "matmul": batch_matmul,
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
