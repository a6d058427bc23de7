"""Pictures with captions, one or several each: texts to learn from instead of labels.

Captions stand in a table (CSV, TSV or JSON lines), or in text files that are called as the
pictures. Pictures are read as those of `imagefolder`, and `PATH,copies=drop` leaves out the same
copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nas.data import SPLITS, Arrays, Dataset
from nas.data.captions.pairs import captioned
from nas.data.imagefolder import ImageFiles, crop_and_flip
from nas.data.imagefolder.folders import LeftOut, Walk, listed, split_of
from nas.data.imagefolder.picture_data import PictureData, say
from nas.data.imagefolder.splits import Files
from nas.data.imagefolder.survey import Picture, survey
from nas.errors import DataError
from nas.preprocessing import PictureReader
from nas.size import Size
from nas.tasks.embedding import Embedding
from nas.text.packed import packed

ARGUMENTS = ("PATH",)
_ALL = "pictures"  # the one class by which pictures are held out
# A mirror would make left of right, and a small crop lose what a caption speaks of.
_AUGMENT = partial(crop_and_flip, kept=(0.9, 1.0), flips=0.0)

Captions = Mapping[Path, Sequence[str]]


def load(argument: str, seed: int) -> Dataset:
    """The pictures and captions below the folder `argument`; `DataError` where they are none.

    `seed` fixes which pictures are held out where the folder has no splits of its own.
    """
    folder = PictureData("captions", argument, "a folder of pictures and their captions")
    files, captions, seen = _read(root := folder.root)
    folder.divide(files, seen, seed)
    folder.check_splits(files, "add some with captions")
    _check_captions(root, files, captions)
    reader = folder.reader(files, seen, seed)
    splits = {
        split: Pairs(split, [(file, captions[file]) for file, _ in own], reader)
        for split, own in files.items()
    }
    content = [
        (split, file.relative_to(root).as_posix(), seen[file].digest, *captions[file])
        for split in SPLITS
        for file, _ in files[split]
    ]
    return folder.dataset(splits, reader, Embedding(), _AUGMENT, content)


def _read(root: Path) -> tuple[Files, Captions, dict[Path, Picture]]:
    """The pictures of each split, the captions of each, and what reading them has shown.

    What is left out is said, by reason.
    """
    left_out = LeftOut()
    walk = Walk(root, left_out)
    captions = captioned(root, walk.pictures, left_out, say)
    seen, bad = survey(list(captions))
    if bad:
        shown = [f"{path.relative_to(root)} ({why})" for path, why in bad.items()]
        say(f"skipped {len(bad):,} unreadable of {len(captions):,} pictures: {listed(shown, 3)}")
    for line in left_out.lines():
        say(line)
    files: Files = {split: [] for split in SPLITS}
    for path in captions:
        parts = path.relative_to(root).parts
        split = split_of(parts)
        if path in seen:
            files[split].append((path, _ALL))
    different = {seen[path].digest for path, _ in files["train"]}
    needed = 2 + sum(not files[split] for split in ("search", "test"))
    if len(different) < needed:
        raise DataError(
            f"{root} has {len(different)} different pictures with captions to train on",
            f"give it at least {needed}, each with a caption: a table of file and caption, or "
            "text files called as the pictures",
        )
    return files, captions, seen


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

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        """Pictures, and as `captions` the bytes of all captions of each."""
        images = super().batch(indices, size)["images"]
        return {"images": images, "captions": packed([self.captions[i] for i in indices])}
