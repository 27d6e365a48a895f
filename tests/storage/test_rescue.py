"""Jobs of workers that are dead, or about to be ended: who is, what becomes of their jobs, and who comes first."""

import datetime
import logging
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from django_dbq import engine, wakeups
from django_dbq.models import Attempt, Job, Worker
from django_dbq.outcomes import AttemptOutcome, TimedOut
from django_dbq.storage import Overdue, Queues, Storage
from django_dbq.testing import drain
from tests.jobs import ran
from tests.outcomes import STARTED, outcome
from tests.storage.sessions import elsewhere, while_uncommitted

pytestmark = pytest.mark.django_db(transaction=True)

QUEUES = Queues((), exclude=True)
HOUR = datetime.timedelta(hours=1)
HOOKS = {
    "post_task_hook": "tests.jobs.post_task_hook",
    "failure_hook": "tests.jobs.failure_hook",
}


@pytest.fixture(autouse=True)
def jobs_setting(settings: Any) -> None:
    step = {"task": "tests.jobs.one"}
    settings.JOBS = {
        "feed": {"tasks": ["tests.jobs.one", "tests.jobs.two"], **HOOKS},
        "held": [{**step, "on_lost": "hold"}],
        "failed": {"tasks": [{**step, "on_lost": "fail"}], **HOOKS},
        "patient": {"tasks": [{**step, "retries": 2, "retry_delay": 100}], **HOOKS},
    }


def start(label: str, timeout: float = 60, silent_for: float = 0) -> Worker:
    """A worker with this lease, which has been silent for so many seconds."""
    worker = Worker(
        label=label, hostname="there", pid=2, queues="", started=timezone.now(), timeout=timeout
    )
    engine.start_worker(worker, "default")
    silence(worker, silent_for)
    return Worker.objects.get(pk=worker.pk)


def silence(worker: Worker, seconds: float) -> None:
    silent = datetime.timedelta(seconds=seconds)
    Worker.objects.filter(pk=worker.pk).update(heartbeat=F("heartbeat") - silent)


def create(count: int = 1, name: str = "feed", **fields: Any) -> None:
    for number in range(count):
        Job.objects.create(name=name, workspace={"key": number}, **fields)


def claim(worker: Worker, limit: int = 100) -> list[Job]:
    return engine.claim(worker, QUEUES, limit, timezone.now(), "default")


def bury(worker: Worker, reason: str = "It was shot.", **options: Any) -> int:
    return engine.bury(worker.pk, reason, timezone.now(), "default", **options)


def rescue(by: Worker) -> float | None:
    return engine.rescue(by, timezone.now(), "default")


def fresh(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def rows() -> list[dict[str, Any]]:
    """Everything that there is of jobs and their attempts."""
    return [*Job.objects.order_by("pk").values(), *Attempt.objects.order_by("pk").values()]


def overdue(job: Job, report: str = "stood in line 1") -> Overdue:
    return Overdue(job.pk, job.attempt, STARTED, report)


def record(worker: Worker, *jobs: Job) -> set[Any]:
    records = [overdue(job) for job in jobs]
    return engine.record_timeouts(worker.pk, records, timezone.now(), "default")


@pytest.fixture
def backlog() -> None:
    """In a tiny table MariaDB would read, and lock, all rows."""
    Job.objects.bulk_create(Job(name="feed", queue_name="backlog") for _ in range(200))
    Job.objects.update(state="PAUSED")


# -- who is late --


def left(storage: Storage, worker: Worker) -> float:
    (living,) = [one for one in storage.living() if one.pk == worker.pk]
    assert living.label == worker.label
    return living.left


def test_a_worker_has_its_lease_from_the_first_moment(storage: Storage) -> None:
    worker = start("ours", timeout=5)
    assert worker.heartbeat is not None
    assert Worker.objects.filter(pk=worker.pk, heartbeat__lte=Now()).exists()
    assert 0 < left(storage, worker) <= 5
    assert rescue(start("another's")) == pytest.approx(left(storage, worker), abs=1)


def test_a_beat_renews_it(storage: Storage) -> None:
    worker = start("ours", silent_for=40)
    assert 0 < left(storage, worker) <= 20
    assert engine.beat(worker, "default")
    assert 50 < left(storage, worker) <= 60


def test_a_beat_hears_of_the_workers_death() -> None:
    buried, pruned, living = start("buried"), start("pruned"), start("living")
    bury(buried)
    before = Worker.objects.get(pk=buried.pk).heartbeat
    Worker.objects.filter(pk=pruned.pk).delete()
    beats = [engine.beat(worker, "default") for worker in (buried, pruned, living)]
    assert beats == [False, False, True]
    assert Worker.objects.get(pk=buried.pk).heartbeat == before


def test_each_worker_is_judged_by_its_own_timeout(storage: Storage) -> None:
    ours = start("ours")
    jobs = {}
    for label, timeout, silent in (("a", 10, 9), ("b", 10, 11), ("c", 100, 95), ("d", 1000, 11)):
        worker = start(label, timeout)
        create()
        (jobs[label],) = claim(worker)
        silence(worker, silent)
    soonest = rescue(ours)
    assert soonest is not None
    assert 0 < soonest <= 1
    states = {label: fresh(job).state for label, job in jobs.items()}
    assert states == {"a": "PROCESSING", "b": "READY", "c": "PROCESSING", "d": "PROCESSING"}
    reasons = dict(Worker.objects.exclude(reason="").values_list("label", "reason"))
    assert reasons == {"b": "Declared dead. It has stopped reporting."}


def test_the_database_tells_the_time(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no clock of a process: that may be wrong by hours."""
    ours, punctual, late = start("ours"), start("punctual"), start("late", silent_for=61)
    create(2)
    (kept,) = claim(punctual, 1)
    (taken,) = claim(late, 1)
    for hours in (-100, 100):
        wrong = timezone.now() + hours * HOUR
        monkeypatch.setattr(timezone, "now", lambda wrong=wrong: wrong)
        engine.rescue(ours, wrong, "default")
    assert fresh(kept).state == "PROCESSING"
    assert fresh(taken).state == "READY"
    assert engine.beat(punctual, "default")
    assert 50 < left(storage, punctual) <= 60


def test_no_time_zone_of_a_session_moves_the_lease(storage: Storage) -> None:
    """Of a worker whose database settings are not quite like ours, say."""
    worker = start("ours", silent_for=40)
    tell = {
        "postgresql": "SET TIME ZONE 'Asia/Tokyo'",
        "mysql": "SET time_zone = '+09:00'",
        "sqlite": "SELECT 1",  # has none
    }[connection.vendor]

    def beat() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(tell)
        return engine.beat(worker, "default")

    assert elsewhere(beat)
    assert 50 < left(storage, worker) <= 60


def test_leases_without_time_zones(storage: Storage, settings: Any) -> None:
    settings.USE_TZ = False
    worker, late = start("ours"), start("late", silent_for=61)
    assert 50 < left(storage, worker) <= 60
    create()
    (job,) = claim(late)
    assert rescue(worker) is None
    assert fresh(job).state == "READY"


def test_a_rescuer_leaves_itself_alone() -> None:
    ours = start("ours", silent_for=1000)
    create()
    claim(ours)
    before = rows()
    assert rescue(ours) is None
    assert rows() == before
    assert Worker.objects.get().stopped is None


def test_a_worker_that_has_ended_is_nobody_to_wait_for() -> None:
    ours, ended = start("ours"), start("ended")
    engine.stop_worker(ended, timezone.now(), "default")
    assert rescue(ours) is None


def test_a_worker_that_is_known_to_be_dead_is_taken_at_once() -> None:
    ours, dead = start("ours"), start("dead")
    create()
    (job,) = claim(dead)
    Worker.objects.filter(pk=dead.pk).update(heartbeat=None)
    rescue(ours)
    assert fresh(job).state == "READY"


def test_whoever_is_not_late_is_not_buried_as_late() -> None:
    dead, living = start("dead", silent_for=61), start("living")
    create(2)
    claim(dead, 1)
    claim(living, 1)
    assert bury(living, late=True) == 0
    assert bury(dead, late=True) == 1
    assert bury(dead, late=True) == 0
    assert Worker.objects.get(pk=living.pk).stopped is None


# -- what becomes of the jobs --


def test_a_lost_job_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    dead = start("dead")
    later = timezone.now() - HOUR
    create(queue_name="other", priority=3, run_after=later)
    (job,) = claim(dead)
    job.checkpoint()
    before = fresh(job)
    now = timezone.now()
    with caplog.at_level(logging.WARNING, "django_dbq"):
        assert engine.bury(dead.pk, "It was shot.", now, "default") == 1
    after = fresh(job)
    changed = {
        field.attname
        for field in Job._meta.concrete_fields
        if getattr(before, field.attname) != getattr(after, field.attname)
    }
    assert changed == {"state", "worker_id", "lost", "modified"}
    assert (after.state, after.worker_id, after.lost, after.modified) == ("READY", None, 1, now)
    attempt = after.attempts.get()
    assert (attempt.number, attempt.step, attempt.task) == (1, 0, "tests.jobs.one")
    assert (attempt.outcome, attempt.worker) == ("lost", "dead")
    assert attempt.started <= attempt.finished == now
    assert attempt.error == "The worker dead was lost while it ran this task. It was shot."
    row = Worker.objects.get()
    assert (row.stopped, row.reason) == (now, "Declared dead. It was shot.")
    assert [record.getMessage() for record in caplog.records] == [
        f"Step lost: name=feed queue=other job={job.pk} task=tests.jobs.one attempt=1 state=READY worker=dead",
        "Worker declared dead: worker=dead jobs=1 left=0 reason=It was shot.",
    ]


def test_others_and_what_they_hold_are_not_touched() -> None:
    dead, living = start("dead"), start("living")
    create(6)
    (kept,) = claim(living, 1)
    claim(dead, 1)
    done, reset, paused, *_ = Job.objects.filter(state="NEW").order_by("pk")
    Job.objects.filter(pk=done.pk).update(state="COMPLETE", worker=dead)
    Job.objects.filter(pk=reset.pk).update(state="READY", worker=dead)
    Job.objects.filter(pk=paused.pk).update(state="PAUSED", worker=dead)
    others = Job.objects.exclude(worker=dead, state="PROCESSING").order_by("pk")
    before, worker = list(others.values()), Worker.objects.filter(pk=living.pk).values().get()
    pks = [row["id"] for row in before]
    assert kept.pk in pks
    assert bury(dead) == 1
    assert list(Job.objects.filter(pk__in=pks).order_by("pk").values()) == before
    assert Worker.objects.filter(pk=living.pk).values().get() == worker


def test_a_job_on_hold_waits_for_a_person() -> None:
    dead = start("dead")
    create(name="held")
    (job,) = claim(dead)
    assert bury(dead) == 1
    assert (fresh(job).state, fresh(job).lost) == ("PAUSED", 1)
    assert [attempt.outcome for attempt in job.attempts.all()] == ["lost"]
    assert drain() == 0
    Job.objects.update(state="READY")
    assert drain() == 1
    assert (fresh(job).state, fresh(job).lost) == ("COMPLETE", 0)


@pytest.mark.parametrize(("name", "losses"), [("feed", 3), ("failed", 1)])
def test_a_job_that_is_lost_too_often_fails_once(name: str, losses: int) -> None:
    create(name=name)
    for number in range(losses):
        dead = start(f"dead {number}")
        (job,) = claim(dead)
        assert (job.attempt, job.lost) == (number + 1, number)
        assert bury(dead) == 1
        assert fresh(job).state == "READY"
    assert drain() == 1
    job = fresh(job)
    assert (job.state, job.failures, job.lost) == ("FAILED", 0, 0)
    assert job.next_task == "tests.jobs.one"
    times = "" if losses == 1 else f" {losses} times"
    reason = f"The worker was lost{times} while it ran tests.jobs.one"
    hook, post = ran(job)
    assert hook.startswith(f"failure hook: {reason}")
    assert post == "post hook"
    *lost, last = job.attempts.order_by("number")
    assert [attempt.outcome for attempt in lost] == ["lost"] * losses
    assert (last.outcome, last.number) == ("failed", losses + 1)
    assert reason in last.error


def test_losses_are_those_of_one_step() -> None:
    create()
    for number in range(4):  # two at each of the steps
        if number == 2:
            worker = start("lives")
            (job,) = claim(worker)
            engine.finish(worker, [outcome(job)], timezone.now(), "default")
            assert fresh(job).lost == 0
        dead = start(f"dead {number}")
        claim(dead)
        assert bury(dead) == 1
    assert drain() == 1
    assert Job.objects.get().state == "COMPLETE"


def test_a_timeout_on_record_counts_as_that_and_not_as_a_loss() -> None:
    dead = start("dead")
    create(name="patient")
    (job,) = claim(dead)
    assert record(dead, job) == {job.pk}
    now = timezone.now()
    assert engine.bury(dead.pk, "It was shot.", now, "default") == 1
    job = fresh(job)
    assert (job.state, job.failures, job.lost) == ("READY", 1, 0)
    assert job.run_after == now + datetime.timedelta(seconds=100)
    assert not job.due
    attempt = job.attempts.get()
    assert (attempt.outcome, attempt.error) == ("timed_out", "stood in line 1")
    assert drain() == 0, "its time has not come"
    Job.objects.update(run_after=None)
    assert drain() == 1
    assert fresh(job).state == "COMPLETE"


def test_the_delay_grows_from_rescue_to_rescue_until_the_retries_are_used_up() -> None:
    create(name="patient")
    for number, delay in enumerate((100, 200, 400)):
        dead = start(f"dead {number}")
        (job,) = claim(dead)
        record(dead, job)
        now = timezone.now()
        engine.bury(dead.pk, "It was shot.", now, "default")
        job = fresh(job)
        assert (job.state, job.failures) == ("READY", number + 1)
        assert job.run_after == now + datetime.timedelta(seconds=delay)
        Job.objects.update(run_after=None)
    assert drain() == 1
    job = fresh(job)
    assert (job.state, job.failures, job.lost) == ("FAILED", 0, 0)
    reason = "tests.jobs.one has failed or timed out 3 times; retries that are allowed: 2."
    assert ran(job) == [f"failure hook: {reason}", "post hook"]
    assert [attempt.outcome for attempt in job.attempts.all()] == ["timed_out"] * 3 + ["failed"]


def test_only_the_record_of_this_very_attempt_counts() -> None:
    """The attempt before has timed out; this one was lost."""
    worker, dead = start("ours"), start("dead")
    create(name="patient")
    (job,) = claim(worker)
    engine.finish(worker, [outcome(job, TimedOut("too long"))], timezone.now(), "default")
    Job.objects.update(run_after=None)
    (job,) = claim(dead)
    assert bury(dead) == 1
    assert (fresh(job).failures, fresh(job).lost) == (1, 1)
    assert [attempt.outcome for attempt in job.attempts.all()] == ["timed_out", "lost"]


@pytest.mark.parametrize("ends", ["killed", "released"])
def test_what_a_stopping_worker_holds_is_handed_back(ends: str) -> None:
    """The shutdown was it, and not the job: no attempt is lost."""
    dead = start("dead")
    create(3)
    Job.objects.filter(workspace__key=1).update(state="READY", attempt=4)
    Job.objects.filter(workspace__key=2).update(
        state="READY", step=1, next_task="tests.jobs.two", attempt=1, lost=1, failures=2
    )
    jobs = [*claim(dead), *claim(dead)]
    engine.stopping(dead, jobs, "default")
    if ends == "killed":
        assert bury(dead) == 3
    else:
        assert engine.release(dead.pk, [], timezone.now(), "default") == 3
    values = ("state", "attempt", "worker", "lost", "failures")
    assert list(Job.objects.order_by("workspace__key").values_list(*values)) == [
        ("NEW", 0, None, 0, 0),
        ("READY", 4, None, 0, 0),
        ("READY", 1, None, 1, 2),
    ]
    assert Attempt.objects.count() == 0
    assert (Worker.objects.get().stopped is None) == (ends == "released")


@pytest.mark.parametrize("ends", ["killed", "released"])
def test_no_attempt_number_is_on_record_twice(ends: str) -> None:
    """A job that had timed out already when its worker stopped, or was ended for another job's sake."""
    dead = start("dead")
    create(name="patient")
    (job,) = claim(dead)
    record(dead, job)
    engine.stopping(dead, [job], "default")
    if ends == "killed":
        bury(dead)
    else:
        engine.release(dead.pk, [], timezone.now(), "default")
    Job.objects.update(run_after=None)
    (job,) = claim(worker := start("ours"))
    engine.finish(worker, [outcome(job)], timezone.now(), "default")
    numbers = list(job.attempts.values_list("number", flat=True))
    assert len(numbers) == len(set(numbers)), list(job.attempts.values_list("number", "outcome"))


def test_a_record_of_an_attempt_that_was_handed_back_is_not_one_of_the_next() -> None:
    """The job is lost the second time, and nothing else; the number is the same."""
    dead = start("dead")
    create(name="patient")
    (job,) = claim(dead)
    record(dead, job)
    engine.release(dead.pk, [], timezone.now(), "default")
    Job.objects.update(run_after=None)
    failures = fresh(job).failures
    (job,) = claim(dead)
    bury(dead)
    assert (fresh(job).failures, fresh(job).lost) == (failures, 1)


def test_who_does_not_know_a_job_leaves_it_to_those_who_do(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An older worker, say: it cannot tell what is to be held. What has run late, or was cut off, does not depend."""
    dead, stopping = start("dead"), start("stopping")
    create(name="held")
    create(name="feed")
    create(name="patient")
    held, tried, late = claim(dead)
    record(dead, late)
    create(name="held")
    (cut_off,) = claim(stopping)
    engine.stopping(stopping, [cut_off], "default")
    known, settings.JOBS = settings.JOBS, {}
    assert (bury(dead), bury(stopping)) == (1, 1)
    jobs = (held, tried, late, cut_off)
    assert [fresh(job).state for job in jobs] == ["PROCESSING", "PROCESSING", "READY", "NEW"]
    assert (fresh(late).failures, fresh(late).lost) == (1, 0)
    assert "Worker declared dead: worker=dead jobs=1 left=2" in caplog.text
    caplog.clear()
    assert engine.sweep(timezone.now(), "default") == 0
    assert caplog.text == ""
    settings.JOBS = known
    assert engine.sweep(timezone.now(), "default") == 2
    assert [fresh(job).state for job in jobs] == ["PAUSED", "READY", "READY", "NEW"]
    assert (fresh(held).lost, fresh(tried).lost) == (1, 1)


def test_all_jobs_of_a_large_batch_are_taken() -> None:
    dead, living = start("dead"), start("living")
    Job.objects.bulk_create(Job(name="feed") for _ in range(700))
    jobs = claim(dead, 600)
    claim(living, 50)
    record(dead, *jobs[:3])
    assert bury(dead) == 600
    lost = Job.objects.filter(state="READY", lost=1, worker=None, attempts__outcome="lost")
    assert lost.count() == 597
    assert Job.objects.filter(failures=1, attempts__outcome="timed_out").count() == 3
    assert Job.objects.filter(state="PROCESSING", worker=living).count() == 50


def test_reasons_of_any_length() -> None:
    dead = start("dead")
    create()
    (job,) = claim(dead)
    assert bury(dead, "ü" * 500) == 1
    assert Worker.objects.get().reason == f"Declared dead. {'ü' * 240}"
    assert job.attempts.get().error.endswith("ü" * 500)


def test_waiting_workers_hear_of_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[frozenset[str]] = []
    monkeypatch.setattr(
        "django_dbq.engine.creation.notify", lambda queues, using: woken.append(queues)
    )
    monkeypatch.setattr(wakeups, "ring", lambda: None)
    dead, gone = start("dead"), start("gone")
    for queue in ("a", "b", "b"):
        create(queue_name=queue)
    claim(dead)
    woken.clear()
    bury(dead)
    claim(gone, 1)
    engine.release(gone.pk, [], timezone.now(), "default")
    bury(gone)
    assert woken == [frozenset("ab"), frozenset("a")]


def test_a_worker_is_buried_once() -> None:
    dead = start("dead")
    create()
    claim(dead)
    assert bury(dead, "First.") == 1
    before, row = rows(), Worker.objects.values().get()
    assert bury(dead, "Second.") == 0
    assert rows() == before
    assert Worker.objects.values().get() == row


def test_nobody_can_be_buried() -> None:
    assert engine.bury(12345, "It was shot.", timezone.now(), "default") == 0


# -- the dead cannot write --


def test_whatever_a_buried_worker_still_does_changes_nothing() -> None:
    dead = start("dead")
    create(3)
    jobs = claim(dead)
    bury(dead)
    Job.objects.filter(workspace__key=0).update(lost=0)
    (again,) = claim(start("another's"), 1)
    assert again.pk == jobs[0].pk
    before, row = rows(), Worker.objects.values().get(pk=dead.pk)
    now = timezone.now()
    assert engine.finish(dead, [outcome(job) for job in jobs], now, "default") == []
    assert engine.hand_back(dead, jobs, now, "default") == 0
    engine.stopping(dead, jobs, "default")
    assert record(dead, *jobs) == set()
    for job in jobs:
        job.workspace, job.progress = {"too": "late"}, 0.5
        assert not engine.checkpoint(job, "default")
        assert not engine.save_progress(job, "default")
    assert not engine.beat(dead, "default")
    engine.stop_worker(dead, now, "default")
    assert rows() == before
    assert Worker.objects.values().get(pk=dead.pk) == row


# -- sweeping --


def sweep() -> int:
    return engine.sweep(timezone.now(), "default")


def test_what_ended_workers_hold_is_swept_up() -> None:
    """A worker that was frozen in the middle of a claim, say, while it was declared dead."""
    buried, ended, living = start("buried"), start("ended"), start("living")
    create(4)
    bury(buried)
    ended.reason = "told to stop"
    engine.stop_worker(ended, timezone.now(), "default")
    claims = [claim(worker, 1)[0] for worker in (buried, ended, living)]
    claim(buried, 1)
    assert sweep() == 3
    assert [fresh(job).state for job in claims] == ["READY", "READY", "PROCESSING"]
    assert list(Attempt.objects.values_list("outcome", flat=True)) == ["lost"] * 3
    assert sweep() == 0
    reasons = dict(Worker.objects.values_list("label", "reason"))
    assert reasons["ended"] == "told to stop", "it has said so itself"
    assert Worker.objects.get(label="living").stopped is None


def test_a_late_worker_is_not_swept_up() -> None:
    """Whether it is late is the rescue's question."""
    late = start("late", silent_for=1000)
    create()
    claim(late)
    assert sweep() == 0
    assert Job.objects.get().state == "PROCESSING"


def test_finished_jobs_of_ended_workers_are_left() -> None:
    create(2)
    drain()
    before = rows()
    assert sweep() == 0
    assert rows() == before


def test_a_job_whose_workers_row_was_deleted_is_not_stuck() -> None:
    """Somebody has pruned the table of workers, of one that was living as well."""
    dead = start("dead")
    create()
    (job,) = claim(dead)
    Worker.objects.all().delete()
    assert sweep() == 1
    assert fresh(job).state == "READY"


# -- a process that is about to be ended --


def test_releasing_keeps_what_is_stuck() -> None:
    dead, living = start("dead"), start("living")
    create(5)
    theirs = claim(living, 1)
    stuck, running, done, *waiting = claim(dead)
    engine.finish(dead, [outcome(done)], timezone.now(), "default")
    assert engine.release(dead.pk, [stuck.pk], timezone.now(), "default") == 1 + len(waiting)
    assert (fresh(stuck).state, fresh(stuck).worker_id) == ("PROCESSING", dead.pk)
    assert fresh(theirs[0]).worker_id == living.pk
    assert (fresh(done).state, fresh(done).attempt) == ("READY", 1)
    for job in (running, *waiting):
        assert (fresh(job).state, fresh(job).attempt, fresh(job).worker) == ("NEW", 0, None)
    assert list(Attempt.objects.values_list("outcome", flat=True)) == ["succeeded"]
    assert Worker.objects.get(pk=dead.pk).stopped is None


# -- timeouts are recorded before they are enforced --


def test_a_timeout_is_recorded() -> None:
    worker = start("ours")
    create()
    (job,) = claim(worker)
    before = fresh(job)
    now = timezone.now()
    assert engine.record_timeouts(worker.pk, [overdue(job)], now, "default") == {job.pk}
    attempt = job.attempts.get()
    assert (attempt.number, attempt.step, attempt.task) == (1, 0, "tests.jobs.one")
    assert (attempt.outcome, attempt.worker) == ("timed_out", "ours")
    assert (attempt.started, attempt.finished) == (STARTED, now)
    assert attempt.error == "stood in line 1"
    assert Job.objects.filter(pk=job.pk).values().get() == {
        field.attname: getattr(before, field.attname) for field in Job._meta.concrete_fields
    }, "the job goes on being held"


def test_a_timeout_is_recorded_once() -> None:
    """By the worker's minder first, then by its watchdog."""
    worker = start("ours")
    create(2)
    jobs = claim(worker)
    assert record(worker, jobs[0]) == {jobs[0].pk}
    assert record(worker, *jobs) == {job.pk for job in jobs}
    assert sorted(Attempt.objects.values_list("job", "number")) == sorted(
        (job.pk, 1) for job in jobs
    )


@pytest.mark.parametrize("wait", [True, False], ids=["waits", "does not"])
def test_a_task_that_has_locked_its_row_cannot_keep_a_minder_waiting(
    backlog: None, wait: bool
) -> None:
    """But whoever is going to kill its process can wait."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time: there, everybody waits")
    worker = start("ours")
    create(2)
    locking, other = claim(worker)
    records = [overdue(locking), overdue(other)]

    def tell() -> set[Any]:
        now = timezone.now()
        return engine.record_timeouts(worker.pk, records, now, "default", wait=wait)

    with while_uncommitted(tell, waits=wait) as found:
        locking.checkpoint()
    expected = {locking.pk, other.pk} if wait else {other.pk}
    assert found.result() == expected
    assert set(Attempt.objects.values_list("job", flat=True)) == expected


def test_only_what_is_held_with_that_attempt_number_is_recorded() -> None:
    worker, other = start("ours"), start("another's")
    create(7)
    held, theirs, done, rescued, reset, stopping, deleted = claim(worker)
    now = timezone.now()
    engine.hand_back(worker, [theirs], now, "default")
    assert claim(other)[0].pk == theirs.pk
    engine.finish(worker, [outcome(done)], now, "default")
    Job.objects.filter(pk=rescued.pk).update(attempt=2)
    Job.objects.filter(pk=reset.pk).update(state="READY")
    engine.stopping(worker, [stopping], "default")
    Job.objects.filter(pk=deleted.pk).delete()
    Attempt.objects.all().delete()
    found = record(worker, held, theirs, done, rescued, reset, stopping, deleted)
    assert found == {held.pk, stopping.pk}
    assert set(Attempt.objects.values_list("job", "outcome")) == {
        (held.pk, "timed_out"),
        (stopping.pk, "timed_out"),
    }


def test_the_outcome_completes_the_record() -> None:
    """One attempt, one row: with the traceback of the task as it was ended, and the time of its end."""
    worker = start("ours")
    create(3, name="patient")
    jobs = claim(worker)
    record(worker, *jobs[:2])
    outcomes = [outcome(job, TimedOut("too long"), report="where it stood") for job in jobs]
    assert engine.finish(worker, outcomes, timezone.now(), "default") == outcomes
    for job in jobs:
        attempt = job.attempts.get()
        assert (attempt.outcome, attempt.error) == ("timed_out", "where it stood")
        assert (fresh(job).state, fresh(job).failures) == ("READY", 1)


def test_a_timeout_that_was_not_recorded_in_time_leaves_other_records_alone() -> None:
    worker = start("ours")
    create(name="patient")
    (job,) = claim(worker)
    engine.finish(worker, [outcome(job, TimedOut("first"))], timezone.now(), "default")
    Job.objects.update(run_after=None)
    (job,) = claim(worker)
    record(worker, job)
    engine.finish(worker, [outcome(job, TimedOut("second"))], timezone.now(), "default")
    assert list(job.attempts.values_list("number", "outcome")) == [
        (1, "timed_out"),
        (2, "timed_out"),
    ]


# -- who comes first: in the order that a second session forces --


def two_jobs(worker: Worker) -> tuple[Job, Job]:
    create(2)
    one, two = claim(worker)
    return one, two


@pytest.mark.usefixtures("backlog")
def test_an_outcome_that_commits_first_wins() -> None:
    late = start("late", silent_for=1000)
    done, lost = two_jobs(late)
    with while_uncommitted(lambda: bury(late, late=True)) as buried:
        engine.finish(late, [outcome(done)], timezone.now(), "default")
    assert buried.result() == 1
    assert (fresh(done).state, fresh(done).step, fresh(done).lost) == ("READY", 1, 0)
    assert (fresh(lost).state, fresh(lost).lost) == ("READY", 1)
    assert set(Attempt.objects.values_list("job", "outcome")) == {
        (done.pk, "succeeded"),
        (lost.pk, "lost"),
    }


@pytest.mark.usefixtures("backlog")
def test_a_rescue_that_commits_first_wins() -> None:
    late = start("late", silent_for=1000)
    jobs = two_jobs(late)

    def finish() -> list[Any]:
        return engine.finish(late, [outcome(job) for job in jobs], timezone.now(), "default")

    with while_uncommitted(finish) as written:
        assert bury(late, late=True) == 2
    assert written.result() == []
    for job in jobs:
        assert (fresh(job).state, fresh(job).step, fresh(job).lost) == ("READY", 0, 1)
    assert list(Attempt.objects.values_list("outcome", flat=True)) == ["lost"] * 2


@pytest.mark.usefixtures("backlog")
def test_a_hand_back_that_commits_first_wins() -> None:
    late = start("late", silent_for=1000)
    back, lost = two_jobs(late)
    with while_uncommitted(lambda: bury(late, late=True)) as buried:
        assert engine.hand_back(late, [back], timezone.now(), "default") == 1
    assert buried.result() == 1
    assert (fresh(back).state, fresh(back).attempt, fresh(back).lost) == ("NEW", 0, 0)
    assert (fresh(lost).state, fresh(lost).attempt, fresh(lost).lost) == ("READY", 1, 1)


@pytest.mark.usefixtures("backlog")
def test_a_beat_that_commits_first_keeps_the_jobs() -> None:
    late = start("late", silent_for=1000)
    two_jobs(late)
    before = rows()
    with while_uncommitted(lambda: bury(late, late=True), waits=False) as buried:
        assert engine.beat(late, "default")
    assert buried.result() == 0
    assert rows() == before
    assert Worker.objects.get().stopped is None


@pytest.mark.usefixtures("backlog")
def test_a_beat_that_comes_too_late_hears_of_the_death() -> None:
    late = start("late", silent_for=1000)
    two_jobs(late)
    with while_uncommitted(lambda: engine.beat(late, "default")) as renewed:
        assert bury(late, late=True) == 2
    assert renewed.result() is False


@pytest.mark.usefixtures("backlog")
@pytest.mark.parametrize("ways", ["rescue", "bury"])
def test_two_rescuers_take_each_job_once(ways: str) -> None:
    late, other = start("late", silent_for=1000), start("other")
    jobs = two_jobs(late)
    again = {"rescue": lambda: rescue(other), "bury": lambda: bury(late)}[ways]
    with while_uncommitted(again, waits=False):
        assert bury(late, late=True) == 2
    for job in jobs:
        assert (fresh(job).state, fresh(job).lost) == ("READY", 1)
    assert list(Attempt.objects.values_list("outcome", flat=True)) == ["lost"] * 2
    assert Worker.objects.get(pk=other.pk).stopped is None


@pytest.mark.usefixtures("backlog")
def test_a_rescue_does_not_wait_for_jobs_of_others() -> None:
    """Somebody holds their rows, for as long as an atomic step takes, say."""
    dead, living = start("dead", silent_for=1000), start("living")
    create(2)
    (lost,) = claim(dead, 1)
    (kept,) = claim(living, 1)
    with while_uncommitted(lambda: bury(dead, late=True), waits=False) as buried:
        kept.checkpoint()
    assert buried.result() == 1
    assert fresh(lost).state == "READY"


@pytest.mark.usefixtures("backlog")
def test_a_claim_of_a_worker_that_is_just_being_buried_is_swept_up() -> None:
    late = start("late", silent_for=1000)
    create(2)
    (lost,) = claim(late, 1)
    with while_uncommitted(lambda: len(claim(late, 1)), waits=False) as claimed:
        assert bury(late, late=True) == 1
    assert claimed.result() == 1
    held = Job.objects.get(state="PROCESSING")
    if held.pk == lost.pk:
        assert held.lost == 1  # on SQLite the claim came after the rescue, and took up the very job
    assert sweep() == 1
    assert not Job.objects.filter(state="PROCESSING").exists()


@pytest.mark.usefixtures("backlog")
@pytest.mark.parametrize("outcome_is", [None, TimedOut("too long")], ids=["done", "timed out"])
def test_a_timeout_is_not_recorded_of_what_is_just_being_written(
    outcome_is: BaseException | None,
) -> None:
    """The task has ended at the very moment at which its time was over."""
    worker = start("ours")
    create(name="patient")
    (job,) = claim(worker)
    with while_uncommitted(lambda: record(worker, job), waits=None):
        engine.finish(worker, [outcome(job, outcome_is)], timezone.now(), "default")
    assert [attempt.outcome for attempt in job.attempts.all()] == [
        AttemptOutcome.SUCCEEDED if outcome_is is None else AttemptOutcome.TIMED_OUT
    ]
