"""Where latency tables are: those that ship, and those that were measured on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from nas.errors import TableError, UnknownNameError
from nas.latency.protocols import PROTOCOL
from nas.latency.table import LatencyTable
from nas.progress import console
from nas.records import fingerprint
from nas.runtimes import Runtime
from nas.space.family import SearchSpace
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
    code = layer_code(space.family)
    identity = fingerprint(
        runtime.describe(), code, runtime.lowering, PROTOCOL, space.task.to_json()
    )
    device = "".join(c if c.isalnum() or c in "-." else "_" for c in runtime.device)
    return cache_folder() / device / f"{space.name.replace(':', '-')}-{identity}"


def known_table(space: SearchSpace, runtime: Runtime) -> LatencyTable | None:
    """The table of this device for this space that was measured here or ships; else None."""
    folder = table_folder(space, runtime)
    if (folder / "manifest.toml").exists():
        return LatencyTable.load(folder)
    described = runtime.describe()
    for manifest in sorted(
        shipped_folder().glob(f"*/{space.name.replace(':', '-')}/manifest.toml")
    ):
        table = LatencyTable.load(manifest.parent)
        try:
            table.check(space, described)
        except TableError:
            continue
        if table.task == space.task:
            return table
    return None


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
