"""Tasks that tell what they do, and wait for what they are told, through files: a test can force any order.

The folder of those files is named by TEST_FOLDER. A task knows its own by ``job.workspace["key"]``.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from django.db import connection, transaction

T = TypeVar("T")
PATIENCE = 30  # seconds after which an event that should have come is missing


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


def _path(task: Callable[[Any], None]) -> str:
    return f"{__name__}.{task.__name__}"


JOBS: dict[str, Any] = {
    "steps": [_path(first), _path(second), _path(third)],
    "hold then second": [_path(hold), _path(second)],
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
        )
    },
}
