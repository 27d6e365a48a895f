"""What people do to jobs, in every state that these can be in, and at the worst moment: retry, fork, cancel, pause,
resume.
"""

import datetime
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from django.utils import timezone

from django_dbq import Retry, Wait, engine, members, signals
from django_dbq.models import Job
from django_dbq.outcomes import ClaimLost
from django_dbq.pipelines import UnknownJob
from django_dbq.states import FINISHED, UNFINISHED, State
from django_dbq.storage import Overdue
from django_dbq.testing import drain
from django_dbq.workers.worker import Worker as Loop
from django_dbq.workspaces import InvalidWorkspace
from tests.pipelines import more_tasks
from tests.pipelines.flow import EVERY, Hands, last_error, now_is, states
from tests.pipelines.more_tasks import (
    DOES,
    aside,
    create,
    step_on,
    stopping_at,
    stuck,
    until_blocked,
)
from tests.process_jobs import effects, journal, tell, told, told_before, until
from tests.processes import outcomes, until_states
from tests.processes import worker as worker_process
from tests.storage.sessions import while_uncommitted

HOUR = datetime.timedelta(hours=1)
committed = pytest.mark.django_db(transaction=True)
VERBS = ("retry", "cancel", "pause", "resume")


@pytest.fixture(autouse=True)
def nothing_gets_stuck(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    settings.JOBS = more_tasks.JOBS
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))
    DOES.clear()
    yield
    assert stuck() == {}


@pytest.fixture
def finished() -> Iterator[list[tuple[Job, str]]]:
    """The jobs that are said to have ended, and how."""
    heard: list[tuple[Job, str]] = []

    def note(job: Job, **kwargs: Any) -> None:
        heard.append((job, str(job.state)))

    signals.job_finished.connect(note)
    yield heard
    signals.job_finished.disconnect(note)


# -- every verb in every state --


def in_state(state: str) -> Job:
    """A job of two steps in this state; its worker, if it has one, goes on."""
    if state in ("WAITING", "BLOCKED"):
        other = create("boom", queue_name="other")
        job = create("two", depends_on=[other])
        if state == "BLOCKED":
            drain("other")
        return job
    if state == "FAILED":
        job = create("boom")
        drain()
        return job
    job = create("quick" if state == "COMPLETE" else "two")
    if state == "READY":
        step_on()
    elif state == "COMPLETE":
        drain()
    elif state in ("PROCESSING", "STOPPING"):
        hands = Hands()
        (claimed,) = hands.claim()
        if state == "STOPPING":
            engine.stopping(hands.row, [claimed], "default")
    elif state == "PAUSED":
        job.pause()
    elif state == "CANCELLED":
        job.cancel()
    return job


# What a verb answers, and the state afterwards; a dot where nothing happens.
ANSWERS = """
           retry    cancel     pause       resume
NEW        .        CANCELLED  PAUSED      .
READY      .        CANCELLED  PAUSED      .
PROCESSING .        CANCELLED  PROCESSING  .
STOPPING   .        CANCELLED  STOPPING    .
WAITING    .        CANCELLED  PAUSED      .
BLOCKED    READY    CANCELLED  PAUSED      .
PAUSED     .        CANCELLED  PAUSED      NEW
COMPLETE   .        .          .           .
FAILED     READY    .          .           .
CANCELLED  READY    .          .           .
"""
CASES = [
    (state, verb, "" if after == "." else after)
    for state, *row in map(str.split, ANSWERS.strip().splitlines()[1:])
    for verb, after in zip(VERBS, row, strict=True)
]


@pytest.mark.django_db
def test_the_table_has_all_states_and_verbs() -> None:
    assert {state for state, _, _ in CASES} == {str(state) for state in State}
    assert len(CASES) == len(State) * len(VERBS)


@pytest.mark.parametrize(("state", "verb", "after"), CASES)
def test_a_verb_in_a_state(anywhere: None, state: str, verb: str, after: str) -> None:
    job = in_state(state)
    assert states(job) == [state]
    stale = now_is(job)
    before = Job.objects.filter(pk=job.pk).values().get()
    rows = outcomes(job)
    assert getattr(job, verb)() is bool(after)
    if not after:
        assert Job.objects.filter(pk=job.pk).values().get() == before
        assert outcomes(job) == rows
        return
    assert (job.state, *states(job)) == (after, after)
    stored = now_is(job)
    assert stored.modified > before["modified"] or after in ("PROCESSING", "STOPPING")
    assert (stored.finished is not None) == (after in FINISHED)
    for name in ("state", "step", "next_task", "finished", "run_after", "waiting_for", "attempt"):
        assert getattr(job, name) == getattr(stored, name)
    # The same again, by somebody who does not know of it.
    again = getattr(stale, verb)()
    assert again is (verb == "pause")
    assert states(job) == [after]
    assert outcomes(job) == (rows if state not in ("PROCESSING", "STOPPING") else outcomes(job))
    if after == "CANCELLED":
        held = state in ("PROCESSING", "STOPPING")
        assert outcomes(job) == [*rows, *([(1, "cancelled")] if held else [])]


@pytest.mark.parametrize("state", ["NEW", "READY", "WAITING", "BLOCKED"])
def test_a_pause_ends_where_it_began(anywhere: None, state: str) -> None:
    job = in_state(state)
    before = {**Job.objects.filter(pk=job.pk).values().get(), "modified": None}
    assert job.pause()
    drain("default")
    assert states(job) == ["PAUSED"]
    assert job.resume()
    assert {**Job.objects.filter(pk=job.pk).values().get(), "modified": None} == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_job_that_is_gone(anywhere: None, verb: str) -> None:
    job = create()
    now_is(job).delete()
    assert getattr(job, verb)() is False
    assert not Job.objects.exists()


def test_verbs_keep_what_an_instance_has_in_its_workspace(anywhere: None) -> None:
    job = create()
    job.workspace["mine"] = 1
    assert job.pause()
    assert job.resume()
    assert job.cancel()
    assert job.retry()
    assert (job.workspace, now_is(job).workspace) == ({"mine": 1}, {})


# -- retry --


def test_a_retry_begins_with_the_step_that_failed(anywhere: None) -> None:
    job = create("steps of note")
    drain()
    assert (*states(job), now_is(job).workspace) == ("FAILED", {"ran": [0, 1]})
    Job.objects.filter(pk=job.pk).update(workspace={"ran": [0], "mended": True})
    assert job.retry()
    assert (job.step, job.finished, job.attempt) == (1, None, 2)
    drain()
    job.refresh_from_db()
    assert (job.state, job.workspace["ran"]) == ("COMPLETE", [0, 1, 2])
    assert outcomes(job) == [
        (n, s) for n, s in enumerate(("succeeded", "failed", "succeeded", "succeeded"), 1)
    ]


@pytest.mark.parametrize(
    ("step", "ran"),
    [
        (0, [0, 1, 2]),
        ("note", [0, 1, 2]),
        (more_tasks.M + "note", None),
        (1, [1, 2]),
        ("middle", [1, 2]),
        (more_tasks.M + "boom", [1, 2]),
        (2, [2]),
        ("end", [2]),
    ],
)
def test_a_retry_from_a_step(anywhere: None, step: str | int, ran: list[int] | None) -> None:
    job = create("steps of note")
    drain()
    Job.objects.filter(pk=job.pk).update(workspace={"mended": True})
    if ran is None:
        with pytest.raises(LookupError, match="several steps"):
            job.retry(from_step=step)
        assert states(job) == ["FAILED"]
        return
    assert job.retry(from_step=step)
    job.refresh_from_db()
    assert (job.state, job.step, job.queue_name) == (
        *("READY", ran[0]),
        "own" if ran == [2] else "default",
    )
    drain()
    job.refresh_from_db()
    assert (job.state, job.workspace["ran"], job.queue_name) == ("COMPLETE", ran, "own")


@pytest.mark.parametrize("step", ["nonsense", 7, -1, "", True, 1.0, more_tasks.M + "quick"])
def test_a_step_that_there_is_not(anywhere: None, step: Any) -> None:
    job = create("steps of note")
    drain()
    if step is not True and step != 1.0:
        with pytest.raises(
            LookupError, match=r"By place, it has: 0 \(note\), 1 \(middle\), 2 \(end\)"
        ):
            job.retry(from_step=step)
        with pytest.raises(LookupError):
            job.fork(from_step=step)
    assert states(*Job.objects.all()) == ["FAILED"]


def test_a_job_that_is_not_known_any_more(anywhere: None, settings: Any) -> None:
    job = create("boom")
    drain()
    settings.JOBS = {}
    with pytest.raises(UnknownJob):
        job.retry(from_step=0)
    with pytest.raises(UnknownJob):
        job.fork()
    assert states(job) == ["FAILED"]


def test_a_retry_forgets_what_went_wrong(anywhere: None) -> None:
    def fail(job: Job) -> None:
        if job.workspace.get("good"):
            return
        raise ValueError

    job = create("act, retried", does=fail)
    drain()
    assert outcomes(job) == [(1, "failed"), (2, "failed")]
    later = timezone.now() + HOUR
    Job.objects.filter(pk=job.pk).update(run_after=later, failures=1, lost=2)
    assert job.retry()
    assert (job.failures, job.lost, job.run_after, job.due) == (0, 0, None, True)
    drain()
    assert outcomes(job) == [(n, "failed") for n in range(1, 5)]


def test_a_retry_past_max_runs_has_its_one_run(anywhere: None, settings: Any) -> None:
    settings.DBQ = {"MAX_RUNS": 2}
    job = create("act", does=lambda job: Retry(delay=0))
    drain()
    assert outcomes(job) == [(1, "retried"), (2, "retried")]
    assert states(job) == ["FAILED"]
    DOES["0"] = lambda job: None
    assert job.retry()
    drain()
    assert states(job) == ["COMPLETE"]


def test_a_retry_of_a_parent_runs_only_what_has_not_completed(anywhere: None) -> None:
    bad = {1}

    def fragile(member: Job) -> None:
        if member.position in bad:
            raise ValueError

    job = create("map of act", does=fragile, workspace={"items": [5, 6, 7]})
    drain()
    assert states(job, *job.children.order_by("position")) == [
        *("FAILED", "COMPLETE", "FAILED", "COMPLETE"),
    ]
    bad.clear()
    assert job.retry()
    assert (job.state, job.waiting_for) == ("WAITING", 1)
    drain()
    assert states(job) == ["COMPLETE"]
    assert [outcomes(one) for one in job.children.order_by("position")] == [
        *([(1, "succeeded")], [(1, "failed"), (2, "succeeded")], [(1, "succeeded")]),
    ]


@pytest.mark.parametrize("verb", ["cancel", "fail"])
def test_a_retry_from_before_a_group_begins_it_anew(anywhere: None, verb: str) -> None:
    job = create("act, group, act", does=lambda job: None)
    step_on()
    step_on()
    assert states(job) == ["WAITING"]
    first = list(job.children.all())
    if verb == "cancel":
        assert job.cancel()
        assert states(*first) == ["CANCELLED", "CANCELLED"]
    else:
        first[0].cancel()
        drain()
        assert states(job, *first) == ["FAILED", "CANCELLED", "COMPLETE"]
    assert job.retry(from_step=0)
    assert (job.round, job.waiting_for, job.step) == (None, 0, 0)
    drain()
    assert (*states(job), job.children.count()) == ("COMPLETE", 4)
    assert job.children.filter(state="COMPLETE").exclude(pk__in=[m.pk for m in first]).count() == 2


@committed
def test_a_retry_from_another_step_cancels_members_that_run_again(
    finished: list[tuple[Job, str]],
) -> None:
    """One that somebody has sent on again after its parent had failed."""
    job = create("group of boom")
    drain()
    (member,) = job.children.all()
    assert member.retry()
    assert states(job, member) == ["FAILED", "READY"]
    finished.clear()
    assert job.retry(from_step=0)
    assert states(member) == ["CANCELLED"]
    assert finished == [(member, "CANCELLED")]
    Job.objects.filter(pk=job.pk).update(workspace={"mended": True})
    drain()
    assert (*states(job), job.children.count()) == ("COMPLETE", 2)


def test_a_member_that_is_retried_while_its_parent_waits_is_waited_for(anywhere: None) -> None:
    job = create("group", workspace={})
    step_on()
    first, second = job.children.order_by("position")
    assert first.cancel()
    assert (now_is(job).waiting_for, states(job)) == (1, ["WAITING"])
    assert first.retry()
    assert (now_is(job).waiting_for, states(job)) == (2, ["WAITING"])
    assert first.retry() is False
    drain()
    assert states(job, first, second) == ["COMPLETE"] * 3


def test_a_member_is_retried_where_it_stands(anywhere: None) -> None:
    """The steps that have names and places for people are not its own."""
    job = create("act, group of boom", does=lambda job: None)
    drain()
    (member,) = job.children.all()
    for step in ("act", "group", "boom", 0, 1, 2):
        with pytest.raises(LookupError):
            member.retry(from_step=step)
    assert states(job, member) == ["FAILED", "FAILED"]
    assert member.retry()
    assert (member.step, member.state) == (2, "READY")
    drain()
    assert states(job, member) == ["FAILED", "FAILED"]


def test_a_wait_that_was_too_long_is_begun_anew_by_a_retry(anywhere: None) -> None:
    job = create("wait_for")
    drain()
    begun = timezone.now()
    Job.objects.filter(pk=job.pk).update(run_after=begun)
    drain()
    assert states(job) == ["FAILED"]
    assert job.retry()
    drain()
    job.refresh_from_db()
    assert job.state == "WAITING"
    assert job.run_after is not None
    assert job.run_after - begun > HOUR / 2
    assert job.send("word")
    drain()
    assert states(job) == ["COMPLETE"]


@pytest.mark.parametrize(("name", "state"), [("wait_for", "WAITING"), ("sleep", "READY")])
def test_a_pause_of_the_pipeline_that_was_cancelled_is_begun_anew_by_a_retry(
    anywhere: None, name: str, state: str
) -> None:
    job = create(name)
    drain()
    assert states(job) == [state]
    assert job.cancel()
    begun = timezone.now()
    assert job.retry()
    drain()
    job.refresh_from_db()
    assert (job.state, job.step) == (state, 0)
    assert job.run_after is not None
    assert job.run_after - begun > HOUR / 2


# -- fork --


def test_a_fork_starts_where_its_job_stands(anywhere: None) -> None:
    job = create("steps of note", workspace={"a": [1]}, priority=3, queue_name="mine")
    drain()
    heard: list[Job] = []
    signals.job_created.connect(note := lambda job, **kwargs: heard.append(job))
    fork = now_is(job).fork()
    signals.job_created.disconnect(note)
    assert heard == [fork]
    stored = now_is(fork)
    assert (stored.state, stored.step, stored.next_task) == ("NEW", 1, more_tasks.M + "boom")
    assert (stored.workspace, stored.priority, stored.queue_name) == (
        {"a": [1], "ran": [0, 1]},
        3,
        "mine",
    )
    assert (stored.forked_from_id, stored.attempt, stored.failures) == (job.pk, 0, 0)
    assert (stored.finished, stored.parent_id, list(stored.attempts.all())) == (None, None, [])
    assert list(job.forks.all()) == [fork]
    assert stored.created > now_is(job).created
    # Nothing of one touches the other.
    Job.objects.filter(pk=fork.pk).update(workspace={"mended": True})
    drain()
    assert states(job, fork) == ["FAILED", "COMPLETE"]
    assert now_is(job).workspace == {"a": [1], "ran": [0, 1]}
    assert fork.cancel() is False
    now_is(job).delete()
    assert states(fork) == ["COMPLETE"]


@pytest.mark.parametrize(("step", "place"), [(0, 0), ("middle", 1), ("end", 2), (2, 2)])
def test_a_fork_from_a_step(anywhere: None, step: str | int, place: int) -> None:
    job = create("steps of note")
    drain()
    fork = job.fork(from_step=step, workspace={"mended": True})
    assert (fork.step, fork.queue_name) == (place, "own" if place == 2 else "default")
    drain()
    assert now_is(fork).workspace == {"mended": True, "ran": list(range(place, 3))}
    assert states(job, fork) == ["FAILED", "COMPLETE"]


def test_a_fork_of_a_completed_job_starts_at_its_beginning(anywhere: None) -> None:
    job = create("two")
    drain()
    job.refresh_from_db()
    fork = job.fork(workspace=None)
    assert (fork.step, fork.workspace) == (0, {"ran": [0]})
    drain()
    assert states(job, fork) == ["COMPLETE", "COMPLETE"]


@pytest.mark.parametrize("workspace", [{}, [], "text", 0])
def test_a_fork_has_the_workspace_that_it_is_given(anywhere: None, workspace: Any) -> None:
    job = create(workspace={"a": 1})
    assert now_is(job.fork(workspace=workspace)).workspace == workspace
    drain()


def test_a_fork_goes_by_what_is_stored(anywhere: None) -> None:
    """As all verbs do: an instance may be old."""
    job = create("two")
    stale = now_is(job)
    step_on()
    fork = stale.fork()
    assert (fork.step, fork.workspace) == (1, {"ran": [0]})
    drain()


def test_a_fork_of_a_group_makes_members_of_its_own(anywhere: None) -> None:
    job = create("group")
    step_on()
    fork = now_is(job).fork()
    assert (fork.state, fork.round, fork.waiting_for, fork.children.count()) == ("NEW", None, 0, 0)
    drain()
    assert states(job, fork) == ["COMPLETE", "COMPLETE"]
    assert (job.children.count(), fork.children.count()) == (2, 2)


def test_a_fork_waits_for_nothing(anywhere: None) -> None:
    job = in_state("WAITING")
    fork = job.fork()
    assert drain("default") == 2
    assert states(job, fork) == ["WAITING", "COMPLETE"]


def test_what_a_fork_does_not_take(anywhere: None) -> None:
    job = create("steps of note")
    with pytest.raises(InvalidWorkspace):
        job.fork(workspace={"a": object()})
    with pytest.raises(LookupError):
        job.fork(from_step="nonsense")
    assert list(Job.objects.all()) == [job]
    drain()


def test_a_fork_obeys_the_callers_transaction(anywhere: None) -> None:
    job = create()
    with transaction.atomic():
        job.fork()
        transaction.set_rollback(True)
    assert list(Job.objects.all()) == [job]
    drain()


def test_a_running_job_is_forked_and_goes_on(anywhere: None) -> None:
    def fork(job: Job) -> None:
        if job.forked_from_id is None:
            job.workspace["fork"] = str(job.fork(workspace={"does": "0"}).pk)

    job = create("act", does=fork)
    drain()
    assert states(*Job.objects.all()) == ["COMPLETE", "COMPLETE"]
    assert now_is(job).workspace["fork"] == str(job.forks.get().pk)


# -- cancel --


@committed
def test_a_cancelled_job_is_never_run(finished: list[tuple[Job, str]]) -> None:
    job, future = create(), create(run_after=timezone.now() + HOUR)
    assert job.cancel()
    assert future.cancel()
    assert drain() == 0
    assert finished == [(job, "CANCELLED"), (future, "CANCELLED")]
    assert job.finished is not None
    assert now_is(job).worker is None


def test_those_who_wait_are_told(anywhere: None) -> None:
    job = create()
    blocked = create(depends_on=[job])
    proceeds = create(depends_on=[job], on_dependency_failure="proceed")
    task = create("act", does=lambda one: Wait(jobs=[job]), queue_name="task")
    drain("task")
    assert job.cancel()
    assert states(blocked, proceeds, task) == ["BLOCKED", "NEW", "BLOCKED"]
    assert job.retry()
    assert states(blocked, proceeds, task) == ["WAITING", "NEW", "WAITING"]
    task.cancel()
    drain()
    assert states(job, blocked, proceeds) == ["COMPLETE"] * 3


@committed
def test_a_parent_takes_all_its_members_along(
    finished: list[tuple[Job, str]],
) -> None:
    job = create("nested")
    for _ in range(3):
        step_on()
    unfinished = list(Job.objects.filter(state__in=UNFINISHED))
    done = list(Job.objects.filter(state="COMPLETE"))
    assert (len(unfinished), len(done)) == (4, 1)
    on_member = create(depends_on=[unfinished[-1]], queue_name="late")
    finished.clear()
    assert job.cancel()
    assert set(states(*unfinished)) == {"CANCELLED"}
    assert states(*done) == ["COMPLETE"]
    assert sorted(one.pk for one, _ in finished) == sorted(one.pk for one in unfinished)
    assert states(on_member) == ["BLOCKED"]
    assert drain() == 0
    # And back: what was done stays done.
    assert job.retry()
    assert states(*unfinished).count("CANCELLED") == 0
    drain()
    assert set(states(job, *unfinished, on_member)) == {"COMPLETE"}
    assert outcomes(done[0]) == [(1, "succeeded")]


@committed
def test_what_cancels_the_rest_tells_of_them(
    finished: list[tuple[Job, str]],
) -> None:
    job = create("group, cancel_rest")
    step_on()
    first, second = job.children.order_by("position")
    Job.objects.filter(pk=second.pk).update(queue_name="never")
    drain("default")
    assert states(job, first, second) == ["FAILED", "FAILED", "CANCELLED"]
    assert sorted(one.pk for one, _ in finished) == sorted((job.pk, first.pk, second.pk))


def test_a_member_that_is_cancelled_counts_as_failed(anywhere: None) -> None:
    job = create("group")
    step_on()
    first, second = job.children.order_by("position")
    assert second.cancel()
    assert states(job, first, second) == ["WAITING", "NEW", "CANCELLED"]
    drain()
    assert states(job, first, second) == ["FAILED", "COMPLETE", "CANCELLED"]
    assert job.retry()
    drain()
    assert states(job, first, second) == ["COMPLETE", "COMPLETE", "COMPLETE"]
    assert outcomes(first) == [(1, "succeeded")]


@committed
def test_many_are_cancelled_at_once(finished: list[tuple[Job, str]]) -> None:
    parent = create("group")
    step_on()
    other, done = create(), create()
    waits = create(depends_on=[other])
    done.cancel()
    keys = [parent.pk, *parent.children.values_list("pk", flat=True), other.pk, waits.pk, done.pk]
    finished.clear()
    assert engine.cancel(keys, timezone.now(), "default") == 5
    assert set(Job.objects.values_list("state", flat=True)) == {"CANCELLED"}
    assert len(finished) == 5
    assert engine.cancel(keys, timezone.now(), "default") == 0
    assert len(finished) == 5


@committed
def test_an_outcome_after_the_cancel_is_dropped(
    caplog: pytest.LogCaptureFixture, finished: list[tuple[Job, str]]
) -> None:
    """Also one that would open a group, wait for others, take an event, or end the job."""
    other = create(run_after=timezone.now() + HOUR)
    waits = partial(create, "act", does=lambda job: Wait(jobs=[other]))
    group = partial(create, "group")
    for made in (partial(create, "two"), create, partial(create, "boom"), waits, group):
        job = made()
        dependent = create(depends_on=[job], queue_name="late")
        hands = Hands()
        (claimed,) = hands.claim()
        execution = hands.perform(claimed)
        assert job.cancel()
        before = list(Job.objects.order_by("pk").values())
        with caplog.at_level(logging.WARNING, "django_dbq"):
            caplog.clear()
            assert hands.write(execution) == []
        assert "Outcome dropped" in caplog.text
        assert list(Job.objects.order_by("pk").values()) == before
        assert states(job, dependent) == ["CANCELLED", "BLOCKED"]
        assert outcomes(job) == [(1, "cancelled")]
        assert not job.children.exists()
        dependent.cancel()
        hands.die()
    assert [one for one, _ in finished].count(job) == 1
    other.cancel()


def test_a_cancelled_attempt_is_on_record(anywhere: None) -> None:
    job = create("two")
    step_on()
    hands = Hands("the worker")
    (claimed,) = hands.claim()
    begun = claimed.modified
    assert job.cancel()
    attempt = job.attempts.order_by("pk").last()
    assert attempt is not None
    assert (attempt.number, attempt.step, attempt.task) == (2, 1, more_tasks.M + "quick")
    assert (attempt.outcome, attempt.worker, attempt.error) == ("cancelled", "the worker", "")
    assert begun == attempt.started <= attempt.finished == job.finished


def test_an_attempt_that_has_run_late_is_on_record_once(anywhere: None) -> None:
    """Its timeout was recorded, and it has not ended when it is cancelled."""
    job = create()
    hands = Hands()
    (claimed,) = hands.claim()
    late = Overdue(claimed.pk, claimed.attempt, timezone.now(), "late")
    engine.record_timeouts(hands.row.pk, [late], timezone.now(), "default")
    assert job.cancel()
    assert len(outcomes(job)) == 1


@pytest.mark.parametrize("name", ["act", "await act"])
def test_a_task_may_cancel_its_own_job(anywhere: None, name: str) -> None:
    def cancel(job: Job) -> None:
        assert now_is(job).cancel()

    job = create(name, does=sync_to_async(cancel) if "await" in name else cancel)
    drain()
    assert states(job) == ["CANCELLED"]
    assert outcomes(job) == [(1, "cancelled")]


@committed
def test_an_atomic_step_that_cancels_its_own_job_keeps_nothing() -> None:
    """The cancel would be rolled back with the step: the job has ended all the same."""

    def cancel(job: Job) -> None:
        create()
        assert now_is(job).cancel()

    job = create("act, atomic", does=cancel)
    drain()
    assert list(Job.objects.all()) == [job]
    assert states(job)[0] in FINISHED


@pytest.mark.parametrize("name", ["act", "await act"])
def test_a_task_hears_of_a_cancel_at_its_checkpoint(anywhere: None, name: str) -> None:
    heard: list[str] = []

    def cancel(job: Job) -> None:
        job.workspace["before"] = 1
        job.checkpoint()
        now_is(job).cancel()
        job.workspace["after"] = 1
        try:
            job.checkpoint()
        except ClaimLost as error:
            heard.append(str(error))
            raise

    job = create(name, does=sync_to_async(cancel) if "await" in name else cancel)
    drain()
    assert heard == [f"The job {job.pk} is no longer this worker's."]
    assert (*states(job), outcomes(job)) == ("CANCELLED", [(1, "cancelled")])
    assert now_is(job).workspace.keys() == {"does", "before"}


@committed
def test_a_cancel_obeys_the_callers_transaction(finished: list[tuple[Job, str]]) -> None:
    job = create("group")
    step_on()
    with transaction.atomic():
        assert job.cancel()
        transaction.set_rollback(True)
    assert finished == []
    assert states(job, *job.children.all()) == ["WAITING", "NEW", "NEW"]
    drain()


@committed
def test_a_cancel_is_told_of_when_it_is_committed(finished: list[tuple[Job, str]]) -> None:
    job = create()
    with transaction.atomic():
        assert job.cancel()
        assert finished == []
    assert finished == [(job, "CANCELLED")]


# -- cancel, and a task that runs --


def process(tmp_path: Path, *arguments: str) -> Any:
    """A worker process that knows the jobs of these tests."""
    (tmp_path / "more_settings.py").write_text(
        f"from tests.process_settings import *\nJOBS = {more_tasks.JOBS!r}\n"
    )
    environment = {"DJANGO_SETTINGS_MODULE": "more_settings"}
    return worker_process("--tick", "0.1", *arguments, environment=environment)


def standing(name: str, key: str = "it", **workspace: Any) -> Job:
    job: Job = Job.objects.create(name=name, workspace={"key": key, **workspace})
    return job


WAYS = {
    "main thread": ("stand", ()),
    "threads": ("stand", ("--threads", "2")),
    "event loop": ("stand_async", ()),
    "checkpoint": ("stand_saving", ()),
    "checkpoint in a thread": ("stand_saving", ("--threads", "2")),
    "progress": ("stand_telling", ()),
    "progress on the event loop": ("stand_telling_async", ()),
    "atomic": ("atomic", ()),
    "atomic, in a thread": ("atomic", ("--threads", "2")),
    "member": ("map of stand", ()),
}


@committed
@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_runs_is_told_of_its_cancel(way: str, tmp_path: Path) -> None:
    name, arguments = WAYS[way]
    key = "it 0" if way == "member" else "it"
    if connection.vendor == "sqlite" and "atomic" in way:
        pytest.skip("SQLite has one writer at a time, and that is the atomic step")
    job = standing(name, items=[1])
    with process(tmp_path, *arguments) as worker:
        told(f"started {key} 1")
        began = timezone.now()
        assert job.cancel()
        assert states(job) == ["CANCELLED"]
        assert told(f"heard {key} 1") in ("ClaimLost", "CancelledError")
        assert (timezone.now() - began).total_seconds() < 5
        # And the worker goes on with others.
        after = create()
        until_states("COMPLETE", after)
        assert worker.running
    ran = job.children.first() or job
    assert outcomes(ran) == [(1, "cancelled")]
    assert states(job, ran) == ["CANCELLED", "CANCELLED"]
    assert effects(ran) == []
    assert not any("completed" in line or "failed" in line for line in journal())


@committed
@pytest.mark.parametrize("name", ["stand_deaf", "swallows"])
def test_a_task_that_takes_no_notice_saves_nothing(name: str, tmp_path: Path) -> None:
    job = standing(name)
    dependent = create(depends_on=[job])
    with process(tmp_path) as worker:
        told("started it 1")
        assert job.cancel()
        assert told("heard it 1") == "ClaimLost"
        tell("go on it 1")
        after = create()
        until_states("COMPLETE", after)
        assert worker.running
    assert states(job, dependent) == ["CANCELLED", "BLOCKED"]
    assert outcomes(job) == [(1, "cancelled")]
    assert now_is(job).workspace == {"key": "it"}


@committed
def test_all_members_that_run_are_told(tmp_path: Path) -> None:
    job = standing("map of stand", items=[1, 2, 3, 4])
    with process(tmp_path, "--threads", "3"):
        for number in range(3):
            told(f"started it {number} 1")
        assert job.cancel()
        for number in range(3):
            assert told(f"heard it {number} 1") == "ClaimLost"
    assert not told_before("started it 3 1")
    assert set(states(job, *job.children.all())) == {"CANCELLED"}
    *started, last = (outcomes(member) for member in job.children.order_by("position"))
    assert started == [[(1, "cancelled")]] * 3
    assert last in ([], [(1, "cancelled")])  # whether the worker had it in hand, to be started next


@committed
@pytest.mark.parametrize("arguments", [(), ("--threads", "2")], ids=["main thread", "threads"])
def test_a_cancelled_task_is_told_although_its_job_was_retried(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """A worker with threads may have both attempts at the same time: each hears what is meant for it."""
    job = standing("stand")
    with process(tmp_path, *arguments):
        told("started it 1")
        assert job.cancel()
        assert job.retry()
        assert told("heard it 1") == "ClaimLost"
        told("started it 2")
        assert job.cancel()
        assert told("heard it 2") == "ClaimLost"
        assert job.retry()
        told("started it 3")
        tell("go on it 3")
        until_states("COMPLETE", job)
    assert outcomes(job) == [(1, "cancelled"), (2, "cancelled"), (3, "succeeded")]


@committed
@pytest.mark.skipif(connection.vendor == "sqlite", reason="it has one writer at a time")
def test_a_large_map_is_cancelled_while_workers_run_its_members() -> None:
    job = create("map", workspace={"items": list(range(3000))})
    dependent = create(depends_on=[job])
    Loop(EVERY, max_jobs=1).run()
    with ThreadPoolExecutor(2) as pool:
        loops = [Loop(EVERY, until_done=True) for _ in range(2)]
        calls = [aside(pool, loop.run) for loop in loops]
        until(lambda: job.children.filter(state="COMPLETE").count() >= 200)
        assert job.cancel()
        for call in calls:
            call.result(60)
    found = job.children.order_by("position").values_list("state", flat=True)
    assert set(found) == {"COMPLETE", "CANCELLED"}
    assert len(found) == 3000
    assert states(job, dependent) == ["CANCELLED", "BLOCKED"]
    assert job.retry()
    drain()
    assert states(job, dependent) == ["COMPLETE", "COMPLETE"]
    succeeded = job.children.filter(attempts__outcome="succeeded")
    assert succeeded.count() == succeeded.distinct().count() == 3000


# -- pause and resume --


def run_to_its_end(hands: Hands, job: Job) -> list[Any]:
    return hands.write(hands.perform(job))


@pytest.mark.parametrize("name", ["two", "act", "wait in act", "group", "boom", "again"])
def test_a_step_that_runs_ends_before_the_pause_begins(anywhere: None, name: str) -> None:
    other = create(queue_name="late")
    kinds: dict[str, tuple[str, Any, str]] = {
        "two": ("two", None, "PAUSED"),
        "act": ("act", lambda job: None, "COMPLETE"),
        "wait in act": (
            *("act", lambda job: Wait(jobs=[other]) if job.attempt == 1 else None),
            "PAUSED",
        ),
        "again": ("act", lambda job: Retry(delay=0) if job.attempt == 1 else None, "PAUSED"),
        "group": ("group", None, "PAUSED"),
        "boom": ("boom", None, "FAILED"),
    }
    kind, does, expected = kinds[name]
    job = create(kind, does=does, queue_name="default")
    hands = Hands()
    (claimed,) = (one for one in hands.claim() if one == job)
    assert job.pause()
    assert (job.state, job.pausing) == ("PROCESSING", True)
    assert run_to_its_end(hands, claimed)
    assert states(job, *job.children.all()) == [expected] * (1 + job.children.count())
    hands.die()
    drain("default")
    assert states(job) == [expected]
    assert job.resume() is (expected == "PAUSED")
    drain()
    assert states(job) == ["FAILED" if name == "boom" else "COMPLETE"]


def test_a_pause_that_came_too_late_does_not_come_after_a_retry(anywhere: None) -> None:
    job = create("boom")
    hands = Hands()
    (claimed,) = hands.claim()
    assert job.pause()
    run_to_its_end(hands, claimed)
    assert states(job) == ["FAILED"]
    Job.objects.filter(pk=job.pk).update(workspace={"mended": True})
    assert job.retry(from_step=0)
    assert job.pausing is False
    drain()
    assert states(job) == ["COMPLETE"]


@pytest.mark.parametrize("way", ["handed back", "lost", "released", "late"])
def test_a_job_that_its_worker_gives_up_is_paused(anywhere: None, way: str) -> None:
    job = create("two")
    hands = Hands()
    (claimed,) = hands.claim()
    assert job.pause()
    now = timezone.now()
    if way == "handed back":
        assert engine.hand_back(hands.row, [claimed], now, "default") == 1
    elif way == "released":
        assert engine.release(hands.row.pk, [], now, "default") == 1
    else:
        if way == "late":
            late = Overdue(claimed.pk, claimed.attempt, now, "late")
            engine.record_timeouts(hands.row.pk, [late], now, "default")
        hands.die()
    assert states(job) == ["PAUSED"]
    drain()
    assert states(job) == ["PAUSED"]
    assert job.resume()
    drain()
    assert states(job) == ["COMPLETE" if way != "late" else "FAILED"]


def test_a_pause_that_has_not_begun_is_taken_back(anywhere: None) -> None:
    job = create("two")
    hands = Hands()
    (claimed,) = hands.claim()
    assert job.pause()
    assert job.resume() is True
    assert job.pausing is False
    assert job.resume() is False
    run_to_its_end(hands, claimed)
    assert states(job) == ["READY"]
    hands.die()
    drain()
    assert states(job) == ["COMPLETE"]


def test_a_task_may_pause_its_own_job(anywhere: None) -> None:
    job = create("act, act", does=lambda job: job.pause() if job.attempt == 1 else None)
    drain()
    assert (*states(job), now_is(job).step) == ("PAUSED", 1)
    assert job.resume()
    drain()
    assert states(job) == ["COMPLETE"]


def test_members_rest_with_their_parent(anywhere: None) -> None:
    job = create("map of two", workspace={"items": [0, 1, 2, 3]})
    step_on()
    ready, running, done, future = job.children.order_by("position")
    Job.objects.filter(pk=done.pk).update(priority=1)
    Loop(EVERY, max_jobs=1).run()
    Job.objects.filter(pk=running.pk).update(priority=1)
    Job.objects.filter(pk=future.pk).update(run_after=timezone.now() + HOUR)
    hands = Hands()
    (claimed,) = hands.claim(1)
    assert claimed == running
    assert job.pause()
    assert states(job, ready, running, done, future) == [
        *("PAUSED", "PAUSED", "PROCESSING", "COMPLETE", "PAUSED"),
    ]
    run_to_its_end(hands, claimed)
    assert states(job, running) == ["PAUSED", "COMPLETE"]
    assert now_is(job).waiting_for == 2
    assert drain() == 0
    assert job.resume()
    assert states(job, ready, future) == ["WAITING", "NEW", "NEW"]
    assert now_is(future).due is False
    Job.objects.filter(pk=future.pk).update(run_after=None)
    drain()
    assert states(job) == ["COMPLETE"]
    hands.die()


def test_a_parent_whose_members_end_while_it_rests(anywhere: None) -> None:
    job = create("group")
    step_on()
    hands = Hands()
    claimed = hands.claim()
    assert len(claimed) == 2
    assert job.pause()
    for one in claimed:
        run_to_its_end(hands, one)
    assert (*states(job), now_is(job).waiting_for) == ("PAUSED", 0)
    assert job.resume()
    assert job.state == "READY"
    drain()
    assert (*states(job), outcomes(job)) == ("COMPLETE", [(1, "waited"), (2, "succeeded")])


def test_a_member_that_rests_alone(anywhere: None) -> None:
    job = create("group")
    step_on()
    first, second = job.children.order_by("position")
    assert first.pause()
    drain()
    assert states(job, first, second) == ["WAITING", "PAUSED", "COMPLETE"]
    assert first.resume()
    drain()
    assert states(job) == ["COMPLETE"]


@pytest.mark.parametrize(
    ("end", "state"), [("complete", "NEW"), ("failed", "BLOCKED"), ("cancelled", "BLOCKED")]
)
def test_what_a_job_waits_for_ends_while_it_rests(anywhere: None, end: str, state: str) -> None:
    other = create("boom" if end == "failed" else "quick", queue_name="other")
    job = create(depends_on=[other])
    assert job.pause()
    if end == "cancelled":
        other.cancel()
    drain("other")
    assert states(job) == ["PAUSED"]
    assert job.resume()
    assert job.state == state
    if state == "BLOCKED":
        # The same with a retry of the other, while it rests.
        assert job.pause()
        Job.objects.filter(pk=other.pk).update(workspace={"mended": True})
        assert other.retry()
        assert states(job) == ["PAUSED"]
        assert job.resume()
        assert (job.state, job.waiting_for) == ("WAITING", 1)
    drain()
    assert states(job) == ["COMPLETE"]


def test_a_task_that_waits_for_jobs_rests_and_goes_on(anywhere: None) -> None:
    others = [create(queue_name="late"), create(queue_name="never")]
    wait = Wait(jobs=others, mode="any")
    job = create("act", does=lambda job: wait if job.attempt == 1 else None)
    drain("default")
    assert job.pause()
    assert job.resume()
    assert (job.state, job.waiting_for) == ("WAITING", 2)
    assert job.pause()
    drain("late")
    assert job.resume()
    assert (job.state, job.waiting_for) == ("READY", 0)
    drain()
    assert outcomes(job) == [(1, "waited"), (2, "succeeded")]


def test_times_go_on_while_a_job_rests(anywhere: None) -> None:
    later = timezone.now() + HOUR
    future, sleeps, waits = create(run_after=later), create("sleep"), create("wait_for")
    drain()
    for job, state in ((future, "NEW"), (sleeps, "READY"), (waits, "WAITING")):
        before = now_is(job).run_after
        assert job.pause()
        assert job.resume()
        assert (job.state, job.run_after, job.due) == (
            state,
            before,
            state == "WAITING" and job.due,
        )
        assert job.pause()
    Job.objects.all().update(run_after=timezone.now())
    assert drain() == 0
    for job in (future, sleeps, waits):
        assert job.resume()
    drain()
    assert states(future, sleeps, waits) == ["COMPLETE", "COMPLETE", "FAILED"]


def test_a_word_that_comes_while_a_job_rests(anywhere: None) -> None:
    job = create("wait_for")
    drain()
    assert job.pause()
    assert job.send("word", {"a": 1})
    assert job.state == "PAUSED"
    assert job.resume()
    drain()
    job.refresh_from_db()
    assert (job.state, job.workspace["word"]) == ("COMPLETE", {"a": 1})


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_a_job_that_rests_ends(anywhere: None, verb: str) -> None:
    parent = create("group")
    step_on()
    assert parent.pause()
    dependent = create(depends_on=[parent], on_dependency_failure="proceed")
    getattr(now_is(parent), verb)()
    drain()
    assert states(dependent) == ["COMPLETE"]
    assert set(parent.children.values_list("state", flat=True)) <= {"CANCELLED"}


def test_a_job_that_was_lost_and_is_held_goes_on_when_a_person_says_so(anywhere: None) -> None:
    job = create("held")
    hands = Hands()
    hands.claim()
    hands.die()
    assert states(job) == ["PAUSED"]
    assert drain() == 0
    assert job.resume()
    assert job.state == "READY"
    drain()
    assert outcomes(job) == [(1, "lost"), (2, "succeeded")]


def test_members_are_held_as_their_own_step_says(anywhere: None) -> None:
    job = create("group, held")
    step_on()
    hands = Hands()
    (member,) = hands.claim()
    hands.die()
    assert states(job, member) == ["WAITING", "PAUSED"]
    assert job.resume()
    drain()
    assert states(job, member) == ["COMPLETE", "COMPLETE"]


# -- verbs at once --


def begin(verb: str, job: Job) -> Callable[[], Any]:
    """A verb, or what a worker does, to be called in a moment; True if it has had an effect."""
    if verb in VERBS:
        return getattr(now_is(job), verb)  # type: ignore[no-any-return]
    hands = Hands(verb)
    if verb == "claim":
        return lambda: bool(hands.claim())
    (claimed,) = hands.claim()
    execution = hands.perform(claimed)
    return lambda: bool(hands.write(execution))


# The job, what is done first and is not committed, what is done then, whether that has an effect, and the state. A
# dash: it may also go by what was committed before, and have none.
RACES = """
two    step    cancel  yes  CANCELLED
two    cancel  step    no   CANCELLED
two    step    pause   yes  PAUSED
two    pause   step    yes  PAUSED
quick  step    cancel  no   COMPLETE
quick  cancel  step    no   CANCELLED
quick  step    pause   no   COMPLETE
quick  pause   step    yes  COMPLETE
boom   step    cancel  no   FAILED
boom   step    retry   yes  READY
boom   cancel  step    no   CANCELLED
two    cancel  cancel  no   CANCELLED
two    cancel  pause   no   CANCELLED
two    pause   cancel  yes  CANCELLED
two    pause   pause   yes  PAUSED
two    claim   cancel  yes  CANCELLED
two    claim   pause   yes  PROCESSING
two    cancel  claim   no   CANCELLED
two    pause   claim   no   PAUSED
paused resume  resume  no   NEW
paused resume  cancel  yes  CANCELLED
paused resume  pause   yes  PAUSED
paused cancel  resume  no   CANCELLED
paused pause   resume  yes  NEW
failed retry   retry   no   READY
failed retry   cancel  -    CANCELLED
failed retry   pause   -    PAUSED
"""


@committed
@pytest.mark.parametrize(
    ("kind", "first", "then", "effect", "state"),
    [
        pytest.param(*row.split(), id=" ".join(row.split()[:3]))
        for row in RACES.strip().splitlines()
    ],
)
def test_two_at_once(kind: str, first: str, then: str, effect: str, state: str) -> None:
    """The second waits for the first, and goes by what that has made of the job."""
    job = in_state(kind.upper()) if kind in ("paused", "failed") else create(kind)
    # What a worker is to write it has begun before anybody intervenes.
    calls = {verb: begin(verb, job) for verb in sorted({first, then}, key="step".__ne__)}
    waits = None if then == "claim" or effect == "-" else True
    with while_uncommitted(calls[then], waits=waits) as answer:
        assert calls[first]()
    if effect == "-" and not answer.result():
        assert states(job) == ["READY"]
    else:
        assert bool(answer.result()) is (effect != "no")
        assert states(job) == [state]
    numbers = [number for number, _ in outcomes(job)]
    assert len(numbers) == len(set(numbers))


@committed
@pytest.mark.skipif(connection.vendor == "sqlite", reason="it has one writer at a time")
@pytest.mark.parametrize("end", ["outcome", "cancel"])
@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_parent_is_reached_for_while_its_last_member_ends(
    verb: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The member has been written, and its parent not been told yet: neither may fail, or wait for ever."""
    job = create("group of one")
    step_on()
    hands = Hands()
    (member,) = hands.claim()
    write = partial(hands.write, hands.perform(member))
    with ThreadPoolExecutor(2) as pool, stopping_at(monkeypatch, members, "settle") as gate:
        ending = aside(pool, write if end == "outcome" else now_is(member).cancel)
        assert gate.reached.wait(more_tasks.PATIENCE)
        reaching = aside(pool, getattr(now_is(job), verb))
        until_blocked(reaching)
        gate.open()
        written, reached = ending.result(60), reaching.result(60)
    assert reached is True
    ended = "COMPLETE" if end == "outcome" and written else "CANCELLED"
    assert states(job, member) == ["CANCELLED" if verb == "cancel" else "PAUSED", ended]
    if verb == "pause":
        assert written
        assert job.resume()
        drain()
        assert states(job) == ["COMPLETE" if end == "outcome" else "FAILED"]


@committed
@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_a_parent_and_its_member_are_reached_for_at_once(verb: str) -> None:
    job = create("group of boom")
    step_on()
    (member,) = job.children.all()
    if verb == "retry":
        drain()
        assert states(job, member) == ["FAILED", "FAILED"]
    with while_uncommitted(getattr(now_is(member), verb)) as answer:
        assert getattr(job, verb)()
    assert answer.result() is False
    expected = ["CANCELLED", "CANCELLED"] if verb == "cancel" else ["WAITING", "READY"]
    assert states(job, member) == expected
    Job.objects.filter(pk=member.pk).update(workspace={"mended": True})
    drain()
    assert states(job) == ["CANCELLED" if verb == "cancel" else "COMPLETE"]


@committed
@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_a_member_and_its_parent_are_reached_for_at_once(verb: str) -> None:
    job = create("group of boom")
    step_on()
    (member,) = job.children.all()
    if verb == "retry":
        drain()
    with while_uncommitted(getattr(now_is(job), verb)) as answer:
        assert getattr(member, verb)()
    assert answer.result() is True
    expected = ["CANCELLED", "CANCELLED"] if verb == "cancel" else ["WAITING", "READY"]
    assert states(job, member) == expected
    Job.objects.filter(pk=member.pk).update(workspace={"mended": True})
    drain()
    assert states(job) == ["CANCELLED" if verb == "cancel" else "COMPLETE"]
    assert last_error(job) == "" or verb == "cancel"
