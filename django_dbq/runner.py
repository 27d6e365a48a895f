"""Run one step of one claimed job: hooks, task, and what they come to. Reads top to bottom; writes nothing.

`begin`, `perform` and `conclude` are the three parts, for executors that have something to do in between; `run` is all
of them.
"""

import builtins
import datetime
import inspect
import logging
import random
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.core.exceptions import ValidationError
from django.db import connections, transaction
from django.utils.module_loading import import_string

from . import conf, signals, workspaces
from .models import Job, QueuePlace, as_text, as_time
from .outcomes import (
    Abort,
    Decision,
    Exhausted,
    Retry,
    Tries,
    decide,
    decide_failure,
    exhausted,
    fail,
)
from .pipelines import Catalogue, Pipeline, Step
from .states import Event
from .storage import Execution

logger = logging.getLogger("django_dbq")

REPORT_LENGTH = 20_000  # characters of a traceback that are kept: its end, where the error stands

Clock = Callable[[], datetime.datetime]


@dataclass(slots=True)
class Run:
    """A step of a job while it is being run."""

    job: Job
    pipeline: Pipeline
    step: Step
    retries: int  # of steps that do not say how many they may have
    started: datetime.datetime
    fence: tuple[UUID, int]  # the job's id and attempt, whatever user code does to them
    error: BaseException | None = None
    raised: bool = False  # or returned: only what was raised rolls an atomic step back
    workspace: str | None = (
        None  # as the task has left it, or as it was stored if the task has raised
    )
    claimed: dict[str, Any] | None = None  # the job's attributes, to `restart` from

    @property
    def tries(self) -> Tries:
        """What the job has behind it; before hooks could change that."""
        retries = self.retries if self.step.retries is None else self.step.retries
        max_runs = conf.configuration().max_runs
        return Tries(self.fence[1], self.job.failures, self.job.lost, retries, max_runs)


def run(job: Job, clock: Clock, retries: int = 0) -> Execution:
    """Run the step that ``job`` stands at and say what it came to; no exception of user code gets out.

    The order is: pre-task hook, task, then the failure hook (if the job has failed for good) or the completion hook
    (after the last step), then the post-task hook. What any of them leaves in the workspace is saved; the hooks after
    the task see the job's coming state and next task.

    Args:
        retries: of a step that does not say how many it may have.
    """
    begun = begin(job, clock, retries)
    perform(begun)
    return conclude(begun, clock)


def begin(job: Job, clock: Clock, retries: int = 0, catalogue: Catalogue | None = None) -> Run:
    """Look up what is to be run.

    Args:
        catalogue: where to look it up, for callers with many jobs; by default in the settings as they are now.

    Raises:
        LookupError: the settings do not know the job or its step (any more).
    """
    pipeline, step = standing(job, catalogue or conf.catalogue())
    begun = Run(job, pipeline, step, retries, clock(), (job.id, job.attempt))
    if job.failures or job.lost:  # else it has not been tried before
        begun.error = exhausted(step, begun.tries)
    if step.atomic:
        begun.claimed = dict(job.__dict__)
    if begun.error is None:
        signals.send(signals.step_started, sender=Job, job=job, step=step)
    return begun


def standing(job: Job, catalogue: Catalogue) -> tuple[Pipeline, Step]:
    """The pipeline and the step of a claimed job; the claim has made sure that both exist."""
    pipeline = catalogue.named(job.name)
    step = pipeline.locate(job.step, job.next_task)
    if step is None:
        raise LookupError(f"The job {job.name!r} has no task {job.next_task!r}.")
    return pipeline, step


def perform(run: Run) -> None:
    """Pre-task hook and task; what they come to is noted in ``run``.

    Raises:
        KeyboardInterrupt: somebody wants the process to end.
    """
    try:
        if run.error is None:
            prepare(run)
            result = import_string(run.step.path)(run.job)
            # Most of these run on an event loop: here are those of a test, and what no signature has told.
            take(run, async_to_sync(_await)(result) if inspect.iscoroutine(result) else result)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also sys.exit() and a cancelled coroutine: the worker goes on
        give_up(run, error)


async def _await(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine


def restart(run: Run) -> None:
    """Have an atomic step that was rolled back be performed anew."""
    restore(run)
    run.error, run.raised, run.workspace = None, False, None


def restore(run: Run) -> None:
    """Make the job of an atomic step that was rolled back what it was, its workspace included."""
    run.job.__dict__.clear()
    run.job.__dict__.update(run.claimed or {})
    if run.job.stored_workspace is not None:
        run.job.workspace = workspaces.load(run.job.stored_workspace)


def prepare(run: Run) -> None:
    """Call the pre-task hook, whose exception counts as the task's."""
    if run.pipeline.pre_task_hook:
        import_string(run.pipeline.pre_task_hook)(run.job)


def take(run: Run, result: Any) -> None:
    """Note what a task has returned, and what it has left in the workspace."""
    run.job.id, run.job.attempt = run.fence
    if result is Retry or result is Abort:
        result = result()  # `return Retry` is meant as `raise Retry` is
    if isinstance(result, Retry | Abort):
        run.error = result
    run.job.run_after = as_time(run.job.run_after)
    run.workspace = workspaces.dump(run.job.workspace)


def give_up(run: Run, error: BaseException) -> None:
    """Note an exception. What the task has put into the workspace is saved all the same, if it is JSON."""
    run.job.id, run.job.attempt = run.fence
    run.error, run.raised, run.workspace = error, True, run.job.stored_workspace


def conclude(run: Run, clock: Clock) -> Execution:
    """Decide what becomes of the job, and call the hooks that follow from it."""
    job, pipeline, step, error = run.job, run.pipeline, run.step, run.error
    if error is None:
        decision = decide(pipeline, step)
    elif isinstance(error, Exhausted):
        decision = fail(step, error)
    else:
        decision = decide_failure(
            step, run.tries, error, clock(), _is_retriable(step, error), random.random()
        )
    error, workspace = decision.error, run.workspace
    job.state = decision.state
    job.next_task = decision.next_step.path if decision.next_step else ""
    if error is not None:
        _tell(job, step, decision)
    if decision.event is Event.FAILED_FOR_GOOD:
        _hook(job, "failure_hook", pipeline.failure_hook, error)
    elif decision.event is Event.LAST_STEP_DONE:
        _hook(job, "completion_hook", pipeline.completion_hook)
    _hook(job, "post_task_hook", pipeline.post_task_hook)
    job.id, job.attempt = run.fence
    if error is not None or pipeline.completion_hook or pipeline.post_task_hook:
        workspace = _dump(job, workspace)  # a hook may have changed it
    return Execution(
        job=job,
        step=step,
        started=run.started,
        finished=clock(),
        decision=decision,
        report="" if error is None else report(error),
        workspace=None if workspace == job.stored_workspace else workspace,
        moved_to=_moved_to(job, decision.run_after),
    )


def exception_class(path: str) -> type[BaseException]:
    """The exception that an entry of ``retry_on`` names: by its dotted path, or a builtin one by its name.

    Raises:
        ImportError: there is no such thing.
        TypeError: it is no exception.
    """
    found = import_string(path) if "." in path else getattr(builtins, path, None)
    if found is None:
        raise ImportError(f"{path!r} is no builtin, and no dotted path")
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise TypeError(f"{path!r} is not an exception class")
    return found


def _is_retriable(step: Step, error: BaseException) -> bool:
    if not step.retry_on:
        return isinstance(error, Exception)
    try:
        return isinstance(error, tuple(map(exception_class, step.retry_on)))
    except Exception:
        logger.exception("retry_on cannot be resolved, not retrying: task=%s", step.path)
        return False


def _tell(job: Job, step: Step, decision: Decision) -> None:
    """Log an error: as one if the job has failed for good, as a warning if the step is tried again."""
    values = job.pk, job.name, step.path, job.attempt
    error = decision.error
    if decision.event is Event.FAILED_FOR_GOOD:
        logger.error("Task failed: job=%s name=%s task=%s attempt=%s", *values, exc_info=error)
    elif not isinstance(error, Retry):
        logger.warning(
            "Task failed, to be tried again: job=%s name=%s task=%s attempt=%s error=%r",
            *(*values, error),
        )


def _hook(job: Job, kind: str, path: str | None, *args: Any) -> None:
    """Call a hook whose exception is logged and changes nothing, not even the transaction that it is called in."""
    if not path:
        return
    alias = job._state.db or "default"
    try:
        hook = import_string(path)
        if connections[alias].in_atomic_block:
            with transaction.atomic(using=alias):
                hook(job, *args)
        else:
            hook(job, *args)
    except KeyboardInterrupt:
        raise
    except BaseException:
        logger.exception("%s failed: job=%s name=%s hook=%s", kind, job.pk, job.name, path)


def _dump(job: Job, before: str | None) -> str | None:
    """The workspace as text; if hooks have left something that is not JSON, it goes back to ``before`` (if known)."""
    try:
        return workspaces.dump(job.workspace)
    except workspaces.InvalidWorkspace:
        logger.exception("Workspace not saved: job=%s name=%s", job.pk, job.name)
        if before is not None:
            job.workspace = workspaces.load(before)
        return before


def _moved_to(job: Job, run_after: datetime.datetime | None) -> QueuePlace | None:
    """Where the job is to be claimed from now on, as user code or a retry wants it; None if all is as before."""
    try:
        job.run_after = as_time(job.run_after if run_after is None else run_after)
    except (TypeError, ValueError, ValidationError):
        logger.exception("run_after not saved: job=%s name=%s", job.pk, job.name)
        return None
    return None if job.place == job.claimed_at else job.place


def report(error: BaseException) -> str:
    """The traceback as text that every database stores, cut at the front to a bounded length."""
    return shorten("".join(traceback.format_exception(error)))


def shorten(text: str) -> str:
    """The end of ``text``, which is where it says what happened."""
    text = as_text(text)
    return text if len(text) <= REPORT_LENGTH else "…" + text[-REPORT_LENGTH:]
