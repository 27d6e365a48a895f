"""Where ``async def`` tasks run: on an event loop."""

import asyncio
import contextlib
import logging
import threading
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.utils.module_loading import import_string

from .. import conf, runner
from ..models import Job
from .executors import Employer, Executor, close_open_transactions
from .inflight import Lane, Running

logger = logging.getLogger("django_dbq")

ASYNC_MOST = 100  # coroutines at a time


class LoopExecutor(Executor):
    """Runs ``async def`` tasks on one event loop in a thread of its own, up to `ASYNC_MOST` at a time.

    Hooks, and whatever uses the ORM through Django's async methods, run in the one thread that asgiref keeps for it.
    """

    def __init__(self, worker: Employer) -> None:
        super().__init__(worker)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def used(self) -> bool:
        """Whether any task has needed it so far."""
        return self._loop is not None

    @property
    def room(self) -> int:
        """How many more coroutines may be started."""
        return ASYNC_MOST - len(self._tasks)

    def run(self) -> None:
        """Take up what is in flight; returns at once."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._turn, name="dbq-loop", daemon=True).start()
        self._loop.call_soon_threadsafe(self._start)

    def _turn(self) -> None:
        """Run the loop, for as long as the process lives.

        A SystemExit or KeyboardInterrupt that a coroutine's own asyncio tasks, or its callbacks, raise ends
        `run_forever`, and with it all others. It has lost nothing by that, and can be run on.
        """
        assert self._loop is not None
        while True:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                logger.exception("A coroutine's own task wants the process to end; it goes on")

    def _start(self) -> None:
        assert self._loop is not None
        while self.room > 0 and (running := self.inflight.start(Lane.ASYNC)) is not None:
            task = self._loop.create_task(self._drive(running))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._start()

    async def _drive(self, running: Running) -> None:
        try:
            begun = await sync_to_async(self._begin)(running)
            if begun is None:
                return
            run, wanted = begun
            if run.error is None and wanted:
                await self._await_task(running, run)
            await sync_to_async(self._conclude)(run)
        except BaseException:
            logger.exception("Running a job has failed: job=%s", running.job.pk)
            await sync_to_async(self.give_back)(running.job)

    def _begin(self, running: Running) -> tuple[runner.Run, bool] | None:
        """The run, and whether its task is to be called; None if this worker does not know the job's step."""
        self.freshen_connections()
        try:
            run = runner.begin(running.job, self.worker.clock, self.worker.retries)
        except LookupError:
            self.hand_back(running.job)
            return None
        wanted = False
        try:
            wanted = run.error is None and runner.prepare(run)
        except BaseException as error:
            runner.give_up(run, error)
        return run, wanted

    async def _await_task(self, running: Running, run: runner.Run) -> None:
        task = asyncio.get_running_loop().create_task(_call(run))
        timeout = run.step.timeout
        with self._limited(running, run, timeout) if timeout else contextlib.nullcontext():
            running.enter(_Cancelling(task))
            await asyncio.wait([task])
            verdict = running.leave()
            if timeout:
                # Plain code that it has called may still be running, in the thread that all of us need.
                await sync_to_async(lambda: None)()
        if task.cancelled():  # by somebody else, before it was begun
            runner.give_up(run, asyncio.CancelledError())
        if verdict is not None:
            runner.give_up(run, verdict)

    def _conclude(self, run: runner.Run) -> None:
        runner.check_wait(run)
        if not self._is_void(run):
            execution = runner.conclude(run, self.worker.clock)
            close_open_transactions(execution)
            self._end(execution)


async def _call(run: runner.Run) -> None:
    """Call a task, await it, and note what it comes to. Nothing that it raises gets out: of asyncio's own tasks, a
    SystemExit would end the loop.
    """
    try:
        runner.take(run, await import_string(run.step.path)(run.job))
    except BaseException as error:
        runner.give_up(run, error)


class _Cancelling:
    """Delivers verdicts to a coroutine."""

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self.task = task

    def deliver(self, running: Running) -> None:
        self.task.get_loop().call_soon_threadsafe(self.task.cancel)

    def take_back(self, running: Running) -> None:
        """It has ended: a cancellation does nothing any more."""


def lane_of(job: Job) -> tuple[Lane, bool]:
    """Where a claimed job is to wait, and whether its step is not simply tried again after a loss.

    A step that does not import fails in a thread like any other.
    """
    try:
        _, step = runner.standing(job, conf.catalogue())
        task: Any = import_string(step.path)
    except Exception:
        return Lane.SYNC, False
    return Lane.ASYNC if iscoroutinefunction(task) else Lane.SYNC, step.on_lost != "retry"
