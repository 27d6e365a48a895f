"""A thread with a database connection of its own: it keeps the worker's lease, and takes the jobs of dead workers.

Nothing that tasks do keeps it waiting, but for one that never lets go of Python's interpreter lock.
"""

import datetime
import logging
import threading
from functools import partial
from typing import Protocol

from django.db import connections

from .. import engine
from ..models import Worker as WorkerRow
from ..patience import steadily
from ..wakeups import Bell
from .lease import Lease, now

logger = logging.getLogger("django_dbq")

BEATS = 5  # in the time of one lease
AFTER_ERROR = 1.0  # seconds until the next try
SETTLE = 1.0  # seconds after the start until others are judged
SOON = 0.05  # seconds: a lease that is over is looked at a little later


class Beating(Protocol):
    """What the heart may ask of its worker; called in the heart's thread."""

    row: WorkerRow
    using: str
    lease: Lease

    def clock(self) -> datetime.datetime: ...
    def beat(self) -> bool: ...
    def end_if_orphaned(self) -> None: ...


class Heart:
    def __init__(self, worker: Beating) -> None:
        self.worker = worker
        self._bell = Bell()
        self._ended = False
        self._failed = False
        # After an outage the others may be alive, and only later than we are who have just been started.
        self._patient_until = now() + SETTLE
        self._thread = threading.Thread(target=self._run, name="dbq-heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """End the thread and wait for it."""
        self._ended = True
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    def _run(self) -> None:
        pause = 0.0
        try:
            while not self._ended:
                self._bell.wait(pause)
                try:
                    pause = self._beat() if not self._ended else 0.0
                except Exception:
                    logger.warning("The heartbeat could not be written", exc_info=True)
                    connections.close_all()
                    self._failed = True
                    pause = min(AFTER_ERROR, self.worker.lease.timeout / BEATS)
        finally:
            connections.close_all()

    def _beat(self) -> float:
        """Beat once, look after the others; returns the seconds until the next time."""
        every = self.worker.lease.timeout / BEATS
        self.worker.end_if_orphaned()
        if not steadily(self.worker.beat, self.worker.using):
            return every
        timeout = self.worker.lease.timeout
        if self._failed:
            self._failed, self._patient_until = False, now() + timeout
        # After the database was away, or this process was, the others may just be coming back, like us.
        if (left := max(self._patient_until, self.worker.lease.restored + timeout) - now()) > 0:
            return min(every, left)
        using, time = self.worker.using, self.worker.clock()
        next_over = steadily(partial(engine.rescue, self.worker.row, time, using), using)
        steadily(partial(engine.sweep, time, using), using)
        return every if next_over is None else min(every, next_over + SOON)
