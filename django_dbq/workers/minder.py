"""A thread beside the tasks, with a database connection of its own: it keeps a long task from holding up anything else.

While a task runs it writes the outcomes of those before, hands back the jobs that would have to wait behind it, saves
its progress, and stops it when its time is up. On shutdown it marks what runs as STOPPING.
"""

import datetime
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

from django.db import connections

from .. import engine
from ..models import Worker as WorkerRow
from ..outcomes import ClaimLost, Interrupted, TimedOut
from ..patience import steadily
from ..runner import shorten
from ..storage import Overdue, storage_for
from ..wakeups import Bell
from .inflight import InFlight, Running

T = TypeVar("T")

logger = logging.getLogger("django_dbq")

LOOK_EVERY = 0.025  # seconds, while something is in flight
WRITE_AFTER = 0.02  # seconds that an outcome may wait to be written
AFTER_ERROR = 1.0  # seconds until the next look
HAND_BACK_AFTER = 0.25  # seconds that a claimed job may wait to be started
PROGRESS_EVERY = 1.0  # seconds between two writes of one job's progress
WATCH_EVERY = 2.0  # seconds between two looks whether jobs of long tasks were cancelled


class Minded(Protocol):
    """What the minder may ask of its worker; called in the minder's thread."""

    row: WorkerRow
    using: str
    inflight: InFlight
    stopping: bool
    leave_by: float  # time.monotonic() when running tasks are to be interrupted

    def clock(self) -> datetime.datetime: ...
    def write_outcomes(self) -> None: ...
    def hand_back(self) -> None: ...


class Minder:
    def __init__(self, worker: Minded) -> None:
        self.worker = worker
        self.bell = Bell()
        self.active = False  # set by the worker while jobs are in flight
        self._ended = False
        self._marked: set[UUID] = set()
        self._watched = float("-inf")
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
        storage_for(self.worker.using).be_brief()
        try:
            while not self._ended:
                looking = self.active or self.worker.stopping
                self.bell.wait(LOOK_EVERY if looking else None)
                try:
                    self._look()
                except Exception:
                    # Out of reach or busy: nothing is lost, the next look tries again.
                    logger.warning("The minder could not write", exc_info=True)
                    connections.close_all()
                    self.bell.wait(AFTER_ERROR)
        finally:
            connections.close_all()

    def _look(self) -> None:
        running = self.worker.inflight.running()
        now = time.monotonic()
        self._stop_overdue([one for one in running if (one.deadline or math.inf) <= now])
        if self.worker.stopping:
            self._stop(running, now)
        if self.worker.inflight.unwritten_for() > WRITE_AFTER:
            self.worker.write_outcomes()
        if self.worker.inflight.waiting_for() > HAND_BACK_AFTER:
            self.worker.hand_back()
        if running and now - self._watched >= WATCH_EVERY:
            self._watched = now
            self._stop_cancelled([one for one in running if now - one.began >= WATCH_EVERY])
        for one in running:
            if one.job.progress_unsaved and now - one.progress_written >= PROGRESS_EVERY:
                one.progress_written = now
                self._save_progress(one)

    def _stop_overdue(self, running: Sequence[Running]) -> None:
        """A timeout is recorded before it is enforced: whatever happens then, the history tells of it."""
        overdue = [one for one in running if one.sentence(TimedOut(_over(one)))]
        if not overdue:
            return
        try:
            records = [
                Overdue(one.job.pk, one.job.attempt, one.started, _report(one))
                for one in overdue
                if one.started is not None
            ]
            now = self.worker.clock()
            # Once: what cannot be recorded in a moment must not keep the task running.
            using = self.worker.using
            engine.record_timeouts(self.worker.row.pk, records, now, using, wait=False)
        finally:
            # Also without a database: the outcome itself will tell, once that is back.
            for one in overdue:
                one.deliver()

    def _stop_cancelled(self, running: Sequence[Running]) -> None:
        """Stop tasks whose jobs somebody has cancelled, or given to others."""
        if not running:
            return
        held = engine.still_held([one.job for one in running], self.worker.using)
        for one in running:
            if (one.job.pk, one.job.attempt) not in held and one.sentence(
                ClaimLost("The job was cancelled.")
            ):
                one.deliver()

    def _stop(self, running: Sequence[Running], now: float) -> None:
        self.worker.hand_back()
        for one in running:
            if one.job.pk not in self._marked:
                self._marked.add(one.job.pk)
                worker = self.worker
                self._write(partial(engine.stopping, worker.row, [one.job]))
        if now >= self.worker.leave_by:
            interrupted = Interrupted("The worker has to end now.")
            for one in running:
                if one.sentence(interrupted):
                    one.deliver()

    def _save_progress(self, one: Running) -> None:
        if not self._write(partial(engine.save_progress, one.job)):
            one.job.claim_is_lost = True  # the task hears of it when it tells of its progress again

    def _write(self, function: Callable[[str], T]) -> T:
        return steadily(partial(function, self.worker.using), self.worker.using)


def _over(one: Running) -> str:
    return f"The task has run for longer than its timeout of {one.timeout:g} s."


def _report(one: Running) -> str:
    """The message, and where the task stands, if that can be told."""
    frame = sys._current_frames().get(one.thread or 0)
    stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
    return shorten(f"{stack}{TimedOut.__name__}: {_over(one)}")
