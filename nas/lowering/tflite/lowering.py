"""Layers of any family as TensorFlow Lite models, in int8 for NPUs or float32 to check them.

The layers are traced to torch's operators; each of those has a function here that writes it.
What depends on weights alone is computed at once. The trace is that of training: windows run as
one chunk, and maps are cloned instead of overwritten.

What a deployment would do is done: maps are channel-last; convolutions without overlap and
products are one FULLY_CONNECTED each; queries, keys and values that come packed are computed apart;
windows of a whole map are reshapes and transpositions. In int8, numbers that are added or
multiplied cost nothing (they change a scale or a zero point), and a quotient is a product with the
square of RSQRT, which is a table on every NPU, unlike DIV (so denominators must be positive).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from nas.errors import PreparationError
from nas.lowering.tflite.layout import Value, plain
from nas.lowering.tflite.model import Model
from nas.lowering.tflite.operators import WRITERS
from nas.lowering.tflite.products import Packed, Patches, linear_part, packed
from nas.network.standalone import Steps, build, inputs, run
from nas.space.layer import Layer

# Work that depends on the data, by the operator of TensorFlow Lite that it would be: no NPU runs
# them. Those with a number run if that argument, the index, is constant.
_DYNAMIC = {
    "aten.argsort": ("TOPK_V2", None),
    "aten.sort": ("TOPK_V2", None),
    "aten.topk": ("TOPK_V2", None),
    "aten.gather": ("GATHER_ND", None),
    "aten.index": ("GATHER", 1),
    "aten.index_select": ("GATHER", 2),
    "aten.index_copy_": ("SCATTER_ND", 2),
    "aten.index_copy": ("SCATTER_ND", 2),
}


def at_one_precision(layer: Layer) -> Layer:
    """The layer with its linear layers in float32: the whole model is int8 or is not."""
    return layer.at_bits(32)


def trace(steps: Steps, state: tuple[Any, ...]) -> tuple[fx.GraphModule, list[Tensor]]:
    """A pass as a graph of torch's operators, and the tensors of `state` that are its inputs."""
    items, form = tree_flatten(state)
    tensors = [item for item in items if isinstance(item, Tensor)]

    def forward(*given: Tensor) -> tuple[Any, ...]:
        filled = iter(given)
        own = [next(filled) if isinstance(item, Tensor) else item for item in items]
        return run(steps, tree_unflatten(own, form))

    with torch.enable_grad():
        try:
            forward(*(t.clone() for t in tensors))  # tables made under the tracer stay unreal
        except RuntimeError as error:
            names = ", ".join(type(module).__name__ for module, _ in steps)
            raise PreparationError(f"{names}: {str(error).splitlines()[0]}") from None
        graph = make_fx(
            forward, tracing_mode="fake", _allow_non_fake_inputs=True, pre_dispatch=True
        )(*tensors)
    return graph, tensors


class Lowered(NamedTuple):
    """The file of a model, or the operators that keep layers from having one."""

    data: bytes
    dynamic: tuple[str, ...]  # operators that no NPU runs; then there is no file


def lower(layers: Sequence[Layer], int8: bool = True) -> Lowered:
    """Consecutive layers as one model; `PreparationError` for operators not known here."""
    layers = [at_one_precision(layer) for layer in layers]
    steps = build(layers)
    return lower_steps(steps, inputs(layers[0], 1), int8)


def lower_steps(steps: Steps, state: tuple[Any, ...], int8: bool = True) -> Lowered:
    """Modules that are built already as one model, for inputs of the shapes in `state`."""
    graph, _ = trace(steps, state)
    dynamic = _dynamic(graph)
    if dynamic:
        return Lowered(b"", dynamic)
    fold_biases(graph)
    lowering = Lowering(graph, int8)
    return Lowered(lowering.model.to_bytes(), ())


def _variable(graph: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose value depends on the input."""
    found: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def fold_biases(graph: fx.GraphModule) -> None:
    """Constants added to the only use of a linear layer become its bias."""
    variable = _variable(graph)
    for node in list(graph.graph.nodes):
        if _name(node) != "add" or len(node.args) != 2 or node.kwargs:
            continue
        product, bias = node.args
        if not isinstance(bias, fx.Node) or bias in variable or bias.meta["val"].ndim != 1:
            continue
        if _name(product) == "linear" and len(product.args) == 2 and len(product.users) == 1:
            with graph.graph.inserting_before(node):
                whole = graph.graph.call_function(product.target, (*product.args, bias))
            whole.meta = node.meta
            node.replace_all_uses_with(whole)
            graph.graph.erase_node(node)
            graph.graph.erase_node(product)


def _dynamic(graph: fx.GraphModule) -> tuple[str, ...]:
    """Operators whose work depends on the data, in order."""
    found: dict[str, None] = {}
    variable = _variable(graph)
    for node in graph.graph.nodes:
        if node in variable:
            name, place = _DYNAMIC.get(str(node.target).rpartition(".")[0], ("", None))
            index = node.all_input_nodes if place is None else _nodes(node.args[place])
            if name and any(n in variable for n in index):
                found[name] = None
    return tuple(found)


def _nodes(argument: Any) -> list[fx.Node]:
    return [item for item in tree_flatten(argument)[0] if isinstance(item, fx.Node)]


class Lowering:
    """Walks a graph once; a node stands for a `Value`, or for a tensor if it is constant."""

    def __init__(self, graph: fx.GraphModule, int8: bool) -> None:
        self.model = Model(int8)
        known: dict[fx.Node, Any] = {}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                known[node] = self._input(node)
            elif node.op == "get_attr":
                known[node] = getattr(graph, str(node.target)).detach()
            elif node.op == "output":
                self._outputs(node, known)
            else:
                known[node] = self._call(node, known)
                if _in_place(node):
                    known[node.args[0]] = known[node]

    def _input(self, node: fx.Node) -> Value | None:
        meta = node.meta["val"]
        used = any(user.op != "output" for user in node.users)
        if not used or not meta.numel() or not meta.is_floating_point():
            return None
        shape = tuple(meta.shape)
        if len(shape) == 4 and shape[1] == 3:  # pictures: cameras give them channel-last
            stored = (shape[0], *shape[2:], shape[1])
            return Value(self.model.input(stored), stored, (0, 3, 1, 2))
        return Value.of(self.model.input(shape), shape)

    def _outputs(self, node: fx.Node, known: dict[fx.Node, Any]) -> None:
        for item in _nodes(node.args):
            if isinstance(value := known[item], Value) and item.op != "placeholder":
                self.model.output(plain(self.model, value).tensor)

    def _call(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        given: Any = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        args, kwargs = given
        if not any(
            isinstance(x, Value | Packed | Patches) for x in tree_flatten((args, kwargs))[0]
        ):
            return _computed(node, args, kwargs)
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = _name(node)
        if name == "linear" and _is_split(node):
            return packed(*args, **kwargs)
        if isinstance(args[0], Packed):
            return self._unpacked(node, args)
        shape = tuple(node.meta["val"].shape) if name not in _LISTS else ()
        merged = _is_projected(node) and _merged_last(args[0].shape, shape)
        if name in _VIEWS and merged:
            return Patches(args[0], merged, shape)
        if name not in WRITERS:
            raise PreparationError(
                f"torch's {node.target} has no lowering to TensorFlow Lite",
                "add one to nas/lowering/tflite/operators.py",
            )
        return WRITERS[name](self.model, shape, *args, **kwargs)

    def _unpacked(self, node: fx.Node, args: Any) -> Any:
        """A view of packed layers; where a view takes them apart, each part is written."""
        parts = node.target(args[0].index, *args[1:])  # type: ignore[operator]
        if isinstance(parts, Tensor):
            return replace(args[0], index=parts)
        return [linear_part(self.model, replace(args[0], index=part)) for part in parts]


def _name(node: fx.Node) -> str:
    """E.g. `add` for aten.add_.Tensor."""
    return str(node.target).removeprefix("aten.").partition(".")[0].removesuffix("_")


def _in_place(node: fx.Node) -> bool:
    return str(node.target).partition(".")[2].partition(".")[0].endswith("_")


def _computed(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The result of an operator whose arguments are all constants."""
    if _in_place(node):
        args = (args[0].clone(), *args[1:])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


_VIEWS = ("view", "reshape", "flatten", "unsqueeze", "squeeze")
_TURNS = ("permute", "transpose", "t", "mT", "movedim")
_LISTS = ("unbind", "split", "chunk")


def _is_split(node: fx.Node) -> bool:
    """Whether a node is only viewed, turned and in the end taken apart."""
    if not node.users:
        return False
    for user in node.users:
        name = _name(user)
        if name not in ("unbind", "chunk") and not (name in _VIEWS + _TURNS and _is_split(user)):
            return False
    return True


def _is_projected(node: fx.Node) -> bool:
    return bool(node.users) and all(
        _name(user) == "linear" and user.args[0] is node for user in node.users
    )


def _merged_last(old: Sequence[int], new: Sequence[int]) -> int:
    """How many of the last axes of `old` make the last of `new`; 0 unless several do."""
    size, count = 1, 0
    while count < len(old) and size < new[-1]:
        count += 1
        size *= old[-count]
    return count if size == new[-1] and count > 1 else 0
