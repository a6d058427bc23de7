"""What workers bring: 1 -> 2 on work that is all evaluation, and what a task costs the driver.

    python experiments/search_quality/ray_scaling.py [--rounds 5] [--quick]

(a) 16 tasks of about 1 s of matrix products on one thread, by 1 and by 2 workers in turns, and the
same by plain processes, which says what the machine gave at the time: others may use it, so the
share of time in which something waited for a core (`/proc/pressure/cpu`) is recorded. What the pool
itself gives on a machine of one's own follows from two numbers that others hardly touch: the share
of time in which a worker had a task in hand ("occupied"), and the CPU time of a task, which
grows where cores share caches: `own speed-up = 2 x occupied(2) / occupied(1) x cpu(1) / cpu(2)`.
Medians over rounds.

(b) Empty tasks, one by one and in groups: seconds of the driver (CPU time of all its threads) for
a call, c, and for each task in it, p, and the gap g between two calls of a worker. One driver
serves W workers, each of which is given calls of k tasks of T seconds, so the share of the time in
which workers work is at most

    min(kT / (kT + g),  kT / (W (c + k p)))

The first bound is a worker waiting for the driver's answer, the second the driver being always
busy. Once with k = 1, and once with k = max(1, the pool's call length / T), which is how it goes
when many more than kW tasks wait. Network and start-up are left out. (c) holds the projection
against many sleeping workers on one machine, which start and answer on the driver's own cores.

Two cores: about 8 minutes (`--quick`: 2). Expected: (a) an own speed-up of 1.8 or more, and that
speed-up by the clock where plain processes reach 1.9; (b) 0.3-1 ms for a call, below 0.05 ms for
a task in a group; efficiency of 0.95 or more for 1,000 workers and tasks of 10 s one by one, or of
1 s in groups. Writes `ray_scaling.json` beside this file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nas.workers import Pool, backlog, open_pool
from nas.workers.cluster import import_ray

RESULT = Path(__file__).with_suffix(".json")
TASKS, SIZE = 16, 512
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
Times = tuple[float, float]  # seconds, CPU seconds


def make_products(matrix: np.ndarray) -> Callable[[int], Times]:
    """Work whose payload is a number of products; its value is the time it took."""

    def work(products: int) -> Times:
        begin, cpu = time.perf_counter(), time.process_time()
        value = matrix
        for _ in range(products):
            value = matrix @ value
        return time.perf_counter() - begin, time.process_time() - cpu

    return work


def make_sleeper() -> Callable[[float], float]:
    def work(seconds: float) -> float:
        if seconds:
            time.sleep(seconds)
        return seconds

    return work


def stalled_us() -> int:
    """Microseconds since boot in which something waited for a core."""
    line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    return int(line.rpartition("=")[2])


def timed(work: Callable[[], list[Times]], workers: int) -> dict[str, float]:
    begin, stalled = time.perf_counter(), stalled_us()
    times = work()
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "occupied": sum(wall for wall, _ in times) / seconds / workers,
        "task_cpu_s": sum(cpu for _, cpu in times) / len(times),
        "stalled": (stalled_us() - stalled) / 1e6 / seconds,
    }


def through(pool: Pool, payloads: list[Any]) -> list[Any]:
    for i, payload in enumerate(payloads):
        pool.submit(str(i), payload)
    done = [pool.next() for _ in payloads]
    assert not any(one.error for one in done)
    return [one.value for one in done]


def plain(matrix: np.ndarray, tasks: int, products: int, queue: Any) -> None:
    work = make_products(matrix)
    queue.put([work(products) for _ in range(tasks)])


def in_plain_processes(matrix: np.ndarray, workers: int, products: int) -> list[Times]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (matrix, TASKS // workers, products, queue)
    processes = [context.Process(target=plain, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    times = [one for _ in processes for one in queue.get()]
    for process in processes:
        process.join()
    return times


def scaling(rounds: int, seconds: float) -> dict[str, Any]:
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
    runs: dict[str, list[dict[str, float]]] = {}
    with (
        open_pool(make_products, (matrix,), workers=1) as one,
        open_pool(make_products, (matrix,), workers=2) as two,
    ):
        cpu_s = min(cpu for _, cpu in through(one, [100] * 5))
        products = max(1, round(100 * seconds / cpu_s))
        through(two, [products // 4] * 8)  # both workers have started
        for _ in range(rounds):
            for n, pool in ((1, one), (2, two)):
                ray = timed(lambda pool=pool: through(pool, [products] * TASKS), n)
                runs.setdefault(f"ray {n}", []).append(ray)
                processes = timed(lambda n=n: in_plain_processes(matrix, n, products), n)
                runs.setdefault(f"plain {n}", []).append(processes)
    result: dict[str, Any] = {
        name: {key: statistics.median(run[key] for run in each) for key in each[0]}
        for name, each in runs.items()
    }
    for kind in ("ray", "plain"):
        pairs = zip(runs[f"{kind} 1"], runs[f"{kind} 2"])
        ratios = [a["seconds"] / b["seconds"] for a, b in pairs]
        one_, two_ = result[f"{kind} 1"], result[f"{kind} 2"]
        occupied = two_["occupied"] / one_["occupied"]
        result[f"{kind} speed-up"] = statistics.median(ratios)
        result[f"{kind} speed-ups"] = ratios
        result[f"{kind} own speed-up"] = 2 * occupied * one_["task_cpu_s"] / two_["task_cpu_s"]
    return result


@contextmanager
def longest(tasks: int) -> Iterator[None]:
    before, backlog.LONGEST = backlog.LONGEST, tasks
    try:
        yield
    finally:
        backlog.LONGEST = before


def driver_s(pool: Pool, tasks: int) -> tuple[float, float]:
    """Seconds and CPU seconds of this process for each empty task."""
    begin, cpu = time.perf_counter(), time.process_time()
    through(pool, [0] * tasks)
    return (time.perf_counter() - begin) / tasks, (time.process_time() - cpu) / tasks


def overhead(rounds: int) -> dict[str, float]:
    """Medians of the cost of empty tasks, one worker; c, p and g of the model."""
    samples: dict[str, list[float]] = {"gap": [], "single": [], "grouped": [], "group": []}
    with open_pool(make_sleeper, workers=1) as pool:
        through(pool, [0] * 100)
        for _ in range(rounds):
            with longest(1):
                begin = time.perf_counter()
                for _ in range(300):
                    through(pool, [0])
                samples["gap"].append((time.perf_counter() - begin) / 300)
                samples["single"].append(driver_s(pool, 1000)[1])
            with longest(256):
                calls = pool._calls
                samples["grouped"].append(driver_s(pool, 50_000)[1])
                samples["group"].append(50_000 / (pool._calls - calls))
    single, grouped, group, gap = (
        statistics.median(samples[name]) for name in ("single", "grouped", "group", "gap")
    )
    task = max(0.0, (grouped - single / group) / (1 - 1 / group))
    return {
        "single_ms": 1e3 * single,
        "grouped_ms": 1e3 * grouped,
        "group": group,
        "c_ms": 1e3 * (single - task),
        "p_ms": 1e3 * task,
        "g_ms": 1e3 * gap,
    }


def projected(costs: dict[str, float], workers: int, task_s: float, grouped: bool) -> float:
    """The model of the docstring."""
    c, p, g = (costs[name] / 1e3 for name in ("c_ms", "p_ms", "g_ms"))
    call_s = backlog.Backlog().call_s(workers)
    k = min(backlog.LONGEST, max(1, int(call_s / task_s))) if grouped else 1
    return min(k * task_s / (k * task_s + g), k * task_s / (workers * (c + k * p)))


def check(workers: int, costs: dict[str, float], quick: bool) -> list[dict[str, float]]:
    """Sleeping workers on this machine against the projection."""
    rows = []
    with open_pool(make_sleeper, workers=workers) as pool:
        through(pool, [0.5] * workers * 8)  # every worker has started
        for task_s in (0.1,) if quick else (0.1, 1.0):
            tasks = int(workers * 15 / task_s)
            begin, cpu = time.perf_counter(), time.process_time()
            through(pool, [task_s] * tasks)
            seconds = time.perf_counter() - begin
            rows.append(
                {
                    "workers": workers,
                    "task_s": task_s,
                    "projected": projected(costs, workers, task_s, grouped=True),
                    "measured": tasks * task_s / workers / seconds,
                    "driver": (time.process_time() - cpu) / seconds,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=24, help="sleeping ones, for the check")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    ray = import_ray()
    ray.init(
        address="local",
        num_cpus=3 + options.workers,
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    rounds = 2 if options.quick else options.rounds
    costs = overhead(rounds)
    result = {
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor(),
            "ray": ray.__version__,
        },
        "rounds": rounds,
        "overhead": costs,
        "projected": {
            f"{workers} workers, {task_s:g} s": {
                "one by one": projected(costs, workers, task_s, grouped=False),
                "in groups": projected(costs, workers, task_s, grouped=True),
            }
            for workers in (10, 100, 1000)
            for task_s in (0.1, 1.0, 10.0)
        },
        "scaling": scaling(rounds, 0.3 if options.quick else 1.0),
        "check": check(options.workers, costs, options.quick),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
