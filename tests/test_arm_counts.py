"""Counted instructions against what a product of matrices must take, and against themselves."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from nas.agent.client import Step
from nas.families import load_space
from nas.runtimes.ssh import _product
from nas.tasks.classification import Classification

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "arm_counts"))
from count import ArmCounts

USERLAND = os.environ.get("VITNAS_ARM64")
pytestmark = pytest.mark.skipif(
    not USERLAND or not shutil.which("qemu-aarch64") or not shutil.which("cc"),
    reason="no VITNAS_ARM64 (tests/arm64_userland.sh makes one), qemu-aarch64 or cc",
)


class MultiplyAdds(ArmCounts):
    counter = 4


def test_a_product_takes_one_multiply_add_for_four_numbers() -> None:
    assert USERLAND
    with MultiplyAdds(Path(USERLAND)) as runtime:
        link = runtime._link
        assert link is not None
        for size in (32, 64, 96):
            program = link.prepare(
                [("float32", (size, size), b"")], [Step(_product(size), {"a": 0}, [1])]
            )
            link.run(program, 1)
            ((millions, _),) = link.run(program, 1)
            assert millions == pytest.approx(size**3 / 4 / 1e6, rel=0.02)


def test_counts_repeat_add_up_and_are_never_called_measured() -> None:
    assert USERLAND
    space = load_space("swin:debug", Classification(4))
    layers = space.layers(space.largest)
    with ArmCounts(Path(USERLAND)) as runtime:
        described = runtime.describe()
        separate, whole = runtime.prepare(layers, False), runtime.prepare(layers, True)
        counts, again = separate(), separate()
        total, total_again = whole()[0].wall, whole()[0].wall
    assert (runtime.source, runtime.unit) == ("emulated-count", "Minstructions")
    assert described["kind"] == "arm"
    for one, other in zip(counts, again):
        assert one.wall == pytest.approx(other.wall, rel=0.05, abs=0.002)
    assert total == pytest.approx(total_again, rel=0.01)
    assert sum(x.wall for x in counts) == pytest.approx(total, rel=0.15)
