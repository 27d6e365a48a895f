"""The worker's process: signals, and nothing left behind."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .worker import Worker

SIGNALS = [
    number
    for name in ("SIGTERM", "SIGINT", "SIGQUIT")
    if (number := getattr(signal, name, None)) is not None  # Windows has no SIGQUIT
]


def run(worker: Worker) -> None:
    """Run a worker that SIGTERM, SIGINT and SIGQUIT stop in good order; a second signal ends the process at once."""
    with stopped_by_signals(worker):
        worker.run()


@contextlib.contextmanager
def stopped_by_signals(worker: Worker) -> Iterator[None]:
    """Within: the first signal stops the worker, a second has its default effect. Handlers are put back after."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers: whoever runs us there stops the worker
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if worker.stopping:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        worker.stop()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
