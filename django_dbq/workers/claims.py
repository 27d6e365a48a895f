"""What a worker claims next: how many jobs, from where in the backlog, and how it treats suspects."""

import datetime
import time
from functools import partial

from .. import engine
from ..models import Job
from ..models import Worker as WorkerRow
from ..patience import steadily
from ..storage import Position, Queues, Suspects
from .inflight import InFlight, Lane
from .loop import LoopExecutor

BATCH_SECONDS = 0.05  # of work that a batch should hold
BATCH_MOST = 500  # jobs: beyond, statements gain nothing more
BATCH_GROWTH = 4  # at most so many times the batch before, so that one quick job does not claim hundreds of slow ones
# A claim that takes longer than so many seconds, and so many more for each job, has had to pass dead entries. The next
# ones then go on from its position, and only after so many times as long one starts at the head of the backlog again,
# where more urgent jobs may have come in: passing dead entries takes a twentieth of the time at most.
CLAIM_SECONDS = (0.01, 0.00003)
HEAD_SHARE = 20
ADMIT_PAUSE = 0.05  # seconds after an admission that had no slot for anybody, unless this worker itself frees one
SUSPECT_TURN = 10.0  # seconds that a busy worker makes room for a suspect; see `Claims._suspects`


class Claims:
    """
    Args:
        queues: to claim from.
        using: the database alias.
        inflight: what the worker holds already.
        loop: where coroutines run, if they do.
        threads: how many threads run tasks; 0 is none but the worker's own.
        one_by_one: never claim a batch.
        pass_began: leave jobs that were created, or of which a step was run, after this time.
    """

    def __init__(
        self,
        queues: Queues,
        using: str,
        inflight: InFlight,
        loop: LoopExecutor | None,
        *,
        threads: int,
        one_by_one: bool,
        pass_began: datetime.datetime | None,
    ) -> None:
        self.queues = queues
        self.using = using
        self.inflight = inflight
        self.loop = loop
        self.threads = threads
        self.one_by_one = one_by_one
        self.pass_began = pass_began
        self.batch = 1
        self.expects_coroutines = False
        self.full = False  # jobs wait under a limit that has no slot
        self._admit_due = 0.0
        self._rate_over: float | None = None  # when a rate lets in the next job
        self._position, self._head_due = Position(), 0.0
        self._holds_suspect = False  # and so nothing else
        self._turn = SUSPECT_TURN
        self._turn_ends, self._makes_room = 0.0, False

    def limit(self) -> int:
        """How many jobs to claim: a batch for each thread that is free, or none."""
        if self._holds_suspect and not self.inflight.empty:
            return 0
        waiting = self.inflight.waiting(Lane.SYNC)
        free = self.threads - self.inflight.running_in(Lane.SYNC)
        room = self.loop.room - self.inflight.waiting(Lane.ASYNC) if self.loop is not None else 0
        if self.one_by_one:
            # The next one when this one has been started: only then it is known when that may be.
            begun = not waiting and not self.inflight.waiting(Lane.ASYNC)
            return int(begun and (free > 0 or not self.threads) and (room > 0 or not self.loop))
        batch = self.batch
        if self.threads:
            if waiting > batch // 2:
                return 0
            batch = free + (batch if batch > 1 else 0) - waiting
        if self.loop is not None and self.loop.used:
            batch = min(max(batch, self.loop.room if self.expects_coroutines else 0), room)
        return batch

    def pace(self, count: int, took: float) -> None:
        """Make the next batch one that fits, after ``count`` tasks have taken so many seconds."""
        if count:
            fitting = int(BATCH_SECONDS * count / max(took, 1e-9))
            self.batch = max(1, min(fitting, BATCH_GROWTH * self.batch, BATCH_MOST))

    def take(self, row: WorkerRow, now: datetime.datetime, limit: int) -> list[Job]:
        """Claim from the head of the backlog or, where the way there has become long, from the last claim's
        position.
        """
        self._admit(now, limit)
        begun = time.monotonic()
        if begun >= self._head_due:
            self._position.forget()
        from_head = not self._position.heads
        claim = partial(engine.claim, row, self.queues, limit, now, self.using, self.pass_began)
        suspects = self._suspects()
        jobs = steadily(lambda: claim(self._position, suspects), self.using)
        ended = time.monotonic()
        took = ended - begun
        if from_head:
            self._head_due = ended + HEAD_SHARE * took
        slow = took > CLAIM_SECONDS[0] + CLAIM_SECONDS[1] * len(jobs)
        if len(jobs) == limit and (slow or not from_head):
            self._position.remember(jobs)
        else:
            self._position.forget()
        if not jobs and not from_head:
            return self.take(row, now, limit)
        self._holds_suspect = any(job.lost for job in jobs)
        return jobs

    @property
    def limits_wait(self) -> float | None:
        """Seconds until jobs that are under a limit should be looked at again, if somebody waits for one."""
        if self._rate_over is None:
            return None
        return max(0.0, self._rate_over - time.monotonic())

    def freed(self) -> None:
        """A job under a limit has ended or goes on: the next admission finds its slot."""
        self._admit_due = 0.0

    def _admit(self, now: datetime.datetime, limit: int) -> None:
        begun = time.monotonic()
        if begun < self._admit_due:
            self._rate_over = min(self._rate_over or self._admit_due, self._admit_due)
            return
        admission = steadily(partial(engine.admit, self.queues, limit, now, self.using), self.using)
        self.full = admission.full
        self._rate_over = None if admission.wait is None else begun + admission.wait
        if admission.full:
            ended = time.monotonic()
            self._admit_due = ended + max(ADMIT_PAUSE, HEAD_SHARE * (ended - begun))

    def _suspects(self) -> Suspects:
        """How the next claim treats suspects.

        They are for a worker that holds nothing else. One with threads may never do so: with a suspect at the head of
        its queues it claims nothing for a while, then passes it for as long, each turn twice as long as the one before.
        """
        now = time.monotonic()
        if self.inflight.empty:
            self._turn, self._turn_ends, self._makes_room = SUSPECT_TURN, now + SUSPECT_TURN, True
            return Suspects.ALONE
        if now >= self._turn_ends:
            self._turn *= 1 if self._makes_room else 2
            self._turn_ends, self._makes_room = now + self._turn, not self._makes_room
        return Suspects.AWAITED if self._makes_room else Suspects.PASSED
