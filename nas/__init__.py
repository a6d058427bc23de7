"""Hardware-aware architecture search for vision transformers, inside a latency budget.

>>> import nas
>>> result = nas.search("20ms")  # doctest: +SKIP
>>> result["winner"]["measured_ms"] <= 20  # doctest: +SKIP
True
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Since 1.29 ONNX Runtime writes identifiers into the home folder and sends what it does, unless it
# is told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Additive": "nas.problem",
    "Along": "nas.rules",
    "Architecture": "nas.space",
    "Budget": "nas.budget",
    "Choice": "nas.space",
    "Evaluator": "nas.evaluate",
    "Exploration": "nas.problem",
    "Fixed": "nas.space",
    "Graph": "nas.graph",
    "LatencyTable": "nas.latency",
    "Layer": "nas.family",
    "Network": "nas.elastic",
    "Part": "nas.family",
    "Recipe": "nas.supernet",
    "Repeat": "nas.space",
    "SearchSpace": "nas.family",
    "Space": "nas.space",
    "Stage": "nas.space",
    "Searcher": "nas.searchers",
    "Surrogate": "nas.surrogate",
    "Trellis": "nas.trellis",
    "VitnasError": "nas.errors",
    "calibrate": "nas.calibration",
    "export_network": "nas.export",
    "load_data": "nas.data",
    "load_space": "nas.family",
    "load_supernet": "nas.supernet",
    "load_weights": "nas.checkpoint",
    "macs_by_resolution": "nas.scaling",
    "measure_fresh": "nas.stopwatch",
    "profile": "nas.campaign",
    "quantize": "nas.quantization",
    "search": "nas.entry",
    "train": "nas.supernet",
    "write_report": "nas.report",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import nas` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
