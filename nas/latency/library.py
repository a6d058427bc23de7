"""Where latency tables are: those that ship, and those that were measured on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import platformdirs

from nas.errors import TableError, UnknownNameError, VitnasError
from nas.families import load_space
from nas.latency.protocols import PROTOCOL
from nas.latency.table import LatencyTable
from nas.progress import console
from nas.records import fingerprint
from nas.runtimes import Runtime, load_runtime
from nas.space.family import SearchSpace
from nas.space.task import Task
from nas.versions import layer_code


def cache_folder() -> Path:
    """Where tables that were measured on this machine are kept: in the user's cache directory."""
    return Path(platformdirs.user_cache_dir("vitnas")) / "tables"


def shipped_folder() -> Path:
    """Where the tables that ship with vitnas are."""
    import latency_tables

    return Path(next(iter(latency_tables.__path__)))


def table_folder(space: SearchSpace, runtime: Runtime) -> Path:
    """The folder in the cache for the table of a device, a space, and today's layer code."""
    return _cached(space.name, space.task, runtime)


def _cached(space: str, task: Task, runtime: Runtime) -> Path:
    code = layer_code(space.partition(":")[0])
    identity = fingerprint(runtime.describe(), code, runtime.lowering, PROTOCOL, task.to_json())
    device = "".join(c if c.isalnum() or c in "-." else "_" for c in runtime.device)
    return cache_folder() / device / f"{space.replace(':', '-')}-{identity}"


def known_table(space: SearchSpace, runtime: Runtime) -> LatencyTable | None:
    """The table of this device for this space that was measured here or ships; else None."""
    return next((table for _, table in _known(space, runtime)), None)


def _known(space: SearchSpace, runtime: Runtime) -> Iterator[tuple[Path, LatencyTable]]:
    """The folder and the table of a device for a space: in the cache, else among those shipped."""
    folder = table_folder(space, runtime)
    if (folder / "manifest.toml").exists():
        yield folder, LatencyTable.load(folder)
        return
    described = runtime.describe()
    for manifest in sorted(
        shipped_folder().glob(f"*/{space.name.replace(':', '-')}/manifest.toml")
    ):
        table = LatencyTable.load(manifest.parent)
        with suppress(TableError):
            table.check(space, described)
            if table.task == space.task:
                yield manifest.parent, table


def is_taken(folder: Path, table: LatencyTable) -> bool | None:
    """Whether a search on this machine takes the table in a folder, without being told to.

    None for a device with an address, which is not connected to for this.
    """
    name, space = str(table.manifest["device"]["name"]), str(table.manifest["space"])
    if "://" in name:
        return None
    if table.altered:
        return False  # it is refused
    try:
        runtime = load_runtime(name)
        if not runtime.exact:
            return bool(folder == _cached(space, table.task, runtime))
        return folder == next(_known(load_space(space, table.task), runtime), (None,))[0]
    except (VitnasError, KeyError):  # no such device here, or a table of others without a task
        return False


def find_table(name: str) -> LatencyTable:
    """The table in a folder, or the one that `vitnas list tables` shows as DEVICE/SPACE."""
    if os.path.exists(Path(name) / "manifest.toml"):  # False for a path that cannot be
        return LatencyTable.load(Path(name))
    tables = sorted((t for _, t in saved_tables()), key=lambda t: (t.current, t.manifest["date"]))
    known = {f"{t.manifest['device']['name']}/{t.manifest['space']}": t for t in tables}
    if name in known:
        return known[name]
    raise UnknownNameError("table", name, known, "(or give its folder)")


def saved_tables() -> Iterator[tuple[Path, LatencyTable]]:
    """Every finished table and its folder: those that ship, then those in the cache.

    Damaged ones are left out, with a line on the console.
    """
    for root in (shipped_folder(), cache_folder()):
        for manifest in sorted(root.glob("*/*/manifest.toml")):
            try:
                yield manifest.parent, LatencyTable.load(manifest.parent)
            except TableError as error:
                console.print(f"left out: {error}", style="yellow")
