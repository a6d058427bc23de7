"""What reading every picture of a folder once shows: which are damaged, what bytes and values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nas.errors import DataError
from nas.preprocessing import PictureReader, deep_values, is_deep, open_picture
from nas.progress import track

_GREY = {"1", "L", "LA", "La"}
_FEWEST_LEVELS = 64  # of a colour picture whose lower bits are lost


@dataclass(frozen=True)
class Picture:
    """What one picture is like, and the SHA-256 of its file.

    `levels` are the lowest and the highest value of a grey picture of more than 8 bits, `floats`
    says whether these are floats. `upper` is the highest value in the upper 8 bits of a colour
    picture that has 16, of which Pillow reads no others.
    """

    digest: str
    grey: bool
    transparent: bool
    frames: bool  # whether more follow the first, the one that is read
    levels: tuple[float, float] | None
    floats: bool
    upper: int | None


def survey(paths: Sequence[Path]) -> tuple[dict[Path, Picture], dict[Path, str]]:
    """The pictures that can be read, and why the others cannot."""
    good: dict[Path, Picture] = {}
    bad: dict[Path, str] = {}
    with ThreadPoolExecutor(4) as pool:
        seen = zip(paths, pool.map(_seen, paths))
        for path, found in track(seen, "reading images", len(paths)):
            if isinstance(found, Picture):
                good[path] = found
            else:
                bad[path] = found
    return good, bad


def _seen(path: Path) -> Picture | str:
    """Read a picture; where it is damaged, in a few words why."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with open_picture(path) as picture:
            return _described(picture, digest)
    except UnidentifiedImageError:
        return "is no picture"
    except Exception as error:  # a damaged file fails in any way that a parser can
        return str(error) or type(error).__name__


def _described(picture: Image.Image, digest: str) -> Picture:
    mode, deep = picture.mode, is_deep(picture)
    frames = picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
    halved = not deep and ";16" in str([tile.args for tile in getattr(picture, "tile", ())])
    if mode in ("L", "RGB"):
        picture.draft("L", (8, 8))  # a JPEG is then decoded at an eighth, eight times faster
    picture.load()
    values = deep_values(picture) if deep else None
    transparent = not deep and picture.has_transparency_data
    if transparent:
        transparent = np.asarray(picture.convert("RGBA").getchannel("A")).min() < 255
    return Picture(
        digest=digest,
        grey=deep or mode in _GREY,
        transparent=transparent,
        frames=frames,
        levels=None if values is None else (float(values.min()), float(values.max())),
        floats=mode == "F",
        upper=int(np.asarray(picture.convert("RGB")).max()) if halved else None,
    )


def reader_for(train: Sequence[Picture], others: Iterable[Picture]) -> PictureReader:
    """How pictures like those of train are read; `DataError` if they have no one scale.

    Grey pictures of more than 8 bits have one scale, whose ends are the lowest value (0 unless
    there are negative ones) and the highest of all training pictures.
    """
    kinds = {picture.floats for picture in train if picture.levels}
    if len(kinds) > 1 or {picture.floats for picture in others if picture.levels} - kinds:
        raise DataError(
            "pictures of more than 8 bits need one scale, but these are integers here and floats "
            "there, or none of them is in train",
            "save all pictures with values of one type",
        )
    upper = [picture.upper for picture in train if picture.upper is not None]
    if upper and max(upper) < _FEWEST_LEVELS:
        raise DataError(
            f"the values of the colour pictures of 16 bits end at {256 * max(upper) + 255:,}, and "
            f"Pillow keeps {max(upper) + 1} of these levels",
            "save them in 8 bits, scaled to 255",
        )
    levels = [picture.levels for picture in train if picture.levels]
    ends = (
        (min(0.0, *(low for low, _ in levels)), max(high for _, high in levels)) if levels else None
    )
    return PictureReader("L" if all(picture.grey for picture in train) else "RGB", levels=ends)


def reading_lines(reader: PictureReader, pictures: Sequence[Picture]) -> Iterator[str]:
    """What must be known of how these pictures are read, a line for each thing."""
    black, white = reader.levels or (0, 65535)
    for what, found in (
        (
            f"more than 8 bits: {black:g} is black and {white:g} white in all of them",
            [picture.levels is not None for picture in pictures],
        ),
        ("16 bits a colour: the upper 8 are read", [p.upper is not None for p in pictures]),
        ("transparent places: white shows there", [p.transparent for p in pictures]),
        ("several frames: the first is read", [p.frames for p in pictures]),
    ):
        if any(found):
            yield f"{sum(found):,} of {len(found):,} images have {what}"
