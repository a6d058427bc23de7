"""Writes captions of scenes: sentences of a small grammar, true of what was drawn.

    caption  = opening [size] item [place] [around]
    opening  = "a" | "a photo of a" | "a picture of a" | "a scene with a" | "there is a", with "an"
               where a vowel follows
    size     = "small" (below 32 px) | "large" (above 36 px)             every second time
    item     = the name of the class, every fourth time another word for it
    place    = "at the top left" ... "in the centre" ... "at the bottom right", by the third of the
               canvas in which the middle of the item lies               three times of four
    around   = "with little around it" | "among clutter", where there are a quarter fewer or more
               pieces of clutter than usual on a canvas of that size     every second time

The words are drawn with a seed, and the same scene always has the same caption.
"""

from __future__ import annotations

import numpy as np

WORDS = {
    "T-shirt": ("tee", "short sleeve shirt"),
    "trouser": ("pair of trousers", "pair of pants"),
    "pullover": ("sweater", "jumper"),
    "dress": ("gown", "frock"),
    "coat": ("jacket", "overcoat"),
    "sandal": ("open shoe", "summer shoe"),
    "shirt": ("blouse", "button shirt"),
    "sneaker": ("trainer", "sports shoe"),
    "bag": ("handbag", "purse"),
    "ankle boot": ("boot", "high shoe"),
}
_OPENINGS = ("a", "a photo of a", "a picture of a", "a scene with a", "there is a")
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")
_SMALL_PX, _LARGE_PX = 32, 36
_LITTLE, _MUCH = 0.75, 1.25  # of the usual clutter


def caption(
    rng: np.random.Generator,
    name: str,
    side_px: int,
    middle: tuple[float, float],
    clutter: float,
) -> str:
    """One caption of a scene with one item, whose class has this name.

    `middle` is that of the item, down and to the right, as shares of the canvas; `clutter` is the
    number of its pieces as a multiple of the usual one.
    """
    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
    says_size, other, says_place, says_around = (rng.random(4) < (0.5, 0.25, 0.75, 0.5)).tolist()
    words = WORDS.get(name, ())
    item = words[rng.integers(len(words))] if words and other else name
    size = "small" if side_px < _SMALL_PX else "large" if side_px > _LARGE_PX else ""
    around = (
        "with little around it" if clutter < _LITTLE else "among clutter" if clutter > _MUCH else ""
    )
    what = " ".join(filter(None, (size * says_size, item)))
    article = "n" if what[0].lower() in "aeiou" else ""
    parts = (opening + article, what, _place(middle) * says_place, around * says_around)
    return " ".join(filter(None, parts))


def _place(middle: tuple[float, float]) -> str:
    """Where the middle of an item lies, in words."""
    down, right = (min(int(3 * share), 2) for share in middle)
    named = " ".join(filter(None, (_ROWS[down], _COLUMNS[right])))
    return f"at the {named}" if named else "in the centre"
