"""Reads masks: their values, and once before training what all of them hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nas.preprocessing import is_deep, open_picture, upright
from nas.progress import track

GREY = 0x010101  # what a grey of value 1 is as the number of a colour
_TURNED = range(5, 9)  # EXIF orientations that exchange height and width
_ORIENTATION = 0x0112
_BYTES = ("L", "P")  # modes of which a pixel is a number below 256
_MOST_COLOURS = 1024  # of a mask; a photo has more


@dataclass(frozen=True)
class Mask:
    """What one mask holds, and the SHA-256 of its file.

    `values` are those that occur: numbers of colours (`#0000ff` is 255) where it is `coloured`.
    `palette` are the colours of the values of a palette picture, three bytes each.
    """

    digest: str
    values: tuple[int, ...]
    coloured: bool
    palette: bytes = b""


def read_mask(path: Path) -> Image.Image:
    """A mask as a picture whose numbers are its values.

    Raises whatever the parser of the file does, and `ValueError` for what is no mask.
    """
    with open_picture(path) as file:
        return _kept(file)


def values_in(mask: Image.Image) -> tuple[NDArray[np.int64], bool]:
    """The values (height, width) in a mask, and whether they are numbers of colours."""
    values = np.asarray(mask).astype(np.int64)
    return (values, False) if values.ndim == 2 else (values @ (1 << 16, 1 << 8, 1), True)


def _kept(file: Image.Image) -> Image.Image:
    """An opened mask in a mode whose numbers are its values, turned upright."""
    if file.format in ("JPEG", "MPO"):
        raise ValueError("is a JPEG, which changes values; save masks as PNG")
    if file.mode == "F":
        raise ValueError("holds floats; save masks in whole numbers")
    picture = upright(file)
    if is_deep(picture) or picture.mode in _BYTES:
        return picture
    if picture.mode == "1":
        return picture.point(lambda value: value > 0, "L")
    return picture.convert("L" if picture.mode in ("LA", "La") else "RGB")


def survey_masks(pairs: Sequence[tuple[Path, Path]]) -> tuple[dict[Path, Mask], dict[Path, str]]:
    """The masks of pairs (picture, mask) that can be used, and why the others cannot, by file."""
    good: dict[Path, Mask] = {}
    bad: dict[Path, str] = {}
    with ThreadPoolExecutor(4) as pool:
        for (_, path), seen in track(
            zip(pairs, pool.map(_seen, pairs)), "reading masks", len(pairs)
        ):
            if isinstance(seen, Mask):
                good[path] = seen
            else:
                bad[path] = seen
    return good, bad


def _seen(pair: tuple[Path, Path]) -> Mask | str:
    """Read a mask; where it cannot be used, in a few words why."""
    image, path = pair
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with open_picture(image) as picture:
            size = picture.size[::-1] if _is_turned(picture) else picture.size
        with open_picture(path) as opened:
            mask = _kept(opened)
            palette = mask.getpalette("RGB") if mask.mode == "P" else None
    except UnidentifiedImageError:
        return "is no picture"
    except Exception as error:  # a damaged file fails in any way that a parser can
        return str(error) or type(error).__name__
    if mask.size != size:
        return "{} x {} pixels, its picture {} x {}".format(*mask.size, *size)
    values = _values(mask)
    if values is None:
        return f"holds more than {_MOST_COLOURS:,} colours, as a photo does"
    return Mask(digest, values, mask.mode == "RGB", bytes(palette or ()))


def _is_turned(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get(_ORIENTATION) in _TURNED
    except Exception:  # as damaged EXIF is ignored where pictures are read
        return False


def _values(mask: Image.Image) -> tuple[int, ...] | None:
    """The values that occur in a mask, ascending; None for too many colours."""
    if mask.mode == "RGB":
        found: Any = mask.getcolors(_MOST_COLOURS)
        return found and tuple(sorted(r << 16 | g << 8 | b for _, (r, g, b) in found))
    if mask.mode in _BYTES:
        return tuple(value for value, count in enumerate(mask.histogram()) if count)
    return tuple(np.unique(np.asarray(mask)).tolist())
