"""Preprocessing: how a picture becomes an input, the same in training, in tests and in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from nas.errors import DataError
from nas.size import Size, sides

# Of the formats that Pillow reads those of still pictures, decoded within this process: it would
# have PostScript run by another program.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI",
            "SGI", "TGA", "TIFF", "WEBP")  # fmt: skip
_EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr",
              "HSV"}  # fmt: skip


@dataclass(frozen=True)
class PictureReader:
    """Reads a picture file as 8-bit pixels of any size.

    `mode` is Pillow's: `RGB`, or `L` for grey. The largest piece of the shape of that size at the
    centre, each side times `crop`, is resized with the filter of Pillow called `resample`. The
    picture is first turned as its EXIF orientation says, and what is transparent shows `ground`,
    a grey from 0 to 255. Grey pictures of more than 8 bits are scaled so that the two `levels`
    become 0 and 255; None stands for 0 and 65535, and for pictures of floats being refused.
    """

    mode: str = "RGB"
    resample: str = "bilinear"
    crop: float = 1.0
    ground: int = 255
    levels: tuple[float, float] | None = None

    @property
    def channels(self) -> int:
        """1 for grey pictures, else 3."""
        return 1 if self.mode == "L" else 3

    def pixels(self, path: Path, size: Size) -> NDArray[np.uint8]:
        """The pixels (channels, height, width); `DataError` for a file that is no picture."""
        height, width = sides(size)
        try:
            with open_picture(path) as file:  # which may yet be turned
                file.draft(self.mode, (round(max(height, width) / self.crop),) * 2)
                picture = self._on_ground(self._in_eight_bits(upright(file)))
        except Exception as error:  # a damaged file fails in any way that a parser can
            lost = path.is_dir() or not path.exists()
            fix = "give the path of a picture" if lost else "remove or replace the file"
            raise DataError(f"cannot decode {path}: {error}", fix) from None
        resample, box = Image.Resampling[self.resample.upper()], central(picture, size, self.crop)
        picture = picture.resize((width, height), resample, box)
        pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels)

    def _in_eight_bits(self, picture: Image.Image) -> Image.Image:
        if not is_deep(picture):
            return picture
        values = deep_values(picture)
        if self.levels is None and picture.mode == "F":
            raise ValueError("its pixels are floats, and those that the network knows are not")
        black, white = self.levels or (0, 65535)
        scaled = (values - black) * (255 / max(white - black, 1e-12))
        return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))

    def _on_ground(self, picture: Image.Image) -> Image.Image:
        if picture.has_transparency_data:
            above = picture.convert("RGBA")
            ground = Image.new("RGBA", above.size, (self.ground,) * 3 + (255,))
            picture = Image.alpha_composite(ground, above)
        return picture if picture.mode == self.mode else picture.convert(self.mode)


def central(
    picture: Image.Image, size: Size, crop: float = 1.0
) -> tuple[float, float, float, float]:
    """Where the largest piece of a picture lies that has the shape of a size: at the centre.

    Left, top, right, bottom. `crop` is the part of each of its sides that is taken.
    """
    (across, down), (height, width) = picture.size, sides(size)
    piece = crop * min(across, down * (width / height)), crop * min(down, across * (height / width))
    left, top = ((length - own) // 2 for length, own in zip(picture.size, piece))
    return left, top, left + piece[0], top + piece[1]


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture file, of which only the head was read.

    Raises whatever its parser does, and `ValueError` for what is no file (a pipe would be waited
    for) and for a colour space that cannot be converted. Pillow refuses 179 million pixels or more.
    """
    if not path.exists():
        raise ValueError("there is no such file")
    if not path.is_file():
        raise ValueError("it is a folder" if path.is_dir() else "it is no file")
    with Image.open(path, formats=_readable()) as picture:
        if picture.mode not in _EIGHT_BIT and not is_deep(picture):
            raise ValueError(f"its colour space {picture.mode} is not supported")
        yield picture


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says, if it has one that can be read."""
    picture.load()  # a file that is cut short must not pass as one whose EXIF cannot be read
    with suppress(Exception):
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a pixel: 16-bit or 32-bit grey, or floats."""
    return picture.mode == "F" or picture.mode.startswith("I")


def deep_values(picture: Image.Image) -> NDArray[np.float32]:
    """The values (height, width) of a picture of more than 8 bits; they must be numbers."""
    values = np.asarray(picture).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not numbers")
    return values


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (n, channels, height, width) as floats (n, 3, height, width), grey ones repeated.

    `mean` and `std` are those of the channels of pixels scaled to [0, 1].
    """
    x = pixels.float() / 255
    x = (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
    return x.expand(-1, 3, -1, -1)


@cache
def picture_endings() -> frozenset[str]:
    """How the names of files end that hold pictures, in small letters, e.g. `.png`."""
    known = Image.registered_extensions().items()
    return frozenset(ending for ending, name in known if name in _FORMATS)


@cache
def _readable() -> list[str]:
    """The formats that this Pillow can open."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
