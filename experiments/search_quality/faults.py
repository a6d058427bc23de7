"""Whether anything is ever lost: searches killed at random moments against undisturbed ones.

`OMP_NUM_THREADS=1 python experiments/search_quality/faults.py` (about 15 minutes on two busy cores)
writes `faults.json`. Searches of a small space of one's own and of the networks of `swin:debug` (a
supernet trained for a second, photos of noise) are started with 0, 1 or 2 workers, get SIGKILL at
random moments, up to six times each, are resumed with another number of workers, and end. What is
killed is the driver; the driver with everything it has started, at once; one worker, which the
driver survives; or one of Ray's own processes, which it may survive. Each search is compared with
one in a single process that nothing disturbed: the lines of `candidates.jsonl`, sorted, to the
byte, and the front.

Expected: no differences, whatever the moments; `torn` counts journals whose last line was cut off,
`ended_with_ray` drivers that Ray took along when one of its own processes died: they are resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import nas

HERE = Path(__file__).parent
KINDS = ("driver", "everything", "worker", "worker", "ray")  # the last ones where there are workers
LIMIT_S = 300  # of one start of a driver: it hangs
EVALUATIONS = {"own space": 64, "networks": 24}


@dataclass(frozen=True)
class Layer:
    width: int
    kernel: int


@dataclass(frozen=True)
class Net:
    layers: tuple[Layer, ...]
    scale: float


def cost(name, value):
    if name == "scale" or value is None:
        return 0.0
    return value.width**0.9 + 0.1 * value.kernel


def score(net):
    time.sleep(0.03)
    gains = [np.sqrt(x.width) / (i + 1.7) + np.log(x.kernel) for i, x in enumerate(net.layers)]
    return sum(gains) * net.scale ** (1 / 3)


def own_space(out, workers, resume, seed):
    """The front of a search of a space of one's own."""
    layer = nas.Space(Layer, width=nas.Choice(1, 2, 3, 5), kernel=nas.Choice(3, 5, 7))
    space = nas.Space(
        Net, layers=nas.Repeat(layer, nas.Choice(4, 5, 6)), scale=nas.Choice(0.1, 0.2, 0.7)
    )
    found = nas.search(
        14.0, space=space, latency=nas.Additive(cost), score=score, seed=seed, out=out,
        workers=workers, resume=resume, evaluations=EVALUATIONS["own space"],
    )  # fmt: skip
    return [asdict(member) for member in found.front]


def networks(out, workers, resume, seed):
    """The front of a search of networks, without what is measured after it."""
    world = Path(out).parent / "world"
    budget = json.loads((world / "budget.json").read_text())
    result = nas.search(
        budget, space="swin:debug", data=f"imagefolder:{world / 'photos'}", seed=seed, out=out,
        supernet=world / "supernet", table=world / "table", search_images=100, test_images=8,
        workers=workers, resume=resume, evaluations=EVALUATIONS["networks"],
    )  # fmt: skip
    keys = ("id", "predicted_ms", "search_top1_percent", "expected_top1_percent")
    return [{key: member[key] for key in keys} for member in result["front"]]


SEARCHES = {"own space": own_space, "networks": networks}


def make_world(world):
    """Photos, a supernet, and a table that calls this machine a thousand times as slow as it is.

    So what fits as predicted fits as measured, however busy the machine.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("search", 50), ("test", 4)):
        for label in ("bright", "dark"):
            folder = world / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (24, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    data, space = nas.load_data(f"imagefolder:{world / 'photos'}"), nas.load_space("swin:debug")
    recipe = nas.Recipe(images=(64, 64, 64), batches=(16, 16, 16))
    nas.train(space.name, data, world / "supernet", recipe)
    table = nas.profile(space, folder=world / "measured", rounds=1)
    sure = {"scale": 1e3, "overhead": 0.0, "factors": {}, "p95_percent": 5.0, "bias_percent": 0.0}
    calibration = table.manifest["calibration"] | sure
    slow = nas.LatencyTable(
        table.rows, {**table.manifest, "calibration": calibration}, table.references
    )
    slow.save(world / "table")
    trellis = slow.trellis(space)
    (world / "budget.json").write_text(json.dumps(0.5 * (trellis.fastest + trellis.slowest)))


def start(kind, out, workers, seed):
    """A driver of its own session; it goes on with what is in `out`."""
    command = [sys.executable, __file__, "--drive", kind, "--out", str(out),
               "--workers", str(workers), "--seed", str(seed)]  # fmt: skip
    front, errors = (out.with_suffix(s).open("w") for s in (".front", ".errors"))
    return subprocess.Popen(command, stdout=front, stderr=errors, start_new_session=True)


def below(pid):
    """Processes that a process has started, and those that they have: number and command."""
    children, commands = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, left = {}, list(children.get(pid, []))
    while left:
        one = left.pop()
        found[one] = commands[one]
        left += children.get(one, [])
    return found


def kill(driver, kind):
    """Send SIGKILL; whether there was what is to be killed."""
    family = below(driver.pid)
    if driver.poll() is not None:
        return False
    if kind in ("worker", "ray"):
        workers = [pid for pid, command in family.items() if command.startswith("ray::Worker")]
        others = [
            pid for pid, command in family.items() if "/ray/" in command or "ray::" in command
        ]
        among = workers if kind == "worker" else sorted({*others} - {*workers})
        if among:
            os.kill(random.choice(among), signal.SIGKILL)
        return bool(among)
    for pid in [driver.pid, *(family if kind == "everything" else ())]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    driver.wait()
    return True


def wait_for_a_moment(driver, journal, rng, search_s):
    """Some time while the driver starts, or, mostly, after it has written something."""
    size = journal.stat().st_size if journal.exists() else 0
    begin = time.monotonic()
    if rng.random() < 0.2:
        moment = begin + rng.uniform(0, 8)
    else:
        while driver.poll() is None and time.monotonic() < begin + LIMIT_S:
            if journal.exists() and journal.stat().st_size > size:
                break
            time.sleep(0.005)
        moment = time.monotonic() + rng.uniform(0, search_s)
    while driver.poll() is None and time.monotonic() < moment:
        time.sleep(0.001)


def disturbed(kind, out, seed, rng, kills, search_s):
    """Start until done, with so many kills in between: what was killed, how often the driver ended
    with Ray, how often a line tore, and the last exit status."""
    journal, killed, with_ray, torn = out / "candidates.jsonl", Counter(), 0, 0
    while True:
        workers = rng.choice((0, 1, 2))
        driver = start(kind, out, workers, seed)
        while kills and driver.poll() is None:
            wait_for_a_moment(driver, journal, rng, search_s)
            what = rng.choice(KINDS if workers else KINDS[:2])
            if kill(driver, what):
                kills -= 1
                killed[what] += 1
        code = driver.wait(LIMIT_S)
        text = journal.read_bytes() if journal.exists() else b""
        torn += bool(text) and not text.endswith(b"\n")
        if code and code != -signal.SIGKILL:
            print(out.with_suffix(".errors").read_text()[-2000:], file=sys.stderr)
            with_ray += 1
        if not code or with_ray > killed["ray"]:
            return killed, with_ray, torn, code


def outcome(out):
    lines = sorted((out / "candidates.jsonl").read_text().splitlines())
    return lines, json.loads(out.with_suffix(".front").read_text() or "null")


def study(root, total, of_networks, seed):
    rng = random.Random(seed)
    make_world(root / "world")
    whole, search_s = {}, {}
    rows = []
    for kind, kills in (("networks", of_networks), ("own space", total - of_networks)):
        while kills > 0:
            own_seed = rng.randrange(3 if kind == "own space" else 1)
            if (kind, own_seed) not in whole:
                out = root / f"{kind} {own_seed}"
                begin = time.monotonic()
                if code := start(kind, out, 0, own_seed).wait(LIMIT_S):
                    raise SystemExit(f"exit {code}: {out.with_suffix('.errors').read_text()}")
                whole[kind, own_seed] = outcome(out)
                search_s[kind] = 0.3 * (time.monotonic() - begin)
            out = root / f"run {len(rows)}"
            killed, with_ray, torn, code = disturbed(
                kind, out, own_seed, rng, min(kills, rng.randint(2, 6)), search_s[kind]
            )
            kills -= killed.total()
            lines, front = outcome(out)
            expected = whole[kind, own_seed]
            rows.append(
                {
                    "search": kind, "seed": own_seed, "kills": dict(killed),
                    "ended_with_ray": with_ray, "torn": torn,
                    "exit": code, "same_lines": lines == expected[0],
                    "same_front": front == expected[1],
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--of-networks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", choices=SEARCHES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int, default=0)
    own = parser.parse_args()
    if own.drive:
        resume = (own.out / "settings.json").exists()
        print(json.dumps(SEARCHES[own.drive](own.out, own.workers, resume, own.seed)))
        return
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        rows = study(Path(root), own.kills, own.of_networks, own.seed)
    kills = sum((Counter(row["kills"]) for row in rows), Counter())
    result = {
        "kills": dict(kills), "runs": len(rows), "torn": sum(row["torn"] for row in rows),
        "ended_with_ray": sum(row["ended_with_ray"] for row in rows),
        "other_lines": sum(not row["same_lines"] for row in rows),
        "other_front": sum(not row["same_front"] for row in rows),
        "failed": sum(bool(row["exit"]) for row in rows),
        "minutes": round((time.monotonic() - begin) / 60, 1), "each": rows,
    }  # fmt: skip
    (HERE / "faults.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "each"}))


if __name__ == "__main__":
    main()
