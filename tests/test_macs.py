"""MACs over the resolution, against closed forms of the papers."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from test_cli import call
from torch.utils.flop_counter import FlopCounterMode

from nas.families import load_space, model_names
from nas.network.macs import count_macs, sum_macs, sum_params
from nas.network.network import Network
from nas.report.macs import exponent, macs_by_resolution
from nas.tasks.classification import Classification

VIT, SWIN = "vit_base_patch16_224", "swin_base_patch4_window7_224"


@pytest.fixture(scope="module")
def result():
    return macs_by_resolution([VIT, SWIN, "swin:debug", VIT], [512, 224, 2048])


def rows_of(result, model):
    return {row["resolution"]: row for row in result["rows"] if row["model"] == model}


def test_vit_base_is_its_closed_form(result):
    """Class token and (R / 16)^2 patches; 12 blocks of width 768 (ViT, table 1, equations 1-4)."""
    c = 768
    for side, row in rows_of(result, VIT).items():
        n = (side // 16) ** 2 + 1
        products, projections = 12 * 2 * n * n * c, 12 * 4 * n * c * c
        assert row["attention_matmul_macs"] == products
        assert row["attention_macs"] == products + projections
        rest = 12 * 8 * n * c * c + (n - 1) * 3 * 16**2 * c + 1000 * c
        assert row["macs"] == products + projections + rest


# Sides of the four maps in tokens, padded to windows of 7 by hand.
PADDED = {224: (56, 28, 14, 7), 512: (133, 70, 35, 21), 2048: (518, 259, 133, 70)}


def test_swin_base_is_its_closed_form_with_padded_windows(result):
    """Widths 128 to 1024, depths 2, 2, 18, 2; equation 2 of the paper for each map.

    Padding takes part in attention alone, as in the paper's code, where a block pads between its
    first norm and the attention.
    """
    for side, row in rows_of(result, SWIN).items():
        products = projections = mlps = 0
        for stage, (padded, depth) in enumerate(zip(PADDED[side], (2, 2, 18, 2))):
            n, real, c = padded**2, (side // 2 ** (stage + 2)) ** 2, 128 * 2**stage
            products += depth * 2 * 7**2 * n * c
            projections += depth * 4 * n * c * c
            mlps += depth * 8 * real * c * c
        assert row["attention_matmul_macs"] == products
        assert row["attention_macs"] == products + projections
        merges = sum((side // 2 ** (s + 3)) ** 2 * 8 * (128 * 2**s) ** 2 for s in range(3))
        embedding = (side // 4) ** 2 * 3 * 4**2 * 128
        assert row["macs"] == products + projections + mlps + merges + embedding + 1000 * 1024


@pytest.mark.parametrize("side", [160, 168, 192, 224, 512])
def test_swin_tiny_multiplies_as_often_as_torchvisions(side):
    """At 512 px 25.50 G; with the MLP on padding it was 29.34 G."""
    from torchvision.models import swin_t

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        swin_t(num_classes=10)(torch.empty(1, 3, side, side))
    space = load_space(f"swin_tiny_patch4_window7_224@{side}", Classification(10))
    macs = sum_macs(space.layers(space.largest)).total
    assert macs == counter.get_total_flops() // 2
    assert side != 512 or round(macs / 1e9, 2) == 25.50


def test_the_products_of_mobilevit_and_efficientvit_are_their_closed_forms():
    """MobileViT-S attends among the patches at each of the 4 places in patches of 2 x 2 (table 4).

    EfficientViT-B3 multiplies, for itself and for one aggregated scale, each head's 32 x 33 sums
    with its tokens, twice: 16 and 32 heads in 6 and 9 blocks, at strides 16 and 32.
    """
    rows = macs_by_resolution(["mobilevit_s", "efficientvit_b3"], [256, 512])["rows"]
    for row in rows:
        side = row["resolution"]
        if row["model"] == "mobilevit_s":
            stages = ((8, 144, 2), (16, 192, 4), (32, 240, 3))
            expected = sum(b * 4 * 2 * ((side // s) ** 2 // 4) ** 2 * c for s, c, b in stages)
        else:
            stages = ((16, 16, 6), (32, 32, 9))
            expected = sum(b * 2 * (side // s) ** 2 * heads * 32 * 33 for s, heads, b in stages)
        assert row["attention_matmul_macs"] == expected


def test_global_products_grow_with_the_fourth_power_and_windows_with_the_second(result):
    slopes = {slope["model"]: slope for slope in result["slopes"]}
    assert slopes[VIT]["attention_matmul_macs"] == pytest.approx(4, abs=0.02)
    assert slopes[SWIN]["attention_matmul_macs"] == pytest.approx(2, abs=0.05)
    assert slopes[SWIN]["macs"] == pytest.approx(2, abs=0.05)
    assert 2 < slopes[VIT]["macs"] < slopes[VIT]["attention_macs"] < 4
    far = macs_by_resolution([VIT, SWIN], [1792, 3584])["slopes"]
    assert [s["attention_matmul_macs"] for s in far] == pytest.approx([4, 2], abs=0.002)


def test_an_exponent_is_exact_for_a_power_and_missing_without_two_points_or_attention():
    rows = [{"resolution": r, "macs": 5 * r**3, "attention_macs": 0} for r in (10, 20, 70)]
    assert exponent(rows, "macs") == 3
    assert exponent(rows[:1], "macs") is None
    assert exponent(rows, "attention_macs") is None


def vit_share(side, projections):
    n, c = (side // 16) ** 2 + 1, 768
    attention = 12 * (2 * n * n * c + projections * 4 * n * c * c)
    others = 12 * (8 + 4 * (not projections)) * n * c * c + (n - 1) * 3 * 16**2 * c + 1000 * c
    return Fraction(attention, attention + others)


def test_where_attention_is_half_of_the_model(result):
    half = {half["model"]: half for half in result["half"]}
    for kind, projections in (("attention_macs", True), ("attention_matmul_macs", False)):
        side = half[VIT][kind]
        assert side % 32 == 0
        assert vit_share(side - 32, projections) < Fraction(1, 2) <= vit_share(side, projections)
    assert half[SWIN]["attention_macs"] is half[SWIN]["attention_matmul_macs"] is None


def test_the_reading_is_made_of_the_numbers(result):
    assert result["reading"] == (
        f"Attention products grow as R^4.0 in {VIT}, as R^2.0 in {SWIN} and swin:debug; "
        f"attention is over half of {VIT} from 640 px (its products alone from 1120 px)."
    )
    low = macs_by_resolution([SWIN, "mobilenetv3_small_100"], [224, 448])["reading"]
    assert low.endswith("(mobilenetv3_small_100 has none); attention is nowhere half of a model.")
    high = macs_by_resolution(["vit_tiny_patch16_224"], [1024, 2048])["reading"]
    assert "at 1024 px already (its products alone from 1024 px)" in high
    one = macs_by_resolution([VIT], [224])["reading"]
    assert one == f"Attention is 36 % of {VIT} at 224 px."


def test_the_sum_over_layers_is_the_whole_for_every_named_model():
    for name in model_names():
        space = load_space(name)
        layers = space.layers(space.largest)
        counts = [count_macs(layer) for layer in layers]
        assert sum_macs(layers) == tuple(map(sum, zip(*counts)))
        assert all(0 <= m.attention_products <= m.attention <= m.total for m in counts)


def test_macs_on_the_command_line(capsys, tmp_path):
    models = ("--models", "vit:debug, swin:debug", "--resolutions", "48,24")
    for suffix, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")):
        path = tmp_path / "new" / f"macs.{suffix}"
        code, out, _ = call(capsys, "macs", *models, "--out", str(path), "--json")
        assert code == 0
        assert path.read_bytes().startswith(start)
    found = json.loads(out)
    assert found.keys() == {"rows", "slopes", "half", "reading"}
    places = [(row["model"], row["resolution"]) for row in found["rows"]]
    assert places == [("vit:debug", 24), ("vit:debug", 48), ("swin:debug", 24), ("swin:debug", 48)]
    kinds = {"attention_macs", "attention_matmul_macs", "macs"}
    assert all(row.keys() == {"model", "resolution", *kinds} for row in found["rows"])
    assert all(slope.keys() == {"model", *kinds} for slope in found["slopes"])
    code, out, _ = call(capsys, "macs", "--models", SWIN, "--resolutions", "224,448")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "15.43 G" in out
    assert "R^2.00" in out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ("--models", f"{SWIN},{VIT}", "--resolutions", "224,228"),
            "multiples of 16 from 32; use 224",
        ),
        (("--models", "vit_bas_patch16_224"), VIT),
        (("--models", f"{VIT},,"), "separated by commas"),
        (("--resolutions", "224x448"), "--resolutions takes pixels"),
        (("--resolutions", "0"), "1 to 4096"),
        (("--resolutions", "99999999999"), "1 to 4096"),
        (("--out", "macs.jpg"), ".png, .svg or .pdf"),
    ],
)
def test_what_cannot_be_counted_is_one_line_before_anything_is(arguments, hint, capsys):
    code, out, err = call(capsys, "macs", *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert hint in err


def test_layers_of_several_phases_have_their_parameters_once_and_run_each_time():
    space = load_space("swin:debug")
    layers = space.layers(space.largest)
    phased = [replace(layer, phase=phase) for phase in range(3) for layer in layers]
    weights = Network(space, space.largest).parameters()
    assert sum_params(phased) == sum_params(layers) == sum(p.numel() for p in weights)
    assert sum_macs(phased).total == 3 * sum_macs(layers).total
