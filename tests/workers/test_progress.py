"""What a task tells while it runs: its progress, for people to see, and its workspace, for the attempt after it."""

import time

import pytest
from django.db import connection

from django_dbq.models import Job
from tests.process_jobs import tell, told, until
from tests.processes import create, outcomes, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)


KINDS = {
    "stand_telling": "stand_telling",
    "thread": "stand_telling",
    "coroutine": "stand_telling_async",
}
IN_TRANSACTION = {"atomic": "atomic, telling", "own transaction": "stand_telling_in_block"}


def shown(job: Job) -> tuple[float | None, str]:
    return Job.objects.values_list("progress", "progress_message").get(pk=job.pk)


def test_progress_is_shown_at_most_once_a_second() -> None:
    """Wherever the task runs and in whatever transaction. The last one is saved in any case."""
    # On SQLite a transaction of the task's keeps its progress from being written, and all else too.
    kinds = KINDS if connection.vendor == "sqlite" else KINDS | IN_TRANSACTION
    jobs = {key: create(name, key) for key, name in kinds.items()}
    seen: dict[str, list[float]] = {key: [] for key in jobs}

    def look() -> bool:
        for key, job in jobs.items():
            progress, message = shown(job)
            if progress is not None and progress not in seen[key]:
                assert 0 < progress < 1
                assert message == "attempt 1"
                seen[key].append(progress)
        return all(len(found) >= 3 for found in seen.values())

    begun = time.monotonic()
    with worker("--tick", "0.1", "--threads", "4"):
        until(look, "progress of all jobs, three times")
        took = time.monotonic() - begun
        assert took > 2
        assert max(map(len, seen.values())) <= 1 + took
        for key in jobs:
            tell(f"go on {key} 1")
        until_states("COMPLETE", *jobs.values())
    assert {shown(job) for job in jobs.values()} == {(1.0, "attempt 1")}


@pytest.mark.parametrize("threads", [(), ("--threads", "1")], ids=["main", "threads"])
def test_the_last_progress_is_saved_with_the_outcome(threads: tuple[str, ...]) -> None:
    """Of tasks that end before it could be written for itself, or that roll their own doing back."""
    kinds = [*KINDS.values(), *IN_TRANSACTION.values()]
    jobs = [create(name, str(n)) for n, name in enumerate(kinds)]
    for number in range(len(jobs)):
        tell(f"go on {number} 1")
    with worker("--until_done", *threads) as process:
        assert process.wait() == 0
    assert {shown(job) for job in jobs} == {(1.0, "attempt 1")}


def test_progress_that_could_not_be_shown_is_saved_with_the_outcome() -> None:
    """The task has locked its job's row, and tells of its progress once."""
    job, other = create("tell_once_while_locked", "job"), create("stand_telling", "other")
    with worker("--tick", "0.1", "--threads", "2"):
        told("started job 1")
        if connection.vendor != "sqlite":  # where the task's transaction keeps this one out as well
            until(lambda: shown(other)[0] is not None, "a look of the minder")
            before = shown(other)
            until(lambda: shown(other) != before, "another")
            assert shown(job) == (None, "")
        tell("go on job 1")
        tell("go on other 1")
        until_states("COMPLETE", job, other)
    assert shown(job) == (0.5, "told once")


def test_the_attempt_after_a_kill_starts_from_the_checkpoint() -> None:
    job = create("stand_saving", "job")
    with worker("--timeout", "1000") as killed:
        told("saved job 1")
        killed.kill()
        until_states("READY", job)
    assert Job.objects.get(pk=job.pk).workspace == {"key": "job", "saved by": 1}
    tell("go on job 2")
    with worker("--until_done") as other:
        assert other.wait() == 0
    assert told("found job 1") == "None"
    assert told("found job 2") == "1"
    assert outcomes(job) == [(1, "lost"), (2, "succeeded")]
