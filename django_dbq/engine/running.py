"""Workers, and the jobs that they hold: claim, outcome, hand-back, and what is saved in the middle of a task."""

import contextlib
import datetime
import logging
import math
from collections.abc import Iterable, Sequence
from uuid import UUID

from django.db import DatabaseError, Error
from django.db.models import Q

from .. import conf, limits, members, signals, workspaces
from ..models import Job, JobEvent, Worker
from ..outcomes import AttemptOutcome, fail
from ..pipelines import Step
from ..states import UNFINISHED, Event, target
from ..storage import Execution, Position, Queues, Storage, Suspects, storage_for
from .creation import wake

logger = logging.getLogger("django_dbq")

# -- workers --


def start_worker(worker: Worker, using: str) -> None:
    """Give a worker process its row, and with it the id that fences its writes and its first lease."""
    worker.heartbeat = storage_for(using).clock
    worker.save(using=using)


def beat(worker: Worker, using: str) -> bool:
    """Renew a worker's lease; False if somebody has declared it dead and taken its jobs."""
    return storage_for(using).beat(worker.pk)


def stop_worker(worker: Worker, now: datetime.datetime, using: str) -> None:
    """Note that a worker has ended in an orderly way, with its reason."""
    Worker.objects.using(using).filter(pk=worker.pk, stopped=None).update(
        stopped=now, reason=worker.reason[:255]
    )


# -- claim and outcome --


def claim(
    worker: Worker,
    queues: Queues,
    limit: int,
    now: datetime.datetime,
    using: str,
    pass_began: datetime.datetime | None = None,
    position: Position | None = None,
    suspects: Suspects = Suspects.ALONE,
) -> list[Job]:
    """Take up to ``limit`` jobs for ``worker``: highest priority first, then oldest.

    Only jobs whose name and step the settings know are taken; others stay as they are (`stranded` tells of them).
    A suspect, a job that was lost with a worker, comes alone, so that it can take no other with it.
    Committed when this returns: from here on only this worker, with this attempt number, may write the outcome.
    Of these, whoever runs them leaves out what `park` hands back.

    Args:
        pass_began: leave jobs that were created, or of which a step was run, after this time.
        position: where the worker's claims have got to; without heads, the claim starts with the very first job.
        suspects: what to do with them; only a worker that holds nothing else may take one.
    """
    known = conf.configuration().known_steps
    storage = storage_for(using)
    jobs = storage.claim(worker.pk, queues, limit, now, known, pass_began, position, suspects)
    try:
        limits.note_starts(jobs, using, storage.clock)
    except DatabaseError:
        # They are claimed all the same. The next admission notes it.
        logger.warning("Starts not noted: worker=%s", worker, exc_info=True)
    return jobs


def park(worker: Worker, jobs: Sequence[Job], now: datetime.datetime, using: str) -> list[Job]:
    """Hand back those of these claimed jobs that the settings have a limit for, and that are under none: they were
    created, or held, when the limit was not declared yet, and wait for it from now on. Returns the others.
    """
    limited = conf.configuration().limited
    late = {job.pk: job for job in jobs if job.name in limited and not job.limited}
    if late:
        storage = storage_for(using)
        with storage.write():
            storage.hand_back(worker.pk, list(late.values()), now)
            limits.park(late.values(), storage.unheld)
    return [job for job in jobs if job.pk not in late]


def admit(
    queues: Queues,
    room: int,
    now: datetime.datetime,
    using: str,
    pass_began: datetime.datetime | None = None,
    suspects: Suspects = Suspects.ALONE,
) -> limits.Admission:
    """Let jobs that are under a limit into the claim, as far as their limits allow and up to ``room`` of each name.

    Args:
        pass_began, suspects: of the claim that follows: what it leaves takes no slot.
    """
    if not conf.configuration().limited:
        return limits.Admission()
    storage = storage_for(using)
    count, wait, full = 0, math.inf, False
    served = storage.serving(queues)
    if paused := list(storage.paused.values_list("name", flat=True)):
        served &= ~Q(queue_name__in=paused)
    able = served
    if pass_began is not None:
        able &= storage.not_run_since(pass_began)
    if suspects is Suspects.PASSED:
        able &= Q(lost=0)
    limited = storage.limited.alias(stands_at=storage.stands_at)
    for pipeline in conf.configuration().limited.values():
        if not limits.parked(pipeline.name, storage.limited.filter(served), now).exists():
            continue
        # What no worker can run takes no slot either.
        known = [
            at for at in conf.configuration().known_steps if at.startswith(f"{pipeline.name} ")
        ]
        fit = able & Q(stands_at__in=known)
        with storage.write(), storage.looking_up():
            admission = limits.admit(pipeline, limited, fit, room, now, storage.clock)
        count += admission.count
        full |= admission.full
        wait = min(wait, math.inf if admission.wait is None else admission.wait)
    return limits.Admission(count, wait if wait < math.inf else None, full and not count)


def finish(
    worker: Worker,
    executions: Sequence[Execution],
    now: datetime.datetime,
    using: str,
    within: bool = False,
) -> list[Execution]:
    """Write what executions came to, with one `Attempt` row each; returns those that were written.

    An outcome whose fence no longer holds (the job was rescued, reset or deleted meanwhile) is dropped and
    logged. If a batch is refused, by the database or by whatever else is not an outage of it, each is written on
    its own, so that one bad outcome takes no other with it.

    Args:
        within: this is a part of the caller's transaction. A refusal is raised then, and once that transaction is
            committed the caller tells of it (`announce`).

    Raises:
        DatabaseError: the database could not be reached, or refused even a bare failure. Nothing is lost: the same
            executions may be finished again.
    """
    if not executions:
        return []
    storage = storage_for(using)
    won: set[UUID] = set()
    written: list[Execution] = []
    try:
        _write(storage, worker, executions, now, won)
    except Exception as error:
        if within or (isinstance(error, Error) and not storage.is_refusal(error)):
            for e in executions:  # what has been written is known again when this is tried again
                e.in_doubt = e.in_doubt or e.job.pk in won
            raise
        if len(executions) > 1:
            rest = [e for e in executions if e.job.pk not in won]
            executions = [e for e in executions if e.job.pk in won]
            written = [e for one in rest for e in finish(worker, [one], now, using)]
        else:
            logger.exception("Outcome refused: job=%s", executions[0].job.pk)
            _refuse(executions[0], error)
            _write(storage, worker, executions, now, won)
    told = len(written)
    for execution in executions:
        job = execution.job
        if job.pk not in won:
            logger.warning(
                "Outcome dropped, the job is no longer this worker's: job=%s name=%s attempt=%s worker=%s",
                job.pk,
                job.name,
                execution.attempt,
                worker,
            )
            continue
        written.append(execution)
        job.state, job.modified = execution.decision.state, now
        job.round = execution.round
        job.next_task, job.step = execution.next_task, execution.next_place
        job.finished, job.claimed_from = execution.job_finished, None
        job.failures, job.lost = execution.decision.failures, execution.decision.lost
        if execution.moved_to is not None:
            job.run_after = execution.moved_to.run_after
    if not within:
        announce(written[told:], using)
    return written


def announce(executions: Sequence[Execution], using: str) -> None:
    """Tell of outcomes that have been written, and wake the workers for jobs that go on."""
    for execution in executions:
        _tell(execution)
    wake({e.job.queue_name for e in executions if e.job.finished is None or e.job.limited}, using)


def _write(
    storage: Storage,
    worker: Worker,
    executions: Sequence[Execution],
    now: datetime.datetime,
    won: set[UUID],
) -> None:
    """Adds those that are written to ``won``, also before it raises."""
    alone: list[Execution] = []
    others: list[Execution] = []
    for e in sorted(executions, key=lambda e: e.job.pk.int):  # rows are locked in this order
        (others if e.concerns_others else alone).append(e)
    if alone:
        won |= _record(storage, worker, alone, now, watched=False)
        # Somebody may have begun to watch a job after it was claimed.
        for e in alone:
            if e.job.pk not in won:
                e.job.watched = True
                others.append(e)
    if others:
        with storage.write():
            ended = [e.job for e in others if e.job_finished is not None]
            # Before their members.
            members.lock({job.parent_id for job in ended if job.parent_id}, storage.alias)
            told: set[UUID] = set()
            if unwatched := [e for e in others if not e.job.watched]:
                told = _record(storage, worker, unwatched, now, watched=False)
                for e in unwatched:
                    e.job.watched = e.job.pk not in told
            if watched := [e for e in others if e.job.watched]:
                told |= _record(storage, worker, watched, now, watched=True)
            queues = _see_to_others([e for e in others if e.job.pk in told], now, storage)
        won |= told
        wake(queues, storage.alias)
    # Where the answer to an earlier try got lost, its commit may not have been.
    lost = (e for e in executions if e.in_doubt and e.job.pk not in won)
    won |= {e.job.pk for e in lost if is_recorded(e, storage.alias)}


def _record(
    storage: Storage,
    worker: Worker,
    executions: Sequence[Execution],
    now: datetime.datetime,
    watched: bool,
) -> set[UUID]:
    overdue = [e for e in executions if e.outcome is AttemptOutcome.TIMED_OUT]
    if not overdue:
        return storage.finish(worker, executions, now, watched)
    with storage.write():
        won = storage.finish(worker, executions, now, watched)
        for e in overdue:
            if e.job.pk in won:  # what was recorded before the task was stopped is complete now
                rows = storage.attempts.filter(job=e.job, number=e.attempt).order_by("-pk")
                storage.attempts.filter(pk__in=[row.pk for row in rows[1:]]).delete()
    return won


def _see_to_others(
    executions: Sequence[Execution], now: datetime.datetime, storage: Storage
) -> set[str]:
    """What outcomes that have just been written mean to other jobs; returns the queues in which something can be
    claimed now.
    """
    using = storage.alias
    queues: set[str] = set()
    for e in executions:
        if e.takes is not None:
            JobEvent.objects.using(using).filter(pk=e.takes).update(taken=e.attempt)
        if e.opens is not None:
            queues |= members.begin(e.job, e.opens, now, using, storage.insert)
    ended = [
        members.Ended(
            e.job.pk, e.decision.state, e.job.parent_id, e.job.parent_round, e.job.watched
        )
        for e in executions
        if e.job_finished is not None
    ]
    if ended:
        queues |= members.settle(ended, now, using)
    # What was asked of them after their claim, which has them watched.
    asked = [e.job.pk for e in executions if e.job.watched]
    pausing = storage.jobs.filter(pk__in=asked, pausing=True).order_by()
    for key, state in list(pausing.values_list("pk", "state")):
        if state in UNFINISHED:
            members.pause([key], now, using)
        else:
            storage.jobs.filter(pk=key).update(pausing=False)
    return queues


def is_recorded(execution: Execution, using: str) -> bool:
    """Whether this outcome has been written: then its attempt is there, which nothing else could have left."""
    rows = storage_for(using).attempts.filter(job=execution.job, number=execution.attempt)
    # A timeout is on record before it is enforced; only the outcome knows when the task has really ended.
    written = {"started": execution.started, "finished": execution.finished}
    return rows.filter(outcome=execution.outcome, **written).exists()


def _tell(execution: Execution) -> None:
    job = execution.job
    logger.info(
        "Step %s: name=%s queue=%s job=%s task=%s attempt=%s state=%s",
        execution.outcome,
        job.name,
        job.queue_name,
        job.pk,
        execution.step.path,
        execution.attempt,
        job.state,
    )
    signals.send(
        signals.step_finished,
        sender=Job,
        job=job,
        step=execution.step,
        outcome=execution.outcome,
        error=execution.error,
    )
    if job.finished is not None:
        signals.send(signals.job_finished, sender=Job, job=job)


def _refuse(execution: Execution, error: Exception) -> None:
    """Make a bare failure of an outcome that the database does not take; the workspace stays as it was."""
    execution.report = f"The outcome of this step was refused: {type(error).__name__}: {error}"
    execution.decision = fail(execution.step, error)
    execution.workspace = execution.moved_to = execution.result = None
    execution.opens = execution.takes = None
    # A join that is refused stays one: its members are there, and are not to be run again.
    execution.round = execution.job.round if type(execution.step) is not Step else None
    execution.job.progress_told = False


def hand_back(
    worker: Worker, jobs: Sequence[Job], now: datetime.datetime, using: str, started: bool = False
) -> int:
    """Return claimed jobs that were not run to their end to their queue, with their attempt; returns how many still
    could be.

    Args:
        started: their tasks were begun, and count under a rate limit.
    """
    if not jobs:
        return 0
    storage = storage_for(using)
    limited = [job.pk for job in jobs if job.limited and not started]
    with storage.write() if limited else contextlib.nullcontext():
        if limited:
            limits.forget_starts(storage.jobs.filter(pk__in=limited, worker=worker.pk))
        count = storage.hand_back(worker.pk, jobs, now)
    wake({job.queue_name for job in jobs}, using)
    return count


def stopping(worker: Worker, jobs: Iterable[Job], using: str) -> None:
    """Mark what ``worker`` is running as STOPPING: the worker will end, the task goes on until it is done."""
    for job in jobs:
        storage_for(using).mark(worker.pk, job, target(Event.STOP_ASKED))


def checkpoint(job: Job, using: str) -> bool:
    """Save the workspace of a job in the middle of its task; False, and nothing saved, if its fence no longer holds."""
    workspaces.dump(job.workspace)  # refused here, with its reason
    won = storage_for(using).checkpoint(job)
    job.stored_workspace = None  # unknown: a transaction of the task's may yet be rolled back
    return won


def save_progress(job: Job, using: str) -> bool:
    """Save how far a job that is being run has come; False, and nothing saved, if its fence no longer holds.

    Where the task has locked the row itself, it is left for later (``progress_unsaved``).
    """
    job.progress_unsaved = False  # first: the task may tell it anew meanwhile
    saved = None
    try:
        saved = storage_for(using).save_progress(job)
    finally:
        if saved is None:
            job.progress_unsaved = True
    return saved is not False
