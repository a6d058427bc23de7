"""What the values or colours of masks mean: named in `classes.txt`, or found in the masks.

A line of the file is a class: `VALUE NAME #RRGGBB`. Without values the lines count from 0. The
colour is that of the class in pictures, and where masks are in colour the one that stands for it.
Lines of one name are one class; those named `ignore` are neither learned from nor scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.data.imagefolder.folders import listed
from nas.data.masks.reading import GREY, Mask
from nas.errors import DataError, printable
from nas.tasks.segmentation import BACKGROUND, IGNORED, MOST_CLASSES, default_colour

FILE = "classes.txt"
_IGNORE = "ignore"
_LINE = re.compile(r"(?:(\d{1,8})[\s,;:]+)?([^#]*?)[\s,;:]*(#[0-9a-fA-F]{6})?")
_MOST_FOUND = 160  # values that nobody has named: those of ADE20K are 151
_BLACK_AND_WHITE = {0, 255}


@dataclass(frozen=True)
class Classes:
    """The classes of masks: names and colours, and the label of each value and of each colour.

    `by_colour` is empty unless every line of `classes.txt` has a colour.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    by_value: Mapping[int, int]
    by_colour: Mapping[int, int]

    def known(self, coloured: bool) -> Mapping[int, int]:
        """The labels of what a mask holds: of colours, or of values, of which greys are some."""
        if coloured and not self.by_colour:
            return {GREY * value: label for value, label in self.by_value.items()}
        return self.by_colour if coloured else self.by_value

    def labelled(self, values: NDArray[np.int64], coloured: bool) -> NDArray[np.uint8]:
        """The labels (height, width) of what `values_in` returned."""
        labels = self.known(coloured)
        known = np.array(sorted(labels))
        at = np.searchsorted(known, values).clip(max=len(known) - 1)
        found = np.array([labels[value] for value in known.tolist()], np.uint8)[at]
        return np.where(known[at] == values, found, np.uint8(IGNORED))


def classes_of(root: Path, masks: Mapping[Path, Mask], train: Iterable[Path]) -> Classes:
    """The classes of all masks; `DataError` where they are not known, or train lacks one."""
    classes = read_classes(root)
    if classes is None:
        classes = _found(root, masks)
    _check_values(root, classes, masks)
    learned = {
        classes.known(masks[path].coloured)[value] for path in train for value in masks[path].values
    }
    if never := [name for i, name in enumerate(classes.names) if i not in learned]:
        raise DataError(
            f"in no mask of train occurs {listed(never, 3)}",
            f"add pictures of it to train, or name it `{_IGNORE}` in {root / FILE}",
        )
    return classes


class _Line(NamedTuple):
    """A line of `classes.txt`."""

    value: int
    name: str
    colour: str


def read_classes(root: Path) -> Classes | None:
    """The classes in `classes.txt`, None where there is none; `DataError` names a wrong line."""
    path = root / FILE
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataError(f"cannot read {path}: {why}", "restore or remove it") from None
    lines = [
        line._replace(name=_IGNORE) if line.name.casefold() == _IGNORE else line
        for line in _lines(path, text)
    ]
    names = list(dict.fromkeys(line.name for line in lines if line.name != _IGNORE))
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(
            f"{path} names {len(names)} classes", f"name from 2 to {MOST_CLASSES}, one a line"
        )
    labels = {name: label for label, name in enumerate(names)} | {_IGNORE: IGNORED}
    coloured = all(line.colour for line in lines)
    by_value = {line.value: labels[line.name] for line in lines}
    by_colour = {int(line.colour[1:], 16): labels[line.name] for line in lines if coloured}
    for what, known in (("value", by_value), *([("colour", by_colour)] if coloured else [])):
        if len(known) < len(lines):
            raise DataError(
                f"{path} gives two lines one {what}", f"give each line a {what} of its own"
            )
    first = {line.name: line.colour for line in reversed(lines)}
    colours = tuple(first[n] or default_colour(i) for i, n in enumerate(names))
    return Classes(
        tuple(names), colours, by_value | {IGNORED: by_value.get(IGNORED, IGNORED)}, by_colour
    )


def _lines(path: Path, text: str) -> list[_Line]:
    """The lines of the file; all of them have values, or none."""
    found: list[_Line] = []
    numbered = set()
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or not match[2]:
            raise DataError(
                f"{path}, line {i}: {printable(line.strip(), 60)!r} is no class",
                "write VALUE NAME #RRGGBB, e.g. `1 lung #ff0000`; value and colour may be left out",
            )
        numbered.add(match[1] is not None)
        value = len(found) if match[1] is None else int(match[1])
        found.append(_Line(value, match[2], (match[3] or "").lower()))
    if len(numbered) > 1:
        raise DataError(f"{path} gives some lines a value, and others none", "give all or none one")
    return found


def _found(root: Path, masks: Mapping[Path, Mask]) -> Classes:
    """A class for each value that occurs, 255 left out unless 0 and 255 are all there are.

    Raises `DataError` for masks in colour, and for values as resized masks have them.
    """
    fix = f"name the classes in {root / FILE}, a line for each: VALUE NAME #RRGGBB"
    values: set[int] = set()
    for path, mask in masks.items():
        grey = [value // GREY if mask.coloured else value for value in mask.values]
        if mask.coloured and any(GREY * g != value for g, value in zip(grey, mask.values)):
            raise DataError(
                f"{path.relative_to(root)} is in colour, and nobody says what colours mean", fix
            )
        values.update(grey)
    if values != _BLACK_AND_WHITE:
        values.discard(IGNORED)
    if not 2 <= len(values) <= _MOST_FOUND:
        blurred = "; resized masks have more than there are classes" if values else ""
        raise DataError(f"the masks of {root} hold {len(values)} values{blurred}", fix)
    known = sorted(values)
    names = tuple(str(value) if value else BACKGROUND for value in known)
    colours = _palette(known, masks) or tuple(default_colour(i) for i in range(len(known)))
    labels = {value: label for label, value in enumerate(known)}
    return Classes(names, colours, {IGNORED: IGNORED} | labels, {})


def _palette(values: list[int], masks: Mapping[Path, Mask]) -> tuple[str, ...]:
    """The colours of values in the first palette that has all of them; empty if none has."""
    for mask in masks.values():
        if len(mask.palette) > 3 * values[-1]:
            rows = [mask.palette[3 * value : 3 * value + 3] for value in values]
            return tuple(f"#{row.hex()}" for row in rows)
    return ()


def _check_values(root: Path, classes: Classes, masks: Mapping[Path, Mask]) -> None:
    """Raise `DataError` for a value or a colour that is of no class."""
    for path, mask in masks.items():
        known = classes.known(mask.coloured)
        for value in mask.values:
            if value in known:
                continue
            name, file = path.relative_to(root), root / FILE
            if not mask.coloured:
                raise DataError(
                    f"{name} holds the value {value}, and {FILE} has no line for it",
                    f"add `{value} NAME` to {file}, or `{value} {_IGNORE}`",
                )
            colour = f"#{value:06x}"
            raise DataError(
                f"{name} holds the colour {colour}, and {FILE} has no line for it",
                f"add `{colour}` to a class in {file}; all lines need a colour for masks in colour",
            )
