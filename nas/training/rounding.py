"""Quantization-aware training: a calibrated network learns with the integers it is deployed with.

Jacob et al., CVPR 2018, https://arxiv.org/abs/1712.05877, section 3. The forward pass is that of
the deployed network (`nas.layers.precision`), with norms folded from the start, as their statistics
no longer change. So what is measured at the end is what was trained.
"""

from __future__ import annotations

from pathlib import Path

from nas.data import Dataset
from nas.layers.conv import BatchNorm
from nas.layers.precision import Quantizer
from nas.network.network import Network
from nas.records import fingerprint
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import Recipe
from nas.training.trainer import fit

BATCH = 32
LEARNING_RATE = 1e-4  # a fifteenth of that of a supernet, whose weights these are


def round_in_training(network: Network) -> Network:
    """Let a calibrated network train as it is deployed: int8 rounds, statistics are constants."""
    for part in network.modules():
        if isinstance(part, Quantizer):
            part.aware = True
        elif isinstance(part, BatchNorm):
            part.frozen = True
    return network


def train_rounded(
    network: Network, teacher: Network, data: Dataset, images: int, out: Path
) -> Network:
    """Train a calibrated plain int8 network in place, on labels and on the outputs of a teacher.

    The teacher is the same in float32. Checkpoints go to the folder `out`; a killed training goes
    on from there. Everything runs in float32 around the integers, as it will: the digits that
    bfloat16 lacks are as many as int8 rounds away.
    """
    images = -(-images // BATCH) * BATCH
    recipe = Recipe(
        images=(0, 0, images), batches=(BATCH, BATCH, BATCH), learning_rate=LEARNING_RATE
    )
    weights = network.state_dict()
    start = fingerprint(*(w.cpu().numpy().tobytes() for w in weights.values()))
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
    return network.eval()
