"""Pictures with masks as people have them: which belong together, what values mean, what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nas.data import load_data
from nas.data.imagefolder.folders import LeftOut
from nas.data.masks.augmentation import scale_crop_and_flip
from nas.data.masks.pairs import paired
from nas.data.masks.reading import read_mask, survey_masks, values_in
from nas.data.scenes import CLASSES, render
from nas.errors import DataError, UnknownNameError
from nas.tasks.segmentation import IGNORED

NOISE = np.random.default_rng(0)
SHAPE = (12, 16)


def some_mask(shape=SHAPE, values=(0, 1)):
    """Values in the left and in the right half, each row moved a little."""
    rows, columns = np.indices(shape)
    return np.asarray(values)[(columns * len(values) + rows % 2) // shape[1] % len(values)]


def save_mask(path, values, palette=None, **options):
    """A mask as a grey picture, or one with a palette (bytes), or in colour (height, width, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values)
    dtype = np.uint8 if values.max() < 256 else np.uint16
    mask = Image.fromarray(values.astype(dtype), "P" if palette else None)
    if palette:
        mask.putpalette(palette)
    mask.save(path, **options)
    return path


def save_pair(root, image, mask, values=None, **options):
    """A noisy picture whose brightness shows the mask, and the mask."""
    values = some_mask() if values is None else np.asarray(values)
    grey = values if values.ndim == 2 else values.sum(-1)
    bright = NOISE.integers(0, 60, (*grey.shape, 3)) + 120 * (grey > 0)[..., None]
    for path in (root / image, root / mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(bright.astype(np.uint8)).save(root / image)
    save_mask(root / mask, values, **options)


def fill(root, images="images", masks="masks", count=10, ending="png", **options):
    """Pairs in a folder of images and one of masks below a root."""
    for i in range(count):
        save_pair(root, f"{images}/{i}.{ending}", f"{masks}/{i}.png", **options)
    return root


def load(root, option=""):
    return load_data(f"masks:{root}{option}")


def sizes(data):
    return [split.size for split in (data.train, data.search, data.test)]


def refusal(root):
    with pytest.raises(DataError) as error:
        load(root)
    assert error.value.fix
    assert len(str(error.value)) < 300
    return str(error.value)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("JPEGImages", "SegmentationClass"),
        ("img", "GT"),
        ("data/Images", "data/Annotations"),
    ],
)
def test_folders_have_their_usual_names(tmp_path, images, masks):
    fill(tmp_path, images, masks, ending="jpg")
    data = load(tmp_path)
    assert sizes(data) == [8, 1, 1]
    assert data.task.names == ("background", "1")
    assert data.name == f"masks:{tmp_path}"


@pytest.mark.parametrize(
    "layout",
    [
        "{split}/images {split}/masks",
        "images/{split} labels/{split}",
        "images/{split} masks",
        "images/{split}/one masks/{split}/one",
    ],
)
@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Validation", "Testing")])
def test_splits_stand_outside_or_inside(tmp_path, layout, names):
    for start, (split, count) in enumerate(zip(names, (5, 3, 4))):
        images, masks = layout.format(split=split).split()
        for i in range(count):
            name = f"{10 * start + i}"
            save_pair(tmp_path, f"{images}/{name}.png", f"{masks}/{name}.png")
    data = load(tmp_path)
    assert sizes(data) == [5, 3, 4]
    for split, name in ((data.train, names[0]), (data.search, names[1]), (data.test, names[2])):
        assert all(name in image.parts for image, _ in split.pairs)
        assert all(image.stem == mask.stem for image, mask in split.pairs)


def test_what_is_not_given_is_held_out_of_train(tmp_path):
    fill(tmp_path, "train/images", "train/masks", 10)
    fill(tmp_path, "test/images", "test/masks", 3)
    assert sizes(load(tmp_path)) == [8, 2, 3]


def test_a_mask_lies_over_its_picture_at_every_size(tmp_path):
    """Of both the square at the centre is what is kept, however long the picture is."""
    for i, shape in enumerate([(40, 64), (64, 40), (40, 40)] * 2):
        values = np.zeros(shape, int)
        values[10:30, 12:24] = 1
        save_pair(tmp_path, f"images/{i}.png", f"masks/{i}.png", values)
    data = load(tmp_path)
    for size in (16, 40, 64):
        batch = data.train.batch(range(data.train.size), size)
        assert batch["labels"].dtype == np.uint8
        assert batch["labels"].shape == (data.train.size, size, size)
        bright = batch["images"].mean(1) > 90
        assert (bright == batch["labels"]).mean() > 0.94
    again = data.train.batch([0], 40)["labels"]
    np.testing.assert_array_equal(again, data.train.batch([0], 40)["labels"])
    prepared = data.prepare(data.train.batch([0], 16))
    assert prepared["labels"].dtype == torch.uint8


def test_a_picture_that_lies_on_its_side_has_a_mask_that_stands(tmp_path):
    fill(tmp_path, count=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(NOISE.integers(0, 255, (16, 12, 3)).astype(np.uint8))
    turned.save(tmp_path / "images/0.png", exif=exif)
    assert sum(sizes(load(tmp_path))) == 4


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        ((0, 1), ("background", "1"), (0, 1)),
        ((0, 255), ("background", "255"), (0, 1)),
        ((0, 1, 255), ("background", "1"), (0, 1, IGNORED)),
        ((0, 7, 3), ("background", "3", "7"), (0, 2, 1)),
        ((1, 2), ("1", "2"), (0, 1)),
        ((300, 7), ("7", "300"), (1, 0)),
    ],
)
def test_values_are_found_in_the_masks(tmp_path, values, names, labels):
    """Black and white are two classes; else 255 does not count."""
    fill(tmp_path, values=some_mask((12, 12), values))
    data = load(tmp_path)
    assert data.task.names == names
    expected = some_mask((12, 12), labels)
    np.testing.assert_array_equal(data.train.batch([0], 12)["labels"][0], expected)


def test_colours_are_found_in_a_palette(tmp_path):
    palette = bytes([0, 0, 0, 10, 20, 30, 255, 0, 128])
    fill(tmp_path, palette=palette, values=some_mask(values=(0, 2)))
    task = load(tmp_path).task
    assert task.names == ("background", "2")
    assert task.colours == ("#000000", "#ff0080")


def test_a_grey_mask_saved_in_three_channels_is_the_same(tmp_path):
    mask = some_mask(values=(0, 1))
    fill(tmp_path, values=np.stack([mask] * 3, -1))
    data = load(tmp_path)
    assert data.task.names == ("background", "1")
    assert set(np.unique(data.train.batch([0], 12)["labels"])) == {0, 1}


@pytest.mark.parametrize(
    ("text", "values", "names", "colours", "labels"),
    [
        ("ground\nlung\n", (0, 1), ("ground", "lung"), ("#000000", "#800000"), (0, 1)),
        ("0 ground\n255 lung", (0, 255), ("ground", "lung"), ("#000000", "#800000"), (0, 1)),
        ("9, the lung, #FF0000\n4, no lung", (4, 9), ("the lung", "no lung"),
         ("#ff0000", "#800000"), (1, 0)),
        ("0 ignore\n1 cat\n2 dog\n3 cat", (0, 1, 2, 3), ("cat", "dog"),
         ("#000000", "#800000"), (IGNORED, 0, 1, 0)),
        ("\ufeffroad #804080\r\n\r\nsky #000001\r\n", (0, 1), ("road", "sky"),
         ("#804080", "#000001"), (0, 1)),
        ("road\nsky", (0, 1, 255), ("road", "sky"), ("#000000", "#800000"), (0, 1, IGNORED)),
    ],
)  # fmt: skip
def test_a_small_file_names_the_classes(tmp_path, text, values, names, colours, labels):
    (tmp_path / "classes.txt").write_text(text, newline="")
    fill(tmp_path, values=some_mask((12, 12), values))
    data = load(tmp_path)
    assert (data.task.names, data.task.colours) == (names, colours)
    expected = some_mask((12, 12), labels)
    np.testing.assert_array_equal(data.test.batch([0], 12)["labels"][0], expected)


def test_masks_in_colour_are_read_by_the_colours_of_the_file(tmp_path):
    (tmp_path / "classes.txt").write_text("road #804080\nsky #4682b4\nignore #000000\n")
    colours = np.array([[0x80, 0x40, 0x80], [0x46, 0x82, 0xB4], [0, 0, 0]])
    fill(tmp_path, values=colours[some_mask((12, 12), (0, 1, 2))])
    data = load(tmp_path)
    expected = some_mask((12, 12), (0, 1, IGNORED))
    np.testing.assert_array_equal(data.train.batch([1], 12)["labels"][0], expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0 ground", "names 1 classes"),
        ("", "names 0 classes"),
        ("0 ground\nlung", "gives some lines a value, and others none"),
        ("0 ground\n0 lung", "two lines one value"),
        ("a #ff0000\nb #ff0000", "two lines one colour"),
        ("ground\n1\n7 #ff0000 x", "line 3: '7 #ff0000 x' is no class"),
        ("ground\n#00ff00", "line 2: '#00ff00' is no class"),
        ("a #ff\nb", "line 1: 'a #ff' is no class"),
        ("\n".join(map(str, range(300))), "names 300 classes"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
    ],
)
def test_a_file_that_names_no_classes_is_one_line(tmp_path, text, words):
    fill(tmp_path)
    (tmp_path / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refusal(tmp_path)


def colour(values):
    return np.stack([values * 200, values * 10, values], -1)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda root: fill(root, "pictures", "outlines"), "has no folder of masks"),
        (lambda root: fill(root, "cats", "masks"), "has no folder of images"),
        (lambda root: fill(root, "val/images", "val/masks"), "none in train"),
        (lambda root: fill(root, count=2), "has 2 different pictures with usable masks"),
        (lambda root: fill(root, values=colour(some_mask())), "is in colour, and nobody says"),
        (lambda root: fill(root, values=np.zeros(SHAPE, int)), "hold 1 values"),
        (lambda root: fill(root, values=NOISE.integers(0, 256, (30, 30))), "as photos"),
    ],
)
def test_folders_that_teach_nothing_are_refused(tmp_path, made, words):
    made(tmp_path)
    if words == "as photos":
        words = "resized masks have more than there are classes"
    assert words in refusal(tmp_path)


def test_names_that_differ_are_shown(tmp_path):
    for i in range(4):
        save_pair(tmp_path, f"images/{i}.jpg", f"masks/{i}_mask.png")
    text = refusal(tmp_path)
    assert "pictures as 0.jpg, masks as 0_mask.png" in text
    assert text.endswith("give each mask the name of its picture, whatever the ending")


def test_a_value_beyond_the_classes_names_the_mask_and_the_line_to_write(tmp_path):
    fill(tmp_path)
    (tmp_path / "classes.txt").write_text("ground\nlung\n")
    save_mask(tmp_path / "masks/3.png", some_mask(values=(0, 9)))
    text = refusal(tmp_path)
    assert "masks/3.png holds the value 9" in text
    assert f"add `9 NAME` to {tmp_path / 'classes.txt'}, or `9 ignore`" in text


def test_a_colour_beyond_the_classes_names_it(tmp_path):
    (tmp_path / "classes.txt").write_text("road #000000\nsky #c80a01\n")
    fill(tmp_path, values=colour(some_mask()))
    save_mask(tmp_path / "masks/3.png", colour(some_mask()) + 5)
    assert "masks/3.png holds the colour #050505" in refusal(tmp_path)
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    assert "all lines need a colour for masks in colour" in refusal(tmp_path)


def test_a_class_that_never_occurs_in_train_is_named(tmp_path):
    fill(tmp_path, "train/images", "train/masks")
    fill(tmp_path, "test/images", "test/masks", values=some_mask(values=(0, 5)))
    assert "in no mask of train occurs 5" in refusal(tmp_path)
    (tmp_path / "classes.txt").write_text("0 ground\n1 lung\n5 heart")
    text = refusal(tmp_path)
    assert "in no mask of train occurs heart" in text
    assert "name it `ignore`" in text
    (tmp_path / "classes.txt").write_text("0 ground\n1 lung\n5 ignore")
    data = load(tmp_path)
    assert set(np.unique(data.test.batch([0], 12)["labels"])) == {0, IGNORED}


def test_what_is_left_out_is_said_by_reason(tmp_path, capsys):
    fill(tmp_path, count=10)
    (tmp_path / "masks/0.png").unlink()
    (tmp_path / "images/1.png").unlink()
    save_mask(tmp_path / "masks/2.png", np.zeros((5, 5), int))
    (tmp_path / "masks/3.png").write_bytes(b"no picture")
    whole = (tmp_path / "images/4.png").read_bytes()
    (tmp_path / "images/4.png").write_bytes(whole[: len(whole) // 2])
    save_mask(tmp_path / "masks/5.jpg", some_mask())
    (tmp_path / "masks/5.png").unlink()
    save_mask(tmp_path / "notes/plan.png", some_mask())
    (tmp_path / "classes.txt").write_text("ground\nlung")
    (tmp_path / "README.md").touch()
    save_mask(tmp_path / "masks/6.gif", some_mask())
    save_pair(tmp_path, "images/7b.png", "masks/7b.png", NOISE.integers(0, 255, (64, 64, 3)))
    data = load(tmp_path)
    assert sizes(data) == [2, 1, 1]
    said = " ".join(capsys.readouterr().err.split())
    assert "left out 1 (pictures without a mask): images/0.png" in said
    assert "left out 1 (masks without a picture): masks/1.png" in said
    assert "left out 1 (a second file of the same name): masks/6.png" in said
    assert "left out 1 (neither in a folder of images nor in one of masks): notes/plan.png" in said
    assert "left out 1 (no picture by the ending of its name): .md 1" in said
    assert "skipped 1 unreadable of 9 pictures: images/4.png" in said
    assert "skipped 4 of 9 pairs by their masks" in said
    assert "masks/2.png (5 x 5 pixels, its picture 16 x 12)" in said


@pytest.mark.parametrize(
    ("mode", "ending", "words"),
    [
        ("L", "jpg", "is a JPEG, which changes values"),
        ("F", "tiff", "holds floats"),
    ],
)
def test_files_that_are_no_masks_say_why(tmp_path, mode, ending, words):
    path = tmp_path / f"mask.{ending}"
    Image.new(mode, (4, 4)).save(path)
    with pytest.raises(ValueError, match=words):
        read_mask(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "I", "RGB", "RGBA"])
def test_masks_of_every_mode_hold_their_values(tmp_path, mode):
    values = some_mask((6, 6)) if mode == "1" else some_mask((6, 6), (0, 1, 200))
    path = tmp_path / "mask.png"
    if mode in ("I;16", "I"):
        Image.fromarray(values.astype(np.uint16)).save(path)
    elif mode == "P":
        save_mask(path, values, palette=bytes(range(60)) * 10)
    else:
        grey = Image.fromarray(values.astype(np.uint8) * (255 if mode == "1" else 1))
        grey.convert(mode).save(path)
    found, coloured = values_in(read_mask(path))
    assert coloured == (mode in ("RGB", "RGBA"))
    values = values * (0x010101 if coloured else 1)
    np.testing.assert_array_equal(found, values)
    good, bad = survey_masks([(path, path)])
    assert not bad
    assert good[path].values == tuple(np.unique(values))


def test_pictures_smaller_than_a_window_are_enlarged(tmp_path):
    fill(tmp_path, values=[[0, 1], [1, 1]])
    batch = load(tmp_path).train.batch([0, 1], 32)
    assert batch["images"].shape == (2, 3, 32, 32)
    expected = np.kron([[0, 1], [1, 1]], np.ones((16, 16)))
    np.testing.assert_array_equal(batch["labels"], [expected, expected])


def test_copies_are_said_and_may_be_left_out(tmp_path, capsys):
    fill(tmp_path, "train/images", "train/masks", 6)
    fill(tmp_path, "test/images", "test/masks", 3)
    for kind in ("images", "masks"):
        copy = (tmp_path / f"test/{kind}/0.png").read_bytes()
        (tmp_path / f"train/{kind}/0.png").write_bytes(copy)
    assert sizes(load(tmp_path)) == [5, 1, 3]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 test images are also in" in said
    assert ",copies=drop leaves them out" in said
    assert sizes(load(tmp_path, ",copies=drop")) in ([4, 1, 3], [5, 1, 3])


def test_the_fingerprint_sees_a_mask_that_was_changed_and_a_value_of_another_class(tmp_path):
    fill(tmp_path)
    seen = [load(tmp_path).fingerprint]
    values = some_mask()
    values[0, 0] = 1
    save_mask(tmp_path / "masks/3.png", values)
    seen.append(load(tmp_path).fingerprint)
    (tmp_path / "classes.txt").write_text("1 a\n0 b")
    seen.append(load(tmp_path).fingerprint)
    assert len(set(seen)) == 3
    assert load(tmp_path).fingerprint == seen[-1]


def test_a_mask_that_was_damaged_after_it_was_read_is_one_line(tmp_path):
    data = load(fill(tmp_path))
    for path in (tmp_path / "masks").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot decode"):
        data.train.batch([0], 12)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_classes_that_may_not_be_read_are_one_line(tmp_path):
    fill(tmp_path)
    (tmp_path / "classes.txt").touch(0)
    assert "cannot read" in refusal(tmp_path)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "\0", "~nobody/x", __file__])
def test_the_path_of_no_folder_is_one_line(path):
    assert "--data masks:PATH" in refusal(path)
    with pytest.raises(UnknownNameError, match="unknown data set"):
        load_data("masks:")


names = st.sampled_from(["images", "masks", "train", "val", "test", "a", "b"])
trees = st.lists(
    st.tuples(st.lists(names, max_size=3), st.sampled_from(["1.png", "2.png", "1.jpg"])),
    max_size=12,
)


@given(trees)
def test_any_tree_is_refused_or_every_file_is_used_or_counted(tree):
    files = sorted({(*folders, name) for folders, name in tree})
    left_out = LeftOut()
    try:
        found = paired(Path("root"), files, left_out)
    except DataError as error:
        assert error.fix
        return
    pairs = [pair for own in found.values() for pair in own]
    counted = [name for own in left_out.names.values() for name in own]
    assert found["train"]
    used = {part for pair in pairs for part in pair}
    assert len(pairs) == len({pair.image for pair in pairs})
    assert {"/".join(parts) for parts in files} == {"/".join(p) for p in used} | set(counted)
    assert not {"/".join(parts) for parts in used} & set(counted)


def bright_squares(count, side):
    rng = np.random.default_rng(0)
    images = np.zeros((count, 3, side, side), np.float32)
    for image in images:
        y, x = rng.integers(4, 16, 2)
        image[:, y : y + 12, x : x + 12] = 1
    return torch.from_numpy(images)


def test_pictures_and_masks_are_scaled_cropped_and_flipped_together():
    """A mask of what is bright still shows it, but for pixels at edges; beyond nothing counts."""
    images = bright_squares(32, 32)
    batch = {"images": images, "labels": (images[:, 0] > 0.5).byte(), "index": torch.arange(32)}
    varied = scale_crop_and_flip(batch, Random(0))
    assert {k: (x.shape, x.dtype) for k, x in varied.items()} == {
        k: (x.shape, x.dtype) for k, x in batch.items()
    }
    assert torch.equal(varied["index"], batch["index"])
    counted = varied["labels"] != IGNORED
    same = (varied["images"][:, 0] > 0.5).byte() == varied["labels"]
    assert same[counted].double().mean() > 0.96
    assert not varied["images"][:, 0][~counted].any()
    shares = counted.double().mean((1, 2))  # of a picture at half its side a quarter is left
    assert 0.2 < shares.min() < 0.4
    assert (shares == 1).double().mean() > 0.3
    areas = (varied["labels"] == 1).sum((1, 2)) / (batch["labels"] == 1).sum((1, 2))
    assert areas.min() < 0.5
    assert areas.max() > 2
    again = scale_crop_and_flip(batch, Random(0))
    assert torch.equal(again["images"], varied["images"])
    assert not torch.equal(scale_crop_and_flip(batch, Random(1))["labels"], varied["labels"])


def test_scenes_with_masks_are_the_same_pictures_with_the_item_marked():
    plain, masked = load_data("scenes"), load_data("scenes:masks")
    assert masked.task.names == ("background", *CLASSES)
    assert masked.name == "scenes:masks"
    assert masked.fingerprint != plain.fingerprint
    for split in ("train", "search", "test"):
        for size in (14, 40, 112):
            ours = getattr(masked, split).batch([2, 9], size)
            theirs = getattr(plain, split).batch([2, 9], size)
            np.testing.assert_array_equal(ours["images"], theirs["images"])
            assert ours["labels"].shape == (2, size, size)
            for labels, label in zip(ours["labels"], theirs["labels"]):
                assert set(np.unique(labels)) <= {0, label + 1}
                assert (labels > 0).any()
    _, label, mask = render("test", 9)
    expected = mask * (label + 1)
    np.testing.assert_array_equal(masked.test.batch([9], 224)["labels"][0], expected)
    with pytest.raises(UnknownNameError, match="scenes:masks"):
        load_data("scenes:mask")
