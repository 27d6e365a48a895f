"""What has to be done now and then: let due jobs in, tell of those that nobody can run, delete old ones."""

import datetime
import logging
from collections import Counter
from collections.abc import Callable, Iterable

from django.db.models import Case, Count, Exists, OuterRef, Q, QuerySet, Value, When

from .. import conf, limits, members
from ..dependencies import chunks, free
from ..models import ORDER, Attempt, Dependency, Job, JobEvent, JobQuerySet, Queue
from ..states import CLAIMABLE, DELETABLE, State
from ..storage import Queues, Storage, storage_for
from ..storage.base import PEEK
from .creation import wake

logger = logging.getLogger("django_dbq")

PARKED = (
    "state",
    "due",
    "concurrency_key",
    "rate_key",
)  # how the index of limits has the jobs of a name


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
    the settings do not have any more; returns how many.
    """
    storage = storage_for(using)
    with storage.looking_up():
        keys = members.loose(using)
        named = set(limits.names(storage.limited))
    if keys:
        with storage.write():
            wake(members.tighten(keys, now, using), using)
        logger.warning("Jobs waited for what is gone: %s", ", ".join(map(str, keys)))
    # Not what the settings do not know at all: those that do may well have a limit for it.
    gone = named.intersection(conf.catalogue()).difference(conf.configuration().limited)
    waiting = storage.limited.filter(state__in=CLAIMABLE)
    return len(keys) + sum(_let_go(storage, waiting.filter(name=name), now) for name in gone)


def follow_limits(now: datetime.datetime, using: str) -> int:
    """Put jobs that wait for a worker under the limits that the settings have now; returns how many that concerned.

    What is held meanwhile is left to `park`, limits that are gone to `mend`.
    """
    storage = storage_for(using)
    count = 0
    if limited := conf.configuration().limited:
        # As the claim would, job by job, when it meets them.
        late = storage.waiting(due=True).filter(limited=False, name__in=list(limited))
        in_turn = late.order_by("queue_name", *ORDER)
        count += _by_page(storage, in_turn, lambda jobs: limits.park(jobs, storage.jobs))
    for pipeline in limited.values():
        waiting = storage.limited.filter(name=pipeline.name, state__in=CLAIMABLE)
        # And what was let in and is not claimed: older settings may have let in more.
        other = waiting.filter(Q(due=True) | limits.has_other_keys(pipeline)).order_by(*PARKED)
        count += _by_page(storage, other, lambda jobs: limits.park(jobs, storage.jobs))
    return count


def _let_go(storage: Storage, jobs: JobQuerySet, now: datetime.datetime) -> int:
    """Put jobs out of limits that are gone."""
    due = Case(When(Q(run_after=None) | Q(run_after__lte=now), then=Value(True)), default=False)
    free = {"limited": False, "concurrency_key": "", "rate_key": "", "due": due}
    return _by_page(
        storage,
        jobs.order_by(*PARKED),
        lambda found: storage.jobs.filter(pk__in=[job.pk for job in found]).update(**free),
    )


def _by_page(storage: Storage, jobs: JobQuerySet, change: Callable[[Iterable[Job]], int]) -> int:
    """Change jobs, a limited number in one transaction, until there are none left that nobody else has locked.

    Args:
        jobs: which this change makes others; in the order of their index, or a planner might rather read all there are.
    """
    count = 0
    while keys := list(jobs.values_list("pk", flat=True)[:PEEK]):
        with storage.write():
            found = storage.unlocked(jobs.filter(pk__in=keys).order_by("pk"))
            changed = change(found.only("name", "workspace", "run_after"))
        if not changed:
            break
        count += changed
    return count


def stranded(queues: Queues, now: datetime.datetime, using: str) -> dict[tuple[str, str], int]:
    """How many due jobs wait at a (name, step path) that the settings do not know; no worker claims them."""
    known = set(conf.configuration().known_steps)
    storage = storage_for(using)
    limited = storage.limited.filter(state__in=CLAIMABLE, due=False)
    unknown = set(limits.names(storage.limited)).difference(conf.catalogue())
    parts = [storage.waiting(due=True), *(limited.filter(name=name) for name in unknown)]
    found: Counter[tuple[str, str]] = Counter()
    for part in parts:
        rows = part.filter(storage.serving(queues)).claimable(now).order_by()
        for name, path, count in rows.values_list("name", "next_task").annotate(Count("pk")):
            if f"{name} {path}" not in known:
                found[name, path] += count
    return found


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
