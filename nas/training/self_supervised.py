"""Makes plain networks of what pretraining without labels left: MAE, MoCo v3, DINO and DINOv2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nas.errors import WeightsError
from nas.progress import console
from nas.space.family import SearchSpace

# What such a training needs beside the network: MAE's decoder, tokens that stand for hidden
# patches, and the heads of DINO and of MoCo v3 behind the network.
_BESIDE = re.compile(
    r"^(?:mask_token$|decoder_|dino_head\.|ibot_head\.|head\.(?:\d|mlp|last_layer))"
)
_SMALL, _HEADS = 384, 12  # MoCo v3's S; all others of this width have 6
_SCALE = re.compile(r"^(.*\.)ls([12])\.gamma$")
_SCALED = {"1": "attn.proj", "2": "mlp.fc2"}  # what a block adds comes out of these


def is_dino(models: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether models by their name in a checkpoint are DINO's student and teacher, with heads."""
    heads = ("head.last_layer", "dino_head.last_layer")
    return models.keys() == {"student", "teacher"} and any(
        head in name for name in models["teacher"] for head in heads
    )


def check_heads(names: Iterable[str], space: SearchSpace) -> None:
    """Raise `WeightsError` for MoCo v3's small network where heads are not as many as it has.

    Its tensors have the shapes of any network of that width, and would give other outputs unseen.
    """
    stage = space.largest.stages[0]
    heads = {getattr(block, "heads", 0) for block in stage.blocks}
    if stage.width == _SMALL and heads != {_HEADS} and any("base_encoder." in n for n in names):
        raise WeightsError(
            f"MoCo v3's network of width {_SMALL} has {_HEADS} heads, {space.name} has others",
            "use --space moco_v3_vit_small",
        )


def of_network(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the network alone, by their names in timm; stderr says what was left out.

    Layer scale (Touvron et al., ICCV 2021) multiplies each channel of what a block adds, so it is
    folded into the linear layer before it: the network computes the same. Raises `WeightsError` for
    registers, tokens that networks here do not have.
    """
    if "reg_token" in tensors or "register_tokens" in tensors:
        raise WeightsError(
            "the checkpoint has registers, tokens that networks of vitnas do not have",
            "give the checkpoint of the model without registers",
        )
    left = [name for name in tensors if _BESIDE.match(name)]
    if left:
        more = f" and {len(left) - 2} more" if len(left) > 2 else ""
        text = f"only for pretraining, and left out: {', '.join(left[:2])}{more}"
        console.print(text, style="dim", markup=False, soft_wrap=True)
    return _without_scales({name: x for name, x in tensors.items() if name not in left})


def _without_scales(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors with each scale folded; one without a layer that it scales stays."""
    plain = dict(tensors)
    for name, scale in tensors.items():
        found = _SCALE.match(name)
        layer = f"{found[1]}{_SCALED[found[2]]}." if found else ""
        scaled = {n: tensors[n] for n in (f"{layer}weight", f"{layer}bias") if n in tensors}
        if not found or not scaled:
            continue
        for place, tensor in scaled.items():
            if scale.shape != tensor.shape[:1]:
                raise WeightsError(
                    f"{name} scales {place}, which is of another size",
                    "give a checkpoint of this very model",
                )
            factor = scale.detach().float().view(-1, *[1] * (tensor.ndim - 1))
            plain[place] = tensor.detach().float() * factor
        del plain[name]
    return plain
