"""One worker process: a loop that claims jobs, runs them and writes what they came to."""

import contextlib
import datetime
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connections, reset_queries

from .. import conf, engine
from ..models import Job
from ..models import Worker as WorkerRow
from ..outcomes import TimedOut
from ..patience import Backoff, steadily
from ..storage import Queues, storage_for
from ..wakeups import LOOK_AGAIN, Wakeup
from . import memory
from .blackbox import Blackbox
from .claims import Claims
from .executors import MainThreadExecutor, ThreadsExecutor
from .heart import Heart
from .housekeeping import Housekeeping
from .inflight import InFlight, Lane
from .lease import Lease
from .loop import LoopExecutor, lane_of
from .minder import Minder
from .registration import Registration

logger = logging.getLogger("django_dbq")

WRITE_AFTER = 0.01  # seconds that an outcome may wait while further quick tasks run
LISTENING_TICK = 5.0  # seconds between polls while notifications are heard
GRACE = 30.0  # seconds that a stopping worker lets running tasks go on
UNWIND = 1.0  # seconds that tasks in threads get to end after they were interrupted
MEMORY_JITTER = 0.1  # of the limit: workers that grow alike do not all end at once


class Worker:
    """
    Args:
        queues: the queues to serve.
        tick: seconds between polls when nothing wakes the worker.
        rate_limit: least number of seconds between the starts of two tasks; 0 for none.
        threads: how many threads run tasks; 0 runs them in the thread that calls `run`.
        max_jobs: end after so many tasks were run; None for no limit.
        max_memory: MiB of resident memory above which the worker ends; None for no limit.
        timeout: seconds of silence after which other workers may take the jobs; None takes ``DBQ["WORKER_TIMEOUT"]``.
        grace: seconds that running tasks may go on when the worker has been told to stop.
        retries: of steps that do not say how many they may have.
        once: end after one pass over the jobs that are ready at its start, one step of each.
        until_done: end when nothing is ready.
        label: a name for people; ``{pid}`` is replaced by the process id.
        using: the database alias.
        progress: called with the number of tasks run so far, after each batch.
        blackbox: what a watchdog reads.
        orphaned: whether the process has lost the one that supervised it.
    """

    def __init__(
        self,
        queues: Queues,
        *,
        tick: float = 1.0,
        rate_limit: float = 0.0,
        threads: int = 0,
        max_jobs: int | None = None,
        max_memory: float | None = None,
        timeout: float | None = None,
        grace: float = GRACE,
        retries: int = 0,
        once: bool = False,
        until_done: bool = False,
        label: str = "",
        using: str = "default",
        clock: Callable[[], datetime.datetime] | None = None,
        progress: Callable[[int], None] | None = None,
        blackbox: Blackbox | None = None,
        orphaned: Callable[[], bool] = lambda: False,
    ) -> None:
        self.queues = queues
        self.tick = tick
        self.rate_limit = rate_limit
        self.max_jobs = max_jobs
        self.max_memory = max_memory
        self.grace = grace
        self.retries = retries
        self.ends = once or until_done
        self.using = using
        self.clock = clock or _clock()
        self.progress = progress
        self.blackbox = blackbox
        self.orphaned = orphaned
        self.label = label
        self.stopping = False
        self.leave_by = math.inf
        self.done = 0  # tasks run so far
        self.outages = 0  # of the database
        self.cut_off = False  # a thread goes on with a task that did not end in time
        self.minded = self._can_be_minded()
        timeout = timeout or conf.configuration().worker_timeout
        self.row: WorkerRow
        self.registration = Registration(self, timeout)
        self.lease = Lease(timeout if self.minded else math.inf)
        self.inflight = InFlight(lambda: self.lease.held) if self.minded else InFlight()
        self.housekeeping = Housekeeping(queues, tick, using)
        self.threads = threads if self.minded else 0
        self.executor: MainThreadExecutor | ThreadsExecutor = (
            ThreadsExecutor(self, threads) if self.threads else MainThreadExecutor(self)
        )
        self.loop = LoopExecutor(self) if self.minded else None
        self.claims = Claims(
            queues,
            using,
            self.inflight,
            self.loop,
            threads=self.threads,
            one_by_one=bool(rate_limit) or not self.minded,
            pass_began=self.row.started if once else None,
        )
        self.minder: Minder | None = None
        self.wakeup = self._wakeup()
        self._wrote_for = 0.0  # seconds, within the current batch
        self._look_again = False
        self._in_doubt = False  # an answer got lost: perhaps that of a claim
        self._paced, self._done_then = 0.0, 0
        self._memory_most = (max_memory or 0) * (1 - MEMORY_JITTER * random.random())
        self._writing = threading.Lock()
        self._counting = threading.Lock()
        self._thread: int | None = None  # in which `run` runs

    # -- the loop --

    def run(self) -> None:
        """Work until `stop` is called (or, with once, until_done, max_jobs or max_memory, until that is fulfilled).

        Raises:
            DatabaseError: the database is out of reach at the start or, for a worker that ends by itself, later. A
                long-running worker waits for it instead.
        """
        self._thread = threading.get_ident()
        self.registration.begin()
        logger.info("Worker started: worker=%s queues=%s", self.row, self.queues)
        if self.ends and self.minded:
            # It may be over before its heart looks, and there may be no other workers but such.
            steadily(partial(engine.rescue, self.row, self.clock(), self.using), self.using)
        backoff = Backoff()
        with contextlib.ExitStack() as attendants:
            if self.minded:
                heart = Heart(self)
                heart.start()
                attendants.callback(heart.end)
                self.minder = Minder(self)
                self.minder.start()
            attendants.callback(self._end)
            attendants.enter_context(self.executor.open())
            while not self.stopping:
                try:
                    pause = self.step(self.clock())
                    backoff.reset()
                except (DatabaseError, InterfaceError):
                    if self.ends:
                        raise
                    pause = next(backoff)
                    logger.exception("The database is out of reach, trying again in %.1f s", pause)
                    self.doubt()
                    connections.close_all()
                if pause and not self.stopping and self.wakeup.wait(pause):
                    self._look_again = True

    def step(self, now: datetime.datetime) -> float:
        """One round: housekeeping, claim, run, write. Returns the seconds to wait before the next; 0 for none."""
        self.keep_lease()
        self.write_outcomes()  # of a round that lost its database, or of other threads
        if self._in_doubt:
            self._release_unknown()
        if (pause := self.inflight.last_start + self.rate_limit - time.monotonic()) > 0:
            return pause
        if self._is_fulfilled():
            return 0.0
        limit = self.claims.limit()
        if self.max_jobs is not None:
            # Before `done`: a job that ends meanwhile counts twice, and not never.
            held = self.inflight.held()
            limit = min(limit, self.max_jobs - held - self.done)
        if limit < 1:
            return self.tick  # every task that ends rings the bell
        if self.minder is not None and not self.minder.active:
            # Now, so that it wakes up while this thread waits for the database and not for the first task.
            self.minder.active = True
            self.minder.bell.ring()
        # Before the claim: what it holds now may be READY again after it.
        held_nothing = self.inflight.empty
        jobs = self._claim(now, limit)
        if jobs:
            self._work(jobs)
            self._look_again = True
        # After the claim: a job that has just been created is not kept waiting.
        at_once = self.ends and not jobs
        if steadily(partial(self.housekeeping.run, now, at_once), self.using) or jobs:
            return 0.0
        if not self.inflight.empty:
            return self.tick
        if self.ends:
            if not held_nothing:
                return 0.0
            self.housekeeping.idle(now)
            self.stop("nothing is left to do")
            return 0.0
        return self._idle(now)

    def stop(self, reason: str = "told to stop") -> None:
        """Claim nothing more, hand back what was not started, and end when what runs has ended or the grace is over.

        Safe in a signal handler and from any thread.
        """
        if not self.stopping:
            self.row.reason = reason
            self.leave_by = time.monotonic() + self.grace
            if self.blackbox is not None:
                self.blackbox.leave_by = self.leave_by
        self.stopping = True
        self.inflight.close()
        self.wakeup.bell.ring()
        if self.minder is not None:
            self.minder.bell.ring()

    # -- one round --

    def _is_fulfilled(self) -> bool:
        """Whether the worker has done, or grown, what it was to; then it is stopping."""
        if self.max_jobs is not None and self.done >= self.max_jobs:
            self.stop(f"max_jobs: {self.done} tasks were run")
        elif self._memory_most and (used := memory.used()) > self._memory_most:
            self.stop(f"max_memory: {used:.0f} MiB are in use, {self.max_memory:g} are allowed")
        return self.stopping

    def _claim(self, now: datetime.datetime, limit: int) -> list[Job]:
        row = self.row
        try:
            jobs = self.claims.take(row, now, limit)
        except BaseException:
            self._in_doubt = True  # some may be claimed already
            raise
        if jobs and (self.registration.declared_dead or not self.lease.held):
            self.keep_lease()
            if self.row is not row:
                return []  # they were claimed by a dead worker, and are free again
        return jobs

    def _work(self, jobs: list[Job]) -> None:
        reset_queries()
        self.executor.freshen_connections()
        begun = time.monotonic()
        self._wrote_for = 0.0
        rest: list[Job] = []
        if self.loop is not None:
            lanes, rest = _sorted(jobs)
            try:
                self._hand_back(rest)
            except BaseException:
                self.inflight.load(jobs)
                raise
            self.inflight.load(lanes[Lane.ASYNC], Lane.ASYNC)
            if lanes[Lane.ASYNC]:
                self.loop.run()
            # The next claim expects more of the same kind.
            self.claims.expects_coroutines = not lanes[Lane.SYNC]
            jobs = lanes[Lane.SYNC]
        self.inflight.load(jobs)
        count = self.executor.run()
        # Writing is paid per batch, not per job: counted in, slow commits would make the batches small.
        took = time.monotonic() - begun - self._wrote_for
        self.write_outcomes()
        if self.threads:
            count, took = self.done - self._done_then, begun - self._paced
            self._done_then, self._paced = self.done, begun
        self.claims.pace(count, took)
        if rest:
            self.claims.batch = 1
        if self.progress is not None:
            self.progress(self.done)

    def _idle(self, now: datetime.datetime) -> float:
        if self.minder is not None:
            self.minder.active = False
        if self._look_again:  # a notification may have been held back: see wakeups.DEBOUNCE
            self._look_again = False
            return LOOK_AGAIN
        # A slot may be freed in a queue that this worker does not serve: nothing tells it then.
        listening = self.wakeup.healthy and not self.claims.full
        pause = max(self.tick, LISTENING_TICK) if listening else self.tick
        if (wait := self.claims.limits_wait) is not None:
            pause = min(pause, max(wait, 0.001))
        due = self.housekeeping.idle(now)
        if due is not None:
            pause = min(pause, max((due - now).total_seconds(), 0.001))
        return pause

    def slots_freed(self, jobs: Iterable[Job]) -> None:
        """The outcomes of these jobs have been written: with those under a limit, others may be let in."""
        if any(job.limited for job in jobs):
            self.claims.freed()

    def task_ended(self) -> None:
        """A task has ended; called in the thread that has run it."""
        with self._counting:
            self.done += 1
        if threading.get_ident() != self._thread:
            if self.inflight.waiting(Lane.SYNC) <= self.claims.batch // 2 or self.stopping:
                self.wakeup.bell.ring()
        elif self.inflight.unwritten_for() > WRITE_AFTER:
            begun = time.monotonic()
            self.write_outcomes()
            self._wrote_for += time.monotonic() - begun

    # -- what the minder and the heart do as well --

    def write_outcomes(self) -> None:
        """Write all outcomes that there are; they are kept if the database does not take them now."""
        with self._writing, self.inflight.moving():
            executions = self.inflight.take_unwritten()
            if not executions:
                return
            try:
                self.keep_lease()
                steadily(
                    lambda: engine.finish(self.row, executions, self.clock(), self.using),
                    self.using,
                )
                self.slots_freed(execution.job for execution in executions)
            except BaseException:
                for execution in executions:
                    execution.in_doubt = True
                self.inflight.put_back(executions)
                raise

    def hand_back(self) -> None:
        """Hand back every job that was claimed and not started."""
        with self.inflight.moving():
            jobs = self.inflight.take_waiting()
            try:
                self._hand_back(jobs)
            except BaseException:
                for job in jobs:
                    self.inflight.load([job], lane_of(job)[0])
                raise

    def doubt(self) -> None:
        """The database has not answered: connections may be dead, and jobs held that nobody here knows of."""
        self.outages += 1
        self._in_doubt = True

    def _release_unknown(self) -> None:
        """Hand back what the database says is ours, and we know nothing of: a claim whose answer got lost."""
        self._in_doubt = False  # first: another thread may come to doubt meanwhile
        try:
            with self._writing:  # what another thread is just writing is in nobody's list
                known = self.inflight.keys()
                release = partial(engine.release, self.row.pk, known, self.clock(), self.using)
                count = steadily(release, self.using)
        except BaseException:
            self._in_doubt = True
            raise
        if count:
            logger.warning("Handed back jobs of a claim whose answer was lost: jobs=%s", count)

    def hand_back_one(self, job: Job) -> None:
        """Hand back a job whose task was begun, and cut off."""
        self._hand_back([job], started=True)

    def _hand_back(self, jobs: list[Job], started: bool = False) -> None:
        if jobs:
            hand_back = partial(engine.hand_back, self.row, jobs, self.clock(), self.using, started)
            steadily(hand_back, self.using)

    def keep_lease(self) -> None:
        """Make sure that the jobs are still this worker's before anything is written of them.

        A worker that was frozen or cut off asks first. If it has been declared dead it begins anew.
        """
        if not self.lease.held and not self.registration.declared_dead:
            steadily(self.beat, self.using)
        if self.registration.declared_dead and threading.get_ident() == self._thread:
            self.registration.begin_anew()

    def end_if_orphaned(self) -> None:
        """End if whoever supervised this process is gone: nobody would pass on a signal any more."""
        if self.orphaned():
            self.stop("its supervisor is gone")

    def beat(self) -> bool:
        """Renew the lease; False if the worker has been declared dead."""
        return self.registration.beat()

    # -- start and end --

    def _leave_in_order(self) -> None:
        """Write and hand back what there is; a long-running worker that has anything waits for its database with it."""
        backoff = Backoff()
        pause = 0.0  # at first: it may only be the connection that has died
        while True:
            try:
                self.write_outcomes()
                self.hand_back()
                if self._in_doubt:
                    self._release_unknown()
                self.registration.leave()
                return
            except (DatabaseError, InterfaceError):
                if self.ends:
                    raise
                if pause and self.inflight.empty:
                    logger.warning("The database is out of reach, the worker's row stays as it is")
                    return
                logger.exception("The database is out of reach, trying again in %.1f s", pause)
                connections.close_all()
                time.sleep(pause)
                pause = next(backoff)

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
        self.stop("an error has ended it")
        self.inflight.wake()
        self._await_threads()
        if self.minder is not None:
            self.minder.end()
        try:
            self._leave_in_order()
        finally:
            self.wakeup.close()
        logger.info(
            "Worker stopped: worker=%s tasks=%s reason=%s", self.row, self.done, self.row.reason
        )

    def _await_threads(self) -> None:
        """Wait for tasks in other threads, and for what these write or hand back then. Tasks that do not end, although
        interrupted, end with the process.
        """
        while self.inflight.busy and time.monotonic() <= self.leave_by + UNWIND:
            self.wakeup.bell.wait(0.1)
        if self.inflight.busy:
            self._in_doubt = True
        for one in self.inflight.running():
            self.cut_off = True
            if isinstance(one.verdict, TimedOut):
                continue  # on record, and not to be given back: others take it from this ended worker
            if self.inflight.drop(one.job):
                logger.warning("Task cut off, handed back: job=%s", one.job.pk)
                with contextlib.suppress(DatabaseError, InterfaceError):
                    self.hand_back_one(one.job)


def _clock() -> Callable[[], datetime.datetime]:
    """`django.utils.timezone.now` without a look at the settings each time."""
    return partial(datetime.datetime.now, datetime.UTC if settings.USE_TZ else None)


def _sorted(jobs: list[Job]) -> tuple[dict[Lane, list[Job]], list[Job]]:
    """The jobs by where they wait, and those that are not to wait here at all; each task is looked at once."""
    lanes: dict[Lane, list[Job]] = {lane: [] for lane in Lane}
    rest: list[Job] = []
    known: dict[tuple[str, int, str], tuple[Lane, bool]] = {}
    for number, job in enumerate(jobs):
        key = job.name, job.step, job.next_task
        if key not in known:
            known[key] = lane_of(job)
        lane, careful = known[key]
        # What must not be tried again after a loss must not be lost while it waits, either.
        (rest if careful and number else lanes[lane]).append(job)
    return lanes, rest
