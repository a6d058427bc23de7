"""What a GPU is lent for runs from end to end with tiny numbers on the CPU."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_supernet_is_trained_scored_and_packed(tmp_path):
    command = [
        sys.executable, "experiments/on_gpu.py", "--out", str(tmp_path), "--device", "cpu",
        "--spaces", "swin:debug", "--parts", "supernets", "--minutes", "0.4", "--scores", "4",
        "--recipe", '{"batches": [8, 8, 8]}',
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "swin:debug: exit 0" in done.stdout, done.stdout + done.stderr
    with tarfile.open(tmp_path / "supernet-swin-debug.tar") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"weights.safetensors", "supernet.json", "scores.json", "scores.jsonl"} <= names
