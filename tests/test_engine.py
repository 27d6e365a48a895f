"""The writer of job state where a second connection, a failure or a large number matters."""

import datetime
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_dbq import engine, wakeups
from django_dbq.models import Attempt, Job, Worker
from django_dbq.storage import Queues, storage_for
from tests import process_jobs
from tests.outcomes import outcome

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = datetime.timedelta(hours=1)


@pytest.fixture(autouse=True)
def jobs_setting(settings: Any) -> None:
    settings.JOBS = process_jobs.JOBS


@pytest.fixture
def worker(transactional_db: None) -> Worker:
    worker = Worker(label="ours", hostname="here", pid=1, queues="", started=timezone.now())
    engine.start_worker(worker, "default")
    return worker


def claim(worker: Worker, limit: int = 100) -> list[Job]:
    return engine.claim(worker, Queues(), limit, timezone.now(), "default")


def elsewhere(function: Any) -> Any:
    """Its answer over a connection of its own."""

    def call() -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(30)


def states() -> list[str]:
    return list(Job.objects.order_by("created").values_list("state", flat=True))


# -- creation --


@pytest.mark.parametrize("count", [1, 3, 100], ids=["save", "insert", "copy"])
def test_creation_obeys_the_callers_transaction(count: int) -> None:
    def create(queue: str) -> None:
        jobs = [Job(name="quick", queue_name=queue) for _ in range(count)]
        if count == 1:
            jobs[0].save()
        else:
            Job.objects.bulk_create(jobs)

    rung: list[str] = []
    ring, wakeups.ring = wakeups.ring, lambda: rung.append("ring")
    try:
        with transaction.atomic():
            create("rolled back")
            transaction.set_rollback(True)
        with transaction.atomic():
            create("committed")
            with transaction.atomic():
                create("savepoint")
                transaction.set_rollback(True)
            if connection.vendor != "sqlite":  # where the reader would have to wait
                assert elsewhere(Job.objects.count) == 0
            assert rung == []
    finally:
        wakeups.ring = ring
    assert rung == ["ring"]
    assert elsewhere(Job.get_queue_depths) == {"committed": count}


def test_a_wake_up_that_fails_is_only_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Any, *args: Any) -> None:
        raise DatabaseError("the notification queue is full")

    monkeypatch.setattr(type(storage_for("default")), "notify", fail)
    monkeypatch.setattr(wakeups, "_sent", {})
    with caplog.at_level(logging.WARNING, "django_dbq"), transaction.atomic():
        Job.objects.create(name="quick")
    assert states() == ["NEW"]
    assert [record.getMessage() for record in caplog.records] == [
        "Could not notify workers: queues=default"
    ]


# -- the worker's hold --


def test_a_claim_and_an_outcome_are_committed_at_once(worker: Worker) -> None:
    Job.objects.create(name="quick")
    (job,) = claim(worker)
    assert elsewhere(states) == ["PROCESSING"]
    engine.finish(worker, [outcome(job)], timezone.now(), "default")
    assert elsewhere(states) == ["COMPLETE"]
    assert elsewhere(Attempt.objects.count) == 1


def test_stopping_marks_only_what_is_still_being_run_here(worker: Worker) -> None:
    for _ in range(5):
        Job.objects.create(name="quick")
    running, done, reset, rescued, deleted = jobs = claim(worker)
    engine.finish(worker, [outcome(done)], timezone.now(), "default")
    Job.objects.filter(pk=reset.pk).update(state="READY")
    Job.objects.filter(pk=rescued.pk).update(attempt=2)
    Job.objects.filter(pk=deleted.pk).delete()
    engine.stopping(worker, jobs, "default")
    assert states() == ["STOPPING", "COMPLETE", "READY", "PROCESSING"]
    assert engine.finish(worker, [outcome(running)], timezone.now(), "default")
    assert states() == ["COMPLETE", "COMPLETE", "READY", "PROCESSING"]


def test_a_worker_has_a_row_from_start_to_stop(worker: Worker) -> None:
    assert elsewhere(lambda: Worker.objects.get().stopped) is None
    assert elsewhere(lambda: Worker.objects.get().heartbeat) is not None
    at = timezone.now()
    worker.reason = "max_jobs: 7 tasks were run"
    engine.stop_worker(worker, at, "default")
    row = elsewhere(Worker.objects.get)
    assert (row.stopped, row.reason) == (at, "max_jobs: 7 tasks were run")


def test_a_worker_ends_once(worker: Worker) -> None:
    """Whoever has declared it dead has said why."""
    engine.bury(worker.pk, "It was shot.", timezone.now(), "default")
    before = Worker.objects.values().get()
    worker.reason = "told to stop"
    engine.stop_worker(worker, timezone.now(), "default")
    assert Worker.objects.values().get() == before


def test_a_reason_of_any_length(worker: Worker) -> None:
    worker.reason = "ü" * 500
    engine.stop_worker(worker, timezone.now(), "default")
    assert Worker.objects.get().reason == "ü" * 255


# -- old jobs --


def finished(state: str, age: datetime.timedelta, attempts: int = 1) -> Job:
    job: Job = Job.objects.create(name="quick")
    now = timezone.now()
    Job.objects.filter(pk=job.pk).update(state=state, created=now - age)
    for number in range(attempts):
        Attempt.objects.create(
            job=job,
            number=number + 1,
            step=0,
            task="t",
            outcome="succeeded",
            started=now,
            finished=now,
        )
    return job


def test_old_jobs_go_with_their_attempts_and_others_stay() -> None:
    for state in Job.STATES:
        finished(state, 2 * HOUR)
        finished(state, HOUR / 2)
    assert engine.delete_old(timezone.now() - HOUR, "default") == 4
    left = [(str(state), ago) for state in Job.STATES for ago in (True, False)]
    gone = {("COMPLETE", True), ("FAILED", True), ("CANCELLED", True), ("STOPPING", True)}
    found = Job.objects.values_list("state", "created")
    old = timezone.now() - HOUR
    assert sorted((state, created < old) for state, created in found) == sorted(set(left) - gone)
    assert set(Attempt.objects.values_list("job_id", flat=True)) == set(
        Job.objects.values_list("pk", flat=True)
    )


def test_old_jobs_are_deleted_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_dbq.storage.base.PEEK", 4)
    for _ in range(10):
        finished("COMPLETE", 2 * HOUR, attempts=2)
    with CaptureQueriesContext(connection) as queries:
        assert engine.delete_old(timezone.now() - HOUR, "default") == 10
    quoted = connection.ops.quote_name("django_dbq_job")
    deletions = [q for q in queries if q["sql"].startswith(f"DELETE FROM {quoted}")]
    assert len(deletions) == 3
    assert Job.objects.count() == Attempt.objects.count() == 0


def test_a_job_that_is_being_sent_on_keeps_its_attempts() -> None:
    """Somebody resets it and has not committed yet when it is to be deleted."""
    # In a tiny table MariaDB would read, and lock, all rows.
    Job.objects.bulk_create(Job(name="quick") for _ in range(200))
    Job.objects.update(state="PAUSED")
    for _ in range(3):
        finished("COMPLETE", 2 * HOUR)
    kept = finished("FAILED", 2 * HOUR)
    begun = threading.Event()

    def delete() -> int:
        try:
            begun.set()
            return engine.delete_old(timezone.now() - HOUR, "default")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Job.objects.filter(pk=kept.pk).update(state="READY")
            deleting = pool.submit(delete)
            if connection.features.has_select_for_update_skip_locked:
                assert deleting.result(30) == 3  # it does not wait
            else:
                begun.wait(30)
        assert deleting.result(30) == 3
    kept.refresh_from_db()
    assert (kept.state, kept.attempts.count()) == ("READY", 1)
    assert Job.objects.count() == 201
