"""A folder of an exported network is all that is needed: files, preprocessing, examples, answers."""

from __future__ import annotations

import json
import runpy
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DEBUG_SPACES, paint
from PIL import Image
from safetensors import safe_open

import nas
from nas import cli
from nas.data import load_data
from nas.deployment import IR_VERSION, OPSET, Card
from nas.errors import DataError, EvaluationError, RunError, UsageError, VitnasError
from nas.export import export_network
from nas.families import load_space
from nas.network.calibration import calibrate
from nas.network.network import Network
from nas.records import fingerprint, read_json, write_json
from nas.run.main import _export
from nas.runtimes import load_runtime
from nas.space.architecture import at_precision

ROOT = Path(__file__).parents[1]


def plain(space, architecture, images, seed=0):
    """A network of random weights that answers differently to different pictures."""
    torch.manual_seed(seed)
    network = Network(space, architecture).eval()
    if architecture != at_precision(architecture, "fp32"):
        calibrate(network, images)
    return network


def deploy(folder, name, data, formats, *, precision="fp32", smaller=False, **more):
    """Export a network of a debug space for a data set; returns it and its inputs."""
    space = load_space(name, data.task)
    space = space if precision == "fp32" else space.with_int8()
    chosen = at_precision(space.smallest if smaller else space.largest, precision)
    first = data.first(data.test, 4, space.largest.resolution)["images"]
    inputs = space.parts.resized(first, chosen.resolution)
    network = plain(space, chosen, inputs)
    examples = inputs[: more.pop("batch", 1)]
    with torch.no_grad():
        expected = network(examples)
    card = Card.of(space, chosen, data)
    found = export_network(network, examples, expected, folder, formats, card=card, **more)
    return network, inputs, found


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_a_pt2_file_runs_as_the_documentation_of_torch_calls_it(name, photo_data, tmp_path):
    """Gradients are on by default, and parameters that have some cannot be written into."""
    network, inputs, _ = deploy(tmp_path, name, photo_data, ["pt2"])
    given = inputs[:1].clone()
    program = torch.export.load(tmp_path / "model.pt2").module()
    outputs = program(given)
    assert not outputs.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(outputs, network(inputs[:1]))
    torch.testing.assert_close(given, inputs[:1], rtol=0, atol=0)  # layers write into their maps
    assert not any(p.requires_grad for p in program.parameters())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_onnx_file_says_what_it_takes_and_nothing_of_this_machine(
    precision, photo_data, tmp_path
):
    onnx = pytest.importorskip("onnx")
    deploy(tmp_path, "vit:debug", photo_data, ["onnx", "pt2"], precision=precision)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [x.name for x in model.graph.input] == ["images"]
    assert [x.name for x in model.graph.output] == ["outputs"]
    # What the oldest ONNX Runtime that is stated knows: 1.17 came with ONNX 1.15.
    assert [(x.domain, x.version) for x in model.opset_import] == [("", OPSET)] == [("", 20)]
    assert model.ir_version == IR_VERSION == 9
    metadata = {x.key: x.value for x in model.metadata_props}
    card = read_json(tmp_path / "preprocess.json")
    assert {**json.loads(metadata["preprocess"]), "files": card["files"], "measured_on": {}} == card
    data = (tmp_path / "model.onnx").read_bytes()
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        data += b"".join(archive.read(name) for name in archive.namelist())
    for word in (str(ROOT), "search_spaces/vit.py", "nas/network", ".py", "stack_trace"):
        assert word.encode() not in data, word


def test_weights_and_folder_carry_the_same_card(photo_data, tmp_path):
    network, _, _ = deploy(tmp_path, "swin:debug", photo_data, ["safetensors"], smaller=True)
    card = read_json(tmp_path / "preprocess.json")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        inside = json.loads(file.metadata()["preprocess"])
    assert {**inside, "files": card["files"], "measured_on": {}} == card
    assert card["classes"] == ["bright", "dark"]
    assert card["input"]["shape"] == [3, *network.space.example(network.architecture)[1:]]
    rule = card["pictures"]
    assert (rule["channels"], rule["mean"], rule["std"]) == (
        3,
        list(photo_data.mean),
        list(photo_data.std),
    )
    assert (rule["side"], rule["input_side"]) == (
        network.space.largest.resolution,
        network.architecture.resolution,
    )
    assert Card.read(tmp_path) == Card.of(network.space, network.architecture, photo_data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("space", "swin:nothing", "space"),
        ("task", "guessing", "guessing"),
        ("classes", {}, "classes"),
        ("input", {"name": "images"}, "shape"),
        ("input", {"name": "images", "shape": [3, 1, 1]}, "not that of the architecture"),
        ("architecture", {"resolution": 1}, "resolution"),
        ("pictures", {}, "no reader has 'CMYK'"),
        ("pictures", 3, "object"),
    ],
)
def test_a_card_that_says_something_else_is_one_line(key, value, message, photo_data, tmp_path):
    space = load_space("vit:debug", photo_data.task)
    data = Card.of(space, space.largest, photo_data).to_json()
    if key == "pictures" and value == {}:
        value = {k: v for k, v in data["pictures"].items() if k != "mode"} | {"mode": "CMYK"}
    write_json(tmp_path / "preprocess.json", data | {key: value})
    with pytest.raises(RunError, match=message) as error:
        Card.read(tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "preprocess.json"))


@pytest.mark.parametrize("name", DEBUG_SPACES)
def test_a_dynamic_batch_is_exact_where_the_layers_allow_it_and_refused_elsewhere(
    name, photo_data, tmp_path
):
    """Swin computes windows in as many chunks as the batch needs: one chunk would be slower."""
    if name.startswith("swin"):
        with pytest.raises(EvaluationError, match=r"cannot take any batch.*give the batch"):
            deploy(tmp_path / "refused", name, photo_data, ["pt2"], any_batch=True)
        assert not (tmp_path / "refused").exists()
        return
    network, inputs, _ = deploy(tmp_path, name, photo_data, ["pt2"], any_batch=True)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for n in (1, 2, 3):
        some = torch.cat([inputs, inputs.flip(3)])[:n]
        with torch.no_grad():
            torch.testing.assert_close(program(some), network(some))
    assert read_json(tmp_path / "preprocess.json")["files"]["model.pt2"]["batch"] is None


def test_onnx_with_a_dynamic_batch_is_exact(photo_data, tmp_path):
    """And a pt2 file is written after it, which torch once refused in a process of its own."""
    ort = pytest.importorskip("onnxruntime")
    torch._dynamo.reset()
    network, inputs, _ = deploy(tmp_path, "vit:debug", photo_data, ["onnx", "pt2"], any_batch=True)
    session = ort.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape[0] == "batch"
    for n in (1, 2, 3):
        (outputs,) = session.run(["outputs"], {"images": inputs[:n].numpy()})
        with torch.no_grad():
            wanted = network(inputs[:n]).numpy()
        np.testing.assert_allclose(outputs, wanted, atol=1e-5)


def test_files_have_the_batch_and_the_data_type_that_were_searched(photo_data, tmp_path):
    device = {"name": "d", "processor": "p", "runtime": "torch-eager", "runtime_version": "2",
              "threads": 3, "dtype": "bfloat16", "batch": 2}  # fmt: skip
    network, inputs, _ = deploy(
        tmp_path, "vit:debug", photo_data, ["pt2", "safetensors"], batch=2, dtype="bfloat16",
        device=device,
    )  # fmt: skip
    program = torch.export.load(tmp_path / "model.pt2").module()
    outputs = program(inputs[:2].bfloat16())
    assert outputs.dtype == torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(outputs.float(), network(inputs[:2]), atol=0.02, rtol=0.05)
    with pytest.raises(AssertionError, match="size"):
        program(inputs[:1].bfloat16())
    card = read_json(tmp_path / "preprocess.json")
    prints = {name: fingerprint((tmp_path / name).read_bytes()) for name in card["files"]}
    pt2, weights = prints.pop("model.pt2"), prints.pop("weights.safetensors")
    assert card["files"] == {
        "model.pt2": {"batch": 2, "dtype": "bfloat16", "fingerprint": pt2},
        "weights.safetensors": {"batch": None, "dtype": "float32", "fingerprint": weights},
    }
    page = (tmp_path / "README.md").read_text()
    for words in ("p (d): torch-eager 2, 3 threads, batch 2, bfloat16", "set_num_threads(3)",
                  "batch 2, bfloat16 |", "MALLOC_MMAP_MAX_=0", "set_flush_denormal"):  # fmt: skip
        assert words in page


def test_a_search_exports_what_it_measured(photo_data, tmp_path, monkeypatch):
    """A batch of more than the test split has, in bfloat16; and what is not torch in float32."""
    space = load_space("vit:debug", photo_data.task)
    network = plain(space, space.largest, None)
    chosen = at_precision(space.smallest, "fp32")
    found = {}

    def export(network, images, expected, folder, formats, *, card, dtype, device):
        found[device["name"]] = (len(images), dtype, [*formats], card, device)
        with torch.no_grad():
            torch.testing.assert_close(network(images), expected)
        return {}

    monkeypatch.setattr("nas.export.export_network", export)
    monkeypatch.setattr("nas.export.onnx_installed", lambda: True)
    described = {
        name: {**load_runtime("torch-cpu,dtype=bfloat16,batch=4").describe(), "name": name} | more
        for name, more in {"own": {}, "other": {"runtime": "tensorrt", "dtype": "float16"}}.items()
    }
    for name in described:
        inputs = SimpleNamespace(
            space=space, data=photo_data, described=described,
            settings=SimpleNamespace(device=name),
            evaluator=SimpleNamespace(subnet=network.inherit),
        )  # fmt: skip
        _export(inputs, chosen, tmp_path)
    card = Card.of(space, chosen, photo_data)
    assert found["own"] == (4, "bfloat16", ["safetensors", "pt2"], card, described["own"])
    formats = ["safetensors", "pt2", "onnx"]
    assert found["other"] == (4, "float32", formats, card, described["other"])


def test_a_folder_never_holds_files_of_two_networks(photo_data, tmp_path):
    deploy(tmp_path, "vit:debug", photo_data, ["pt2", "safetensors"])
    deploy(tmp_path, "vit:debug", photo_data, ["safetensors"])  # the same: the other file stays
    assert {*read_json(tmp_path / "preprocess.json")["files"]} == {
        "model.pt2", "weights.safetensors",
    }  # fmt: skip
    (tmp_path / ".model.onnx.0123abcd").write_text("left by a killed export")
    deploy(tmp_path, "vit:debug", photo_data, ["safetensors"], smaller=True)
    assert [*read_json(tmp_path / "preprocess.json")["files"]] == ["weights.safetensors"]
    assert not (tmp_path / "model.pt2").exists()
    assert not (tmp_path / ".model.onnx.0123abcd").exists()


# --- from a file to an answer ---


def odd_pictures(folder):
    """Two classes of pictures as people have them: turned, transparent, wide, large, with palettes."""
    rng = np.random.default_rng(0)
    for label, level in (("bright", 190), ("dark", 70)):
        (folder / label).mkdir(parents=True)

        def noise(height, width, channels, level=level):
            shape = (height, width, channels)[: 2 + (channels > 1)]
            coarse = rng.integers(level - 60, level + 60, (8, 8, channels)).astype(np.uint8)
            picture = Image.fromarray(coarse.squeeze() if channels == 1 else coarse)
            return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).reshape(
                shape
            )

        def save(name, x, label=label, **more):
            Image.fromarray(x).save(folder / label / name, **more)

        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        save("turned.jpg", noise(40, 90, 3), exif=exif)
        save("large.jpg", noise(700, 500, 3))
        save("wide.png", noise(20, 300, 3))
        save("grey.png", noise(40, 30, 1))
        glass = np.concatenate([noise(50, 50, 3), np.full((50, 50, 1), 120, np.uint8)], 2)
        save("glass.png", glass)
        save("lossy.webp", noise(33, 47, 3))
        Image.fromarray(noise(64, 64, 3)).quantize(16).save(folder / label / "palette.gif")
        for i in range(5):
            save(f"{i}.png", noise(30 + i, 36, 3))
    return folder


def deep_pictures(folder):
    """Two classes of grey pictures of 12 bits in 16."""
    rng = np.random.default_rng(0)
    for label, level in (("bright", 3000), ("dark", 900)):
        (folder / label).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(level - 500, level + 500, (30, 30 + i)).astype(np.uint16)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


PICTURES = {"odd": odd_pictures, "deep": deep_pictures, "painted": paint}


def sources(data):
    """The test and search pictures of a folder, with what the pipeline makes of them."""
    splits = (data.test, data.search)
    return [path for split in splits for path, _ in split.files], splits


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("smaller", [False, True])
def test_files_become_inputs_as_in_tests_in_predictions_and_in_the_example(
    kind, smaller, tmp_path, monkeypatch, capsys
):
    """Against the pipeline that the accuracy on the test split comes from, float by float."""
    data = load_data(f"imagefolder:{PICTURES[kind](tmp_path / 'pictures')}")
    folder = tmp_path / "winner"
    network, _, _ = deploy(folder, "vit:debug", data, ["safetensors", "pt2"], smaller=smaller)
    files, splits = sources(data)
    side = network.space.largest.resolution
    whole = torch.cat([data.first(split, 99, side)["images"] for split in splits])
    wanted = network.space.parts.resized(whole, network.architecture.resolution)
    assert (network.architecture.resolution < side) == smaller
    pixels, inputs = Card.read(folder).pictures.read(files)
    torch.testing.assert_close(inputs, wanted, rtol=0, atol=0)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    with torch.no_grad():
        percent = 100 * network(wanted).softmax(1)
    predictions = nas.predict(folder, files)
    for i, found in enumerate(predictions):
        best = int(percent[i].argmax())
        answer, *others = found.facts["answers"]
        assert answer["class"] == data.task.names[best]
        assert answer["percent"] == pytest.approx(float(percent[i, best]), abs=0.006)
        assert len(others) == 1
    monkeypatch.setattr(sys, "argv", ["example_torch.py", *map(str, files)])
    capsys.readouterr()
    left = runpy.run_path(str(folder / "example_torch.py"))
    torch.set_flush_denormal(False)
    torch.testing.assert_close(torch.tensor(left["x"]), wanted[-1:], rtol=1e-5, atol=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{p.file} {p.facts['answers'][0]['class']}" for p in predictions]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_onnx_alone_predicts_what_the_weights_predict(
    precision, photo_data, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("onnxruntime")
    files, _ = sources(photo_data)
    formats = ["safetensors", "onnx"]
    deploy(tmp_path, "vit:debug", photo_data, formats, precision=precision, batch=3)
    by_weights = nas.predict(tmp_path, files, top=1)
    (tmp_path / "weights.safetensors").unlink()
    by_onnx = nas.predict(tmp_path, files, top=1)
    assert [p.facts["answers"][0]["percent"] for p in by_onnx] == pytest.approx(
        [p.facts["answers"][0]["percent"] for p in by_weights], abs=0.1
    )
    assert all(p.kept for p in by_weights)
    assert not any(p.kept for p in by_onnx)
    monkeypatch.setattr(sys, "argv", ["example_onnx.py", *map(str, files)])
    capsys.readouterr()
    runpy.run_path(str(tmp_path / "example_onnx.py"))
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed] == [
        p.facts["answers"][0]["class"] for p in by_onnx
    ]


def call(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in arguments])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_the_command_predicts_in_text_in_json_and_in_a_picture(photo_data, tmp_path, capsys):
    network, _, _ = deploy(tmp_path / "w", "swin:debug", photo_data, ["safetensors"])
    files, _ = sources(photo_data)
    figure = tmp_path / "looked.png"
    code, out, _ = call(capsys, "predict", tmp_path / "w", *files[:2], "--out", figure, "--json")
    (first, second) = json.loads(out)["predictions"]
    assert (code, first["file"], second["file"]) == (0, str(files[0]), str(files[1]))
    assert sum(answer["percent"] for answer in first["answers"]) == pytest.approx(100, abs=0.02)
    with Image.open(figure) as drawn:
        assert min(drawn.size) > 50
    code, out, _ = call(capsys, "predict", tmp_path / "w", files[0], "--top", 1)
    assert (code, out.count("%")) == (0, 1)
    (prediction,) = nas.predict(tmp_path / "w", str(files[0]))  # one path is a picture, too
    assert {*prediction.kept} == {
        *network.kept(torch.zeros(1, *Card.read(tmp_path / "w").input.shape))
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "holds no preprocess.json; give a run"),
        (lambda folder: (folder / "settings.json").write_text("{}"), "is not a finished run; finish"),
        (lambda folder: [(folder / name).write_text("{}") for name in ("settings.json", "run.json")],
         "earlier version, which wrote no preprocess.json; vitnas export"),
    ],
)  # fmt: skip
def test_what_is_no_exported_folder_is_one_line_with_the_fix(make, message, tmp_path, capsys):
    make(tmp_path)
    code, _, err = call(capsys, "predict", tmp_path, "x.png")
    assert (code, err.count("\n")) == (1, 1)
    assert message in err


def test_no_picture_and_no_network_are_one_line_with_the_fix(photo_data, tmp_path):
    deploy(tmp_path, "vit:debug", photo_data, ["safetensors"])
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(DataError, match=r"x\.png"):
        nas.predict(tmp_path, [tmp_path / "x.png"])
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(RunError, match=r"holds neither weights\.safetensors nor"):
        nas.predict(tmp_path, [tmp_path / "x.png"])


def test_files_that_were_altered_predict_nothing(photo_data, tmp_path):
    pytest.importorskip("onnxruntime")
    files, _ = sources(photo_data)
    deploy(tmp_path, "vit:debug", photo_data, ["safetensors", "onnx"])
    for name in (
        "weights.safetensors",
        "model.onnx",
    ):  # the second is asked where there is no first
        content = bytearray((tmp_path / name).read_bytes())
        content[len(content) * 3 // 4] ^= 64
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VitnasError, match=rf"{name}.* not the file that preprocess\.json"):
            nas.predict(tmp_path, files)
        (tmp_path / name).unlink()


def test_inputs_that_are_no_pictures_are_exported_and_said_to_be_unknown(tmp_path):
    data = load_data("toys.clouds")
    space = load_space("toys.pointset:debug", data.task)
    network = plain(space, space.largest, None)
    inputs = data.first(data.test, 1, 32)["points"]
    with torch.no_grad():
        expected = network(inputs)
    card = Card.of(space, space.largest, data)
    export_network(network, inputs, expected, tmp_path, ["safetensors", "pt2"], card=card)
    assert (card.pictures, card.input.name, card.input.shape) == (None, "points", (32, 3))
    assert Card.read(tmp_path) == card
    assert not list(tmp_path.glob("example*"))
    with pytest.raises(UsageError, match="does not say how a file becomes points"):
        nas.predict(tmp_path, ["x.png"])


def test_a_task_says_how_its_answers_are_described():
    outputs = torch.tensor([[0.0, 2.0, 1.0]])
    named = load_data("toys.clouds").task.of(("a", "b", "c")).meaning(outputs, 2)
    share = np.exp([2, 1]) / np.exp([0, 2, 1]).sum() * 100
    assert [answer["class"] for answer in named.facts["answers"]] == ["b", "c"]
    assert [answer["percent"] for answer in named.facts["answers"]] == pytest.approx(
        share, abs=0.01
    )
    assert named.line == f"b {share[0]:.1f} %, c {share[1]:.1f} %"
    from toys.pixels import Pixels

    assert Pixels().meaning(torch.zeros(1, 2, 1, 1), 5).facts == {"outputs": [[[0.0]], [[0.0]]]}


# --- what can be exported ---


def test_architectures_and_folders_are_exported_as_runs_are(
    photos, debug_supernet, tmp_path, capsys
):
    space = load_space("swin:debug")
    words = [
        "--space",
        "swin:debug",
        "--data",
        f"imagefolder:{photos}",
        "--supernet",
        debug_supernet,
    ]
    code, out, _ = call(
        capsys, "export", space.smallest.to_json(), *words, "--format", "safetensors",
        "--out", tmp_path / "one", "--json",
    )  # fmt: skip
    assert (code, {*json.loads(out)["largest_difference"]}) == (0, {"weights.safetensors"})
    card = Card.read(tmp_path / "one")
    assert card.chosen == space.smallest
    assert card.pictures is not None
    again = ["--format", "pt2", "--batch", 2]
    code, _, err = call(capsys, "export", tmp_path / "one", *again, "--out", tmp_path / "two")
    assert code == 0, err
    program = torch.export.load(tmp_path / "two" / "model.pt2").module()
    x = torch.randn(2, *card.input.shape)
    weights = Card.read(tmp_path / "two")
    assert weights == card
    from nas.deployment import load_network

    network = load_network(tmp_path / "one", card.loaded_space, card.chosen)
    with torch.no_grad():
        torch.testing.assert_close(program(x), network(x))
    code, _, err = call(capsys, "export", tmp_path / "one", *again)  # beside the weights
    assert code == 0, err
    assert {*read_json(tmp_path / "one" / "preprocess.json")["files"]} == {
        "model.pt2", "weights.safetensors",
    }  # fmt: skip


def test_what_quantize_wrote_is_exported_and_predicts(
    photos, debug_supernet, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("nas.quantization.default_formats", lambda: ["safetensors"])
    words = [
        "--space",
        "swin:debug",
        "--data",
        f"imagefolder:{photos}",
        "--supernet",
        debug_supernet,
    ]
    code, _, err = call(
        capsys, "quantize", *words, "--images", 10, "--calibration", 4, "--out", tmp_path / "q"
    )
    assert code == 0, err
    card = Card.read(tmp_path / "q")
    assert card.chosen == at_precision(card.chosen, "int8")
    code, _, err = call(capsys, "export", tmp_path / "q", "--format", "pt2")
    assert code == 0, err
    code, out, _ = call(capsys, "predict", tmp_path / "q", *photos.glob("bright/0.png"))
    assert (code, out.count("%")) == (0, 2)


def test_a_named_model_is_exported_with_the_weights_of_a_checkpoint(tmp_path, capsys, monkeypatch):
    from safetensors.torch import save_file
    from timm_models import create

    name = "mobilenetv3_small_100"
    save_file(create(name).state_dict(), tmp_path / "weights.safetensors")
    words = ["export", name, "--format", "safetensors", "--out", tmp_path / "out"]
    code, _, err = call(capsys, *words)
    assert (code, "needs weights; add --weights FILE" in err) == (2, True)
    code, _, err = call(capsys, *words, "--weights", tmp_path / "weights.safetensors")
    assert code == 0, err
    assert Card.read(tmp_path / "out").pictures is None
    code, _, err = call(capsys, "predict", tmp_path / "out", "x.png")
    assert (code, "export the network with --data" in err) == (2, True)


@pytest.mark.parametrize("batch", ["0", "-1", "all", "1.5", "99999999999999999999"])
def test_a_batch_is_a_count_or_any(batch, capsys):
    code, _, err = call(capsys, "export", "x", "--format", "pt2", f"--batch={batch}")
    assert (code, "--batch is a count from 1 to 4096 or any" in err) == (2, True)
