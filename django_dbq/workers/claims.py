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
# Seconds that a look which has found nobody may take, before the next ones are put off.
SLOW_LOOK = 0.05
# Seconds without an admission after one whose jobs others were more urgent than: time for a worker that would run them
# to let them in itself, once they are taken back from here.
OVERTAKEN = 2.0
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
        self._follows_limits = False
        self._admit_due = 0.0  # the next admission; a slot that this worker frees puts it forward
        self._look_due = 0.0  # the same, and nothing does
        self._overtaken_until = 0.0
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
        if not self._follows_limits:
            steadily(partial(engine.follow_limits, now, self.using), self.using)
            self._follows_limits = True
        suspects = self._suspects()
        admitted = self._admit(now, limit, suspects)
        begun = time.monotonic()
        if begun >= self._head_due:
            self._position.forget()
        from_head = not self._position.heads
        jobs = self._take(row, now, limit, suspects)
        ended = time.monotonic()
        took = ended - begun
        if len(jobs) < limit:
            self._overtaken_until = 0.0
        elif admitted and not any(job.limited for job in jobs):
            self._overtaken_until = ended + OVERTAKEN
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

    def _take(
        self, row: WorkerRow, now: datetime.datetime, limit: int, suspects: Suspects
    ) -> list[Job]:
        """Claim, and park what is to wait for a limit instead.

        Each on its own: what was claimed must not be forgotten because the next statement has to be tried again.
        """
        most = limit
        while True:
            claim = partial(engine.claim, row, self.queues, most, now, self.using, self.pass_began)
            claimed = steadily(partial(claim, self._position, suspects), self.using)
            jobs = steadily(partial(engine.park, row, claimed, now, self.using), self.using)
            if jobs or not claimed:
                break
            self._admit(now, limit, suspects)
            most = min(2 * most, BATCH_MOST)  # many may be before the first that can be run
        if surplus := jobs[limit:]:
            steadily(partial(engine.hand_back, row, surplus, now, self.using), self.using)
        return jobs[:limit]

    @property
    def limits_wait(self) -> float | None:
        """Seconds until jobs that are under a limit should be looked at again, if somebody waits for one."""
        if self._rate_over is None:
            return None
        return max(0.0, self._rate_over - time.monotonic())

    def freed(self) -> None:
        """A job under a limit has ended or goes on: the next admission finds its slot."""
        self._admit_due = 0.0

    def _admit(self, now: datetime.datetime, limit: int, suspects: Suspects) -> int:
        """Let in what the limits allow, unless that is not to be looked at now; returns how many."""
        begun = time.monotonic()
        due = max(self._admit_due, self._look_due, self._overtaken_until)
        if begun < due:
            self._rate_over = min(self._rate_over or due, due)
            return 0
        admit = partial(
            engine.admit, self.queues, limit, now, self.using, self.pass_began, suspects
        )
        admission = steadily(admit, self.using)
        ended = time.monotonic()
        self.full = admission.full
        self._rate_over = None if admission.wait is None else begun + admission.wait
        pause = HEAD_SHARE * (ended - begun)
        if admission.full:
            self._admit_due = ended + max(ADMIT_PAUSE, pause)
        elif not admission.count and ended - begun > SLOW_LOOK:
            # Past many that wait in queues that it does not serve, say.
            self._look_due = ended + pause
        return admission.count

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
