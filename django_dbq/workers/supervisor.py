"""Worker processes: signals, several of them under one supervisor, and nothing left behind."""

import contextlib
import logging
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from django.core.management.base import CommandError

from ..wakeups import Bell
from .watchdog import blocked, fork
from .worker import Worker

logger = logging.getLogger("django_dbq")

SIGNALS = [
    number
    for name in ("SIGTERM", "SIGINT", "SIGQUIT")
    if (number := getattr(signal, name, None)) is not None  # Windows has no SIGQUIT
]
BACKOFF = (1.0, 60.0)  # seconds until a dead process is replaced, doubled up to the second number
GROWN_UP = 60.0  # seconds of life after which the back-off begins anew


# -- one process --


def run(worker: Worker) -> None:
    """Run a worker that SIGTERM, SIGINT and SIGQUIT stop in good order; a second signal ends the process at once."""
    with stopped_by_signals(worker):
        worker.run()


@contextlib.contextmanager
def stopped_by_signals(worker: Worker) -> Iterator[None]:
    """Within: the first signal stops the worker, a second has its default effect. Handlers are put back after."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers: whoever runs us there stops the worker
        return
    process, stopped = os.getpid(), False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        # Ctrl-C in a terminal, and systemd, signal the supervisor as well as us, and it passes on what it gets: once it
        # has got something, its count is what counts.
        told = _supervisor.told[0] if _supervisor is not None else 0
        again = told > 1 if told else stopped
        # A process that a task has forked inherits this handler, and is not the worker.
        if again or os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stopped = True
        worker.stop()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- several, as their supervisor sees it --


def run_processes(count: int, work: Callable[[], None], ends: bool = False) -> int:
    """Keep ``count`` forked processes at ``work`` until a signal stops them; to be called in the main thread.

    Whoever dies is replaced, after a pause that grows; whoever returns is replaced at once. SIGTERM, SIGINT and SIGQUIT
    are passed on as SIGTERM, a second one as well; a third kills.

    Args:
        work: called in each process, whose exit code is 0 if it returns, 1 if it raises. Nothing else of the caller
            runs there: neither ``finally`` nor `atexit`.
        ends: whoever returns or raises is not replaced.

    Returns:
        The exit code for the caller: 0 if all have ended in order, else the highest of theirs (128 + n for signal n).
    """
    return Supervisor(count, work, ends).run()


@dataclass(slots=True)
class Place:
    """One of the processes to be kept, whichever it is now."""

    pid: int = 0  # 0 while there is none
    started: float = 0.0
    due: float = 0.0  # when the next one is to be started; infinity for never
    pause: float = 0.0  # seconds between the last death and the next start
    code: int = 0  # with which the last one has ended, as far as that concerns the whole


class Supervisor:
    def __init__(self, count: int, work: Callable[[], None], ends: bool) -> None:
        self.work = work
        self.ends = ends
        self.places = [Place() for _ in range(count)]
        self.bell = Bell()
        # How many signals have come: our children can read it, too.
        self.told = mmap.mmap(-1, 1)
        self._passed_on = 0

    def run(self) -> int:
        handlers = dict.fromkeys(SIGNALS, self._hear) | {signal.SIGCHLD: self._look}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            while True:
                self._reap()
                self._pass_on()
                self._start()
                if not any(place.pid or self._is_to_start(place) for place in self.places):
                    return max(place.code for place in self.places)
                self.bell.wait(self._pause())
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.bell.close()

    # -- signals --

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.told[0] = min(self.told[0] + 1, 3)
        self.bell.ring()

    def _look(self, number: int, frame: FrameType | None) -> None:
        self.bell.ring()

    def _pass_on(self) -> None:
        while self._passed_on < self.told[0]:
            self._passed_on += 1
            number = signal.SIGKILL if self._passed_on > 2 else signal.SIGTERM
            pids = [place.pid for place in self.places if place.pid]
            for pid in pids:
                os.kill(pid, number)
            logger.info("Told to stop: signals=%s processes=%s", self._passed_on, len(pids))

    # -- starting and ending --

    def _is_to_start(self, place: Place) -> bool:
        return not place.pid and not self._passed_on and place.due < float("inf")

    def _pause(self) -> float | None:
        """Seconds until a process is to be started; None if we only wait for signals."""
        due = min((p.due for p in self.places if self._is_to_start(p)), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _start(self) -> None:
        for place in self.places:
            if self._is_to_start(place) and place.due <= time.monotonic():
                place.started = time.monotonic()
                parent = os.getpid()
                with blocked(*SIGNALS):
                    try:
                        place.pid = fork()
                    except OSError as error:
                        then = self._put_off(place)
                        logger.error("Worker process not started: error=%s, %s", error, then)
                        continue
                    if not place.pid:
                        self._be_a_worker(parent)
                logger.info("Worker process started: pid=%s", place.pid)

    def _reap(self) -> None:
        places = {place.pid: place for place in self.places if place.pid}
        # Process 1 of a container inherits orphans, and nobody but us would reap them.
        for pid in [-1] if os.getpid() == 1 else list(places):
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(pid, os.WNOHANG))[0]:
                    if (place := places.get(ended[0])) is not None:
                        self._ended(place, os.waitstatus_to_exitcode(ended[1]))

    def _ended(self, place: Place, code: int) -> None:
        pid, place.pid = place.pid, 0
        lived = time.monotonic() - place.started
        if lived >= GROWN_UP:
            place.pause = 0.0
        if self._passed_on or (self.ends and code >= 0):
            place.due = float("inf")
            place.code = code if code >= 0 else 128 - code
        if not code:
            logger.info("Worker process has ended in order: pid=%s after=%.1f s", pid, lived)
            return
        how = f"exit code {code}" if code > 0 else _signal_name(-code)
        then = self._put_off(place)
        logger.error("Worker process died: pid=%s by=%s after=%.1f s, %s", pid, how, lived, then)

    def _put_off(self, place: Place) -> str:
        """Have the next process wait, if there is to be one; returns what will be, in words."""
        if place.due == float("inf"):
            return "not replaced"
        place.pause = min(max(2 * place.pause, BACKOFF[0]), BACKOFF[1])
        place.due = time.monotonic() + place.pause
        return f"the next one starts in {place.pause:g} s"

    def _be_a_worker(self, parent: int) -> NoReturn:
        """The life of a child: nothing of the caller's runs twice."""
        global _supervisor
        code = 1
        try:
            _supervisor = Parent(parent, self.told)
            self.bell.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in SIGNALS:
                # As long as no worker listens there is nothing to end in order.
                signal.signal(number, lambda number, frame: os._exit(0))
            _end_with_parent(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self.work()
            code = 0
        except CommandError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            code = error.returncode
        except BaseException:
            logger.exception("The worker process has failed: pid=%s", os.getpid())
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
            os._exit(code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


# -- several, as each of them sees it --


@dataclass(frozen=True, slots=True)
class Parent:
    """What a worker process knows of its supervisor."""

    pid: int
    told: mmap.mmap  # one byte: how many signals it has got


_supervisor: Parent | None = None  # None: this process has no supervisor


def orphaned() -> bool:
    """Whether this process had a supervisor who is gone; to be asked now and then, a worker then stops in order."""
    return _supervisor is not None and os.getppid() != _supervisor.pid


def _end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the supervisor is gone, where it can (Linux); elsewhere `orphaned` tells."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(0)  # it was gone before
