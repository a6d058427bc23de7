"""Does shrinking the picture bite? Dense networks at 224, 168 and 112 px on whole scenes.

    python experiments/resolution.py

The largest dense subnet of the shipped `swin:micro` at each resolution, on 1,000 scenes of the
search split. Takes two minutes. Wanted: 224 px at least 8 points above 112 px.
"""

from __future__ import annotations

from dataclasses import replace

from nas.data import load_data
from nas.evaluation.accuracy import Evaluator
from nas.runtimes.host import keep_heap
from nas.training.supernet import load_supernet, supernet_folder


def main() -> None:
    keep_heap()
    data = load_data("scenes")
    network, _ = load_supernet(supernet_folder("swin:micro", data), "swin:micro", data)
    evaluator = Evaluator(network, data, data.search, 1000)
    for resolution in (224, 168, 112):
        architecture = replace(network.space.largest, resolution=resolution)
        print(f"{resolution} px: {evaluator.percent(architecture):.1f} %", flush=True)


if __name__ == "__main__":
    main()
