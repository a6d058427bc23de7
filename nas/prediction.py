"""What an exported network says of pictures, and where it looked."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nas.deployment import CARD, ONNX, OUTPUTS, WEIGHTS, Card, check_content, load_network
from nas.errors import MissingPackageError, RunError, UsageError
from nas.evaluation.zero_shot import embedding_in
from nas.network.network import Network
from nas.records import write_bytes
from nas.report.pictures import kept_windows
from nas.report.saved_run import is_run
from nas.tasks import load_task
from nas.tasks.classification import Classification
from nas.text.encoder import TextEncoder, has_texts
from nas.text.prompts import checked_labels, classifier_of
from nas.text.tower import unit

_TOGETHER = 16  # pictures read and run at once


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one picture, and which tokens each of its layers worked on.

    `line` is for people, `facts` are the same as JSON. `pixels` (height, width, 3) are in [0, 1],
    what the network saw of the picture; `kept` holds a map of tokens by layer, where layers leave
    some out. `painted` are the colours and the opacity (height, width, 4) of the answers of a dense
    task, to lay over the pixels; None for other tasks.
    """

    file: str
    line: str
    facts: dict[str, Any]
    pixels: NDArray[np.float32]
    kept: dict[str, NDArray[np.bool_]]
    painted: NDArray[np.float32] | None = None

    def to_json(self) -> dict[str, Any]:
        """The file, and what the network says of it."""
        return {"file": self.file, **self.facts}


def predict(
    what: str | Path,
    pictures: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    labels: Sequence[str] = (),
) -> list[Prediction]:
    """What the winner of a run, or the network of an exported folder, says of picture files.

    `top` bounds the answers to each. `labels` in words take the place of the classes of a network
    that has learned from captions. A folder needs `preprocess.json`, and the weights or the ONNX
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
    task = load_task(card.task)
    run: Callable[[Tensor], Tensor]
    if labels:
        names = checked_labels(labels)
        run, task = _compared_with(names, folder, network), Classification.of(names)
    else:
        run = network or _program(folder, card)
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
            answers = task.answers(outputs[i : i + 1]) if task.dense else None
            over = None if answers is None else task.painted(answers[0]).numpy()
            found.append(Prediction(str(path), meaning.line, meaning.facts, seen, maps, over))
    return found


def _compared_with(
    names: Sequence[str], folder: Path, network: Network | None
) -> Callable[[Tensor], Tensor]:
    """What gives inputs a logit for each label, by the texts beside a network.

    These are the logits of CLIP: similarities of embeddings of length 1, times the learned scale.
    """
    if network is None or not has_texts(folder):
        raise UsageError(
            f"the network in {folder} knows no words: it did not learn from captions",
            "leave out --labels, or give a run of vitnas search --score zero-shot",
        )
    encoder = TextEncoder.load(folder)
    rows, embedding = classifier_of(encoder, names), embedding_in(folder, network)
    if embedding.space.task.outputs != rows.shape[1]:
        raise RunError(
            f"the texts in {folder} have {rows.shape[1]} numbers, and the pictures "
            f"{embedding.space.task.outputs}",
            "restore the folder, or search again",
        )
    scale = float(encoder.tower.scale.detach())
    return lambda inputs: scale * unit(embedding(inputs)) @ rows.mT


def looked(predictions: Sequence[Prediction]) -> Figure:
    """A picture of where a network looked: what each of its layers left out is darkened."""
    titles = [
        f"{Path(p.file).name}\n{p.line.partition(',')[0]}" if p.line else Path(p.file).name
        for p in predictions
    ]
    pixels = [p.pixels.astype(np.float64) for p in predictions]
    return kept_windows(pixels, titles, [p.kept for p in predictions])


def write_overlays(predictions: Sequence[Prediction], folder: Path) -> list[Path]:
    """Write what a network saw of each picture, its answers painted over it, as PNG files.

    They are named after the pictures, numbered where two have one name. Raises `UsageError` for a
    task whose answers are not laid out over pictures.
    """
    written: list[Path] = []
    for prediction in predictions:
        if prediction.painted is None:
            raise UsageError(
                "the answers of this network are not laid out over pictures",
                "give --out a .png, .svg or .pdf file, which shows where it looked",
            )
        stem = Path(prediction.file).stem
        names = (f"{stem}{f'-{i}' if i > 1 else ''}.png" for i in count(1))
        path = next(path for name in names if (path := folder / name) not in written)
        buffer = io.BytesIO()
        _overlay(prediction.pixels, prediction.painted).save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())
        written.append(path)
    return written


def _overlay(pixels: NDArray[np.float32], painted: NDArray[np.float32]) -> Image.Image:
    """Colours (any height, any width, 4) laid over pixels (height, width, 3), the nearest."""
    y, x = (np.arange(to) * own // to for to, own in zip(pixels.shape, painted.shape[:2]))
    colours, opacity = np.split(painted[y[:, None], x], [3], axis=-1)
    mixed = pixels * (1 - opacity) + colours * opacity
    return Image.fromarray((255 * mixed).round().clip(0, 255).astype(np.uint8))


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
