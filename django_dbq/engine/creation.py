"""New jobs, and the wake-ups that tell workers of jobs they can claim."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from django.db import Error, connections, transaction

from .. import conf, signals, wakeups
from ..models import Job
from ..states import CLAIMABLE
from ..storage import storage_for

logger = logging.getLogger("django_dbq")


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
