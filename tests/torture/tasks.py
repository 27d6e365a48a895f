"""What torture's jobs do: leave effects, take their time, fail, hang."""

import asyncio
import ctypes
import os
import signal
import time
from typing import Any

from asgiref.sync import sync_to_async
from django.db import InterfaceError, OperationalError, connection

from django_dbq import Abort, Retry
from tests.process_jobs import tell, told

from .models import DatabaseClock, Effect

PATIENCE = 60  # seconds for which a task waits for a database that is away
FOR_EVER = 600  # seconds: longer than any round waits


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
    """The workspace's own record of the steps done; it is saved with the outcome or not at all."""
    job.workspace = {**job.workspace, "trail": [*job.workspace.get("trail", ()), job.step]}


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
