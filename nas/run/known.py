"""What is known of scores before a run: beside the weights, and in the run that it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.data import Dataset
from nas.errors import RunError, UsageError, WeightsError
from nas.evaluation.score_task import AccuracyRecord, ScoreRecord
from nas.progress import console
from nas.records import Journal, read_object
from nas.report.saved_run import known_scores
from nas.run.request import Request
from nas.run_record import RunRecord
from nas.settings import Settings
from nas.space.family import SearchSpace
from nas.space.task import Metric
from nas.versions import layer_code
from nas.workers.ledger import Record

FINALS = "finals.jsonl"  # in the folder of a run, or beside the weights of a supernet
# Scores of a run are those that another run would compute where these are the same.
_SAME_SCORES = ("space", "data", "search_images", "score", "reference_images", "space_fingerprint",
                "data_fingerprint", "weights_fingerprint", "layer_code")  # fmt: skip


def imported_scores(request: Request, identity: Record, metric: str) -> list[Record]:
    """Scores of the run that this one starts from; refused unless they would be the same."""
    if request.base is None:
        return []
    if request.resume and request.kept.exists():
        return Journal(request.kept).read(ScoreRecord, metric)
    before = {"score": "", "reference_images": Settings.reference_images}
    before |= read_object(request.base / "settings.json")
    try:
        if (result := request.base / "run.json").exists():
            RunRecord.read(result)
    except RunError as error:
        console.print(f"{error.message}: its scores are used all the same", style="yellow")
    if differing := [key for key in _SAME_SCORES if before.get(key) != identity[key]]:
        fix = "give the same options, or search without --from"
        if differing == ["layer_code"]:
            fix = "search without --from: its networks ran other code, and scores may differ"
        raise RunError(f"{request.base} was made with another {' and '.join(differing)}", fix)
    return known_scores(request.base, metric)


def known_finals(metric: Metric, *folders: Path | None) -> list[Record]:
    """What is known of the finals, from journals in folders whose scores are used as well."""
    journals = [Journal(folder / FINALS) for folder in folders if folder]
    return [r for journal in journals for r in journal.read(AccuracyRecord, metric.name)]


@dataclass(frozen=True)
class _Score:
    """What a line of the journal beside the weights must hold."""

    architecture: str
    drawn: str
    percent: float = field(metadata={"key": "{}_percent", "least": 0, "most": 100})
    images: int = field(default=1, metadata={"least": 1})
    variance: float = field(default=0.0, metadata={"least": 0})


def shipped_scores(
    source: Path, space: SearchSpace, card: dict[str, Any], data: Dataset, images: int
) -> list[Record]:
    """The journal beside the weights, where it is of these weights, layers, data and images.

    Scores are of pictures as large as the supernet was trained for: others of the space's names
    show other pictures, and have none.
    """
    if not (source / "scores.json").exists():
        return []
    if space.name.partition("@")[2] != card.get("resolution", ""):
        console.print(
            f"the shipped scores are of another size than {space.name}: they are not used"
        )
        return []
    head = read_object(source / "scores.json")
    same = {
        "weights_fingerprint": card["fingerprint"],
        "data_fingerprint": data.fingerprint,
        "search_images": images,
        "layer_code": layer_code(space.family),
    }
    if differing := [key for key, value in same.items() if head.get(key) != value]:
        console.print(
            f"the shipped scores have another {' and '.join(differing)}: they are not used"
        )
        return []
    journal = Journal(source / "scores.jsonl")
    records = journal.read(_Score, space.task.metric.name)
    for record in records:
        try:
            space.parse(record["architecture"])
        except UsageError as error:
            fix = "restore it from a copy, or search with --fresh"
            raise WeightsError(f"{journal.path}: {error.message}", fix) from None
    return records
