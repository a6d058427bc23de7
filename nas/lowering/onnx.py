"""Layers as ONNX: each exported once and kept on disk, whole networks composed of them.

Between layers travels a state: tensors in numbered slots (see `nas.network.standalone.slots`),
for instance a map and the orders of its windows. A piece says which slots it takes and what it
leaves in them.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
import zlib
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from nas.errors import PreparationError
from nas.extensions import member_name
from nas.records import fingerprint, write_bytes
from nas.space.layer import Layer
from nas.versions import installed, layer_code
from nas.workers.ending import end_with_parent

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "onnx/1"  # raised when the same layer is lowered to something else
PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True)
class OnnxPiece:
    """Consecutive layers as an ONNX model whose inputs and outputs are called after their slots."""

    model: bytes  # its inputs are called `in0`, `in1`, ... after their slots, outputs `out0`, ...
    takes: tuple[int, ...]  # slots that it reads
    writes: tuple[int, ...]  # slots that it computes
    keeps: tuple[tuple[int, int], ...]  # (slot after it, slot before it) of what passes unchanged
    slots: tuple[int, int]  # how many are its own, before it and after it: others pass by

    def after(self, before: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """The state after the piece, from that before it and its outputs; None in empty slots.

        A state is a list of anything, e.g. of names or of values.
        """
        full = dict(zip(self.writes, outputs, strict=True))
        full |= {to: before[at] for to, at in self.keeps if at < len(before)}
        given, left = self.slots
        return [*(full.get(slot) for slot in range(left)), *before[given:]]


def lower(layers: Sequence[Layer], batch: int = 1) -> OnnxPiece:
    """Consecutive layers as one model, for inputs of a batch size.

    Takes about a second for each layer that has not been exported on this machine before.
    Raises `PreparationError` for a layer that cannot be exported.
    """
    pieces = [_stored(layer, batch) for layer in layers]
    places = [(layer.path, layer.args) for layer in layers]
    return pieces[0] if len(pieces) == 1 else _compose(pieces, places)


def lower_ahead(layers: Sequence[Layer], batch: int, processes: int) -> Iterator[Layer]:
    """Export what is not stored yet in several processes; yields each layer that is done."""
    missing = [layer for layer in layers if not _path(layer, batch).exists()]
    yield from (layer for layer in layers if layer not in missing)
    if not missing:
        return
    workers = min(processes, len(missing))
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare_worker) as pool:
        try:
            yield from pool.map(_export_quietly, missing, [batch] * len(missing))
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    """Work on one thread, and end with the process that started this one."""
    import torch

    end_with_parent()
    torch.set_num_threads(1)


@cache
def _build_operators_once() -> None:
    """Let the exporter keep its table of operators: a third of each export builds it anew."""
    with contextlib.suppress(ImportError, AttributeError):  # not public: as it may be
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


def _export_quietly(layer: Layer, batch: int) -> Layer:
    with contextlib.suppress(PreparationError):  # said again when the layer is prepared
        _stored(layer, batch)
    return layer


def _path(layer: Layer, batch: int) -> Path:
    identity = fingerprint(
        layer.key,
        batch,
        VERSION,
        layer_code(member_name("search_spaces", layer.module.__module__)),
        installed("torch"),
    )
    return Path(platformdirs.user_cache_dir("vitnas")) / "onnx" / identity[:2] / identity


def _stored(layer: Layer, batch: int) -> OnnxPiece:
    path = _path(layer, batch)
    try:
        head, _, model = zlib.decompress(path.read_bytes()).partition(b"\n")
        wiring = json.loads(head)
        keeps, (given, left) = tuple((to, at) for to, at in wiring["keeps"]), wiring["slots"]
        wires = (tuple(wiring["takes"]), tuple(wiring["writes"]), keeps, (given, left))
        return OnnxPiece(model, *wires)
    except (OSError, zlib.error, ValueError, KeyError, TypeError):
        pass
    piece = _export(layer, batch)
    wiring = {k: getattr(piece, k) for k in ("takes", "writes", "keeps", "slots")}
    head = json.dumps(wiring).encode()
    write_bytes(path, zlib.compress(head + b"\n" + piece.model, level=1))
    return piece


def _export(layer: Layer, batch: int) -> OnnxPiece:
    import torch

    from nas.network.standalone import build, inputs, run, slots

    _build_operators_once()
    steps = build([layer])
    state = inputs(layer, batch)
    given = slots(state)
    tensors = tuple(tensor for tensor in given if tensor is not None)
    try:
        with torch.no_grad():  # once before tracing: builds tables, packs int8 weights
            run(steps, _filled(state, iter(t.clone() for t in tensors)))
        after = slots(run(steps, _filled(state, iter(tensors))))  # autograd overwrites nothing
    except RuntimeError as error:
        raise PreparationError(f"{layer.key} does not run: {str(error).splitlines()[0]}") from None
    where = {id(tensor): i for i, tensor in enumerate(given) if tensor is not None}
    # A slot that is empty before and after is passed on: inside a network something may be there.
    keeps = tuple(
        (i, i if t is None else where[id(t)])
        for i, t in enumerate(after)
        if (id(t) in where if t is not None else i < len(given) and given[i] is None)
    )
    kept = {slot for slot, _ in keeps}
    writes = tuple(i for i, t in enumerate(after) if t is not None and i not in kept)

    class Flat(torch.nn.Module):
        """The layer on its tensors alone: what it passes on unchanged is no output."""

        def __init__(self) -> None:
            super().__init__()
            self.module = steps[0][0]

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            # Layers may write into their inputs; inside a network these are nobody else's.
            now = slots(run(steps, _filled(state, iter(t.clone() for t in tensors))))
            return tuple(now[slot] for slot in writes)  # type: ignore[misc]

    try:
        with quiet(), torch.no_grad():
            program: Any = torch.onnx.export(
                Flat().eval(),
                tensors,
                input_names=[f"in{i}" for i, tensor in enumerate(given) if tensor is not None],
                output_names=[f"out{i}" for i in writes],
                dynamo=True,
                verbose=False,
            )
            model = program.model_proto
    except Exception as error:  # the exporter raises whatever its parts raise
        cause = error.__cause__ or error
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise PreparationError(f"{layer.key} has no ONNX form: {line[:200]}") from None
    takes = _drop_unused(model)
    return OnnxPiece(model.SerializeToString(), takes, writes, keeps, (len(given), len(after)))


def fold(model: Any) -> None:
    """Compute in an exported model (`onnx_ir`) what is constant, and drop what nothing uses.

    The exporter's own optimizer takes more than half of an export, nearly all of it in rewriting
    rules whose work ONNX Runtime does again when it loads a model (pairs of processor times of the
    largest networks at 40 % sparsity: 1.02 for `swin:micro`, 0.99 for `mobilenetv3:micro`).
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    fold_constants(model)
    for tidy in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        tidy(model)


def _filled(state: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(state, tuple):
        return tuple(_filled(item, tensors) for item in state)
    return None if state is None else next(tensors)


def _drop_unused(model: Any) -> tuple[int, ...]:
    """Remove inputs that nothing reads, and return the slots of the others."""
    read = {name for node in model.graph.node for name in node.input}
    read |= {output.name for output in model.graph.output}
    kept = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return tuple(int(value.name.removeprefix("in")) for value in kept)


def _compose(pieces: Sequence[OnnxPiece], places: Sequence[Hashable]) -> OnnxPiece:
    """Join consecutive models into one, outputs wired to the inputs of the next.

    Pieces of one place (a layer that runs in several phases) share their weights.
    """
    import onnx

    models: list[Any] = [onnx.load_from_string(piece.model) for piece in pieces]
    first, whole = models[0], models[0]
    entering = {v.name: v for model in reversed(models) for v in model.graph.input}
    state: list[Any] = [f"in{i}" for i in range(1 + max(pieces[0].takes))]
    read: list[str] = []
    weights: dict[Hashable, dict[bytes, str]] = {}  # what is stored of each place, and its name
    for number, (piece, model, place) in enumerate(zip(pieces, models, places)):
        state += [None] * (1 + max(piece.takes) - len(state))
        given = {f"in{slot}": state[slot] for slot in piece.takes}
        if None in given.values():
            raise PreparationError("a layer needs what no layer before it has left")
        read += [name for name in given.values() if name in entering and name not in read]
        if places.count(place) > 1:
            given |= _shared(model.graph, weights.setdefault(place, {}), f"{number}/")
        _rename(model.graph, f"{number}/", given)
        state = piece.after(state, [value.name for value in model.graph.output])
        if model is not first:
            whole.graph.node.extend(model.graph.node)
            whole.graph.initializer.extend(model.graph.initializer)
    last = {value.name: value for value in models[-1].graph.output}
    del whole.graph.input[:], whole.graph.output[:], whole.graph.value_info[:]
    whole.graph.input.extend(entering[name] for name in read)
    whole.graph.output.extend(last.values())
    versions = {o.domain: o for model in models for o in model.opset_import}
    del whole.opset_import[:]
    whole.opset_import.extend(versions.values())
    takes = tuple(int(name.removeprefix("in")) for name in read)
    writes = tuple(slot for slot, name in enumerate(state) if name in last)
    return OnnxPiece(whole.SerializeToString(), takes, writes, (), (pieces[0].slots[0], len(state)))


def _shared(graph: Any, known: dict[bytes, str], prefix: str) -> dict[str, str]:
    """Take weights that are `known` (name and numbers) out of a graph; the name of each there.

    All others become known, under the name that the prefix gives them.
    """
    given = {
        x.name: known[key] for x in graph.initializer if (key := x.SerializeToString()) in known
    }
    own = [x for x in graph.initializer if x.name not in given]
    known |= {x.SerializeToString(): prefix + x.name for x in own}
    del graph.initializer[:]
    graph.initializer.extend(own)
    return given


def _rename(graph: Any, prefix: str, given: dict[str, str | None]) -> None:
    """Prefix every name in a graph but those `given`, which are replaced."""

    def name(old: str) -> str:
        return given[old] or "" if old in given else prefix + old if old else ""

    for node in graph.node:
        node.input[:] = [name(old) for old in node.input]
        node.output[:] = [name(old) for old in node.output]
        node.name = prefix + node.name
    for item in (*graph.initializer, *graph.output):
        item.name = name(item.name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters, which log and warn about their own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
