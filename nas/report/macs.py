"""How the multiply-accumulates of models grow with the resolution of the image.

Global attention compares every token with every other, so its two products grow with the fourth
power of the side of the image (ViT, https://arxiv.org/abs/2010.11929); attention in windows (Swin,
https://arxiv.org/abs/2103.14030, equations 1 and 2) and linear attention (EfficientViT,
https://arxiv.org/abs/2205.14756) with the second, as everything else does.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from nas.families import load_space
from nas.network.macs import sum_macs
from nas.progress import bar
from nas.space.family import SearchSpace
from nas.space.layer import Layer
from nas.tasks.classification import Classification

STEP_PX = 32  # the total stride of most models
# What is counted, as `--json` calls it and as `Macs` does.
KINDS = {
    "attention_macs": "attention",
    "attention_matmul_macs": "attention_products",
    "macs": "total",
}

Row = dict[str, Any]


def macs_by_resolution(models: Sequence[str], resolutions: Sequence[int]) -> dict[str, Any]:
    """MACs of one image through each of `models` (timm's names, or spaces) at each resolution.

    `rows`, models in the order given, resolutions (pixels) ascending, hold for each pair
    `attention_macs` (projections and products), `attention_matmul_macs` (the two products alone)
    and `macs` (the whole model), all as run: padding counts where it is run (in Swin's attention).
    `slopes` are the fitted exponents of each of them against the resolution (None for fewer than
    two resolutions, or no attention). `half` says from which resolution of the range, to 32 px,
    attention is at least half of the model (None if nowhere). `reading` puts both into words.
    Raises `UsageError`, before anything is counted, for a model that does not exist or cannot take
    a resolution.
    """
    spaces = {
        model: load_space(model, Classification.of_imagenet()) for model in dict.fromkeys(models)
    }
    sides = sorted(set(resolutions))
    networks = {(m, side): _layers(space, side) for m, space in spaces.items() for side in sides}
    rows: list[Row] = []
    with bar("count", len(networks), "networks") as advance:
        for (model, side), layers in networks.items():
            rows.append({"model": model, "resolution": side, **_counts(layers)})
            advance(1, f"{side} px")
    slopes, halves = [], []
    for model, space in spaces.items():
        own = [row for row in rows if row["model"] == model]
        slopes.append({"model": model, **{kind: exponent(own, kind) for kind in KINDS}})
        shares = [kind for kind in KINDS if kind != "macs"]
        halves.append({"model": model, **{kind: _half(space, own, kind) for kind in shares}})
    result = {"rows": rows, "slopes": slopes, "half": halves}
    return {**result, "reading": reading(result)}


def exponent(rows: Sequence[Row], kind: str) -> float | None:
    """Least-squares slope of the logarithm of `kind` over that of the resolution."""
    x, y = (np.array([row[name] for row in rows], float) for name in ("resolution", kind))
    if len(rows) < 2 or not y.all():
        return None
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)


def reading(result: dict[str, Any]) -> str:
    """What the numbers say, in one sentence."""
    known = [s for s in result["slopes"] if s["attention_matmul_macs"] is not None]
    if not known:
        return _shares(result["rows"])
    known.sort(key=_power, reverse=True)
    growth = [
        f"R^{power} in {_listed([s['model'] for s in group])}"
        for power, group in groupby(known, key=_power)
    ]
    none = [s["model"] for s in result["slopes"] if s not in known]
    without = f" ({_listed(none)} has none)" if none else ""
    first = min(row["resolution"] for row in result["rows"])
    halves = []
    for half in result["half"]:
        if (whole := half["attention_macs"]) is not None:
            where = f"at {first} px already" if whole == first else f"from {whole} px"
            products = half["attention_matmul_macs"]
            alone = "" if products is None else f" (its products alone from {products} px)"
            halves.append(f"{half['model']} {where}{alone}")
    over = f"over half of {_listed(halves)}" if halves else "nowhere half of a model"
    return f"Attention products grow as {', as '.join(growth)}{without}; attention is {over}."


def _power(slope: Row) -> str:
    return f"{slope['attention_matmul_macs']:.1f}"


def _shares(rows: Sequence[Row]) -> str:
    shares = [
        f"{100 * row['attention_macs'] / row['macs']:.0f} % of {row['model']} "
        f"at {row['resolution']} px"
        for row in rows
    ]
    return f"Attention is {_listed(shares)}."


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _layers(space: SearchSpace, resolution: int) -> tuple[Layer, ...]:
    there = space.at(resolution)
    return there.layers(there.largest)


def _counts(layers: Sequence[Layer]) -> Row:
    macs = sum_macs(layers)
    return {kind: getattr(macs, field) for kind, field in KINDS.items()}


def _half(space: SearchSpace, rows: Sequence[Row], kind: str) -> int | None:
    """The first resolution, in steps of about 32 px, at which `kind` is half of the whole.

    Between those that were counted it is found by bisection. At finer steps the share goes up and
    down, as each map of a model with strides is padded at sides of its own.
    """
    if _is_half(rows[0], kind):
        return int(rows[0]["resolution"])
    step = -(-STEP_PX // space.parts.multiple) * space.parts.multiple
    for below, above in pairwise(rows):
        if _is_half(above, kind):
            low, high = below["resolution"], above["resolution"]
            sides = [*range(low // step * step + step, high, step), high]
            return _first_half(space, sides, kind)
    return None


def _first_half(space: SearchSpace, sides: Sequence[int], kind: str) -> int:
    first = bisect(sides, False, key=lambda side: _is_half(_counts(_layers(space, side)), kind))
    return sides[first]


def _is_half(row: Row, kind: str) -> bool:
    return bool(2 * row[kind] >= row["macs"])
