"""Durable pauses: sleeps, events that are sent before, while or after they are waited for, and time limits."""

import datetime
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from django_dbq import engine
from django_dbq.engine import upkeep
from django_dbq.models import Job, JobEvent
from django_dbq.outcomes import TimedOut
from django_dbq.testing import advance, drain
from django_dbq.workspaces import InvalidWorkspace
from tests.pipelines.flow import (
    EVERY,
    HOOKS,
    Hands,
    T,
    create,
    declare,
    drained,
    history,
    last_error,
    members,
    now_is,
    run,
    states,
    step_on,
    tasks,
)
from tests.pipelines.tasks import called, nest
from tests.storage.sessions import elsewhere, while_uncommitted

anywhere = pytest.mark.usefixtures("anywhere")
committed = pytest.mark.django_db(transaction=True)

SECOND = datetime.timedelta(seconds=1)
WAIT = ("wait_for approval", "waited")
COME = ("wait_for approval", "succeeded")


def approval(**options: Any) -> dict[str, Any]:
    return {"wait_for": "approval", **options}


def ok(*names: str) -> list[tuple[str, str]]:
    return [(name, "succeeded") for name in names]


# -- sleeps --


@anywhere
def test_a_sleep(settings: Any) -> None:
    begun = timezone.now()
    job = run(settings, T + "a", {"sleep": 3600}, T + "b")
    assert (job.state, job.next_task, job.step) == ("READY", "sleep", 1)
    assert job.run_after is not None
    assert 0 <= (job.run_after - begun).total_seconds() - 3600 < 60
    assert not job.due
    assert called == ["a"]
    asleep = [*ok("a"), ("sleep", "waited")]
    assert history(job) == asleep
    advance(3599 * SECOND - (timezone.now() - begun))
    assert drain() == 0
    advance(60 * SECOND)
    assert drained(job).state == "COMPLETE"
    assert history(job) == [*asleep, *ok("sleep", "b")]
    assert list(job.attempts.order_by("pk").values_list("step", flat=True)) == [0, 1, 1, 2]
    assert job.workspace == {"a": [], "b": ["a"]}


@anywhere
@pytest.mark.parametrize("seconds", [0, 0.0, 1e-6])
def test_no_sleep_at_all(settings: Any, seconds: float) -> None:
    declare(settings, {"sleep": seconds}, T + "a")
    job = create()
    step_on()
    advance(SECOND)
    assert drained(job).state == "COMPLETE"
    assert history(job) == [("sleep", "waited"), *ok("sleep", "a")]


@anywhere
def test_a_century_of_sleep(settings: Any) -> None:
    job = run(settings, {"sleep": 3_155_760_000})
    assert job.state == "READY"
    assert job.run_after is not None
    assert job.run_after.year > 2100


@anywhere
def test_a_sleep_comes_last_or_twice_in_a_row(settings: Any) -> None:
    job = run(settings, {"sleep": 10}, {"sleep": 20})
    advance(11 * SECOND)
    assert drained(job).state == "READY"
    assert job.step == 1
    advance(10 * SECOND)
    assert drained(job).state == "READY"
    advance(11 * SECOND)
    assert drained(job).state == "COMPLETE"


@anywhere
def test_a_job_may_be_late_when_it_comes_to_a_sleep(settings: Any) -> None:
    """What it was to run after is no matter for how long it sleeps."""
    declare(settings, {"sleep": 100}, T + "a")
    past = timezone.now() - datetime.timedelta(days=1)
    job: Job = Job.objects.create(name="it", run_after=past)
    assert drained(job).state == "READY"
    assert job.run_after is not None
    assert job.run_after > timezone.now()


@anywhere
def test_a_paused_sleep_goes_on_sleeping(settings: Any) -> None:
    job = run(settings, {"sleep": 100}, T + "a")
    assert job.pause()
    advance(50 * SECOND)
    assert job.resume()
    assert (job.state, job.due) == ("READY", False)
    assert drain() == 0
    assert job.pause()
    advance(60 * SECOND)
    assert drain() == 0
    assert job.resume()
    assert drained(job).state == "COMPLETE"


@anywhere
def test_a_sleep_in_a_branch(settings: Any) -> None:
    job = run(settings, [[{"sleep": 100}, T + "a"], T + "b"], T + "c")
    assert (states(job), called) == (["WAITING"], ["b"])
    assert now_is(job).waiting_for == 1
    advance(101 * SECOND)
    assert drained(job).state == "COMPLETE"
    assert called == ["b", "a", "c"]


@anywhere
def test_a_sleep_has_no_hooks(settings: Any) -> None:
    declare(settings, {"sleep": 1}, approval(timeout=1, on_timeout="continue"), **HOOKS)
    job = create()
    for _ in range(3):
        drained(job)
        advance(2 * SECOND)
    assert called == ["created, job", "completed, job"]


@anywhere
def test_a_cancelled_sleep_that_is_retried_sleeps_anew(settings: Any) -> None:
    job = run(settings, {"sleep": 100}, T + "a")
    assert job.cancel()
    assert job.retry()
    assert drained(job).state == "READY"
    assert called == []
    advance(101 * SECOND)
    assert drained(job).state == "COMPLETE"


@anywhere
def test_a_worker_is_lost_at_the_end_of_a_sleep(settings: Any) -> None:
    job = run(settings, {"sleep": 100}, T + "a")
    advance(101 * SECOND)
    hands = Hands()
    hands.claim()
    hands.die()
    assert drained(job).state == "COMPLETE", "it does not sleep again"
    assert history(job) == [
        *(("sleep", "waited"), ("sleep", "lost")),
        *ok("sleep", "a"),
    ]


@anywhere
def test_the_next_due_time_is_known(settings: Any) -> None:
    """So that an idle worker wakes in time for it, and not at its next poll."""
    job = run(settings, [{"sleep": 100}, approval(timeout=50), approval()])
    sleeps, waits, _ = members(job)
    now = timezone.now()
    assert engine.next_due(EVERY, now, "default") == waits.run_after
    assert waits.send("approval")
    assert engine.next_due(EVERY, now, "default") == sleeps.run_after


# -- events --


@anywhere
def test_a_wait(settings: Any) -> None:
    job = run(settings, T + "a", approval(), T + "b")
    assert (job.state, job.next_task, job.step) == ("WAITING", "wait_for approval", 1)
    assert (job.run_after, job.waiting_for) == (None, 0)
    assert history(job) == [*ok("a"), WAIT]
    assert drain() == 0
    assert job.send("approval", {"by": "me"})
    assert (job.state, job.due) == ("READY", True)
    assert drained(job).state == "COMPLETE"
    assert job.workspace == {"a": [], "approval": {"by": "me"}, "b": ["a", "approval"]}
    assert history(job) == [*ok("a"), WAIT, COME, *ok("b")]
    event = JobEvent.objects.get()
    assert (event.job_id, event.name, event.payload) == (job.pk, "approval", {"by": "me"})
    assert event.taken == 3


PAYLOADS: list[Any] = [None, 0, False, "", "yes", [], [1, None], {}, {"k": {"l": [1.5]}}]


@anywhere
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("sent", ["before", "while"])
def test_payloads_of_every_kind(settings: Any, payload: Any, sent: str) -> None:
    declare(settings, approval())
    job = create()
    if sent == "while":
        drained(job)
    assert job.send("approval", payload)
    assert drained(job).state == "COMPLETE"
    assert job.workspace == {"approval": payload}
    assert type(job.workspace["approval"]) is type(payload)
    assert history(job) == [COME] if sent == "before" else [WAIT, COME]


@anywhere
def test_a_payload_replaces_what_was_there(settings: Any) -> None:
    declare(settings, approval())
    job = create(approval="old")
    assert job.send("approval")
    assert drained(job).workspace == {"approval": None}


@anywhere
@pytest.mark.parametrize("payload", [object(), {1, 2}, float("nan"), "\0"])
def test_a_payload_that_is_no_json(settings: Any, payload: Any) -> None:
    job = run(settings, approval())
    with pytest.raises(InvalidWorkspace, match="the payload"):
        job.send("approval", payload)
    assert states(job) == ["WAITING"]
    assert not JobEvent.objects.exists()


@anywhere
def test_a_payload_that_would_be_too_deep_in_the_workspace(settings: Any) -> None:
    job = run(settings, approval(), T + "a")
    with pytest.raises(InvalidWorkspace, match=r"the payload.* nested too deeply"):
        job.send("approval", nest(31))
    assert job.send("approval", nest(30))
    assert drained(job).state == "COMPLETE"
    assert job.workspace["approval"] == nest(30)


@anywhere
def test_the_first_event_counts(settings: Any) -> None:
    job = run(settings, approval(), T + "a")
    assert job.send("approval", 1)
    assert not job.send("approval", 2), "the first one has not been taken"
    assert drained(job).workspace["approval"] == 1
    assert JobEvent.objects.count() == 1


@anywhere
def test_two_waits_for_one_event_take_two(settings: Any) -> None:
    job = run(settings, approval(), {**approval(), "name": "again"}, T + "a")
    assert job.send("approval", 1)
    assert drained(job).state == "WAITING"
    assert job.workspace == {"approval": 1}
    assert job.send("approval", 2)
    assert drained(job).workspace["approval"] == 2
    assert list(JobEvent.objects.order_by("pk").values_list("payload", "taken")) == [(1, 2), (2, 4)]


@anywhere
def test_events_that_nobody_waits_for(settings: Any) -> None:
    job = run(settings, approval(), T + "a")
    assert job.send("something else", 1)
    assert states(job) == ["WAITING"]
    assert job.send("approval", 2)
    assert drained(job).workspace == {"approval": 2, "a": ["approval"]}
    assert JobEvent.objects.get(name="something else").taken == 0


@anywhere
@pytest.mark.parametrize("way", ["completed", "failed", "cancelled", "deleted"])
def test_a_job_that_has_ended_hears_nothing(settings: Any, way: str) -> None:
    job = run(settings, T + ("abort" if way == "failed" else "a"), *[approval()] * (way[0] == "c"))
    if way == "cancelled":
        assert job.cancel()
    elif way == "completed":
        assert job.send("approval")
        drained(job)
    elif way == "deleted":
        key = job.pk
        job.delete()
        job.pk = key
    assert not job.send("approval", "late")
    assert not JobEvent.objects.filter(payload="late").exists()


@anywhere
@pytest.mark.parametrize("other", ["Approval", "approval ", "approvál"])
def test_names_that_some_databases_do_not_tell_apart(settings: Any, other: str) -> None:
    job = run(settings, approval(), T + "a")
    assert job.send(other, "another")
    assert drained(job).state == "WAITING"
    assert job.send("approval", 1)
    assert drained(job).workspace == {"approval": 1, "a": ["approval"]}


@anywhere
def test_an_event_wakes_its_own_job_only(settings: Any) -> None:
    one = run(settings, approval())
    two = drained(create())
    assert one.send("approval")
    assert states(one, two) == ["READY", "WAITING"]


@anywhere
def test_an_event_for_a_branch(settings: Any) -> None:
    """It is sent to the member that waits; what is sent to the job is the job's."""
    job = run(settings, [[approval(), T + "a"], T + "b"], T + "c")
    assert job.send("approval", "to the job")
    assert drained(job).state == "WAITING"
    waits = members(job)[0]
    assert waits.state == "WAITING"
    assert waits.send("approval", "to the branch")
    assert (states(waits), states(job)) == (["READY"], ["WAITING"])
    assert drained(job).workspace["approval"] == "to the branch"
    assert job.state == "COMPLETE"


@anywhere
def test_an_event_for_a_job_at_another_step(settings: Any) -> None:
    """A group, a sleep, or a wait for something else is not ended by it."""
    declare(settings, {"sleep": 10}, [{"wait_for": "other"}], approval())
    job = drained(create())
    assert job.send("approval", 1)
    assert (job.state, job.due) == ("READY", False)
    advance(11 * SECOND)
    assert drained(job).state == "WAITING"
    assert members(job)[0].send("other")
    assert drained(job).state == "COMPLETE"
    assert job.workspace == {"other": None, "approval": 1}


@anywhere
def test_a_wait_needs_a_dict_for_the_payload(settings: Any) -> None:
    declare(settings, T + "become_a_list", approval())
    job = drained(create())
    assert job.state == "WAITING"
    assert job.send("approval", 1)
    assert drained(job).state == "FAILED"
    assert "The workspace is no dict, which wait_for approval needs." in last_error(job)


@anywhere
def test_long_names(settings: Any) -> None:
    name = "é" * 200
    job = run(settings, {"wait_for": name})
    assert job.state == "WAITING"
    assert job.send(name, 1)
    assert drained(job).workspace == {name: 1}


@anywhere
@pytest.mark.parametrize("name", ["x" * 201, "", "\0"])
def test_names_that_no_wait_could_have(settings: Any, name: str) -> None:
    """Refused alike by every database, and before anything is written."""
    job = run(settings, approval())
    with pytest.raises(ValueError, match="event"):
        job.send(name)
    assert not JobEvent.objects.exists()


@anywhere
def test_a_paused_wait_hears_all_the_same(settings: Any) -> None:
    for options in ({}, {"timeout": 100}):
        job = run(settings, approval(**options), T + "a")
        assert job.pause()
        assert job.send("approval", 1)
        assert drained(job).state == "PAUSED"
        assert job.resume()
        assert (job.state, job.due) == ("READY", True)
        assert drained(job).state == "COMPLETE"
        assert job.workspace["approval"] == 1


@anywhere
def test_a_wait_is_resumed_without_an_event(settings: Any) -> None:
    job = run(settings, approval(timeout=100), T + "a")
    assert job.pause()
    assert job.resume()
    assert (job.state, job.next_task) == ("WAITING", "wait_for approval")
    assert job.send("approval")
    assert drained(job).state == "COMPLETE"
    assert history(job) == [WAIT, COME, *ok("a")]


@anywhere
def test_a_job_that_rests_before_its_wait_keeps_its_time(settings: Any) -> None:
    declare(settings, T + "come_tomorrow", approval(timeout=100))
    job = create()
    step_on()
    tomorrow = now_is(job).run_after
    assert tomorrow is not None
    assert job.pause()
    assert job.resume()
    assert (*states(job), now_is(job).run_after) == ("READY", tomorrow)
    assert drained(job).state == "READY"
    advance(86_400 * SECOND)
    assert drained(job).state == "WAITING"


# -- time limits --


@anywhere
def test_a_wait_that_fails_in_time(settings: Any) -> None:
    declare(settings, approval(timeout=100), T + "a", **HOOKS)
    begun = timezone.now()
    job = drained(create())
    assert job.state == "WAITING"
    assert job.run_after is not None
    assert 0 <= (job.run_after - begun).total_seconds() - 100 < 60
    advance(40 * SECOND)
    assert drained(job).state == "WAITING"
    advance(101 * SECOND)
    assert drained(job).state == "FAILED"
    assert history(job) == [WAIT, ("wait_for approval", "timed_out")]
    assert (
        last_error(job) == f"{TimedOut.__module__}.TimedOut: 'approval' was not sent within 100 s."
    )
    assert called == ["created, job", "failed, job: TimedOut"]
    assert not job.send("approval", "too late")


@anywhere
def test_a_wait_that_goes_on_without(settings: Any) -> None:
    job = run(settings, approval(timeout=100, on_timeout="continue"), T + "a")
    advance(101 * SECOND)
    assert drained(job).state == "COMPLETE"
    assert history(job) == [WAIT, COME, *ok("a")]
    assert job.workspace == {"a": []}, "there is no payload"


@anywhere
@pytest.mark.parametrize("policy", ["fail", "continue"])
def test_an_event_that_comes_in_time(settings: Any, policy: str) -> None:
    job = run(settings, approval(timeout=100, on_timeout=policy), T + "a")
    advance(50 * SECOND)
    assert job.send("approval", 1)
    assert (job.state, job.due, job.run_after) == ("READY", True, None)
    assert drained(job).workspace == {"approval": 1, "a": ["approval"]}


@anywhere
@pytest.mark.parametrize("policy", ["fail", "continue"])
def test_an_event_that_comes_after_the_limit_and_before_its_end(settings: Any, policy: str) -> None:
    """Nobody has acted on the limit yet: the event is there, so it counts."""
    job = run(settings, approval(timeout=100, on_timeout=policy))
    advance(101 * SECOND)
    assert states(job) == ["READY"]
    assert job.send("approval", 1)
    assert drained(job).workspace == {"approval": 1}
    assert job.state == "COMPLETE"


@anywhere
def test_an_event_that_is_there_already_needs_no_limit(settings: Any) -> None:
    declare(settings, approval(timeout=100), T + "a")
    job = create()
    assert job.send("approval", 1)
    assert drained(job).state == "COMPLETE"
    assert history(job) == [COME, *ok("a")]


@anywhere
def test_a_job_that_is_freed_too_early_waits_on(settings: Any) -> None:
    """As when somebody sets it READY by hand."""
    job = run(settings, approval(timeout=100))
    limit = job.run_after
    Job.objects.filter(pk=job.pk).update(state="READY", due=True, run_after=None)
    assert drained(job).state == "WAITING"
    Job.objects.filter(pk=job.pk).update(run_after=limit)
    advance(101 * SECOND)
    assert drained(job).state == "FAILED"


@anywhere
def test_a_retried_wait_has_its_time_anew(settings: Any) -> None:
    job = run(settings, approval(timeout=100), T + "a")
    advance(101 * SECOND)
    assert drained(job).state == "FAILED"
    assert job.retry()
    assert drained(job).state == "WAITING"
    assert job.run_after is not None
    assert job.run_after > timezone.now() + 90 * SECOND
    advance(101 * SECOND)
    assert drained(job).state == "FAILED"
    assert job.retry()
    assert drained(job).state == "WAITING"
    assert job.send("approval", 1)
    assert drained(job).state == "COMPLETE"


@anywhere
def test_a_paused_wait_is_over_when_it_is_resumed(settings: Any) -> None:
    job = run(settings, approval(timeout=100), T + "a")
    assert job.pause()
    advance(101 * SECOND)
    assert drained(job).state == "PAUSED"
    assert job.resume()
    assert drained(job).state == "FAILED"


@anywhere
def test_a_limit_in_a_branch(settings: Any) -> None:
    job = run(settings, [approval(timeout=100), T + "a"], T + "b")
    advance(101 * SECOND)
    assert drained(job).state == "FAILED"
    assert [m.state for m in members(job)] == ["FAILED", "COMPLETE"]
    assert job.retry()
    assert drained(job).state == "WAITING"
    assert members(job)[0].send("approval", 1)
    assert drained(job).state == "COMPLETE"


@anywhere
def test_many_limits_at_once(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one look of the housekeeping frees."""
    monkeypatch.setattr(upkeep, "PEEK", 10)
    declare(settings, approval(timeout=100, on_timeout="continue"))
    Job.objects.bulk_create(Job(name="it") for _ in range(25))
    step_on()
    assert Job.objects.filter(state="WAITING").count() == 25
    past = timezone.now() - SECOND
    Job.objects.filter(state="WAITING").update(run_after=past)
    freed = [engine.stage_due(timezone.now(), "default") for _ in range(4)]
    assert freed == [10, 10, 5, 0]
    assert Job.objects.filter(state="READY", due=True).count() == 25


# -- at the same time --


@anywhere
@pytest.mark.parametrize("options", [{}, {"timeout": 1000}])
def test_an_event_that_is_sent_between_the_look_and_the_wait(
    settings: Any, options: dict[str, Any]
) -> None:
    """The worker has not seen it; when the job begins to wait, it is there."""
    declare(settings, approval(**options), T + "a")
    job = create()
    hands = Hands()
    (claimed,) = hands.claim()
    outcome = hands.perform(claimed)
    assert job.send("approval", 1)
    assert states(job) == ["PROCESSING"]
    hands.write(outcome)
    assert (states(job), now_is(job).due) == (["READY"], True)
    assert drained(job).workspace == {"approval": 1, "a": ["approval"]}
    assert history(job) == [WAIT, COME, *ok("a")]


@committed
@pytest.mark.parametrize("first", ["send", "wait"])
@pytest.mark.parametrize("options", [{}, {"timeout": 1000}])
def test_an_event_is_sent_as_the_wait_begins(
    settings: Any, first: str, options: dict[str, Any]
) -> None:
    """Each in a transaction of its own; the second waits for the first."""
    declare(settings, approval(**options), T + "a")
    job = create()
    hands = Hands()
    (claimed,) = hands.claim()
    outcome = hands.perform(claimed)

    def send() -> bool:
        return now_is(job).send("approval", 1)

    def wait() -> bool:
        return bool(hands.write(outcome))

    now, then = (send, wait) if first == "send" else (wait, send)
    with while_uncommitted(then) as answer:
        assert now()
    assert answer.result()
    assert (states(job), now_is(job).due) == (["READY"], True)
    assert drained(job).workspace == {"approval": 1, "a": ["approval"]}


@committed
def test_two_send_at_once(settings: Any) -> None:
    job = run(settings, approval(), T + "a")

    def send(payload: int) -> bool:
        return now_is(job).send("approval", payload)

    with while_uncommitted(lambda: send(2)) as second:
        assert send(1)
    assert second.result() is False
    assert drained(job).workspace["approval"] == 1


@committed
@pytest.mark.parametrize("first", ["send", "limit"])
def test_an_event_is_sent_as_the_time_is_over(settings: Any, first: str) -> None:
    job = run(settings, approval(timeout=100), T + "a")
    Job.objects.filter(pk=job.pk).update(run_after=timezone.now() - SECOND)

    def send() -> bool:
        return now_is(job).send("approval", 1)

    def free() -> bool:
        return engine.stage_due(timezone.now(), "default") >= 0

    now, then = (send, free) if first == "send" else (free, send)
    with while_uncommitted(then, waits=None) as answer:
        assert now()
    assert answer.result()
    assert drained(job).workspace == {"approval": 1, "a": ["approval"]}
    assert history(job) == [WAIT, COME, *ok("a")]


@committed
def test_an_event_obeys_the_callers_transaction(settings: Any) -> None:
    job = run(settings, approval(), T + "a")
    with transaction.atomic():
        assert job.send("approval", 1)
        if connection.vendor != "sqlite":
            assert elsewhere(lambda: states(job)) == ["WAITING"]
        transaction.set_rollback(True)
    assert states(job) == ["WAITING"]
    assert not JobEvent.objects.exists()
    assert now_is(job).send("approval", 2)
    assert drained(job).workspace["approval"] == 2


@anywhere
@pytest.mark.parametrize("names", ["a b c"])
def test_waits_and_tasks_side_by_side(settings: Any, names: str) -> None:
    """A job that waits holds no worker, and keeps nobody else from running."""
    waits = run(settings, approval(), *tasks(names))
    settings.JOBS = {**settings.JOBS, "other": tasks(names)}
    other: Job = Job.objects.create(name="other")
    assert drain() == 3
    assert states(waits, other) == ["WAITING", "COMPLETE"]
