"""timm without a working torchvision, and its weights in our layout."""

from __future__ import annotations

import contextlib
import re
import warnings

import torch

_library = torch.library.Library("torchvision", "DEF")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    # PyPI's torchvision is a CUDA build; beside CPU torch it lacks these two operators.
    with contextlib.suppress(RuntimeError):
        _library.define(_schema)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm


def create(name, **settings):
    torch.manual_seed(0)
    model = timm.create_model(name, **settings).eval()
    for module in model.modules():
        if type(module).__name__ == "LiteMLA":
            module.eps = 1e-15  # of the paper's code; timm has 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _attention(source, prefix, heads, width):
    return {
        "attention.qkv": source[f"{prefix}.qkv.weight"].view(3, heads, -1, width),
        "attention.qkv_bias": source[f"{prefix}.qkv.bias"].view(3, heads, -1),
        "attention.out": source[f"{prefix}.proj.weight"].view(width, heads, -1),
        "attention.out_bias": source[f"{prefix}.proj.bias"],
    }


def _block(source, prefix, heads, width):
    parts = {f"{n}.{k}": source[f"{prefix}.{n}.{k}"] for n in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
             for k in ("weight", "bias")}  # fmt: skip
    return parts | _attention(source, f"{prefix}.attn", heads, width)


def torchvision_swin(**settings):
    """torchvision's Swin-T and its weights under timm's names; it pads maps as the paper's
    detection code does (before the roll), where timm pads after it."""
    from torchvision.models import swin_t

    torch.manual_seed(0)
    model = swin_t(weights=None, **settings).eval()
    names = {}
    for key in model.state_dict():
        new = re.sub(r"^features\.0\.0", "patch_embed.proj", key)
        new = re.sub(r"^features\.0\.2", "patch_embed.norm", new)
        new = re.sub(r"^features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.", new)
        new = re.sub(r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample.", new)
        new = new.replace("mlp.0.", "mlp.fc1.").replace("mlp.3.", "mlp.fc2.")
        names[key] = re.sub(r"^head\.", "head.fc.", new)
    return model, {names[key]: value for key, value in model.state_dict().items()}


def swin_state(source, depths, heads):
    state = {}

    def put(path, parts):
        state.update({f"layers.{path}.{k}": v for k, v in parts.items()})

    put("stem", {"weight": source["patch_embed.proj.weight"], "bias": source["patch_embed.proj.bias"],
                 "norm.weight": source["patch_embed.norm.weight"],
                 "norm.bias": source["patch_embed.norm.bias"]})  # fmt: skip
    for s, depth in enumerate(depths):
        width = source[f"layers.{s}.blocks.0.norm1.weight"].numel()
        if s:
            down = f"layers.{s}.downsample"
            put(f"merge{s}", {
                "norm_weight": source[f"{down}.norm.weight"].view(4, -1),
                "norm_bias": source[f"{down}.norm.bias"].view(4, -1),
                "reduction": source[f"{down}.reduction.weight"].view(width, 4, -1),
            })  # fmt: skip
        for i in range(depth):
            prefix = f"layers.{s}.blocks.{i}"
            parts = _block(source, prefix, heads[s], width)
            parts["position"] = source[f"{prefix}.attn.relative_position_bias_table"].T
            put(f"stage{s}_{i // 2}_{('regular', 'shifted')[i % 2]}", parts)
    put("head", {"norm.weight": source["norm.weight"], "norm.bias": source["norm.bias"],
                 "fc.weight": source["head.fc.weight"], "fc.bias": source["head.fc.bias"]})  # fmt: skip
    return {k: v.clone() for k, v in state.items()}


def vit_state(model, depth, heads):
    source, state = model.state_dict(), {}
    width = source["cls_token"].shape[-1]
    position = source["pos_embed"][0]
    grid = int((len(position) - 1) ** 0.5)
    parts = {
        "stem.weight": source["patch_embed.proj.weight"],
        "stem.bias": source["patch_embed.proj.bias"],
        "stem.class_token": source["cls_token"].flatten(),
        "stem.class_position": position[0],
        "stem.position": position[1:].T.reshape(width, grid, grid),
        "head.norm.weight": source["norm.weight"],
        "head.norm.bias": source["norm.bias"],
        "head.fc.weight": source["head.weight"],
        "head.fc.bias": source["head.bias"],
    }
    for i in range(depth):
        block = _block(source, f"blocks.{i}", heads, width)
        parts |= {f"block{i}.{k}": v for k, v in block.items()}
    state = {f"layers.{k}": v.clone() for k, v in parts.items()}
    assert not [k for k in state if re.search(r"\.\.", k)]
    return state
