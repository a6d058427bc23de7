"""Networks with weights by name: the winner of a run, what was exported, architectures, models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.data import Dataset, load_data
from nas.deployment import CARD, Card, described, load_network
from nas.errors import UnknownNameError, UsageError, VitnasError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.zero_shot import embedding_in
from nas.families import load_space, model_names
from nas.network.network import Network
from nas.report.saved_run import SavedRun
from nas.settings import Settings
from nas.text.encoder import TextEncoder, has_texts
from nas.training.checkpoint_files import find_checkpoint
from nas.training.open_clip import write_open_clip
from nas.training.pretrained import load_weights
from nas.training.supernet import as_learned, folder_of, load_supernet, read_card, supernet_folder


@dataclass(frozen=True, eq=False)
class SavedNetwork:
    """A network with its weights, what it takes, and what its latency was measured on, if it was.

    `folder` is where it stands, None where it is not exported yet.
    """

    network: Network
    card: Card
    device: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def write_open_clip(self, folder: Path, supernet: Path | None = None) -> float:
        """Write it as an image tower of open_clip, with its texts; returns the largest difference.

        The texts are those beside it, or in the folder of its supernet. Raises `UsageError` where
        there are none, and for a network that open_clip has no place for.
        """
        network, pictures = self.network, self.card.pictures
        texts = [own for own in (self.folder, supernet) if own is not None and has_texts(own)]
        if not texts or pictures is None:
            raise UsageError(
                "the files of open_clip hold texts, too, and this network knows no words",
                "give a run of vitnas search --score zero-shot, or an architecture with --supernet "
                "of vitnas train --objective clip",
            )
        if texts[0] == self.folder:
            network = embedding_in(texts[0], network)
        encoder = TextEncoder.load(texts[0])
        return write_open_clip(network, encoder, pictures.mean, pictures.std, folder)


def load_saved(
    what: str, *, space: str, data: str = "", supernet: str = "", weights: str = ""
) -> SavedNetwork:
    """The network that RUN, FOLDER (exported), ARCH (JSON or its file) or MODEL names.

    Without `data`, an architecture takes the pictures of its supernet's data set, and how a model
    takes pictures is not known.
    """
    path = Path(what)
    if what and not _is_json(what) and path.is_dir():
        return _exported(path) if (path / CARD).exists() else _winner(SavedRun.load(path))
    if _is_model(what) and not data:
        network = _model(load_space(what).name, None, weights)
        return SavedNetwork(network, Card.of(network.space, network.architecture, None))
    network, images = subject(what, space, data or Settings.data, supernet, weights)
    return SavedNetwork(network, Card.of(network.space, network.architecture, images))


def _exported(folder: Path) -> SavedNetwork:
    card, (_, device) = Card.read(folder), described(folder)
    network = load_network(folder, card.loaded_space, card.chosen)
    return SavedNetwork(network, card, device, folder)


def _winner(run: SavedRun) -> SavedNetwork:
    """The winner of a run. What an early version did not write down is asked of its data set."""
    network, folder = run.winner(), run.folder / "winner"
    if (folder / CARD).exists():
        card = Card.read(folder)
    else:
        try:
            data = load_data(run.record.data)
        except VitnasError:  # they have moved
            data = None
        card = Card.of(network.space, network.architecture, data)
    return SavedNetwork(network, card, run.record.device_described, folder)


def subject(
    what: str, space: str, data: str, supernet: str, weights: str
) -> tuple[Network, Dataset]:
    """The network with weights that RUN, ARCH (JSON or its file) or MODEL names, and its data.

    A named model needs `weights`; an architecture takes those of a supernet, the shipped one if
    `supernet` is empty.
    """
    path = Path(what)
    if what and not _is_json(what) and path.is_dir():
        run = SavedRun.load(path)
        return run.winner(), run.data()
    if weights:  # what is not there is said before images are read
        find_checkpoint(weights)
    if supernet:
        read_card(folder_of(supernet), space)
    images = load_data(data)
    if _is_model(what):
        return _model(what, images, weights), images
    if weights:
        raise UsageError("--weights are for a named model", "drop them, or name a model")
    the_space = load_space(space, images.task)
    with suppress(UsageError):  # not every family has int8
        the_space = the_space.with_int8()
    text = what if _is_json(what) else _read(path) if what else ""
    architecture = the_space.parse(text) if text else the_space.largest
    folder = folder_of(supernet) if supernet else supernet_folder(space, images)
    large, card = load_supernet(folder, space, images)
    images = as_learned(images, card)
    return Evaluator(large, images, images.search, 1).subnet(architecture), images


def _is_json(what: str) -> bool:
    return what.lstrip().startswith("{")


def _is_model(what: str) -> bool:
    return what.partition("@")[0].removesuffix("+int8") in model_names()


def _model(name: str, data: Dataset | None, weights: str) -> Network:
    """A named model with the weights of a checkpoint, for the classes of a data set or its own."""
    if not weights:
        raise UsageError(
            f"{name} needs weights", "add --weights FILE, or the name of a model on timm's hub"
        )
    named = load_space(name, None if data is None else data.task)
    network = Network.empty(named, named.largest)
    load_weights(network, weights, new_head=False)
    return network


def _read(path: Path) -> str:
    if not path.is_file():
        raise UnknownNameError(
            "model, run or architecture", str(path), model_names(), "or give a path that exists"
        )
    return path.read_text(errors="replace")
