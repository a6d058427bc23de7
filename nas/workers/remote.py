"""A pool of Ray actors: one call each at a time, so that a death is one call's alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Self

from nas.errors import RunError
from nas.workers.backlog import Backlog, Done, Task, one_line
from nas.workers.cluster import Cluster

TICK_S = 0.2  # how often time limits are looked at while nothing happens
STARTS = 3  # attempts per worker in a row without a single success
Outcome = tuple[Any, str]  # a value, or an error
DEATH = "its worker died: killed, crashed or out of memory"
LOSS = "its worker was lost with its machine"


class Worker:
    """What runs in an actor."""

    def start(self, make: Callable[..., Any], *args: Any) -> None:
        """Make the function that does the tasks; `make` and `args` come from the pool."""
        self._work = make(*args)

    def run(self, payloads: Sequence[Any], call_s: float) -> tuple[list[Outcome], float]:
        """Outcomes and the seconds they took, of as many payloads as fit about twice the time.

        A raising payload is an outcome; the ones not begun go back to the pool.
        """
        outcomes: list[Outcome] = []
        begin = time.perf_counter()
        for payload in payloads:
            try:
                outcomes.append((self._work(payload), ""))
            except Exception as error:
                outcomes.append((None, one_line(error)))
            if time.perf_counter() - begin > 2 * call_s:
                break
        return outcomes, time.perf_counter() - begin


@dataclass
class Call:
    """What an actor is doing; no tasks: it starts."""

    actor: Any
    tasks: list[Task] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)


class RayPool:
    """Tasks on Ray actors; calls report their end to one queue, so waiting costs the same for any
    number of workers."""

    def __init__(
        self,
        cluster: Cluster,
        make: Callable[..., Any],
        args: Sequence[Any],
        *,
        gpus: float,
        timeout_s: float,
        start_s: float,
    ) -> None:
        self._ray, self._workers, self._own = cluster
        self._timeout_s, self._start_s = timeout_s, start_s
        self._backlog = Backlog()
        self._ended: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        self._idle: list[Any] = []
        self._starting: dict[int, Call] = {}
        self._running: dict[int, Call] = {}  # the oldest first
        self._calls = self._misstarts = 0
        self._cause = "none has started"
        self._closed = False
        self._actor = self._ray.remote(Worker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        try:
            self._cargo = [self._ray.put(one) for one in (make, *args)]
            for _ in range(self._workers):
                self._start()
        except BaseException:
            self.close()
            raise

    def submit(self, key: str, payload: Any) -> None:
        """Queue a task and return at once; `key` comes back with its value."""
        if self._closed:
            raise ValueError("the pool is closed")
        self._backlog.add(key, payload)
        self._deal()

    def next(self) -> Done:
        """Wait for any task; `LookupError` if none is left, `RunError` without workers."""
        done = self._backlog.done
        if not (done or self._backlog or self._running):
            raise LookupError("every task that was submitted has been returned")
        while True:
            if ended := self._heard(wait=not done):
                self._settle(*ended)
            else:  # all that has ended is heard first: no worker waits for the caller's return
                self._stop_overdue()
                if done:
                    return done.popleft()
                self._require_workers()
            self._deal()

    def close(self) -> None:
        """Kill the actors, and end Ray if this pool started it; more than once is fine."""
        if self._closed:
            return
        self._closed = True
        calls = [*self._starting.values(), *self._running.values()]
        for actor in [*self._idle, *(call.actor for call in calls)]:
            self._kill(actor)
        self._cargo = []
        if self._own:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        actor = self._actor.remote()
        self._watch(actor.start.remote(*self._cargo), self._starting, Call(actor))

    def _watch(self, reference: Any, calls: dict[int, Call], call: Call) -> None:
        self._calls += 1
        calls[self._calls] = call
        reference.future().add_done_callback(partial(self._end, self._calls))

    def _end(self, number: int, future: Future[Any]) -> None:  # in a thread of Ray's
        self._ended.put((number, future))

    def _heard(self, wait: bool) -> tuple[int, Future[Any]] | None:
        with suppress(Empty):
            return self._ended.get(wait, TICK_S)
        return None

    def _deal(self) -> None:
        """Give every idle worker a call."""
        while self._idle and self._backlog:
            tasks = self._backlog.take(self._workers)
            call_s = self._backlog.call_s(self._workers)
            actor = self._idle[-1]
            try:
                reference = actor.run.remote([task.payload for task in tasks], call_s)
            except Exception as error:  # a payload that cannot travel
                self._backlog.fail(tasks, one_line(error))
                continue
            self._idle.pop()
            self._watch(reference, self._running, Call(actor, tasks))

    def _settle(self, number: int, future: Future[Any]) -> None:
        """Take note of how a call ended; of one that was given up, nothing."""
        error = future.exception()
        if call := self._starting.pop(number, None):
            self._started(call, error)
        elif call := self._running.pop(number, None):
            if error is None:
                self._returned(call, *future.result())
            elif isinstance(error, self._ray.exceptions.RayTaskError):  # a value cannot travel
                self._backlog.fail(call.tasks, cause_of(error))
            else:
                own = not self._machine_failed(error)
                self._backlog.fail(call.tasks, DEATH if own else LOSS, own)
                self._replace(call.actor)
                return
            self._idle.append(call.actor)

    def _started(self, call: Call, error: BaseException | None) -> None:
        if error is None:
            self._misstarts = 0
            self._idle.append(call.actor)
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            self._cause = cause_of(error)  # it would raise again
            self._kill(call.actor)
        else:
            self._cause = one_line(error)
            self._misstarts += 1
            if self._misstarts < STARTS * self._workers:
                self._replace(call.actor)

    def _returned(self, call: Call, outcomes: list[Outcome], seconds: float) -> None:
        self._backlog.took(len(outcomes), seconds)
        self._backlog.put_back(call.tasks[len(outcomes) :])
        for task, (value, error) in zip(call.tasks, outcomes):
            if error:
                self._backlog.fail([task], error)
            else:
                self._backlog.finish(task, value)

    def _machine_failed(self, error: BaseException) -> bool:
        """Whether a worker ended by no fault of its task, as far as Ray can tell.

        A machine out of memory is one: Ray ends its youngest worker, not its largest.
        """
        died = isinstance(error, self._ray.exceptions.ActorDiedError)
        return not died or "node has died" in str(error)

    def _stop_overdue(self) -> None:
        limit = time.monotonic() - self._timeout_s
        while self._running:
            number, call = next(iter(self._running.items()))
            if call.since > limit:
                return
            del self._running[number]
            self._backlog.fail(call.tasks, f"no value within {self._timeout_s:g} s")
            self._replace(call.actor)

    def _replace(self, actor: Any) -> None:
        self._kill(actor)
        self._start()

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # it may be dead, and so may Ray
            self._ray.kill(actor)

    def _require_workers(self) -> None:
        """Raise `RunError` when no worker is left and none is to come."""
        if self._idle or self._running:
            return
        if not self._starting:
            fix = "every machine needs the packages and the memory that a worker needs"
            raise RunError(f"no worker is left: {self._cause}", fix)
        waited = time.monotonic() - max(call.since for call in self._starting.values())
        if waited > self._start_s:
            fix = "ask for fewer or smaller workers, or see `ray status` for what is missing"
            waiting = f"{len(self._starting)} have been starting for {self._start_s:g} s"
            raise RunError(f"no worker is left, and {waiting}", fix)


def cause_of(error: Any) -> str:
    """What a call raised, without Ray's wrapping."""
    return one_line(getattr(error, "cause", None) or error)
