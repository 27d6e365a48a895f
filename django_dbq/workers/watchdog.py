"""A small process beside a worker's: it ends a worker that hangs, and rescues at once what a killed one has held.

No thread can do that: a task in C code may hold the interpreter, and SIGKILL ends all threads. The worker notes in the
`Blackbox` what its watchdog has to know. Nothing but time depends on the watchdog: without it the worker's lease does
the same later, and a task that hangs in C code hangs on.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

from django.db import connections
from django.utils import timezone

from .. import engine
from ..storage import Overdue
from .blackbox import Blackbox, Entry, now

logger = logging.getLogger("django_dbq")

HARD_AFTER = 3.0  # seconds past its time that a task or a worker gets to end by itself
LOOK_EVERY = 0.25  # seconds
PATIENCE = 5.0  # seconds for the database to take a record
FROZEN_FOR = 2.0  # seconds for the same while the worker is frozen, perhaps with a lock on what we want to write
TRY_EVERY = 1.0  # seconds


@contextlib.contextmanager
def watched(blackbox: Blackbox, using: str) -> Iterator[None]:
    """Within, a watchdog looks after this process; to be entered before there are threads.

    Closes the database connections of the calling thread. If the worker has not ended in order when the block is left
    (`Blackbox.ended`), the watchdog waits for the end of the process and then rescues what the worker has held.
    """
    if not hasattr(os, "fork"):
        logger.debug("No watchdog: this system cannot fork")
        yield
        return
    worker = os.getpid()
    hear, tell = os.pipe()
    # Ctrl-C in a terminal, and systemd, signal all processes alike: they stay blocked in the child, which ends when its
    # worker has.
    with blocked(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        pid = fork()
        if not pid:
            try:
                os.close(tell)
                Watchdog(blackbox, using, worker, hear).run()
            except BaseException:
                logger.exception("The watchdog has failed: worker=%s", worker)
            finally:
                os._exit(0)  # nothing of the caller's runs twice
    os.close(hear)
    try:
        yield
    finally:
        in_order = blackbox.ended or not blackbox.worker_id
        if in_order:
            with contextlib.suppress(BrokenPipeError):
                os.write(tell, b".")
        os.close(tell)
        if in_order:
            with contextlib.suppress(ChildProcessError):  # reaped by another, or SIGCHLD is ignored
                os.waitpid(pid, 0)


class Watchdog:
    """
    Args:
        worker: the process to look after, our parent.
        hear: the end of a pipe, at the other end of which is the worker.
    """

    def __init__(self, blackbox: Blackbox, using: str, worker: int, hear: int) -> None:
        self.blackbox = blackbox
        self.using = using
        self.worker = worker
        self._hear: int | None = hear
        self._pause = LOOK_EVERY
        self._looked = self._awake_since = now()

    def run(self) -> None:
        """Until the worker says that it has ended, or has."""
        while not self._told_to_end():
            if self._worker_is_gone():
                self._bury("Its process is gone (SIGKILL, out of memory, a second signal?).")
                return
            reason, stuck = self._overstayed()
            if reason:
                self._end_worker(reason, stuck)
                return

    # -- looking --

    def _told_to_end(self) -> bool:
        """Wait until there is something to see; True if the worker has said goodbye."""
        heard, _, _ = select.select([] if self._hear is None else [self._hear], [], [], self._pause)
        if heard:
            assert self._hear is not None
            if os.read(self._hear, 1):
                return True
            # The worker is just about to be gone, or has left the block without having ended in order. A process that
            # a task has forked may keep the pipe open, so that this never comes: hence the regular looks.
            self._hear, self._pause = None, 0.005
        elif self._hear is None:
            self._pause = min(2 * self._pause, LOOK_EVERY)
        return False

    def _worker_is_gone(self) -> bool:
        return os.getppid() != self.worker

    def _overstayed(self) -> tuple[str, list[Entry]]:
        """Why the worker has to be ended, and what is stuck in it; no reason if all is well."""
        moment = now()
        if moment - self._looked > HARD_AFTER / 2:
            # We have not been running, and maybe the worker has not either (Ctrl-Z, a paused container).
            self._awake_since = moment
        self._looked, limit = moment, moment - HARD_AFTER
        if self._awake_since > limit or self.blackbox.ended:
            return "", []
        if 0.0 < self.blackbox.leave_by < limit:
            return f"Its process was still there {HARD_AFTER:g} s after it had to be gone.", []
        stuck = self.blackbox.overdue(limit)
        jobs = ", ".join(f"{entry.job_id} (attempt {entry.attempt})" for entry in stuck)
        return jobs and f"Still running {HARD_AFTER:g} s past their timeout: {jobs}.", stuck

    # -- acting --

    def _end_worker(self, reason: str, stuck: list[Entry]) -> None:
        """Record, hand back, kill, rescue: in this order, because a container may end with the worker's process."""
        worker_id = self.blackbox.worker_id
        logger.error("Killing a worker: pid=%s worker=%s reason=%s", self.worker, worker_id, reason)
        report = "Its process had to be killed: the task did not end when its time was over.\n"
        overdue = [Overdue(e.job_id, e.attempt, e.started, report) for e in stuck]

        def record() -> None:
            if overdue:
                engine.record_timeouts(worker_id, overdue, timezone.now(), self.using)

        def release() -> None:
            keep = [entry.job_id for entry in stuck]
            engine.release(worker_id, keep, timezone.now(), self.using)

        recorded, released = self._begin(record), None
        if recorded.wait(PATIENCE):
            # Others may start these jobs at once: they must not go on here.
            self._signal(signal.SIGSTOP)
            released = self._begin(release)
            released.wait(FROZEN_FOR)
        self._signal(signal.SIGKILL)
        self._wait_for_its_end()
        # What was not possible before may be now: the worker's locks are gone.
        if recorded.wait(PATIENCE):
            released = released or self._begin(release)
            if released.wait(PATIENCE):
                self._bury(reason)
                return
        logger.error("Leaving a killed worker's jobs to its lease: worker=%s", worker_id)

    def _bury(self, reason: str) -> None:
        worker_id = self.blackbox.worker_id
        if worker_id and not self.blackbox.ended:

            def bury() -> None:
                engine.bury(worker_id, reason, timezone.now(), self.using)

            if not self._begin(bury).wait(PATIENCE):
                logger.error("Leaving a dead worker's jobs to its lease: worker=%s", worker_id)

    def _signal(self, number: signal.Signals) -> None:
        if not self._worker_is_gone():
            os.kill(self.worker, number)

    def _wait_for_its_end(self) -> None:
        pause, complain_at = 0.005, now() + PATIENCE
        while not self._worker_is_gone():
            if pause < LOOK_EVERY and now() > complain_at:
                pause = LOOK_EVERY
                # It is in a system call that does not return, or is process 1 of a container.
                logger.error("A worker survives SIGKILL: pid=%s", self.worker)
            time.sleep(pause)

    def _begin(self, duty: Callable[[], None]) -> threading.Event:
        """Do something in the database, again and again until it is done: the event tells.

        In a thread, because it may have to wait for a lock that the worker holds as long as it lives. The connection
        is opened for this alone, and closed.
        """
        done = threading.Event()

        def tries() -> None:
            while not done.is_set():
                try:
                    duty()
                    done.set()
                except Exception:
                    logger.warning("The watchdog could not write", exc_info=True)
                finally:
                    connections.close_all()
                if not done.is_set():
                    time.sleep(TRY_EVERY)

        threading.Thread(target=tries, name="dbq-watchdog", daemon=True).start()
        return done


# -- forking, also for the supervisor --


@contextlib.contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Within, these signals wait: a forked child can get ready for them first."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fork() -> int:
    """`os.fork` with nothing that parent and child would both use, or say, afterwards."""
    for connection in connections.all():
        connection.close()  # some drivers end the session for both when one of them drops the object
        getattr(
            connection, "close_pool", lambda: None
        )()  # its threads would be missing in the child
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no stream, or a closed one
            stream.flush()
    with warnings.catch_warnings():
        # Python 3.12 warns of the threads of others, whose locks the child may find locked. Under the reloader there is
        # such a thread and no way round it; ours are not there yet.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        return os.fork()
