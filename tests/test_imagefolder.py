"""Folders of images as people have them: which are splits, which are classes, what is left out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import paint
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nas.data import load_data
from nas.data.imagefolder.folders import SPLIT_NAMES, LeftOut, arranged
from nas.errors import DataError

NOISE = np.random.default_rng(0)


def save(path, pixels=None, **options):
    """Save a picture, by default a small one like no other; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = NOISE.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def fill(root, *folders, count=4):
    """Pictures in each of the folders below a root."""
    for folder in folders:
        for i in range(count):
            save(root / folder / f"{i}.png")
    return root


def load(root, option=""):
    return load_data(f"imagefolder:{root}{option}")


def sizes(data):
    return [split.size for split in (data.train, data.search, data.test)]


def refusal(root):
    with pytest.raises(DataError) as error:
        load(root)
    assert error.value.fix
    assert len(str(error.value)) < 300 + len(str(root)) * 2
    return str(error.value)


@pytest.mark.parametrize(
    ("train", "search", "test"),
    [
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "valid", "TESTING"),
        ("train", "search", "test"),
    ],
)
def test_folders_of_splits_have_their_usual_names_in_any_case(tmp_path, train, search, test):
    for split, count in ((train, 6), (search, 3), (test, 4)):
        fill(tmp_path, f"{split}/cat", f"{split}/dog", count=count)
    data = load(tmp_path)
    assert data.task.names == ("cat", "dog")
    assert sizes(data) == [12, 6, 8]
    for split, folder in ((data.train, train), (data.search, search), (data.test, test)):
        assert {path.parents[1].name for path, _ in split.files} == {folder}


def test_what_is_not_given_is_held_out_of_train(tmp_path):
    fill(tmp_path, "Train/cat", "Train/dog", "Test/cat", "Test/dog", count=10)
    data = load(tmp_path)
    assert sizes(data) == [16, 4, 20]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["train", "test"], "but no folder train with class folders"),
        (["val", "test"], "but no folder train with class folders"),
        (["val/cat", "val/dog", "test/cat", "test/dog"], "but no folder train"),
        (["cat", "dog", "test/cat", "test/dog"], "(test) beside others (cat, dog)"),
        (["train/steam", "train/diesel", "bus", "car"], "(train) beside others (bus, car)"),
        (["train/cat", "train/dog", "val/cat", "Valid/dog"], "folders of the search split: Valid"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "named as splits (test, train)"),
        (["data/train/cat", "data/test/cat"], "give the path"),
        (["train/train", "train/test"], "all classes"),
        (["train2017/cat", "train2017/dog", "val2017/cat", "val2017/dog"], "all classes"),
        (["cars-train/cat", "cars-test/cat"], "all classes"),
        (["Train_Set/cat", "TestSet/cat", "Validation images/cat"], "all classes"),
        (["train/cat", "train/dog", "test/cat", "test/fox"], "test has images of fox"),
        (["cat", "Cat"], "look alike"),
        (["train/cat", "train/dog", "test/Cat", "test/dog"], "look alike"),
        (["caf\u00e9", "cafe\u0301"], "look alike"),
        (["cat", "cat "], "look alike"),
        (["cat"], "1 class;"),
        (["photos/cat", "photos/dog"], "if its folders are the classes"),
        (["train", "test", "labels"], "(test, train) beside others (labels)"),
        (["cat", "dog", "train", "validation"], "(train, validation) beside others (cat, dog)"),
    ],
)
def test_folders_whose_meaning_is_not_clear_are_refused(tmp_path, folders, words):
    fill(tmp_path, *folders)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "Valid"])
def test_a_class_may_be_called_as_a_split(tmp_path, name):
    """Where the pictures lie in it as they do in the others."""
    fill(tmp_path, name, "bus", "car")
    assert set(load(tmp_path).task.names) == {name, "bus", "car"}


@pytest.mark.parametrize(
    "names", [("blood_test", "soil_test"), ("freight train", "train"), ("contest", "strain")]
)
def test_classes_may_have_the_name_of_a_split_in_theirs(tmp_path, names):
    fill(tmp_path, *names, count=5)
    assert load(tmp_path).task.names == names


def test_pictures_of_a_split_without_classes_are_left_out(tmp_path, capsys):
    """As test sets of competitions come; the test split is then held out of train."""
    fill(tmp_path, "train/cat", "train/dog", "test", count=10)
    data = load(tmp_path)
    assert sizes(data) == [16, 2, 2]
    assert "left out 10 (in no class folder): test/0.png, test/1.png, test/2.png, ..." in said(
        capsys
    )


def test_other_folders_beside_those_of_splits_are_left_out(tmp_path, capsys):
    fill(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", "samples")
    data = load(tmp_path)
    assert data.task.names == ("cat", "dog")
    assert data.test.size == 8
    assert "left out 4 (beside the folders of the splits): samples/0.png" in said(capsys)


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_what_is_left_out_is_counted_by_reason(tmp_path, capsys):
    root = fill(tmp_path / "own", "cat", "dog", count=5)
    for folder in (".ipynb_checkpoints", "__MACOSX/cat", ".git", "cat/.ipynb_checkpoints",
                   "cat/@eaDir"):  # fmt: skip
        fill(root, folder, count=1)
    save(root / "cat" / "._0.png")
    (root / "empty" / "deeper").mkdir(parents=True)
    for name in ("notes.txt", "more.txt", "boxes.JSON", "README"):
        (root / "dog" / name).write_text("no picture")
    save(root / "over.png")
    os.mkfifo(root / "cat" / "x.png")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    (root / "cat" / "above").symlink_to(root)
    (root / "dog" / "loop").symlink_to(root / "dog")
    data = load(root)
    assert data.task.names == ("cat", "dog")
    assert sum(sizes(data)) == 10
    text = said(capsys)
    assert "left out 6 (hidden, or made by a system): .git, .ipynb_checkpoints" in text
    assert "left out 4 (no picture by the ending of its name): .txt 2, .json 1, none 1" in text
    assert "left out 1 (in no class folder): over.png" in text
    assert "left out 1 (neither a file nor a folder): cat/x.png" in text
    assert "left out 2 (a link that leads nowhere): cat/gone.png, cat/self.png" in text
    assert "left out 2 (a link to a folder that holds it, or was entered already)" in text
    assert "left out 1 (a folder without pictures): empty" in text


def test_links_are_followed_and_those_that_lead_out_are_said(tmp_path, capsys):
    elsewhere = fill(tmp_path / "elsewhere", "more", "dogs", count=4)
    root = fill(tmp_path / "own", "cat")
    (root / "cat" / "more").symlink_to(elsewhere / "more")
    (root / "dog").symlink_to(elsewhere / "dogs")
    (root / "dog" / "back").symlink_to(elsewhere)  # holds the folder it is in
    (root / "cat" / "again").symlink_to(root / "cat" / "more")
    data = load(root)
    assert data.task.names == ("cat", "dog")
    assert sum(sizes(data)) == 12
    text = said(capsys)
    assert f"2 links lead out of {root} and are followed" not in text  # `again` does, too
    assert f"3 links lead out of {root} and are followed: " in text
    assert f"dog -> {elsewhere / 'dogs'}" in text
    assert "left out 2 (a link to a folder that holds it, or was entered already)" in text


def test_links_to_links_of_links_do_not_multiply(tmp_path):
    """Twenty folders, each with two links to the next: a million ways to the last."""
    root = fill(tmp_path / "own", "cat", "dog")
    chain = tmp_path / "chain"
    for i in range(20):
        (chain / str(i)).mkdir(parents=True)
        for name in ("a", "b"):
            (chain / str(i) / name).symlink_to(chain / str(i + 1))
    fill(chain, "20", count=1)
    (root / "cat" / "chain").symlink_to(chain / "0")
    assert sum(sizes(load(root))) == 9


def test_a_picture_without_an_ending_is_one(tmp_path):
    fill(tmp_path, "cat", "dog", count=3)
    shutil.copy(save(tmp_path / "other" / "0.png"), tmp_path / "cat" / "0001")
    shutil.rmtree(tmp_path / "other")
    assert sum(sizes(load(tmp_path))) == 7


@pytest.mark.parametrize(
    "ending", ["avif", "jfif", "jp2", "JPE", "tga", "qoi", "ppm", "dib", "sgi", "pcx"]
)
def test_all_still_pictures_that_pillow_reads_are_read(tmp_path, ending):
    fill(tmp_path, "cat", "dog", count=3)
    for i in range(3):
        save(tmp_path / "dog" / f"{i}.{ending}")
    assert sum(sizes(load(tmp_path))) == 9


def test_postscript_is_not_run(tmp_path, capsys, monkeypatch):
    """Pillow would start Ghostscript for it, whatever the ending says."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: 1 / 0)
    fill(tmp_path, "cat", "dog")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "a.eps")
    (tmp_path / "cat" / "a.eps").rename(tmp_path / "cat" / "a.png")
    assert sum(sizes(load(tmp_path))) == 8
    assert "skipped 1 unreadable of 9 images: cat/a.png (is no picture)" in said(capsys)


def test_what_cannot_be_read_is_skipped_with_the_reason(tmp_path, capsys, monkeypatch):
    fill(tmp_path, "cat", "dog", "fox", count=4)
    (tmp_path / "cat" / "text.png").write_text("no image")
    (tmp_path / "dog" / "cut.jpg").write_bytes(save(tmp_path / "dog" / "9.jpg").read_bytes()[:-40])
    save(tmp_path / "dog" / "lab.tif", Image.new("LAB", (8, 8)))
    save(tmp_path / "dog" / "nan.tif", np.array([[0, 1], [np.nan, 1]], np.float32))
    secret = save(tmp_path / "dog" / "secret.png")
    monkeypatch.setattr(Path, "open", forbid(Path.open, secret))
    for i in range(4):
        (tmp_path / "fox" / f"{i}.png").write_bytes(b"")
    data = load(tmp_path)
    assert data.task.names == ("cat", "dog")
    assert sum(sizes(data)) == 9
    text = said(capsys)
    assert "skipped 9 unreadable of 18 images: cat/text.png (is no picture)" in text
    assert "'fox' is no class: none of its images can be read" in text


def forbid(opens, forbidden):
    """Another `open`: tests may run as root, whom permissions do not stop."""

    def guarded(path, *arguments, **options):
        if path == forbidden:
            raise PermissionError(13, "Permission denied")
        return opens(path, *arguments, **options)

    return guarded


def test_a_folder_that_may_not_be_read_is_left_out(tmp_path, capsys, monkeypatch):
    fill(tmp_path, "cat", "dog", "secret")
    scans = os.scandir

    def guarded(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scans(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert load(tmp_path).task.names == ("cat", "dog")
    assert "left out 1 (may not be read): secret" in said(capsys)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nowhere/at/all", "no folder /nowhere/at/all"),
        ("~nobody9", "is the path of no folder"),
        ("a\0b", "is the path of no folder"),
        ("x" * 5000, "cannot open the folder"),
        ("x" * 300, "cannot open the folder"),
        ("caf\udce9", "is the path of no folder"),
        (__file__, "is a file, not a folder"),
        ("/dev/null", "is a file, not a folder"),
    ],
)
def test_the_path_of_no_folder_is_one_line_with_the_fix(path, words):
    with pytest.raises(DataError, match=words) as error:
        load_data(f"imagefolder:{path}")
    assert "imagefolder:PATH" in error.value.fix
    assert len(str(error.value)) < 300


def test_names_that_are_not_utf_8(tmp_path):
    """Those of classes are printed and written, and refused; those of files are only read."""
    fill(tmp_path, "cat", "dog")
    os.rename(save(tmp_path / "x.png"), os.fsencode(tmp_path) + b"/dog/\xe9\xff.png")
    data = load(tmp_path)
    assert sum(sizes(data)) == 9
    assert data.train.batch(range(data.train.size), 8)["images"].shape[0] == data.train.size
    os.rename(tmp_path / "cat", os.fsencode(tmp_path) + b"/caf\xe9")
    assert "a name that is not UTF-8; rename it" in refusal(tmp_path)


folder_names = st.sampled_from([*SPLIT_NAMES, "Train", "TEST", "cat", "dog", "bus", "Cat"])
trees = st.lists(
    st.lists(folder_names, min_size=0, max_size=3).map(lambda f: (*f, "x.png")),
    max_size=12,
    unique=True,
)


@settings(deadline=None, max_examples=150)
@given(trees)
def test_any_tree_is_refused_or_every_picture_is_used_or_counted(tree):
    """No class is called as a split beside a train split, and no picture is lost."""
    left_out = LeftOut()
    try:
        files = arranged(Path("root"), sorted(tree), [], left_out)
    except DataError:
        return
    used = [parts for own in files.values() for parts, _ in own]
    assert len(used) + sum(map(len, left_out.names.values())) == len(tree)
    assert len(set(used)) == len(used)
    for split, own in files.items():
        for parts, label in own:
            assert label in parts[:-1]
            if files["search"] or files["test"]:  # then folders of splits are outermost
                assert SPLIT_NAMES[parts[0].lower()] == split
                assert label == parts[1]
            elif label == parts[0]:
                assert split == "train"


# Copies


def twins(root, *pairs):
    for source, target in pairs:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)


def test_copies_between_splits_are_counted_and_may_be_left_out(tmp_path, capsys):
    root = tmp_path
    for split in ("train", "val", "test"):
        fill(root, f"{split}/cat", f"{split}/dog", count=6)
    twins(
        root,
        ("test/cat/0.png", "train/cat/copy.png"),
        ("test/cat/1.png", "train/cat/other name.PNG"),
        ("test/dog/0.png", "val/dog/copy.png"),
        ("val/dog/1.png", "train/dog/copy.png"),
        ("train/dog/2.png", "train/dog/twice.png"),  # within one split: no harm
    )
    data = load(root)
    assert sizes(data) == [16, 13, 12]
    text = said(capsys)
    assert "1 of 13 search images are also in train, byte for byte" in text
    assert "2 of 12 test images are also in train, byte for byte" in text
    assert "1 of 12 test images are also in search, byte for byte" in text
    assert f"imagefolder:{root},copies=drop leaves them out" in text

    without = load(root, ",copies=drop")
    assert sizes(without) == [13, 12, 12]  # the test split is whole
    assert "byte for byte" not in said(capsys)
    assert without.name.endswith(",copies=drop")
    assert without.fingerprint != data.fingerprint
    digests = [{path.read_bytes() for path, _ in s.files} for s in splits_of(without)]
    assert not digests[0] & digests[1]
    assert not (digests[0] | digests[1]) & digests[2]


def splits_of(data):
    return data.train, data.search, data.test


def test_copies_are_held_out_together(tmp_path, capsys):
    fill(tmp_path, "cat", "dog", count=10)
    for label in ("cat", "dog"):
        for i in range(10):
            twins(tmp_path, (f"{label}/{i}.png", f"{label}/{i} (1).png"))
    for seed in range(5):
        data = load_data(f"imagefolder:{tmp_path}", seed)
        assert sizes(data) == [32, 4, 4]
    assert "byte for byte" not in said(capsys)


@pytest.mark.parametrize("inside", ["", "train/"])
@pytest.mark.parametrize("seed", [0, 3])
def test_all_kinds_of_data_hold_out_the_same_files(tmp_path, inside, seed):
    """So that what was learned without labels has seen no picture of a later test."""
    fill(tmp_path, f"{inside}cat", f"{inside}dog/old", f"{inside}fox", count=20)
    if inside:
        fill(tmp_path, "test/cat", "test/dog", "test/fox")
    twins(tmp_path, (f"{inside}cat/0.png", f"{inside}fox/copy.png"))
    rows = [f"{path.relative_to(tmp_path)},{i}" for i, path in enumerate(tmp_path.rglob("*.png"))]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows]))
    kinds = ("imagefolder", "pictures", "captions")
    found = [load_data(f"{kind}:{tmp_path}", seed) for kind in kinds]
    classes, *others = [[{path for path, _ in s.files} for s in splits_of(own)] for own in found]
    assert all(own == classes for own in others)
    assert min(map(len, classes)) >= 6  # two of each class


def test_what_is_held_out_of_a_class_depends_on_its_own_pictures_alone(tmp_path):
    fill(tmp_path, "cat", "dog", "fox", count=30)

    def held():
        data = load(tmp_path)
        return [
            {path.read_bytes() for path, _ in split.files if path.parent.name in ("cat", "puss")}
            for split in splits_of(data)
        ]

    before = held()
    assert list(map(len, before)) == [24, 3, 3]
    shutil.rmtree(tmp_path / "dog")
    for path in (tmp_path / "fox").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "z.png")
    (tmp_path / "cat").rename(tmp_path / "puss")
    assert held() == before


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"a": 1, "b": 2, "c": 1, "": 6}, [8, 1, 1]),  # pooled, with those of no folder
        ({"a": 20, "b": 1}, [17, 2, 2]),  # a pool that is too small is trained on
        ({"a": 2, "b": 1}, [1, 1, 1]),
    ],
)
def test_folders_without_labels_that_are_too_small_are_divided_together(
    tmp_path, folders, expected
):
    for folder, count in folders.items():
        fill(tmp_path, folder, count=count)
    assert sizes(load_data(f"pictures:{tmp_path}")) == expected


def test_copies_in_several_folders_are_held_out_together(tmp_path, capsys):
    fill(tmp_path, "all", count=30)
    twins(tmp_path, *((f"all/{i}.png", f"best/{i}.png") for i in range(15)))
    for kind, classes in (("pictures", False), ("imagefolder", True)):
        data = load_data(f"{kind}:{tmp_path}")
        assert sum(sizes(data)) == 45
        assert min(sizes(data)) >= 3
        text = said(capsys)
        assert "byte for byte" not in text
        assert ("15 images lie in several classes: all and best" in text) == classes


def test_a_picture_in_two_classes_is_said(tmp_path, capsys):
    fill(tmp_path, "cat", "dog", "fox")
    twins(tmp_path, ("cat/0.png", "dog/mine.png"), ("cat/1.png", "dog/too.png"))
    load(tmp_path)
    assert "2 images lie in several classes: cat and dog" in said(capsys)


def test_a_class_of_copies_alone_cannot_be_held_out(tmp_path):
    fill(tmp_path, "cat", "dog", count=3)
    twins(tmp_path, *((f"{label}/0.png", f"{label}/{i}.png") for label in ("cat",) for i in (1, 2)))
    assert "class 'cat' has only 1 different images" in refusal(tmp_path)


def test_the_fingerprint_sees_edits_that_keep_the_size(tmp_path):
    """And the time, as copying tools keep it."""
    paint(tmp_path, 12, mode="L")
    for label in ("bright", "dark"):  # files without compression are all of one size
        for path in (tmp_path / label).iterdir():
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
            os.utime(path.with_suffix(".bmp"), (0, 0))
    before = load(tmp_path).fingerprint
    assert load(tmp_path).fingerprint == before
    one, two = tmp_path / "bright" / "3.bmp", tmp_path / "dark" / "3.bmp"
    assert one.stat().st_size == two.stat().st_size
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second), two.write_bytes(first)
    os.utime(one, (0, 0)), os.utime(two, (0, 0))
    swapped = load(tmp_path).fingerprint
    one.write_bytes(first), two.write_bytes(second)
    assert load(tmp_path).fingerprint == before != swapped
    changed = bytearray(first)
    changed[-1] ^= 1
    one.write_bytes(changed)
    assert load(tmp_path).fingerprint not in (before, swapped)


def test_a_search_split_of_test_images_alone_is_refused(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path, f"{split}/cat", f"{split}/dog")
    shutil.copytree(tmp_path / "test", tmp_path / "val")
    assert load(tmp_path).search.size == 8
    with pytest.raises(DataError, match="are in test, too"):
        load(tmp_path, ",copies=drop")
