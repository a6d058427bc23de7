"""The text tower of CLIP, with the names of tensors that open_clip gives them.

Radford et al., ICML 2021, section 2.4: a transformer with a causal mask, whose output at the end of
the text is normalised and projected.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers.activations import ACTIVATIONS

MOST_SCALE = 100.0  # of similarities, as a factor
_FIRST_SCALE = 1 / 0.07

# Shape suffixes: B texts, L tokens of a text, C width, D numbers of an embedding.


@dataclass(frozen=True)
class TextSizes:
    """The sizes of a text tower; `activation` is `gelu`, or `quick_gelu` in OpenAI's weights."""

    vocabulary: int = field(metadata={"least": 3})
    context: int = field(metadata={"least": 3})
    width: int = field(metadata={"least": 1})
    depth: int = field(metadata={"least": 1})
    heads: int = field(metadata={"least": 1})
    embedding: int = field(metadata={"least": 1})
    activation: str = "gelu"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"the width {self.width} is no multiple of {self.heads} heads")
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"the activation {self.activation!r} is neither gelu nor quick_gelu")

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], heads: int, activation: str) -> TextSizes:
        """The sizes of the tower that these tensors of open_clip's names are of."""
        vocabulary, width = tensors["token_embedding.weight"].shape
        numbers = {name.split(".")[2] for name in tensors if name.startswith("transformer.res")}
        context, embedding = len(tensors["positional_embedding"]), tensors["text_projection"]
        return cls(vocabulary, context, width, len(numbers), heads, embedding.shape[1], activation)


class _Block(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        width = sizes.width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, sizes.heads, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))
        )
        self.activation = ACTIVATIONS[sizes.activation]

    def forward(self, x_BLC: Tensor, mask: Tensor) -> Tensor:
        """The tokens after both."""
        y = self.ln_1(x_BLC)
        x = x_BLC + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        hidden = self.activation(self.mlp.c_fc(self.ln_2(x)))  # type: ignore[operator]
        return x + self.mlp.c_proj(hidden)  # type: ignore[no-any-return,operator]


class TextTower(nn.Module):
    """Embeds texts; it also holds the scale of their similarities with pictures, as a logarithm."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positional_embedding = nn.Parameter(torch.empty(sizes.context, sizes.width))
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(_Block(sizes) for _ in range(sizes.depth))}
        )
        self.ln_final = nn.LayerNorm(sizes.width)
        self.text_projection = nn.Parameter(torch.empty(sizes.width, sizes.embedding))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))
        self._draw_weights()

    def _draw_weights(self) -> None:
        """As OpenAI's code does: residual branches start smaller, the deeper the tower is."""
        width = self.sizes.width
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        branch = width**-0.5 * (2 * self.sizes.depth) ** -0.5
        for name, weight in self.transformer.named_parameters():
            if weight.ndim > 1:
                into = name.endswith(("out_proj.weight", "c_proj.weight"))
                std = (2 * width) ** -0.5 if "c_fc" in name else width**-0.5
                nn.init.normal_(weight, std=branch if into else std)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """The embeddings (B, D) of texts, not normalised."""
        ends = tokens_BL.argmax(1)  # the end of a text is the highest token
        length = int(ends.max()) + 1  # nothing reads what stands behind the longest
        x = self.token_embedding(tokens_BL[:, :length]) + self.positional_embedding[:length]
        mask = torch.full((length, length), -math.inf, device=x.device).triu(1)
        for block in self.transformer["resblocks"]:  # type: ignore[attr-defined]
            x = block(x, mask)
        return self.ln_final(x[torch.arange(len(x)), ends]) @ self.text_projection  # type: ignore[no-any-return]

    @property
    def scale(self) -> Tensor:
        """The factor of similarities (a scalar)."""
        return self.logit_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the factor between 1 and 100, as CLIP does after every step."""
        self.logit_scale.clamp_(0, math.log(MOST_SCALE))


def unit(vectors: Tensor) -> Tensor:
    """Vectors (..., D) in float32, divided by their lengths."""
    return F.normalize(vectors.float(), dim=-1)
