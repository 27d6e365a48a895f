"""Tasks that break what they can reach, and databases that go away: the worker goes on and loses nothing."""

import contextlib
import datetime
import re
import signal
from collections.abc import Iterator

import pytest
from asgiref.sync import SyncToAsync
from django.db import connection, connections

from django_dbq.models import Attempt, Job
from tests.process_jobs import tell, told, until
from tests.processes import (
    create,
    kill_session,
    outcomes,
    states,
    until_idle,
    until_states,
    worker,
)

pytestmark = pytest.mark.django_db(transaction=True)

has_server = pytest.mark.skipif(
    "connection.vendor == 'sqlite'", reason="SQLite has no server that could end a connection"
)


# -- tasks --


BAD = {
    "leave_autocommit_off": "COMPLETE",
    "leave_atomic_block": "COMPLETE",
    "leave_broken_block": "FAILED",
    "close_connection": "COMPLETE",
    "exit_zero": "FAILED",
    "raise_unusual": "FAILED",
    "raise_cancelled": "FAILED",
    "raise_generator_exit": "FAILED",
    "fail": "FAILED",
}


@pytest.mark.parametrize("threads", [(), ("--threads", "2")], ids=["main", "threads"])
def test_tasks_that_misbehave_end_alone(threads: tuple[str, ...]) -> None:
    """In the middle of a batch: the same worker does the jobs before and behind, and commits what they came to."""
    good, bad = [], {}
    for name in BAD:
        good += [create("first") for _ in range(8)]
        bad[name] = create(name)
    good += [create("first") for _ in range(8)]
    with worker("--until_done", *threads) as process:
        assert process.wait() == 0
        assert process.output().count("Task left a transaction open, rolled back") == 3
        assert process.row.stopped is not None
    assert set(states(*good)) == {"COMPLETE"}
    assert {name: states(job) for name, job in bad.items()} == {n: [s] for n, s in BAD.items()}
    for name, state in BAD.items():
        outcome = "succeeded" if state == "COMPLETE" else "failed"
        assert outcomes(bad[name]) == [(1, outcome)]
    assert Attempt.objects.count() == len(good) + len(bad)
    assert not Job.objects.filter(queue_name="never committed").exists()


def test_a_process_that_serves_on_survives_every_one_of_them() -> None:
    """As above, in a worker that must still hear, claim and stop in good order afterwards."""
    with worker("--tick", "0.1") as process:
        for name in BAD:
            bad = create(name)
            until(lambda bad=bad: bad.attempts.exists(), name)
            until_states("COMPLETE", create("first"))
        assert process.running


# -- connections --


@has_server
def test_a_connection_that_dies_while_the_worker_is_idle() -> None:
    with worker("--tick", "2") as process:
        for key in ("just after the task", "in the midst of waiting"):
            create("tell_session", key)
            session = int(told(f"session {key}"))
            if key == "in the midst of waiting":
                until_idle(session)
            kill_session(session)
        until_states("COMPLETE", create("quick"))
        assert process.running
    assert set(Attempt.objects.values_list("number", flat=True)) == {1}


@has_server
def test_a_worker_whose_connection_has_died_stops_in_good_order() -> None:
    with worker("--tick", "1000", dbq={"WAKEUP": "poll"}) as process:
        create("tell_session", "1")
        session = int(told("session 1"))
        until_idle(session)
        kill_session(session)
        process.stop()
        assert process.row.stopped is not None


@has_server
@pytest.mark.parametrize("name", ["hold_session", "hold_session_in_block"])
def test_a_connection_that_dies_while_a_task_runs(name: str) -> None:
    """The outcome is written in any case: that of the task, whose own doing it is whether it survives."""
    before = [create("first") for _ in range(8)]
    held = create(name, "held")
    behind = [create("first") for _ in range(8)]
    with worker("--tick", "0.2") as process:
        session = int(told("session held"))
        kill_session(session)
        tell("go on held")
        until_states("COMPLETE" if name == "hold_session" else "FAILED", held)
        until_states("COMPLETE", *before, *behind)
        until_states("COMPLETE", create("quick"))
        assert process.running
    assert set(Attempt.objects.values_list("number", flat=True)) == {1}
    assert Attempt.objects.count() == 18


@has_server
def test_a_signal_after_the_connection_has_died_under_a_task() -> None:
    held = create("hold_session", "held")
    with worker("--tick", "0.2") as process:
        kill_session(int(told("session held")))
        process.send(signal.SIGTERM)
        until_states("STOPPING", held)
        tell("go on held")
        assert process.wait() == 0
        assert process.row.stopped is not None
    assert states(held) == ["COMPLETE"]
    assert held.attempts.get().outcome == "succeeded"


# -- the whole database --


@contextlib.contextmanager
def database_away() -> Iterator[None]:
    """Nobody is connected to the test's database or can be, until the end of the block."""
    name = connection.settings_dict["NAME"]
    connection.close()
    # Also in the thread that coroutines of earlier tests have called plain code in.
    SyncToAsync.single_thread_executor.submit(connections.close_all).result()
    elsewhere = connections.create_connection("default")
    elsewhere.settings_dict = {**connection.settings_dict, "NAME": "postgres"}
    with contextlib.closing(elsewhere), elsewhere.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s",
                [name],
            )
            yield
        finally:
            cursor.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


@pytest.fixture
def postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL can shut a single database")


@pytest.mark.usefixtures("postgresql")
@pytest.mark.parametrize("name", ["hold_session", "close_and_hold"])
def test_a_database_that_goes_away_while_a_task_runs(name: str) -> None:
    held = create(name, "held")
    behind = [create("first") for _ in range(3)]
    with worker("--tick", "0.2") as process:
        told("started held")
        with database_away():
            tell("go on held")
            told("ended held")
            until(lambda: "out of reach" in process.output(), "the worker to find it out")
        until_states("COMPLETE", held, *behind)
        until_states("COMPLETE", create("quick"))
    assert held.attempts.get().outcome == "succeeded"
    assert set(Attempt.objects.values_list("number", flat=True)) == {1}


@pytest.mark.usefixtures("postgresql")
def test_a_database_that_goes_away_while_the_worker_is_idle() -> None:
    with worker("--tick", "0.2") as process:
        until_states("COMPLETE", create("quick"))
        with database_away():
            until(lambda: "out of reach" in process.output(), "the worker to find it out")
        until_states("COMPLETE", create("quick"))
        waits = re.findall(r"out of reach, trying again in ([\d.]+) s", process.output())
        assert 0.3 < float(waits[0]) <= 0.5


@pytest.mark.usefixtures("postgresql")
def test_a_signal_while_the_database_is_away() -> None:
    """The worker cannot tell anybody that it ends, but it has nothing to lose, and ends; its watchdog tells."""
    with worker("--tick", "0.2") as process:
        until_states("COMPLETE", create("quick"))
        with database_away():
            until(lambda: "out of reach" in process.output(), "the worker to find it out")
            process.send(signal.SIGTERM)
            assert process.wait() == 0
        until(lambda: process.row.stopped, "the watchdog to tell")
        until(lambda: not process.alive(), "the end of the watchdog")


@pytest.mark.usefixtures("postgresql")
def test_a_stopping_worker_waits_for_the_database_to_take_its_outcome() -> None:
    held = create("close_and_hold", "held")
    with worker("--tick", "0.2") as process:
        told("started held")
        process.send(signal.SIGTERM)
        until_states("STOPPING", held)
        with database_away():
            tell("go on held")
            told("ended held")
            until(lambda: "not currently accepting connections" in process.output())
        assert process.wait() == 0
    assert states(held) == ["COMPLETE"]
    assert held.attempts.get().outcome == "succeeded"


@pytest.mark.usefixtures("postgresql")
def test_a_worker_that_ends_by_itself_says_that_the_database_is_away() -> None:
    create("quick")
    now = datetime.datetime.now(datetime.UTC)
    with database_away(), worker("--until_done") as process:
        assert process.wait() != 0
        assert "OperationalError" in process.output()
    assert Job.objects.get().state == "NEW"
    assert Job.objects.get().modified < now
