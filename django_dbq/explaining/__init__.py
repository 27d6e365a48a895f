"""Why a job is not running: what keeps it, down to the root, and what to do about it.

Reads rows and settings, writes nothing. An explanation asks a limited number of questions and reads a limited number of
rows, however many jobs there are; only the members of a group or map are all looked at, and those the database counts.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import router

from ..models import Job
from ..states import CLAIMABLE, HELD, State
from ..storage import storage_for
from .claims import unclaimed
from .holders import held
from .lacking import Lack, lack, stranding
from .looking import CHOICE, HEAD, Finding, Look, serves
from .resting import cancelled, complete, failed, paused
from .waits import blocked, waiting
from .wording import LINE, last_line, local, span

__all__ = [
    "CHOICE",
    "HEAD",
    "HOPS",
    "LINE",
    "Explanation",
    "Lack",
    "explain",
    "lack",
    "last_line",
    "local",
    "serves",
    "span",
]

HOPS = 10  # jobs that are followed to the root of a wait
KEEPS: Mapping[State, Callable[[Look, Job], Finding]] = {
    **dict.fromkeys(CLAIMABLE, unclaimed),
    **dict.fromkeys(HELD, held),
    State.WAITING: waiting,
    State.BLOCKED: blocked,
    State.PAUSED: paused,
    State.FAILED: failed,
    State.CANCELLED: cancelled,
    State.COMPLETE: complete,
}

RESTING = (State.WAITING, State.BLOCKED, State.PAUSED)  # whose step is looked up when they go on


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is where it is; ``str()`` gives all of it as text.

    ``reason`` and ``what_to_do`` are one sentence each. ``details`` is for machines, in order: the ``cause`` as a word
    that stays the same ("unserved", "sleeping" …), the job's own facts, then those of its cause.
    """

    state: State
    reason: str
    what_to_do: str
    details: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}\n{self.what_to_do}"


def explain(job: Job, now: datetime.datetime) -> Explanation:
    """Explain why a job is not running, as its row is now (and not as ``job`` is).

    Raises:
        Job.DoesNotExist: it was deleted.
    """
    look = Look(storage_for(job._state.db or router.db_for_write(Job)), now)
    row = look.jobs.get(pk=job.pk)
    found = _foreseen(row, _follow(look, row, ()), "it")
    facts = {
        "cause": found.cause,
        "id": row.pk,
        "name": row.name,
        "next_task": row.next_task,
        "step": row.step,
        "queue": row.queue_name,
        "priority": row.priority,
        "attempt": row.attempt,
        "run_after": row.run_after,
        "parent": row.parent_id,
        "position": row.position,
    }
    return Explanation(
        state=State(row.state),
        reason=f"It {found.clause}.",
        what_to_do=f"{found.to_do}.",
        details={**facts, **found.facts},
    )


def _follow(look: Look, job: Job, before: Sequence[UUID]) -> Finding:
    """What keeps a job; if that is another job, also what keeps that, and so on to the root.

    Args:
        before: the jobs that have led to this one.
    """
    found = KEEPS[State(job.state)](look, job)
    if (other := found.other) is None:
        return _foreseen(job, found, "that one") if before else found
    seen = (*before, job.pk)
    if other.pk in seen or len(seen) >= HOPS:
        ask_on = f"Ask on from there: manage.py jobs explain {other.pk}"
        return found.due_to(f"is {other.state}", ask_on)
    root = _follow(look, other, seen)
    link = {"id": other.pk, "name": other.name, "state": other.state, "cause": root.cause}
    return found.due_to(root.clause, root.to_do, chain=[link, *root.facts.get("chain", ())])


def _foreseen(job: Job, found: Finding, called: str) -> Finding:
    """What keeps a job; if that is not the settings yet, also what they will lack for it."""
    if job.state not in RESTING or (lacking := stranding(job)) is None:
        return found
    return found._replace(
        clause=f"{found.clause}; once {called} goes on it is stranded, for {lacking.text}",
        to_do=f"{lacking.hint}; then: {found.to_do}",
    )
