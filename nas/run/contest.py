"""Answers: for each budget the winner, measured, beside what else it could have been."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from nas.errors import InfeasibleError, VitnasError
from nas.evaluation.accuracy import Evaluator
from nas.progress import bar, console
from nas.records import Journal
from nas.run.inputs import Job
from nas.run.scores import Candidate, rounded, upper_limit
from nas.run_record import Answer, Exported, OtherDevice, Winner
from nas.runtimes import VERBS
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.strategy.constraints import Region
from nas.strategy.quality import Quality, judge
from nas.strategy.searchers import Known
from nas.strategy.statistics import pareto
from nas.trellis.graph import decode, encode

_MEASURED = 5  # best candidates that are re-measured, besides the front
_ROUNDS = 10  # of three end-to-end samples of each
_TRIES = 3  # to find one that measures within the budget, where the first ones did not
_MARGIN = 1.03  # by which each try aims lower
_FULL = 0.9  # share of a limit above which a network uses it


class Stopwatch:
    """End-to-end samples of networks by device, kept in `measured.jsonl`.

    `samples` are those that have been asked for. What an earlier try of this run has measured is
    taken from the journal, but not before: a resumed run decides by what it knew then.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.journal = Journal(job.folder / "measured.jsonl")
        self._kept = {(r["device"], r["id"]): r["samples_ms"] for r in self.journal.read()}
        self.samples: dict[tuple[str, Architecture], list[float]] = {}
        self.measured: dict[Architecture, Candidate] = {}

    def __call__(self, wanted: Sequence[Candidate]) -> None:
        """Fill `samples_ms` of these candidates, all in turn in one fresh process."""
        device = self.job.settings.device
        self._run(device, [c.architecture for c in wanted])
        for candidate in wanted:
            candidate.samples_ms = self.samples[device, candidate.architecture]
            self.measured.setdefault(candidate.architecture, candidate)

    def elsewhere(self, candidate: Candidate, wanted: dict[str, float]) -> bool:
        """Measure on the further devices too; whether the candidate fits on each.

        A device that cannot be reached is not measured: there the prediction, whose limit holds
        the confidence, stands alone and is called one.
        """
        fits = True
        for device, budget in list(wanted.items())[1:]:
            samples: list[float] = []
            try:
                if device in self.job.described:  # else it is a label of a table
                    self._run(device, [candidate.architecture])
                    samples = self.samples[device, candidate.architecture]
            except VitnasError as error:
                console.print(f"{device}: predicted only ({error})", style="yellow", markup=False)
            candidate.others[device] = OtherDevice(
                budget,
                round(self.job.predict_ms(candidate.architecture, device), 4),
                rounded(float(np.median(samples))) if samples else None,
                VERBS[self.job.tables[device].measured_source],
            )
            fits = fits and (not samples or upper_limit(samples) <= budget)
        return fits

    def ratio(self, device: str) -> float:
        """How many times as long as predicted networks take on a device now, in the median."""
        own = [(a, samples) for (where, a), samples in self.samples.items() if where == device]
        ratios = [median(samples) / self.job.predict_ms(a, device) for a, samples in own]
        return median(ratios) if ratios else 1.0

    def _run(self, device: str, architectures: Iterable[Architecture]) -> None:
        wanted = list(dict.fromkeys(architectures))
        if missing := [a for a in wanted if (device, a.id) not in self._kept]:
            self._measure(device, missing)
        self.samples |= {(device, a): self._kept[device, a.id] for a in wanted}

    def _measure(self, device: str, architectures: Sequence[Architecture]) -> None:
        from nas.latency.end_to_end import measure_fresh

        job = self.job
        with bar("measure", _ROUNDS, "rounds") as advance:
            new = measure_fresh(
                device, job.space, architectures, _ROUNDS, advance=advance
            )  # fmt: skip
        for a, own in zip(architectures, new):
            samples = [round(x, 4) for x in own.samples]
            self._kept[device, a.id] = samples
            self.journal.append({"device": device, "id": a.id, "architecture": a.to_json(),
                                 "samples_ms": samples})  # fmt: skip


class Contest:
    """One budget: who may win, what it is compared with, and who wins."""

    def __init__(self, job: Job, index: int) -> None:
        self.job, self.region = job, job.regions[index]
        self.wanted = job.settings.budgets[index]
        self.budget_ms = self.wanted[job.settings.device]
        self.feasible = job.feasible[index]
        self.exported = Exported()

    @property
    def limit_ms(self) -> float:
        return self.region.limits[0].bound

    # --- the baselines ---

    def score(self, new: bool) -> None:
        """Have scored whatever is compared with; nothing `new` where the answer is at hand."""
        job = self.job
        self.groups: dict[str, list[Architecture]] = {
            "best uniform sparsity": self._scored("uniform", self._uniform(), new),
            "best dense": self._of(job.space.restrict("sparsity", 0)),
            "best of random draws": self._scored("random", self._random(new), new),
        }

    def _uniform(self) -> list[Architecture]:
        """For each resolution the largest network with one sparsity everywhere that fits."""
        job, chosen = self.job, []
        for resolution in job.space.positions[0].values:
            for sparsity in sparsities(job.space):
                a = uniform(job.space, resolution, sparsity)
                if sparsity and job.fits(a, self.region):
                    chosen.append(a)
                    break
        return chosen

    def _random(self, new: bool) -> list[Architecture]:
        """As many random draws as there were scores to search with: the shipped draws that fit,
        and uniform draws from inside the budget up to the number of evaluations."""
        settings = self.job.settings
        chosen = [a for a in self.job.scores.drawn if self.job.fits(a, self.region)]
        if new and (missing := settings.evaluations - len(chosen)) > 0:
            paths = self.region.within.sample(missing, np.random.default_rng(settings.seed + 1))
            chosen += [decode(self.job.space, p) for p in paths[self.region.fits(paths)]]
        return chosen

    def _scored(self, name: str, wanted: list[Architecture], new: bool) -> list[Architecture]:
        known = self.job.scores.known
        if new:
            score_all(self.job, name, wanted)
        return [a for a in wanted if a in known and a not in self.job.scores.seen]

    def _of(self, space: SearchSpace) -> list[Architecture]:
        """Everything scored to the end of a space that fits."""
        return [a for a in self.job.scores.full(space) if self.job.fits(a, self.region)]

    # --- the winner ---

    def rank(self, expected: dict[Architecture, float]) -> None:
        self.expected = expected
        self.ranked = self.candidates("candidate", self._of(self.job.space))
        points = [(c.predicted_ms, c.expected_top1_percent) for c in self.ranked]
        self.front = [self.ranked[i] for i in pareto(*zip(*points))] if points else []
        (self.largest,) = self.candidates("largest dense", [self.job.space.largest])
        self.best = [self.candidates(name, own) for name, own in self.groups.items()]

    def candidates(self, name: str, architectures: Iterable[Architecture]) -> list[Candidate]:
        """Candidates of scored architectures, best expected accuracy first, then the faster one."""
        known = self.job.scores.known
        found = [
            Candidate(name, a, self.job.predict_ms(a), known[a], self.expected[a])
            for a in architectures
        ]
        return sorted(found, key=lambda c: (-c.expected_top1_percent, c.predicted_ms))

    def to_measure(self) -> list[Candidate]:
        return [self.largest, *self.ranked[:_MEASURED], *self.front,
                *(group[0] for group in self.best if group)]  # fmt: skip

    def decide(self, watch: Stopwatch) -> bool:
        """The best that fits as measured is the winner, if one does; of each group likewise."""
        winner = self._first_that_fits(self.ranked, watch, everywhere=True)
        if winner is None:
            return False
        self.winner = replace(winner, name="winner")
        best = [self._first_that_fits(group, watch) for group in self.best]
        self.baselines = [self.largest, *(c for c in best if c)]
        return True

    def further_inside(self, watch: Stopwatch, tries: int) -> Region:
        """Where to search on when all that was predicted to fit has measured above the budget.

        That is what fits with each device as slow as it is now, and a little more with each try.
        Raises `InfeasibleError` where that is nothing, or after the last try.
        """
        ratios = {device: watch.ratio(device) for device in self.wanted}
        if tries <= _TRIES:
            slower = {device: max(1.0, ratio) * _MARGIN**tries for device, ratio in ratios.items()}
            with suppress(InfeasibleError):
                region = self.job.limits.region(self.wanted, slower)
                console.print(
                    f"all that was predicted within {self.budget_ms:g} ms measured above it: "
                    f"searching on within {region.limits[0].bound:.4g} ms (predicted)",
                    style="yellow",
                )
                return region
        now = " and ".join(f"{device} {ratio:.2f}" for device, ratio in ratios.items())
        raise InfeasibleError(
            f"every candidate predicted within {self.budget_ms:g} ms measured above it "
            f"(measured over predicted: {now})",
            "measure the table again when the machine is quiet (vitnas profile --again), "
            "or raise the budget",
        )

    def _first_that_fits(
        self, ranked: Sequence[Candidate], watch: Stopwatch, everywhere: bool = False
    ) -> Candidate | None:
        """The best score whose measured upper limit is within the budget; measures on as needed."""
        left = list(ranked)
        while left:
            # On a day when the machine is slower than its table, skip what cannot fit.
            ratio = watch.ratio(self.job.settings.device)
            left = [c for c in left if c.samples_ms or c.predicted_ms * ratio <= self.budget_ms]
            some, left = left[:_MEASURED], left[_MEASURED:]
            for candidate in some:
                if not candidate.samples_ms:
                    watch(some)
                if candidate.upper_ms <= self.budget_ms and (
                    not everywhere or watch.elsewhere(candidate, self.wanted)
                ):
                    return candidate
        return None

    # --- how good it is ---

    def quality(self) -> Quality:
        """By everything known of the space, its scores with their noise."""
        job = self.job
        known = [a for a in job.scores.known if a in job.space]
        paths = np.array([encode(job.space, a) for a in known])
        scores = np.array([job.scores.known[a] for a in known])
        noise = np.array([job.scores.noise(a) for a in known])
        winner = encode(job.space, self.winner.architecture)
        return judge(self.region, Known(job.space.positions, paths, scores, noise), winner)

    def answer(self) -> Answer:
        """What the run records of this budget."""
        table, confidence = self.job.table, self.job.settings.confidence
        w = self.winner
        low, high = table.interval(w.predicted_ms, confidence)
        return Answer(
            self.budget_ms,
            self.wanted,
            round(self.limit_ms, 4),
            self.feasible,
            self._best_shipped(),
            Winner(
                **vars(w.summary()),
                upper_ms=round(w.upper_ms, 4),
                interval_ms=(round(low, 4), round(high, 4)),
                chance_within_budget=round(table.chance_within(w.predicted_ms, self.budget_ms), 4),
            ),
            tuple(c.summary() for c in self.baselines),
            tuple(c.summary() for c in self.front),
            Quality(**self.quality().summary()),
            self.exported,
        )

    def _best_shipped(self) -> float | None:
        scores = self.job.scores
        prior = [a for a in self.job.prior(self.job.space) if a not in scores.seen]
        fits = [scores.known[a] for a in prior if self.job.fits(a, self.region)]
        return max(fits, default=None)


def can_answer(job: Job, region: Region) -> bool:
    """Whether what is known answers a budget: as many scores that fit as were asked for, and one
    that uses the budget, unless everything fits it."""
    known = [a for a in job.prior(job.space) if a not in job.scores.seen]
    if not known:
        return False
    paths = np.array([encode(job.space, a) for a in known])
    costs = region.limits[0].costs_of(paths)[region.fits(paths)]
    limit = region.limits[0]
    loose = limit.trellis is not None and limit.trellis.slowest <= limit.bound
    full = loose or bool((costs > _FULL * limit.bound).any())
    return len(costs) >= job.settings.evaluations and full


def score_all(job: Job, name: str, architectures: Sequence[Architecture]) -> None:
    """Score networks that are not candidates of the search, if they are not known."""
    if new := [a for a in dict.fromkeys(architectures) if a not in job.scores.known]:
        with bar(name, len(new), "networks") as advance:
            job.scores(new, name, done=lambda _: advance(1))


def test(job: Job, finalists: Sequence[Candidate]) -> None:
    """Accuracy on the test split, once, for what is reported."""
    journal = Journal(job.folder / "test.jsonl")
    known = {r["id"]: r["top1_percent"] for r in journal.read()}
    recorded = job.card.get("largest_test", {})
    if recorded.get("images") == job.settings.test_images:
        known.setdefault(job.space.largest.id, recorded["top1_percent"])
    evaluator = Evaluator(job.network, job.data, job.data.test, job.settings.test_images)
    with bar("test", len(finalists), "networks") as advance:
        for c in finalists:
            own = c.architecture.id
            if own not in known:
                known[own] = evaluator.percent(c.architecture)
                journal.append({"id": own, "top1_percent": known[own], "images": evaluator.images})
            c.test_top1_percent = known[own]
            advance(1, f"{c.name} {c.test_top1_percent:.1f} %")


def archive(job: Job, expected: dict[Architecture, float]) -> list[dict[str, Any]]:
    """The best known network by latency bucket, each bucket 5 % wide: an answer to any budget."""
    best: dict[int, tuple[float, float, Architecture]] = {}
    for a in job.scores.full(job.space):
        ms = job.predict_ms(a)
        if np.isfinite(ms):
            bucket = int(np.ceil(np.log(ms) / np.log(1.05)))
            best[bucket] = max(
                best.get(bucket, (-np.inf, 0.0, a)), (expected[a], -ms, a), key=lambda x: x[:2]
            )
    return [
        {
            "up_to_ms": round(float(1.05**bucket), 4), "id": a.id, "predicted_ms": round(-ms, 4),
            "expected_top1_percent": round(score, 3),
            "search_top1_percent": round(job.scores.known[a], 3),
        }
        for bucket, (score, ms, a) in sorted(best.items())
    ]  # fmt: skip


def sparsities(space: SearchSpace) -> list[int]:
    """The sparsities in percent that blocks of a space may have, densest first."""
    values = (value for position in space.positions for value in position.values)
    return sorted({value.sparsity for value in values if hasattr(value, "sparsity")})


def uniform(space: SearchSpace, resolution: int, sparsity: int) -> Architecture:
    """The largest architecture at a resolution with one sparsity in every block that can prune."""
    return space.restrict("resolution", resolution).restrict("sparsity", sparsity).largest
