"""Scenes are deterministic and their splits apart; image folders of every kind load or say why."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from conftest import paint
from PIL import Image

from nas.cli import main
from nas.data import load_data
from nas.data.imagefolder import crop_and_flip
from nas.data.scenes import CLASSES, photos, render, render_batch
from nas.errors import DataError, UnknownNameError, UsageError
from nas.tasks.classification import Classification


def test_a_scene_is_determined_by_split_index_canvas_and_seed():
    image, label, mask = render("search", 3)
    again, label2, mask2 = render("search", 3)
    assert (image == again).all()
    assert (mask == mask2).all()
    assert label == label2 == photos("search")[1][3]
    for other in (render("search", 4), render("test", 3), render("search", 3, seed=1)):
        assert (other[0] != image).any()


def test_the_item_keeps_its_native_size_on_every_canvas():
    for canvas in (56, 112, 224, 288):
        for i in range(20):
            image, _, mask = render("search", i, canvas)
            assert image.shape == mask.shape == (canvas, canvas)
            ys, xs = np.nonzero(mask)
            assert 15 < max(np.ptp(ys), np.ptp(xs)) + 1 <= 40
    assert np.mean([render("search", i)[2].mean() for i in range(50)]) < 0.02


def test_splits_share_no_photo():
    seen = [{p.tobytes() for p in photos(split)[0]} for split in ("train", "search", "test")]
    overlaps = [len(a & b) for a, b in ((seen[0], seen[1]), (seen[0], seen[2]), (seen[1], seen[2]))]
    # Fashion-MNIST itself holds a few identical photos in its training and test sets.
    assert max(overlaps) <= 3


def test_every_class_occurs_about_equally():
    for split in ("train", "search", "test"):
        counts = np.bincount(photos(split)[1], minlength=len(CLASSES))
        assert counts.min() > 0.7 * counts.mean()


def test_scenes_as_a_data_set():
    data = load_data("scenes")
    batch = data.search.batch([0, 5], 224)
    images, labels = batch["images"], batch["labels"]
    assert images.shape == (2, 1, 224, 224)
    x = data.prepare(batch)["images"]
    assert x.shape == (2, 3, 224, 224)
    assert abs(float(x.mean())) < 0.3
    assert (render_batch("search", [0, 5])[1] == labels).all()


def test_an_image_folder_is_split_by_class(photo_data):
    assert photo_data.task.names == ("bright", "dark")
    sizes = [s.size for s in (photo_data.train, photo_data.search, photo_data.test)]
    assert sizes == [20, 2, 2]
    files = [
        {p for p, _ in s.files} for s in (photo_data.train, photo_data.search, photo_data.test)
    ]
    assert len(set.union(*files)) == 24
    for split in (photo_data.search, photo_data.test):
        assert sorted(label for _, label in split.files) == [0, 1]
    batch = photo_data.train.batch(range(20), 24)
    images, labels = batch["images"], batch["labels"]
    assert images.shape == (20, 3, 24, 24)
    brightness = images.mean((1, 2, 3))
    assert brightness[labels == 0].min() > brightness[labels == 1].max()


def test_the_first_images_of_every_split_are_of_all_classes(tmp_path):
    for split in ("train", "search", "test"):
        paint(tmp_path / split, 40)
    data = load_data(f"imagefolder:{tmp_path}")
    for split in (data.train, data.search, data.test):
        assert 8 <= sum(label for _, label in split.files[:40]) <= 32


def test_the_split_is_fixed_by_the_seed(photos):
    name = f"imagefolder:{photos}"
    a, b, c = load_data(name, 0), load_data(name, 0), load_data(name, 1)
    assert a.search.files == b.search.files
    assert a.fingerprint == b.fingerprint
    assert a.search.files != c.search.files


def test_given_splits_are_used(tmp_path):
    for split, n in (("train", 6), ("search", 4), ("test", 5)):
        paint(tmp_path / split, n)
    data = load_data(f"imagefolder:{tmp_path}")
    assert [s.size for s in (data.train, data.search, data.test)] == [12, 8, 10]


def test_grey_images_of_any_size_load(tmp_path):
    paint(tmp_path, 12, mode="L", size=50)
    data = load_data(f"imagefolder:{tmp_path}")
    batch = data.train.batch([0, 1], 24)
    assert batch["images"].shape == (2, 1, 24, 24)
    assert data.prepare(batch)["images"].shape == (2, 3, 24, 24)


def test_broken_files_are_reported_and_skipped(tmp_path, capsys):
    paint(tmp_path, 12)
    (tmp_path / "dark" / "text.png").write_text("no image")
    (tmp_path / "dark" / "notes.txt").write_text("not even meant as one")
    jpeg = tmp_path / "bright" / "cut.jpg"
    Image.new("RGB", (64, 64), "white").save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-200])
    (tmp_path / "bright" / "0.png").rename(tmp_path / "bright" / "0.PNG")
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.train.size + data.search.size + data.test.size == 24
    assert "skipped 2 unreadable of 26 images" in capsys.readouterr().err


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    paint(tmp_path, 12, mode="L")
    pixels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for label in ("bright", "dark"):
        for old in (tmp_path / label).iterdir():
            old.unlink()
        for i in range(12):  # not copies: these are not drawn apart
            pixels[0, :2] = i, label == "dark"
            Image.fromarray(pixels).save(tmp_path / label / f"{i}.png")
    batch = load_data(f"imagefolder:{tmp_path}").train.batch([0], 32)
    assert 120 < batch["images"].mean() < 135


@pytest.mark.parametrize(
    ("classes", "message"),
    [([], "0 classes"), (["bright"], "1 class;")],
)
def test_too_few_classes_is_an_error_with_the_fix(tmp_path, classes, message):
    paint(tmp_path / "all")
    root = tmp_path / "some"
    root.mkdir()
    for name in classes:
        (tmp_path / "all" / name).rename(root / name)
    with pytest.raises(DataError, match=message) as error:
        load_data(f"imagefolder:{root}")
    assert "at least two class folders" in error.value.fix


def test_too_few_images_of_a_class(tmp_path):
    paint(tmp_path, 2)
    with pytest.raises(DataError, match="has only 2 images"):
        load_data(f"imagefolder:{tmp_path}")


def test_unknown_data_and_missing_folders():
    with pytest.raises(UnknownNameError, match="did you mean scenes"):
        load_data("scene")
    with pytest.raises(DataError, match="no folder"):
        load_data("imagefolder:/nowhere/at/all")


def test_what_is_laid_out_over_a_picture_is_cropped_and_flipped_with_it():
    """A mask that marks what is bright still does, but for a pixel at edges; labels stay."""
    rng = np.random.default_rng(0)
    images = np.zeros((8, 3, 32, 32), np.float32)
    for image in images:
        y, x = rng.integers(4, 16, 2)
        image[:, y : y + 12, x : x + 12] = 1
    masks = (images[:, 0] > 0.5).astype(np.int64)
    batch = {"images": images, "masks": masks, "labels": np.arange(8)}
    batch = {name: torch.from_numpy(array) for name, array in batch.items()}
    varied = crop_and_flip(batch, Random(0))
    assert [x.shape for x in varied.values()] == [x.shape for x in batch.values()]
    assert torch.equal(varied["labels"], batch["labels"])
    assert not torch.equal(varied["masks"], batch["masks"])
    assert set(varied["masks"].unique().tolist()) == {0, 1}
    same = (varied["images"][:, 0] > 0.5).long() == varied["masks"]
    assert same.double().mean() > 0.97


def test_a_kind_of_data_set_says_what_stands_after_its_colon():
    for name in ("imagefolder", "imagefolder:", "scenes:photos"):
        with pytest.raises(UnknownNameError, match="unknown data set"):
            load_data(name)
    with pytest.raises(UnknownNameError) as error:
        load_data("x")
    assert error.value.fix == (
        "known: captions:PATH, imagefolder:PATH, masks:PATH, pictures:PATH, scenes, scenes:captions, "
        "scenes:masks"
    )


@pytest.mark.parametrize("size", [8, 14, 39])
def test_scenes_below_the_size_of_an_item_are_those_of_its_size_shrunk(size):
    """Supernets of small presets train at a quarter of their size first."""
    drawn = load_data("scenes").train.batch([3, 4], size)
    whole, labels = render_batch("train", [3, 4], 40)
    assert drawn["images"].shape == (2, 1, size, size)
    assert (drawn["labels"] == labels).all()
    for small, large in zip(drawn["images"][:, 0], whole):
        assert abs(small.mean() - large.mean()) < 4
    with pytest.raises(UsageError, match="at least 40 px, got 39"):
        render("train", 0, 39)


def test_scenes_may_be_larger_than_the_noise_behind_them():
    for canvas in (1024, 1500):
        image, _, mask = render("test", 1, canvas)
        assert image.shape == mask.shape == (canvas, canvas)
        plain = image[~mask].astype(int)
        assert 3 < plain.std() < 60
        assert np.unique(image[-100:, -100:]).size > 10  # noise up to the last corner


def test_a_summary_names_the_classes_and_counts_every_split(photo_data):
    assert photo_data.summary().endswith(
        "2 classes (bright, dark); 20 in train, 2 in search, 2 in test"
    )
    scenes = load_data("scenes")
    assert "scenes: 10 classes (T-shirt, trouser, " in scenes.summary()
    assert scenes.summary().endswith("1,000,000,000 in train, 2,000 in search, 4,000 in test")
    names = tuple(f"{i:03} {'x' * 50}\x1b[2J" for i in range(1000))
    many = replace(scenes, task=Classification.of(names)).summary()
    assert "1,000 classes (000 xxx" in many
    assert "and 990 more)" in many
    assert len(many) < 500
    assert many.isprintable()
    assert replace(scenes, task=Classification(7)).summary().startswith("scenes: 7 classes;")


def test_a_training_and_a_search_say_what_they_work_on(
    photos, photo_data, debug_supernet, tmp_path, capsys, monkeypatch
):
    """Before the hours that they may take, and on standard error."""
    monkeypatch.setattr("nas.training.train.train", stop)
    monkeypatch.setattr("nas.run.inputs._table", stop)
    data = ["--space", "swin:debug", "--data", f"imagefolder:{photos}"]
    for words in (
        ["train", *data, "--out", str(tmp_path / "supernet")],
        ["search", *data, "--budget", "9ms", "--supernet", str(debug_supernet), "--out", str(tmp_path / "run")],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            main([*words, "--json"])
        printed = capsys.readouterr()
        assert photo_data.summary() in printed.err
        assert photo_data.summary() not in printed.out


def stop(*arguments, **options):
    raise DataError("enough of this")
