"""What is asked of a run: budgets by device, settings, tables, and its directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from nas.budget import Budget, alternatives
from nas.errors import RunError, UnknownNameError, UsageError
from nas.latency.library import find_table
from nas.records import Journal, read_object
from nas.report.saved_run import is_run, read_settings
from nas.runtimes import canonical_name, load_runtime
from nas.settings import DEVICE, Distribution, Settings

# What a run that ended at its very start may leave in its folder.
_REMAINS = (".settings.json.", ".candidates.jsonl.")


@dataclass(frozen=True)
class Request:
    """What is asked of a run.

    `described` holds what the devices that can be measured say of themselves; a device with a
    budget that is not there is only the label of a table. `given` are folders of tables by device.
    """

    settings: Settings
    folder: Path
    distribution: Distribution
    resume: bool
    described: dict[str, dict[str, Any]]
    given: dict[str, Path]

    @property
    def base(self) -> Path | None:
        """The directory of the run that this one starts from."""
        return Path(self.settings.source_run) if self.settings.source_run else None

    @property
    def kept(self) -> Path:
        """Where a run keeps the scores of the one that it started from."""
        return self.folder / "imported.jsonl"

    def table_name(self, device: str) -> str:
        """The folder of a device's table in the directory of a run."""
        if device == self.settings.device:
            return "table"
        return "table-" + "".join(c if c.isalnum() or c in "-." else "_" for c in device)


@dataclass(frozen=True)
class Asked:
    """The budgets of a request (ms by device), and the devices as they describe themselves.

    `described` and `given` are those of a `Request`.
    """

    budgets: tuple[dict[str, float], ...]
    described: dict[str, dict[str, Any]]
    given: dict[str, Path]


def read_budgets(
    budget: str | float | Budget | Sequence[str | float | Budget],
    device: str = DEVICE,
    table: str | Path | Sequence[str | Path] = (),
    quantile: float = Settings.quantile,
) -> Asked:
    """What is asked by budgets ("20ms", milliseconds, or `Budget`) and tables (`DEVICE=FOLDER`).

    `device` is that of budgets that name none. Raises `VitnasError` for a device that cannot be
    used, before anything is loaded; and for one that gives no times of single inferences, where the
    budget holds for a `quantile` of these.
    """
    several = [budget] if isinstance(budget, str | float | int | Budget) else budget
    wanted = [_budget(one) for one in several]
    wanted = [Budget(b.latency_ms, canonical_name(b.device or device)) for b in wanted]
    names = dict.fromkeys(b.device for b in wanted)
    searched = next(iter(alternatives(wanted, device)[0]))
    tables = _tables(table, searched, names)
    canonical, described = {}, {}
    for name in names:
        # Only a label for a table, or a device that can be measured?
        label = name in tables and name != canonical_name(device) and not _known(name)
        runtime = None if label else load_runtime(name)
        single = runtime is not None and runtime.single and not runtime.exact
        if quantile != Settings.quantile and not single:
            raise UsageError(
                f"{name} gives no times of single inferences, and so no quantile of them",
                "leave out --quantile: the budget then holds for what the device does give",
            )
        canonical[name] = name if runtime is None else runtime.device
        if runtime is not None:
            described[runtime.device] = runtime.describe()
    named = [Budget(b.latency_ms, canonical[b.device]) for b in wanted]
    given = {canonical[name]: folder for name, folder in tables.items()}
    return Asked(tuple(alternatives(named, device)), described, given)


def _budget(budget: str | float | Budget) -> Budget:
    if isinstance(budget, str):
        return Budget.parse(budget)
    return budget if isinstance(budget, Budget) else Budget(float(budget))


def _tables(
    given: str | Path | Sequence[str | Path], searched: str, names: Collection[str]
) -> dict[str, Path]:
    """Folders by device, each of the `names` that have a budget.

    `FOLDER` alone is that of `searched`, the device that is searched on. Devices and folders may
    both have a `=` in them. Raises `UsageError` for a table of no such device, and for two of one.
    """
    found: dict[str, Path] = {}
    for one in filter(None, map(str, [given] if isinstance(given, str | Path) else given)):
        name, folder = _split(one, searched, names)
        if name in found:
            raise UsageError(f"two tables are given for {name}", "give one --table a device")
        found[name] = Path(folder)
    return found


def _split(text: str, searched: str, names: Collection[str]) -> tuple[str, str]:
    """The device and the folder that a `--table` means."""
    if "=" not in text or _is_folder(text):
        return searched, text
    parts = text.split("=")
    splits = [("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
    named = [(canonical_name(name), folder) for name, folder in splits]
    fitting = [(name, folder) for name, folder in named if name in names]
    if not fitting:
        with suppress(UnknownNameError):
            find_table(text)  # DEVICE/SPACE, whose device has options
            return searched, text
        raise UsageError(
            f"--table {text} is of no device with a budget, and no table itself",
            f"write DEVICE=FOLDER; devices with a budget: {', '.join(names)}",
        )
    there = [own for own in fitting if _is_folder(own[1])]
    return (there or fitting)[0]


def _is_folder(name: str) -> bool:
    """Whether a folder holds a table; False for a path that cannot be."""
    return os.path.exists(Path(name) / "manifest.toml")


def _known(device: str) -> bool:
    try:
        load_runtime(device)
    except UnknownNameError:
        return False
    return True


@contextmanager
def claimed_folder(
    settings: Settings, out: str | Path | None, resume: bool = False
) -> Iterator[Path]:
    """The directory of this run, which no other process can have meanwhile.

    The one named; else the one to `resume`, a run of these budgets that is not finished; else a
    new one. It is removed again if nothing was written. Raises `RunError` for a directory that is
    something else, or in use.
    """
    unfinished = _unfinished(settings) if resume and out is None else None
    folder = unfinished or (_new_folder(settings) if out is None else Path(out))
    try:
        with Journal(folder / "candidates.jsonl").locked():
            if out is not None:
                _check_named(folder, resume)
            yield folder
    finally:
        if out is None:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def _check_named(folder: Path, resume: bool) -> None:
    """Raise `RunError` unless a folder is empty, or a run that is to be resumed.

    A run that ended before anything was computed is begun anew.
    """
    if is_run(folder):
        if not resume and not _only_begun(folder):
            raise RunError(f"{folder} exists already", "add --resume, or choose another --out")
        if not resume:
            _clear(folder)
    elif any(not p.name.startswith(_REMAINS) for p in folder.iterdir()):
        raise RunError(f"{folder} exists and is not a run", "choose another --out")


def _only_begun(folder: Path) -> bool:
    """Whether a folder holds what a run writes down before it computes anything, and no more."""
    names = {p.name for p in folder.iterdir() if not p.name.startswith(_REMAINS)}
    tables = {name for name in names if name == "table" or name.startswith("table-")}
    try:
        read_settings(folder / "settings.json")
    except RunError:
        return False
    return names <= {"settings.json", "imported.jsonl", *tables}


def _clear(folder: Path) -> None:
    """Delete what a run has begun with, the settings last."""
    for table in (folder / "table", *folder.glob("table-*")):
        shutil.rmtree(table, ignore_errors=True)
    for name in ("imported.jsonl", "settings.json"):
        (folder / name).unlink(missing_ok=True)


def _new_folder(settings: Settings) -> Path:
    """A folder that was not there before, made now: two runs never choose the same."""
    times = "-".join(str(Budget(b[settings.device])) for b in settings.budgets)
    name = f"{settings.space.replace(':', '-')}-{times}"
    for number in count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(
                f"cannot make {folder}: {error.strerror or error}", "choose another --out"
            ) from None
        break
    return folder


def _unfinished(settings: Settings) -> Path | None:
    """Of the runs in `runs/` that search this space for these budgets, the latest not finished."""
    asked, found = settings.to_json(), []
    for file in Path("runs").glob("*/settings.json"):
        if (file.parent / "report.html").exists():  # the last step
            continue
        with suppress(RunError):  # settings that cannot be read are not these
            before = read_object(file)
            if all(before.get(key) == asked[key] for key in ("space", "budgets")):
                found.append(file)
    return max(found, key=lambda file: file.stat().st_mtime).parent if found else None
