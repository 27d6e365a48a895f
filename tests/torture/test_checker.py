"""The checker can fail: a good history passes, and each promise is found broken in one that was spoiled by hand."""

import datetime
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.torture import checker
from tests.torture.checker import AttemptRow, EffectRow, History, JobRow, WorkerRow, check
from tests.torture.kinds import KINDS

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def at(seconds: float) -> datetime.datetime:
    return START + datetime.timedelta(seconds=seconds)


class Story:
    """A history that is told job by job, with one worker, ``w1``, and a second, ``w2``."""

    def __init__(self) -> None:
        workers = [WorkerRow(1, "w1", at(100)), WorkerRow(2, "w2", at(100))]
        self.history = History(planned={}, kinds=KINDS, workers=workers)

    def job(
        self, name: str, state: str = "COMPLETE", *, planned: bool = True, **fields: Any
    ) -> Any:
        """A job; its number of attempts and its end follow from what is told of it."""
        key = uuid.uuid4()
        if planned:
            self.history.planned = {**self.history.planned, key: name}
        values = {"attempt": 0, "worker": 1, "finished": None, "workspace": {}} | fields
        self.history.jobs.append(JobRow(key, name, state, **values))
        return key

    def change(self, key: Any, **fields: Any) -> None:
        jobs = self.history.jobs
        jobs[:] = [job._replace(**fields) if job.id == key else job for job in jobs]

    def attempt(
        self,
        key: Any,
        outcome: str = "succeeded",
        *effects: tuple[str, float],
        step: int = 0,
        begin: float = 1.0,
        end: float = 2.0,
        worker: int = 1,
        error: str = "",
    ) -> None:
        """The job's next attempt, and what it has done when."""
        (job,) = (job for job in self.history.jobs if job.id == key)
        number = job.attempt + 1
        row = AttemptRow(key, number, step, outcome, f"w{worker}", at(begin), at(end), error)
        self.history.attempts.append(row)
        for kind, time in effects:
            self.effect(key, kind, time, step=step, attempt=number, worker=worker)
        ended = job.state in ("COMPLETE", "FAILED")
        workspace = dict(job.workspace)
        if outcome == "succeeded":
            workspace["trail"] = [*workspace.get("trail", ()), step]
        finished = at(end) if ended else None
        self.change(key, attempt=number, finished=finished, workspace=workspace)

    def effect(
        self, key: Any, kind: str, time: float, *, step: int = 0, attempt: int = 1, worker: int = 1
    ) -> None:
        self.history.effects.append(EffectRow(key, step, attempt, worker, kind, 1, at(time)))


RUN = (("start", 1.0), ("end", 2.0))


def plain(story: Story) -> Any:
    key = story.job("plain")
    story.attempt(key, "succeeded", *RUN)
    return key


def good() -> Story:
    """One of everything that a round may honestly leave."""
    story = Story()
    plain(story)

    chain = story.job("chain")
    for step in range(3):
        times = ("start", 10.0 * step + 1), ("end", 10.0 * step + 2)
        story.attempt(chain, "succeeded", *times, step=step, begin=10 * step + 1, end=10 * step + 2)

    flaky = story.job("flaky", workspace={"fails": 1})
    planned = "tests.torture.tasks.Planned: failure 1 of 1"
    story.attempt(flaky, "failed", ("start", 1), error=planned)
    story.attempt(flaky, "succeeded", ("start", 3), ("end", 4), begin=3, end=4)

    broken = story.job("aborting", "FAILED")
    story.attempt(broken, "failed", ("start", 1), ("hook", 2), error="planned")

    # Lost with its worker, which was frozen and writes on when the job has long been finished by another.
    zombie = story.job("plain")
    story.attempt(zombie, "lost", ("start", 1), ("end", 30), error="lost", end=3)
    story.attempt(zombie, "succeeded", ("start", 4), ("end", 5), begin=4, end=5, worker=2)

    # The same with a worker that was stopping: its attempt was given back, and its number used again.
    returned = story.job("plain")
    story.effect(returned, "start", 97, worker=2)
    story.effect(returned, "end", 101, worker=2)
    story.attempt(returned, "succeeded", ("start", 98), ("end", 99), begin=98, end=99)

    killer = story.job("plain", "FAILED")
    for number in range(3):
        story.attempt(killer, "lost", ("start", number), begin=number, end=number + 0.9, error="x")
    story.attempt(killer, "failed", ("hook", 4), begin=4, end=5, error="Exhausted: lost 3 times")

    fragile = story.job("fragile", "FAILED")
    story.attempt(fragile, "lost", ("start", 1), error="lost")
    story.attempt(fragile, "failed", ("hook", 4), begin=4, end=5, error="Exhausted: lost")

    precious = story.job("precious", "PAUSED")
    story.attempt(precious, "lost", ("start", 1), error="lost")

    parent = story.job("slow creating")
    story.attempt(parent, "succeeded", *RUN)
    story.attempt(parent, "succeeded", ("atomic", 4), step=1, begin=3, end=5, worker=2)
    child = story.job("follow-on", planned=False, workspace={"parent": str(parent)})
    story.attempt(child, "succeeded", ("start", 6), ("end", 7), begin=6, end=7)

    stuck = story.job("stuck", "FAILED")
    story.attempt(stuck, "timed_out", ("start", 1), error="killed")
    story.attempt(stuck, "failed", ("hook", 4), begin=4, end=5, error="Exhausted: timed out")
    return story


def test_a_good_history_passes() -> None:
    history = good().history
    assert check(history) == []
    assert checker.doubled_atomic_effects(history) == 0
    assert checker.zombie_effects(history) == 3


# -- each promise, broken --


def lost_job(story: Story) -> None:
    story.history.planned = {**story.history.planned, uuid.uuid4(): "plain"}


def uncalled_job(story: Story) -> None:
    key = plain(story)
    story.history.planned = {k: v for k, v in story.history.planned.items() if k != key}


def unfinished(story: Story) -> None:
    story.job("plain", "READY")


def failed_without_need(story: Story) -> None:
    key = story.job("plain", "FAILED")
    story.attempt(key, "failed", ("start", 1), ("hook", 2), error="planned")


def failed_without_a_reason(story: Story) -> None:
    key = story.job("aborting", "FAILED")
    story.attempt(key, "lost", ("start", 0), begin=0, end=0.5, error="x")
    story.attempt(key, "lost", ("start", 1), begin=1, end=2, error="x")
    story.attempt(key, "lost", ("start", 3), begin=3, end=4, error="x")
    story.attempt(key, "failed", ("hook", 6), begin=5, end=7, error="")


def failed_after_two_losses(story: Story) -> None:
    key = story.job("plain", "FAILED")
    for number in range(2):
        story.attempt(key, "lost", ("start", number), begin=number, end=number + 0.9, error="x")
    story.attempt(key, "failed", ("hook", 4), begin=4, end=5, error="planned")


def complete_although_broken(story: Story) -> None:
    key = story.job("aborting")
    story.attempt(key, "succeeded", *RUN)


def paused_for_nothing(story: Story) -> None:
    key = story.job("plain", "PAUSED")
    story.attempt(key, "lost", ("start", 1), error="lost")


def complete_without_an_end(story: Story) -> None:
    story.change(plain(story), finished=None)


def held_at_the_end(story: Story) -> None:
    story.job("plain", "PROCESSING", attempt=0)


def open_worker(story: Story) -> None:
    story.history.workers.append(WorkerRow(3, "w3", None))


def attempt_twice(story: Story) -> None:
    key = plain(story)
    story.change(key, attempt=0)
    story.attempt(key, "succeeded", begin=3, end=4)


def attempt_forgotten(story: Story) -> None:
    story.change(plain(story), attempt=2)


def attempts_at_the_same_time(story: Story) -> None:
    key = story.job("flaky", workspace={"fails": 1})
    story.attempt(key, "failed", ("start", 1), error="Planned")
    story.attempt(key, "succeeded", ("start", 1.5), ("end", 3), begin=1.5, end=3, worker=2)


def lost_and_winner_at_the_same_time(story: Story) -> None:
    key = story.job("plain")
    story.attempt(key, "failed", ("start", 1), end=3, error="Planned")
    story.attempt(key, "lost", ("start", 2), begin=2, end=4, error="x", worker=2)
    story.attempt(key, "succeeded", ("start", 5), ("end", 6), begin=5, end=6)


def step_succeeds_twice(story: Story) -> None:
    key = plain(story)
    story.attempt(key, "succeeded", ("start", 3), ("end", 4), begin=3, end=4)


def step_skipped(story: Story) -> None:
    key = story.job("chain")
    story.attempt(key, "succeeded", *RUN)
    story.attempt(key, "succeeded", ("start", 3), ("end", 4), step=2, begin=3, end=4)


def steps_missing(story: Story) -> None:
    story.attempt(story.job("chain"), "succeeded", *RUN)


def workspace_forgotten(story: Story) -> None:
    story.change(plain(story), workspace={})


def workspace_of_a_failure(story: Story) -> None:
    key = story.job("flaky atomic", workspace={"fails": 1, "trail": [0]})
    story.attempt(key, "failed", error="Planned")
    story.attempt(key, "succeeded", ("atomic", 4), begin=3, end=5)


def step_too_early(story: Story) -> None:
    key = story.job("slow")
    story.effect(key, "start", 1.5, step=1, attempt=2, worker=2)
    story.attempt(key, "succeeded", *RUN)
    story.attempt(key, "lost", begin=3, end=4, step=1, worker=2, error="x")
    story.attempt(key, "succeeded", ("start", 5), ("end", 6), begin=5, end=6, step=1)


def step_without_predecessor(story: Story) -> None:
    key = story.job("slow", "FAILED")
    story.attempt(key, "failed", ("hook", 1.5), error="planned")
    story.effect(key, "start", 1.7, step=1)


def winner_without_work(story: Story) -> None:
    story.attempt(story.job("plain"), "succeeded", ("start", 1))


def winner_with_too_much(story: Story) -> None:
    story.attempt(story.job("plain"), "succeeded", *RUN, ("end", 2))


def atomic_effect_doubled(story: Story) -> None:
    key = story.job("atomic")
    story.attempt(key, "lost", ("atomic", 1.5), error="x")
    story.attempt(key, "succeeded", ("atomic", 4), begin=3, end=5, worker=2)


def atomic_effect_missing(story: Story) -> None:
    story.attempt(story.job("atomic"), "succeeded")


def atomic_effect_of_a_failure(story: Story) -> None:
    key = story.job("flaky atomic", "FAILED")
    story.attempt(key, "failed", ("atomic", 1.5), ("hook", 2), error="Planned")


def atomic_effect_of_another_attempt(story: Story) -> None:
    key = story.job("atomic")
    story.attempt(key, "lost", ("atomic", 1.5), error="x")
    story.attempt(key, "succeeded", begin=3, end=5, worker=2)


def follow_on_missing(story: Story) -> None:
    key = story.job("slow creating")
    story.attempt(key, "succeeded", *RUN)
    story.attempt(key, "succeeded", ("atomic", 4), step=1, begin=3, end=5)


def follow_on_doubled(story: Story) -> None:
    follow_on_missing(story)
    parent = story.history.jobs[-1].id
    for _ in range(2):
        key = story.job("follow-on", planned=False, workspace={"parent": str(parent)})
        story.attempt(key, "succeeded", ("start", 6), ("end", 7), begin=6, end=7)


def follow_on_of_a_failure(story: Story) -> None:
    key = story.job("aborting", "FAILED")
    story.attempt(key, "failed", ("start", 1), ("hook", 2), error="planned")
    child = story.job("follow-on", planned=False, workspace={"parent": str(key)})
    story.attempt(child, "succeeded", ("start", 6), ("end", 7), begin=6, end=7)


def follow_on_without_parent(story: Story) -> None:
    key = story.job("follow-on", planned=False, workspace={"parent": str(uuid.uuid4())})
    story.attempt(key, "succeeded", *RUN)


def winner_writes_afterwards(story: Story) -> None:
    key = story.job("flaky", workspace={"fails": 1})
    story.attempt(key, "failed", ("start", 1), ("end", 2.5), error="Planned")
    story.attempt(key, "succeeded", ("start", 3), ("end", 4), begin=3, end=4, worker=2)


def run_that_nobody_recorded(story: Story) -> None:
    story.effect(plain(story), "start", 1.5, worker=2)  # and that worker went on for a long time


def run_of_an_unknown_worker(story: Story) -> None:
    story.effect(plain(story), "start", 1.5, worker=9)


def effect_of_no_job(story: Story) -> None:
    story.effect(uuid.uuid4(), "start", 1)


def claim_run_twice(story: Story) -> None:
    key = story.job("plain")
    story.attempt(key, "lost", ("start", 1), ("start", 1.5), error="x")
    story.attempt(key, "succeeded", ("start", 3), ("end", 4), begin=3, end=4)


def effect_after_the_end(story: Story) -> None:
    key = story.job("plain")
    story.attempt(key, "succeeded", ("start", 1), ("end", 2.5), end=3)
    story.change(key, finished=at(2))


def atomic_effect_after_the_end(story: Story) -> None:
    key = story.job("atomic")
    story.attempt(key, "lost", ("atomic", 9), error="x")
    story.attempt(key, "succeeded", begin=3, end=5, worker=2)


def hook_missing(story: Story) -> None:
    key = story.job("aborting", "FAILED")
    story.attempt(key, "failed", ("start", 1), error="planned")


def hook_of_a_success(story: Story) -> None:
    story.attempt(story.job("plain"), "succeeded", *RUN, ("hook", 2))


def failure_forgotten(story: Story) -> None:
    key = story.job("flaky", workspace={"fails": 2})
    story.attempt(key, "failed", ("start", 1), error="Planned")
    story.attempt(key, "succeeded", ("start", 3), ("end", 4), begin=3, end=4)


def failure_counted_twice(story: Story) -> None:
    key = story.job("flaky", workspace={"fails": 1})
    story.attempt(key, "failed", ("start", 1), error="Planned")
    story.attempt(key, "failed", ("start", 3), begin=3, end=4, error="Planned")
    story.attempt(key, "succeeded", ("start", 5), ("end", 6), begin=5, end=6)


def failure_that_nobody_planned(story: Story) -> None:
    key = story.job("flaky", workspace={"fails": 1})
    story.attempt(key, "failed", ("start", 1), error="KeyError: 'fails'")
    story.attempt(key, "succeeded", ("start", 3), ("end", 4), begin=3, end=4)


def timeout_that_nobody_planned(story: Story) -> None:
    key = story.job("plain")
    story.attempt(key, "timed_out", ("start", 1), error="late")
    story.attempt(key, "succeeded", ("start", 3), ("end", 4), begin=3, end=4)


BROKEN: dict[Callable[[Story], None], str] = {
    lost_job: "every_job_is_there",
    uncalled_job: "every_job_is_there",
    unfinished: "every_job_has_ended",
    failed_without_need: "every_job_has_ended",
    failed_without_a_reason: "every_job_has_ended",
    failed_after_two_losses: "every_job_has_ended",
    complete_although_broken: "every_job_has_ended",
    paused_for_nothing: "every_job_has_ended",
    complete_without_an_end: "every_job_has_ended",
    held_at_the_end: "no_orphan_claims",
    open_worker: "no_orphan_claims",
    attempt_twice: "attempts_are_numbered",
    attempt_forgotten: "attempts_are_numbered",
    attempts_at_the_same_time: "attempts_do_not_overlap",
    lost_and_winner_at_the_same_time: "attempts_do_not_overlap",
    step_succeeds_twice: "steps_succeed_once_in_order",
    step_skipped: "steps_succeed_once_in_order",
    steps_missing: "steps_succeed_once_in_order",
    workspace_forgotten: "steps_succeed_once_in_order",
    workspace_of_a_failure: "steps_succeed_once_in_order",
    step_too_early: "no_step_before_its_predecessor",
    step_without_predecessor: "no_step_before_its_predecessor",
    winner_without_work: "winners_did_the_work",
    winner_with_too_much: "winners_did_the_work",
    atomic_effect_doubled: "atomic_effects_are_exact",
    atomic_effect_missing: "atomic_effects_are_exact",
    atomic_effect_of_a_failure: "atomic_effects_are_exact",
    atomic_effect_of_another_attempt: "atomic_effects_are_exact",
    follow_on_missing: "follow_ons_are_exact",
    follow_on_doubled: "follow_ons_are_exact",
    follow_on_of_a_failure: "follow_ons_are_exact",
    follow_on_without_parent: "follow_ons_are_exact",
    winner_writes_afterwards: "winners_write_within_their_attempt",
    run_that_nobody_recorded: "executions_are_accounted_for",
    run_of_an_unknown_worker: "executions_are_accounted_for",
    effect_of_no_job: "executions_are_accounted_for",
    claim_run_twice: "one_run_per_claim",
    effect_after_the_end: "nothing_after_the_end",
    atomic_effect_after_the_end: "nothing_after_the_end",
    hook_missing: "failure_hooks_are_exact",
    hook_of_a_success: "failure_hooks_are_exact",
    failure_forgotten: "failures_are_counted",
    failure_counted_twice: "failures_are_counted",
    failure_that_nobody_planned: "nothing_fails_unasked",
    timeout_that_nobody_planned: "nothing_fails_unasked",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_broken_promise_is_found(spoil: Callable[[Story], None]) -> None:
    story = good()
    spoil(story)
    assert BROKEN[spoil] in {finding.invariant for finding in check(story.history)}


def test_every_promise_is_broken_once() -> None:
    assert set(BROKEN.values()) == {invariant.__name__ for invariant in checker.INVARIANTS}


def test_atomic_effects_are_counted() -> None:
    story = good()
    atomic_effect_doubled(story)
    assert checker.doubled_atomic_effects(story.history) == 1
