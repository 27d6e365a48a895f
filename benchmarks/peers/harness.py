"""What every peer's script shares: its verbs, its clock and its way to report."""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_begun = False


def main(**verbs: Callable[..., object]) -> None:
    """Run the verb that the command line names; a numeric argument becomes an int."""
    verb, *arguments = sys.argv[1:]
    verbs[verb](*(int(each) if each.isdigit() else each for each in arguments))


def report(**facts: float) -> None:
    """Tell the benchmark, which started this process, a few figures."""
    with open(os.environ["BENCH_REPORT"], "a") as lines:
        lines.write(json.dumps(facts) + "\n")


def begin() -> None:
    """Called by every no-op task: reports when the first of them started (seconds since 1970)."""
    global _begun
    if not _begun:
        _begun = True
        report(begun=time.time())


def arrived(sent: float) -> None:
    """Called by a stamped task: reports the seconds since its producer began to enqueue it."""
    report(latency=time.time() - sent)


def departures(count: int) -> Iterator[float]:
    """Yield `count` times, 10 to 30 ms apart: rare enough that the worker is idle each time."""
    for _ in range(count):
        time.sleep(random.uniform(0.01, 0.03))
        yield time.time()


@contextmanager
def timed() -> Iterator[None]:
    """Report how long the block took, in seconds."""
    started = time.perf_counter()
    yield
    report(seconds=time.perf_counter() - started)
