"""The queues that are compared, each run as processes on a database of its own."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from benchmarks.server import Server

HERE = Path(__file__).parent
LONGEST = 600  # seconds that a process may take; one that hangs is ended, and with it the benchmark
Facts = list[dict[str, float]]

# When the last of these jobs was finished (seconds since 1970), and how many are.
FINISHED = """
    SELECT extract(epoch FROM max(pg_xact_commit_timestamp(xmin)))::float, count(*) FROM {}
"""


@dataclass(frozen=True)
class Queue:
    name: str
    script: str
    finished: str  # the rows that a finish writes last, for one name of jobs
    # Of --jobs, to be drained at a time. A long backlog slows the slow ones further: they get less.
    share: float = 1.0
    environment: str = ""  # a requirement that needs an environment of its own

    def part(self, jobs: int) -> int:
        return int(jobs * self.share)

    def python(self) -> str:
        return isolated(self.environment) if self.environment else sys.executable


OURS = Queue("django-dbq", "ours", "django_dbq_job WHERE state = 'COMPLETE' AND name = %s")
DBQ33 = Queue(
    "django-db-queue 3.3, tight loop",
    "dbq33",
    OURS.finished,
    share=0.05,
    environment="django-db-queue==3.3.0",
)
PROCRASTINATE = Queue(
    "procrastinate 3.10",
    "procrastinate3",
    "procrastinate_jobs WHERE status = 'succeeded' AND task_name = %s",
    share=0.1,
)
PGQUEUER = Queue(
    "pgqueuer 1.6, batch 100",
    "pgqueuer1",
    "pgqueuer_log WHERE status = 'successful' AND entrypoint = %s",
)


@cache
def isolated(requirement: str) -> str:
    """Python of an environment that holds `requirement` with our Django and psycopg; made once."""
    same = [requirement, f"Django=={version('Django')}", f"psycopg[binary]=={version('psycopg')}"]
    name = "-".join([*same[:2], f"python{platform.python_version()}"]).replace("==", "-")
    folder = HERE / ".cache" / name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making an environment for {requirement} …", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *same], check=True)
        (folder / "complete").touch()
    return str(python)


@dataclass
class Stand:
    """One queue on one database."""

    server: Server
    queue: Queue
    database: str
    folder: Path

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @contextmanager
    def process(self, verb: str, *arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
        """A process of the queue's script; that it failed ends the benchmark, with its output."""
        script = HERE / "peers" / f"{self.queue.script}.py"
        # Not the root of the repository for a queue that brings a `django_dbq` of its own.
        paths = [HERE] if self.queue.environment else [HERE, HERE.parent]
        variables = {
            "BENCH_REPORT": str(self.reports),
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        told = self.folder / f"{verb}.output"
        with told.open("wb") as output:
            process = subprocess.Popen(
                [self.queue.python(), str(script), verb, *map(str, arguments)],
                env=os.environ | self.server.environment(self.database) | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            try:
                failed = process.wait(LONGEST)
            except subprocess.TimeoutExpired:
                process.kill()
                failed = process.wait()
            if failed:
                text = told.read_text(errors="replace")
                raise SystemExit(f"{self.queue.name}: {verb} {arguments} failed ({failed})\n{text}")

    def facts(self) -> Facts:
        """What the processes on this stand have reported so far."""
        if not self.reports.exists():
            return []
        return [json.loads(line) for line in self.reports.read_text().splitlines()]

    def do(self, verb: str, *arguments: object) -> Facts:
        """Run a verb to its end; what it reported."""
        before = len(self.facts())
        with self.process(verb, *arguments):
            pass
        return self.facts()[before:]

    def drain(self, name: str, jobs: int, *arguments: object) -> float:
        """Jobs per second, from the start of the first task to the commit of the last finish.

        Neither the interpreter's start nor the worker's shutdown is in it. The first is the clock
        of the worker's process, the second the server's, and both run on one machine.
        """
        facts = self.do("drain", *arguments)
        rows = FINISHED.format(self.queue.finished)
        finished, count = self.server.rows(self.database, rows, name)[0]
        if count != jobs:
            raise SystemExit(f"{self.queue.name}: {count} of {jobs} jobs were finished")
        return jobs / (float(finished) - facts[0]["begun"])

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A worker that waits for work, until the block ends."""
        with self.process("serve") as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGTERM)

    def latencies(self, count: int) -> list[float]:
        """Send stamped jobs to the worker that serves; seconds that each took to start."""
        before = len(self.facts())
        self.do("send", count)
        deadline = time.monotonic() + 60
        while len(facts := self.facts()[before:]) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.queue.name}: {len(facts)} of {count} stamps arrived")
            time.sleep(0.05)
        return [each["latency"] for each in facts]
