"""Models of timm on the Hugging Face hub, fetched once and then kept in the cache."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError

import platformdirs
from safetensors import SafetensorError, safe_open

from nas.errors import WeightsError
from nas.progress import console
from nas.records import atomic_path

HUB = "https://huggingface.co"
FIX = "give the path of a checkpoint, or the name of a model on timm's hub"
# An owner other than timm has models of other names and layouts.
_NAME = re.compile(r"(?:timm/)?([A-Za-z0-9][A-Za-z0-9._-]{0,95})")


def model_on_hub(source: str) -> str:
    """The model that `NAME` or `timm/NAME` names; empty where no model can be called that."""
    found = _NAME.fullmatch(source)
    return found[1] if found else ""


def fetched(model: str) -> Path:
    """The safetensors file of a model of timm, from the cache or else from the hub.

    Raises `WeightsError` if the hub does not know it, cannot be reached, or sends something else;
    what came is then not kept.
    """
    path = Path(platformdirs.user_cache_dir("vitnas")) / "weights" / f"{model}.safetensors"
    if path.exists() and _whole(path):
        return path
    hub = os.environ.get("HF_ENDPOINT", HUB)
    address = f"{hub}/timm/{model}/resolve/main/model.safetensors"
    console.print(f"fetching {address}", markup=False, soft_wrap=True)
    try:
        with (
            urllib.request.urlopen(address, timeout=30) as answer,
            atomic_path(path) as temporary,
            temporary.open("wb") as file,
        ):
            for piece in _pieces(answer):
                file.write(piece)
            file.flush()
            if not _whole(temporary):  # it is of a gate or a proxy before the hub
                raise WeightsError(
                    f"what {address} sends is not safetensors (a page to log in, perhaps)",
                    "fetch the file with a browser, and give its path",
                )
    except (OSError, HTTPException, ValueError) as error:  # ValueError: HF_ENDPOINT is no address
        if isinstance(error, HTTPError):
            error.close()  # it holds the connection
        raise _unreachable(address, error) from None
    return path


def _whole(path: Path) -> bool:
    """Whether a file is safetensors and as long as it says; one kept by a disk error is not."""
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _pieces(answer: HTTPResponse) -> Iterator[bytes]:
    """The body; raises `WeightsError` if it ends before its announced length."""
    try:
        while piece := answer.read(2**20):
            yield piece
    except (OSError, HTTPException) as error:
        raise _unreachable(answer.url, error) from None
    if answer.length:
        raise _unreachable(answer.url, f"{answer.length} bytes are missing at its end")


def _unreachable(address: str, reason: object) -> WeightsError:
    return WeightsError(f"cannot fetch {address}: {reason}", FIX)
