"""How times, lengths of time, numbers and other people's texts are put into sentences."""

import contextlib
import datetime
from typing import Any

from django.utils import timezone

from ..models import Attempt
from ..outcomes import AttemptOutcome

LINE = 300  # characters of an error


def local(time: datetime.datetime) -> datetime.datetime:
    """A time as people here read it."""
    with contextlib.suppress(OverflowError):  # at the end of all times
        return timezone.localtime(time) if timezone.is_aware(time) else time
    return time


def moment(time: datetime.datetime, now: datetime.datetime) -> str:
    """A time, and how far off it is, to the second."""
    seconds = round((time - now).total_seconds())
    off = f"in {span(seconds)}" if seconds > 0 else f"{span(-seconds)} ago"
    return f"{local(time):%Y-%m-%d %H:%M:%S} ({off})"


def span(seconds: float) -> str:
    """A length of time in its largest unit and the next smaller one, to which it is rounded."""
    if seconds < 1:
        return f"{round(seconds, 3):g} s"
    if (whole := round(seconds)) < 3600:
        large, small = divmod(whole, 60)
        parts = (large, "min"), (small, "s")
    elif (whole := round(seconds / 60)) < 24 * 60:
        large, small = divmod(whole, 60)
        parts = (large, "h"), (small, "min")
    else:
        large, small = divmod(round(seconds / 3600), 24)
        parts = (large, "day" if large == 1 else "days"), (small, "h")
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def quoted(text: str) -> str:
    """Somebody else's text within a sentence, which has punctuation of its own."""
    return " ".join(text.split()).rstrip(".,:; ")


def last_line(error: str) -> str:
    """The line of a traceback that names the error."""
    lines = error.strip().splitlines() or [""]
    return lines[-1].strip()[:LINE]


def told(last: Attempt | None) -> str:
    """How the last attempt ended; without one, that there is none."""
    if last is None:
        return "nothing is on record of it"
    how = "timed out" if last.outcome == AttemptOutcome.TIMED_OUT else "failed"
    error = quoted(last_line(last.error))
    return f"attempt {last.number} of {last.task} {how}" + (f", {error}" if error else "")


def facts_of(last: Attempt | None) -> dict[str, Any]:
    if last is None:
        return {}
    return {
        "last_attempt": last.number,
        "last_task": last.task,
        "last_outcome": last.outcome,
        "last_error": last_line(last.error),
    }
