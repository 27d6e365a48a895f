"""Decisions: the same step, tries and error always lead to the same place; and what tasks may return or raise."""

import datetime
import math
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone

from django_dbq import outcomes
from django_dbq.outcomes import (
    Abort,
    AttemptOutcome,
    ClaimLost,
    Decision,
    Exhausted,
    Finish,
    Interrupted,
    Retry,
    TimedOut,
    Tries,
    Wait,
    decide,
    decide_failure,
    decide_lost,
    decide_wait,
    exhausted,
    fail,
    retry_delay,
)
from django_dbq.parsing import parse
from django_dbq.pipelines import Pipeline, Step
from django_dbq.states import Event, State

A, B, A_AGAIN = Step(0, "m.a"), Step(1, "m.b"), Step(2, "m.a")
PIPELINE = Pipeline("aba", (A, B, A_AGAIN))
ERROR = ValueError("no")
NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
ONE, TWO = UUID(int=1), UUID(int=2)
WEST = datetime.timezone(-datetime.timedelta(hours=2))
END_OF_TIME = datetime.datetime.max.replace(tzinfo=datetime.UTC)


def seconds(count: float) -> datetime.datetime:
    """So many from `NOW`."""
    return NOW + datetime.timedelta(seconds=count)


# -- a step that is done --


@pytest.mark.parametrize(
    ("step", "event", "state", "following"),
    [
        (A, Event.STEP_DONE, State.READY, B),
        (B, Event.STEP_DONE, State.READY, A_AGAIN),
        (A_AGAIN, Event.LAST_STEP_DONE, State.COMPLETE, None),
    ],
)
def test_a_step_that_is_done(
    step: Step, event: Event, state: State, following: Step | None
) -> None:
    """With it, what was counted of its tries is over: the next step begins with none."""
    assert decide(PIPELINE, step) == Decision(event, state, following, AttemptOutcome.SUCCEEDED)
    assert (decide(PIPELINE, step).failures, decide(PIPELINE, step).lost) == (0, 0)


@pytest.mark.parametrize("step", [A, B, A_AGAIN], ids=lambda step: str(step.place))
def test_a_step_after_which_the_rest_is_skipped(step: Step) -> None:
    assert decide(PIPELINE, step, finish=True) == Decision(
        Event.LAST_STEP_DONE, State.COMPLETE, None, AttemptOutcome.SUCCEEDED
    )


def test_a_step_that_is_skipped_leads_where_it_would_have_led() -> None:
    for step in (A, B, A_AGAIN):
        done = decide(PIPELINE, step)
        skipped = decide(PIPELINE, step, outcome=AttemptOutcome.SKIPPED)
        assert skipped == replace(done, outcome=AttemptOutcome.SKIPPED)


def test_a_member_is_done_with_the_last_step_of_its_branch() -> None:
    tasks = [[["m.a", ["m.b", "m.c"]], "m.d"], {"map": "m.e", "over": "cats"}, "m.f"]
    pipeline = parse({"it": tasks})["it"]
    following = {
        step.path: getattr(decide(pipeline, step, member=True).next_step, "path", None)
        for step in pipeline.every
        if step not in pipeline.steps
    }
    assert following == {
        "m.a": "group",
        "group": None,
        "m.b": None,
        "m.c": None,
        "m.d": None,
        "m.e": None,
    }
    by_itself = {step.path: decide(pipeline, step).next_step for step in pipeline.steps}
    group, mapped, last = pipeline.steps
    assert by_itself == {group.path: mapped, mapped.path: last, last.path: None}
    moved_out = decide(pipeline, last, member=True)
    assert (moved_out.event, moved_out.next_step) == (Event.LAST_STEP_DONE, None)


# -- one that is not --


def judged(error: BaseException, **tries: Any) -> Decision:
    """What follows for step B, which waits 10 s, 20 s … before its retries."""
    return decide_failure(replace(B, retry_delay=10), Tries(**tries), error, NOW)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ERROR, "failed"),
        (SystemExit(0), "failed"),
        (Abort("never"), "failed"),
        (TimedOut("too long"), "timed_out"),
    ],
    ids=repr,
)
def test_without_retries_every_error_fails_the_job(error: BaseException, outcome: str) -> None:
    decision = judged(error, attempt=7)
    assert (decision.event, decision.state) == (Event.FAILED_FOR_GOOD, State.FAILED)
    assert (decision.outcome, decision.error) == (outcome, error)
    assert decision.next_step is not None
    assert decision.next_step.path == B.path, "sent on again, the job runs the step that failed"
    assert (decision.failures, decision.lost, decision.run_after) == (0, 0, None)


@pytest.mark.parametrize("error", [ERROR, TimedOut("too long")], ids=repr)
@pytest.mark.parametrize(
    ("failures", "retries", "again", "wait"),
    [
        (0, 0, False, None),
        (0, 1, True, 10),
        (1, 1, False, None),
        (1, 3, True, 20),
        (2, 3, True, 40),
        (3, 3, False, None),
        (7, 3, False, None),  # fewer are allowed than there were
    ],
)
def test_retries_are_counted(
    error: BaseException, failures: int, retries: int, again: bool, wait: int | None
) -> None:
    decision = judged(error, attempt=50, failures=failures, lost=1, retries=retries)
    assert decision.state == ("READY" if again else "FAILED")
    assert decision.event == (Event.TRIED_AGAIN if again else Event.FAILED_FOR_GOOD)
    assert decision.outcome == ("timed_out" if isinstance(error, TimedOut) else "failed")
    assert decision.run_after == (None if wait is None else seconds(wait))
    assert (decision.failures, decision.lost) == ((failures + 1, 1) if again else (0, 0))


def test_what_retry_on_does_not_name_is_not_tried_again() -> None:
    tries = Tries(retries=9)
    assert decide_failure(B, tries, ERROR, NOW, retriable=False).state == "FAILED"
    assert decide_failure(B, tries, TimedOut(), NOW, retriable=False).state == "READY"
    assert decide_failure(B, tries, Retry(), NOW, retriable=False).state == "READY"


def test_an_abort_is_final() -> None:
    decision = judged(Abort("never"), retries=9)
    assert (decision.state, decision.outcome) == ("FAILED", "failed")


# -- Retry --


@pytest.mark.parametrize(
    ("retry", "at"),
    [
        (Retry(), seconds(20)),  # as the next retry of the step would be
        (Retry(0), None),
        (Retry(2.5), seconds(2.5)),
        (Retry(datetime.timedelta(minutes=1)), seconds(60)),
        (Retry(at=seconds(5)), seconds(5)),
        (Retry(at=seconds(-5)), seconds(-5)),
        (Retry(1e300), END_OF_TIME),
    ],
    ids=str,
)
def test_a_retry_that_the_task_asks_for_uses_up_none(
    retry: Retry, at: datetime.datetime | None
) -> None:
    decision = judged(retry, attempt=9, failures=1, lost=2, retries=0)
    assert (decision.event, decision.state) == (Event.TRIED_AGAIN, State.READY)
    assert (decision.outcome, decision.error) == ("retried", retry)
    assert decision.run_after == at
    assert (decision.failures, decision.lost) == (1, 2)


def test_a_retry_at_a_naive_time_means_the_current_time_zone() -> None:
    with timezone.override(datetime.timezone(datetime.timedelta(hours=2))):
        retry = Retry(at=datetime.datetime(2026, 11, 21, 14))  # noqa: DTZ001  # that is the point
    assert retry.at == NOW


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"delay": 1, "at": NOW}, TypeError),
        ({"delay": 0, "at": NOW}, TypeError),
        ({"delay": -1}, ValueError),
        ({"delay": datetime.timedelta(seconds=-1)}, ValueError),
        ({"delay": math.nan}, ValueError),
        ({"delay": math.inf}, ValueError),
        ({"delay": "soon"}, TypeError),
        ({"delay": [60]}, TypeError),
        ({"at": "tomorrow"}, TypeError),
        ({"at": datetime.date(2026, 11, 21)}, TypeError),
        ({"at": 5}, TypeError),
    ],
    ids=repr,
)
def test_a_retry_at_no_such_time_is_refused(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Retry(**given)


def test_what_a_retry_expects() -> None:
    with pytest.raises(TypeError) as caught:
        Retry(delay="60")  # type: ignore[arg-type]
    assert str(caught.value) == "Retry's delay is '60'. Expected: seconds, or a timedelta."


@pytest.mark.parametrize(
    ("retry", "text"),
    [
        (Retry(), "to be run again"),
        (Retry(0), "to be run in 0 s"),
        (Retry(2.5), "to be run in 2.5 s"),
        (Retry(at=NOW), "to be run at 2026-11-21 12:00:00+00:00"),
        (Retry(exc=KeyError("cat")), "to be run again: KeyError('cat')"),
    ],
)
def test_a_retry_says_what_it_asks_for(retry: Retry, text: str) -> None:
    assert str(retry) == text


# -- Wait --


@pytest.mark.parametrize(
    ("wait", "event", "state", "at"),
    [
        (Wait(jobs=[ONE, TWO]), Event.WAITS, State.WAITING, None),
        (Wait(jobs=[]), Event.WAITS, State.WAITING, None),
        (Wait(until=seconds(5)), Event.TRIED_AGAIN, State.READY, seconds(5)),
        (Wait(until=seconds(-5)), Event.TRIED_AGAIN, State.READY, seconds(-5)),
    ],
    ids=str,
)
def test_a_wait_that_the_task_asks_for_uses_up_no_retry(
    wait: Wait, event: Event, state: State, at: datetime.datetime | None
) -> None:
    decision = judged(wait, attempt=9, failures=1, lost=2, retries=0)
    assert (decision.event, decision.state, decision.run_after) == (event, state, at)
    assert (decision.outcome, decision.error) == ("waited", None), "it is no error"
    assert decision.next_step is not None
    assert decision.next_step.path == B.path, "the same step is run again"
    assert decision.failures == 1


def test_retry_on_has_no_say_in_a_wait() -> None:
    wait = Wait(until=seconds(5))
    assert decide_failure(B, Tries(), wait, NOW, retriable=False).state == "READY"


def test_a_step_that_has_begun_to_wait() -> None:
    tries = Tries(attempt=3, failures=1, lost=2)
    assert decide_wait(B, tries) == Decision(
        Event.WAITS, State.WAITING, B, AttemptOutcome.WAITED, failures=1
    )
    assert decide_wait(B, tries, seconds(5)) == Decision(
        Event.TRIED_AGAIN, State.READY, B, AttemptOutcome.WAITED, failures=1, run_after=seconds(5)
    )


def test_a_wait_until_a_naive_time_means_the_current_time_zone() -> None:
    with timezone.override(datetime.timezone(datetime.timedelta(hours=2))):
        wait = Wait(until=datetime.datetime(2026, 11, 21, 14))  # noqa: DTZ001  # that is the point
    assert wait.until == NOW


def test_what_a_wait_keeps() -> None:
    wait = Wait(jobs=(key for key in (ONE, str(TWO), ONE)))
    assert (wait.jobs, wait.until, wait.mode, wait.on_failure) == ((ONE, TWO), None, "all", "block")
    wait = Wait([TWO], mode="any", on_failure="proceed")
    assert (wait.jobs, wait.mode, wait.on_failure) == ((TWO,), "any", "proceed")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, TypeError, "either jobs or until"),
        ({"jobs": [ONE], "until": NOW}, TypeError, "either jobs or until"),
        ({"jobs": 5}, TypeError, "not iterable"),
        ({"jobs": ["that"]}, ValueError, "'that' is no saved job, and no id of one"),
        ({"jobs": [None]}, ValueError, "None is no saved job"),
        ({"until": "tomorrow"}, TypeError, "Expected: a datetime"),
        ({"until": datetime.date(2026, 11, 21)}, TypeError, "Expected: a datetime"),
        ({"until": datetime.datetime.max.replace(tzinfo=WEST)}, ValueError, "no time in UTC"),
        ({"jobs": [ONE], "mode": "some"}, ValueError, "Expected: all or any"),
        ({"jobs": [ONE], "mode": None}, ValueError, "Expected: all or any"),
        ({"jobs": [ONE], "on_failure": "fail"}, ValueError, "Expected: block or proceed"),
    ],
    ids=repr,
)
def test_a_wait_for_no_such_thing_is_refused(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Wait(**given)


@pytest.mark.parametrize(
    ("wait", "text"),
    [
        (Wait(jobs=[ONE, TWO]), "to be run again after all of 2 jobs"),
        (Wait(jobs=[ONE], mode="any"), "to be run again after any of 1 jobs"),
        (Wait(until=NOW), "to be run again at 2026-11-21 12:00:00+00:00"),
    ],
)
def test_a_wait_says_what_it_asks_for(wait: Wait, text: str) -> None:
    assert str(wait) == text


# -- MAX_RUNS --


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ERROR, "failed"),
        (Retry(), "retried"),
        (TimedOut("too long"), "timed_out"),
        (Wait(until=NOW), "waited"),
    ],
    ids=repr,
)
def test_a_job_is_not_run_without_end(error: BaseException, outcome: str) -> None:
    def after(attempt: int, max_runs: int | None = 5) -> Decision:
        return judged(error, attempt=attempt, retries=1000, max_runs=max_runs)

    assert after(4).state == "READY"
    assert after(10_000, max_runs=None).state == "READY"
    for attempt in (5, 6):
        decision = after(attempt)
        assert (decision.event, decision.state) == (Event.FAILED_FOR_GOOD, State.FAILED)
        assert decision.outcome == outcome
        assert isinstance(decision.error, Exhausted)
        assert decision.error.__cause__ is error
        assert str(decision.error) == (
            f"The job was run {attempt} times, and once more is asked for; "
            'DBQ["MAX_RUNS"] allows 5.'
        )


def test_an_error_that_would_fail_the_job_anyway_stays_the_reason() -> None:
    assert judged(ERROR, attempt=5, max_runs=5).error is ERROR
    abort = Abort("never")
    assert judged(abort, attempt=5, retries=9, max_runs=5).error is abort


def test_steps_that_are_done_may_be_more_than_max_runs() -> None:
    assert exhausted(B, Tries(attempt=101, max_runs=100)) is None


# -- delays --


@pytest.mark.parametrize(
    ("options", "delays"),
    [
        ({}, [0, 0, 0]),
        ({"retry_delay": 3}, [3, 6, 12, 24]),
        ({"retry_delay": 3, "retry_backoff": 1}, [3, 3, 3]),
        ({"retry_delay": 0.5, "retry_backoff": 1.5}, [0.5, 0.75, 1.125]),
        ({"retry_delay": 300}, [300, 600, 600]),
        ({"retry_delay": 100, "retry_backoff": 10, "retry_max_delay": 5000}, [100, 1000, 5000]),
        ({"retry_delay": 0, "retry_max_delay": 0}, [0, 0]),
    ],
    ids=repr,
)
def test_delays_grow_up_to_their_limit(options: dict[str, Any], delays: list[float]) -> None:
    step = replace(A, **options)
    assert [retry_delay(step, number) for number in range(1, len(delays) + 1)] == delays


@pytest.mark.parametrize("number", [2000, 50_000])
@pytest.mark.parametrize("backoff", [2, 2.0, 1000, 1000.0])
@pytest.mark.parametrize(("delay", "expected"), [(1, 600), (0.5, 600), (0, 0), (0.0, 0)])
def test_no_number_of_retries_is_too_large(
    number: int, backoff: float, delay: float, expected: float
) -> None:
    step = replace(A, retry_delay=delay, retry_backoff=backoff)
    assert retry_delay(step, number) == expected
    assert decide_failure(
        step, Tries(failures=number, retries=number + 1), ERROR, NOW
    ).run_after == (seconds(expected) if expected else None)


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 10), (0.5, 15), (1.0, 20)])
def test_jitter_lies_between_half_and_the_whole(chance: float, delay: float) -> None:
    step = replace(A, retry_delay=10, retry_jitter=True)
    assert retry_delay(step, 2, chance) == delay
    tries = Tries(failures=1, retries=2)
    assert decide_failure(step, tries, ERROR, NOW, chance=chance).run_after == seconds(delay)
    exact = replace(step, retry_jitter=False)
    assert retry_delay(exact, 2, chance) == 20


def test_the_limit_holds_with_jitter_too() -> None:
    step = replace(A, retry_delay=10, retry_max_delay=12, retry_jitter=True)
    assert [retry_delay(step, 9, chance) for chance in (0.0, 1.0)] == [6, 12]


def test_a_delay_beyond_the_calendar_is_the_end_of_time() -> None:
    century = 3_155_760_000
    step = replace(A, retry_delay=century, retry_backoff=1000, retry_max_delay=century)
    late = datetime.datetime(9990, 1, 1, tzinfo=datetime.UTC)
    assert decide_failure(step, Tries(retries=9), ERROR, late).run_after == END_OF_TIME


# -- lost --


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
@pytest.mark.parametrize("on_lost", ["retry", "fail", "hold"])
def test_a_job_whose_worker_is_lost_goes_on(on_lost: str, lost: int) -> None:
    """Also the one that is to fail: whoever claims it next sees to that."""
    step = replace(B, on_lost=on_lost)
    decision = decide_lost(step, Tries(attempt=4, failures=2, lost=lost, retries=3))
    held = on_lost == "hold"
    assert decision.event == (Event.LOST_AND_HELD if held else Event.LOST)
    assert decision.state == ("PAUSED" if held else "READY")
    assert (decision.outcome, decision.next_step) == ("lost", step)
    assert (decision.failures, decision.lost, decision.run_after) == (2, lost + 1, None)


@pytest.mark.parametrize(
    ("on_lost", "lost", "reason"),
    [
        ("retry", 1, None),
        ("retry", 2, None),
        ("retry", 3, "The worker was lost 3 times while it ran m.b"),
        ("retry", 4, "The worker was lost 4 times while it ran m.b"),
        ("fail", 1, "The worker was lost while it ran m.b"),
        ("fail", 2, "The worker was lost 2 times while it ran m.b"),
        ("hold", 1, None),
        ("hold", 9, None),  # whoever has sent it on knows better
    ],
)
def test_a_job_that_was_lost_too_often_is_not_run(
    on_lost: str, lost: int, reason: str | None
) -> None:
    error = exhausted(replace(B, on_lost=on_lost), Tries(attempt=9, lost=lost))
    assert (error is None) == (reason is None)
    assert error is None or str(error).startswith(f"{reason}: ")


@pytest.mark.parametrize(
    ("failures", "retries", "reason"),
    [
        (0, 0, None),
        (1, 1, None),
        (1, 0, "m.b has failed or timed out once; retries that are allowed: 0."),
        (4, 3, "m.b has failed or timed out 4 times; retries that are allowed: 3."),
    ],
)
def test_a_job_that_has_timed_out_too_often_is_not_run(
    failures: int, retries: int, reason: str | None
) -> None:
    """A rescuer counts it, and whoever claims it next decides."""
    error = exhausted(B, Tries(attempt=9, failures=failures, retries=retries))
    assert str(error) == str(reason)


@pytest.mark.parametrize("counted", [{"failures": 1}, {"lost": 1}], ids=repr)
def test_a_job_that_was_rescued_too_often_is_not_run(counted: dict[str, int]) -> None:
    def reason(attempt: int, max_runs: int | None = 5) -> str:
        return str(exhausted(B, Tries(attempt, retries=9, max_runs=max_runs, **counted)))

    assert reason(5) == "None", "the last one that it may have"
    assert reason(6) == 'The job was run as often as DBQ["MAX_RUNS"] allows: 5 times.'
    assert reason(10**6, max_runs=None) == "None"


# -- words --


def test_a_bare_failure_names_the_step_that_failed() -> None:
    assert fail(B, ERROR) == Decision(
        Event.FAILED_FOR_GOOD, State.FAILED, B, AttemptOutcome.FAILED, ERROR
    )


def test_outcomes_of_attempts_are_stored_under_these_words() -> None:
    assert AttemptOutcome.values == [
        "succeeded",
        "failed",
        "timed_out",
        "lost",
        "retried",
        "waited",
        "skipped",
        "cancelled",
    ]


def test_what_a_task_may_catch() -> None:
    """A task's ``except Exception`` is meant for its own work, not for what ends it from outside."""
    for error in (TimedOut, Interrupted, ClaimLost):
        assert not issubclass(error, Exception)
    for error in (Retry, Abort, Wait, Finish, Exhausted):
        assert issubclass(error, Exception)
    assert outcomes.MAX_LOSSES == 3
