"""Which files of a folder are pictures, of which class and split, and what is left out, and why."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nas.errors import DataError, printable
from nas.preprocessing import open_picture, picture_endings

Parts = tuple[str, ...]  # the names of the folders from the root on, and of the file

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "search": "search", "val": "search", "valid": "search", "validation": "search",
    "test": "test", "testing": "test",
}  # fmt: skip
# Such as train2017, test_set and cars-val: the name of a split is one of the words.
_WITH_A_SPLIT = re.compile(
    rf"(?:.*[^a-z])?({'|'.join(SPLIT_NAMES)})[\W\d_]*(?:set|data|images)?[\W\d_]*"
)
_OF_SYSTEMS = {"__MACOSX", "@eaDir", "__pycache__", "$RECYCLE.BIN", "System Volume Information",
               "lost+found"}  # fmt: skip

HIDDEN = "hidden, or made by a system"
NO_PICTURE = "no picture by the ending of its name"
NO_FILE = "neither a file nor a folder"
NOWHERE = "a link that leads nowhere"
CIRCLE = "a link to a folder that holds it, or was entered already"
FORBIDDEN = "may not be read"
EMPTY = "a folder without pictures"
LOOSE = "in no class folder"
BESIDE = "beside the folders of the splits"


class LeftOut:
    """What is not used of a folder, by reason."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}

    def add(self, reason: str, parts: Parts) -> None:
        """Leave out a file, or a folder with all that is in it."""
        self.names.setdefault(reason, []).append("/".join(parts))

    def read(self, name: str) -> None:
        """Take back a file of the root that is no picture, but was read all the same."""
        others = [other for other in self.names.pop(NO_PICTURE, []) if other != name]
        if others:
            self.names[NO_PICTURE] = others

    def lines(self) -> Iterator[str]:
        """A line for each reason: how many were left out, and which were the first."""
        for reason, names in self.names.items():
            shown = names
            if reason == NO_PICTURE:
                found = (os.path.splitext(name)[1].lower() or "none" for name in names)
                endings = Counter(sorted(found))
                shown = [f"{ending} {count:,}" for ending, count in endings.most_common()]
            yield f"left out {len(names):,} ({reason}): {listed(shown, 3)}"


def listed(names: Sequence[str], count: int) -> str:
    """The first names, each as a terminal can show it, and three dots where more follow."""
    more = ["..."] if len(names) > count else []
    return ", ".join([printable(name) for name in names[:count]] + more)


class Walk:
    """All pictures below a folder and all folders, sorted; links are followed, but in no circle.

    What its ending does not call a picture is none; a file without an ending is one if it begins as
    one. `outside` holds the links that lead out of the folder, each with where it leads.
    """

    def __init__(self, root: Path, left_out: LeftOut) -> None:
        self.root, self.left_out = str(root), left_out
        self.pictures: list[Parts] = []
        self.folders: list[Parts] = []
        self.outside: list[tuple[str, str]] = []
        self._real = os.path.realpath(root)
        self._entered: set[tuple[Parts, int, int]] = set()
        waiting: list[Parts] = [()]
        while waiting:
            found = self._list(waiting.pop())
            waiting += found
            self.folders += found
        self.pictures.sort()
        self.folders.sort()

    def _list(self, folder: Parts) -> list[Parts]:
        """Note the pictures in a folder; returns the folders in it."""
        try:
            entries = sorted(os.scandir(self._path(folder)), key=lambda entry: entry.name)
        except OSError:
            self.left_out.add(FORBIDDEN, folder or (self.root,))
            return []
        folders = []
        for entry in entries:
            parts = (*folder, entry.name)
            try:
                is_folder = entry.is_dir()
                reason = self._reason(entry, parts)
            except OSError:  # where a link leads to itself, for instance
                reason = NOWHERE if entry.is_symlink() else FORBIDDEN
            if reason:
                self.left_out.add(reason, parts)
            elif is_folder:
                folders.append(parts)
            else:
                self.pictures.append(parts)
        return folders

    def _reason(self, entry: os.DirEntry[str], parts: Parts) -> str:
        """Why an entry is left out; empty if it is not."""
        if entry.name.startswith(".") or entry.name in _OF_SYSTEMS:
            return HIDDEN
        what = entry.stat()
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if entry.is_dir() and any(
                _holds(target, os.path.realpath(self._path(parts[:i]))) for i in range(len(parts))
            ):
                return CIRCLE
            if not _holds(self._real, target):
                self.outside.append(("/".join(parts), target))
        if stat.S_ISDIR(what.st_mode):
            # Once for each class, whose folder is in that of a split or in the root: links to
            # links of links could otherwise make any number of pictures of one.
            depth = 2 if _is_split(parts[0]) else 1
            known = (parts[:depth], what.st_dev, what.st_ino)
            if known in self._entered:
                return CIRCLE
            self._entered.add(known)
            return ""
        if not stat.S_ISREG(what.st_mode):
            return NO_FILE
        ending = os.path.splitext(entry.name)[1].lower()
        is_picture = ending in picture_endings() or (not ending and _opens(Path(entry.path)))
        return "" if is_picture else NO_PICTURE

    def _path(self, parts: Parts) -> str:
        return os.path.join(self.root, *parts)


def _is_split(name: str) -> bool:
    return name.casefold() in SPLIT_NAMES


def _holds(folder: str, path: str) -> bool:
    """Whether a path is a folder or lies in it; both are without links."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _opens(path: Path) -> bool:
    """Whether a file without an ending begins as a picture does."""
    try:
        with open_picture(path):
            return True
    except Exception:
        return False


def arranged(
    root: Path, pictures: Sequence[Parts], folders: Sequence[Parts], left_out: LeftOut
) -> dict[str, list[tuple[Parts, str]]]:
    """The pictures of each split with their class; those of no split are all in `train`.

    Raises `DataError` where it is not clear which folders are splits and which are classes.
    """
    inside: dict[str, set[str]] = {}
    for parts in pictures:
        if len(parts) > 1:
            inside.setdefault(parts[0], set()).add(parts[1] if len(parts) > 2 else "")
    sources = _sources(root, inside)
    depth = 2 if sources else 1
    files: dict[str, list[tuple[Parts, str]]] = {split: [] for split in ("train", "search", "test")}
    for parts in pictures:
        if len(parts) <= depth and (len(parts) == 1 or _is_split(parts[0])):
            left_out.add(LOOSE, parts)
        elif sources and parts[0] not in sources:
            left_out.add(BESIDE, parts)
        else:
            files[sources.get(parts[0], "train")].append((parts, parts[depth - 1]))
    filled = {parts[:n] for parts in pictures for n in (1, depth)}
    for parts in folders:
        if len(parts) in (1, depth) and parts not in filled:
            left_out.add(EMPTY, parts)
    check_names(root, {label for own in files.values() for _, label in own})
    return files


def _sources(root: Path, inside: dict[str, set[str]]) -> dict[str, str]:
    """Which folders of the root are splits, and of which; empty if all of them are classes.

    `inside` are the folders with pictures, each with the names of those inside it ("" for a picture
    right in it).
    """
    named = {name: split for name in inside if (split := SPLIT_NAMES.get(name.casefold()))}
    others = sorted(inside.keys() - named)
    divided = {name: inside[name] - {""} for name in named if inside[name] - {""}}
    trained = [name for name in divided if named[name] == "train"]
    if others and not divided and len(named) < 2:
        _check_nothing_is_inside_out(root, inside)
        return {}
    if others and not (trained and _share_classes(divided)):
        raise DataError(
            f"{root} has folders named as splits ({listed(sorted(divided or named), 3)}) beside "
            f"others ({listed(others, 3)})",
            "put all classes into folders train and test, or rename what is no split",
        )
    if named and not trained:
        raise DataError(
            f"{root} has folders named as splits ({listed(sorted(named), 3)}), but no folder train "
            "with class folders",
            "put the pictures into train/CLASS and test/CLASS, or give classes other names",
        )
    splits = {name: named[name] for name in divided}
    for split in set(splits.values()):
        if len(own := sorted(name for name in splits if splits[name] == split)) > 1:
            raise DataError(
                f"{root} has several folders of the {split} split: {listed(own, 3)}",
                "keep one of them, or put their pictures together",
            )
    return splits


def _share_classes(divided: dict[str, set[str]]) -> bool:
    """Whether one name stands in several of the folders, as those of classes do in splits."""
    names = [name.casefold() for own in divided.values() for name in own]
    return len(set(names)) < len(names)


def _check_nothing_is_inside_out(root: Path, inside: dict[str, set[str]]) -> None:
    """Raise `DataError` where classes hold splits, or the only class holds what may be classes."""
    for name, own in inside.items():
        if len({SPLIT_NAMES.get(folder.casefold()) for folder in own} - {None}) > 1:
            raise DataError(
                f"{root}/{name} holds folders named as splits ({listed(sorted(own), 3)})",
                f"give the path {root}/{name}, or put the splits outside: train/CLASS, test/CLASS",
            )
        if len(inside) == 1 and len(own) > 1 and "" not in own:
            raise DataError(
                f"{root} holds images of 1 class: {printable(name)}",
                f"give the path {root}/{printable(name)} if its folders are the classes",
            )


def check_names(root: Path, classes: Iterable[str]) -> None:
    """Raise `DataError` for names of classes that cannot be told apart, printed or meant."""
    known: dict[str, str] = {}
    for name in sorted(classes):
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode(errors="surrogateescape").decode(errors="replace")
            raise DataError(
                f"the class folder {shown} of {root} has a name that is not UTF-8", "rename it"
            ) from None
        alike = unicodedata.normalize("NFC", name).casefold().strip()
        if alike in known:
            raise DataError(
                f"{root} has the class folders {known[alike]!r} and {name!r}, which look alike",
                "give one class one name, and different classes different ones",
            )
        known[alike] = name
    found = [_WITH_A_SPLIT.fullmatch(name) for name in known]
    kinds = {SPLIT_NAMES[match[1]] for match in found if match}
    exact = all(name in SPLIT_NAMES for name in known)
    # Of classes such as soil_test and blood_test, none is called as a split to train on.
    if known and (exact or (all(found) and "train" in kinds and len(kinds) > 1)):
        raise DataError(
            f"all classes of {root} are called as splits: {listed(sorted(known.values()), 3)}",
            "put the pictures into train/CLASS and test/CLASS",
        )
