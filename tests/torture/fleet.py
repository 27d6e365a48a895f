"""The worker processes of a round: start them, know each from the other, and do them harm."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "TORTURE_WORKER"  # in the environment of a worker, and so of all processes that it forks


@dataclass
class Started:
    """One ``manage.py worker``, with what it forks."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    supervised: bool
    told_to_stop: bool = False

    @property
    def running(self) -> bool:
        return self.process.poll() is None


@dataclass
class Slot:
    """The place of a worker: when one ends, the next is started."""

    arguments: Sequence[str]
    started: list[Started] = field(default_factory=list)


class Fleet:
    """
    Args:
        folder: for the logs.
        workers: the arguments of each.
        environment: what they need besides ours.
    """

    def __init__(
        self, folder: Path, workers: Iterable[Sequence[str]], environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.slots = [Slot(arguments) for arguments in workers]
        self.environment = environment
        self.token = uuid.uuid4().hex
        self._timers: list[threading.Timer] = []

    # -- keep it going --

    def tend(self) -> None:
        """Start what has ended."""
        for number, slot in enumerate(self.slots):
            last = slot.started[-1] if slot.started else None
            if last is None or last.told_to_stop or not last.running:
                slot.started.append(self._start(number, slot))

    def _start(self, number: int, slot: Slot) -> Started:
        mark = f"{self.token}-{number}-{len(slot.started)}"
        log = self.folder / f"worker-{number}-{len(slot.started)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "django", "worker", *slot.arguments],
                cwd=ROOT,
                env={
                    **os.environ,
                    "DJANGO_SETTINGS_MODULE": "tests.torture.settings",
                    "PYTHONPATH": str(ROOT),
                    "PYTHONUNBUFFERED": "1",
                    **self.environment,
                    MARK: mark,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Started(process, mark, log, "--processes" in slot.arguments)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do this then, whatever the round waits for: perhaps for a lock that a frozen process holds."""
        timer = threading.Timer(seconds, action)
        self._timers.append(timer)
        timer.start()

    def settle(self) -> None:
        """Wait until all that was put off is done."""
        for timer in self._timers:
            timer.join()

    @property
    def started(self) -> list[Started]:
        """Everything that was ever started."""
        return [one for slot in self.slots for one in slot.started]

    # -- who is there --

    def processes(self) -> dict[int, str]:
        """The mark of every living process of ours by its id; dead ones that nobody has waited for are not living."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                for line in (folder / "environ").read_bytes().split(b"\0"):
                    name, _, value = line.partition(b"=")
                    if name == MARK.encode() and value.startswith(self.token.encode()):
                        found[int(folder.name)] = value.decode()
        return found

    def family(self, pid: int) -> list[int]:
        """The process, and all that have come of the same command: supervisor, watchdogs, other workers."""
        processes = self.processes()
        return [other for other, mark in processes.items() if mark == processes.get(pid)]

    def supervisors(self) -> list[int]:
        """Those of them that are alive."""
        return [one.process.pid for one in self.started if one.supervised and one.running]

    def watchdogs(self, workers: Collection[int] | None = None) -> list[int]:
        """The watchdogs that are alive, of these workers or of all: children of processes that have no others."""
        workers = self.processes().keys() - self.supervisors() if workers is None else workers
        return [pid for pid in self.processes() if parent_of(pid) in workers]

    # -- harm --

    def send(self, pids: Iterable[int], *numbers: signal.Signals) -> None:
        """Send signals to those that are still ours."""
        ours = self.processes()
        for number in numbers:
            for pid in pids:
                if pid in ours:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    def kill(self, pids: Sequence[int]) -> None:
        """Kill them together: none sees another go."""
        self.send(pids, signal.SIGSTOP, signal.SIGKILL)

    def freeze(self, pids: Sequence[int], seconds: float) -> None:
        self.send(pids, signal.SIGSTOP)
        self.later(seconds, lambda: self.send(pids, signal.SIGCONT))

    def terminate(self, started: Started) -> None:
        """Ask it to stop; `tend` starts another beside it."""
        started.told_to_stop = True
        self.send([started.process.pid], signal.SIGTERM)

    # -- the end --

    def stop(self, patience: float) -> list[int]:
        """Ask everything to stop; returns what has not done so after ``patience`` seconds, killed then."""
        for timer in self._timers:
            timer.cancel()
        self.settle()
        self.send(self.processes(), signal.SIGCONT)
        last = [slot.started[-1] for slot in self.slots if slot.started]
        roots = {started.process.pid for started in self.started}
        for started in last:
            started.told_to_stop = True
        # Workers whose supervisor was killed are asked themselves.
        asked = [s.process.pid for s in last]
        asked += [pid for pid in self.processes() if not self._has_root(pid, roots)]
        self.send(asked, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.send(list(left), signal.SIGKILL)
        for started in self.started:
            started.process.wait()
        return list(left)

    def _has_root(self, pid: int, roots: set[int]) -> bool:
        """Whether the command that it comes from is still there to pass signals on."""
        return bool(roots & set(self.family(pid)))


def parent_of(pid: int) -> int:
    """The process id of its parent; 0 if it is gone."""
    with contextlib.suppress(OSError):
        # The name, in parentheses, may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
