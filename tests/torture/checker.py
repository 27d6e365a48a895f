"""Prove from the rows that a round has left that nothing was lost, doubled or stuck. Pure: rows in, findings out.

An *execution* is a task's run under one claim: (job, worker, attempt number). It *won* if its attempt was recorded as
succeeded, failed, retried or waited. It was *cut off* if its attempt was recorded as lost, timed out or cancelled, or
was given back when its worker ended: such a task may go on for a while and leave effects (a *zombie's*), unless its
step is atomic. What is promised of jobs that belong together, and to those who intervene, is in `relations`.
"""

import datetime
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

from . import relations
from .history import (
    CUT_OFF,
    FAILED,
    FINISHED,
    LOST,
    SUCCEEDED,
    TICK,
    TIMED_OUT,
    WAITED,
    Finding,
    History,
    Life,
    is_database_error,
)
from .kinds import Verb

# A stopping worker gives an attempt back at most so long before its end: its grace, and the writing.
WIND_UP = datetime.timedelta(seconds=8)


# -- the promises: each yields what breaks it --


def every_job_is_there(history: History) -> Iterator[Finding]:
    """A job that was created is there, and there is no other but follow-ons of these, and members."""
    rows = Counter(job.id for job in history.jobs)
    for key, name in history.planned.items():
        if not rows[key]:
            yield Finding("every_job_is_there", f"a {name!r} job is lost", key)
    for job in history.jobs:
        if job.parent is not None and job.parent not in rows:
            yield Finding("every_job_is_there", "a member of nobody", job.id)
        elif job.parent is None and job.id not in history.planned and job.name != "follow-on":
            yield Finding("every_job_is_there", "nobody has asked for this job", job.id)


def every_job_has_ended(history: History) -> Iterator[Finding]:
    """COMPLETE, or in another state with a recorded reason that its kind allows, or that somebody has wanted."""
    for life in history.lives:
        job, last = life.job, life.attempts[-1] if life.attempts else None
        reason = last.error.strip() if last is not None else ""
        match job.state:
            case "COMPLETE":
                allowed = life.kind.ends == "COMPLETE" or life.parent is not None
                allowed = allowed and not life.is_doomed
            case "FAILED":
                allowed = last is not None and (
                    life.is_doomed
                    or life.gave_up(last)
                    or life.members_failed(last)
                    or life.is_unredeemed(last)
                )
            case "PAUSED":
                allowed = life.kind.on_lost == "hold" and last is not None and last.outcome == LOST
            case "CANCELLED":
                allowed = life.cancelled is not None or is_rest(life)
            case "BLOCKED" | "WAITING":
                allowed = job.id in history.at_rest
            case _:
                allowed = False
        if not allowed:
            yield Finding("every_job_has_ended", f"{job.state}: {reason or 'no reason'}", job.id)
        elif job.state in ("FAILED", "PAUSED") and not reason:
            yield Finding("every_job_has_ended", f"{job.state} without a reason", job.id)
        if (job.finished is not None) != (job.state in FINISHED):
            yield Finding("every_job_has_ended", f"{job.state}, finished {job.finished}", job.id)


def is_rest(life: Life) -> bool:
    """Whether it is a member that was cancelled because another has failed, or is inside of such a member."""
    parent = life.parent
    while parent is not None and life.inside is not None:
        others = [other.job.state for other in parent.members_of(life.inside)]
        if life.inside.policy == "cancel_rest" and "FAILED" in others:
            return True
        life, parent = parent, parent.parent
    return False


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
        done, places = life.done, [place.number for place in life.sequence]
        if done != places[: len(done)]:
            yield Finding("steps_succeed_once_in_order", f"steps {done} succeeded", life.job.id)
        if life.job.state == "COMPLETE" and len(done) != len(places):
            text = f"COMPLETE after {len(done)} of {len(places)} steps"
            yield Finding("steps_succeed_once_in_order", text, life.job.id)
        workspace = life.job.workspace
        tasks = {place.number for place in life.places("task")}
        if life.parent is None and workspace.get("trail", []) != [n for n in done if n in tasks]:
            text = f"steps {done} succeeded and the workspace has {workspace.get('trail')}"
            yield Finding("steps_succeed_once_in_order", text, life.job.id)
        marks = {
            int(key.removeprefix("mark ")): number
            for key, number in workspace.items()
            if key.startswith("mark ")
        }
        if marks != life.marks():
            text = f"inside, {dict(life.marks())} have succeeded, and the workspace has {marks}"
            yield Finding("steps_succeed_once_in_order", text, life.job.id)


def no_step_before_its_predecessor(history: History) -> Iterator[Finding]:
    """Nothing of a step happens before the step in front of it has succeeded, and nothing of a member's first one
    before its group or map has begun.
    """
    for life in history.lives:
        ends = {a.step: a.finished for a in life.attempts if a.outcome == SUCCEEDED}
        before: dict[int, datetime.datetime | None] = {}
        if life.parent is not None:
            begun = [a for a in life.parent.attempts if a.number == life.job.parent_round]
            ends[-1] = min((a.finished for a in begun if a.outcome == WAITED), default=None)
        numbers = [place.number for place in life.sequence]
        for one, other in pairwise([-1, *numbers]):
            before[other] = ends.get(one)
        for effect in life.effects:
            if life.parent is None and numbers[:1] == [effect.step]:
                continue
            end = before.get(effect.step)
            if end is None or effect.at < end - TICK:
                text = (
                    f"{effect.kind} of step {effect.step}; the one before it ended {end or 'never'}"
                )
                yield Finding("no_step_before_its_predecessor", text, life.job.id)


def winners_did_the_work(history: History) -> Iterator[Finding]:
    """An attempt that is recorded as succeeded has run from its start to its end, once, if its step is a task."""
    for life in history.lives:
        tasks = {place.number for place in life.places("task")}
        for attempt in life.attempts:
            if attempt.outcome != SUCCEEDED or attempt.step in life.kind.atomic:
                continue
            kinds = [
                e.kind
                for e in life.effects
                if e.attempt == attempt.number and life.labels.get(e.worker) == attempt.worker
            ]
            if kinds != (["start", "end"] if attempt.step in tasks else []):
                text = f"attempt {attempt.number} succeeded and has done {kinds}"
                yield Finding("winners_did_the_work", text, life.job.id)


def atomic_effects_are_exact(history: History) -> Iterator[Finding]:
    """An atomic step's effect is there once if the step has succeeded, by that very attempt, and else not at all."""
    for life in history.lives:
        steps = {place.number for place in life.sequence} & life.kind.atomic
        for step in sorted(steps):
            won = [a.number for a in life.at_step(step, SUCCEEDED)]
            left = [e.attempt for e in life.effects if e.kind == "atomic" and e.step == step]
            if left != won:
                text = f"step {step} succeeded in attempts {won} and has effects of {left}"
                yield Finding("atomic_effects_are_exact", text, life.job.id)


def follow_ons_are_exact(history: History) -> Iterator[Finding]:
    """A step that creates jobs has created them if it has succeeded or waited for them, and else none; if it is not
    atomic, it may have come to some.
    """
    for life in history.lives:
        children = len(history.children.get(str(life.job.id), ()))
        creates = life.kind.creates
        number = int(life.job.workspace.get("orders", 1))
        wanted = range(1)
        if creates is not None:
            done = bool(life.at_step(creates, SUCCEEDED, WAITED))
            if done:
                wanted = range(number, number + 1)
            elif creates not in life.kind.atomic:
                wanted = range(number + 1)
        if children not in wanted:
            text = f"{children} follow-on jobs instead of {wanted.stop - 1}"
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
        if life.ended is None:
            continue
        for effect in life.effects:
            late = effect.at > life.ended + TICK
            if late and (effect.kind == "atomic" or not life.is_cut_off(effect)):
                text = f"{effect.kind} of attempt {effect.attempt} after the job had ended"
                yield Finding("nothing_after_the_end", text, life.job.id)


def failure_hooks_are_exact(history: History) -> Iterator[Finding]:
    """The failure hook ran when a job had failed for good, until somebody had it retried, and for no other reason; an
    execution that was cut off may have run it as well. Members have none.
    """
    for life in history.lives:
        final = {a.number for a in life.attempts if life.is_final(a)}
        ran = {
            effect.attempt
            for effect in life.effects
            if effect.kind == "hook" and (effect.attempt in final or not life.is_cut_off(effect))
        }
        if ran != (final if life.parent is None else set()):
            text = f"{life.job.state}, failed in attempts {final}, and its hook ran in {ran}"
            yield Finding("failure_hooks_are_exact", text, life.job.id)


def failures_are_counted(history: History) -> Iterator[Finding]:
    """A task that fails until it has failed n times did so: none of its failures was forgotten or counted twice."""
    for life in history.lives:
        wanted = life.job.workspace.get("fails", life.job.workspace.get("overruns"))
        if wanted is None or life.job.state != "COMPLETE":
            continue
        again = 1 + len(
            list(life.deeds_of(Verb.RETRY))
        )  # who has a job retried has it counted anew
        for place in life.places("task"):
            if not place.what.startswith(("flaky", "overrunning")):
                continue
            failures = life.at_step(place.number, FAILED, TIMED_OUT)
            planned = sum("Planned" in attempt.error for attempt in failures)
            if len(failures) < wanted or planned > wanted * again:
                text = f"step {place.number}: {wanted} failures wanted, {len(failures)} recorded"
                yield Finding("failures_are_counted", text, life.job.id)


def nothing_fails_unasked(history: History) -> Iterator[Finding]:
    """A failure is one that the plan asks for, a database that went away under a transaction, members that have failed,
    or what losses led to.
    """
    for life in history.lives:
        for attempt in life.attempts:
            place = life.kind.every[attempt.step]
            asked = "lanned" in attempt.error or is_database_error(attempt)
            asked = asked or life.gave_up(attempt) or life.members_failed(attempt)
            if attempt.outcome == FAILED and not asked:
                text = f"attempt {attempt.number}: {attempt.error.strip().rpartition(chr(10))[2]}"
                yield Finding("nothing_fails_unasked", text, life.job.id)
            timeout = "timeout" in (
                place.options if place.form == "wait_for" else life.kind.options
            )
            if attempt.outcome == TIMED_OUT and not timeout:
                text = f"attempt {attempt.number} timed out, without a timeout"
                yield Finding("nothing_fails_unasked", text, life.job.id)


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
    *relations.INVARIANTS,
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
