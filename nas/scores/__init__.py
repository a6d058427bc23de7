"""Scores that networks of any task can have, for `vitnas search --score NAME`: a file for each.

A score is a metric (`nas.space.task.Metric`) that takes the place of the task's own. A file holds
`load(data, supernet, references)`, which returns it for a data set and the folder of a supernet,
with as many reference samples as are asked for, or raises `UsageError` where the data do not allow
it. `READS_WORDS = True` stands there if only supernets that learned from captions have the score.
In names that people write, `-` stands for the `_` of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.errors import UnknownNameError, UsageError
from nas.extensions import load_member, load_module, members

if TYPE_CHECKING:
    from pathlib import Path

    from nas.data import Dataset
    from nas.space.task import Metric


def score_names() -> list[str]:
    """The names of all scores that come with vitnas."""
    return [name.replace("_", "-") for name in members(__name__)]


def check_score(name: str) -> None:
    """Raise `UnknownNameError` unless there is a score of this name, or it is a module's."""
    if "." not in name and name not in score_names():
        raise UnknownNameError("score", name, score_names())


def load_score(name: str, data: Dataset, supernet: Path, references: int) -> Metric:
    """The score called `name` for networks of a supernet, on the splits of a data set."""
    check_score(name)
    load = load_member("score", __name__, _file_of(name), "load")
    found: Metric = load(data, supernet, min(references, data.train.size))
    return found


def reads_words(name: str) -> bool:
    """Whether a score needs a supernet that has learned from captions; no score does not."""
    if not name:
        return False
    return getattr(load_module("score", __name__, _file_of(name)), "READS_WORDS", False)


def _file_of(name: str) -> str:
    return name.replace("-", "_")


def check_labels(name: str, data: Dataset) -> None:
    """Raise `UsageError` unless each sample of a data set has a label, and one only."""
    task = data.task
    if not task.labelled or task.dense:
        what = "has no labels" if not task.labelled else f"is for {task.name}"
        raise UsageError(
            f"the score {name} compares samples by their class, and {data.name} {what}",
            "give --data with a class for each sample, e.g. imagefolder:PATH",
        )
