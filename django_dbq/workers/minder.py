"""A thread beside the tasks, with a database connection of its own: it keeps a long task from holding up anything else.

While a task runs it writes the outcomes of those before, hands back the jobs that would have to wait behind it, and on
shutdown marks the job as STOPPING.
"""

import logging
import threading
from typing import Protocol
from uuid import UUID

from django.db import connections

from ..wakeups import Bell
from .inflight import InFlight

logger = logging.getLogger("django_dbq")

LOOK_EVERY = 0.025  # seconds, while something is in flight
WRITE_AFTER = 0.02  # seconds that an outcome may wait to be written
AFTER_ERROR = 1.0  # seconds until the next look
HAND_BACK_AFTER = 0.25  # seconds that a claimed job may wait to be started


class Minded(Protocol):
    """What the minder may ask of its worker; called in the minder's thread."""

    inflight: InFlight
    stopping: bool

    def write_outcomes(self) -> None: ...
    def hand_back(self) -> None: ...
    def mark_stopping(self) -> None: ...


class Minder:
    def __init__(self, worker: Minded) -> None:
        self.worker = worker
        self.bell = Bell()
        self.active = False  # set by the worker while jobs are in flight
        self._ended = False
        self._marked: set[UUID] = set()
        self._thread = threading.Thread(target=self._run, name="dbq-minder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """End the thread and wait for it; what it was writing is written then."""
        self._ended = True
        self.bell.ring()
        self._thread.join()
        self.bell.close()

    def _run(self) -> None:
        try:
            while not self._ended:
                self.bell.wait(LOOK_EVERY if self.active else None)
                try:
                    self._stop()
                    self._write()
                    self._make_room()
                except Exception:
                    # Out of reach or busy: nothing is lost, the next look tries again.
                    logger.warning("The minder could not write", exc_info=True)
                    connections.close_all()
                    self.bell.wait(AFTER_ERROR)
        finally:
            connections.close_all()

    def _stop(self) -> None:
        if self.worker.stopping:
            self.worker.hand_back()
            running = {job.pk for job in self.worker.inflight.running()}
            if running - self._marked:
                self.worker.mark_stopping()
                self._marked |= running

    def _write(self) -> None:
        if self.worker.inflight.unwritten_for() > WRITE_AFTER:
            self.worker.write_outcomes()

    def _make_room(self) -> None:
        if self.worker.inflight.waiting_for() > HAND_BACK_AFTER:
            self.worker.hand_back()
