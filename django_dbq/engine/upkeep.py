"""What has to be done now and then: let due jobs in, tell of those that nobody can run, delete old ones."""

import datetime
import logging
from collections.abc import Callable, Iterable
from uuid import UUID

from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Value, When

from .. import conf, limits, members
from ..dependencies import chunks, free
from ..models import Attempt, Dependency, Job, JobEvent, JobQuerySet, Queue
from ..states import CLAIMABLE, DELETABLE, State
from ..storage import Queues, Storage, storage_for
from ..storage.base import PEEK
from .creation import wake

logger = logging.getLogger("django_dbq")


def stage_due(now: datetime.datetime, using: str) -> int:
    """Let future jobs whose time has come into the claim; returns how many, a limited number in one call."""
    storage = storage_for(using)
    count = storage.stage_due(now)
    # Waits for an event that have come to their end: what waits for members or for jobs has no time, or no round.
    over = storage.jobs.filter(state=State.WAITING, run_after__lte=now, round__isnull=False)
    if keys := list(over.order_by("run_after").values_list("pk", flat=True)[:PEEK]):
        with storage.write():
            wake(free(keys, now, using), using)
        count += len(keys)
    return count


def next_due(queues: Queues, now: datetime.datetime, using: str) -> datetime.datetime | None:
    """When the next future job of these queues is due, or a wait of them is over, or None."""
    return storage_for(using).next_due(queues, now)


def mend(now: datetime.datetime, using: str) -> int:
    """Put right what nobody tells of: jobs that wait for rows which somebody has deleted by hand, or for limits that
    were gone when they came to wait; returns how many.
    """
    storage = storage_for(using)
    with storage.looking_up():
        keys = members.loose(using)
    if keys:
        with storage.write():
            wake(members.tighten(keys, now, using), using)
        logger.warning("Jobs waited for what is gone: %s", ", ".join(map(str, keys)))
    count = len(keys)
    waiting = storage.limited.filter(state__in=CLAIMABLE)
    with storage.looking_up():
        named = list(limits.names(storage.limited))
    for name in set(named).difference(conf.configuration().limited):
        count += _let_go(storage, waiting.filter(name=name), now)
    return count


def stranded(queues: Queues, now: datetime.datetime, using: str) -> dict[tuple[str, str], int]:
    """How many due jobs wait at a (name, step path) that the settings do not know; no worker claims them."""
    known = set(conf.configuration().known_steps)
    storage = storage_for(using)
    waiting = storage.waiting(due=True).filter(storage.serving(queues)).claimable(now).order_by()
    counts = waiting.values_list("name", "next_task").annotate(Count("pk"))
    return {(name, path): n for name, path, n in counts if f"{name} {path}" not in known}


def follow_limits(now: datetime.datetime, using: str) -> int:
    """Put jobs that wait under the limits which the settings name now, and out of those they do not name any more;
    returns how many jobs that concerned. What is held meanwhile is left to the next `claim` or `mend`.
    """
    storage = storage_for(using)
    limited = list(conf.configuration().limited)
    gone = storage.unheld.filter(limited=True).exclude(name__in=limited)
    count = _let_go(storage, gone, now)
    if limited:
        late = storage.unheld.filter(limited=False, name__in=limited)
        count += _by_page(storage, late, lambda jobs: limits.park(jobs, storage.jobs))
    return count


def _let_go(storage: Storage, jobs: JobQuerySet, now: datetime.datetime) -> int:
    """Put jobs out of limits that are gone."""
    due = Case(When(Q(run_after=None) | Q(run_after__lte=now), then=Value(True)), default=False)
    free = {"limited": False, "concurrency_key": "", "rate_key": "", "due": due}
    return _by_page(
        storage,
        jobs,
        lambda found: storage.jobs.filter(pk__in=[job.pk for job in found]).update(**free),
    )


def _by_page(storage: Storage, jobs: JobQuerySet, change: Callable[[Iterable[Job]], int]) -> int:
    """Change jobs, a limited number in one transaction; those that somebody else has locked are passed."""
    count, last = 0, UUID(int=0)
    jobs = jobs.order_by("pk")
    while keys := list(jobs.filter(pk__gt=last).values_list("pk", flat=True)[:PEEK]):
        last = keys[-1]
        with storage.write():
            count += change(storage.unlocked(jobs.filter(pk__in=keys)).only("name", "workspace"))
    return count


def delete_old(created_before: datetime.datetime, using: str) -> int:
    """Delete the jobs in a deletable state that were created by then, with their members, in batches; returns how many.

    What is STOPPING and held by a worker of ours goes on in any case: only what django-db-queue has left so is deleted.
    Members are there for as long as the job that they are members of.
    """
    jobs = Job.objects.using(using)
    old = jobs.filter(state__in=DELETABLE, created__lte=created_before)
    old = old.exclude(state=State.STOPPING, worker__isnull=False)
    parent = jobs.filter(pk=OuterRef("parent")).order_by()
    old = old.filter(Q(parent__isnull=True) | ~Exists(parent))
    storage = storage_for(using)
    count = 0
    while True:
        with storage.write():
            # Locked, so that a job which is being sent on again is left alone, with its attempts.
            keys = storage.lock_oldest(old)
            levels = [keys]
            while inside := [
                key
                for chunk in chunks(levels[-1])
                for key in jobs.filter(parent__in=chunk).order_by().values_list("pk", flat=True)
            ]:
                levels.append(inside)
            for chunk in (chunk for level in reversed(levels) for chunk in chunks(level)):
                for rows in (Attempt, Dependency, JobEvent):
                    rows._base_manager.using(using).filter(job_id__in=chunk).delete()
                QuerySet.delete(jobs.filter(pk__in=chunk).order_by())
                count += len(chunk)
        if not keys:
            return count


def pause_queue(name: str, now: datetime.datetime, using: str) -> bool:
    """Have no worker claim from a queue, from its next claim on; False if it is paused already."""
    queues = Queue.objects.using(using)
    _, made = queues.get_or_create(name=name, defaults={"paused": now})
    return made or queues.filter(name=name, paused=None).update(paused=now) > 0


def resume_queue(name: str, using: str) -> bool:
    """Have workers claim from a paused queue again; False if it is not paused."""
    resumed = Queue.objects.using(using).filter(name=name, paused__isnull=False).update(paused=None)
    wake({name} if resumed else (), using)
    return resumed > 0
