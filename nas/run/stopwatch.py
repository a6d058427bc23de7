"""The stopwatch of a run: whole networks, timed end to end, each once a device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import median

import numpy as np

from nas.errors import VitnasError
from nas.progress import bar, console
from nas.records import Journal
from nas.run.inputs import Inputs
from nas.run.scores import Candidate
from nas.run_record import OtherDevice
from nas.runtimes import VERBS
from nas.space.architecture import Architecture

_ROUNDS = 10  # of three end-to-end samples of each network


@dataclass(frozen=True)
class Samples:
    """The times in ms of one network on one device."""

    ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median, which is what a run calls measured."""
        return float(np.median(self.ms))

    @property
    def p95_ms(self) -> float:
        """The 95th percentile."""
        return float(np.percentile(self.ms, 95))

    @property
    def upper_ms(self) -> float:
        """The upper 95 % confidence limit of the median, by order statistics; inf of no samples."""
        n = len(self.ms)
        return sorted(self.ms)[min(n - 1, ceil(n / 2 + 0.98 * sqrt(n)))] if n else inf


@dataclass(frozen=True)
class TimeRecord:
    """A line of the journal of what was timed."""

    device: str
    id: str
    samples_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples_ms or min(self.samples_ms) <= 0:
            raise ValueError("samples_ms must be one time or more, all above 0")


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
        self._journal = Journal(inputs.folder / "measured.jsonl")
        self._kept = {
            (r["device"], r["id"]): r["samples_ms"] for r in self._journal.read(TimeRecord)
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
        the confidence, stands alone and is called one.
        """
        fits, inputs = True, self.inputs
        known = self.others.setdefault(candidate, {})
        for device, budget in list(budgets.items())[1:]:
            samples = None
            try:
                if device in inputs.described:  # else it is a label of a table
                    timed = self._time(device, [candidate.architecture])
                    samples = timed[candidate.architecture]
            except VitnasError as error:
                console.print(f"{device}: predicted only ({error})", style="yellow")
            known[device] = OtherDevice(
                budget,
                round(inputs.predict_ms(candidate.architecture, device), 4),
                None if samples is None else round(samples.median_ms, 4),
                VERBS[inputs.tables[device].measured_source],
            )
            fits = fits and (samples is None or samples.upper_ms <= budget)
        return fits

    def ratio(self, device: str) -> float:
        """How many times as long as predicted networks take on a device now, in the median."""
        ratios = [
            median(samples.ms) / self.inputs.predict_ms(architecture, device)
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
        found = {a: Samples(tuple(self._kept[device, a.id])) for a in wanted}
        self._asked |= {(device, a): samples for a, samples in found.items()}
        return found

    def _measure(self, device: str, architectures: Sequence[Architecture]) -> None:
        from nas.latency.end_to_end import measure_fresh

        space = self.inputs.space
        with bar("measure", _ROUNDS, "rounds") as advance:
            new = measure_fresh(device, space, architectures, _ROUNDS, advance=advance)
        for a, own in zip(architectures, new):
            samples = [round(x, 4) for x in own.samples]
            self._kept[device, a.id] = samples
            self._journal.append(
                {"device": device, "id": a.id, "architecture": a.to_json(), "samples_ms": samples}
            )
