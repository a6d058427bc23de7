"""Preprocessing: how a picture becomes an input, the same in training, in tests and in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nas.errors import DataError


@dataclass(frozen=True)
class PictureReader:
    """Reads a picture file as a square of 8-bit pixels.

    `mode` is Pillow's: `RGB`, or `L` for grey. The square lies at the centre and is as large as
    the short side, times `crop`; it is resized with the filter of Pillow called `resample`.
    """

    mode: str = "RGB"
    resample: str = "bilinear"
    crop: float = 1.0

    @property
    def channels(self) -> int:
        """1 for grey pictures, else 3."""
        return 1 if self.mode == "L" else 3

    def pixels(self, path: Path, side: int) -> NDArray[np.uint8]:
        """The pixels (channels, side, side); `DataError` for a file that is no picture."""
        try:
            with Image.open(path) as file:
                file.draft(self.mode, (round(side / self.crop),) * 2)
                picture = _eight_bit(file).convert(self.mode)
        except Exception as error:  # a damaged file fails in any way that a parser can
            raise DataError(
                f"cannot decode {path}: {error}", "remove or replace the file"
            ) from None
        square = self.crop * min(picture.size)
        left, top = ((length - square) / 2 for length in picture.size)
        picture = picture.resize(
            (side, side),
            Image.Resampling[self.resample.upper()],
            box=(left, top, left + square, top + square),
        )
        pixels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels)


def normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (n, channels, side, side) as floats (n, 3, side, side), grey ones repeated.

    `mean` and `std` are those of the channels of pixels scaled to [0, 1].
    """
    x = pixels.float() / 255
    x = (x - x.new_tensor(mean)[:, None, None]) / x.new_tensor(std)[:, None, None]
    return x.expand(-1, 3, -1, -1)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit grey (medical images, say) scaled to 8 bits; Pillow alone would clip it."""
    if not picture.mode.startswith("I"):
        return picture
    pixels = np.asarray(picture).astype(np.int64)
    return Image.fromarray((pixels >> (8 if pixels.max() > 255 else 0)).astype(np.uint8))
