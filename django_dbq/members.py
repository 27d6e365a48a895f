"""Groups, maps and pauses: members are created, counted down and joined; and what it takes to cancel them all.

Everything here is a part of the caller's transaction. A group is joined exactly once: whoever ends a member counts its
parent down in the same transaction, with the parent's row locked.
"""

import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.db import transaction
from django.db.models import DateTimeField, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Greatest

from . import conf, signals
from .dependencies import BATCH, chunks, edge_state, free, open_needs, tell, wants
from .models import Attempt, Dependency, DependencyState, Job, JobEvent, Needs, Worker, may_be_due
from .outcomes import AttemptOutcome
from .pipelines import WAIT_FOR, Group, Map
from .states import FINISHED, HELD, UNFINISHED, State

Insert = Callable[[Sequence[Job]], None]
PORTION = 1_000_000  # characters of workspaces that one statement inserts


@dataclass(frozen=True, slots=True)
class Opening:
    """What a job begins to wait for: members that are created now, other jobs, an event, or members that it has."""

    members: Callable[[], Iterator[Job]] | None = None
    needs: Needs | None = None
    event: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has just ended, or another that concerns the same others."""

    pk: UUID
    state: State
    parent_id: UUID | None = None
    parent_round: int | None = None
    watched: bool = True  # whether others may wait for it

    @property
    def is_done(self) -> bool:
        return self.state == State.COMPLETE


# -- a job begins to wait --


def begin(
    job: Job, opening: Opening, now: datetime.datetime, using: str, insert: Insert
) -> set[str]:
    """Have a job that was just written as WAITING wait; returns the queues in which something can be claimed now.

    Raises:
        Cycle: what it wants to wait for waits for it.
        ValueError: it wants to wait for a job that does not exist.
    """
    # Somebody may have hastened it since its claim.
    urgency = Job.objects.using(using).filter(pk=job.pk).values_list("urgency", flat=True)
    job.urgency = urgency.get()
    if opening.members is not None:
        return _create_members(job, opening.members(), using, insert)
    if opening.event is not None:
        pending = JobEvent.objects.using(using).filter(job=job.pk, name=opening.event, taken=0)
        return hear([job.pk], now, using) if pending.exists() else set()
    if opening.needs is not None:
        return open_needs(job, opening.needs, now, using)
    waiting = unfinished_members(job, using)
    Job.objects.using(using).filter(pk=job.pk).update(waiting_for=waiting)
    return set() if waiting else free([job.pk], now, using)


def hear(keys: Sequence[UUID], now: datetime.datetime, using: str) -> set[str]:
    """Free jobs whose event has come, now and not at their time limit; returns their queues."""
    Job.objects.using(using).filter(pk__in=keys, state=State.WAITING).update(run_after=None)
    return free(keys, now, using)


def _create_members(job: Job, members: Iterator[Job], using: str, insert: Insert) -> set[str]:
    queues: set[str] = set()
    count = 0
    for chunk in _portions(members):
        insert(chunk)
        queues.update(member.queue_name for member in chunk)
        count += len(chunk)
    Job.objects.using(using).filter(pk=job.pk).update(waiting_for=count)
    return queues


def _portions(members: Iterator[Job]) -> Iterator[list[Job]]:
    """As many at a time as one statement should carry, by their number and by their size."""
    portion: list[Job] = []
    size = 0
    for member in members:
        portion.append(member)
        size += len(member.stored_workspace or "")
        if len(portion) == BATCH or size >= PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


# -- jobs have ended --


def settle(ended: Sequence[Ended], now: datetime.datetime, using: str) -> set[str]:
    """Tell those that wait for jobs which have just ended; returns the queues in which something can be claimed now."""
    ends = {one.pk: one.state for one in ended if one.watched}
    return _join(ended, now, using) | tell(ends, now, using)


def _join(ended: Sequence[Ended], now: datetime.datetime, using: str) -> set[str]:
    """Count members down; the parent whose last one this was goes on."""
    counts: dict[tuple[UUID, int], list[bool]] = defaultdict(list)
    for one in ended:
        if one.parent_id is not None and one.parent_round is not None:
            counts[one.parent_id, one.parent_round].append(one.is_done)
    queues: set[str] = set()
    jobs = Job.objects.using(using)
    for (key, number), done in sorted(counts.items()):
        parent = (
            jobs.select_for_update()
            .defer("workspace", "result")  # which may hold all the items of a map
            .filter(pk=key, round=number)
            .first()
        )
        if parent is None or parent.state in FINISHED:
            continue
        left = max(0, parent.waiting_for - len(done))
        jobs.filter(pk=key).update(waiting_for=left)
        if left == 0:
            if parent.state == State.WAITING:
                queues |= free([key], now, using)
        elif not all(done) and _policy(parent) == "cancel_rest":
            members = jobs.filter(parent=key, parent_round=number, state__in=UNFINISHED)
            queues |= cancel(members.values_list("pk", flat=True), now, using)[1]
    return queues


# -- somebody intervenes --


def cancel(
    keys: Iterable[UUID], now: datetime.datetime, using: str
) -> tuple[list[Ended], set[str]]:
    """Cancel unfinished jobs with all their members, and tell those that wait for them.

    Returns:
        What was cancelled, and the queues in which something can be claimed now.
    """
    jobs = Job.objects.using(using)
    ended: list[Ended] = []
    frontier = list(keys)
    lock_parents(frontier, using)
    while frontier:
        following: list[UUID] = []
        for chunk in chunks(sorted(frontier)):
            rows = list(
                jobs.select_for_update().filter(pk__in=chunk, state__in=UNFINISHED).order_by("pk")
            )
            found = [job.pk for job in rows]
            _record_cancelled([job for job in rows if job.state in HELD], now, using)
            # The lock may have come later than ``now``, after others had moved the job on.
            latest = Greatest("modified", Value(now, DateTimeField()))
            jobs.filter(pk__in=found).update(
                state=State.CANCELLED, finished=latest, modified=latest, worker=None,
                waiting_for=0, pausing=False,
            )  # fmt: skip
            edges = Dependency.objects.using(using).filter(job__in=found)
            edges.exclude(state=DependencyState.DONE).update(state=DependencyState.LEFT)
            ended += [
                Ended(job.pk, State.CANCELLED, job.parent_id, job.parent_round, job.watched)
                for job in rows
            ]
            following += _inside([job.pk for job in rows if job.round is not None], using)
        frontier = following
    if ended and signals.job_finished.receivers:
        transaction.on_commit(partial(_tell, [one.pk for one in ended], using), using=using)
    return ended, settle(ended, now, using) if ended else set()


def _tell(keys: Sequence[UUID], using: str) -> None:
    for chunk in chunks(keys):
        for job in Job.objects.using(using).filter(pk__in=chunk):
            signals.send(signals.job_finished, sender=Job, job=job)


def lock_parents(keys: Sequence[UUID], using: str) -> None:
    """Lock the jobs whose members these are: always before a member."""
    jobs = Job.objects.using(using)
    parents: set[UUID] = set()
    for chunk in chunks(keys):
        found = jobs.filter(pk__in=chunk).order_by().values_list("parent_id", flat=True)
        parents.update(key for key in found if key is not None)
    lock(parents, using)


def lock(keys: Iterable[UUID], using: str) -> None:
    """Lock jobs in the order of their keys."""
    jobs = Job.objects.using(using).select_for_update()
    for chunk in chunks(sorted(keys)):
        list(jobs.filter(pk__in=chunk).order_by("pk").values_list("pk"))


def pause(keys: Iterable[UUID], now: datetime.datetime, using: str) -> int:
    """Pause unfinished jobs with all their members; what runs is paused when its step has ended. Returns how many."""
    jobs = Job.objects.using(using)
    count = 0
    frontier = list(keys)
    while frontier:
        following: list[UUID] = []
        for chunk in chunks(sorted(frontier)):
            rows = list(
                jobs.select_for_update()
                .filter(pk__in=chunk, state__in=UNFINISHED)
                .order_by("pk")
                .values_list("pk", "state", "round")
            )
            held = [key for key, state, _ in rows if state in HELD]
            rest = [key for key, state, _ in rows if state not in HELD]
            jobs.filter(pk__in=held).update(pausing=True, watched=True)
            jobs.filter(pk__in=rest).update(state=State.PAUSED, pausing=False, modified=now)
            count += len(rows)
            parents = [key for key, _, number in rows if number is not None]
            following += _inside(parents, using)
        frontier = following
    return count


def resume(keys: Iterable[UUID], now: datetime.datetime, using: str) -> tuple[int, set[str]]:
    """Have paused jobs, and their members, go on where they were; returns how many, and their queues."""
    jobs = Job.objects.using(using)
    count, queues = 0, set[str]()
    frontier = list(keys)
    while frontier:
        following: list[UUID] = []
        for chunk in chunks(sorted(frontier)):
            found = jobs.select_for_update().defer("workspace", "result").filter(pk__in=chunk)
            rows = list(found.order_by("pk"))
            pausing = [job.pk for job in rows if job.pausing and job.state in HELD]
            jobs.filter(pk__in=pausing).update(pausing=False)
            paused = [job for job in rows if job.state == State.PAUSED]
            edges = Dependency.objects.using(using).filter(job__in=[job.pk for job in paused])
            depending = set(edges.values_list("job_id", flat=True))
            alike: dict[tuple[State, int, bool], list[UUID]] = defaultdict(list)
            for job in paused:
                state, waiting = State.READY if job.attempt else State.NEW, 0
                if job.round is not None or job.pk in depending:
                    state, waiting = resting_state(job, using)
                due = job.run_after is None or job.run_after <= now
                begun = job.round is not None and job.next_task.startswith(f"{WAIT_FOR} ")
                if state == State.READY and begun:
                    due = True  # its event has come meanwhile
                    jobs.filter(pk=job.pk).update(run_after=None)
                if job.pk in depending and (
                    state not in (State.WAITING, State.BLOCKED) or job.round is not None
                ):
                    mine = edges.filter(job=job.pk).exclude(state=DependencyState.DONE)
                    mine.update(state=DependencyState.LEFT)
                alike[state, waiting, due].append(job.pk)
                queues.add(job.queue_name)
            for (state, waiting, due), keys in alike.items():
                jobs.filter(pk__in=keys).update(
                    state=state,
                    waiting_for=waiting,
                    due=may_be_due(due),
                    modified=now,
                    pausing=False,
                )
            count += len(set(pausing).union(job.pk for job in paused))
            following += _inside([job.pk for job in rows if job.round is not None], using)
        frontier = following
    return count, queues


def _inside(keys: Sequence[UUID], using: str) -> list[UUID]:
    """The unfinished members of jobs."""
    unfinished = Job.objects.using(using).filter(state__in=UNFINISHED).order_by()
    return [
        key
        for chunk in chunks(keys)
        for key in unfinished.filter(parent__in=chunk).values_list("pk", flat=True)
    ]


def _record_cancelled(held: Sequence[Job], now: datetime.datetime, using: str) -> None:
    labels = Worker.objects.using(using).in_bulk({job.worker_id for job in held})
    # Of one that has run past its timeout it is on record already.
    rows = Attempt.objects.using(using).filter(job__in=[job.pk for job in held]).order_by()
    known = set(rows.values_list("job_id", "number"))
    Attempt.objects.using(using).bulk_create(
        Attempt(
            job_id=job.pk,
            number=job.attempt,
            step=job.step,
            task=job.next_task,
            outcome=AttemptOutcome.CANCELLED,
            worker=str(labels.get(job.worker_id, "")),
            started=job.modified,
            finished=max(now, job.modified),
        )
        for job in held
        if (job.pk, job.attempt) not in known
    )


def resting_state(job: Job, using: str) -> tuple[State, int]:
    """Where a job belongs that is neither held nor finished, by what it waits for; and for how many that is."""
    free_to_run = State.READY if job.attempt else State.NEW
    stand, waiting = wants(job.pk, using)
    if stand is not None:
        return stand, waiting
    if job.round is None:
        return free_to_run, 0
    if job.next_task.startswith(f"{WAIT_FOR} "):
        event = job.next_task.removeprefix(f"{WAIT_FOR} ")
        pending = JobEvent.objects.using(using).filter(job=job.pk, name=event, taken=0)
        return (State.READY if pending.exists() else State.WAITING), 0
    waiting = unfinished_members(job, using)
    return (State.WAITING if waiting else State.READY), waiting


def members(job: Job, using: str) -> "QuerySet[Job]":
    """The members of the group or map that a job has begun, in order."""
    found: QuerySet[Job] = Job.objects.using(using).filter(parent=job.pk, parent_round=job.round)
    return found.order_by("position")


def unfinished_members(job: Job, using: str) -> int:
    count: int = members(job, using).filter(state__in=UNFINISHED).count()
    return count


# -- what has come apart --


def loose(using: str) -> list[UUID]:
    """WAITING jobs that nothing will free: what they wait for has ended or gone without telling them.

    Only rows that somebody has deleted or changed by hand leave such jobs.
    """
    jobs = Job.objects.using(using)
    waiting = jobs.filter(state=State.WAITING).order_by()
    unfinished = jobs.filter(state__in=UNFINISHED).order_by()
    edges = Dependency.objects.using(using).filter(state=DependencyState.OPEN)
    # Each row's is looked up: of an EXISTS, PostgreSQL may make a join that reads all there are again and again.
    member = unfinished.filter(parent=OuterRef("pk"), parent_round=OuterRef("round"))
    parents = waiting.filter(round__isnull=False).exclude(next_task__startswith=f"{WAIT_FOR} ")
    childless = parents.alias(member=Subquery(member.values("pk")[:1])).filter(member=None)
    found = list(childless.values_list("pk", flat=True)[:BATCH])
    end = unfinished.filter(pk=OuterRef("on"))
    gone = edges.alias(end=Subquery(end.values("pk"))).filter(end=None)
    # In two parts: few dependencies are open, and a join might begin with all jobs instead.
    keys = set(gone.values_list("job_id", flat=True)[:BATCH])
    return found + list(waiting.filter(pk__in=keys).values_list("pk", flat=True))


def tighten(keys: Sequence[UUID], now: datetime.datetime, using: str) -> set[str]:
    """Make `loose` jobs what they would be if they had been told."""
    jobs = Job.objects.using(using)
    edges = Dependency.objects.using(using)
    queues: set[str] = set()
    for job in jobs.select_for_update().filter(pk__in=keys, state=State.WAITING).order_by("pk"):
        mine = {edge.on_id: edge for edge in edges.filter(job=job.pk, state=DependencyState.OPEN)}
        states = dict(
            pair
            for chunk in chunks(list(mine))
            for pair in jobs.filter(pk__in=chunk).order_by().values_list("pk", "state")
        )
        for key, edge in mine.items():
            edge.state = edge_state(State(states.get(key, State.CANCELLED)))
            edge.save(using=using, update_fields=["state"])
        state, waiting = resting_state(job, using)
        if state in (State.WAITING, State.BLOCKED):
            jobs.filter(pk=job.pk).update(state=state, waiting_for=waiting, modified=now)
        else:
            queues |= free([job.pk], now, using)
    return queues


# -- parts --


def _policy(parent: Job) -> str:
    pipeline = conf.catalogue().get(parent.name)
    member = parent.parent_id is not None
    step = pipeline.locate(parent.step, parent.next_task, member) if pipeline else None
    return step.on_failure if isinstance(step, Group | Map) else "fail"
