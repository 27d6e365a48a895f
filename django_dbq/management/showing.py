"""What the command `jobs` shows of jobs, as values and as text."""

import datetime
import json
from collections.abc import Iterator, Sequence
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import Count

from ..explaining import last_line, local, span
from ..models import Attempt, Job
from ..states import State

MANY = 20  # attempts, members, dependencies and events of one job
LISTED = ("id", "state", "name", "next_task", "queue_name", "attempt", "created", "run_after")
MEMBERSHIP = ("parent", "position")  # listed as well where a program reads it
FIELDS = (
    *("id", "name", "state", "next_task", "step", "queue_name", "home_queue", "priority"),
    *("created", "modified", "run_after", "deadline", "finished", "attempt", "failures", "lost"),
    *("progress", "progress_message", "pausing", "waiting_for"),
    *("parent_id", "position", "forked_from_id"),
)
TABLES = ("attempts", "members", "members_not_complete", "depends_on", "dependents", "events")


def shown(job: Job, values: bool) -> dict[str, Any]:
    """All there is to see of a job, in order: its fields, then its `TABLES`, each a list of rows.

    Args:
        values: also what may be secret: the workspace, the result and what events carry.
    """
    fields = {name: getattr(job, name) for name in FIELDS}
    if job.worker_id is not None:  # its row may be gone
        fields["worker"] = f"worker {job.worker_id}" if job.worker is None else job.worker.label
    workspace = job.workspace
    fields["workspace_keys"] = sorted(workspace) if isinstance(workspace, dict) else []
    if values:
        fields["workspace"], fields["result"] = workspace, job.result
    last = list(job.attempts.order_by("-number", "-pk")[:MANY])
    states = job.children.order_by().values_list("parent_round", "state").annotate(Count("pk"))
    left = job.children.exclude(state=State.COMPLETE).order_by("parent_round", "position")
    edges = job.dependencies.order_by("pk").values("on_id", "state", "mode", "on_failure")
    carried = ("payload",) if values else ()
    return {
        **fields,
        "attempts": [_attempt(one) for one in reversed(last)],
        "members": [
            {"round": number, "state": state, "count": count}
            for number, state, count in sorted(states)
        ],
        "members_not_complete": list(
            left.values("parent_round", "position", "id", "state", "next_task")[:MANY]
        ),
        "depends_on": list(edges[:MANY]),
        "dependents": list(job.dependents.order_by("pk").values("job_id", "state")[:MANY]),
        "events": list(job.events.order_by("pk").values("name", "sent", "taken", *carried)[:MANY]),
    }


def _attempt(one: Attempt) -> dict[str, Any]:
    return {
        "number": one.number,
        "step": one.step,
        "task": one.task,
        "outcome": one.outcome,
        "worker": one.worker,
        "started": one.started,
        "seconds": one.duration.total_seconds(),
        "error": last_line(one.error),
    }


def page(values: dict[str, Any]) -> Iterator[str]:
    """The lines of one job in full; what is empty is left out."""
    for key, value in values.items():
        if key in TABLES:
            continue
        if text := ", ".join(value) if key == "workspace_keys" else _text(value):
            yield f"{key:16} {text}"
    for key in TABLES:
        if not (rows := values[key]):
            continue
        if (worded := FOR_PEOPLE.get(key)) is not None:
            rows = [worded(row) for row in rows]
        yield f"\n{key}"
        for line in table([list(row.values()) for row in rows], heading=list(rows[0])):
            yield f"  {line}"


def _attempt_for_people(attempt: dict[str, Any]) -> dict[str, Any]:
    """With the length of time in words, where it was in seconds."""
    worded = {**attempt, "seconds": span(attempt["seconds"])}
    return {"took" if key == "seconds" else key: value for key, value in worded.items()}


def _event_for_people(event: dict[str, Any]) -> dict[str, Any]:
    """With what became of it in words, where it was the number of an attempt, or 0."""
    number = event["taken"]
    return {**event, "taken": f"taken by attempt {number}" if number else "not taken"}


FOR_PEOPLE = {"attempts": _attempt_for_people, "events": _event_for_people}


def table(rows: Sequence[Sequence[Any]], heading: Sequence[str] = ()) -> Iterator[str]:
    """The lines of a table, its columns under each other."""
    lines = [[_text(value) for value in row] for row in rows]
    if heading:
        lines.insert(0, [name.replace("_", " ") for name in heading])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def as_json(value: Any) -> str:
    return json.dumps(value, cls=DjangoJSONEncoder)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime):
        return f"{local(value):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, dict | list):
        return json.dumps(value, cls=DjangoJSONEncoder, ensure_ascii=False)
    return str(value)
