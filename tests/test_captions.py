"""Pictures with captions: what is read of folders, what is left out and said, and the grammar of scenes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from nas.data import load_data
from nas.data.captions.grammar import WORDS
from nas.data.scenes import CANVAS, CLASSES, described, drawn
from nas.errors import DataError
from nas.text.packed import packed, unpacked


def paint(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 12, 3), value % 256, np.uint8)).save(path)


def pictures(root, count=12, start=0):
    names = [f"{i:02}.png" for i in range(start, start + count)]
    for i, name in enumerate(names):
        paint(root / name, 3 * (start + i))
    return names


def captions_of(data):
    found = {}
    for split in (data.train, data.search, data.test):
        batch = split.batch(range(split.size), 8)
        for own in unpacked(batch["captions"]):
            found.setdefault(split.name, []).append(own)
    return found


def write_csv(path, rows, head="file,caption"):
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]), encoding="utf-8")


def test_a_table_gives_each_picture_its_captions_and_some_are_held_out(tmp_path):
    names = pictures(tmp_path)
    write_csv(tmp_path / "captions.csv", [(name, f"picture {name[:2]}") for name in names])
    data = load_data(f"captions:{tmp_path}")
    assert (data.train.size, data.search.size, data.test.size) == (10, 1, 1)
    texts = sorted(text for own in captions_of(data).values() for (text,) in own)
    assert texts == [f"picture {i:02}" for i in range(12)]
    batch = data.train.batch(range(10), 8)
    assert batch["images"].shape == (10, 3, 8, 8)  # and each caption stands at its own picture
    for image, (text,) in zip(batch["images"], unpacked(batch["captions"])):
        assert image.mean() == 3 * int(text.removeprefix("picture "))


def test_json_lines_text_files_and_separated_values_say_the_same(tmp_path):
    found = []
    for kind in ("jsonl", "tsv", "txt", "quoted"):
        root = tmp_path / kind
        names = pictures(root)
        pairs = [(name, [f"eins {name}", f"zwei {name}"]) for name in names]
        if kind == "jsonl":
            lines = [json.dumps({"file_name": n, "text": own}) for n, own in pairs]
            (root / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
        elif kind == "txt":
            for name, own in pairs:
                (root / name).with_suffix(".txt").write_text("\n".join(own), encoding="utf-8")
        else:
            by = "\t" if kind == "tsv" else ","
            rows = [by.join((f'"./{n}"', f'"{text}"')) for n, own in pairs for text in own]
            text = "\n".join([by.join(("Image", "Title")), *rows])
            name = "all.tsv" if kind == "tsv" else "all.csv"
            (root / name).write_text("\ufeff" + text, encoding="utf-8")
        found.append(captions_of(load_data(f"captions:{root}")))
    assert all(own == found[0] for own in found)
    assert all(len(own) == 2 for own in found[0]["train"])


def test_splits_go_by_the_names_of_folders(tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        names = pictures(tmp_path / split, 4, 20 * i)
        write_csv(tmp_path / split / "list.csv", [(name, f"{split} {name}") for name in names])
    found = captions_of(load_data(f"captions:{tmp_path}"))
    assert {split: len(own) for split, own in found.items()} == {"train": 4, "search": 4, "test": 4}
    assert all(text.startswith("val") for (text,) in found["search"])


def test_what_is_missing_empty_twice_or_too_long_is_left_out_and_said(tmp_path, capsys):
    names = pictures(tmp_path, 14)
    rows = [(name, f"a thing {name[:2]}") for name in names[:12]]
    rows += [(names[0], rows[0][1]), (names[1], "   "), (names[12], ""), ("gone.png", "lost")]
    rows += [(names[2], "x" * 3000)]
    write_csv(tmp_path / "captions.csv", rows)
    data = load_data(f"captions:{tmp_path}")
    said = capsys.readouterr().err
    for line in (
        "1 captions are of files that are no pictures here: gone.png",
        "2 captions are empty, and left out",
        "1 captions stand twice at one picture, and count once",
        "1 captions have more than 2,000 letters, of which the first are kept",
        "left out 2 pictures without a caption: 12.png, 13.png",
    ):
        assert line in said
    every = [text for own in captions_of(data).values() for texts in own for text in texts]
    assert len(every) == 13
    assert max(map(len, every)) == 2000


def test_captions_that_cannot_be_written_are_mended_or_empty(tmp_path, capsys):
    names = pictures(tmp_path)
    texts = ["half \ud83d", "whole \U0001f388", "a\x07 bell", "\0\0", "tab\tand\x85line"]
    texts += [f"plain {i}" for i in range(7)]
    lines = [json.dumps({"file": name, "text": text}) for name, text in zip(names, texts)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    found = captions_of(load_data(f"captions:{tmp_path}"))
    every = {text for own in found.values() for (text,) in own}
    assert every == {"half ?", "whole \U0001f388", "a bell", "tab and line", *texts[5:]}
    said = capsys.readouterr().err
    assert "1 captions are empty, and left out" in said
    assert "left out 1 pictures without a caption: 03.png" in said


@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv"])
@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_captions_end_at_newlines_alone(tmp_path, kind, separator):
    names = pictures(tmp_path)
    for name in names:
        if kind == "txt":
            text = f"upper {name}{separator}lower\r\nother {name}\n"
            (tmp_path / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    texts = [[f"upper {name}{separator}lower", f"other {name}"] for name in names]
    if kind == "jsonl":
        records = [{"file": name, "text": own} for name, own in zip(names, texts)]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        (tmp_path / "c.jsonl").write_text("\n".join(lines), encoding="utf-8")
    elif kind == "csv":
        rows = [(name, text) for name, own in zip(names, texts) for text in own]
        write_csv(tmp_path / "c.csv", rows)
    found = captions_of(load_data(f"captions:{tmp_path}"))
    every = sorted(own for of in found.values() for own in of)
    assert every == sorted([f"upper {name} lower", f"other {name}"] for name in names)


def test_captions_that_stand_at_several_pictures_are_counted(tmp_path, capsys):
    names = pictures(tmp_path)
    write_csv(tmp_path / "c.csv", [(n, "the same" if int(n[:2]) < 6 else n) for n in names])
    data = load_data(f"captions:{tmp_path}")
    texts = [text for (text,) in captions_of(data)["train"]]
    shared = texts.count("the same")
    assert f"1 captions stand at {shared} pictures of train" in capsys.readouterr().err


def test_captions_of_every_script_arrive_as_they_are_written(tmp_path):
    names = pictures(tmp_path)
    texts = ["ein Häuschen", "日本の山", "كتاب", "🎈 балон", "e\u0301tude"] + [
        str(i) for i in range(7)
    ]
    write_csv(tmp_path / "c.csv", list(zip(names, texts)))
    found = captions_of(load_data(f"captions:{tmp_path}"))
    every = {text for own in found.values() for (text,) in own}
    assert every == {*texts[:4], "étude", *texts[5:]}  # composed, as most are


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"file,number\n00.png,3\n", "no columns of files and captions, but file, number"),
        ("c.csv", "file,caption\n00.png,ä\n".encode("latin-1"), "is not UTF-8"),
        ("c.jsonl", b'{"file": "00.png"', "line 1 is not JSON"),
        ("c.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("c.csv", b"file,caption\n00.png,a bag, open\n", "line 2 has more values than there are"),
        ("c.tsv", b"file\tcaption\n00.png\ta bag\topen\n", "line 2 has more values than there"),
        ("c.csv", b"caption,file\na bag,00.png\na coat\n", "line 3 names no file"),
        ("c.csv", b"", "no columns of files and captions, but none"),
        ("c.jsonl", b'{"file": "a", "text": "b"}\n{"text": "c"}', r"line 2 has no .*, but text"),
        ("c.jsonl", b'{"file": 3, "text": "a bag"}', "line 1 names no file"),
        ("c.jsonl", b'\n{"file": "a.png"}', "files and captions, but file"),
        ("c.csv", b"file,caption\n", "has 0 different pictures with captions"),
        ("none.md", b"", "has 0 different pictures with captions"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_with_a_fix(tmp_path, name, content, message):
    pictures(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load_data(f"captions:{tmp_path}")
    assert error.value.fix
    assert len(str(error.value).replace(str(tmp_path), "")) < 300
    assert ("into quotes" in error.value.fix) == ("more values" in message)


def test_one_caption_for_all_pictures_is_refused(tmp_path):
    write_csv(tmp_path / "c.csv", [(name, "a thing") for name in pictures(tmp_path)])
    with pytest.raises(DataError, match="have one caption: 'a thing'"):
        load_data(f"captions:{tmp_path}")


def test_a_table_cannot_name_files_outside_of_its_folder(tmp_path):
    root = tmp_path / "in"
    names = pictures(root)
    paint(tmp_path / "out.png", 200)
    write_csv(root / "c.csv", [(name, name) for name in names] + [("../out.png", "outside")])
    data = load_data(f"captions:{root}")
    every = {text for own in captions_of(data).values() for (text,) in own}
    assert every == {*names}


def test_captions_are_not_mirrored_with_their_pictures(tmp_path):
    from random import Random

    names = pictures(tmp_path)
    write_csv(tmp_path / "c.csv", [(name, name) for name in names])
    data = load_data(f"captions:{tmp_path}")
    batch = data.prepare(data.train.batch(range(8), 32))
    batch["images"] = torch_ramp(batch["images"])
    varied = data.augment(batch, Random(0))["images"]
    assert (varied[..., -1] > varied[..., 0]).all()  # left is still left
    assert len({float(x) for x in varied[:, 0, 0, 0]}) > 1


def torch_ramp(images):
    import torch

    return torch.linspace(0, 1, images.shape[-1]).expand(images.shape).contiguous()


def test_texts_pass_through_arrays_of_bytes():
    samples = [["a", "日本"], [], ["über", "", "c"]]
    assert unpacked(packed(samples)) == [["a", "日本"], [], ["über", "c"]]


def test_captioned_scenes_are_the_scenes_and_say_what_was_drawn():
    plain, captioned = load_data("scenes"), load_data("scenes:captions")
    for size in (28, 56, 224):
        a, b = plain.search.batch(range(4), size), captioned.search.batch(range(4), size)
        assert (a["images"] == b["images"]).all()
        assert (a["labels"] == b["labels"]).all()
    for index in range(300):
        scene = drawn("search", index)
        text = described("search", index, scene)
        assert text == described("search", index, drawn("search", index))
        words = {CLASSES[scene.label], *WORDS[CLASSES[scene.label]]}
        assert any(word in text for word in words)
        down, right = np.argwhere(scene.mask).mean(0) / CANVAS  # the mean, not the middle
        for word, holds in (
            ("top", down < 0.40), ("bottom", down > 0.60), ("left", right < 0.40),
            ("right", right > 0.60), ("centre", 0.27 < down < 0.73 and 0.27 < right < 0.73),
            ("small", scene.side_px < 32), ("large", scene.side_px > 36),
            ("with little around it", scene.pieces < 10.5), ("among clutter", scene.pieces > 17.5),
        ):  # fmt: skip
            assert holds or word not in text.split(" of a ")[-1], (text, word)
        assert " a a" not in text
        assert " a o" not in text


def test_captions_of_scenes_are_many_and_their_parts_as_frequent_as_the_grammar_says():
    texts = [described("train", i, drawn("train", i)) for i in range(600)]
    assert len(set(texts)) > 400
    placed = sum(" at the " in text or "centre" in text for text in texts) / len(texts)
    assert placed == pytest.approx(0.75, abs=0.07)
    other = sum(
        any(word in text for word in WORDS[CLASSES[drawn("train", i).label]])
        for i, text in enumerate(texts[:200])
    )
    assert other / 200 == pytest.approx(0.25, abs=0.1)
