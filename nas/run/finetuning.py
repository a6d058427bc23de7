"""Fine-tuning: winners of a run and their best dense rivals, each alone at its own schedule.

What is trained is the plain network with inherited weights. It learns from the labels and from the
largest network of the supernet; where that is worse, as in supernets that saw few samples of the
whole size, from itself as it was. So training and search see the same two splits as before, and the
test split judges once more, after the last step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from nas.budget import Budget
from nas.data import Dataset, load_data
from nas.errors import EvaluationError, RunError, UsageError
from nas.evaluation.accuracy import Evaluator, Scored
from nas.evaluation.score_task import rounded_by_class
from nas.export import export_measured
from nas.latency.end_to_end import measure_fresh
from nas.network.network import Network
from nas.progress import bar, console
from nas.records import read_object, write_json
from nas.report.saved_run import SavedRun
from nas.report.wording import SHOWN
from nas.run.inputs import chosen_metric, recorded_kernel, source_of
from nas.run.stopwatch import Samples
from nas.run_record import Answer, Candidate, FineTuned, FineTuning
from nas.space.architecture import Architecture, at_precision
from nas.space.task import Metric
from nas.training.objectives import load_objective
from nas.training.recipe import Recipe
from nas.training.supernet import as_learned, load_supernet, settle
from nas.training.trainer import fit

# A tenth of the rate of a training from nothing; all at the network's own size.
RECIPE = Recipe(images=(0, 0, 6_400), batches=(64, 32, 16), learning_rate=3e-4, subnets={})
_ROUNDS = 10  # of measuring


def finetune(
    folder: str | Path,
    *,
    recipe: Recipe = RECIPE,
    dense: bool = True,
    resume: bool = False,
    checkpoint_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> FineTuning | None:
    """Train the winner of each budget of a run further, and the best dense network as long.

    Writes `finetuned/` (exported like `winner/`) and `finetuned.json` into the run, and the report
    again; returns what `finetuned.json` holds, or None where `stop` ended a training early. With
    `resume` a training that was stopped goes on. Raises `RunError` where images or supernet are no
    longer those of the run.
    """
    run = SavedRun.load(Path(folder))
    known, wanted = run.finetuned, _wanted(run, dense)
    if known is not None and not resume:
        raise RunError(
            f"{run.folder} is fine-tuned already",
            f"remove {run.folder / 'finetuned.json'} to do it again",
        )
    if known is not None and _is_done(known, recipe, wanted):
        return known
    started = time.monotonic()
    network, data, metric = _supernet(run)
    done = []
    for answer, candidate, name in wanted:
        own = run.architecture(candidate)
        largest = answer.baseline("largest dense")
        worse = largest is not None and largest.expected_percent < candidate.expected_percent
        trained = train_alone(
            network, data, own, recipe, run.folder / "finetuning" / own.id,
            run.record.supernet.fingerprint, teacher=own if worse else None, resume=resume,
            checkpoint_s=checkpoint_s, stop=stop,
        )  # fmt: skip
        if trained is None:
            return None
        accuracies = _accuracies(run, data, trained, metric)
        if (percent := accuracies[0].percent) < candidate.search_percent - SHOWN:
            console.print(
                f"{candidate.name}: fine-tuning lowered the accuracy on the search split from "
                f"{candidate.search_percent:.1f} to {percent:.1f} %; try a lower --rate, or keep "
                "what it inherited",
                style="yellow",
            )
        where = name if candidate is answer.winner else ""
        if where:
            export_measured(trained, data, run.record.device_described, run.folder / where)
        done.append((answer, candidate, accuracies, where))
    times = _measured(run, [run.architecture(candidate) for _, candidate, *_ in done])
    networks = tuple(
        FineTuned(
            budget_ms=answer.budget_ms,
            name=candidate.name,
            id=candidate.id,
            folder=where,
            measured_ms=ms,
            inherited_search_percent=candidate.search_percent,
            inherited_test_percent=candidate.test_percent,
            search_percent=search.percent,
            test_percent=test.percent,
            test_error_points=test.variance**0.5,
            test_by_class=rounded_by_class(test),
        )
        for (answer, candidate, (search, test), where), ms in zip(done, times)
    )
    found = FineTuning(
        images=sum(recipe.images),
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        seconds=round(time.monotonic() - started, 1),
        networks=networks,
    )
    write_json(run.folder / "finetuned.json", found.to_json(run.record.metric.name))
    shutil.rmtree(run.folder / "finetuning", ignore_errors=True)
    from nas.report.report import write_report

    write_report([run.folder])
    return found


def _is_done(
    known: FineTuning, recipe: Recipe, wanted: Sequence[tuple[Answer, Candidate, str]]
) -> bool:
    """Whether all wanted networks were trained by this recipe."""
    same = (known.images, known.learning_rate, known.seed) == (
        sum(recipe.images), recipe.learning_rate, recipe.seed
    )  # fmt: skip
    return same and {c.id for _, c, _ in wanted} <= {own.id for own in known.networks}


def _supernet(run: SavedRun) -> tuple[Network, Dataset, Metric]:
    """The supernet of a run, its data, and what was maximised, all as they were."""
    identity = read_object(run.folder / "settings.json")
    data = load_data(run.record.data)
    if data.fingerprint != identity.get("data_fingerprint", data.fingerprint):
        raise RunError(
            f"the images of {data.name} have changed since {run.folder} was searched",
            "restore them, or search again",
        )
    source = source_of(run.settings, data)
    network, card = load_supernet(source, run.record.space, data)
    if card["fingerprint"] != run.record.supernet.fingerprint:
        raise RunError(
            f"{source} holds other weights than those that {run.folder} was searched with",
            "restore them, or search again",
        )
    data = as_learned(data, card)
    metric = chosen_metric(run.settings, network.space, data, source)
    network = metric.searched(network, data)
    if not network.space.task.labelled:
        raise UsageError(
            f"the networks of {run.folder} give vectors, which no label trains",
            f"make classifiers of the supernet first: vitnas train --init {source}",
        )
    return network, data, metric


def _wanted(run: SavedRun, dense: bool) -> list[tuple[Answer, Candidate, str]]:
    """The networks to train, each once: its answer, and the folder that it is exported to."""
    found: list[tuple[Answer, Candidate, str]] = []
    for answer in run.record.answers:
        rival = answer.baseline("best dense") if dense else None
        suffix = "" if answer is run.record.answers[0] else f"-{Budget(answer.budget_ms)}"
        for candidate in filter(None, (answer.winner, rival)):
            if candidate.id not in {known.id for _, known, _ in found}:
                found.append((answer, candidate, f"finetuned{suffix}"))
    return found


def train_alone(
    network: Network,
    data: Dataset,
    architecture: Architecture,
    recipe: Recipe,
    folder: Path,
    supernet: str,
    *,
    teacher: Architecture | None = None,
    resume: bool = False,
    checkpoint_s: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> Network | None:
    """The network of an architecture, trained on from the weights of a supernet `network`.

    It learns from the labels and from the `teacher`, by default the largest network. Blocks in int8
    train in float32, and get new ranges for what their inputs are then. Checkpoints go to `folder`;
    `supernet` is the fingerprint of the weights. None where `stop` ended it early.
    """
    exact = at_precision(architecture, "fp32")
    plain = network.inherit(exact)
    torch.manual_seed(recipe.seed)
    done = fit(
        plain, data, recipe, load_objective("supervised", network.space), folder,
        teacher=network.inherit(at_precision(teacher or network.space.largest, "fp32")),
        resume=resume,
        settings={"supernet": supernet}, checkpoint_s=checkpoint_s, stop=stop,
    )  # fmt: skip
    if done is None:
        return None
    settle(plain, data)
    return plain if architecture == exact else plain.inherit(architecture)


def _accuracies(run: SavedRun, data: Dataset, network: Network, metric: Metric) -> list[Scored]:
    """What a trained network did on the search and on the test split."""
    found = []
    counts = (run.record.search_images, run.record.test_images)
    with bar("evaluate", sum(counts), "samples") as advance:
        for split, count in zip((data.search, data.test), counts):
            evaluator = Evaluator(network, data, split, count, metric=metric)
            found.append(Scored(metric, evaluator.observed_by(deepcopy(network).deploy())))
            advance(count, "")
    return found


def _measured(run: SavedRun, networks: Sequence[Architecture]) -> list[float | None]:
    """Median milliseconds on the device of the run, in turns; None where it cannot be measured."""
    if run.record.verb != "measured":
        return [None] * len(networks)
    kernel = recorded_kernel(read_object(run.folder / "settings.json"))
    try:
        with bar("measure", _ROUNDS, "rounds") as advance:
            found = measure_fresh(
                run.record.device, run.space, networks, _ROUNDS,
                advance=lambda n: advance(n, ""), kernel=kernel.__name__,
            )  # fmt: skip
    except EvaluationError:  # another machine, or a device that is no longer there
        return [None] * len(networks)
    threads = run.record.device_described.get("threads", 1)
    return [round(Samples.of(own, threads).median_ms, 4) for own in found]


def shorter(images: int, seed: int) -> Recipe:
    """The recipe of fine-tuning for as many images."""
    return replace(RECIPE.scaled(images), seed=seed)
