"""One worker process: a loop that claims jobs, runs them and writes what they came to."""

import datetime
import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from django.db import DatabaseError, InterfaceError, connections, reset_queries
from django.utils import timezone

from .. import conf, engine
from ..models import Job
from ..models import Worker as WorkerRow
from ..storage import Position, Queues, storage_for
from ..wakeups import LOOK_AGAIN, Wakeup
from .executors import MainThreadExecutor
from .housekeeping import Housekeeping
from .inflight import InFlight
from .minder import Minder

logger = logging.getLogger("django_dbq")

BATCH_SECONDS = 0.05  # of work that a batch should hold
BATCH_MOST = 500  # jobs: beyond, statements gain nothing more
BATCH_GROWTH = 4  # at most so many times the batch before, so that one quick job does not claim hundreds of slow ones
# A claim that takes longer than so many seconds, and so many more for each job, has had to pass dead entries. The next
# ones then go on from its position, and only after so many times as long one starts at the head of the backlog again,
# where more urgent jobs may have come in: passing dead entries takes a twentieth of the time at most.
CLAIM_SECONDS = (0.01, 0.00003)
HEAD_SHARE = 20
WRITE_AFTER = 0.01  # seconds that an outcome may wait while further quick tasks run
LISTENING_TICK = 5.0  # seconds between polls while notifications are heard
RECONNECT = (
    0.5,
    30.0,
)  # seconds to wait for a database that is away, doubled up to the second number


class Worker:
    """
    Args:
        queues: the queues to serve.
        tick: seconds between polls when nothing wakes the worker.
        rate_limit: least number of seconds between the starts of two tasks; 0 for none.
        max_jobs: end after so many tasks were run; None for no limit.
        once: end after one pass over the jobs that are ready at its start, one step of each.
        until_done: end when nothing is ready.
        label: a name for people; ``{pid}`` is replaced by the process id.
        using: the database alias.
        progress: called with the number of tasks run so far, after each batch.
    """

    def __init__(
        self,
        queues: Queues,
        *,
        tick: float = 1.0,
        rate_limit: float = 0.0,
        max_jobs: int | None = None,
        once: bool = False,
        until_done: bool = False,
        label: str = "",
        using: str = "default",
        clock: Callable[[], datetime.datetime] = timezone.now,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.queues = queues
        self.tick = tick
        self.rate_limit = rate_limit
        self.max_jobs = max_jobs
        self.ends = once or until_done
        self.using = using
        self.clock = clock
        self.progress = progress
        self.stopping = False
        self.done = 0  # tasks run so far
        hostname, pid = socket.gethostname(), os.getpid()
        self.row = WorkerRow(
            label=(label.replace("{pid}", str(pid)) or f"{hostname}:{pid}")[:255],
            hostname=hostname,
            pid=pid,
            queues=str(queues)[:1000],
            started=clock(),
        )
        self.pass_began = self.row.started if once else None
        self.inflight = InFlight()
        self.housekeeping = Housekeeping(queues, tick, using)
        self.executor = MainThreadExecutor(
            self.inflight, using, clock, self._task_ended, self._hand_back_one
        )
        self.minder: Minder | None = None
        self.wakeup = self._wakeup()
        self._batch = 1
        self._position, self._head_due = Position(), 0.0
        self._last_start = float("-inf")
        self._wrote_for = 0.0  # seconds, within the current batch
        self._look_again = False
        self._writing = threading.Lock()

    # -- the loop --

    def run(self) -> None:
        """Work until `stop` is called (or, with once, until_done or max_jobs, until that is fulfilled).

        Raises:
            DatabaseError: the database is out of reach at the start or, for a worker that ends by itself, later. A
                long-running worker waits for it instead.
        """
        engine.start_worker(self.row, self.using)
        logger.info("Worker started: worker=%s queues=%s", self.row, self.queues)
        if self._can_be_minded():
            self.minder = Minder(self)
            self.minder.start()
        patience = RECONNECT[0]
        try:
            while not self.stopping:
                try:
                    pause = self.step(self.clock())
                    patience = RECONNECT[0]
                except (DatabaseError, InterfaceError):
                    if self.ends:
                        raise
                    logger.exception(
                        "The database is out of reach, trying again in %.1f s", patience
                    )
                    connections.close_all()
                    pause, patience = patience, min(2 * patience, RECONNECT[1])
                if pause and not self.stopping and self.wakeup.wait(pause):
                    self._look_again = True
        finally:
            self._end()

    def step(self, now: datetime.datetime) -> float:
        """One round: housekeeping, claim, run, write. Returns the seconds to wait before the next; 0 for none."""
        self.write_outcomes()  # of a round that lost its database
        if (pause := self._last_start + self.rate_limit - time.monotonic()) > 0:
            return pause
        if self.minder is not None and not self.minder.active:
            # Now, so that it wakes up while this thread waits for the database and not for the first task.
            self.minder.active = True
            self.minder.bell.ring()
        jobs = self._claim(now)
        if jobs:
            self._work(jobs)
            self._look_again = True
        # After the claim: a job that has just been created is not kept waiting.
        if self.housekeeping.run(now, at_once=self.ends and not jobs) or jobs:
            return 0.0
        if self.ends:
            self.housekeeping.idle(now)
            self.stop()
            return 0.0
        return self._idle(now)

    def stop(self) -> None:
        """Claim nothing more, hand back what was not started, and end when the running task has.

        Safe in a signal handler and from any thread.
        """
        self.stopping = self.inflight.closed = True
        self.wakeup.bell.ring()
        if self.minder is not None:
            self.minder.bell.ring()

    # -- one round --

    def _claim(self, now: datetime.datetime) -> list[Job]:
        """Claim from the head of the backlog or, where the way there has become long, from the last claim's
        position.
        """
        begun, limit = time.monotonic(), self._limit()
        if begun >= self._head_due:
            self._position.forget()
        from_head = not self._position.heads
        jobs = engine.claim(
            self.row,
            self.queues,
            limit,
            now,
            self.using,
            self.pass_began,
            self._position,
        )
        ended = time.monotonic()
        took = ended - begun
        if from_head:
            self._head_due = ended + HEAD_SHARE * took
        slow = took > CLAIM_SECONDS[0] + CLAIM_SECONDS[1] * len(jobs)
        if len(jobs) == limit and (slow or not from_head):
            self._position.remember(jobs)
        else:
            self._position.forget()
        return jobs or ([] if from_head else self._claim(now))

    def _limit(self) -> int:
        limit = 1 if self.rate_limit or self.minder is None else self._batch
        return limit if self.max_jobs is None else min(limit, self.max_jobs - self.done)

    def _work(self, jobs: list[Job]) -> None:
        reset_queries()
        for connection in connections.all(initialized_only=True):
            # The queue's own connection has just been used; others may have gone stale.
            if connection.alias != self.using or connection.errors_occurred:
                connection.close_if_unusable_or_obsolete()
        self._last_start, self._wrote_for = time.monotonic(), 0.0
        self.inflight.load(jobs)
        count = self.executor.run()
        # Writing is paid per batch, not per job: counted in, slow commits would make the batches small.
        ran_for = time.monotonic() - self._last_start - self._wrote_for
        self.write_outcomes()
        if count:
            fitting = int(BATCH_SECONDS * count / max(ran_for, 1e-9))
            self._batch = max(1, min(fitting, BATCH_GROWTH * len(jobs), BATCH_MOST))
        if self.progress is not None:
            self.progress(self.done)
        if self.max_jobs is not None and self.done >= self.max_jobs:
            self.stop()

    def _idle(self, now: datetime.datetime) -> float:
        if self.minder is not None:
            self.minder.active = False
        if self._look_again:  # a notification may have been held back: see wakeups.DEBOUNCE
            self._look_again = False
            return LOOK_AGAIN
        pause = max(self.tick, LISTENING_TICK) if self.wakeup.healthy else self.tick
        due = self.housekeeping.idle(now)
        if due is not None:
            pause = min(pause, max((due - now).total_seconds(), 0.001))
        return pause

    def _task_ended(self) -> None:
        self.done += 1
        if self.inflight.unwritten_for() > WRITE_AFTER:
            begun = time.monotonic()
            self.write_outcomes()
            self._wrote_for += time.monotonic() - begun

    # -- what the minder does as well --

    def write_outcomes(self) -> None:
        """Write all outcomes that there are; they are kept if the database does not take them now."""
        with self._writing:
            executions = self.inflight.take_unwritten()
            if not executions:
                return
            try:
                engine.finish(self.row, executions, self.clock(), self.using)
            except BaseException:
                self.inflight.put_back(executions)
                raise

    def hand_back(self) -> None:
        """Hand back every job that was claimed and not started."""
        jobs = self.inflight.take_waiting()
        try:
            engine.hand_back(self.row, jobs, self.clock(), self.using)
        except BaseException:
            self.inflight.load(jobs)
            raise

    def _hand_back_one(self, job: Job) -> None:
        engine.hand_back(self.row, [job], self.clock(), self.using)

    def mark_stopping(self) -> None:
        """Mark the running jobs as STOPPING."""
        engine.stopping(self.row, self.inflight.running(), self.clock(), self.using)

    # -- start and end --

    def _leave_in_order(self) -> None:
        """Write and hand back what there is; a long-running worker that has anything waits for its database with it."""
        patience = 0.0  # at first: it may only be the connection that has died
        while True:
            try:
                self.write_outcomes()
                self.hand_back()
                engine.stop_worker(self.row, self.clock(), self.using)
                return
            except (DatabaseError, InterfaceError):
                if self.ends:
                    raise
                if patience and self.inflight.empty:
                    logger.warning("The database is out of reach, the worker's row stays as it is")
                    return
                logger.exception("The database is out of reach, trying again in %.1f s", patience)
                connections.close_all()
                time.sleep(patience)
                patience = min(2 * patience or RECONNECT[0], RECONNECT[1])

    def _can_be_minded(self) -> bool:
        """Another connection must see the same rows: not in a test's transaction, nor in a database in memory."""
        connection = connections[self.using]
        return storage_for(self.using).shareable and not connection.in_atomic_block

    def _wakeup(self) -> Wakeup:
        if (
            self.ends
            or conf.configuration().wakeup == "poll"
            or connections[self.using].in_atomic_block
        ):
            return Wakeup()
        storage = storage_for(self.using)
        return Wakeup(self.queues.serves, storage.listen, storage.notify)

    def _end(self) -> None:
        self.stopping = self.inflight.closed = True
        if self.minder is not None:
            self.minder.end()
        try:
            self._leave_in_order()
        finally:
            self.wakeup.close()
        logger.info("Worker stopped: worker=%s tasks=%s", self.row, self.done)
