"""Signals: which, in which order, with what; and that a receiver cannot hurt anybody."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection, transaction
from django.dispatch import Signal

from django_dbq import signals
from django_dbq.models import Job
from django_dbq.outcomes import Exhausted, Retry
from django_dbq.pipelines import Step
from django_dbq.testing import drain
from tests.jobs import Boom, ran

NAMES = ("job_created", "step_started", "step_finished", "job_finished")


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "feed": ["tests.jobs.one", "tests.jobs.two"],
        "fails": ["tests.jobs.fail"],
        "tried again": {"tasks": ["tests.jobs.fail"], "retries": 2},
        "refused": {"tasks": ["tests.jobs.one"], "creation_hook": "tests.jobs.broken"},
    }


Connect = Callable[[str, Callable[..., Any]], None]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connect a receiver to a signal, by its name, for the time of a test."""
    connected: list[tuple[Signal, Any]] = []

    def connect(name: str, receiver: Callable[..., Any]) -> None:
        signal: Signal = getattr(signals, name)
        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        assert signal.disconnect(receiver)


@pytest.fixture
def sent(connect: Connect) -> list[tuple[str, dict[str, Any]]]:
    """Every signal with its arguments, as they come."""
    received: list[tuple[str, dict[str, Any]]] = []
    for name in NAMES:

        def receive(signal: Any, name: str = name, **kwargs: Any) -> None:
            received.append((name, kwargs))

        connect(name, receive)
    return received


Sent = list[tuple[str, dict[str, Any]]]


@pytest.mark.django_db
def test_a_job_from_its_creation_to_its_end(sent: Sent) -> None:
    job = Job.objects.create(name="feed")
    drain()
    one, two = Step(0, "tests.jobs.one", "one"), Step(1, "tests.jobs.two", "two")
    done = {"outcome": "succeeded", "error": None}
    expected: Sent = [
        ("job_created", {}),
        ("step_started", {"step": one}),
        ("step_finished", {"step": one, **done}),
        ("step_started", {"step": two}),
        ("step_finished", {"step": two, **done}),
        ("job_finished", {}),
    ]
    assert sent == [(name, {"sender": Job, "job": job, **more}) for name, more in expected]


@pytest.mark.django_db
def test_a_job_that_fails(sent: Sent) -> None:
    job = Job.objects.create(name="fails")
    drain()
    assert [name for name, _ in sent] == list(NAMES)
    finished = sent[2][1]
    assert finished["outcome"] == "failed"
    assert finished["step"] == Step(0, "tests.jobs.fail", "fail")
    assert isinstance(finished["error"], Boom)
    assert sent[3][1]["job"] == job
    assert sent[3][1]["job"].state == "FAILED"


@pytest.mark.django_db
def test_a_job_whose_step_is_tried_again(sent: Sent) -> None:
    job = Job.objects.create(name="tried again")
    drain()
    tries = ["step_started", "step_finished"] * 3
    assert [name for name, _ in sent] == ["job_created", *tries, "job_finished"]
    told = [kwargs for name, kwargs in sent if name == "step_finished"]
    assert {kwargs["outcome"] for kwargs in told} == {"failed"}
    assert all(isinstance(kwargs["error"], Boom) for kwargs in told)
    assert all(kwargs["job"] == job for _, kwargs in sent)


@pytest.mark.django_db
def test_a_step_that_the_task_wants_to_be_run_again(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [Retry(0), None]
    monkeypatch.setattr("tests.jobs.one", lambda job: answers.pop(0))
    Job.objects.create(name="feed")
    drain()
    told = [kwargs for name, kwargs in sent if name == "step_finished"]
    assert [kwargs["outcome"] for kwargs in told] == ["retried", "succeeded", "succeeded"]
    assert isinstance(told[0]["error"], Retry)


@pytest.mark.django_db
def test_a_job_whose_tries_are_used_up_is_not_started(sent: Sent) -> None:
    job = Job.objects.create(name="feed")
    Job.objects.update(state="READY", lost=3, attempt=3)
    drain()
    assert [name for name, _ in sent] == ["job_created", "step_finished", "job_finished"]
    assert sent[1][1]["outcome"] == "failed"
    assert isinstance(sent[1][1]["error"], Exhausted)
    assert sent[2][1]["job"] == job


@pytest.mark.django_db(transaction=True)
def test_receivers_see_the_tries_as_committed(connect: Connect) -> None:
    seen = []

    def receive(job: Job, **kwargs: Any) -> None:
        stored = Job.objects.get(pk=job.pk)
        seen.append((job.state, job.failures, job.run_after))
        assert seen[-1] == (stored.state, stored.failures, stored.run_after)

    connect("step_finished", receive)
    Job.objects.create(name="tried again")
    drain()
    assert seen == [("READY", 1, None), ("READY", 2, None), ("FAILED", 0, None)]


@pytest.mark.django_db
def test_bulk_create_tells_of_each_job_in_order(sent: Sent) -> None:
    jobs = Job.objects.bulk_create([Job(name="feed"), Job(name="fails")])
    assert [(name, kwargs["job"]) for name, kwargs in sent] == [
        ("job_created", job) for job in jobs
    ]


@pytest.mark.django_db
def test_a_job_that_is_not_created_is_not_told_of(sent: Sent) -> None:
    with pytest.raises(Boom):
        Job.objects.create(name="refused")
    with pytest.raises(Boom):
        Job.objects.bulk_create([Job(name="feed"), Job(name="refused")])
    job = Job.objects.create(name="feed")
    sent.clear()
    job.save()
    Job.objects.update(state="READY")
    assert sent == []


@pytest.mark.django_db(transaction=True)
def test_job_created_is_sent_within_the_creating_transaction(connect: Connect) -> None:
    seen = []

    def receive(job: Job, **kwargs: Any) -> None:
        seen.append((connection.in_atomic_block, Job.objects.filter(pk=job.pk).exists()))

    connect("job_created", receive)
    with transaction.atomic():
        Job.objects.create(name="feed")
        Job.objects.bulk_create([Job(name="feed")])
    assert seen == [(True, True), (True, True)]


@pytest.mark.django_db(transaction=True)
def test_the_other_signals_are_sent_with_the_row_as_committed(connect: Connect) -> None:
    seen = []
    for name in NAMES[1:]:

        def receive(job: Job, name: str = name, **kwargs: Any) -> None:
            stored = Job.objects.get(pk=job.pk)
            seen.append((name, connection.in_atomic_block, stored.state, stored.next_task))
            assert (job.state, job.next_task, job.step) == (
                stored.state,
                stored.next_task,
                stored.step,
            )
            assert job.finished == stored.finished
            assert job.workspace == stored.workspace

        connect(name, receive)
    Job.objects.create(name="feed")
    drain()
    assert seen == [
        ("step_started", False, "PROCESSING", "tests.jobs.one"),
        ("step_finished", False, "READY", "tests.jobs.two"),
        ("step_started", False, "PROCESSING", "tests.jobs.two"),
        ("step_finished", False, "COMPLETE", ""),
        ("job_finished", False, "COMPLETE", ""),
    ]


@pytest.mark.django_db
@pytest.mark.parametrize("name", NAMES)
def test_a_receiver_that_raises_is_logged_and_changes_nothing(
    connect: Connect, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    heard = []

    def broken(**kwargs: Any) -> None:
        raise Boom("no ear")

    connect(name, broken)
    connect(name, lambda **kwargs: heard.append(kwargs["job"]))
    job = Job.objects.create(name="feed")
    assert drain() == 2
    assert ran(job) == ["one", "two"]
    job.refresh_from_db()
    assert job.state == "COMPLETE"
    assert set(heard) == {job}
    ours = [r for r in caplog.records if r.name == "django_dbq" and "receiver" in r.getMessage()]
    assert len(ours) == len(heard)
    assert all(isinstance(r.exc_info and r.exc_info[1], Boom) for r in ours)


@pytest.mark.django_db
def test_no_step_finished_for_an_outcome_that_was_dropped(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.jobs.fail", lambda job: Job.objects.filter(pk=job.pk).delete())
    Job.objects.create(name="fails")
    drain()
    assert [name for name, _ in sent] == ["job_created", "step_started"]
