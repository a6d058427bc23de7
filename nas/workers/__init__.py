"""Tasks done by workers: in this process, on the cores of this machine, or on a Ray cluster.

A pool knows nothing of what its tasks are. Whatever happens to a worker (killed, hanging, out of
memory, its machine lost), its task is done again by another one; a task that fails twice is set
aside and reported, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from nas.errors import UsageError
from nas.workers.backlog import Backlog, Done, one_line

__all__ = ["Done", "InProcess", "Pool", "Work", "open_pool"]

Work = Callable[[Any], Any]


class Pool(Protocol):
    """Workers that take payloads and give values back, in any order."""

    def submit(self, key: str, payload: Any) -> None:
        """Queue a task and return at once; `key` comes back with its value."""

    def next(self) -> Done:
        """Wait for any submitted task; `LookupError` if all of them have been returned.

        Raises `RunError` when no worker is left.
        """

    def close(self) -> None:
        """End the workers and drop what is not done; more than once is fine."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_pool(
    make: Callable[..., Work],
    args: Sequence[Any] = (),
    *,
    workers: int = 0,
    address: str | None = None,
    gpus: float = 0.0,
    timeout_s: float = 600,
    start_s: float = 300,
) -> Pool:
    """A pool whose every worker calls `make(*args)` once and the function it returns per payload.

    Neither workers nor address: tasks are done in this process, where `timeout_s` cannot be
    enforced. `workers`: that many processes of one core and one thread each, by a local Ray.
    `address` (`host:port` or `auto`): on a running Ray cluster, one worker for each core, or for
    each share of a GPU, unless `workers` says how many. `gpus` is each worker's share.

    `make` and `args` travel once and are kept in Ray's object store: numpy arrays are mapped, not
    copied, and read-only; other objects (`bytes`, tensors) are copied by each worker.
    A task that takes longer than `timeout_s` has failed and its worker is replaced; `start_s` is
    how long the pool may be without any worker.
    """
    if workers < 0:
        raise UsageError(f"workers must be 0 or more, not {workers}", "0 works in this process")
    if not workers and address is None:
        return InProcess(make(*args))
    from nas.workers.cluster import join
    from nas.workers.remote import RayPool

    cluster = join(address, workers, gpus, (make, *args))
    return RayPool(cluster, make, args, gpus=gpus, timeout_s=timeout_s, start_s=start_s)


class InProcess:
    """A pool without processes: a task is done when its value is asked for."""

    def __init__(self, work: Work) -> None:
        self._work, self._backlog = work, Backlog()

    def submit(self, key: str, payload: Any) -> None:
        """Queue a task; `key` comes back with its value."""
        self._backlog.add(key, payload)

    def next(self) -> Done:
        """Do a task and return what became of it; `LookupError` if none is left."""
        while not self._backlog.done:
            [task] = self._backlog.take(workers=1)
            try:
                value = self._work(task.payload)
            except Exception as error:
                self._backlog.fail([task], one_line(error))
            else:
                self._backlog.finish(task, value)
        return self._backlog.done.popleft()

    def close(self) -> None:
        """Drop the tasks that are not done."""
        self._backlog = Backlog()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
