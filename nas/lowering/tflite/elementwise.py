"""What works entry by entry, and what is made of it: sums, softmax, LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.errors import PreparationError
from nas.lowering.tflite.layout import (
    RANK,
    Shape,
    Value,
    as_shape,
    inverse,
    last_inside,
    like,
    reshaped,
)
from nas.lowering.tflite.model import Model


def array(tensor: Tensor) -> NDArray[np.float32]:
    """The numbers of a constant tensor as float32, in row-major order."""
    values: NDArray[np.float32] = tensor.detach().float().contiguous().numpy()
    return values


def unary(name: str, model: Model, _: Shape, x: Value, **options: Any) -> Value:
    """The operator `name` (such as RELU) on every entry of a value."""
    return x.with_tensor(model.operator(name, [x.tensor], model.shape(x.tensor), **options))


def scaled(model: Model, x: Value, factor: float) -> Value:
    """A value times a number. In int8 that costs nothing: only the scale changes."""
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
        return a if isinstance(a, Value) else b
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
    """A quotient, as a product with the reciprocal; that of a value is its RSQRT squared."""
    if isinstance(b, int | float | Tensor):
        return binary("MUL", model, shape, a, 1 / b)
    root = unary("RSQRT", model, b.shape, b)
    return binary("MUL", model, shape, a, binary("MUL", model, b.shape, root, root))


def silu(model: Model, shape: Shape, x: Value) -> Value:
    """x times the logistic function of x."""
    return binary("MUL", model, shape, x, unary("LOGISTIC", model, shape, x))


def hardsigmoid(model: Model, shape: Shape, x: Value) -> Value:
    """(x + 3) / 6, cut off at 0 and 1."""
    shifted = binary("ADD", model, shape, x, 3.0)
    return scaled(model, unary("RELU6", model, shape, shifted), 1 / 6)


def gelu(model: Model, shape: Shape, x: Value, approximate: str = "none") -> Value:
    """The GELU of a value, by the error function or by tanh."""
    return unary("GELU", model, shape, x, approximate=approximate == "tanh")


def softmax(model: Model, shape: Shape, x: Value, dim: int, dtype: Any = None) -> Value:
    """The softmax along one axis, which is moved innermost if it lies elsewhere."""
    if dim % len(shape) != len(shape) - 1:
        turned = [a for a in range(len(shape)) if a != dim % len(shape)] + [dim % len(shape)]
        y = softmax(model, tuple(shape[a] for a in turned), x.permuted(turned), -1)
        return y.permuted(inverse(turned))
    x = last_inside(model, x)
    tensor = as_shape(model, x.tensor, (prod(x.stored[:-2]), *x.stored[-2:]))
    return unary("SOFTMAX", model, shape, x.with_tensor(tensor), beta=1.0)


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
    """LayerNorm over the last axis, spelled out: mean, variance, RSQRT, then weight and bias."""
    if len(normalized) != 1:
        raise PreparationError("LayerNorm over several axes has no lowering here")
    x = last_inside(model, x)
    flat = prod(x.stored[:-1]), x.stored[-1]
    rows = Value.of(as_shape(model, x.tensor, flat), flat)
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
    """The mean along some axes, of values of four stored axes at most."""
    axes = sorted(x.order[d % len(x.shape)] for d in dim)
    stored = tuple(1 if i in axes else s for i, s in enumerate(x.stored))
    if len(x.stored) > RANK:
        raise PreparationError(f"a mean over a tensor of more than {RANK} axes")
    tensor = as_shape(model, x.tensor, x.stored)
    tensor = model.operator("MEAN", [tensor, model.numbers(axes)], stored, keep_dims=True)
    y = Value(tensor, stored, x.order)
    return y if keepdim else reshaped(model, y, shape)
