"""Learning without labels: vectors of every family, pictures alone as data, and what follows."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from conftest import DEBUG_SPACES, paint
from safetensors.torch import load_file
from timm_models import timm
from toys.average import Average

from nas import cli
from nas.data import Part, load_data
from nas.data.imagefolder import ImageFiles
from nas.errors import DataError, UsageError, WeightsError
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.layers.elastic import ElasticLinear
from nas.network.calibration import calibrate
from nas.network.macs import count_params, sum_macs
from nas.network.network import Network
from nas.records import read_json
from nas.tasks import load_task
from nas.tasks.classification import Classification
from nas.tasks.embedding import Embedding
from nas.tasks.segmentation import Segmentation
from nas.training.objectives.supervised import Supervised
from nas.training.recipe import Recipe
from nas.training.supernet import (
    folder_of,
    is_supernet,
    load_supernet,
    save_supernet,
    start_from,
)
from nas.training.train import check_training, train

RECIPE = Recipe(images=(64, 64, 64), batches=(8, 8, 8), learning_rate=3e-3)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures, some right in it, some two folders deep, in no class."""
    root = paint(tmp_path_factory.mktemp("nested") / "all" / "deep")
    for path in list((root / "dark").iterdir())[:4]:
        shutil.move(path, root.parent / f"loose-{path.name}")
    return root.parent


@pytest.fixture(scope="module")
def picture_data(pictures):
    return load_data(f"pictures:{pictures}")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory, picture_data):
    """A supernet that learned from pictures without labels."""
    folder = tmp_path_factory.mktemp("unlabelled") / "supernet"
    return train("vit:debug", picture_data, folder, RECIPE, objective="toys.average")


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_vectors_are_what_the_classifier_of_a_family_reads(name):
    torch.manual_seed(0)
    space = load_space(name, Classification(3))
    classifier = Network(space, space.largest).eval()
    calibrate(classifier, torch.randn(4, *space.example(space.largest)))
    bare = Network(load_space(name, Embedding()), space.largest).eval()
    missing = bare.load_state_dict(classifier.state_dict(), strict=False)
    assert not missing.missing_keys
    assert {k.split(".")[1] for k in missing.unexpected_keys} == {"head"}
    read = []
    last = [m for m in classifier.layers["head"].modules() if isinstance(m, ElasticLinear)][-1]
    last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    for architecture in (space.largest, space.smallest, space.draw(Random(1))):
        images = torch.randn(2, *space.example(architecture))
        classifier(images, architecture)
        assert torch.equal(bare(images, architecture), read.pop())
        plain = bare.inherit(architecture).eval()
        torch.testing.assert_close(plain(images), bare(images, architecture))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_a_projection_has_its_size_at_every_architecture(name):
    space = load_space(name, Embedding(7))
    network = Network(space, space.largest).eval()
    calibrate(network, torch.randn(4, *space.example(space.largest)))
    for architecture in (space.largest, space.smallest):
        images = torch.randn(2, *space.example(architecture))
        assert network(images, architecture).shape == (2, 7)
    bare = load_space(name, Embedding())
    (with_it,), (without,) = (s.head(s.largest)[-1:] for s in (space, bare))
    assert count_params(with_it) > count_params(without)
    assert sum_macs(bare.layers(bare.largest)).total < sum_macs(space.layers(space.largest)).total


def test_the_task_is_written_and_read():
    for task in (Embedding(), Embedding(64)):
        assert load_task(task.describe()) == load_task(task.to_json()) == task
    for size in (-1, 1.5, "64"):
        with pytest.raises(UsageError, match="whole number"):
            load_task({"task": "embedding", "size": size})


def test_pictures_need_no_classes_and_have_no_labels(picture_data, pictures):
    splits = (picture_data.train, picture_data.search, picture_data.test)
    assert sum(split.size for split in splits) == 24
    assert picture_data.train.batch(range(3), 16).keys() == {"images"}
    assert picture_data.summary().startswith(f"pictures:{pictures}: no labels; ")
    files = [{path for path, _ in split.files} for split in splits]
    assert not files[0] & files[1] | files[0] & files[2] | files[1] & files[2]


def test_folders_called_as_splits_are_splits(tmp_path, photos):
    shutil.copytree(photos / "dark", tmp_path / "train" / "a" / "b")
    shutil.copytree(photos / "bright", tmp_path / "test")
    data = load_data(f"pictures:{tmp_path}")
    assert data.test.size == 12
    assert data.train.size + data.search.size == 12
    assert {path.parent for path, _ in data.test.files} == {tmp_path / "test"}


def test_folders_without_pictures_are_refused(tmp_path, photos):
    with pytest.raises(DataError, match="no folder"):
        load_data(f"pictures:{tmp_path}/none")
    with pytest.raises(DataError, match="0 different pictures"):
        load_data(f"pictures:{tmp_path}")
    for i in range(3):
        shutil.copy(photos / "dark" / "0.png", tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="1 different pictures"):
        load_data(f"pictures:{tmp_path}")


def test_few_labels_are_the_first_of_each_class_to_learn_from_and_to_search_with(photos):
    data, few = (load_data(f"imagefolder:{photos}{more}") for more in ("", ",labels=2"))
    for own, whole in ((few.train, data.train), (few.search, data.search)):
        labels = whole.batch(range(whole.size), 16)["labels"].tolist()
        first = sorted(n for c in (0, 1) for n in [i for i, x in enumerate(labels) if x == c][:2])
        assert own.size == len(first)
        ours = own.batch(range(own.size), 16)["images"]
        assert np.array_equal(ours, whole.batch(first, 16)["images"])
    assert few.test.size == data.test.size
    assert few.fingerprint != data.fingerprint
    assert few.name == f"{data.name},labels=2"
    scenes = load_data("scenes,labels=10")
    assert (scenes.train.size, scenes.search.size, scenes.test.size) == (100, 100, 4000)
    for split in (scenes.train, scenes.search):
        labels = split.batch(range(100), 40)["labels"]
        assert np.bincount(labels).tolist() == [10] * 10


def test_few_labels_are_found_without_pictures_and_classes_that_have_fewer_are_said(
    photos, monkeypatch, capsys
):
    read, load = [], ImageFiles._load
    monkeypatch.setattr(
        ImageFiles, "_load", lambda self, *what: read.append(what) or load(self, *what)
    )
    data = load_data(f"imagefolder:{photos}")
    once = len(read)
    few = load_data(f"imagefolder:{photos},labels=4")
    assert len(read) == 2 * once
    assert few.train.size == 8
    assert few.search.size == data.search.size == 2
    said = capsys.readouterr().err
    assert "search has fewer than 4 labels of bright, dark" in said
    assert "train has fewer" not in said


def test_annotations_are_what_a_batch_has_beside_its_pictures(photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "x")
    for path in (tmp_path / "x").rglob("*.png"):
        path.with_suffix(".txt").write_text(f"{path.parent.name} {path.stem}")
    kinds = ("imagefolder", "pictures", "captions")
    splits = [load_data(f"{kind}:{tmp_path / 'x'}").train for kind in kinds]
    splits.append(Part(splits[0], [5, 3, 8, 7]))
    batches = [split.batch([2, 0, 3], 16) for split in splits]
    monkeypatch.setattr(ImageFiles, "_load", lambda *what: 1 / 0)
    for split, batch in zip(splits, batches):
        del batch["images"]
        found = split.annotations([2, 0, 3], 16)
        assert found.keys() == batch.keys()
        assert all(np.array_equal(found[name], batch[name]) for name in found)


@pytest.mark.parametrize("name", ["scenes,labels=0", "scenes,labels=x", "scenes,labels=-1"])
def test_a_number_of_labels_that_is_none_is_refused(name):
    with pytest.raises(DataError, match="a number from 1 on"):
        load_data(name)


def test_few_labels_of_data_without_classes_are_refused(pictures):
    for name in ("scenes:masks", f"pictures:{pictures}"):
        with pytest.raises(DataError, match="no classes of whole samples"):
            load_data(f"{name},labels=10")


def test_a_supernet_that_learned_without_labels_loads_and_gives_vectors(unlabelled, picture_data):
    network, card = load_supernet(unlabelled, "vit:debug", picture_data)
    assert card["task"] == "embedding"
    assert card["size"] == 0
    assert not any("percent" in key for key in card)
    evaluator = Evaluator(network, picture_data, picture_data.search, 10)
    for architecture, width in ((network.space.largest, 12), (network.space.smallest, 8)):
        vectors = evaluator.outputs(evaluator.subnet(architecture).deploy())
        assert vectors.shape == (picture_data.search.size, width)
    with pytest.raises(UsageError, match="no score of their own"):
        evaluator.percent(network.space.largest)


def test_it_loads_beside_labels_too(photo_data, tmp_path, monkeypatch):
    """Shipped scenes and folders of classes serve as pictures; their labels stay unused."""
    monkeypatch.setattr(Average, "task", classmethod(lambda cls, posed: Embedding()))
    folder = train("vit:debug", photo_data, tmp_path / "own", RECIPE, objective="toys.average")
    network, card = load_supernet(folder, "vit:debug", photo_data)
    assert network.space.task == Embedding()
    assert card["data"] == photo_data.name
    with pytest.raises(WeightsError, match="vitnas train --init"):
        train("vit:debug", photo_data, tmp_path / "x", RECIPE, adapt=str(folder))


def test_labels_are_asked_for_by_the_objective_that_needs_them(picture_data, tmp_path):
    assert Supervised.needs_labels
    with pytest.raises(UsageError, match="supervised learns from labels") as caught:
        train("vit:debug", picture_data, tmp_path, RECIPE)
    assert "--objective mae" in str(caught.value)


def test_a_training_starts_from_a_supernet_of_another_task(unlabelled, photo_data, tmp_path, capfd):
    still = Recipe(images=(0, 8, 8), batches=(8, 8, 8), learning_rate=0.0, weight_decay=0.0)
    folder = train("vit:debug", photo_data, tmp_path / "own", still, init=str(unlabelled))
    assert "head: 2 tensors start anew" in capfd.readouterr().err
    ours, theirs = (load_file(f / "weights.safetensors") for f in (folder, unlabelled))
    assert ours.keys() - theirs.keys() == {"layers.head.fc.weight", "layers.head.fc.bias"} | {
        "layers.head.fc.input.clip"
    }
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs if not n.endswith("clip"))
    training = read_json(folder / "supernet.json")["training"]
    assert training["init"] == str(unlabelled)
    assert training["before"]["objective"] == "toys.average"
    assert training["init_fingerprint"] == read_json(unlabelled / "supernet.json")["fingerprint"]


def test_outputs_of_another_meaning_start_anew(photo_data, tmp_path, capfd):
    space = load_space("vit:debug", photo_data.task)
    trained = Network(space, space.largest).eval()
    save_supernet(tmp_path, trained, photo_data, {})
    for names, new in ((("bright", "dark"), False), (("cat", "dog"), True)):
        other = Network(load_space("vit:debug", Classification.of(names)), space.largest)
        start_from(other, tmp_path)
        head, theirs = (n.layers["head"].fc.weight for n in (other, trained))
        assert torch.equal(head, theirs) is not new
        assert ("head: 2 tensors start anew" in capfd.readouterr().err) is new


def test_what_is_as_long_as_there_are_outputs_but_none_of_them_is_kept(photo_data, tmp_path):
    space = load_space("vit:debug", Embedding())
    width = space.largest.stages[0].width
    trained = Network(space, space.largest)
    torch.nn.init.uniform_(trained.layers["head"].norm.weight)
    save_supernet(tmp_path, trained, photo_data, {})
    other = Network(load_space("vit:debug", Embedding(width)), space.largest)
    start_from(other, tmp_path)
    assert torch.equal(other.layers["head"].norm.weight, trained.layers["head"].norm.weight)


def test_positions_are_resized_where_a_start_saw_pictures_of_another_size(
    unlabelled, photo_data, capfd
):
    theirs = load_file(unlabelled / "weights.safetensors")["layers.stem.position"].float()
    space = load_space("vit:debug@16", photo_data.task)
    network = Network(space, space.largest)
    start_from(network, unlabelled)
    ours = network.state_dict()["layers.stem.position"]
    assert ours.shape[:2] == (4, 4) != theirs.shape[:2]
    expected = timm.layers.resample_abs_pos_embed(
        theirs.flatten(0, 1)[None], (4, 4), num_prefix_tokens=0
    )
    torch.testing.assert_close(ours.detach(), expected[0].view(4, 4, -1))
    assert "head: 2 tensors start anew" in capfd.readouterr().err


def test_a_segmenter_starts_from_the_backbone_of_a_classifier(photo_data, tmp_path, capfd):
    space = load_space("efficientvit:debug", photo_data.task)
    classifier = Network(space, space.largest).eval()
    save_supernet(tmp_path, classifier, photo_data, {})
    space = load_space("efficientvit:debug", Segmentation())
    segmenter = Network(space, space.largest)
    start_from(segmenter, tmp_path)
    assert "start anew" in capfd.readouterr().err
    theirs, ours = classifier.state_dict(), segmenter.state_dict()
    shared = [n for n in theirs if not n.startswith("layers.head.")]
    assert shared
    assert all(torch.equal(ours[n], theirs[n]) for n in shared)


def test_vectors_are_said_to_be_no_classes():
    meaning = Embedding().meaning(torch.tensor([[1.0, 2.0]]), 5)
    assert meaning.line == "a vector of 2 numbers, and no class"
    assert meaning.facts == {"outputs": [1.0, 2.0]}


def test_a_supernet_that_ships_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = folder_of("efficientvit-micro-captions")
    assert (shipped / "weights.safetensors").is_file()
    assert is_supernet("efficientvit-micro-captions")
    for name in ("no-such-supernet", f"{tmp_path}/efficientvit-micro-captions", "x" * 300):
        assert folder_of(name) == Path(name)
        assert not is_supernet(name)
    Path("efficientvit-micro-captions").mkdir()  # one's own comes first
    assert folder_of("efficientvit-micro-captions") == Path("efficientvit-micro-captions")


def test_a_start_that_cannot_be_is_refused(unlabelled, picture_data, tmp_path):
    given = {"init": str(unlabelled), "objective": "toys.average"}
    with pytest.raises(WeightsError, match="is of the family vit"):
        check_training("swin:debug", tmp_path / "own", False, **given)
    with pytest.raises(WeightsError, match="is of the family vit"):
        train("swin:debug", picture_data, tmp_path / "own", RECIPE, **given)
    space = load_space("vit:tiny", Embedding())
    with pytest.raises(WeightsError, match="no tensor of the supernet"):
        start_from(Network(space, space.largest), unlabelled)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "checkpoint.json").write_text("{}")
    with pytest.raises(WeightsError, match="no finished supernet"):
        check_training("vit:debug", tmp_path / "own", False, **{**given, "init": str(stopped)})
    damaged = shutil.copytree(unlabelled, tmp_path / "damaged")
    (damaged / "weights.safetensors").write_bytes(b"0")
    with pytest.raises(WeightsError, match="cannot load"):
        start_from(Network(space, space.largest), damaged)


def test_the_commands_pretrain_and_report(pictures, tmp_path, capsys):
    """Training without labels, and its page, as a person has them."""
    folder = tmp_path / "pretrained"
    given = ["--space", "vit:debug", "--objective", "mae", "--data", f"pictures:{pictures}"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", *given, "--images", "200", "--out", str(folder)])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "pretrained: embedding, learned without labels" in said.replace("\n", "")
    (page,) = folder.glob("*.html")
    page.unlink()
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(folder)])
    assert not stop.value.code
    assert "Training of vit:debug (objective: mae)" in page.read_text()
    for words, fix in (
        (["report", str(folder), str(folder)], "vitnas search --supernet"),
        (["predict", str(folder), str(pictures)], "vitnas search --supernet"),
        (["train", "--init", "efficientvit-micro-caption", "--out", f"{tmp_path}/x"], "did you"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code
        assert fix in capsys.readouterr().err.replace("\n", " ")
