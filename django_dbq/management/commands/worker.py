"""``manage.py worker``: run jobs until told to stop."""

import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import router
from django.utils import autoreload

from ... import conf
from ...models import Job
from ...options import COUNT, LEASE, LIMIT, QUEUE, SECONDS, TIMEOUT
from ...storage import Queues, storage_for
from ...workers import memory, supervisor
from ...workers.blackbox import Blackbox
from ...workers.watchdog import watched
from ...workers.worker import GRACE, Worker
from ..arguments import MISUSED, given

# Flags that are arguments of `Worker` by the same name.
AS_GIVEN = (
    "tick",
    "threads",
    "max_jobs",
    "max_memory",
    "timeout",
    "grace",
    "once",
    "until_done",
    "label",
)
RELOAD_EXIT = 3  # how Django's autoreloader asks for a new process


def _mebibytes(value: Any) -> str | None:
    most = 2**30  # a limit of address space is counted in bytes, in 64 bits
    fits = isinstance(value, float) and 0 < value <= most
    return None if fits else f"a number of MiB above 0 (up to {most})"


class Command(BaseCommand):
    help = (
        "Run jobs of one queue, or of several, until told to stop. SIGTERM, SIGINT (Ctrl-C) and SIGQUIT let running "
        "tasks end (within --grace) and hand back the rest, then the exit code is 0; a second signal ends at once."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        queue, count = given(str, QUEUE), given(int, LIMIT)
        parser.add_argument(
            "queue_name", nargs="?", type=queue, help="the queue to serve (without any: default)"
        )
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "--queue",
            action="append",
            type=queue,
            default=[],
            metavar="Q",
            help="serve this queue; may be repeated",
        )
        which.add_argument(
            "--exclude_queue",
            "--exclude-queue",
            action="append",
            type=queue,
            default=[],
            metavar="Q",
            help="serve all queues but this one; may be repeated",
        )
        parser.add_argument(
            "--rate_limit",
            "--rate-limit",
            nargs="?",
            type=given(float, SECONDS),
            const=1.0,
            default=0.0,
            metavar="S",
            help="at least S seconds (1 if not given) between the starts of two tasks; default: no limit",
        )
        parser.add_argument(
            "--tick",
            type=given(float, TIMEOUT),
            default=1.0,
            metavar="S",
            help="look for jobs every S seconds (default 1) when nothing wakes the worker",
        )
        ends = parser.add_mutually_exclusive_group()
        ends.add_argument(
            "--once",
            action="store_true",
            help="run one step of each job that is ready now, then exit",
        )
        ends.add_argument(
            "--until_done",
            "--until-done",
            action="store_true",
            help="run until no job is ready, then exit",
        )
        parser.add_argument(
            "--max_jobs",
            "--max-jobs",
            type=count,
            metavar="N",
            help="exit after N tasks were run",
        )
        parser.add_argument(
            "--processes",
            type=count,
            metavar="N",
            help="run N worker processes and replace those that die (default: this process is the worker)",
        )
        parser.add_argument(
            "--threads",
            type=count,
            default=0,
            metavar="N",
            help="run tasks in N threads of each process (default: one after the other in its main thread)",
        )
        parser.add_argument(
            "--max_memory",
            "--max-memory",
            type=given(float, _mebibytes),
            metavar="MIB",
            help="exit between two jobs once over MIB of memory are in use; --processes starts a new worker then",
        )
        parser.add_argument(
            "--timeout",
            type=given(float, LEASE),
            metavar="S",
            help='count as lost after S seconds of silence (default DBQ["WORKER_TIMEOUT"], 60)',
        )
        parser.add_argument(
            "--grace",
            type=given(float, SECONDS),
            default=GRACE,
            metavar="S",
            help=f"let running tasks go on for S seconds (default {GRACE:g}) when told to stop",
        )
        parser.add_argument(
            "--retry",
            type=given(int, COUNT),
            default=0,
            metavar="N",
            help="try steps again up to N times that do not say so themselves (default 0)",
        )
        parser.add_argument(
            "--label",
            default="",
            metavar="L",
            help="a name for this worker; {pid} becomes its process id (default: host:pid)",
        )
        parser.add_argument(
            "--reload",
            choices=["auto", "always", "never"],
            default="auto",
            help="restart when code changes; auto: with DEBUG on, for a worker that does not end by itself",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="say what would be served, then exit"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        queues = self._queues(options)
        self._check_memory(options["max_memory"])
        rate_limit = options["rate_limit"] or 0.0
        plural = "" if len(queues.names) == 1 and not queues.exclude else "s"
        named = f'"{queues}"' if not plural else str(queues)
        limit = f" with rate limit of one job per {rate_limit:g} second(s)" if rate_limit else ""
        ends = options["once"] or options["until_done"]
        if options["verbosity"] and not (ends and not options["dry_run"]):
            self.stdout.write(f"Starting job worker for queue{plural} {named}{limit}")
        if options["dry_run"]:
            return
        reload = options["reload"]
        reloads = reload == "always" or (
            reload == "auto" and settings.DEBUG and not ends and self._is_main()
        )
        # In a container we may be process 1, which nobody in there can kill: the worker has to be a child then.
        alone = os.getpid() == 1 and self._is_main() and not reloads
        if processes := options["processes"] or int(alone):
            if reload == "always":
                raise CommandError(
                    "--reload runs one worker: not together with --processes.", returncode=MISUSED
                )
            work = partial(self._work, queues, options)
            sys.exit(supervisor.run_processes(processes, work, ends))
        if reloads:
            self._run_with_reloader(queues, options)
        else:
            self._work(queues, options)
        if self._bar:
            self.stderr.write("", style_func=str)

    def _work(self, queues: Queues, options: dict[str, Any]) -> None:
        """Be one worker process, watched."""
        worker, watched = self._worker(queues, options)
        with watched:
            if options["max_memory"] and self._is_main():
                memory.limit_address_space(options["max_memory"], options["threads"])
            supervisor.run(worker)
        if worker.cut_off and self._is_main():
            # Python would wait for the thread of a task that did not end in time.
            logging.shutdown()
            self.stdout.flush()
            self.stderr.flush()
            os._exit(0)

    def _worker(
        self, queues: Queues, options: dict[str, Any]
    ) -> tuple[Worker, AbstractContextManager[None]]:
        """A worker and its watchdog; without one where somebody else's process calls the command, a test's say."""
        using = router.db_for_write(Job)
        blackbox = Blackbox() if self._is_main() and storage_for(using).shareable else None
        storage_for(using).give_up_after(options["timeout"] or conf.configuration().worker_timeout)
        worker = Worker(
            queues,
            using=using,
            rate_limit=options["rate_limit"] or 0.0,
            retries=options["retry"],
            progress=self._progress(queues, options),
            blackbox=blackbox,
            orphaned=supervisor.orphaned,
            **{name: options[name] for name in AS_GIVEN},
        )
        return worker, watched(blackbox, using) if blackbox else nullcontext()

    def _queues(self, options: dict[str, Any]) -> Queues:
        names = [*filter(None, [options["queue_name"]]), *options["queue"]]
        if options["exclude_queue"]:
            if names:
                raise CommandError(
                    "Name queues to serve or queues to exclude, not both.", returncode=MISUSED
                )
            return Queues(tuple(dict.fromkeys(options["exclude_queue"])), exclude=True)
        return Queues(tuple(dict.fromkeys(names)) or ("default",))

    def _check_memory(self, most: float | None) -> None:
        """A worker that has grown too large before it begins would end at once, and so would the next one."""
        if most is not None and (used := memory.used()) >= most:
            raise CommandError(
                f"--max_memory {most:g}: this process uses {used:.0f} MiB already.",
                returncode=MISUSED,
            )

    # -- progress --

    _bar = False

    def _progress(self, queues: Queues, options: dict[str, Any]) -> Any:
        """A bar for ``--until_done`` on a terminal; nothing otherwise."""
        if not options["until_done"] or not options["verbosity"] or not self.stderr.isatty():
            return None
        depths = Job.get_queue_depths(exclude_future_jobs=True)
        total = sum(n for name, n in depths.items() if queues.serves(name))
        self._bar = total > 0

        def show(done: int) -> None:
            filled = 30 * min(done, total) // max(total, 1)
            bar = "█" * filled + "░" * (30 - filled)
            self.stderr.write(
                f"\r{bar} {done} tasks run, {total} jobs were ready", style_func=str, ending=""
            )
            self.stderr.flush()

        return show

    # -- reloading --

    def _is_main(self) -> bool:
        """Whether this is ``manage.py worker`` itself: a ``call_command`` must not start the program over."""
        return bool(getattr(self, "_called_from_command_line", False))

    def _run_with_reloader(self, queues: Queues, options: dict[str, Any]) -> None:
        """Run under Django's autoreloader, which keeps the main thread: signals and reloads stop the worker in
        order.
        """
        if os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) != "true":
            sys.exit(self._supervise_child())
        ended, leaving = threading.Event(), threading.Event()
        worker, watched = self._worker(queues, options)

        def work() -> None:
            try:
                with watched:
                    worker.run()
            finally:
                ended.set()
                os.kill(os.getpid(), signal.SIGTERM)  # the reloader would wait for changes for ever

        def stop(number: int, frame: FrameType | None) -> None:
            if ended.is_set() and not leaving.is_set():
                sys.exit(0)
            worker.stop()  # again and again, if need be: a terminal signals us and the parent, which signals us

        for number in supervisor.SIGNALS:
            signal.signal(number, stop)
        try:
            autoreload.start_django(autoreload.get_reloader(), work)
        finally:
            leaving.set()
            worker.stop()
            ended.wait()

    def _supervise_child(self) -> int:
        """Run the worker in a child, a new one whenever code has changed; a first signal is passed on, a second kills.

        One that is ending already, for a change of code, hears of no signal: there is no next one then.
        """
        environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
        signals: list[int] = []
        while not signals:
            child = subprocess.Popen(autoreload.get_child_arguments(), env=environment)

            def pass_on(number: int, frame: FrameType | None, child: Any = child) -> None:
                child.send_signal(signal.SIGKILL if signals else signal.SIGTERM)
                signals.append(number)

            for number in supervisor.SIGNALS:
                signal.signal(number, pass_on)
            if (code := child.wait()) != RELOAD_EXIT:
                return code if code >= 0 else 128 - code
        return 0
