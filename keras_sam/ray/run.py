"""The driver: gives photographs to workers, and what they return to the results.

Actors and `ray.wait` of Ray's core, because the fate of one photograph must be known: `ray.data`
repeats a batch whose worker died for ever, or gives it up with all of its photographs.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keras_sam import __version__
from keras_sam.ray.cluster import ClusterError, runtime_env
from keras_sam.ray.engine import DEATHS, deadly, reason_of
from keras_sam.ray.results import Results
from keras_sam.ray.sources import Photo
from keras_sam.ray.worker import Worker

STARTS = 3  # of workers in a row that die before they are ready, before the run ends
AHEAD = 2  # photographs that a worker has, so that it never waits for the next
READY_SECONDS = 900  # without any worker, before the run ends
SAID_SECONDS = 60  # without any worker, before this is said


@dataclasses.dataclass
class Plan:
    """What workers are and how many.

    Args:
        options: dict. Arguments of `engine.open_segmenter`.
        parameters: dict. The mask generator's.
        workers: optional int. Defaults to as many as the cluster has room for.
        processors: int. Of each worker, which takes as many threads.
        accelerators: float. GPUs of each worker, or a part of one.
    """

    options: dict[str, Any]
    parameters: dict[str, Any]
    workers: int | None = None
    processors: int = 1
    accelerators: float = 0.0


@dataclasses.dataclass(eq=False)
class _Hand:
    """A worker, and the photographs that it has, in their order."""

    actor: Any
    ready: bool = False
    photos: dict[Any, Photo] = dataclasses.field(default_factory=dict)  # by what will be returned


class Run:
    """Segments photographs with the workers of a cluster that is connected.

    Args:
        ray: the package.
        plan: a `Plan`.
        results: the `Results`, started.
        said: function of a line of text, for what happens to workers.
        advanced: function without arguments, called after each photograph.
    """

    def __init__(
        self,
        ray: Any,
        plan: Plan,
        results: Results,
        said: Callable[[str], Any] = print,
        advanced: Callable[[], Any] = int,
    ):
        self.segmented = self.skipped = self.failed = 0
        self._ray, self._plan, self._results = ray, plan, results
        self._say, self._advanced = said, advanced
        self._hands: set[_Hand] = set()
        self._owners: dict[Any, _Hand] = {}
        self._suspects: deque[Photo] = deque()  # with which a worker has died
        self._deaths: dict[str, int] = {}  # of those
        self._failed_starts = 0
        self._wanted = plan.workers or self._room()
        self._class = ray.remote(Worker).options(
            num_cpus=plan.processors,
            num_gpus=plan.accelerators,
            max_restarts=0,
            max_task_retries=0,
            runtime_env=runtime_env(
                max(1, int(plan.processors)), plan.options.get("backend"), plan.accelerators
            ),
        )

    @property
    def ready(self) -> int:
        """How many workers have their model."""
        return sum(hand.ready for hand in self._hands)

    def segment(self, photos: Iterable[Photo]) -> None:
        """Segments what is not done; every photograph ends in the results, or in what failed.

        Raises:
            ClusterError: if workers cannot start, or have another version of this package.
            ValueError: if there is no such model, or a parameter is out of range.
        """
        todo = self._todo(photos)
        waiting: deque[Photo] = deque()
        self._last_ready, self._has_said = time.monotonic(), False
        try:
            while self._look_ahead(todo, waiting) or self._suspects or self._at_work():
                self._start(len(waiting) + len(self._suspects))
                self._give(waiting)
                done, _ = self._ray.wait(list(self._owners), timeout=5.0)
                for returned in done:
                    if returned in self._owners:  # not of a worker that has died since
                        self._take(returned)
                self._results.flush_if_late()
                self._check_that_some_are_ready()
        finally:
            for hand in self._hands:
                self._ray.kill(hand.actor)

    def _check_that_some_are_ready(self):
        """Raises after a long time without any worker, as where the machines for them are lost."""
        if self.ready:
            self._last_ready, self._has_said = time.monotonic(), False
            return
        seconds = time.monotonic() - self._last_ready
        if seconds > READY_SECONDS:
            raise ClusterError(self._no_room())
        if seconds > SAID_SECONDS and not self._has_said:
            self._has_said = True
            self._say(f"still waiting for a worker: {self._no_room()}")

    def _todo(self, photos) -> Iterator[Photo]:
        for photo in photos:
            if not self._results.is_new(photo):
                continue
            known = self._results.find(photo)
            if known is None:
                yield photo
            elif known[1]:
                self._skip()
            else:
                yield dataclasses.replace(photo, known=known[0])

    def _at_work(self):
        return any(hand.photos for hand in self._hands)

    def _look_ahead(self, todo, waiting):
        """Finds as many photographs as workers have room for, and returns how many there are."""
        free = sum(max(0, AHEAD - len(hand.photos)) for hand in self._hands if hand.ready)
        waiting.extend(itertools.islice(todo, max(0, max(free, self._wanted) - len(waiting))))
        return len(waiting)

    def _start(self, needed):
        """Starts workers, no more than there is work for."""
        starting = [hand for hand in self._hands if not hand.ready]
        while len(self._hands) < self._wanted and len(starting) < needed:
            try:
                hand = _Hand(self._class.remote(self._plan.options, self._plan.parameters))
            except ModuleNotFoundError as error:  # through Ray's client, which asks the cluster
                raise self._fault(error) from error
            starting.append(hand)
            self._hands.add(hand)
            self._owners[hand.actor.version.remote()] = hand

    def _give(self, waiting):
        """Gives each worker what it has room for."""
        for hand in self._hands:
            if hand.ready and not hand.photos and self._suspects:
                # Alone: should the worker die, it is known with which photograph.
                self._hand_over(hand, self._suspects.popleft())
                continue
            alone = any(photo.path in self._deaths for photo in hand.photos.values())
            ahead = 1 if self._suspects else AHEAD  # a worker must come to rest for a suspect
            while waiting and hand.ready and not alone and len(hand.photos) < ahead:
                self._hand_over(hand, waiting.popleft())

    def _hand_over(self, hand, photo):
        returned = hand.actor.segment.remote(photo)
        # Their bytes are with the worker, and are kept for the case that it dies.
        hand.photos[returned] = photo
        self._owners[returned] = hand

    def _take(self, returned):
        errors = self._ray.exceptions
        hand = self._owners.pop(returned)
        photo = hand.photos.get(returned)
        try:
            value = self._ray.get(returned)
        except errors.RayTaskError as error:  # raised by the worker, which lives
            if photo is None:
                raise self._fault(error) from error
            hand.photos.pop(returned)
            self._fail(photo, reason_of(error.cause))
        except errors.RayError as error:  # the worker or its machine is gone
            self._bury(hand, error)
        else:
            if photo is not None:
                hand.photos.pop(returned)
                self._enter(photo, value)
            elif not hand.ready:
                self._welcome(hand, value)

    def _welcome(self, hand, value):
        """A worker has told its version, or has loaded its model, for which it returns None."""
        if value is None:
            hand.ready, self._failed_starts = True, 0
        elif value != __version__:
            raise ClusterError(
                f"the workers have keras_sam {value}, and this is {__version__}: install the same "
                "version on every machine of the cluster"
            )
        else:
            self._owners[hand.actor.load.remote()] = hand

    def _enter(self, photo, row):
        if row.get("unchanged"):
            self._results.restamp(photo)
            self._skip()
        elif row["error"] is not None:
            self._fail(photo, row["error"], row["sha256"])
        else:
            self._deaths.pop(photo.path, None)
            self._results.add(photo, row)
            self.segmented += 1
            self._advanced()

    def _skip(self):
        self.skipped += 1
        self._advanced()

    def _fail(self, photo, reason, sha256=None):
        self._deaths.pop(photo.path, None)
        self._results.fail(photo, reason, sha256)
        self.failed += 1
        self._advanced()

    def _bury(self, hand, error):
        """A worker has died: another takes its photographs, one at a time."""
        self._hands.discard(hand)
        self._owners = {ref: owner for ref, owner in self._owners.items() if owner is not hand}
        self._ray.kill(hand.actor)  # where only the way to it is gone
        if not hand.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS or "ModuleNotFoundError" in str(error):
                raise self._fault(error) from error
            return
        for photo in hand.photos.values():
            deaths = self._deaths[photo.path] = self._deaths.get(photo.path, 0) + 1
            if deaths >= DEATHS:
                self._fail(photo, deadly(deaths))
            else:
                self._suspects.append(photo)
        self._say(f"a worker died; its photographs are tried again ({len(hand.photos)})")

    def _fault(self, error):
        """Why no worker can start, as this process would say it."""
        if "No module named 'keras_sam" in str(error):
            return ClusterError(
                f"the workers cannot import keras_sam {__version__}: install this version on every "
                "machine of the cluster"
            )
        cause = getattr(error, "cause", None)
        if isinstance(cause, (ValueError, OSError)):
            return ValueError(reason_of(cause))
        words = [line for line in str(cause or error).splitlines() if line.strip()]
        return ClusterError(f"the workers do not start: {words[-1].strip() if words else error}")

    def _room(self):
        """How many workers the cluster has room for."""
        has = self._ray.cluster_resources()
        room = int(has.get("CPU", 0) // self._plan.processors) if self._plan.processors else 1
        if self._plan.accelerators:
            room = min(room, int(has.get("GPU", 0) / self._plan.accelerators))
        if room < 1:
            raise ClusterError(self._no_room())
        return room

    def _no_room(self):
        has = self._ray.cluster_resources()
        return (
            f"the cluster has {has.get('CPU', 0):g} processors and {has.get('GPU', 0):g} GPUs, and "
            f"no worker of {self._plan.processors} and {self._plan.accelerators:g} has come up"
        )
