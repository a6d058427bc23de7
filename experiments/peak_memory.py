"""How much memory a segmenter takes, by the size of its pictures.

    python experiments/peak_memory.py

Each network answers one picture in a process of its own, with one thread: as torch runs it, and as
an exported folder does in ONNX Runtime. The peak is the most memory that the process had (resident
pages, as Linux counts them), less what it had with the weights loaded, before the first picture.
Writes `results/peak_memory.csv`. Ten minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

from nas.families import load_space
from nas.network.network import Network
from nas.run.search import uniform
from nas.space.family import SearchSpace

OUT = Path(__file__).parent / "results" / "peak_memory.csv"
SPACES = ("efficientvit:seg-micro", "swin:seg-micro")
SIZES = (224, 448, 1024)  # pixels
SPARSITIES = (0, 60)  # percent of the windows, in every block that can leave some out


def main() -> None:
    if len(sys.argv) > 1:
        return print(json.dumps(peak_mb(*sys.argv[1:])))
    rows = []
    for name in SPACES:
        for size in SIZES:
            for sparsity in SPARSITIES:
                row = {"space": name, "px": size, "sparsity": sparsity}
                for runtime in ("torch", "onnxruntime"):
                    words = [__file__, name, str(size), str(sparsity), runtime]
                    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
                    lines = done.stdout.splitlines()
                    row[f"{runtime}_mb"] = json.loads(lines[-1]) if not done.returncode else None
                print(row, flush=True)
                rows.append(row)
    pd.DataFrame(rows).to_csv(OUT, index=False)


def peak_mb(name: str, size: str, sparsity: str, runtime: str) -> float:
    """The megabytes that the first pictures take, in this process."""
    torch.set_num_threads(1)
    space = load_space(f"{name}@{size}")
    network, images = network_of(space, int(size), int(sparsity))
    run = network.deploy() if runtime == "torch" else session(network, images)
    with torch.inference_mode():
        return added_mb(lambda: run(images))


def network_of(space: SearchSpace, size: int, sparsity: int) -> tuple[Network, torch.Tensor]:
    """The largest network with random weights at one sparsity, and a picture."""
    torch.manual_seed(0)
    network = Network(space, uniform(space, size, sparsity)).eval().requires_grad_(False)
    return network, torch.randn(1, *space.parts.example(size))


def session(network: Network, images: torch.Tensor):
    """What runs the exported ONNX file, with one thread."""
    import onnxruntime as ort

    from nas.export import export_network

    with tempfile.TemporaryDirectory() as folder:
        export_network(network, images, network(images), Path(folder), ["onnx"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        loaded = ort.InferenceSession(Path(folder) / "model.onnx", options)
    name = loaded.get_inputs()[0].name
    return lambda x: loaded.run(None, {name: x.numpy()})


def added_mb(run) -> float:
    """The most megabytes that the process had while `run` was called thrice, less those before.

    Linux forgets the peak so far when 5 is written to `clear_refs`.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = status_mb("VmRSS")
    for _ in range(3):
        run()
    return round(status_mb("VmHWM") - before, 1)


def status_mb(key: str) -> float:
    """A line of `/proc/self/status`, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    main()
