"""What becomes of outcomes: written where the fence holds, dropped and told where it does not, never lost."""

import datetime
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.utils import timezone

from django_dbq import engine
from django_dbq.models import Attempt, Job, QueuePlace, Worker
from django_dbq.outcomes import Abort, AttemptOutcome, Decision, Retry, TimedOut
from django_dbq.pipelines import Step
from django_dbq.states import Event
from django_dbq.storage import Execution, Overdue, Queues, Storage, storage_for
from tests.outcomes import ENDED, STARTED, outcome
from tests.process_jobs import database_session, until
from tests.processes import kill_session
from tests.storage.sessions import is_blocked

pytestmark = pytest.mark.django_db(transaction=True)


def create(count: int, name: str = "steps") -> None:
    for number in range(count):
        Job.objects.create(name=name, workspace={"key": number})


@pytest.fixture
def claim(worker: Worker) -> Callable[..., list[Job]]:
    def take(limit: int = 100, by: Worker = worker) -> list[Job]:
        return engine.claim(by, Queues(), limit, timezone.now(), "default")

    return take


@pytest.fixture
def finish(worker: Worker) -> Callable[..., list[Execution]]:
    def write(*executions: Execution, by: Worker = worker) -> list[Execution]:
        return engine.finish(by, executions, timezone.now(), "default")

    return write


Claim = Callable[..., list[Job]]
Finish = Callable[..., list[Execution]]


# -- outcomes --


def test_what_is_written(claim: Claim, finish: Finish) -> None:
    create(3)
    goes_on, fails, ends = claim()
    ends.next_task, ends.step = "tests.process_jobs.third", 2
    goes_on.workspace["key"] = "not written unless the execution says so"
    error = ValueError("no")
    executions = [
        outcome(goes_on),
        outcome(fails, error, workspace='{"half": "done"}'),
        outcome(ends, workspace='{"all": "done"}'),
    ]
    before = timezone.now()
    assert finish(*executions) == executions
    rows = [Job.objects.get(pk=job.pk) for job in (goes_on, fails, ends)]
    assert [(r.state, r.next_task, r.step, r.finished, r.workspace) for r in rows] == [
        ("READY", "tests.process_jobs.second", 1, None, {"key": 0}),
        ("FAILED", "tests.process_jobs.first", 0, ENDED, {"half": "done"}),
        ("COMPLETE", "", 2, ENDED, {"all": "done"}),
    ]
    assert all(before <= row.modified <= timezone.now() for row in rows)
    for instance, row in zip((goes_on, fails, ends), rows, strict=True):
        for field in ("state", "next_task", "step", "finished", "modified"):
            assert getattr(instance, field) == getattr(row, field), field


def test_a_stopping_job_is_finished_like_any_other(claim: Claim, finish: Finish) -> None:
    create(2)
    jobs = claim()
    Job.objects.update(state="STOPPING")
    executions = [outcome(jobs[0]), outcome(jobs[1], ValueError("no"))]
    assert finish(*executions) == executions
    assert sorted(Job.objects.values_list("state", flat=True)) == ["FAILED", "READY"]


def test_one_attempt_for_each_execution(
    claim: Claim, finish: Finish, worker: Worker, other_worker: Worker
) -> None:
    create(1)
    (job,) = claim()
    finish(outcome(job))
    (job,) = claim(by=other_worker)
    finish(outcome(job, ValueError("no")), by=other_worker)
    Job.objects.update(state="READY")  # as people do to run it once more
    for path in ("second", "third"):
        (job,) = claim()
        assert job.next_task == f"tests.process_jobs.{path}"
        finish(outcome(job))
    assert claim() == []
    job.refresh_from_db()
    assert (job.state, job.attempt) == ("COMPLETE", 4)
    values = ("number", "step", "task", "outcome", "worker", "started", "finished", "error")
    assert list(job.attempts.order_by("pk").values_list(*values)) == [
        (1, 0, "tests.process_jobs.first", "succeeded", "ours", STARTED, ENDED, ""),
        (2, 1, "tests.process_jobs.second", "failed", "another's", STARTED, ENDED,
         "the report of ValueError('no')"),
        (3, 1, "tests.process_jobs.second", "succeeded", "ours", STARTED, ENDED, ""),
        (4, 2, "tests.process_jobs.third", "succeeded", "ours", STARTED, ENDED, ""),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [2, 60])
def test_what_is_written_of_a_step_that_is_tried_again(
    settings: Any, claim: Claim, finish: Finish, size: int
) -> None:
    policy = {"retries": 3, "retry_delay": 100}
    settings.JOBS = {"steps": {"tasks": settings.JOBS["steps"], **policy}}
    create(size)
    delayed, at_once, *others = claim()
    Job.objects.filter(pk=delayed.pk).update(lost=2)
    delayed.failures, delayed.lost = 1, 2
    executions = [
        outcome(delayed, ValueError("no")),
        outcome(at_once, Retry(0)),
        *map(outcome, others),
    ]
    moved = timezone.now() + datetime.timedelta(hours=1)
    executions[0].moved_to = QueuePlace("default", 0, moved)
    assert finish(*executions) == executions
    rows = [Job.objects.get(pk=job.pk) for job in (delayed, at_once)]
    values = ("state", "step", "next_task", "failures", "lost", "run_after", "due", "finished")
    first = "tests.process_jobs.first"
    assert [tuple(getattr(row, value) for value in values) for row in rows] == [
        ("READY", 0, first, 2, 2, moved, False, None),
        ("READY", 0, first, 0, 0, None, True, None),
    ]
    assert Job.objects.filter(step=1, failures=0, lost=0, run_after=None).count() == size - 2
    assert [job.attempts.get().outcome for job in (delayed, at_once)] == ["failed", "retried"]


@pytest.mark.parametrize("size", [1, 60])
def test_the_counts_end_with_the_step(claim: Claim, finish: Finish, size: int) -> None:
    create(size)
    Job.objects.update(failures=2)
    jobs = claim()
    assert {job.failures for job in jobs} == {2}
    finish(*(outcome(job) for job in jobs))
    assert set(Job.objects.values_list("state", "failures", "lost")) == {("READY", 0, 0)}


def test_the_last_progress_is_written_with_the_outcome(claim: Claim, finish: Finish) -> None:
    create(4)
    told, saved, never, failed = claim()
    told.set_progress(0.5, "half")
    told.set_progress(1, "all")
    saved.set_progress(0.25, "a quarter")
    assert engine.save_progress(saved, "default")
    failed.set_progress(0.75, "nearly")
    finish(outcome(told), outcome(saved), outcome(never), outcome(failed, ValueError("no")))
    found = [Job.objects.get(pk=job.pk) for job in (told, saved, never, failed)]
    assert [(job.progress, job.progress_message) for job in found] == [
        (1.0, "all"),
        (0.25, "a quarter"),
        (None, ""),
        (0.75, "nearly"),
    ]


# -- the fence --


def reset(state: str) -> Callable[[Job, Worker], object]:
    return lambda job, other: Job.objects.filter(pk=job.pk).update(state=state)


def rescued(job: Job, other: Worker) -> None:
    Job.objects.filter(pk=job.pk).update(state="READY")
    (again,) = engine.claim(other, Queues(), 1, timezone.now(), "default")
    assert again.pk == job.pk


def claimed_again(job: Job, other: Worker) -> None:
    """By the very worker whose outcome is late."""
    Job.objects.filter(pk=job.pk).update(state="READY")
    ours = Worker.objects.get(pk=job.worker_id)
    (again,) = engine.claim(ours, Queues(), 1, timezone.now(), "default")
    assert (again.pk, again.attempt) == (job.pk, job.attempt + 1)


def rescued_and_done(job: Job, other: Worker) -> None:
    rescued(job, other)
    (again,) = Job.objects.filter(pk=job.pk)
    engine.finish(other, [outcome(again)], timezone.now(), "default")


def handed_back_and_claimed(job: Job, other: Worker) -> None:
    """By another worker: the attempt, which was given back, has the same number again."""
    ours = Worker.objects.get(pk=job.worker_id)
    assert engine.hand_back(ours, [job], timezone.now(), "default") == 1
    (again,) = engine.claim(other, Queues(), 1, timezone.now(), "default")
    assert (again.pk, again.attempt) == (job.pk, job.attempt)


def deleted(job: Job, other: Worker) -> None:
    Job.objects.filter(pk=job.pk).delete()


def saved_from_elsewhere(job: Job, other: Worker) -> None:
    """An instance that was read before the claim is saved after it: everything is as it was, the fence included."""
    job = Job.objects.get(pk=job.pk)
    job.state, job.attempt, job.worker_id = "NEW", 0, None
    job.save()


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(reset(state), id=f"set to {state}")
        for state in ("NEW", "READY", "PAUSED", "CANCELLED", "WAITING", "COMPLETE", "FAILED")
    ]
    + [
        pytest.param(function, id=function.__name__.replace("_", " "))
        for function in (
            rescued,
            claimed_again,
            rescued_and_done,
            handed_back_and_claimed,
            deleted,
            saved_from_elsewhere,
        )
    ],
)
@pytest.mark.parametrize("size", [3, 60])
def test_a_late_outcome_is_dropped_and_told(
    claim: Claim,
    finish: Finish,
    other_worker: Worker,
    caplog: pytest.LogCaptureFixture,
    meanwhile: Callable[[Job, Worker], object],
    size: int,
) -> None:
    """In a small batch and in one that PostgreSQL plans in another way; the rest of the batch is written."""
    create(size)
    jobs = claim()
    late = jobs.pop(1)
    meanwhile(late, other_worker)
    before = list(Job.objects.filter(pk=late.pk).values())
    attempts = list(Attempt.objects.filter(job_id=late.pk).values())
    outcomes = [outcome(job) for job in jobs]
    with caplog.at_level(logging.WARNING, "django_dbq"):
        written = finish(outcomes[0], outcome(late, workspace='{"late": 1}'), *outcomes[1:])
    assert written == outcomes
    assert list(Job.objects.filter(pk=late.pk).values()) == before
    assert list(Attempt.objects.filter(job_id=late.pk).values()) == attempts
    assert (
        Job.objects.filter(state="READY", step=1, attempts__number=1).exclude(pk=late.pk).count()
        == size - 1
    )
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == (
        f"Outcome dropped, the job is no longer this worker's: job={late.pk} name=steps "
        f"attempt=1 worker=ours"
    )


def test_an_outcome_is_written_once(claim: Claim, finish: Finish) -> None:
    create(1)
    execution = outcome(claim()[0])
    assert finish(execution) == [execution]
    assert finish(execution) == []
    assert Attempt.objects.count() == 1


def test_the_rescue_that_commits_first_wins(
    storage: Storage, claim: Claim, worker: Worker, other_worker: Worker
) -> None:
    """The outcome comes while the rescue's transaction is open: it waits, and then finds itself too late."""
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("SQLite has one writer at a time: there is no such moment")
    create(2)
    lost, kept = claim()

    def late() -> set[Any]:
        try:
            return storage.finish(worker, [outcome(lost), outcome(kept)], timezone.now())
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            Job.objects.filter(pk=lost.pk).update(worker=other_worker, attempt=2)
            writing = pool.submit(late)
            until(is_blocked, "a session that waits for a lock")
        assert writing.result(30) == {kept.pk}
    lost.refresh_from_db()
    assert (lost.state, lost.worker, lost.attempts.count()) == ("PROCESSING", other_worker, 0)


# -- outcomes of which nobody knows whether they were written --


@pytest.fixture
def answer_lost(monkeypatch: pytest.MonkeyPatch, storage: Storage) -> Callable[[], None]:
    """Let the connection break once, after the next outcomes are committed and before the worker hears of it."""

    def arm() -> None:
        write = type(storage).finish

        def written(*given: Any) -> Any:
            write(*given)
            monkeypatch.setattr(type(storage), "finish", write)
            raise OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(type(storage), "finish", written)

    return arm


@pytest.mark.parametrize("error", [None, ValueError("no"), Retry(0), Abort("never")], ids=repr)
def test_an_outcome_whose_answer_was_lost_is_not_dropped(
    claim: Claim,
    finish: Finish,
    answer_lost: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
    error: BaseException | None,
) -> None:
    create(3)
    executions = [outcome(job, error) for job in claim()]
    answer_lost()
    with pytest.raises(OperationalError):
        finish(*executions)
    before = list(Job.objects.order_by("pk").values())
    for execution in executions:
        execution.in_doubt = True
    assert finish(*executions) == executions
    assert list(Job.objects.order_by("pk").values()) == before
    assert Attempt.objects.count() == 3
    assert "Outcome dropped" not in caplog.text
    for execution in executions:
        assert execution.job.state == Job.objects.get(pk=execution.job.pk).state


def test_so_is_one_whose_job_has_gone_on_meanwhile(
    claim: Claim, finish: Finish, other_worker: Worker, answer_lost: Callable[[], None]
) -> None:
    create(1)
    execution = outcome(claim()[0])
    answer_lost()
    with pytest.raises(OperationalError):
        finish(execution)
    (again,) = claim(by=other_worker)
    assert (again.pk, again.attempt) == (execution.job.pk, 2)
    execution.in_doubt = True
    assert finish(execution) == [execution]
    job = Job.objects.get()
    assert (job.state, job.worker, job.attempt) == ("PROCESSING", other_worker, 2)


def test_an_outcome_in_doubt_that_was_not_written_is_written(claim: Claim, finish: Finish) -> None:
    create(1)
    execution = outcome(claim()[0])
    execution.in_doubt = True
    assert finish(execution) == [execution]
    assert Attempt.objects.count() == 1


def test_an_outcome_in_doubt_of_a_job_that_was_rescued_is_dropped(
    claim: Claim, finish: Finish, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    create(1)
    execution = outcome(claim()[0])
    execution.in_doubt = True
    assert engine.bury(worker.pk, "It was shot.", timezone.now(), "default") == 1
    before = Job.objects.values().get()
    assert finish(execution) == []
    assert Job.objects.values().get() == before
    assert [attempt.outcome for attempt in execution.job.attempts.all()] == ["lost"]
    assert "Outcome dropped" in caplog.text


def test_the_record_of_a_timeout_is_no_proof_of_its_outcome(
    claim: Claim, finish: Finish, worker: Worker
) -> None:
    """It was written before the outcome was, and the job was rescued meanwhile."""
    create(1)
    (job,) = claim()
    overdue = Overdue(job.pk, job.attempt, STARTED, "stood in line 1")
    engine.record_timeouts(worker.pk, [overdue], timezone.now(), "default")
    execution = outcome(job, TimedOut("too long"))
    execution.in_doubt = True
    assert engine.bury(worker.pk, "It was shot.", timezone.now(), "default") == 1
    assert finish(execution) == []


def test_what_proves_that_an_outcome_was_written(claim: Claim, finish: Finish) -> None:
    create(1)
    execution = outcome(claim()[0])
    assert not engine.is_recorded(execution, "default")
    finish(execution)
    assert engine.is_recorded(execution, "default")
    job = execution.job
    other = outcome(job, started=STARTED + datetime.timedelta(microseconds=1))
    assert not engine.is_recorded(other, "default")
    assert not engine.is_recorded(outcome(job, ValueError("no")), "default")
    job.attempt += 1
    assert not engine.is_recorded(outcome(job), "default")


# -- what the database refuses --


def nonsense_state(execution: Execution) -> None:
    state: Any = "NONSENSE"
    execution.decision = Decision(Event.LAST_STEP_DONE, state, None, AttemptOutcome.SUCCEEDED)


@pytest.mark.parametrize("size", [1, 3, 60])
def test_a_refused_outcome_fails_its_job_and_no_other(
    claim: Claim, finish: Finish, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    create(size)
    jobs = claim()
    outcomes = [outcome(job, workspace='{"new": 1}') for job in jobs]
    bad = outcomes[size // 2]
    nonsense_state(bad)
    with caplog.at_level(logging.ERROR, "django_dbq"):
        assert finish(*outcomes) == outcomes
    job = Job.objects.get(pk=bad.job.pk)
    assert (job.state, job.step, job.workspace) == ("FAILED", 0, {"key": size // 2})
    assert job.finished is not None
    attempt = job.attempts.get()
    assert attempt.outcome == "failed"
    assert attempt.error.startswith("The outcome of this step was refused: IntegrityError")
    assert "dbq_job_state" in attempt.error
    good = Job.objects.filter(state="READY", workspace={"new": 1}, attempts__outcome="succeeded")
    assert good.count() == size - 1
    assert [record.getMessage() for record in caplog.records] == [
        f"Outcome refused: job={bad.job.pk}"
    ]


def test_an_outcome_that_cannot_even_be_sent_fails_its_job_and_no_other(
    claim: Claim, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(3)
    outcomes = [outcome(job, workspace='{"new": 1}') for job in claim()]
    write = type(storage_for("default")).finish

    def send(storage: Any, worker: Worker, executions: Any, *more: Any, **named: Any) -> Any:
        if any(e is outcomes[1] and e.workspace is not None for e in executions):
            raise TypeError("This is of no type that could be sent.")
        return write(storage, worker, executions, *more, **named)

    monkeypatch.setattr(type(storage_for("default")), "finish", send)
    assert finish(*outcomes) == outcomes
    states = [Job.objects.get(pk=e.job.pk).state for e in outcomes]
    assert states == ["READY", "FAILED", "READY"]
    assert "refused: TypeError: This is of no" in outcomes[1].job.attempts.get().error


def test_a_workspace_that_the_database_refuses(claim: Claim, finish: Finish) -> None:
    """Forced past the check that the runner makes."""
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL's jsonb refuses a NUL character")
    create(3)
    outcomes = [outcome(job) for job in claim()]
    outcomes[1].workspace = '{"text": "\\u0000"}'
    assert finish(*outcomes) == outcomes
    job = Job.objects.get(pk=outcomes[1].job.pk)
    assert (job.state, job.workspace) == ("FAILED", {"key": 1})
    assert "DataError: unsupported Unicode escape sequence" in job.attempts.get().error
    assert Job.objects.filter(state="READY").count() == 2


def test_a_number_that_the_column_refuses(claim: Claim, finish: Finish) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite takes an integer of any size in any column")
    create(3)
    outcomes = [outcome(job) for job in claim()]
    outcomes[1].decision = Decision(
        Event.STEP_DONE,
        Job.STATES.READY,
        Step(1_000_000, "tests.process_jobs.second"),
        AttemptOutcome.SUCCEEDED,
    )
    assert finish(*outcomes) == outcomes
    job = Job.objects.get(pk=outcomes[1].job.pk)
    assert (job.state, job.step) == ("FAILED", 0)
    assert "DataError" in job.attempts.get().error
    assert Job.objects.filter(state="READY").count() == 2


def test_a_refusal_leaves_the_callers_transaction_usable(claim: Claim, finish: Finish) -> None:
    create(2)
    outcomes = [outcome(job) for job in claim()]
    nonsense_state(outcomes[0])
    with transaction.atomic():
        assert finish(*outcomes) == outcomes
        Job.objects.create(name="quick")
    states = Job.objects.order_by("state").values_list("state", flat=True)
    assert list(states) == ["FAILED", "NEW", "READY"]


def test_a_connection_that_dies_is_not_a_refusal(
    claim: Claim, finish: Finish, worker: Worker
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server that could end a connection")
    create(2)
    outcomes = [outcome(job, workspace='{"new": 1}') for job in claim()]
    session = database_session()

    def kill() -> None:
        kill_session(session)
        connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(kill).result(30)
    with pytest.raises(DatabaseError):
        finish(*outcomes)
    connection.close()
    assert Attempt.objects.count() == 0
    assert finish(*outcomes) == outcomes
    assert Job.objects.filter(state="READY", workspace={"new": 1}).count() == 2
    assert Attempt.objects.filter(outcome="succeeded").count() == 2


# -- handing back --


def test_handing_back_restores_the_job(claim: Claim, worker: Worker) -> None:
    create(4)
    Job.objects.filter(workspace__key__gte=2).update(state="READY", attempt=5)
    jobs = claim()
    assert engine.hand_back(worker, jobs, timezone.now(), "default") == 4
    assert (
        list(Job.objects.order_by("created").values_list("state", "attempt", "worker"))
        == [("NEW", 0, None)] * 2 + [("READY", 5, None)] * 2
    )
    assert Attempt.objects.count() == 0
    assert [job.pk for job in claim()] == [job.pk for job in jobs]


def test_a_stopping_job_that_was_not_started_goes_back_too(claim: Claim, worker: Worker) -> None:
    create(1)
    jobs = claim()
    Job.objects.update(state="STOPPING")
    assert engine.hand_back(worker, jobs, timezone.now(), "default") == 1
    assert Job.objects.get().state == "NEW"


@pytest.mark.parametrize("meanwhile", [reset("PAUSED"), rescued, claimed_again, deleted])
def test_what_is_no_longer_ours_is_not_handed_back(
    claim: Claim, worker: Worker, other_worker: Worker, meanwhile: Callable[[Job, Worker], object]
) -> None:
    create(3)
    jobs = claim()
    meanwhile(jobs[1], other_worker)
    before = list(Job.objects.filter(pk=jobs[1].pk).values())
    assert engine.hand_back(worker, jobs, timezone.now(), "default") == 2
    assert list(Job.objects.filter(pk=jobs[1].pk).values()) == before
    assert Job.objects.filter(state="NEW", worker=None, attempt=0).count() == 2


def test_an_outcome_after_the_hand_back_is_too_late(
    claim: Claim, finish: Finish, worker: Worker
) -> None:
    create(1)
    jobs = claim()
    execution = outcome(jobs[0])
    engine.hand_back(worker, jobs, timezone.now(), "default")
    assert finish(execution) == []
    (again,) = claim()
    assert again.attempt == 1
