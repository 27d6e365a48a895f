"""Tasks that are coroutines: many at a time in one thread, with everything that other tasks may do."""

import signal

import pytest

from django_dbq.models import Attempt, Job, Worker
from tests.process_jobs import journal, tell, told, told_before, until
from tests.processes import create, outcomes, states, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)

QUICKLY = ("--tick", "0.1")


def test_a_hundred_run_at_a_time() -> None:
    jobs = [create("stand_async", str(n)) for n in range(110)]
    with worker(*QUICKLY) as process:
        first = [int(told(f"started {n} 1")) for n in range(100)]
        assert set(first) == {process.pid}
        until_states("NEW", *jobs[100:])
        assert not told_before("started 100 1")
        for number in range(110):
            tell(f"go on {number} 1")
        until_states("COMPLETE", *jobs)
    assert Worker.objects.count() == 1
    for job in jobs:
        assert outcomes(job) == [(1, "succeeded")]
        job.refresh_from_db()
        assert job.workspace["by"] == 1


def test_they_may_end_in_every_way_and_use_the_database() -> None:
    ways = {
        "well": [],
        "fails": ["raises"],
        "returned": ["returns Retry"],
        "raised": ["raises Retry"],
        "aborts": ["returns Abort"],
    }
    jobs = {key: create("stand_async", key, {"ends": ends}) for key, ends in ways.items()}
    jobs["fails once"] = create("stand_async, retried", "fails once", {"ends": ["raises"]})
    hooks = create("stand_async, hooks", "hooks", {"ends": ["returns Retry"]})
    for key in (*jobs, "hooks"):
        for number in (1, 2):
            tell(f"go on {key} {number}")
    database = create("use_orm_async")
    with worker("--until_done") as process:
        assert process.wait() == 0
    succeeded, failed = (1, "succeeded"), (1, "failed")
    assert {key: outcomes(job) for key, job in jobs.items()} == {
        "well": [succeeded],
        "fails": [failed],
        "returned": [(1, "retried"), (2, "succeeded")],
        "raised": [(1, "retried"), (2, "succeeded")],
        "aborts": [failed],
        "fails once": [failed, (2, "succeeded")],
    }
    assert "ValueError: this task fails at its end" in jobs["fails"].attempts.get().error
    assert "in stand_async" in jobs["fails"].attempts.get().error
    ended = [line for line in journal() if line.startswith(("failed", "completed"))]
    assert sorted(ended) == [
        "completed fails once",
        "completed hooks",
        "completed raised",
        "completed returned",
        "completed well",
        "failed aborts Abort",
        "failed fails ValueError",
    ]
    assert [line for line in journal() if "hooks" in line] == [
        "before hooks 1",
        "start hooks 1",
        "end hooks 1",
        "after hooks 1",
        "before hooks 2",
        "start hooks 2",
        "end hooks 2",
        "completed hooks",
        "after hooks 2",
    ]
    assert states(hooks) == ["COMPLETE"]
    assert outcomes(database) == [(1, "succeeded")]
    assert Job.objects.get(pk=database.pk).workspace["found"] == [f"{database.pk} 1"]


@pytest.mark.parametrize("threads", [(), ("--threads", "2")], ids=["main", "threads"])
def test_they_and_other_tasks_do_not_keep_each_other_waiting(threads: tuple[str, ...]) -> None:
    coroutines = [create("stand_async", f"async {n}") for n in range(2)]
    with worker(*QUICKLY, *threads):
        for number in range(2):
            told(f"started async {number} 1")
        # Another task begins beside coroutines that run,
        other = create("stand", "other")
        told("started other 1")
        # a coroutine ends, and is written, beside another task,
        tell("go on async 0 1")
        until_states("COMPLETE", coroutines[0])
        assert states(coroutines[1], other) == ["PROCESSING", "PROCESSING"]
        # and where a thread is free, so that the worker claims, one begins there as well.
        if threads:
            later = create("stand_async", "later")
            told("started later 1")
            tell("go on later 1")
            until_states("COMPLETE", later)
        tell("go on other 1")
        until_states("COMPLETE", other)
        tell("go on async 1 1")
        until_states("COMPLETE", coroutines[1])


@pytest.mark.parametrize("name", ["exit_async", "exit_in_own_task", "refuse_call_async"])
def test_one_that_misbehaves_ends_alone(name: str) -> None:
    other = create("stand_async", "other")
    with worker(*QUICKLY):
        told("started other 1")
        bad = create(name)
        until_states("FAILED", bad)
        tell("go on other 1")
        until_states("COMPLETE", other, create("use_orm_async"))
    assert outcomes(bad) == [(1, "failed")]
    assert outcomes(other) == [(1, "succeeded")]


def test_a_killed_worker_loses_each_of_them_once() -> None:
    jobs = [create("stand_async", str(n)) for n in range(5)]
    with worker(*QUICKLY) as killed:
        for number in range(5):
            told(f"started {number} 1")
            tell(f"go on {number} 2")
        killed.kill()
        until(lambda: killed.row.stopped, "the rescue")
    with worker("--until_done") as other:
        assert other.wait() == 0
    for job in jobs:
        assert outcomes(job) == [(1, "lost"), (2, "succeeded")]


# -- synchronous code that a coroutine has called, in the thread that Django has for it --


def test_a_stopping_worker_does_not_wait_for_it() -> None:
    job = create("block_async", "job")
    with worker(*QUICKLY, "--grace", "0.3") as process:
        told("started job 1")
        process.send(signal.SIGTERM)
        process.wait()
        until_states("NEW", job)


def test_a_timeout_ends_it_with_its_process() -> None:
    job = create("block_async, timeout", "job")
    with worker(*QUICKLY, "--processes", "1"):
        told("started job 1")
        until_states("FAILED", job)
        until_states("COMPLETE", create("use_orm_async"))
    assert outcomes(job)[0] == (1, "timed_out")


def test_a_pause_between_starts_is_kept_by_coroutines() -> None:
    """They run at a time, and start one after the other."""
    jobs = [create("stand_async", str(n)) for n in range(4)]
    with worker("--rate_limit", "0.5", "--tick", "0.05"):
        for number in range(4):
            told(f"started {number} 1")
        assert states(*jobs) == ["PROCESSING"] * 4
        for number in range(4):
            tell(f"go on {number} 1")
        until_states("COMPLETE", *jobs)
    starts = list(Attempt.objects.order_by("started").values_list("started", flat=True))
    assert (starts[3] - starts[0]).total_seconds() > 1.2
