"""The table of a device for a space: found, or measured by a campaign."""

from __future__ import annotations

import math
import secrets
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from nas.errors import RunError, TableError
from nas.latency.campaign import Campaign, networks_wanted
from nas.latency.files import SAMPLES, SCHEMA
from nas.latency.library import known_table, table_folder
from nas.latency.outcome import Outcome
from nas.latency.port import PER_KIND, Port, choose_rows, provenance
from nas.latency.port import check as check_port
from nas.latency.protocols import PROTOCOL, PROTOCOLS, VISIT
from nas.latency.table import LatencyTable
from nas.progress import console
from nas.records import Journal, fingerprint
from nas.runtimes import CONTEXTS, Runtime, check_option, load_runtime
from nas.space.family import SearchSpace
from nas.space.task import Task
from nas.trellis.graph import Graph
from nas.versions import layer_code

_AGAIN = "again"  # the folder, in that of a table, where it is measured anew
ROUNDS = 5
_MOST = 3 * ROUNDS  # the first time, where noise keeps the error up
_MOST_EVER = 6 * ROUNDS  # with all the times that a table was improved


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

    By default more rounds follow, for some minutes, where noise keeps the error above 2 %; and a
    table that was kept with such an error gets a few more rounds each time that it is asked for.
    `context` says how rows are timed; by default as it predicts whole networks best on this
    runtime. After `minutes` it ends with what it has: with a table if every row has three rounds,
    else with a `TableError`, and the same call goes on. With the table of a `sibling` device only
    `rows_per_kind` rows of each kind of layer (and a few to check) are measured, the others
    carried over. `again` measures anew beside what there is, which stays until the new table is
    complete; stopped, it goes on by the same call.
    """
    with load_runtime(device) if isinstance(device, str) else device as runtime:
        if folder is None:
            if runtime.exact and not again and (found := known_table(space, runtime)):
                return found  # shipped, or of an earlier run: it would come out the same
            folder = table_folder(space, runtime)
        graph = Graph.of(space)
        if graph.count < sum(networks_wanted(runtime)):
            raise TableError(
                f"{space.name} has {graph.count} architectures, too few to calibrate a table on",
                f"measure it end to end: vitnas measure {space.name}",
            )
        runtime.describe()
        work = folder / _AGAIN if again else folder
        journal, kept = Journal(work / SAMPLES), None
        if (folder / "manifest.toml").exists() and not again:
            table = LatencyTable.load(folder)
            table.check(space, runtime.describe())
            if _complete(table, runtime, graph, rounds or 0, context, sibling is not None):
                if rounds or not _improvable(table, journal):
                    return table
                kept = table
        fewest, most = _rounds(runtime, rounds, kept)
        try:
            with journal.locked():
                context = _context(runtime, context, sibling)
                port = _port(space, runtime, context, sibling, rows_per_kind)
                number = _claim(journal, _identity(space, runtime, context, port), anew=again)
                campaign = Campaign(space, graph, runtime, context, journal, fewest, most, port)
                try:
                    outcome = campaign.run(minutes)
                except TableError:
                    if again and campaign.done:  # too noisy for a table: the next try begins anew
                        journal.write([])
                    raise
                table = _table(campaign, outcome, number)
                table.save(folder)
                if again:
                    _replace_samples(journal, folder)
                return table
        except RunError:  # another process measures it, or the disk is full
            if kept is None:
                raise
            return kept


def _replace_samples(journal: Journal, folder: Path) -> None:
    """Put the samples of a table that was measured anew in the place of those that there were."""
    with Journal(folder / SAMPLES).locked():
        journal.path.replace(folder / SAMPLES)
    shutil.rmtree(journal.path.parent, ignore_errors=True)


def _improvable(table: LatencyTable, journal: Journal) -> bool:
    """Whether a finished table wants more rounds, and its samples are there to go on with."""
    samples = journal.read()[:1]
    of_table = bool(samples) and samples[0].get("campaign") == table.manifest.get("campaign")
    rounds = table.manifest.get("rounds", _MOST_EVER)
    return table.wanting and of_table and bool(rounds < _MOST_EVER)


def _rounds(runtime: Runtime, asked: int | None, kept: LatencyTable | None) -> tuple[int, int]:
    """How many rounds are measured at least, and at most while noise keeps the error up.

    Says so where a `kept` table is improved.
    """
    if runtime.exact:
        return 1, 1
    if kept is None:
        return asked or ROUNDS, asked or _MOST
    while_busy = " as the machine was busy" if kept.busy else ""
    console.print(
        f"the table of {str(kept.manifest['date'])[:10]} has an error of "
        f"{kept.calibration.mape_percent:.1f} %{while_busy}: measuring more rounds",
        style="yellow",
    )
    had = int(kept.manifest["rounds"])
    return had + 1, had + ROUNDS


def _complete(
    table: LatencyTable, runtime: Runtime, graph: Graph, rounds: int, context: str, ported: bool
) -> bool:
    """Whether a table is what was asked for: all rows of the graph, timed so, in enough rounds."""
    manifest = table.manifest
    return (
        context in ("", manifest.get("context"))
        and ported == ("port" in manifest)
        and manifest.get("rounds", 0) >= (0 if runtime.exact else rounds)
        and graph.items().keys() <= table.rows.keys()
    )


def _context(runtime: Runtime, asked: str, sibling: LatencyTable | None) -> str:
    """How rows are timed: as asked, else like those of the sibling, else as the runtime is best."""
    alike = sibling.manifest.get("context", "") if sibling and sibling.unit == runtime.unit else ""
    return check_option("context", asked or alike or runtime.context, CONTEXTS)


def _port(
    space: SearchSpace,
    runtime: Runtime,
    context: str,
    sibling: LatencyTable | None,
    rows_per_kind: int,
) -> Port | None:
    """What is carried over from the sibling's table; `TableError` where nothing can be."""
    if sibling is None:
        return None
    described, code = runtime.describe(), layer_code(space.family)
    check_port(sibling, described, runtime.unit, code, context)
    theirs, ours = sibling.manifest["space"], space.name
    if (theirs, sibling.task) != (ours, space.task):
        raise TableError(
            f"the table to port is of {theirs} ({_said(sibling.task)}), not of {ours} "
            f"({_said(space.task)})",
            "give --space and --classes of that table",
        )
    return Port(sibling, choose_rows(sibling, rows_per_kind))


def _said(task: Task) -> str:
    return ", ".join(f"{name} {value}" for name, value in task.to_json().items())


def _identity(space: SearchSpace, runtime: Runtime, context: str, port: Port | None) -> str:
    """A fingerprint of everything that the samples of a campaign depend on."""
    return fingerprint(
        runtime.describe(),
        layer_code(space.family),
        space.name,
        space.task.to_json(),
        PROTOCOL,
        context,
        runtime.lowering,
        *([port.chosen] if port else []),
    )


def _claim(journal: Journal, identity: str, anew: bool = False) -> str:
    """The number of the campaign that a journal is of; `TableError` if it has another identity.

    An empty journal gets this identity and a new number, and `anew` so does one of another.
    """
    records = journal.read()
    if anew and records and records[0].get("identity") != identity:
        journal.write(records := [])
    if not records:
        journal.append({"identity": identity, "campaign": secrets.token_hex(6)})
        records = journal.read()
    if records[0].get("identity") != identity:
        raise TableError(
            f"{journal.path} has samples of another machine, version, space or way of timing",
            "choose another folder, or measure anew: vitnas profile --again",
        )
    return str(records[0].get("campaign", ""))


def _table(campaign: Campaign, outcome: Outcome, number: str) -> LatencyTable:
    space, runtime = campaign.space, campaign.runtime
    manifest = {
        "schema": SCHEMA,
        "space": space.name,
        **space.task.to_json(),
        "source": runtime.source,
        "unit": runtime.unit,
        "campaign": number,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 1),
        "vitnas_version": version("vitnas"),
        "layer_code": layer_code(space.family),
        "lowering": runtime.lowering,
        "resolutions": list(space.positions[0].values),
        "context": campaign.context,
        "protocol": PROTOCOLS[campaign.context] + VISIT,
        "rounds": campaign.rounds,
        "wall_over_cpu": round(outcome.wall_over_cpu, 3),
        "held_up_percent": outcome.held_up_percent,
        "noise_percent": outcome.noise_percent,
        "quantiles": {str(q): x for q, x in outcome.quantiles.items()},
        "device": runtime.describe(),
        "conditions": runtime.conditions(),
        "calibration": asdict(outcome.calibration),
    }
    if campaign.port and outcome.port:
        manifest |= provenance(campaign.port.table, runtime.source, outcome.port)
    return LatencyTable(outcome.rows, manifest, outcome.references)
