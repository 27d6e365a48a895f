"""`manage.py demo`: a worker process, real jobs on real data, and what became of them."""

import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, CommandError, call_command
from django.db import connection
from django.utils import timezone

from airports.models import JournalEntry
from airports.progress import FINISHED, Progress, outcome, title
from airports.reports import PUBLISHED, large_countries
from airports.views import APPROVAL
from django_dbq.models import Job

NOWHERE = "ZZ"  # no country's code: its report fails, as intended
NOWHERE_AHEAD = timedelta(seconds=5)
LOOK_EVERY = 0.2  # seconds
QUEUES = ["--queue", "default", "--queue", "reports"]
WORKER = ["worker", *QUEUES, "--processes", "2", "--reload", "never"]
STOP_WITHIN = 40  # seconds; a worker lets its running tasks go on for up to 30
FIRST_PORT = 8000

Process = subprocess.Popen[bytes]


class Command(BaseCommand):
    help = "Runs a worker, feeds it the airports of the world and tells what became of each job."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--serve", action="store_true", help="leave worker and admin up until Ctrl-C"
        )
        parser.add_argument(
            "--timeout", type=float, default=300, help="seconds that the jobs may take (300)"
        )

    def handle(self, *, serve: bool, timeout: float, **options: Any) -> None:
        # Also when killed or when its terminal closes, this process ends the ones that it has started.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        # The worker's log has it all; here it would cut into the progress.
        logging.disable(logging.INFO)
        began = time.monotonic()
        try:
            self._say(f"Migrating the database ({connection.display_name}) ...")
            call_command("migrate", verbosity=0)
            with self._child("worker", *WORKER) as worker:
                jobs = self._run_jobs(worker, timeout)
                self._tell(jobs)
                self._check(jobs)
                if serve:
                    self._serve(worker)
            self._check_stopped(worker)
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted; the worker has been stopped.", returncode=130
            ) from None
        self._say(
            f"\nThe worker has stopped in good order. All in {time.monotonic() - began:.0f} s."
        )

    def _run_jobs(self, worker: Process, timeout: float) -> list[Job]:
        """Create the jobs of this run, and watch until all of them are finished; approve what waits for that."""
        run = uuid.uuid4().hex[:8]
        self._say("Creating jobs; two worker processes serve the queues default and reports.\n")
        imported = Job.objects.create(name="import_airports", workspace={"run": run})
        Job.objects.create(
            name="country_report",
            workspace={"run": run, "country": NOWHERE},
            run_after=timezone.now() + NOWHERE_AHEAD,
        )
        Job.objects.create(name="digest", workspace={"run": run}, depends_on=[imported])
        progress = Progress(sys.stdout)
        deadline = time.monotonic() + timeout
        approved = False
        while True:
            jobs = list(
                Job.objects.filter(workspace__run=run, parent=None)
                .order_by("created")
                .prefetch_related("attempts")
            )
            progress.show(jobs)
            if all(job.state in FINISHED for job in jobs):
                return jobs
            if not approved and (jobs[0].state, jobs[0].next_task) == ("WAITING", APPROVAL):
                self._approve(jobs[0], progress)
                approved = True
            if worker.poll() is not None:
                raise CommandError(
                    f"The worker ended with {worker.returncode}:\n{_log_end('worker')}"
                )
            if time.monotonic() > deadline:
                raise CommandError(f"Not finished after {timeout:.0f} s.\n{_log_end('worker')}")
            time.sleep(LOOK_EVERY)

    def _approve(self, job: Job, progress: Progress) -> None:
        """Do what a person would do who has looked at the draft."""
        progress.say(f"\n  The draft is there: {settings.VAR / job.workspace['draft']}")
        progress.say("  Why does the job not go on?\n")
        self._type(progress, "jobs", "explain", str(job.pk))
        progress.say("\n  The demo has looked at the draft, and likes it:\n")
        self._type(
            progress, "jobs", "send", str(job.pk), "approval", json.dumps({"by": "the demo"})
        )
        progress.say("")

    def _type(self, progress: Progress, *command: str) -> None:
        """Run a command of manage.py as a person would, and show it with what it prints."""
        progress.say(f"    $ python manage.py {shlex.join(command)}")
        done = subprocess.run(
            [sys.executable, settings.BASE_DIR / "manage.py", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CommandError(f"It ended with {done.returncode}:\n{done.stderr}")
        for text in done.stdout.splitlines():
            progress.say(f"    {text}")

    def _tell(self, jobs: list[Job]) -> None:
        self._say("\nWhat became of them:")
        for job in jobs:
            style = self.style.SUCCESS if job.state == Job.STATES.COMPLETE else self.style.ERROR
            intended = " (as intended)" if job.state == _expected(job) == Job.STATES.FAILED else ""
            self._say(f"\n  {title(job)}: {style(job.state)}{intended}")
            for text in outcome(job):
                self._say(f"    {text}")
            for entry in JournalEntry.objects.filter(job_id=job.id, event="failed"):
                self._say(f"    the failure hook wrote in the journal: {entry.text}")
        done = next(job.workspace for job in jobs if job.name == "import_airports")
        self._say("")
        for kind in ("report", "picture"):
            if kind in done:
                self._say(f"The {kind}: {settings.VAR / done[kind]}")

    def _check(self, jobs: list[Job]) -> None:
        """Raise if anything went otherwise than it should."""
        wrong = [
            f"{title(job)} is {job.state}, not {_expected(job)}"
            for job in jobs
            if job.state != _expected(job)
        ]
        written = {path.name for path in PUBLISHED.glob("country-*.html")}
        if missing := {page for job in jobs for page in job.workspace.get("pages", ())} - written:
            wrong.append(f"pages are missing: {missing}")
        pages, countries = len(jobs[0].workspace.get("pages", ())), large_countries().count()
        if pages != countries:
            wrong.append(f"{pages} countries have a page, not {countries}")
        if not JournalEntry.objects.filter(job_id__in=[job.id for job in jobs], event="failed"):
            wrong.append("the failure hook left no trace")
        wrong += [
            f"{title(job)} left no {kind} at {job.workspace[kind]}"
            for job in jobs
            for kind in ("report", "picture")
            if kind in job.workspace and not (settings.VAR / job.workspace[kind]).is_file()
        ]
        if wrong:
            raise CommandError("; ".join(wrong) + f".\n{_log_end('worker')}")

    def _serve(self, worker: Process) -> None:
        """Run the site beside the worker until Ctrl-C."""
        users = get_user_model().objects
        if not users.filter(username="demo").exists():
            users.create_superuser("demo", "demo@example.org", "demo")
        port = _free_port()
        with self._child(
            "web", "runserver", "--noreload", f"127.0.0.1:{port}", stop=signal.SIGINT
        ) as web:
            while not _answers(port):
                if web.poll() is not None:
                    raise CommandError(f"The site did not start:\n{_log_end('web')}")
                time.sleep(LOOK_EVERY)
            self._say(f"\nThe site:  http://127.0.0.1:{port}/")
            self._say(f"The admin: http://127.0.0.1:{port}/admin/  (user demo, password demo)")
            self._say("Ctrl-C ends both.")
            try:
                while worker.poll() is None and web.poll() is None:
                    time.sleep(LOOK_EVERY)
            except KeyboardInterrupt:
                return
        name, child = ("worker", worker) if web.returncode == 0 else ("web", web)
        raise CommandError(f"The {name} process ended with {child.returncode}:\n{_log_end(name)}")

    def _check_stopped(self, worker: Process) -> None:
        if worker.returncode:
            raise CommandError(
                f"The worker was told to stop and ended with {worker.returncode}:\n{_log_end('worker')}"
            )

    @contextmanager
    def _child(
        self, name: str, *command: str, stop: signal.Signals = signal.SIGTERM
    ) -> Iterator[Process]:
        """A manage.py process of its own, stopped and waited for at the end, whatever happens; it logs to `var/`."""
        with (settings.VAR / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, settings.BASE_DIR / "manage.py", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its children
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(stop)
            try:
                process.wait(STOP_WITHIN)
            finally:
                # Should it hang, should it have been killed and left a child, at a second Ctrl-C: no process stays.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _say(self, text: str) -> None:
        self.stdout.write(text + "\n", ending="")
        self.stdout.flush()


def _expected(job: Job) -> str:
    failing = job.workspace.get("country") == NOWHERE
    return Job.STATES.FAILED if failing else Job.STATES.COMPLETE


def _log_end(name: str, lines: int = 15) -> str:
    path = settings.VAR / f"{name}.log"
    end = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join([f"The end of {path}:", *end])


def _free_port() -> int:
    return next(port for port in range(FIRST_PORT, 65536) if not _answers(port))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
