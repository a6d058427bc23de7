"""What has been scored: looked up where it is known, else given to workers and written down.

One record for each id, appended as it comes, in any order; a record with an `error` says why its
task was set aside. A search that is replayed against its ledger asks the same, gets the same, and
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from nas.records import Journal
from nas.workers import Pool

Record = dict[str, Any]


class Task(NamedTuple):
    """Something to score: its id, what a worker needs to know, and what is written beside."""

    id: str
    payload: Any
    header: Mapping[str, Any]


class Ledger:
    """Records by id, from a journal and from workers; without a journal, in memory only."""

    def __init__(self, pool: Pool, journal: Journal | None = None) -> None:
        self.pool, self.journal = pool, journal
        self.records: dict[str, Record] = {}
        for record in journal.read() if journal else ():
            self.records[record["id"]] = record

    def score(
        self, tasks: Iterable[Task], done: Callable[[Record], None] = lambda _: None
    ) -> list[Record]:
        """The record of each task, in this order; `done` hears of each as soon as it is there."""
        wanted = list(tasks)
        missing = {task.id: task for task in wanted if task.id not in self.records}
        for task in missing.values():
            self.pool.submit(task.id, task.payload)
        for task in wanted:
            if task.id not in missing:
                done(self.records[task.id])
        for _ in missing:
            self._receive(missing, done)
        return [self.records[task.id] for task in wanted]

    def _receive(self, missing: Mapping[str, Task], done: Callable[[Record], None]) -> None:
        result = self.pool.next()
        outcome = {"error": result.error} if result.error else dict(result.value)
        record = {"id": result.key, **missing[result.key].header, **outcome}
        self.records[result.key] = record
        if self.journal is not None:
            self.journal.append(record)
        done(record)
