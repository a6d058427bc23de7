"""What is held out where a folder has no splits of its own, and files that are in two splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random

from nas.data.imagefolder.folders import listed
from nas.data.imagefolder.survey import Picture
from nas.errors import DataError

Files = dict[str, list[tuple[Path, str]]]  # by split, each file with its class
Seen = Mapping[Path, Picture]

_HELD_OUT = 0.2  # share of the images that becomes search and test where none is given


def hold_out(files: Files, seen: Seen, missing: list[str], rng: Random) -> None:
    """Move a share of each class from train to the splits that are missing.

    Files with the same bytes stay together, so that no copy of a test image is trained on.
    """
    train: list[tuple[Path, str]] = []
    for label in sorted({label for _, label in files["train"]}):
        copies: dict[str, list[tuple[Path, str]]] = {}
        for entry in files["train"]:
            if entry[1] == label:
                copies.setdefault(seen[entry[0]].digest, []).append(entry)
        own = list(copies.values())
        rng.shuffle(own)
        share = max(1, round(len(own) * _HELD_OUT / len(missing)))
        if len(own) <= share * len(missing):
            different = "different " if any(len(same) > 1 for same in own) else ""
            raise DataError(
                f"class {label!r} has only {len(own)} {different}images",
                "give every class at least 3, or folders train, search and test",
            )
        for i, split in enumerate(missing):
            files[split] += [entry for same in own[i * share : (i + 1) * share] for entry in same]
        train += [entry for same in own[len(missing) * share :] for entry in same]
    files["train"] = train


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
    """A line on the images of each split that another one holds, and one on those of two classes.

    `fix` says how they are left out.
    """
    held = {split: {seen[path].digest for path, _ in own} for split, own in files.items()}
    for split, other in (("search", "train"), ("test", "train"), ("test", "search")):
        if count := sum(seen[path].digest in held[other] for path, _ in files[split]):
            yield (
                f"{count:,} of {len(files[split]):,} {split} images are also in {other}, byte for "
                f"byte; {fix}"
            )
    classes: dict[str, set[str]] = {}
    for own in files.values():
        for path, label in own:
            classes.setdefault(seen[path].digest, set()).add(label)
    if torn := [" and ".join(sorted(own)) for own in classes.values() if len(own) > 1]:
        yield f"{len(torn):,} images lie in several classes: {listed(sorted(set(torn)), 3)}"
