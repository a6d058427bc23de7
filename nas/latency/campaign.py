"""Measuring campaigns: every row of a space on a device, and networks to calibrate and judge it.

Rows and reference networks are visited in rounds, all in turn, so that a slow moment of the machine
hits all alike. Every round is appended to `samples.jsonl`: a killed profile goes on with the next.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import InfeasibleError, PreparationError, TableError
from nas.latency.files import SCHEMA
from nas.latency.fit import Calibration
from nas.latency.library import PROTOCOL, known_table, table_folder
from nas.latency.port import PER_KIND, Port, choose_rows
from nas.latency.port import check as check_port
from nas.latency.rows import UNUSABLE, Reference, Row
from nas.latency.table import LatencyTable
from nas.network.macs import count_macs, count_params
from nas.progress import Advance, bar
from nas.records import Journal, fingerprint
from nas.runtimes import (
    CONTEXTS,
    KEPT,
    WARM_UP_MS,
    Program,
    Runtime,
    check_option,
    load_runtime,
    visit,
)
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.tasks import load_task
from nas.trellis.graph import Graph, decode
from nas.trellis.trellis import Trellis
from nas.versions import layer_code

ROUNDS = 5
_ENOUGH = 3  # rounds that make a table when the time is up
FIT, HELD_OUT = 20, 30  # networks for the calibration, and for its error
_EXACT = 5, 10  # the same where numbers have no noise
_HELD_WEIGHTS = 500_000_000  # parameters of what stays prepared between rounds: 2 GB
_KEEP_EVERY_S = 2.0  # what a kill can lose
_UNREACHED = "failed: no architecture without failed layers has it"
_BEHIND = " > "
_VISIT = f"; a visit warms up for {WARM_UP_MS:g} ms and keeps {KEPT} calls"

PROTOCOLS = {
    "network": "layers timed in network order inside whole networks",
    "isolated": "each layer on its own",
    "stacked": "a layer twice in a row less once",
    "added": "a layer behind another less that one",
}


def profile(
    space: SearchSpace,
    device: str | Runtime = "torch-cpu",
    folder: Path | None = None,
    rounds: int | None = None,
    minutes: float = math.inf,
    context: str = "",
    sibling: LatencyTable | None = None,
    rows_per_kind: int = PER_KIND,
    again: bool = False,
) -> LatencyTable:
    """The table of a device: read if it is complete, else measured, by default in five rounds.

    `context` says how rows are timed; by default as it predicts whole networks best on this
    runtime. After `minutes` it ends with what it has: with a table if every row has three rounds,
    else with a `TableError`, and the same call goes on. With the table of a `sibling` device only
    `rows_per_kind` rows of each kind of layer (and a few to check) are measured, the others
    carried over. `again` forgets what there was, once everything else is known to be right.
    """
    with load_runtime(device) if isinstance(device, str) else device as runtime:
        if folder is None:
            if runtime.exact and not again and (found := known_table(space, runtime)):
                return found  # shipped, or of an earlier run: it would come out the same
            folder = table_folder(space, runtime)
        graph = Graph.of(space)
        if graph.count < sum(_EXACT if runtime.exact else (FIT, HELD_OUT)):
            raise TableError(
                f"{space.name} has {graph.count} architectures, too few to calibrate a table on",
                f"measure it end to end: vitnas measure {space.name}",
            )
        runtime.describe()
        if (folder / "manifest.toml").exists() and not again:
            table = LatencyTable.load(folder)
            table.check(space, runtime.describe())
            m = table.manifest
            asked = context in ("", m["context"]) and (sibling is None) == ("port" not in m)
            if (
                asked
                and m.get("rounds", 0) >= (0 if runtime.exact else rounds or 0)
                and graph.items().keys() <= table.rows.keys()
            ):
                return table
        journal = Journal(folder / "samples.jsonl")
        with journal.locked():
            if again:
                forget(folder)
            campaign = _campaign(
                space,
                runtime,
                graph,
                journal,
                rounds or ROUNDS,
                context,
                sibling,
                rows_per_kind,
            )
            seconds = campaign.run(minutes)
            table = _table(campaign, seconds)
            table.save(folder)
            return table


def _table(campaign: Campaign, seconds: float) -> LatencyTable:
    space, runtime = campaign.space, campaign.runtime
    references = campaign.references()
    manifest = {
        "schema": SCHEMA,
        "space": space.name,
        **space.task.to_json(),
        "source": runtime.source,
        "unit": runtime.unit,
        "campaign": campaign.number,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "vitnas_version": version("vitnas"),
        "layer_code": layer_code(space.family),
        "lowering": runtime.lowering,
        "resolutions": list(space.positions[0].values),
        "context": campaign.context,
        "protocol": PROTOCOLS[campaign.context] + _VISIT,
        "rounds": campaign.rounds,
        "wall_over_cpu": round(campaign.wall_over_cpu(), 3),
        "device": runtime.describe(),
        "conditions": runtime.conditions(),
        "calibration": asdict(campaign.calibration(references)),
    }
    if campaign.port:
        manifest |= campaign.port.provenance(campaign.measured(), runtime.source)
    return LatencyTable(campaign.rows(), manifest, tuple(references))


def _campaign(
    space: SearchSpace,
    runtime: Runtime,
    graph: Graph,
    journal: Journal,
    rounds: int,
    context: str,
    sibling: LatencyTable | None,
    rows_per_kind: int,
) -> Campaign:
    """The campaign of a folder, begun or gone on with."""
    usual = sibling.manifest["context"] if sibling and sibling.unit == runtime.unit else ""
    context = check_option("context", context or usual or runtime.context, CONTEXTS)
    described, code = runtime.describe(), layer_code(space.family)
    identity = [
        described,
        code,
        space.name,
        space.task.to_json(),
        PROTOCOL,
        context,
        runtime.lowering,
    ]
    carried = None
    if sibling is not None:
        check_port(sibling, described, runtime.unit, code, context)
        theirs = load_task(sibling.manifest)
        if sibling.manifest["space"] != space.name or theirs != space.task:
            raise TableError(
                f"the table to port is of {sibling.manifest['space']} with {theirs}, not of "
                f"{space.name} with {space.task}",
                "give --space and --classes of that table",
            )
        carried = Port(sibling, choose_rows(sibling, rows_per_kind))
        identity.append(carried.chosen)
    number = _claim(journal, fingerprint(*identity))
    rounds = 1 if runtime.exact else rounds
    return Campaign(space, graph, runtime, context, journal, rounds, number, carried)


def _claim(journal: Journal, identity: str) -> str:
    """Start a journal with who measures what, or refuse another's; the campaign's number."""
    records = journal.read()
    if not records:
        journal.append({"identity": identity, "campaign": secrets.token_hex(6)})
        records = journal.read()
    if records[0].get("identity") != identity:
        raise TableError(
            f"{journal.path} has samples of another machine, version, space or way of timing",
            "choose another folder, or measure anew: vitnas profile --again",
        )
    return str(records[0]["campaign"])


def forget(folder: Path) -> None:
    """Delete a table and its samples, and nothing else that may lie in the folder."""
    for name in ("manifest.toml", "rows.csv", "networks.csv"):
        (folder / name).unlink(missing_ok=True)
    if (samples := folder / "samples.jsonl").exists():
        os.truncate(samples, 0)  # it may be locked: the file stays, and so does the lock


Rows = dict[str, Row]


@dataclass(frozen=True)
class Piece:
    """Consecutive layers that are visited together, and what they are for.

    A `tour` is a network timed layer by layer; `row` a layer alone and `pair` one behind another; a
    `network` is a reference, timed as a whole.
    """

    what: str
    about: str  # the architecture as JSON, or the keys of the layers
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        return f"{self.what} {self.about}"

    @property
    def fused(self) -> bool:
        return self.what != "tour"


class Campaign:
    """The samples of one profile, and what follows from them."""

    def __init__(
        self,
        space: SearchSpace,
        graph: Graph,
        runtime: Runtime,
        context: str,
        journal: Journal,
        rounds: int,
        number: str,
        port: Port | None = None,
    ) -> None:
        """With a `port` only its chosen rows are measured, the others carried over."""
        self.space, self.runtime = space, runtime
        self.context, self.rounds, self.journal = context, rounds, journal
        self.number, self.port = number, port
        self._all = graph
        self._fit, self._held_out = _EXACT if runtime.exact else (FIT, HELD_OUT)
        self.samples: dict[str, list[list[Sequence[float]]]] = {}  # by piece, of each visit
        self.failed: dict[str, str] = {}  # rows that cannot be had, and why
        self.alone: set[str] = set()  # rows that cannot be timed behind another layer
        self.notes: dict[str, str] = {}
        self.networks: list[Piece] = []
        self._held: dict[str, Program] = {}
        self._held_weights = 0
        for record in journal.read()[1:]:
            self._add(record)
        self._plan()

    def _add(self, record: dict[str, Any]) -> None:
        for name, samples in record.get("samples", {}).items():
            self.samples.setdefault(name, []).append(samples)
        self.failed |= record.get("failed", {})
        self.alone |= set(record.get("alone", []))
        self.networks += [self._piece("network", text) for text in record.get("chosen", [])]

    def _record(self, record: dict[str, Any]) -> None:
        self.journal.append(record)
        self._add(record)

    def _plan(self) -> None:
        """What is left of the space without failed rows, and the pieces that cover its rows."""
        self.graph = self._all.without(self.failed)
        if not self.graph.alive[0].all():
            raise TableError(
                f"no architecture of {self.space.name} runs on {self.runtime.device}: "
                f"{min(self.failed.values())[:200]}",
                "choose another space or device",
            )
        self.networks = [
            network
            for network in self.networks
            if not any(layer.key in self.failed for layer in network.layers)
        ]
        every = self.graph.items()
        wanted = every.keys() & self.port.chosen.keys if self.port else every.keys()
        self.rows_needed = {key: every[key] for key in every if key in wanted}
        if self.context == "network":
            tours = (decode(self.space, path) for path in self.graph.tours(wanted))
            self.pieces = [self._piece("tour", a.to_json()) for a in tours]
        else:
            pairs = list(self._pairs())
            rows = {**self.rows_needed, **{first.key: first for first, _ in pairs}}
            self.pieces = [Piece("row", x.key, (x,)) for x in rows.values()]
            self.pieces += [Piece("pair", _BEHIND.join((a.key, b.key)), (a, b)) for a, b in pairs]

    def _pairs(self) -> Iterator[tuple[Layer, Layer]]:
        """For each row that is timed behind another layer, both."""
        before = self.graph.before() if self.context == "added" else {}
        for layer in self.rows_needed.values():
            if layer.key in self.alone:
                continue
            if self.context == "stacked" and stackable(layer):
                yield layer, layer
            elif ahead := before.get(layer.key):
                # The cheaper the other one is, the less of its noise is in the difference.
                yield min(ahead.values(), key=lambda x: (count_macs(x).total, x.key)), layer

    def _piece(self, what: str, architecture: str) -> Piece:
        layers = self.space.layers(self.space.parse(architecture))
        return Piece(what, architecture, layers)

    def _visits(self, piece: Piece) -> int:
        return len(self.samples.get(piece.name, ()))

    # --- measuring ---

    def run(self, minutes: float) -> float:
        """Rounds until every piece had its share of them; the seconds that it took."""
        start = time.monotonic()
        end = start + 60 * minutes
        self._prepare(end)
        rng = np.random.default_rng(0)
        total = (len(self.pieces) + self._fit + self._held_out) * self.rounds
        with bar("profile", total, "runs") as advance:
            advance(sum(map(len, self.samples.values())), f"{len(self.rows_needed)} rows")
            while due := self._due():
                self._round([due[i] for i in rng.permutation(len(due))], end, advance)
                if time.monotonic() <= end:
                    continue
                if self._enough():
                    break
                done = sum(self._visits(piece) > 0 for piece in self.pieces)
                raise TableError(
                    f"the time was up after {done} of {len(self.pieces)} pieces of "
                    f"{self.space.name}",
                    "go on with what there is by the same command",
                )
        return time.monotonic() - start

    def _prepare(self, end: float) -> None:
        """What the runtime can do ahead, and rows that are known not to run on the device."""
        rows = list(self.rows_needed.values())
        with bar("prepare", len(rows), "layers") as advance:
            start = time.monotonic()
            for done, _ in enumerate(self.runtime.ahead(rows), 1):
                advance(1)
                if time.monotonic() > max(end, start + 1) and done < len(rows):
                    raise TableError(
                        f"the time was up when {done} of {len(rows)} layers were prepared",
                        "go on with what there is by the same command",
                    )
        self.notes = {layer.key: self.runtime.note(layer) for layer in rows}
        unusable = {
            key: note for key, note in self.notes.items() if note.startswith(UNUSABLE)
        }  # fmt: skip
        if unusable:
            self._record({"failed": unusable})
            self._plan()

    def _due(self) -> list[Piece]:
        """What still needs visits; the networks are chosen once every row has one."""
        due = [p for p in self.pieces if self._visits(p) < self.rounds]
        if all(self._visits(p) for p in self.pieces):
            if not self.networks:
                self._record({"chosen": self._choose()})
            due += [p for p in self.networks if self._visits(p) < self.rounds]
        return due

    def _enough(self) -> bool:
        """Whether what there is makes a table."""
        wanted = min(_ENOUGH, self.rounds)
        pieces = [*self.pieces, *self.networks]
        return bool(self.networks) and all(self._visits(p) >= wanted for p in pieces)

    def _round(self, due: Sequence[Piece], end: float, advance: Advance) -> None:
        """Visit each piece once, until `end`; what was had is recorded, however it ends."""
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
                    self._record(record)
                    record, kept = {"samples": {}}, now
        finally:
            if record["samples"] or len(record) > 1:
                self._record(record)
        if len(record) > 1:
            self._plan()

    def _visit(self, piece: Piece) -> list[Sequence[float]]:
        program = self._held.get(piece.name)
        if program is None:
            program = self.runtime.prepare(piece.layers, piece.fused)
            self._held_weights += sum(map(count_params, piece.layers))
            if self._held_weights < _HELD_WEIGHTS:
                self._held[piece.name] = program
        samples = [sample for call in visit(program, self.runtime) for sample in call]
        return [(round(s.wall, 5), round(s.cpu, 5)) for s in samples]

    def _blame(self, piece: Piece, error: PreparationError) -> dict[str, Any]:
        """What is to be recorded of a piece that cannot be prepared: its layers that cannot."""
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
        rows = self.rows()
        trellis = Trellis(self.graph, lambda layer: rows[layer.key].median)
        wanted = self._fit + self._held_out
        edges = np.linspace(trellis.fastest, trellis.slowest, wanted + 1)
        rng = np.random.default_rng(0)
        chosen: dict[str, None] = {}
        for i in rng.permutation(wanted):
            try:
                within = trellis.within(edges[i + 1], edges[i], ticks=1024)
            except InfeasibleError:
                continue  # a band may hold no architecture
            chosen[decode(self.space, within.sample(1, rng)[0]).to_json()] = None
        tours = {piece.about for piece in self.pieces}
        return [text for text in chosen if text not in tours]

    # --- what follows ---

    def measured(self) -> Rows:
        """Every row there are samples of, and those that failed."""
        rows = {
            key: Row.of(key, own, self.notes.get(key, "")) for key, own in self._by_key().items()
        }
        reached = self.graph.items()
        lost = {key: _UNREACHED for key in self._all.items() if key not in reached} | self.failed
        return rows | {key: Row.without_numbers(key, why) for key, why in lost.items()}

    def rows(self) -> Rows:
        """The rows of the table."""
        return self.port.carry(self.measured())[0] if self.port else self.measured()

    def _by_key(self) -> dict[str, list[Sequence[float]]]:
        """The samples of each row."""
        found: dict[str, list[Sequence[float]]] = {}
        alone: dict[str, list[list[Sequence[float]]]] = {}
        behind: dict[str, list[list[Sequence[float]]]] = {}
        for name, visits in self.samples.items():
            what, _, about = name.partition(" ")
            if what == "tour":
                layers = self._piece(what, about).layers
                for visit in visits:
                    for layer, sample in zip(cycle(layers), visit):
                        found.setdefault(layer.key, []).append(sample)
            elif what == "row":
                alone[about] = visits
            elif what == "pair":
                behind[about] = visits
        found |= {
            key: [sample for visit in visits for sample in visit]
            for key, visits in alone.items()
            if key in self.rows_needed
        }
        for about, visits in behind.items():
            first, _, key = about.partition(_BEHIND)
            both = zip((np.median(v, 0) for v in visits), (np.median(v, 0) for v in alone[first]))
            found[key] = [np.maximum(two - one, 1e-5).tolist() for two, one in both]
        return found

    def references(self) -> list[Reference]:
        """The reference networks: the first for the fit, the others held out."""
        rows, fitted = self.rows(), min(self._fit, len(self.networks) // 2)
        found = []
        for i, piece in enumerate(self.networks):
            total = sum(rows[layer.key].median for layer in piece.layers)
            own = Row.of("", [sample for visit in self.samples[piece.name] for sample in visit])
            use = "fit" if i < fitted else "held-out"
            numbers = (round(total, 5), own.median, own.p20, own.iqr, own.samples)
            found.append(Reference(piece.about, use, *numbers))
        return found

    def calibration(self, references: Sequence[Reference]) -> Calibration:
        rows = self.rows()
        sums = []
        for piece in self.networks:
            own: dict[str, float] = defaultdict(float)
            for layer in piece.layers:
                own[rows[layer.key].kind] += rows[layer.key].median
            sums.append(own)
        fitted = sum(reference.use == "fit" for reference in references)
        return Calibration.fit_kinds(sums, [r.median for r in references], fitted)

    def wall_over_cpu(self) -> float:
        """The median over all rows; 0 where the runtime knows no processor time."""
        samples = np.array([s for own in self._by_key().values() for s in own])
        known = samples[samples[:, 1] > 1e-3]
        return float(np.median(known[:, 0] / known[:, 1])) if len(known) else 0.0


def stackable(layer: Layer) -> bool:
    """Whether a layer can follow itself: what it leaves has the shapes of what it takes."""
    import torch

    from nas.network.standalone import build, inputs, run, slots

    with torch.no_grad():
        before = inputs(layer, 1)
        after = run(build([layer]), before)
    shapes = [None if t is None else t.shape for t in slots(before)]
    return shapes == [None if t is None else t.shape for t in slots(after)]
