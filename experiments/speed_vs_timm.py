"""Time of the named models against timm's, side by side: torch eager and ONNX Runtime.

    python experiments/speed_vs_timm.py [--models A,B] [--runtimes eager,flushed,onnx] [--rounds 30]

One thread, batch 1, float32, evaluation mode, the model's own resolution. In each round every model
runs once in our form and once in timm's, in turns, in one process that keeps its heap; ratios are
of medians. Ours is deployed (norms folded); ONNX Runtime folds them for both. The outputs are
compared as well, with timm's weights in both. `flushed` is eager with denormal numbers flushed to
zero, as we measure and recommend; it matters for masked windows. Writes
`results/speed_vs_timm.csv`.

Needs `pip install '.[test]'`. Two cores of an Intel Xeon (AMX): about ten minutes, most of it ONNX
export.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import timm_models  # noqa: E402 (how timm is imported beside a CPU build of torch)

from nas.families import load_space  # noqa: E402
from nas.network.network import Network  # noqa: E402
from nas.runtimes.host import quiet_process  # noqa: E402
from nas.training.pretrained import load_weights  # noqa: E402

MODELS = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    "efficientvit_b0",
    "efficientvit_b1",
    "efficientvit_b2",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
)


def onnx_session(model, image):
    import onnxruntime

    from nas.lowering.onnx import quiet

    with quiet(), torch.no_grad():
        program = torch.onnx.export(model, (image,), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def paired(ours, theirs, rounds: int) -> tuple[float, float]:
    """Medians in milliseconds, the two taken in turns."""
    samples = ([], [])
    for turn in range(rounds + 3):
        for own, run in zip(samples, (ours, theirs)):
            start = time.perf_counter()
            run()
            if turn >= 3:
                own.append(1e3 * (time.perf_counter() - start))
    return float(np.median(samples[0])), float(np.median(samples[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--runtimes", default="eager,onnx")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/results/speed_vs_timm.csv")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    quiet_process()
    torch.set_grad_enabled(False)
    rows = []
    print(f"{'model':34}{'runtime':8}{'ours':>9}{'timm':>9}{'ratio':>7}{'differs':>9}")
    for name in options.models.split(","):
        theirs = timm_models.create(name)
        space = load_space(name)
        ours = Network.empty(space, space.largest)
        load_weights(ours, theirs.state_dict())
        ours.deploy()
        image = torch.randn(1, 3, *[space.largest.resolution] * 2)
        for runtime in options.runtimes.split(","):
            # Each time anew: ONNX Runtime sets the flag as well.
            torch.set_flush_denormal(runtime == "flushed")
            if runtime in ("eager", "flushed"):
                runs = (partial(torch.inference_mode()(m.forward), image) for m in (ours, theirs))
            else:
                runs = (onnx_session(m, image) for m in (ours, theirs))
            a, b = runs
            difference = float((a() - b()).abs().max() / b().abs().max())
            own_ms, timm_ms = paired(a, b, options.rounds)
            ratio = own_ms / timm_ms
            row = (name, runtime, f"{own_ms:.2f}", f"{timm_ms:.2f}", f"{ratio:.3f}")
            rows.append((*row, f"{difference:.1e}"))
            print("{:34}{:8}{:>9}{:>9}{:>7}{:>9}".format(*rows[-1]), flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "runtime", "ours_ms", "timm_ms", "ratio", "relative_difference"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
