"""Timeouts that hold, wherever a task runs and whatever it does about them."""

import pytest

from django_dbq.models import Attempt, Job, Worker
from tests.process_jobs import effects, journal, tell, told, until
from tests.processes import children, create, is_there, outcomes, states, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)

QUICKLY = ("--tick", "0.1")
THREADS = pytest.mark.parametrize("threads", ["0", "2"])


def overrunning(how: str, name: str = "overrun", **workspace: object) -> Job:
    return create(name, how, {"how": how, **workspace})


def runs(key: str) -> list[str]:
    """The journal of this job."""
    return [line for line in journal() if line.split()[1] == key]


# -- a task that can be reached --


@pytest.mark.parametrize(
    ("threads", "ways"),
    [("0", ["sleep_on", "spin", "doze", "swallow"]), ("2", ["spin", "doze", "swallow"])],
)
def test_a_task_ends_with_its_time(threads: str, ways: list[str]) -> None:
    """A sleep in C code, too, in the main thread. The worker goes on in the same process."""
    jobs = [overrunning(how) for how in ways]
    with worker(*QUICKLY, "--threads", threads) if threads != "0" else worker(*QUICKLY) as process:
        until_states("FAILED", *jobs)
        until_states("COMPLETE", create("quick"))
        assert process.running
        assert Worker.objects.count() == 1
    for job in jobs:
        attempt = job.attempts.get()
        assert (attempt.number, attempt.outcome) == (1, "timed_out")
        assert "has run for longer than its timeout of 1 s" in attempt.error
        assert attempt.duration.total_seconds() >= 1
        key = job.workspace["key"]
        assert runs(key) == [f"start {key} 1", f"end {key} 1", f"failed {key} TimedOut"]
        job.refresh_from_db()
        assert (job.failures, job.worker_id is None) == (0, False)
    heard = {how: told(f"heard {how} 1") for how in ways if how != "swallow"}
    assert set(heard.values()) == {"TimedOut"}


def test_the_history_tells_where_a_task_stood() -> None:
    overrunning("doze")
    with worker("--until_done") as process:
        process.wait()
    error = Attempt.objects.get().error
    assert "in doze" in error
    assert error.endswith("TimedOut: The task has run for longer than its timeout of 1 s.\n")


@THREADS
def test_a_timeout_is_recorded_before_it_is_enforced(threads: str) -> None:
    """Nor does the job go on before its task has unwound, however long that takes."""
    job = overrunning("doze", "overrun, retried", leaves=True)
    arguments = ("--threads", threads) if threads != "0" else ()
    with worker(*QUICKLY, *arguments), worker(*QUICKLY):
        told("unwinds doze 1")
        assert outcomes(job) == [(1, "timed_out")]
        assert "in doze" in job.attempts.get().error
        assert states(job) == ["PROCESSING"]
        tell("go on doze 1")
        tell("go on doze 2")
        until_states("COMPLETE", job)
    assert outcomes(job) == [(1, "timed_out"), (2, "succeeded")]
    assert job.attempts.first().finished >= job.attempts.first().started
    assert [line.split()[0] for line in runs("doze")] == ["start", "end"] * 2 + ["completed"]


@THREADS
def test_a_retry_never_overlaps_the_attempt_before(threads: str) -> None:
    jobs = [
        create("overrun, retried", f"{how}{n}", {"how": how, "times": 2})
        for n in range(2)
        for how in ("spin", "doze")
    ]
    arguments = ("--threads", threads) if threads != "0" else ()
    with worker(*QUICKLY, *arguments), worker(*QUICKLY, *arguments):
        until_states("COMPLETE", *jobs)
    for job in jobs:
        assert outcomes(job) == [(1, "timed_out"), (2, "timed_out"), (3, "succeeded")]
        key = job.workspace["key"]
        turns = [f"{event} {key} {number}" for number in (1, 2, 3) for event in ("start", "end")]
        assert runs(key) == [*turns, f"completed {key}"]


@THREADS
def test_an_atomic_step_that_is_too_slow_leaves_nothing(threads: str) -> None:
    job = overrunning("doze", "overrun, atomic")
    arguments = ("--threads", threads) if threads != "0" else ()
    with worker(*QUICKLY, *arguments):
        until_states("COMPLETE", job)
    assert outcomes(job) == [(1, "timed_out"), (2, "succeeded")]
    assert effects(job) == ["row 2", "job 2", "workspace 2"]


# -- coroutines --


def test_a_coroutine_ends_with_its_time() -> None:
    jobs = [overrunning(how, "overrun_async") for how in ("sleep", "swallow")]
    retried = overrunning("again", "overrun_async, retried", times=2)
    bystander = create("stand_async", "bystander")
    with worker(*QUICKLY) as process:
        until_states("FAILED", *jobs)
        until_states("COMPLETE", retried)
        tell("go on bystander 1")
        until_states("COMPLETE", bystander)
        assert process.running
    for job in jobs:
        assert outcomes(job) == [(1, "timed_out")]
        key = job.workspace["key"]
        assert runs(key) == [f"start {key} 1", f"end {key} 1", f"failed {key} TimedOut"]
    assert outcomes(retried) == [(1, "timed_out"), (2, "timed_out"), (3, "succeeded")]
    assert outcomes(bystander) == [(1, "succeeded")]
    assert told("heard sleep 1") == "CancelledError"


# -- a task that cannot --


@pytest.mark.parametrize(
    ("how", "name", "threads"),
    [
        ("hold_the_interpreter", "overrun", "0"),
        ("hold_the_interpreter", "overrun", "3"),
        ("sleep_on", "overrun", "3"),
        ("be_deaf", "overrun", "0"),
        ("be_deaf", "overrun", "3"),
        ("block", "overrun_async", "0"),
    ],
)
def test_a_stuck_task_is_ended_with_its_process(how: str, name: str, threads: str) -> None:
    """What else was in that process goes on in the next one, as if it had not been begun, and the job is retried."""
    asynchronous = name == "overrun_async"
    others = [create("stand_async" if asynchronous or threads == "0" else "stand", "other")]
    arguments = ("--threads", threads) if threads != "0" else ()
    with worker(*QUICKLY, "--processes", "1", *arguments, "--timeout", "1000") as supervisor:
        told("started other 1")
        stuck = overrunning(how, f"{name}, retried")
        begun = int(told(f"started {how} 1"))
        assert children(supervisor.pid) == [begun]
        (other,) = others
        # The same number again: the attempt that was cut off does not count.
        assert int(told("started other 1")) == begun
        until(lambda: int(told("started other 1")) != begun, "the other job to be run anew")
        tell("go on other 1")
        until_states("COMPLETE", stuck, other)
        assert not is_there(begun)
        until(lambda: "SIGKILL" in supervisor.output(), "the supervisor to tell")
    assert outcomes(stuck) == [(1, "timed_out"), (2, "succeeded")]
    assert outcomes(other) == [(1, "succeeded")]
    assert "had to be killed" in stuck.attempts.first().error or how != "hold_the_interpreter"
    assert [line for line in runs(how) if line.startswith("start")] == [
        f"start {how} 1",
        f"start {how} 2",
    ]
    killed = Worker.objects.get(pid=begun)
    assert killed.stopped is not None
    assert str(stuck.pk) in killed.reason


def test_a_stuck_task_without_retries_fails_once() -> None:
    """Nobody was left to run its failure hook: whoever claims the job next does that."""
    job = overrunning("hold_the_interpreter")
    with worker(*QUICKLY, "--processes", "1", "--timeout", "1000"):
        until_states("FAILED", job)
    assert outcomes(job) == [(1, "timed_out"), (2, "failed")]
    assert runs("hold_the_interpreter") == [
        "start hold_the_interpreter 1",
        "failed hold_the_interpreter Exhausted",
    ]
