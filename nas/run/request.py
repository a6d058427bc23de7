"""What is asked of a run: budgets by device, settings, tables, and its directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.budget import Budget, alternatives
from nas.errors import RunError, UnknownNameError
from nas.report.saved_run import is_run
from nas.runtimes import load_runtime
from nas.settings import DEVICE, Distribution, Settings


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
) -> Asked:
    """What is asked by budgets ("20ms", milliseconds, or `Budget`) and tables (`DEVICE=FOLDER`).

    `device` is that of budgets that name none. Raises `VitnasError` for a device that cannot be
    used, before anything is loaded.
    """
    several = [budget] if isinstance(budget, str | float | int | Budget) else budget
    wanted = [_budget(one) for one in several]
    tables = _tables(table, device)
    canonical, described = {}, {}
    for name in dict.fromkeys(b.device or device for b in wanted):
        if name in tables and name != device and not _known(name):
            canonical[name] = name  # only a label for a table
            continue
        runtime = load_runtime(name)
        canonical[name] = runtime.device
        described[runtime.device] = runtime.describe()
    named = [Budget(b.latency_ms, canonical[b.device or device]) for b in wanted]
    given = {canonical.get(name, name): folder for name, folder in tables.items()}
    return Asked(tuple(alternatives(named, device)), described, given)


def _budget(budget: str | float | Budget) -> Budget:
    if isinstance(budget, str):
        return Budget.parse(budget)
    return budget if isinstance(budget, Budget) else Budget(float(budget))


def _tables(given: str | Path | Sequence[str | Path], device: str) -> dict[str, Path]:
    """Folders by device: `FOLDER` is that of the device that is searched on."""
    found = {}
    for one in [given] if isinstance(given, str | Path) else given:
        name, _, folder = str(one).rpartition("=")
        if str(one):
            found[name or device] = Path(folder)
    return found


def _known(device: str) -> bool:
    try:
        load_runtime(device)
    except UnknownNameError:
        return False
    return True


def run_folder(settings: Settings, out: str | Path | None, resume: bool) -> Path:
    """The directory of this run: the one named, or a new one, or the last unfinished one."""
    if out is not None:
        folder = Path(out)
        known = is_run(folder)
        if folder.exists() and not known and not _empty(folder):
            raise RunError(f"{folder} exists and is not a run", "choose another --out")
        if known and not resume:
            raise RunError(f"{folder} exists already", "add --resume, or choose another --out")
        return folder
    times = "-".join(str(Budget(b[settings.device])) for b in settings.budgets)
    name = f"{settings.space.replace(':', '-')}-{times}"
    runs = [p.parent for p in Path("runs").glob(f"{name}*/settings.json")]
    unfinished = [run for run in runs if not (run / "report.html").exists()]  # the last step
    if resume and unfinished:
        return max(unfinished, key=lambda run: (run / "settings.json").stat().st_mtime)
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def _empty(folder: Path) -> bool:
    """Whether nothing is in a folder but what a run that was killed at its start leaves there."""
    return folder.is_dir() and all(p.name.startswith(".settings.json.") for p in folder.iterdir())
