"""A database server that stops without warning in the middle of everything, and comes back."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dj_database_url
import pytest
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.db import OperationalError, connection, connections

from django_dbq import engine
from django_dbq.models import Attempt, Job, Worker
from django_dbq.storage import Queues
from django_dbq.workers.worker import Worker as WorkerLoop
from tests.process_jobs import effects, journal, tell, told, until
from tests.processes import create, outcomes, until_states, worker
from tests.torture.servers import PostgreSQL

LEASE = 2  # seconds
OUTAGE = LEASE + 1.5  # seconds


@pytest.fixture
def server(transactional_db: None) -> Iterator[PostgreSQL]:
    """A server of our own, to which the default connection leads meanwhile."""
    if connection.vendor != "postgresql":
        pytest.skip("this test brings its own server, which is PostgreSQL")
    # Not below pytest's own folder, where the user that the server runs as has no way in.
    with TemporaryDirectory(prefix="dbq-outage-") as folder, contextlib.ExitStack() as stack:
        os.chmod(folder, 0o755)
        server = PostgreSQL(Path(folder))
        stack.callback(server.end)
        before = connections["default"]
        own = connections.create_connection("default")
        own.settings_dict = {**before.settings_dict, **dj_database_url.parse(server.url)}
        connections["default"] = own
        stack.callback(connections.__setitem__, "default", before)
        stack.callback(own.close)
        call_command("migrate", verbosity=0)
        yield server


def test_a_server_that_is_away_for_longer_than_a_lease(server: PostgreSQL) -> None:
    """In the middle of plain and of atomic tasks, with quick ones beside them and waiting behind."""
    own = ("--timeout", str(LEASE), "--tick", "0.2", "--queue", "default", "--queue")
    with (
        worker(*own, "main") as main,
        worker(*own, "threads", "--threads", "3") as threads,
    ):
        held = [
            create("atomic", "main", queue_name="main"),
            create("stand", "plain", queue_name="threads"),
            create("atomic", "thread", queue_name="threads"),
        ]
        for job in held:
            told(f"started {job.workspace['key']} 1")
        plain, atomic = [], []
        for _ in range(200):
            plain.append(create("steps"))
            atomic.append(create("atomic, effects"))
        until(lambda: Attempt.objects.count() > 50, "quick tasks")
        connection.close()
        server.crash()
        until(lambda: "out of reach" in threads.output(), "a worker to find it out")
        tell("go on main 1")  # these end while it is away, and the third afterwards
        tell("go on plain 1")
        time.sleep(OUTAGE)
        server.start()
        tell("go on thread 1")
        until_states("COMPLETE", *held, *plain, *atomic)
        assert main.running
        assert threads.running
        assert Worker.objects.filter(stopped=None).count() == 2
    assert Worker.objects.count() == 2, "nobody was declared dead, nor began anew"
    for job in plain:
        assert outcomes(job) == [(1, "succeeded"), (2, "succeeded"), (3, "succeeded")]
    for job in held + atomic:
        assert outcomes(job) == [(1, "succeeded")]
    for job in (held[0], held[2], *atomic):
        assert effects(job) == ["row 1", "job 1", "workspace 1"]
    assert Group.objects.count() == len(atomic) + 2
    runs = Counter(journal())
    steps = [f"{job.pk} {step}" for job in plain for step in ("first", "second", "third")]
    assert {runs[step] for step in steps} == {runs["start plain 1"]} == {1}


@pytest.mark.django_db(transaction=True)
def test_a_claim_whose_answer_got_lost_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs are the worker's then, as the database has it, and it has never heard of them."""
    jobs = [create("quick") for _ in range(3)]
    claim, lost = engine.claim, []

    def answer_gets_lost(*args: Any) -> list[Job]:
        claimed = claim(*args)
        if claimed and not lost:
            lost.extend(claimed)
            raise OperationalError("server closed the connection unexpectedly")
        return claimed

    monkeypatch.setattr(engine, "claim", answer_gets_lost)
    loop = WorkerLoop(Queues(("default",)), tick=0.1)

    def run() -> None:
        try:
            loop.run()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until_states("COMPLETE", *jobs)
    finally:
        loop.stop()
        thread.join()
    assert lost
    assert {outcome for job in jobs for outcome in outcomes(job)} == {(1, "succeeded")}
