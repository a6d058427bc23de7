"""The stopwatch of a run: whole networks, timed end to end, each once a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from statistics import median

import numpy as np

from nas.errors import VitnasError
from nas.latency.end_to_end import Measurement
from nas.latency.noise import held_up, undisturbed
from nas.progress import bar, console
from nas.records import Journal
from nas.run.inputs import Inputs
from nas.run.scores import Candidate
from nas.run_record import OtherDevice
from nas.runtimes import KEPT, VERBS
from nas.settings import Settings
from nas.space.architecture import Architecture

_ROUNDS = 10  # at least, of three end-to-end samples of each network
_BUSY = 0.1  # share of inferences that waited, from which a run says so
_SURE = 0.975  # of the upper end of an interval of 95 %


@dataclass(frozen=True)
class Samples:
    """The times in ms of single inferences of one network on one device.

    `cpu_ms` are their processor times, where these stand for the time on a quiet machine. The
    budget holds for `quantile` of the inferences.
    """

    ms: tuple[float, ...]
    cpu_ms: tuple[float, ...] = ()
    quantile: float = 0.5

    @classmethod
    def of(cls, measured: Measurement, threads: int, quantile: float = 0.5) -> Samples:
        """Those of a network that was measured end to end on so many threads."""
        # The processor time of several threads is their sum.
        cpu = measured.cpu if threads == 1 else ()
        ms, cpu_ms = (tuple(round(x, 4) for x in own) for own in (measured.samples, cpu))
        return cls(ms, cpu_ms, quantile)

    @cached_property
    def _undisturbed(self) -> Sequence[float]:
        """The samples without the waiting for other programs, like the rows of a table."""
        if not self.cpu_ms:
            return self.ms
        both = np.array([self.ms, self.cpu_ms]).T
        return [float(ms) for ms in undisturbed(both)[:, 0]]

    @property
    def median_ms(self) -> float:
        """The median without what held them up, which is what a run calls measured."""
        return float(np.median(self._undisturbed))

    @property
    def held_up(self) -> float:
        """The share of inferences that waited for other programs; 0 where that is not known."""
        both = np.array([self.ms, self.cpu_ms or [0.0] * len(self.ms)]).T
        return float(held_up(both).mean()) if self.ms else 0.0

    @property
    def quantile_ms(self) -> float:
        """What the budget holds for: the median, or a quantile of all inferences as they were."""
        if self.quantile == Settings.quantile:
            return self.median_ms
        return float(np.quantile(self.ms, self.quantile))

    @property
    def p95_ms(self) -> float:
        """The 95th percentile."""
        return float(np.percentile(self.ms, 95))

    def share_within(self, ms: float) -> float:
        """The share of inferences, as they were, that took no longer."""
        return float(np.mean(np.array(self.ms) <= ms))

    @property
    def upper_ms(self) -> float:
        """The upper end of the 95 % confidence interval of `quantile_ms`, by order statistics.

        It is infinite where there are too few samples to say.
        """
        median = self.quantile == Settings.quantile
        ordered = sorted(self._undisturbed if median else self.ms)
        place = _place(len(ordered), self.quantile)
        if median:
            place = min(place, len(ordered) - 1)
        return ordered[place] if 0 <= place < len(ordered) else inf


def _place(n: int, quantile: float) -> int:
    """The place of the upper limit of a quantile among n samples in order; n where none is sure.

    So many samples or fewer are below the quantile, with confidence, because each of them is with
    the chance that the quantile says (as if they were independent).
    """
    from scipy.stats import binom

    return int(binom.ppf(_SURE, n, quantile)) if n else -1


def rounds_for(quantile: float) -> int:
    """How many rounds of three samples say a quantile: two samples at least lie above its limit."""
    rounds = _ROUNDS
    while _place(KEPT * rounds, quantile) > KEPT * rounds - 3:
        rounds += 1
    return rounds


@dataclass(frozen=True)
class TimeRecord:
    """A line of the journal of what was timed."""

    device: str
    id: str
    samples_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.samples_ms or min(self.samples_ms) <= 0:
            raise ValueError("samples_ms must be one time or more, all above 0")
        if self.cpu_ms and (len(self.cpu_ms) != len(self.samples_ms) or min(self.cpu_ms) < 0):
            raise ValueError("cpu_ms must be as many times as samples_ms, none below 0")


class Stopwatch:
    """Times networks; what was timed is kept in `measured.jsonl`.

    What an earlier try of a resumed run has timed is taken from there, but not before it is asked
    for: the run decides by what it knew then. `first` holds the candidate as which each network
    was first timed, and `others` what is known of candidates on further devices.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.first: dict[Architecture, Candidate] = {}
        self.others: dict[Candidate, dict[str, OtherDevice]] = {}
        self._untimed: set[tuple[str, Architecture]] = set()  # where a device failed
        self._journal = Journal(inputs.folder / "measured.jsonl")
        self._kept = {
            (r["device"], r["id"]): (r["samples_ms"], r.get("cpu_ms", []))
            for r in self._journal.read(TimeRecord)
        }
        self._asked: dict[tuple[str, Architecture], Samples] = {}

    def __call__(self, wanted: Sequence[Candidate]) -> dict[Candidate, Samples]:
        """Time candidates on the device that is searched on, all in turn in one fresh process.

        Those that were timed before are not timed again.
        """
        found = self._time(self.inputs.settings.device, [c.architecture for c in wanted])
        for candidate in wanted:
            self.first.setdefault(candidate.architecture, candidate)
        return {c: found[c.architecture] for c in wanted}

    def fits_elsewhere(self, candidate: Candidate, budgets: dict[str, float]) -> bool:
        """Time a candidate on the further devices too; whether it fits on each.

        A device that cannot be reached does not time it: there the prediction, whose limit holds
        the confidence, stands alone and is called one. It is not asked for that network again, so
        that the answer stays the same.
        """
        fits, inputs, own = True, self.inputs, candidate.architecture
        known = self.others.setdefault(candidate, {})
        for device, budget in list(budgets.items())[1:]:
            samples = None
            try:
                # Where it is not described, it is a label of a table.
                if device in inputs.described and (device, own) not in self._untimed:
                    samples = self._time(device, [own])[own]
            except VitnasError as error:
                self._untimed.add((device, own))
                console.print(f"{device}: predicted only ({error})", style="yellow")
            known[device] = OtherDevice(
                budget,
                round(inputs.predict_ms(own, device), 4),
                None if samples is None else round(samples.median_ms, 4),
                VERBS[inputs.tables[device].measured_source],
                None if samples is None else asked_ms(samples),
            )
            fits = fits and (samples is None or samples.upper_ms <= budget)
        return fits

    def ratio(self, device: str) -> float:
        """How many times as long as predicted networks take on a device now.

        In the median of networks; each by what the budget holds for, its median or its quantile.
        """
        ratios = [
            samples.quantile_ms / self.inputs.predict_ms(architecture, device)
            for (where, architecture), samples in self._asked.items()
            if where == device
        ]
        return median(ratios) if ratios else 1.0

    def samples(self, candidate: Candidate) -> Samples | None:
        """The samples of a candidate on the device that is searched on; None until it is timed."""
        return self._asked.get((self.inputs.settings.device, candidate.architecture))

    def _time(
        self, device: str, architectures: Iterable[Architecture]
    ) -> dict[Architecture, Samples]:
        wanted = list(dict.fromkeys(architectures))
        if missing := [a for a in wanted if (device, a.id) not in self._kept]:
            self._measure(device, missing)
        quantile = self.inputs.settings.quantile
        kept = {a: self._kept[device, a.id] for a in wanted}
        found = {a: Samples(tuple(ms), tuple(cpu), quantile) for a, (ms, cpu) in kept.items()}
        self._asked |= {(device, a): samples for a, samples in found.items()}
        return found

    def _measure(self, device: str, architectures: Sequence[Architecture]) -> None:
        from nas.latency.end_to_end import measure_fresh

        space, rounds = self.inputs.space, rounds_for(self.inputs.settings.quantile)
        threads = self.inputs.described[device].get("threads", 1)
        kernel = self.inputs.network.kernel
        named = kernel.__name__ if kernel else ""
        with bar("measure", rounds, "rounds") as advance:
            new = measure_fresh(device, space, architectures, rounds, advance=advance, kernel=named)
        for a, own in zip(architectures, new):
            samples = Samples.of(own, threads)
            self._kept[device, a.id] = samples.ms, samples.cpu_ms
            self._journal.append(
                {"device": device, "id": a.id, "architecture": a.to_json(),
                 "samples_ms": list(samples.ms), "cpu_ms": list(samples.cpu_ms)}
            )  # fmt: skip
        shares = [Samples(*self._kept[device, a.id]).held_up for a in architectures]
        if (share := sum(shares) / len(shares)) > _BUSY:
            console.print(
                f"{device} was busy while networks were measured: {100 * share:.0f} % of all "
                "inferences waited for other programs",
                style="yellow",
            )


def asked_ms(samples: Samples) -> float | None:
    """The quantile that the budget holds for; None where it is the median."""
    median = samples.quantile == Settings.quantile
    return None if median else round(samples.quantile_ms, 4)
