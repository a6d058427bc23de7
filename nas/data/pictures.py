"""Pictures without labels: every picture below a folder, in whatever folders it lies.

They are for objectives that need no labels. Folders called as splits (`train`, `test`, ...) right
in the folder are these splits, and what they lack is held out of the others. Pictures are read as
those of `imagefolder`, and `PATH,copies=drop` leaves out the same copies.
"""

from __future__ import annotations

from collections.abc import Sequence

from nas.data import Arrays, Dataset
from nas.data.imagefolder import ImageFiles, crop_and_flip
from nas.data.imagefolder.picture_data import PictureData
from nas.data.imagefolder.splits import by_split
from nas.size import Size
from nas.tasks.embedding import Embedding

ARGUMENTS = ("PATH",)


def load(argument: str, seed: int) -> Dataset:
    """The pictures below the folder `argument`; `DataError` where they cannot be used.

    `seed` fixes which pictures are held out where the folder has no splits of its own.
    """
    folder = PictureData("pictures", argument, seed, "a folder of pictures")
    pictures = [folder.root.joinpath(*parts) for parts in folder.walk.pictures]
    files = folder.read(by_split(folder.root, pictures))
    folder.divide_pooled(files, 1, "", "in folders of any depth")
    return folder.dataset(
        files,
        lambda split, own, reader: Pictures(split, [(file, 0) for file, _ in own], reader),
        Embedding(),
        crop_and_flip,
        lambda file, _: (folder.seen[file].digest,),
    )


class Pictures(ImageFiles):
    """Picture files without labels."""

    def annotations(self, indices: Sequence[int], size: Size) -> Arrays:
        """Nothing."""
        return {}
