"""Tokens of texts: byte pairs learned from captions, or the vocabulary of a published tower.

Pairs of bytes (Sennrich et al., ACL 2016, section 3.2; bytes as in GPT-2) cover every script: what
the captions to learn from did not hold is read as several tokens. The file is `tokenizer.json` of
Hugging Face's `tokenizers`, which open_clip and transformers read, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from nas.errors import MissingPackageError, WeightsError

FILE = "tokenizer.json"
START, END = "<|startoftext|>", "<|endoftext|>"  # as CLIP calls them
CONTEXT = 32  # tokens of a text, with these two
_VOCABULARY = 2048


class Tokenizer:
    """Makes rows of tokens of texts: the start, the text, the end, and zeros behind it.

    The end has the highest number of all tokens, which is how towers find it.
    """

    def __init__(self, content: str, context: int = CONTEXT, where: str = FILE) -> None:
        self.content, self.context = content, context
        try:
            self._tokens = _library().Tokenizer.from_str(content)
        except MissingPackageError:
            raise
        except Exception as error:  # its own, and no class of them
            why = str(error).partition("\n")[0][:120]
            raise WeightsError(f"cannot read {where}: {why}", "restore it") from None
        self._tokens.no_padding()
        self._tokens.no_truncation()
        ends = [self._tokens.token_to_id(name) for name in (START, END)]
        if None in ends or ends[1] != self.vocabulary - 1:
            raise WeightsError(
                f"{where} has no tokens {START} and {END}, the latter as its last",
                "give the tokenizer.json of a CLIP model",
            )
        self._start, self._end = ends

    @classmethod
    def trained(cls, texts: Iterable[str], context: int = CONTEXT) -> Tokenizer:
        """A tokenizer of the most frequent pairs in these texts, in small letters."""
        library = _library()
        tokens = library.Tokenizer(library.models.BPE())
        tokens.normalizer = library.normalizers.Sequence(
            [library.normalizers.NFC(), library.normalizers.Lowercase()]
        )
        tokens.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokens.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=_VOCABULARY - 2,
            min_frequency=2,
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokens.train_from_iterator(texts, trainer)
        tokens.add_special_tokens([START, END])
        return cls(tokens.to_str(), context)

    def published(self) -> dict[str, str]:
        """The files from which transformers, and open_clip by it, make the same rows, by name.

        They put more ends behind the end instead of zeros; towers read neither.
        """
        library = _library()
        tokens = library.Tokenizer.from_str(self.content)
        tokens.post_processor = library.processors.TemplateProcessing(
            single=f"{START} $A {END}", special_tokens=[(START, self._start), (END, self._end)]
        )
        named = {"bos_token": START, "eos_token": END, "pad_token": END}
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": self.context}
        return {FILE: tokens.to_str(), "tokenizer_config.json": json.dumps(kind | named)}

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self._tokens.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """The tokens (texts, context) of texts, and how many of them did not fit and were cut."""
        found = self._tokens.encode_batch(list(texts), add_special_tokens=False)
        rows, room = torch.zeros(len(texts), self.context, dtype=torch.long), self.context - 2
        for row, own in zip(rows, found):
            numbers = [self._start, *own.ids[:room], self._end]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows, sum(len(own.ids) > room for own in found)


def _library() -> Any:
    """Hugging Face's `tokenizers`, an extra; `MissingPackageError` without it."""
    try:
        import tokenizers
    except ImportError:
        raise MissingPackageError(
            "texts need the package tokenizers", "pip install 'vitnas[clip]'"
        ) from None
    return tokenizers
