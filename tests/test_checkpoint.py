"""Checkpoints of timm and torchvision: files, names on a hub, and what is wrong with others."""

from __future__ import annotations

import os
import pickle
import threading
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import platformdirs
import pytest
import timm_models
import torch
from safetensors.torch import save, save_file

from nas.errors import WeightsError
from nas.families import load_space
from nas.network.network import Network
from nas.tasks.classification import Classification
from nas.training.checkpoint_files import read_checkpoint
from nas.training.pretrained import load_weights

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def model():
    return timm_models.create(NAME, num_classes=10)


@pytest.fixture
def source(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def untouched():
    space = load_space(NAME, Classification(10))
    torch.manual_seed(1)
    return Network(space, space.largest).eval()


@pytest.fixture
def network(untouched):
    return deepcopy(untouched)


def images(resolution=224):
    return torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))


def assert_same(network, model):
    with torch.no_grad():
        torch.testing.assert_close(network(images()), model(images()), rtol=0, atol=1e-5)


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("old", [False, True])
def test_torchvisions_vit(network, old):
    """Its files are older than its code, which renames the linear layers as it reads them."""
    from torchvision.models import VisionTransformer

    sizes = dict(num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)
    model = perturbed(VisionTransformer(224, 16, **sizes, num_classes=10))
    state = model.state_dict()
    if old:
        changed = (("mlp.0.", "mlp.linear_1."), ("mlp.3.", "mlp.linear_2."))
        for new_name, old_name in changed:
            state = {name.replace(new_name, old_name): tensor for name, tensor in state.items()}
        assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in state
    assert load_weights(network, state) == []
    assert_same(network, model)


def test_torchvisions_swin():
    from torchvision.models import swin_t

    model = perturbed(swin_t(weights=None, num_classes=10))
    space = load_space("swin_tiny_patch4_window7_224", Classification(10))
    network = Network.empty(space, space.largest)
    assert load_weights(network, model.state_dict()) == []
    assert_same(network, model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3},
        lambda s: {"state_dict": s},
        lambda s: {"state_dict": {f"module.{name}": tensor for name, tensor in s.items()}},
        lambda s: {"model": {"state_dict": s}},
    ],
)
def test_wrapped_state_dicts(network, model, source, wrap):
    assert load_weights(network, wrap(source)) == []
    assert_same(network, model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files(network, model, source, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": source}, path)
    else:
        save_file(source, path)
    load_weights(network, path)
    assert_same(network, model)


def fails(network, source, *parts):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(network, source)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_the_first_missing_tensor_is_named(network, source):
    del source["blocks.3.norm1.bias"], source["blocks.5.mlp.fc1.weight"]
    fails(network, source, "has no blocks.3.norm1.bias, which becomes block3.norm1.bias", NAME)


def test_the_first_wrong_shape_is_named(network, source):
    source["blocks.7.attn.proj.bias"] = torch.zeros(200)
    source["blocks.7.mlp.fc2.bias"] = torch.zeros(200)
    fails(network, source, "blocks.7.attn.proj.bias has the shape 200,", "needs 192", NAME)


def test_a_transposed_tensor_is_of_a_wrong_shape(network, source):
    source["blocks.0.mlp.fc1.weight"] = source["blocks.0.mlp.fc1.weight"].T
    fails(network, source, "mlp.fc1.weight has the shape 192x768,", "needs 768x192")


def test_positions_that_fill_no_square_are_of_a_wrong_shape(network, source):
    source["pos_embed"] = torch.zeros(1, 196, 192)
    fails(network, source, "pos_embed has the shape 1x196x192, stem.position needs 14x14x192")


def test_a_checkpoint_of_another_model(network):
    other = timm_models.create("deit_small_patch16_224", num_classes=10).state_dict()
    fails(network, other, "patch_embed.proj.weight has the shape 384x3x16x16,", "192x3x16x16")


@pytest.mark.parametrize("theirs", [7, None])
def test_another_classifier_leaves_the_head(network, model, source, theirs):
    """Also one that is missing, as in checkpoints made to be trained further."""
    if theirs is None:
        del source["head.weight"], source["head.bias"]
    else:
        source |= {"head.weight": torch.zeros(theirs, 192), "head.bias": torch.zeros(theirs)}
    head = network.layers["head"].fc.weight.clone()
    assert load_weights(network, source) == ["head.fc.weight", "head.fc.bias"]
    assert torch.equal(network.layers["head"].fc.weight, head)
    assert torch.equal(network.layers["head"].norm.weight, model.norm.weight)
    with pytest.raises(WeightsError, match=r"head\.weight"):
        load_weights(network, source, new_head=False)


class Touch:
    """What a malicious pickle does when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("with_torch", [True, False])
def test_a_pickle_that_holds_code_is_refused(network, tmp_path, with_torch):
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    if with_torch:
        torch.save({"model": Touch(touched)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": Touch(touched)}, protocol=2))
    fails(network, path, "cannot read", "nothing but tensors")
    assert not touched.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", bytes(range(256)) * 8])
def test_a_file_that_cannot_be_read(network, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    fails(network, tmp_path / name, f"cannot read {tmp_path / name}: ", "give safetensors")


def test_a_file_that_holds_something_else(network, tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "weights.pth")
    fails(network, tmp_path / "weights.pth", "holds a list")
    fails(network, {"epoch": 3}, "no tensors")


def test_a_file_that_does_not_exist(network, tmp_path):
    fails(network, tmp_path / "weights.pth", "there is no", "weights.pth")
    fails(network, "weights.safetensors", "there is no weights.safetensors")


class Hub(ThreadingHTTPServer):
    """Serves `files` by path; a file in `cut` ends before its announced length."""

    files: dict[str, bytes]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            body = self.server.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"") + self.server.missing))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    def __init__(self):
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.files, self.asked, self.missing = {}, [], 0


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


TAG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
ADDRESS = f"/timm/{TAG}/resolve/main/model.safetensors"


def cached():
    folder = Path(platformdirs.user_cache_dir("vitnas")) / "weights"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", [TAG, f"timm/{TAG}"])
def test_a_name_on_the_hub_is_fetched_once(network, model, source, hub, name):
    hub.files[ADDRESS] = save(source)
    for _ in range(2):
        load_weights(network, name)
        assert_same(network, model)
    assert hub.asked == [ADDRESS]
    assert cached() == [f"{TAG}.safetensors"]


def test_half_a_download_leaves_nothing(network, source, hub):
    hub.files[ADDRESS], hub.missing = save(source), 1000
    fails(network, TAG, "cannot fetch", ADDRESS)
    assert cached() == []
    hub.missing = 0
    load_weights(network, TAG)


def test_what_is_no_model_is_not_kept(network, source, hub):
    hub.files[ADDRESS] = b"<!doctype html><title>Sign in to continue</title>"
    fails(network, TAG, "is not safetensors", "give its path")
    assert cached() == []
    hub.files[ADDRESS] = save(source)
    load_weights(network, TAG)
    kept = Path(platformdirs.user_cache_dir("vitnas")) / "weights" / f"{TAG}.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1000])  # as a full disk once left it
    load_weights(network, TAG)
    assert len(hub.asked) == 3


def test_a_name_that_the_hub_does_not_know(network, hub):
    fails(network, "vit_tiny.of_mine", "cannot fetch", "404", "a model on timm's hub")
    assert cached() == []


def test_a_hub_out_of_reach(network, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    fails(network, TAG, "cannot fetch http://127.0.0.1:9/timm/", "refused")


def test_a_cached_file_needs_no_hub(source, hub, monkeypatch):
    hub.files[ADDRESS] = save(source)
    read_checkpoint(TAG)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert read_checkpoint(TAG).keys() == source.keys()


def test_a_tensor_without_a_place_is_named(network, source):
    with pytest.raises(WeightsError, match=r"also holds blocks\.99\.ls1\.gamma"):
        load_weights(network, {**source, "blocks.99.ls1.gamma": torch.ones(3)})


def test_values_that_are_no_numbers_are_refused(network, source):
    broken = {**source, "cls_token": torch.full_like(source["cls_token"], float("nan"))}
    with pytest.raises(WeightsError, match="cls_token"):
        load_weights(network, broken)
