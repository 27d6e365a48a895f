"""What an attempt may come to, and the pure decision that follows from it.

No database and no clock: the same job, step and error always give the same decision.
"""

from dataclasses import dataclass

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

from .pipelines import Pipeline, Step
from .states import Event, State, target


class AttemptOutcome(TextChoices):
    """How one execution of one step ended."""

    SUCCEEDED = "succeeded", _("Succeeded")
    FAILED = "failed", _("Failed")


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a job: the event, the state it leads to, and the step that is next (None after the last)."""

    event: Event
    state: State
    next_step: Step | None


def decide(pipeline: Pipeline, step: Step, error: BaseException | None) -> Decision:
    """Decide where a job goes after an attempt at ``step`` that ended with ``error``, or well if that is None."""
    if error is not None:
        return decide_failure(step)
    following = pipeline.after(step)
    event = Event.LAST_STEP_DONE if following is None else Event.STEP_DONE
    return Decision(event, target(event), following)


def decide_failure(step: Step) -> Decision:
    """A failed job keeps naming the step that failed, so that resetting its state runs that step again."""
    return Decision(Event.ATTEMPT_FAILED, target(Event.ATTEMPT_FAILED), step)
