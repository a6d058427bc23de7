"""Pictures of a report, drawn with matplotlib from the records of runs."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nas.budget import readable_ms
from nas.records import atomic_path
from nas.report.saved_run import SavedRun
from nas.run_record import Candidate, RunRecord

INK, GREY, BLUE, RED, GREEN, SAND = "#1b2733", "#9aa5b1", "#2563a8", "#c2402f", "#2f8f5b", "#d9a441"
TINT = np.array([0.05, 0.13, 0.28])  # of what a block leaves out
SERIES = (BLUE, SAND, GREEN, RED, "#7a5aa6")
_FEW = 20  # points of a line, up to which each is marked
_LINES = (BLUE, RED, GREEN, "#7a5aa6", "#b07d12", INK)  # dark enough for text
_PRODUCTS = "attention_matmul_macs"
_KINDS: dict[str, Any] = {  # of MACs, and how their curves look
    _PRODUCTS: {"lw": 1.6, "marker": "o", "ms": 4},
    "macs": {"lw": 1.3, "ls": (0, (4, 2)), "marker": "o", "ms": 4, "mfc": "white"},
}
_RING: Any = {"marker": "o", "ms": 10, "mfc": "none", "mew": 1.2}
_STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e5e9ee",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "vitnas",
}


def _figure(width: float, height: float) -> Figure:
    with mpl.rc_context(_STYLE):
        return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element to stand inside a page."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    # Fixed sizes would not shrink with the page; the viewBox stays.
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text[text.index("<svg") :]).replace(
        ' width="', ' data-width="', 1
    )


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, in the format that the suffix of `path` names."""
    with mpl.rc_context(_STYLE), atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=160, format=path.suffix[1:].lower())


def pareto(runs: Sequence[SavedRun]) -> Figure:
    """Draw accuracy over latency: all scores, the fronts, budgets, winners and baselines."""
    figure = _figure(7.4, 4.2)
    with mpl.rc_context(_STYLE):
        axes = figure.add_subplot()
        several = len(runs) > 1
        for run, color in zip(runs, _cycle(len(runs))):
            name = _name(run.record) if several else "front"
            tint = color if several else GREY
            if len(run.cloud):
                label = None if several else f"scored ({len(run.cloud):,})"
                ms, percent = run.cloud.T
                axes.scatter(ms, percent, s=7, color=tint, alpha=0.35, lw=0, label=label)
            if len(run.archive):
                best = np.maximum.accumulate(run.archive[:, 1])
                label = None if several else "best known at any latency"
                axes.step(run.archive[:, 0], best, where="post", color=tint, lw=0.9, label=label)
            widest = run.record.by_budget[-1].front
            axes.step(
                [c.predicted_ms for c in widest], [c.expected_percent for c in widest],
                where="post", color=color, lw=1.6, marker="o", ms=3.5, label=name,
            )  # fmt: skip
            _winners(axes, run.record, color if several else RED, f" of {name}" if several else "")
            if not several:
                _baselines(axes, run.record)
        _budgets(axes, {a.budget_ms for run in runs for a in run.record.answers})
        metric = runs[0].record.metric.heading
        axes.set(
            xlabel="latency [ms]; points and lines as predicted",
            ylabel=f"{metric} on the search split [%]\n(lines and marks: noise taken out)",
        )
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, loc="lower right")
    return figure


def _budgets(axes: Axes, budgets: Iterable[float]) -> None:
    for budget in budgets:
        axes.axvline(budget, color=RED, lw=1, ls="--")
        axes.annotate(
            f"{budget:g} ms", (budget, 0.01), color=RED, rotation=90, fontsize=8,
            xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points",
        )  # fmt: skip


def _winners(axes: Axes, run: RunRecord, color: str, of: str) -> None:
    won = [answer.winner for answer in run.by_budget]
    name = "winner" if len(won) == 1 else "winners"
    axes.scatter(
        [w.measured_ms for w in won], [w.expected_percent for w in won],
        marker="*", s=190, color=color, edgecolor="white", zorder=5,
        label=f"{name}{of} ({run.verb})",
    )  # fmt: skip


def _baselines(axes: Axes, run: RunRecord) -> None:
    """Draw each kind with a mark of its own; of several budgets only those without pruning."""
    marks: dict[str, list[Candidate]] = {}
    for answer in run.by_budget:
        for baseline in answer.baselines:
            if len(run.answers) == 1 or "dense" in baseline.name:
                marks.setdefault(baseline.name, []).append(baseline)
    for (name, own), marker in zip(marks.items(), "sDP^v"):
        axes.scatter(
            np.array([c.measured_ms for c in own], float), [c.expected_percent for c in own],
            marker=marker, s=42, color=INK, edgecolor="white", zorder=4,
            label=f"{name} ({run.verb})",
        )  # fmt: skip


def _name(run: RunRecord) -> str:
    return run.run_dir.rstrip("/").rsplit("/", 1)[-1]


def predicted_measured(runs: Sequence[SavedRun]) -> Figure:
    """Draw predictions against measured latencies, and the band of the table's p95 error."""
    figure = _figure(3.9, 3.6)
    with mpl.rc_context(_STYLE):
        axes = figure.add_subplot()
        top = 0.0
        for run, color in zip(runs, _cycle(len(runs))):
            points = np.array([(c.measured_ms, c.predicted_ms) for c in run.record.measured])
            axes.scatter(points[:, 0], points[:, 1], s=22, color=color, edgecolor="white", zorder=3)
            top = max(top, float(points.max()) * 1.06)
        line = np.array([0, top])
        p95 = max(run.record.table.p95_percent for run in runs) / 100
        axes.plot(line, line, color=GREY, lw=1)
        axes.fill_between(line, line * (1 - p95), line * (1 + p95), color=GREY, alpha=0.2, lw=0)
        how = runs[0].record.verb
        axes.set(xlim=(0, top), ylim=(0, top), xlabel=f"{how} [ms]", ylabel="predicted [ms]")
        axes.set_aspect("equal")
        axes.grid(True)
        axes.set_axisbelow(True)
    return figure


def convergence(runs: Sequence[SavedRun]) -> Figure:
    """Draw the best score within each budget by candidate, and beneath it the hypervolume."""
    figure = _figure(3.9, 3.6)
    volumes = any(run.record.hypervolume for run in runs)
    lines = sum(len(run.record.answers) for run in runs)
    colors = iter(_cycle(lines))
    with mpl.rc_context(_STYLE):
        axes, *below = figure.subplots(
            1 + volumes, sharex=True, squeeze=False, height_ratios=(3, 2)[: 1 + volumes]
        ).ravel()
        for run in runs:
            name = f"{_name(run.record)}, " if len(runs) > 1 else ""
            first, *_ = own = [next(colors) for _ in run.record.answers]
            _best_so_far(axes, run, own, name)
            for panel in below:
                _volume(panel, run, first)
        axes.set(ylabel="best on the\nsearch split [%]")
        for panel in below:
            panel.set(ylabel="hypervolume\n[% of best]")
            panel.ticklabel_format(axis="y", useOffset=False)
        for panel in (axes, *below):
            panel.grid(True)
            panel.set_axisbelow(True)
        last = (axes, *below)[-1]
        last.set(xlabel="candidates scored in this run")
        last.xaxis.set_major_locator(MaxNLocator(integer=True))
        if lines > 1:  # above the panels, where it hides no line
            figure.legend(loc="outside upper center", ncols=3 if len(runs) == 1 else 1, fontsize=8)
        figure.align_ylabels()
    return figure


def losses(curve: Sequence[Mapping[str, Any]]) -> Figure:
    """The loss of a training over its steps, with a colour for each size of the samples."""
    figure = _figure(7.5, 3.0)
    axes = figure.add_subplot()
    names = ("a quarter of the largest size", "half of it", "the whole")
    for phase, (name, color) in enumerate(zip(names, _cycle(3))):
        own = [r for r in curve if r.get("canvas", 2) == phase]
        if own:
            marker = "" if len(curve) > _FEW else "."
            steps, mean = [r["step"] for r in own], [r["loss"] for r in own]
            axes.plot(steps, mean, color=color, marker=marker, label=name)
    axes.set_xlabel("step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss")
    axes.legend()
    return figure


def _best_so_far(axes: Axes, run: SavedRun, colors: Sequence[str], name: str) -> None:
    """Draw the candidates, hollow where one lost its race, and the best so far by budget."""
    full = np.array([not c.dropped for c in run.scored], dtype=bool)
    percents = np.array([c.percent for c in run.scored])
    steps = np.arange(1, len(full) + 1)
    axes.scatter(steps[full], percents[full], s=14, color=GREY, zorder=2)
    axes.scatter(steps[~full], percents[~full], s=14, fc="white", ec=GREY, lw=0.8, zorder=2)
    for answer, color in zip(run.record.by_budget, colors):
        within = [c.predicted_ms <= answer.limit_ms for c in run.scored]
        fits = full & np.array(within, dtype=bool)
        start = answer.best_known_percent or math.nan
        best = np.fmax.accumulate([start, *np.where(fits, percents, np.nan)])
        label = f"{name}{answer.budget_ms:g} ms"
        axes.step(range(len(best)), best, where="post", color=color, lw=1.6, label=label)


def _volume(axes: Axes, run: SavedRun, color: str) -> None:
    """Draw what the front dominates after each candidate that was scored on all images."""
    volumes = run.record.hypervolume
    if not volumes:
        return
    full = [i for i, candidate in enumerate(run.scored, 1) if not candidate.dropped]
    known = [0] if len(volumes) > len(full) else []  # what was known before the first
    at = [*known, *full][: len(volumes)]
    percent = [100 * v for v in volumes[: len(at)]]
    last = len(run.scored)
    axes.step([*at, last], [*percent, percent[-1]], where="post", color=color, lw=1.6)


def layers(networks: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Figure:
    """Draw latency by layer in the order of running.

    `networks` have names and milliseconds by path of the layer; the last is the largest one.
    """
    *_, (_, dense) = networks
    names = list(dict.fromkeys(n for _, rows in reversed(networks) for n, _ in rows))
    order = [n for n, _ in dense]
    places = {n: min(_place(n, order, [m for m, _ in rows]) for _, rows in networks) for n in names}
    names.sort(key=places.__getitem__)
    thick = 0.76 / len(networks)
    figure = _figure(7.4, 0.6 + 0.1 * len(names) * max(2, len(networks)))
    with mpl.rc_context(_STYLE):
        axes = figure.add_subplot()
        y = np.arange(len(names))
        colors = [*_cycle(len(networks) - 1), GREY]
        for i, ((who, rows), color) in enumerate(zip(networks, colors)):
            own = dict(rows)
            shift = (i - (len(networks) - 1) / 2) * thick
            label = f"{who}, {readable_ms(sum(own.values()), 1)} ms"
            axes.barh(y + shift, [own.get(n, 0) for n in names], thick, color=color, label=label)
        axes.set_yticks(y, [n.replace("_", " ") for n in names], fontsize=7.5)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set(xlabel="milliseconds (rows of the table, calibrated)")
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", fontsize=8)
    return figure


def measured_layers(result: Mapping[str, Any], verb: str) -> Figure:
    """Draw a network by layer, predicted and measured, and the predictions stacked to the total.

    `result` is what `vitnas measure --json` prints.
    """
    rows, unit = result["layers"], result["unit"]
    y = np.arange(len(rows))
    figure = _figure(7.4, max(2.6, 0.9 + 0.2 * len(rows)))
    with mpl.rc_context(_STYLE):
        axes, stack = figure.subplots(1, 2, width_ratios=(4, 1))
        mine = [row["measured_ms"] for row in rows]
        if result["predicted_ms"] is None:
            axes.barh(y, mine, 0.6, color=BLUE, label=f"{verb}, in network order")
        else:
            theirs = [row["predicted_ms"] for row in rows]
            axes.barh(y - 0.2, theirs, 0.38, color=GREY, label="predicted (calibrated row)")
            axes.barh(y + 0.2, mine, 0.38, color=BLUE, label=f"{verb}, in network order")
            low = result["overhead_ms"]
            stack.bar(0, low, 0.7, color=GREY)
            for row in theirs:
                stack.bar(0, row, 0.7, bottom=low, color=GREY, edgecolor="white", linewidth=0.4)
                low += row
        stack.bar(1, result["measured_ms"], 0.7, color=BLUE)
        spread = ([result["measured_ms"] - result["measured_p20_ms"]],
                  [result["measured_p95_ms"] - result["measured_ms"]])  # fmt: skip
        stack.errorbar([1], [result["measured_ms"]], yerr=spread, color="black", capsize=3)
        stack.set_xticks((0, 1), ("predicted", verb), fontsize=7.5, rotation=30)
        stack.set(title=f"whole, {unit}")
        axes.set_yticks(y, [row["layer"].replace("_", " ") for row in rows], fontsize=7.5)
        axes.invert_yaxis()
        axes.set(xlabel=unit, title=f"{result['id']} on {result['device']['name']}")
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", fontsize=8)
    return figure


def _place(name: str, dense: list[str], other: list[str]) -> float:
    """The place of a layer in the order of running; one not in `dense` precedes its successor."""
    if name in dense:
        return dense.index(name)
    following = [n for n in other[other.index(name) :] if n in dense] if name in other else []
    return dense.index(following[0]) - 0.5 if following else math.inf


def kept_windows(
    images: Sequence[NDArray[np.float64]],
    labels: Sequence[str],
    maps: Sequence[dict[str, NDArray[np.bool_]]],
) -> Figure:
    """Draw test images in rows, blocks in columns, and darken what a block leaves out.

    `images` are (height, width, 3) in [0, 1]; `maps` hold for each image the tokens by block.
    """
    names = list(maps[0])
    per_row = min(8, len(names) + 1)
    lines = math.ceil((len(names) + 1) / per_row)
    tall = 0.8 * _tallness(images[0]) + 0.18  # of a row, and its titles
    figure = _figure(7.4, tall * lines * len(images) * 8 / per_row + 0.1)
    with mpl.rc_context(_STYLE):
        grid = figure.subplots(len(images) * lines, per_row, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for i, (image, label, own) in enumerate(zip(images, labels, maps)):
            image = _brightened(image)
            cells = grid[i * lines : (i + 1) * lines].ravel()
            cells[0].imshow(image)
            cells[0].set_title(label, fontsize=7)
            for axes, name in zip(cells[1:], names):
                kept = own[name]
                mask = _at_size_of(image, kept)[..., None]
                axes.imshow(np.clip(image * (0.25 + 0.75 * mask) + (1 - mask) * TINT, 0, 1))
                title = name.replace("stage", "s").replace("_", " ")
                axes.set_title(f"{title} {100 * kept.mean():.0f}%", fontsize=6, fontweight="normal")
    return figure


def _tallness(image: NDArray[np.float64]) -> float:
    """The height of a picture over its width."""
    height, width = image.shape[:2]
    return float(height / width)


def _at_size_of(image: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A map of tokens as pixels of a picture: as many for each, perhaps fewer at the far edges."""
    y, x = (np.arange(to) // -(-to // own) for to, own in zip(image.shape, kept.shape))
    found: NDArray[np.bool_] = kept[y[:, None], x]
    return found


def _brightened(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """A picture with the contrast that shows what is in it."""
    low, high = np.quantile(image, (0.02, 0.995))
    bright: NDArray[np.float64] = np.clip((image - low) / max(high - low, 1e-6), 0, 1) ** 0.7
    return bright


def masks(
    images: Sequence[NDArray[np.float64]],
    labels: Sequence[str],
    painted: Sequence[Mapping[str, NDArray[np.float32]]],
    legend: Mapping[str, tuple[float, float, float]],
) -> Figure:
    """Draw test images in rows: alone, then under each of what is painted over them.

    `images` are (height, width, 3) in [0, 1], `painted` for each the names of what is laid over it,
    with colours and opacity (any height, any width, 4). Of the legend what occurs is shown.
    """
    seen = [colour for own in painted for x in own.values() for colour in _shown(x)]
    keys = {
        name: colour for name, colour in legend.items() if any(np.allclose(colour, s) for s in seen)
    }
    columns = 1 + len(painted[0])
    tall = _tallness(images[0])
    figure = _figure(7.4, 7.4 / columns * len(images) * tall + 0.4)
    with mpl.rc_context(_STYLE):
        grid = figure.subplots(len(images), columns, squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for row, image, label, own in zip(grid, images, labels, painted):
            row[0].set_title(label, fontsize=8)
            for axes in row:
                axes.imshow(_brightened(image), extent=(0, 1, tall, 0))
            for axes, (name, x) in zip(row[1:], own.items()):
                axes.set_title(name, fontsize=8, fontweight="normal")
                axes.imshow(x, extent=(0, 1, tall, 0), interpolation="nearest")
        handles = [Patch(color=colour, label=name) for name, colour in keys.items()]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _shown(painted: NDArray[np.float32]) -> NDArray[np.float32]:
    """The colours (colours, 3) that are not transparent, each once."""
    return np.unique(painted[painted[..., 3] > 0][:, :3], axis=0)


def macs(result: dict[str, Any]) -> Figure:
    """Draw MACs over resolution on logarithmic axes, curves labelled with their fitted power.

    `result` is what `nas.report.macs.macs_by_resolution` returns. Solid: the two attention
    products; dashed: the whole model; a ring where the products become half of it.
    """
    figure = _figure(7.4, 4.8)
    sides = sorted({row["resolution"] for row in result["rows"]})
    with mpl.rc_context(_STYLE):
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log")
        labels: list[tuple[float, str, str, str]] = []
        for i, (slope, half) in enumerate(zip(result["slopes"], result["half"])):
            color = _LINES[i % len(_LINES)]
            for kind, line in _KINDS.items():
                counts = [r[kind] for r in result["rows"] if r["model"] == slope["model"]]
                if not all(counts):
                    continue
                axes.plot(sides, counts, color=color, **line)
                power = "" if slope[kind] is None else f"  $R^{{{slope[kind]:.2f}}}$"
                whole = kind == "macs"
                text = f"{slope['model']}{', whole' if whole else ''}{power}"
                labels.append((counts[-1], text, color, "normal" if whole else "bold"))
                if not whole and half[kind] and half[kind] > sides[0]:
                    _ring(axes, half[kind], sides, counts, color)
        _label_ends(axes, sides[-1], labels)
        axes.set_xticks(sides, _staggered(sides))
        axes.set_xticks([], minor=True)
        axes.set(xlabel="resolution R [pixels]", ylabel="multiply-accumulates of one image")
        names = ("the two attention products", "whole model")
        keys = [Line2D([], [], color=INK, label=n, **_KINDS[k]) for n, k in zip(names, _KINDS)]
        if any(half[_PRODUCTS] for half in result["half"]):
            keys.append(Line2D([], [], color=INK, lw=0, label="products are half of it", **_RING))
        axes.legend(handles=keys, loc="best", fontsize=8, handlelength=3.2)
        axes.grid(True)
        axes.set_axisbelow(True)
    return figure


def _staggered(sides: Sequence[int]) -> list[str]:
    """Labels of the ticks, one line lower where they would run into the one before."""
    labels: list[str] = []
    for i, side in enumerate(sides):
        near = i > 0 and side < 1.25 * sides[i - 1] and not labels[-1].startswith("\n")
        labels.append(f"\n{side}" if near else f"{side}")
    return labels


def _ring(axes: Axes, side: int, sides: list[int], counts: list[int], color: str) -> None:
    """Mark the resolution at which the products become half of the whole model."""
    y = np.exp(np.interp(np.log(side), np.log(sides), np.log(counts)))
    axes.plot([side], [y], mec=color, **_RING)
    text = axes.annotate(
        f"{side} px",
        (side, y),
        xytext=(7, -5),
        textcoords="offset points",
        fontsize=8,
        va="top",
        color=color,
    )
    text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _label_ends(axes: Axes, side: float, labels: Sequence[tuple[float, str, str, str]]) -> None:
    """Write names beside the last points of curves, moved apart where they would overlap."""
    low, high = np.log(axes.get_ylim())
    wanted = (np.log([y for y, *_ in labels]) - low) / (high - low)
    for (y, text, color, weight), place in zip(labels, _apart(wanted, 0.042)):
        axes.annotate(
            text,
            (side, y),
            xytext=(1.035, place),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color=color,
            fontweight=weight,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 1, "shrinkB": 4},
        )


def _apart(wanted: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Positions near those wanted with at least `gap` between neighbours."""
    places = wanted.copy()
    order = np.argsort(places, kind="stable")
    for _ in range(200):
        for below, above in pairwise(order):
            if (lack := gap - (places[above] - places[below])) > 0:
                places[below] -= lack / 2
                places[above] += lack / 2
    return places


def _cycle(n: int) -> Iterable[str]:
    return [SERIES[i % len(SERIES)] for i in range(n)]
