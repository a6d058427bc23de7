"""What an exported network says of pictures, and where it looked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from nas.deployment import CARD, ONNX, OUTPUTS, WEIGHTS, Card, check_content, load_network
from nas.errors import MissingPackageError, RunError, UsageError
from nas.report.pictures import kept_windows
from nas.report.saved_run import is_run
from nas.tasks import load_task

_TOGETHER = 16  # pictures read and run at once


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one picture, and which tokens each of its layers worked on.

    `line` is for people, `facts` are the same as JSON. `pixels` (side, side, 3) are in [0, 1], what
    the network saw of the picture; `kept` holds a map of tokens by layer, where layers leave some
    out.
    """

    file: str
    line: str
    facts: dict[str, Any]
    pixels: NDArray[np.float32]
    kept: dict[str, NDArray[np.bool_]]

    def to_json(self) -> dict[str, Any]:
        """The file, and what the network says of it."""
        return {"file": self.file, **self.facts}


def predict(
    what: str | Path, pictures: str | Path | Sequence[str | Path], *, top: int = 5
) -> list[Prediction]:
    """What the winner of a run, or the network of an exported folder, says of picture files.

    `top` bounds the answers to each. A folder needs `preprocess.json`, and the weights or the ONNX
    file; of the latter alone nobody learns where it looked. Raises `RunError` for a folder that is
    neither, and `DataError` for a file that is no picture.
    """
    folder = _folder(Path(what))
    card = Card.read(folder)
    if card.pictures is None:
        raise UsageError(
            f"{folder} does not say how a file becomes {card.input.name}",
            "export the network with --data, if it takes pictures; else run its files yourself",
        )
    if top < 1:
        raise UsageError(f"top is at least 1, got {top}", "e.g. 5")
    network = None
    if (folder / WEIGHTS).exists():
        network = load_network(folder, card.loaded_space, card.chosen)
    run = network or _program(folder, card)
    task = load_task(card.task)
    found = []
    paths = list(map(Path, [pictures] if isinstance(pictures, str | Path) else pictures))
    for start in range(0, len(paths), _TOGETHER):
        some = paths[start : start + _TOGETHER]
        pixels, inputs = card.pictures.read(some)
        with torch.no_grad():
            outputs = run(inputs)
        for i, path in enumerate(some):
            meaning = task.meaning(outputs[i : i + 1], top)
            kept = {} if network is None else network.kept(inputs[i : i + 1])
            seen = pixels[i].permute(1, 2, 0).numpy()
            maps = {name: own.numpy() for name, own in kept.items()}
            found.append(Prediction(str(path), meaning.line, meaning.facts, seen, maps))
    return found


def looked(predictions: Sequence[Prediction]) -> Figure:
    """A picture of where a network looked: what each of its layers left out is darkened."""
    titles = [
        f"{Path(p.file).name}\n{p.line.partition(',')[0]}" if p.line else Path(p.file).name
        for p in predictions
    ]
    pixels = [p.pixels.astype(np.float64) for p in predictions]
    return kept_windows(pixels, titles, [p.kept for p in predictions])


def _folder(what: Path) -> Path:
    """The folder of the network: that of a run is the one of its first winner."""
    if not what.is_dir():
        raise RunError(f"there is no folder {what}", "give a run, or a folder of `vitnas export`")
    if (what / CARD).exists() or not is_run(what):
        return what
    if not (what / "run.json").exists():
        fix = f"finish it: vitnas search with its options and --out {what} --resume"
        raise RunError(f"{what} is not a finished run", fix)
    if not (what / "winner" / CARD).exists():
        raise RunError(
            f"{what} was made by an earlier version, which wrote no {CARD}",
            f"vitnas export {what} --format safetensors",
        )
    return what / "winner"


def _program(folder: Path, card: Card) -> Callable[[Tensor], Tensor]:
    """What runs the ONNX file of a folder for any number of inputs.

    A pt2 file is not asked: torch loads it in ways that can run code of whoever wrote it.
    """
    path = folder / ONNX
    if not path.exists():
        raise RunError(
            f"{folder} holds neither {WEIGHTS} nor {ONNX}",
            "export it again: vitnas export RUN --format safetensors",
        )
    try:
        import onnxruntime as ort
    except ImportError:
        raise MissingPackageError(
            f"{path} needs ONNX Runtime", "pip install 'vitnas[onnx]'"
        ) from None
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        check_content(path)
        session = ort.InferenceSession(path.read_bytes(), options)
        batch = session.get_inputs()[0].shape[0]
    except Exception as error:  # its own, and no base class of them
        why = str(error).strip().partition("\n")[0][:160]
        raise RunError(f"cannot load {path}: {why}", "export it again") from None
    fixed = batch if isinstance(batch, int) else None
    run = partial(session.run, [OUTPUTS])
    return lambda inputs: torch.cat(
        [torch.from_numpy(run({card.input.name: x})[0])[:n] for x, n in _batches(inputs, fixed)]
    )


def _batches(inputs: Tensor, batch: int | None) -> Iterator[tuple[NDArray[np.float32], int]]:
    """As many inputs at a time as a file takes, and how many count: the last are filled up."""
    batch = batch or len(inputs)
    for start in range(0, len(inputs), batch):
        some = inputs[start : start + batch]
        yield some[torch.arange(batch) % len(some)].numpy(), len(some)
