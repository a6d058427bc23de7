"""Zero-shot classifiers: networks of embeddings with labels in words as their last layer.

The last layer of such a network is linear, and so is a classifier of its embeddings: the two become
one layer, and the network a plain classifier, as fast as any other with as many classes. A picture
gets the class that it gets by cosine similarity, because the length of its embedding does not
change which logit is the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nas.errors import WeightsError
from nas.network.network import Network
from nas.records import write_bytes
from nas.space.family import SearchSpace
from nas.tasks.classification import Classification
from nas.tasks.embedding import Embedding

PROJECTION = "projection.safetensors"
_SOME = 64  # inputs at once


def fold(network: Network, classifier: Tensor, scale: float, names: Sequence[str]) -> Network:
    """The network with a classifier (names, D) of its embeddings folded into its last layer.

    Logits are `scale` times the products of embeddings and rows of the classifier. To be those of
    CLIP, embeddings would have to be of length 1; see `mean_length`.
    """
    space = replace(network.space, task=Classification.of(names))
    plain = Network.empty(space, network.architecture)
    tensors = network.state_dict()
    with torch.no_grad():
        for name in projections(network.space):
            own = tensors[name]
            tensors[name] = scale * (classifier.to(own) @ own.view(len(own), -1)).view(
                -1, *own.shape[1:]
            )
    plain.load_state_dict(tensors)
    if network.kernel is not None:
        plain.use_in_windows(network.kernel)
    return plain.to(next(network.parameters()).device)


def projections(space: SearchSpace) -> list[str]:
    """The names of the tensors whose first axis are the outputs of the networks of a space."""
    shapes = []
    for classes in (2, 3):
        other = replace(space, task=Classification(classes))
        with torch.device("meta"):
            heads = [(layer.path, layer.build()) for layer in other.head(other.smallest)]
        shapes.append(
            {
                f"layers.{path}.{k}": v.shape
                for path, own in heads
                for k, v in own.state_dict().items()
            }
        )
    return [name for name, shape in shapes[0].items() if shape != shapes[1][name]]


@torch.no_grad()
def mean_length(network: Network, inputs: Tensor) -> float:
    """The mean length of the embeddings of some inputs."""
    lengths = [network(some).float().norm(dim=-1) for some in torch.split(inputs, _SOME)]
    return float(torch.cat(lengths).mean())


def keep_projection(network: Network, folder: Path) -> None:
    """Write what makes embeddings of features, which a classifier takes the place of.

    `network` is one of embeddings; `embedding_in` finds the file.
    """
    own = network.state_dict()
    kept = {k: own[k].detach().cpu().contiguous() for k in projections(network.space)}
    write_bytes(folder / PROJECTION, save(kept))


def embedding_in(folder: Path, network: Network) -> Network:
    """The network of embeddings that an exported network was before labels were folded into it.

    Raises `WeightsError` where the folder does not hold its projection.
    """
    if not network.space.task.labelled:
        return network
    file = folder / PROJECTION
    try:
        kept = load(file.read_bytes())
        size = len(next(iter(kept.values())))
        space = replace(network.space, task=Embedding(size))
        found = Network.empty(space, network.architecture)
        found.load_state_dict({**network.state_dict(), **kept})
        if not all(tensor.isfinite().all() for tensor in kept.values()):
            raise ValueError("it holds values that are no numbers")
    except (OSError, SafetensorError, RuntimeError, ValueError, StopIteration) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise WeightsError(f"cannot load {file}: {why}", "restore it, or search again") from None
    return found
