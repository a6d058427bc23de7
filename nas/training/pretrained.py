"""Weights of others: timm's and torchvision's checkpoints in a network of this package.

Files are read without running code: safetensors, or a PyTorch file with `weights_only`.
"""

from __future__ import annotations

import math
import os
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from itertools import accumulate
from operator import mul
from pathlib import Path
from urllib.error import HTTPError

import platformdirs
import torch
from safetensors.torch import load_file
from torch import Tensor

from nas.errors import WeightsError
from nas.network.network import Network
from nas.progress import console
from nas.records import atomic_path
from nas.space.origins import Origin

HUB = "https://huggingface.co"

_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")

# What a checkpoint may hold besides: tables that follow from the sizes, and counters.
_TABLES = ("num_batches_tracked", "relative_position_index", "attn_mask")

_Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# torchvision's names, rewritten into timm's; known by a name that only they have. Its MobileNetV3
# is missing: its BatchNorms add 1e-3 to the variance, timm's 1e-5, so it is another function.
_TORCHVISION: dict[str, _Rules] = {
    "features.1.0.attn.qkv.weight": (  # Swin
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        (r"^features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks."),
        (r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"^head\.", "head.fc."),
    ),
    "conv_proj.weight": (  # ViT; the second names of the linear layers are those of its files
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^class_token$", "cls_token"),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
    ),
}


def load_weights(
    network: Network, source: str | Path | Mapping[str, Tensor], *, new_head: bool = True
) -> list[str]:
    """Fill a network from a checkpoint of the same model; returns the names it did not hold.

    `source` is a state dict, a file (safetensors, or PyTorch's with tensors only), or a name on the
    Hugging Face hub below `timm/`, e.g. `swin_tiny_patch4_window7_224.ms_in1k`. A classifier that
    is missing or for another number of classes is left as it is, if `new_head` allows it. Raises
    `WeightsError` with the first tensor that is missing or of another shape; the network is then
    as it was.
    """
    tensors = source if isinstance(source, Mapping) else read_checkpoint(source)
    tensors = _timm_names(_unwrapped(tensors))
    space, left, ready, used = network.space, [], [], set()
    for layer in space.layers(network.architecture):
        for name, own in network.layers[layer.path].state_dict().items():
            if name.endswith(".clip"):
                continue
            origin = space.parts.origin(layer.path, name)
            used.add(origin[0])
            found = _found(tensors, origin, tuple(own.shape))
            if found is not None:
                ready.append((own, found))
            elif new_head and layer.path == "head" and network.space.task.outputs in own.shape:
                left.append(f"head.{name}")
            else:
                raise _misfit(
                    tensors.get(origin[0]), origin[0], f"{layer.path}.{name}", own, space.name
                )
    for name, tensor in tensors.items():
        if name not in used and not name.endswith(_TABLES):
            raise WeightsError(
                f"the checkpoint also holds {name}, for which {space.name} has no place",
                "give a checkpoint of this very model",
            )
        if name in used and not tensor.isfinite().all():
            raise WeightsError(f"{name} holds values that are no numbers", "restore the file")
    with torch.no_grad():
        for own, found in ready:
            own.copy_(found.reshape(own.shape))
    return left


def _found(tensors: Mapping[str, Tensor], origin: Origin, shape: tuple[int, ...]) -> Tensor | None:
    """The tensor of the checkpoint, ready to be reshaped to ours; None if there is no such one."""
    name, transform = origin
    found = tensors.get(name)
    if found is not None and transform is not None:
        try:
            found = transform(found, shape)
        except (RuntimeError, IndexError):  # of a shape that it does not expect
            return None
    return found if found is not None and _regrouped(tuple(found.shape), shape) else None


def _regrouped(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether one shape only joins axes of the other that stand side by side."""
    a, b = ({1, *accumulate(shape, mul)} for shape in (theirs, ours))
    return math.prod(theirs) == math.prod(ours) and (a <= b or b <= a)


def _misfit(found: Tensor | None, theirs: str, path: str, own: Tensor, name: str) -> WeightsError:
    if found is None:
        return WeightsError(
            f"the checkpoint has no {theirs}, which becomes {path}", f"give one of {name}"
        )
    got, needed = ("x".join(map(str, t.shape)) for t in (found, own))
    return WeightsError(
        f"{theirs} has the shape {got}, {path} needs {needed}", f"give one of {name}"
    )


def _unwrapped(tensors: Mapping[str, object]) -> dict[str, Tensor]:
    """The state dict itself, whatever training script wrapped it."""
    for key in ("state_dict", "model", "model_ema"):
        inner = tensors.get(key)
        if isinstance(inner, Mapping):
            return _unwrapped(inner)
    found = {
        k.removeprefix("module."): v
        for k, v in tensors.items()
        if isinstance(k, str) and isinstance(v, Tensor) and v.layout == torch.strided
    }
    if not found:
        raise WeightsError("the checkpoint holds no tensors", "give a state dict")
    return found


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for known_by, rules in _TORCHVISION.items():
        if known_by in tensors:
            return {_renamed(name, rules): tensor for name, tensor in tensors.items()}
    return tensors


def _renamed(name: str, rules: _Rules) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a model of timm on the Hugging Face hub (kept in the cache)."""
    path = Path(source)
    if not path.exists():
        if path.suffix in _FILES or len(path.parts) > 2:
            raise WeightsError(
                f"there is no {path}", "give a file, or a model's name on timm's hub"
            )
        path = _download(str(source).removeprefix("timm/"))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way that a parser can
        raise WeightsError(
            f"cannot read {path}: damaged, or more than tensors ({type(error).__name__})",
            "give safetensors, or a PyTorch file that holds nothing but tensors",
        ) from None
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}", "give a state dict")
    return loaded


def _download(name: str) -> Path:
    path = Path(platformdirs.user_cache_dir("vitnas")) / "weights" / f"{name}.safetensors"
    if path.exists():
        return path
    hub = os.environ.get("HF_ENDPOINT", HUB)
    address = f"{hub}/timm/{name}/resolve/main/model.safetensors"
    console.print(f"fetching {address}")
    try:
        with (
            urllib.request.urlopen(address, timeout=30) as answer,
            atomic_path(path) as temporary,
            temporary.open("wb") as file,
        ):
            for piece in _pieces(answer):
                file.write(piece)
    except OSError as error:
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise _unreachable(address, error) from None
    return path


def _pieces(answer: HTTPResponse) -> Iterator[bytes]:
    """The body; raises `WeightsError` if it ends before its announced length."""
    try:
        while piece := answer.read(2**20):
            yield piece
    except (OSError, HTTPException) as error:
        raise _unreachable(answer.url, error) from None
    if answer.length:
        raise _unreachable(answer.url, f"{answer.length} bytes are missing at its end")


def _unreachable(address: str, reason: object) -> WeightsError:
    return WeightsError(
        f"cannot fetch {address}: {reason}",
        "give the path of a checkpoint, or the name of a model on timm's hub",
    )
