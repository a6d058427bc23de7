"""A subnet as files that run without this package, each reloaded and compared before it counts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from nas.data import Dataset
from nas.deployment import (
    CARD,
    IR_VERSION,
    ONNX,
    OPSET,
    OUTPUTS,
    PT2,
    WEIGHTS,
    Card,
    Written,
    described,
    pages,
)
from nas.errors import EvaluationError, UnknownNameError, VitnasError
from nas.lowering.onnx import fold, quiet
from nas.network.network import Network
from nas.progress import console
from nas.records import atomic_path, fingerprint, remove_left, write_json, write_text
from nas.space.architecture import at_precision

SATURATED = (
    "ONNX Runtime's int8 kernels saturate on this processor: the file answers otherwise. "
    "Run it with the graph optimization level ORT_DISABLE_ALL (docs/int8.md)"
)
_RUN = 16  # samples that say so

_TOLERANCE = 1e-3  # largest difference of a logit between an exported file and the supernet, or
_RELATIVE = 1e-5  # of the largest logit: float32 in another order of sums is 3e-6 off
_NUDGES, _NUDGE = 4, 1e-5  # how often and how far (relative) images move in `tolerance`
_STEP = 1e-2  # likewise, in `_beside`
_ANY = (1, 2, 5)  # the batches at which a file for any batch is compared


def export_network(
    network: Network,
    images: Tensor,
    expected: Tensor,
    folder: Path,
    formats: Sequence[str],
    *,
    card: Card | None = None,
    dtype: str = "float32",
    any_batch: bool = False,
    device: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Write a network as a folder that can be used without this package.

    It gets `architecture.json`, `preprocess.json` (`card`, by default one without pictures), a page
    with what the latency measured on `device` needs, and a file for each of `formats` (safetensors,
    pt2, onnx), with an example. Programs take batches like `images`, or any where the layers allow
    it; pt2 in this data type, ONNX and weights always in float32.

    Returns for each file the largest difference of an output from `expected`, which the supernet
    gave for `images` (examples of what the network takes). Where that is more than `tolerance`
    allows, it is the difference from what the network gives for images beside these; raises
    `EvaluationError` if that is more, too, or where a file cannot be written so.
    """
    if unknown := [f for f in formats if f not in WRITERS]:
        raise UnknownNameError("format", unknown[0], WRITERS)
    card = card or Card.of(network.space, network.architecture, None)
    deployed = deepcopy(network).deploy().requires_grad_(False)
    if any_batch:
        images, expected = images[:1].expand(2, *images.shape[1:]).contiguous(), expected[:1]
    with torch.no_grad():
        deployed(images)  # packs the int8 weights, which the exporters then see as constants
    _drop_others(folder, network)
    write_text(folder / "architecture.json", network.architecture.to_json() + "\n")
    differences = {}
    try:
        for name in formats:
            form = Form(card, getattr(torch, dtype) if name == "pt2" else torch.float32, any_batch)
            shown = deployed if form.dtype == torch.float32 else deepcopy(deployed).to(form.dtype)
            file = WRITERS[name][0]
            difference = _write_checked(name, network, shown, images, expected, folder / file, form)
            differences[file] = difference
    finally:
        _drop_empty(folder)
    _describe(folder, card, differences, None if any_batch else len(images), dtype, device)
    return differences


def export_again(
    network: Network,
    card: Card,
    folder: Path,
    formats: Sequence[str],
    *,
    batch: int = 1,
    any_batch: bool = False,
    device: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """`export_network` of a network that was saved, compared on random inputs.

    In the data type of `device`, what its latency was measured on, where that runs it in torch.
    """
    generator, shape = torch.Generator().manual_seed(0), (batch, *card.input.shape)
    inputs = torch.randn(shape, generator=generator)
    with torch.no_grad():
        expected = network(inputs)
    return export_network(
        network, inputs, expected, folder, formats,
        card=card, dtype=measured_dtype(device or {}), any_batch=any_batch, device=device,
    )  # fmt: skip


def export_measured(
    network: Network, data: Dataset, device: Mapping[str, Any], folder: Path
) -> dict[str, float]:
    """Write a plain network for the device that it was measured on, compared on test samples.

    Files have the batch of the device; what runs in torch has its data type, too, and then there is
    no ONNX. Other runtimes take float32 files, and convert them themselves.
    """
    space, architecture, batch = network.space, network.architecture, int(device.get("batch", 1))
    first = data.first(data.test, batch, space.largest.resolution)
    some = space.parts.resized(first[space.parts.takes], architecture.resolution)
    examples = some[torch.arange(batch) % len(some)]  # a small split may have fewer
    with torch.no_grad():
        expected = network(examples)
    dtype = measured_dtype(device)
    differences = export_network(
        network, examples, expected, folder,
        [f for f in default_formats() if f != "onnx" or dtype == "float32"],
        card=Card.of(space, architecture, data), device=device, dtype=dtype,
    )  # fmt: skip
    if ONNX in differences and batch == 1 and _is_int8(network):
        shown = data.first(data.test, _RUN, space.largest.resolution)[space.parts.takes]
        if saturates(network, space.parts.resized(shown, architecture.resolution), folder):
            console.print(f"{folder / ONNX}: {SATURATED}", style="yellow")
    return differences


def measured_dtype(device: Mapping[str, Any]) -> str:
    """The data type of pt2 files for a device: its own if it runs torch, else float32."""
    torch_runs = str(device.get("runtime", "")).startswith("torch")
    return str(device["dtype"]) if torch_runs else "float32"


def _write_checked(
    name: str,
    network: Network,
    deployed: Network,
    images: Tensor,
    expected: Tensor,
    path: Path,
    form: Form,
) -> float:
    """Write a file of one format, load it again, and return how far its outputs are off."""
    _, write, read = WRITERS[name]
    allowed, difference = tolerance(deployed, images, expected, form.dtype), 0.0
    with atomic_path(path) as temporary, torch.no_grad():
        try:
            write(network if name == "safetensors" else deployed, images, temporary, form)
        except VitnasError:
            raise
        except Exception as error:  # exporters raise whatever they like
            raise _unwritable(path.name, form, network, error) from error
        for given in form.trials(images):
            output = read(network, given, temporary, form).float()
            difference = max(difference, float((output - expected).abs().max()))
        if not difference <= allowed:
            difference = median(
                float((read(network, x, temporary, form).float() - y).abs().max())
                for x, y in _beside(network, images)
            )
        if not difference <= allowed:
            raise EvaluationError(
                f"{path.name} gives logits that differ from the supernet's by {difference:.2g}",
                "please report this with the architecture",
            )
    return difference


def _beside(network: Network, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Images a little beside the given ones, and what the network says of each.

    Linear attention divides by nearly nothing where all features of a query are cut off: a token
    then is 0 or of order 1, as the last digit decides. Where images meet such a jump, a right file
    agrees at others, and a wrong one does not.
    """
    generator = torch.Generator().manual_seed(0)
    moved = [images * (1 + _STEP * torch.randn(images.shape, generator=generator)) for _ in "123"]
    return [(own, network(own).float()) for own in moved]


@dataclass(frozen=True)
class Form:
    """The form of exported programs: their card, data type, and whether they take any batch."""

    card: Card
    dtype: torch.dtype
    any_batch: bool

    @property
    def shapes(self) -> tuple[dict[int, Any], ...] | None:
        """Which axes of the input may have any length, as the exporters want it."""
        return ({0: torch.export.Dim("batch")},) if self.any_batch else None

    def trials(self, images: Tensor) -> list[Tensor]:
        """The batches at which a file is compared."""
        if not self.any_batch:
            return [images]
        return [images[:1].expand(n, *images.shape[1:]).contiguous() for n in _ANY]

    def metadata(self) -> dict[str, str]:
        """What a file says of itself."""
        return {"preprocess": json.dumps(self.card.to_json())}


def _unwritable(file: str, form: Form, network: Network, error: Exception) -> EvaluationError:
    if form.any_batch:
        return EvaluationError(
            f"{file} cannot take any batch: layers of {network.space.name} compute with the batch "
            "that they were exported for",
            "give the batch as a number, e.g. --batch 8",
        )
    why = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    return EvaluationError(f"{file} cannot be written: {why}", "choose other formats")


def _drop_empty(folder: Path) -> None:
    """Remove the folder of an export that has written no file, unless it holds something else."""
    if not any((folder / file).exists() for file, *_ in WRITERS.values()):
        (folder / "architecture.json").unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


def _drop_others(folder: Path, network: Network) -> None:
    """Remove the files of another network, and what a killed export has left."""
    architecture, files = folder / "architecture.json", [file for file, *_ in WRITERS.values()]
    if not architecture.exists():
        return
    other = architecture.read_text(errors="replace").strip() != network.architecture.to_json()
    for file in files:
        remove_left(folder / file)
        if other:
            (folder / file).unlink(missing_ok=True)
    if other:
        (folder / CARD).unlink(missing_ok=True)


def _describe(
    folder: Path,
    card: Card,
    differences: Mapping[str, float],
    batch: int | None,
    dtype: str,
    device: Mapping[str, Any] | None,
) -> None:
    """Write `preprocess.json`, the examples and the page; files that were there stay listed."""
    files, before = described(folder) if (folder / CARD).exists() else ({}, {})
    files = {file: written for file, written in files.items() if (folder / file).exists()}
    for file in differences:
        any_batch = file == WEIGHTS
        files[file] = Written(
            None if any_batch else batch,
            dtype if file == PT2 else "float32",
            fingerprint((folder / file).read_bytes()),
        )
    device = before if device is None else device
    more = {"files": {file: asdict(own) for file, own in files.items()}, "measured_on": {**device}}
    write_json(folder / CARD, {**card.to_json(), **more})
    for name, text in pages(card, files, device).items():
        write_text(folder / name, text)


@torch.no_grad()
def tolerance(
    network: Network, images: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32
) -> float:
    """By how much a logit of a right file may differ from `expected`, the outputs for `images`.

    By 1e-3 or, where logits are large, by 1e-5 of the largest.
    In int8 an input between two steps goes either way by its last digit, and the layers after it
    follow. So how far the logits go is measured, with images that differ from `images` by 1e-5 of
    their values, and twice as far is allowed. Of 84 right files the worst went 1.15 times as far;
    of 84 outputs of int8 kernels that saturate 96 % are refused (`experiments/int8_files.py`).
    A `network` in bfloat16 is itself that far from `expected`, and its files must not be further.
    """
    rounding = max(_TOLERANCE, _RELATIVE * float(expected.abs().max()))
    if dtype == torch.float32 and not _is_int8(network):
        return rounding
    generator = torch.Generator().manual_seed(0)
    moved = 0.0
    for _ in range(_NUDGES):
        nudged = images * (1 + _NUDGE * torch.randn(images.shape, generator=generator))
        outputs = network(nudged.to(dtype)).float()
        moved = max(moved, float((outputs - expected).abs().max()))
    return max(rounding, 2 * moved)


@torch.no_grad()
def saturates(network: Network, images: Tensor, folder: Path) -> bool:
    """Whether the ONNX file in a folder answers otherwise in ONNX Runtime's fused int8 kernels.

    On x86 processors without VNNI they add two products in int16, which overflows. That is so if
    answers to most of `images` are further from those of the network itself than `tolerance`.
    """
    deployed, beyond = deepcopy(network).deploy(), 0
    for i in range(len(images)):
        image = images[i : i + 1].contiguous()
        expected = deployed(image)
        output = _run_onnx(image, folder / ONNX, fused=True)
        off = float((output - expected).abs().max())
        beyond += off > tolerance(deployed, image, expected)
    return 2 * beyond > len(images)


def _is_int8(network: Network) -> bool:
    """Whether any block is."""
    return network.architecture != at_precision(network.architecture, "fp32")


def _write_safetensors(network: Network, images: Tensor, path: Path, form: Form) -> None:
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    path.write_bytes(save(tensors, form.metadata()))


def _read_safetensors(network: Network, images: Tensor, path: Path, form: Form) -> Tensor:
    plain = Network.empty(network.space, network.architecture)
    plain.load_state_dict(load_file(path))
    return plain(images)  # type: ignore[no-any-return]


def _write_pt2(network: Network, images: Tensor, path: Path, form: Form) -> None:
    with quiet():
        program = _program(network, images.to(form.dtype), form)
        for node in program.graph_module.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())


def _program(
    network: Network, images: Tensor, form: Form, onnx: bool = False
) -> torch.export.ExportedProgram:
    """The network as torch exports it, with the operators of `onnx` or torch's own.

    `len` of a tensor becomes a number when the layers are run to be recorded, but not when their
    code is read, which takes longer; so this is tried second where any batch is wanted. Of what
    they ask, torch refuses to read `is_in_onnx_export` once it has written an ONNX file.
    """
    for strict in (False, True) if form.any_batch else (False,):
        try:
            with patch("torch.onnx.is_in_onnx_export", lambda: onnx):
                return torch.export.export(
                    network, (images,), dynamic_shapes=form.shapes, strict=strict
                )
        except Exception as error:
            failed = error
    raise failed


def _read_pt2(network: Network, images: Tensor, path: Path, form: Form) -> Tensor:
    with quiet(), torch.enable_grad():  # as it is called where nobody thought of gradients
        program = torch.export.load(io.BytesIO(path.read_bytes()))
        return program.module()(images.to(form.dtype))  # type: ignore[no-any-return]


def _write_onnx(network: Network, images: Tensor, path: Path, form: Form) -> None:
    _onnxruntime()
    with quiet():
        model: Any = network
        if form.any_batch:
            # By itself the exporter would fix a batch that it cannot leave open, without a word.
            model = _program(network, images, form, onnx=True)
        program: Any = torch.onnx.export(
            model, (images,), dynamo=True, verbose=False, opset_version=OPSET,
            optimize=_is_int8(network),
            input_names=[form.card.input.name], output_names=[OUTPUTS],
        )  # fmt: skip
        if not _is_int8(network):  # which runs as the file says, see `_read_onnx`
            fold(program.model)
        path.write_bytes(_plain(program.model_proto, form).SerializeToString())


def _plain(model: Any, form: Form) -> Any:
    """The ONNX model without what the exporter notes for itself, such as paths of this machine."""
    graph = model.graph
    for item in (
        graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output
    ):  # fmt: skip
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    if form.any_batch:
        for item in (*graph.input, *graph.output):
            item.type.tensor_type.shape.dim[0].dim_param = "batch"
    model.ir_version = IR_VERSION
    for key, value in form.metadata().items():
        model.metadata_props.add(key=key, value=value)
    return model


def _read_onnx(network: Network, images: Tensor, path: Path, form: Form) -> Tensor:
    # As the file says: fused int8 kernels saturate on x86 without VNNI.
    return _run_onnx(images, path, fused=not _is_int8(network))


def _run_onnx(images: Tensor, path: Path, *, fused: bool) -> Tensor:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path.read_bytes(), options)
    (output,) = session.run([OUTPUTS], {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(output)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (what torch.onnx.export needs)
    except ImportError:
        raise VitnasError("ONNX export needs a package", "pip install 'vitnas[onnx]'") from None
    return onnxruntime


def default_formats() -> list[str]:
    """The formats that are written where none is asked for: ONNX only where it is installed."""
    return ["safetensors", "pt2", *(["onnx"] if onnx_installed() else [])]


def onnx_installed() -> bool:
    """Whether ONNX files can be written and run here."""
    try:
        _onnxruntime()
    except VitnasError:
        return False
    return True


WRITERS: dict[str, tuple[str, Callable[..., None], Callable[..., Tensor]]] = {
    "safetensors": (WEIGHTS, _write_safetensors, _read_safetensors),
    "pt2": (PT2, _write_pt2, _read_pt2),
    "onnx": (ONNX, _write_onnx, _read_onnx),
}
