"""Tables and scores keep their numbers when the code of layers changed and what runs did not.

A table is refused once the code of its layers has another fingerprint (`layer_code`), and the
scores that ship beside a supernet are not used. Where a change only moved or rewrote code, this
gives both the fingerprint of today, after a proof, a command that must end with exit code 0. What
was done stands in the `history` of the manifest, or of `scores.json`.

    python experiments/restamp.py --why "layers moved to files of their own" \\
        --proof "python experiments/same_layers.py OLD_CHECKOUT" [FOLDER ...]

Without folders it is about all tables and scores that ship. It takes as long as the proof does.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nas.latency.library import shipped_folder
from nas.latency.table import LatencyTable
from nas.records import read_json, write_json
from nas.training.supernet import ASSETS
from nas.versions import layer_code


def restamp(folder: Path, why: str, proof: str) -> str:
    """Give the table or the scores in a folder today's fingerprint; what they had before."""
    if (folder / "scores.json").exists():
        head = read_json(folder / "scores.json")
        before = str(head.get("layer_code", "none"))
        if stamp(head, read_json(folder / "supernet.json")["space"], why, proof):
            write_json(folder / "scores.json", head)
        return before
    table = LatencyTable.load(folder)
    before = str(table.manifest["layer_code"])
    if stamp(table.manifest, table.manifest["space"], why, proof):
        table.save(folder)
    return before


def stamp(data: dict[str, Any], space: str, why: str, proof: str) -> bool:
    """Write today's fingerprint and its reason into what a file holds; whether it had another."""
    before, after = data.get("layer_code", "none"), layer_code(space.partition(":")[0])
    if before == after:
        return False
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "what": "layer_code was set anew, nothing was measured",
        "before": before,
        "after": after,
        "why": why,
        "proof": proof,
    }
    data |= {"layer_code": after, "history": [*data.get("history", []), entry]}
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the proof, then stamp each table and the scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="*")
    parser.add_argument("--why", required=True, help="Why the numbers are still right.")
    parser.add_argument("--proof", required=True, help="A command that ends with 0 if they are.")
    given = parser.parse_args(arguments)
    if status := subprocess.run(shlex.split(given.proof)).returncode:
        raise SystemExit(f"the proof ended with {status}: nothing was changed")
    tables = sorted(path.parent for path in shipped_folder().glob("*/*/manifest.toml"))
    scores = sorted(path.parent for path in ASSETS.glob("*/scores.json"))
    for folder in given.folders or [*tables, *scores]:
        print(f"{folder}: had {restamp(folder, given.why, given.proof)}")


if __name__ == "__main__":
    main()
