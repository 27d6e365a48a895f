"""What one worker holds: claimed jobs that wait, the ones that run, and outcomes that are not written yet.

Shared by the thread that runs tasks and the minder; whoever takes a job or an outcome out of here owns it.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable

from ..models import Job
from ..storage import Execution


class InFlight:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running: dict[object, Job] = {}
        self._unwritten: list[Execution] = []
        self._loaded_at = 0.0
        self._unwritten_since = 0.0
        self.closed = False  # nothing is started any more

    def load(self, jobs: Iterable[Job]) -> None:
        """Add claimed jobs."""
        with self._lock:
            self._waiting.extend(jobs)
            self._loaded_at = time.monotonic()

    def start(self) -> Job | None:
        """The next job to run, or None if there is none (or none may be started any more)."""
        with self._lock:
            if self.closed or not self._waiting:
                return None
            job = self._waiting.popleft()
            self._running[job.pk] = job
            return job

    def end(self, execution: Execution) -> None:
        """A job that was started has ended; its outcome waits to be written."""
        with self._lock:
            self._running.pop(execution.job.pk, None)
            if not self._unwritten:
                self._unwritten_since = time.monotonic()
            self._unwritten.append(execution)

    def drop(self, job: Job) -> None:
        """A job that was started turned out not to be runnable; the caller hands it back."""
        with self._lock:
            self._running.pop(job.pk, None)

    def take_waiting(self) -> list[Job]:
        """All jobs that were not started, for handing back."""
        with self._lock:
            jobs = list(self._waiting)
            self._waiting.clear()
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

    def running(self) -> list[Job]:
        with self._lock:
            return list(self._running.values())

    @property
    def empty(self) -> bool:
        """Whether nothing would be lost if the process ended here."""
        return not (self._waiting or self._running or self._unwritten)

    def waiting_for(self) -> float:
        """For how many seconds jobs have been waiting here since they were claimed; 0 if none does."""
        return time.monotonic() - self._loaded_at if self._waiting else 0.0

    def unwritten_for(self) -> float:
        """The age in seconds of the oldest outcome that is not written; 0 if there is none."""
        return time.monotonic() - self._unwritten_since if self._unwritten else 0.0
