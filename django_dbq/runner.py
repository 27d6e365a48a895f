"""Run one step of one claimed job: hooks, task, and what they come to. Reads top to bottom; writes nothing."""

import datetime
import logging
import traceback
from collections.abc import Callable
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.module_loading import import_string

from . import conf, signals, workspaces
from .models import Job, QueuePlace, as_time
from .outcomes import decide
from .pipelines import Pipeline, Step
from .storage import Execution

logger = logging.getLogger("django_dbq")

REPORT_LENGTH = 20_000  # characters of a traceback that are kept: its end, where the error stands


def run(job: Job, clock: Callable[[], datetime.datetime]) -> Execution:
    """Run the step that ``job`` stands at and say what it came to; no exception of user code gets out.

    The order is: pre-task hook, task, then the failure hook or (after the last step) the completion hook, then the
    post-task hook. What any of them leaves in the workspace is saved; the hooks after the task see the job's coming
    state and next task.
    """
    pipeline, step = standing(job)
    fence = job.pk, job.attempt
    started = clock()
    signals.send(signals.step_started, sender=Job, job=job, step=step)
    error, workspace = _attempt(job, pipeline, step)
    decision = decide(pipeline, step, error)
    job.state = decision.state
    job.next_task = decision.next_step.path if decision.next_step else ""
    if error is not None:
        logger.error(
            "Task failed: job=%s name=%s task=%s attempt=%s",
            *(fence[0], job.name, step.path, fence[1]),
            exc_info=error,
        )
        _hook(job, "failure_hook", pipeline.failure_hook, error)
    elif decision.next_step is None:
        _hook(job, "completion_hook", pipeline.completion_hook)
    _hook(job, "post_task_hook", pipeline.post_task_hook)
    job.pk, job.attempt = fence  # whatever user code has done to them
    if error is not None or pipeline.completion_hook or pipeline.post_task_hook:
        workspace = _dump(job, workspace)  # a hook may have changed it
    return Execution(
        job=job,
        step=step,
        started=started,
        finished=clock(),
        decision=decision,
        error=error,
        report="" if error is None else report(error),
        workspace=None if workspace == job.stored_workspace else workspace,
        moved_to=_moved_to(job),
    )


def standing(job: Job) -> tuple[Pipeline, Step]:
    """The pipeline and the step of a claimed job; the claim has made sure that both exist."""
    pipeline = conf.catalogue().named(job.name)
    step = pipeline.locate(job.step, job.next_task)
    if step is None:
        raise LookupError(f"The job {job.name!r} has no task {job.next_task!r}.")
    return pipeline, step


def _attempt(job: Job, pipeline: Pipeline, step: Step) -> tuple[BaseException | None, str | None]:
    """Pre-task hook and task. Returns the exception that ended them, or None, and the workspace as text.

    After an exception the workspace is what is stored: what the failed task has put into it is saved if it is JSON.
    """
    try:
        if pipeline.pre_task_hook:
            import_string(pipeline.pre_task_hook)(job)
        import_string(step.path)(job)
        job.run_after = as_time(job.run_after)
        return None, workspaces.dump(job.workspace)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also sys.exit() and a cancelled coroutine: the worker goes on
        return error, job.stored_workspace


def _hook(job: Job, kind: str, path: str | None, *args: Any) -> None:
    """Call a hook whose exception is logged and changes nothing."""
    if not path:
        return
    try:
        import_string(path)(job, *args)
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


def _moved_to(job: Job) -> QueuePlace | None:
    """Where user code wants the job to be claimed from now on; None if it says nothing (or nothing sensible)."""
    try:
        job.run_after = as_time(job.run_after)
    except (TypeError, ValueError, ValidationError):
        logger.exception("run_after not saved: job=%s name=%s", job.pk, job.name)
        return None
    return None if job.place == job.claimed_at else job.place


def report(error: BaseException) -> str:
    """The traceback as text that every database stores, cut at the front to a bounded length."""
    text = "".join(traceback.format_exception(error))
    text = text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= REPORT_LENGTH else "…" + text[-REPORT_LENGTH:]
