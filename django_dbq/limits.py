"""``concurrency`` and ``rate_limit``: which of the jobs that are under a limit may be claimed now.

Such jobs stay out of the claim (``due`` is false: they are parked) until a worker, just before it claims, *admits* as
many as their limits allow. What counts is rows and not a counter: those that workers hold or that are admitted, and for
rates the `Start` rows of the window. A start has its time only once the job was claimed; until then it counts as if it
were now. Whoever admits holds the lock of the pipeline's `Limit` row, so limits hold exactly over all workers; all else
goes on beside it.

Everything here is a part of the caller's transaction.
"""

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connections
from django.db.models import Count, Expression, Min, Q

from . import conf
from .models import ORDER, Job, JobQuerySet, Start, as_stored, is_due, turn
from .models import Limit as LimitRow
from .pipelines import Limit, Pipeline
from .states import CLAIMABLE, HELD

STALE = datetime.timedelta(seconds=1)  # that an admitted job may wait to be claimed
MOST_KEYS = 50  # that one admission looks at; the next one goes on behind them
PAGE = 200  # jobs that are read at once
MOST_FULL = 500  # keys without a free slot that are passed in the query itself
FEW_FULL = 4  # so many of them, or less, are passed page by page
KEY_LENGTH = 200

Key = tuple[str, str]  # of concurrency and of rate


class Candidate(NamedTuple):
    """What an admission has to know of a job; these are columns."""

    pk: UUID
    attempt: int
    concurrency_key: str
    rate_key: str
    priority: int
    urgency: int
    created: datetime.datetime


@dataclass(frozen=True, slots=True)
class Admission:
    """What an admission came to: how many jobs were let in, in how many seconds a rate lets in the next, if one is in
    the way, and whether somebody waited and nobody was let in.
    """

    count: int = 0
    wait: float | None = None
    full: bool = False


def apply(pipeline: Pipeline, job: Job) -> None:
    """Make a job one that is under its pipeline's limits, or under none. Until its time has come it is under none: like
    any other it stays out of the claim by itself, and out of the way of those that wait for a slot.
    """
    concurrency, rate = pipeline.concurrency, pipeline.rate_limit
    job.limited = (concurrency is not None or rate is not None) and is_due(job.run_after)
    job.concurrency_key = _value(job, concurrency.key) if concurrency else ""
    job.rate_key = _value(job, rate.key) if rate else ""
    if job.limited:
        job.due = False


def standing(job: Job) -> dict[str, Any]:
    """What `apply` has made of a job that may be run at once, as columns."""
    columns = ("limited", "concurrency_key", "rate_key")
    return {"due": not job.limited, **{name: getattr(job, name) for name in columns}}


def park(jobs: Iterable[Job], waiting: JobQuerySet) -> int:
    """Put those of these jobs that are among ``waiting`` under the limits of their pipelines; returns how many."""
    alike: dict[Key, list[UUID]] = defaultdict(list)
    declared = conf.configuration().limited
    for job in jobs:
        if (pipeline := declared.get(job.name)) is None:
            continue  # to MySQL and MariaDB, names in other cases are the same
        apply(pipeline, job)
        alike[_key(job)].append(job.pk)
    count = 0
    for (concurrency_key, rate_key), ids in alike.items():
        count += waiting.filter(pk__in=ids).update(
            limited=True, due=False, concurrency_key=concurrency_key, rate_key=rate_key
        )
    return count


def has_other_keys(pipeline: Pipeline) -> Q:
    """Which of its jobs came under its limits when one of these had no key yet, or one that is gone; the text of a
    key's value is never empty.
    """
    other = Q()
    for limit, column in (
        (pipeline.concurrency, "concurrency_key"),
        (pipeline.rate_limit, "rate_key"),
    ):
        keyed = limit is not None and limit.key is not None
        other |= Q(**{column: ""}) if keyed else ~Q(**{column: ""})
    return other


def forget_starts(jobs: JobQuerySet) -> None:
    """Of held jobs that are handed back without having been started; locks them."""
    rows = jobs.filter(limited=True).select_for_update().order_by("pk")
    for key, attempt in list(rows.values_list("pk", "attempt")):
        # The last one: an attempt that was begun and cut off before has had the same number.
        starts = Start.objects.using(jobs.db).filter(job=key, attempt=attempt)
        if (last := starts.order_by("pk").last()) is not None:
            last.delete()


def names(limited: JobQuerySet) -> Iterator[str]:
    """The names of jobs that are under a limit, by one lookup in the index for each."""
    ordered, last = limited.order_by("name").values_list("name", flat=True), ""
    while (name := ordered.filter(name__gt=last).first()) is not None:
        yield (last := name)


def _value(job: Job, key: str | None) -> str:
    """The value of a key of the workspace as text; long ones are told apart by their digest."""
    if key is None:
        return ""
    stored = as_stored(job)
    workspace = stored if isinstance(stored, dict) else {}
    text = json.dumps(workspace.get(key), sort_keys=True)
    return text if len(text) <= KEY_LENGTH else sha256(text.encode()).hexdigest()


def parked(name: str, jobs: JobQuerySet, now: datetime.datetime) -> JobQuerySet:
    """Those of ``jobs`` that have a name, and wait for their limits and for nothing else."""
    return jobs.claimable(now).filter(limited=True, due=False, name=name)


def admit(
    pipeline: Pipeline,
    limited: JobQuerySet,
    served: Q,
    room: int,
    now: datetime.datetime,
    clock: Expression,
) -> Admission:
    """Admit up to ``room`` of the jobs that are served, as their turn is.

    Args:
        limited: all jobs that are under a limit, as the partial index has them.
        served: which of them the caller serves.
        clock: the database's time, which is the same for all workers.
    """
    using = limited.db
    row = _lock(pipeline.name, using, clock)
    if row is None:
        return Admission(full=True)  # somebody else is at it
    db_now: datetime.datetime = row.clock  # type: ignore[attr-defined]
    _take_back_stale(pipeline.name, limited, db_now)
    slots = _Slots(pipeline, limited, db_now)
    waiting = slots.open(parked(pipeline.name, limited.filter(served), now))
    found = _candidates(row, waiting, slots, room)
    admitted: list[Candidate] = []
    for job in sorted(found, key=turn):
        if len(admitted) < room and slots.free(job.concurrency_key, job.rate_key) > 0:
            slots.take(job.concurrency_key, job.rate_key)
            admitted.append(job)
    # Without waiting for those who have locked one of them: they could take long, and all wait for us.
    jobs = Job.objects.using(using).filter(pk__in=[job.pk for job in admitted])
    ours = _unlocked(jobs.filter(state__in=CLAIMABLE))
    jobs.filter(pk__in=ours).update(due=True)
    admitted = [job for job in admitted if job.pk in ours]
    if pipeline.rate_limit is not None:
        Start.objects.using(using).bulk_create(
            Start(
                name=pipeline.name,
                key=job.rate_key,
                admitted=db_now,
                job_id=job.pk,
                attempt=job.attempt + 1,
            )
            for job in admitted
        )
    return Admission(len(admitted), slots.wait, not admitted)


def note_starts(jobs: Sequence[Job], using: str, clock: Expression) -> None:
    """Give the starts of jobs that have just been claimed their time."""
    declared = conf.configuration().limited
    rated = {name for name, pipeline in declared.items() if pipeline.rate_limit}
    if keys := [job.pk for job in jobs if job.limited and job.name in rated]:
        Start.objects.using(using).filter(job__in=keys, at=None).update(at=clock)


def _lock(name: str, using: str, clock: Expression) -> LimitRow | None:
    limits = LimitRow.objects.using(using).filter(name=name)
    skip = connections[using].features.has_select_for_update_skip_locked
    locked = limits.select_for_update(skip_locked=skip).annotate(clock=clock)
    # In this order: a plain read before the lock could fix what is seen after it.
    if (row := locked.first()) is None and limits.get_or_create(name=name)[1]:
        row = locked.first()
    return row


def _unlocked(jobs: JobQuerySet) -> set[UUID]:
    """Lock those of these jobs that nobody else has locked."""
    skip = connections[jobs.db].features.has_select_for_update_skip_locked
    return set(jobs.order_by().select_for_update(skip_locked=skip).values_list("pk", flat=True))


def _take_back_stale(name: str, limited: JobQuerySet, db_now: datetime.datetime) -> None:
    """Park what was admitted a while ago and not claimed: whoever wanted it does something else, or is dead."""
    using = limited.db
    starts = Start.objects.using(using)
    begun = list(starts.filter(name=name, at=None))
    fresh = {start.job_id for start in begun if start.admitted > db_now - STALE}
    admitted = [
        key
        for state in CLAIMABLE
        for key in limited.filter(name=name, state=state, due=True)
        .order_by()
        .values_list("pk", flat=True)
    ]
    jobs = Job.objects.using(using)
    stale = _unlocked(jobs.filter(pk__in=set(admitted) - fresh, due=True, state__in=CLAIMABLE))
    jobs.filter(pk__in=stale).update(due=False)
    # Only now: as long as it was admitted, anybody may have claimed it.
    rows = jobs.filter(pk__in=[start.job_id for start in begun]).order_by()
    found = {job.pk: job for job in rows.only("pk", "attempt", "state", "due")}
    for start in begun:
        job = found.get(start.job_id)
        if job is not None and job.attempt >= start.attempt:
            starts.filter(pk=start.pk, at=None).update(at=db_now)  # claimed, and not noted yet
        elif job is None or not job.due or job.state not in CLAIMABLE:
            starts.filter(pk=start.pk, at=None).delete()


class _Slots:
    """How many more jobs may be let in, by key."""

    def __init__(self, pipeline: Pipeline, limited: JobQuerySet, db_now: datetime.datetime) -> None:
        self.concurrency, self.rate = pipeline.concurrency, pipeline.rate_limit
        # Seconds until the first key whose rate is used up gets another start.
        self.wait: float | None = None
        self._used: Counter[str] = Counter()
        self._starts: Counter[str] = Counter()
        if self.concurrency is not None:
            named = limited.filter(name=pipeline.name).order_by()
            keys = named.values_list("concurrency_key", flat=True)
            first, *parts = (
                *(keys.filter(state=state) for state in HELD),
                *(keys.filter(state=state, due=True) for state in CLAIMABLE),
            )
            # One statement, past which nobody can move a job; in parts, as the index has them.
            self._used.update(first.union(*parts, all=True).order_by())
        if self.rate is not None:
            self._count_starts(pipeline.name, self.rate, db_now, limited.db)

    def _count_starts(self, name: str, rate: Limit, db_now: datetime.datetime, using: str) -> None:
        starts = Start.objects.using(using).filter(name=name)
        window = datetime.timedelta(seconds=rate.seconds)
        starts.filter(at__lte=db_now - window).delete()
        for key, count, at in starts.values_list("key").annotate(Count("pk"), Min("at")):
            self._starts[key] = count
            if count >= rate.limit:
                wait = max(0.0, ((at or db_now) + window - db_now).total_seconds())
                self.wait = wait if self.wait is None else min(wait, self.wait)

    def free(self, concurrency_key: str, rate_key: str) -> int:
        numbers = []
        if self.concurrency is not None:
            numbers.append(self.concurrency.limit - self._used[concurrency_key])
        if self.rate is not None:
            numbers.append(self.rate.limit - self._starts[rate_key])
        return min(numbers)

    def take(self, concurrency_key: str, rate_key: str) -> None:
        self._used[concurrency_key] += 1
        self._starts[rate_key] += 1

    def open(self, waiting: JobQuerySet) -> JobQuerySet:
        """Without those whose key has no slot: none at all, if that is the limit of all; else one query for all, if
        these are many, which still reads each of their rows. Few are passed by `_pages`, which reads the first of each.
        """
        for limit, used, column in (
            (self.concurrency, self._used, "concurrency_key"),
            (self.rate, self._starts, "rate_key"),
        ):
            if limit is not None:
                full = [key for key, count in used.items() if count >= limit.limit]
                if full and limit.key is None:
                    return waiting.none()
                if len(full) > FEW_FULL:
                    waiting = waiting.exclude(**{f"{column}__in": full[:MOST_FULL]})
        return waiting


def _candidates(row: LimitRow, waiting: JobQuerySet, slots: _Slots, room: int) -> list[Candidate]:
    """The first jobs of keys that have a slot: of so many keys, from where the last admission has stopped."""
    begin = (row.concurrency_key, row.rate_key)
    found: list[Candidate] = []
    stopped: list[Key] = []
    for state in CLAIMABLE:  # which the index has apart
        seen: Counter[Key] = Counter()
        full: set[Key] = set()
        last = begin
        for job in _by_key(waiting.filter(state=state), begin, max(PAGE, room)):
            key = _key(job)
            free = slots.free(*key)
            if free <= 0 and (key in full or len(full) < FEW_FULL):
                full.add(key)
            elif key not in seen and len(seen) == MOST_KEYS:
                stopped.append(last)
                break
            else:
                seen[key] += 1
                if seen[key] <= free:
                    found.append(job)
            last = key
    # The nearest: what lies between it and the others' would be passed each time.
    position = min(stopped, key=lambda key: (key <= begin, key), default=("", ""))
    if position != begin:
        row.concurrency_key, row.rate_key = position
        row.save(update_fields=["concurrency_key", "rate_key"])
    return found


def _by_key(jobs: JobQuerySet, begin: Key, page: int) -> Iterator[Candidate]:
    """Jobs by key and turn, those behind the key ``begin`` first; of each key the first of them, up to a page."""
    jobs = jobs.order_by("concurrency_key", "rate_key", *ORDER)
    if begin == ("", ""):
        yield from _pages(jobs, None, page)
        return
    first, second = begin
    yield from _pages(jobs, begin, page)
    yield from _pages(jobs.filter(concurrency_key__lt=first), None, page)
    yield from _pages(jobs.filter(concurrency_key=first, rate_key__lte=second), None, page)


def _pages(jobs: JobQuerySet, behind: Key | None, page: int) -> Iterator[Candidate]:
    """Page by page; behind each, the rest of its last key is passed, however much that is."""
    parts = [jobs]
    if behind is not None:
        first, second = behind
        parts = [
            jobs.filter(concurrency_key=first, rate_key__gt=second),
            jobs.filter(concurrency_key__gt=first),
        ]
    for part in parts:
        rows = [Candidate(*row) for row in part.values_list(*Candidate._fields)[:page]]
        yield from rows
        if len(rows) == page:
            yield from _pages(jobs, _key(rows[-1]), page)
            return


def _key(job: Job | Candidate) -> Key:
    return job.concurrency_key, job.rate_key
