"""Real worker processes against the test's own database, and the waiting for what they do."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from django.db import connection

from django_dbq.models import Job, Worker

from .process_jobs import folder, until

ROOT = Path(__file__).resolve().parent.parent


class WorkerProcess:
    """One ``manage.py worker`` in a session of its own; its output goes to a file."""

    def __init__(
        self, *arguments: str, environment: Mapping[str, str], database: dict[str, Any]
    ) -> None:
        self.log = folder() / f"log {len(list(folder().glob('log *')))}"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "django", "worker", *arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.process_settings",
                    "PYTHONPATH": os.pathsep.join([str(folder()), str(ROOT)]),
                    "PYTHONUNBUFFERED": "1",
                    "TEST_DATABASE": json.dumps(database, default=str),
                    **environment,
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def row(self) -> Worker:
        """Its row in the database: the latest, if it has had to begin anew."""
        return until(lambda: Worker.objects.filter(pid=self.pid).last(), "the worker's row")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def output(self) -> str:
        return self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        """Wait for its end; returns the exit code (negative: the signal that ended it)."""
        return self.process.wait(seconds)

    def until_started(self) -> None:
        """Wait until it takes signals; before, Python itself would."""
        until(lambda: "Worker started" in self.output() or not self.running, "its start")

    def stop(self) -> None:
        """End it in good order."""
        self.until_started()
        self.send(signal.SIGTERM)
        assert self.wait() == 0, self.output()

    # -- doing it harm --

    def kill(self) -> None:
        """End it without any warning; its watchdog stays."""
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def kill_child(self, pid: int) -> None:
        """End one process of a supervisor's in the same way."""
        assert pid in children(self.pid)
        os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """The same with its watchdog, as when the power fails: nobody is left who knows of its end."""
        for pid in children(self.pid):
            os.kill(pid, signal.SIGKILL)
        self.kill()

    def freeze(self, locking: bool = False) -> None:
        """Stop it and its watchdog in the middle of whatever they do.

        Args:
            locking: also while they hold the lock of an SQLite file; nobody can write then before they are thawed.
        """
        while True:
            for pid in (pids := self.alive()):
                os.kill(pid, signal.SIGSTOP)
            until(lambda pids=pids: all(status(pid) == "T" for pid in pids), "frozen processes")
            if locking or connection.vendor != "sqlite" or not is_locked():
                return
            self.thaw()

    def thaw(self) -> None:
        for pid in self.alive():
            os.kill(pid, signal.SIGCONT)

    def alive(self) -> list[int]:
        """The process ids of what still lives of it and its children: everything in its session."""
        found = []
        for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self.pid and is_there(pid):
                    found.append(pid)
        return found


def is_locked() -> bool:
    """Whether somebody is just writing to the SQLite file."""
    database = sqlite3.connect(connection.settings_dict["NAME"], timeout=0, isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    finally:
        database.close()
    return False


def children(pid: int) -> list[int]:
    """The processes that the main thread of ``pid`` has started: the watchdog of a worker, a supervisor's workers."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status(pid: int) -> str:
    """The kernel's letter for what a process is doing; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_there(pid: int) -> bool:
    """Whether this process lives; a dead one that nobody has reaped yet does not."""
    return status(pid) not in ("", "Z", "X")


@contextlib.contextmanager
def worker(
    *arguments: str,
    dbq: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    **database: Any,
) -> Iterator[WorkerProcess]:
    """A worker process for the time of the block; nothing of it may be left afterwards.

    Args:
        arguments: for ``manage.py worker``.
        dbq: its setting DBQ.
        environment: more environment variables.
        database: keys of its DATABASES["default"] that differ from the test's.
    """
    settings = connection.settings_dict
    ours = {key: settings[key] for key in ("NAME", "HOST", "PORT", "USER", "PASSWORD", "OPTIONS")}
    process = WorkerProcess(
        *arguments,
        environment={"TEST_DBQ": json.dumps(dict(dbq or {})), **(environment or {})},
        database={**ours, **database},
    )
    try:
        yield process
        if process.running:
            process.stop()
        if process.wait() == 0:
            assert not process.alive(), "the worker has left a process behind"
        # One that was killed has left its watchdog, which still has something to do.
        until(lambda: not process.alive(), "the end of the watchdog")
    finally:
        for pid in process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.process.wait()
        print(f"-- output of worker {process.pid} --\n{process.output()}")  # noqa: T201  # shown by a failing test


def create(
    name: str, key: str = "", workspace: Mapping[str, Any] | None = None, **fields: Any
) -> Job:
    """A job whose tasks are told apart by ``key``."""
    job: Job = Job.objects.create(name=name, workspace={"key": key, **(workspace or {})}, **fields)
    return job


def outcomes(job: Job) -> list[tuple[int, str]]:
    """The attempts of a job so far: number and outcome."""
    return list(job.attempts.order_by("pk").values_list("number", "outcome"))


def states(*jobs: Job) -> list[str]:
    """The states of these jobs as they are in the database now."""
    found = dict(Job.objects.filter(pk__in=[job.pk for job in jobs]).values_list("pk", "state"))
    return [found[job.pk] for job in jobs]


def until_states(state: str, *jobs: Job) -> None:
    """Wait until all of these jobs are in this state."""
    until(lambda: set(states(*jobs)) == {state}, f"all jobs to be {state}")


def kill_session(number: int) -> None:
    """End a database connection from the server's side, in the middle of whatever it does."""
    kill = {"postgresql": "SELECT pg_terminate_backend(%s, 10000)", "mysql": "KILL %s"}
    with connection.cursor() as cursor:
        cursor.execute(kill[connection.vendor], [number])


def until_idle(number: int) -> None:
    """Wait until nothing was asked in this database connection for a while: its worker waits for something to do."""
    asked = {
        "postgresql": "SELECT clock_timestamp() - state_change > interval '0.3 s'"
        " FROM pg_stat_activity WHERE pid = %s",
        "mysql": "SELECT time >= 1 FROM information_schema.processlist WHERE id = %s",
    }[connection.vendor]

    def idle() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(asked, [number])
            return bool(cursor.fetchone()[0])

    until(idle, "an idle worker")
