"""The loop that trains a network, a supernet as well as a plain one.

In-place distillation (BigNAS, Yu et al., ECCV 2020): each step of a supernet trains the largest
network on the objective, and a few subnets (`nas.training.subnets`) on what it makes of the batch.
Small inputs come first: what an item looks like is learned where a step costs a sixteenth, where to
look is learned last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from nas.data import Dataset, Tensors
from nas.errors import RunError, VitnasError
from nas.network.network import Network
from nas.progress import bar, console
from nas.records import Journal
from nas.size import Size, each
from nas.space.architecture import Architecture
from nas.training.batches import batches, loading_processes
from nas.training.checkpoints import last_checkpoint, load_checkpoint, write_checkpoint
from nas.training.device import channels_last, faster_in_bf16
from nas.training.objectives import Made, Objective
from nas.training.recipe import Recipe
from nas.training.subnets import Subnets

_LOGGED = 20  # steps between two entries of the loss curve
_LOWER = "train anew with a lower --rate (learning_rate of nas.Recipe), or mend the data"


class DivergedError(VitnasError):
    """A loss or gradients that became infinite or no numbers; the last checkpoint is kept."""

    def __init__(self, step: int, rate: float, fix: str = _LOWER) -> None:
        self.step, self.rate = step, rate
        super().__init__(
            f"the loss or its gradient is no finite number at step {step} (learning rate "
            f"{rate:.2g}); the last checkpoint is kept",
            fix,
        )


class Trainer:
    """One training; everything random in a step derives from (seed, step), so it can resume."""

    def __init__(
        self,
        network: Network,
        data: Dataset,
        recipe: Recipe,
        objective: Objective,
        teacher: Network | None = None,
        bf16: bool = False,
        workers: int = 0,
    ) -> None:
        self.device = next(network.parameters()).device
        objective.begin(network, recipe.sizes())
        self.network, self.objective = network, objective.to(self.device)
        self.data, self.recipe, self.bf16 = data, recipe, bf16
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        parameters = self._parameters().values()
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=self.device.type == "cuda",
        )
        self.step, self.workers = 0, workers
        self.subnets = Subnets(network.space, recipe.subnets, recipe.seed)
        self.samples: Iterator[Tensors] | None = None  # of the steps to come, once one has begun

    def train_step(self) -> Tensor:
        """Train one step; returns the loss (a scalar) of the network as it was built.

        NaN stands also for gradients that are not finite. Nothing waits for either, so the weights
        are then lost.

        That network learns from the objective, and from the teacher if there is one. Subnets of a
        supernet then learn from what it made.
        """
        recipe, space, own = self.recipe, self.network.space, self.network.architecture
        phase = recipe.phase(self.step)
        size = recipe.size(self.step, space.largest.resolution)
        batch = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step)
        self.network.train()
        self.objective.train()

        made = self._made(self.network, own, batch, size)
        loss = self.objective.loss(made, batch)
        if self.teacher is not None:
            # Not under `no_grad`: layers would then write where they read, in one data type only.
            theirs = self._made(self.teacher, self.teacher.architecture, batch, size)
            loss = loss + self.objective.distil(made, theirs)
        loss.backward()  # type: ignore[no-untyped-call]
        if phase and own == space.largest:  # in the first phase there is nothing to distil yet
            target = tuple(x.detach() for x in made)
            for subnet in self.subnets.of(self.step):
                small = self._made(self.network, subnet, batch, size)
                self.objective.distil(small, target).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._parameters().values(), recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(self.network)
        self.step += 1
        return torch.where(norm.isfinite(), loss.detach(), math.nan)

    def _made(
        self, network: Network, architecture: Architecture, batch: Tensors, size: Size
    ) -> Made:
        """What one architecture makes of a batch whose inputs stand for the largest size."""
        space, recipe = network.space, self.recipe
        # An architecture that shrinks the input must shrink the small ones as well.
        resolutions = architecture.resolution, space.largest.resolution
        own = each(lambda side, part, whole: side * part // whole, size, *resolutions)
        takes = space.parts.takes
        batch = {**batch, takes: channels_last(space.parts.resized(batch[takes], own))}
        rng = Random(f"objective {recipe.seed} {self.step}")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            made: Made = self.objective(network, replace(architecture, resolution=own), batch, rng)
        return made

    def _batch(self) -> Tensors:
        """The samples of this step, as they were prepared beside the steps before."""
        if self.samples is None:
            self.samples = batches(
                self.data.train,
                self.recipe,
                self.network.space.largest.resolution,
                self.workers,
                first=self.step,
                pinned=self.device.type == "cuda",
            )
        loaded = next(self.samples)
        moved = {name: x.to(self.device, non_blocking=True) for name, x in loaded.items()}
        batch = self.data.prepare(moved)
        if self.data.augment and not self.objective.augments:
            batch = self.data.augment(batch, Random(f"crop {self.recipe.seed} {self.step}"))
        return batch

    def _parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name: the network's parameters, then those of the objective."""
        own = dict(self.network.named_parameters())
        own |= {f"objective.{n}": p for n, p in self.objective.named_parameters()}
        return {name: p for name, p in own.items() if p.requires_grad}

    def _names(self) -> list[str]:
        """Names of the parameters in the order in which the optimizer counts them."""
        named = self._parameters().items()
        return [n for n, p in named if p.ndim > 1] + [n for n, p in named if p.ndim <= 1]

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer moments by name, as one flat dict of tensors."""
        tensors = {f"weight/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"objective/{k}": v for k, v in self.objective.state_dict().items()}
        names = self._names()
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{key}/{names[i]}": value for key, value in moments.items()}
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from what `state` returned after so many steps."""
        if step > sum(self.recipe.steps()):
            raise ValueError(f"step {step} is beyond the end of the training")
        for kind, module in (("weight/", self.network), ("objective/", self.objective)):
            own = {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)}
            module.load_state_dict(own)
        state = self.optimizer.state_dict()
        state["state"] = {
            i: {
                key: tensors[f"{key}/{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors
            }
            for i, name in enumerate(self._names())
            if f"exp_avg/{name}" in tensors
        }
        self.optimizer.load_state_dict(state)
        self.step, self.samples = step, None


def fit(
    network: Network,
    data: Dataset,
    recipe: Recipe,
    objective: Objective,
    out: Path,
    teacher: Network | None = None,
    resume: bool = False,
    *,
    settings: Mapping[str, Any] | None = None,
    bf16: bool | None = None,
    checkpoint_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Train a network in place, with a checkpoint and the loss curve in the folder `out`.

    A network built at the largest architecture of its space is trained as a supernet, any other one
    alone; a `teacher` is a further network to learn from. Products are of bfloat16 where that is
    faster, unless `bf16` says. Returns what determined the training and
    how long it took; None if `stop` ended it early. A killed training goes on with `resume` from
    the last checkpoint (one every `checkpoint_s`) and ends with the same weights and loss curve on
    the same machine and thread count; it must have the same space, data, recipe, objective and
    `settings`, which name whatever else the weights depend on, such as those it starts from.
    """
    identity = {
        "space": network.space.name, "data": data.fingerprint, "recipe": recipe.to_json(),
        **(settings or {}), "objective": objective.name,
    }  # fmt: skip
    if network.architecture != network.space.largest:
        identity["architecture"] = network.architecture.id
    saved = last_checkpoint(out, resume)
    if saved and (differing := [k for k in identity if saved.get(k) != identity[k]]):
        raise RunError(
            f"{out} was trained with another {' and '.join(differing)}",
            "resume with the same options, or choose another --out",
        )
    if resume and not saved:
        console.print(f"no checkpoint is in {out} yet: the training begins anew", style="yellow")
    if saved:
        bf16 = saved["bf16"]
    elif bf16 is None:
        bf16 = faster_in_bf16(network, data)
    trainer = Trainer(network, data, recipe, objective, teacher, bool(bf16), loading_processes())
    if saved:
        load_checkpoint(out, saved, trainer.load_state)
    saved = {"step": 0, "seconds": 0.0, **(saved or {}), **identity, "bf16": bf16}
    with Journal(out / "loss.jsonl").locked():
        _loop(trainer, saved, out, checkpoint_s, stop)
    saved.pop("weights_fingerprint", None)
    return saved if trainer.step == sum(recipe.steps()) else None


def _loop(
    trainer: Trainer,
    saved: dict[str, Any],
    out: Path,
    checkpoint_s: float,
    stop: Callable[[], bool],
) -> None:
    """Train to the end, or until `stop`; keeps `saved` and the files in `out` up to date."""
    recipe, log = trainer.recipe, Journal(out / "loss.jsonl")
    log.keep(lambda record: isinstance(at := record.get("step"), int) and at <= trainer.step)
    started = last = time.monotonic()
    before_s = saved["seconds"]

    def keep() -> None:
        saved.update(step=trainer.step, seconds=before_s + time.monotonic() - started)
        write_checkpoint(out, saved, trainer.state())

    images_of = recipe.sizes()
    losses: list[Tensor] = []
    with bar("train", sum(images_of), "images") as advance:
        advance(sum(images_of[: trainer.step]))
        while trainer.step < len(images_of) and not stop():
            losses.append(trainer.train_step())
            at, phase, note = trainer.step, recipe.phase(trainer.step - 1), ""
            if at % _LOGGED == 0 or at == len(images_of):
                _check(losses, trainer)
                mean = float(torch.stack(losses).mean())
                log.append({"step": at, "canvas": phase, "loss": round(mean, 6)})
                losses, note = [], f"canvas {phase + 1}/3 loss {mean:.3f}"
            advance(images_of[at - 1], note)
            # Only between log entries, so that a resumed loss curve is the same.
            if at % _LOGGED == 0 and time.monotonic() - last > checkpoint_s:
                keep()
                last = time.monotonic()
    _check(losses, trainer)
    keep()


def _check(losses: Sequence[Tensor], trainer: Trainer) -> None:
    """Raise `DivergedError` unless the last losses are finite."""
    finite = torch.stack([*losses]).isfinite().tolist() if losses else []
    if not all(finite):
        step = trainer.step - len(finite) + finite.index(False)
        raise DivergedError(step + 1, trainer.recipe.rate(step))
