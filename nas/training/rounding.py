"""Quantization-aware training: a calibrated network learns with the integers it is deployed with.

Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877, section 3. The forward pass is that of
the deployed network (`nas.layers.precision`), with norms folded from the start, as their statistics
no longer change. So what is measured at the end is what was trained. Rounding counts as the
identity (straight-through: Bengio et al., 2013, https://arxiv.org/abs/1308.3432), and ranges follow
a moving average (Jacob et al., section 3.1). Ranges that were learned (LSQ: Esser et al., ICLR
2020) gave no more in a paired trial, see `experiments/README.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.data import Dataset
from nas.layers.conv import BatchNorm
from nas.layers.precision import HIGH, LOW, Packed, Product, Quantizer, rounded
from nas.network.network import Network
from nas.records import fingerprint
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import Recipe
from nas.training.trainer import DivergedError, fit

BATCH = 32
LEARNING_RATE = 1e-4  # a fifteenth of that of a supernet, whose weights these are
_FOLLOWED = 0.01  # how far a range moves to that of a batch, as a share
_EXACT = 2**24  # integers up to here are exact in float32


class _Integers(torch.autograd.Function):
    """Inputs as integers of int8 less the zero point; what is clipped there has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.zero = scale, zero
        return rounded(x, scale, zero).sub_(zero)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        places = x / ctx.scale
        beyond = (places < LOW - ctx.zero) | (places > HIGH - ctx.zero)
        return (gradients[0] / ctx.scale).masked_fill(beyond, 0.0), None, None


def trained_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, clip: Tensor, product: Product
) -> Tensor:
    """The product plus the bias of inference to the last digit, by sums of whole numbers.

    The range (low, high) moves towards that of the batch.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        seen = torch.stack(x.detach().aminmax())
        if bool(seen.isfinite().all()):  # else the loss is no number, and is seen as such
            clip.lerp_(seen, _FOLLOWED)
        packed = Packed.of(weight, bias, clip)
        each = (-1, *[1] * (weight.ndim - 1))  # one unit for each output
        q_x: Tensor = _Integers.apply(x, packed.scale, packed.zero)  # type: ignore[no-untyped-call]
        q = _instead(weight / (packed.unit / packed.scale).view(each), packed.weight)
        exact = _exact(packed.weight)
        y = product(q_x.to(exact), q.to(exact)).float()
        if bias is not None:
            y = y + _instead(bias / packed.unit, packed.own_bias()).view(each[:-1])
        return y * packed.unit.view(each[:-1])


def _instead(x: Tensor, integers: Tensor) -> Tensor:
    """The integers that x was rounded to, with its gradient; exact, as both are so near."""
    return x + (integers - x).detach()


def _exact(weight: Tensor) -> torch.dtype:
    """A type in which sums of products of inputs with these integers are not rounded."""
    most = (HIGH - LOW) * int(weight.flatten(1).abs().sum(1, dtype=torch.int32).max())
    return torch.float32 if most <= _EXACT else torch.float64


def round_in_training(network: Network) -> Network:
    """Let a calibrated network train as it is deployed: int8 rounds, statistics are constants."""
    for part in network.modules():
        if isinstance(part, Quantizer):
            part.rounding = trained_product
        elif isinstance(part, BatchNorm):
            part.frozen = True
    return network


def train_rounded(
    network: Network,
    teacher: Network,
    data: Dataset,
    images: int,
    out: Path,
    rate: float = LEARNING_RATE,
) -> Network:
    """Train a calibrated plain int8 network in place, on labels and on the outputs of a teacher.

    The teacher is the same in float32. Checkpoints go to the folder `out`; a killed training goes
    on from there. Everything runs in float32 around the integers, as it will: the digits that
    bfloat16 lacks are as many as int8 rounds away.
    """
    images = -(-images // BATCH) * BATCH
    recipe = Recipe(images=(0, 0, images), batches=(BATCH, BATCH, BATCH), learning_rate=rate)
    weights = network.state_dict()
    start = fingerprint(*(w.cpu().numpy().tobytes() for w in weights.values()))
    try:
        fit(
            round_in_training(network),
            data,
            recipe,
            Supervised(network.space),
            out,
            teacher,
            resume=True,
            settings={"rounding": start},
            bf16=False,
        )
    except DivergedError as error:
        fix = f"train with a --rate below {rate:g}, into another --out"
        raise DivergedError(error.step, error.rate, fix) from None
    return network.eval()
