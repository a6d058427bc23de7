"""The network of an architecture: its layers, run one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UsageError
from nas.layers.elastic import Deployable, explicit_in_windows, inherit
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.layer import Layer


def check_images(images: Tensor, resolution: int) -> None:
    """Raise `UsageError` unless `images` are (n, 3, resolution, resolution)."""
    if images.ndim != 4 or images.shape[1:] != (3, resolution, resolution):
        raise UsageError(
            f"images of the shape {tuple(images.shape)} given to a network that takes "
            f"(n, 3, {resolution}, {resolution})",
            "resize them, or use an architecture of their resolution",
        )


class Network(nn.Module):
    """The layers of an architecture; runs that architecture or any smaller one of its space.

    Built at `space.largest` it is the supernet; built at one architecture it is the plain model.
    Images are (batch, 3, resolution, resolution) floats, logits (batch, classes).
    """

    def __init__(self, space: SearchSpace, architecture: Architecture, classes: int) -> None:
        super().__init__()
        self.space, self.architecture, self.classes = space, architecture, classes
        self._own = space.layers(architecture, classes)
        built = {layer.path: layer for layer in self._own}
        self.layers = nn.ModuleDict({path: layer.build() for path, layer in built.items()})

    @classmethod
    def empty(cls, space: SearchSpace, architecture: Architecture, classes: int) -> Network:
        """A network in evaluation mode whose weights hold anything: to be filled at once."""
        with torch.device("meta"):
            network = cls(space, architecture, classes)
        return network.to_empty(device="cpu").eval()

    def forward(self, images: Tensor, architecture: Architecture | None = None) -> Tensor:
        check_images(images, (architecture or self.architecture).resolution)
        state: tuple[Any, ...] = (images,)
        layers = self._own
        if architecture is not None:
            layers = self.space.layers(architecture, self.classes)
        for layer in layers:
            state = self.module(layer)(*state, **layer.sizes)
        logits: Tensor = state[0]
        return logits

    def module(self, layer: Layer) -> nn.Module:
        """What runs a layer; one without weights need not be in the largest architecture."""
        return self.layers[layer.path] if layer.path in self.layers else layer.build()

    @torch.no_grad()
    def kept(self, images: Tensor) -> dict[str, Tensor]:
        """For each layer that can prune, by path: the tokens of the first image it works on."""
        state: tuple[Any, ...] = (images,)
        maps = {}
        for layer in self.space.layers(self.architecture, self.classes):
            module: Any = self.layers[layer.path]
            if (kept := module.kept(*state, **layer.sizes)) is not None:
                maps[layer.path] = kept
            state = module(*state, **layer.sizes)
        return maps

    def inherit(self, architecture: Architecture) -> Network:
        """The plain model of `architecture` with this network's weights."""
        plain = Network.empty(self.space, architecture, self.classes)
        device = next(self.parameters()).device
        for path, module in plain.layers.items():
            if path in self.layers:
                inherit(module, self.layers[path])
        return plain.to(device)

    def reorder(self) -> Network:
        """Sort heads and hidden channels by importance, so that smaller sizes keep the best ones.

        For a network whose weights were trained at one size; it stays numerically the same.
        """
        for module in self.layers.values():
            module.reorder()  # type: ignore[operator]
        return self

    def deploy(self) -> Network:
        """Prepare a plain network for inference only: norms folded, int8 weights packed once.

        In place; the result is what is measured and exported, and can no longer be trained.
        """
        explicit_in_windows()
        for module in self.eval().layers.modules():
            if isinstance(module, Deployable):
                module.deploy()
        return self

    @property
    def batch_norms(self) -> bool:
        """Whether statistics of batches are part of it, which differ from subnet to subnet."""
        return any(name.endswith("running_var") for name, _ in self.named_buffers())
