"""What any worker does for all of them between its jobs: let due jobs in, and tell of jobs that nobody can run."""

import datetime
import logging

from .. import engine
from ..storage import Queues
from ..storage.base import PEEK

logger = logging.getLogger("django_dbq")

TELL_EVERY = datetime.timedelta(minutes=1)
MEND_EVERY = datetime.timedelta(minutes=1)


class Housekeeping:
    """
    Args:
        every: seconds between two looks for due jobs while the worker is busy; an idle one wakes in time for each.
    """

    def __init__(self, queues: Queues, every: float, using: str) -> None:
        self.queues = queues
        self.every = datetime.timedelta(seconds=every)
        self.using = using
        self._staged: datetime.datetime | None = None
        self._next_due: datetime.datetime | None = None
        self._mended: datetime.datetime | None = None
        self._told_at: datetime.datetime | None = None
        self._told: set[tuple[str, str]] = set()

    def run(self, now: datetime.datetime, at_once: bool = False) -> int:
        """The duties of every round, when they are due or ``at_once``; returns how many jobs have become ready."""
        # `not 0 <=`: a clock that was set back must not put staging off.
        passed = (
            self._staged is None or not datetime.timedelta(0) <= now - self._staged < self.every
        )
        ahead = self._next_due is None or now < self._next_due
        if ahead and not passed and not at_once:
            return 0
        self._next_due = None
        count = engine.stage_due(now, self.using)
        self._staged = now if count < PEEK else None  # else there is more: look again next round
        if self._mended is None or not datetime.timedelta(0) <= now - self._mended < MEND_EVERY:
            self._mended = now
            count += engine.mend(now, self.using)
        return count

    def idle(self, now: datetime.datetime) -> datetime.datetime | None:
        """The duties of an idle worker; returns when the next future job is due, if there is one."""
        if self._told_at is None or now - self._told_at >= TELL_EVERY or now < self._told_at:
            self._told_at = now
            self._tell_of_stranded(now)
        self._next_due = engine.next_due(self.queues, now, self.using)
        return self._next_due

    def _tell_of_stranded(self, now: datetime.datetime) -> None:
        stranded = engine.stranded(self.queues, now, self.using)
        for (name, path), count in stranded.items():
            if (name, path) not in self._told:
                logger.warning(
                    "Stranded jobs, JOBS does not know their name or step: count=%s name=%s next_task=%s "
                    "(restore the entry, or set next_task to one of its tasks)",
                    count,
                    name,
                    path or "''",
                )
        self._told = set(stranded)
