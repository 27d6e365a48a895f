"""Real worker processes against the test's own database, and the waiting for what they do."""

import contextlib
import json
import os
import signal
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
        """Its row in the database."""
        return until(lambda: Worker.objects.filter(pid=self.pid).first(), "the worker's row")

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

    def stop(self) -> None:
        """End it in good order."""
        self.send(signal.SIGTERM)
        assert self.wait() == 0, self.output()

    def alive(self) -> list[int]:
        """The process ids of what is still there of it and its children: everything in its session."""
        found = []
        for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self.pid:
                    found.append(pid)
        return found


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
        assert not process.alive(), "the worker has left a process behind"
    finally:
        for pid in process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.process.wait()
        print(f"-- output of worker {process.pid} --\n{process.output()}")  # noqa: T201  # shown by a failing test


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
