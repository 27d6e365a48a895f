"""Workers that run tasks in threads: so many at a time, each with a database connection of its own."""

from typing import Any

import pytest
from django.db import connection, connections
from django.db.backends.signals import connection_created

from django_dbq.models import Attempt, Worker
from django_dbq.storage import Queues
from django_dbq.workers.worker import Worker as WorkerLoop
from tests.process_jobs import journal, tell, told, told_before, until
from tests.processes import create, outcomes, states, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)

QUICKLY = ("--tick", "0.1")


def test_so_many_tasks_run_at_a_time() -> None:
    jobs = [create("stand", str(n)) for n in range(6)]
    with worker(*QUICKLY, "--threads", "3", "--label", "one"):
        pids = {told(f"started {n} 1") for n in range(3)}
        assert states(*jobs) == ["PROCESSING"] * 3 + ["NEW"] * 3
        assert Worker.objects.count() == len(pids) == 1
        # Whichever ends, the next begins.
        for ended, begins in ((1, 3), (3, 4), (0, 5)):
            assert not told_before(f"started {begins} 1")
            tell(f"go on {ended} 1")
            told(f"started {begins} 1")
            until_states("COMPLETE", jobs[ended])
        for number in (2, 4, 5):
            tell(f"go on {number} 1")
        until_states("COMPLETE", *jobs)
    assert set(Attempt.objects.values_list("number", "outcome", "worker")) == {
        (1, "succeeded", "one")
    }


def test_many_quick_steps_are_run_once_and_in_order() -> None:
    jobs = [create("steps") for _ in range(300)]
    with worker("--threads", "4", "--until_done") as process:
        assert process.wait() == 0
    assert set(states(*jobs)) == {"COMPLETE"}
    lines = journal()
    for job in jobs:
        assert outcomes(job) == [(1, "succeeded"), (2, "succeeded"), (3, "succeeded")]
        ran = [line.split()[1] for line in lines if line.startswith(str(job.pk))]
        assert ran == ["first", "second", "third"]


def test_a_pause_between_starts_is_kept_by_all_threads_together() -> None:
    for _ in range(4):
        create("quick")
    with worker("--threads", "4", "--rate_limit", "0.5", "--until_done") as process:
        assert process.wait() == 0
    starts = list(Attempt.objects.order_by("started").values_list("started", flat=True))
    assert (starts[3] - starts[0]).total_seconds() > 1.2


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite has no sessions")
def test_each_thread_has_its_own_connection() -> None:
    jobs = [create("hold_session", str(n)) for n in range(3)]
    with worker(*QUICKLY, "--threads", "3"):
        sessions = {told(f"session {n}") for n in range(3)}
        assert len(sessions) == 3
        for number in range(3):
            tell(f"go on {number}")
        until_states("COMPLETE", *jobs)
        # They are kept from one task to the next.
        create("tell_session", "again")
        assert told("session again") in sessions


def test_all_connections_are_closed_at_its_end() -> None:
    """Those of its heart and of its threads: here in our own process, which lives on."""
    opened = []

    def note(connection: Any, **kwargs: Any) -> None:
        opened.append(connection)

    jobs = [create("atomic, effects") for _ in range(20)]
    connection.ensure_connection()
    connection_created.connect(note)
    try:
        WorkerLoop(Queues(("default",)), threads=2, until_done=True).run()
    finally:
        connection_created.disconnect(note)
    assert set(states(*jobs)) == {"COMPLETE"}
    others = [one for one in opened if one is not connections["default"]]
    assert len(others) >= 2
    until(lambda: all(one.connection is None for one in others), "closed connections")
