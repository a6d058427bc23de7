"""Learning from captions (CLIP, Radford et al., ICML 2021, section 2.3), for pictures of all sizes.

The network becomes the image tower: it gives vectors, which are as near as they can be to those
that a small text tower gives for their captions. The text tower is trained along, saved beside the
weights, and never measured. Smaller networks learn which captions the largest one finds near.
A training that starts from a supernet which has texts goes on with these. `clip,text=PATH` starts
from the text tower of a checkpoint of open_clip or of another supernet, and `clip,frozen=PATH`
leaves that as it is (Zhai et al., CVPR 2022).

A caption that stands at two pictures of a batch is no negative of either: such pairs are left out
of the sum in the softmax. The same holds for texts that are equal as the tower reads them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nas.data import ENDLESS, Dataset, Split, Tensors
from nas.errors import UsageError, WeightsError, printable
from nas.evaluation.zero_shot import projections
from nas.network.network import Network
from nas.progress import console, say
from nas.size import Size, each
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.task import Task
from nas.tasks.embedding import Embedding
from nas.text.encoder import TextEncoder, has_texts
from nas.text.packed import unpacked
from nas.text.tokens import Tokenizer
from nas.text.tower import TextSizes, TextTower, unit
from nas.training.objectives import Made, Objective, is_largest
from nas.training.open_clip import read_texts
from nas.training.projections import check_batches
from nas.training.supernet import is_supernet

SIZE = 128  # numbers of an embedding
_WIDTH, _DEPTH, _HEADS = 128, 3, 4  # of the text tower
_SHOWN, _CELL = 32, 8  # pairs in the picture of similarities, and the pixels of one
_READ = 2_048  # samples whose captions are read at once, and all that are of an endless split


class Clip(Objective):
    """The symmetric cross-entropy of which picture has which caption, within a batch."""

    takes = "images"
    sources = ("text", "frozen")
    text: TextTower
    tokenizer: Tokenizer
    usual: ClassVar[Mapping[str, str]] = {"data": "scenes:captions"}
    meaning = (
        "the cross-entropy of which caption is a picture's, among those of a batch, both ways: the "
        "logarithm of the batch's size is a guess"
    )

    def __init__(self, space: SearchSpace, *, text: str = "", frozen: str = "") -> None:
        super().__init__(space)
        self.source, self.frozen = text or frozen, bool(frozen)
        if text and frozen:
            raise UsageError(
                "a text tower is trained or frozen, not both", "give text=PATH or frozen=PATH"
            )

    @classmethod
    def task(cls, posed: Task, *, text: str = "", frozen: str = "") -> Task:
        """Vectors as long as those of the text tower."""
        source = text or frozen
        return Embedding(texts_in(source).tower.sizes.embedding if source else SIZE)

    def prepare(self, network: Network) -> None:
        """Leave out the bias of the projection, which CLIP has not: it is zero, and stays so."""
        tensors = dict(network.named_parameters())
        for name in projections(network.space):
            if tensors[name].ndim == 1:
                nn.init.zeros_(tensors[name]).requires_grad_(False)

    def take(self, folder: Path) -> None:
        """Go on with the texts of a supernet that has learned from captions."""
        if has_texts(folder):
            self._start_from(TextEncoder.load(folder))

    def begin(self, network: Network, batches: Sequence[int]) -> None:
        """Raise `UsageError` for a batch of one, which has nothing to tell apart."""
        check_batches(batches)

    def study(self, data: Dataset) -> None:
        """Learn the tokens of the captions to train on, and make the text tower, or read both.

        Says how many captions are too long. Raises `UsageError` for data without captions, and for
        texts whose vectors are not as long as the network's.
        """
        least = each(lambda side: max(1, side // 4), self.space.smallest.resolution)
        texts = _captions(data.train, least)
        if texts is None:
            raise UsageError(
                f"clip learns from captions, and {data.name} has none",
                "give --data captions:PATH, or --data scenes:captions",
            )
        self._make_tower(texts)
        parts = (texts[i : i + _READ] for i in range(0, len(texts), _READ))
        if cut := sum(self.tokenizer.encode(part)[1] for part in parts):
            first = f", by the first {_READ:,} samples" if data.train.size >= ENDLESS else ""
            say(
                f"{cut:,} of {len(texts):,} captions have more than {self.tokenizer.context - 2} "
                f"tokens, of which the first are read{first}"
            )

    def _make_tower(self, captions: list[str]) -> None:
        """Read the text tower and the tokens, go on with those that were taken, or make them."""
        if self.source:
            self._start_from(texts_in(self.source))
            self.text.requires_grad_(not self.frozen).logit_scale.requires_grad_()
        elif self.starts:
            console.print("the text tower goes on from that of the start", style="dim")
        else:
            self.tokenizer = Tokenizer.trained(captions)
            vocabulary, context = self.tokenizer.vocabulary, self.tokenizer.context
            self.text = TextTower(TextSizes(vocabulary, context, _WIDTH, _DEPTH, _HEADS, SIZE))
        if (size := self.text.sizes.embedding) != self.space.task.outputs:
            raise UsageError(
                f"the vectors of the texts have {size} numbers, and those of the network "
                f"{self.space.task.outputs}",
                "give the folder of the texts: --objective clip,text=FOLDER",
            )

    def _start_from(self, encoder: TextEncoder) -> None:
        self.tokenizer, self.text = encoder.tokenizer, encoder.tower
        self.starts = {"text_fingerprint": encoder.fingerprint}

    def forward(
        self, network: Network, architecture: Architecture, batch: Tensors, rng: Random
    ) -> Made:
        """The embeddings of pictures, of length 1.

        With the network as it was built, also those of a caption of each, drawn where there are
        several, and which pictures and captions belong together besides their own.
        """
        images = unit(network(batch[self.space.parts.takes], architecture))
        if not is_largest(architecture, network):
            return (images,)  # smaller networks learn from what that one made
        known = unpacked(batch["captions"].cpu().numpy())
        drawn = [rng.choice(texts) for texts in known]
        tokens = self.tokenizer.encode(drawn)[0].to(images.device)
        return images, unit(self.text(tokens)), shared(drawn, known, tokens)

    def loss(self, made: Made, batch: Tensors) -> Tensor:
        """The mean of two cross-entropies: pictures over captions, and captions over pictures."""
        images, texts, both = made
        logits = (self.text.scale * images @ texts.mT).masked_fill(both, -torch.inf)
        own = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, own) + cross_entropy(logits.mT, own)) / 2

    def distil(self, small: Made, large: Made) -> Tensor:
        """The same cross-entropies with what the large network finds near, as soft labels."""
        scale, (images, texts, *_) = self.text.scale.detach(), large
        ours, theirs = (scale * x @ texts.mT for x in (small[0], images))
        return (
            cross_entropy(ours, theirs.softmax(-1)) + cross_entropy(ours.mT, theirs.mT.softmax(-1))
        ) / 2

    def after_step(self, network: Network) -> None:
        """Clamp the scale of similarities."""
        self.text.clamp_scale()

    def pictures(self, network: Network, data: Dataset) -> dict[str, Tensor]:
        """The similarities of pictures (rows) and captions (columns) of the search split.

        White is the nearest: what has been learned shows as a bright diagonal.
        """
        side = network.architecture.resolution
        batch = data.first(data.search, _SHOWN, side)
        inputs = batch[self.space.parts.takes].to(next(network.parameters()).device)
        texts = [own[0] for own in unpacked(batch["captions"].numpy())]
        with torch.no_grad():
            tokens = self.tokenizer.encode(texts)[0].to(inputs.device)
            cosines = unit(network.eval()(inputs)) @ unit(self.text.eval()(tokens)).mT
        low, high = cosines.min(), cosines.max()
        shown = ((cosines - low) / (high - low)).cpu().repeat_interleave(_CELL, 0)
        caption = (
            f"{len(texts)} pictures (rows) and their captions, by similarity: white is the "
            "nearest, and a bright diagonal right"
        )
        return {caption: shown.repeat_interleave(_CELL, 1)[..., None]}

    def keep(self, folder: Path) -> None:
        """Write the text tower and its tokens beside the weights of the supernet."""
        TextEncoder(self.tokenizer, self.text).save(folder)


def shared(drawn: list[str], known: list[list[str]], tokens: Tensor) -> Tensor:
    """Which pictures (rows) have which captions (columns) besides their own (B, B), bool.

    `drawn` is a caption of each picture, `known` all of each, and `tokens` are those of `drawn`.
    """
    sets = [set(texts) for texts in known]
    stands = torch.tensor([[text in own for text in drawn] for own in sets], device=tokens.device)
    equal = (tokens[:, None] == tokens).all(-1)
    return (stands | stands.mT | equal).fill_diagonal_(False)


def _captions(split: Split, size: Size) -> list[str] | None:
    """All captions of a split, of an endless one the first; None for data without captions."""
    last = split.size if split.size < ENDLESS else _READ
    found: list[str] = []
    for start in range(0, last, _READ):
        read = split.annotations(range(start, min(start + _READ, last)), size)
        if "captions" not in read:
            return None
        found += [text for own in unpacked(read["captions"]) for text in own]
    return found


def texts_in(source: str) -> TextEncoder:
    """The texts in a checkpoint of open_clip, or beside a supernet that learned from captions.

    They are read once, however often a training asks. Raises `WeightsError` for what is neither.
    """
    if not os.path.exists(source):  # which, unlike `Path.exists`, takes a path of any length
        fix = "give a folder with text.json, or a checkpoint of open_clip"
        raise WeightsError(f"there is no {printable(source, 80)}", fix)
    path = Path(source)
    files = (path if path.is_dir() else path.parent).iterdir()
    written = sorted(file.stat().st_mtime_ns for file in files if file.is_file())
    encoder = _loaded(path, tuple(written))
    return replace(encoder, tower=deepcopy(encoder.tower))


@lru_cache(maxsize=1)
def _loaded(path: Path, written: tuple[int, ...]) -> TextEncoder:
    """The texts in a file or folder; the files beside it, or in it, were written at these times."""
    if has_texts(path):
        return TextEncoder.load(path)
    if is_supernet(str(path)):
        raise WeightsError(
            f"the supernet in {path} has not learned from captions",
            "give one that has, or a checkpoint of open_clip",
        )
    return read_texts(path)


OBJECTIVE = Clip
