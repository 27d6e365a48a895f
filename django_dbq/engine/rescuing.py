"""Jobs whose worker cannot write their outcome any more, because it is dead or about to be ended."""

import datetime
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from .. import conf
from ..models import Job, Worker, may_be_due
from ..outcomes import AttemptOutcome, TimedOut, Tries, decide_failure, decide_lost
from ..pipelines import Step
from ..states import State
from ..storage import Overdue, Storage, storage_for
from .creation import wake

logger = logging.getLogger("django_dbq")


def record_timeouts(
    worker_id: int,
    overdue: Sequence[Overdue],
    now: datetime.datetime,
    using: str,
    wait: bool = True,
) -> set[UUID]:
    """Record that attempts have run past their timeout, before anything is done about it; returns their jobs, as far as
    the worker still holds them with that attempt number.

    A job goes on being held. Whoever comes next, its worker or a rescuer, decides from this record.

    Args:
        wait: for a lock that the task itself may have on the row; else such a job is left out.
    """
    storage = storage_for(using)
    with storage.write():
        label = storage.workers.values_list("label", flat=True).get(pk=worker_id)
        jobs = storage.held().filter(pk__in=[o.job_id for o in overdue], worker_id=worker_id)
        jobs = jobs.select_for_update() if wait else storage.unlocked(jobs)
        held = {(job.pk, job.attempt): job for job in jobs}
        ours = [o for o in overdue if (o.job_id, o.attempt) in held]
        for o in ours:
            job = held[o.job_id, o.attempt]
            if not storage.attempts.filter(job=job, number=o.attempt).exists():
                _record(storage, job, label, AttemptOutcome.TIMED_OUT, o.started, now, o.report)
    return {o.job_id for o in ours}


def release(worker_id: int, keep: Collection[UUID], now: datetime.datetime, using: str) -> int:
    """Hand back all jobs that a worker holds but for ``keep``, in its name; returns how many.

    One that has run past its timeout goes on as after any timeout: its attempt is on record, and not to be given back.
    """
    storage = storage_for(using)
    with storage.write():
        ours = storage.held().filter(worker_id=worker_id).exclude(pk__in=keep)
        jobs = list(ours.select_for_update())
        overdue = _overdue(storage, jobs)
        _return(storage, [job for job in jobs if (job.pk, job.attempt) not in overdue], now)
        late = [job for job in jobs if (job.pk, job.attempt) in overdue]
        _lose(storage, _worker(storage, worker_id), late, overdue, "", now)
    wake({job.queue_name for job in jobs}, using)
    return len(jobs)


def rescue(worker: Worker, now: datetime.datetime, using: str) -> float | None:
    """Take the jobs of all workers but ``worker`` that are late; returns in how many seconds the next could be, or None
    if there is no other worker.
    """
    left = []
    for other in storage_for(using).living():
        if other.pk == worker.pk:
            continue
        if other.left > 0:
            left.append(other.left)
        else:
            bury(other.pk, "It has stopped reporting.", now, using, late=True)
    return min(left, default=None)


def sweep(now: datetime.datetime, using: str) -> int:
    """Take the jobs that workers hold which have ended: one that froze in a claim may have claimed after its rescue,
    and its rescuer may not have known all that it held.
    """
    abandoned = storage_for(using).abandoned()
    return sum(bury(pk, "It had ended already.", now, using) for pk in abandoned)


def bury(
    worker_id: int, reason: str, now: datetime.datetime, using: str, late: bool = False
) -> int:
    """Declare a worker dead and take all its jobs; returns how many.

    A job that was running is lost (or timed out, if that was recorded) and goes on as its pipeline says. One whose
    worker was shutting down is handed back: the shutdown was it, and not the job. One that the settings do not know
    stays with the dead: the next `sweep` of a worker that knows it takes it.

    Args:
        reason: why it counts as dead, for people.
        late: only if its lease is over by the database's clock, also in this very transaction.
    """
    storage = storage_for(using)
    with storage.write():
        worker = storage.lock_worker(worker_id)
        if worker is None:
            if storage.workers.filter(pk=worker_id).exists():
                return 0  # somebody else is at it
            worker = _worker(storage, worker_id)
        elif late and not _is_late(storage, worker_id):
            return 0
        held = list(storage.held().filter(worker_id=worker_id).select_for_update())
        overdue = _overdue(storage, held)
        # What is to become of a lost job is for its step to say, `on_lost`. Who does not know that (an older worker,
        # while a deploy goes on) must not guess: READY, what is to be held would run again, unseen; PAUSED, what is to
        # be tried again would wait for a person. Left as it is, it waits for a worker that knows it, and nobody else
        # could run it anyhow.
        jobs = [
            job
            for job in held
            if job.state == State.STOPPING or (job.pk, job.attempt) in overdue or _step(job)
        ]
        cut_off = [
            job
            for job in jobs
            if job.state == State.STOPPING and (job.pk, job.attempt) not in overdue
        ]
        _return(storage, cut_off, now)
        _lose(storage, worker, [job for job in jobs if job not in cut_off], overdue, reason, now)
        declared = worker.stopped is None and not worker._state.adding
        if declared:
            worker.stopped, worker.reason = now, f"Declared dead. {reason}"[:255]
            worker.save(using=using, update_fields=["stopped", "reason"])
    if not (jobs or declared):
        return 0
    logger.warning(
        "Worker declared dead: worker=%s jobs=%s left=%s reason=%s",
        *(worker, len(jobs), len(held) - len(jobs), reason),
    )
    wake({job.queue_name for job in jobs}, using)
    return len(jobs)


def _worker(storage: Storage, worker_id: int) -> Worker:
    """A worker's row; or something to call it by, if somebody has deleted that."""
    row = storage.workers.filter(pk=worker_id).first()
    return row or Worker(pk=worker_id, label=f"worker {worker_id}")


def _is_late(storage: Storage, worker_id: int) -> bool:
    return any(other.pk == worker_id and other.left <= 0 for other in storage.living())


def _return(storage: Storage, jobs: Sequence[Job], now: datetime.datetime) -> None:
    """Hand back locked jobs in the name of the worker that holds them."""
    groups: dict[tuple[State, int], list[UUID]] = defaultdict(list)
    for job in jobs:
        state = State.READY if job.step or job.attempt > 1 else State.NEW
        groups[State.PAUSED if job.pausing else state, job.attempt - 1].append(job.pk)
    for (state, attempt), keys in groups.items():
        storage.jobs.filter(pk__in=keys).update(
            state=state,
            attempt=attempt,
            worker_id=None,
            modified=now,
            due=may_be_due(True),
            pausing=False,
        )


def _overdue(storage: Storage, jobs: Sequence[Job]) -> set[tuple[UUID, int]]:
    """The attempts of these jobs that are on record as timed out."""
    rows = storage.attempts.filter(
        job_id__in=[job.pk for job in jobs], outcome=AttemptOutcome.TIMED_OUT
    )
    return set(rows.order_by().values_list("job_id", "number"))


def _lose(
    storage: Storage,
    worker: Worker,
    jobs: Sequence[Job],
    overdue: Collection[tuple[UUID, int]],
    reason: str,
    now: datetime.datetime,
) -> None:
    """Move locked jobs on whose attempt nobody has lived to finish."""
    for job in jobs:
        step = _step(job) or Step(job.step, job.next_task)
        tries = Tries(job.attempt, job.failures, job.lost)
        if (job.pk, job.attempt) in overdue:
            # Whether a retry is left is for whoever claims the job next: it also runs the failure hook.
            tries = replace(tries, retries=tries.failures + 1)
            decision = decide_failure(step, tries, TimedOut(), now)
        else:
            decision = decide_lost(step, tries)
            report = f"The worker {worker} was lost while it ran this task. {reason}"
            _record(storage, job, worker.label, decision.outcome, job.modified, now, report)
        values: dict[str, Any] = {"due": may_be_due(True)}
        if decision.run_after is not None:
            # Which sets `due` as well. Until then it is under no limit.
            values = {"run_after": decision.run_after, "limited": False}
        storage.jobs.filter(pk=job.pk).update(
            state=State.PAUSED if job.pausing else decision.state,
            pausing=False,
            failures=decision.failures,
            lost=decision.lost,
            worker_id=None,
            modified=now,
            **values,
        )
        logger.warning(
            "Step %s: name=%s queue=%s job=%s task=%s attempt=%s state=%s worker=%s",
            *(decision.outcome, job.name, job.queue_name, job.pk, job.next_task, job.attempt),
            *(decision.state, worker),
        )


def _step(job: Job) -> Step | None:
    """The step that a job stands at, if the settings know it."""
    pipeline = conf.catalogue().get(job.name)
    member = job.parent_id is not None
    return pipeline.locate(job.step, job.next_task, member) if pipeline else None


def _record(
    storage: Storage,
    job: Job,
    label: str,
    outcome: AttemptOutcome,
    started: datetime.datetime,
    finished: datetime.datetime,
    report: str,
) -> None:
    storage.attempts.create(
        job_id=job.pk,
        number=job.attempt,
        step=job.step,
        task=job.next_task,
        outcome=outcome,
        worker=label,
        started=started,
        finished=finished,
        error=report,
    )
