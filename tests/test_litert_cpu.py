"""LiteRT on the CPU: rows and networks in int8."""

from __future__ import annotations

import pytest

from nas.errors import PreparationError
from nas.families import load_space
from nas.runtimes import load_runtime

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'vitnas[litert]'")


def test_rows_and_the_whole_network_take_time():
    space = load_space("swin:debug").restrict("sparsity", 0)
    layers = space.layers(space.largest)
    with load_runtime("litert-cpu,threads=1") as runtime:
        rows = [runtime.prepare(layers, fused=False) for _ in range(2)][-1]
        whole = runtime.prepare(layers, fused=True)
        assert len(rows()) == len(layers)
        assert all(sample.wall > 0 for sample in rows())
        (sample,) = whole()
        assert sample.cpu > 0
        assert runtime.describe()["dtype"] == "int8"
        assert runtime.source == "measured"


def test_pruned_layers_are_refused_by_name():
    space = load_space("swin:debug").restrict("sparsity", 50)
    score = next(x for x in space.layers(space.largest) if "Score" in x.module.__name__)
    with pytest.raises(PreparationError, match="TOPK_V2"):
        load_runtime("litert-cpu").prepare([score], fused=False)
