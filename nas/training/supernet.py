"""Supernets on disk: saved with a card, and loaded for a space and its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nas.data import Dataset
from nas.errors import VitnasError, WeightsError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.batch_norm import recalibrate
from nas.evaluation.score_task import require_hits_of
from nas.evaluation.zero_shot import projections
from nas.families import load_space
from nas.layers.elastic import inherit
from nas.network.calibration import calibrate
from nas.network.network import Network
from nas.progress import console
from nas.records import fingerprint, read_json, write_bytes, write_json
from nas.space.family import SearchSpace
from nas.tasks import load_task
from nas.text.encoder import has_texts
from nas.typed import MismatchError, decode, mapping

ASSETS = Path(__file__).parents[1] / "assets" / "supernets"
_STATISTICS_OF, _RANGES_OF = 256, 64  # training samples


def save_supernet(folder: Path, network: Network, data: Dataset, training: dict[str, Any]) -> None:
    """Write `weights.safetensors` (parameters in half precision) and `supernet.json`.

    Statistics of norms and ranges of int8 layers are those of the largest network.
    """
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(parameter.half())
            if not parameter.isfinite().all():
                raise WeightsError(
                    f"{name} holds values that half precision has not, at most 65504",
                    "train again with a lower learning rate or more weight decay",
                )
    settle(network, data)
    parameters = dict(network.named_parameters())
    weights = {
        k: (v.half() if k in parameters else v).detach().cpu().contiguous()
        for k, v in network.state_dict().items()
    }
    write_bytes(folder / "weights.safetensors", save(weights))
    space = network.space
    task = data.posed(space.task)
    evaluator = Evaluator(network, data, data.search, 500)
    percent = f"search_{evaluator.metric.key}"
    scores = {
        f"{size}_{percent}": evaluator.percent(own)
        for size, own in (("largest", space.largest), ("smallest", space.smallest))
        if task.labelled
    }
    card = {
        "space": space.base,
        **({"resolution": at} if (at := space.name.partition("@")[2]) else {}),
        "data": data.name,
        "data_fingerprint": data.fingerprint,
        **task.describe(),
        "mean": list(data.mean),
        "std": list(data.std),
        "fingerprint": fingerprint((folder / "weights.safetensors").read_bytes()),
        **scores,
        "search_images": evaluator.images,
        "training": training,
    }
    write_json(folder / "supernet.json", card)


def settle(network: Network, data: Dataset) -> None:
    """Give a trained network the statistics of its norms and the ranges of its int8 inputs.

    They are those of the first training samples at the size that it was built for.
    """
    space, size = network.space, network.architecture.resolution
    first = data.first(data.train, _STATISTICS_OF, space.largest.resolution)
    inputs = space.parts.resized(first[space.parts.takes], size)
    inputs = inputs.to(next(network.parameters()).device)
    if network.eval().batch_norms:
        recalibrate(network, inputs)
    calibrate(network, inputs[:_RANGES_OF])


@dataclass(frozen=True)
class _Test:
    """The score of the largest network on the test split."""

    images: int = field(metadata={"least": 1})
    percent: float = field(metadata={"key": "{}_percent", "least": 0, "most": 100})
    hits: str = ""

    def __post_init__(self) -> None:
        require_hits_of(self.hits, self.images)


@dataclass(frozen=True)
class _Card:
    """What `supernet.json` holds, besides its task."""

    space: str
    data: str
    data_fingerprint: str
    fingerprint: str
    search_images: int = field(metadata={"least": 1})
    training: dict[str, Any]


@dataclass(frozen=True)
class _ScoredCard(_Card):
    """What it holds where the task has a score."""

    largest: float = field(metadata={"key": "largest_search_{}_percent", "least": 0, "most": 100})
    smallest: float = field(metadata={"key": "smallest_search_{}_percent", "least": 0, "most": 100})
    largest_test: _Test = field(default=_Test(1, 0.0))


def supernet_folder(space_name: str, data: Dataset, words: bool = False) -> Path:
    """The shipped supernet of a space for a data set; `WeightsError` if there is none.

    With `words` the one that has learned from captions, of whatever data.
    """
    base = load_space(space_name).base
    how = "--objective clip" if words else f"--data {data.name}"
    fix = f"train one: vitnas train --space {base} {how} --out supernet"
    cards = {ASSETS / name: read_card(ASSETS / name) for name in shipped_names()}
    of_space = [folder for folder, card in cards.items() if card["space"] == base]
    if not of_space:
        raise WeightsError(f"no supernet is shipped for {space_name}", fix)
    for folder in of_space:
        if has_texts(folder) if words else cards[folder]["data"] == data.name:
            return folder
    what = "has not learned from captions" if words else f"is not for {data.name}"
    raise WeightsError(f"the shipped supernet of {space_name} {what}", fix)


def as_learned(data: Dataset, card: Mapping[str, Any]) -> Dataset:
    """Data with pictures normalised as a supernet knows them that has learned from others.

    One that has learned from labels knows no others.
    """
    if load_task(card).labelled or not (data.mean and card.get("mean")):
        return data
    channels = len(data.mean)

    def of_channels(values: Sequence[float]) -> tuple[float, ...]:
        """Statistics of colours for grey pictures are their mean, those of grey hold for all."""
        same = len(values) == channels
        return tuple(values) if same else (sum(values) / len(values),) * channels

    return replace(data, mean=of_channels(card["mean"]), std=of_channels(card["std"]))


def read_card(folder: Path, space_name: str = "") -> dict[str, Any]:
    """The card of a finished supernet, of this space if one is named; else `WeightsError`."""
    base = load_space(space_name).base if space_name else ""
    file = folder / "supernet.json"
    if not _is_file(file):
        stopped = _is_file(folder / "checkpoint.json")
        raise WeightsError(
            f"no finished supernet in {folder}",
            f"{'finish it' if stopped else 'train one'}: vitnas train --space "
            f"{base or 'FAMILY:PRESET'} --out {folder}{' --resume' if stopped else ''}",
        )
    try:
        card = read_json(file)
        task = load_task(mapping(card, "it"))
        decode(_ScoredCard if task.labelled else _Card, card, metric=task.metric.name)
    except (MismatchError, VitnasError) as error:
        why = error.message if isinstance(error, VitnasError) else str(error)
        why = why.removeprefix(f"{file} ")
        raise WeightsError(f"{file}: {why}", "restore it from a copy, or train again") from None
    if base and card["space"] != base:
        raise WeightsError(
            f"the supernet in {folder} has the space {card['space']}, not {base}",
            f"use --space {card['space']}, or give another supernet",
        )
    return dict(card)


def load_supernet(folder: Path, space_name: str, data: Dataset) -> tuple[Network, dict[str, Any]]:
    """The supernet in `folder` and its card; `WeightsError` if it is not of this space and data.

    Its weights must be those that the card is of, and numbers. One that learned without labels has
    a task that no data pose.
    """
    card = read_card(folder, space_name)
    task = load_task(card)
    theirs, task = task.describe(), data.posed(task)
    for key, own in task.describe().items():
        if own != theirs.get(key):
            raise WeightsError(
                f"the supernet in {folder} has the {key} {_shown(theirs.get(key))}, not "
                f"{_shown(own)}",
                f"use the data it was trained on ({card['data']}), or train another",
            )
    # Pictures that were learned from without labels may be others than those of a search.
    same_data = task.labelled or card["data"] == data.name
    if same_data and card["data_fingerprint"] != data.fingerprint:
        raise WeightsError(
            f"the images of {data.name} or their splits have changed since {folder} was trained, "
            "so that test images may have been trained on",
            "train again, or restore the images",
        )
    space = load_space(space_name, task)
    with _loading(folder):
        network = _filled(space, _weights(folder, card), card)
    return network.eval(), card


def start_from(network: Network, folder: Path) -> dict[str, Any]:
    """Give a network the weights of a supernet of its family that fit it; returns the other's card.

    Tensors fit by name and shape, whatever the supernet learned from; what it learned for each
    place of a picture of another size, such as positions, is resized. What a head has for other
    outputs, or as many of another meaning, starts anew, which stderr says. Raises `WeightsError`
    where nothing but a head fits.
    """
    card = check_family(folder, network.space.family)
    with _loading(folder):
        theirs = _weights(folder, card)
        ours = network.state_dict()
        alike = all(v.shape == ours[k].shape for k, v in theirs.items() if k in ours)
        if not alike and load_space(card["space"]).base == network.space.base:
            same_size = load_space(network.space.name, load_task(card))
            theirs = _filled(same_size, theirs, card).state_dict()
    fitting = {k: v for k, v in theirs.items() if k in ours and v.shape == ours[k].shape}
    heads = {layer.path for layer in network.space.head(network.space.largest)}
    if load_task(card).describe() != network.space.task.describe():
        outputs = projections(network.space)
        fitting = {name: tensor for name, tensor in fitting.items() if name not in outputs}
    learned = [name for name, _ in network.named_parameters()]
    if not {_path(name) for name in learned if name in fitting} - heads:
        raise WeightsError(
            f"no tensor of the supernet in {folder} ({card['space']}) fits {network.space.name}",
            f"give a supernet of {network.space.base}, or train without --init",
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            ours[name].copy_(tensor)
    if new := [name for name in learned if name not in fitting]:
        paths = list(dict.fromkeys(map(_path, new)))
        more = f" and {len(paths) - 4} more" if len(paths) > 5 else ""
        listed = ", ".join(paths[: 4 if more else 5]) + more
        console.print(f"{listed}: {len(new)} tensors start anew", style="dim", soft_wrap=True)
    return card


def shipped_names() -> list[str]:
    """The names of all supernets that ship."""
    return sorted(file.parent.name for file in ASSETS.glob("*/supernet.json"))


def folder_of(name: str) -> Path:
    """The folder of a supernet, which is named by its path, or by its name if it is a shipped one.

    A folder of the same name comes first.
    """
    path = Path(name)
    ships = len(path.parts) == 1 and _is_file(ASSETS / path / "supernet.json")
    return ASSETS / path if ships and not path.exists() else path


def is_supernet(name: str) -> bool:
    """Whether a training's `--init` names a supernet, finished or not."""
    return bool(name) and any(
        _is_file(folder_of(name) / file) for file in ("supernet.json", "checkpoint.json")
    )


def check_family(folder: Path, family: str) -> dict[str, Any]:
    """The card of a supernet of a family; `WeightsError` for one of another."""
    card = read_card(folder)
    if (theirs := load_space(card["space"]).family) != family:
        raise WeightsError(
            f"the supernet in {folder} is of the family {theirs} ({card['space']}), not {family}",
            f"give one of {family}, or train another --space",
        )
    return card


def _path(name: str) -> str:
    """The layer of a tensor of a network: `block3` of `layers.block3.mlp.fc1.weight`."""
    return name.split(".")[1]


def _weights(folder: Path, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a supernet in float32; within `_loading`."""
    content = (folder / "weights.safetensors").read_bytes()
    if fingerprint(content) != card["fingerprint"]:
        raise ValueError("these are not the weights that supernet.json was written for")
    weights = {name: tensor.float() for name, tensor in load(content).items()}
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{broken[0]} holds values that are no numbers")
    return weights


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Makes `WeightsError` of what goes wrong with the weights in a folder."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        file = folder / "weights.safetensors"
        raise WeightsError(f"cannot load {file}: {why}", "restore it, or train again") from None


def _filled(space: SearchSpace, weights: dict[str, Tensor], card: dict[str, Any]) -> Network:
    """The supernet of a space with these weights, which may have been trained at another size.

    Only what a family learns for each place of a picture depends on that, such as positions.
    """
    network = Network.empty(space, space.largest)
    own = network.state_dict()
    if all(x.shape == own[name].shape for name, x in weights.items() if name in own):
        network.load_state_dict(weights)
        return network
    at = card.get("resolution", "")
    trained = load_space(f"{space.base}@{at}" if at else space.base, space.task)
    large = Network.empty(trained, trained.largest)
    large.load_state_dict(weights)
    for path, module in network.layers.items():
        inherit(module, large.layers[path])
    return network


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a path may be, or in a folder that may not be read
        return False


def _shown(value: Any) -> str:
    """A value of a task, of many classes the first ones and their number."""
    if not isinstance(value, list) or len(value) <= 4:
        return str(value)
    return f"{', '.join(map(str, value[:3]))}, ... ({len(value)})"
