"""Shared pieces: small image folders, debug spaces, a supernet that takes milliseconds."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from nas.data import Dataset, load_data
from nas.elastic import Network
from nas.family import load_space, space_names
from nas.supernet import save_supernet

# A first example may build what the others share, and the machine may be busy.
settings.register_profile("vitnas", deadline=None)
settings.load_profile("vitnas")

DEBUG_SPACES = [name for name in space_names() if name.endswith(":debug")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests run on two cores beside each other; one that is `quiet`, whose times matter, alone."""
    name = f"vitnas-tests-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    with (Path(tempfile.gettempdir()) / name).open("w") as lock:
        quiet = item.get_closest_marker("quiet") is not None
        fcntl.flock(lock, fcntl.LOCK_EX if quiet else fcntl.LOCK_SH)
        return (yield)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's latency tables."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def paint(folder: Path, per_class: int = 12, size: int = 32, mode: str = "RGB") -> Path:
    """A folder of class folders: squares of two brightnesses, a few pixels of noise."""
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
    return paint(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def photo_data(photos: Path) -> Dataset:
    return load_data(f"imagefolder:{photos}")


@pytest.fixture(scope="session")
def debug_supernet(tmp_path_factory: pytest.TempPathFactory, photo_data: Dataset) -> Path:
    """A folder with an untrained supernet of swin:debug for the painted photos."""
    torch.manual_seed(0)
    space = load_space("swin:debug")
    network = Network(space, space.largest, len(photo_data.classes)).eval()
    folder = tmp_path_factory.mktemp("supernet")
    save_supernet(folder, network, space.name, photo_data, {})
    return folder
