"""The network of an architecture: its layers, run one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UsageError
from nas.layers.attention import Kernel, fastest_in_windows, tell_kernel
from nas.layers.elastic import Deployable, ElasticModule, inherit
from nas.space.architecture import Architecture
from nas.space.family import SearchSpace
from nas.space.layer import Layer, by_path
from nas.tasks.embedding import Embedding


def check_inputs(inputs: Tensor, space: SearchSpace, architecture: Architecture) -> None:
    """Raise `UsageError` unless `inputs` are a batch of what the architecture takes."""
    shape = space.example(architecture)
    if tuple(inputs.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise UsageError(
            f"{space.parts.takes} of the shape {tuple(inputs.shape)} given to a network that takes "
            f"(n, {wanted})",
            "resize them, or use an architecture of their resolution",
        )


class Network(nn.Module):
    """The layers of an architecture; runs that architecture or any smaller one of its space.

    Built at `space.largest` it is the supernet; built at one architecture it is the plain model.
    Inputs are (batch, *space.example(architecture)) floats, e.g. (batch, 3, 224, 224); outputs are
    what the task of the space asks for, e.g. logits (batch, classes).
    """

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        super().__init__()
        self.space, self.architecture = space, architecture
        built = by_path(space.layers(architecture))
        self.layers = nn.ModuleDict({path: layer.build() for path, layer in built.items()})
        self.kernel: Kernel | None = None

    @classmethod
    def empty(cls, space: SearchSpace, architecture: Architecture) -> Network:
        """A network in evaluation mode whose weights hold anything: to be filled at once."""
        with torch.device("meta"):
            network = cls(space, architecture)
        return network.to_empty(device="cpu").eval()

    def forward(self, inputs: Tensor, architecture: Architecture | None = None) -> Tensor:
        """The outputs of one architecture, by default of the one it was built at."""
        outputs: Tensor = self._run(inputs, architecture or self.architecture, 0)[0]
        return outputs

    def features(self, inputs: Tensor, architecture: Architecture | None = None) -> Any:
        """The state that enters the head, e.g. (map, window orders) in Swin."""
        architecture = architecture or self.architecture
        return self._run(inputs, architecture, len(self.space.head(architecture)))

    def _run(self, inputs: Tensor, architecture: Architecture, without: int) -> tuple[Any, ...]:
        """The state after all layers but so many of the last."""
        check_inputs(inputs, self.space, architecture)
        layers = self.space.layers(architecture)
        return self.through(layers[: len(layers) - without], (inputs,))

    def through(self, layers: Iterable[Layer], state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The state after these layers, which may be those of a variant of the space."""
        for layer in layers:
            state = self.module(layer).run(state, **layer.elastic)
        return state

    def module(self, layer: Layer) -> ElasticModule:
        """What runs a layer; one without weights need not be in the largest architecture."""
        own: Any = self.layers[layer.path] if layer.path in self.layers else layer.build()
        return own  # type: ignore[no-any-return]

    @torch.no_grad()
    def kept(self, images: Tensor) -> dict[str, Tensor]:
        """For each layer that can prune, by path: the tokens of the first image it works on."""
        state: tuple[Any, ...] = (images,)
        maps = {}
        for layer in self.space.layers(self.architecture):
            module: Any = self.layers[layer.path]
            if (kept := layer.kept(module, state)) is not None:
                maps[layer.path] = kept
            state = module.run(state, **layer.elastic)
        return maps

    def inherit(self, architecture: Architecture) -> Network:
        """The plain model of `architecture` with this network's weights."""
        plain = Network.empty(self.space, architecture)
        device = next(self.parameters()).device
        for path, module in plain.layers.items():
            if path in self.layers:
                inherit(module, self.layers[path])
        if self.kernel is not None:
            plain.use_in_windows(self.kernel)
        return plain.to(device)

    def use_in_windows(self, kernel: Kernel) -> Network:
        """Compute attention in windows by this kernel, here and in networks that inherit.

        Kernels differ by rounding: processes whose scores are compared are told the same one.
        """
        tell_kernel(self, kernel)
        self.kernel = kernel
        return self

    def reorder(self) -> Network:
        """Sort heads and hidden channels by importance, so that smaller sizes keep the best ones.

        For a network whose weights were trained at one size; it stays numerically the same.
        """
        for module in self.layers.values():
            module.reorder()  # type: ignore[operator]
        return self

    def deploy(self) -> Network:
        """Prepare a plain network for inference only: norms folded, int8 weights packed once.

        In place; the result is what is measured and exported, and can no longer be trained. Where
        no kernel for windows was told, it is the faster one on this CPU.
        """
        deploy(self.eval().layers, self.kernel or fastest_in_windows())
        return self

    @property
    def batch_norms(self) -> bool:
        """Whether statistics of batches are part of it, which differ from subnet to subnet."""
        return any(name.endswith("running_var") for name, _ in self.named_buffers())


def deploy(module: nn.Module, kernel: Kernel) -> None:
    """Prepare a module and all its parts for inference only, with this kernel in windows."""
    tell_kernel(module, kernel)
    for part in module.modules():
        if isinstance(part, Deployable):
            part.deploy()


def embedding(network: Network) -> Network:
    """The same network without the last layer of its head: its outputs are features (batch, d).

    It shares all weights, deployed ones as well; one that makes vectors already is returned as it
    is.
    """
    if not network.space.task.labelled:
        return network
    space = replace(network.space, task=Embedding())
    with torch.device("meta"):
        found = Network(space, network.architecture)
    same = {*network.space.layers(network.architecture)}
    for path, layer in by_path(space.layers(network.architecture)).items():
        if layer in same:
            found.layers[path] = network.layers[path]
        else:
            _adopt(found.layers[path], network.layers[path])
    found.kernel = network.kernel
    return found.train(network.training)


def _adopt(module: nn.Module, other: nn.Module) -> None:
    """Make the tensors and parts of another module those of this one, wherever it has such."""
    for name in module._parameters:
        module._parameters[name] = other._parameters[name]
    for name in module._buffers:
        module._buffers[name] = other._buffers[name]
    for name, child in module.named_children():
        if child.state_dict():
            setattr(module, name, other.get_submodule(name))
