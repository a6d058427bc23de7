"""Prompts: labels in words as a classifier (CLIP, Radford et al., ICML 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nas.errors import UsageError, printable
from nas.text.encoder import TextEncoder
from nas.text.tower import unit

# Sentences that say a label, with its article, and no more.
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "there is {}", "a scene with {}")
_ARTICLES = ("a ", "an ", "the ", "some ")


def checked_labels(
    labels: Iterable[str], fix: str = "give different ones: --labels 'a sneaker, a bag'"
) -> list[str]:
    """Labels without spaces around them; `UsageError` unless they are several different ones."""
    found = [" ".join(label.split()) for label in labels]
    if not all(map(_words, found)):
        raise UsageError("one of the labels is empty", fix)
    known: dict[str, str] = {}
    for label in found:
        phrase = phrase_of(label).casefold()
        if phrase in known:
            raise UsageError(
                f"the labels {printable(known[phrase], 40)!r} and {printable(label, 40)!r} are the "
                "same",
                fix,
            )
        known[phrase] = label
    if len(found) < 2:
        raise UsageError(f"pictures are told apart by two labels at least, got {len(found)}", fix)
    return found


def phrase_of(label: str) -> str:
    """A label with its article: `hat_box` and `a hat box` both as `a hat box`."""
    words = _words(label)
    if words.casefold().startswith(_ARTICLES) or not words[:1].isascii():
        return words
    return f"{'an' if words[:1].lower() in 'aeiou' else 'a'} {words}"


def _words(label: str) -> str:
    """The words of a label; those in the names of folders have underscores between them."""
    return " ".join(label.replace("_", " ").split())


@torch.no_grad()
def classifier_of(
    encoder: TextEncoder, labels: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """The weights (labels, D) of a classifier of embeddings, of length 1 each.

    That of a label is the mean of the normalised embeddings of its prompts, normalised again.
    """
    rows = []
    for label in labels:
        prompts = [template.format(phrase_of(label)) for template in templates]
        rows.append(unit(unit(encoder.embed(prompts)).mean(0)))
    return torch.stack(rows)
