"""Decisions: the same pipeline, step and error always lead to the same place."""

import pytest

from django_dbq.outcomes import AttemptOutcome, Decision, decide, decide_failure
from django_dbq.pipelines import Pipeline, Step
from django_dbq.states import Event, State

A, B, A_AGAIN = Step(0, "m.a"), Step(1, "m.b"), Step(2, "m.a")
PIPELINE = Pipeline("aba", (A, B, A_AGAIN))
ERROR = ValueError("no")


@pytest.mark.parametrize(
    ("step", "error", "expected"),
    [
        (A, None, Decision(Event.STEP_DONE, State.READY, B)),
        (B, None, Decision(Event.STEP_DONE, State.READY, A_AGAIN)),
        (A_AGAIN, None, Decision(Event.LAST_STEP_DONE, State.COMPLETE, None)),
        (A, ERROR, Decision(Event.ATTEMPT_FAILED, State.FAILED, A)),
        (A_AGAIN, ERROR, Decision(Event.ATTEMPT_FAILED, State.FAILED, A_AGAIN)),
        (B, SystemExit(0), Decision(Event.ATTEMPT_FAILED, State.FAILED, B)),
    ],
)
def test_decisions(step: Step, error: BaseException | None, expected: Decision) -> None:
    assert decide(PIPELINE, step, error) == expected


def test_a_bare_failure_names_the_step_that_failed() -> None:
    assert decide_failure(B) == Decision(Event.ATTEMPT_FAILED, State.FAILED, B)


def test_outcomes_of_attempts_are_stored_under_these_words() -> None:
    assert AttemptOutcome.values == ["succeeded", "failed"]
