"""One supervisor and its processes: who is replaced and when, what signals do to all, and that nobody is left."""

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import connection

from django_dbq.wakeups import Bell
from django_dbq.workers import supervisor
from django_dbq.workers.supervisor import orphaned, run_processes
from tests.process_jobs import journal, tell, told, until, write_down
from tests.processes import children
from tests.workers.scenarios import Process, playing

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
GROWN_UP = 2.0  # seconds: longer than it takes a busy machine to kill a worker that is up


# -- scenarios: each is the whole life of a supervisor --


class Waiter:
    """What the supervisor knows of a worker, and nothing more: it tells of each stage, and waits to be let go on."""

    def __init__(self, finishing: bool = False) -> None:
        self.finishing = finishing
        self.stopping = False
        self.bell = Bell()

    def stop(self) -> None:
        write_down(f"told {os.getpid()}")
        self.stopping = True
        self.bell.ring()

    def run(self) -> None:
        write_down(f"up {os.getpid()}")
        while not self.stopping:
            self.bell.wait(None)
        write_down(f"stopping {os.getpid()}")
        if self.finishing:
            told("go on")
        write_down(f"done {os.getpid()}")


def wait(finishing: bool = False) -> None:
    """Be a worker that waits for its end."""
    supervisor.run(Waiter(finishing))  # type: ignore[arg-type]


def times(what: str) -> list[int]:
    """The processes that have written this down, in order."""
    return [int(line.split()[1]) for line in journal() if line.split()[0] == what]


def play(
    work: Callable[[], None],
    count: int = 2,
    ends: bool = False,
    backoff: tuple[float, float] = (0.05, 60.0),
    grown_up: float = 60.0,
) -> None:
    supervisor.BACKOFF, supervisor.GROWN_UP = backoff, grown_up
    sys.exit(run_processes(count, work, ends))


def two() -> None:
    play(wait)


def two_that_finish() -> None:
    play(functools.partial(wait, finishing=True))


def two_that_do_not_listen() -> None:
    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write_down(f"up {os.getpid()}")
        threading.Event().wait()

    play(work)


def one_with_long_pauses() -> None:
    play(wait, count=1, backoff=(1000, 1000))


def one_that_stays_young() -> None:
    play(wait, count=1, backoff=(0.05, 0.2))


def one_that_grows_up() -> None:
    play(wait, count=1, backoff=(0.05, 0.2), grown_up=GROWN_UP)


def returning() -> None:
    """The first three return at once, as recycled workers do."""

    def work() -> None:
        write_down(f"began {os.getpid()}")
        if len(times("began")) > 3:
            wait()

    play(work, count=1, backoff=(1000, 1000))


def ending(*ends: str) -> None:
    """Each process takes the next of these ends; the last one is for all that come after."""

    def work() -> None:
        write_down(f"began {os.getpid()}")
        number = times("began").index(os.getpid())
        end = ends[min(number, len(ends) - 1)]
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif end == "fail":
            raise ValueError("a mistake in the code")
        elif end == "refuse":
            raise CommandError("a mistake in the arguments", returncode=4)
        elif end == "exit":
            sys.exit("a mistake in the settings")

    play(work, count=1, ends=True)


def signalled_at_birth() -> None:
    """A signal that comes before there is a worker."""

    def work() -> None:
        write_down(f"up {os.getpid()}")
        threading.Event().wait()

    play(work)


def orphans_without_help_of_the_kernel() -> None:
    """As on a system that does not signal the children of a process that has ended."""

    def work() -> None:
        write_down(f"up {os.getpid()}")
        told("killed")
        until(orphaned, "the end of the supervisor to be noticed")
        write_down(f"done {os.getpid()}")

    supervisor._end_with_parent = lambda parent: None
    play(work)


def without_memory_at_first() -> None:
    fork, failures = supervisor.fork, iter(range(2))

    def fail_twice() -> int:
        if next(failures, None) is not None:
            raise OSError("Cannot allocate memory")
        return fork()

    supervisor.fork = fail_twice
    play(wait, count=1)


def with_things_to_do_after() -> None:
    """What the caller does at its end, it does once; what waits in a buffer is written once."""
    sys.stdout = open(1, "w", buffering=10_000, closefd=False)  # noqa: SIM115
    sys.stdout.write("said before\n")
    atexit.register(write_down, "atexit 0")

    def work() -> None:
        sys.stdout.write("said within\n")
        wait()

    try:
        play(work)
    finally:
        write_down(f"finally {os.getpid()}")


def with_handlers_of_the_caller() -> None:
    def work() -> None:
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        wait()

    for number in (*SIGNALS, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    assert run_processes(2, work) == 0
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_IGN}
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not orphaned()


def with_a_database() -> None:
    """The processes use connections of their own, whatever the parent had open."""

    def ask() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return int(cursor.fetchone()[0])

    def work() -> None:
        assert connection.connection is None
        write_down(f"asked {ask()}")
        wait()

    ask()
    with contextlib.suppress(SystemExit):
        play(work)
    ask()


def leave_orphans_to_process_1() -> None:
    """To be run as process 1: a worker's child outlives the worker."""

    def work() -> None:
        if not times("orphan"):
            if not os.fork():
                write_down(f"orphan {os.getpid()}")
                told("go on")
                os._exit(0)
            until(lambda: times("orphan"))
            os.kill(os.getpid(), signal.SIGKILL)
        wait()

    assert os.getpid() == 1
    play(work, count=1)


def alone_with_a_forked_child() -> None:
    """A worker without supervisor; its task forks, and ends what it has forked."""

    class Forking(Waiter):
        def run(self) -> None:
            child = os.fork()
            if not child:
                tell("forked")
                threading.Event().wait()
            told("forked")  # Python forgets signals that come in the middle of a fork
            os.kill(child, signal.SIGTERM)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
            assert not self.stopping
            super().run()

    supervisor.run(Forking())  # type: ignore[arg-type]


def alone_and_stopping_by_itself() -> None:
    waiter = Waiter(finishing=True)
    waiter.stop()
    supervisor.run(waiter)  # type: ignore[arg-type]


# -- helpers of the tests --


@contextlib.contextmanager
def supervised(
    scenario: Callable[..., None], *arguments: Any
) -> Iterator[tuple[Process, list[int]]]:
    """A supervisor with two workers that are up."""
    with playing(scenario, *arguments) as process:
        until(lambda: len(times("up")) == 2, "two workers")
        yield process, times("up")


def errors(process: Process) -> list[str]:
    return [line for line in process.output().splitlines() if line.startswith("ERROR")]


# -- signals --


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_all_in_order(number: signal.Signals) -> None:
    with supervised(two_that_finish) as (process, pids):
        process.send(number)
        until(lambda: sorted(times("stopping")) == sorted(pids), "both to hear of it")
        assert process.running
        tell("go on")
        assert process.wait() == 0
        assert not process.alive()
        assert sorted(times("done")) == sorted(pids)
        assert not errors(process)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_all_get_is_one_signal(number: signal.Signals) -> None:
    """Ctrl-C reaches the supervisor, who passes it on, and the workers themselves; so do the signals of systemd."""
    with supervised(two_that_finish) as (process, pids):
        os.killpg(process.pid, number)
        until(lambda: sorted(times("stopping")) == sorted(pids), "both to hear of it")
        if number != signal.SIGTERM:  # else the two may become one on their way
            until(lambda: len(times("told")) == 4, "both to hear of it twice")
        tell("go on")
        assert process.wait() == 0
        assert sorted(times("done")) == sorted(pids)


def test_a_signal_that_the_workers_get_first_is_one_signal() -> None:
    with supervised(two_that_finish) as (process, pids):
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        until(lambda: sorted(times("stopping")) == sorted(pids), "both to hear of it")
        process.send(signal.SIGTERM)
        until(lambda: len(times("told")) == 4, "the supervisor to pass it on")
        tell("go on")
        assert process.wait() == 0
        assert sorted(times("done")) == sorted(pids)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_second_signal_ends_all_at_once(
    send: Callable[[int, int], None], number: signal.Signals
) -> None:
    with supervised(two_that_finish) as (process, pids):
        send(process.pid, number)
        until(lambda: "Told to stop: signals=1" in process.output(), "the supervisor to hear of it")
        until(lambda: sorted(times("stopping")) == sorted(pids), "both to hear of it")
        send(process.pid, number)
        assert process.wait() in {128 + number, 128 + signal.SIGTERM}
        assert not process.alive()
        assert times("done") == []


def test_a_worker_that_is_told_alone_may_be_told_twice() -> None:
    with supervised(two_that_finish) as (process, pids):
        os.kill(pids[0], signal.SIGTERM)
        until(lambda: times("stopping") == pids[:1], "the first to hear of it")
        os.kill(pids[0], signal.SIGTERM)
        until(lambda: len(times("up")) == 3, "its replacement")
        tell("go on")
        process.stop()
    assert f"pid={pids[0]} by=SIGTERM" in errors(process)[0]


def test_a_third_signal_kills() -> None:
    with supervised(two_that_do_not_listen) as (process, _):
        for number in SIGNALS:
            assert process.running
            process.send(number)
        assert process.wait() == 128 + signal.SIGKILL


def test_a_signal_before_there_is_a_worker_ends_in_order() -> None:
    with supervised(signalled_at_birth) as (process, _):
        process.send(signal.SIGTERM)
        assert process.wait() == 0
        assert not errors(process)


def test_a_signal_while_all_are_dead_ends_at_once() -> None:
    with playing(one_with_long_pauses) as process:
        until(lambda: times("up"))
        os.kill(times("up")[0], signal.SIGKILL)
        until(lambda: errors(process), "the death to be noticed")
        process.send(signal.SIGTERM)
        assert process.wait() == 0


# -- who is replaced, and when --


def test_who_is_killed_is_replaced_after_a_pause_that_grows() -> None:
    with playing(one_that_stays_young) as process:
        for count in range(1, 5):
            until(lambda count=count: len(times("up")) == count, "the next worker")
            os.kill(times("up")[-1], signal.SIGKILL)
        until(lambda: len(times("up")) == 5, "the last worker")
        said = errors(process)
        assert len(said) == 4
        for pid, line, pause in zip(times("up"), said, (0.05, 0.1, 0.2, 0.2), strict=False):
            assert f"Worker process died: pid={pid} by=SIGKILL after=" in line
            assert line.endswith(f"the next one starts in {pause:g} s")
        process.stop()


def test_who_has_lived_long_is_replaced_soon() -> None:
    with playing(one_that_grows_up) as process:
        for count in range(1, 4):
            until(lambda count=count: len(times("up")) == count, "the next worker")
            if count == 3:
                seen = time.monotonic()
                until(lambda seen=seen: time.monotonic() > seen + GROWN_UP, "it to grow up")
            os.kill(times("up")[-1], signal.SIGKILL)
        until(lambda: len(errors(process)) == 3)
        pauses = [line.rpartition(" in ")[2] for line in errors(process)]
        assert pauses == ["0.05 s", "0.1 s", "0.05 s"]
        process.stop()


def test_who_returns_is_replaced_at_once() -> None:
    with playing(returning) as process:
        until(lambda: times("up"), "the fourth worker")
        assert len(set(times("began"))) == 4
        assert not errors(process)
        process.stop()


def test_the_others_go_on_meanwhile() -> None:
    with supervised(two) as (process, pids):
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: len(times("up")) == 3, "the replacement")
        assert times("stopping") == []
        process.stop()
        assert sorted(times("done")) == sorted(times("up")[1:])


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    with playing(without_memory_at_first) as process:
        until(lambda: times("up"), "a worker")
        said = "Worker process not started: error=Cannot allocate memory, the next one starts in"
        assert errors(process) == [f"ERROR {said} 0.05 s", f"ERROR {said} 0.1 s"]
        process.stop()


# -- workers that end by themselves --


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (["return"], 0, ""),
        (["kill", "kill", "return"], 0, "by=SIGKILL"),
        (["fail"], 1, "ValueError: a mistake in the code"),
        (["refuse"], 4, "CommandError: a mistake in the arguments"),
        (["exit"], 1, "SystemExit: a mistake in the settings"),
        (["kill", "fail"], 1, "Traceback"),
    ],
)
def test_workers_that_end_by_themselves(ends: list[str], code: int, said: str) -> None:
    with playing(ending, *ends) as process:
        assert process.wait() == code
        assert len(times("began")) == len(ends)
        assert said in process.output()


def test_the_worst_code_is_the_supervisors() -> None:
    with supervised(two_that_finish) as (process, pids):
        process.send(signal.SIGTERM)
        until(lambda: sorted(times("stopping")) == sorted(pids), "both to hear of it")
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: errors(process), "its death to be noticed")
        tell("go on")
        assert process.wait() == 128 + signal.SIGKILL
        assert times("done") == pids[1:]
        assert errors(process)[0].endswith("not replaced")


# -- nobody is left behind, and nobody does the other's work --


def test_when_the_supervisor_is_killed_its_workers_end_in_order() -> None:
    with supervised(two_that_finish) as (process, pids):
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        until(lambda: sorted(times("stopping")) == sorted(pids), "both to notice")
        tell("go on")
        process.until_nothing_is_left()
        assert sorted(times("done")) == sorted(pids)


def test_workers_can_see_that_their_supervisor_is_gone() -> None:
    with supervised(orphans_without_help_of_the_kernel) as (process, pids):
        process.send(signal.SIGKILL)
        process.wait()
        tell("killed")
        process.until_nothing_is_left()
        assert sorted(times("done")) == sorted(pids)


def test_a_dead_worker_is_no_zombie() -> None:
    with playing(one_with_long_pauses) as process:
        until(lambda: times("up"))
        os.kill(times("up")[0], signal.SIGKILL)
        until(lambda: not children(process.pid), "its end")
        process.stop()


def test_process_1_reaps_what_it_inherits(program: Callable[[str], str]) -> None:
    within = [program("unshare"), "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    with playing(leave_orphans_to_process_1, within=within) as process:
        until(lambda: times("up"), "the second worker")
        (supervisor,) = children(process.pid)
        assert len(children(supervisor)) == 2
        tell("go on")
        until(lambda: len(children(supervisor)) == 1, "the end of the orphan")
        os.kill(supervisor, signal.SIGTERM)
        assert process.wait() == 0


def test_what_the_caller_does_is_done_once() -> None:
    with supervised(with_things_to_do_after) as (process, _):
        process.stop()
        assert times("finally") == [process.pid]
        assert times("atexit") == [0]
        said = [line for line in process.output().splitlines() if line.startswith("said")]
        assert sorted(said) == ["said before", "said within", "said within"]


def test_handlers_are_put_back() -> None:
    with supervised(with_handlers_of_the_caller) as (process, _):
        process.stop()


@pytest.mark.django_db(transaction=True)
def test_each_process_has_its_own_database_connection() -> None:
    with supervised(with_a_database) as (process, _):
        assert times("asked") == [1, 1]
        process.stop()


# -- one process without a supervisor --


def test_what_a_task_has_forked_can_be_ended() -> None:
    with playing(alone_with_a_forked_child) as process:
        until(lambda: times("up"))
        process.stop()


def test_the_first_signal_never_kills_a_worker_that_stops_by_itself() -> None:
    with playing(alone_and_stopping_by_itself) as process:
        until(lambda: times("stopping"))
        process.send(signal.SIGTERM)
        until(lambda: len(times("told")) == 2, "the signal")
        tell("go on")
        assert process.wait() == 0
        assert times("done") == [process.pid]
