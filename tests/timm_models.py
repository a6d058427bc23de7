"""timm without a working torchvision."""

from __future__ import annotations

import contextlib
import warnings

import torch

_library = torch.library.Library("torchvision", "DEF")
for _schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    # PyPI's torchvision is a CUDA build; beside CPU torch it lacks these two operators.
    with contextlib.suppress(RuntimeError):
        _library.define(_schema)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm


def create(name, **settings):
    torch.manual_seed(0)
    model = timm.create_model(name, **settings).eval()
    for module in model.modules():
        if type(module).__name__ == "LiteMLA":
            module.eps = 1e-15  # of the paper's code; timm has 1e-5
    return perturbed(model)


def randomized(model):
    """Every parameter and statistic away from where it starts, for modules of any input."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def perturbed(model):
    """Biases, scales and statistics away from 0 and 1, so that a slip shows.

    Statistics are those of noise images: with made-up ones the last of many layers are nearly dead,
    and hardly anything of an image arrives at the logits.
    """
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        if norms:
            for norm in norms:
                norm.momentum = 1.0
            model.train()
            model(torch.randn(8, 3, 128, 128))
            model.eval()
        for norm in norms:
            norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn(norm.num_features))
            norm.running_var.mul_(torch.empty(norm.num_features).uniform_(0.7, 1.4))
    return model
