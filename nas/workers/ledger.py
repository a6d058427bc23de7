"""What has been scored: looked up where it is known, else given to workers and written down.

One record for each id, appended to the journal as it comes, in any order; a record with an `error`
says why its task was set aside. A search that is replayed against its journal asks the same, gets
the same, and goes on where it was. What was set aside is tried again then: its cause may be mended.
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
    """Records by id, from a journal and from workers; without a journal, in memory only.

    `records` are those asked for in this process, in that order: whether they come from the journal
    or from which worker changes nothing.
    """

    def __init__(
        self, pool: Pool, journal: Journal | None = None, of: type | None = None, metric: str = ""
    ) -> None:
        """`of` is the dataclass that lines of the journal match, `metric` is in its keys."""
        self.pool, self.journal = pool, journal
        self.records: dict[str, Record] = {}
        written = journal.read(of, metric) if journal else []
        self.written = {record["id"]: record for record in written if "error" not in record}
        if journal is not None and any("error" in record for record in written):
            journal.keep(lambda record: "error" not in record)

    def score(
        self, tasks: Iterable[Task], done: Callable[[Record], None] = lambda _: None
    ) -> list[Record]:
        """The record of each task, in this order; `done` hears of each as soon as it is there."""
        wanted = list(tasks)
        found = {t.id: r for t in wanted if (r := self._known(t.id)) is not None}
        missing = {task.id: task for task in wanted if task.id not in found}
        for task in missing.values():
            self.pool.submit(task.id, task.payload)
        for record in list(found.values()):
            done(record)
        for _ in missing:
            record = self._receive(missing)
            found[record["id"]] = record
            done(record)
        for task in wanted:
            self.records.setdefault(task.id, found[task.id])
        return [found[task.id] for task in wanted]

    @property
    def errors(self) -> list[str]:
        """Why tasks were set aside, in the order in which they were asked for."""
        return [str(record["error"]) for record in self.records.values() if "error" in record]

    def _known(self, name: str) -> Record | None:
        return self.records.get(name) or self.written.get(name)

    def _receive(self, missing: Mapping[str, Task]) -> Record:
        """The next record that is there, written down before anybody hears of it."""
        result = self.pool.next()
        outcome = {"error": result.error} if result.error else dict(result.value)
        record = {"id": result.key, **missing[result.key].header, **outcome}
        if self.journal is not None:
            self.journal.append(record)
        return record
