"""Checkpoints as other tools write them: training scripts, wrappers, shards, and what is no checkpoint."""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import pickle
import sys
import tarfile
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm_models
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from timm.models.swin_transformer import checkpoint_filter_fn
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from nas.errors import WeightsError
from nas.network.network import Network
from nas.space.family import SearchSpace
from nas.tasks.classification import Classification
from nas.training.pretrained import load_weights
from search_spaces import swin, vit

SMALL = dict(num_classes=10, img_size=32, embed_dim=64, depth=2, num_heads=1)


@pytest.fixture(scope="module")
def model():
    return timm_models.create("vit_tiny_patch16_224", **SMALL)


def space_of(classes=10, distilled=False):
    domain, parts = vit.model(16, 64, 2, 1, 32)
    parts = vit.ViT(patch=16, distilled=distilled) if distilled else parts
    return SearchSpace("small vit", domain, parts, Classification(classes))


@pytest.fixture
def network():
    torch.manual_seed(1)
    space = space_of()
    return Network(space, space.largest).eval()


def assert_same(network, model):
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images), rtol=0, atol=1e-5)


def fails(network, source, *parts):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(WeightsError) as caught:
        load_weights(network, source)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.fix
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def shifted(model, by=0.5):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


@pytest.fixture
def foreign(monkeypatch):
    """Classes of packages that are gone when the file is read: options in a dict of their own."""
    modules = {name: types.ModuleType(name) for name in ("yacs", "lightning")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    modules["yacs"].CfgNode = type("CfgNode", (dict,), {"__module__": "yacs"})
    modules["lightning"].Hyper = type("Hyper", (), {"__module__": "lightning"})

    def gone():
        for name in modules:
            monkeypatch.delitem(sys.modules, name)

    return modules["yacs"].CfgNode, modules["lightning"].Hyper, gone


def trained_by_timm(model, folder, ema=None):
    """What timm's train.py leaves behind, by its own saver."""
    args = argparse.Namespace(model="vit_tiny_patch16_224", lr=0.1, data_dir=Path("/data"))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    saver = CheckpointSaver(model, optimizer, args, model_ema=ema, checkpoint_dir=str(folder))
    saver.save_checkpoint(3, metric=np.float64(71.5))
    return folder / "model_best.pth.tar"


def test_timms_training_checkpoint(network, model, tmp_path, capfd):
    trained = copy.deepcopy(model)
    path = trained_by_timm(trained, tmp_path)
    assert load_weights(network, path) == []
    assert_same(network, trained)
    assert not capfd.readouterr().err


def test_moving_averages_are_preferred_and_named(network, model, tmp_path, capfd):
    trained = copy.deepcopy(model)
    ema = ModelEmaV3(shifted(model))
    load_weights(network, trained_by_timm(trained, tmp_path, ema))
    assert_same(network, ema.module)
    assert "(EMA) are taken: state_dict_ema, not state_dict" in capfd.readouterr().err


AVERAGED = {
    "deit": lambda raw, ema: {"model": raw, "model_ema": ema, "optimizer": {"state": {}}},
    "alone": lambda raw, ema: {"state_dict_ema": ema, "epoch": 3},
    "torchvision": lambda raw, ema: {
        "model": raw,
        "model_ema": torch.optim.swa_utils.AveragedModel(Holds(ema)).state_dict(),
    },
    "beside": lambda raw, ema: {
        "state_dict": {
            **{f"model.{k}": v for k, v in raw.items()},
            **{f"model_ema.module.{k}": v for k, v in ema.items()},
        }
    },
}


class Holds(nn.Module):
    """Has the state dict that it is given."""

    def __init__(self, state):
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            at = self
            for part in path:
                if not hasattr(at, part):
                    at.add_module(part, nn.Module())
                at = getattr(at, part)
            at.register_parameter(last, nn.Parameter(tensor))


@pytest.mark.parametrize("layout", AVERAGED)
def test_layouts_with_moving_averages(network, model, layout, capfd):
    average = shifted(model)
    load_weights(network, AVERAGED[layout](model.state_dict(), average.state_dict()))
    assert_same(network, average)
    assert "moving averages" in capfd.readouterr().err


@pytest.fixture(scope="module")
def wrapped(model):
    """The model inside what training scripts wrap it in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(copy.deepcopy(model))
        inner = copy.deepcopy(model)
        inner.blocks[0] = torch.compile(inner.blocks[0])
    task = nn.ModuleDict({"net": model, "criterion": nn.Linear(3, 2)})
    state = model.state_dict()
    return {
        "compiled": compiled.state_dict(),
        "a block compiled": inner.state_dict(),
        "parallel": nn.ModuleDict({"module": model}).state_dict(),
        "parallel and compiled": nn.ModuleDict({"module": compiled}).state_dict(),
        "averaged": torch.optim.swa_utils.AveragedModel(model).state_dict(),
        "a task": {"state_dict": task.state_dict(), "hyper_parameters": {"lr": 0.1}},
        "sharded": {f"_fsdp_wrapped_module.{k}": v for k, v in state.items()},
        "under its own word": {"backbone": state, "epoch": 3},
        "beside a random state": {"state_dict": state, "rng_state": torch.get_rng_state()},
        "double": {k: v.double() for k, v in state.items()},
    }


@pytest.mark.parametrize("how", [
    "compiled", "a block compiled", "parallel", "parallel and compiled", "averaged", "a task",
    "sharded", "under its own word", "beside a random state", "double",
])  # fmt: skip
def test_wrappers(network, model, wrapped, how, capfd):
    assert load_weights(network, wrapped[how]) == []
    assert_same(network, model)
    left_out = "left out: criterion.weight, criterion.bias" in capfd.readouterr().err
    assert left_out == (how == "a task")


def test_two_models_in_one_file_are_not_guessed(network, model):
    state, other = model.state_dict(), shifted(model).state_dict()
    fails(network, {"student": state, "teacher": other}, "several models: ", "student", "teacher")
    flat = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in state.items()}
    fails(network, flat, "several models: student., teacher.")
    fails(network, {**state, "_orig_mod.norm.bias": state["norm.bias"]}, "norm.bias twice")
    circle = {"epoch": 3}
    circle["model"] = circle
    fails(network, circle, "no tensors")


def original_swin(state):
    """timm's names back into those of the authors' repository: their merging ends a stage."""
    old = {}
    for name, tensor in state.items():
        parts = name.replace("head.fc.", "head.").split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts)] = tensor
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(1, 49, 49)
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return old


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("before", ["", "module."])
def test_swin_of_its_authors(head, before):
    sizes = dict(depths=(2, 2, 2), embed_dim=32, num_heads=(1, 2, 4), num_classes=10)
    theirs = timm_models.create("swin_tiny_patch4_window7_224", **sizes)
    old = original_swin(theirs.state_dict())
    if not head:
        old = {name: tensor for name, tensor in old.items() if not name.startswith("head.")}
    again = checkpoint_filter_fn(old, theirs)  # which are the right places, says timm
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.state_dict().items()
               if name in again)  # fmt: skip
    space = SearchSpace("small swin", *swin.model(32, (1, 1, 1)), Classification(10))
    torch.manual_seed(0)
    network = Network(space, space.largest).eval()
    left = load_weights(network, {"model": {f"{before}{k}": v for k, v in old.items()}})
    assert left == ([] if head else ["head.fc.weight", "head.fc.bias"])
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        logits = network.layers["head"].fc
        torch.testing.assert_close(
            network(images), expected @ logits.weight.T + logits.bias, rtol=0, atol=1e-5
        )


def test_deit_with_its_second_head():
    sizes = {**SMALL, "num_classes": 10}
    theirs = timm_models.create("deit_tiny_distilled_patch16_224", **sizes)
    space = space_of(distilled=True)
    network = Network.empty(space, space.largest)
    released = {"model": theirs.state_dict()}
    assert load_weights(network, released) == []
    assert_same(network, theirs)
    other = space_of(7, distilled=True)
    assert load_weights(Network(other, other.largest), released) == [
        "head.fc.weight", "head.fc.bias", "head.distillation.weight", "head.distillation.bias",
    ]  # fmt: skip
    single = space_of()
    fails(Network(single, single.largest), released, "also holds dist_token, head_dist.weight")


def test_what_is_left_out_is_said(model, capfd):
    space = space_of(7)
    load_weights(Network(space, space.largest), model.state_dict())
    assert "left as it was: head.fc.weight, head.fc.bias" in capfd.readouterr().err


def test_options_of_unknown_classes_do_not_matter(network, model, tmp_path, foreign):
    options, hyper, gone = foreign
    config = options(lr=0.1)
    config.frozen, config["nested"] = True, options(depth=2)
    held = {
        "model": model.state_dict(), "config": config, "hyper_parameters": hyper(),
        "args": argparse.Namespace(out=Path("x"), dtype=np.dtype("f4"), best=np.float32(3)),
        "rng": np.random.RandomState(0).get_state(),
    }  # fmt: skip
    torch.save(held, tmp_path / "new.pth")
    torch.save(held, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    gone()
    for name in ("new.pth", "old.pth"):
        load_weights(network, tmp_path / name)
        assert_same(network, model)


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def touch(path):
    Path(path).touch()


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("function", [touch, exec, open])
def test_no_function_is_called(network, model, tmp_path, function, old):
    path, touched = tmp_path / "weights.pth", tmp_path / "touched"
    text = f"open({str(touched)!r}, 'w')" if function is exec else str(touched)
    call = Calls(function, text, *(["w"] if function is open else []))
    torch.save({"model": model.state_dict(), "args": call}, path,
               _use_new_zipfile_serialization=not old)  # fmt: skip
    load_weights(network, path)
    assert_same(network, model)
    torch.save({**model.state_dict(), "cls_token": call}, path)
    fails(network, path, "cls_token is a ", function.__name__)
    assert not touched.exists()


def test_classes_of_odd_names(network, model, tmp_path):
    """No name of a class, in a file of whatever origin, is trusted to be one."""
    for old in (True, False):
        path = tmp_path / "odd.pth"
        torch.save({**model.state_dict(), "cls_token": Calls(touch)}, path,
                   _use_new_zipfile_serialization=not old)  # fmt: skip
        with_name = path.read_bytes()
        for name in (b"to\0ch", b"\x1b[2Jt", b"t.uch", b"t uch"):
            assert with_name.count(b"touch\n") == 1
            path.write_bytes(with_name.replace(b"touch\n", name + b"\n"))
            fails(
                network, path, "cls_token is a" if old else "damaged"
            )  # a checksum is of the name


@pytest.mark.filterwarnings("ignore")
def test_whole_models_are_named(network, model, tmp_path):
    torch.save(model, tmp_path / "model.pth")
    kind = "timm.models.vision_transformer.VisionTransformer"
    fails(network, tmp_path / "model.pth", f"holds a {kind}", "state_dict()")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    fails(network, tmp_path / "model.pkl", f"a pickle of a {kind} that torch.save did not write")
    torch.save({"model": model, "epoch": 3}, tmp_path / "model.pth")
    fails(network, tmp_path / "model.pth", f"model is a {kind}", "state_dict()")
    torch.save(model.state_dict(), tmp_path / "four.pth", pickle_protocol=4)
    fails(network, tmp_path / "four.pth", "of another protocol than 2", "give safetensors")
    torch.jit.trace(model, torch.randn(1, 3, 32, 32)).save(tmp_path / "script.pt")
    fails(network, tmp_path / "script.pt", "it is a TorchScript program")
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "exported.pt2")
    fails(network, tmp_path / "exported.pt2", "it is an exported program")


WRONG = {
    "fp8": lambda x: x.to(torch.float8_e4m3fn),
    "complex": lambda x: x.to(torch.complex64),
    "int8": lambda x: x.to(torch.int8),
    "bool": lambda x: x > 0,
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "array": lambda x: x.numpy(),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", ["blocks.1.mlp.fc1.weight", "pos_embed"])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_floats(network, model, tmp_path, kind, name):
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    broken = {**state, name: WRONG[kind](state[name])}
    fails(network, broken, f"{name} is ", "before it was quantized or converted")
    torch.save(broken, tmp_path / "x.pth")
    fails(network, tmp_path / "x.pth", f"{name} is ")


def test_values_beyond_float32(network, model):
    state = {k: v.double() for k, v in model.state_dict().items()}
    state["norm.bias"][0] = 1e300
    fails(network, state, "norm.bias holds values that are no numbers in float32")
    with_head = {**model.state_dict(), "head.weight": torch.full((3, 64), float("nan")),
                 "head.bias": torch.zeros(3)}  # fmt: skip
    assert load_weights(network, with_head) == ["head.fc.weight", "head.fc.bias"]


@pytest.fixture
def shards(model, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_torch_state_dict(state, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    return tmp_path


@pytest.mark.parametrize("name", ["", "model.safetensors.index.json"])
def test_checkpoints_in_shards(network, model, shards, name):
    assert load_weights(network, shards / name) == []
    assert_same(network, model)


def test_shards_that_are_not_whole(network, shards):
    index = shards / "model.safetensors.index.json"
    first, second, *_ = sorted(shards.glob("model-*.safetensors"))
    fails(network, first, "is one of", "shards", "index")
    whole = first.read_bytes()
    for content, why in ((OTHERS["a pointer of Git LFS"], "a pointer"), (whole[:99], "cut off"),
                         (saved(lambda file: torch.save([3], file)), "holds a list")):  # fmt: skip
        first.write_bytes(content)
        fails(network, index, first.name, why)
    first.rename(shards / "elsewhere")
    fails(network, index, f"names the shard {first.name}, which is not beside it")
    second.rename(first)
    fails(network, index, "which is not beside it")
    for content in ({"weight_map": {"x": "../x"}}, {"weight_map": {"x": str(index)}}):
        index.write_text(json.dumps(content))
        fails(network, index, "shard")
    index.write_text(json.dumps({"weight_map": {"x": index.name}}))
    fails(network, index, "neither safetensors nor a file")
    for content in ("{}", "{", '{"weight_map": 3}', "[" * 10**5, '{"a":' * 10**5):
        index.write_text(content)
        fails(network, index, "cannot read", "give safetensors")


def test_folders(network, model, tmp_path):
    fails(network, tmp_path, "a folder that holds no checkpoint", "give a file")
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    (tmp_path / "config.json").write_text("{}")
    load_weights(network, tmp_path)
    assert_same(network, model)
    torch.save(shifted(model).state_dict(), tmp_path / "y.pth")
    fails(network, tmp_path, "holds 2 checkpoints (x.safetensors, y.pth)")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    load_weights(network, tmp_path)


def test_weights_of_vitnas_itself_are_no_checkpoint(network, debug_supernet, tmp_path):
    fails(network, debug_supernet, "is a supernet of vitnas", f"--init {debug_supernet}")
    fails(network, network.state_dict(), "these are weights of vitnas", "--init FOLDER")


def test_the_name_of_a_file_says_nothing(network, model, tmp_path):
    save_file(model.state_dict(), tmp_path / "weights.pth")
    torch.save(model.state_dict(), tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights")
    for name in ("weights.pth", "weights.safetensors", "weights"):
        load_weights(network, tmp_path / name)
        assert_same(network, model)


def in_tar(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("weights")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def saved(write, *arguments):
    buffer = io.BytesIO()
    write(buffer, *arguments)
    return buffer.getvalue()


OTHERS = {
    "it is empty": b"",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n",
    "it is a web page": b"\n<!DOCTYPE html><html><head><title>Sign in</title>",
    "compressed (gzip)": gzip.compress(b"weights"),
    "a tar archive": in_tar(b"weights"),
    "arrays of NumPy": saved(lambda file: np.savez(file, x=np.zeros(3))),
    "an array of NumPy": saved(np.save, np.zeros(3)),
    "not the index of a checkpoint": b'{"errors": ["not found"]}',
    "neither safetensors nor": b"weights, honestly",
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_what_is_no_checkpoint_is_said_to_be_what_it_is(network, tmp_path, kind, name):
    (tmp_path / name).write_bytes(OTHERS[kind])
    fails(network, tmp_path / name, f"cannot read {tmp_path / name}: ", kind)


@pytest.mark.parametrize("kept", [30, 0.3, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "new", "old"])
def test_files_that_are_cut_off(network, model, tmp_path, kind, kept):
    path = tmp_path / "weights"
    if kind == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "new")
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    fails(network, path, "damaged or cut off")


@pytest.mark.parametrize("name", ["é", "timm/é", "", " ", "a b", "x?y", "other/model", "x" * 5000,
                                  "x\0y", "../x", "~/x", "x.pth", "timm/../x"])  # fmt: skip
def test_what_neither_a_file_nor_a_model_can_be_called(network, name):
    if name == "":
        name = "\t"
    fails(network, name, "there is no ")


@pytest.mark.parametrize("hub", ["nonsense", "http://a b", "http://[", "http://x\n"])
def test_an_address_of_the_hub_that_is_none(network, monkeypatch, hub):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    fails(network, "vit_tiny.x", "cannot fetch")
