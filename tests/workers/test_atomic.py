"""Atomic steps of real workers: the task's rows, the jobs that it creates, its workspace and the state, or nothing."""

import pytest
from django.contrib.auth.models import Group
from django.db import connection, transaction

from django_dbq.models import Job
from tests.process_jobs import effects, journal, tell, told, until
from tests.processes import create, kill_session, outcomes, states, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)

QUICKLY = ("--tick", "0.1")
THREADS = pytest.mark.parametrize("threads", [(), ("--threads", "2")], ids=["main", "threads"])

several_writers = pytest.mark.skipif(
    "connection.vendor == 'sqlite'", reason="SQLite has one writer at a time, and that is the task"
)


def of(number: int) -> list[str]:
    """The effects of the attempt of this number, all of them."""
    return [f"row {number}", f"job {number}", f"workspace {number}"]


@THREADS
def test_everything_is_there_at_once(threads: tuple[str, ...]) -> None:
    job = create("atomic", "job")
    with worker(*QUICKLY, *threads):
        told("started job 1")
        assert effects(job) == []
        assert states(job) == ["PROCESSING"]
        tell("go on job 1")
        until(lambda: effects(job), "an effect")
        assert effects(job) == of(1)
        assert states(job) == ["COMPLETE"]
    assert outcomes(job) == [(1, "succeeded")]
    follow_on = Job.objects.get(queue_name="follow-on")
    assert (follow_on.state, follow_on.attempt) == ("NEW", 0)


def test_what_the_task_comes_to_decides() -> None:
    """What is raised rolls back, what is returned commits; each with one row of history."""
    for key in ("fails", "again", "raised", "aborts", "fails once"):
        for number in (1, 2):
            tell(f"go on {key} {number}")
    fails = create("atomic", "fails", {"ends": ["raises"]})
    again = create("atomic", "again", {"ends": ["returns Retry"]})
    raised = create("atomic", "raised", {"ends": ["raises Retry"]})
    aborts = create("atomic", "aborts", {"ends": ["returns Abort"]})
    fails_once = create("atomic, retried", "fails once", {"ends": ["raises"]})
    with worker("--until_done") as process:
        assert process.wait() == 0
    assert (states(fails), outcomes(fails), effects(fails)) == (["FAILED"], [(1, "failed")], [])
    assert outcomes(again) == [(1, "retried"), (2, "succeeded")]
    assert effects(again) == ["row 1", "row 2", "job 1", "job 2", "workspace 2"]
    assert outcomes(raised) == [(1, "retried"), (2, "succeeded")]
    assert effects(raised) == of(2)
    assert (states(aborts), outcomes(aborts)) == (["FAILED"], [(1, "failed")])
    assert effects(aborts) == of(1)
    assert outcomes(fails_once) == [(1, "failed"), (2, "succeeded")]
    assert effects(fails_once) == of(2)
    ended = [line for line in journal() if line.startswith(("failed", "completed"))]
    assert sorted(ended) == [
        "completed again",
        "completed fails once",
        "completed raised",
        "failed aborts Abort",
        "failed fails ValueError",
    ]


def test_the_hooks_rows_come_with_it_unless_they_raise() -> None:
    good, bad = create("atomic, hook", "good"), create("atomic, raising hook", "bad")
    with worker("--until_done") as process:
        assert process.wait() == 0
        assert "this hook always fails" in process.output()
    assert states(good, bad) == ["COMPLETE", "COMPLETE"]
    assert effects(good) == of(1)
    assert effects(bad) == of(1)
    hooks = Group.objects.filter(name__startswith="hook of")
    assert [group.name for group in hooks] == [f"hook of {good.pk}"]


# -- what may happen in the middle --


def test_a_kill_in_the_middle_leaves_nothing() -> None:
    job = create("atomic", "job")
    with worker(*QUICKLY) as killed:
        told("started job 1")
        killed.kill()
        until(lambda: outcomes(job) == [(1, "lost")], "the rescue")
        assert effects(job) == []
    tell("go on job 2")
    with worker("--until_done") as other:
        assert other.wait() == 0
    assert outcomes(job) == [(1, "lost"), (2, "succeeded")]
    assert effects(job) == of(2)


@several_writers
@THREADS
def test_a_job_that_is_sent_on_meanwhile_takes_nothing_from_the_attempt_before(
    threads: tuple[str, ...],
) -> None:
    job = create("atomic", "job")
    with worker(*QUICKLY, *threads) as process:
        told("started job 1")
        Job.objects.filter(pk=job.pk).update(state="READY")
        tell("go on job 2")
        tell("go on job 1")
        until_states("COMPLETE", job)
        until(lambda: "no longer this worker's" in process.output(), "the first attempt's end")
    assert outcomes(job) == [(2, "succeeded")]
    assert effects(job) == of(2)


@several_writers
@THREADS
@pytest.mark.parametrize("asks", [True, False], ids=["in the middle", "at the end"])
def test_a_connection_that_dies_under_the_task(threads: tuple[str, ...], asks: bool) -> None:
    """The task notices it, or the commit does. Nothing was done, so that the same attempt can be begun again."""
    job = create("atomic, session", "job", {"asks": asks})
    with worker(*QUICKLY, *threads) as process:
        session = int(told("session job 1"))
        told("started job 1")
        kill_session(session)
        tell("go on job 1")
        until_states("COMPLETE", job)
        assert int(told("session job 1")) != session
        assert "Atomic step rolled back, run again" in process.output()
        until_states("COMPLETE", create("quick"))
        assert process.running
    assert outcomes(job) == [(1, "succeeded")]
    assert effects(job) == of(1)
    assert [line for line in journal() if line.startswith("start")] == ["start job 1"] * 2


@several_writers
@THREADS
def test_a_deadlock(threads: tuple[str, ...]) -> None:
    """With a transaction of ours that the database prefers to the task's."""
    Group.objects.bulk_create([Group(name="one"), Group(name="two")])
    job = create("atomic, locks", "job")
    with worker(*QUICKLY, *threads) as process:
        told("started job 1")
        with transaction.atomic():
            if connection.vendor == "postgresql":  # whoever looks first finds itself the victim
                with connection.cursor() as cursor:
                    cursor.execute("SET LOCAL deadlock_timeout = '60s'")
            else:  # the one that has changed more goes on
                Group.objects.bulk_create(Group(name=f"weight {n}") for n in range(100))
            Group.objects.filter(name="two").update(name="two")
            tell("go on job 1")
            Group.objects.filter(name="one").update(name="one")  # waits for the task, and it for us
        until_states("COMPLETE", job)
        assert "Atomic step rolled back, run again" in process.output()
        assert "eadlock" in process.output()
    assert outcomes(job) == [(1, "succeeded")]
    assert effects(job) == of(1)
    assert [line for line in journal() if line.startswith("start")] == ["start job 1"] * 2


def test_several_workers_and_threads_do_each_atomic_step_once() -> None:
    for number in range(40):
        tell(f"go on {number} 1")
        tell(f"go on {number} 2")
    jobs = [
        create("atomic, retried", str(number), {"ends": ["raises"] if number % 4 == 0 else []})
        for number in range(40)
    ]
    with worker(*QUICKLY, "--threads", "2"), worker(*QUICKLY):
        until_states("COMPLETE", *jobs)
    for number, job in enumerate(jobs):
        assert effects(job) == of(2 if number % 4 == 0 else 1)
