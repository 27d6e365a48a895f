"""What a task may return or raise, what an attempt may come to, and the pure decisions that follow.

No database, no clock and no chance: the same arguments always give the same decision.
"""

import datetime
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import TextChoices
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .pipelines import Pipeline, Step
from .states import Event, State, target

MAX_LOSSES = 3


class Retry(Exception):
    """Returned or raised by a task: run this step again, later. It is no failure and uses up none of its ``retries``.

    ``DBQ["MAX_RUNS"]`` bounds it. In an atomic step, what the task has written is committed when this is returned, and
    rolled back when it is raised.

    Args:
        delay: seconds (or a timedelta) from now.
        at: the time; aware, or in the current time zone. With neither, the step's own retry delay counts.
        exc: an exception for the attempt's record.

    Raises:
        TypeError, ValueError: both ``delay`` and ``at``, or no such time.
    """

    def __init__(
        self,
        delay: float | datetime.timedelta | None = None,
        at: datetime.datetime | None = None,
        exc: BaseException | None = None,
    ) -> None:
        super().__init__(delay, at, exc)
        if delay is not None and at is not None:
            raise TypeError("Retry takes delay or at, not both")
        if at is not None and not isinstance(at, datetime.datetime):
            raise TypeError(f"Retry's at is {at!r}. Expected: a datetime.")
        if isinstance(delay, datetime.timedelta):
            delay = delay.total_seconds()
        if delay is not None and not isinstance(delay, int | float):
            raise TypeError(f"Retry's delay is {delay!r}. Expected: seconds, or a timedelta.")
        if delay is not None and not 0 <= delay < math.inf:
            raise ValueError(f"Retry's delay is {delay!r}. Expected: seconds, 0 or more.")
        if at is not None:
            at = _as_stored(at)
        self.delay, self.at, self.exc = delay, at, exc

    def __str__(self) -> str:
        when = (
            f"at {self.at}" if self.at else "again" if self.delay is None else f"in {self.delay} s"
        )
        return f"to be run {when}" + (f": {self.exc!r}" if self.exc is not None else "")


def _as_stored(time: datetime.datetime) -> datetime.datetime:
    """A time as the database will have it: in UTC, or local and naive without ``USE_TZ``."""
    try:
        if timezone.is_naive(time):
            return timezone.make_aware(time).astimezone(datetime.UTC) if settings.USE_TZ else time
        time = time.astimezone(datetime.UTC)
        return time if settings.USE_TZ else timezone.make_naive(time)
    except OverflowError:
        raise ValueError(f"{time!r} is no time in UTC.") from None


class Abort(Exception):
    """Returned or raised by a task: the job has failed, whatever ``retries`` are left."""


def key_of(job: Any) -> UUID:
    """The id of a job that is given as itself or by its id.

    Raises:
        ValueError: it is neither.
    """
    key = getattr(job, "pk", job)
    if isinstance(key, UUID):
        return key
    try:
        return UUID(str(key))
    except ValueError:
        raise ValueError(f"{job!r} is no saved job, and no id of one.") from None


class Wait(Exception):
    """Returned or raised by a task: run this step again when other jobs are done, or at a time.

    It is no failure. ``DBQ["MAX_RUNS"]`` bounds it.

    Args:
        jobs: jobs that are saved, or their ids; the job is WAITING until all of them (or with ``mode="any"`` one) are
            COMPLETE.
        until: the time; aware, or in the current time zone.
        mode: "all" or "any".
        on_failure: "block" (default): BLOCKED when one of them has FAILED or is CANCELLED; "proceed": that counts
            as done.

    Raises:
        TypeError, ValueError: not exactly one of ``jobs`` and ``until``, or values other than these.
    """

    def __init__(
        self,
        jobs: Iterable[Any] | None = None,
        until: datetime.datetime | None = None,
        mode: str = "all",
        on_failure: str = "block",
    ) -> None:
        super().__init__(jobs, until, mode, on_failure)
        if (jobs is None) == (until is None):
            raise TypeError("Wait takes either jobs or until")
        if until is not None and not isinstance(until, datetime.datetime):
            raise TypeError(f"Wait's until is {until!r}. Expected: a datetime.")
        for name, value, known in (
            ("mode", mode, ("all", "any")),
            ("on_failure", on_failure, ("block", "proceed")),
        ):
            if value not in known:
                raise ValueError(f"Wait's {name} is {value!r}. Expected: {' or '.join(known)}.")
        if isinstance(jobs, str) or hasattr(jobs, "pk"):
            raise TypeError(f"Wait's jobs is {jobs!r}. Expected: a list of jobs, or of their ids.")
        # Looked at here, so that a mistake is raised where it was made.
        self.jobs = None if jobs is None else tuple(dict.fromkeys(map(key_of, jobs)))
        self.until = None if until is None else _as_stored(until)
        self.mode, self.on_failure = mode, on_failure

    def __str__(self) -> str:
        if self.jobs is None:
            return f"to be run again at {self.until}"
        return f"to be run again after {self.mode} of {len(self.jobs)} jobs"


class Finish(Exception):
    """Returned or raised by a task: the job is complete, the steps after this one are skipped."""


class TimedOut(BaseException):
    """Raised in a task that has run for longer than its step's ``timeout``.

    A BaseException, so that ``except Exception`` in a task does not swallow it; ``finally`` and ``with`` work as ever.
    """


class Interrupted(BaseException):
    """Raised in a task whose worker has to end now: the job is handed back, with its attempt."""


class ClaimLost(BaseException):
    """Raised in a task whose job is no longer its worker's: nothing of this attempt will be saved."""


class Exhausted(Exception):
    """Why a job has failed although its task was not asked again: it was lost, timed out or run too often."""


class AttemptOutcome(TextChoices):
    """How one execution of one step ended."""

    SUCCEEDED = "succeeded", _("Succeeded")
    FAILED = "failed", _("Failed")
    TIMED_OUT = "timed_out", _("Timed out")
    LOST = "lost", _("Lost")  # its worker stopped reporting
    RETRIED = "retried", _("Retried")  # the task itself has asked for it
    WAITED = "waited", _("Waited")  # it has begun to wait; the same step is run again
    SKIPPED = "skipped", _("Skipped")  # its predicate said so
    CANCELLED = "cancelled", _("Cancelled")  # somebody has cancelled the job meanwhile


@dataclass(frozen=True, slots=True)
class Tries:
    """What a job has behind it at its current step, and what it may have."""

    attempt: int = 1  # the number of this one, over all steps
    failures: int = 0  # of this step, before this attempt
    lost: int = 0
    retries: int = 0  # that the step may have, or else the worker's default
    max_runs: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a job: the event, the state it leads to, and the step that is next (None after the last)."""

    event: Event
    state: State
    next_step: Step | None
    outcome: AttemptOutcome
    error: BaseException | None = None  # why, for the record and the failure hook
    failures: int = 0
    lost: int = 0
    run_after: datetime.datetime | None = None  # None leaves it as it is


def decide(
    pipeline: Pipeline,
    step: Step,
    *,
    member: bool = False,
    finish: bool = False,
    outcome: AttemptOutcome = AttemptOutcome.SUCCEEDED,
) -> Decision:
    """Decide where a job goes after an attempt at ``step`` that has done its work, or was not needed.

    Args:
        member: of a group or map.
        finish: the task has asked to skip the rest.
    """
    following = None if finish else pipeline.after(step, member)
    event = Event.LAST_STEP_DONE if following is None else Event.STEP_DONE
    return Decision(event, target(event), following, outcome)


def decide_wait(step: Step, tries: Tries, until: datetime.datetime | None = None) -> Decision:
    """Decide where a job goes that has begun to wait: for others, or READY with a time."""
    event = Event.WAITS if until is None else Event.TRIED_AGAIN
    return Decision(
        event,
        target(event),
        step,
        AttemptOutcome.WAITED,
        failures=tries.failures,
        run_after=until,
    )


def decide_failure(
    step: Step,
    tries: Tries,
    error: BaseException,
    now: datetime.datetime,
    retriable: bool = True,
    chance: float = 1.0,
) -> Decision:
    """Decide whether a step is tried again after an attempt that has not done its work, and when.

    Args:
        error: what has ended the attempt.
        retriable: whether the step's ``retry_on`` names this error.
        chance: from 0 to 1, for a delay with jitter.
    """
    outcome, failures = AttemptOutcome.FAILED, tries.failures + 1
    if isinstance(error, Retry):
        outcome, failures = AttemptOutcome.RETRIED, tries.failures
    elif isinstance(error, Wait):
        outcome, failures = AttemptOutcome.WAITED, tries.failures
    elif isinstance(error, TimedOut):
        outcome, retriable = AttemptOutcome.TIMED_OUT, True
    again = isinstance(error, Retry | Wait) or (
        retriable and not isinstance(error, Abort) and failures <= tries.retries
    )
    if again and tries.max_runs is not None and tries.attempt >= tries.max_runs:
        cause, error = (
            error,
            Exhausted(
                f"The job was run {tries.attempt} times, and once more is asked for; "
                f'DBQ["MAX_RUNS"] allows {tries.max_runs}.'
            ),
        )
        error.__cause__ = cause
        again = False
    if not again:
        return fail(step, error, outcome)
    if isinstance(error, Wait):
        return decide_wait(step, tries, error.until)
    return Decision(
        Event.TRIED_AGAIN,
        target(Event.TRIED_AGAIN),
        step,
        outcome,
        error,
        failures=failures,
        lost=tries.lost,
        run_after=_when(step, error, tries.failures + 1, now, chance),
    )


def fail(
    step: Step, error: BaseException, outcome: AttemptOutcome = AttemptOutcome.FAILED
) -> Decision:
    """A failed job keeps naming the step that failed, so that resetting its state runs that step again."""
    event = Event.FAILED_FOR_GOOD
    return Decision(event, target(event), step, outcome, error)


def _when(
    step: Step, error: BaseException, number: int, now: datetime.datetime, chance: float
) -> datetime.datetime | None:
    if isinstance(error, Retry) and error.at is not None:
        return error.at
    asked = error.delay if isinstance(error, Retry) else None
    delay = retry_delay(step, number, chance) if asked is None else asked
    try:
        return now + datetime.timedelta(seconds=delay) if delay else None
    except OverflowError:
        return datetime.datetime.max.replace(tzinfo=now.tzinfo)


def retry_delay(step: Step, number: int, chance: float = 1.0) -> float:
    """Seconds to wait before the retry of this ``number`` (from 1): exponential, capped, and with jitter between half
    of it and the whole.
    """
    try:
        delay = min(
            step.retry_max_delay, step.retry_delay * float(step.retry_backoff) ** (number - 1)
        )
    except OverflowError:
        delay = step.retry_max_delay if step.retry_delay else 0.0
    return delay * (0.5 + 0.5 * chance) if step.retry_jitter else delay


def exhausted(step: Step, tries: Tries) -> Exhausted | None:
    """Why a job that has just been claimed is not to be run again, or None; ``tries`` as they were before the claim.

    After an ordinary failure `decide` has had its say. This is for attempts that nobody lived to judge.
    """
    losses = {"fail": 1, "retry": MAX_LOSSES}.get(step.on_lost)  # after "hold" a person has decided
    if losses is not None and tries.lost >= losses:
        times = "" if tries.lost == 1 else f" {tries.lost} times"
        return Exhausted(
            f"The worker was lost{times} while it ran {step.path}: the job may be what kills it."
        )
    if tries.failures > tries.retries:
        times = "once" if tries.failures == 1 else f"{tries.failures} times"
        return Exhausted(
            f"{step.path} has failed or timed out {times}; retries that are allowed: {tries.retries}."
        )
    if (
        tries.max_runs is not None
        and tries.attempt > tries.max_runs
        and (tries.failures or tries.lost)
    ):
        return Exhausted(
            f'The job was run as often as DBQ["MAX_RUNS"] allows: {tries.max_runs} times.'
        )
    return None


def decide_lost(step: Step, tries: Tries) -> Decision:
    """Decide where a job goes whose worker has stopped reporting.

    One that has been lost too often goes on all the same: whoever claims it next fails it (`exhausted`), and runs its
    failure hook.
    """
    event = Event.LOST_AND_HELD if step.on_lost == "hold" else Event.LOST
    return Decision(
        event,
        target(event),
        step,
        AttemptOutcome.LOST,
        failures=tries.failures,
        lost=tries.lost + 1,
    )
