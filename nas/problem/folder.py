"""The folder of a search: its settings, and everything that was paid for.

`settings.json` identifies the search, `candidates.jsonl` holds the scores, `latencies.jsonl` the
costs that functions gave, and `batches.jsonl` what was asked for together and how the searcher was
left after it. A resumed search therefore goes on from its last whole batch, without replaying.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.errors import RunError
from nas.problem.costs import AskedCost
from nas.records import Journal, fingerprint, read_object, write_json


class Folder:
    """The files of one search; without a path nothing is kept."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path, self._identity = path, dict(identity)
        self.batches: list[dict[str, Any]] = []
        self._costs: Sequence[AskedCost] = ()

    @property
    def candidates(self) -> Journal | None:
        """The journal of scores."""
        return self._journal("candidates")

    def _journal(self, name: str) -> Journal | None:
        return None if self.path is None else Journal(self.path / f"{name}.jsonl")

    @contextmanager
    def opened(self, resume: bool) -> Iterator[None]:
        """Keep other processes out; `RunError` if the folder belongs to another search."""
        if self.path is None or self.candidates is None:
            yield
            return
        with self.candidates.locked():
            self._refuse_other(self.path, resume)
            if (journal := self._journal("batches")) is not None:
                self.batches = [own for own in journal.read() if own.pop("seal", "") == _seal(own)]
            yield

    def begin(self) -> None:
        """Mark the folder as that of this search; nothing is written before."""
        if self.path is not None and not (self.path / "settings.json").exists():
            write_json(self.path / "settings.json", self._identity)

    def hold(self, costs: Sequence[AskedCost]) -> None:
        """Keep what functions are asked for, and give them what they were asked for before."""
        self._costs = costs
        if (journal := self._journal("latencies")) is not None and costs:
            written = journal.read()
            for cost in costs:
                cost.box.keep_in(_Begun(self, journal), written)

    def keep(self, batch: Mapping[str, Any]) -> None:
        """Write down a batch, and how far functions had been asked then.

        Those of an earlier search that went another way from there on are dropped.
        """
        if (journal := self._journal("batches")) is not None:
            if any(own["start"] >= batch["start"] for own in self.batches):
                left = [own for own in self.batches if own["start"] < batch["start"]]
                journal.write([{**own, "seal": _seal(own)} for own in left])
                self.batches = []
            asked = [[len(cost.box.known), cost.fitted_to] for cost in self._costs]
            own = {**batch, "asked": asked}
            journal.append({**own, "seal": _seal(own)})

    def restored(self, batch: Mapping[str, Any]) -> None:
        """Bring the costs of functions to where they were after a batch."""
        for cost, (calls, fitted_to) in zip(self._costs, batch["asked"], strict=True):
            cost.box.restore(calls)
            cost.fit(fitted_to)

    def _refuse_other(self, path: Path, resume: bool) -> None:
        file = path / "settings.json"
        if file.exists():
            if not resume and any(path.glob("*.jsonl")):
                raise RunError(
                    f"{path} exists already", "pass resume=True, or choose another folder"
                )
            if not resume:  # it ended before anything was paid for
                file.unlink()
                return
            before = read_object(file)
            if differing := [k for k, v in self._identity.items() if before.get(k) != v]:
                raise RunError(
                    f"{path} was made with another {' and '.join(differing)}",
                    "resume with the same, or choose another folder",
                )
        elif (path / "candidates.jsonl").exists():
            raise RunError(f"{path} has candidates of an unknown search", "choose another folder")


def _seal(batch: Mapping[str, Any]) -> str:
    """What tells a batch that was written here from one that was made or altered by hand."""
    return fingerprint(batch)


class _Begun(Journal):
    """A journal that marks its folder before it writes the first time."""

    def __init__(self, folder: Folder, journal: Journal) -> None:
        super().__init__(journal.path)
        self._folder = folder

    def extend(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records, in a folder that says which search they are of."""
        self._folder.begin()
        super().extend(records)
