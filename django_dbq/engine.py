"""The only writer of job state.

Each function is one change: its transaction, its transition, its fence, then its signals and its wake-ups
on commit. None of them loops, sleeps or calls user code, and none looks at a clock: ``now`` comes from the
caller.
"""

import contextlib
import datetime
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from django.db import DatabaseError, Error, connections, transaction
from django.db.models import Count, QuerySet

from . import conf, signals, wakeups
from .models import Attempt, Job, Worker
from .outcomes import decide_failure
from .states import CLAIMABLE, DELETABLE, Event, sources, target
from .storage import Execution, Position, Queues, storage_for

logger = logging.getLogger("django_dbq")


# -- creation --


def insert(jobs: Sequence[Job], using: str, batch_size: int | None = None) -> None:
    """Insert prepared jobs, all or none, in the caller's transaction if there is one."""
    if jobs:
        storage_for(using).insert(jobs, batch_size)
        created(jobs, using)


@contextlib.contextmanager
def announcing(job: Job, using: str) -> Iterator[None]:
    """Within, save the prepared ``job``: outside a transaction, its row and its wake-up are committed together."""
    # In a transaction the commit may be far off: there `created` sends the wake-up when it has come.
    if connections[using].in_atomic_block or not _sends([job.queue_name], using):
        yield
        return
    with wakeups.sending(using) as sent, storage_for(using).announcing(job) as announced:
        yield
        sent.update(announced)


def created(jobs: Sequence[Job], using: str) -> None:
    """Tell of jobs whose rows have just been inserted; workers are woken when the transaction commits."""
    for job in jobs:
        signals.send(signals.job_created, sender=Job, job=job)
    _wake({job.queue_name for job in jobs if job.state in CLAIMABLE}, using)


def _wake(queues: Iterable[str], using: str) -> None:
    if queues:
        transaction.on_commit(partial(notify, frozenset(queues), using), using=using)


def notify(queues: frozenset[str], using: str) -> None:
    """Wake the workers of ``queues``, in this process and in others. A hint: it may fail, they also poll."""
    wakeups.ring()
    if _sends(queues, using):
        try:
            with wakeups.sending(using) as sent:
                storage_for(using).notify(queues)
                sent.update(queues)
        except Error:
            logger.warning("Could not notify workers: queues=%s", ",".join(queues), exc_info=True)


def _sends(queues: Iterable[str], using: str) -> bool:
    return conf.configuration().wakeup != "poll" and wakeups.worth_sending(using, queues)


# -- workers --


def start_worker(worker: Worker, using: str) -> None:
    """Give a worker process its row, and with it the id that fences its writes."""
    worker.save(using=using)


def stop_worker(worker: Worker, now: datetime.datetime, using: str) -> None:
    """Note that a worker has ended in an orderly way."""
    worker.stopped = now
    worker.save(using=using, update_fields=["stopped"])


# -- claim and outcome --


def claim(
    worker: Worker,
    queues: Queues,
    limit: int,
    now: datetime.datetime,
    using: str,
    pass_began: datetime.datetime | None = None,
    position: Position | None = None,
) -> list[Job]:
    """Take up to ``limit`` jobs for ``worker``: highest priority first, then oldest.

    Only jobs whose name and step the settings know are taken; others stay as they are (`stranded` tells of them).
    Committed when this returns: from here on only this worker, with this attempt number, may write the outcome.

    Args:
        pass_began: leave jobs that were created, or of which a step was run, after this time.
        position: where the worker's claims have got to; without heads, the claim starts with the very first job.
    """
    known = conf.configuration().known_steps
    return storage_for(using).claim(worker.pk, queues, limit, now, known, pass_began, position)


def finish(
    worker: Worker, executions: Sequence[Execution], now: datetime.datetime, using: str
) -> list[Execution]:
    """Write what executions came to, with one `Attempt` row each; returns those that were written.

    An outcome whose fence no longer holds (the job was rescued, reset or deleted meanwhile) is dropped and
    logged. If the database refuses a batch, each is written on its own, so that one bad outcome takes no
    other with it.

    Raises:
        DatabaseError: the database could not be reached, or refused even a bare failure. Nothing is lost: the same
            executions may be finished again.
    """
    if not executions:
        return []
    storage = storage_for(using)
    try:
        won = storage.finish(worker, executions, now)
    except (DatabaseError, ValueError) as error:
        if not storage.is_refusal(error):
            raise
        if len(executions) > 1:
            return [e for one in executions for e in finish(worker, [one], now, using)]
        logger.exception("Outcome refused by the database: job=%s", executions[0].job.pk)
        _refuse(executions[0], error)
        won = storage.finish(worker, executions, now)
    written = []
    queues = set()
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
        job.next_task, job.step = execution.next_task, execution.next_place
        job.finished, job.claimed_from = execution.job_finished, None
        if job.finished is None:
            queues.add(job.queue_name)
        _tell(execution)
    _wake(queues, using)
    return written


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
    execution.error = error
    execution.report = (
        f"The database refused the outcome of this step: {type(error).__name__}: {error}"
    )
    execution.decision = decide_failure(execution.step)
    execution.workspace = execution.moved_to = None


def hand_back(worker: Worker, jobs: Sequence[Job], now: datetime.datetime, using: str) -> int:
    """Return claimed jobs that were not started to their queue, with their attempt; returns how many still could be."""
    if not jobs:
        return 0
    count = storage_for(using).hand_back(worker.pk, jobs, now)
    _wake({job.queue_name for job in jobs}, using)
    return count


def stopping(worker: Worker, jobs: Iterable[Job], now: datetime.datetime, using: str) -> None:
    """Mark what ``worker`` is running as STOPPING: the worker will end, the task goes on until it is done."""
    for job in jobs:
        Job.objects.using(using).filter(
            pk=job.pk,
            attempt=job.attempt,
            worker_id=worker.pk,
            state__in=sources(Event.STOP_ASKED),
        ).update(state=target(Event.STOP_ASKED), modified=now)


# -- housekeeping --


def stage_due(now: datetime.datetime, using: str) -> int:
    """Let future jobs whose time has come into the claim; returns how many, a limited number in one call."""
    return storage_for(using).stage_due(now)


def next_due(queues: Queues, now: datetime.datetime, using: str) -> datetime.datetime | None:
    """When the next future job of these queues is due, or None."""
    return storage_for(using).next_due(queues, now)


def stranded(queues: Queues, now: datetime.datetime, using: str) -> dict[tuple[str, str], int]:
    """How many due jobs wait at a (name, step path) that the settings do not know; no worker claims them."""
    known = set(conf.configuration().known_steps)
    storage = storage_for(using)
    waiting = storage.serving(queues, storage.waiting(due=True)).claimable(now).order_by()
    counts = waiting.values_list("name", "next_task").annotate(Count("pk"))
    return {(name, path): n for name, path, n in counts if f"{name} {path}" not in known}


def delete_old(created_before: datetime.datetime, using: str) -> int:
    """Delete the jobs in a deletable state that were created by then, in batches; returns how many."""
    old = Job.objects.using(using).filter(state__in=DELETABLE, created__lte=created_before)
    storage = storage_for(using)
    count = 0
    while True:
        with storage.write():
            # Locked, so that a job which is being sent on again is left alone, with its attempts.
            ids = storage.lock_oldest(old)
            Attempt.objects.using(using).filter(job_id__in=ids).delete()
            QuerySet.delete(Job.objects.using(using).filter(pk__in=ids).order_by())
        if not ids:
            return count
        count += len(ids)
