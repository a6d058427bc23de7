"""A subnet as files that run without this package, each reloaded and compared before it counts."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from nas.errors import EvaluationError, UnknownNameError, VitnasError
from nas.lowering.onnx import quiet
from nas.network.network import Network
from nas.records import atomic_path, write_text
from nas.space.architecture import at_precision

_TOLERANCE = 1e-3  # largest difference of a logit between an exported file and the supernet
_NUDGES, _NUDGE = 4, 1e-5  # how often and how far (relative) images move in `tolerance`


def export_network(
    network: Network, images: Tensor, expected: Tensor, folder: Path, formats: Sequence[str]
) -> dict[str, float]:
    """Write `architecture.json` and a file for each of `formats` (safetensors, pt2, onnx).

    Returns for each file the largest difference of an output from `expected`, which the supernet
    gave for `images` (one example of what the network takes); raises `EvaluationError` if one is
    over 1e-3 (for int8 networks: over twice what the last digits of `images` change, see
    `tolerance`).
    """
    if unknown := [f for f in formats if f not in WRITERS]:
        raise UnknownNameError("format", unknown[0], WRITERS)
    write_text(folder / "architecture.json", network.architecture.to_json() + "\n")
    deployed = deepcopy(network).deploy()
    with torch.no_grad():
        deployed(images)  # packs the int8 weights, which the exporters then see as constants
    allowed = tolerance(deployed, images, expected)
    differences = {}
    for name in formats:
        file, write, read = WRITERS[name]
        with atomic_path(folder / file) as temporary:
            with torch.no_grad():
                write(network if name == "safetensors" else deployed, images, temporary)
                output = read(network, images, temporary)
            difference = float((output - expected).abs().max())
            if not difference <= allowed:
                raise EvaluationError(
                    f"{file} gives logits that differ from the supernet's by {difference:.2g}",
                    "please report this with the architecture.json beside it",
                )
        differences[file] = difference
    return differences


@torch.no_grad()
def tolerance(network: Network, images: Tensor, expected: Tensor) -> float:
    """By how much a logit of a right file may differ from `expected`, the network's for `images`.

    In int8 an input between two steps goes either way by its last digit, and the layers after it
    follow. So how far the logits go is measured, with images that differ from `images` by 1e-5 of
    their values, and twice as far is allowed. Of 84 right files the worst went 1.15 times as far;
    of 84 outputs of int8 kernels that saturate 96 % are refused (`experiments/int8_files.py`).
    """
    if not _is_int8(network):
        return _TOLERANCE
    generator = torch.Generator().manual_seed(0)
    moved = 0.0
    for _ in range(_NUDGES):
        nudged = images * (1 + _NUDGE * torch.randn(images.shape, generator=generator))
        moved = max(moved, float((network(nudged) - expected).abs().max()))
    return max(_TOLERANCE, 2 * moved)


def _is_int8(network: Network) -> bool:
    """Whether any block is."""
    return network.architecture != at_precision(network.architecture, "fp32")


def _write_safetensors(network: Network, images: Tensor, path: Path) -> None:
    path.write_bytes(save({k: v.contiguous() for k, v in network.state_dict().items()}))


def _read_safetensors(network: Network, images: Tensor, path: Path) -> Tensor:
    plain = Network.empty(network.space, network.architecture)
    plain.load_state_dict(load_file(path))
    return plain(images)  # type: ignore[no-any-return]


def _write_pt2(network: Network, images: Tensor, path: Path) -> None:
    with quiet():
        buffer = io.BytesIO()
        torch.export.save(torch.export.export(network, (images,)), buffer)
    path.write_bytes(buffer.getvalue())


def _read_pt2(network: Network, images: Tensor, path: Path) -> Tensor:
    with quiet():
        program = torch.export.load(io.BytesIO(path.read_bytes()))
        return program.module()(images)  # type: ignore[no-any-return]


def _write_onnx(network: Network, images: Tensor, path: Path) -> None:
    _onnxruntime()
    with quiet():
        program: Any = torch.onnx.export(network, (images,), dynamo=True, verbose=False)
        path.write_bytes(program.model_proto.SerializeToString())


def _read_onnx(network: Network, images: Tensor, path: Path) -> Tensor:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    if _is_int8(network):  # as the file says: fused int8 kernels saturate on x86 without VNNI
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path.read_bytes(), options)
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
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
    "safetensors": ("weights.safetensors", _write_safetensors, _read_safetensors),
    "pt2": ("model.pt2", _write_pt2, _read_pt2),
    "onnx": ("model.onnx", _write_onnx, _read_onnx),
}
