"""The commands from images to a winner and its answers."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.budget import Budget, alternatives, readable_ms
from nas.commands import (
    Data,
    Device,
    Json,
    Objective,
    Seed,
    Space,
    Supernet,
    Task,
    app,
    figure_path,
    grid_of,
    out,
    print_json,
    set_defaults,
)
from nas.commands.options import with_options
from nas.errors import UsageError, VitnasError
from nas.report import wording
from nas.settings import DEVICE, Distribution, Settings, check_seed

if TYPE_CHECKING:
    from nas.run_record import Answer, FineTuning, RunRecord


_MOST = 4096  # inputs at once
_FEW = 200  # samples: an accuracy of fewer says so, its standard error is above three points


class Format(StrEnum):
    """File formats of an exported network."""

    safetensors = "safetensors"
    pt2 = "pt2"
    onnx = "onnx"
    open_clip = "open-clip"


@app.command(epilog="Example: vitnas search --budget 20ms")
@with_options(
    "budget task space data device confidence quantile max_params max_macs min_params min_macs "
    "supernet table run resume source_run fresh evaluations search_images final_images "
    "test_images score reference_images searcher sampler batch surrogate race_error workers "
    "ray_address gpus timeout_s reuse_mb images seed as_json",
    Settings,
    Distribution,
)
def search(
    *,
    budget: Annotated[
        list[str],
        typer.Option(
            metavar="[DEVICE=]TIME",
            help="Latency budget with its unit, e.g. 20ms. Several of one device are answered one "
            "by one; those of several devices hold together.",
        ),
    ],
    task: Task = "",
    device: Device = DEVICE,
    table: Annotated[
        list[str] | None,
        typer.Option(metavar="[DEVICE=]FOLDER", help="Latency table to use, one a device."),
    ] = None,
    run: Annotated[
        str,
        typer.Option("--out", metavar="RUN", help="Run directory; default: a new one in runs/."),
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped.")
    ] = False,
    images: Annotated[
        int,
        typer.Option(
            "--finetune",
            metavar="IMAGES",
            min=0,
            max=10**9,
            help="Then train the winner alone on so many images.",
        ),
    ] = 0,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Search the most accurate architecture within a latency budget."""
    # What is wrong with the options is said before anything is loaded.
    budgets = [Budget.parse(text) for text in budget]
    source = settings["source_run"]
    if source and not (Path(source) / "settings.json").exists():
        raise UsageError(f"{source} is not a run", "give --from the directory of a run")
    names = {f.name for f in fields(Distribution)}
    Distribution(**{name: settings[name] for name in names})
    own = {name: value for name, value in settings.items() if name not in names}
    Settings(tuple(alternatives(budgets, device)), **own)
    from nas.run.main import search_networks

    record = search_networks(
        budgets, device=device, table=table or (), out=run or None, resume=resume, **settings
    )
    if not as_json:
        for answer in record.answers:
            _print_answer(answer, record)
        _print_agreement(record)
    tuned = _finetuned(Path(record.run_dir), images, record.seed) if images else None
    if as_json:
        name = record.metric.name
        return print_json(record.to_json() | ({"finetuned": tuned.to_json(name)} if tuned else {}))
    if tuned:
        _print_finetuned(tuned, record)
    parts = ", ".join(f"{k} {v:.0f} s" for k, v in record.seconds.items() if k != "total")
    out.print(f"{record.seconds['total']:.0f} s in all: {parts}")
    out.print(f"report: {record.run_dir}/report.html", soft_wrap=True)


def _finetuned(run: Path, images: int, seed: int) -> FineTuning:
    """The winner of a run after training alone, which a run that is resumed has behind it."""
    from nas.run.finetuning import finetune, shorter

    done = finetune(run, recipe=shorter(images, seed), resume=True)
    assert done is not None  # nothing stops it early here
    return done


def _print_finetuned(found: FineTuning, record: RunRecord) -> None:
    what = f"test {record.metric.heading}"
    grid = grid_of("network", record.verb, f"inherited {what}", f"fine-tuned {what}")
    for own in found.networks:
        percents = (own.inherited_test_percent, own.test_percent)
        cells = ["-" if percent is None else f"{percent:.1f} %" for percent in percents]
        grid.add_row(own.name, f"{readable_ms(own.measured_ms)} ms", *cells)
    out.print(grid)


def _print_answer(answer: Answer, record: RunRecord) -> None:
    if len(record.answers) > 1:
        out.print(f"within {answer.budget_ms:g} ms", style="bold")
    metric = record.metric.heading
    splits = ("search", "final", "test") if record.final_images else ("search", "test")
    columns = (*splits[:-1], f"test {metric}")
    grid = grid_of("network", "predicted", record.verb, record.tail, *columns)
    for i, c in enumerate([answer.winner, *answer.baselines]):
        times = (c.predicted_ms, c.measured_ms, c.tail_ms)
        cells = [f"{readable_ms(ms)} ms" for ms in times]
        by_split = {"search": c.search_percent, "final": c.final_percent, "test": c.test_percent}
        percents = [by_split[split] for split in splits]
        cells += ["-" if percent is None else f"{percent:.1f} %" for percent in percents]
        name = f"{c.name}, itself dense" if i == 0 and wording.is_dense(answer) else c.name
        grid.add_row(name, *cells, style="bold" if i == 0 else "")
    out.print(grid)
    if compared := wording.lead(answer):
        out.print(f"the winner is {compared}.{wording.better(answer)}")
    if min(record.search_images, record.test_images) < _FEW:
        out.print(
            f"few samples: {record.search_images} of the search split, {record.test_images} of "
            "the test split",
            style="yellow",
        )
    for device, other in answer.winner.other_devices.items():
        if other.measured_ms is None:
            how = "predicted, not measured"
        else:
            how = f"{other.verb} {readable_ms(other.measured_ms)} ms"
        out.print(
            f"{device}: {readable_ms(other.predicted_ms)} ms predicted ({how}) "
            f"of {other.budget_ms:g} ms"
        )
    q = answer.quality
    if q.bound is not None:
        out.print(
            f"by the surrogate (error {q.error:.1f} points) nothing that fits has more than "
            f"{q.bound:.1f} %, {q.gap:.1f} above the winner; 10 % more budget adds "
            f"{q.gain_10_percent:.1f}",
            style="dim",
        )


def _print_agreement(record: RunRecord) -> None:
    """What the measured networks say of the table, and of the budgets."""
    if record.agreement:
        out.print(wording.agreed(record.agreement, record), style="dim")
        if line := wording.unused(record.agreement, record):
            out.print(line, style="dim")


def _take_trained(context: typer.Context, folder: str) -> str:
    """Make space, data and objective of a supernet the defaults of the other options."""
    if folder:
        from nas.training.objectives import starts_elsewhere
        from nas.training.supernet import folder_of, read_card

        with suppress(VitnasError):  # which the command raises
            card = read_card(folder_of(folder))
            at = f"@{card['resolution']}" if "resolution" in card else ""
            set_defaults(context, {"space": card["space"] + at, "data": card["data"]})
            own = card["training"].get("objective", "supervised")
            if not starts_elsewhere(own):  # which would replace what the supernet has learned
                set_defaults(context, {"objective": own})
    return folder


@app.command(
    epilog="Example: vitnas train --space swin:micro --data imagefolder:photos --out supernet"
)
def train(
    task: Task = "",
    space: Space = Settings.space,
    data: Data = Settings.data,
    folder: Annotated[str, typer.Option("--out", help="Folder of the supernet.")] = "supernet",
    images: Annotated[
        int | None,
        typer.Option(
            min=200,
            max=10**9,
            help="Training samples (images) in all; default: 88,768, with --adapt 19,200.",
        ),
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            help="What to start from: a checkpoint (a file, or a model on timm's hub), or another "
            "supernet of the family, whatever it learned from: its folder, or its name in `vitnas "
            "list supernets`."
        ),
    ] = "",
    adapt: Annotated[
        str,
        typer.Option(
            help="Folder of a supernet to go on from: pruned networks get better. Its space, data "
            "and objective are then the default.",
            callback=_take_trained,
            is_eager=True,
        ),
    ] = "",
    teacher: Annotated[
        str, typer.Option(help="Folder of another supernet: its largest network teaches this one.")
    ] = "",
    objective: Objective = "supervised",
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-9,
            max=1.0,
            help="Highest learning rate; default: 0.002, with --adapt 0.001.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a stopped training.")
    ] = False,
    seed: Seed = Settings.seed,
    as_json: Json = False,
) -> None:
    """Train the supernet of a space.

    Each step trains the largest network, and a few subnets on what it answers.
    """
    from nas.data import load_data
    from nas.progress import console
    from nas.records import read_json
    from nas.report.training import write_training_report
    from nas.tasks import load_task
    from nas.training.device import check_device
    from nas.training.recipe import ADAPTATION, Recipe
    from nas.training.train import check_training
    from nas.training.train import train as run_train

    check_device(device)
    check_seed(seed)
    check_training(space, Path(folder), resume, init, objective, adapt, teacher)
    recipe = replace(ADAPTATION if adapt else Recipe(), seed=seed)
    recipe = recipe.scaled(images or sum(recipe.images))
    recipe = replace(recipe, learning_rate=rate or recipe.learning_rate)
    images_of = load_data(data)
    console.print(images_of.summary(), soft_wrap=True)  # before hours of training
    where = run_train(
        space, images_of, Path(folder), recipe, device, resume, init, objective, adapt, teacher
    )
    card = read_json(where / "supernet.json")
    page = write_training_report(where, images_of)
    if as_json:
        return print_json(card)
    trained = load_task(card)
    score = f"search_{trained.metric.key}"
    if trained.labelled:
        out.print(
            f"{where}: largest {card[f'largest_{score}']:.1f} %, smallest "
            f"{card[f'smallest_{score}']:.1f} % on {card['search_images']} samples of the search "
            "split"
        )
    else:
        out.print(f"{where}: {trained.name}, learned without labels", soft_wrap=True)
    out.print(f"report: {page}", soft_wrap=True)


@app.command(epilog="Example: vitnas finetune runs/swin-micro-20ms")
def finetune(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    images: Annotated[
        int, typer.Option(min=16, max=10**9, help="Training images of each network.")
    ] = 6_400,
    rate: Annotated[float, typer.Option(min=1e-9, max=1.0, help="Highest learning rate.")] = 3e-4,
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="Train the best dense network as long.")
    ] = True,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a stopped training.")
    ] = False,
    seed: Seed = Settings.seed,
    as_json: Json = False,
) -> None:
    """Train the winner of a run alone.

    The best dense network is trained as long, for comparison.
    """
    check_seed(seed)
    from nas.report.saved_run import SavedRun
    from nas.run.finetuning import finetune as run_finetune
    from nas.run.finetuning import shorter

    recipe = replace(shorter(images, seed), learning_rate=rate)
    found = run_finetune(run, recipe=recipe, dense=dense, resume=resume)
    assert found is not None  # nothing stops it early here
    record = SavedRun.load(run).record
    if as_json:
        return print_json(found.to_json(record.metric.name))
    _print_finetuned(found, record)
    out.print(f"{found.seconds:.0f} s; report: {run}/report.html", soft_wrap=True)


@app.command(epilog="Example: vitnas report runs/swin-micro-20ms runs/swin-micro-12ms")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run directories, or the folder of one supernet."),
    ],
    page: Annotated[str, typer.Option("--out", help="Page for several runs.")] = "comparison.html",
    as_json: Json = False,
) -> None:
    """Write the report of runs, several side by side, or that of a training."""
    from nas.report.report import write_report
    from nas.report.training import report_training
    from nas.training.supernet import is_supernet

    if len(runs) == 1 and is_supernet(str(runs[0])):
        path = report_training(runs[0])
    else:
        path = write_report(runs, None if len(runs) == 1 else Path(page))
    if as_json:
        return print_json({"report": str(path)})
    out.print(f"report: {path}", soft_wrap=True)


@app.command(epilog="Example: vitnas export runs/swin-micro-20ms --format onnx")
def export(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FOLDER|ARCH|MODEL",
            help="A run, a folder of export or quantize, JSON or its file, or a named model.",
        ),
    ],
    formats: Annotated[list[Format], typer.Option("--format", help="May be given several times.")],
    folder: Annotated[str, typer.Option("--out", help="Folder; default: that of the run.")] = "",
    batch: Annotated[
        str, typer.Option(metavar="COUNT|any", help="Inputs at once; default: as measured, or 1.")
    ] = "",
    space: Space = Settings.space,
    data: Annotated[
        str, typer.Option(help="Data set whose samples a model or an architecture takes.")
    ] = "",
    supernet: Supernet = Settings.supernet,
    weights: Annotated[
        str, typer.Option(help="Checkpoint of a named model: a file, or a name on timm's hub.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Write a network as files that run without vitnas.

    Each file is loaded again and compared with the weights.
    """
    if batch not in ("", "any") and not (batch.isdecimal() and 1 <= int(batch[:9]) <= _MOST):
        raise UsageError(
            f"--batch is a count from 1 to {_MOST} or any, got {batch!r}", "e.g. --batch 8"
        )
    from nas.export import export_again
    from nas.saved_network import load_saved

    saved = load_saved(what, space=space, data=data, supernet=supernet, weights=weights)
    if not folder and saved.folder is None:
        raise UsageError(f"{what[:80]} has no folder of its own", "add --out FOLDER")
    where = Path(folder) if folder else saved.folder
    assert where is not None
    count = saved.device.get("batch", 1) if batch in ("", "any") else int(batch)
    differences: dict[str, float] = {}
    if programs := [f.value for f in formats if f is not Format.open_clip]:
        differences = export_again(
            saved.network, saved.card, where, programs,
            batch=count, any_batch=batch == "any", device=saved.device,
        )  # fmt: skip
    if Format.open_clip in formats:
        from nas.training.open_clip import WEIGHTS
        from nas.training.supernet import folder_of

        source = folder_of(supernet) if supernet else None
        differences[WEIGHTS] = saved.write_open_clip(where, source)
    if as_json:
        return print_json({"folder": str(where), "largest_difference": differences})
    for name, difference in differences.items():
        out.print(
            f"{where / name} (largest difference of a logit {difference:.1g})", soft_wrap=True
        )


@app.command(epilog="Example: vitnas predict runs/swin-micro-20ms photo.jpg --out looked.png")
def predict(
    what: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A run, or a folder of export.")
    ],
    pictures: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Picture files.", show_default=False)
    ],
    top: Annotated[int, typer.Option(min=1, help="Answers to each, the best ones.")] = 5,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL,LABEL...",
            help="Labels in words instead of its classes, of a network that learned from captions.",
        ),
    ] = None,
    figure: Annotated[
        str,
        typer.Option(
            "--out",
            help="Draw where it looked: a .png, .svg or .pdf file; or a folder for pictures with "
            "the answers of a segmenter painted over them.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Say what is in pictures, and where it looked."""
    named = Path(figure)
    folder = named if figure and (named.is_dir() or not named.suffix) else None
    path = None if folder else figure_path(figure)
    from nas.prediction import looked, write_overlays
    from nas.prediction import predict as run_predict
    from nas.report import pictures as drawing

    found = run_predict(what, pictures, top=top, labels=() if labels is None else labels.split(","))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.save(looked(found), path)
    if folder:
        write_overlays(found, folder)
    if as_json:
        return print_json({"predictions": [prediction.to_json() for prediction in found]})
    for prediction in found:
        out.print(f"{prediction.file}: {prediction.line}", soft_wrap=True)
    if path:
        out.print(f"figure: {path}", soft_wrap=True)
    if folder:
        out.print(f"overlays: {folder}", soft_wrap=True)
