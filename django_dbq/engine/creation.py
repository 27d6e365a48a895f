"""New jobs, and the wake-ups that tell workers of jobs they can claim."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from uuid import UUID

from django.db import Error, IntegrityError, connections, transaction
from django.db.models import BigIntegerField, Case, Value, When
from django.db.models.functions import Greatest

from .. import conf, dependencies, signals, wakeups
from ..models import Job, JobExists
from ..states import CLAIMABLE, State
from ..storage import storage_for

logger = logging.getLogger("django_dbq")

TRIES = 5  # for a key that others take and give back meanwhile


def insert(jobs: Sequence[Job], using: str, batch_size: int | None = None) -> list[Job]:
    """Insert prepared jobs, all or none, in the caller's transaction if there is one; returns them, or in the place of
    those that are not unique the ones that exist.

    Raises:
        Cycle: they depend on each other.
        ValueError: one depends on a job that does not exist.
        JobExists: one is not unique, and its pipeline wants that raised.
    """
    jobs = list(jobs)
    if any(job.unique_key is not None for job in jobs):
        return _insert_unique(jobs, using, batch_size)
    if jobs:
        _insert(jobs, using, batch_size)
        created(jobs, using)
    return jobs


def _insert(jobs: Sequence[Job], using: str, batch_size: int | None) -> None:
    storage = storage_for(using)
    if not any(job.needs.jobs for job in jobs):
        storage.insert(jobs, batch_size)
        return
    with storage.write():
        states = dependencies.connect(jobs, using)
        storage.insert(jobs, batch_size)
        dependencies.record(jobs, states, using)


def _insert_unique(jobs: list[Job], using: str, batch_size: int | None) -> list[Job]:
    """The same with keys that others may have; a key that comes twice among ``jobs`` is the first one's, or the last
    one's where that replaces it.
    """
    storage = storage_for(using)
    firsts: dict[str, Job] = {}
    for job in jobs:
        if job.unique_key is None or (first := firsts.setdefault(job.unique_key, job)) is job:
            continue
        if _refuse(job, first.pk) == "replace":
            firsts[job.unique_key] = job
    wanted = [(job, job.needs) for job in jobs if job.needs.jobs]
    for left in reversed(range(TRIES)):
        with storage.write():
            found = {str(job.unique_key): job for job in storage.unfinished(firsts)}
            made = [
                job
                for job in jobs
                if job.unique_key is None
                or (firsts[job.unique_key] is job and job.unique_key not in found)
            ]
            # Who depends on one of the others depends on the job in its place.
            places = {
                job.pk: found.get(job.unique_key, firsts[job.unique_key]).pk
                for job in jobs
                if job.unique_key is not None
            }
            for job, needs in wanted:
                keys = dict.fromkeys(places.get(key, key) for key in needs.jobs)
                job.needs = needs._replace(jobs=tuple(keys))
            try:
                with transaction.atomic(using=using):
                    # In one order for all: batches that share keys must not wait for each other.
                    in_order = sorted(made, key=lambda job: job.unique_key or "")
                    _insert(in_order, using, batch_size)
            except IntegrityError:  # somebody else was quicker: the next look sees that job
                if not left:
                    raise
                continue
            others = {key: _existing(firsts[key], other, using) for key, other in found.items()}
        break
    created(made, using)
    return [
        job if job.unique_key is None else others.get(job.unique_key) or firsts[job.unique_key]
        for job in jobs
    ]


def insert_unique(job: Job, insert: Callable[[], None], using: str) -> Job | None:
    """Have a prepared job with a unique key inserted by ``insert``; returns the job that exists instead, if any.

    Raises:
        JobExists: there is one, and the pipeline wants that raised.
    """
    storage = storage_for(using)
    for left in reversed(range(TRIES)):
        other = storage.unfinished([str(job.unique_key)]).first()
        if other is not None:
            with storage.write():
                return _existing(job, other, using)
        try:
            # Within a caller's transaction a refusal must leave that transaction usable.
            with storage.write():
                insert()
            return None
        except IntegrityError:
            if not left:
                raise
    return None


def _existing(job: Job, other: Job, using: str) -> Job:
    """The job that exists, after what its pipeline wants done with it."""
    if _refuse(job, other.pk) == "replace":
        storage = storage_for(using)
        brought = {
            name: getattr(job, name)
            for name in (
                *("workspace", "queue_name", "home_queue", "priority", "run_after", "due"),
                *("limited", "concurrency_key", "rate_key"),
            )
        }
        # Somebody who waits for it may have made it more urgent.
        urgency = Case(
            When(watched=False, parent=None, then=Value(job.urgency)),
            default=Greatest("urgency", Value(job.urgency)),
            output_field=BigIntegerField(),
        )
        fresh = storage.jobs.filter(pk=other.pk, state=State.NEW, attempt=0)
        if fresh.update(**brought, deadline=job.deadline, urgency=urgency, modified=job.modified):
            wake({job.queue_name}, using)
            other.refresh_from_db(using=using)
    return other


def _refuse(job: Job, other: UUID) -> str:
    """What is to be done about a job that is not unique.

    Raises:
        JobExists: that.
    """
    policy = conf.catalogue().named(job.name).unique_conflict
    if policy == "raise":
        raise JobExists(other, job.name)
    return policy


@contextlib.contextmanager
def creating(job: Job, using: str) -> Iterator[None]:
    """Within, save the prepared ``job``: what it depends on is recorded with it, and outside a transaction its row and
    its wake-up are committed together.

    Raises:
        ValueError: it depends on a job that does not exist.
    """
    if job.needs.jobs:
        with storage_for(using).write():
            states = dependencies.connect([job], using)
            yield
            dependencies.record([job], states, using)
        return
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
    wake({job.queue_name for job in jobs if job.state in CLAIMABLE}, using)


def wake(queues: Iterable[str], using: str) -> None:
    """Wake the workers of ``queues`` when the transaction commits; at once without one."""
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
