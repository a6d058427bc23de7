"""A measuring campaign: rounds of visits to every row of a space, and to networks that judge them.

Rows and reference networks are visited in rounds, all in turn, so that a slow moment of the machine
hits all alike. Every round is appended to `samples.jsonl`: a killed profile goes on with the next.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nas.errors import InfeasibleError, PreparationError, TableError
from nas.latency.noise import Visit, steadied, wanting
from nas.latency.outcome import Outcome, Plan, outcome
from nas.latency.port import Port
from nas.latency.protocols import Piece, pieces
from nas.latency.rows import UNUSABLE
from nas.network.macs import count_params
from nas.progress import Advance, bar
from nas.records import Journal
from nas.runtimes import Program, Runtime, visit
from nas.space.family import SearchSpace
from nas.trellis.graph import Graph, decode
from nas.trellis.trellis import Trellis

_FIT, _HELD_OUT = 20, 30  # networks for the calibration, and for its error
_EXACT = 5, 10  # the same where numbers have no noise
_ENOUGH = 3  # rounds that make a table when the time is up
_HELD_WEIGHTS = 500_000_000  # parameters of what stays prepared between rounds: 2 GB
_KEEP_EVERY_S = 2.0  # what a kill can lose
PATIENCE_MINUTES = 3.0  # for more rounds than were asked for


def networks_wanted(runtime: Runtime) -> tuple[int, int]:
    """How many networks a calibration is fitted on, and how many it is judged on."""
    return _EXACT if runtime.exact else (_FIT, _HELD_OUT)


@dataclass(frozen=True)
class SamplesRecord:
    """A line of the journal of a campaign: the first is its identity, others what was found."""

    identity: str = ""
    campaign: str = ""
    samples: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    alone: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()


class Samples:
    """What a campaign knows so far, kept in its journal."""

    def __init__(self, journal: Journal) -> None:
        """Read the journal; its first record only says whose samples these are."""
        self._journal = journal
        self.order: list[tuple[str, Visit]] = []  # all visits, each with the name of its piece
        self.visits: Counter[str] = Counter()  # how many of each piece
        self.failed: dict[str, str] = {}  # rows that cannot be had, and why
        self.alone: set[str] = set()  # rows that cannot be timed behind another layer
        self.chosen: list[str] = []  # architectures of the reference networks, as JSON
        for record in journal.read(SamplesRecord)[1:]:
            self._add(record)

    def record(self, record: dict[str, Any]) -> None:
        """Append a record to the journal and to what is known."""
        self._journal.append(record)
        self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        samples = record.get("samples", {})
        self.order += samples.items()
        self.visits.update(samples.keys())
        self.failed |= record.get("failed", {})
        self.alone |= set(record.get("alone", []))
        self.chosen += record.get("chosen", [])


class Campaign:
    """Visits the pieces of a space in rounds, and makes rows and a calibration of their samples."""

    def __init__(
        self,
        space: SearchSpace,
        graph: Graph,
        runtime: Runtime,
        context: str,
        journal: Journal,
        rounds: int,
        most: int,
        port: Port | None = None,
    ) -> None:
        """`graph` is that of the space. With a `port` only its chosen rows are measured.

        There are `rounds`, and up to `most` of them as long as noise keeps the error up.
        """
        self.space, self.runtime = space, runtime
        self.context, self.rounds, self.most, self.port = context, rounds, most, port
        self.samples = Samples(journal)
        self._all = graph
        self._held: dict[str, Program] = {}
        self._held_weights = 0
        self.plan = self._plan()

    def _plan(self) -> Plan:
        """The plan for what is left of the space without the layers that failed."""
        failed = self.samples.failed
        graph = self._all.without(failed)
        if not graph.alive[0].all():
            raise TableError(
                f"no architecture of {self.space.name} runs on {self.runtime.device}: "
                f"{min(failed.values())[:200]}",
                "choose another space or device",
            )
        every = graph.items()
        wanted = every.keys() & self.port.chosen.keys if self.port else every.keys()
        rows = {key: every[key] for key in every if key in wanted}
        own = pieces(self.space, graph, self.context, rows, self.samples.alone)
        return Plan(
            space=self.space,
            everything=self._all,
            graph=graph,
            rows=rows,
            pieces=own,
            networks=self._networks(),
            failed=failed,
            fitted=networks_wanted(self.runtime)[0],
            serial=self.runtime.describe().get("threads", 1) == 1,
            port=self.port,
        )

    def _networks(self) -> list[Piece]:
        """The chosen reference networks that have no failed layer."""
        chosen = (Piece.of("network", self.space, text) for text in self.samples.chosen)
        failed = self.samples.failed.keys()
        return [x for x in chosen if failed.isdisjoint(layer.key for layer in x.layers)]

    def _visits(self, piece: Piece) -> int:
        return self.samples.visits[piece.name]

    def run(self, minutes: float) -> Outcome:
        """Visit until every piece has had its rounds, for so many minutes at most.

        When the time is up before that, there is an outcome if every piece has had three rounds.
        Otherwise `TableError` says how far it came. More rounds follow, up to `most` and within
        some minutes, while the error is above the one that is wanted and most of it is noise.
        """
        start = time.monotonic()
        end = start + 60 * minutes
        notes = self._prepare(end)
        rng = np.random.default_rng(0)
        total = (len(self.plan.pieces) + sum(networks_wanted(self.runtime))) * self.rounds
        with bar("profile", total, "runs") as advance:
            advance(self.samples.visits.total(), f"{len(self.plan.rows)} rows")
            self._visit_all(rng, end, advance)
            found = self._outcome(notes, start)
            end = min(end, start + 60 * PATIENCE_MINUTES)
            while _wanting(found) and self.rounds < self.most and time.monotonic() < end:
                self.rounds += 1
                advance(0, f"{_said(found)}: more rounds")
                if not self._visit_all(rng, end, advance):
                    self.rounds -= 1
                    end = start  # the time is up
                found = self._outcome(notes, start)
        if isinstance(found, TableError):
            raise found
        return found

    def _visit_all(self, rng: np.random.Generator, end: float, advance: Advance) -> bool:
        """Visit every piece that lacks rounds; whether that was done before `end`."""
        while due := self._due():
            self._round([due[i] for i in rng.permutation(len(due))], end, advance)
            if time.monotonic() <= end:
                continue
            if self._enough():
                return False
            done = sum(self._visits(piece) > 0 for piece in self.plan.pieces)
            raise TableError(
                f"the time was up after {done} of {len(self.plan.pieces)} pieces of "
                f"{self.space.name}",
                "go on with what there is by the same command",
            )
        return True

    def _outcome(self, notes: dict[str, str], start: float) -> Outcome | TableError:
        """The outcome so far, or the error where the samples are too noisy for one."""
        try:
            return outcome(self.plan, self.samples.order, notes, time.monotonic() - start)
        except TableError as error:
            return error

    def _prepare(self, end: float) -> dict[str, str]:
        """Have the runtime prepare rows ahead, and collect its notes on them, by key.

        Rows that do not run on the device, by their note, leave the plan.
        """
        rows = list(self.plan.rows.values())
        with bar("prepare", len(rows), "layers") as advance:
            start = time.monotonic()
            for done, _ in enumerate(self.runtime.ahead(rows), 1):
                advance(1)
                if time.monotonic() > max(end, start + 1) and done < len(rows):
                    raise TableError(
                        f"the time was up when {done} of {len(rows)} layers were prepared",
                        "go on with what there is by the same command",
                    )
        notes = {layer.key: self.runtime.note(layer) for layer in rows}
        if unusable := {key: note for key, note in notes.items() if note.startswith(UNUSABLE)}:
            self.samples.record({"failed": unusable})
            self.plan = self._plan()
        return notes

    @property
    def done(self) -> bool:
        """Whether every piece has had its rounds, so that nothing is left to go on with."""
        return not self._due()

    def _due(self) -> list[Piece]:
        """The pieces that still need visits; networks are chosen once every row has had one."""
        due = [p for p in self.plan.pieces if self._visits(p) < self.rounds]
        if all(self._visits(p) for p in self.plan.pieces):
            if not self.plan.networks:
                self.samples.record({"chosen": self._choose()})
                self.plan = replace(self.plan, networks=self._networks())
            due += [p for p in self.plan.networks if self._visits(p) < self.rounds]
        return due

    def _enough(self) -> bool:
        """Whether what there is makes a table."""
        wanted = min(_ENOUGH, self.rounds)
        visited = [*self.plan.pieces, *self.plan.networks]
        return bool(self.plan.networks) and all(self._visits(p) >= wanted for p in visited)

    def _round(self, due: Sequence[Piece], end: float, advance: Advance) -> None:
        """Visit each piece once, until `end`; samples are recorded even if an error ends it."""
        record: dict[str, Any] = {"samples": {}}
        kept = time.monotonic()
        try:
            for piece in due:
                try:
                    record["samples"][piece.name] = self._visit(piece)
                except PreparationError as error:
                    record |= self._blame(piece, error)
                    break  # the plan changes
                advance(1)
                now = time.monotonic()
                if now > end:
                    break
                if now > kept + _KEEP_EVERY_S:
                    self.samples.record(record)
                    record, kept = {"samples": {}}, now
        finally:
            if record["samples"] or len(record) > 1:
                self.samples.record(record)
        if len(record) > 1:
            self.plan = self._plan()

    def _visit(self, piece: Piece) -> Visit:
        program = self._held.get(piece.name)
        if program is None:
            program = self.runtime.prepare(piece.layers, piece.fused)
            self._held_weights += sum(map(count_params, piece.layers))
            if self._held_weights < _HELD_WEIGHTS:
                self._held[piece.name] = program
        samples = [sample for call in visit(program, self.runtime) for sample in call]
        return [(round(s.wall, 5), round(s.cpu, 5)) for s in samples]

    def _blame(self, piece: Piece, error: PreparationError) -> dict[str, Any]:
        """The record for a piece that cannot be prepared: which of its layers are to blame."""
        failed = {}
        for layer in {layer.key: layer for layer in piece.layers}.values():
            try:
                self.runtime.prepare((layer,), fused=True)
            except PreparationError as own:
                failed[layer.key] = f"failed: {own.message}"
        if failed:
            return {"failed": failed}
        if piece.what == "pair":
            return {"alone": [piece.layers[-1].key]}
        raise TableError(f"{piece.name} cannot be prepared: {error.message}", "report this")

    def _choose(self) -> list[str]:
        """One random network from each of equal bands of the latency range, in random order."""
        rows, _ = self.plan.make_rows(steadied(self.samples.order, self.plan.serial), {})
        trellis = Trellis(self.plan.graph, lambda layer: rows[layer.key].median)
        wanted = sum(networks_wanted(self.runtime))
        edges = np.linspace(trellis.fastest, trellis.slowest, wanted + 1)
        rng = np.random.default_rng(0)
        chosen: dict[str, None] = {}
        for i in rng.permutation(wanted):
            try:
                within = trellis.within(edges[i + 1], edges[i], ticks=1024)
            except InfeasibleError:
                continue  # a band may hold no architecture
            chosen[decode(self.space, within.sample(1, rng)[0]).to_json()] = None
        tours = {piece.about for piece in self.plan.pieces}
        return [text for text in chosen if text not in tours]


def _wanting(found: Outcome | TableError) -> bool:
    """Whether more rounds would make a better table."""
    if isinstance(found, TableError):
        return True
    return wanting(found.calibration.mape_percent, found.noise_percent)


def _said(found: Outcome | TableError) -> str:
    if isinstance(found, TableError):
        return "too noisy"
    return f"error {found.calibration.mape_percent:.1f} %"
