"""Jobs that wait for other jobs, and the deadlines that travel along.

Everything here is a part of the caller's transaction, which is the one that ends, creates or moves the job in question.
Rows are locked in the order of their keys.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import Q

from .models import Dependency, DependencyState, Job, Needs, may_be_due
from .states import FINISHED, UNFINISHED, State

BATCH = 1000  # rows that one statement touches at most


class Cycle(ValueError):
    """Jobs would wait for each other for ever; the message names them."""


def stands(needs: Needs, done: int, failed: int, waiting: int) -> State | None:
    """Where a job stands of whose dependencies so many have come to this: WAITING, BLOCKED, or None if it may run."""
    if needs.on_failure == "proceed":
        done, failed = done + failed, 0
    if needs.mode == "any":
        if done or not (failed or waiting):
            return None
        return State.WAITING if waiting else State.BLOCKED
    if failed:
        return State.BLOCKED
    return State.WAITING if waiting else None


# -- creation --


def connect(jobs: Sequence[Job], using: str) -> dict[UUID, State]:
    """Make jobs that are about to be inserted what their dependencies say, and lock those; returns their states.

    Raises:
        ValueError: a dependency does not exist.
        Cycle: they depend on each other.
    """
    new = {job.pk: job for job in jobs}
    _refuse_cycles_among(new)
    wanted = {key for job in jobs for key in job.needs.jobs} - new.keys()
    states = watch(wanted, using)
    if missing := wanted - states.keys():
        raise ValueError(f"depends_on names jobs that do not exist: {_listed(missing)}")
    for job in jobs:
        if not job.needs.jobs:
            continue
        kinds = [edge_state(states.get(key, State.NEW)) for key in job.needs.jobs]
        stand, waiting = counted(job.needs, kinds)
        job.state, job.waiting_for = stand or State.NEW, waiting if stand else 0
        for key in job.needs.jobs:
            if key in new:
                new[key].watched = True
    for job in jobs:
        hasten(job.needs.jobs, job.urgency, using, new)
    return states


def record(jobs: Sequence[Job], states: Mapping[UUID, State], using: str) -> None:
    """Write the dependencies of jobs that have just been inserted.

    Args:
        states: of those that were there before.
    """
    Dependency.objects.using(using).bulk_create(
        [
            Dependency(
                job_id=job.pk,
                on_id=key,
                mode=job.needs.mode,
                on_failure=job.needs.on_failure,
                state=_of_interest(job, edge_state(states.get(key, State.NEW))),
            )
            for job in jobs
            for key in job.needs.jobs
        ],
        batch_size=BATCH,
    )


def _of_interest(job: Job, state: DependencyState) -> DependencyState:
    """A dependency of a new job: one that may run at once waits for nothing more."""
    free_to_run = job.state == State.NEW and state != DependencyState.DONE
    return DependencyState.LEFT if free_to_run else state


def watch(keys: Iterable[UUID], using: str) -> dict[UUID, State]:
    """Lock jobs and have their end told; returns their states as they are now."""
    jobs = Job.objects.using(using)
    states: dict[UUID, State] = {}
    for chunk in chunks(sorted(keys)):
        rows = list(
            jobs.select_for_update()
            .filter(pk__in=chunk)
            .order_by("pk")
            .values_list("pk", "state", "watched")
        )
        states.update((key, State(state)) for key, state, _ in rows)
        unwatched = [key for key, state, watched in rows if not watched and state != State.COMPLETE]
        if unwatched:
            jobs.filter(pk__in=unwatched).update(watched=True)
    return states


def edge_state(state: State) -> DependencyState:
    """What the state of a job means to those that wait for it."""
    if state == State.COMPLETE:
        return DependencyState.DONE
    return DependencyState.FAILED if state in FINISHED else DependencyState.OPEN


def hasten(
    keys: Iterable[UUID], urgency: int, using: str, new: Mapping[UUID, Job] | None = None
) -> None:
    """Make jobs at least this urgent, and what they wait for themselves: whoever waits passes its deadline on."""
    frontier = set(keys)
    new = new or {}
    while urgency and frontier:
        following: set[UUID] = set()
        for key in frontier & new.keys():
            if new[key].urgency < urgency:
                new[key].urgency = urgency
                following.update(new[key].needs.jobs)
        jobs = Job.objects.using(using)
        late = jobs.filter(urgency__lt=urgency, state__in=UNFINISHED)
        for chunk in chunks(sorted(frontier - new.keys())):
            # Without waiting: an end is told down the chain, this goes up. Who is locked is being run, or ends.
            skip = connections[using].features.has_select_for_update_skip_locked
            found = list(
                late.select_for_update(skip_locked=skip)
                .filter(Q(pk__in=chunk) | Q(parent__in=chunk))
                .order_by("pk")
                .values_list("pk", flat=True)
            )
            for some in chunks(found):
                jobs.filter(pk__in=some).update(urgency=urgency)
            following.update(found, (key for key, _ in _open(found, using)))
        frontier = following


# -- a job begins to wait --


def refuse(key: UUID, needs: Needs, using: str) -> None:
    """Raise what `open_needs` would, as far as that can be said before."""
    jobs = Job.objects.using(using).order_by().values_list("pk", flat=True)
    found = (jobs.filter(pk__in=chunk) for chunk in chunks(needs.jobs))
    _refuse_missing(needs, chain.from_iterable(found))
    _refuse_cycle(key, needs.jobs, using, locked=False)


def open_needs(job: Job, needs: Needs, now: datetime.datetime, using: str) -> set[str]:
    states = watch(needs.jobs, using)
    _refuse_missing(needs, states)
    _refuse_cycle(job.pk, needs.jobs, using, locked=True)
    edges = Dependency.objects.using(using)
    kinds = {key: edge_state(states[key]) for key in needs.jobs}
    for chunk in chunks(needs.jobs):
        edges.filter(job=job.pk, on__in=chunk).delete()
    edges.filter(job=job.pk).update(state=DependencyState.LEFT)
    edges.bulk_create(
        [
            Dependency(
                job_id=job.pk,
                on_id=key,
                mode=needs.mode,
                on_failure=needs.on_failure,
                state=kind,
            )
            for key, kind in kinds.items()
        ],
        batch_size=BATCH,
    )
    stand, waiting = counted(needs, list(kinds.values()))
    Job.objects.using(using).filter(pk=job.pk).update(waiting_for=waiting)
    hasten(needs.jobs, job.urgency, using)
    if stand is None:
        return free([job.pk], now, using)
    if stand is State.BLOCKED:
        Job.objects.using(using).filter(pk=job.pk).update(state=stand)
    return set()


# -- what it waits for has ended --


def tell(ends: Mapping[UUID, State], now: datetime.datetime, using: str) -> set[str]:
    """Tell the jobs that wait for these, which have just ended so; returns the queues in which something can be claimed
    now.
    """
    states = {key: edge_state(state) for key, state in ends.items()}
    edges = Dependency.objects.using(using)
    waiting: dict[UUID, list[int]] = defaultdict(list)
    for chunk in chunks(sorted(states)):
        found = edges.filter(on__in=chunk, state=DependencyState.OPEN)
        for job, number in found.values_list("job_id", "pk"):
            waiting[job].append(number)
    freed: list[UUID] = []
    jobs = Job.objects.using(using)
    for chunk in chunks(sorted(waiting)):
        rows = jobs.select_for_update().filter(pk__in=chunk).order_by("pk")
        locked = list(rows.values_list("pk", "state", "waiting_for"))
        # Read once more: before their lock, others may have freed them. By key alone, for the planner's sake.
        mine: dict[UUID, list[Dependency]] = defaultdict(list)
        for some in chunks([number for key in chunk for number in waiting[key]]):
            for edge in edges.filter(pk__in=some).select_for_update():
                if edge.state == DependencyState.OPEN:
                    mine[edge.job_id].append(edge)
        told: dict[DependencyState, list[int]] = defaultdict(list)
        alike: dict[tuple[str, int], list[UUID]] = defaultdict(list)
        for key, state, before in locked:
            if not mine[key]:
                continue
            kinds = [states[edge.on_id] for edge in mine[key]]
            for edge, kind in zip(mine[key], kinds, strict=True):
                told[kind].append(edge.pk)
            left = max(0, before - len(kinds))
            needs = Needs((), mine[key][0].mode, mine[key][0].on_failure)
            stand = stands(
                needs, kinds.count(DependencyState.DONE), kinds.count(DependencyState.FAILED), left
            )
            if state == State.WAITING and stand is None:
                freed.append(key)
            blocked = state == State.WAITING and stand is State.BLOCKED
            alike[State.BLOCKED if blocked else state, left].append(key)
        for kind, numbers in told.items():
            for some in chunks(numbers):
                edges.filter(pk__in=some).update(state=kind)
        for (state, left), keys in alike.items():
            jobs.filter(pk__in=keys).update(state=state, waiting_for=left)
    return free(freed, now, using)


def free(keys: Iterable[UUID], now: datetime.datetime, using: str) -> set[str]:
    """Let WAITING jobs run; returns their queues."""
    queues: set[str] = set()
    jobs = Job.objects.using(using)
    for chunk in chunks(sorted(keys)):
        # By key alone: with the state as a condition, all that waits might be read instead.
        rows = jobs.select_for_update().filter(pk__in=chunk).order_by("pk")
        columns = ("pk", "state", "attempt", "run_after", "queue_name", "waiting_for")
        groups: dict[tuple[State, bool], list[UUID]] = defaultdict(list)
        undecided: list[UUID] = []
        for key, state, attempt, run_after, queue, left in list(rows.values_list(*columns)):
            if state != State.WAITING:
                continue
            due = run_after is None or run_after <= now
            groups[State.READY if attempt else State.NEW, due].append(key)
            queues.add(queue)
            if left:
                undecided.append(key)
        for (state, due), found in groups.items():
            jobs.filter(pk__in=found).update(
                state=state, due=may_be_due(due), waiting_for=0, modified=now
            )
        if undecided:
            edges = Dependency.objects.using(using).filter(job__in=undecided)
            edges.exclude(state=DependencyState.DONE).update(state=DependencyState.LEFT)
    return queues


def reopen(job: Job, now: datetime.datetime, using: str) -> None:
    """Have those wait again that a job has failed, which is being retried now."""
    jobs = Job.objects.using(using)
    edges = Dependency.objects.using(using)
    failed = list(edges.filter(on=job.pk, state=DependencyState.FAILED))
    rows = [
        row
        for chunk in chunks(sorted(edge.job_id for edge in failed))
        for row in jobs.select_for_update()
        .filter(pk__in=chunk)
        .order_by("pk")
        .values_list("pk", "state", "urgency")
    ]
    urgency = 0
    for key, state, urgent in rows:
        if state not in (State.WAITING, State.BLOCKED, State.PAUSED):
            continue
        if wants(key, using)[0] is None:
            continue  # it has gone on without this one
        edges.filter(job=key, on=job.pk).update(state=DependencyState.OPEN)
        stand, waiting = wants(key, using)
        values: dict[str, Any] = {"waiting_for": waiting}
        if state == State.BLOCKED:
            values["state"] = stand
        jobs.filter(pk=key).update(**values)
        urgency = max(urgency, urgent)
    if failed:
        jobs.filter(pk=job.pk).update(watched=True)
    hasten([job.pk], urgency, using)


def wants(key: UUID, using: str) -> tuple[State | None, int]:
    """Where a job stands as far as its dependencies are concerned, and how many of them are open."""
    edges = Dependency.objects.using(using).filter(job=key).exclude(state=DependencyState.LEFT)
    kinds = list(edges.values_list("state", "mode", "on_failure"))
    if not kinds:
        return None, 0
    needs = Needs((), kinds[0][1], kinds[0][2])
    return counted(needs, [DependencyState(kind) for kind, _, _ in kinds])


# -- parts --


def _open(keys: Sequence[UUID], using: str) -> list[tuple[UUID, UUID]]:
    """What these jobs still wait for: pairs of that job and this one."""
    edges = Dependency.objects.using(using)
    columns = (
        "on_id",
        "job_id",
        "state",
    )  # with it as a condition, SQLite would read all open ones
    return [
        (on, job)
        for chunk in chunks(keys)
        for on, job, state in edges.filter(job__in=chunk).values_list(*columns)
        if state == DependencyState.OPEN
    ]


def counted(needs: Needs, kinds: Sequence[DependencyState]) -> tuple[State | None, int]:
    """Where a job stands whose dependencies have come to this, and how many of them are open."""
    waiting = kinds.count(DependencyState.OPEN)
    done, failed = kinds.count(DependencyState.DONE), kinds.count(DependencyState.FAILED)
    return stands(needs, done, failed, waiting), waiting


def _refuse_cycles_among(new: Mapping[UUID, Job]) -> None:
    """Raise if new jobs depend on each other in a circle."""
    free_of_cycles: set[UUID] = set()
    for start in new:
        path: dict[UUID, Iterator[UUID]] = {}
        key: UUID | None = start
        while key is not None:
            if key not in path and key not in free_of_cycles:
                path[key] = iter(new[key].needs.jobs)
            while path:
                key = next((k for k in path[next(reversed(path))] if k in new), None)
                if key is None:
                    free_of_cycles.add(path.popitem()[0])
                elif key in path:
                    names = list(path)
                    _raise_cycle([*names[names.index(key) :], key])
                elif key not in free_of_cycles:
                    break
            else:
                key = None


def _refuse_missing(needs: Needs, found: Iterable[UUID]) -> None:
    if missing := set(needs.jobs).difference(found):
        raise ValueError(f"Wait names jobs that do not exist: {_listed(missing)}")


def _refuse_cycle(start: UUID, keys: Iterable[UUID], using: str, locked: bool) -> None:
    """Raise if one of ``keys``, or what it waits for, waits for ``start``: as a dependency, a member, or its parent.

    Args:
        locked: lock all that is met: of two that would close one circle, neither may overlook the other.
    """
    came_from: dict[UUID, UUID] = dict.fromkeys(keys, start)
    jobs = Job.objects.using(using)
    frontier = set(came_from)
    while frontier and start not in came_from:
        following: dict[UUID, UUID] = {}
        for chunk in chunks(sorted(frontier)):
            if locked:
                list(jobs.select_for_update().filter(pk__in=chunk).order_by("pk").values_list("pk"))
            inner = jobs.filter(parent__in=chunk, state__in=UNFINISHED).order_by()
            for pairs in (_open(chunk, using), inner.values_list("pk", "parent_id")):
                following.update((key, origin) for key, origin in pairs if key not in came_from)
        came_from.update(following)
        frontier = set(following)
    if start in came_from:
        path = [start]
        while True:
            path.append(came_from[path[-1]])
            if path[-1] == start:
                break
        _raise_cycle(path[::-1])


def _raise_cycle(path: Sequence[UUID]) -> None:
    raise Cycle("Jobs would wait for each other: " + " -> ".join(map(str, path)))


def _listed(keys: Iterable[UUID], most: int = 5) -> str:
    named = sorted(map(str, keys))
    return ", ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")


def chunks(keys: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many keys at a time as one statement takes."""
    for start in range(0, len(keys), BATCH):
        yield keys[start : start + BATCH]
