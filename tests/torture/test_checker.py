"""The checker can fail: a good history passes, and each promise is found broken in one that was spoiled by hand."""

import datetime
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.torture import checker
from tests.torture.checker import check
from tests.torture.history import (
    AttemptRow,
    Deed,
    DependencyRow,
    EffectRow,
    EventRow,
    History,
    JobRow,
    WorkerRow,
)
from tests.torture.kinds import KINDS, Verb

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
        ended = job.state in ("COMPLETE", "FAILED", "CANCELLED")
        workspace = dict(job.workspace)
        if outcome == "succeeded" and KINDS[job.name].every[step].form == "task":
            if job.parent is None:
                workspace["trail"] = [*workspace.get("trail", ()), step]
            else:
                workspace[f"mark {step}"] = 1
        finished = at(end) if ended else None
        self.change(key, attempt=number, finished=finished, workspace=workspace)

    def effect(
        self, key: Any, kind: str, time: float, *, step: int = 0, attempt: int = 1, worker: int = 1
    ) -> None:
        self.history.effects.append(EffectRow(key, step, attempt, worker, kind, 1, at(time)))

    def work(
        self, key: Any, step: int, begin: float, kinds: tuple[str, ...] = ("start", "end")
    ) -> None:
        """An attempt that has taken a second, and has succeeded."""
        end = begin + 1
        effects = [
            (kind, time) for kind, time in zip(kinds, (begin + 0.2, begin + 0.8), strict=False)
        ]
        self.attempt(key, "succeeded", *effects, step=step, begin=begin, end=end)

    def member(self, parent: Any, position: int, state: str = "COMPLETE", **fields: Any) -> Any:
        """A member of the group or map that its parent has begun with its last attempt."""
        (job,) = (job for job in self.history.jobs if job.id == parent)
        round_ = fields.pop("parent_round", job.attempt)
        values = {"parent": parent, "position": position, "parent_round": round_} | fields
        return self.job(job.name, state, planned=False, **values)

    def deed(
        self,
        key: Any,
        verb: Verb,
        begin: float,
        *,
        state: str = "READY",
        done: bool = True,
        payload: int = 0,
    ) -> None:
        """Something that is done to a job in a tenth of a second, when it has the attempts that are told so far."""
        numbers = {job.id: job.attempt for job in self.history.jobs if key in (job.id, job.parent)}
        deed = Deed(key, verb, at(begin), at(begin + 0.1), done, state, numbers, payload)
        self.history.deeds.append(deed)

    def merge(self, key: Any, *places: int) -> None:
        """The marks of a group's branches come to its job."""
        (job,) = (job for job in self.history.jobs if job.id == key)
        marks = {f"mark {place}": 1 for place in places}
        self.change(key, workspace={**job.workspace, **marks})

    def depend(self, key: Any, on: Any, state: str = "done", **policy: str) -> None:
        values = {"mode": "all", "on_failure": "block"} | policy
        self.history.dependencies.append(DependencyRow(key, on, state=state, **values))
        needs = self.history.needs
        self.history.needs = {**needs, key: [*needs.get(key, ()), on]}


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

    for tell in (fork, nest, failing_map, failing_map_cancelled, failing_fork_rest):
        tell(story)
    for tell in (cancelled, revived, paused, sleep, word, nothing_heard, dependent, blocked, order):
        tell(story)
    return story


PLANNED = "tests.torture.tasks.Planned: failure 1 of 1"
MEMBERS_FAILED = "django_dbq.steps.MembersFailed: 1 of the 2 members"


def fork(story: Story) -> Any:
    """A group whose branches are of all sorts, joined after 10 seconds."""
    key = story.job("forking", workspace={"fails": 1})
    story.work(key, 0, 1)
    story.attempt(key, "waited", step=1, begin=3, end=4)
    first, second = story.member(key, 0), story.member(key, 1)
    third = story.member(key, 2, workspace={"fails": 1})
    story.work(first, 2, 5, ("atomic",))
    story.work(first, 3, 7)
    story.attempt(second, "lost", ("start", 5), step=4, begin=4, end=6, error="lost", worker=2)
    story.work(second, 4, 7)
    story.attempt(third, "failed", ("start", 5), step=5, begin=5, end=6, error=PLANNED)
    story.work(third, 5, 7)
    story.work(third, 6, 9)
    story.attempt(key, step=1, begin=11, end=12)
    story.merge(key, 2, 3, 4, 5, 6)
    story.work(key, 7, 13, ("atomic",))
    story.work(key, 8, 15)
    return key


def nest(story: Story) -> None:
    """A group in a branch of another."""
    key = story.job("nesting")
    story.attempt(key, "waited", begin=1, end=2)
    first, second = story.member(key, 0), story.member(key, 1)
    story.work(first, 1, 3)
    story.work(second, 2, 3, ("atomic",))
    story.attempt(second, "waited", step=3, begin=5, end=6)
    inner = [story.member(second, n, workspace={"mark 2": 1}) for n in range(2)]
    story.work(inner[0], 4, 7)
    story.work(inner[1], 5, 7)
    story.work(inner[1], 6, 9, ("atomic",))
    story.attempt(second, step=3, begin=11, end=12)
    story.merge(second, 4, 5, 6)
    story.work(second, 7, 13)
    story.attempt(key, begin=15, end=16)
    story.merge(key, 1, 2, 4, 5, 6, 7)
    story.work(key, 8, 17, ("atomic",))


def failing_map(story: Story) -> Any:
    """A map, one of whose members fails until somebody has the job retried."""
    key = story.job("failing map", workspace={"items": [2, 3, 4], "bad": [1]})
    story.attempt(key, "waited", begin=1, end=2)
    members = [story.member(key, n, result=(2 + n) ** 2) for n in range(3)]
    for n, member in enumerate(members):
        if n == 1:
            failed = "tests.torture.tasks.Planned: this branch fails once"
            story.attempt(member, "failed", ("start", 3), step=1, begin=3, end=4, error=failed)
        else:
            story.work(member, 1, 3)
    story.attempt(key, "failed", ("hook", 6), begin=5, end=7, error=MEMBERS_FAILED)
    story.deed(key, Verb.RETRY, 8, state="FAILED")
    story.work(members[1], 1, 9)
    story.attempt(key, begin=11, end=12)
    story.change(key, workspace={"items": [2, 3, 4], "bad": [1], "squares": [4, 9, 16]})
    story.work(key, 2, 13)
    return key


def failing_map_cancelled(story: Story) -> Any:
    """A map whose job is cancelled between the failure of a member and the join; returns that member."""
    key = story.job("failing map", "CANCELLED", workspace={"items": [2, 3], "bad": [1]})
    story.attempt(key, "waited", begin=1, end=2)
    story.work(story.member(key, 0, workspace={"index": 0, "bad": [1]}, result=4), 1, 2.5)
    member = story.member(key, 1, "FAILED", workspace={"index": 1, "bad": [1]})
    story.attempt(member, "failed", ("start", 3), step=1, begin=3, end=4, error=PLANNED)
    story.deed(key, Verb.CANCEL, 5)
    return member


def failing_fork_rest(story: Story) -> Any:
    """A map whose other members are cancelled when one has failed; what runs goes on for a moment. A worker that was
    frozen with one of them, and was declared dead, begins with it when all is over.
    """
    key = story.job("mapping in vain", "FAILED", workspace={"items": [2, 3], "bad": [0]})
    story.attempt(key, "waited", begin=1, end=2)
    first = story.member(key, 0, "FAILED", workspace={"index": 0, "bad": [0]})
    second = story.member(key, 1, "CANCELLED", workspace={"index": 1, "bad": [0]})
    story.attempt(first, "lost", ("start", 8), step=1, begin=2, end=2.5, worker=2, error="lost")
    story.attempt(first, "failed", ("start", 3), step=1, begin=3, end=4, error=PLANNED)
    times = ("start", 4.2), ("end", 5)
    story.attempt(second, "cancelled", *times, step=1, begin=3, end=4, worker=2)
    story.attempt(key, "failed", ("hook", 6), begin=5, end=7, error=MEMBERS_FAILED)
    return key


def cancelled(story: Story) -> Any:
    """A job that is cancelled while its second step runs."""
    key = story.job("meddled", "CANCELLED")
    story.work(key, 0, 1)
    story.attempt(key, "cancelled", ("start", 3), ("end", 5), step=1, begin=3, end=4)
    story.deed(key, Verb.CANCEL, 4, state="PROCESSING")
    return key


def revived(story: Story) -> Any:
    """A job that is cancelled, and retried 10 seconds later."""
    key = story.job("meddled flaky", workspace={"fails": 1})
    story.attempt(key, "failed", ("start", 1), error=PLANNED)
    story.deed(key, Verb.CANCEL, 4)
    story.deed(key, Verb.RETRY, 14, state="CANCELLED")
    story.attempt(key, "failed", ("start", 15), begin=15, end=16, error=PLANNED)
    for step, begin in ((0, 17), (1, 19)):
        story.work(key, step, begin)
    story.attempt(key, "failed", ("start", 21), step=2, begin=21, end=22, error=PLANNED)
    story.work(key, 2, 23)
    return key


def paused(story: Story) -> Any:
    """A job that is paused while its first step runs, and resumed 10 seconds later."""
    key = story.job("meddled atomic")
    story.attempt(key, "lost", begin=1, end=2, error="lost")
    story.deed(key, Verb.PAUSE, 1.5, state="PROCESSING")
    story.deed(key, Verb.RESUME, 11.5, state="PAUSED")
    for step, begin in ((0, 12), (1, 14), (2, 16)):
        story.work(key, step, begin, ("atomic",))
    return key


def sleep(story: Story) -> Any:
    key = story.job("sleeping")
    story.work(key, 0, 1)
    story.attempt(key, "waited", step=1, begin=3, end=3.1)
    story.attempt(key, step=1, begin=3.4, end=3.5)
    story.work(key, 2, 4)
    return key


def word(story: Story) -> Any:
    """A wait, whose event is sent three times: the second is not accepted, and the third comes too late."""
    key = story.job("awaiting")
    story.work(key, 0, 1)
    story.deed(key, Verb.SEND, 2.5, payload=7)
    story.deed(key, Verb.SEND, 2.7, payload=8, done=False)
    story.attempt(key, step=1, begin=3, end=4)
    story.change(key, workspace={"trail": [0], "word": 7})
    story.deed(key, Verb.SEND, 4.5, payload=9)
    story.history.events += [EventRow(key, 7, 2), EventRow(key, 9, 0)]
    story.work(key, 2, 5)
    return key


def nothing_heard(story: Story) -> None:
    """A wait that goes on without its event, and one that does not."""
    key = story.job("awaiting or not")
    story.attempt(key, "waited", begin=1, end=2)
    story.attempt(key, begin=3, end=4)
    story.work(key, 1, 5)
    other = story.job("awaiting in vain", "FAILED")
    story.work(other, 0, 1)
    story.attempt(other, "waited", step=1, begin=3, end=4)
    told = "TimedOut: 'word' was not sent"
    story.attempt(other, "timed_out", ("hook", 6), step=1, begin=5, end=7, error=told)


def dependent(story: Story) -> Any:
    """A job that depends on two others, which end after 2 and 3 seconds."""
    first, second = story.job("plain"), story.job("plain")
    story.work(first, 0, 1)
    story.work(second, 0, 2)
    key = story.job("dependent")
    story.depend(key, first)
    story.depend(key, second)
    story.work(key, 0, 4)
    return key


def blocked(story: Story) -> Any:
    """A job that waits for one that has failed; another that waits for that; and two that make the best of it."""
    failed = story.job("aborting", "FAILED")
    story.attempt(failed, "failed", ("start", 1), ("hook", 2), error="planned")
    key = story.job("dependent", "BLOCKED")
    story.depend(key, failed, "failed")
    waits = story.job("dependent", "WAITING", waiting_for=1)
    story.depend(waits, key, "open")
    proceeds = story.job("dependent")
    story.depend(proceeds, failed, "failed", on_failure="proceed")
    story.work(proceeds, 0, 3)
    done = story.job("plain")
    story.work(done, 0, 1)
    one_is_enough = story.job("dependent")
    story.depend(one_is_enough, failed, "failed", mode="any")
    story.depend(one_is_enough, done, mode="any")
    story.work(one_is_enough, 0, 3)
    return key


def order(story: Story) -> Any:
    """A job whose task creates two others, and waits for them."""
    key = story.job("ordering", workspace={"orders": 2})
    story.attempt(key, "waited", ("start", 1))
    for _ in range(2):
        child = story.job("follow-on", planned=False, workspace={"parent": str(key)})
        story.work(child, 0, 3)
        story.history.dependencies.append(DependencyRow(key, child, "all", "block", "done"))
    story.work(key, 0, 5)
    story.work(key, 1, 7)
    return key


def test_a_good_history_passes() -> None:
    history = good().history
    assert check(history) == []
    assert checker.doubled_atomic_effects(history) == 0
    assert checker.zombie_effects(history) == 7


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


# -- groups and maps --


def member_of_nobody(story: Story) -> None:
    key = story.job("forking", planned=False, parent=uuid.uuid4(), position=0, parent_round=1)
    story.work(key, 2, 3, ("atomic",))


def branch_without_a_mark(story: Story) -> None:
    key = fork(story)
    story.change(key, workspace={"fails": 1, "trail": [0, 7, 8], "mark 2": 1, "mark 3": 1})


def branch_before_its_group(story: Story) -> None:
    fork(story)
    members = [job for job in story.history.jobs if job.parent is not None]
    story.effect(members[-1].id, "start", 3.5, step=5, worker=2)


def hook_of_a_member(story: Story) -> None:
    key = failing_fork_rest(story)
    member = next(job.id for job in story.history.jobs if job.parent == key)
    story.effect(member, "hook", 3.9, step=1, attempt=2)


def ordered_job_missing(story: Story) -> None:
    order(story)
    story.history.jobs = [job for job in story.history.jobs if job.name != "follow-on"]


def joined_in_vain(story: Story) -> None:
    key = failing_map(story)
    rows = story.history.jobs
    member = next(job.id for job in rows if job.parent == key and job.position == 1)
    story.change(member, state="FAILED")


def cancelled_by_nobody(story: Story) -> None:
    key = cancelled(story)
    story.history.deeds = [deed for deed in story.history.deeds if deed.job != key]


def failed_member_of_a_job_that_nobody_cancelled(story: Story) -> None:
    member = failing_map_cancelled(story)
    (deed,) = (deed for deed in story.history.deeds if member in deed.fence)
    story.history.deeds.remove(deed)
    story.change(deed.job, state="COMPLETE")


def failed_again_although_retried(story: Story) -> None:
    member = failing_map_cancelled(story)
    story.attempt(member, "failed", ("start", 4.3), step=1, begin=4.2, end=4.8, error=PLANNED)


def rest_of_nothing(story: Story) -> None:
    key = failing_map(story)
    member = next(job.id for job in story.history.jobs if job.parent == key)
    story.change(member, state="CANCELLED")


def waiting_for_a_job_that_runs(story: Story) -> None:
    key = story.job("dependent", "WAITING", waiting_for=1)
    story.depend(key, story.job("plain", "READY"), "open")


def missing_member(story: Story) -> None:
    key = failing_map(story)
    gone = next(job for job in story.history.jobs if job.parent == key and job.position == 2)
    story.history.jobs.remove(gone)


def doubled_member(story: Story) -> None:
    key = failing_map(story)
    story.work(story.member(key, 1, parent_round=1, result=9), 1, 3)


def members_created_again(story: Story) -> None:
    """By a second visit of its group."""
    key = story.job("forking twice")
    for begin in (1, 11):
        story.attempt(key, "waited", begin=begin, end=begin + 1)
        for number in range(2):
            story.work(story.member(key, number), 1 + number, begin + 2)
    story.attempt(key, begin=21, end=22)


def members_of_no_round(story: Story) -> None:
    key = fork(story)
    story.work(story.member(key, 0, parent_round=1), 2, 5, ("atomic",))


def joined_twice(story: Story) -> None:
    key = story.job("forking twice")
    story.attempt(key, "waited", begin=1, end=2)
    for number in range(2):
        story.work(story.member(key, number), 1 + number, 3)
    for begin in (5, 7):
        story.attempt(key, begin=begin, end=begin + 1)


def step_after_a_join_doubled(story: Story) -> None:
    key = fork(story)
    story.work(key, 7, 18, ("atomic",))


def joined_too_early(story: Story) -> None:
    key = story.job("forking twice")
    story.attempt(key, "waited", begin=1, end=2)
    first, second = (story.member(key, number) for number in range(2))
    story.work(first, 1, 3)
    story.work(second, 2, 6)
    story.attempt(key, begin=5, end=6)


def joined_with_an_open_member(story: Story) -> None:
    key = fork(story)
    member = next(job.id for job in story.history.jobs if job.parent == key)
    story.change(member, state="READY", finished=None)


def step_after_a_join_too_early(story: Story) -> None:
    story.effect(fork(story), "atomic", 9.5, step=7, attempt=4)


def results_in_disorder(story: Story) -> None:
    key = failing_map(story)
    story.change(key, workspace={"items": [2, 3, 4], "bad": [1], "squares": [9, 4, 16]})


def result_missing(story: Story) -> None:
    key = failing_map(story)
    story.change(key, workspace={"items": [2, 3, 4], "bad": [1], "squares": [4, None, 16]})


def results_missing(story: Story) -> None:
    key = failing_map(story)
    story.change(key, workspace={"items": [2, 3, 4], "bad": [1]})


def member_begins_after_the_end(story: Story) -> None:
    key = failing_fork_rest(story)
    story.work(story.member(key, 0, parent_round=1), 1, 9)


def member_begins_before_the_retry(story: Story) -> None:
    key = failing_map(story)
    (member,) = (j for j in story.history.jobs if j.parent == key and j.position == 1)
    story.history.attempts = [
        row._replace(started=at(7.5)) if row.job == member.id and row.number == 2 else row
        for row in story.history.attempts
    ]


def complete_member_runs_again(story: Story) -> None:
    key = failing_map(story)
    (member,) = (j for j in story.history.jobs if j.parent == key and j.position == 0)
    story.attempt(member.id, "lost", ("start", 9), step=1, begin=9, end=10, error="x")


# -- dependencies --


def dependency_forgotten(story: Story) -> None:
    key = dependent(story)
    rows = story.history.dependencies
    rows.remove(next(row for row in rows if row.job == key))


def dependent_too_early(story: Story) -> None:
    dependent_that_began(story, 2.5)


def dependent_that_began(story: Story, begin: float) -> Any:
    key = dependent(story)
    rows = story.history.attempts
    rows[:] = [row._replace(started=at(begin)) if row.job == key else row for row in rows]
    return key


def dependent_of_a_failure(story: Story) -> None:
    story.work(blocked(story), 0, 5)


def dependent_of_any_too_early(story: Story) -> None:
    key = dependent_that_began(story, 1.5)
    rows = story.history.dependencies
    rows[:] = [row._replace(mode="any") if row.job == key else row for row in rows]


def proceeding_too_early(story: Story) -> None:
    key = dependent_that_began(story, 2.5)
    rows = story.history.dependencies
    rows[:] = [row._replace(on_failure="proceed") if row.job == key else row for row in rows]


def order_taken_too_early(story: Story) -> None:
    key = order(story)
    rows = story.history.attempts
    rows[:] = [
        row._replace(started=at(3.5)) if (row.job, row.number) == (key, 2) else row for row in rows
    ]


def counts_at_the_end(story: Story) -> None:
    story.change(fork(story), waiting_for=1)


def waiting_for_what_has_ended(story: Story) -> None:
    key = story.job("dependent", "WAITING", waiting_for=1)
    story.depend(key, plain(story), "open")


def done_that_was_not(story: Story) -> None:
    key = blocked(story)
    rows = story.history.dependencies
    rows[:] = [row._replace(state="done") if row.job == key else row for row in rows]


def blocked_by_what_is_complete(story: Story) -> None:
    key = story.job("dependent", "BLOCKED")
    story.depend(key, plain(story), "failed")


def blocked_by_nothing(story: Story) -> None:
    key = story.job("dependent", "BLOCKED")
    story.depend(key, plain(story), "done")


def waiting_for_more_than_there_is(story: Story) -> None:
    blocked(story)
    key = next(job.id for job in story.history.jobs if job.state == "WAITING")
    story.change(key, waiting_for=2)


# -- pauses --


def sleep_cut_short(story: Story) -> None:
    key = story.job("sleeping")
    story.work(key, 0, 1)
    story.attempt(key, "waited", step=1, begin=3, end=3.1)
    story.attempt(key, step=1, begin=3.2, end=3.3)


def sleep_skipped(story: Story) -> None:
    key = story.job("sleeping")
    story.work(key, 0, 1)
    story.attempt(key, step=1, begin=3, end=4)


def retaken(story: Story, key: Any, *rows: tuple[int, int]) -> None:
    """These are the events of the job: their payloads, and by which attempts they were taken."""
    others = [event for event in story.history.events if event.job != key]
    story.history.events = [*others, *(EventRow(key, *row) for row in rows)]


def event_lost(story: Story) -> None:
    retaken(story, word(story), (7, 2))


def event_that_nobody_sent(story: Story) -> None:
    retaken(story, word(story), (7, 2), (8, 0), (9, 0))


def event_taken_twice(story: Story) -> None:
    retaken(story, word(story), (7, 2), (9, 2))


def event_taken_by_another_step(story: Story) -> None:
    retaken(story, word(story), (7, 3), (9, 0))


def event_not_taken(story: Story) -> None:
    retaken(story, word(story), (7, 0), (9, 0))


def second_event_taken(story: Story) -> None:
    key = word(story)
    retaken(story, key, (7, 0), (9, 2))
    story.change(key, workspace={"trail": [0, 2], "word": 9})


def payload_forgotten(story: Story) -> None:
    story.change(word(story), workspace={"trail": [0, 2]})


# -- people --


def begins_once_cancelled(story: Story) -> None:
    key = cancelled(story)
    story.attempt(key, "lost", ("start", 6), step=1, begin=6, end=7, error="x")


def saved_once_cancelled(story: Story) -> None:
    key = story.job("meddled", "CANCELLED")
    story.attempt(key, "succeeded", ("start", 1), ("end", 5), begin=1, end=5)
    story.deed(key, Verb.CANCEL, 3, state="PROCESSING")


def member_begins_once_cancelled(story: Story) -> None:
    key = story.job("forking twice", "CANCELLED")
    story.attempt(key, "waited", begin=1, end=2)
    first, second = story.member(key, 0, "CANCELLED"), story.member(key, 1)
    story.attempt(first, "lost", ("start", 3), step=1, begin=3, end=4, error="x")
    story.deed(key, Verb.CANCEL, 5, state="WAITING")
    story.change(key, finished=at(5))
    story.work(second, 2, 6)


def begins_before_it_is_retried(story: Story) -> None:
    key = revived(story)
    rows = story.history.attempts
    rows[:] = [
        row._replace(started=at(10)) if (row.job, row.number) == (key, 2) else row for row in rows
    ]


def begins_while_paused(story: Story) -> None:
    key = paused(story)
    rows = story.history.attempts
    rows[:] = [
        row._replace(started=at(5)) if (row.job, row.number) == (key, 2) else row for row in rows
    ]


def member_begins_while_paused(story: Story) -> None:
    key = story.job("forking twice")
    story.attempt(key, "waited", begin=1, end=4)
    story.deed(key, Verb.PAUSE, 3, state="PROCESSING")
    story.deed(key, Verb.RESUME, 13, state="PAUSED")
    story.work(story.member(key, 0), 1, 6)
    story.work(story.member(key, 1), 2, 14)
    story.attempt(key, begin=16, end=17)


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
    member_of_nobody: "every_job_is_there",
    branch_without_a_mark: "steps_succeed_once_in_order",
    branch_before_its_group: "no_step_before_its_predecessor",
    hook_of_a_member: "failure_hooks_are_exact",
    ordered_job_missing: "follow_ons_are_exact",
    joined_in_vain: "joins_are_right",
    cancelled_by_nobody: "every_job_has_ended",
    failed_member_of_a_job_that_nobody_cancelled: "every_job_has_ended",
    failed_again_although_retried: "every_job_has_ended",
    rest_of_nothing: "every_job_has_ended",
    waiting_for_a_job_that_runs: "every_job_has_ended",
    missing_member: "members_are_created_once",
    doubled_member: "members_are_created_once",
    members_created_again: "members_are_created_once",
    members_of_no_round: "members_are_created_once",
    joined_twice: "groups_are_joined_once",
    step_after_a_join_doubled: "groups_are_joined_once",
    joined_too_early: "no_join_before_its_members_ended",
    joined_with_an_open_member: "no_join_before_its_members_ended",
    step_after_a_join_too_early: "no_join_before_its_members_ended",
    results_in_disorder: "map_results_are_complete",
    result_missing: "map_results_are_complete",
    results_missing: "map_results_are_complete",
    member_begins_after_the_end: "no_member_runs_after_its_parent",
    member_begins_before_the_retry: "no_member_runs_after_its_parent",
    complete_member_runs_again: "what_is_complete_is_not_run_again",
    dependency_forgotten: "dependencies_are_there",
    dependent_too_early: "no_dependent_starts_too_early",
    dependent_of_a_failure: "no_dependent_starts_too_early",
    dependent_of_any_too_early: "no_dependent_starts_too_early",
    proceeding_too_early: "no_dependent_starts_too_early",
    order_taken_too_early: "no_dependent_starts_too_early",
    counts_at_the_end: "counts_are_consistent",
    waiting_for_what_has_ended: "counts_are_consistent",
    done_that_was_not: "counts_are_consistent",
    blocked_by_what_is_complete: "counts_are_consistent",
    blocked_by_nothing: "counts_are_consistent",
    waiting_for_more_than_there_is: "counts_are_consistent",
    sleep_cut_short: "sleeps_are_slept",
    sleep_skipped: "sleeps_are_slept",
    event_lost: "events_are_taken_once",
    event_that_nobody_sent: "events_are_taken_once",
    event_taken_twice: "events_are_taken_once",
    event_taken_by_another_step: "events_are_taken_once",
    event_not_taken: "events_are_taken_once",
    second_event_taken: "events_are_taken_once",
    payload_forgotten: "events_are_taken_once",
    begins_once_cancelled: "nothing_starts_once_cancelled",
    saved_once_cancelled: "nothing_starts_once_cancelled",
    member_begins_once_cancelled: "nothing_starts_once_cancelled",
    begins_before_it_is_retried: "nothing_starts_once_cancelled",
    begins_while_paused: "nothing_starts_while_paused",
    member_begins_while_paused: "nothing_starts_while_paused",
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
