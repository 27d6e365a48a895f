"""Tasks that tell what they do, and wait for what they are told, through files: a test can force any order.

The folder of those files is named by TEST_FOLDER. A task knows its own by ``job.workspace["key"]``; those that may be
run more than once add the attempt's number.
"""

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from asgiref.sync import markcoroutinefunction, sync_to_async
from django.apps import apps
from django.db import connection, transaction

from django_dbq import Abort, Retry

T = TypeVar("T")
PATIENCE = 90  # seconds after which an event that should have come is missing
AGES = 600  # seconds: longer than any test


def until(condition: Callable[[], T], what: str = "") -> T:
    """Wait until ``condition`` is true of the world, and return its value; fail if that never happens."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE} s for {what or condition}")
        time.sleep(0.005)
    return value


def folder() -> Path:
    return Path(os.environ["TEST_FOLDER"])


def tell(event: str, text: object = "") -> None:
    """Let everybody know of an event; the file appears with its text complete."""
    hidden = folder() / f".{event}.{os.getpid()}"
    hidden.write_text(str(text))
    hidden.rename(folder() / event)


def told(event: str) -> str:
    """Wait for an event; returns its text."""
    path = folder() / event
    until(path.exists, f"the event {event!r}")
    return path.read_text()


def write_down(line: str) -> None:
    """Add a line to the journal that all processes share; appending so few bytes is atomic."""
    descriptor = os.open(folder() / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def journal() -> list[str]:
    path = folder() / "journal"
    return path.read_text().splitlines() if path.exists() else []


def database_session() -> int:
    """The database's number for the connection that the calling thread uses."""
    number = {"postgresql": "pg_backend_pid()", "mysql": "connection_id()"}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {number}")
        return int(cursor.fetchone()[0])


# -- tasks --


def quick(job: Any) -> None:
    pass


def first(job: Any) -> None:
    write_down(f"{job.pk} first")


def second(job: Any) -> None:
    write_down(f"{job.pk} second")


def third(job: Any) -> None:
    write_down(f"{job.pk} third")


def hold(job: Any) -> None:
    """Run from the event ``started KEY`` until ``go on KEY``."""
    key = job.workspace["key"]
    tell(f"started {key}")
    told(f"go on {key}")


def hold_session(job: Any) -> None:
    """The same, and tell the number of the worker's own database connection."""
    key = job.workspace["key"]
    tell(f"session {key}", database_session())
    hold(job)
    tell(f"ended {key}")


def hold_session_in_block(job: Any) -> None:
    """The same, in a transaction that goes on afterwards."""
    with transaction.atomic():
        hold_session(job)
        database_session()


def close_and_hold(job: Any) -> None:
    """Close the worker's connection, as long tasks do, and go on without it."""
    connection.close()
    hold(job)
    tell(f"ended {job.workspace['key']}")


def tell_session(job: Any) -> None:
    tell(f"session {job.workspace['key']}", database_session())


def create_another(job: Any) -> None:
    type(job).objects.create(name="quick")


def leave_autocommit_off(job: Any) -> None:
    transaction.set_autocommit(False)
    job.workspace["left"] = "open"


def leave_atomic_block(job: Any) -> None:
    transaction.atomic().__enter__()
    type(job).objects.create(name="quick", queue_name="never committed")


def leave_broken_block(job: Any) -> None:
    transaction.atomic().__enter__()
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM no_such_table")


def close_connection(job: Any) -> None:
    connection.close()


def exit_zero(job: Any) -> None:
    sys.exit(0)


class Unusual(BaseException):
    """Not an Exception: what careless code lets through everywhere."""


def raise_unusual(job: Any) -> None:
    raise Unusual("neither expected nor an Exception")


def raise_cancelled(job: Any) -> None:
    raise asyncio.CancelledError("a coroutine of this task was cancelled")


def raise_generator_exit(job: Any) -> None:
    raise GeneratorExit("from a closed generator")


def fail(job: Any) -> None:
    raise ValueError("this task always fails")


def kill_itself(job: Any) -> None:
    """What kills every worker that runs it."""
    write_down(f"{job.pk} killer")
    os.kill(os.getpid(), signal.SIGKILL)


# -- tasks that may be run more than once --


def told_before(event: str) -> bool:
    return (folder() / event).exists()


@contextlib.contextmanager
def standing(job: Any) -> Iterator[str]:
    """From ``started KEY ATTEMPT`` on; an exception is told as ``heard KEY ATTEMPT``, and all of it is written down."""
    run = f"{job.workspace['key']} {job.attempt}"
    write_down(f"start {run}")
    tell(f"started {run}", os.getpid())
    try:
        yield run
    except BaseException as error:
        heard = type(error).__name__
        try:
            tell(f"heard {run}", heard)
        except (
            BaseException
        ):  # one that was on its way already, when the task came to know by itself
            tell(f"heard {run}", heard)
        raise
    finally:
        write_down(f"end {run}")


def stand(job: Any) -> None:
    """Run until ``go on KEY ATTEMPT``."""
    with standing(job) as run:
        told(f"go on {run}")
    job.workspace["by"] = job.attempt


def stand_saving(job: Any) -> None:
    """The same, and save the workspace all the time; ``found KEY ATTEMPT`` is what was there at the beginning."""
    with standing(job) as run:
        tell(f"found {run}", job.workspace.get("saved by"))
        while not told_before(f"go on {run}"):
            job.workspace["saved by"] = job.attempt
            job.checkpoint()
            tell(f"saved {run}")
            time.sleep(0.005)
    job.workspace["by"] = job.attempt


def stand_telling(job: Any) -> None:
    """The same, and tell of progress all the time; of 1 at the end."""
    with standing(job) as run:
        for number in itertools.count():
            if told_before(f"go on {run}"):
                break
            job.set_progress(1 / (number + 2), f"attempt {job.attempt}")
            time.sleep(0.005)
        job.set_progress(1, f"attempt {job.attempt}")
    job.workspace["by"] = job.attempt


def stand_telling_in_block(job: Any) -> None:
    """The same, in a transaction of the task's own."""
    with transaction.atomic():
        stand_telling(job)


def tell_once_while_locked(job: Any) -> None:
    """Tell of progress once, in a transaction that has locked the job's row."""
    with transaction.atomic():
        job.checkpoint()
        job.set_progress(0.5, "told once")
        stand(job)


async def stand_async(job: Any) -> Any:
    """Stand, and end as `end` says."""
    with standing(job) as run:
        while not told_before(f"go on {run}"):
            await asyncio.sleep(0.02)
    job.workspace["by"] = job.attempt
    return end(job)


async def use_orm_async(job: Any) -> None:
    """Django's async queries, and those of synchronous code that is called in its thread."""
    groups = apps.get_model("auth.Group").objects
    group = await groups.acreate(name=f"{job.pk} {job.attempt}")
    found = [one.name async for one in groups.filter(pk=group.pk)]
    await sync_to_async(job.checkpoint)()
    job.workspace["found"] = found


async def block_async(job: Any) -> None:
    """Run on in synchronous code that the coroutine has called, where no cancellation gets at it."""
    with standing(job):
        await sync_to_async(time.sleep)(AGES)


async def exit_async(job: Any) -> None:
    await asyncio.sleep(0)
    sys.exit(1)


async def exit_in_own_task(job: Any) -> None:
    """In one that asyncio runs beside this."""
    await asyncio.gather(exit_async(job))


def refuse_call_async(job: Any) -> Any:
    """A plain function that stands for a coroutine, as a decorator makes one, and raises before there is any."""
    raise ValueError("this task fails at its call")


markcoroutinefunction(refuse_call_async)


async def stand_telling_async(job: Any) -> None:
    with standing(job) as run:
        for number in itertools.count():
            if told_before(f"go on {run}"):
                break
            job.set_progress(1 / (number + 2), f"attempt {job.attempt}")
            await asyncio.sleep(0.02)
        job.set_progress(1, f"attempt {job.attempt}")


def stand_deaf(job: Any) -> None:
    """The same, and take no notice of whatever is raised, but for telling it."""
    while True:
        with contextlib.suppress(BaseException), standing(job) as run:
            told(f"go on {run}")
            return


def swallows(job: Any) -> None:
    """End at the first exception as if nothing had been."""
    with contextlib.suppress(BaseException):
        stand(job)


async def stand_deaf_async(job: Any) -> None:
    while True:
        with contextlib.suppress(BaseException), standing(job) as run:
            while not told_before(f"go on {run}"):
                await asyncio.sleep(0.005)
            return


# -- tasks that write into the database --


def effects(job: Any) -> list[str]:
    """What has been committed of `write_effects`: the number of the attempt, for each of the three."""
    groups = apps.get_model("auth.Group").objects.filter(name__startswith=str(job.pk))
    jobs = type(job).objects.filter(queue_name="follow-on", workspace__of=str(job.pk))
    workspace = type(job).objects.get(pk=job.pk).workspace
    found = [f"row {group.name.split()[1]}" for group in groups.order_by("name")]
    found += [f"job {one.workspace['by']}" for one in jobs.order_by("created")]
    return found + ([f"workspace {workspace['by']}"] if "by" in workspace else [])


def write_effects(job: Any) -> None:
    """A row of the project's, a job, and the workspace; a second effect of one attempt would be refused."""
    apps.get_model("auth.Group").objects.create(name=f"{job.pk} {job.attempt}")
    workspace = {"of": str(job.pk), "by": job.attempt}
    type(job).objects.create(name="quick", queue_name="follow-on", workspace=workspace)
    job.workspace["by"] = job.attempt


def stand_with_effects(job: Any) -> Any:
    """Write, stand, and end as `end` says."""
    write_effects(job)
    stand(job)
    return end(job)


def end(job: Any) -> Any:
    """End as ``workspace["ends"]`` says for each attempt; well, by default."""
    ends = dict(enumerate(job.workspace.get("ends", ()), start=1))
    way = ends.get(job.attempt, "well")
    if way == "raises":
        raise ValueError("this task fails at its end")
    if way == "raises Retry":
        raise Retry(delay=0)
    return {"well": None, "returns Retry": Retry(delay=0), "returns Abort": Abort("enough")}[way]


def lose_session(job: Any) -> None:
    """The same, with a database session that the test may end, and a query after it stood if the workspace says so."""
    run = f"{job.workspace['key']} {job.attempt}"
    tell(f"session {run}", database_session())
    stand_with_effects(job)
    if job.workspace.get("asks"):
        database_session()


def lock_two(job: Any) -> None:
    """Lock one row, stand, and lock another: the test does the same the other way round."""
    groups = apps.get_model("auth.Group").objects
    write_effects(job)
    groups.filter(name="one").update(name="one")
    stand(job)
    groups.filter(name="two").update(name="two")


# -- tasks that run for longer than they may --


def sleep_on() -> None:
    time.sleep(AGES)


def spin() -> None:
    while True:
        pass


def doze() -> None:
    """What an exception from outside can end in any thread."""
    while True:
        time.sleep(0.005)


def swallow() -> None:
    with contextlib.suppress(BaseException):
        doze()


def be_deaf() -> None:
    while True:
        swallow()


def hold_the_interpreter() -> None:
    """Sleep in C code that does not let any other thread run."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.PyDLL(None).sleep(AGES)


OVERRUNS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (sleep_on, spin, doze, swallow, be_deaf, hold_the_interpreter)
}


def overrun(job: Any) -> None:
    """Run past the timeout, as often and in the way that the workspace says.

    With ``leaves`` in the workspace it does not end before ``go on KEY ATTEMPT``.
    """
    with standing(job) as run:
        if job.failures >= job.workspace.get("times", 1):
            return
        try:
            OVERRUNS[job.workspace["how"]]()
        finally:
            if "leaves" in job.workspace:
                tell(f"unwinds {run}")
                told(f"go on {run}")


def overrun_with_effects(job: Any) -> None:
    write_effects(job)
    overrun(job)


async def overrun_async(job: Any) -> None:
    with standing(job):
        if job.failures >= job.workspace.get("times", 1):
            return
        how = job.workspace["how"]
        if how == "block":
            time.sleep(AGES)
        elif how == "swallow":
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(AGES)
        else:
            await asyncio.sleep(AGES)


# -- tasks that need memory --

_hoard: list[bytearray] = []


def hoard(job: Any) -> None:
    """Keep so many MiB for as long as the process lives."""
    _hoard.append(bytearray(b"\1") * (job.workspace["mib"] << 20))


def run_away(job: Any) -> None:
    """Ask for more memory than any machine has."""
    bytearray(1 << 44)


# -- hooks --


def note_start(job: Any) -> None:
    write_down(f"before {job.workspace['key']} {job.attempt}")


def note_end(job: Any) -> None:
    write_down(f"after {job.workspace['key']} {job.attempt}")


def note_failure(job: Any, error: BaseException) -> None:
    write_down(f"failed {job.workspace['key']} {type(error).__name__}")


def note_completion(job: Any) -> None:
    write_down(f"completed {job.workspace['key']}")


def write_in_hook(job: Any) -> None:
    apps.get_model("auth.Group").objects.create(name=f"hook of {job.pk}")


def write_and_raise_in_hook(job: Any) -> None:
    write_in_hook(job)
    raise RuntimeError("this hook always fails")


def _path(function: Callable[..., Any]) -> str:
    return f"{__name__}.{function.__name__}"


def _watched(task: Callable[[Any], Any], **options: Any) -> dict[str, Any]:
    """An entry of one step, with hooks that tell of its end."""
    failed, completed = _path(note_failure), _path(note_completion)
    return {
        "tasks": [_path(task)],
        "failure_hook": failed,
        "completion_hook": completed,
        **options,
    }


JOBS: dict[str, Any] = {
    "steps": [_path(first), _path(second), _path(third)],
    "hold then second": [_path(hold), _path(second)],
    "kill_itself": _watched(kill_itself),
    "stand": _watched(stand),
    "stand, fail": _watched(stand, on_lost="fail"),
    "stand, hold": _watched(stand, on_lost="hold"),
    "stand_saving": _watched(stand_saving),
    "stand_telling": _watched(stand_telling),
    "stand_telling_in_block": _watched(stand_telling_in_block),
    "stand_telling_async": _watched(stand_telling_async),
    "tell_once_while_locked": _watched(tell_once_while_locked),
    "atomic, telling": _watched(stand_telling, atomic=True),
    "stand_async": _watched(stand_async),
    "stand_async, hooks": _watched(
        stand_async, pre_task_hook=_path(note_start), post_task_hook=_path(note_end)
    ),
    "stand_async, retried": _watched(stand_async, retries=1),
    "block_async": _watched(block_async),
    "block_async, timeout": _watched(block_async, timeout=1.0),
    "stand_deaf": _watched(stand_deaf),
    "stand_deaf_async": _watched(stand_deaf_async),
    "swallows": _watched(swallows),
    "atomic": _watched(stand_with_effects, atomic=True),
    "atomic, retried": _watched(stand_with_effects, atomic=True, retries=1),
    "atomic, session": _watched(lose_session, atomic=True),
    "atomic, locks": _watched(lock_two, atomic=True),
    "atomic, effects": _watched(write_effects, atomic=True),
    "atomic, hook": _watched(write_effects, atomic=True, completion_hook=_path(write_in_hook)),
    "atomic, raising hook": _watched(
        write_effects, atomic=True, completion_hook=_path(write_and_raise_in_hook)
    ),
    "overrun": _watched(overrun, timeout=1.0),
    "overrun, retried": _watched(overrun, timeout=2.0, retries=2),
    "overrun, atomic": _watched(overrun_with_effects, timeout=2.0, atomic=True, retries=1),
    "overrun_async": _watched(overrun_async, timeout=1.0),
    "overrun_async, retried": _watched(overrun_async, timeout=2.0, retries=2),
    **{
        task.__name__: [_path(task)]
        for task in (
            quick,
            first,
            hold,
            hold_session,
            hold_session_in_block,
            close_and_hold,
            tell_session,
            create_another,
            leave_autocommit_off,
            leave_atomic_block,
            leave_broken_block,
            close_connection,
            exit_zero,
            raise_unusual,
            raise_cancelled,
            raise_generator_exit,
            fail,
            use_orm_async,
            exit_async,
            exit_in_own_task,
            refuse_call_async,
            hoard,
            run_away,
        )
    },
}
