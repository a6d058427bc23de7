"""Are the timed layers of two checkouts the same code? Then tables of the one hold for the other.

    python experiments/same_layers.py OLD [NEW] [--spaces swin:micro ...] [--answers NETWORKS]

NEW is by default the checkout that this file is in.

For every row of the shipped tables, and for the rows of any other `--spaces`, each checkout builds
the layer with the same seeded weights and runs it on the same seeded inputs as `torch-cpu` times
it: deployed, in inference mode, on one thread, with either kernel for attention in windows. The
checkouts must agree in the rows there are, in the memory layout of weights, in the sequence of
operators with the shapes and strides of their tensors, and bit by bit in the outputs. A table is
stamped with a fingerprint of the layers' code; after a change of that code alone, this is the
reason to stamp it again.

Scores need less: where layers run in another way and so take another time, but whole networks
answer the same, tables are measured anew and scores stay. With `--answers` so many architectures
of each space, drawn from all sizes, answer two seeded images each, one by one and as a batch; only
their outputs are compared, bit by bit.

One core of an Intel Xeon: about two minutes for the three spaces with shipped tables, which have
1,800 rows, and half a minute for 200 networks of `swin:micro`. Expected: every row the same; it
ends with exit code 1 and the first differences otherwise.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]


def shipped() -> dict[str, set[str]]:
    """The rows of the shipped tables by space."""
    rows: dict[str, set[str]] = {}
    for file in sorted(ROOT.glob("latency_tables/*/*/rows.csv")):
        with file.open(newline="") as lines:
            keys = {row["key"] for row in csv.DictReader(lines)}
        rows.setdefault(file.parent.name.replace("-", ":", 1), set()).update(keys)
    return rows


# --- the worker: one checkout, which may be older than its packages' present names ---


def checkout() -> tuple[Callable[[str], dict[str, Any]], Callable[..., Any], Callable[..., Any]]:
    """Its layers by key of a space, its build of layers, and its deploy(module, explicit)."""
    try:
        from nas.families import load_space
        from nas.layers.attention import explicit, fused
        from nas.network.network import deploy
        from nas.network.standalone import build
        from nas.trellis.graph import space_layers
    except ImportError:  # as the checkouts of version 0.1 call them
        elastic, family, graph, pieces = (
            import_module(f"nas.{name}") for name in ("elastic", "family", "graph", "pieces")
        )

        def old_deploy(module: Any, explicitly: bool) -> None:
            elastic.explicit_in_windows(explicitly)
            for part in module.modules():
                if isinstance(part, elastic.Deployable):
                    part.deploy()

        return (
            lambda name: graph.space_layers(family.load_space(name), 10),
            pieces.build,
            old_deploy,
        )
    return (
        lambda name: space_layers(load_space(name)),
        build,
        lambda module, explicitly: deploy(module, explicit if explicitly else fused),
    )


def fill(module: Any) -> None:
    """Weights and buffers drawn by their names."""
    import torch

    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("clip"):
                tensor.copy_(torch.tensor([-3.0, 3.0]))
                continue
            seed = int.from_bytes(sha256(name.encode()).digest()[:4], "little")
            drawn = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed))
            tensor.copy_(drawn + 0.5 if name.endswith("running_var") else 0.2 * drawn - 0.1)


def tensors(value: Any) -> Iterator[Any]:
    """The tensors in nested tuples and lists."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def digest(value: Any) -> str:
    """A fingerprint of all bits in a state."""
    found = sha256()
    for tensor in tensors(value):
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def run(layer: Any, build: Callable[..., Any], deploy: Callable[..., Any], explicit: bool) -> Any:
    """What one layer is made of and does: layouts, operators, outputs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    operators: list[str] = []

    class Recorded(TorchDispatchMode):
        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            shapes = [(tuple(t.shape), t.stride()) for t in tensors(args)]
            operators.append(f"{operator} {shapes}")
            return operator(*args, **(kwargs or {}))

    with torch.device("meta"):
        module = layer.build()
    module = module.to_empty(device="cpu").eval()
    fill(module)
    deploy(module, explicit)
    ((_, sizes),) = build([layer])  # those that the module is called with
    layouts = [(n, tuple(p.shape), p.stride()) for n, p in module.named_parameters()]
    torch.manual_seed(0)
    given = layer.module.inputs(1, layer.input_shape, **layer.sizes)
    copies = json.dumps(layouts), digest(given)

    def copied(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(copied(item) for item in value)
        return value if value is None else value.clone()

    with torch.inference_mode():
        output = digest(module(*copied(given), **sizes))
        state = copied(given)
        with Recorded():
            again = digest(tuple(tensors(module(*state, **sizes))))
    return {"layouts and inputs": copies, "operators": operators, "output": [output, again]}


def answers(space: Any, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What networks of drawn architectures answer, by architecture and kernel."""
    import torch

    from nas.layers.attention import explicit, fused
    from nas.network.network import Network

    rng = Random(0)
    for number in range(count):
        architecture = (space.largest, space.smallest)[number] if number < 2 else space.draw(rng)
        network = Network.empty(space, architecture)
        fill(network)
        torch.manual_seed(number)
        images = torch.randn(2, *space.example(architecture))
        for name, kernel in (("explicit", explicit), ("fused", fused)):
            network.use_in_windows(kernel)
            with torch.inference_mode():
                outputs = [network(images.clone()), *(network(i[None].clone()) for i in images)]
            yield f"{architecture} {name}", {"output": [digest(y) for y in outputs]}


def worker(spaces: list[str], out: Path, networks: int) -> None:
    """Run rows or networks of the spaces with this process's packages; write what they did."""
    import torch

    torch.set_num_threads(1)
    if networks:
        from nas.families import load_space

        pairs = ((s, pair) for s in spaces for pair in answers(load_space(s), networks))
        out.write_text(json.dumps({f"{s} {key}": record for s, (key, record) in pairs}))
        return
    layers_of, build, deploy = checkout()
    found = {}
    for space in spaces:
        for key, layer in layers_of(space).items():
            for explicit in (False, True):
                done = run(layer, build, deploy, explicit)
                found[f"{space} {key} {'explicit' if explicit else 'fused'}"] = {
                    what: sha256(json.dumps(value).encode()).hexdigest()[:16]
                    for what, value in done.items()
                } | {"first": done["operators"][:200]}
    out.write_text(json.dumps(found))


# --- the comparison ---


def records(folder: Path, spaces: list[str], out: Path, networks: int) -> dict[str, Any]:
    """What the layers or networks of a checkout do, found by a process that imports it."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--worker", str(out), "--spaces", *spaces]
    command += ["--answers", str(networks)]
    subprocess.run(command, env=environment, cwd=folder, check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """One line for each row in which the checkouts differ."""
    for key in sorted(old.keys() ^ new.keys()):
        yield f"{key}: only in the {'old' if key in old else 'new'} checkout"
    for key in sorted(old.keys() & new.keys()):
        for what in ("layouts and inputs", "operators", "output"):
            if old[key].get(what) != new[key].get(what):
                pairs = zip(old[key]["first"], new[key]["first"])
                first = next((f": {a} became {b}" for a, b in pairs if a != b), "")
                yield f"{key}: other {what}{first if what == 'operators' else ''}"
                break


def main() -> None:
    """Compare two checkouts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", nargs="?", type=Path)
    parser.add_argument("new", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--spaces", nargs="+", default=sorted(shipped()))
    parser.add_argument("--answers", type=int, default=0, metavar="NETWORKS")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.spaces, options.worker, options.answers)
        return
    if options.old is None:
        parser.error("give the old checkout")
    scratch = Path(f"same_layers_{os.getpid()}.json").resolve()
    old, new = (
        records(c.resolve(), options.spaces, scratch, options.answers)
        for c in (options.old, options.new)
    )
    wrong = list(differences(old, new))
    if options.answers:
        print(f"{len(new) // 2} networks of {', '.join(options.spaces)}, each with two kernels")
        print("\n".join(wrong[:20]) or "all answer the same")
        sys.exit(bool(wrong))
    wanted = {f"{s} {key} fused" for s, keys in shipped().items() for key in keys}
    missing = [key for key in sorted(wanted - new.keys()) if key.split()[0] in options.spaces]
    wrong += [f"{key}: a shipped row that no checkout runs" for key in missing]
    operators = sum(len(record["first"]) for record in new.values())
    rows = len({key.rpartition(" ")[0] for key in new})
    print(
        f"{rows} rows of {', '.join(options.spaces)}, each with two kernels; {operators} operators"
    )
    print("\n".join(wrong[:20]) or "all the same: layouts, operators, outputs")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
