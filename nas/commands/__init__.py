"""The commands of the command line, in files by subject.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nas.commands.options import option_of
from nas.errors import RunError, UsageError, VitnasError
from nas.extensions import load_member
from nas.progress import Terminal
from nas.records import require_writable
from nas.settings import DEVICE, Settings
from nas.size import Size

if TYPE_CHECKING:
    from nas.latency.table import LatencyTable
    from nas.report.saved_run import SavedRun
    from nas.runtimes import Runtime
    from nas.space.architecture import Architecture
    from nas.space.family import SearchSpace

app = typer.Typer(
    name="vitnas",
    help="The most accurate vision transformer within a latency budget, measured on your device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 an error with its fix, 2 wrong usage, 3 nothing fits the budget. "
    "Add --debug to any command to see where an error came from.",
)
out = Terminal(width=None if sys.stdout and sys.stdout.isatty() else 80)

Space = Annotated[str, option_of(Settings, "space")]
Data = Annotated[str, option_of(Settings, "data")]
Supernet = Annotated[str, option_of(Settings, "supernet")]
Seed = Annotated[int, option_of(Settings, "seed")]
Device = Annotated[str, typer.Option(help="Device to run on; see `vitnas list devices`.")]
DeviceOfRun = Annotated[
    str,
    typer.Option(
        "--device",
        help=f"Device to run on (`vitnas list devices`); default: that of the run, else {DEVICE}.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Classes = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=1_000_000,
        help="Classes of the task; default: 10, or of masks 11, for named models as published.",
    ),
]


def find_space(name: str, classes: int | None) -> Any:
    """The space of a name; its task is its own, with this number of classes if one is given."""
    from nas.families import load_space
    from nas.tasks import load_task

    space = load_space(name)
    if classes is None:
        return space
    return load_space(name, load_task({"task": space.task.name, "classes": classes}))


def set_defaults(context: typer.Context, values: Mapping[str, str]) -> None:
    """Make these values, by parameter, the defaults of options that are not read yet."""
    context.default_map = {**(context.default_map or {}), **values}


def _take_usual(context: typer.Context, task: str) -> None:
    """Make the space and the data of a task the defaults of the other options."""
    if task:
        set_defaults(context, load_member("task", "nas.tasks", task, "TASK").usual)


Task = Annotated[
    str,
    typer.Option(
        help="What networks do: classification or segmentation; another --space and --data are "
        "then the default.",
        callback=_take_usual,
        is_eager=True,
        expose_value=False,
    ),
]


def _take_usual_data(context: typer.Context, objective: str) -> str:
    """Make the data that an objective usually learns from the default of `--data`.

    Those of a supernet to go on from come first, in whatever order the options are given.
    """
    if objective != _SUPERVISED and not context.params.get("adapt"):
        from nas.training.objectives import find_objective

        with suppress(VitnasError):  # which the command says itself
            set_defaults(context, find_objective(objective).usual)
    return objective


_SUPERVISED = "supervised"
Objective = Annotated[
    str,
    typer.Option(
        help="What it learns from: supervised, mae, contrastive, simclr, clip, or a MODULE of your "
        "own.",
        callback=_take_usual_data,
        is_eager=True,
    ),
]


def find_network(
    what: str, space_name: str, device: str, classes: int | None, resolution: Size | None = None
) -> tuple[SearchSpace, Architecture, Runtime, LatencyTable | None]:
    """What ARCH (JSON or its file), RUN, FOLDER (exported) or MODEL stands for.

    That is its space, the architecture, the device that is named (else that of the run, else the
    usual one), and what is known of its latency there.
    """
    from nas.latency.library import known_table
    from nas.report.saved_run import SavedRun, is_run
    from nas.runtimes import load_runtime

    named = bool(what) and not what.lstrip().startswith("{")
    run = SavedRun.load(Path(what)) if named and is_run(Path(what)) else None
    device = device or (run.record.device if run else DEVICE)
    runtime = load_runtime(device)
    space, architecture = _architecture(what, space_name, classes, run, resolution)
    if run and device == run.record.device and not resolution:
        return space, architecture, runtime, run.table
    return space, architecture, runtime, known_table(space, runtime)


def _architecture(
    what: str,
    space_name: str,
    classes: int | None,
    run: SavedRun | None,
    resolution: Size | None,
) -> tuple[SearchSpace, Architecture]:
    from dataclasses import replace

    from nas.deployment import CARD, Card

    is_json = what.lstrip().startswith("{")
    path = Path("" if is_json else what)
    if is_json or path.is_file():
        space = find_space(space_name, classes)
        architecture = space.parse(what if is_json else path.read_text(errors="replace"))
    elif run:
        space, architecture = run.space, run.architecture(run.record.answers[0].winner)
    elif (path / CARD).exists():
        card = Card.read(path)
        space, architecture = card.loaded_space, card.chosen
    elif "/" in what or what.endswith(".json"):
        raise UsageError(
            f"there is no network in {what}" if path.is_dir() else f"there is no {what}",
            "give a run directory, an exported folder, or architecture JSON or its file",
        )
    else:
        space = find_space(what or space_name, classes)
        architecture = space.largest
    if resolution:
        space = space.at(resolution)
        architecture = replace(architecture, resolution=resolution)
    return space, architecture


def figure_path(figure: str) -> Path | None:
    """The file that `--out` names for a picture; `UsageError` for a format that cannot be drawn."""
    if figure and not figure.lower().endswith((".png", ".svg", ".pdf")):
        raise UsageError(f"--out is a .png, .svg or .pdf file, got {figure!r}", "e.g. figure.png")
    if not figure:
        return None
    path = Path(figure)
    require_writable(path)  # said before anything is measured
    return path


def draw(path: Path | None, picture: str, *data: Any) -> None:
    """Draw a picture of `nas.report.pictures` into a file, if one is asked for.

    It comes last: what was measured is printed by then, and a disk that is full loses none of it.
    """
    if path is None:
        return
    from nas.report import pictures

    try:
        pictures.save(getattr(pictures, picture)(*data), path)
    except RunError as error:
        print(f"vitnas: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def grid_of(*columns: str) -> Table:
    """A table without lines; the first column is left-aligned, the others to the right."""
    grid = Table(box=None, header_style="dim", pad_edge=False)
    for i, column in enumerate(columns):
        last = i == len(columns) - 1  # where it is narrow, only the last column folds
        grid.add_column(column, justify="right" if i else "left", no_wrap=not last, overflow="fold")
    return grid


def print_json(data: Any) -> None:
    """Print parsed JSON on one line of the standard output, at once."""
    print(json.dumps(data), flush=True)
