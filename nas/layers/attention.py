"""Multi-head attention, elastic in heads and width, and the kernels that compute attention.

Kernels differ by rounding. Which one suits the windows of a machine is a value that a module is
told (`tell_kernel`), so that processes whose scores are compared can be told the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.layers import mode
from nas.layers.elastic import importance, leading, permute
from nas.layers.precision import Quantizer, linear

# Shape suffixes: B batch or windows, N tokens, C width, H heads, D head_dim.

# softmax(q k^T / sqrt(D) + bias) v of q, k, v (B, H, N, D); the bias broadcasts to (B, H, N, N).
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
WINDOW = 64  # tokens up to which attention counts as that of a window


def explicit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by two products and a softmax."""
    logits = (q * q.shape[-1] ** -0.5) @ k.mT
    y: Tensor = (logits if bias is None else logits + bias).softmax(-1) @ v
    return y


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention by torch's kernel for all of it."""
    if bias is not None:
        bias = bias.expand(len(q), q.shape[1], -1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def linear_attention(qkv: Tensor, eps: float) -> Tensor:
    """relu(Q) (relu(K)^T V) / (relu(Q) relu(K)^T 1 + eps): EfficientViT, equation 2.

    Takes (B, H, 3, D, N), returns (B, H, D, N), linear in the N tokens; always in float32. A row of
    ones below V gives the denominator.
    """
    if qkv.dtype != torch.float32:  # sums over all tokens need the digits
        with torch.autocast(qkv.device.type, enabled=False):
            return linear_attention(qkv.float(), eps).to(qkv.dtype)
    q, k, v = qkv.unbind(2)
    y = F.pad(v, (0, 0, 0, 1), value=1.0) @ F.relu(k).mT @ F.relu(q)
    if mode.exporting():  # its optimizer takes 1e-15 for 0, which leaves 0 / 0
        y, eps = y * 2.0**40, eps * 2.0**40
    return y[:, :, :-1] / (y[:, :, -1:] + eps)


@cache
def fastest_in_windows() -> Kernel:
    """The faster kernel in windows on this CPU: timed once in a process, 20 ms.

    With 49 tokens and a bias explicit products were 1.3x slower than the fused kernel on an Intel
    Xeon (AMX) and 1.1-1.5x faster on an AMD EPYC (Zen 5).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    q, bias = torch.full((32, 3, 49, 32), 0.5), torch.zeros(1, 3, 49, 49)
    times: dict[Kernel, list[float]] = {fused: [], explicit: []}
    try:
        with torch.inference_mode():
            for _ in range(8):
                for kernel, own in times.items():
                    start = time.perf_counter()
                    kernel(q, q, q, bias)
                    own.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times, key=lambda kernel: min(times[kernel]))


def tell_kernel(module: nn.Module, in_windows: Kernel) -> None:
    """Let every attention in `module` use this kernel in windows."""
    for part in module.modules():
        if isinstance(part, ElasticAttention):
            part.in_windows = in_windows


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, in_windows: Kernel = fused
) -> Tensor:
    """Attention of q, k, v (B, H, N, D) by the kernel that suits the place.

    Over many tokens that is the fused one (against explicit products on one thread of an Intel
    Xeon: 1.02-1.08x at 197, 1.2-1.4x at 577 to 1025), on CPUs `in_windows` in windows. CPUs have no
    fused kernel that learns a bias, and ONNX runtimes know attention by its explicit products.
    """
    if mode.exporting():
        return explicit(q, k, v, bias)
    if q.is_cuda:
        return fused(q, k, v, bias)
    if bias is not None and bias.requires_grad and mode.recording():
        return explicit(q, k, v, bias)
    return (in_windows if q.shape[2] <= WINDOW else fused)(q, k, v, bias)


class ElasticAttention(nn.Module):
    """Multi-head self-attention with `heads` of `head_dim` channels, whatever the width.

    At 8 bits the four projections are int8; the two attention products stay in float32.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.empty(3, heads, head_dim, width))
        self.qkv_bias = nn.Parameter(torch.zeros(3, heads, head_dim))
        self.out = nn.Parameter(torch.empty(width, heads, head_dim))
        self.out_bias = nn.Parameter(torch.zeros(width))
        self.input, self.mixed = Quantizer(), Quantizer()
        self.in_windows: Kernel = fused
        for weight in (self.qkv, self.out):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(
        self,
        x_BNC: Tensor,
        heads: int,
        bias: Tensor | None = None,
        bits: int = 32,
        residual: Tensor | None = None,
    ) -> Tensor:
        """`bias` is added to the attention logits; it broadcasts to (B, heads, N, N).

        `residual` (B, N, C) is added; during inference it may be overwritten with the result.
        """
        b, n, c = x_BNC.shape
        d = self.qkv.shape[2]
        weight = leading(self.qkv, 3, heads, d, c).reshape(3 * heads * d, c)
        qkv_bias = leading(self.qkv_bias, 3, heads, d).reshape(-1)
        qkv = linear(x_BNC, weight, qkv_bias, self.input, bits)
        q, k, v = qkv.view(b, n, 3, heads, d).permute(2, 0, 3, 1, 4)
        y_BHND = attend(q, k, v, bias, self.in_windows)
        y = y_BHND.transpose(1, 2).reshape(b, n, heads * d)
        out, out_bias = leading(self.out, c, heads, d).reshape(c, -1), leading(self.out_bias, c)
        return linear(y, out, out_bias, self.mixed, bits, residual=residual)

    def reorder(self, *others: tuple[Tensor, int]) -> None:
        """Heads by importance; `others` are tensors with a head axis that belong to them."""
        order = (importance(self.qkv, 1) + importance(self.out, 1)).argsort(descending=True)
        permute(order, (self.qkv, 1), (self.qkv_bias, 1), (self.out, 1), *others)
