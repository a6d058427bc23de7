"""What a run stands on: tables, limits, weights and known scores, all checked before it begins.

Everything that took time is kept in the run's directory, and a resumed run replays the same search
against these records, so that it ends as the undisturbed one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.data import Dataset, load_data
from nas.errors import RunError, TableError, UsageError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import Scorer, ScoreRecord, Scoring, cargo, load_scorer
from nas.latency.library import find_table
from nas.latency.profiling import profile
from nas.latency.table import LatencyTable
from nas.layers.attention import Kernel, explicit, fastest_in_windows, fused
from nas.network.network import Network
from nas.progress import console
from nas.records import Journal, fingerprint, read_object, write_json
from nas.report.saved_run import is_run
from nas.run.known import imported_scores, known_finals, shipped_scores
from nas.run.limits import Goal, Limits
from nas.run.request import Request
from nas.run.scores import Scores
from nas.runtimes.host import keep_heap
from nas.scores import load_score, reads_words
from nas.settings import Settings
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.task import Metric
from nas.strategy.constraints import Region
from nas.text.encoder import has_texts
from nas.training.supernet import as_learned, folder_of, load_supernet, read_card, supernet_folder
from nas.trellis.graph import encode
from nas.versions import installed, layer_code, search_code
from nas.workers import Pool, open_pool
from nas.workers.ledger import Ledger, Record

Timed = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a run stands on. Only `scores` grow, while networks are scored.

    `tables` are by device, `network` is what is searched, `supernet` what it was made of, `card`
    what that says of itself. `prior` are the architectures that had a score of all images before
    the run, `imported` the records of the run that this one starts from, `finals` what is known of
    finals, beside the weights and in that run.
    """

    settings: Settings
    folder: Path
    described: dict[str, dict[str, Any]]
    data: Dataset
    space: SearchSpace
    tables: dict[str, LatencyTable]
    limits: Limits
    goals: tuple[Goal, ...]
    network: Network
    supernet: Network
    card: dict[str, Any]
    evaluator: Evaluator
    scores: Scores
    prior: tuple[Architecture, ...]
    imported: list[Record]
    finals: list[Record]

    @property
    def table(self) -> LatencyTable:
        """The table of the device that is searched on."""
        return self.tables[self.settings.device]

    def predict_ms(self, architecture: Architecture, device: str = "") -> float:
        """The latency of a network by the table of a device, if none is named the one searched."""
        table = self.tables[device or self.settings.device]
        return table.predict(self.space, architecture)

    def fits(self, architecture: Architecture, region: Region) -> bool:
        """Whether an architecture meets all limits of a region of the space."""
        return bool(region.fits(encode(self.space, architecture)[None])[0])


@contextmanager
def opened(request: Request, timed: Timed) -> Iterator[Inputs]:
    """The inputs of a run, everything about them checked, until its workers are no longer needed.

    `timed("table")` is the context in which tables are found or measured.
    """
    s, folder = request.settings, request.folder
    if s.supernet:
        # What is wrong with it is said before images are read.
        read_card(folder_of(s.supernet), s.space)
    data = load_data(s.data)
    source = source_of(s, data)
    _check_base(request)
    supernet, card = load_supernet(source, s.space, data)
    data = as_learned(data, card)
    metric = chosen_metric(s, supernet.space, data, source)
    network = metric.searched(supernet, data)
    space = network.space  # for the task that its networks have
    own = metric is space.task.metric and not s.fresh
    shipped = shipped_scores(source, space, card, data, s.search_images) if own else []
    console.print(data.summary(), soft_wrap=True)
    with timed("table"):
        tables = {device: _table(request, space, device) for device in s.devices}
    limits = Limits(s, space, tables)
    goals = tuple(map(limits.goal, s.budgets))
    identity = _identity(s, space, data, card, tables)
    imported = imported_scores(request, identity, metric.name)
    identity["scores_fingerprint"] = fingerprint([*shipped, *imported])
    kernel = _kernel(request, identity)
    network.use_in_windows(kernel)
    keep_heap()
    reuse = request.distribution.reuse_mb << 20
    evaluator = Evaluator(network, data, data.search, s.search_images, metric=metric, reuse=reuse)
    with ExitStack() as held:
        # Before anything is written: workers may fail to start.
        pool = held.enter_context(_pool(request, space, evaluator, kernel))
        identity["explicit_in_windows"] = kernel is explicit
        _write_down(request, identity, imported, tables)
        journal = Journal(folder / "candidates.jsonl")
        ledger = Ledger(pool, journal, ScoreRecord, metric.name)
        scores = Scores(space, ledger, evaluator.images, metric, shipped, imported)
        yield Inputs(
            settings=s,
            folder=folder,
            described=request.described,
            data=data,
            space=space,
            tables=tables,
            limits=limits,
            goals=goals,
            network=network,
            supernet=supernet,
            card=card,
            evaluator=evaluator,
            scores=scores,
            prior=tuple(scores.full(space)),
            imported=imported,
            finals=known_finals(metric, source if shipped else None, request.base),
        )


def source_of(settings: Settings, data: Dataset) -> Path:
    """The folder of the supernet: the one that is given, or the shipped one."""
    if settings.supernet:
        return folder_of(settings.supernet)
    return supernet_folder(settings.space, data, reads_words(settings.score))


def chosen_metric(settings: Settings, space: SearchSpace, data: Dataset, supernet: Path) -> Metric:
    """What is maximised: the score that is asked for, or the metric of the task."""
    if settings.score:
        return load_score(settings.score, data, supernet, settings.reference_images)
    if not space.task.labelled:
        named = settings.supernet or supernet
        words = "--score zero-shot, " if has_texts(supernet) else ""
        raise UsageError(
            f"the networks of {named} learned without labels, and have no score of their own",
            f"add {words}--score knn or --score probe; or make them classifiers: vitnas train "
            f"--init {named}",
        )
    return space.task.metric


def _check_base(request: Request) -> None:
    kept = request.resume and request.kept.exists()
    if request.base and not kept and not is_run(request.base):
        raise RunError(f"{request.base} is not a run", "give --from the directory of a run")


def _table(request: Request, space: SearchSpace, device: str) -> LatencyTable:
    """The table of a device: given, of this run, of the run it starts from, else measured now."""
    name, folder = request.table_name(device), request.given.get(device)
    if folder is None and request.resume and (request.folder / name / "manifest.toml").exists():
        folder = request.folder / name
    if folder is None and request.base and (request.base / name / "manifest.toml").exists():
        folder = request.base / name
    table = profile(space, device) if folder is None else find_table(str(folder))
    table.require_unaltered()
    if folder is not None and device in request.described:
        table.check(space, request.described[device])
    elif folder is not None and table.manifest["space"] != space.name:
        raise TableError(
            f"the table {folder} is for the space {table.manifest['space']}, not {space.name}",
            "give another --table",
        )
    if table.unit != "ms" or table.manifest["source"] == "emulated-time":
        raise TableError(
            f"a table of {table.manifest['source']} ({table.unit}) says nothing about a budget "
            "in time",
            "carry it to a device: vitnas profile --device DEVICE --from TABLE --rows 5",
        )
    return table


def _identity(
    settings: Settings,
    space: SearchSpace,
    data: Dataset,
    card: dict[str, Any],
    tables: dict[str, LatencyTable],
) -> Record:
    """What determines the result of a run, as its `settings.json` holds it."""
    layers = layer_code(space.family)
    return {
        **settings.to_json(),
        "space_fingerprint": fingerprint([[p.name, repr(p.values)] for p in space.positions]),
        "data_fingerprint": data.fingerprint,
        "weights_fingerprint": card["fingerprint"],
        "table_fingerprint": {device: _predictions(table) for device, table in tables.items()},
        "layer_code": layers,
        "code_fingerprint": fingerprint(layers, search_code(), installed("torch")),
    }


def _predictions(table: LatencyTable) -> str:
    """A fingerprint of what a table predicts of anything."""
    rows = {key: row.median for key, row in table.rows.items() if row.usable}
    return fingerprint(rows, asdict(table.calibration))


def _kernel(request: Request, identity: Record) -> Kernel:
    """The kernel of attention in windows: today's fastest, or that with which a run began.

    Which one is fastest is a timing that may differ from day to day, and they round differently.
    Refuses to resume a run of another identity.
    """
    file = request.folder / "settings.json"
    if not (request.resume and file.exists()):
        return fastest_in_windows()
    before = read_object(file)
    if differing := [key for key in identity if before.get(key) != identity[key]]:
        is_code = "code_fingerprint" in differing
        same = "versions of vitnas and torch" if is_code else "options"
        raise RunError(
            f"{request.folder} was made with another {' and '.join(differing)}",
            f"resume with the same {same}, or start a new run without --resume",
        )
    return recorded_kernel(before)


def recorded_kernel(identity: Record) -> Kernel:
    """The kernel of attention in windows that the `settings.json` of a run names."""
    return explicit if identity.get("explicit_in_windows") else fused


def _pool(request: Request, space: SearchSpace, evaluator: Evaluator, kernel: Kernel) -> Pool:
    """Workers, each with the supernet and the search split; none are started before needed."""
    d, s = request.distribution, request.settings
    if not d.workers and d.ray_address is None:
        return open_pool(lambda: Scorer(evaluator, s.race_error))
    scoring = Scoring(
        space.name, space.task, evaluator.images,
        race_error=s.race_error, reuse_mb=d.reuse_mb, kernel=kernel,
        device="cuda" if d.gpus else "cpu",
    )  # fmt: skip
    console.print("starting workers (Ray, some seconds)", style="dim")
    return open_pool(
        load_scorer, (scoring, cargo(evaluator)), workers=d.workers,
        address=d.ray_address, gpus=d.gpus, timeout_s=d.timeout_s,
    )  # fmt: skip


def _write_down(
    request: Request,
    identity: Record,
    imported: Sequence[Record],
    tables: dict[str, LatencyTable],
) -> None:
    """Make the folder a run that can be resumed, whatever becomes of what it started from."""
    file = request.folder / "settings.json"
    if not file.exists():
        write_json(file, identity)
    if imported and not request.kept.exists():
        Journal(request.kept).write(imported)
    for device, table in tables.items():
        own = request.folder / request.table_name(device)
        if not (own / "manifest.toml").exists():
            table.save(own)
