"""What torture's jobs do: leave effects, take their time, fail, hang."""

import asyncio
import contextlib
import ctypes
import os
import signal
import time
import uuid
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, InterfaceError, OperationalError, connection

from django_dbq import Abort, Retry, Wait
from tests.process_jobs import tell, told

from .models import DatabaseClock, Effect

PATIENCE = 60  # seconds for which a task waits for a database that is away
FOR_EVER = 600  # seconds: longer than any round waits
LAST = 120  # seconds: longer than it takes until somebody cancels the job, and the task is stopped


class Planned(Exception):
    """A failure that the plan asks for."""


def _effect(job: Any, kind: Effect.Kind) -> Effect:
    return Effect(
        job=job.pk,
        step=job.step,
        attempt=job.attempt,
        worker=job.worker_id,
        kind=kind,
        pid=os.getpid(),
        at=DatabaseClock(),
    )


def note(job: Any, kind: Effect.Kind) -> None:
    """Add an effect, in autocommit; wait for a database that is away, so that this is never why a task fails."""
    effect = _effect(job, kind)
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            # Its key was chosen here: if only the answer to the first try was lost, the second changes nothing.
            Effect.objects.bulk_create([effect], ignore_conflicts=True)
            return
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block or time.monotonic() > deadline:
                raise
            connection.close()
            time.sleep(0.1)


def _spend(job: Any) -> None:
    time.sleep(job.workspace.get("seconds", 0))


def _leave_trail(job: Any) -> None:
    """The workspace's own record of the steps done; it is saved with the outcome or not at all.

    In a branch each step has a key of its own, so that they do not contradict each other when they are merged.
    """
    if job.parent_id is None:
        job.workspace = {**job.workspace, "trail": [*job.workspace.get("trail", ()), job.step]}
    else:
        key = f"mark {job.step}"
        job.workspace = {**job.workspace, key: job.workspace.get(key, 0) + 1}


def work(job: Any) -> None:
    note(job, Effect.Kind.START)
    _spend(job)
    note(job, Effect.Kind.END)
    _leave_trail(job)


async def work_async(job: Any) -> None:
    await sync_to_async(note)(job, Effect.Kind.START)
    await asyncio.sleep(job.workspace.get("seconds", 0))
    await sync_to_async(note)(job, Effect.Kind.END)
    _leave_trail(job)


def flaky(job: Any) -> None:
    """Fail as often as the workspace says, then work."""
    note(job, Effect.Kind.START)
    if job.failures < job.workspace["fails"]:
        raise Planned(f"failure {job.failures + 1} of {job.workspace['fails']}")
    note(job, Effect.Kind.END)
    _leave_trail(job)


def asking(job: Any) -> Retry | None:
    """Ask to be run again as often as the workspace says, then work."""
    note(job, Effect.Kind.START)
    if job.workspace["asks"]:
        job.workspace = {**job.workspace, "asks": job.workspace["asks"] - 1}
        return Retry(delay=0.05)
    note(job, Effect.Kind.END)
    _leave_trail(job)
    return None


def overrunning(job: Any) -> None:
    """Run past the timeout as often as the workspace says, then work."""
    note(job, Effect.Kind.START)
    if job.failures < job.workspace["overruns"]:
        deadline = time.monotonic() + FOR_EVER
        while time.monotonic() < deadline:
            time.sleep(0.01)  # in a thread, an exception from outside comes between two of these
    note(job, Effect.Kind.END)
    _leave_trail(job)


def stuck(job: Any) -> None:
    """Never come back from C, and be deaf to signals: only SIGKILL helps."""
    note(job, Effect.Kind.START)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(FOR_EVER)


def hogging(job: Any) -> None:
    """The same, and hold the interpreter's lock: the worker cannot even beat."""
    note(job, Effect.Kind.START)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.PyDLL(None).sleep(FOR_EVER)


def broken(job: Any) -> None:
    note(job, Effect.Kind.START)
    raise Planned("this task always fails")


def aborting(job: Any) -> None:
    note(job, Effect.Kind.START)
    raise Abort("planned: this task gives up")


def last(job: Any) -> None:
    """Last so long that somebody cancels the job meanwhile."""
    note(job, Effect.Kind.START)
    deadline = time.monotonic() + LAST
    while time.monotonic() < deadline:
        time.sleep(0.01)
    note(job, Effect.Kind.END)
    _leave_trail(job)


async def last_async(job: Any) -> None:
    await sync_to_async(note)(job, Effect.Kind.START)
    await asyncio.sleep(LAST)
    await sync_to_async(note)(job, Effect.Kind.END)
    _leave_trail(job)


# -- members of groups and maps, and what comes after them --


def _has_failed(job: Any) -> bool:
    """Whether a failure of this step is on record: losses do not count."""
    return bool(job.attempts.filter(step=job.step, outcome="failed").exists())


def fails_once(job: Any) -> None:
    """Fail, and work when somebody has the job retried."""
    note(job, Effect.Kind.START)
    if not _has_failed(job):
        raise Planned("this branch fails once")
    note(job, Effect.Kind.END)
    _leave_trail(job)


def square(job: Any) -> int:
    work(job)
    return int(job.workspace["item"]) ** 2


def square_if_good(job: Any) -> int:
    """Fail for the bad items, always."""
    if job.workspace["index"] in job.workspace["bad"]:
        broken(job)
    return square(job)


def square_once_failed(job: Any) -> int:
    """Fail for the bad items, and work when somebody has the job retried."""
    if job.workspace["index"] in job.workspace["bad"]:
        fails_once(job)
        return int(job.workspace["item"]) ** 2
    return square(job)


def check_squares(job: Any) -> None:
    """What the map has collected is there, complete and in order; of what has failed there is None."""
    note(job, Effect.Kind.START)
    items, squares = job.workspace["items"], job.workspace["squares"]
    wrong = [
        (item, found)
        for item, found in zip(items, squares, strict=True)
        if found not in (item**2, None)
    ]
    if wrong:
        raise ValueError(f"these are wrong: {wrong}")
    note(job, Effect.Kind.END)
    _leave_trail(job)


# -- tasks that create jobs and wait for them --


def order(job: Any) -> Wait | None:
    """Not atomic: it may be cut off between creating them and waiting for them, and so chooses their keys."""
    note(job, Effect.Kind.START)
    jobs = type(job).objects
    keys = [uuid.uuid5(job.pk, str(number)) for number in range(job.workspace["orders"])]
    for key in keys:
        if not jobs.filter(pk=key).exists():
            with contextlib.suppress(IntegrityError):  # an execution that was cut off is quicker
                jobs.create(id=key, name="follow-on", workspace={"parent": str(job.pk)})
    if jobs.filter(pk__in=keys).exclude(state="COMPLETE").exists():
        return Wait(jobs=keys)
    note(job, Effect.Kind.END)
    _leave_trail(job)
    return None


# -- inside the transaction of an atomic step --


def work_atomic(job: Any) -> None:
    _effect(job, Effect.Kind.ATOMIC).save(force_insert=True)
    _spend(job)
    _leave_trail(job)


def flaky_atomic(job: Any) -> None:
    """The same, but that it fails after its effect, as often as the workspace says."""
    work_atomic(job)
    if job.failures < job.workspace["fails"]:
        raise Planned(f"failure {job.failures + 1} of {job.workspace['fails']}")


def create_atomic(job: Any) -> None:
    """The same, and create the follow-on job."""
    work_atomic(job)
    type(job).objects.create(name="follow-on", workspace={"parent": str(job.pk)})


def order_atomic(job: Any) -> Wait | None:
    """Create jobs and wait for them, all at once."""
    jobs = type(job).objects
    if "ordered" not in job.workspace:
        orders = [
            jobs.create(name="follow-on", workspace={"parent": str(job.pk)})
            for _ in range(job.workspace["orders"])
        ]
        job.workspace = {**job.workspace, "ordered": [str(one.pk) for one in orders]}
        return Wait(jobs=orders)
    if jobs.filter(pk__in=job.workspace["ordered"]).exclude(state="COMPLETE").exists():
        return Wait(jobs=job.workspace["ordered"])
    work_atomic(job)
    return None


def square_atomic(job: Any) -> int:
    work_atomic(job)
    return int(job.workspace["item"]) ** 2


# -- for two hosts: what waits for the test, on the host that it runs on --


def hold(job: Any) -> None:
    host, key = os.environ["TORTURE_HOST"], job.workspace["key"]
    tell(f"{key} has started on {host}")
    told(f"{key} may end on {host}")
    job.workspace["done"] = host
    tell(f"{key} has ended on {host}")


def hold_atomic(job: Any) -> None:
    _effect(job, Effect.Kind.ATOMIC).save(force_insert=True)
    hold(job)


# -- hooks --


def failed(job: Any, error: BaseException) -> None:
    note(job, Effect.Kind.HOOK)
