"""Supernet training: it learns, it resumes to the same curve, it refuses what does not fit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from nas import cli
from nas.data import load_data
from nas.errors import RunError, UnknownNameError, UsageError, VitnasError, WeightsError
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.network.inputs import Images
from nas.network.network import Network
from nas.records import Journal, read_json
from nas.tasks.classification import Classification
from nas.training.device import check_device
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import ADAPTATION, Recipe
from nas.training.supernet import load_supernet, read_card, supernet_folder
from nas.training.train import check_training, train
from nas.training.trainer import Trainer, fit

RECIPE = Recipe(images=(320, 640, 640), batches=(8, 8, 8), learning_rate=3e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photo_data):
    folder = tmp_path_factory.mktemp("trained") / "supernet"
    torch.set_num_threads(1)
    return train("swin:debug", photo_data, folder, RECIPE)


def test_training_learns_and_writes_a_card(trained, photo_data):
    network, card = load_supernet(trained, "swin:debug", photo_data)
    assert card["space"] == "swin:debug"
    assert card["classes"] == ["bright", "dark"]
    losses = [r["loss"] for r in Journal(trained / "loss.jsonl").read()]
    assert losses[-1] < 0.5 * losses[0]
    evaluator = Evaluator(network, photo_data, photo_data.train, 20)
    assert evaluator.percent(network.space.largest) > 90
    drawn = [network.space.draw(Random(i)) for i in range(8)]
    assert sum(map(evaluator.percent, drawn)) / 8 > 80


def test_a_stopped_training_resumes_to_the_same_curve_and_weights(trained, photo_data, tmp_path):
    folder = tmp_path / "supernet"
    calls = iter(range(10**6))
    train("swin:debug", photo_data, folder, RECIPE, checkpoint_s=0, stop=lambda: next(calls) == 70)
    assert not (folder / "supernet.json").exists()
    assert read_json(folder / "checkpoint.json")["step"] == 70
    train("swin:debug", photo_data, folder, RECIPE, resume=True)
    assert_same(folder, trained)


def assert_same(folder, trained):
    ours, theirs = (load_file(f / "weights.safetensors") for f in (folder, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    curves = [Journal(f / "loss.jsonl").read() for f in (folder, trained)]
    by_step = [{r["step"]: r["loss"] for r in curve} for curve in curves]
    # Where a run was stopped between two entries, the next one averages fewer steps.
    same = [step for step, loss in by_step[1].items() if by_step[0].get(step) == loss]
    assert len(same) >= len(by_step[1]) - 1
    assert by_step[0].keys() == by_step[1].keys()


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_curve_and_weights(trained, photos, tmp_path):
    folder = tmp_path / "supernet"
    code = f"""
import torch; torch.set_num_threads(1)
from pathlib import Path
from nas.data import load_data
from nas.training.train import train
from nas.training.recipe import Recipe
train("swin:debug", load_data("imagefolder:{photos}"), Path("{folder}"), {RECIPE!r}, resume=True,
      checkpoint_s=0)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not list(folder.glob("checkpoint-[4-9]?.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "supernet.json").exists()
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    assert_same(folder, trained)


def test_training_refuses_what_does_not_fit(trained, photo_data, tmp_path):
    with pytest.raises(RunError, match="--resume"):
        train("swin:debug", photo_data, trained, RECIPE)
    with pytest.raises(RunError, match="another recipe"):
        train("swin:debug", photo_data, trained, Recipe(seed=1), resume=True)
    with pytest.raises(WeightsError, match="has the space swin:debug, not vit:debug"):
        load_supernet(trained, "vit:debug", photo_data)
    with pytest.raises(WeightsError, match="has the classes"):
        load_supernet(trained, "swin:debug", load_data("scenes"))
    changed = replace(photo_data, fingerprint="another")
    with pytest.raises(WeightsError, match=r"images of .* have changed"):
        load_supernet(trained, "swin:debug", changed)
    with pytest.raises(WeightsError, match="no finished supernet"):
        load_supernet(tmp_path, "swin:debug", photo_data)
    with pytest.raises(WeightsError, match="vitnas train --space vit:debug"):
        supernet_folder("vit:debug", photo_data)


def test_damaged_weights_are_an_error_with_the_fix(trained, photo_data, tmp_path):
    (tmp_path / "supernet.json").write_text((trained / "supernet.json").read_text())
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="train again"):
        load_supernet(tmp_path, "swin:debug", photo_data)


def test_a_training_device_that_is_not_there():
    with pytest.raises(VitnasError, match="cpu"):
        check_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(VitnasError, match="--device cpu"):
            check_device("cuda")


def test_the_rate_warms_up_and_falls_to_nothing():
    recipe = Recipe()
    total = sum(recipe.steps())
    rates = [recipe.rate(step) for step in range(total)]
    assert max(rates) == pytest.approx(recipe.learning_rate, rel=1e-2)
    assert rates[0] < 0.05 * max(rates)
    assert rates[-1] < 1e-3 * max(rates)
    assert Recipe().scaled(sum(Recipe().images)) == Recipe()
    assert sum(Recipe().scaled(20_000).images) == pytest.approx(20_000, rel=0.01)
    assert [recipe.phase(s) for s in (0, recipe.steps()[0], total - 1)] == [0, 1, 2]


def test_a_step_of_the_sandwich_trains_what_every_subnet_uses(photo_data):
    torch.manual_seed(0)
    space = load_space("swin:debug", Classification(2))
    network = Network(space, space.largest)
    before = {k: v.clone() for k, v in network.named_parameters()}
    trainer = Trainer(network, photo_data, RECIPE, Supervised(space))
    trainer.step = sum(RECIPE.steps()) // 2
    trainer.train_step()
    assert all(not torch.equal(before[k], v) for k, v in network.named_parameters())


def test_a_plain_network_learns_from_labels_and_from_its_teacher(photo_data):
    torch.manual_seed(0)
    space = load_space("swin:debug", Classification(2))
    network, teacher = (Network(space, a) for a in (space.smallest, space.largest))
    size = space.largest.resolution
    recipe = Recipe(images=(0, 0, 8), batches=(8, 8, 8), learning_rate=0.0)
    unvaried = replace(photo_data, augment=None)
    trainer = Trainer(network, unvaried, recipe, Supervised(space), teacher)
    generator = torch.Generator().manual_seed(0)
    first = torch.randperm(photo_data.train.size, generator=generator)[:8].tolist()
    batch = photo_data.prepare(photo_data.train.batch(first, size))
    with torch.no_grad():
        small = network(Images().resized(batch["images"], network.architecture.resolution))
        soft = teacher.eval()(batch["images"]).softmax(-1)
    hard = torch.nn.functional.one_hot(batch["labels"], 2)
    expected = -((hard + soft) * small.log_softmax(-1)).sum(-1).mean()
    assert trainer.train_step() == pytest.approx(float(expected), rel=1e-5)


def test_a_plain_network_is_trained_by_the_same_loop(photo_data, tmp_path):
    """Fine-tuned, stopped and resumed to the same weights; what it began as is part of it."""
    torch.manual_seed(0)
    space = load_space("swin:debug", Classification(2))
    before = Network(space, space.smallest)
    recipe = Recipe(images=(160, 160, 320), batches=(8, 8, 8), learning_rate=1e-3)

    def tuned(folder, architecture=space.smallest, **options):
        network = Network(space, architecture)
        if architecture == space.smallest:
            network.load_state_dict(before.state_dict())
        return network, fit(network, photo_data, recipe, Supervised(space), folder, **options)

    whole, record = tuned(tmp_path / "whole", settings={"from": "photos"})
    assert record["step"] == sum(recipe.steps())
    assert (record["from"], record["architecture"]) == ("photos", space.smallest.id)
    calls = iter(range(10**6))
    stopped = {"settings": {"from": "photos"}, "stop": lambda: next(calls) == 45}
    assert tuned(tmp_path / "parts", **stopped)[1] is None
    parts, _ = tuned(tmp_path / "parts", settings={"from": "photos"}, resume=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name])
    assert any(not torch.equal(whole.state_dict()[n], x) for n, x in before.state_dict().items())
    with pytest.raises(RunError, match="another architecture"):
        tuned(tmp_path / "parts", space.draw(Random(0)), settings={"from": "photos"}, resume=True)
    with pytest.raises(RunError, match="another from"):
        tuned(tmp_path / "parts", settings={"from": "noise"}, resume=True)


def test_an_unknown_objective_is_an_error_with_those_there_are(photo_data, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown objective 'rotation'"):
        train("swin:debug", photo_data, tmp_path, RECIPE, objective="rotation")


def test_resize_is_pillows_antialiased_resize():
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((24, 24), Image.Resampling.BILINEAR))
    ours = Images().resized(torch.from_numpy(pixels)[None, None].float(), 24)[0, 0]
    assert float((ours - torch.from_numpy(expected.copy())).abs().max()) < 1.0


def test_the_shipped_supernet_still_has_the_scores_that_ship_with_it():
    """Weights, data and layers are what they were when its architectures were scored."""
    data = load_data("scenes")
    folder = supernet_folder("swin:micro", data)
    network, _ = load_supernet(folder, "swin:micro", data)
    wanted = network.space.restrict("sparsity", 80).largest
    (shipped,) = {
        r["top1_percent"]
        for r in Journal(folder / "scores.jsonl").read()
        if r["architecture"] == wanted.to_json()
    }
    evaluator = Evaluator(network, data, data.search, 400)
    # Rounding on another CPU moves an image or two.
    assert evaluator.percent(wanted) == pytest.approx(shipped, abs=0.76)


ADAPTED = replace(ADAPTATION, images=(0, 64, 128), batches=(8, 8, 8))


def test_adaptation_goes_on_from_a_supernet_and_leaves_it_as_it_is(trained, photo_data, tmp_path):
    before = (trained / "weights.safetensors").read_bytes()
    still = replace(ADAPTED, learning_rate=0.0, weight_decay=0.0)
    folder = train("swin:debug", photo_data, tmp_path / "still", still, adapt=str(trained))
    ours, theirs = (load_file(f / "weights.safetensors") for f in (folder, trained))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs if not n.endswith("clip"))

    folder = train("swin:debug", photo_data, tmp_path / "adapted", ADAPTED, adapt=str(trained))
    assert (trained / "weights.safetensors").read_bytes() == before
    card = read_json(folder / "supernet.json")
    source = read_json(trained / "supernet.json")
    assert card["training"]["adapt"] == source["fingerprint"]
    assert card["training"]["before"] == source["training"]
    network, _ = load_supernet(folder, "swin:debug", photo_data)
    assert Evaluator(network, photo_data, photo_data.train, 20).percent(network.space.largest) > 90


def test_a_stopped_adaptation_goes_on(trained, photo_data, tmp_path):
    whole = train("swin:debug", photo_data, tmp_path / "whole", ADAPTED, adapt=str(trained))
    part, calls = tmp_path / "part", iter(range(10**6))
    start = {"adapt": str(trained), "checkpoint_s": 0}
    train("swin:debug", photo_data, part, ADAPTED, stop=lambda: next(calls) == 11, **start)
    assert not (part / "supernet.json").exists()
    train("swin:debug", photo_data, part, ADAPTED, resume=True, adapt=str(trained))
    assert_same(part, whole)


def test_the_command_takes_space_and_data_of_the_supernet_that_it_adapts(trained, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--adapt", str(trained), "--out", f"{tmp_path}/a", "--images", "200"])
    assert not stop.value.code
    before, after = (read_card(folder) for folder in (trained, tmp_path / "a"))
    assert [after[k] for k in ("space", "data")] == [before[k] for k in ("space", "data")]
    assert after["training"]["adapt"] == before["fingerprint"]


def test_adaptation_refuses_what_does_not_fit(trained, photo_data, tmp_path):
    with pytest.raises(WeightsError, match="has the space swin:debug, not vit:debug"):
        train("vit:debug", photo_data, tmp_path / "a", ADAPTED, adapt=str(trained))
    with pytest.raises(WeightsError, match="not"):
        train("swin:debug", load_data("scenes"), tmp_path / "b", ADAPTED, adapt=str(trained))
    with pytest.raises(UsageError, match="not from both"):
        check_training("swin:debug", tmp_path / "c", False, "a.pt", "supervised", str(trained))
    with pytest.raises(RunError, match="another adapt"):
        folder = train("swin:debug", photo_data, tmp_path / "d", ADAPTED)
        train("swin:debug", photo_data, folder, ADAPTED, resume=True, adapt=str(trained))


def test_another_supernet_may_teach(trained, photo_data, tmp_path):
    with pytest.raises(WeightsError, match="no finished supernet"):
        check_training("vit:debug", tmp_path / "a", False, "", "supervised", "", str(tmp_path))
    other = replace(photo_data, task=Classification(3))
    with pytest.raises(WeightsError, match=f"{trained} has the classes"):
        train("vit:debug", other, tmp_path / "d", SMALL, teacher=str(trained))
    folder = train("vit:debug", photo_data, tmp_path / "b", SMALL, teacher=str(trained))
    card = read_json(folder / "supernet.json")
    assert card["training"]["teacher"] == read_json(trained / "supernet.json")["fingerprint"]
    alone = train("vit:debug", photo_data, tmp_path / "c", SMALL)
    ours, theirs = (Journal(f / "loss.jsonl").read() for f in (folder, alone))
    assert ours[0]["loss"] > theirs[0]["loss"]  # the teacher's is added to that of the labels


SMALL = Recipe(images=(16, 16, 16), batches=(8, 8, 8))
