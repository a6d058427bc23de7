"""What tests share: the slow ones apart, one cache, painted photos, a supernet and a made-up table."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

# Before numpy is imported, for it and for the programs that tests start: linear algebra on two
# threads beside another test takes up to twenty times as long, for its threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import nas
from nas.data import Dataset, load_data
from nas.export import export_network
from nas.families import load_space, space_names
from nas.latency.end_to_end import Measurement
from nas.latency.fit import Calibration
from nas.latency.rows import Row
from nas.latency.table import LatencyTable
from nas.network.macs import count_macs
from nas.network.network import Network
from nas.runtimes import load_runtime
from nas.space.family import SearchSpace
from nas.training.supernet import save_supernet
from nas.trellis.graph import space_layers
from nas.versions import layer_code

# Modules of one's own are found by the programs that tests start, too.
_path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ |= {"PYTHONPATH": os.pathsep.join(_path), "VITNAS_EXTENSIONS": "toys"}

# A first example may build what the others share, and the machine may be busy.
settings.register_profile("vitnas", deadline=None)
settings.load_profile("vitnas")

DEBUG_SPACES = [name for name in space_names() if name.endswith(":debug")]
# Files are handed out in this order, and the rest by name: the longest must not start last.
LONGEST = (
    "test_readme",
    "test_models",
    "test_runtimes",
    "test_run",
    "test_whole_way",
    "test_faults",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests, too")


def leaves_out_slow_tests(config: pytest.Config) -> bool:
    return not (config.option.all or config.option.markexpr)


def pytest_report_header(config: pytest.Config) -> str:
    return "slow tests: " + ("skipped; --all runs them" if leaves_out_slow_tests(config) else "run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests unless they are asked for; start the longest files first.

    Tests that are `quiet` come last, so that no other waits for the core beside them.
    """
    if leaves_out_slow_tests(config):
        for item in items:
            if item.get_closest_marker("slow") is not None:
                item.add_marker(pytest.mark.skip(reason="slow: pytest --all"))

    def turn(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.stem
        place = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return item.get_closest_marker("quiet") is not None, place

    items.sort(key=turn)


def _lock() -> Path:
    """A file that the processes of one run of the tests share."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    return Path(tempfile.gettempdir()) / f"vitnas-tests-{run}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests run on two cores beside each other; one that is `quiet`, whose times matter, alone."""
    with _lock().open("w") as lock:
        quiet = item.get_closest_marker("quiet") is not None
        fcntl.flock(lock, fcntl.LOCK_EX if quiet else fcntl.LOCK_SH)
        return (yield)


def pytest_sessionfinish() -> None:
    _lock().unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache; what is exported for one test serves all others."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own inside that of the run
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def paint(folder: Path, per_class: int = 12, size: int = 32, mode: str = "RGB") -> Path:
    """Write a folder for each of two classes, with noisy images that are bright or dark."""
    rng = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 60)):
        (folder / label).mkdir(parents=True)
        for i in range(per_class):
            shape = (size, size + i % 3, 3) if mode == "RGB" else (size, size)
            pixels = rng.integers(level - 40, level + 40, shape).astype(np.uint8)
            Image.fromarray(pixels, mode).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 painted photos in two classes."""
    return paint(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def photo_data(photos: Path) -> Dataset:
    """The painted photos as a data set."""
    return load_data(f"imagefolder:{photos}")


@pytest.fixture(scope="session")
def debug_supernet(tmp_path_factory: pytest.TempPathFactory, photo_data: Dataset) -> Path:
    """A folder with an untrained supernet of swin:debug for the painted photos."""
    torch.manual_seed(0)
    space = load_space("swin:debug", photo_data.task)
    network = Network(space, space.largest).eval()
    folder = tmp_path_factory.mktemp("supernet")
    save_supernet(folder, network, photo_data, {})
    return folder


@pytest.fixture(scope="module")
def local_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """A Ray of two cores on this machine, for all tests of a file."""
    from nas.workers.cluster import import_ray, start

    ray = import_ray()
    ray.cloudpickle.register_pickle_by_value(request.module)  # workers cannot import tests
    start(ray, 2, ())
    yield
    ray.shutdown()


def made_up_table(space: SearchSpace, folder: Path) -> LatencyTable:
    """Write a table whose rows are a microsecond and ten nanoseconds a thousand MACs, and load it.

    It says that its calibration is exact and its rows are measured on this machine.
    """
    rows = {
        key: Row(key, *(1e-3 + 1e-8 * count_macs(layer).total,) * 2, 0.0, 0.0, 1)
        for key, layer in space_layers(space).items()
    }
    manifest = {
        "schema": 2,
        "space": space.name,
        **space.task.to_json(),
        "unit": "ms",
        "source": "measured",
        "date": "2000-01-01",
        "rounds": 1,
        "context": "isolated",
        "device": load_runtime("cpu").describe(),
        "layer_code": layer_code(space.family),
        "calibration": asdict(Calibration(1.0, 0.0, 2, 2, 1.0, 2.0, 0.0, 1.0, 1.0)),
    }
    LatencyTable(rows, manifest).save(folder)
    return LatencyTable.load(folder)


def searched(
    space: SearchSpace, folder: Path, data: Dataset, supernet: Path, evaluations: int
) -> Path:
    """A run of one budget whose networks take what is predicted, its weights alone exported."""
    table = made_up_table(space, folder / "table")
    trellis = table.trellis(space)
    with pytest.MonkeyPatch.context() as patch:
        measure_as_predicted(patch, table)
        export_weights_alone(patch)
        nas.search(
            round(trellis.fastest + trellis.slowest, 3), space=space.name, data=data.name,
            supernet=supernet, table=folder / "table", evaluations=evaluations, search_images=10,
            final_images=10,
            test_images=10, out=folder / "run",
        )  # fmt: skip
    return folder / "run"


def measure_as_predicted(
    monkeypatch: pytest.MonkeyPatch, table: LatencyTable, times: float = 1.0, noise: float = 0.0
) -> None:
    """Make the stopwatch show for every network what the table predicts of it, times a factor.

    Noise makes it less or more by up to that share, for the same network always by the same.
    """

    def measure(device, space, architectures, rounds, advance, kernel):
        advance(rounds)
        off = [1 + noise * (int(a.id, 16) % 201 / 100 - 1) for a in architectures]
        predicted = [times * x * table.predict(space, a) for a, x in zip(architectures, off)]
        return [Measurement([ms] * 3 * rounds, [], 1.0) for ms in predicted]

    monkeypatch.setattr("nas.latency.end_to_end.measure_fresh", measure)


def export_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a search export its winners as weights and no more: other formats take seconds each."""

    def export_weights(network, images, expected, folder, formats, **more):
        return export_network(network, images, expected, folder, ["safetensors"], **more)

    monkeypatch.setattr("nas.export.export_network", export_weights)
