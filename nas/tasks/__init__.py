"""Tasks, a file each: `TASK` is its class. `nas.space.task` says what a task must give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.errors import UsageError
from nas.extensions import load_member
from nas.space.task import Task


def load_task(data: Mapping[str, Any]) -> Task:
    """The task that `Task.to_json` or `Task.describe` wrote into `data`, e.g. a table's manifest.

    Without the key `task` it is a classification, as in files of vitnas 0.1. Raises `UsageError`
    for a task that is not known here, or cannot be made of these data.
    """
    name = data.get("task", "classification")
    made: type[Task] = load_member("task", "nas.tasks", str(name), "TASK")
    try:
        return made.parse(data)
    except (KeyError, TypeError, ValueError) as error:
        why = f"the key {error} is missing" if isinstance(error, KeyError) else error
        raise UsageError(f"no {name} can be made: {why}", "restore the file") from None
