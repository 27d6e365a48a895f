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
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from asgiref.sync import async_to_sync
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.utils.module_loading import import_string

from . import conf, dependencies, signals, steps, workspaces
from .members import Opening
from .models import Job, Needs, QueuePlace, as_text, as_time
from .options import PRIORITY, QUEUE
from .outcomes import (
    Abort,
    AttemptOutcome,
    Decision,
    Exhausted,
    Finish,
    Retry,
    TimedOut,
    Tries,
    Wait,
    decide,
    decide_failure,
    decide_wait,
    exhausted,
    fail,
)
from .pipelines import Catalogue, Pipeline, Step
from .states import Event
from .steps import Visit
from .storage import Execution

logger = logging.getLogger("django_dbq")

PLACE = {"queue_name": QUEUE, "priority": PRIORITY, "run_after": None}  # what user code may set
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
    skipped: bool = False  # by the step's predicate
    finish: bool = False  # the task has asked to skip the rest
    visiting: bool = False  # what fails now is ours, and not the project's
    visit: Visit | None = None  # of a step that is no task
    result: str | None = None  # what the task has returned, where that is collected
    workspace: str | None = (
        None  # as the task has left it, or as it was stored if the task has raised
    )
    needs: Needs | None = None  # what the task has asked to wait for
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
    member = job.parent_id is not None
    step = pipeline.locate(job.step, job.next_task, member)
    if step is None:
        raise LookupError(f"The job {job.name!r} has no task {job.next_task!r}.")
    if member and pipeline.nested(step):
        step = pipeline.within(step, _group(job, pipeline))
    return pipeline, step


def _group(job: Job, pipeline: Pipeline) -> Step | None:
    """The group or map that a member belongs to: where its parent stands."""
    parents = Job.objects.using(job._state.db).filter(pk=job.parent_id)
    for place, path, outer in parents.values_list("step", "next_task", "parent_id"):
        return pipeline.locate(place, path, outer is not None)
    return None


def perform(run: Run) -> None:
    """Pre-task hook and task; what they come to is noted in ``run``.

    Raises:
        KeyboardInterrupt: somebody wants the process to end.
        DatabaseError: the database has failed us in a step that is no task. Nothing has been done.
    """
    try:
        if run.error is None and prepare(run):
            result = import_string(run.step.path)(run.job)
            # Most of these run on an event loop: here are those of a test, and what no signature has told.
            take(run, async_to_sync(_await)(result) if inspect.iscoroutine(result) else result)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also sys.exit() and a cancelled coroutine: the worker goes on
        if run.visiting and isinstance(error, DatabaseError | InterfaceError):
            raise
        give_up(run, error)
    check_wait(run)


def check_wait(run: Run) -> None:
    """Make it the task's failure if it has asked to wait for what does not exist, or waits for this job.

    If the database is away just now, that is left to the writing of the outcome: the task has been run, and is not to
    be run again for that.
    """
    wait = run.error
    if not isinstance(wait, Wait) or wait.jobs is None:
        return
    using = run.job._state.db or "default"
    try:
        run.needs = Needs(wait.jobs, wait.mode, wait.on_failure)
        dependencies.refuse(run.job.pk, run.needs, using)
    except ValueError as error:
        run.error, run.raised = error, True
    except (DatabaseError, InterfaceError):
        if connections[using].in_atomic_block:
            raise  # with all that the task has written in this transaction
        logger.warning("What it waits for is not checked yet: job=%s", run.job.pk, exc_info=True)
        connections[using].close()


async def _await(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine


def restart(run: Run) -> None:
    """Have an atomic step that was rolled back be performed anew."""
    restore(run)
    run.error, run.raised, run.workspace = None, False, None
    run.skipped, run.finish, run.result, run.needs = False, False, None, None


def restore(run: Run) -> None:
    """Make the job of an atomic step that was rolled back what it was, its workspace included."""
    run.job.__dict__.clear()
    run.job.__dict__.update(run.claimed or {})
    if run.job.stored_workspace is not None:
        run.job.workspace = workspaces.load(run.job.stored_workspace)


def prepare(run: Run) -> bool:
    """All that comes before the task, whose exceptions count as the task's; False if there is no task to call.

    The step's predicate may have it skipped; the pre-task hook is called; and steps that are no tasks are visited.
    """
    job, step, using = run.job, run.step, run.job._state.db or "default"
    run.visiting = True
    if job.round is not None and not steps.has_begun(job, step, run.pipeline, using):
        job.round = None
    run.visiting = False
    if step.when is not None and job.round is None and not _holds(step.when, job):
        run.skipped = True
    elif type(step) is not Step:
        run.visiting = True
        run.visit = steps.visit(job, step, run.started, using)
    else:
        if run.pipeline.pre_task_hook:
            import_string(run.pipeline.pre_task_hook)(job)
        return True
    run.job.id, run.job.attempt = run.fence
    run.workspace = workspaces.dump(job.workspace)
    return False


def _holds(predicate: str, job: Job) -> bool:
    answer = import_string(predicate)(job)
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError(f"{predicate!r} is an async function, which cannot be a predicate.")
    return bool(answer)


def take(run: Run, result: Any) -> None:
    """Note what a task has returned, and what it has left in the workspace."""
    run.job.id, run.job.attempt = run.fence
    if result is Retry or result is Abort or result is Finish or result is Wait:
        result = result()  # `return Retry` is meant as `raise Retry` is; of Wait, its own error
    if isinstance(result, Finish):
        run.finish = True
    elif isinstance(result, Retry | Abort | Wait):
        run.error = result
    elif run.step.collected:
        # In the list of a map's results, in the workspace.
        run.result = workspaces.dump(result, "the result", inside=2)
    if run.job.place != run.job.claimed_at:
        for name in PLACE:
            _check_place(run.job, name)
    run.workspace = workspaces.dump(run.job.workspace)


def _check_place(job: Job, name: str) -> None:
    """Raise if one of `PLACE` has been left with what no claim could go by.

    Raises:
        TypeError, ValueError: that.
    """
    value, expects = getattr(job, name), PLACE[name]
    if expects is not None:
        if (expected := expects(value)) is not None:
            raise ValueError(f"{name} is {value!r}. Expected: {expected}.")
    elif hasattr(value, "resolve_expression"):
        # Only some databases could have it worked out as they write a whole batch of outcomes.
        raise TypeError(f"{name} is {value!r}. Expected of a task: a datetime, or None.")
    else:
        setattr(job, name, as_time(value, name))


def _mend_place(job: Job, name: str) -> None:
    """Put one of `PLACE` back to what it was, if it is what no claim could go by."""
    try:
        _check_place(job, name)
    except Exception:
        logger.exception("%s not saved: job=%s name=%s", name, job.pk, job.name)
        if job.claimed_at is not None:
            setattr(job, name, getattr(job.claimed_at, name))


def give_up(run: Run, error: BaseException) -> None:
    """Note an exception. What the task has put into the workspace is saved all the same, if it is JSON."""
    run.job.id, run.job.attempt = run.fence
    if isinstance(error, Finish):
        try:
            run.workspace = workspaces.dump(run.job.workspace)
        except workspaces.InvalidWorkspace as invalid:
            error = invalid
        else:
            run.finish = True
            return
    run.error, run.raised, run.workspace = error, True, run.job.stored_workspace
    run.visit = None  # nothing has begun, and no event is taken


def conclude(run: Run, clock: Clock) -> Execution:
    """Decide what becomes of the job, and call the hooks that follow from it."""
    job, step = run.job, run.step
    decision = _decide(run, clock)
    error, workspace = decision.error, run.workspace
    job.state = decision.state
    job.next_task = decision.next_step.path if decision.next_step else ""
    if error is not None:
        _tell(job, step, decision)
    hooked = _call_hooks(run, decision)
    job.id, job.attempt = run.fence
    if run.error is not None or hooked:
        workspace = _dump(job, workspace)  # a hook may have changed it
    visit = run.visit
    opens = visit.opens if visit is not None else None
    if run.needs is not None and decision.event is Event.WAITS:
        opens = Opening(needs=run.needs)
    return Execution(
        job=job,
        step=step,
        started=run.started,
        finished=clock(),
        decision=decision,
        report="" if error is None else report(error),
        workspace=None if workspace == job.stored_workspace else workspace,
        moved_to=_moved_to(run, decision),
        opens=opens,
        takes=visit.takes if visit is not None else None,
        round=_round(run, decision) if type(step) is not Step else None,
        result=run.result if decision.outcome is AttemptOutcome.SUCCEEDED else None,
    )


def _decide(run: Run, clock: Clock) -> Decision:
    step, error, member = run.step, run.error, run.job.parent_id is not None
    if run.skipped:
        return decide(run.pipeline, step, member=member, outcome=AttemptOutcome.SKIPPED)
    if error is None and run.visit is not None and (run.visit.opens or run.visit.until):
        begun = replace(run.tries, failures=0)  # failures to begin
        return decide_wait(step, begun, None if run.visit.opens else run.visit.until)
    if error is None:
        return decide(run.pipeline, step, member=member, finish=run.finish)
    if isinstance(error, Exhausted):
        return fail(step, error)
    if type(step) is not Step and isinstance(error, TimedOut):
        return fail(step, error, AttemptOutcome.TIMED_OUT)
    retriable = _is_retriable(step, error)
    return decide_failure(step, run.tries, error, clock(), retriable, random.random())


def _call_hooks(run: Run, decision: Decision) -> bool:
    """The hooks that follow from a decision; returns whether there were any. Members of groups and maps have none at
    their end: it is their parent that completes or fails.
    """
    job, pipeline = run.job, run.pipeline
    hooked = False
    if decision.event is Event.FAILED_FOR_GOOD and job.parent_id is None:
        hooked |= _hook(job, "failure_hook", pipeline.failure_hook, decision.error)
    elif decision.event is Event.LAST_STEP_DONE and job.parent_id is None:
        hooked |= _hook(job, "completion_hook", pipeline.completion_hook)
    if type(run.step) is Step and not run.skipped:
        hooked |= _hook(job, "post_task_hook", pipeline.post_task_hook)
    return hooked


def _round(run: Run, decision: Decision) -> int | None:
    """The attempt that has begun what the job stands in, for members to be known by; None outside of such a step."""
    if decision.outcome is AttemptOutcome.WAITED and run.job.round is None:
        # Without a visit it is the step's predicate that waits, and that is asked again.
        return run.fence[1] if run.visit is not None else None
    return run.job.round if decision.next_step is run.step else None


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


def _hook(job: Job, kind: str, path: str | None, *args: Any) -> bool:
    """Call a hook, if there is one, whose exception is logged and changes nothing, not even the transaction that it is
    called in.
    """
    if not path:
        return False
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
    return True


def _dump(job: Job, before: str | None) -> str | None:
    """The workspace as text; if hooks have left something that is not JSON, it goes back to ``before`` (if known)."""
    try:
        return workspaces.dump(job.workspace)
    except workspaces.InvalidWorkspace:
        logger.exception("Workspace not saved: job=%s name=%s", job.pk, job.name)
        if before is not None:
            job.workspace = workspaces.load(before)
        return before


def _moved_to(run: Run, decision: Decision) -> QueuePlace | None:
    """Where the job is to be claimed from now on, as user code, its next step or a retry wants it; None if all is as
    before.
    """
    job = run.job
    if job.place != job.claimed_at:
        for name in PLACE:
            _mend_place(job, name)
    if decision.event is Event.WAITS and type(run.step) is not Step:
        job.run_after = run.visit.until if run.visit else None
    if run.pipeline.has_queues and decision.event is Event.STEP_DONE and decision.next_step:
        if job.claimed_at is not None and job.queue_name != job.claimed_at.queue_name:
            job.home_queue = ""  # the task has chosen one for all that follows
        job.enter(decision.next_step)
    if decision.run_after is not None:
        job.run_after = decision.run_after
        _mend_place(job, "run_after")
    return None if (place := job.place) == job.claimed_at else place


def report(error: BaseException) -> str:
    """The traceback as text that every database stores, cut at the front to a bounded length."""
    return shorten("".join(traceback.format_exception(error)))


def shorten(text: str) -> str:
    """The end of ``text``, which is where it says what happened."""
    text = as_text(text)
    return text if len(text) <= REPORT_LENGTH else "…" + text[-REPORT_LENGTH:]
