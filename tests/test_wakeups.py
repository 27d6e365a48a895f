"""Wake-ups come at once, are few, and nobody depends on them."""

import datetime
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from django_dbq import engine, wakeups
from django_dbq.models import Job
from django_dbq.models import Worker as WorkerRow
from django_dbq.storage import Queues, storage_for
from django_dbq.wakeups import DEBOUNCE, Bell, Wakeup
from tests import process_jobs
from tests.outcomes import outcome
from tests.process_jobs import until
from tests.processes import kill_session, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)

FOR_EVER = "1000"  # seconds: a worker with this tick, and longer than any test, hears of jobs or does not run them
POLLING = "Not listening for notifications, polling instead"
LISTENING = "Listening for notifications again"
listens = pytest.mark.skipif(
    "connection.vendor != 'postgresql'", reason="only PostgreSQL has LISTEN and NOTIFY"
)


@pytest.fixture(autouse=True)
def jobs_setting(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.JOBS = process_jobs.JOBS
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    monkeypatch.setattr(wakeups, "_sent", {})  # nothing has been notified yet


def create(name: str = "quick", **fields: Any) -> Job:
    job: Job = Job.objects.create(name=name, **fields)
    return job


# -- what is sent --


class Ear:
    """A connection that listens as a worker does."""

    def __init__(self) -> None:
        self.connection = storage_for("default").listen()

    def heard(self, last: str) -> list[str]:
        """The queues that were notified so far, up to the first notification for ``last``."""
        found: list[str] = []
        for notification in self.connection.notifies(timeout=30):
            found.append(notification.payload)
            if notification.payload == last:
                return found
        raise TimeoutError(f"no notification for {last!r}, only {found}")


@pytest.fixture
def ear(transactional_db: None) -> Iterator[Ear]:
    ear = Ear()
    yield ear
    ear.connection.close()


def in_thread(function: Callable[[], Any]) -> Any:
    """Call it with a database connection of its own."""

    def call() -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(30)


@listens
def test_a_commit_notifies_and_a_rollback_does_not(ear: Ear) -> None:
    with transaction.atomic():
        create(queue_name="rolled back")
        transaction.set_rollback(True)
    create(queue_name="alone")
    with transaction.atomic():
        create(queue_name="committed")
        in_thread(lambda: create(queue_name="meanwhile"))
    # A slow statement may be notified of twice.
    assert list(dict.fromkeys(ear.heard("committed"))) == ["alone", "meanwhile", "committed"]


@listens
@pytest.mark.parametrize("count", [3, 100], ids=["insert", "copy"])
def test_a_bulk_notifies_once_for_each_queue(ear: Ear, count: int) -> None:
    Job.objects.bulk_create(Job(name="quick", queue_name=f"{n % 2}") for n in range(count))
    create(queue_name="last")
    assert sorted(ear.heard("last")) == ["0", "1", "last"]


@listens
def test_whoever_gets_a_job_ready_notifies(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next step of a job, and one that was handed back, are for any worker."""
    # A slow statement may be notified of twice.
    monkeypatch.setattr(wakeups, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    ours = WorkerRow(label="", hostname="", pid=1, queues="", started=timezone.now())
    engine.start_worker(ours, "default")

    def claim(queue: str) -> Job:
        wakeups._sent.clear()
        create("steps", queue_name=queue)
        ear.heard(queue)
        wakeups._sent.clear()
        (job,) = engine.claim(ours, Queues((queue,)), 1, timezone.now(), "default")
        return job

    engine.finish(ours, [outcome(claim("next step"))], timezone.now(), "default")
    assert ear.heard("next step") == ["next step"]
    engine.hand_back(ours, [claim("handed back")], timezone.now(), "default")
    assert ear.heard("handed back") == ["handed back"]
    engine.finish(ours, [outcome(claim("failed"), ValueError())], timezone.now(), "default")
    create(queue_name="last")
    assert ear.heard("last") == ["last"], "a job that has ended concerns no worker"


@listens
def test_a_burst_sends_one_notification_in_a_while(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=1000.0)
    monkeypatch.setattr(wakeups, "time", clock)
    for _ in range(50):
        create()
    clock.now += 1.1 * DEBOUNCE
    for _ in range(50):
        create()
    create(queue_name="last")
    assert ear.heard("last") == ["default", "default", "last"]


@listens
def test_a_notification_that_was_not_sent_holds_none_back(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A creation that fails must not count as notified, or the next one's wake-up would be lost."""
    monkeypatch.setattr(wakeups, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    taken = create(queue_name="other")
    with pytest.raises(Exception, match="duplicate key"):
        create(pk=taken.pk)
    create()
    assert ear.heard("default") == ["other", "default"]


# -- who hears it --


@listens
def test_what_comes_before_it_listens_ends_the_first_wait() -> None:
    """A job that is committed after the worker's claim and before its LISTEN would be missed until the next poll."""
    storage = storage_for("default")

    def listen() -> Any:
        storage.notify(["default"])  # nobody hears this
        return storage.listen()

    wakeup = Wakeup(Queues().serves, listen, storage.notify)
    assert wakeup.wait(30)
    assert wakeup.healthy
    assert not wakeup.wait(0)
    wakeup.close()


@listens
def test_only_notifications_for_our_queues_end_a_wait() -> None:
    storage = storage_for("default")
    wakeup = Wakeup(Queues(("ours",)).serves, storage.listen, storage.notify)
    assert wakeup.wait(30), "its proof"
    storage.notify(["another"])
    assert not wakeup.wait(0.2)
    storage.notify(["another", "ours"])
    assert wakeup.wait(30)
    wakeup.close()


def test_a_bell_keeps_a_ring_until_it_is_heard() -> None:
    bell = Bell()
    assert not bell.wait(0)
    for _ in range(100_000):  # more than its pipe takes
        bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)
    bell.close()
    bell.ring()  # of somebody who does not know yet


def test_the_worker_of_this_process_hears_a_job_that_is_created_here() -> None:
    """Whatever the database can, in the transaction's own time."""
    wakeup = Wakeup()
    with transaction.atomic():
        create()
        assert not wakeup.wait(0)
    assert wakeup.wait(0)
    wakeup.close()


@listens
def test_an_idle_worker_starts_a_job_long_before_its_tick() -> None:
    with worker("--tick", FOR_EVER):
        for name in ("quick", "steps", "quick"):
            until_states("COMPLETE", create(name))


@listens
def test_a_worker_that_excludes_queues_hears_of_the_others() -> None:
    with worker("--tick", FOR_EVER, "--exclude_queue", "a"):
        until_states("COMPLETE", create(queue_name="b"))
        until_states("COMPLETE", create(queue_name="new"))


@listens
def test_the_last_job_of_a_burst_does_not_wait_for_the_tick(ear: Ear) -> None:
    with worker("--tick", FOR_EVER):
        until_states("COMPLETE", create())
        begun = time.monotonic()
        jobs = [create() for _ in range(300)]
        took = time.monotonic() - begun
        until_states("COMPLETE", *jobs)
        create(queue_name="last")
    sent = ear.heard("last").count("default")
    assert (
        sent <= 3 + 2 * took / DEBOUNCE
    )  # twice, for a statement that takes longer than that itself


@listens
def test_jobs_committed_together_with_others_in_the_debounce_time_are_started() -> None:
    """Two processes create at once; each holds its own second notification back."""
    with worker("--tick", FOR_EVER):
        until_states("COMPLETE", create())
        for _ in range(20):
            mine = [create(), create()]
            theirs = in_thread(lambda: [create(), create()])
            until_states("COMPLETE", *mine, *theirs)


def test_a_job_created_by_a_task_wakes_its_own_worker() -> None:
    with worker("--tick", FOR_EVER, dbq={"WAKEUP": "poll"}):
        create("create_another")
        until(lambda: Job.objects.filter(state="COMPLETE").count() == 2)


def test_a_future_job_is_started_in_time_whatever_the_tick() -> None:
    at = timezone.now() + datetime.timedelta(seconds=5)  # in which the worker should have begun
    job = create(run_after=at)
    with worker("--tick", FOR_EVER, dbq={"WAKEUP": "poll"}):
        until_states("COMPLETE", job)
    late = job.attempts.get().started - at
    assert 0 <= late.total_seconds() < 5


# -- and when nothing is heard --


def test_everything_is_done_without_any_wake_up() -> None:
    jobs = [create("steps") for _ in range(10)]
    with worker("--tick", "0.05", dbq={"WAKEUP": "poll"}):
        until_states("COMPLETE", *jobs)
        jobs = [create("steps") for _ in range(10)]
        until_states("COMPLETE", *jobs)


@listens
def test_a_listening_worker_also_polls(settings: Any) -> None:
    """Every notification of this process is dropped; the worker, which listens, still finds the jobs."""
    settings.DBQ = {"WAKEUP": "poll"}
    with worker("--tick", "0.05") as process:
        until(listening_session)
        jobs = [create("steps") for _ in range(10)]
        until_states("COMPLETE", *jobs)
        assert POLLING not in process.output()


def listening_session() -> int | None:
    """The number of the database session in which somebody listens, if there is one."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN %%' AND datname = current_database()"
        )
        row = cursor.fetchone()
    return row[0] if row else None


@listens
@pytest.mark.parametrize("tick", ["0.05", FOR_EVER])
def test_a_lost_listening_connection_is_made_anew(tick: str) -> None:
    with worker("--tick", tick) as process:
        until_states("COMPLETE", create())
        for number in (1, 2):
            kill_session(until(listening_session))
            until_states("COMPLETE", create())
            until(lambda number=number: process.output().count(LISTENING) == number, LISTENING)
        until_states("COMPLETE", create())
        assert process.output().count(POLLING) == 2


@listens
def test_a_server_that_refuses_the_listening_connection_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "RETRY_LISTEN", (0.0, 0.0))
    tries = []

    def listen() -> Any:
        tries.append(1)
        raise ConnectionError("no more connections")

    wakeup = Wakeup(Queues().serves, listen, storage_for("default").notify)
    for _ in range(5):
        assert not wakeup.wait(0)
    assert len(tries) >= 5
    assert [record.getMessage() for record in caplog.records] == [f"{POLLING}: no more connections"]
    wakeup.close()


@pytest.fixture
def pgbouncer(program: Callable[[str], str], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """PgBouncer in transaction mode in front of the test's database; yields what a client has to change."""
    if connection.vendor != "postgresql":
        pytest.skip("PgBouncer is for PostgreSQL")
    path = program("pgbouncer")
    with connection.cursor() as cursor:
        info = connection.connection.info
        server = {"host": info.host, "port": info.port, "dbname": info.dbname, "user": info.user}
        if info.password:
            server["password"] = info.password
        cursor.execute("SHOW server_version")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",  # anybody is the user that is named below
        "pool_mode": "transaction",
        "default_pool_size": 5,
        "ignore_startup_parameters": "extra_float_digits",
    }
    if os.geteuid() == 0:  # which it refuses: the server's own user may at least use its socket
        folder = Path(info.host)
        owner = folder.stat().st_uid if folder.is_absolute() else pwd.getpwnam("nobody").pw_uid
        settings["user"] = pwd.getpwuid(owner).pw_name
    file, log = tmp_path / "pgbouncer.ini", tmp_path / "pgbouncer.log"
    lines = ["[databases]", "pooled = " + " ".join(f"{k}={v}" for k, v in server.items())]
    lines += ["[pgbouncer]", *(f"{key} = {value}" for key, value in settings.items())]
    file.write_text("\n".join(lines) + "\n")
    with log.open("w") as output:
        process = subprocess.Popen([path, str(file)], stdout=output, stderr=output)

    def accepts() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(accepts, "PgBouncer")
        yield {"NAME": "pooled", "HOST": "127.0.0.1", "PORT": port, "OPTIONS": {}}
    finally:
        process.terminate()
        process.wait()
        print(log.read_text())  # noqa: T201  # shown by a failing test


def test_behind_a_transaction_pooler_a_worker_polls(pgbouncer: dict[str, Any]) -> None:
    with worker("--tick", "0.2", **pgbouncer) as process:
        until(lambda: POLLING in process.output(), "the worker to find that it hears nothing")
        create("steps")
        # Enough for the statements that PostgreSQL plans differently, each in a transaction of its own.
        Job.objects.bulk_create(Job(name="steps") for _ in range(300))
        until(lambda: not Job.objects.exclude(state="COMPLETE").exists(), "all jobs")
        assert process.output().count(POLLING) == 1
        assert LISTENING not in process.output()
        assert "Traceback" not in process.output()
