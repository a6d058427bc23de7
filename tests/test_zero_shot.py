"""Labels in words as the last layer of a network, and as answers to pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DEBUG_SPACES, export_weights_alone, made_up_table, measure_as_predicted
from PIL import Image

import nas
from nas.cli import main
from nas.data import load_data
from nas.deployment import Card
from nas.errors import UsageError, VitnasError, WeightsError
from nas.evaluation.accuracy import Evaluator
from nas.evaluation.score_task import Payload, Scorer, Scoring, cargo, load_scorer
from nas.evaluation.zero_shot import embedding_in, fold, keep_projection, mean_length, projections
from nas.export import export_network
from nas.families import load_space
from nas.network.calibration import calibrate
from nas.network.macs import count_macs, count_params
from nas.network.network import Network
from nas.prediction import predict
from nas.report.saved_run import SavedRun
from nas.saved_network import subject
from nas.scores import load_score
from nas.tasks.classification import Classification
from nas.tasks.embedding import Embedding
from nas.text.encoder import TextEncoder
from nas.text.prompts import classifier_of
from nas.text.tokens import Tokenizer
from nas.text.tower import TextSizes, TextTower
from nas.training.recipe import Recipe
from nas.training.supernet import as_learned, load_supernet, supernet_folder
from nas.training.train import train

NAMES = ("a bag", "a coat", "a sneaker")


def network_of(name, size=12, seed=0):
    torch.manual_seed(seed)
    space = load_space(name, Embedding(size))
    network = Network(space, space.largest).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    calibrate(network, torch.randn(4, *space.example(space.largest)))
    return network


def rows_of(size=12, labels=3):
    generator = torch.Generator().manual_seed(1)
    return F.normalize(torch.randn(labels, size, generator=generator), dim=1)


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_a_folded_network_gives_the_class_that_is_nearest_by_cosine(name):
    network = network_of(name)
    space = network.space
    for architecture in (space.largest, space.draw(Random(4))):
        plain = network.inherit(architecture)
        folded = fold(plain, rows_of(), 20.0, NAMES)
        inputs = torch.randn(6, *space.example(architecture))
        with torch.no_grad():
            vectors, logits = plain(inputs), folded(inputs)
        cosines = F.normalize(vectors.double(), dim=1) @ rows_of().double().T
        assert (logits - 20 * vectors @ rows_of().T).abs().max() <= 2e-4
        assert torch.equal(logits.argmax(1), cosines.argmax(1))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_a_folded_network_is_a_plain_classifier_of_as_many_classes(name):
    network = network_of(name)
    folded = fold(network, rows_of(), 1.0, NAMES)
    plain = load_space(name, Classification(3))
    assert folded.space.task == plain.task
    layers, expected = (s.layers(plain.largest) for s in (folded.space, plain))
    assert layers == expected  # rows of a latency table, MACs and parameters are those
    assert [count_macs(x) for x in layers] == [count_macs(x) for x in expected]
    assert sum(map(count_params, layers)) == sum(p.numel() for p in folded.parameters())


def test_an_embedding_as_wide_as_other_layers_is_told_from_them():
    network = network_of("vit:debug", 12)  # which is also the width
    assert projections(network.space) == ["layers.head.fc.weight", "layers.head.fc.bias"]


def test_logits_are_about_those_of_clip_when_divided_by_the_mean_length():
    network = network_of("vit:debug")
    inputs = torch.randn(200, *network.space.example(network.space.largest))
    with torch.no_grad():
        lengths = network(inputs).norm(dim=1)
    assert mean_length(network, inputs) == pytest.approx(float(lengths.mean()), rel=1e-6)


def test_the_embedding_of_a_folded_network_is_kept_beside_it(tmp_path):
    network = network_of("vit:debug")
    plain = network.inherit(network.space.smallest)
    folded = fold(plain, rows_of(), 20.0, NAMES)
    keep_projection(plain, tmp_path)
    inputs = torch.randn(2, *network.space.example(plain.architecture))
    with torch.no_grad():
        assert torch.equal(embedding_in(tmp_path, folded)(inputs), plain(inputs))
    (tmp_path / "projection.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="restore it"):
        embedding_in(tmp_path, folded)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder as a search by zero-shot writes it, with a network that nobody trained."""
    folder = tmp_path_factory.mktemp("winner")
    data = load_data("scenes")
    network = network_of("vit:debug")
    words = ["a bag", "a sneaker", "a coat", "a photo of a red shoe", "there is an apple"] * 3
    tokenizer = Tokenizer.trained(words)
    torch.manual_seed(2)
    tower = TextTower(TextSizes(tokenizer.vocabulary, tokenizer.context, 24, 1, 2, 12)).eval()
    encoder = TextEncoder(tokenizer, tower)
    encoder.save(folder)
    encoder = TextEncoder.load(folder)
    keep_projection(network, folder)
    task = data.task
    folded = fold(network, classifier_of(encoder, task.names), 5.0, task.names)
    inputs = torch.randn(1, *network.space.example(network.space.largest))
    card = Card.of(folded.space, folded.architecture, data)
    with torch.no_grad():
        expected = folded(inputs)
    export_network(folded, inputs, expected, folder, ["safetensors"], card=card)
    return folder, network, encoder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_new_labels_are_answered_without_training(exported, picture):
    folder, network, encoder = exported
    labels = ["an apple", "a red shoe", "bag"]
    (found,) = predict(folder, picture, labels=labels)
    _, inputs = Card.read(folder).pictures.read([picture])
    with torch.no_grad():
        vector = F.normalize(network(inputs).double(), dim=1)
    logits = (
        float(encoder.tower.logit_scale.detach().exp())
        * vector
        @ (classifier_of(encoder, labels).double().T)
    )
    percents = dict(zip(labels, (100 * logits[0].softmax(0)).tolist()))
    answers = {own["class"]: own["percent"] for own in found.facts["answers"]}
    assert answers == pytest.approx(percents, abs=0.1)
    assert found.line.startswith(max(percents, key=percents.get))
    assert {own["class"] for own in predict(folder, picture)[0].facts["answers"]} <= {
        *load_data("scenes").task.names
    }


def test_spaces_around_labels_are_no_part_of_the_answers(exported, picture, capsys):
    words = ["--labels", " a sneaker, a  bag"]
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(exported[0]), str(picture), "--json", *words])
    assert ended.value.code == 0
    (said,) = json.loads(capsys.readouterr().out)["predictions"]
    (found,) = predict(exported[0], picture, labels=["a sneaker", "a bag"])
    assert said == found.to_json()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a bag", "two labels at least"),
        ("", "one of the labels is empty"),
        ("a bag,Bag", "are the same"),
        ("a bag,,a coat", "is empty"),
    ],
)
def test_lists_of_one_or_equal_labels_are_refused_on_the_command_line(
    exported, picture, capsys, labels, message
):
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(exported[0]), str(picture), "--labels", labels])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_network_that_knows_no_words_says_so(tmp_path, picture):
    space = load_space("vit:debug", Classification(10))
    network = Network(space, space.largest).eval()
    inputs = torch.randn(1, *space.example(space.largest))
    with torch.no_grad():
        expected = network(inputs)
    card = Card.of(space, space.largest, load_data("scenes"))
    export_network(network, inputs, expected, tmp_path, ["safetensors"], card=card)
    with pytest.raises(UsageError, match="knows no words"):
        predict(tmp_path, picture, labels=["a bag", "a coat"])


def test_texts_of_another_size_than_the_pictures_are_refused(exported, picture, tmp_path):
    import shutil

    folder = tmp_path / "other"
    shutil.copytree(exported[0], folder)
    encoder = exported[2]
    sizes = replace(encoder.tower.sizes, embedding=7)
    TextEncoder(encoder.tokenizer, TextTower(sizes)).save(folder)
    with pytest.raises(VitnasError, match="have 7 numbers, and the pictures 12"):
        predict(folder, picture, labels=["a bag", "a coat"])


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A supernet that has learned from captions, for a few steps."""
    folder = tmp_path_factory.mktemp("words")
    recipe = Recipe(images=(0, 8, 0), batches=(4, 4, 4), subnets={"smallest": 1.0})
    return train("vit:debug", load_data("scenes:captions"), folder, recipe, objective="clip")


def test_a_search_by_zero_shot_gives_a_plain_classifier_that_still_knows_words(
    words, tmp_path, monkeypatch, picture
):
    data = load_data("scenes")  # which says nothing of captions
    space = load_space("vit:debug", data.task)
    table = made_up_table(space, tmp_path / "table")
    trellis = table.trellis(space)
    measure_as_predicted(monkeypatch, table)
    export_weights_alone(monkeypatch)
    record = nas.search(
        round(trellis.fastest + trellis.slowest, 3), space=space.name, data="scenes",
        supernet=words, table=tmp_path / "table", evaluations=4, search_images=10,
        test_images=10, out=tmp_path / "run", score="zero-shot",
    )  # fmt: skip
    assert record.metric.name == "zero_shot"
    assert record.task["classes"] == list(data.task.names)
    winner = SavedRun.load(tmp_path / "run").winner()
    assert winner.space.task == data.task
    # By hand: embeddings of the supernet's subnet, and the nearest label.
    architecture, encoder = winner.architecture, TextEncoder.load(words)
    supernet, _ = load_supernet(words, "vit:debug", load_data("scenes:captions"))
    first = data.first(data.search, 10, space.largest.resolution)
    inputs = space.parts.resized(first["images"], architecture.resolution)
    with torch.no_grad():
        vectors = F.normalize(supernet.inherit(architecture)(inputs).double(), dim=1)
    nearest = (vectors @ classifier_of(encoder, data.task.names).double().T).argmax(1)
    percent = 100 * float((nearest == first["labels"]).double().mean())
    assert record["winner"]["search_zero_shot_percent"] == pytest.approx(percent)
    (found,) = predict(tmp_path / "run", picture, labels=["a bag", "a trainer"])
    assert {own["class"] for own in found.facts["answers"]} == {"a bag", "a trainer"}
    other = replace(data, mean=(0.5,), std=(0.4,))  # of its own pictures, not of those learned from
    monkeypatch.setattr("nas.data.load_data", lambda name: other)
    again = SavedRun.load(tmp_path / "run").data()
    assert (again.mean, again.std) == (data.mean, data.std)


def test_an_architecture_of_a_supernet_takes_pictures_as_that_was_trained(words, monkeypatch):
    data = load_data("scenes")
    monkeypatch.setattr(
        "nas.saved_network.load_data", lambda name: replace(data, mean=(0.5,), std=(0.4,))
    )
    _, found = subject("", "vit:debug", "scenes", str(words), "")
    assert (found.mean, found.std) == (data.mean, data.std)


def test_the_shipped_supernet_of_captions_is_found_for_any_data_and_knows_the_scenes():
    data = load_data("scenes")
    folder = supernet_folder("efficientvit:micro", data, words=True)
    assert supernet_folder("efficientvit:micro", data) != folder
    supernet, card = load_supernet(folder, "efficientvit:micro", data)
    metric = load_score("zero-shot", data, folder, 500)
    network = metric.searched(supernet, as_learned(data, card))
    evaluator = Evaluator(network, data, data.search, 100, metric=metric)
    assert evaluator.percent(network.space.largest) > 65  # 77.0 % on 400
    with pytest.raises(WeightsError, match="has not learned from captions"):
        supernet_folder("swin:micro", data, words=True)


def test_workers_score_a_folded_network_as_this_process_does(words):
    data = load_data("scenes")
    supernet, card = load_supernet(words, "vit:debug", data)
    metric = load_score("zero-shot", data, words, 500)
    network = metric.searched(supernet, as_learned(data, card))
    evaluator = Evaluator(network, data, data.search, 12, metric=metric)
    payload = Payload(network.space.draw(Random(2)).to_json())
    remote = load_scorer(Scoring("vit:debug", network.space.task, 12), cargo(evaluator))
    assert remote(payload) == Scorer(evaluator, 0.05)(payload)


def test_what_zero_shot_needs_is_said_in_one_line(words, tmp_path):
    data = load_data("scenes")
    with pytest.raises(UsageError, match="knows no words"):
        load_score("zero-shot", data, tmp_path, 500)
    with pytest.raises(UsageError, match="is for segmentation"):
        load_score("zero-shot", load_data("scenes:masks"), words, 500)
    with pytest.raises(UsageError, match="those of scenes have none"):
        load_score("zero-shot", replace(data, task=Classification(10)), words, 500)
    with pytest.raises(UsageError, match="are the same; rename one of these classes"):
        load_score("zero-shot", replace(data, task=Classification.of(["bag", "a bag"])), words, 500)
    encoder = TextEncoder.load(words)
    other = tmp_path / "other"
    other.mkdir()
    sizes = replace(encoder.tower.sizes, embedding=7)
    TextEncoder(encoder.tokenizer, TextTower(sizes)).save(other)
    supernet, _ = load_supernet(words, "vit:debug", data)
    with pytest.raises(UsageError, match="not those of its networks"):
        load_score("zero-shot", data, other, 500).searched(supernet, data)


def test_pictures_of_other_data_are_normalised_as_the_supernet_knows_them():
    data = replace(load_data("scenes"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    card = {"task": "embedding", "size": 4, "mean": [0.15], "std": [0.25]}
    seen = as_learned(data, card)
    assert (seen.mean, seen.std) == ((0.15,) * 3, (0.25,) * 3)
    grey = as_learned(
        load_data("scenes"), {**card, "mean": [0.1, 0.2, 0.6], "std": [0.1, 0.2, 0.3]}
    )
    assert grey.mean == pytest.approx((0.3,))
    labelled = {"task": "classification", "classes": 10, "mean": [0.9], "std": [0.9]}
    assert as_learned(data, labelled) is data
