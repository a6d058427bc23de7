"""What a person sees of a segmenter: scores by class, masks beside the truth, painted pictures."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from conftest import DEBUG_SPACES, made_up_table, searched
from PIL import Image

import nas
from nas import cli
from nas.data import load_data
from nas.data.scenes import CLASSES
from nas.deployment import Card, load_network
from nas.errors import InfeasibleError, UsageError
from nas.evaluation.accuracy import Evaluator
from nas.families import load_space
from nas.network.network import Network
from nas.prediction import predict, write_overlays
from nas.records import Journal, read_json, write_json
from nas.report import pictures
from nas.report.report import write_report
from nas.report.saved_run import SavedRun
from nas.report.wording import class_scores
from nas.run.limits import Limits
from nas.run_record import RunRecord
from nas.settings import Settings
from nas.space.architecture import at_precision
from nas.tasks.segmentation import IGNORED, Segmentation
from nas.training.supernet import save_supernet

SPACE = "toys.pyramid:debug"
NAMES = ("background", *CLASSES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on scenes with masks, of a supernet that knows next to nothing."""
    folder = tmp_path_factory.mktemp("segmenter")
    data = load_data("scenes:masks")
    space = load_space(SPACE, data.task)
    torch.manual_seed(0)
    network = Network(space, space.largest).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    (folder / "supernet").mkdir()
    save_supernet(folder / "supernet", network, data, {})
    return searched(space, folder, data, folder / "supernet", 4)


def test_a_budget_below_the_head_alone_names_the_head(tmp_path):
    data = load_data("scenes:masks")
    space = load_space("swin:debug", data.task)
    table = made_up_table(space, tmp_path / "table")
    settings = Settings(({"torch-cpu": 0.001},), space=space.name, data=data.name)
    limits = Limits(settings, space, {"torch-cpu": table})
    with pytest.raises(InfeasibleError, match="smallest possible takes") as error:
        limits.goal({"torch-cpu": 0.001})
    assert error.value.exit_code == 3
    fastest = min((space.smallest, space.largest), key=lambda a: table.predict(space, a))
    names = ("lateral", "refine", "head", "picture")
    head = [layer for layer in space.layers(fastest) if layer.path.startswith(names)]
    head_ms = sum(map(table.cost, head))
    said = re.search(r"\(predicted\): ([\d.]+) in the head; by kind \w+ ", str(error.value))
    assert float(said[1]) == pytest.approx(head_ms, rel=0.06)
    assert len(str(error.value)) < 300


def call(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, words)])
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize("space", DEBUG_SPACES)
def test_networks_of_every_family_say_how_a_picture_becomes_their_input(space, tmp_path):
    """Those with a fused head, too; and one that does not run at the largest size."""
    data = load_data("scenes:masks")
    found = load_space(space, data.task)
    for architecture in (found.largest, found.smallest):
        card = Card.of(found, architecture, data)
        assert card.pictures.input_side == architecture.resolution
        assert Card.parse(json.loads(json.dumps(card.to_json())), "it") == card


def test_a_run_holds_the_score_of_every_class(run):
    record = RunRecord.read(run / "run.json")
    assert record.task["classes"] == list(NAMES)
    saved, data = SavedRun.load(run), load_data("scenes:masks")
    evaluator = Evaluator(saved.winner(), data, data.test, record.test_images)
    observed = evaluator.observed_by(saved.winner())
    winner = record.answers[0].winner
    assert winner.test_by_class == pytest.approx(evaluator.metric.by_class(observed), abs=1e-3)
    assert winner.test_percent == pytest.approx(evaluator.metric.percent(observed), abs=1e-3)
    assert record["winner"]["test_miou_by_class"] == list(winner.test_by_class)
    assert {*Journal(run / "test.jsonl").read()[0]} >= {"by_class", "variance", "miou_percent"}


def test_the_report_shows_every_class_and_masks_beside_the_truth(run):
    page = write_report([run]).read_text()
    for name in NAMES:
        assert f"<td>{name}</td>" in page
    assert "What the winner answers" in page
    assert (run / "pictures" / "masks.png").stat().st_size > 10_000
    scores = class_scores(RunRecord.read(run / "run.json"))
    assert [name for name, _ in scores] == list(NAMES)
    assert all(len(row) == len(scores[0][1]) > 1 for _, row in scores)


def test_a_run_whose_scores_by_class_are_not_known_has_its_page(run, tmp_path):
    record = read_json(run / "run.json")
    for candidate in (record["answers"][0]["winner"], *record["answers"][0]["baselines"]):
        candidate.pop("test_miou_by_class", None)
    assert class_scores(RunRecord.from_json(record)) == []
    record = read_json(run / "run.json")
    record["answers"][0]["baselines"][0].pop("test_miou_by_class")
    assert {row[1] for _, row in class_scores(RunRecord.from_json(record))} == {None}


def test_masks_are_still_shown_when_the_pictures_have_moved(run):
    before = read_json(run / "run.json")
    try:
        write_report([run])
        write_json(run / "run.json", {**before, "data": "masks:/nowhere"})
        assert "What the winner answers" in write_report([run]).read_text()
    finally:
        write_json(run / "run.json", before)


def test_masks_are_painted_in_the_colours_of_the_legend():
    task = Segmentation.of(("background", "cat", "dog"))
    truth, answer = torch.zeros(8, 8).byte(), torch.zeros(4, 4).byte()
    truth[2:6, 2:6], answer[1:3, 1:3], truth[7] = 1, 2, IGNORED
    painted = {"truth": task.painted(truth).numpy(), "answer": task.painted(answer).numpy()}
    grey = np.full((8, 8, 3), 0.5)
    figure = pictures.masks([grey], ["mIoU 3 %"], [painted], task.legend())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog"]
    shown = [axes.images[-1].get_array() for axes in figure.axes]
    np.testing.assert_array_equal(shown[1], painted["truth"])
    np.testing.assert_array_equal(shown[2], painted["answer"])
    nothing = {"truth": np.zeros((8, 8, 4), np.float32)}
    assert not pictures.masks([grey], [""], [nothing], task.legend()).legends


@pytest.fixture
def scenes(tmp_path):
    """Files of the first test scenes: two of one name, and one of a single pixel."""
    drawn = load_data("scenes").test.batch([0, 1], 64)["images"]
    paths = [tmp_path / "a" / "scene.png", tmp_path / "b" / "scene.jpg", tmp_path / "dot.png"]
    for path, pixels in zip(paths, (*drawn[:, 0], np.zeros((1, 1), np.uint8))):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return paths


def test_predict_writes_pictures_with_the_answers_over_them(run, scenes, tmp_path, capsys):
    folder = tmp_path / "painted"
    code, out, err = call(capsys, "predict", run, *scenes, "--out", folder, "--json")
    assert code == 0, err
    found = json.loads(out)["predictions"]
    assert [p["file"] for p in found] == [str(path) for path in scenes]
    assert sum(answer["percent"] for answer in found[0]["answers"]) <= 100.05
    assert sorted(p.name for p in folder.iterdir()) == ["dot.png", "scene-2.png", "scene.png"]

    predictions = predict(run, scenes)
    task, network = load_data("scenes:masks").task, SavedRun.load(run).winner()
    side = network.architecture.resolution
    for prediction, name in zip(predictions, ("scene", "scene-2", "dot")):
        painted = np.asarray(Image.open(folder / f"{name}.png"))
        assert painted.shape == (side, side, 3)
        answers = torch.from_numpy(prediction.painted)
        colour, opacity = answers[..., :3].numpy(), answers[..., 3:].numpy()
        times = side // len(colour)
        colour, opacity = (x.repeat(times, 0).repeat(times, 1) for x in (colour, opacity))
        expected = prediction.pixels * (1 - opacity) + colour * opacity
        np.testing.assert_allclose(painted / 255, expected, atol=1 / 255)
    assert len(task.legend()) == len(CLASSES)
    code, out, _ = call(capsys, "predict", run, scenes[0], "--out", folder)
    assert code == 0
    assert f"overlays: {folder}" in out


def test_onnx_alone_paints_what_the_weights_paint(run, scenes, tmp_path):
    pytest.importorskip("onnxruntime")
    from nas.export import export_network

    saved, data = SavedRun.load(run), load_data("scenes:masks")
    network = saved.winner()
    side = network.architecture.resolution
    inputs = saved.space.parts.resized(data.first(data.test, 1, 32)["images"], side).contiguous()
    with torch.no_grad():
        expected = network(inputs)
    card = Card.of(saved.space, network.architecture, data)
    export_network(network, inputs, expected, tmp_path, ["safetensors", "onnx"], card=card)
    assert load_network(tmp_path, saved.space, network.architecture)
    by_weights = nas.predict(tmp_path, scenes)
    (tmp_path / "weights.safetensors").unlink()
    for ours, theirs in zip(nas.predict(tmp_path, scenes), by_weights):
        assert (ours.painted == theirs.painted).mean() > 0.99


def test_answers_that_are_not_laid_out_over_pictures_are_not_painted(tmp_path):
    prediction = nas.prediction.Prediction("x.png", "a", {}, np.zeros((2, 2, 3), np.float32), {})
    with pytest.raises(UsageError, match="not laid out over pictures") as error:
        write_overlays([prediction], tmp_path)
    assert ".png" in error.value.fix


def test_a_folder_that_cannot_be_written_is_one_line(run, scenes, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    code, _, err = call(capsys, "predict", run, scenes[0], "--out", tmp_path / "taken")
    assert (code, err.count("\n")) == (1, 1)
    assert "cannot write" in err


def test_a_segmenter_in_int8_is_compared_pixel_by_pixel(tmp_path):
    """Scores are mIoU, changed answers a share of pixels, and the exported masks those of int8."""
    pytest.importorskip("onnxruntime")
    from nas.quantization import quantize

    data = load_data("scenes:masks")
    space = load_space("mobilenetv3:debug", data.task)
    torch.manual_seed(0)
    network = Network(space, at_precision(space.largest, "fp32")).eval()
    found = quantize(network, data, images=12, calibration=8, out=tmp_path)
    evaluator = Evaluator(network, data, data.search, 12)
    exact = network.inherit(at_precision(space.largest, "fp32")).eval()
    observed = evaluator.observed_by(exact)
    assert found["fp32"]["miou_percent"] == pytest.approx(
        evaluator.metric.percent(observed), abs=1e-3
    )
    assert {row["changed_percent"] < 60 for row in found["methods"].values()} == {True}
    assert any("refine" in row["layer"] for row in found["layers"])
    assert {"model.onnx", "model.pt2", "weights.safetensors"} == found["exported"].keys()
    card = Card.read(tmp_path)
    assert card.task["task"] == "segmentation"
