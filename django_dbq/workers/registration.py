"""A worker's row and the lease that comes with it: registered, kept by heartbeats, lost when others declare it dead."""

import datetime
import logging
import os
import socket
from functools import partial
from typing import Protocol
from uuid import UUID

from .. import engine
from ..models import Worker as WorkerRow
from ..outcomes import ClaimLost
from ..patience import steadily
from ..storage import Queues
from ..wakeups import Wakeup
from . import lease
from .blackbox import Blackbox
from .inflight import InFlight
from .lease import Lease

logger = logging.getLogger("django_dbq")


class Registered(Protocol):
    """What a registration needs of its worker."""

    row: WorkerRow
    label: str
    queues: Queues
    using: str
    lease: Lease
    inflight: InFlight
    wakeup: Wakeup
    blackbox: Blackbox | None

    def clock(self) -> datetime.datetime: ...


class Registration:
    """
    Args:
        worker: whose ``row`` this makes, and makes anew after a death.
        timeout: seconds of silence after which other workers may take the jobs.
    """

    def __init__(self, worker: Registered, timeout: float) -> None:
        self.worker = worker
        self.timeout = timeout
        self.declared_dead = False
        self._left = False  # its row says so, or is about to
        self._started: set[UUID] = set()  # what had been started when its death was noticed
        worker.row = self._new_row()

    def begin(self) -> None:
        """Give the worker's row its id, and with it the first lease."""
        self._insert(self.worker.row)

    def beat(self) -> bool:
        """Renew the lease; False if the worker has been declared dead."""
        worker = self.worker
        begun, row = lease.now(), worker.row
        alive = self._left or engine.beat(row, worker.using)
        if alive or self._left:  # it may have left while it was asking
            worker.lease.renew(begun)
            worker.inflight.wake()
            return True
        if row is worker.row and not self.declared_dead:  # else it has begun anew meanwhile
            self._stop_everything()
        return False

    def begin_anew(self) -> None:
        """Begin with a new row, after it has been declared dead: what it held then is fenced off by the old one.

        It may have claimed jobs when others had already taken what it held before. Those that have been started are
        lost, like any whose outcome cannot be written.
        """
        worker = self.worker
        started = self._started | worker.inflight.keys()
        engine.release(worker.row.pk, started, worker.clock(), worker.using)
        if started:
            engine.bury(worker.row.pk, "It was away.", worker.clock(), worker.using)
        self._insert(self._new_row())
        self.declared_dead = False
        logger.warning("Declared dead while it was away, begins anew: worker=%s", worker.row)

    def leave(self) -> None:
        """Note the end of the worker, and its reason; it holds nothing any more."""
        self._left = True
        engine.stop_worker(self.worker.row, self.worker.clock(), self.worker.using)
        if self.worker.blackbox is not None:
            self.worker.blackbox.ended = True

    def _new_row(self) -> WorkerRow:
        hostname, pid = socket.gethostname(), os.getpid()
        return WorkerRow(
            label=(self.worker.label.replace("{pid}", str(pid)) or f"{hostname}:{pid}")[:255],
            hostname=hostname,
            pid=pid,
            queues=str(self.worker.queues)[:1000],
            started=self.worker.clock(),
            timeout=self.timeout,
        )

    def _insert(self, row: WorkerRow) -> None:
        begun = lease.now()
        steadily(partial(engine.start_worker, row, self.worker.using), self.worker.using)
        self.worker.row = row
        self.worker.lease.renew(begun)
        if self.worker.blackbox is not None:
            self.worker.blackbox.worker_id = row.pk

    def _stop_everything(self) -> None:
        """Start nothing that was claimed, and stop what runs: its jobs are others'."""
        worker = self.worker
        worker.inflight.take_waiting()
        self._started = worker.inflight.keys()
        self.declared_dead = True
        logger.warning("Declared dead, its jobs are others' now: worker=%s", worker.row)
        lost = ClaimLost("The worker was declared dead; its jobs have been taken.")
        for running in worker.inflight.running():
            knows = running.job.claim_is_lost  # its checkpoint was refused: it is not told twice
            if running.sentence(lost) and not knows:
                running.deliver()
            running.job.claim_is_lost = True
        worker.wakeup.bell.ring()
