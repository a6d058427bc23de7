"""Instructions that an ARM processor runs for a network, layer by layer: a cost without hardware.

    tests/arm64_userland.sh ~/arm64
    python experiments/arm_counts/count.py ~/arm64 --subnets 4
    python experiments/arm_counts/count.py ~/arm64 --table swin:debug --out arm-counts

ONNX Runtime for aarch64 runs under qemu, and a plugin of qemu counts. Needs Debian's `qemu-user`
(the static build takes no plugins) and a C compiler. The first form counts random subnets of each
space, layer by layer and as a whole, several times: it prints how far counts repeat and what the
layers add up to, and writes `results/arm_counts.csv`. The second writes a table of a space with
`emulated-count` as its source, as any device gets one.

Expected: counts repeat within 0.1 %, and layers add up to 0.99-1.02 of the whole. An instruction is
no time: caches and the width of a core are not in it.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from nas.agent.client import Hello, Link, agent_source
from nas.errors import DeviceError, MissingPackageError, VitnasError
from nas.families import load_space
from nas.runtimes import Program
from nas.runtimes.ssh import AgentRuntime
from nas.space.layer import Layer

HERE = Path(__file__).parent
OUT = HERE.parent / "results" / "arm_counts.csv"
SPACES = ("swin:micro", "vit:micro", "efficientvit:micro")

# The agent's clock becomes the counter of the plugin, which the agent maps: a million instructions
# come back where a million nanoseconds, a millisecond, would.
CLOCK = """
import mmap
with open({path!r}, "rb") as file:
    counters = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)).cast("Q")


def clock():
    return counters[{counter}], 0
"""


class ArmCounts(AgentRuntime):
    """ONNX Runtime on an emulated Cortex-A72, in millions of instructions."""

    unit = "Minstructions"
    exact = True
    counter = 0  # all instructions; the plugin's source names the others

    def __init__(self, userland: Path) -> None:
        super().__init__("arm-counts", threads=1, batch=1)
        self.userland = userland.resolve()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def connect(self) -> Link:
        self._folder = tempfile.TemporaryDirectory(prefix="vitnas-counts-")
        counts = Path(self._folder.name) / "counts"
        plugin = _built(Path(self._folder.name))
        root = self.userland / "root"
        python = min((root / "usr/bin").glob("python3.??"))
        environment = [f"PYTHONPATH={self.userland / 'site'}", "OPENBLAS_NUM_THREADS=1"]
        qemu = ["qemu-aarch64", "-plugin", f"{plugin},counts={counts}", "-cpu", "cortex-a72"]
        command = ["env", *environment, "PYTHONHASHSEED=0", *qemu, "-L", str(root), str(python)]
        source = agent_source() + CLOCK.format(path=str(counts), counter=self.counter)
        return Link(lambda line: [*command, "-u", "-B", "-c", line], "qemu", _ended, source)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self._folder is not None:
            self._folder.cleanup()

    def judge(self, link: Link, hello: Hello) -> Hello:
        self.source = "emulated-count"
        return hello

    def prepare(self, layers: Sequence[Layer], fused: bool) -> Program:
        program = super().prepare(layers, fused)
        program()  # the first run plans its memory
        return program


def _built(folder: Path) -> Path:
    for program, package in (("cc", "gcc"), ("qemu-aarch64", "qemu-user")):
        if not shutil.which(program):
            raise MissingPackageError(f"counting needs {program}", f"apt install {package}")
    plugin = folder / "icount.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", plugin, HERE / "icount_plugin.c"]
    subprocess.run(command, check=True)
    return plugin


def _ended(status: int | None, lines: Sequence[str]) -> VitnasError:
    last = f": {lines[-1]}" if lines else ""
    fix = "is the folder one that tests/arm64_userland.sh made, and qemu-user Debian's?"
    return DeviceError(f"qemu ended with {status}{last}", fix)


def compare(
    runtime: ArmCounts, name: str, subnets: int, repeats: int, rng: Random
) -> list[dict[str, Any]]:
    """Random subnets of a space, counted as a whole and layer by layer."""
    space = load_space(name)
    rows = []
    for _ in range(subnets):
        layers = space.layers(space.draw(rng))
        separate, whole = runtime.prepare(layers, False), runtime.prepare(layers, True)
        sums, wholes = [], []
        for _ in range(repeats):
            sums.append(sum(sample.wall for sample in separate()))
            wholes.append(whole()[0].wall)
        row = {
            "space": name,
            "layers": len(layers),
            "sum_Minstructions": round(median(sums), 3),
            "whole_Minstructions": round(median(wholes), 3),
            "ratio": round(median(sums) / median(wholes), 4),
            "spread_ppm": round(1e6 * (max(wholes) - min(wholes)) / median(wholes), 1),
        }
        print(*row.values(), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("userland", type=Path)
    parser.add_argument("--subnets", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--table", default="", help="a space to make a table of")
    parser.add_argument("--out", type=Path, default=Path("arm-counts"))
    arguments = parser.parse_args()
    runtime = ArmCounts(arguments.userland)
    if arguments.table:
        from nas.latency.profiling import profile

        table = profile(load_space(arguments.table), runtime, arguments.out)
        print(len(table.rows), table.manifest["unit"], table.calibration)
        return
    rows = []
    with runtime:
        for name in SPACES:
            rows += compare(runtime, name, arguments.subnets, arguments.repeats, Random(0))
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
