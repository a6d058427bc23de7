"""The page of a training: its loss curve, what the loss means, and what shows what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.image import imsave
from torch import Tensor

from nas.data import Dataset, load_data
from nas.records import Journal, write_text
from nas.report import pictures
from nas.report.report import embedded, environment
from nas.training.checkpoints import last_checkpoint, load_checkpoint
from nas.training.objectives import find_objective, load_objective
from nas.training.supernet import load_supernet, read_card


def write_training_report(folder: Path, data: Dataset) -> Path:
    """Write `training.html` into the folder of a supernet of these data.

    What the objective shows of it needs the objective's own weights, which are in the last
    checkpoint: where that is gone, the page has none of it.
    """
    card = read_card(folder)
    training = card["training"]
    curve = [r for r in Journal(folder / "loss.jsonl").read() if {"step", "loss"} <= r.keys()]
    page = (
        environment()
        .get_template("training.html.jinja")
        .render(
            card=card,
            training=training,
            starts=list(_starts(training)),
            seen=_seen(training),
            meaning=find_objective(str(training.get("objective", "supervised"))).meaning,
            curve=pictures.svg(pictures.losses(curve)) if curve else "",
            shown=_shown(folder, card, data),
        )
    )
    path = folder / "training.html"
    write_text(path, page)
    return path


def report_training(folder: Path) -> Path:
    """Write the page of a training on the data that its supernet names."""
    return write_training_report(folder, load_data(read_card(folder)["data"]))


def _starts(training: Mapping[str, Any]) -> Any:
    """What it started from, the last start first: objectives of the trainings before."""
    while isinstance(before := training.get("before"), Mapping):
        yield before
        training = before


def _seen(training: Mapping[str, Any]) -> int:
    """How many samples a training has seen, in whole batches."""
    recipe = training.get("recipe", {})
    pairs = zip(recipe.get("images", ()), recipe.get("batches", ()))
    return sum(images // batch * batch for images, batch in pairs)


def _shown(folder: Path, card: Mapping[str, Any], data: Dataset) -> dict[str, str]:
    """What the objective shows of the trained network, as elements of a page by their captions."""
    saved = last_checkpoint(folder, resume=True)
    if saved is None:
        return {}
    network, _ = load_supernet(folder, card["space"], data)
    objective = load_objective(card["training"]["objective"], network.space)
    objective.take(folder)
    objective.begin(network, [])  # no step will follow

    def restore(tensors: dict[str, Tensor], _: int) -> None:
        own = {n.removeprefix("objective/"): x for n, x in tensors.items() if n.startswith("obj")}
        objective.load_state_dict(own)

    load_checkpoint(folder, saved, restore)
    found = objective.eval().pictures(network, data)
    return {
        caption: _drawn(picture, folder, i) for i, (caption, picture) in enumerate(found.items())
    }


def _drawn(picture: Tensor, folder: Path, number: int) -> str:
    """An element of a page; the picture is also left beside it as a PNG."""
    path = folder / "pictures" / f"{number}.png"
    path.parent.mkdir(exist_ok=True)
    colours = picture.expand(*picture.shape[:2], 3).contiguous().numpy()
    imsave(path, colours.clip(0, 1))
    return embedded(path.read_bytes())
