"""What people do to jobs: retry, fork, cancel, pause, resume, and send them events."""

import datetime
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from uuid import UUID

from django.db import IntegrityError
from django.db.models import F, QuerySet

from .. import conf, dependencies, limits, members, signals, workspaces
from ..models import (
    Dependency,
    DependencyState,
    Job,
    JobEvent,
    JobExists,
    check_workspace,
    unique_key,
    urgency_of,
)
from ..options import NAME
from ..pipelines import SLEEP, WAIT_FOR, Step
from ..states import FINISHED, UNFINISHED, Event, State, sources
from ..storage import Storage, storage_for
from ..uuids import uuid7
from .creation import TRIES, wake

T = TypeVar("T")


def retry(
    key: UUID, now: datetime.datetime, using: str, from_step: str | int | None = None
) -> State | None:
    """Run a FAILED, CANCELLED or BLOCKED job again; returns its state then, or None if it is none of these (any more),
    or a member that nobody will join any more.

    At a group or map, those of its members are run again that have not completed. Jobs that are BLOCKED by this one
    wait for it again.

    Args:
        from_step: name, path or place of the step to begin with; by default the one at which the job stands.

    Raises:
        LookupError: the settings do not know the job, or it has no such step.
        JobExists: it is unique, and another with its values has not ended.
    """
    storage = storage_for(using)
    job = storage.jobs.filter(pk=key).first()
    if job is None:
        return None

    def again() -> set[str] | None:
        members.lock_parents([key], using)
        job = storage.jobs.select_for_update().filter(pk=key).first()
        if job is None or job.state not in sources(Event.RETRIED) or _is_superseded(job, storage):
            return None
        return _retry(storage, job, now, from_step)

    queues = _uniquely(job, storage, again)
    if queues is None:
        return None
    wake(queues, using)
    job.refresh_from_db(using=using, fields=["state"])
    return State(job.state)


def _retry(
    storage: Storage, job: Job, now: datetime.datetime, from_step: str | int | None
) -> set[str]:
    using = storage.alias
    was_finished = job.state in FINISHED
    values: dict[str, Any] = {"next_task": job.next_task, "step": job.step, "round": job.round}
    queues = {job.queue_name}
    if from_step is not None:
        if job.parent_id is not None:
            raise LookupError("A member of a group or map is retried where it stands.")
        step = _named(job, from_step)
        job.enter(step)
        values = {
            "next_task": step.path,
            "step": step.place,
            "round": None,
            "queue_name": job.queue_name,
            "home_queue": job.home_queue,
        }
        queues.add(job.queue_name)
        left = storage.jobs.filter(parent=job.pk, state__in=UNFINISHED)
        queues |= members.cancel(left.values_list("pk", flat=True), now, using)[1]
    elif job.next_task == SLEEP or job.next_task.startswith(f"{WAIT_FOR} "):
        values["round"] = None  # the pause begins anew
    elif job.round is not None:
        again = members.members(job, using).filter(state__in=sources(Event.RETRIED))
        queues |= _retry_alike(storage, again, now)
        for member in again.select_for_update().order_by("pk").iterator():
            queues |= _retry(storage, member, now, None)
        waiting = members.unfinished_members(job, using)
        values.update(state=State.WAITING if waiting else State.READY, waiting_for=waiting)
    edges = Dependency.objects.using(using).filter(job=job.pk)
    edges.exclude(state=DependencyState.DONE).update(state=DependencyState.LEFT)
    values = {"state": State.READY, "waiting_for": 0, **values}
    job.run_after = None
    limits.apply(conf.catalogue().named(job.name), job)
    storage.jobs.filter(pk=job.pk).update(
        **values,
        failures=0,
        lost=0,
        finished=None,
        run_after=None,
        modified=now,
        worker=None,
        pausing=False,
        **limits.standing(job),
    )
    if was_finished:
        dependencies.reopen(job, now, using)
        if job.parent_id is not None:
            # One that is not joined yet waits for this member again.
            parent = storage.jobs.filter(pk=job.parent_id, round=job.parent_round)
            parent.filter(state__in=(State.WAITING, State.PAUSED)).update(
                waiting_for=F("waiting_for") + 1
            )
    return queues


def _is_superseded(job: Job, storage: Storage) -> bool:
    """Whether it is a member that nobody will join any more: its parent has done without it, or has begun anew."""
    if job.parent_id is None:
        return False
    found = storage.jobs.filter(pk=job.parent_id).values_list("state", "round").first()
    if found is None or found[0] in (State.COMPLETE, State.CANCELLED):
        return True
    state, number = found
    return number != job.parent_round and (number is not None or state == State.FAILED)


def _retry_alike(storage: Storage, members: "QuerySet[Job]", now: datetime.datetime) -> set[str]:
    """Retry those members of a job, which is retried itself, for whom nobody waits and who have no members."""
    queues: set[str] = set()
    plain = members.filter(round=None, watched=False).order_by("pk").values_list("pk", "queue_name")
    while rows := list(plain.select_for_update()[: dependencies.BATCH]):
        keys = [key for key, _ in rows]
        queues.update(queue for _, queue in rows)
        edges = Dependency.objects.using(storage.alias).filter(job__in=keys)
        edges.exclude(state=DependencyState.DONE).update(state=DependencyState.LEFT)
        storage.jobs.filter(pk__in=keys).update(
            state=State.READY, waiting_for=0, failures=0, lost=0, finished=None, run_after=None,
            modified=now, worker=None, pausing=False,
        )  # fmt: skip
    return queues


def fork(
    job: Job,
    now: datetime.datetime,
    using: str,
    from_step: str | int | None = None,
    workspace: Any = None,
) -> Job:
    """Create a job of the same pipeline that starts at a step, with a copy of the workspace, linked to this one.

    Args:
        from_step: name, path or place; by default where the job stands, or the first step if it has completed.
        workspace: instead of the job's own.

    Raises:
        LookupError: the settings do not know the job, or it has no such step.
        JobExists: it is unique, and another with its values has not ended.
        InvalidWorkspace: the workspace given is not JSON, not as its schema says, or no dict where one is needed.
    """
    if job.parent_id is not None:
        raise LookupError("A member of a group or map cannot be forked: fork its parent.")
    pipeline = conf.catalogue().named(job.name)
    if job.claimed_from is None:  # else its task knows best
        job = Job.objects.using(using).get(pk=job.pk)
    step = pipeline.locate(job.step, job.next_task) if job.next_task else pipeline.steps[0]
    if from_step is not None:
        step = _named(job, from_step)
    if step is None:
        raise LookupError(f"The job {job.name!r} has no task {job.next_task!r} any more.")
    text = workspaces.dump(job.workspace if workspace is None else workspace)
    forked = Job(
        id=uuid7(),
        created=now,
        modified=now,
        name=job.name,
        next_task=step.path,
        step=step.place,
        workspace=workspaces.load(text),
        queue_name=job.home_queue or job.queue_name,
        priority=job.priority,
        deadline=job.deadline,
        urgency=urgency_of(job.deadline),
        forked_from_id=job.pk,
    )
    if workspace is not None:
        check_workspace(pipeline, forked.workspace)
    forked.enter(step)
    forked.stored_workspace = text
    if job.unique_key is not None:
        forked.unique_key = (
            unique_key(pipeline, forked) if workspace is not None else job.unique_key
        )
    limits.apply(pipeline, forked)
    storage = storage_for(using)
    _uniquely(forked, storage, lambda: storage.insert([forked]))
    signals.send(signals.job_created, sender=Job, job=forked)
    wake({forked.queue_name}, using)
    return forked


def cancel(keys: Iterable[UUID], now: datetime.datetime, using: str) -> int:
    """Cancel unfinished jobs with all their members; returns how many jobs were cancelled, members included.

    A task that runs is told at its next checkpoint, or within a second or so where it can be interrupted; nothing that
    it does from now on is saved.
    """
    storage = storage_for(using)
    with storage.write():
        ended, queues = members.cancel(keys, now, using)
    wake(queues, using)
    return len(ended)


def pause(keys: Iterable[UUID], now: datetime.datetime, using: str) -> int:
    """Pause unfinished jobs with all their members; returns how many. What runs is paused when its step has ended."""
    with storage_for(using).write():
        return members.pause(keys, now, using)


def resume(keys: Iterable[UUID], now: datetime.datetime, using: str) -> int:
    """Have paused jobs go on where they were, with their members; returns how many."""
    with storage_for(using).write():
        count, queues = members.resume(keys, now, using)
    wake(queues, using)
    return count


def send(key: UUID, event: str, payload: Any, now: datetime.datetime, using: str) -> bool:
    """Send an event to a job; False if the job has ended, or if the event was sent before and not taken yet.

    Raises:
        InvalidWorkspace: the payload is not JSON.
        ValueError: no wait could have this name.
    """
    if (expected := NAME(event)) is not None:
        raise ValueError(f"The event is {event!r}. Expected: {expected}.")
    workspaces.dump(payload, "the payload", inside=1)
    storage = storage_for(using)
    with storage.write():
        job = storage.jobs.select_for_update().filter(pk=key).first()
        if job is None or job.state in FINISHED:
            return False
        events = JobEvent.objects.using(using)
        if events.filter(job=key, name=event, taken=0).exists():
            return False
        events.create(job_id=key, name=event, payload=payload, sent=now)
        waits = job.state == State.WAITING and job.round is not None
        queues: set[str] = set()
        if waits and job.next_task == f"{WAIT_FOR} {event}":
            queues = members.hear([key], now, using)
    wake(queues, using)
    return True


def hasten(key: UUID, urgency: int, using: str) -> None:
    """Make a job, and what it waits for, at least this urgent."""
    with storage_for(using).write():
        dependencies.hasten([key], urgency, using)


def still_held(jobs: Iterable[Job], using: str) -> set[tuple[UUID, int]]:
    """Those attempts of a worker's (job and number) whose job nobody has cancelled, or taken otherwise."""
    fences = {(job.pk, job.attempt, job.worker_id) for job in jobs}
    held = storage_for(using).held().filter(pk__in={key for key, *_ in fences}).order_by()
    rows = held.values_list("pk", "attempt", "worker_id")
    return {(key, number) for key, number, worker in rows if (key, number, worker) in fences}


def _uniquely(job: Job, storage: Storage, act: Callable[[], T]) -> T:
    """Have a row with the key of ``job`` become unfinished, in one transaction.

    Raises:
        JobExists: another one is in its way.
    """
    for left in reversed(range(TRIES)):
        try:
            with storage.write():
                return act()
        except IntegrityError:
            other = storage.unfinished([job.unique_key]).first() if job.unique_key else None
            if other is not None:
                raise JobExists(other.pk, job.name) from None
            if not left or job.unique_key is None:
                raise  # else that one has ended meanwhile
    raise AssertionError("the last try returns or raises")


def _named(job: Job, step: str | int) -> Step:
    return conf.catalogue().named(job.name).named(step)
