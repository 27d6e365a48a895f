"""``drain``: the queue emptied within a test, in this thread and in order."""

import datetime
import threading
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TestCase, override_settings
from django.utils import timezone

from django_dbq.models import Attempt, Job, Worker
from django_dbq.testing import drain
from tests.jobs import Boom, ran


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "feed": ["tests.jobs.one", "tests.jobs.two"],
        "one": ["tests.jobs.one"],
        "fails": ["tests.jobs.fail"],
    }


@pytest.mark.django_db
def test_drain_runs_every_step_and_counts_the_tasks() -> None:
    feed, one = Job.objects.create(name="feed"), Job.objects.create(name="one")
    assert drain() == 3
    assert (ran(feed), ran(one)) == (["one", "two"], ["one"])
    assert drain() == 0


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("queues", "tasks"),
    [((), 4), (("a",), 1), (("a", "b"), 2), (("default",), 2), (("nobody's",), 0)],
)
def test_drain_runs_the_queues_it_is_given_or_all(queues: tuple[str, ...], tasks: int) -> None:
    for queue in ("default", "a", "b", "default"):
        Job.objects.create(name="one", queue_name=queue)
    assert drain(*queues) == tasks
    assert Job.objects.filter(state="COMPLETE").count() == tasks


@pytest.mark.django_db
@pytest.mark.parametrize("priority", [-1, 0, 1])
@pytest.mark.parametrize("queue", ["default", "other"])
def test_drain_runs_what_its_tasks_create(
    monkeypatch: pytest.MonkeyPatch, priority: int, queue: str
) -> None:
    def create(job: Job) -> None:
        if job.workspace["left"]:
            Job.objects.create(
                name="one",
                workspace={"left": job.workspace["left"] - 1},
                priority=priority * job.workspace["left"],
                queue_name=queue,
            )

    monkeypatch.setattr("tests.jobs.one", create)
    Job.objects.create(name="one", workspace={"left": 3})
    assert drain() == 4
    assert not Job.objects.exclude(state="COMPLETE").exists()


@pytest.mark.django_db
def test_drain_leaves_what_is_not_ready() -> None:
    later = timezone.now() + datetime.timedelta(hours=1)
    Job.objects.create(name="one", run_after=later)
    assert drain() == 0
    assert Job.objects.get().state == "NEW"


@pytest.mark.django_db
def test_drain_treats_a_failing_task_as_a_worker_does() -> None:
    fails, one = Job.objects.create(name="fails"), Job.objects.create(name="one")
    assert drain() == 2
    fails.refresh_from_db()
    one.refresh_from_db()
    assert (fails.state, one.state) == ("FAILED", "COMPLETE")


@pytest.mark.django_db
def test_tasks_run_in_the_tests_thread_and_see_its_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(
        "tests.jobs.one",
        lambda job: seen.append((threading.current_thread(), connection.in_atomic_block)),
    )
    Job.objects.create(name="one")
    drain()
    assert seen == [(threading.current_thread(), True)]


@pytest.mark.django_db
def test_a_task_that_fails_in_the_database_does_not_spoil_the_tests_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clash(job: Job) -> None:
        with transaction.atomic():
            Job.objects.filter(pk=job.pk).update(name=None)

    monkeypatch.setattr("tests.jobs.one", clash)
    bad, feed = Job.objects.create(name="one"), Job.objects.create(name="fails")
    assert drain() == 2
    bad.refresh_from_db()
    feed.refresh_from_db()
    assert (bad.state, feed.state) == ("FAILED", "FAILED")


@pytest.mark.django_db(transaction=True)
def test_drain_works_outside_a_transaction_too() -> None:
    jobs = Job.objects.bulk_create(Job(name="feed") for _ in range(20))
    assert drain() == 40
    assert all(ran(job) == ["one", "two"] for job in jobs)
    assert Attempt.objects.count() == 40


@pytest.mark.django_db
def test_drain_leaves_a_workers_row_that_has_ended() -> None:
    drain()
    drain("a")
    assert [(w.queues, w.stopped is not None) for w in Worker.objects.order_by("id")] == [
        ("all", True),
        ("a", True),
    ]


@override_settings(JOBS={"one": ["tests.jobs.one"], "fails": ["tests.jobs.fail"]})
class DrainInATestCase(TestCase):
    """As a project would use it."""

    def setUp(self) -> None:
        self.job = Job.objects.create(name="one")

    def test_drain(self) -> None:
        assert drain() == 1
        assert ran(self.job) == ["one"]

    def test_each_test_begins_anew(self) -> None:
        assert Job.objects.get().state == "NEW"
        assert drain() == 1

    def test_wake_ups_wait_for_the_commit(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            Job.objects.create(name="one")
            Job.objects.bulk_create([Job(name="one"), Job(name="fails")])
        assert len(callbacks) == 2

    def test_an_exception_reaches_the_report(self) -> None:
        job = Job.objects.create(name="fails")
        drain()
        assert Boom.__name__ in job.attempts.get().error
