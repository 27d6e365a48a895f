"""Stages of a shutdown: running tasks end, or are cut off when the grace is over; nothing of it counts as a failure."""

import signal
import time

import pytest

from django_dbq.models import Attempt, Job
from tests.process_jobs import journal, tell, told, until
from tests.processes import create, outcomes, states, until_states, worker

pytestmark = pytest.mark.django_db(transaction=True)

QUICKLY = ("--tick", "0.1", "--timeout", "1000")
# The name of the job, and what its worker is started with.
PLACES = {
    "main": ("stand", ()),
    "thread": ("stand", ("--threads", "2")),
    "coroutine": ("stand_async", ()),
}
IN_EACH = pytest.mark.parametrize(("name", "arguments"), PLACES.values(), ids=PLACES)


def assert_untouched(*jobs: Job) -> None:
    """These jobs are as they were before they were claimed."""
    found = Job.objects.filter(pk__in=[job.pk for job in jobs])
    assert set(found.values_list("state", "attempt", "worker", "failures", "lost")) == {
        ("NEW", 0, None, 0, 0)
    }
    assert not Attempt.objects.filter(job__in=jobs).exists()


@IN_EACH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_running_tasks_end_within_the_grace(
    name: str, arguments: tuple[str, ...], number: signal.Signals
) -> None:
    running = [create(name, str(n)) for n in range(2 if arguments else 1)]
    waiting = [create("stand, fail", f"waits {n}") for n in range(5)] if name == "stand" else []
    with worker(*QUICKLY, *arguments) as process:
        for job in running:
            told(f"started {job.workspace['key']} 1")
        process.send(number)
        until_states("STOPPING", *running)
        if waiting:
            until_states("NEW", *waiting)
            assert_untouched(*waiting)
        assert process.running
        for job in running:
            tell(f"go on {job.workspace['key']} 1")
        assert process.wait() == 0
        assert process.row.reason == "told to stop"
    assert set(states(*running)) == {"COMPLETE"}
    assert {outcome for job in running for outcome in outcomes(job)} == {(1, "succeeded")}


@IN_EACH
def test_what_outlasts_the_grace_is_handed_back(name: str, arguments: tuple[str, ...]) -> None:
    job = create(name, "job")
    with worker(*QUICKLY, "--grace", "0.3", *arguments) as process:
        told("started job 1")
        begun = time.monotonic()
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        assert 0.3 <= time.monotonic() - begun < 20
    heard = "CancelledError" if name == "stand_async" else "Interrupted"
    assert told("heard job 1") == heard
    assert_untouched(job)
    assert journal() == ["start job 1", "end job 1"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("stand_deaf", ("--threads", "2")),
        ("stand_deaf_async", ()),
    ],
    ids=["thread", "coroutine"],
)
def test_a_deaf_task_beside_the_main_thread_ends_with_the_process(
    name: str, arguments: tuple[str, ...]
) -> None:
    job = create(name, "job")
    with worker(*QUICKLY, "--grace", "0.3", *arguments) as process:
        told("started job 1")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert told("heard job 1")
    assert_untouched(job)


def test_a_deaf_task_in_the_main_thread_is_ended_by_the_watchdog() -> None:
    job = create("stand_deaf", "job")
    with worker(*QUICKLY, "--grace", "0.3") as process:
        told("started job 1")
        process.send(signal.SIGTERM)
        assert process.wait() == -signal.SIGKILL
        until(lambda: process.row.stopped, "the rescue")
    assert told("heard job 1") == "Interrupted"
    assert_untouched(job)


def test_a_task_that_swallows_its_interruption_and_returns_is_handed_back() -> None:
    job = create("swallows", "job")
    with worker(*QUICKLY, "--grace", "0.3") as process:
        told("started job 1")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert_untouched(job)


@IN_EACH
def test_no_grace_at_all(name: str, arguments: tuple[str, ...]) -> None:
    job = create(name, "job")
    with worker(*QUICKLY, "--grace", "0", *arguments) as process:
        told("started job 1")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert_untouched(job)


@IN_EACH
def test_a_second_signal_ends_at_once_and_the_watchdog_hands_back(
    name: str, arguments: tuple[str, ...]
) -> None:
    job = create(name, "job")
    with worker(*QUICKLY, *arguments) as process:
        told("started job 1")
        process.send(signal.SIGTERM)
        until_states("STOPPING", job)
        process.send(signal.SIGINT)
        assert process.wait() == -signal.SIGINT
        until_states("NEW", job)
    assert_untouched(job)


def test_the_outcomes_of_others_are_written_whatever_becomes_of_one() -> None:
    jobs = [create("stand", str(n)) for n in range(3)]
    with worker(*QUICKLY, "--grace", "5", "--threads", "3") as process:
        for number in range(3):
            told(f"started {number} 1")
        process.send(signal.SIGTERM)
        until_states("STOPPING", *jobs)
        tell("go on 0 1")
        tell("go on 1 1")
        assert process.wait() == 0
    assert set(states(*jobs[:2])) == {"COMPLETE"}
    assert_untouched(jobs[2])


def test_an_interrupted_atomic_step_leaves_nothing() -> None:
    job = create("atomic", "job")
    with worker(*QUICKLY, "--grace", "0.3") as process:
        told("started job 1")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    assert told("heard job 1") == "Interrupted"
    assert_untouched(job)
    assert not Job.objects.filter(queue_name="follow-on").exists()


def test_a_supervisor_passes_it_all_on() -> None:
    jobs = [create("stand", str(n)) for n in range(2)]
    with worker(*QUICKLY, "--processes", "2", "--grace", "5") as supervisor:
        for number in range(2):
            told(f"started {number} 1")
        supervisor.send(signal.SIGTERM)
        until_states("STOPPING", *jobs)
        tell("go on 0 1")
        assert supervisor.wait() == 0
    assert states(*jobs) == ["COMPLETE", "NEW"]
    assert_untouched(jobs[1])
