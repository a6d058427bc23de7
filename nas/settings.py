"""What determines a run's result, and what only determines how fast it comes.

The defaults stand here and nowhere else: `nas.search`, the command line and the record of a run
read them from these classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Self

from nas.budget import positive_number, real_number, whole_number
from nas.errors import UnknownNameError, UsageError
from nas.scores import check_score
from nas.strategy.constraints import SAMPLERS
from nas.strategy.searchers import searcher_names
from nas.typed import MismatchError, decode

DEVICE = "torch-cpu"  # that of a budget that names none
MOST_QUANTILE = 0.99  # of single inferences: 720 of each network are timed for it


@dataclass(frozen=True)
class Option:
    """How the command line asks for a setting: by the name of its field, unless it has its own.

    `counts` says what a number such as `5M` counts; `least` is the lowest value.
    """

    help: str
    name: str = ""
    metavar: str = ""
    least: float | None = None
    counts: str = ""
    choices: tuple[str, ...] = ()


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of settings, with its default and its `Option`."""
    return field(default=default, metadata={"option": Option(help, **more)})


def _check_options(settings: Any) -> None:
    """Make every option what its type says; `UsageError` where it is not, or below its `least`."""
    for own in fields(settings):
        if "option" in own.metadata:
            object.__setattr__(settings, own.name, _checked(own, getattr(settings, own.name)))


def _checked(own: Field[Any], given: Any) -> Any:
    option, kind = own.metadata["option"], str(own.type)
    least = -math.inf if option.least is None else option.least
    if given is None and "None" in kind:
        return None
    if option.counts:
        return positive_number(own.name, given)
    if kind == "int":
        return whole_number(own.name, given, least)
    if kind == "float":
        return real_number(own.name, given, least)
    known: Any = bool if kind == "bool" else str
    if not isinstance(given, known):
        example = "True or False" if known is bool else f"e.g. {own.default!r}"
        raise UsageError(f"{own.name} must be {example}, got {given!r:.60}", "give it like this")
    return given


def check_seed(seed: int) -> None:
    """Raise `UsageError` unless a seed is one for every generator that is used: 32 bits."""
    whole_number("seed", seed, 0, 2**32 - 1)


@dataclass(frozen=True)
class Settings:
    """What determines a run's result; a resumed run must have the same.

    `budgets` are answered one by one: milliseconds by device, the first device of each the one
    that is searched on. `supernet` is a folder, empty for the shipped one; `source_run` the
    directory of a run whose scores are known.
    """

    budgets: tuple[dict[str, float], ...]
    space: str = option(
        "mobilevit:micro-320", "Search space, FAMILY:PRESET; see `vitnas list spaces`."
    )
    data: str = option(
        "scenes",
        "`scenes`, `scenes:masks` or `scenes:captions` (shipped), `imagefolder:PATH`, "
        "`masks:PATH`, `captions:PATH`, `pictures:PATH` (no labels), or `MODULE:ARGUMENT` of your "
        "own; `...,labels=10`: ten of each class.",
    )
    confidence: float = option(
        0.95, "Confidence that a network which is predicted to fit measures within the budget, too."
    )
    quantile: float = option(
        0.5, "Share of single inferences that stay within the budget; 0.5: their median."
    )
    supernet: str = option(
        "",
        "Folder of a trained supernet, or a name in `vitnas list supernets`; default: the shipped "
        "one of the space and the data.",
    )
    source_run: str = option(
        "", "Run whose scores are known: it may answer at once.", name="from", metavar="RUN"
    )
    evaluations: int = option(8, "Candidates to score in this run.", least=1)
    search_images: int = option(400, "Samples (images) of the search split.", least=10)
    final_images: int = option(
        400, "Further samples of the search split, which finalists are scored on; 0: none.", least=0
    )
    test_images: int = option(500, "Samples (images) of the test split.", least=10)
    score: str = option(
        "",
        "What is maximised: knn or probe, of features; zero-shot, of labels in words; default: "
        "the metric of the task (top-1 accuracy, mIoU).",
    )
    reference_images: int = option(
        500, "Labelled samples of the train split that such a score compares with.", least=2
    )
    searcher: str = option("evolution", "What is tried next: evolution, nsga2, tpe or random.")
    sampler: str = option("trellis", "Where proposals come from.", choices=SAMPLERS)
    batch: int = option(8, "Candidates between two looks at the scores.", least=1)
    surrogate: bool = option(True, "Screen candidates before scoring.")
    race_error: float = option(
        0.05, "Chance that a race drops a candidate that is not worse; 0: no races."
    )
    max_params: float | None = option(
        None, "At most so many parameters, e.g. 5M.", counts="parameters"
    )
    max_macs: float | None = option(None, "At most so many MACs, e.g. 300M.", counts="MACs")
    min_params: float | None = option(
        None, "At least so many parameters, e.g. 1M.", counts="parameters"
    )
    min_macs: float | None = option(None, "At least so many MACs, e.g. 50M.", counts="MACs")
    fresh: bool = option(False, "Ignore the shipped scores.")
    seed: int = option(0, "Random seed; the same seed gives the same result.")

    def __post_init__(self) -> None:
        _check_options(self)
        check_seed(self.seed)
        if self.score:
            check_score(self.score)
        if self.sampler not in SAMPLERS:
            raise UnknownNameError("sampler", self.sampler, SAMPLERS)
        if self.searcher not in searcher_names():
            raise UnknownNameError("searcher", self.searcher, searcher_names())
        if not 0.5 <= self.confidence <= 0.999_999:
            raise UsageError(
                f"a confidence is from 0.5 to 0.999999, got {self.confidence!r}", "e.g. 0.95"
            )
        for counted in ("params", "macs"):
            low, high = getattr(self, f"min_{counted}"), getattr(self, f"max_{counted}")
            if low and high and low > high:
                raise UsageError(
                    f"min_{counted} is {low:g}, above max_{counted}, which is {high:g}",
                    f"lower min_{counted}, or raise max_{counted}",
                )
        if not 0.5 <= self.quantile <= MOST_QUANTILE:
            raise UsageError(
                f"a quantile is at least 0.5 and at most {MOST_QUANTILE}, got {self.quantile}",
                "e.g. 0.95",
            )
        if not 0 <= self.race_error < 1:
            raise UsageError(
                f"the error of races is at least 0 and below 1, got {self.race_error}", "e.g. 0.05"
            )

    @property
    def device(self) -> str:
        """The device that is searched on."""
        return self.devices[0]

    @property
    def devices(self) -> tuple[str, ...]:
        """All devices that have a budget."""
        return tuple(self.budgets[0])

    def to_json(self) -> dict[str, Any]:
        """With the budget of the first answer and its device, as readers of a run want them."""
        own = asdict(self) | {"budgets": [dict(b) for b in self.budgets]}
        return {"budget_ms": self.budgets[0][self.device], "device": self.device, **own}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The settings in a run's `settings.json`, which holds other keys too.

        Version 0.1 recorded one budget only, and fewer settings: these had today's defaults, but
        for finals, of which there were none. Raises `ValueError` or `UsageError` where they are no
        settings.
        """
        early = {"budgets": [{str(data.get("device")): data.get("budget_ms")}]}
        found = decode(cls, {"final_images": 0, **data, **(early if "budgets" not in data else {})})
        times = [ms for budgets in found.budgets for ms in budgets.values()]
        devices = {tuple(budgets) for budgets in found.budgets}
        if not times or len(devices) != 1 or min(times) <= 0:
            raise MismatchError(
                "budgets must be positive milliseconds by device, for each the same"
            )
        return found


@dataclass(frozen=True)
class Distribution:
    """Where scores are computed; the result is the same anywhere on one kind of machine.

    `gpus` are those of each worker, `timeout_s` is for one candidate, and `reuse_mb` is the memory
    of each process for activations that candidates share.
    """

    workers: int = option(0, "Worker processes (Ray); 0: none, in this process.", least=0)
    ray_address: str | None = option(None, "A running Ray cluster: HOST:PORT or auto.")
    gpus: float = option(0.0, "GPUs (or a share) each.", name="gpus-per-worker", least=0)
    timeout_s: float = option(
        600.0, "Seconds a worker may take for one candidate.", name="task-timeout", least=1
    )
    reuse_mb: int = option(512, "Activations that candidates share, in MB; 0: none.", least=0)

    def __post_init__(self) -> None:
        _check_options(self)
        if self.gpus and not self.workers and self.ray_address is None:
            raise UsageError(
                "GPUs are given to workers, and there are none",
                "add --workers, or --ray-address for a cluster",
            )
