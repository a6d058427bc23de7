"""Pictures of every kind become the pixels that they should, worked out here without Pillow."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_imagefolder import fill, load, refusal, said, save

from nas.data.imagefolder.survey import survey
from nas.errors import DataError
from nas.preprocessing import PictureReader

NOISE = np.random.default_rng(1)
SIDE = 8
# What is right way up becomes what the file holds, for each value of the EXIF orientation.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def pixels(reader, path, side=SIDE):
    return reader.pixels(path, side).transpose(1, 2, 0)


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "jpg", "avif"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_as_its_orientation_says(tmp_path, ending, orientation):
    """A picture of four quarters, one of which is bright, and wider than it is high."""
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32, :48] = 255  # at the top on the left
    upright[32:, :48] = 80
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    path = tmp_path / f"a.{ending}"
    more = {"tiffinfo": {274: orientation}} if ending == "tif" else {"exif": oriented(orientation)}
    stored.save(path, **more)
    seen = PictureReader().pixels(path, 8).mean(0)  # (8, 8): the middle square
    means = [seen[:3, :3].mean(), seen[5:, :3].mean(), seen[:3, 5:].mean(), seen[5:, 5:].mean()]
    np.testing.assert_allclose(means, [255, 80, 0, 0], atol=6)


def test_twelve_bits_in_sixteen_keep_their_levels_and_their_order(tmp_path, capsys):
    """One scale for all pictures: a dark one stays dark beside a bright one."""
    ramp = np.linspace(0, 4095, 32 * 32).reshape(32, 32)
    means = {}
    for label in ("cat", "dog"):
        for i in range(6):
            values = ramp * (i + 1) / 6 + (label == "dog")
            save(tmp_path / label / f"{i}.png", values.clip(0, 4095).astype(np.uint16))
            means[label, i] = values.clip(0, 4095)
    data = load(tmp_path)
    white = max(np.floor(means[p.parent.name, int(p.stem)].max()) for p, _ in data.train.files)
    assert data.reader.levels == (0, white)
    assert f"12 of 12 images have more than 8 bits: 0 is black and {white:g} white" in said(capsys)
    for split in (data.train, data.search, data.test):
        for (path, _), seen in zip(split.files, split.batch(range(split.size), 32)["images"]):
            values = np.floor(means[path.parent.name, int(path.stem)])
            wanted = np.minimum(values * 255 / white, 255)
            np.testing.assert_allclose(seen[0], wanted, atol=0.51)
    brightest = max(
        len(np.unique(x)) for x in data.train.batch(range(data.train.size), 32)["images"]
    )
    assert brightest == 256


@pytest.mark.parametrize(
    ("low", "high", "kind", "ending"),
    [
        (0, 1, np.float32, "tif"),
        (0, 1, np.float32, "pfm"),
        (0, 255, np.float32, "tif"),
        (-1000, 3000, np.float32, "tif"),
        (-1000, 3000, np.int32, "tif"),
        (0, 100_000, np.int32, "tif"),
        (0, 65535, np.uint16, "tif"),
        (0, 1023, np.uint16, "jp2"),
        (0, 0, np.uint16, "png"),
    ],
)
def test_values_of_any_range_are_scaled_by_those_of_train(tmp_path, low, high, kind, ending):
    values = {}
    for split, top in (("train", high), ("val", high / 2), ("test", high * 2)):
        for label in ("cat", "dog"):
            own = NOISE.uniform(low, top, (SIDE, SIDE)) if top > low else np.zeros((SIDE, SIDE))
            own[0, :2] = low, top
            path = tmp_path / split / label / f"0.{ending}"
            own = own.clip(None, 65535 if kind is np.uint16 else None).astype(kind)
            save(path, own, **({"irreversible": False} if ending == "jp2" else {}))
            values[path] = own.astype(np.float64)
    data = load(tmp_path)
    assert data.reader.levels == (low, high)
    for split in (data.train, data.search, data.test):
        for (path, _), seen in zip(split.files, split.batch(range(2), SIDE)["images"]):
            wanted = 255 * ((values[path] - low) / max(high - low, 1e-9)).clip(0, 1)
            np.testing.assert_allclose(seen[0], wanted, atol=0.51)


def test_one_data_set_has_one_scale(tmp_path):
    fill(tmp_path, "train/cat", "train/dog", "test/cat", count=3)
    deep = NOISE.integers(0, 4096, (8, 8)).astype(np.uint16)
    save(tmp_path / "test" / "cat" / "deep.png", deep)
    assert "none of them is in train" in refusal(tmp_path)
    save(tmp_path / "train" / "cat" / "deep.png", deep)
    assert load(tmp_path).reader.levels == (0, deep.max())
    save(tmp_path / "train" / "cat" / "float.tif", deep.astype(np.float32))
    assert "integers here and floats there" in refusal(tmp_path)


def png_of_16_bit_colours(path, values):
    """A PNG of 16-bit colours, which Pillow cannot write: values (height, width, 3)."""
    import struct
    import zlib

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_16_bits_are_read_by_their_upper_half_or_refused(tmp_path, capsys, bits):
    """Pillow reads no more; of 12 bits in 16 that would be 16 levels."""
    for label in ("cat", "dog"):
        for i in range(3):
            values = NOISE.integers(0, 2**bits, (SIDE, SIDE, 3))
            png_of_16_bit_colours(tmp_path / label / f"{i}.png", values)
    if bits == 12:
        assert "end at 4,095, and Pillow keeps 16 of these levels" in refusal(tmp_path)
        return
    data = load(tmp_path)
    assert "6 of 6 images have 16 bits a colour: the upper 8 are read" in said(capsys)
    png_of_16_bit_colours(tmp_path / "x.png", values)
    assert (pixels(data.reader, tmp_path / "x.png") == values >> 8).all()


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("LA", "png"), ("LA", "tif")],
)
def test_what_is_transparent_shows_white(tmp_path, capsys, kind, ending):
    """Whatever colour lies hidden below; half of it where it is half transparent."""
    colours = NOISE.integers(0, 256, (SIDE, SIDE, 3 if kind == "RGBA" else 1))
    alpha = NOISE.choice([0, 100, 255], (SIDE, SIDE, 1))
    picture = Image.fromarray(np.concatenate([colours, alpha], 2).astype(np.uint8), kind)
    fill(tmp_path, "cat", "dog")
    more = {"lossless": True, "exact": True} if ending == "webp" else {}
    path = save(tmp_path / "cat" / f"clear.{ending}", picture, **more)
    wanted = (colours * alpha + 255 * (255 - alpha)) / 255
    seen = pixels(PictureReader("RGB" if kind == "RGBA" else "L"), path)
    np.testing.assert_allclose(seen, wanted, atol=1.01)
    hole = (alpha == 0)[..., 0]
    assert (seen[hole] == 255).all()
    dark = pixels(PictureReader("RGB" if kind == "RGBA" else "L", ground=0), path)
    np.testing.assert_allclose(dark, colours * alpha / 255, atol=1.01)
    load(tmp_path)
    assert "1 of 9 images have transparent places: white shows there" in said(capsys)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_stands_for_transparent_shows_white(tmp_path, mode):
    """PNG and GIF name one instead of an alpha."""
    colours = np.full((SIDE, SIDE), 40, np.uint8)
    colours[2:5] = 90
    if mode == "RGB":
        picture, named = Image.fromarray(colours).convert("RGB"), (90, 90, 90)
    else:
        picture, named = Image.fromarray(colours, "L"), 90
        if mode == "P":
            picture.putpalette([v for i in range(256) for v in (i, i, i)])
    path = save(tmp_path / "a.png", picture, transparency=named)
    seen = pixels(PictureReader(), path)
    assert (seen[2:5] == 255).all()
    assert (seen[:2] == 40).all()


def test_an_opaque_alpha_is_not_called_transparent(tmp_path, capsys):
    fill(tmp_path, "cat", "dog")
    save(tmp_path / "cat" / "a.png", Image.new("RGBA", (8, 8), (1, 2, 3, 255)))
    load(tmp_path)
    assert "transparent" not in said(capsys)


def test_a_set_is_grey_only_if_every_training_picture_is(tmp_path):
    """One colour picture among hundreds of grey ones makes it a set of colours."""
    for label in ("cat", "dog"):
        for i in range(60):
            save(tmp_path / label / f"{i:02}.png", NOISE.integers(0, 256, (4, 4)).astype(np.uint8))
    assert load(tmp_path).reader.mode == "L"
    for label in ("cat", "dog"):
        save(tmp_path / label / "07.png")
        save(tmp_path / label / "08.png")
    assert load(tmp_path).reader.mode == "RGB"


def test_of_several_frames_the_first_is_read_and_it_is_said(tmp_path, capsys):
    fill(tmp_path, "cat", "dog")
    frames = [Image.new("RGB", (SIDE, SIDE), (level, 0, 0)) for level in (250, 20, 90)]
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        path = save(tmp_path / "cat" / name, frames[0], save_all=True, append_images=frames[1:])
        assert abs(pixels(PictureReader(), path)[..., 0].mean() - 250) < 5
    load(tmp_path)
    assert "4 of 12 images have several frames: the first is read" in said(capsys)


def test_the_middle_square_is_cut_before_it_is_resized(tmp_path):
    """At its own size nothing is mixed, whether the sides differ by an odd number or an even one."""
    for height, width in ((8, 9), (8, 12), (13, 8), (8, 8)):
        own = NOISE.integers(0, 256, (height, width, 3)).astype(np.uint8)
        top, left = (height - 8) // 2, (width - 8) // 2
        seen = pixels(PictureReader(), save(tmp_path / "a.png", own))
        assert (seen == own[top : top + 8, left : left + 8]).all()


def test_a_long_thin_picture_costs_no_memory(tmp_path):
    """20,000 pixels in a row would be 4 GB if they were made 224 pixels high first."""
    path = save(tmp_path / "thin.png", np.full((1, 20_000, 3), 77, np.uint8))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, before[1]))
    try:
        seen = PictureReader().pixels(path, 224)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert seen.shape == (3, 224, 224)
    assert (seen == 77).all()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("pipe", "it is no file; remove or replace the file"),
        ("folder", "it is a folder; give the path of a picture"),
        ("nothing", "there is no such file; give the path of a picture"),
        ("NUL", "there is no such file; give the path of a picture"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tmp_path, what, words):
    path = tmp_path / "x.png"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "NUL":
        path = tmp_path / "x\0.png"
    with pytest.raises(DataError, match=words):
        PictureReader().pixels(path, 8)


def test_floats_are_refused_where_the_training_set_had_none(tmp_path):
    path = save(tmp_path / "a.tif", np.ones((8, 8), np.float32))
    with pytest.raises(DataError, match="its pixels are floats"):
        PictureReader().pixels(path, 8)
    assert (PictureReader("L", levels=(0, 2)).pixels(path, 8) == 128).all()


def test_damaged_metadata_does_not_lose_a_picture(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), (9, 9, 9)).save(path, exif=oriented(6))
    content = path.read_bytes()
    at = content.index(b"Exif\0\0") + 6
    path.write_bytes(content[:at] + b"\xff" * 12 + content[at + 12 :])
    assert abs(pixels(PictureReader(), path).astype(int) - 9).max() < 3


FORMATS = [
    "png",
    "jpg",
    "webp",
    "avif",
    "tif",
    "gif",
    "bmp",
    "ppm",
    "jp2",
    "tga",
    "qoi",
    "sgi",
    "pcx",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A picture of each format, as bytes."""
    folder = tmp_path_factory.mktemp("whole")
    picture = NOISE.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return {end: save(folder / f"a.{end}", picture).read_bytes() for end in FORMATS}


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ending=st.sampled_from(FORMATS),
    cut=st.integers(0, 400),
    changes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8),
)
def test_whatever_is_done_to_a_file_it_is_a_picture_or_refused(
    tmp_path, whole, ending, cut, changes
):
    content = bytearray(whole[ending])
    for at, value in changes:
        content[at % len(content)] = value
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content[: len(content) - cut])
    seen, refused = survey([path])
    assert len(seen) + len(refused) == 1
    reader = PictureReader("RGB", levels=(0, 1))
    if refused:
        assert refused[path]
        with pytest.raises(DataError):
            reader.pixels(path, SIDE)
    else:
        assert reader.pixels(path, SIDE).shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_cut_short_is_not_filled_up_with_black(tmp_path, whole, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(whole[ending][: len(whole[ending]) // 2])
    with pytest.raises(DataError, match="cannot decode"):
        PictureReader().pixels(path, SIDE)
