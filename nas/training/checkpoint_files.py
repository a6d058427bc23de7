"""Checkpoints of others as files: read without running code, and what else a file may be.

A file is known by its content, not by its name: safetensors, a file of `torch.save`, or the index
of several such files (shards). A file of `torch.save` often holds more than tensors, such as the
options of the script that wrote it; objects of classes that torch does not know become stand-ins,
which keep the name of their class and do nothing.
"""

from __future__ import annotations

import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

from nas.errors import WeightsError
from nas.training.hub import FIX, fetched, model_on_hub

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")
_PLAIN = "give safetensors, or a PyTorch file that holds nothing but tensors"
_AGAIN = "fetch or copy it again, or give safetensors from elsewhere"
# A pickle of the number that torch's files began with before they were zip archives.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OF_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names in pickles up to today
# The first bytes of files that are often taken for checkpoints.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run `git lfs pull`"),
    (b"\x1f\x8b", "compressed (gzip)", "unpack it"),
    (b"\xfd7zXZ", "compressed (xz)", "unpack it"),
    (b"\x89HDF", "HDF5, as Keras writes it", _PLAIN),
    (b"\x93NUMPY", "an array of NumPy", _PLAIN),
    (b"GGUF", "GGUF", _PLAIN),
)
# Members of zip archives that torch.save did not write.
_ARCHIVES = (
    ("/constants.pkl", "a TorchScript program", "save its state_dict() with torch.save"),
    ("archive_format", "an exported program (.pt2)", "save its state_dict() with torch.save"),
    (".npy", "arrays of NumPy (.npz)", _PLAIN),
)
_IN_FOLDER = (
    "model.safetensors.index.json", "model.safetensors",
    "pytorch_model.bin.index.json", "pytorch_model.bin",
)  # fmt: skip


class StandIn:
    """An object of a class that is not known here, made of whatever its pickle says."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


class _Unknown(type):
    """Makes stand-ins as `torch.load` asks for objects of a class."""

    def __call__(cls, *arguments: Any, **named: Any) -> StandIn:
        """The class, or a function, was called."""
        made: StandIn = object.__new__(cls)  # type: ignore[arg-type]  # it is a StandIn's class
        return made


def _unknown(name: str) -> type:
    """The class of stand-ins for what a checkpoint calls by this full name."""

    def new(cls: type, *_: object) -> OrderedDict[Any, Any]:
        # An object made without a call may be a dict of its own kind (options often are), and
        # torch adds items to plain dicts only.
        made: OrderedDict[Any, Any] = OrderedDict()
        made.stands_for = name  # type: ignore[attr-defined]
        return made

    return _Unknown("StandIn", (StandIn,), {"__new__": new, "stands_for": name})


def class_of(value: object) -> str:
    """The name of the class of what a checkpoint held, also of one that is not known here."""
    return str(getattr(value, "stands_for", type(value).__name__))


def is_stand_in(value: object) -> bool:
    """Whether a value stands for an object of a class that is not known here."""
    return hasattr(value, "stands_for")


def find_checkpoint(source: str | Path) -> Path:
    """The file or folder that is meant, or a model of timm on the Hugging Face hub, fetched.

    Raises `WeightsError` where there is none.
    """
    path = Path(source)
    try:
        there = path.exists()
    except (OSError, ValueError):  # longer than a path may be, or with a NUL inside
        there = False
    if there:
        return path
    model = "" if path.suffix in SUFFIXES else model_on_hub(str(source))
    if not model:
        shown = str(path) if str(path).isprintable() and str(path).strip() else repr(str(path))
        raise WeightsError(f"there is no {shown}", FIX)
    return fetched(model)


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """What a checkpoint holds: a file, a folder or index of shards, or a model on timm's hub.

    Raises `WeightsError` where there is none, and for a file of another kind or a damaged one.
    """
    path = find_checkpoint(source)
    if path.is_dir():
        path = _in_folder(path)
    shard = re.search(r"-\d+-of-0*(\d+)\.", path.name)
    if shard and int(shard[1]) > 1:
        raise WeightsError(
            f"{path} is one of {int(shard[1])} shards of a checkpoint",
            "give the index beside it (model.safetensors.index.json), or its folder",
        )
    return _tensors(path)


def _in_folder(folder: Path) -> Path:
    """The checkpoint in a folder, as transformers and timm call it, or else the only one."""
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    if (folder / "supernet.json").exists():
        raise WeightsError(
            f"{folder} is a supernet of vitnas, and not a checkpoint of another project",
            f"start from it: vitnas train --init {folder}",
        )
    found = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(found) != 1:
        what = f"{len(found)} checkpoints ({', '.join(found[:3])})" if found else "no checkpoint"
        raise WeightsError(f"{folder} is a folder that holds {what}", "give a file")
    return folder / found[0]


def _tensors(path: Path, *, shard: bool = False) -> dict[str, Any]:
    """What a file holds, if it is a dict."""
    loaded = _content(path, shard=shard)
    if not isinstance(loaded, dict) or (is_stand_in(loaded) and not loaded):
        raise WeightsError(
            f"{path} holds a {class_of(loaded)} and not a dict of tensors",
            "save a state dict, e.g. torch.save(model.state_dict(), FILE)",
        )
    return loaded


def _content(path: Path, *, shard: bool) -> Any:
    """What a file holds, by its first bytes; a shard is no index of further ones."""
    try:
        if not path.is_file():
            raise _unreadable(path, "it is no regular file", _PLAIN)
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise _unreadable(path, error.strerror, "check the path and its permissions") from None
    if not start:
        raise _unreadable(path, "it is empty", _AGAIN)
    if start.startswith(b"PK\x03\x04"):
        return _zipped(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**27:
        return _safetensors(path)
    text = start.lstrip().lower()
    if text.startswith(b"{") and not shard:
        return _shards(path)
    if start.startswith(b"\x80"):
        return _pickled(path)
    if text.startswith(b"<"):
        fix = "fetch the file that the page offers (on Hugging Face: /resolve/ instead of /blob/)"
        raise _unreadable(path, "it is a web page", fix)
    if start[257:262] == b"ustar":
        raise _unreadable(path, "it is a tar archive", "unpack it")
    for first, kind, fix in _OTHERS:
        if start.startswith(first):
            raise _unreadable(path, f"it is {kind}", fix)
    raise _unreadable(path, "it is neither safetensors nor a file that torch.save wrote", _PLAIN)


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except Exception as error:  # a damaged file fails in any way that a parser can
        raise _damaged(path, error) from None


def _shards(index: Path) -> dict[str, Any]:
    """The tensors of all files that an index names."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in files})
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise _unreadable(
            index, "it is JSON, and not the index of a checkpoint (`weight_map`)", _PLAIN
        ) from None
    tensors: dict[str, Any] = {}
    for name in names:
        shard = index.parent / name
        if Path(name).name != name or not shard.is_file():
            raise WeightsError(f"{index} names the shard {name}, which is not beside it", _AGAIN)
        tensors |= _tensors(shard, shard=True)
    return tensors


def _zipped(path: Path) -> Any:
    """What a file of `torch.save` holds; its checksums are compared."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for end, kind, fix in _ARCHIVES:
                if any(name.endswith(end) for name in names):
                    raise _unreadable(path, f"it is {kind}", fix)
            pickled = [name for name in names if name.endswith("/data.pkl")]
            if not pickled:
                raise _unreadable(path, "it is an archive without tensors", "unpack it")
            if broken := archive.testzip():
                raise _unreadable(path, f"it is damaged (in {broken})", _AGAIN)
            with archive.open(pickled[0]) as file:
                named = _classes(file)
    except WeightsError:
        raise
    except Exception as error:
        raise _damaged(path, error) from None
    return _loaded(path, named)


def _pickled(path: Path) -> Any:
    """What a file of `torch.save` holds that is older than torch 1.6: four pickles, then data."""
    with path.open("rb") as file:
        whose = file.read(len(_LEGACY))
        file.seek(0)
        try:
            named = [name for _ in range(4 if whose == _LEGACY else 1) for name in _classes(file)]
        except Exception as error:
            raise _damaged(path, error) from None
    if whose == _LEGACY:
        return _loaded(path, named)
    what = f" of a {named[0]}" if named else ""
    raise _unreadable(path, f"it is a pickle{what} that torch.save did not write", _PLAIN)


def _classes(file: IO[bytes]) -> list[str]:
    """The full names of the classes and functions in a pickle, in order, by reading it only."""
    named, texts = [], ["", ""]
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            module, name = str(argument).split(" ", 1)
            named.append(f"{_OF_PYTHON_2.get(module, module)}.{name}")
        elif code.name == "STACK_GLOBAL":
            named.append(".".join(texts))
        elif isinstance(argument, str):
            texts = [texts[1], argument]
    return named


def _loaded(path: Path, named: Iterable[str]) -> Any:
    """What `torch.load` makes of a file, with stand-ins for classes that it does not know."""
    stand_ins: list[Any] = [(_unknown(name), name) for name in dict.fromkeys(named)]
    try:
        with (
            path.open("rb") as file,  # for torch goes by the name
            warnings.catch_warnings(),
            torch.serialization.safe_globals(stand_ins),
        ):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        known = ("torch.", "collections.")
        classes = ", ".join(name for _, name in stand_ins if not name.startswith(known))
        what = (
            f"needs code to be read ({classes})"
            if classes
            else "is damaged, or of another protocol than 2"
        )
        raise _unreadable(path, f"it {what}", _PLAIN) from None
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return _unreadable(path, f"it is damaged or cut off ({reason})", _AGAIN)


def _unreadable(path: Path, reason: object, fix: str) -> WeightsError:
    return WeightsError(f"cannot read {path}: {reason}", fix)
