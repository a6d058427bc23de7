"""The training of a supernet: what it starts from and learns from, until it is saved."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from nas.data import Dataset
from nas.errors import UnknownNameError, UsageError, WeightsError
from nas.families import load_space
from nas.network.network import Network
from nas.space.task import Task
from nas.training.checkpoint_files import read_checkpoint
from nas.training.checkpoints import last_checkpoint
from nas.training.objectives import find_objective, learned_task, load_objective, task_of
from nas.training.pretrained import load_weights
from nas.training.recipe import Recipe
from nas.training.supernet import (
    check_family,
    folder_of,
    is_supernet,
    load_supernet,
    read_card,
    save_supernet,
    shipped_names,
    start_from,
)
from nas.training.trainer import fit


def check_training(
    space_name: str,
    out: Path,
    resume: bool,
    init: str,
    objective: str,
    adapt: str = "",
    teacher: str = "",
) -> None:
    """Raise what can be said of a training before its images are read."""
    space = load_space(space_name)
    if init and adapt:
        raise UsageError(
            "a training starts from a checkpoint or from a supernet, not from both",
            "leave out --init or --adapt",
        )
    if adapt:
        read_card(folder_of(adapt), space_name)
    if teacher:
        read_card(folder_of(teacher))
        if not find_objective(objective).needs_labels:
            raise UsageError(
                f"a teacher teaches its answers to labels, of which {objective} knows nothing",
                "leave out --teacher, or start from its weights with --init",
            )
    learned = learned_task(objective, space.task)
    with torch.device("meta"):
        load_objective(objective, load_space(space_name, learned))
    if is_supernet(init):
        check_family(folder_of(init), space.family)
    elif last_checkpoint(out, resume) is None and init:
        if get_close_matches(init, shipped := shipped_names(), cutoff=0.9):
            raise UnknownNameError("supernet", init, shipped)
        read_checkpoint(init)


def _named(task: Task) -> str:
    return f"{task.name} ({task.outputs} outputs)" if task.outputs else task.name


def train(
    space_name: str,
    data: Dataset,
    out: Path,
    recipe: Recipe,
    device: str = "cpu",
    resume: bool = False,
    init: str = "",
    objective: str = "supervised",
    adapt: str = "",
    teacher: str = "",
    checkpoint_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train the supernet of a space; returns the folder with `weights.safetensors`.

    `init` is a checkpoint of the largest architecture (see `nas.load_weights`) to start from; its
    heads and channels are reordered by importance first, so that small subnets inherit the best. It
    may also be the folder of a supernet of the same family, whatever that learned from: see
    `start_from`.
    Or `adapt` is the folder of a supernet of this space and these data, to go on from, usually by
    the recipe `ADAPTATION`; it is left as it is. `teacher` is the folder of a supernet of any space
    on these data, whose largest network the one here learns from besides the labels.
    `objective` is what it learns from, a file in `nas/training/objectives`. `resume` goes on with a
    training that was stopped; see `fit`.
    """
    space = load_space(space_name, task_of(objective, data))
    torch.manual_seed(recipe.seed)
    network = Network(space, space.largest).to(device)
    learned = load_objective(objective, space)
    learned.prepare(network)
    if adapt or is_supernet(init):
        learned.take(folder_of(adapt or init))
    learned.study(data)
    settings = {"init": init, **learned.starts}
    before: dict[str, Any] = {}
    if is_supernet(init):
        card = start_from(network, folder_of(init))
        settings["init_fingerprint"] = card["fingerprint"]
        before["before"] = card["training"]
    elif last_checkpoint(out, resume) is None and init:
        load_weights(network, init)
        network.reorder()
    if adapt:
        trained, card = load_supernet(folder_of(adapt), space_name, data)
        if trained.space.task != space.task:
            raise WeightsError(
                f"the supernet in {adapt} is for {_named(trained.space.task)}, and {objective} "
                f"trains networks for {_named(space.task)}",
                f"go on with --objective {card['training'].get('objective', 'supervised')}, or "
                f"start from it with a new head: vitnas train --init {adapt}",
            )
        settings["adapt"] = card["fingerprint"]
        before["before"] = card["training"]
        network.load_state_dict(trained.state_dict())
    taught = None
    if teacher and not space.task.labelled:
        raise UsageError(
            f"{objective} learns vectors, which those of a teacher say nothing about",
            "leave out --teacher",
        )
    if teacher:
        card = read_card(folder_of(teacher))
        taught = load_supernet(folder_of(teacher), card["space"], data)[0].to(device)
        settings["teacher"] = card["fingerprint"]
    training = fit(
        network, data, recipe, learned, out, taught, resume,
        settings=settings, checkpoint_s=checkpoint_s, stop=stop,
    )  # fmt: skip
    if training is not None:
        learned.keep(out)
        save_supernet(out, network, data, training | before)
    return out
