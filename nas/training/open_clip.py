"""Reads and writes the files of open_clip: an image and a text tower, their sizes, the tokens.

The image tower is a ViT (Radford et al., ICML 2021, section 2.4). Of ours those can be written that
drop no patches and have no int8; what open_clip has no place for moves into what it has. Heads and
hidden channels that a block lacks become zeros, the bias of patches a part of their positions, and
the bias of the projection a part of the norm before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from nas.errors import UsageError, WeightsError
from nas.network.network import Network
from nas.records import read_json, write_bytes, write_json, write_text
from nas.text.encoder import TextEncoder
from nas.text.tokens import FILE as TOKENIZER
from nas.text.tokens import Tokenizer
from nas.text.tower import TextSizes, TextTower
from nas.training.checkpoint_files import read_checkpoint

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_KNOWN_BY = "visual.conv1.weight"
_HEAD = 64  # channels of a head in all published towers
_TEXT = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.",
         "text_projection", "logit_scale")  # fmt: skip
_TOLERANCE = 1e-3

# Ours, within an image tower of open_clip, as timm calls them.
_TIMM = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def image_tower(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The image tower in a checkpoint of CLIP with timm's names; other checkpoints as they are."""
    if _KNOWN_BY not in tensors:
        return dict(tensors)
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        if name.startswith("visual."):
            plain = name.removeprefix("visual.")
            for pattern, timm in _TIMM:
                plain = re.sub(pattern, timm, plain)
            found[plain] = value
    for name in ("cls_token", "pos_embed"):
        if isinstance(found.get(name), Tensor):
            found[name] = found[name][None]
    if isinstance(projection := found.pop("proj", None), Tensor) and projection.ndim == 2:
        found["head.weight"], found["head.bias"] = (
            projection.T,
            projection.new_zeros(projection.shape[1]),
        )
    if "norm_pre.weight" not in found:  # one of ours, whose patches have a bias
        weight = found["patch_embed.proj.weight"]
        found["patch_embed.proj.bias"] = weight.new_zeros(len(weight))
    return found


def read_texts(path: Path) -> TextEncoder:
    """The text tower in a checkpoint of open_clip, with its tokens.

    Beside the weights lie `tokenizer.json` of the model and `open_clip_config.json`, without which
    a head has 64 channels, and the activation is GELU. Raises `WeightsError` for what is not there.
    """
    folder = path if path.is_dir() else path.parent
    weights = folder / WEIGHTS if path.is_dir() and (folder / WEIGHTS).is_file() else path
    tensors = {
        name: value.float()
        for name, value in read_checkpoint(weights).items()
        if isinstance(value, Tensor) and name.startswith(_TEXT)
    }
    config = _config(folder)
    try:
        width = tensors["token_embedding.weight"].shape[1]
        heads = int(config.get("text_cfg", {}).get("heads", max(1, width // _HEAD)))
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
        sizes = TextSizes.of(tensors, heads, activation)
        tower = TextTower(sizes)
        tower.load_state_dict(tensors)
    except (KeyError, ValueError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        why = str(error).partition("\n")[0][:120]
        raise WeightsError(
            f"{weights} has no text tower of CLIP: {why}",
            "give a checkpoint of open_clip, or a folder with open_clip_model.safetensors",
        ) from None
    if not (folder / TOKENIZER).is_file():
        raise WeightsError(
            f"there is no {TOKENIZER} beside {weights}",
            "put that of the model there; it is in its repository on the Hugging Face hub",
        )
    words = (folder / TOKENIZER).read_text(encoding="utf-8", errors="replace")
    tokenizer = Tokenizer(words, sizes.context, str(folder / TOKENIZER))
    if tokenizer.vocabulary != sizes.vocabulary:
        raise WeightsError(
            f"{folder / TOKENIZER} has {tokenizer.vocabulary:,} tokens, and the text tower knows "
            f"{sizes.vocabulary:,}",
            "put the one of the same model there",
        )
    return TextEncoder(tokenizer, tower)


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        return {}
    data = read_json(folder / CONFIG)
    found = data.get("model_cfg", data) if isinstance(data, dict) else {}
    return dict(found) if isinstance(found, dict) else {}


def write_open_clip(
    network: Network,
    encoder: TextEncoder,
    mean: Sequence[float],
    std: Sequence[float],
    folder: Path,
) -> float:
    """Write a plain network of embeddings and its texts as open_clip reads them.

    Returns the largest difference of an embedding (of length 1) from the network's, by what is
    read again. `mean` and `std` are those of the channels, one for grey pictures. Raises
    `UsageError` for a network that open_clip has no place for.
    """
    tensors, vision, quick = _image_tensors(network)
    sizes = encoder.tower.sizes
    if quick != (sizes.activation == "quick_gelu"):
        raise UsageError("the towers have different activations", "export the network alone")
    config = {
        "embed_dim": sizes.embedding,
        **({"quick_gelu": True} if quick else {}),
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": sizes.context,
            "vocab_size": sizes.vocabulary,
            "hf_tokenizer_name": TOKENIZER,  # any name: the one beside the weights is read
            "width": sizes.width,
            "heads": sizes.heads,
            "layers": sizes.depth,
        },
    }
    channels = [[float(x) for x in (values * 3)[:3]] for values in (list(mean), list(std))]
    preprocess = {"mean": channels[0], "std": channels[1], "interpolation": "bilinear"}
    difference = _difference(network, tensors)
    if not difference <= _TOLERANCE:
        raise UsageError(
            f"embeddings of the files would differ by {difference:.2g}", "export another format"
        )
    own = {**{f"visual.{k}": v for k, v in tensors.items()}, **encoder.tower.state_dict()}
    content = save({k: v.detach().cpu().contiguous().clone() for k, v in own.items()})
    write_bytes(folder / WEIGHTS, content)
    write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    for name, text in encoder.tokenizer.published().items():
        write_text(folder / name, text)
    return difference


def _image_tensors(network: Network) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
    """The tensors of an image tower, its sizes, and whether it has OpenAI's activation."""
    _check(network)
    parts: Any = network.space.parts
    own = {k.removeprefix("layers."): v.detach() for k, v in network.state_dict().items()}
    (stage,) = network.architecture.stages
    size, width, depth = network.architecture.resolution, stage.width, len(stage.blocks)
    hidden = max(len(own[f"block{i}.mlp.fc1.bias"]) for i in range(depth))
    places = own["stem.position"].reshape(-1, width) + own.get("stem.bias", 0)
    tensors = {
        "conv1.weight": own["stem.weight"],
        "class_embedding": own["stem.class_token"],
        "positional_embedding": torch.cat([own["stem.class_position"][None], places]),
        "ln_post.weight": own["head.norm.weight"],
        "ln_post.bias": own["head.norm.bias"] + _before(own["head.fc.weight"], own["head.fc.bias"]),
        "proj": own["head.fc.weight"].T,
    }
    if parts.clip:
        tensors |= {f"ln_pre.{x}": own[f"stem.norm.{x}"] for x in ("weight", "bias")}
    for i in range(depth):
        block = {
            k.removeprefix(f"block{i}."): v for k, v in own.items() if k.startswith(f"block{i}.")
        }
        named = _block(block, width // parts.head_dim, hidden)
        tensors |= {f"transformer.resblocks.{i}.{k}": v for k, v in named.items()}
    vision = {
        "image_size": size if isinstance(size, int) else list(size),
        "layers": depth,
        "width": width,
        "patch_size": parts.patch,
        "head_width": parts.head_dim,
        "mlp_ratio": hidden / width,
        **({} if parts.clip else {"no_ln_pre": True, "norm_kwargs": {"eps": 1e-6}}),
    }
    return tensors, vision, parts.clip == 2


def _check(network: Network) -> None:
    """Raise `UsageError` for a network that is no image tower of open_clip's kind."""
    space, architecture, why = network.space, network.architecture, ""
    if space.family != "vit":
        why = f"networks of {space.family} are not of its kind"
    elif space.task.labelled or not space.task.outputs:
        why = f"it makes no embeddings, but is for {space.task.name}"
    elif any(block.sparsity for stage in architecture.stages for block in stage.blocks):
        why = "it leaves out patches"
    elif any(block.precision != "fp32" for stage in architecture.stages for block in stage.blocks):
        why = "it has layers in int8"
    else:
        (stage,) = architecture.stages
        parts: Any = space.parts
        most = max(block.heads for block in stage.blocks)
        if parts.distilled or stage.width % parts.head_dim or most * parts.head_dim > stage.width:
            why = f"its heads are not {stage.width} channels together"
    if why:
        raise UsageError(
            f"open_clip has no place for this network: {why}",
            "give a dense architecture of vit that learned from captions, or another --format",
        )


def _block(own: Mapping[str, Tensor], heads: int, hidden: int) -> dict[str, Tensor]:
    """The tensors of a block, with zeros for the heads and channels that it lacks."""
    lacks, width = heads - own["attention.out"].shape[1], len(own["attention.out_bias"])
    more = hidden - len(own["mlp.fc1.bias"])
    return {
        **{f"ln_{i}.{x}": own[f"norm{i}.{x}"] for i in (1, 2) for x in ("weight", "bias")},
        "attn.in_proj_weight": pad(own["attention.qkv"], (0, 0, 0, 0, 0, lacks)).reshape(-1, width),
        "attn.in_proj_bias": pad(own["attention.qkv_bias"], (0, 0, 0, lacks)).reshape(-1),
        "attn.out_proj.weight": pad(own["attention.out"], (0, 0, 0, lacks)).reshape(width, -1),
        "attn.out_proj.bias": own["attention.out_bias"],
        "mlp.c_fc.weight": pad(own["mlp.fc1.weight"], (0, 0, 0, more)),
        "mlp.c_fc.bias": pad(own["mlp.fc1.bias"], (0, more)),
        "mlp.c_proj.weight": pad(own["mlp.fc2.weight"], (0, more)),
        "mlp.c_proj.bias": own["mlp.fc2.bias"],
    }


def _before(weight: Tensor, bias: Tensor) -> Tensor:
    """What added before a projection gives this bias after it."""
    found: Tensor = torch.linalg.lstsq(weight.double(), bias.double()[:, None], driver="gelsd")[0]
    return found[:, 0].float()


@torch.no_grad()
def _difference(network: Network, tensors: Mapping[str, Tensor]) -> float:
    """How far embeddings of random inputs are off, as open_clip computes them."""
    architecture, parts = network.architecture, network.space.parts
    shape = (2, *network.space.example(architecture))
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, expected = embedded(tensors, inputs, parts), network.cpu()(inputs)
    lengths = expected.norm(dim=1, keepdim=True)
    return float(((found - expected) / lengths).abs().max())


def embedded(tensors: Mapping[str, Tensor], inputs: Tensor, parts: Any) -> Tensor:
    """The embeddings of inputs by the tensors of an image tower, operator by operator."""
    from torch.nn.functional import conv2d, gelu, layer_norm, linear
    from torch.nn.functional import scaled_dot_product_attention as attend

    eps, quick = (1e-5 if parts.clip else 1e-6), parts.clip == 2
    width = len(tensors["class_embedding"])

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    x = conv2d(inputs, tensors["conv1.weight"], stride=parts.patch).flatten(2).mT
    first = tensors["class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + tensors["positional_embedding"]
    x = norm(x, "ln_pre") if parts.clip else x
    for i in range(len({name.split(".")[2] for name in tensors if name.startswith("trans")})):
        at = f"transformer.resblocks.{i}"

        def project(x: Tensor, name: str, at: str = at, joint: str = ".") -> Tensor:
            weight, bias = (tensors[f"{at}.{name}{joint}{kind}"] for kind in ("weight", "bias"))
            return linear(x, weight, bias)

        qkv = project(norm(x, f"{at}.ln_1"), "attn.in_proj", joint="_")
        q, k, v = qkv.view(len(x), x.shape[1], 3, -1, parts.head_dim).permute(2, 0, 3, 1, 4)
        x = x + project(attend(q, k, v).transpose(1, 2).flatten(2), "attn.out_proj")
        y = project(norm(x, f"{at}.ln_2"), "mlp.c_fc")
        x = x + project(y * torch.sigmoid(1.702 * y) if quick else gelu(y), "mlp.c_proj")
    return norm(x[:, 0], "ln_post") @ tensors["proj"]
