"""A thread that does jobs one after the other, the urgent ones first."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any


class Worker:
    """One thread and its queue.

    Args:
        name: the thread's name.
        context: a function that gives a context manager, within which the thread works: what is
            chosen per thread, such as a device.
        newest_first: bool. Of jobs of equal urgency, do the latest first instead of the earliest.
    """

    def __init__(
        self,
        name: str,
        context: Callable = contextlib.nullcontext,
        newest_first: bool = False,
    ):
        self._jobs: list[tuple[int, int, Future, Callable]] = []
        self._numbers = itertools.count(step=-1 if newest_first else 1)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(context,), name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], urgency: int = 0) -> Future:
        """Queues a job, to be done before those of less urgency. Returns its future."""
        future: Future = Future()
        with self._changed:
            if self._closed:
                future.set_exception(CancelledError())
                return future
            heapq.heappush(self._jobs, (-urgency, next(self._numbers), future, job))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread after its present job; jobs that wait are cancelled."""
        with self._changed:
            self._closed = True
            for *_, future, _ in self._jobs:
                future.cancel()
            self._jobs.clear()
            self._changed.notify()

    def _run(self, context: Callable) -> None:
        with context():
            while True:
                with self._changed:
                    while not self._jobs and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    *_, future, job = heapq.heappop(self._jobs)
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(job())
                    except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                        future.set_exception(error)


def pass_on(source: Future, target: Future, change: Callable[[Any], Any] = lambda x: x) -> Future:
    """Gives `target` what `change` makes of the result of `source`, once it is there, or its error.

    Returns `target`.
    """

    def finish(done: Future):
        try:
            target.set_result(change(done.result()))
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            target.set_exception(error)

    source.add_done_callback(finish)
    return target
