"""Checkpoints of a training: written so that a killed training goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nas.errors import RunError
from nas.records import fingerprint, read_json, write_bytes, write_json
from nas.typed import MismatchError, decode, mapping


@dataclass(frozen=True)
class _Checkpoint:
    """What `checkpoint.json` holds, besides what determines the training."""

    step: int = field(metadata={"least": 0})
    seconds: float = field(metadata={"least": 0})
    bf16: bool
    weights_fingerprint: str = ""


def last_checkpoint(out: Path, resume: bool) -> dict[str, Any] | None:
    """What the last checkpoint in a folder says of its training; None where there is none.

    Raises `RunError` for a folder that is in use, unless its training is to be resumed.
    """
    try:
        taken = out.exists() and any(out.iterdir())
    except OSError as error:
        raise RunError(f"cannot use {out}: {error.strerror}", "choose another --out") from None
    if taken and not resume:
        raise RunError(f"{out} exists already", "add --resume to go on, or choose another --out")
    file = out / "checkpoint.json"
    if not taken or not file.exists():
        return None
    try:
        saved = mapping(read_json(file), "it")
        decode(_Checkpoint, saved)
    except MismatchError as error:
        fix = "restore it, or train anew in another --out"
        raise RunError(f"{file}: {error}", fix) from None
    # Before there were other objectives, checkpoints did not name theirs.
    return {"objective": "supervised", **saved}


def write_checkpoint(out: Path, saved: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of the step that `saved` names, then what they are of: they now count."""
    name = f"checkpoint-{saved['step']}.safetensors"
    content = save(dict(tensors))
    write_bytes(out / name, content)
    saved["weights_fingerprint"] = fingerprint(content)
    write_json(out / "checkpoint.json", saved)
    for old in out.glob("checkpoint-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(
    out: Path, saved: Mapping[str, Any], restore: Callable[[dict[str, Tensor], int], None]
) -> None:
    """Hand the tensors and the step that `last_checkpoint` is of to what goes on from them.

    Raises `RunError` if the file of tensors is missing, is not what was written, or does not fit.
    """
    file = out / f"checkpoint-{saved['step']}.safetensors"
    try:
        content = file.read_bytes()
        written = saved.get("weights_fingerprint", "")  # which older checkpoints do not have
        if written and written != fingerprint(content):
            raise ValueError("its content is not what was written")
        restore(load(content), saved["step"])
    except (OSError, SafetensorError, RuntimeError, LookupError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise RunError(
            f"cannot go on from {file}: {reason}", "restore it, or train anew in another --out"
        ) from None
