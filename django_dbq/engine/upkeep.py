"""What has to be done now and then: let due jobs in, tell of those that nobody can run, delete old ones."""

import datetime

from django.db.models import Count, QuerySet

from .. import conf
from ..models import Attempt, Job
from ..states import DELETABLE, State
from ..storage import Queues, storage_for


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
    """Delete the jobs in a deletable state that were created by then, in batches; returns how many.

    What is STOPPING and held by a worker of ours goes on in any case: only what django-db-queue has left so is deleted.
    """
    old = Job.objects.using(using).filter(state__in=DELETABLE, created__lte=created_before)
    old = old.exclude(state=State.STOPPING, worker__isnull=False)
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
