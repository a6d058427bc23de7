"""What an exported network takes and gives, said in its folder, so that nothing else is needed.

`preprocess.json` holds a `Card` and, under `files`, the batch and data type of each file; ONNX
files and safetensors carry the card inside. Beside them stand examples that need torch or ONNX
Runtime, and a page with what the measured latency needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, Template
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nas.data import Dataset
from nas.errors import RunError, VitnasError, WeightsError
from nas.families import load_space
from nas.network.inputs import Images
from nas.network.network import Network
from nas.preprocessing import PictureReader, normalised
from nas.records import fingerprint, read_json
from nas.size import Size, sides
from nas.space.architecture import Architecture, at_precision
from nas.space.family import LARGEST, SearchSpace
from nas.tasks import load_task
from nas.typed import MismatchError, decode, encode, mapping
from nas.versions import installed

CARD, WEIGHTS = "preprocess.json", "weights.safetensors"
ONNX, PT2 = "model.onnx", "model.pt2"
OUTPUTS = "outputs"  # what the output of every exported network is called
SINCE = "1.17"  # the oldest ONNX Runtime that loads an exported file
_FILTERS = Image.Resampling.__members__
OPSET, IR_VERSION = 20, 9  # of ONNX, as that version knows them


@dataclass(frozen=True)
class Pictures:
    """How a picture file becomes an input.

    The reader makes pixels of it, of the size `side`, which are divided by 255 and normalised, and
    then resized to `input_side` (bilinear and anti-aliased) where that is another.
    """

    reader: PictureReader
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: Size
    input_side: Size

    def __post_init__(self) -> None:
        """Refuse what no data set has."""
        reader = self.reader
        if reader.mode not in ("L", "RGB") or reader.resample.upper() not in _FILTERS:
            raise ValueError(f"no reader has {reader.mode!r} and {reader.resample!r}")
        if not 0 < reader.crop <= 1 or not min(self.std, default=0) > 0:
            raise ValueError("crop must be from 0 to 1, and std above 0")
        if not len(self.mean) == len(self.std) == reader.channels:
            raise ValueError(f"mean and std must have {reader.channels} values, one a channel")
        own = (*sides(self.side), *sides(self.input_side))
        if not all(0 < side <= LARGEST for side in own):
            raise ValueError(f"sides must be from 1 to {LARGEST}")

    def read(self, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """Picture files as pixels in [0, 1] and as inputs, both (n, 3, *input_side)."""
        read = [self.reader.pixels(path, self.side) for path in paths]
        pixels = torch.from_numpy(np.stack(read))
        shown = pixels.float().expand(-1, 3, -1, -1) / 255
        both = shown, normalised(pixels, self.mean, self.std)
        seen, inputs = (Images().resized(x, self.input_side).contiguous() for x in both)
        return seen.clamp(0, 1), inputs


@dataclass(frozen=True)
class Port:
    """An input of a network: its name, and the shape of one sample."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Card:
    """What an exported network is, what it takes, and what its outputs mean.

    `task` is what the task says of itself, e.g. the names of classes. `pictures` is None where
    inputs are no pictures, or nobody knows how they were made.
    """

    space: str
    architecture: dict[str, Any]
    task: dict[str, Any]
    input: Port
    pictures: Pictures | None

    @classmethod
    def of(cls, space: SearchSpace, architecture: Architecture, data: Dataset | None) -> Card:
        """The card of a network that takes the samples of a data set, if one is known."""
        if architecture not in space:
            space = space.with_int8()
        parts, pictures = space.parts, None
        if data is not None and data.reader is not None and parts.takes == Images.takes:
            largest, own = space.largest.resolution, architecture.resolution
            pictures = Pictures(data.reader, data.mean, data.std, largest, own)
        task = space.task if data is None else data.posed(space.task)
        takes = Port(parts.takes, space.example(architecture))
        choices = json.loads(architecture.to_json())
        return cls(space.name, choices, task.describe(), takes, pictures)

    def to_json(self) -> dict[str, Any]:
        """The content of `preprocess.json`, without the files."""
        data = {**encode(self), **self.task, "output": {"name": OUTPUTS}}
        if self.pictures is not None:
            reader = data["pictures"].pop("reader")
            data["pictures"] |= {**reader, "channels": self.pictures.reader.channels}
        return data

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of an exported network; `RunError` for a folder that holds none."""
        path = folder / CARD
        if not path.exists():
            fix = "give a run, or a folder that this version of vitnas exported or quantized into"
            if (folder / "supernet.json").exists():
                fix = f"it is a supernet: vitnas search --supernet {folder} makes a run of it"
            raise RunError(f"{folder} holds no {CARD}", fix)
        return cls.parse(read_json(path), str(path))

    @classmethod
    def parse(cls, data: Any, where: str) -> Card:
        """The card that `to_json` made; `where` it stands is for the `RunError`."""
        fix = "restore it, or export the network again"
        try:
            data = {**mapping(data, "it")}
            if isinstance(pictures := data.get("pictures"), dict):
                data["pictures"] = {**pictures, "reader": pictures}
            card = decode(cls, {**data, "task": data})
            card = replace(card, task=load_task(card.task).describe())
            if card.input.shape != card.loaded_space.example(card.chosen):
                raise MismatchError("input.shape is not that of the architecture")
        except VitnasError as error:
            raise RunError(f"{where}: {error.message}", error.fix or fix) from None
        except MismatchError as error:
            raise RunError(f"{where}: {error}", fix) from None
        return card

    @property
    def loaded_space(self) -> SearchSpace:
        """The space of the network, with its task."""
        return load_space(self.space, load_task(self.task))

    @property
    def chosen(self) -> Architecture:
        """The architecture of the network."""
        return self.loaded_space.parse(json.dumps(self.architecture))


def load_network(folder: Path, space: SearchSpace, architecture: Architecture) -> Network:
    """The network in a folder with its weights; `WeightsError` if they are not its.

    They must be those that `preprocess.json` was written for, which early versions did not write.
    """
    network, file = Network.empty(space, architecture), folder / WEIGHTS
    try:
        check_content(file)
        network.load_state_dict(load_file(file))
        if any(not tensor.isfinite().all() for tensor in network.state_dict().values()):
            raise ValueError("it holds values that are no numbers")
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"cannot load {file}: {str(error).partition(chr(10))[0]}",
            "write it again: vitnas export, or vitnas search with the options of the run and "
            "--resume",
        ) from None
    return network


def check_content(file: Path) -> None:
    """Raise `ValueError` if a file is not what `preprocess.json` beside it was written for."""
    if not (file.parent / CARD).exists():
        return
    own = described(file.parent)[0].get(file.name)
    if own and own.fingerprint and own.fingerprint != fingerprint(file.read_bytes()):
        raise ValueError(f"it is not the file that {CARD} was written for")


@dataclass(frozen=True)
class Written:
    """The batch (None: any) and the data type that an exported file takes, and its fingerprint."""

    batch: int | None
    dtype: str
    fingerprint: str = ""


def described(folder: Path) -> tuple[dict[str, Written], dict[str, Any]]:
    """The files that `preprocess.json` lists, and the device that it says was measured on."""
    data = read_json(folder / CARD)
    try:
        own = decode(_Rest, data)
    except MismatchError as error:
        raise RunError(f"{folder / CARD}: {error}", "delete it, and export again") from None
    return own.files, own.measured_on


@dataclass(frozen=True)
class _Rest:
    """What `preprocess.json` holds besides the card."""

    files: dict[str, Written]
    measured_on: dict[str, Any]


def pages(card: Card, files: Mapping[str, Written], device: Mapping[str, Any]) -> dict[str, str]:
    """The page and the examples of a folder that holds these files, by name.

    `device` is what was measured on, as `Runtime.describe` says it; empty where nothing was.
    """
    scripts = {
        script: file
        for script, file in _SCRIPTS.items()
        if file in files and card.pictures is not None
    }
    page = _template("deployed.md.jinja").render(
        card=card, files=files, device=device, scripts=scripts, uses=_USES, output=OUTPUTS
    )
    examples = {script: _example(card, script, files[file]) for script, file in scripts.items()}
    return {"README.md": page, **examples}


def _example(card: Card, script: str, written: Written) -> str:
    """A script that answers for picture files, with nothing but the folder and a runtime."""
    assert card.pictures is not None
    rule = card.pictures
    return _template("example.py.jinja").render(
        script=script,
        onnx=_SCRIPTS[script] == ONNX,
        int8=card.chosen != at_precision(card.chosen, "fp32"),
        reader=rule.reader,
        decoded=round(max(sides(rule.side)) / rule.reader.crop),
        resized=rule.input_side != rule.side,
        batch=written.batch or 1,
        dtype=written.dtype,
        input=card.input.name,
        output=OUTPUTS,
        named=card.task["task"] == "classification" and isinstance(card.task["classes"], list),
    )


def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("nas", "assets"), trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(name)


_SCRIPTS = {"example_onnx.py": ONNX, "example_torch.py": PT2}
_USES = {
    ONNX: f"ONNX, opset {OPSET}, for ONNX Runtime {SINCE} or newer",
    PT2: f"for `torch.export.load` of torch {installed('torch')} or newer",
    WEIGHTS: "the weights, for vitnas",
}
