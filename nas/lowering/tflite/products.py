"""Products: linear layers, convolutions, and of two activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import PreparationError
from nas.lowering.tflite.elementwise import array, binary, scaled, softmax
from nas.lowering.tflite.layout import (
    Shape,
    Value,
    as_shape,
    inverse,
    last_inside,
    padded,
    plain,
    reshaped,
    steps,
)
from nas.lowering.tflite.model import Model


@dataclass(frozen=True)
class Packed:
    """Linear layers stored as one, to be written apart: y = x W[index]^T + b[index].

    Which outputs belong together shows only when the result is taken apart. Row axes of `index`
    are those along which it does not change (their stride is 0).
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
    """A linear layer of which every output is still to be taken."""
    return Packed(x, weight, bias, torch.arange(len(weight)).expand(*x.shape[:-1], len(weight)))


def linear_part(model: Model, part: Packed) -> Value:
    """The linear layer of those outputs that were taken."""
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
    x = last_inside(model, x)
    rows, outputs, inputs = x.stored[:-1], *weight.shape
    tensor = as_shape(model, x.tensor, (prod(rows), inputs))
    given = [tensor, model.weights(array(weight), 0), model.bias(_bias(bias, outputs))]
    y = model.operator("FULLY_CONNECTED", given, (prod(rows), outputs), keep_num_dims=True)
    return Value(y, (*rows, outputs), x.order)


def _patch_rows(model: Model, patches: Patches, weight: Tensor) -> tuple[Value, Tensor]:
    """Patches as they are stored, and weights in that order, so that nothing is moved."""
    value, rank = patches.value, len(patches.value.shape)
    rows = range(rank - patches.merged)
    inner = sorted(range(len(rows), rank), key=value.order.__getitem__)
    sizes = value.shape[len(rows) :]
    turned = weight.reshape(-1, *sizes).permute(0, *(a - len(rows) + 1 for a in inner))
    x = plain(model, value.permuted([*rows, *inner]))
    return reshaped(model, x, patches.shape), turned.flatten(1)


def _bias(bias: Tensor | None, outputs: int) -> NDArray[np.float32]:
    return np.zeros(outputs, np.float32) if bias is None else array(bias)


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
    """A convolution, dense or depthwise, of square kernels and strides.

    Patches that do not overlap become a linear layer. Padding is that of SAME where this means what
    torch does, and is written out elsewhere.
    """
    kernel, step, edge = weight.shape[-1], stride[-1], padding[-1]
    inputs, outputs = x.shape[1], len(weight)
    square = all(len(set(sizes)) == 1 for sizes in (stride, padding, weight.shape[2:]))
    if set(dilation) != {1} or groups not in (1, inputs) or not square:
        raise PreparationError("dilated, oblong and grouped convolutions have no lowering here")
    whole = not any(side % kernel for side in x.shape[2:])
    if kernel == step and not edge and whole and groups == 1:
        return _patch_convolution(model, x, weight, bias)
    nhwc = plain(model, x.permuted((0, 2, 3, 1)))
    tensor = as_shape(model, nhwc.tensor, nhwc.shape)
    # SAME pads as torch does only where both sides get as much.
    same = all(
        side == -(-size // step) and (side - 1) * step + kernel - size == 2 * edge
        for side, size in zip(shape[2:], x.shape[2:])
    )
    if edge and not same:
        nhwc = padded(model, nhwc, {1: (edge, edge), 2: (edge, edge)}, 0.0)
        tensor = nhwc.tensor
    options = {"padding": 0 if same else 1, "stride_w": step, "stride_h": step}
    if groups == 1:
        name, weights = "CONV_2D", model.weights(array(weight.permute(0, 2, 3, 1)), 0)
    else:
        name, weights = "DEPTHWISE_CONV_2D", model.weights(array(weight.permute(1, 2, 3, 0)), 3)
        options["depth_multiplier"] = outputs // groups
    given = [tensor, weights, model.bias(_bias(bias, outputs))]
    out = (shape[0], shape[2], shape[3], outputs)
    return Value.of(model.operator(name, given, out, **options), out).permuted((0, 3, 1, 2))


def _patch_convolution(model: Model, x: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """A convolution of patches that do not overlap, as a product with each of them."""
    _, inputs, kernel, _ = weight.shape
    b, _, h, w = x.shape
    grid = h // kernel, w // kernel
    x = reshaped(model, x, (b, inputs, grid[0], kernel, grid[1], kernel))
    shape = (b, *grid, inputs * kernel**2)
    patches = Patches(x.permuted((0, 2, 4, 1, 3, 5)), 3, shape)
    return linear(model, (), patches, weight.flatten(1), bias).permuted((0, 3, 1, 2))


def matmul(model: Model, shape: Shape, a: Value | Tensor, b: Value | Tensor) -> Value:
    """A product of two values, or of a value and a constant, over equal batches."""
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
    """Scaled dot-product attention, spelled out: product, scale, mask, softmax, product."""
    *batch, n, d = q.shape
    logits_shape = (*batch, n, k.shape[-2])
    rank = len(q.shape)
    q = scaled(model, q, d**-0.5 if scale is None else scale)
    turned = k.permuted([*range(rank - 2), rank - 1, rank - 2])
    logits = matmul(model, logits_shape, q, turned)
    if attn_mask is not None:
        logits = binary("ADD", model, logits_shape, logits, attn_mask)
    return matmul(model, shape, softmax(model, logits_shape, logits, -1), v)
