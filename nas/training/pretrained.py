"""Weights of others: checkpoints of timm, torchvision and papers in a network of this package."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.errors import WeightsError
from nas.network.fused import Fused, classifier_of
from nas.network.network import Network
from nas.progress import console
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.space.origins import Origin
from nas.tasks.classification import Classification
from nas.training.checkpoint_files import class_of, is_stand_in, read_checkpoint
from nas.training.open_clip import image_tower
from nas.training.self_supervised import check_heads, is_dino, of_network

# What a checkpoint may hold besides: tables that follow from the sizes, and counters.
_TABLES = ("num_batches_tracked", "relative_position_index", "attn_mask")

_Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# Keys under which training scripts keep the weights, beside optimizers and counters.
_KEYS = ("state_dict", "model", "model_state_dict", "module", "net", "network", "weights")
# Moving averages of weights, which are what such a training is done for.
_AVERAGED = re.compile(r"(?:^|[._])ema(?:$|[._])")
# Of two encoders that learned together, the one that is evaluated in the paper (MoCo v3).
_EVALUATED = re.compile(r"(?:^|[._])base_encoder(?:$|[._])")
# What torch puts into names for compiled models and those that are spread over GPUs.
_INSERTED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Names of other projects, rewritten into timm's; known by a name that only they have. torchvision's
# MobileNetV3 is missing: its BatchNorms add 1e-3 to the variance, timm's 1e-5, so it is another
# function.
_LAYOUTS: dict[str, _Rules] = {
    "layers.0.downsample.reduction.weight": (  # Swin of its authors: merged at the end of a stage
        (r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample."),
        (r"^head\.(?=weight$|bias$)", "head.fc."),
    ),
    "backbone.input_stem.op_list.0.conv.weight": (  # EfficientViT-Seg of its authors
        (r"^backbone\.input_stem\.op_list\.0\.", "stem.in_conv."),
        (
            r"^backbone\.input_stem\.op_list\.(\d+)\.",
            lambda m: f"stem.res{int(m[1]) - 1}.",
        ),
        (r"^backbone\.stages\.(\d+)\.op_list\.", r"stages.\1.blocks."),
    ),
    "features.1.0.attn.qkv.weight": (  # Swin of torchvision
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        (r"^features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks."),
        (r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"^head\.", "head.fc."),
    ),
    "conv_proj.weight": (  # ViT of torchvision; second names of linear layers are of its files
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
    network: Network, source: str | Path | Mapping[str, Any], *, new_head: bool = True
) -> list[str]:
    """Fill a network from a checkpoint of the same model; returns the names it did not hold.

    `source` is a state dict, a file (safetensors, or PyTorch's), the folder or index of one in
    shards, or a name on the Hugging Face hub below `timm/`, e.g.
    `swin_tiny_patch4_window7_224.ms_in1k`. What training scripts put around weights is removed.
    Moving averages (EMA) are preferred to raw weights, and stderr says so. A classifier that is
    missing or for another number of classes is left as it is, if `new_head` allows it, and so is a
    fused head, of which checkpoints of classifiers know nothing. Raises
    `WeightsError` with the first tensor that is missing or of another shape; the network is then
    as it was.
    """
    space, left, ready = network.space, [], []
    owns = [
        (layer.path, name, own, space.parts.origin(layer.path, name))
        for layer in space.layers(network.architecture)
        for name, own in network.layers[layer.path].state_dict().items()
        if not name.endswith(".clip")
    ]
    places = {origin[0] for *_, origin in owns}
    held = source if isinstance(source, Mapping) else read_checkpoint(source)
    tensors = image_tower(_without_insertions(_state_dict(held)))
    check_heads(tensors, space)
    tensors = of_network(_of_model(_timm_names(tensors), places))
    if new_head:
        tensors = _without_classifier(space, tensors, places)
    of_classifier = new_head and _is_of_classifier(space, tensors)
    if of_classifier:
        places |= _classifier_places(space)
    extra = [
        name for name, value in tensors.items()
        if name not in places and isinstance(value, Tensor) and not name.endswith(_TABLES)
    ]  # fmt: skip
    for path, name, own, origin in owns:
        found = _found(tensors, origin, tuple(own.shape))
        if found is not None:
            ready.append((own, found))
        elif (of_classifier and space.parts.is_head(path)) or (  # type: ignore[attr-defined]
            new_head and path == "head" and space.task.outputs in own.shape
        ):
            left.append(f"{path}.{name}")
        else:
            raise _misfit(tensors, origin[0], f"{path}.{name}", own, space.name, extra)
    if extra:
        raise WeightsError(
            f"the checkpoint also holds {_listed(extra)}, for which {space.name} has no place",
            "give a checkpoint of this very model",
        )
    with torch.no_grad():
        for own, found in ready:
            own.copy_(found.reshape(own.shape))
    if left:
        _tell(f"not in the checkpoint, or for other classes, and left as it was: {_listed(left)}")
    return left


def _without_classifier(
    space: SearchSpace, tensors: Mapping[str, Any], places: Collection[str]
) -> dict[str, Any]:
    """The tensors without a classifier for which networks of vectors have no place."""
    if space.task.labelled:
        return dict(tensors)
    task = Classification.of_imagenet()
    heads = {
        space.parts.origin(layer.path, name)[0].rpartition(".")[0] + "."
        for layer in replace(space, task=task).head(space.largest)
        for name, shape in _shapes(layer).items()
        if task.outputs in shape
    }
    left = [n for n in tensors if n not in places and n.startswith(tuple(heads))]
    if left:
        _tell(f"vectors need no classifier, which is left out: {_listed(left)}")
    return {name: tensor for name, tensor in tensors.items() if name not in left}


def _is_of_classifier(space: SearchSpace, tensors: Mapping[str, Any]) -> bool:
    """Whether the networks of a space have a fused head of which a checkpoint holds nothing."""
    parts = space.parts
    return isinstance(parts, Fused) and not any(
        parts.origin(layer.path, name)[0] in tensors
        for layer in space.layers(space.largest)
        if parts.is_head(layer.path)
        for name in _names(layer)
    )


def _classifier_places(space: SearchSpace) -> set[str]:
    """Names of tensors of the classifier that the family would have in place of a fused head."""
    layers = classifier_of(space, Classification.of_imagenet())
    origin = space.parts.backbone.origin  # type: ignore[attr-defined]
    return {origin(layer.path, name)[0] for layer in layers for name in _names(layer)}


def _names(layer: Layer) -> list[str]:
    return list(_shapes(layer))


def _shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in layer.build().state_dict().items()}


def _found(tensors: Mapping[str, Any], origin: Origin, shape: tuple[int, ...]) -> Tensor | None:
    """The tensor of the checkpoint, ready to be reshaped to ours; None if there is no such one."""
    name, transform = origin
    if name not in tensors:
        return None
    found = _floats(name, tensors[name])
    if transform is not None:
        try:
            found = transform(found, shape)
        except (RuntimeError, IndexError, TypeError):  # of a shape that it does not expect
            return None
    if not _regrouped(tuple(found.shape), shape):
        return None
    if not found.isfinite().all():
        raise WeightsError(f"{name} holds values that are no numbers in float32", "restore it")
    return found


def _floats(name: str, value: object) -> Tensor:
    """The tensor in float32; refused where that is not the weight that it stands for."""
    if not isinstance(value, Tensor):
        kind = f"a {class_of(value)}"
    elif value.is_quantized or value.dtype not in _FLOATS:
        kind = str(value.dtype).removeprefix("torch.")
    elif value.layout != torch.strided or value.is_meta:
        kind = "without its values" if value.is_meta else str(value.layout).removeprefix("torch.")
    else:
        return value.detach().float()
    raise WeightsError(
        f"{name} is {kind}; weights are tensors of float16, bfloat16, float32 or float64",
        "give the checkpoint before it was quantized or converted",
    )


def _regrouped(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether one shape only joins axes of the other that stand side by side."""
    a, b = ({1, *accumulate(shape, mul)} for shape in (theirs, ours))
    return math.prod(theirs) == math.prod(ours) and (a <= b or b <= a)


def _misfit(
    tensors: Mapping[str, Any], theirs: str, path: str, own: Tensor, name: str, extra: list[str]
) -> WeightsError:
    besides = f"; it also holds {_listed(extra)}" if extra else ""
    if theirs not in tensors:
        what = f"the checkpoint has no {theirs}, which becomes {path}"
    else:
        got, needed = ("x".join(map(str, t.shape)) for t in (tensors[theirs], own))
        what = f"{theirs} has the shape {got}, {path} needs {needed}"
    if f"layers.{path}" in tensors:
        what, besides = "these are weights of vitnas, not of timm or torchvision", ""
        fix = "start from the folder of the supernet: vitnas train --init FOLDER"
    else:
        fix = f"give one of {name}"
    return WeightsError(what + besides, fix)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 3 else ""
    return ", ".join(names[: 2 if more else 3]) + more


def _tell(text: str) -> None:
    console.print(text, style="dim", markup=False, soft_wrap=True)


def _state_dict(held: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict itself, whatever training script wrapped it."""
    found: dict[str, Mapping[str, Any]] = {}
    queue, seen = [("", held)], set()
    while queue:
        at, state = queue.pop()
        if id(state) in seen:
            continue
        seen.add(id(state))
        inner = {
            key: value for key, value in state.items()
            if isinstance(key, str) and isinstance(value, Mapping) and not key.startswith("optim")
        }  # fmt: skip
        named = {k: v for k, v in inner.items() if k in _KEYS or _AVERAGED.search(k)}
        if not named and any(isinstance(value, Tensor) for value in state.values()):
            found[at] = state
        else:
            queue += [(f"{at}.{k}".lstrip("."), v) for k, v in (named or inner).items()]
    if not found and any(isinstance(value, Tensor) for value in held.values()):
        found[""] = held
    if not found:
        objects = [f"{key} is a {class_of(x)}" for key, x in held.items() if is_stand_in(x)]
        raise WeightsError(
            f"the checkpoint holds no tensors{f' ({_listed(objects)})' if objects else ''}",
            "save a state dict, e.g. torch.save(model.state_dict(), FILE)",
        )
    if is_dino(found):
        _tell("of DINO's two networks the teacher is taken, which is the one that is evaluated")
        return found["teacher"]
    return found[_one_of(list(found))]


def _one_of(models: Sequence[str]) -> str:
    """The only one of several models in a checkpoint, or the only moving average among them."""
    if evaluated := [name for name in models if _EVALUATED.search(name)]:
        models = evaluated
    averaged = [name for name in models if _AVERAGED.search(name)]
    if averaged:
        beside = [name or "the raw ones" for name in models if name not in averaged]
        instead = f", not {_listed(beside)}" if beside else ""
        _tell(f"the moving averages (EMA) are taken: {_listed(averaged)}{instead}")
    if len(taken := averaged or list(models)) > 1:
        raise WeightsError(
            f"the checkpoint holds several models: {_listed([name or 'one' for name in taken])}",
            "save one of them alone",
        )
    return taken[0]


def _without_insertions(state: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in state.items():
        plain = _INSERTED.sub("", name) if isinstance(name, str) else ""
        if plain in named:
            raise WeightsError(f"the checkpoint holds {plain} twice", "save the model anew")
        if plain:
            named[plain] = value
    return named


def _of_model(tensors: Mapping[str, Any], places: Collection[str]) -> dict[str, Any]:
    """The tensors of the model alone: without a word before all names, such as `module.`.

    Wrappers (several GPUs, averages, the module of a training framework) put one there, and may
    have tensors of their own, which are left out.
    """
    counts: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        counts.update(
            ".".join((*parts[:i], "")) for i in range(len(parts)) if ".".join(parts[i:]) in places
        )
    whole = [before for before, count in counts.items() if 2 * count > len(places)]
    before = _one_of(whole) if whole else ""
    if not before:
        return dict(tensors)
    outside = [name for name in tensors if not name.startswith(before) and name != "n_averaged"]
    if outside:
        _tell(f"outside of the model, and left out: {_listed(outside)}")
    return {
        name.removeprefix(before): value
        for name, value in tensors.items()
        if name.startswith(before)
    }


def _timm_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Names of other projects as those of timm, also where a wrapper stands before all of them."""
    for known_by, rules in _LAYOUTS.items():
        for found in [n for n in tensors if f".{n}".endswith(f".{known_by}")]:
            before = found.removesuffix(known_by)
            tensors = {
                before + _renamed(name.removeprefix(before), rules)
                if name.startswith(before)
                else name: value
                for name, value in tensors.items()
            }
    return tensors


def _renamed(name: str, rules: _Rules) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name
