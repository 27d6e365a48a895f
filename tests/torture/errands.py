"""What people do to jobs while all else happens to the workers: cancel, pause, resume, send events, retry."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection, connections
from django.utils import timezone

from django_dbq.models import Job, JobEvent
from django_dbq.states import State

from .history import FINISHED, Deed
from .kinds import Verb
from .plan import Errand

EVENT = "word"  # the name of all events
LOOK_EVERY = 0.05  # seconds between two looks for jobs that are to be redeemed
BEGINS_WITHIN = 8.0  # seconds; a job that does not is meddled with all the same
REDEMPTIONS = 20  # after so many retries a job is given up
PATIENCE = 60.0  # seconds for which a database may be away
RETRIABLE = (State.FAILED, State.CANCELLED, State.BLOCKED)


class Errands:
    """Does the errands of a plan in a thread, with a connection of its own.

    Attributes:
        deeds: what was done.
        refused: how often the database has refused something, in its own words.
    """

    def __init__(self, errands: Sequence[Errand]) -> None:
        self.deeds: list[Deed] = []
        self.refused: Counter[str] = Counter()
        self._left: dict[UUID, deque[Errand]] = defaultdict(deque)
        for errand in sorted(errands, key=lambda errand: errand.at):
            self._left[errand.job].append(errand)
        self._late: dict[UUID, float] = defaultdict(float)  # seconds that the first was late
        self._begins: dict[UUID, float] = {}  # when jobs were seen to have begun
        self._redeeming: Counter[UUID] = Counter()  # how many retries each has left
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._begun = 0.0
        self._thread = threading.Thread(target=self._run, name="errands", daemon=True)

    def start(self) -> None:
        """Begin; the plan's times count from now."""
        self._begun = time.monotonic()
        self._thread.start()

    @property
    def are_done(self) -> bool:
        """Whether nothing will be done any more."""
        return not (self._thread.is_alive() and (self._left or self._redeeming))

    def end(self) -> None:
        """Stop; what has gone wrong in the thread is raised here."""
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stopped.wait(LOOK_EVERY):
                self._do_what_is_due()
                self._redeem()
        except BaseException as error:
            self._error = error
        finally:
            connections.close_all()

    def _do_what_is_due(self) -> None:
        now = time.monotonic() - self._begun
        due = [
            errands[0]
            for key, errands in self._left.items()
            if errands[0].at + self._late[key] <= now
        ]
        there = self._look({errand.job for errand in due})
        for errand in due:
            key = errand.job
            if key not in there or not self._may_be_done(errand, now, *there[key]):
                continue
            now = time.monotonic() - self._begun
            self._late[key] = max(self._late[key], now - errand.at)
            if errand.verb is Verb.REDEEM:
                self._redeeming[key] = REDEMPTIONS
            else:
                self._do(errand)
            self._left[key].popleft()
            if not self._left[key]:
                del self._left[key]

    def _may_be_done(self, errand: Errand, now: float, state: str, attempt: int) -> bool:
        """Whether the time has come; for a job that does not begin, after a while."""
        if errand.after_begin is None or state in FINISHED or now > errand.at + BEGINS_WITHIN:
            return True
        if not attempt:
            return False
        return now >= self._begins.setdefault(errand.job, now) + errand.after_begin

    def _redeem(self) -> None:
        """Retry the jobs that have failed; those that have ended otherwise, for good, need nothing more."""
        for key, (state, _) in self._look(self._redeeming).items():
            if state == State.FAILED:
                self._do(Errand(0.0, Verb.RETRY, key))
                self._redeeming[key] -= 1
            ended = state in (State.COMPLETE, State.CANCELLED) and key not in self._left
            if ended or self._redeeming[key] <= 0:
                del self._redeeming[key]

    def _look(self, keys: Collection[UUID]) -> dict[UUID, tuple[str, int]]:
        """The states and attempt numbers of those of these jobs that are there."""
        if not keys:
            return {}
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found = Job.objects.filter(pk__in=list(keys)).order_by()
                return {
                    key: (state, attempt)
                    for key, state, attempt in found.values_list("pk", "state", "attempt")
                }
            except (OperationalError, InterfaceError) as error:
                self._put_up_with(error, deadline)

    def _do(self, errand: Errand) -> None:
        """Do it, again and again if the database goes away: of the tries before, only the answer may have been lost."""
        begun, deadline = timezone.now(), time.monotonic() + PATIENCE
        before: tuple[str, dict[UUID, int]] | None = None
        broken = False
        while True:
            try:
                job = Job.objects.get(pk=errand.job)
                if before is None:
                    before = job.state, family(job.pk)
                done = self._try(errand, job, broken)
                after = family(job.pk)
                break
            except (OperationalError, InterfaceError) as error:
                self._put_up_with(error, deadline)
                broken = True
        fence = before[1] if errand.verb is Verb.RETRY else after
        ended = timezone.now()
        self.deeds.append(
            Deed(errand.job, errand.verb, begun, ended, done, before[0], fence, errand.payload)
        )

    @staticmethod
    def _try(errand: Errand, job: Job, broken: bool) -> bool:
        """Returns whether it is done, by this try or by one that was broken off."""
        match errand.verb:
            case Verb.CANCEL:
                return job.cancel() or (broken and job.state == State.CANCELLED)
            case Verb.PAUSE:
                return job.pause()
            case Verb.RESUME:
                job.resume()
                return True  # whether it was paused already or not, it is not any more
            case Verb.RETRY:
                return job.retry() or (broken and job.state not in RETRIABLE)
            case Verb.SEND:
                sent = job.send(EVENT, errand.payload)
                events = JobEvent.objects.filter(job=job.pk).values_list("payload", flat=True)
                return sent or (broken and errand.payload in events)
        raise AssertionError(errand.verb)

    def _put_up_with(self, error: Exception, deadline: float) -> None:
        if time.monotonic() > deadline or self._stopped.is_set():
            raise error
        self.refused[str(error).partition("\n")[0][:60]] += 1
        connection.close()
        time.sleep(LOOK_EVERY)


def family(key: UUID) -> dict[UUID, int]:
    """The attempt numbers of a job, its members, theirs and so on."""
    jobs = Job.objects.order_by()
    found = dict(jobs.filter(pk=key).values_list("pk", "attempt"))
    frontier = list(found)
    while frontier:
        inner = dict(jobs.filter(parent__in=frontier).values_list("pk", "attempt"))
        found.update(inner)
        frontier = list(inner)
    return found
