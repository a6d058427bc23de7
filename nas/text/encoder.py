"""A tokenizer and a text tower together, and their files beside the weights of a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nas.errors import WeightsError
from nas.records import fingerprint, read_json, write_bytes, write_json, write_text
from nas.text.tokens import FILE as TOKENIZER
from nas.text.tokens import Tokenizer
from nas.text.tower import TextSizes, TextTower
from nas.typed import MismatchError, decode, encode, mapping

WEIGHTS, CARD = "text.safetensors", "text.json"


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """What makes embeddings of texts."""

    tokenizer: Tokenizer
    tower: TextTower

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """The embeddings (texts, D) of texts, not normalised; what is too long is cut."""
        tokens, _ = self.tokenizer.encode(texts)
        device = self.tower.logit_scale.device
        found: Tensor = self.tower.eval()(tokens.to(device)).float()
        return found

    @property
    def fingerprint(self) -> str:
        """Twelve digits that change with any weight or token."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.tower.state_dict().items()}
        return fingerprint(save(tensors), self.tokenizer.content)

    def save(self, folder: Path) -> None:
        """Write the weights (parameters in half precision), the sizes and the tokenizer."""
        tensors = {k: v.detach().half().cpu() for k, v in self.tower.state_dict().items()}
        content = save({k: v.contiguous() for k, v in tensors.items()})
        write_bytes(folder / WEIGHTS, content)
        write_text(folder / TOKENIZER, self.tokenizer.content)
        card = {**encode(self.tower.sizes), "fingerprint": fingerprint(content)}
        write_json(folder / CARD, card)

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """What `save` wrote into a folder; `WeightsError` where that cannot be read."""
        fix = "restore it, or train again: vitnas train --objective clip"
        try:
            card = mapping(read_json(folder / CARD), "it")
            sizes = decode(TextSizes, card)
            content = (folder / WEIGHTS).read_bytes()
            if card.get("fingerprint") != fingerprint(content):
                raise ValueError(f"{WEIGHTS} is not the file that {CARD} was written for")
            words = (folder / TOKENIZER).read_text(encoding="utf-8")
            tower = TextTower(sizes)
            tower.load_state_dict({k: v.float() for k, v in load(content).items()})
            if not all(tensor.isfinite().all() for tensor in tower.state_dict().values()):
                raise ValueError(f"{WEIGHTS} holds values that are no numbers")
        except (OSError, ValueError, RuntimeError, SafetensorError, MismatchError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
            raise WeightsError(f"cannot load the texts in {folder}: {why}", fix) from None
        tokenizer = Tokenizer(words, sizes.context, str(folder / TOKENIZER))
        if tokenizer.vocabulary != sizes.vocabulary:
            raise WeightsError(
                f"{folder / TOKENIZER} has {tokenizer.vocabulary} tokens, and the tower knows "
                f"{sizes.vocabulary}",
                fix,
            )
        return cls(tokenizer, tower.eval())


def has_texts(folder: Path) -> bool:
    """Whether a folder holds what embeds texts."""
    return (folder / CARD).is_file()
