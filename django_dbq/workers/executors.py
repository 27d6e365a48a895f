"""Where tasks run: one after the other in the worker's main thread."""

import datetime
import logging
from collections.abc import Callable

from django.db import DatabaseError, connections, transaction

from .. import runner
from ..models import Job
from ..storage import Execution
from .inflight import InFlight

logger = logging.getLogger("django_dbq")


class MainThreadExecutor:
    """Runs what is in flight until nothing is left to start.

    Args:
        using: the database alias of the queue.
        clock: tells the time (UTC).
        ended: called after each task.
        stranded: called with a job whose step the settings no longer know.
    """

    def __init__(
        self,
        inflight: InFlight,
        using: str,
        clock: Callable[[], datetime.datetime],
        ended: Callable[[], None],
        stranded: Callable[[Job], None],
    ) -> None:
        self.inflight = inflight
        self.using = using
        self.clock = clock
        self.ended = ended
        self.stranded = stranded

    def run(self) -> int:
        """Run jobs until none is left to start; returns how many were run."""
        count = 0
        nested = connections[self.using].in_atomic_block  # a test's transaction, say
        while (job := self.inflight.start()) is not None:
            try:
                execution = self._run_nested(job) if nested else runner.run(job, self.clock)
            except LookupError:
                logger.warning("Handing back a job that this worker does not know: job=%s", job.pk)
                self.inflight.drop(job)
                self.stranded(job)
                continue
            if not nested:
                self._close_open_transactions(execution)
            self.inflight.end(execution)
            count += 1
            self.ended()
        return count

    def _run_nested(self, job: Job) -> Execution:
        """Run a job within the caller's transaction, which stays usable when a query of the task fails."""
        with transaction.atomic(using=self.using):
            execution = runner.run(job, self.clock)
            if isinstance(execution.error, DatabaseError):
                transaction.set_rollback(True, using=self.using)
        return execution

    def _close_open_transactions(self, execution: Execution) -> None:
        """Roll back what a task left open: outcomes written inside it would never be committed."""
        for connection in connections.all(initialized_only=True):
            if connection.connection is None or (
                connection.autocommit and not connection.in_atomic_block
            ):
                continue
            logger.error(
                "Task left a transaction open, rolled back: job=%s task=%s database=%s",
                execution.job.pk,
                execution.step.path,
                connection.alias,
            )
            connection.in_atomic_block = (
                False  # or Django keeps the closed connection until the block's end
            )
            connection.close()
