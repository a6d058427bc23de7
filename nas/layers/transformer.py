"""The core of transformer layers: attention and MLP, each after a norm and added to its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.layers.attention import ElasticAttention
from nas.layers.elastic import ElasticLayerNorm, ElasticMlp, ElasticModule
from nas.layers.windows import relative_index

# Shape suffixes: B batch or windows, N tokens, C width.


class TransformerModule(ElasticModule):
    """Pre-norm attention and MLP (Dosovitskiy et al., ICLR 2021, equations 2 and 3).

    With a `window`, an offset for each two tokens of it is learned (Liu et al., ICCV 2021, equation
    4).
    """

    position: nn.Parameter

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        hidden: int,
        eps: float = 1e-5,
        activation: str = "gelu",
        window: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = ElasticLayerNorm(width, eps=eps)
        self.attention = ElasticAttention(width, heads, head_dim)
        self.window = window
        if window:
            self.position = nn.Parameter(torch.empty(heads, (2 * window - 1) ** 2))
            nn.init.trunc_normal_(self.position, std=0.02)
        self.norm2 = ElasticLayerNorm(width, eps=eps)
        self.mlp = ElasticMlp(width, hidden, activation)

    def transform(
        self,
        x_BNC: Tensor,
        heads: int,
        hidden: int,
        bits: int,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The tokens after both; during inference they may be overwritten with the result.

        `bias` (broadcast to (B, heads, N, N)) is added to the logits of attention.
        """
        return self.transformed(self.attended(x_BNC, heads, bits, bias), hidden, bits)

    def attended(
        self,
        x_BNC: Tensor,
        heads: int,
        bits: int,
        bias: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """The tokens after attention; where `real` (B, N, 1) is 0, they enter it as zeros."""
        y = self.norm1(x_BNC)
        y = y if real is None else y * real
        return self.attention(y, heads, bias, bits, residual=x_BNC)  # type: ignore[no-any-return]

    def transformed(self, x: Tensor, hidden: int, bits: int) -> Tensor:
        """The tokens (..., C) after the MLP, which looks at each by itself."""
        return self.mlp(self.norm2(x), hidden, bits, residual=x)  # type: ignore[no-any-return]

    def offsets(self, heads: int) -> Tensor:
        """(heads, window**2, window**2): what attention adds for the offset of two tokens."""
        pairs = relative_index(self.window, self.position.device).flatten()
        bias = self.position[:heads].index_select(1, pairs)  # 5x faster than indexing by two axes
        return bias.view(heads, self.window**2, self.window**2)

    def reorder(self) -> None:
        """Sort heads, with their offsets, and hidden channels by importance."""
        self.attention.reorder(*([(self.position, 0)] if self.window else []))
        self.mlp.reorder()
