"""How foreign checkpoints call the tensors of a family, as tables of renamings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The name of a tensor in a foreign checkpoint, and where a plain reshape is not enough, what makes
# ours of it (given theirs and our shape).
Origin = tuple[str, "Callable[[Tensor, tuple[int, ...]], Tensor] | None"]

# A pattern of `re`, and what stands there in timm's checkpoints: a template, or what makes the text
# of the match.
Renaming = tuple[str, "str | Callable[[re.Match[str]], str]"]

# The attention of a transformer block.
ATTENTION: tuple[Renaming, ...] = (
    (r"attention\.qkv$", "attn.qkv.weight"),
    (r"attention\.qkv_bias$", "attn.qkv.bias"),
    (r"attention\.out$", "attn.proj.weight"),
    (r"attention\.out_bias$", "attn.proj.bias"),
)


def renamed(table: Iterable[Renaming], path: str, name: str) -> str:
    """Tensor `name` of the layer at `path` as the table calls it.

    The table reads `path.name`; its renamings are made one after the other.
    """
    name = f"{path}.{name}"
    for pattern, theirs in table:
        name = re.sub(pattern, theirs, name)
    return name
