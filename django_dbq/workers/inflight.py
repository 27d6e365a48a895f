"""What one worker holds: claimed jobs that wait, the ones that run, and outcomes that are not written yet.

Shared by the threads that run tasks, the minder and the heart; whoever takes a job or an outcome out of here owns it.
"""

import contextlib
import datetime
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Protocol
from uuid import UUID

from ..models import Job
from ..storage import Execution


class Lane(Enum):
    """Where a job waits, by what can run it."""

    SYNC = "sync"
    ASYNC = "async"


class Delivery(Protocol):
    """The way to the task of a thread, or of an event loop."""

    def deliver(self, running: "Running") -> None:
        """Make the verdict be raised in the task."""

    def take_back(self, running: "Running") -> None:
        """Undo that, if it has not been raised yet; called in the task's own thread."""


class Running:
    """One job that has been started, and the way to stop its task.

    A *verdict* is an exception that somebody else has passed on the attempt: whatever the task does from then on, that
    is what it came to. `sentence` passes it, `deliver` raises it in the task, as long as the task is open to it.
    """

    # One for all: it is held for a moment, and rarely wanted by two.
    _lock = threading.Lock()

    started: datetime.datetime | None = None
    timeout = 0.0  # seconds, if there is a deadline
    deadline: float | None = None  # of the attempt, by time.monotonic()
    thread: int | None = None  # that runs the task, if it has one to itself
    verdict: BaseException | None = None
    open = False  # the task itself is running, and neither hooks nor our own code
    progress_written = float("-inf")
    delivery: Delivery | None = None

    def __init__(self, job: Job, lane: Lane = Lane.SYNC) -> None:
        self.job = job
        self.lane = lane
        self.began = time.monotonic()

    def enter(self, delivery: Delivery) -> None:
        """The task begins, and can be reached in that way."""
        self.delivery = delivery
        self.open = True

    def leave(self) -> BaseException | None:
        """The task has ended; returns the verdict, if there is one. Nothing is raised after this."""
        self.open = (
            False  # first, and without the lock: a signal's handler looks at it in this very thread
        )
        with self._lock:
            if self.verdict is not None and self.delivery is not None:
                self.delivery.take_back(self)
            return self.verdict

    def sentence(self, verdict: BaseException) -> bool:
        """Pass a verdict; False if the task has ended, or has one already."""
        with self._lock:
            if not self.open or self.verdict is not None:
                return False
            self.verdict = verdict
            return True

    def deliver(self) -> None:
        """Raise the verdict in the task, unless it has ended meanwhile."""
        with self._lock:
            if self.open and self.delivery is not None:
                self.delivery.deliver(self)


class InFlight:
    """
    Args:
        may_start: whether a job may be started now; asked before each.
    """

    def __init__(self, may_start: Callable[[], bool] = lambda: True) -> None:
        self._may_start = may_start
        self._lock = threading.Lock()
        self._loaded = threading.Condition(self._lock)
        self._waiting: dict[Lane, deque[Job]] = {lane: deque() for lane in Lane}
        self._running: dict[int, Running] = {}  # a job may run twice: cancelled, and retried
        self._unwritten: list[Execution] = []
        self._loaded_at = 0.0
        self._unwritten_since = 0.0
        self._moving = 0  # how many are on their way to the database
        self.last_start = float("-inf")  # by time.monotonic()
        self.closed = False  # nothing is started any more

    def load(self, jobs: Iterable[Job], lane: Lane = Lane.SYNC) -> None:
        """Add claimed jobs."""
        with self._lock:
            self._waiting[lane].extend(jobs)
            self._loaded_at = time.monotonic()
            self._loaded.notify_all()

    def start(self, lane: Lane = Lane.SYNC) -> Running | None:
        """The next job to run, or None if there is none (or none may be started any more)."""
        with self._lock:
            return self._start(lane)

    def start_or_wait(self) -> Running | None:
        """The same for a thread that has nothing else to do; None once nothing is started any more."""
        with self._lock:
            while (running := self._start(Lane.SYNC)) is None and not self.closed:
                self._loaded.wait()
            return running

    def _start(self, lane: Lane) -> Running | None:
        if self.closed or not self._waiting[lane] or not self._may_start():
            return None
        running = Running(self._waiting[lane].popleft(), lane)
        self._running[id(running.job)] = running
        self.last_start = time.monotonic()
        return running

    def close(self) -> None:
        """Start nothing any more. Safe in a signal handler: takes no lock."""
        self.closed = True

    def wake(self) -> None:
        """Let threads that wait for a job look again."""
        with self._lock:
            self._loaded.notify_all()

    def end(self, execution: Execution) -> None:
        """A job that was started has ended; its outcome waits to be written."""
        with self._lock:
            self._running.pop(id(execution.job), None)
            if not self._unwritten:
                self._unwritten_since = time.monotonic()
            self._unwritten.append(execution)

    def drop(self, job: Job) -> bool:
        """A job that was started has no outcome; False if somebody else has dropped it already."""
        with self._lock:
            return self._running.pop(id(job), None) is not None

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Within, what is taken out of here is on its way to the database: this is not empty before it has arrived."""
        with self._lock:
            self._moving += 1
        try:
            yield
        finally:
            with self._lock:
                self._moving -= 1

    @property
    def busy(self) -> bool:
        """Whether a task runs, or something is on its way to the database."""
        with self._lock:
            return bool(self._running or self._moving)

    def take_waiting(self) -> list[Job]:
        """All jobs that were not started, for handing back."""
        with self._lock:
            jobs = [job for waiting in self._waiting.values() for job in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
            return jobs

    def take_unwritten(self) -> list[Execution]:
        """All outcomes that are to be written; the caller puts them back if it could not."""
        with self._lock:
            executions, self._unwritten = self._unwritten, []
            return executions

    def put_back(self, executions: list[Execution]) -> None:
        """Outcomes that could not be written."""
        with self._lock:
            self._unwritten[:0] = executions

    def running(self) -> list[Running]:
        with self._lock:
            return list(self._running.values())

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost if the process ended here."""
        with self._lock:
            held = any(self._waiting.values()) or self._running or self._unwritten
            return not (held or self._moving)

    def keys(self) -> set[UUID]:
        """The ids of all jobs that this worker knows to be its own."""
        with self._lock:
            waiting = {job.pk for jobs in self._waiting.values() for job in jobs}
            running = {one.job.pk for one in self._running.values()}
            return waiting | running | {e.job.pk for e in self._unwritten}

    def waiting(self, lane: Lane) -> int:
        """How many jobs wait to be started."""
        return len(self._waiting[lane])

    def running_in(self, lane: Lane) -> int:
        """How many jobs run there."""
        return sum(running.lane is lane for running in self.running())

    def held(self) -> int:
        """How many jobs wait or run."""
        return sum(map(len, self._waiting.values())) + len(self._running)

    def waiting_for(self) -> float:
        """For how many seconds jobs have been waiting here since they were claimed; 0 if none does."""
        return time.monotonic() - self._loaded_at if any(self._waiting.values()) else 0.0

    def unwritten_for(self) -> float:
        """The age in seconds of the oldest outcome that is not written; 0 if there is none."""
        return time.monotonic() - self._unwritten_since if self._unwritten else 0.0
