"""The watchdog beside a real process that hangs, is killed, is frozen or ends in order."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from django_dbq import engine
from django_dbq.models import Attempt, Job, Worker
from django_dbq.storage import Queues
from django_dbq.workers import watchdog
from django_dbq.workers.blackbox import Blackbox, now
from django_dbq.workers.watchdog import watched
from tests.process_jobs import journal, tell, told, until, write_down
from tests.processes import children, states, until_states
from tests.workers.scenarios import Process, playing

pytestmark = pytest.mark.django_db(transaction=True)

FOR_EVER = 1e9  # seconds


# -- scenarios: each is the whole life of a worker process --


@contextlib.contextmanager
def holding(*, hard_after: float = 1.0) -> Iterator[tuple[Blackbox, list[Job]]]:
    """A watched worker that holds all jobs there are, the first of them already past its timeout."""
    watchdog.HARD_AFTER, watchdog.PATIENCE, watchdog.TRY_EVERY = hard_after, 1.0, 0.05
    box = Blackbox()
    row = Worker(label="watched", hostname="here", pid=os.getpid(), started=timezone.now())
    row.timeout = FOR_EVER  # nobody but the watchdog notices anything
    with watched(box, "default"):
        engine.start_worker(row, "default")
        jobs = engine.claim(row, Queues(), 10, timezone.now(), "default")
        box.worker_id = row.pk
        for job in jobs[:1]:
            box.enter(job.pk, job.attempt, timezone.now(), now())
        connection.close()
        tell("holding", os.getpid())
        yield box, jobs


def hang_with_the_interpreter() -> None:
    """No other thread of the process can do anything any more."""
    ctypes.PyDLL(None).pause()


def hang() -> None:
    with holding():
        hang_with_the_interpreter()


def hang_with_a_lock() -> None:
    """The database cannot take what the watchdog has to write until the worker is dead."""
    with holding() as (_, jobs), transaction.atomic():
        Job.objects.filter(pk__in=[job.pk for job in jobs]).update(priority=1)
        hang_with_the_interpreter()


def hang_at_the_end() -> None:
    with holding() as (box, _):
        for entry in box.entries():
            box.leave(entry.slot)
        box.leave_by = now()
        hang_with_the_interpreter()


def hang_without_a_database() -> None:
    def out_of_reach(*arguments: Any) -> None:
        write_down("tried")
        raise OperationalError("no route to host")

    engine.record_timeouts = engine.release = engine.bury = out_of_reach
    hang()


def hang_and_hand_over_slowly() -> None:
    release = engine.release

    def slow(*arguments: Any) -> int:
        count = release(*arguments)
        tell("handed back")
        told("go on")
        return count

    engine.release = slow
    watchdog.FROZEN_FOR = FOR_EVER
    with holding():
        threading.Event().wait()  # other threads could go on


def wait_for_the_end() -> None:
    """Ignores what ends a process; the watchdog has to ignore it by itself."""
    numbers = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP
    with holding(hard_after=FOR_EVER):
        for number in numbers:
            signal.signal(number, lambda number, frame: write_down(signal.Signals(number).name))
        tell("deaf")
        while True:
            signal.pause()


def leave_a_child() -> None:
    """A process that a task has forked outlives its worker, and keeps the worker's pipes open."""
    with holding(hard_after=FOR_EVER):
        if not os.fork():
            told("the end")
            os._exit(0)
        tell("forked")
        signal.pause()


def unwind_late() -> None:
    """The task ends some time after its timeout, and later still after we were frozen."""
    with holding(hard_after=3.0) as (box, _):
        told("frozen")
        time.sleep(0.5)  # what an ordinary task may take to unwind
        box.leave(0)
        write_down("unwound")
        box.ended = True


def end_in_order() -> None:
    with holding(hard_after=FOR_EVER) as (box, _):
        (child,) = children(os.getpid())
        box.ended = True
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)
        raise AssertionError("the watchdog was not reaped")


def end_slowly() -> None:
    """A process may take its time when its worker has ended."""
    with holding() as (box, _):
        box.leave_by, box.ended = now(), True
        until(lambda: now() > box.leave_by + 2 * watchdog.HARD_AFTER)


def end_without_its_watchdog() -> None:
    with holding(hard_after=FOR_EVER) as (box, _):
        os.kill(children(os.getpid())[0], signal.SIGKILL)
        told("gone")
        box.ended = True


def end_with_an_error() -> None:
    with holding(hard_after=FOR_EVER):
        raise OperationalError("the database was out of reach at the end")


def live_on_after_an_error() -> None:
    with contextlib.suppress(ValueError), holding(hard_after=FOR_EVER):
        raise ValueError("caught by whoever has called the command")
    tell("living on")
    told("the end")


def die_before_there_is_a_row() -> None:
    engine.bury = lambda *arguments: write_down("buried")  # type: ignore[assignment, return-value]
    with watched(Blackbox(), "default"):
        os.kill(os.getpid(), signal.SIGKILL)


def raise_in_the_watchdog() -> None:
    """Whatever happens in the child, it never comes back into the caller's code."""
    parent = os.getpid()
    watchdog.Watchdog.run = lambda self: sys.exit(3)  # type: ignore[assignment, method-assign, return-value]
    try:
        with holding(hard_after=FOR_EVER) as (box, _):
            box.ended = True
    finally:
        assert os.getpid() == parent, write_down("came back")  # type: ignore[func-returns-value]
        write_down("ended")


def say_something() -> None:
    """Text that waits in a buffer is written once, by its own process; the fork is not worth a warning."""
    warnings.simplefilter("always")
    sys.stdout = open(1, "w", buffering=10_000, closefd=False)  # noqa: SIM115
    sys.stdout.write("before the fork\n")
    logging.getLogger("django_dbq").warning("logged before the fork")
    threading.Thread(target=told, args=["the end"], daemon=True).start()
    with holding(hard_after=FOR_EVER) as (box, _):
        sys.stdout.write("within\n")
        box.ended = True
    tell("the end")


def go_on_with_the_database() -> None:
    """Connections that were open before the fork do not reach the child, and are good afterwards."""
    run = watchdog.Watchdog.run

    def run_unconnected(self: watchdog.Watchdog) -> None:
        assert connection.connection is None
        write_down("not connected")
        run(self)

    watchdog.Watchdog.run = run_unconnected  # type: ignore[method-assign]
    Job.objects.count()
    with holding(hard_after=FOR_EVER) as (box, _):
        Job.objects.count()
        box.ended = True
    assert journal() == ["not connected"]


# -- and what comes of it --


@pytest.fixture
def job() -> Job:
    """The job that runs past its timeout."""
    return Job.objects.create(name="quick", priority=9)  # type: ignore[no-any-return]


@pytest.fixture
def others(job: Job) -> list[Job]:
    """What the same worker holds as well."""
    return [Job.objects.create(name="quick") for _ in range(3)]


def fate(job: Job) -> tuple[Any, ...]:
    row = Job.objects.get(pk=job.pk)
    outcomes = Attempt.objects.filter(job=job).values_list("number", "outcome")
    return row.state, row.attempt, row.failures, row.lost, row.worker_id, list(outcomes)


def until_frozen(process: Process) -> None:
    stat = Path(f"/proc/{process.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the stop")


TIMED_OUT = ("READY", 1, 1, 0, None, [(1, "timed_out")])
LOST = ("READY", 1, 0, 1, None, [(1, "lost")])
HANDED_BACK = ("NEW", 0, 0, 0, None, [])


def held_by(process: Process) -> tuple[Any, ...]:
    """The fate of a job that nobody has touched."""
    return ("PROCESSING", 1, 0, 0, process.row.pk, [])


def test_a_task_that_holds_the_interpreter_is_ended_with_its_process(
    job: Job, others: list[Job]
) -> None:
    with playing(hang) as process:
        assert process.wait() == -signal.SIGKILL
        # All of this was done before the kill: a container may end with its main process.
        assert list(Attempt.objects.values_list("job", "outcome")) == [(job.pk, "timed_out")]
        assert [fate(other) for other in others] == [HANDED_BACK] * 3
        process.until_nothing_is_left()
        assert fate(job) == TIMED_OUT
        assert str(job.pk) in process.row.reason
        assert process.row.stopped is not None
        assert f"ERROR Killing a worker: pid={process.pid} " in process.output()


def test_a_job_that_is_handed_back_does_not_go_on(job: Job, others: list[Job]) -> None:
    with playing(hang_and_hand_over_slowly) as process:
        told("handed back")
        until_frozen(process)
        tell("go on")
        assert process.wait() == -signal.SIGKILL
    assert fate(job) == TIMED_OUT
    assert [fate(other) for other in others] == [HANDED_BACK] * 3


def test_a_lock_of_the_worker_only_delays_what_is_recorded(job: Job, others: list[Job]) -> None:
    with playing(hang_with_a_lock) as process:
        assert process.wait() == -signal.SIGKILL
        process.until_nothing_is_left()
        assert fate(job) == TIMED_OUT
        assert [fate(other) for other in others] == [HANDED_BACK] * 3


def test_a_worker_that_has_to_be_gone_is_ended_and_has_lost_nothing(
    job: Job, others: list[Job]
) -> None:
    with playing(hang_at_the_end) as process:
        assert process.wait() == -signal.SIGKILL
        assert [fate(each) for each in (job, *others)] == [HANDED_BACK] * 4
        process.until_nothing_is_left()
        assert "still there" in process.row.reason
        assert process.row.stopped is not None


def test_without_a_database_the_worker_is_ended_all_the_same(job: Job, others: list[Job]) -> None:
    with playing(hang_without_a_database) as process:
        assert process.wait() == -signal.SIGKILL
        process.until_nothing_is_left()
        assert len(journal()) > 2, "one try is too few"
        assert "ERROR Leaving a killed worker's jobs to its lease" in process.output()
        assert [fate(each) for each in (job, *others)] == [held_by(process)] * 4


def test_a_killed_worker_is_rescued_at_once(job: Job, others: list[Job]) -> None:
    with playing(wait_for_the_end) as process:
        told("holding")
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.until_nothing_is_left()
        assert [fate(each) for each in (job, *others)] == [LOST] * 4
        assert process.row.reason.startswith("Declared dead. Its process is gone")


def test_signals_for_all_end_the_watchdog_only_with_its_worker(job: Job) -> None:
    names = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"]
    with playing(wait_for_the_end) as process:
        told("deaf")
        for name in names:
            os.killpg(process.pid, signal.Signals[name])
        until(lambda: sorted(journal()) == names, "the signals to arrive")
        assert len(process.alive()) == 2
        process.send(signal.SIGKILL)
        process.wait()
        process.until_nothing_is_left()
        assert fate(job) == LOST


def test_a_child_of_a_task_does_not_hide_that_the_worker_is_gone(job: Job) -> None:
    with playing(leave_a_child) as process:
        told("forked")
        process.send(signal.SIGKILL)
        process.wait()
        until_states("READY", job)
        tell("the end")
    assert fate(job) == LOST


def test_after_both_were_frozen_a_task_gets_its_time_to_unwind(job: Job) -> None:
    with playing(unwind_late) as process:
        told("holding")
        os.killpg(process.pid, signal.SIGSTOP)
        until_frozen(process)
        frozen = time.monotonic()
        until(lambda: time.monotonic() > frozen + 5, "the timeout to be long over")
        tell("frozen")
        os.killpg(process.pid, signal.SIGCONT)
        assert process.wait() == 0
        assert journal() == ["unwound"]
        assert fate(job) == held_by(process)


@pytest.mark.parametrize(
    "scenario", [end_in_order, end_slowly, raise_in_the_watchdog, go_on_with_the_database]
)
def test_in_order_the_watchdog_ends_and_writes_nothing(
    job: Job, scenario: Callable[[], None]
) -> None:
    with playing(scenario) as process:
        assert process.wait() == 0, process.output()
        assert not process.alive()
        assert fate(job) == held_by(process)
        assert "came back" not in journal()


def test_a_worker_does_not_need_its_watchdog(job: Job) -> None:
    with playing(end_without_its_watchdog) as process:
        told("holding")
        until(lambda: process.alive() == [process.pid], "the end of the watchdog")
        tell("gone")
        assert process.wait() == 0
        assert not process.alive()
        assert fate(job) == held_by(process)


def test_a_worker_that_fails_at_its_end_is_rescued_when_it_is_gone(job: Job) -> None:
    with playing(end_with_an_error) as process:
        assert process.wait() == 1
        process.until_nothing_is_left()
        assert fate(job) == LOST


def test_a_process_that_lives_on_is_not_rescued_before_its_end(job: Job) -> None:
    with playing(live_on_after_an_error) as process:
        told("living on")
        assert states(job) == ["PROCESSING"]
        assert len(process.alive()) == 2
        tell("the end")
        assert process.wait() == 0
        process.until_nothing_is_left()
        assert fate(job) == LOST


def test_without_a_row_there_is_nothing_to_rescue() -> None:
    with playing(die_before_there_is_a_row) as process:
        assert process.wait() == -signal.SIGKILL
        process.until_nothing_is_left()
    assert journal() == []


def test_nothing_is_said_twice(job: Job) -> None:
    with playing(say_something) as process:
        assert process.wait() == 0
        lines = process.output().splitlines()
    assert lines == ["WARNING logged before the fork", "before the fork", "within"]


def test_where_there_is_no_fork_there_is_no_watchdog(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(os, "fork")
    with caplog.at_level(logging.DEBUG, "django_dbq"), watched(Blackbox(), "default"):
        pass
    assert [record.message for record in caplog.records] == ["No watchdog: this system cannot fork"]
