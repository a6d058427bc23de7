"""Architectures: the input and the stages of one network, as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any

from nas.size import Size


@dataclass(frozen=True)
class Stage:
    """Blocks of one width at one resolution of the feature map."""

    width: int
    blocks: tuple[Any, ...]


@dataclass(frozen=True)
class Architecture:
    """One member of a space: input resolution in pixels, and its stages."""

    resolution: Size
    stages: tuple[Stage, ...]

    def to_json(self) -> str:
        """Canonical JSON: the same architecture always gives the same text."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical JSON."""
        return sha256(self.to_json().encode()).hexdigest()[:12]


def at_precision(architecture: Architecture, precision: str) -> Architecture:
    """The architecture with one precision in every block that has a choice of it."""

    def stage(s: Stage) -> Stage:
        at = (replace(b, precision=precision) if hasattr(b, "precision") else b for b in s.blocks)
        return replace(s, blocks=tuple(at))

    return replace(architecture, stages=tuple(map(stage, architecture.stages)))
