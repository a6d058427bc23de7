"""Supernets: trained, saved with a card, and loaded for a space and its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from nas.data import Dataset
from nas.errors import WeightsError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.batch_norm import recalibrate
from nas.families import load_space
from nas.network.calibration import calibrate
from nas.network.network import Network
from nas.records import fingerprint, read_json, write_bytes, write_json
from nas.tasks import load_task
from nas.training.objectives import load_objective
from nas.training.pretrained import load_weights
from nas.training.trainer import Recipe, fit, last_checkpoint

ASSETS = Path(__file__).parents[1] / "assets" / "supernets"


def train(
    space_name: str,
    data: Dataset,
    out: Path,
    recipe: Recipe,
    device: str = "cpu",
    resume: bool = False,
    init: str = "",
    objective: str = "supervised",
    checkpoint_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train the supernet of a space; returns the folder with `weights.safetensors`.

    `init` is a checkpoint of the largest architecture (see `nas.load_weights`) to start from; its
    heads and channels are reordered by importance first, so that small subnets inherit the best.
    `objective` is what it learns from, a file in `nas/training/objectives`. `resume` goes on with a
    training that was stopped; see `fit`.
    """
    space = load_space(space_name, data.task)
    torch.manual_seed(recipe.seed)
    network = Network(space, space.largest).to(device)
    if last_checkpoint(out, resume) is None and init:
        load_weights(network, init)
        network.reorder()
    training = fit(
        network, data, recipe, load_objective(objective, space), out, resume=resume,
        settings={"init": init}, checkpoint_s=checkpoint_s, stop=stop,
    )  # fmt: skip
    if training is not None:
        save_supernet(out, network, data, training)
    return out


def save_supernet(folder: Path, network: Network, data: Dataset, training: dict[str, Any]) -> None:
    """Write `weights.safetensors` (parameters in half precision) and `supernet.json`.

    Statistics of norms and ranges of int8 layers are those of the largest network.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half())
    first = data.first(data.train, 256, network.architecture.resolution)
    inputs = first[network.space.parts.takes].to(next(network.parameters()).device)
    if network.batch_norms:
        recalibrate(network, inputs)
    calibrate(network, inputs[:64])
    parameters = dict(network.named_parameters())
    weights = {
        k: (v.half() if k in parameters else v).detach().cpu().contiguous()
        for k, v in network.state_dict().items()
    }
    write_bytes(folder / "weights.safetensors", save(weights))
    evaluator = Evaluator(network, data, data.search, 500)
    percent = f"search_{evaluator.metric.key}"
    card = {
        "space": network.space.base,
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        **data.task.describe(),
        "mean": list(data.mean),
        "std": list(data.std),
        "fingerprint": fingerprint((folder / "weights.safetensors").read_bytes()),
        f"largest_{percent}": evaluator.percent(network.space.largest),
        f"smallest_{percent}": evaluator.percent(network.space.smallest),
        "search_images": evaluator.images,
        "training": training,
    }
    write_json(folder / "supernet.json", card)


def supernet_folder(space_name: str, data: Dataset) -> Path:
    """The shipped supernet of a space for a data set; `WeightsError` if there is none."""
    base = load_space(space_name).base
    folder = ASSETS / base.replace(":", "-")
    fix = f"train one: vitnas train --space {base} --data {data.name} --out supernet"
    if not (folder / "supernet.json").exists():
        raise WeightsError(f"no supernet is shipped for {space_name}", fix)
    if read_json(folder / "supernet.json")["data"] != data.name:
        raise WeightsError(f"the shipped supernet of {space_name} is not for {data.name}", fix)
    return folder


def load_supernet(folder: Path, space_name: str, data: Dataset) -> tuple[Network, dict[str, Any]]:
    """The supernet in `folder` and its card; `WeightsError` if it is not of this space and data."""
    if not (folder / "supernet.json").exists():
        fix = f"finish it: vitnas train --space {space_name} --out {folder} --resume"
        raise WeightsError(f"no finished supernet in {folder}", fix)
    card = read_json(folder / "supernet.json")
    theirs = load_task(card).describe()
    for what, want, got in (
        ("space", load_space(space_name).base, card["space"]),
        *((key, own, theirs.get(key)) for key, own in data.task.describe().items()),
    ):
        if want != got:
            raise WeightsError(
                f"the supernet in {folder} has the {what} {got}, not {want}",
                f"use --space {card['space']} and the data it was trained on, or train another",
            )
    if card["data_fingerprint"] != data.fingerprint:
        raise WeightsError(
            f"the images of {data.name} have changed since the supernet in {folder} was trained, "
            "so that test images may have been trained on",
            "train again, or restore the images",
        )
    space = load_space(space_name, data.task)
    network = Network.empty(space, space.largest)
    try:
        weights = load_file(folder / "weights.safetensors")
        network.load_state_dict({k: v.float() for k, v in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"cannot load {folder}/weights.safetensors: {str(error).splitlines()[0]}",
            "restore the file, or train again",
        ) from None
    return network.eval(), card
