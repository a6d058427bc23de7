"""Latency tables keep their numbers when the code of layers changed and what is timed did not.

A table is refused once the code of its layers has another fingerprint (`layer_code`). Where a
change only moved or rewrote code, this gives tables the fingerprint of today, after a proof, a
command that must end with exit code 0. What was done stands in the `history` of the manifest.

    python experiments/restamp.py --why "layers moved to files of their own" \\
        --proof "python experiments/same_layers.py OLD_CHECKOUT" [FOLDER ...]

Without folders it is about all tables that ship. It takes as long as the proof does.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from nas.latency.library import shipped_folder
from nas.latency.table import LatencyTable
from nas.records import write_text
from nas.versions import layer_code


def restamp(folder: Path, why: str, proof: str) -> str:
    """Give the table in a folder today's fingerprint; what it had before."""
    manifest = LatencyTable.load(folder).manifest
    before = str(manifest["layer_code"])
    after = layer_code(manifest["space"].partition(":")[0])
    if before != after:
        entry = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "what": "layer_code was set anew, nothing was measured",
            "before": before,
            "after": after,
            "why": why,
            "proof": proof,
        }
        manifest |= {"layer_code": after, "history": [*manifest.get("history", []), entry]}
        write_text(folder / "manifest.toml", tomli_w.dumps(manifest))
    return before


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the proof, then stamp each table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="*")
    parser.add_argument("--why", required=True, help="Why the numbers are still right.")
    parser.add_argument("--proof", required=True, help="A command that ends with 0 if they are.")
    given = parser.parse_args(arguments)
    if status := subprocess.run(shlex.split(given.proof)).returncode:
        raise SystemExit(f"the proof ended with {status}: nothing was changed")
    shipped = sorted(path.parent for path in shipped_folder().glob("*/*/manifest.toml"))
    for folder in given.folders or shipped:
        before = restamp(folder, given.why, given.proof)
        print(f"{folder}: {before} -> {LatencyTable.load(folder).manifest['layer_code']}")


if __name__ == "__main__":
    main()
