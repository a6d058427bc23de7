"""Pictures with captions, one or several each: texts to learn from instead of labels.

Captions stand in a table (CSV, TSV or JSON lines), or in text files that are called as the
pictures. Pictures are read as those of `imagefolder`, and `PATH,copies=drop` leaves out the same
copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nas.data import Arrays, Dataset
from nas.data.captions.pairs import captioned
from nas.data.imagefolder import ImageFiles, crop_and_flip
from nas.data.imagefolder.picture_data import PictureData
from nas.data.imagefolder.splits import Files, by_split
from nas.errors import DataError
from nas.preprocessing import PictureReader
from nas.progress import say
from nas.size import Size
from nas.tasks.embedding import Embedding
from nas.text.packed import packed

ARGUMENTS = ("PATH",)
_SHAPE = "each with a caption: a table of file and caption, or text files called as the pictures"
# A mirror would make left of right, and a small crop lose what a caption speaks of.
_AUGMENT = partial(crop_and_flip, kept=(0.9, 1.0), flips=0.0)

Captions = Mapping[Path, Sequence[str]]


def load(argument: str, seed: int) -> Dataset:
    """The pictures and captions below the folder `argument`; `DataError` where they are none.

    `seed` fixes which pictures are held out where the folder has no splits of its own.
    """
    folder = PictureData("captions", argument, seed, "a folder of pictures and their captions")
    captions = captioned(folder.root, folder.walk.pictures, folder.left_out, say)
    files = folder.read(by_split(folder.root, captions))
    folder.divide_pooled(files, 2, " with captions", _SHAPE)
    _check_captions(folder.root, files, captions)
    return folder.dataset(
        files,
        lambda split, own, reader: Pairs(
            split, [(file, captions[file]) for file, _ in own], reader
        ),
        Embedding(),
        _AUGMENT,
        lambda file, _: (folder.seen[file].digest, *captions[file]),
    )


def _check_captions(root: Path, files: Files, captions: Captions) -> None:
    """Say how many pictures share a caption; `DataError` where all of them do."""
    counts: dict[str, int] = {}
    for file, _ in files["train"]:
        for caption in captions[file]:
            counts[caption] = counts.get(caption, 0) + 1
    if len(counts) < 2:
        raise DataError(
            f"all pictures of train in {root} have one caption: {next(iter(counts))[:60]!r}",
            "give pictures captions that tell them apart",
        )
    if shared := {caption: n for caption, n in counts.items() if n > 1}:
        say(
            f"{len(shared):,} captions stand at {sum(shared.values()):,} pictures of train: where "
            f"two of these meet in a batch, they are no negatives of each other"
        )


class Pairs(ImageFiles):
    """Pictures with their captions."""

    def __init__(
        self, name: str, pairs: Sequence[tuple[Path, Sequence[str]]], reader: PictureReader
    ) -> None:
        super().__init__(name, [(file, i) for i, (file, _) in enumerate(pairs)], reader)
        self.captions = [list(captions) for _, captions in pairs]

    def annotations(self, indices: Sequence[int], size: Size) -> Arrays:
        """As `captions` the bytes of all captions of each picture."""
        return {"captions": packed([self.captions[i] for i in indices])}
