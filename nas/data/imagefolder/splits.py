"""What is held out where a folder has no splits of its own, and files that are in two splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from nas.data import SPLITS
from nas.data.imagefolder.folders import SPLIT_NAMES, listed
from nas.data.imagefolder.survey import Picture
from nas.errors import DataError

Files = dict[str, list[tuple[Path, str]]]  # by split, each file with its class
Seen = Mapping[Path, Picture]

_HELD_OUT = 0.2  # share of the images that becomes search and test where none is given


def by_split(root: Path, pictures: Iterable[Path]) -> Files:
    """Pictures by the split that their outermost folder is called as, of other folders train.

    The class of each is what it is to `arranged`, the outermost folder that is no split; "" where
    there is none.
    """
    files: Files = {split: [] for split in SPLITS}
    for path in pictures:
        folders = path.relative_to(root).parts[:-1]
        split = SPLIT_NAMES.get(folders[0].casefold()) if folders else None
        label = next(iter(folders[split is not None :]), "")
        files[split or "train"].append((path, label))
    return files


def hold_out(files: Files, seen: Seen, missing: list[str], seed: int, pooled: bool = False) -> None:
    """Move a share of each class from train to the splits that are missing.

    The order in which the images of a class are taken depends on nothing but the seed and their
    bytes, so that all kinds of data divide a folder alike. Files with the same bytes stay together,
    in whatever classes they lie, so that no copy of a test image is trained on. Raises `DataError`
    for a class that is too small, unless such classes are `pooled` with files of no class (""): a
    pool that is too small stays in train.
    """
    digests: dict[str, set[str]] = {}
    for path, label in files["train"]:
        digests.setdefault(label, set()).add(seen[path].digest)
    if pooled:
        small = [name for name, own in digests.items() if not name or len(own) <= len(missing)]
        digests[""] = set().union(*map(digests.pop, small))
    held: dict[str, str] = {}
    for label, found in sorted(digests.items()):  # what a class holds out goes before the pool
        own = sorted(found, key=lambda digest: sha256(f"{seed} {digest}".encode()).digest())
        share = max(1, round(len(own) * _HELD_OUT / len(missing)))
        if len(own) > share * len(missing):
            for i, split in enumerate(missing):
                held |= dict.fromkeys(own[i * share : (i + 1) * share], split)
        elif not pooled:
            different = "different " * (len(own) < sum(name == label for _, name in files["train"]))
            raise DataError(
                f"class {label!r} has only {len(own)} {different}images",
                "give every class at least 3, or folders train, search and test",
            )
    train, files["train"] = files["train"], []
    for entry in train:
        files[held.get(seen[entry[0]].digest, "train")].append(entry)


def drop_copies(files: Files, seen: Seen) -> int:
    """Take out of train what search or test hold, too, and out of search what test holds.

    Returns how many files that were.
    """
    before = sum(map(len, files.values()))
    for split, others in (("search", ["test"]), ("train", ["search", "test"])):
        held = {seen[path].digest for other in others for path, _ in files[other]}
        files[split] = [entry for entry in files[split] if seen[entry[0]].digest not in held]
    return before - sum(map(len, files.values()))


def copy_lines(files: Files, seen: Seen, fix: str) -> Iterator[str]:
    """A line on the images of each split that another one holds; `fix` says how to drop them."""
    held = {split: {seen[path].digest for path, _ in own} for split, own in files.items()}
    for split, other in (("search", "train"), ("test", "train"), ("test", "search")):
        if count := sum(seen[path].digest in held[other] for path, _ in files[split]):
            yield (
                f"{count:,} of {len(files[split]):,} {split} images are also in {other}, byte for "
                f"byte; {fix}"
            )


def class_lines(files: Files, seen: Seen) -> Iterator[str]:
    """A line on the images that lie in several classes."""
    classes: dict[str, set[str]] = {}
    for own in files.values():
        for path, label in own:
            classes.setdefault(seen[path].digest, set()).add(label)
    if torn := [" and ".join(sorted(own)) for own in classes.values() if len(own) > 1]:
        yield f"{len(torn):,} images lie in several classes: {listed(sorted(set(torn)), 3)}"
