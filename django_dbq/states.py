"""The life of a job as data: its states, the events that move it, and the diagram of both.

Everything that depends on a state derives from here: the engine's WHERE clauses, the partial indexes, the check
constraint, the choices that the admin offers and the drawings in ``docs/states/`` (``make states`` draws them anew).
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _


class State(TextChoices):
    """Where a job stands; the comment names who moves it on from there."""

    NEW = "NEW", _("New")  # a worker claims it for its first step
    READY = "READY", _("Ready")  # a worker claims it for its next step
    PROCESSING = "PROCESSING", _("Processing")  # the worker that holds it writes the outcome
    STOPPING = "STOPPING", _("Stopping")  # the same, while that worker shuts down
    WAITING = "WAITING", _("Waiting")  # the jobs that it waits for
    BLOCKED = "BLOCKED", _("Blocked")  # a person: a job that it waits for has failed
    PAUSED = "PAUSED", _("Paused")  # a person
    COMPLETE = "COMPLETE", _("Complete")  # nobody; deleted in time
    FAILED = "FAILED", _("Failed")  # a person, or nobody
    CANCELLED = "CANCELLED", _("Cancelled")  # a person, or nobody

    COMPLETED: "State"  # the documented other word for COMPLETE, set below

    @classmethod
    def _missing_(cls, value: object) -> "State | None":
        return cls.COMPLETE if value == "COMPLETED" else None


# An enum of choices refuses aliases in its body (labels would clash), so the alias is an attribute.
State.COMPLETED = State.COMPLETE


class Event(StrEnum):
    """What happens to a job; the edge labels of the diagram."""

    CREATED = "created"
    CLAIMED = "claimed"
    HANDED_BACK = "handed back"
    STOP_ASKED = "worker told to stop"
    STEP_DONE = "step done"
    LAST_STEP_DONE = "last step done"
    TRIED_AGAIN = "tried again"
    FAILED_FOR_GOOD = "failed for good"
    LOST = "lost"
    LOST_AND_HELD = "lost, on hold"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the state table; a ``source`` of None is the job's creation."""

    event: Event
    source: State | None
    target: State


TRANSITIONS: tuple[Transition, ...] = (
    Transition(Event.CREATED, None, State.NEW),
    Transition(Event.CLAIMED, State.NEW, State.PROCESSING),
    Transition(Event.CLAIMED, State.READY, State.PROCESSING),
    Transition(Event.STOP_ASKED, State.PROCESSING, State.STOPPING),
    *(
        Transition(event, source, target)
        for source in (State.PROCESSING, State.STOPPING)
        for event, target in (
            (Event.STEP_DONE, State.READY),
            (Event.LAST_STEP_DONE, State.COMPLETE),
            (Event.TRIED_AGAIN, State.READY),
            (Event.FAILED_FOR_GOOD, State.FAILED),
            (Event.HANDED_BACK, State.NEW),
            (Event.HANDED_BACK, State.READY),
        )
    ),
    # Not from STOPPING: what a stopping worker has cut off is handed back. The shutdown was it, not the job.
    Transition(Event.LOST, State.PROCESSING, State.READY),
    Transition(Event.LOST_AND_HELD, State.PROCESSING, State.PAUSED),
)


def sources(event: Event) -> tuple[State, ...]:
    """The states from which ``event`` may move a job, in the order of the table."""
    states = (t.source for t in TRANSITIONS if t.event is event and t.source is not None)
    return tuple(dict.fromkeys(states))


@cache
def target(event: Event) -> State:
    """The state in which ``event`` leaves a job; only for events that lead to a single state."""
    (state,) = {t.target for t in TRANSITIONS if t.event is event}
    return state


CLAIMABLE = sources(Event.CLAIMED)
HELD = sources(Event.LAST_STEP_DONE)  # by a worker, which alone may write what comes next
FINISHED = (State.COMPLETE, State.FAILED, State.CANCELLED)
# What `delete_old_jobs` removes. STOPPING is django-db-queue's: there, no worker ever came back to such a row.
DELETABLE = (*FINISHED, State.STOPPING)


def dot() -> str:
    """The diagram as DOT text; parallel edges share one arrow."""
    from graphviz import Digraph

    graph = Digraph("job_states", comment="Drawn from django_dbq/states.py: do not edit.")
    graph.attr(rankdir="LR", fontname="Helvetica", nodesep="0.4", ranksep="0.9")
    graph.attr("node", shape="box", style="rounded,filled", fillcolor="white", fontname="Helvetica")
    graph.attr("edge", fontname="Helvetica", fontsize="10")
    graph.node("start", shape="point", width="0.15")
    colours = {State.COMPLETE: "#d9f2d9", State.FAILED: "#f8d7d7"}
    drawn = {state for t in TRANSITIONS for state in (t.source, t.target) if state is not None}
    for state in State:
        if state in drawn:
            held = "#fff3cd" if state in HELD else "white"
            graph.node(state.value, fillcolor=colours.get(state, held))
    arrows: dict[tuple[str, str], list[str]] = {}
    for t in TRANSITIONS:
        arrows.setdefault((t.source.value if t.source else "start", t.target.value), []).append(
            t.event.value
        )
    for (tail, head), events in arrows.items():
        graph.edge(tail, head, label="\\n".join(events))
    return str(graph.source)


def fingerprint(source: str) -> str:
    """The line that ties a drawn SVG to the DOT text it was drawn from."""
    return f"<!-- drawn from DOT {hashlib.sha256(source.encode()).hexdigest()} -->\n"


def draw(folder: Path) -> None:
    """Write ``job.dot`` and ``job.svg`` into ``folder``; needs graphviz's ``dot`` program."""
    from graphviz import Source

    folder.mkdir(parents=True, exist_ok=True)
    source = dot()
    (folder / "job.dot").write_text(source)
    svg = Source(source).pipe(format="svg", encoding="utf-8")
    (folder / "job.svg").write_text(svg.rstrip() + "\n" + fingerprint(source))
