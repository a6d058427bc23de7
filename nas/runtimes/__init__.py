"""Runtimes: ways to run layers and networks on a device, each one file behind one interface.

A device is written `NAME[,option=value...]`, e.g. `torch-cpu`, `onnxruntime-cpu,threads=2` or
`ssh://pi@raspberry,runtime=onnxruntime`. A file of this folder gives `RUNTIMES`: what it makes
available, by name (by its scheme, for names with an address). Nothing else has to know of it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pkgutil import iter_modules
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

from nas.errors import MissingPackageError, UnknownNameError, UsageError
from nas.extensions import parse_options
from nas.space.layer import Layer

# Where the numbers of a table come from. Only the first are times of the device itself.
SOURCES = ("measured", "vendor-model", "emulated-count", "emulated-time", "ported", "external")
# The verb that each of them allows in a sentence about a time.
VERBS = {source: source for source in SOURCES} | {
    "vendor-model": "modelled",
    "emulated-count": "counted",
    "emulated-time": "emulated",
}
CONTEXTS = ("network", "isolated", "stacked", "added")


class Sample(NamedTuple):
    """What one call took: wall time, and processor time (0 where it is not known).

    In milliseconds, or in millions of instructions for a runtime that counts them.
    """

    wall: float
    cpu: float


# Runs what was prepared once and says how long it took: one sample for each of its layers, or a
# single one where it was prepared as one piece.
Program = Callable[[], list[Sample]]


def timed(calls: Sequence[Callable[[], Any]]) -> Program:
    """A program of calls in this process, the clocks read between them."""

    def program() -> list[Sample]:
        samples = []
        wall, cpu = time.perf_counter_ns(), time.process_time_ns()
        for call in calls:
            call()
            after, cpu_after = time.perf_counter_ns(), time.process_time_ns()
            samples.append(Sample((after - wall) / 1e6, (cpu_after - cpu) / 1e6))
            wall, cpu = after, cpu_after
        return samples

    return program


class Runtime(ABC):
    """A way to run networks on one device; used as a context manager while it measures.

    Inputs are random and weights constant: no runtime's time depends on them.
    """

    kind: ClassVar[str] = "cpu"  # cpu, gpu, arm, npu: what `vitnas list devices` shows
    unit: ClassVar[str] = "ms"  # or Minstructions
    lowering: ClassVar[str] = ""  # version of what turns layers into the runtime's own form
    exact: ClassVar[bool] = False  # every call gives the same numbers: one round is enough
    single: ClassVar[bool] = True  # a sample is one inference, not a mean or a model of several
    # How rows are timed best, found by the error on whole networks (experiments/table_error):
    # `network`: layer by layer inside whole networks, in their order; `isolated`: each alone;
    # `stacked`: twice in a row less once, where a layer can follow itself; `added`: behind the
    # cheapest layer that can stand before it, less that one.
    context: ClassVar[str] = "network"
    packages: ClassVar[tuple[str, ...]] = ()  # distributions it needs
    extra: ClassVar[str] = ""  # of vitnas, which installs them

    example: ClassVar[str] = ""  # of an address, for those that have one

    source: str = "measured"
    # How torch computes attention in windows on a CPU: `explicit`, `fused`, or as is faster here.
    kernel: str = ""

    def __init__(self, device: str) -> None:
        self.device = device

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What identifies the device and how it is run: tables of another one are refused.

        At least `name` (the device as it was asked for), `processor`, `machine`, `runtime`,
        `runtime_version`, `threads`, `dtype`, `batch`. Raises a `VitnasError` with the fix where it
        cannot be used: a missing package, no such processor, nobody at the address.
        """

    def conditions(self) -> dict[str, Any]:
        """The clocks, governor and load right now, as far as readable: recorded, never compared."""
        return {}

    @abstractmethod
    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        """Make consecutive layers ready to run: as one piece if `fused`, else timed one by one.

        Inputs are those of the first layer at its `input_shape`. Raises `PreparationError` for
        layers that this runtime cannot run; its message becomes the note of the failed row.
        """

    def ahead(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Do in parallel, and keep on disk, what `prepare` would do for each of these layers.

        Yields each layer that is done.
        """
        yield from layers

    def note(self, layer: Layer) -> str:
        """The note on the row of a layer, e.g. which operators run elsewhere; "" without any."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def require(self) -> None:
        """Raise `MissingPackageError` if a package is missing."""
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                fix = (
                    f"pip install 'vitnas[{self.extra}]'"
                    if self.extra
                    else f"pip install {package}"
                )
                raise MissingPackageError(
                    f"{self.device} needs the package {package}", fix
                ) from None


WARM_UP_MS, KEPT = 5.0, 3


def visit(program: Program, runtime: Runtime) -> list[list[Sample]]:
    """Warm a program up, and return the samples of its next three calls; of one if it is exact.

    The warm-up lasts for a time, not for some calls: a deployed network runs in a loop, and short
    ones are still getting faster in their third call (ONNX Runtime: 8 % from the second to the
    fourth).
    """
    if runtime.exact:
        return [program()]
    warm = 0.0
    while warm < WARM_UP_MS:
        warm += max(sum(sample.wall for sample in program()), 1e-3)
    return [program() for _ in range(KEPT)]


Factory = type[Runtime]  # called with the device as written, and its options by keyword


def runtimes() -> dict[str, Factory]:
    """Every runtime by name; nothing heavy is imported before one is used."""
    found: dict[str, Factory] = {}
    for module in iter_modules(__path__):
        names: Mapping[str, Factory] = getattr(
            import_module(f"{__name__}.{module.name}"), "RUNTIMES", {}
        )
        found |= names
    return dict(sorted(found.items()))


ALIASES = {"cpu": "torch-cpu", "cuda": "torch-cuda"}


def canonical_name(device: str) -> str:
    """A device as tables call it, whatever alias it was given by."""
    name, comma, options = device.partition(",")
    return ALIASES.get(name, name) + comma + options


def load_runtime(device: str) -> Runtime:
    """The runtime that `NAME[,option=value...]` names; `UnknownNameError` with those there are."""
    name, *words = device.split(",")
    scheme, separator, address = name.partition("://")
    known = runtimes()
    factory = known.get(ALIASES.get(name, scheme + separator))
    if factory is None:
        raise UnknownNameError(
            "device", name, [*known], "(vitnas list devices; a new one is a file in nas/runtimes)"
        )
    options = parse_options(device, factory, words, besides=("address",))
    if separator:
        options["address"] = address
    return factory(",".join([ALIASES.get(name, name), *words]), **options)


def check_threads(device: str, threads: int, cores: int) -> None:
    """Raise `UsageError` if there are fewer cores than threads: these would wait for each other."""
    if threads > cores:
        count = "1 core" if cores == 1 else f"{cores} cores"
        raise UsageError(
            f"{device} asks for {threads} threads, and there can be {count} for them",
            f"threads={cores}, or allow more cores (the affinity, or the quota of the container)",
        )


def check_option(name: str, value: str, known: Sequence[str]) -> str:
    """`value` if it is one of those known; else `UnknownNameError`."""
    if value not in known:
        raise UnknownNameError(name, value, known)
    return value
