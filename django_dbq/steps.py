"""What the steps do that are no tasks: groups and maps create members and join them, sleeps and waits pass the time.

Each is visited twice: to begin, after which the job waits, and once it has been freed. Reads rows, writes none.
"""

import datetime
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from . import conf, limits, workspaces
from .members import Opening, members
from .models import Attempt, Job, JobEvent
from .outcomes import Abort, TimedOut
from .pipelines import Group, Map, Pipeline, Sleep, Step, WaitFor
from .states import FINISHED, UNFINISHED, State
from .uuids import uuid7

NAMED = 5  # failed members that an error names


class MembersFailed(Abort):
    """Members of a group or map have failed, and so has the job."""


class WorkspaceConflict(Abort):
    """Two branches of a group have set one key of the workspace to different values."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What a visit comes to: the job waits, or the step is done (with nothing of these)."""

    opens: Opening | None = None
    until: datetime.datetime | None = (
        None  # READY again at this time; of a wait: free at the latest
    )
    takes: int | None = None  # the event that it has waited for


def visit(job: Job, step: Step, now: datetime.datetime, using: str) -> Visit:
    """Begin such a step or, when the job has been freed, end it; leaves what it brings in the job's workspace.

    Raises:
        Abort: it has failed, as one of its kinds says.
        TimedOut: the event has not come in time.
    """
    if isinstance(step, Sleep):
        if job.round is not None:
            return Visit()
        return Visit(until=now + datetime.timedelta(seconds=step.seconds))
    if isinstance(step, WaitFor):
        return _wait(job, step, now, using)
    if not isinstance(job.workspace, dict):
        raise Abort(f"The workspace is no dict, which {step.path} needs.")
    if isinstance(step, Group):
        if job.round is None:
            return Visit(Opening(members=lambda: _branches(job, step, now)))
        return _join_group(job, step, using)
    assert isinstance(step, Map)
    if job.round is None:
        return _begin_map(job, step, now)
    return _join_map(job, step, using)


def has_begun(job: Job, step: Step, pipeline: Pipeline, using: str) -> bool:
    """Whether the round of ``job`` is one of ``step``: somebody may have sent the job elsewhere by hand since."""
    if type(step) is Step:
        return False
    number = job.round or 0
    waited = Attempt.objects.using(using).filter(job=job.pk, number=number)
    for place, path in waited.values_list("step", "task"):
        return pipeline.locate(place, path, job.parent_id is not None) is step
    return True


def _wait(job: Job, step: WaitFor, now: datetime.datetime, using: str) -> Visit:
    event = JobEvent.objects.using(using).filter(job=job.pk, name=step.event, taken=0).first()
    if event is not None:
        if not isinstance(job.workspace, dict):
            raise Abort(f"The workspace is no dict, which {step.path} needs.")
        job.workspace[step.event] = event.payload
        return Visit(takes=event.pk)
    if job.round is None:
        until = None
        if step.patience is not None:
            until = now + datetime.timedelta(seconds=step.patience)
        return Visit(Opening(event=step.event), until)
    if job.run_after is None or job.run_after > now:
        return Visit(Opening(event=step.event), job.run_after)  # freed too early, by hand say
    if step.on_timeout == "continue":
        return Visit()
    raise TimedOut(f"{step.event!r} was not sent within {step.patience:g} s.")


# -- groups --


def _branches(job: Job, group: Group, now: datetime.datetime) -> Iterator[Job]:
    for number, branch in enumerate(group.branches):
        yield _member(job, branch[0], number, deepcopy(job.workspace), now)


def _join_group(job: Job, group: Group, using: str) -> Visit:
    """Merge what each branch has set or changed into the workspace."""
    found = list(members(job, using))
    if unfinished := _unfinished(found):
        return unfinished
    _refuse_failures(found, group.on_failure, group.path)
    base = _texts(job.workspace)
    merged, set_by = dict(job.workspace), dict[str, tuple[int, str | None]]()
    for member in found:
        if member.state != State.COMPLETE:
            continue
        if not isinstance(member.workspace, dict):
            raise Abort(
                f"The branch {member.position} of {group.path} has left a workspace that is no dict, which cannot be "
                "merged."
            )
        texts = _texts(member.workspace)
        for key in sorted(base.keys() | texts.keys()):
            text = texts.get(key)
            if text == base.get(key):
                continue
            other, its = set_by.setdefault(key, (member.position or 0, text))
            if its != text:
                raise WorkspaceConflict(
                    f"The branches {other} and {member.position} of {group.path} have set {key!r} to "
                    "different values: have one of them set it, or each a key of its own."
                )
            if key in member.workspace:
                merged[key] = member.workspace[key]
            else:
                merged.pop(key, None)
    job.workspace = merged
    return Visit()


def _texts(workspace: dict[str, Any]) -> dict[str, str]:
    """The values as JSON text: Python takes 1, 1.0 and True for the same."""
    return {key: json.dumps(value, sort_keys=True) for key, value in workspace.items()}


# -- maps --


def _begin_map(job: Job, step: Map, now: datetime.datetime) -> Visit:
    items = job.workspace.get(step.over)
    if not isinstance(items, list):
        said = f"is a {type(items).__name__}" if step.over in job.workspace else "is missing"
        raise Abort(f"workspace[{step.over!r}] {said}. {step.path} needs a list there.")
    if items:
        return Visit(Opening(members=lambda: _items(job, step, items, now)))
    if step.into is not None:
        job.workspace[step.into] = []
    return Visit()


def _items(job: Job, step: Map, items: list[Any], now: datetime.datetime) -> Iterator[Job]:
    # Not the list itself: each of n members would carry all n items.
    common = {key: value for key, value in job.workspace.items() if key != step.over}
    assert step.task is not None
    pipeline, alike = conf.catalogue().named(job.name), vars(_member(job, step.task, 0, {}, now))
    for number, item in enumerate(items):
        workspace = {**common, "item": item, "index": number}
        own = {
            "id": uuid7(),
            "created": now + datetime.timedelta(microseconds=number),
            "position": number,
            "workspace": workspace,
            "stored_workspace": workspaces.dump(workspace),
        }
        member = Job.made({**alike, **own}.items())
        limits.apply(pipeline, member)
        yield member


def _join_map(job: Job, step: Map, using: str) -> Visit:
    rows = members(job, using).values_list("position", "state", "result").iterator(2000)
    items = job.workspace.get(step.over)
    # None also for what somebody has deleted by hand: each result stays at the place of its item.
    results: list[Any] = [None] * (len(items) if isinstance(items, list) else 0)
    failed: list[int] = []
    for position, state, result in rows:
        if state in UNFINISHED:
            return Visit(Opening())
        assert position is not None
        results += [None] * (position + 1 - len(results))
        if state == State.COMPLETE:
            results[position] = result
        else:
            failed.append(position)
    if failed and step.on_failure != "ignore":
        _raise_failures(failed, len(results), step.path)
    if step.into is not None:
        job.workspace[step.into] = results
    return Visit()


# -- members --


def _member(
    job: Job, step: Step, position: int, workspace: dict[str, Any], now: datetime.datetime
) -> Job:
    member = Job(
        id=uuid7(),
        created=now + datetime.timedelta(microseconds=position),
        modified=now,
        name=job.name,
        state=State.NEW,
        next_task=step.path,
        step=step.place,
        workspace=workspace,
        queue_name=job.home_queue or job.queue_name,
        priority=job.priority,
        urgency=job.urgency,
        parent_id=job.pk,
        parent_round=job.attempt,
        position=position,
    )
    member.enter(step)
    member.stored_workspace = workspaces.dump(workspace)
    limits.apply(conf.catalogue().named(job.name), member)
    return member


def _unfinished(found: list[Job]) -> Visit | None:
    """Members that somebody has retried meanwhile are waited for again."""
    ended = all(member.state in FINISHED for member in found)
    return None if ended else Visit(Opening())


def _refuse_failures(found: list[Job], policy: str, path: str) -> None:
    failed = [n for n, member in enumerate(found) if member.state != State.COMPLETE]
    if failed and policy != "ignore":
        _raise_failures(failed, len(found), path)


def _raise_failures(failed: list[int], count: int, path: str) -> None:
    named = ", ".join(map(str, failed[:NAMED]))
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    raise MembersFailed(
        f"{len(failed)} of the {count} members of {path} have not completed: {named}{more} (counted from 0). "
        "Retrying this job retries those."
    )
