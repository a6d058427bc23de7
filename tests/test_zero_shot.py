"""Labels in words as the last layer of a network, and as answers to pictures."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DEBUG_SPACES
from PIL import Image

from nas.cli import main
from nas.data import load_data
from nas.deployment import Card
from nas.errors import UsageError, VitnasError, WeightsError
from nas.evaluation.zero_shot import embedding_in, fold, keep_projection, mean_length, projections
from nas.export import export_network
from nas.families import load_space
from nas.network.calibration import calibrate
from nas.network.macs import count_macs, count_params
from nas.network.network import Network
from nas.prediction import predict
from nas.tasks.classification import Classification
from nas.tasks.embedding import Embedding
from nas.text.encoder import TextEncoder
from nas.text.prompts import classifier_of
from nas.text.tokens import Tokenizer
from nas.text.tower import TextSizes, TextTower

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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("a bag", "two labels at least"),
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
