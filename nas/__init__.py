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
    "Additive": "nas.problem.costs",
    "Along": "nas.space.rules",
    "Architecture": "nas.space.architecture",
    "Budget": "nas.budget",
    "Choice": "nas.space.domains",
    "ENDED": "nas.space.rules",
    "Evaluator": "nas.evaluation.accuracy",
    "Exploration": "nas.problem.result",
    "Fixed": "nas.space.domains",
    "Graph": "nas.trellis.graph",
    "LatencyTable": "nas.latency.table",
    "Layer": "nas.space.layer",
    "Network": "nas.network.network",
    "Part": "nas.space.layer",
    "Recipe": "nas.training.recipe",
    "Repeat": "nas.space.domains",
    "SearchSpace": "nas.space.family",
    "Space": "nas.space.domains",
    "Stage": "nas.space.architecture",
    "Searcher": "nas.strategy.searchers",
    "Surrogate": "nas.strategy.gaussian_process",
    "Trellis": "nas.trellis.trellis",
    "VitnasError": "nas.errors",
    "calibrate": "nas.network.calibration",
    "export_network": "nas.export",
    "finetune": "nas.run.finetuning",
    "fit": "nas.training.trainer",
    "load_data": "nas.data",
    "load_space": "nas.families",
    "load_supernet": "nas.training.supernet",
    "load_weights": "nas.training.pretrained",
    "macs_by_resolution": "nas.report.macs",
    "measure_fresh": "nas.latency.end_to_end",
    "predict": "nas.prediction",
    "profile": "nas.latency.profiling",
    "quantize": "nas.quantization",
    "search": "nas.entry",
    "train": "nas.training.train",
    "write_report": "nas.report.report",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import nas` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
