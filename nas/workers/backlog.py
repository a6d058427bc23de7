"""Tasks that wait for a worker: how many go at once, and what happens to one that fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

FAILURES = 2  # of its own, after which a task is set aside
LOSSES = 5  # of its machine, which may be the task's doing after all
CALL_S = 0.05  # a call should take at least that long, or it costs more than it brings
CALL_S_PER_WORKER = 0.002  # one driver serves all: at most 500 calls a second
LONGEST = 256  # tasks of a call: payloads may be large


@dataclass(frozen=True)
class Done:
    """What became of a task: its value, or in one line why it was set aside."""

    key: str
    value: Any = None
    error: str = ""


@dataclass
class Task:
    """A payload with what has happened to it so far."""

    key: str
    payload: Any
    failures: int = 0
    losses: int = 0
    alone: bool = False  # it was part of a chunk that failed


class Backlog:
    """The tasks of a pool that are not done, and the outcomes nobody has asked for yet.

    Short tasks go in chunks, sized by the seconds that tasks have taken. Of a chunk that fails,
    nobody knows whose fault it was: its tasks are done again alone, and only a task that fails
    alone has failed.
    """

    def __init__(self) -> None:
        self.done: deque[Done] = deque()
        self._waiting: deque[Task] = deque()
        self._task_s: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: str, payload: Any) -> None:
        """Queue a task behind all others."""
        self._waiting.append(Task(key, payload))

    def call_s(self, workers: int) -> float:
        """Seconds that one call should take."""
        return max(CALL_S, CALL_S_PER_WORKER * workers)

    def take(self, workers: int) -> list[Task]:
        """The tasks of the next call: the next one, and others where they are short."""
        if not self._waiting:
            raise LookupError("every task that was submitted has been returned")
        share = ceil(len(self._waiting) / workers)  # the last ones are for all workers
        chunk = [self._waiting.popleft()]
        if self._task_s is None or chunk[0].alone:
            return chunk
        wanted = self.call_s(workers) / max(self._task_s, 1e-9)
        for _ in range(int(min(wanted, share, LONGEST)) - 1):
            if not self._waiting or self._waiting[0].alone:
                break
            chunk.append(self._waiting.popleft())
        return chunk

    def took(self, tasks: int, seconds: float) -> None:
        """Learn from a call how long a task takes."""
        last = seconds / tasks
        self._task_s = last if self._task_s is None else 0.7 * self._task_s + 0.3 * last

    def finish(self, task: Task, value: Any) -> None:
        """Keep the value of a task for whoever asks for it."""
        self.done.append(Done(task.key, value))

    def put_back(self, chunk: Sequence[Task]) -> None:
        """Tasks that were taken and not begun wait again, before all others."""
        self._waiting.extendleft(reversed(chunk))

    def fail(self, chunk: Sequence[Task], cause: str, own: bool = True) -> None:
        """Have tasks done again, or set one aside; `own`: the fault is within the tasks."""
        if len(chunk) > 1:
            for task in chunk:
                task.alone = True
            self.put_back(chunk)
            return
        [task] = chunk
        task.failures += own
        task.losses += not own
        if task.failures < FAILURES and task.losses < LOSSES:
            self.put_back(chunk)
            return
        error = f"{cause} (failed {task.failures} times"
        error += f", and {task.losses} of its workers were lost)" if task.losses else ")"
        self.done.append(Done(task.key, error=error))


def one_line(error: BaseException, length: int = 200) -> str:
    """An exception as `Name: message`, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= length else text[: length - 1] + "…"
