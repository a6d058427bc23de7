"""Supernets that were altered, cut off or are of something else, and trainings that go wrong."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import timm_models
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file
from test_damaged import TRIES, bytes_damaged, refused, value_damaged

import nas
from nas import cli
from nas.errors import RunError, VitnasError, WeightsError
from nas.families import load_space
from nas.network.network import Network
from nas.records import Journal, fingerprint, read_json, write_json
from nas.run.known import shipped_scores
from nas.space.family import SearchSpace
from nas.tasks.classification import Classification
from nas.training.device import check_device
from nas.training.objectives.supervised import Supervised
from nas.training.pretrained import load_weights
from nas.training.recipe import Recipe
from nas.training.supernet import load_supernet, save_supernet
from nas.training.train import train
from nas.training.trainer import DivergedError, Trainer
from nas.versions import layer_code
from search_spaces import vit

SPACE = load_space("swin:debug", Classification(2))
RECIPE = Recipe(images=(160, 160, 160), batches=(8, 8, 8))


@pytest.fixture
def supernet(debug_supernet, tmp_path):
    return shutil.copytree(debug_supernet, tmp_path / "supernet")


def fails(folder, data, *parts):
    with pytest.raises(WeightsError) as caught:
        load_supernet(folder, "swin:debug", data)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.fix


def flip(path, *places, bit=6):
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 1 << bit
    path.write_bytes(content)


def test_flipped_bits_in_the_weights_are_noticed(supernet, photo_data):
    weights = supernet / "weights.safetensors"
    whole = weights.read_bytes()
    for place in (-1, -1000, len(whole) // 2, 0, 9):
        flip(weights, place)
        fails(supernet, photo_data, "not the weights that supernet.json was written for")
        weights.write_bytes(whole)
    load_supernet(supernet, "swin:debug", photo_data)


def with_weights(folder, change):
    """Weights that are what the card says, though they should never have been written."""
    file, card = folder / "weights.safetensors", read_json(folder / "supernet.json")
    save_file(change(load_file(file)), file)
    write_json(folder / "supernet.json", {**card, "fingerprint": fingerprint(file.read_bytes())})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda w: {**w, "layers.head.fc.bias": w["layers.head.fc.bias"] * float("nan")},
         "layers.head.fc.bias holds values that are no numbers"),
        (lambda w: {**w, "layers.stem.bias": w["layers.stem.bias"] + float("inf")}, "no numbers"),
        (lambda w: {k: v for k, v in w.items() if "head" not in k}, "cannot load"),
        (lambda w: {**w, "layers.stem.bias": torch.zeros(1)}, "cannot load"),
        (lambda w: {**w, "surplus": torch.zeros(1)}, "cannot load"),
    ],
)  # fmt: skip
def test_weights_that_are_no_supernet(supernet, photo_data, change, why):
    with_weights(supernet, change)
    fails(supernet, photo_data, why, "weights.safetensors")


WRONG = [None, 3, -1, "x", "", [], {}, True, 1e400, [[]], {"a": 1}]
KEYS = ["space", "data", "data_fingerprint", "fingerprint", "classes", "search_images", "training",
        "largest_search_top1_percent", "smallest_search_top1_percent", "largest_test", "task"]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_a_card_with_another_value(supernet, photo_data, key):
    card = read_json(supernet / "supernet.json")
    refusals = 0
    for value in [*WRONG, KEYS]:
        (supernet / "supernet.json").write_text(json.dumps({**card, key: value}))
        try:
            _, read = load_supernet(supernet, "swin:debug", photo_data)
            # Neither numbers nor the name of the data, whose fingerprint is compared, can be known.
            assert isinstance(read[key], int | float | dict) or key == "data" or read == card
        except WeightsError as error:
            refusals += 1
            assert error.fix
            assert str(supernet) in str(error) or "have changed" in str(error)
    assert refusals >= 7
    if key not in ("largest_test", "task"):
        del card[key]
        (supernet / "supernet.json").write_text(json.dumps(card))
        fails(supernet, photo_data, f"key {key} is missing" if key != "classes" else "classes")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 10**5, "9" * 5000, "\0", "é{"])
def test_a_card_that_is_none(supernet, photo_data, text):
    (supernet / "supernet.json").write_text(text)
    fails(supernet, photo_data, "supernet.json")
    (supernet / "supernet.json").write_bytes(b"\xff\xfe{}")
    fails(supernet, photo_data, "supernet.json", "not text")


def test_a_card_that_was_altered_by_hand(supernet, photo_data):
    card = supernet / "supernet.json"
    card.write_text(card.read_text().replace('"search_images": ', '"search_images": 1'))
    fails(supernet, photo_data, "was altered after it was written")


def search(supernet, data="imagefolder:nowhere", **options):
    return nas.search("1ms", space="swin:debug", data=data, supernet=supernet, **options)


def test_a_search_says_what_is_wrong_with_its_supernet_before_it_reads_images(supernet, tmp_path):
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "checkpoint.json").write_text("{}")
    for folder, why in (
        (tmp_path / "none", "no finished supernet in .*train one"),
        (tmp_path / "stopped", "no finished supernet in .*--resume"),
        (supernet / "weights.safetensors", "no finished supernet"),
        (tmp_path / ("x" * 300), "no finished supernet"),
    ):
        with pytest.raises(WeightsError, match=why):
            search(folder)
    with pytest.raises(WeightsError, match="has the space swin:debug, not vit:debug"):
        nas.search("1ms", space="vit:debug", data="imagefolder:nowhere", supernet=supernet)


def test_a_search_loads_its_supernet_before_it_measures_a_table(
    supernet, photo_data, tmp_path, monkeypatch
):
    def profile(*_):
        raise AssertionError("measured a table first")

    monkeypatch.setattr("nas.run.inputs.profile", profile)
    flip(supernet / "weights.safetensors", -1)
    with pytest.raises(WeightsError, match="not the weights"):
        search(supernet, photo_data.name, out=tmp_path / "run")
    card = read_json(supernet / "supernet.json")
    write_json(supernet / "supernet.json", {**card, "classes": [f"class {i}" for i in range(999)]})
    with pytest.raises(WeightsError, match=r"classes class 0, class 1, class 2, ... \(999\), not"):
        search(supernet, photo_data.name, out=tmp_path / "run")
    write_json(supernet / "supernet.json", {**card, "task": "tracking"})
    with pytest.raises(WeightsError, match="unknown task 'tracking'"):
        search(supernet, photo_data.name, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"top1_percent": 900.0}, {"top1_percent": -1}, {"top1_percent": "50"}, {"drawn": None},
        {"top1_percent": None}, {"architecture": "{}"}, {"architecture": 3}, {"images": 0},
        {"variance": -1.0}, {"top1_percent": float("nan")},
    ],
)  # fmt: skip
def test_scores_beside_the_weights_that_cannot_be_used(supernet, photo_data, change):
    card = read_json(supernet / "supernet.json")
    head = {
        "weights_fingerprint": card["fingerprint"], "data_fingerprint": photo_data.fingerprint,
        "search_images": 10, "layer_code": layer_code("swin"),
    }  # fmt: skip
    write_json(supernet / "scores.json", head)
    record = {"architecture": SPACE.largest.to_json(), "drawn": "random", "top1_percent": 50.0}
    (supernet / "scores.jsonl").write_text(json.dumps(record) + "\n")
    assert shipped_scores(supernet, SPACE, card, photo_data, 10) == [record]
    lines = [record, {**record, **change}, record]
    (supernet / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(VitnasError, match=r"scores\.jsonl(, line 2: |: .*--fresh)"):
        shipped_scores(supernet, SPACE, card, photo_data, 10)
    for other in ("{}", '{"search_images": []}'):
        (supernet / "scores.json").write_text(other)
        assert shipped_scores(supernet, SPACE, card, photo_data, 10) == []
    (supernet / "scores.json").write_text("[]")
    with pytest.raises(RunError, match="holds no object"):
        shipped_scores(supernet, SPACE, card, photo_data, 10)


def test_weights_beyond_half_precision_are_not_written(photo_data, tmp_path):
    network = Network(SPACE, SPACE.largest)
    with torch.no_grad():
        network.layers["head"].fc.bias[0] = 1e6
    with pytest.raises(WeightsError, match=r"layers\.head\.fc\.bias .*lower learning rate"):
        save_supernet(tmp_path, network, photo_data, {})
    assert not list(tmp_path.iterdir())


# Trainings


def stopped_at(step, folder, data, **options):
    calls = iter(range(10**6))
    stop = lambda: next(calls) == step  # noqa: E731
    train("swin:debug", data, folder, RECIPE, checkpoint_s=0, stop=stop, **options)
    return folder


@pytest.fixture(scope="module")
def stopped(photo_data, tmp_path_factory):
    return stopped_at(30, tmp_path_factory.mktemp("training") / "stopped", photo_data)


def test_a_checkpoint_that_is_not_what_was_written(stopped, photo_data, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    file, card = folder / "checkpoint-30.safetensors", folder / "checkpoint.json"
    whole, written = file.read_bytes(), read_json(card)

    def fails(why):
        with pytest.raises(RunError, match=why) as caught:
            train("swin:debug", photo_data, folder, RECIPE, resume=True)
        assert caught.value.fix

    flip(file, -1)
    fails("cannot go on from .*not what was written")
    file.write_bytes(whole[:1000])
    fails("cannot go on from")
    for key, value in [
        ("step", -1), ("step", "30"), ("step", None), ("bf16", 1), ("seconds", "x"),
        ("weights_fingerprint", 3),
    ]:  # fmt: skip
        write_json(card, {**written, key: value})
        fails(f"{key} must be")
    write_json(card, {key: value for key, value in written.items() if key != "step"})
    fails("key step is missing")
    write_json(card, {**written, "step": 31})
    fails("cannot go on from .*No such file")
    for text in ("[]", "", "{"):
        card.write_text(text)
        fails("checkpoint.json")
    del written["weights_fingerprint"]  # as older versions wrote it
    write_json(card, written)
    fails("cannot go on from")
    file.write_bytes(whole)
    (folder / "loss.jsonl").write_text('{"loss": 3}\n{"step": "x"}\n{"step": 20, "loss": 1}\n')
    train("swin:debug", photo_data, folder, RECIPE, resume=True)
    assert [record["step"] for record in Journal(folder / "loss.jsonl").read()] == [20, 40, 60]


def test_two_trainings_do_not_share_a_folder(photo_data, tmp_path):
    def second():
        with pytest.raises(RunError, match="another process is writing"):
            train("swin:debug", photo_data, tmp_path / "x", RECIPE, resume=True)
        return True

    train("swin:debug", photo_data, tmp_path / "x", RECIPE, stop=second)


@pytest.mark.parametrize("where", ["inputs", "distil"])
def test_a_loss_that_is_no_number_stops_the_training(
    stopped, photo_data, tmp_path, monkeypatch, where
):
    """Also one of a subnet alone; the last checkpoint is the one from before."""
    folder = shutil.copytree(stopped, tmp_path / "copy")
    before = (folder / "checkpoint-30.safetensors").read_bytes()
    training = []
    batch, step, distil = Trainer._batch, Trainer.train_step, Supervised.distil

    def noted(self):
        training.append(self)
        return step(self)

    def broken(self):
        bad = float("inf") if where == "inputs" and self.step >= 45 else 1.0
        return {name: x * bad if x.is_floating_point() else x for name, x in batch(self).items()}

    def spoiled(self, small, large):
        bad = float("nan") if where == "distil" and training[-1].step >= 45 else 1.0
        return distil(self, small, large) * bad

    monkeypatch.setattr(Trainer, "train_step", noted)
    monkeypatch.setattr(Trainer, "_batch", broken)
    monkeypatch.setattr(Supervised, "distil", spoiled)
    with pytest.raises(DivergedError, match=r"at step 46 .*lower --rate"):
        train("swin:debug", photo_data, folder, RECIPE, resume=True)
    assert (folder / "checkpoint-30.safetensors").read_bytes() == before
    assert not (folder / "supernet.json").exists()


TRAIN = {  # options of a training, and what the line that refuses them must say
    ("--seed=-1",): "at least 0",
    ("--seed=99999999999999999999",): "at most 4294967295",
    ("--seed=x",): "vitnas train --help",
    ("--images=0",): "greater than or equal to 200",
    ("--images=-5",): "greater than or equal to 200",
    ("--images=1e5",): "vitnas train --help",
    ("--images=99999999999999999999",): "less than or equal to 1000000000",
    ("--objective=supervisd",): "did you mean supervised?",
    ("--objective=",): "unknown objective",
    ("--objective=os.path",): "VITNAS_EXTENSIONS",
    ("--objective=../x",): "VITNAS_EXTENSIONS",
    ("--objective=toys.nothing",): "there is no module",
    ("--objective=toys",): "unknown objective",
    ("--space=swin:x",): "did you mean",
    ("--space=",): "unknown model or space",
    ("--init=é",): "there is no é",
    ("--init=none.pth",): "there is no none.pth",
    ("--init=~/none",): "there is no ~/none",
    ("--init=.",): "a folder that holds",
    ("--out=pyproject.toml",): "cannot use pyproject.toml",
    ("--out=.",): "add --resume",
    ("--data=nowhere",): "unknown data set",
    **{
        (f"--device={name}",): "device"
        for name in ("", "gpu", "cuda:x", "cuda:", "cuda:-1", "cpu:0", "cuda:٣", "cuda:01", "CPU",
                     "cuda:99999999", "mps", "meta")
    },
}  # fmt: skip


@pytest.mark.parametrize("options", TRAIN)
def test_options_of_a_training_are_refused_before_images_are_read(options, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    data = [] if options[0].startswith("--data") else ["--data", "imagefolder:nowhere"]
    out = [] if options[0].startswith("--out") else ["--out", "not/there"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--space=swin:debug", *data, *out, *options])
    line = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert TRAIN[options] in line
    assert "internal" not in line
    assert line.startswith("vitnas: ")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("vit_tiny_patch16_224", "--weights=none.pth"), "there is no none.pth"),
        (("vit_tiny_patch16_224", "--weights=é"), "there is no é"),
        (("--space=swin:debug", "--supernet=none"), "no finished supernet in none"),
    ],
)
def test_files_of_weights_are_missed_before_images_are_read(options, why, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["quantize", *options, "--data=imagefolder:nowhere"])
    assert stop.value.code == 1
    assert why in capsys.readouterr().err


def test_a_device_beyond_those_there_are(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name in ("cpu", "cuda", "cuda:1"):
        check_device(name)
    with pytest.raises(VitnasError, match=r"torch sees 2 CUDA devices, none is cuda:2"):
        check_device("cuda:2")


def test_a_missing_checkpoint_does_not_keep_a_training_from_going_on(stopped, capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["train", "--space=swin:debug", "--data=imagefolder:nowhere", "--resume",
                  f"--out={stopped}", "--init=gone.pth"])  # fmt: skip
    assert "nowhere" in capsys.readouterr().err


# Anything


@pytest.mark.parametrize("name", ["supernet.json", "weights.safetensors"])
def test_any_damage_of_a_supernet_is_noticed(debug_supernet, photo_data, tmp_path, name):
    folder = Path(shutil.copytree(debug_supernet, tmp_path / "supernet"))
    right, own = load_supernet(folder, "swin:debug", photo_data)
    whole = (folder / name).read_bytes()

    @TRIES
    @given(bytes_damaged(whole))
    def check(content):
        (folder / name).write_bytes(content)
        found = refused(lambda: load_supernet(folder, "swin:debug", photo_data))
        if found is not None:
            network, card = found
            assert {**card, **own} == card  # the key of the checksum may have another name
            assert_equal(network, right)

    check()


def test_any_value_of_a_card_is_right_or_refused(debug_supernet, photo_data, tmp_path):
    folder = Path(shutil.copytree(debug_supernet, tmp_path / "supernet"))
    right, card = load_supernet(folder, "swin:debug", photo_data)

    @TRIES
    @given(value_damaged(card))
    def check(changed):
        (folder / "supernet.json").write_text(json.dumps(changed))
        found = refused(lambda: load_supernet(folder, "swin:debug", photo_data))
        if found is not None:
            assert_equal(found[0], right)
            assert 0 <= found[1]["largest_search_top1_percent"] <= 100

    check()


def assert_equal(network, right, but=()):
    theirs = right.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, theirs[name]) or name.removeprefix("layers.") in but


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The same weights in files of three kinds, and the network that has them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    sizes = dict(num_classes=10, img_size=32, embed_dim=64, depth=1, num_heads=1)
    state = timm_models.create("vit_tiny_patch16_224", **sizes).state_dict()
    torch.save({"model": state, "epoch": 3}, folder / "new.pth")
    torch.save({"model": state}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "x.safetensors")
    space = SearchSpace("small vit", *vit.model(16, 64, 1, 1, 32), Classification(10))
    network = Network(space, space.largest)
    load_weights(network, state)
    return folder, network


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "x.safetensors"])
def test_any_damage_of_a_checkpoint_is_noticed(checkpoints, tmp_path, name):
    """Old files and safetensors have no checksums: of these only the description is damaged."""
    folder, right = checkpoints
    content = (folder / name).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    end = {"new.pth": len(content), "old.pth": 3000}.get(name, header)
    torch.manual_seed(1)
    fresh = Network(right.space, right.architecture)

    @TRIES
    @given(bytes_damaged(content[:end]))
    def check(damaged):
        (tmp_path / name).write_bytes(damaged + content[end:])
        network = deepcopy(fresh)
        left = refused(lambda: load_weights(network, tmp_path / name))
        if left is None:
            assert_equal(network, fresh)
        else:
            assert_equal(network, right, but=left)

    check()
