"""Functions of a test module that run in a process of their own, which may fork, be killed or hang."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.db import connection

from tests.process_jobs import folder, until
from tests.processes import ROOT, WorkerProcess

DATABASE = ("NAME", "HOST", "PORT", "USER", "PASSWORD", "OPTIONS")
PLAY = """
import importlib, json, sys

import django

django.setup()
module, function, arguments = sys.argv[1:]
getattr(importlib.import_module(module), function)(*json.loads(arguments))
"""


class Process(WorkerProcess):
    """One such function, in a session of its own; its output goes to a file."""

    def __init__(
        self,
        function: Callable[..., None],
        arguments: Sequence[Any],
        within: Sequence[str],
        database: Mapping[str, Any],
    ) -> None:
        self.log = folder() / f"log {len(list(folder().glob('log *')))}"
        settings = {key: connection.settings_dict[key] for key in DATABASE} | database
        name = [function.__module__, function.__name__, json.dumps(arguments)]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-c", PLAY, *name],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.process_settings",
                    "TEST_DATABASE": json.dumps(settings, default=str),
                },
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def until_started(self) -> None:
        """Its test has waited already for something that its function does."""

    def until_nothing_is_left(self) -> None:
        """Wait for the ends of all processes of its session."""
        until(lambda: not self.alive(), "the end of all its processes")


@contextlib.contextmanager
def playing(
    function: Callable[..., None],
    *arguments: Any,
    within: Sequence[str] = (),
    **database: Any,
) -> Iterator[Process]:
    """``function(*arguments)`` in another process for the time of the block; nothing of it may be left afterwards.

    Args:
        arguments: what JSON can carry.
        within: the command that starts the process, with its arguments.
        database: keys of its DATABASES["default"] that differ from the test's.
    """
    process = Process(function, arguments, within, database)
    try:
        yield process
        assert not process.running, "the test has not waited for its process"
        process.until_nothing_is_left()
    finally:
        for pid in process.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.process.wait()
        print(f"-- output of process {process.pid} --\n{process.output()}")  # noqa: T201  # shown by a failing test
