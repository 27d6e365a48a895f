"""Where tasks run: in the worker's main thread, or in threads of their own."""

import contextlib
import ctypes
import datetime
import logging
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Protocol

from django.db import DatabaseError, InterfaceError, connections, transaction

from .. import conf, engine, runner
from ..models import Job
from ..models import Worker as WorkerRow
from ..outcomes import ClaimLost, Interrupted
from ..patience import TRIES, Backoff, pause
from ..pipelines import Catalogue
from ..storage import Execution, storage_for
from .blackbox import Blackbox
from .inflight import InFlight, Running

logger = logging.getLogger("django_dbq")

INTERRUPT = getattr(signal, "SIGUSR2", None)  # tells the main thread that there is a verdict


class Employer(Protocol):
    """What an executor needs of its worker."""

    row: WorkerRow
    using: str
    retries: int
    inflight: InFlight
    blackbox: Blackbox | None
    outages: int  # of the database, that any thread has noticed

    def clock(self) -> datetime.datetime: ...
    def task_ended(self) -> None: ...
    def slots_freed(self, jobs: Iterable[Job]) -> None: ...
    def hand_back_one(self, job: Job) -> None: ...
    def doubt(self) -> None: ...


class Executor:
    """Runs one job in the calling thread; the base of those that say which thread that is."""

    def __init__(self, worker: Employer) -> None:
        self.worker = worker
        self.inflight = worker.inflight
        self.using = worker.using
        self.nested = False  # in the caller's transaction, a test's say
        self.catalogue: Catalogue | None = None  # of the batch
        self._seen = threading.local()

    # -- one job --

    def execute(self, running: Running) -> None:
        """Run a started job to its end, whatever that is."""
        job = running.job
        try:
            run = runner.begin(job, self.worker.clock, self.worker.retries, self.catalogue)
        except LookupError:
            logger.warning("Handing back a job that this worker does not know: job=%s", job.pk)
            self.hand_back(job)
            return
        if self.nested:
            self._execute_nested(running, run)
        elif run.step.atomic and run.error is None:
            self._execute_atomic(running, run)
        else:
            self._perform(running, run)
            if not self._is_void(run):
                execution = runner.conclude(run, self.worker.clock)
                close_open_transactions(execution)
                self._end(execution)

    def _perform(self, running: Running, run: runner.Run) -> None:
        """Pre-task hook and task, within the step's timeout; a verdict counts for more than what the task did."""
        running.thread = threading.get_ident()
        try:
            if run.step.timeout is None or run.error is not None:
                running.enter(self)
                runner.perform(run)
                verdict = running.leave()
            else:
                with self._limited(running, run, run.step.timeout):
                    running.enter(self)
                    runner.perform(run)
                    verdict = running.leave()
        except BaseException:
            # The verdict has struck between the task and here. Nothing else can: see `runner.perform`.
            if (verdict := running.leave()) is None:
                raise
        if verdict is None:
            return
        runner.give_up(run, verdict)
        for connection in connections.all(initialized_only=True):
            # It may have struck in the middle of a query: such a connection is of no use to anybody.
            if not (run.step.atomic and connection.alias == self.using):
                connection.in_atomic_block = False  # or Django keeps the closed connection
            connection.close()

    @contextlib.contextmanager
    def _limited(self, running: Running, run: runner.Run, timeout: float) -> Iterator[None]:
        """The step's timeout in seconds, for the minder and for the watchdog."""
        running.started, running.timeout = run.started, timeout
        running.deadline = time.monotonic() + timeout
        box, slot = self.worker.blackbox, -1
        if box is not None:
            slot = box.enter(run.job.pk, run.job.attempt, run.started, running.deadline)
        try:
            yield
        finally:
            running.deadline = None
            if box is not None:
                box.leave(slot)

    def deliver(self, running: Running) -> None:
        _raise_in(running.thread, running.verdict)

    def take_back(self, running: Running) -> None:
        _raise_in(running.thread, None)

    def _is_void(self, run: runner.Run) -> bool:
        """Whether nothing is to be written of this run: it was cut off, or the job is no longer ours."""
        job = run.job
        if isinstance(run.error, Interrupted):
            logger.info("Task interrupted, handed back: job=%s task=%s", job.pk, run.step.path)
            self.hand_back(job)
        elif isinstance(run.error, ClaimLost):
            logger.warning(
                "Task stopped, its job is no longer this worker's: job=%s name=%s task=%s attempt=%s",
                *(job.pk, job.name, run.step.path, job.attempt),
            )
            self.inflight.drop(job)
        else:
            return False
        return True

    def hand_back(self, job: Job) -> None:
        """Return a started job to its queue, unless somebody else has done so."""
        with self.inflight.moving():
            if self.inflight.drop(job):
                self.worker.hand_back_one(job)

    def give_back(self, job: Job) -> None:
        """The same after an error of our own; where that is not possible now, the worker does it later."""
        connections.close_all()
        try:
            self.hand_back(job)
        except (DatabaseError, InterfaceError):
            logger.warning("Handing back has failed: job=%s", job.pk, exc_info=True)
        self.worker.doubt()

    def _end(self, execution: Execution) -> None:
        self.inflight.end(execution)
        self.worker.task_ended()

    def _execute_nested(self, running: Running, run: runner.Run) -> None:
        """Run a job within the caller's transaction, which stays usable when a query of the task fails."""
        with transaction.atomic(using=self.using):
            self._perform(running, run)
            if run.raised and run.step.atomic:
                runner.restore(run)
            execution = runner.conclude(run, self.worker.clock)
            if run.raised and (run.step.atomic or isinstance(run.error, DatabaseError)):
                transaction.set_rollback(True, using=self.using)
        self._end(execution)

    def freshen_connections(self) -> None:
        """Close the connections of this thread that have gone stale."""
        outages = self.worker.outages
        if outages != getattr(self._seen, "outages", outages):
            connections.close_all()
        self._seen.outages = outages
        for connection in connections.all(initialized_only=True):
            # The queue's own is used all the time, and would be opened anew for each job where CONN_MAX_AGE is 0.
            if connection.alias != self.using or connection.errors_occurred:
                connection.close_if_unusable_or_obsolete()

    # -- atomic steps --

    def _execute_atomic(self, running: Running, run: runner.Run) -> None:
        """Run a step in one transaction with its outcome: both are there, or neither.

        Where another transaction or a lost connection was in the way, nothing has been done, so it is done again.
        """
        connection = connections[self.using]
        for number in range(TRIES):
            connection.ensure_connection()
            session = connection.connection
            execution = self._try_atomic(running, run)
            if execution is not None:
                self.inflight.drop(run.job)
                engine.announce([execution], self.using)
                self.worker.slots_freed([run.job])
                self.worker.task_ended()
                return
            if number == TRIES - 1 or not self._was_in_the_way(run.error, session):
                break
            logger.warning(
                "Atomic step rolled back, run again: job=%s task=%s error=%r",
                *(run.job.pk, run.step.path, run.error),
            )
            pause(number)
            runner.restart(run)
        runner.restore(run)
        if isinstance(run.error, ClaimLost) and engine.still_held([run.job], self.using):
            # Rolled back with it, the job would be ours for ever.
            run.error = RuntimeError("An atomic step cannot cancel or move its own job.")
        if not self._is_void(run):
            execution = runner.conclude(run, self.worker.clock)
            close_open_transactions(execution)
            self._end(execution)

    def _try_atomic(self, running: Running, run: runner.Run) -> Execution | None:
        """Returns what has been committed, or None if nothing has; why is noted in ``run`` then."""
        execution, written = None, False
        try:
            with transaction.atomic(using=self.using):
                self._perform(running, run)
                if run.raised:
                    raise _RolledBack
                execution = runner.conclude(run, self.worker.clock)
                now = self.worker.clock()
                if not engine.finish(self.worker.row, [execution], now, self.using, within=True):
                    runner.give_up(run, ClaimLost())
                    raise _RolledBack
                written = True
        except _RolledBack:
            return None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # The commit has got no answer, or was followed by an `on_commit` callback that raises.
            if written and execution is not None and self._was_committed(execution):
                logger.exception("Committed all the same: job=%s", run.job.pk)
                return execution
            runner.give_up(run, error)  # what it waits for has begun to wait for it meanwhile, say
            return None
        return execution

    def _was_in_the_way(self, error: BaseException | None, session: object) -> bool:
        """Whether it was the database and not the step, so that the same again may go well.

        Args:
            session: the driver's connection that it ran on. When that breaks, Django has put another in its place by
                the end of the transaction, or none.
        """
        if not isinstance(error, DatabaseError | InterfaceError):
            return False
        if storage_for(self.using).is_transient(error):
            return True
        if connections[self.using].connection is session:
            return False
        self._await_database()
        return True

    def _was_committed(self, execution: Execution) -> bool:
        """Whether a commit that got no answer has happened."""
        self._await_database()
        return engine.is_recorded(execution, self.using)

    def _await_database(self) -> None:
        backoff, connection = Backoff(), connections[self.using]
        while True:
            connection.close()
            try:
                connection.ensure_connection()
                return
            except (DatabaseError, InterfaceError):
                seconds = next(backoff)
                logger.warning("The database is out of reach, trying again in %.1f s", seconds)
                time.sleep(seconds)


class _RolledBack(Exception):
    """Rolls a transaction back; the reason is noted elsewhere."""


def _raise_in(ident: int | None, verdict: BaseException | None) -> None:
    """Raise an exception of the verdict's class in another thread, at its next line of Python; None takes that back."""
    raised = None if verdict is None else ctypes.py_object(type(verdict))
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident or 0), raised)


def close_open_transactions(execution: Execution) -> None:
    """Roll back what a task left open: outcomes written inside it would never be committed."""
    only = list(connections.settings)
    opened = (
        [connections[only[0]]] if len(only) == 1 else connections.all(initialized_only=True)
    )  # the first way is quicker
    for connection in opened:
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


class MainThreadExecutor(Executor):
    """Runs what is in flight in the thread that calls `run`, until nothing is left to start.

    In the process's main thread a verdict comes as a signal, which also ends most waiting in C code.
    """

    def __init__(self, worker: Employer) -> None:
        super().__init__(worker)
        self._running: Running | None = None
        self._signalled = False

    def run(self) -> int:
        """Run jobs until none is left to start; returns how many."""
        count = 0
        self.nested = connections[self.using].in_atomic_block
        self.catalogue = conf.catalogue()
        while (running := self.inflight.start()) is not None:
            self._running = running
            try:
                self.execute(running)
            except BaseException:
                # The database is away, or somebody wants the process to end: user code has been dealt with.
                self.give_back(running.job)
                raise
            count += 1
        self._running = None
        return count

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Within, the executor can be used."""
        if INTERRUPT is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(INTERRUPT, self._interrupt)
        self._signalled = True
        try:
            yield
        finally:
            self._signalled = False
            signal.signal(INTERRUPT, before)

    def deliver(self, running: Running) -> None:
        if self._signalled and running.thread is not None and INTERRUPT is not None:
            signal.pthread_kill(running.thread, INTERRUPT)
        else:
            super().deliver(running)

    def take_back(self, running: Running) -> None:
        if not self._signalled:
            super().take_back(running)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        running = self._running
        if running is not None and running.open and running.verdict is not None:
            raise running.verdict


class ThreadsExecutor(Executor):
    """Runs what is in flight in ``count`` threads, each with its own database connection."""

    def __init__(self, worker: Employer, count: int) -> None:
        super().__init__(worker)
        self.count = count
        self._threads = [
            threading.Thread(target=self._work, name=f"dbq-task-{number}", daemon=True)
            for number in range(count)
        ]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self.inflight.close()
            self.inflight.wake()

    def run(self) -> int:
        """The threads have taken up what there is by themselves."""
        return 0

    def _work(self) -> None:
        try:
            while (running := self.inflight.start_or_wait()) is not None:
                self.freshen_connections()
                try:
                    self.execute(running)
                except BaseException:
                    # Of our own: user code's has been dealt with. The thread has to go on.
                    logger.exception("Running a job has failed: job=%s", running.job.pk)
                    self.give_back(running.job)
        finally:
            connections.close_all()
