"""Scenes: one product photo at native size on a large, mostly empty, cluttered canvas.

The label is the class of the item; the clutter is cut from other items. What tells the classes
apart is a few pixels wide, so shrinking the picture loses it, while most windows of the picture
hold nothing: the case that window-activation pruning is made for. `scenes:masks` are the same
pictures with a label for every pixel: the item's class where it is seen, else the background.
`scenes:captions` are the same pictures with a caption each, of the grammar in
`nas.data.captions.grammar`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.data import SPLITS, Arrays, Dataset, Split
from nas.data.captions.grammar import caption
from nas.errors import UsageError
from nas.preprocessing import PictureReader
from nas.records import fingerprint
from nas.size import Size, area, each, sides
from nas.tasks.classification import Classification
from nas.tasks.segmentation import BACKGROUND, Segmentation
from nas.text.packed import packed

ARGUMENTS = ("", "masks", "captions")
Photo = NDArray[np.uint8]

CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
COLOURS = (  # of the background, then of each class: none of them is as dark as the scenes
    "#000000", "#4c9be8", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
    "#c08457", "#e377c2", "#ffd700", "#bcbd22", "#17becf",
)  # fmt: skip
CANVAS = 224
MEAN, STD = 0.15, 0.25  # of a scene scaled to [0, 1]; an empty place comes out near 0
_ASSETS = Path(__file__).parents[1] / "assets" / "fashion-mnist"
_SIZES = {"train": 10**9, "search": 2000, "test": 4000}
_ITEM_PX = (28, 40)
_FRAGMENT_PX = (8, 15)
_FRAGMENTS_PER_PX = 14 / CANVAS**2
_NOISE_PX = 1024  # side of the noise that backgrounds are cut out of; larger ones repeat it


def load(argument: str, seed: int) -> Dataset:
    """The scenes as a data set, with masks or captions if `argument` says so.

    The seed changes nothing.
    """
    masks = argument == "masks"
    made = {"masks": _MaskedScenes, "captions": _CaptionedScenes}.get(argument, _Scenes)
    splits = {split: made(split, _SIZES[split]) for split in SPLITS}
    seen = splits["search"].batch(range(4), CANVAS)
    names = [*([BACKGROUND] if masks else []), *CLASSES]
    more = {"masks": ("labels",), "captions": ("captions",)}.get(argument, ())
    labelled = [seen[kind].tobytes() for kind in more]
    return Dataset(
        name=f"scenes:{argument}".rstrip(":"),
        task=Segmentation.of(names, COLOURS) if masks else Classification.of(names),
        mean=(MEAN,),
        std=(STD,),
        reader=PictureReader("L"),
        augment=None,
        fingerprint=fingerprint(seen["images"].tobytes(), names, *labelled),
        **splits,
    )


class _Scenes(Split):
    """Scenes drawn when they are asked for; below the size of an item, a canvas of it shrunk."""

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        images, labels = render_batch(self.name, indices, _canvas(size))
        if _canvas(size) != size:  # supernets train at a quarter of their size first
            images = np.stack([_resized(image, size) for image in images])
        return {"images": images[:, None], "labels": labels}


class _MaskedScenes(Split):
    """Scenes with a label for every pixel; below the size of an item, as `_Scenes` shrinks them."""

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        images, labels = [], []
        for index in indices:
            image, label, mask = render(self.name, index, _canvas(size))
            images.append(_resized(image, size))
            labels.append(_resized(mask * np.uint8(label + 1), size, Image.Resampling.NEAREST))
        return {"images": np.stack(images)[:, None], "labels": np.stack(labels)}


class _CaptionedScenes(Split):
    """Scenes with a caption each, and the label of the item."""

    def batch(self, indices: Sequence[int], size: Size) -> Arrays:
        scenes = [drawn(self.name, index, _canvas(size)) for index in indices]
        return {
            "images": np.stack([_resized(scene.image, size) for scene in scenes])[:, None],
            "labels": np.array([scene.label for scene in scenes]),
            "captions": packed([[described(self.name, *pair)] for pair in zip(indices, scenes)]),
        }


def _canvas(size: Size) -> Size:
    """The canvas of which a scene of a size is made: of the same shape, with room for an item."""
    short = min(sides(size))
    return each(lambda side: -(-side * max(short, _ITEM_PX[1]) // short), size)


@lru_cache(maxsize=3)
def photos(split: str) -> tuple[Photo, Photo]:
    """The photos (n, 28, 28) and labels (n,) of one split; the three splits share no photo."""
    mosaic = np.asarray(Image.open(_ASSETS / f"{split}.webp").convert("L")) << 2
    labels = np.load(_ASSETS / f"{split}.npy", allow_pickle=False)
    columns = mosaic.shape[1] // 28
    tiles = mosaic.reshape(-1, 28, columns, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    return np.ascontiguousarray(tiles), labels


class Scene(NamedTuple):
    """A scene, and what was drawn: the item of a class, its side, and pieces of clutter."""

    image: Photo
    label: int
    mask: NDArray[np.bool_]  # where the item is seen
    side_px: int
    pieces: int


def render(
    split: str, index: int, canvas: Size = CANVAS, seed: int = 0
) -> tuple[Photo, int, NDArray[np.bool_]]:
    """Scene number `index` of a split: the grey image, its label, and the mask of the item."""
    return drawn(split, index, canvas, seed)[:3]


def described(split: str, index: int, scene: Scene, seed: int = 0) -> str:
    """The caption of scene number `index` of a split, always the same for the same arguments."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index, 1))  # not that of the picture
    down, right = (float(np.flatnonzero(scene.mask.any(axis))[[0, -1]].mean()) for axis in (1, 0))
    height, width = scene.image.shape
    usual = _FRAGMENTS_PER_PX * height * width
    middle = (down + 0.5) / height, (right + 0.5) / width
    return caption(rng, CLASSES[scene.label], scene.side_px, middle, scene.pieces / usual)


def drawn(split: str, index: int, canvas: Size = CANVAS, seed: int = 0) -> Scene:
    """Scene number `index` of a split.

    The same arguments always give the same scene. Items keep their native 28-40 pixels whatever
    the canvas (in pixels, both sides at least 40: `UsageError` below), and clutter its density.
    Costs about 0.25 ms at 224 pixels.
    """
    if min(sides(canvas)) < _ITEM_PX[1]:
        raise UsageError(f"the canvas of a scene has at least 40 px, got {canvas}", "e.g. 40")
    items, labels = photos(split)
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    image = _background(rng, canvas)
    pieces = int(rng.poisson(_FRAGMENTS_PER_PX * area(canvas)))
    for _ in range(pieces):
        _paste(image, _fragment(rng, items), rng)
    # Every split shows each of its photos once before any photo returns.
    chosen = index % len(items)
    side = int(rng.integers(_ITEM_PX[0], _ITEM_PX[1] + 1))
    item = _resized(items[chosen], side)
    mask = _paste(image, (item * rng.uniform(0.7, 1.0)).astype(np.uint8), rng)
    return Scene(image, int(labels[chosen]), mask, side, pieces)


def render_batch(
    split: str, indices: Sequence[int], canvas: Size = CANVAS, seed: int = 0
) -> tuple[Photo, NDArray[np.int64]]:
    """Scenes (n, height, width) and their labels (n,)."""
    scenes = [render(split, i, canvas, seed)[:2] for i in indices]
    return np.stack([s for s, _ in scenes]), np.array([label for _, label in scenes])


def _resized(image: Photo, size: Size, by: Image.Resampling = Image.Resampling.BILINEAR) -> Photo:
    return np.asarray(Image.fromarray(image).resize(sides(size)[::-1], by))


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 5, (_NOISE_PX, _NOISE_PX)).astype(np.float32)


def _background(rng: np.random.Generator, canvas: Size) -> Photo:
    """A faint gradient with the noise of a sensor."""
    height, width = sides(canvas)
    noise, last = _noise(), _NOISE_PX - max(height, width)
    if last <= 0:
        noise, last = np.pad(noise, (0, max(height, width)), mode="wrap"), _NOISE_PX
    top, left = rng.integers(0, last, 2)
    slope_x, slope_y = rng.uniform(-12, 12, 2)
    y, x = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in (height, width))
    ground = slope_y * y[:, None] + slope_x * x + rng.uniform(22, 46)
    noisy = ground + noise[top : top + height, left : left + width]
    background: Photo = np.clip(noisy, 0, 255).astype(np.uint8)
    return background


def _fragment(rng: np.random.Generator, items: Photo) -> Photo:
    source = items[rng.integers(len(items))]
    h, w = rng.integers(_FRAGMENT_PX[0], _FRAGMENT_PX[1] + 1, 2)
    y, x = rng.integers(2, 26 - h), rng.integers(2, 26 - w)
    piece = source[y : y + h, x : x + w]
    return np.rot90(piece, int(rng.integers(4)))


def _paste(image: Photo, piece: Photo, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Put the lit pixels of `piece` somewhere on `image`; returns where they are."""
    h, w = piece.shape
    height, width = image.shape
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    lit = piece > 12
    image[y : y + h, x : x + w][lit] = piece[lit]
    mask = np.zeros(image.shape, bool)
    mask[y : y + h, x : x + w] = lit
    return mask
