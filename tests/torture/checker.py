"""Prove from the rows that a round has left that nothing was lost, doubled or stuck. Pure: rows in, findings out.

An *execution* is a task's run under one claim: (job, worker, attempt number). It *won* if its attempt was recorded as
succeeded, failed or retried. It was *cut off* if its attempt was recorded as lost or timed out, or was given back when
its worker ended: such a task may go on for a while and leave effects (a *zombie's*), unless its step is atomic.
"""

import datetime
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

from .kinds import Kind

# The database's clock counts whole milliseconds on SQLite; the workers' microseconds.
TICK = datetime.timedelta(milliseconds=2)
LOSSES = 3  # after so many, a job counts as the killer of its workers
# A stopping worker gives an attempt back at most so long before its end: its grace, and the writing.
WIND_UP = datetime.timedelta(seconds=8)

DATABASE_ERROR = re.compile(r"^django\.db\.utils\.(Operational|Interface)Error: ", re.MULTILINE)

SUCCEEDED, FAILED, TIMED_OUT, LOST, RETRIED = "succeeded", "failed", "timed_out", "lost", "retried"
CUT_OFF = (LOST, TIMED_OUT)


class JobRow(NamedTuple):
    id: UUID
    name: str
    state: str
    attempt: int
    worker: int | None
    finished: datetime.datetime | None
    workspace: dict[str, Any]


class AttemptRow(NamedTuple):
    job: UUID
    number: int
    step: int
    outcome: str
    worker: str  # its label
    started: datetime.datetime
    finished: datetime.datetime
    error: str


class EffectRow(NamedTuple):
    job: UUID
    step: int
    attempt: int
    worker: int
    kind: str
    pid: int
    at: datetime.datetime


class WorkerRow(NamedTuple):
    id: int
    label: str
    stopped: datetime.datetime | None


@dataclass(frozen=True)
class Finding:
    """A broken promise.

    Args:
        invariant: the name of the check that found it.
        text: what is wrong.
        job: of which job, if it is about one.
    """

    invariant: str
    text: str
    job: UUID | None = None


@dataclass
class History:
    """All rows after a round, and what was to be done.

    Args:
        planned: the names of the jobs that were created, by id.
    """

    planned: Mapping[UUID, str]
    kinds: Mapping[str, Kind]
    jobs: list[JobRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    effects: list[EffectRow] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)

    @cached_property
    def lives(self) -> list["Life"]:
        """Each job with all that belongs to it, attempts and effects in order."""
        attempts, effects = defaultdict(list), defaultdict(list)
        for attempt in sorted(self.attempts, key=lambda row: row.number):
            attempts[attempt.job].append(attempt)
        for effect in sorted(self.effects, key=lambda row: row.at):
            effects[effect.job].append(effect)
        labels = {worker.id: worker.label for worker in self.workers}
        return [
            Life(job, self.kinds[job.name], attempts[job.id], effects[job.id], labels)
            for job in self.jobs
        ]

    @cached_property
    def children(self) -> dict[str, list[JobRow]]:
        """Follow-on jobs by the id of the job that has created them."""
        children = defaultdict(list)
        for job in self.jobs:
            if "parent" in job.workspace:
                children[job.workspace["parent"]].append(job)
        return children


@dataclass
class Life:
    """One job, its attempts by number and its effects by time."""

    job: JobRow
    kind: Kind
    attempts: list[AttemptRow]
    effects: list[EffectRow]
    labels: Mapping[int, str]  # of workers

    def attempt_of(self, effect: EffectRow) -> AttemptRow | None:
        """The attempt that this effect's execution has become; None if its number was given back."""
        label = self.labels.get(effect.worker)
        for attempt in self.attempts:
            if attempt.number == effect.attempt and attempt.worker == label:
                return attempt
        return None

    def is_cut_off(self, effect: EffectRow) -> bool:
        attempt = self.attempt_of(effect)
        return attempt is None or attempt.outcome in CUT_OFF

    def began(self, attempt: AttemptRow) -> datetime.datetime | None:
        """When an attempt began. Of a lost one there is only the claim's own time, from before it waited for its turn:
        what it has done tells, if it has done anything.
        """
        if attempt.outcome != LOST:
            return attempt.started
        done = [e.at for e in self.effects if self.attempt_of(e) is attempt]
        return min(done, default=None)

    def at_step(self, step: int, *outcomes: str) -> list[AttemptRow]:
        return [a for a in self.attempts if a.step == step and a.outcome in outcomes]

    @property
    def gave_up(self) -> AttemptRow | None:
        """The attempt in which the job was failed without being run, because of what became of those before."""
        last = self.attempts[-1] if self.attempts else None
        if last is None or last.outcome != FAILED or self.job.state != "FAILED":
            return None
        losses = len(self.at_step(last.step, LOST))
        killer = losses >= (1 if self.kind.on_lost == "fail" else LOSSES)
        overran = self.kind.ends == "FAILED" and self.at_step(last.step, TIMED_OUT)
        return last if killer or overran else None

    def text(self) -> str:
        """All that is known, in the order of time."""
        lines = [
            (a.started, f"attempt {a.number} of step {a.step} by {a.worker} begins")
            for a in self.attempts
        ]
        for a in self.attempts:
            why = a.error.strip().rpartition("\n")[2]
            lines.append(
                (
                    a.finished,
                    f"attempt {a.number} of step {a.step} by {a.worker}: {a.outcome} {why}",
                )
            )
        lines += [
            (
                e.at,
                f"{e.kind} of step {e.step}, attempt {e.attempt}, worker {e.worker}, pid {e.pid}",
            )
            for e in self.effects
        ]
        if self.job.finished is not None:
            lines.append((self.job.finished, "finished"))
        told = "\n".join(f"    {at:%H:%M:%S.%f} {line}" for at, line in sorted(lines))
        return f"{self.job}\n{told}"


# -- the promises: each yields what breaks it --


def every_job_is_there(history: History) -> Iterator[Finding]:
    """A job that was created is there, and there is no other but follow-ons of these."""
    rows = Counter(job.id for job in history.jobs)
    for key, name in history.planned.items():
        if not rows[key]:
            yield Finding("every_job_is_there", f"a {name!r} job is lost", key)
    for job in history.jobs:
        if job.id not in history.planned and job.name != "follow-on":
            yield Finding("every_job_is_there", "nobody has asked for this job", job.id)


def every_job_has_ended(history: History) -> Iterator[Finding]:
    """COMPLETE, or FAILED or PAUSED with a recorded reason that its kind allows."""
    for life in history.lives:
        job, kind = life.job, life.kind
        reason = life.attempts[-1].error.strip() if life.attempts else ""
        if job.state == "COMPLETE":
            allowed = kind.ends == "COMPLETE"
        elif job.state == "FAILED":
            allowed = kind.ends == "FAILED" or life.gave_up is not None
        elif job.state == "PAUSED":
            allowed = kind.on_lost == "hold" and life.attempts[-1:] != []
            allowed = allowed and life.attempts[-1].outcome == LOST
        else:
            yield Finding("every_job_has_ended", f"still {job.state}", job.id)
            continue
        if not allowed:
            yield Finding("every_job_has_ended", f"{job.state}: {reason or 'no reason'}", job.id)
        elif job.state != "COMPLETE" and not reason:
            yield Finding("every_job_has_ended", f"{job.state} without a reason", job.id)
        if (job.finished is None) != (job.state == "PAUSED"):
            yield Finding("every_job_has_ended", f"{job.state}, finished {job.finished}", job.id)


def no_orphan_claims(history: History) -> Iterator[Finding]:
    """Nobody holds a job any more; every worker's row is closed."""
    stopped = {worker.id: worker.stopped for worker in history.workers}
    for job in history.jobs:
        if job.state in ("PROCESSING", "STOPPING"):
            ended = stopped.get(job.worker or 0, "that has no row")
            yield Finding("no_orphan_claims", f"held by a worker {ended or 'still there'}", job.id)
    for worker in history.workers:
        if worker.stopped is None:
            yield Finding("no_orphan_claims", f"the row of worker {worker.label} is open")


def attempts_are_numbered(history: History) -> Iterator[Finding]:
    """Each attempt has a number of its own, from 1 without gaps up to the job's."""
    for life in history.lives:
        numbers = [attempt.number for attempt in life.attempts]
        if numbers != list(range(1, life.job.attempt + 1)):
            text = f"attempts {numbers} of a job that counts {life.job.attempt}"
            yield Finding("attempts_are_numbered", text, life.job.id)


def attempts_do_not_overlap(history: History) -> Iterator[Finding]:
    """An attempt begins after the one before it has ended, one way or another."""
    for life in history.lives:
        for before, after in pairwise(life.attempts):
            began = life.began(after)
            if began is not None and began < before.finished - TICK:
                text = f"attempt {after.number} began before {before.number} had ended"
                yield Finding("attempts_do_not_overlap", text, life.job.id)


def steps_succeed_once_in_order(history: History) -> Iterator[Finding]:
    """Each step up to where the job stands succeeded once, in order, and left its mark in the workspace."""
    for life in history.lives:
        done = [a.step for a in life.attempts if a.outcome == SUCCEEDED]
        if done != list(range(len(done))):
            yield Finding("steps_succeed_once_in_order", f"steps {done} succeeded", life.job.id)
        if life.job.state == "COMPLETE" and len(done) != len(life.kind.tasks):
            text = f"COMPLETE after {len(done)} of {len(life.kind.tasks)} steps"
            yield Finding("steps_succeed_once_in_order", text, life.job.id)
        trail = life.job.workspace.get("trail", [])
        if trail != done:
            text = f"steps {done} succeeded and the workspace has {trail}"
            yield Finding("steps_succeed_once_in_order", text, life.job.id)


def no_step_before_its_predecessor(history: History) -> Iterator[Finding]:
    """Nothing of a step happens before the step in front of it has succeeded."""
    for life in history.lives:
        ends = {a.step: a.finished for a in life.attempts if a.outcome == SUCCEEDED}
        for effect in life.effects:
            if not effect.step:
                continue
            before = ends.get(effect.step - 1)
            if before is None or effect.at < before - TICK:
                text = f"{effect.kind} of step {effect.step}; the one before it ended {before or 'never'}"
                yield Finding("no_step_before_its_predecessor", text, life.job.id)


def winners_did_the_work(history: History) -> Iterator[Finding]:
    """An attempt that is recorded as succeeded has run from its start to its end, once."""
    for life in history.lives:
        for attempt in life.attempts:
            if attempt.outcome != SUCCEEDED or attempt.step in life.kind.atomic:
                continue
            kinds = [
                e.kind
                for e in life.effects
                if e.attempt == attempt.number and life.labels.get(e.worker) == attempt.worker
            ]
            if kinds != ["start", "end"]:
                text = f"attempt {attempt.number} succeeded and has done {kinds}"
                yield Finding("winners_did_the_work", text, life.job.id)


def atomic_effects_are_exact(history: History) -> Iterator[Finding]:
    """An atomic step's effect is there once if the step has succeeded, by that very attempt, and else not at all."""
    for life in history.lives:
        for step in sorted(life.kind.atomic):
            won = [a.number for a in life.at_step(step, SUCCEEDED)]
            left = [e.attempt for e in life.effects if e.kind == "atomic" and e.step == step]
            if left != won:
                text = f"step {step} succeeded in attempts {won} and has effects of {left}"
                yield Finding("atomic_effects_are_exact", text, life.job.id)


def follow_ons_are_exact(history: History) -> Iterator[Finding]:
    """A step that creates a job has created one if it has succeeded, and else none."""
    for life in history.lives:
        children = len(history.children.get(str(life.job.id), ()))
        creates = life.kind.creates
        wanted = 0 if creates is None else len(life.at_step(creates, SUCCEEDED))
        if children != wanted:
            text = f"{children} follow-on jobs instead of {wanted}"
            yield Finding("follow_ons_are_exact", text, life.job.id)
    for parent in history.children.keys() - {str(job.id) for job in history.jobs}:
        yield Finding("follow_ons_are_exact", f"follow-on of {parent}, which is not there")


def winners_write_within_their_attempt(history: History) -> Iterator[Finding]:
    """What an execution that won has done lies between the start and the end of its attempt."""
    for life in history.lives:
        for effect in life.effects:
            attempt = life.attempt_of(effect)
            if attempt is None or attempt.outcome in CUT_OFF:
                continue
            if not attempt.started - TICK <= effect.at <= attempt.finished + TICK:
                text = f"{effect.kind} of attempt {effect.attempt} outside of its time"
                yield Finding("winners_write_within_their_attempt", text, life.job.id)


def executions_are_accounted_for(history: History) -> Iterator[Finding]:
    """Every effect belongs to a recorded attempt, or to one that its worker gave back when it ended."""
    stopped = {worker.id: worker.stopped for worker in history.workers}
    for life in history.lives:
        for effect in life.effects:
            if life.attempt_of(effect) is not None:
                continue
            end = stopped.get(effect.worker)
            again = [a.started for a in life.attempts if a.number == effect.attempt]
            if end is None or effect.kind == "atomic" or min(again, default=end) < end - WIND_UP:
                text = f"{effect.kind} of attempt {effect.attempt} by worker {effect.worker}, unrecorded"
                yield Finding("executions_are_accounted_for", text, life.job.id)
    known = {job.id for job in history.jobs}
    for effect in history.effects:
        if effect.job not in known:
            yield Finding("executions_are_accounted_for", "an effect of no job", effect.job)


def one_run_per_claim(history: History) -> Iterator[Finding]:
    """A claim runs its task once."""
    starts = Counter((e.job, e.worker, e.attempt) for e in history.effects if e.kind == "start")
    for (job, worker, attempt), count in starts.items():
        if count > 1:
            text = f"attempt {attempt} was run {count} times by worker {worker}"
            yield Finding("one_run_per_claim", text, job)


def nothing_after_the_end(history: History) -> Iterator[Finding]:
    """Once a job has ended, only what a cut-off task still does can come; in an atomic step not even that."""
    for life in history.lives:
        if life.job.finished is None:
            continue
        for effect in life.effects:
            late = effect.at > life.job.finished + TICK
            if late and (effect.kind == "atomic" or not life.is_cut_off(effect)):
                text = f"{effect.kind} of attempt {effect.attempt} after the job had ended"
                yield Finding("nothing_after_the_end", text, life.job.id)


def failure_hooks_are_exact(history: History) -> Iterator[Finding]:
    """The failure hook ran for a job that FAILED, and for no other."""
    for life in history.lives:
        hooks = sum(effect.kind == "hook" for effect in life.effects)
        if (life.job.state == "FAILED") != bool(hooks):
            text = f"{life.job.state}, and its failure hook ran {hooks} times"
            yield Finding("failure_hooks_are_exact", text, life.job.id)


def failures_are_counted(history: History) -> Iterator[Finding]:
    """A task that fails until it has failed n times did so: none of its failures was forgotten or counted twice."""
    for life in history.lives:
        wanted = life.job.workspace.get("fails", life.job.workspace.get("overruns"))
        if wanted is None or life.job.state != "COMPLETE":
            continue
        for step, task in enumerate(life.kind.tasks):
            if not task.startswith(("flaky", "overrunning")):
                continue
            failures = life.at_step(step, FAILED, TIMED_OUT)
            planned = sum("Planned" in attempt.error for attempt in failures)
            if len(failures) < wanted or planned > wanted:
                text = f"step {step}: {wanted} failures wanted, {len(failures)} recorded"
                yield Finding("failures_are_counted", text, life.job.id)


def nothing_fails_unasked(history: History) -> Iterator[Finding]:
    """A failure is one that the plan asks for, a database that went away under a transaction, or what losses led to."""
    for life in history.lives:
        for attempt in life.attempts:
            asked = "lanned" in attempt.error or is_database_error(attempt)
            if attempt.outcome == FAILED and not asked and attempt is not life.gave_up:
                text = f"attempt {attempt.number}: {attempt.error.strip().rpartition(chr(10))[2]}"
                yield Finding("nothing_fails_unasked", text, life.job.id)
            if attempt.outcome == TIMED_OUT and "timeout" not in life.kind.options:
                text = f"attempt {attempt.number} timed out, without a timeout"
                yield Finding("nothing_fails_unasked", text, life.job.id)


def is_database_error(attempt: AttemptRow) -> bool:
    """Whether an attempt failed because its database went away or was busy."""
    # Its message may have several lines; before it stands what it was caused by, which the driver calls the same.
    return attempt.outcome == FAILED and bool(DATABASE_ERROR.search(attempt.error))


INVARIANTS: tuple[Callable[[History], Iterator[Finding]], ...] = (
    every_job_is_there,
    every_job_has_ended,
    no_orphan_claims,
    attempts_are_numbered,
    attempts_do_not_overlap,
    steps_succeed_once_in_order,
    no_step_before_its_predecessor,
    winners_did_the_work,
    atomic_effects_are_exact,
    follow_ons_are_exact,
    winners_write_within_their_attempt,
    executions_are_accounted_for,
    one_run_per_claim,
    nothing_after_the_end,
    failure_hooks_are_exact,
    failures_are_counted,
    nothing_fails_unasked,
)


def check(history: History) -> list[Finding]:
    """All broken promises of a round; none if it went well."""
    return [finding for invariant in INVARIANTS for finding in invariant(history)]


# -- what a report counts --


def doubled_atomic_effects(history: History) -> int:
    """Effects of atomic steps beyond the first of their job and step."""
    effects = Counter((e.job, e.step) for e in history.effects if e.kind == "atomic")
    return sum(count - 1 for count in effects.values())


def zombie_effects(history: History) -> int:
    """Effects that cut-off tasks wrote after their attempt had been declared over, or given back."""
    return sum(
        attempt is None or (attempt.outcome in CUT_OFF and effect.at > attempt.finished + TICK)
        for life in history.lives
        for effect in life.effects
        for attempt in [life.attempt_of(effect)]
    )
