"""The machine that runs this process: what it is, and how quiet it is made for measuring."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas.runtimes import check_threads

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def quiet_process(threads: int = 1) -> None:
    """Make this process as measurements need it: its threads, its heap, no denormal numbers.

    The heap is kept. By default glibc gives large blocks back to the system after each use;
    faulting them in again made networks up to 10 % slower and tripled the spread (840 page faults
    per inference, 0.5 after). Denormal numbers, which masked attention makes, are flushed to zero:
    up to 2.9x in shifted windows. Deploy with `torch.set_flush_denormal(True)` and
    `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2000000000` to have the same.
    """
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    keep_heap()


def keep_heap() -> None:
    """Let the C library keep freed memory instead of returning it to the system (glibc only)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def describe_host(device: str = "", threads: int = 1) -> dict[str, Any]:
    """Processor, machine and cores of the host.

    Raises `UsageError` where a device asks for more threads than this process has cores.
    """
    check_threads(device, threads, usable_cores())
    return {"processor": _processor(), "machine": platform.machine(), "cores": _cores()}


def _cores() -> int:
    return os.cpu_count() or 1


def usable_cores() -> int:
    """How many cores this process may use at once: by its affinity, and the quota of its cgroup.

    A part of a core is none: threads that share it wait for each other.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        allowed = _cores()
    return max(1, min([allowed, *(int(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """The cores that each cgroup above this process may use, for those that have a quota."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            roots = [_CGROUPS, _CGROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [_CGROUPS / controllers, _CGROUPS / "cpu"]
        else:
            continue
        # In a container a path may be that of the host, which is not to be found inside.
        own = Path(path.lstrip("/"))
        for folder in {root / place for root in roots for place in (own, *own.parents)}:
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """The quota of one cgroup in cores; nothing where it has none."""
    with suppress(OSError, ValueError):  # version 2: "max 100000" is no limit
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)
    with suppress(OSError, ValueError):  # version 1: -1 is no limit
        quota, period = ((folder / f"cpu.cfs_{x}_us").read_text() for x in ("quota", "period"))
        if int(quota) > 0:
            yield int(quota) / int(period)


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {k.strip(): v.strip() for k, v in fields.items()}


def _processor() -> str:
    fields = _cpuinfo()
    parts = [f"{k} {fields[k]}" for k in ("cpu family", "model") if k in fields]
    name = fields.get("model name", platform.processor() or platform.machine())
    return " ".join([name, *parts])


def host_conditions() -> dict[str, Any]:
    """Clock, governor and load of the host, as far as they can be read."""
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
    if mhz := _cpuinfo().get("cpu MHz"):
        found["clock_mhz"] = round(float(mhz))
    try:
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        found["governor"] = path.read_text().strip()
    except OSError:
        pass
    return found
