"""Helpers for tests: the queue emptied in this thread, time that passes, one step on its own, what was enqueued."""

import datetime
import threading
import uuid
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.signals import post_save
from django.test import TestCase, override_settings
from django.utils import timezone

from django_dbq import engine
from django_dbq.models import Attempt, Job, Worker
from django_dbq.signals import job_created
from django_dbq.testing import advance, assert_enqueued, drain, run_step
from django_dbq.workspaces import InvalidWorkspace
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
@pytest.mark.parametrize("queues", [(["a", "b"],), (None,), ("a", ("b",))])
def test_drain_takes_names_and_no_lists_of_them(queues: Any) -> None:
    with pytest.raises(TypeError) as caught:
        drain(*queues)
    assert str(caught.value) == (
        f'drain takes names of queues, one by one, drain("a", "b") say, not {queues[-1]!r}'
    )
    assert not Worker.objects.exists()


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


# -- advance --

LONG = {
    "sleepy": {"tasks": ["tests.jobs.one", {"sleep": 3600}, "tests.jobs.two"]},
    "patient": {"tasks": [{"wait_for": "word", "timeout": 60}, "tests.jobs.two"]},
    "retried": {"tasks": ["tests.jobs.fail"], "retries": 1, "retry_delay": 300},
    "rated": {"tasks": ["tests.jobs.one"], "rate_limit": "1/h"},
}
IN_AND_OUTSIDE = pytest.mark.parametrize(
    "how", [pytest.param("db", id="TestCase"), pytest.param("transactional_db", id="transaction")]
)


def minutes(count: float) -> datetime.timedelta:
    return datetime.timedelta(minutes=count)


def state(job: Job) -> str:
    job.refresh_from_db()
    return str(job.state)


@IN_AND_OUTSIDE
def test_what_sleeps_wakes_when_enough_time_has_passed(
    settings: Any, how: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(how)
    settings.JOBS = LONG
    job = Job.objects.create(name="sleepy")
    assert drain() == 2
    advance(minutes(59))
    assert drain() == 0
    assert state(job) == "READY"
    advance(minutes(1))
    assert drain() == 2
    assert state(job) == "COMPLETE"


@IN_AND_OUTSIDE
def test_waits_retries_and_rates_come_to_their_end(
    settings: Any, how: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(how)
    settings.JOBS = LONG
    patient, retried = (Job.objects.create(name=name) for name in ("patient", "retried"))
    rated = [Job.objects.create(name="rated") for _ in range(2)]
    drain()
    assert (state(patient), state(retried)) == ("WAITING", "READY")
    assert sorted(map(state, rated)) == ["COMPLETE", "NEW"]
    advance(minutes(1))
    drain()
    assert (state(patient), state(retried)) == ("FAILED", "READY")
    advance(minutes(4))
    drain()
    assert state(retried) == "FAILED"
    assert retried.attempts.count() == 2
    advance(minutes(55))
    drain()
    assert {state(job) for job in rated} == {"COMPLETE"}


@pytest.mark.django_db
@pytest.mark.parametrize("delta", [3, 0.5, None, "1 h", timezone.now()])
def test_what_passes_is_a_timedelta(delta: Any) -> None:
    with pytest.raises(TypeError) as caught:
        advance(delta)
    assert str(caught.value) == f"advance takes a timedelta, timedelta(hours=1) say, not {delta!r}"


@pytest.mark.django_db
def test_time_does_not_go_back() -> None:
    later = timezone.now() + minutes(5)
    Job.objects.create(name="one", run_after=later)
    with pytest.raises(ValueError, match="takes a timedelta of 0 or more, not datetime"):
        advance(minutes(-1))
    advance(minutes(0))
    assert Job.objects.get().run_after == later


# -- run_step --


@IN_AND_OUTSIDE
@pytest.mark.parametrize("step", [1, "two", "tests.jobs.two"])
def test_one_step_is_run_on_its_own(how: str, step: Any, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(how)
    other = Job.objects.create(name="feed")
    job = run_step("feed", step, {"key": 1}, priority=-3, queue_name="slow")
    assert (job.state, job.workspace["key"], ran(job)) == ("COMPLETE", 1, ["two"])
    assert (job.priority, job.queue_name) == (-3, "slow")
    assert job.attempts.get().outcome == "succeeded"
    job = run_step("feed", 0)
    assert (job.state, job.next_task, ran(job)) == ("READY", "tests.jobs.two", ["one"])
    assert state(other) == "NEW"


@pytest.mark.django_db
def test_what_it_fails_with_is_raised() -> None:
    with pytest.raises(Boom):
        run_step("fails", 0)
    assert Job.objects.get().state == "FAILED"
    with pytest.raises(LookupError, match="no step 'one'"):
        run_step("fails", "one")


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fields",
    [
        {"depends_on": []},
        {"depends_mode": "any"},
        {"state": "COMPLETE"},
        {"next_task": "tests.jobs.two"},
        {"round": 1},
        {"parent": None},
        {"worker": None, "due": False},
        {"priorty": 1},
    ],
    ids=str,
)
def test_fields_that_the_step_settles_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as caught:
        run_step("feed", 0, priority=1, **fields)
    said = ", ".join(sorted(fields))
    assert str(caught.value) == (
        f"run_step makes a job of its own, to be run at that step: leave {said} out. Of the job's fields it takes "
        "attempt, deadline, failures, id, lost, pk, priority, queue_name, run_after."
    )
    assert not Job.objects.exists()
    assert not Worker.objects.exists()


@pytest.mark.django_db
def test_fields_that_a_task_may_look_at_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "tests.jobs.one", lambda job: seen.append((job.pk, job.attempt, job.priority, job.deadline))
    )
    key, later = uuid.UUID(int=5), timezone.now() + minutes(5)
    job = run_step("one", 0, id=key, attempt=2, priority=3, deadline=later, run_after=later)
    assert seen == [(key, 3, 3, later)]
    assert job.state == "COMPLETE"


@pytest.mark.django_db
def test_a_step_waits_for_nothing_that_its_creation_hook_asks_for(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Job.objects.create(name="one")
    monkeypatch.setattr("tests.jobs.creation_hook", lambda job: setattr(job, "depends_on", [other]))
    settings.JOBS["feed"] = {
        "tasks": ["tests.jobs.one"],
        "creation_hook": "tests.jobs.creation_hook",
    }
    settings.JOBS = dict(settings.JOBS)
    assert run_step("feed", 0).state == "COMPLETE"
    assert not Worker.objects.filter(stopped=None).exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("step", "state", "members"),
    [
        (["tests.jobs.one"], "WAITING", 1),
        ({"map": "tests.jobs.one", "over": "cats"}, "WAITING", 3),
        ({"wait_for": "ok"}, "WAITING", 0),
        ({"sleep": 60}, "READY", 0),
    ],
    ids=["group", "map", "wait", "sleep"],
)
def test_of_a_step_that_is_no_task_the_first_visit_is_run(
    settings: Any, step: Any, state: str, members: int
) -> None:
    settings.JOBS = {"it": [step]}
    job = run_step("it", 0, {"cats": [1, 2, 3]})
    assert (job.state, job.step, job.children.count()) == (state, 0, members)
    assert {member.state for member in job.children.all()} <= {"NEW"}
    advance(minutes(1))
    job.send("ok")
    drain()
    job.refresh_from_db()
    assert job.state == "COMPLETE"


@pytest.mark.django_db
def test_a_step_that_is_skipped_leads_on(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.jobs.three", lambda job: False)
    settings.JOBS = {
        "it": [{"task": "tests.jobs.one", "when": "tests.jobs.three"}, "tests.jobs.two"]
    }
    job = run_step("it", 0)
    assert (job.state, job.next_task, ran(job)) == ("READY", "tests.jobs.two", [])


@pytest.mark.django_db
def test_limits_and_paused_queues_do_not_hold_a_step(settings: Any) -> None:
    settings.JOBS = {"it": {"tasks": ["tests.jobs.one"], "concurrency": 1, "rate_limit": "1/h"}}
    Job.objects.create(name="it")
    drain()
    engine.pause_queue("default", timezone.now(), "default")
    assert run_step("it", 0).state == "COMPLETE"


UNIQUE = {"tasks": ["tests.jobs.one", "tests.jobs.two"], "unique": True}


@IN_AND_OUTSIDE
@pytest.mark.parametrize("conflict", ["return", "raise", "replace"])
def test_a_step_of_a_unique_job_is_run_by_a_job_of_its_own(
    settings: Any, how: str, conflict: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(how)
    settings.JOBS = {"it": {**UNIQUE, "unique_conflict": conflict}}
    Job.objects.create(name="it", workspace={"a": 1}, priority=3)
    (before,) = Job.objects.values()
    job, again = (run_step("it", 0, {"a": 1}, priority=5) for _ in range(2))
    for ran_one in (job, again):
        assert (ran_one.state, ran_one.step, ran_one.priority) == ("READY", 1, 5)
        assert ran(ran_one) == ["one"]
    assert len({before["id"], job.pk, again.pk}) == 3
    assert Job.objects.filter(pk=before["id"]).values().get() == before
    assert drain() == 4
    assert Job.objects.filter(state="COMPLETE").count() == 3


@pytest.mark.django_db
def test_the_job_of_a_step_is_created_as_any_other() -> None:
    told: list[Any] = []

    def tell(sender: Any, **kwargs: Any) -> None:
        told.append(kwargs.get("job") or (kwargs["instance"], kwargs["created"]))

    post_save.connect(tell, sender=Job)
    job_created.connect(tell)
    try:
        job = run_step("one", 0)
    finally:
        post_save.disconnect(tell, sender=Job)
        job_created.disconnect(tell)
    assert told == [(job, True), job]


# -- assert_enqueued --


@pytest.mark.django_db
def test_what_was_enqueued_is_found() -> None:
    first = Job.objects.create(name="feed", workspace={"a": 1, "b": 2})
    second = Job.objects.create(name="feed", workspace={"a": 1}, queue_name="slow")
    assert assert_enqueued("feed") == [first, second]
    assert assert_enqueued("feed", {"a": 1, "b": 2}) == [first]
    assert assert_enqueued("feed", {"a": 1}, count=2) == [first, second]
    assert assert_enqueued("feed", queue_name="slow", count=1) == [second]
    assert assert_enqueued("one", count=0) == []


@pytest.mark.django_db
def test_what_was_not_is_told_with_what_there_is() -> None:
    Job.objects.create(name="feed", workspace={"a": 1})
    with pytest.raises(AssertionError) as caught:
        assert_enqueued("feed", {"a": 2}, queue_name="slow")
    assert str(caught.value) == (
        "Expected at least one job 'feed' with {'workspace': {'a': 2}, 'queue_name': 'slow'}, found 0. "
        "Not ended of this name: NEW {'a': 1} queue_name='default'."
    )
    with pytest.raises(
        AssertionError, match=r"Expected 2 jobs 'one' with anything, found 0.*: none"
    ):
        assert_enqueued("one", count=2)
    drain()
    with pytest.raises(AssertionError):
        assert_enqueued("feed")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({"priority": 3}, "priority=1"),
        ({"queue_name": "slow", "priority": 3}, "queue_name='default' priority=1"),
        ({"priority__gt": 1, "run_after__isnull": False}, "priority=1 run_after=None"),
        ({"forked_from_id": uuid.UUID(int=1)}, "forked_from_id=None"),
        ({"pk": uuid.UUID(int=1)}, "id={id!r}"),
        ({"state": "READY", "workspace__a": 2}, ""),  # both are told anyway
    ],
)
def test_the_fields_that_were_asked_for_are_told(asked: dict[str, Any], shown: str) -> None:
    job = Job.objects.create(name="feed", workspace={"a": 1}, priority=1)
    with pytest.raises(AssertionError) as caught:
        assert_enqueued("feed", **asked)
    listed = f"NEW {{'a': 1}} {shown.format(id=job.pk)}".strip()
    assert str(caught.value).endswith(f"found 0. Not ended of this name: {listed}.")


@pytest.mark.django_db
def test_workspaces_are_compared_as_json() -> None:
    job = Job.objects.create(name="feed", workspace={"a": (1, {"b": (2,)}), "1": None})
    for wanted in ({"a": (1, {"b": (2,)})}, {"a": [1, {"b": [2]}]}, {1: None}):
        assert assert_enqueued("feed", wanted) == [job]  # type: ignore[arg-type]
    with pytest.raises(InvalidWorkspace, match=r"workspace\['a'\] is of type set"):
        assert_enqueued("feed", {"a": {1}})


@pytest.mark.django_db
@pytest.mark.parametrize("count", [None, 0, 1])
def test_a_name_that_there_is_not_was_never_enqueued(count: int | None) -> None:
    with pytest.raises(AssertionError, match=r"no job named 'fed' \(did you mean 'feed'\?\)"):
        assert_enqueued("fed", count=count)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "step",
    [
        [{"task": "tests.jobs.one", "queue": "slow"}, {"task": "tests.jobs.two", "queue": "slow"}],
        {"map": "tests.jobs.one", "over": "cats", "queue": "slow"},
    ],
    ids=["group", "map"],
)
def test_members_count_only_where_they_are_asked_for(settings: Any, step: Any) -> None:
    settings.JOBS = {"it": [step]}
    jobs = [Job.objects.create(name="it", workspace={"cats": [1, 2]}) for _ in range(2)]
    drain("default")
    assert Job.objects.count() == 6
    assert assert_enqueued("it", count=2) == jobs
    with pytest.raises(AssertionError) as caught:
        assert_enqueued("it", queue_name="slow")
    said = "WAITING {'cats': [1, 2]} queue_name='default'"
    assert str(caught.value).endswith(f"found 0. Not ended of this name: {said}; {said}.")
    for job in jobs:
        for asked in ({"parent": job}, {"parent_id": job.pk}, {"parent__in": [job]}):
            found = assert_enqueued("it", count=2, **asked)
            assert {member.parent_id for member in found} == {job.pk}
    assert len(assert_enqueued("it", count=4, parent__isnull=False)) == 4
    assert len(assert_enqueued("it", count=4, parent_id__isnull=False)) == 4
    with pytest.raises(AssertionError, match=r"found 4\. Not ended of this name: WAITING .*; NEW "):
        assert_enqueued("it", count=1, parent__isnull=False)
