"""The life of a job as data: its states, the events that move it, and the diagram of both.

Everything that depends on a state derives from here: the engine's WHERE clauses, the partial indexes, the check
constraint, the choices that the admin offers and the drawings in ``docs/states/`` (``make states`` draws them anew).
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import product
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
    WAITS = "waits for others"
    FREED = "what it waits for is done"
    BLOCKED = "one of them has failed"
    UNBLOCKED = "that one is retried"
    PAUSED = "paused"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    RETRIED = "retried"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the state table; a ``source`` of None is the job's creation."""

    event: Event
    source: State | None
    target: State


TRANSITIONS: tuple[Transition, ...] = (
    Transition(Event.CREATED, None, State.NEW),
    Transition(Event.CREATED, None, State.WAITING),
    Transition(Event.CREATED, None, State.BLOCKED),
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
            (Event.WAITS, State.WAITING),
        )
    ),
    # Not from STOPPING: what a stopping worker has cut off is handed back. The shutdown was it, not the job.
    Transition(Event.LOST, State.PROCESSING, State.READY),
    Transition(Event.LOST_AND_HELD, State.PROCESSING, State.PAUSED),
    Transition(Event.FREED, State.WAITING, State.NEW),
    Transition(Event.FREED, State.WAITING, State.READY),
    Transition(Event.BLOCKED, State.WAITING, State.BLOCKED),
    Transition(Event.UNBLOCKED, State.BLOCKED, State.WAITING),
    *(
        Transition(event, source, target)
        for state in (State.NEW, State.READY, State.WAITING, State.BLOCKED)
        for event, source, target in (
            (Event.PAUSED, state, State.PAUSED),
            (Event.RESUMED, State.PAUSED, state),
        )
    ),
    # What runs goes on to the end of its step.
    Transition(Event.PAUSED, State.PROCESSING, State.PAUSED),
    Transition(Event.PAUSED, State.STOPPING, State.PAUSED),
    *(
        Transition(Event.CANCELLED, source, State.CANCELLED)
        for source in (
            *(State.NEW, State.READY, State.PROCESSING, State.STOPPING),
            *(State.WAITING, State.BLOCKED, State.PAUSED),
        )
    ),
    *(
        Transition(Event.RETRIED, source, target)
        for source in (State.FAILED, State.CANCELLED, State.BLOCKED)
        for target in (State.READY, State.WAITING)
    ),
)


def sources(event: Event) -> tuple[State, ...]:
    """The states from which ``event`` may move a job, in the order of the table."""
    states = (t.source for t in TRANSITIONS if t.event is event and t.source is not None)
    return tuple(dict.fromkeys(states))


def targets(event: Event) -> tuple[State, ...]:
    """The states to which ``event`` may move a job, in the order of the table."""
    return tuple(dict.fromkeys(t.target for t in TRANSITIONS if t.event is event))


@cache
def target(event: Event) -> State:
    """The state in which ``event`` leaves a job; only for events that lead to a single state."""
    (state,) = targets(event)
    return state


CLAIMABLE = sources(Event.CLAIMED)
HELD = sources(Event.LAST_STEP_DONE)  # by a worker, which alone may write what comes next
FINISHED = (State.COMPLETE, State.FAILED, State.CANCELLED)
UNFINISHED = sources(Event.CANCELLED)
# What `delete_old_jobs` removes. STOPPING is django-db-queue's: there, no worker ever came back to such a row.
DELETABLE = (*FINISHED, State.STOPPING)


# For the drawing: states that share most of their arrows; and what people do, which leads from almost anywhere.
FRAMES: tuple[tuple[State, ...], ...] = (CLAIMABLE, HELD)
BY_HAND = (Event.PAUSED, Event.RESUMED, Event.CANCELLED, Event.RETRIED)


def dot() -> str:
    """The diagram as DOT text. An arrow from or to a frame is one for each state in it; what people do stands apart."""
    from graphviz import Digraph

    graph = Digraph("job_states", comment="Drawn from django_dbq/states.py: do not edit.")
    graph.attr(rankdir="LR", compound="true", fontname="Helvetica", nodesep="0.35", ranksep="0.9")
    graph.attr("node", shape="box", style="rounded,filled", fillcolor="white", fontname="Helvetica")
    graph.attr("edge", fontname="Helvetica", fontsize="10")
    graph.node("start", shape="point", width="0.15")
    colours = {State.COMPLETE: "#d9f2d9", State.FAILED: "#f8d7d7"}
    order = ["start", *State.values]
    arrows = _arrows()
    drawn = {state for ends in arrows for end in ends for state in end}
    for state in State:
        if state in drawn:
            held = "#fff3cd" if state in HELD else "white"
            graph.node(state.value, fillcolor=colours.get(state, held))
    for states in FRAMES:
        with graph.subgraph(name=f"cluster_{states[0]}") as frame:
            frame.attr(style="rounded", color="#999999", margin="12")
            for state in states:
                frame.node(state.value)
    for ends, events in arrows.items():
        tail, head = (end[0].value if end[0] else "start" for end in ends)
        sides = zip(("ltail", "lhead"), ends, strict=True)
        framed = {side: f"cluster_{end[0]}" for side, end in sides if end in FRAMES}
        if order.index(tail) > order.index(
            head
        ):  # a way back: the picture reads from left to right
            framed["constraint"] = "false"
        graph.edge(tail, head, label="\\n".join(events), **framed)
    with graph.subgraph(name="cluster_by_hand") as apart:
        apart.attr(label="by hand", style="dashed", color="#999999", margin="12")
        for event in BY_HAND:
            for side, states in (("from", sources(event)), ("to", targets(event))):
                pairs = [", ".join(states[n : n + 2]) for n in range(0, len(states), 2)]
                apart.node(f"{event} {side}", label="\\n".join(pairs))
            apart.edge(f"{event} from", f"{event} to", label=event.value)
    return str(graph.source)


def _arrows() -> dict[tuple[tuple[State | None, ...], tuple[State | None, ...]], list[str]]:
    """What happens by itself, by its ends: whole frames where the event leads from, or to, all their states."""
    ends = (*FRAMES, *((state,) for state in (None, *State)))
    arrows: dict[tuple[tuple[State | None, ...], tuple[State | None, ...]], list[str]] = {}
    for event in Event:
        left = {(t.source, t.target) for t in TRANSITIONS if t.event is event}
        for tail, head in product(ends, ends) if event not in BY_HAND else ():
            ways = set(product(tail, head))
            if ways <= left:
                left -= ways
                arrows.setdefault((tail, head), []).append(event.value)
    return arrows


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
