"""Training, saving and loading of supernets.

Sandwich rule and in-place distillation (BigNAS, Yu et al., ECCV 2020): each step trains the largest
network on the labels, the smallest and random ones on its output. Every subnet draws its own window
schedule (sparsity-aware adaptation, SparseViT, CVPR 2023, section 3.2). Small canvases come first:
what an item looks like is learned where a step costs a sixteenth, where to look is learned last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nas.data import Dataset, Tensors
from nas.errors import RunError, UnknownNameError, VitnasError, WeightsError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.batch_norm import recalibrate
from nas.families import load_space
from nas.network.calibration import calibrate
from nas.network.network import Network
from nas.progress import bar
from nas.records import Journal, fingerprint, read_json, write_bytes, write_json
from nas.space.architecture import Architecture
from nas.tasks import load_task
from nas.training.pretrained import load_weights

ASSETS = Path(__file__).parents[1] / "assets" / "supernets"


@dataclass(frozen=True)
class Recipe:
    """How a supernet is trained; the defaults made the shipped one.

    `images` are those seen on canvases of a quarter, a half and the whole of the largest
    resolution, in this order, and `batches` their batch sizes.
    """

    images: tuple[int, int, int] = (143_000, 96_200, 32_000)
    batches: tuple[int, int, int] = (64, 32, 32)
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    clip_norm: float = 1.0
    random_subnets: int = 1
    seed: int = 0

    def scaled(self, images: int) -> Recipe:
        """The same recipe with another total number of images."""
        total = sum(self.images)
        a, b, c = (max(batch, n * images // total) for n, batch in zip(self.images, self.batches))
        return replace(self, images=(a, b, c))

    def steps(self) -> list[int]:
        return [n // batch for n, batch in zip(self.images, self.batches)]

    def phase(self, step: int) -> int:
        """0, 1 or 2: which canvas this step is on."""
        ends = [sum(self.steps()[: i + 1]) for i in range(2)]
        return sum(step >= end for end in ends)

    def rate(self, step: int) -> float:
        total = sum(self.steps())
        warm = max(1, int(total * self.warmup))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


class Trainer:
    """One training; everything random in a step derives from (seed, step), so it can resume."""

    def __init__(self, network: Network, data: Dataset, recipe: Recipe, bf16: bool) -> None:
        self.network, self.data, self.recipe, self.bf16 = network, data, recipe, bf16
        self.device = next(network.parameters()).device
        decay = [p for p in network.parameters() if p.ndim > 1]
        plain = [p for p in network.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.step = 0

    def train_step(self) -> float:
        """One step; returns the loss of the network as built, which learns from the labels.

        A supernet also trains the smallest and random subnets on its output (the sandwich); a plain
        network trains alone.
        """
        recipe, space, own = self.recipe, self.network.space, self.network.architecture
        phase = recipe.phase(self.step)
        full = space.largest.resolution
        canvas = full if phase == 2 else full // (4, 2)[phase]
        batch, task = self._batch(canvas, recipe.batches[phase]), space.task
        rng = Random(f"{recipe.seed} {self.step}")
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(self.step)
        self.network.train()

        outputs = self._run(batch, own, canvas)
        loss = task.loss(outputs, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if phase and own == space.largest:  # in the first phase there is nothing to distil yet
            target = outputs.detach()
            drawn = [space.draw(rng) for _ in range(recipe.random_subnets)]
            for subnet in (space.smallest, *drawn):
                output = self._run(batch, subnet, canvas)
                task.distillation(output, target).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def _run(self, batch: Tensors, architecture: Architecture, canvas: int) -> Tensor:
        # An architecture that shrinks the input must shrink the small canvases as well.
        space = self.network.space
        resolution = canvas * architecture.resolution // space.largest.resolution
        architecture = replace(architecture, resolution=resolution)
        inputs = space.parts.resized(batch[space.parts.takes], resolution)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.network(inputs, architecture).float()  # type: ignore[no-any-return]

    def _batch(self, canvas: int, size: int) -> Tensors:
        split = self.data.train
        first = self.step * size
        epoch, offset = divmod(first, split.size)
        order: Sequence[int] = range(split.size)
        if split.size < 10**7:  # an endless split is already in random order
            generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
            order = torch.randperm(split.size, generator=generator).tolist()
        picked = [order[(offset + i) % split.size] for i in range(size)]
        batch = self.data.prepare(split.batch(picked, canvas))
        if self.data.augment:
            batch = self.data.augment(batch, Random(f"crop {self.recipe.seed} {self.step}"))
        return {name: x.to(self.device) for name, x in batch.items()}

    def _names(self) -> list[str]:
        """Names of the parameters in the order in which the optimizer counts them."""
        named = list(self.network.named_parameters())
        return [n for n, p in named if p.ndim > 1] + [n for n, p in named if p.ndim <= 1]

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer moments by name, as one flat dict of tensors."""
        tensors = {f"weight/{k}": v for k, v in self.network.state_dict().items()}
        names = self._names()
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{key}/{names[i]}": value for key, value in moments.items()}
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        self.network.load_state_dict(
            {k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")}
        )
        names = self._names()
        state = self.optimizer.state_dict()
        state["state"] = {
            i: {
                key: tensors[f"{key}/{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in tensors
            }
            for i, name in enumerate(names)
            if f"exp_avg/{name}" in tensors
        }
        self.optimizer.load_state_dict(state)
        self.step = step


def faster_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products beat float32 ones here, by measurement."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.randn(1024, 192, dtype=dtype), torch.randn(192, 768, dtype=dtype)
        times = []
        for _ in range(9):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        return sorted(times)[4]

    return seconds(torch.bfloat16) < 0.8 * seconds(torch.float32)


def check_device(name: str) -> None:
    """Training runs on `cpu`, `cuda` or `cuda:N`; raises `VitnasError` for what is not there."""
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UnknownNameError("training device", name, ["cpu", "cuda"])
    if name != "cpu" and not torch.cuda.is_available():
        raise VitnasError("torch sees no CUDA device", "use --device cpu, or install a CUDA build")


def train(
    space_name: str,
    data: Dataset,
    out: Path,
    recipe: Recipe,
    device: str = "cpu",
    resume: bool = False,
    init: str = "",
    checkpoint_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train the supernet of a space; returns the folder with `weights.safetensors`.

    `init` is a checkpoint of the largest architecture (see `nas.load_weights`) to start from; its
    heads and channels are reordered by importance first, so that small subnets inherit the best.
    A killed training goes on with `resume=True` from the last checkpoint (one a minute) and ends
    with the same weights and loss curve on the same machine and thread count.
    """
    space = load_space(space_name, data.task)
    torch.manual_seed(recipe.seed)
    network = Network(space, space.largest).to(device)
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recipe).items()}
    identity = {"space": space_name, "data": data.fingerprint, "recipe": settings, "init": init}
    progress_file = out / "checkpoint.json"
    if out.exists() and any(out.iterdir()) and not resume:
        raise RunError(f"{out} exists already", "add --resume to go on, or choose another --out")
    if resume and progress_file.exists():
        saved = read_json(progress_file)
        if differing := [k for k in identity if saved.get(k) != identity[k]]:
            raise RunError(
                f"{out} was trained with another {' and '.join(differing)}",
                "resume with the same options, or choose another --out",
            )
        trainer = Trainer(network, data, recipe, saved["bf16"])
        trainer.load_state(
            load_file(out / f"checkpoint-{saved['step']}.safetensors"), saved["step"]
        )
    else:
        saved = {
            **identity,
            "step": 0,
            "seconds": 0.0,
            "bf16": faster_in_bf16(torch.device(device)),
        }
        if init:
            load_weights(network, init)
            network.reorder()
        trainer = Trainer(network, data, recipe, saved["bf16"])
    log = Journal(out / "loss.jsonl")
    log.keep(lambda record: record["step"] <= trainer.step)
    total, losses = sum(recipe.steps()), []
    started = last_saved = time.monotonic()
    before_s = float(saved["seconds"])

    def checkpoint() -> None:
        nonlocal last_saved
        name = f"checkpoint-{trainer.step}.safetensors"
        write_bytes(out / name, save(trainer.state()))
        saved.update(step=trainer.step, seconds=before_s + time.monotonic() - started)
        write_json(progress_file, saved)  # from here on the new checkpoint counts
        for old in out.glob("checkpoint-*.safetensors"):
            if old.name != name:
                old.unlink()
        last_saved = time.monotonic()

    images_of = [recipe.batches[recipe.phase(s)] for s in range(total)]
    with bar("train", sum(images_of), "images") as advance:
        advance(sum(images_of[: trainer.step]))
        while trainer.step < total and not stop():
            losses.append(trainer.train_step())
            at = trainer.step
            note = ""
            if at % 20 == 0 or at == total:
                mean = sum(losses) / len(losses)
                log.append({"step": at, "canvas": recipe.phase(at - 1), "loss": round(mean, 6)})
                losses, note = [], f"canvas {recipe.phase(at - 1) + 1}/3 loss {mean:.3f}"
            advance(images_of[at - 1], note)
            # Only between log entries, so that a resumed loss curve is the same.
            if at % 20 == 0 and time.monotonic() - last_saved > checkpoint_s:
                checkpoint()
    checkpoint()
    if trainer.step == total:
        save_supernet(out, network, space_name, data, {**identity, **saved})
    return out


def save_supernet(
    folder: Path, network: Network, space_name: str, data: Dataset, training: dict[str, Any]
) -> None:
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
