"""A second database session beside the test's own, and how they wait for each other."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from django.db import connection, connections, transaction

from tests.process_jobs import until

T = TypeVar("T")


def elsewhere(function: Callable[[], T]) -> T:
    """Its answer in a session of its own."""

    def call() -> T:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(30)


@contextmanager
def while_uncommitted(
    function: Callable[[], T], waits: bool | None = True
) -> Iterator["Future[T]"]:
    """A transaction of ours; at its end ``function`` is called in another session, and then ours is committed.

    Yields the answer, to be asked for after the block.

    Args:
        waits: whether the other session has to wait for the commit; if not, its answer comes before. None: either.
    """
    begun = threading.Event()
    answer: Future[T] = Future()

    def call() -> T:
        try:
            begun.set()
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            yield answer
            called = pool.submit(call)
            assert begun.wait(30)
            if connection.vendor != "sqlite":  # with one writer at a time, everybody waits
                if waits is False:
                    called.result(30)
                else:
                    until(lambda: is_blocked() or (waits is None and called.done()))
                    assert waits is None or not called.done()
        answer.set_result(called.result(30))


def is_blocked() -> bool:
    """Whether another session waits for what this one has locked."""
    waiting = {
        "postgresql": "SELECT count(*) FROM pg_locks"
        " WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))",
        # The table of transactions is not renewed for those who ask often.
        "mysql": "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(waiting)
        return int(cursor.fetchone()[-1]) > 0
