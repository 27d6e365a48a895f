"""Wake-ups: hints that there is work. They carry no truth; a worker that misses them all finds its jobs by polling.

In one process, `ring` wakes every `Bell`. Between processes the storage's ``notify`` and ``listen`` do
(LISTEN/NOTIFY on PostgreSQL); where there is no such thing, workers poll.
"""

import contextlib
import logging
import os
import select
import socket
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

logger = logging.getLogger("django_dbq")

# A process sends at most one notification per queue in this time (seconds). One that was held back is not lost: whoever
# was woken by the one before looks again after `LOOK_AGAIN`, when every job created in between has been committed.
DEBOUNCE = 0.01
LOOK_AGAIN = 2 * DEBOUNCE
PROVE_TIMEOUT = 2.0  # seconds for a notification to come back before LISTEN counts as broken
RETRY_LISTEN = (1.0, 60.0)  # seconds until the next try, doubled up to the second number

_bells: "weakref.WeakSet[Bell]" = weakref.WeakSet()
_sent: dict[tuple[str, str], float] = {}


def ring() -> None:
    """Wake the workers of this process."""
    for bell in list(_bells):
        bell.ring()


def worth_sending(using: str, queues: Iterable[str]) -> bool:
    """Whether a notification has to go out for any of ``queues``, or the last one is young enough to serve.

    To be asked when the jobs are committed: the last one serves them because it was sent less than `DEBOUNCE` before.
    Who is told to send may do so a little earlier, together with the job.
    """
    now = time.monotonic()
    return any(now - _sent.get((using, queue), -DEBOUNCE) >= DEBOUNCE for queue in queues)


@contextlib.contextmanager
def sending(using: str) -> Iterator[set[str]]:
    """Within, send notifications; the queues that are put into the set count as notified if nothing is raised."""
    begun, queues = time.monotonic(), set[str]()
    yield queues
    _sent.update({(using, queue): begun for queue in queues})


class Bell:
    """Ends a wait from a signal handler, another thread or the same process; rings that nobody awaits are kept."""

    def __init__(self) -> None:
        self._hear, self._pull = socket.socketpair()
        self._hear.setblocking(False)
        self._pull.setblocking(False)

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it is ringing already; closed: nobody is there
            self._pull.send(b"!")

    def fileno(self) -> int:
        return self._hear.fileno()

    def hush(self) -> None:
        """Forget the rings so far."""
        with contextlib.suppress(BlockingIOError):
            while self._hear.recv(4096):
                pass

    def wait(self, timeout: float | None) -> bool:
        """Wait up to ``timeout`` seconds (None: for ever); True if it rang."""
        rang, _, _ = select.select([self], [], [], timeout)
        self.hush()
        return bool(rang)

    def close(self) -> None:
        self._hear.close()
        self._pull.close()


class Wakeup:
    """How one worker waits: on its bell and, where the database can, on a listening connection.

    Args:
        serves: whether a notification for this queue concerns the worker.
        listen: opens a connection that hears notifications, or returns None where there is no such thing.
        notify: sends one, over the worker's ordinary connection; used to prove that the listening one hears it.
    """

    def __init__(
        self,
        serves: Callable[[str], bool] = lambda queue: True,
        listen: Callable[[], Any] | None = None,
        notify: Callable[[Iterable[str]], None] | None = None,
    ) -> None:
        self.bell = Bell()
        _bells.add(self.bell)
        self._serves, self._listen, self._notify = serves, listen, notify
        self._connection: Any = None
        # The notification that has to come back before LISTEN counts as working, and by when.
        self._proof, self._proof_due = "", 0.0
        self._retry_at, self._retry_delay = 0.0, RETRY_LISTEN[0]
        self._told = False

    @property
    def healthy(self) -> bool:
        """Whether notifications from other processes are being heard, as the last proof has shown."""
        return self._connection is not None and not self._proof

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; True if something rang, or a notification concerns this worker."""
        deadline = time.monotonic() + timeout
        while True:
            self._connect()
            heard = [self.bell] if self._connection is None else [self.bell, self._connection]
            try:
                ready, _, _ = select.select(heard, [], [], self._patience(deadline))
                concerned = self._connection in ready and self._hear()
            except Exception as error:  # psycopg's, or a socket that was closed under us
                self._lost(error)
                continue
            now = time.monotonic()
            if self._proof and now >= self._proof_due:
                # Behind a transaction pooler, LISTEN succeeds and hears nothing.
                self._lost(ConnectionError("notifications do not arrive (a transaction pooler?)"))
            if self.bell in ready or concerned or now >= deadline:
                self.bell.hush()
                return self.bell in ready or concerned

    def _patience(self, deadline: float) -> float:
        """Seconds until there is something to do: until ``deadline``, a missing proof, or the next try to listen."""
        until = [deadline]
        if self._proof:
            until.append(self._proof_due)
        if self._connection is None and self._listen is not None:
            until.append(self._retry_at)
        return max(0.0, min(until) - time.monotonic())

    def close(self) -> None:
        self._disconnect()
        _bells.discard(self.bell)
        self.bell.close()

    def _connect(self) -> None:
        if (
            self._connection is not None
            or self._listen is None
            or time.monotonic() < self._retry_at
        ):
            return
        try:
            self._connection = self._listen()
            if self._connection is None:
                self._listen = None  # this database has none
                return
            assert self._notify is not None
            self._proof = f"prove:{os.getpid()}:{uuid.uuid4().hex}"
            self._proof_due = time.monotonic() + PROVE_TIMEOUT
            self._notify([self._proof])
        except Exception as error:
            self._lost(error)

    def _hear(self) -> bool:
        """Read what has arrived; whether any of it concerns this worker."""
        concerned = False
        libpq = self._connection.pgconn
        libpq.consume_input()
        while (notification := libpq.notifies()) is not None:
            payload = notification.extra.decode()
            if payload == self._proof:
                self._proof, self._retry_delay = "", RETRY_LISTEN[0]
                if self._told:
                    logger.info("Listening for notifications again")
                self._told = False
                concerned = True  # what was notified before it listened has gone unheard
            elif self._serves(payload):
                concerned = True
        return concerned

    def _lost(self, error: Exception) -> None:
        self._disconnect()
        self._retry_at = time.monotonic() + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, RETRY_LISTEN[1])
        if not self._told:
            logger.warning("Not listening for notifications, polling instead: %s", error)
        self._told = True

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
        self._connection, self._proof = None, ""
