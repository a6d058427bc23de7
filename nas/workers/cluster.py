"""Ray itself: found, started here, or joined, with a limit on every wait."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from nas.errors import DeviceError, MissingPackageError, RunError, UsageError, VitnasError
from nas.workers.backlog import one_line

SOCKET_S = 5
JOIN_S = 25  # Ray itself goes on for minutes
STORE_BYTES = 512 << 20  # beside the arguments; pages that nobody writes cost nothing
# What the processes of a Ray of our own inherit: one thread for products of matrices, and that they
# listen on the loopback. (Ray does so by default on Windows and macOS; on Linux it does not.)
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_INHERITED = {_LOOPBACK: "0"} | dict.fromkeys(_THREADS, "1")
_AUTH = "RAY_AUTH_MODE"
# The client's greeting of HTTP/2 with empty settings: a gRPC server answers with its settings.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS = 4


class Cluster(NamedTuple):
    """A Ray that is connected: how many workers it is asked for, and whether it ends with them."""

    ray: Any
    workers: int
    own: bool


def join(address: str | None, workers: int, gpus: float, cargo: Sequence[Any]) -> Cluster:
    """Connect to the Ray at an address, or start one here, big enough for the cargo.

    A program that has connected to Ray itself keeps that connection. Raises `DeviceError` within
    half a minute if nothing, or something else than Ray, answers at the address.
    """
    ray = import_ray()
    try:
        size(ray, cargo)
    except Exception as error:
        raise UsageError(
            f"what workers need cannot be sent to them: {one_line(error)}",
            "make locks, files and connections inside the function, or work without workers",
        ) from error
    own = not ray.is_initialized()
    if own and address is None:
        start(ray, workers, cargo)
        if (count := places(ray.cluster_resources(), gpus)) < workers:
            ray.shutdown()
            fix = f"--workers {count}, or a smaller share of a GPU for each"
            raise RunError(f"this machine has GPUs for {count} workers, not {workers}", fix)
    elif own:
        connect(ray, str(address))
    return Cluster(ray, workers or places(ray.cluster_resources(), gpus), own)


def import_ray() -> Any:
    """Ray, told before its import to print nothing of what workers say or die of.

    It prints to standard output, which belongs to the results.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    try:
        import ray
    except ImportError:
        raise MissingPackageError("workers need the package ray", "pip install ray") from None
    return ray


def start(ray: Any, workers: int, cargo: Sequence[Any]) -> None:
    """A Ray of this process, with as many cores as workers, whatever the machine has.

    Nobody else can use it: it listens on the loopback only, and asks for a token that only this
    user can read. Its processes run on one thread each.
    """
    try:
        with inherited(_INHERITED), private(ray):
            ray.init(
                address="local",
                num_cpus=workers,
                object_store_memory=size(ray, cargo) + STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except Exception as error:
        ray.shutdown()
        raise RunError(
            f"Ray does not start on this machine: {one_line(error)}",
            "--workers 0 works without it",
        ) from None


@contextmanager
def private(ray: Any) -> Iterator[None]:
    """A Ray that is started meanwhile is for this user on this machine only."""
    if os.environ.get(_AUTH) != "token":
        os.environ.pop(_AUTH, None)  # Ray then makes a token
    constants = ray._private.ray_constants  # these have read the environment when Ray was imported
    cluster, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    umask = os.umask(0o077)  # for the file of the token, among others
    try:
        yield
    finally:
        os.umask(umask)
        constants.ENABLE_RAY_CLUSTER = cluster


@contextmanager
def inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started meanwhile inherit these variables."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def size(ray: Any, cargo: Sequence[Any]) -> int:
    """Bytes of objects in the object store, measured without a copy of arrays."""
    buffers: list[Any] = []
    rest = ray.cloudpickle.dumps(cargo, protocol=5, buffer_callback=buffers.append)
    total: int = len(rest) + sum(buffer.raw().nbytes for buffer in buffers)
    return total


def connect(ray: Any, address: str) -> None:
    """Join a running cluster; what does not answer is found out before Ray waits for it."""
    if address != "auto":
        probe(address)
    failed: list[BaseException] = []

    def init() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except BaseException as error:  # Ray also exits
            failed.append(error)

    thread = threading.Thread(target=init, daemon=True)
    thread.start()
    thread.join(JOIN_S)
    if failed or thread.is_alive():
        cause = one_line(failed[0]) if failed else f"no answer within {JOIN_S} s"
        raise unreachable(
            address,
            cause,
            "that Python and Ray are its own, its token too (RAY_AUTH_MODE, RAY_AUTH_TOKEN),",
        )


def probe(address: str) -> None:
    """Raise `DeviceError` unless a gRPC server answers at `host:port`."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        fix = "`ray start --head` prints it, and `auto` finds the cluster of this machine"
        raise UsageError(f"the address of a Ray cluster is host:port, not {address!r}", fix)
    try:
        with socket.create_connection((host.strip("[]"), int(port)), SOCKET_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(HELLO)
            answer = connection.recv(9)
    except TimeoutError:
        raise unreachable(address, f"no answer within {SOCKET_S} s") from None
    except OSError as error:
        raise unreachable(address, one_line(error)) from None
    if len(answer) < 4 or answer[3] != SETTINGS:
        raise unreachable(address, "something else than Ray answers", "its port, usually 6379,")


def unreachable(address: str, cause: str, what: str = "that it runs (`ray status`)") -> VitnasError:
    """The error of a cluster that cannot be joined, with what to check."""
    fix = f"check {what} and run this on a machine of the cluster, e.g. by `ray job submit`"
    return DeviceError(f"no Ray cluster can be joined at {address}: {cause}", fix)


def places(resources: dict[str, float], gpus: float) -> int:
    """How many workers of one core and so many GPUs a cluster holds."""
    count = int(resources.get("CPU", 0))
    if gpus:
        count = min(count, int(resources.get("GPU", 0) / gpus + 1e-6))
    if not count:
        have = ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        fix = "start more nodes, or say how many workers to wait for by --workers"
        raise RunError(f"the cluster has no place for a worker: {have}", fix)
    return count
