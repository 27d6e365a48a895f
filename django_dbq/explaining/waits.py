"""WAITING and BLOCKED: the event, the jobs or the members that a job waits for."""

import shlex
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from ..models import Dependency, DependencyState, Job, turn
from ..pipelines import WAIT_FOR
from ..states import HELD, UNFINISHED, State
from .lacking import ignores_failures
from .looking import CHOICE, NAMED, Finding, Look

# Of several jobs, which to follow: what goes on only if somebody does something comes first.
CONCERN = (
    *(State.BLOCKED, State.PAUSED, State.FAILED, State.CANCELLED),
    *(State.WAITING, State.READY, State.NEW, State.STOPPING, State.PROCESSING),
)


def waiting(look: Look, job: Job) -> Finding:
    if job.round is None:
        found = _for_jobs(look, job)
    elif job.next_task.startswith(f"{WAIT_FOR} "):
        found = _for_event(look, job)
    else:
        found = _for_members(look, job)
    if found is not None:
        return found
    clause = "waits for what has ended or is gone already"
    to_do = "Nothing, any worker frees it within a minute; if none runs: manage.py worker"
    return Finding("loose", clause, to_do, {})


def _for_event(look: Look, job: Job) -> Finding:
    event = job.next_task.removeprefix(f"{WAIT_FOR} ")
    clause = f"waits for the event {event!r}"
    if job.run_after is not None:
        clause += f", until {look.when(job.run_after)} at the latest"
    to_do = f"Send it: manage.py jobs send {job.pk} {shlex.quote(event)}"
    return Finding("event", clause, to_do, {"event": event})


def _for_jobs(look: Look, job: Job) -> Finding | None:
    edges = _edges(look, job, DependencyState.OPEN)
    other = _choose(look, [edge.on_id for edge in edges])
    if other is None:
        return None
    facts = {
        "waiting_for": job.waiting_for,
        "mode": edges[0].mode,
        "jobs": [edge.on_id for edge in edges[:NAMED]],
    }
    clause = "waits for"
    if job.waiting_for > 1:
        one_of = "one of " if edges[0].mode == "any" else ""
        clause += f" {one_of}{job.waiting_for} jobs, among them"
    return Finding("jobs", f"{clause} {other.name} {other.pk}", "", facts, other)


def _for_members(look: Look, job: Job) -> Finding | None:
    inside, states = look.members(job), look.member_states(job)

    def first(among: Sequence[State], order: str = "position") -> Job | None:
        found = [state for state in among if state in states]
        return inside.filter(state__in=found).order_by(order).first() if found else None

    running = first(HELD, "modified")
    other = first((State.BLOCKED, State.PAUSED)) or running or first(UNFINISHED)
    if other is None:
        return None
    done, total = states.get(State.COMPLETE, 0), sum(states.values())
    failed = states.get(State.FAILED, 0) + states.get(State.CANCELLED, 0)
    facts: dict[str, Any] = {
        "members": {state.value: states[state] for state in State if state in states},
        "failed_members": look.failed_members(job) if failed else [],
        "oldest_running": None if running is None else running.pk,
    }
    clause = f"waits for the members of {job.next_task}: {done} of {total} done"
    if failed:
        named = ", ".join(str(one["position"]) for one in facts["failed_members"])
        more = ", …" if failed > NAMED else ""
        fails = "" if ignores_failures(job) else ", so that it fails in the end"
        clause += f", {failed} failed ({named}{more}){fails}"
    which = "the oldest that runs" if other is running else "the first of the others"
    clause += f"; {which} is number {other.position} ({other.pk})"
    return Finding("members", clause, "", facts, other)


def blocked(look: Look, job: Job) -> Finding:
    edges = _edges(look, job, DependencyState.FAILED)
    keys = [edge.on_id for edge in edges]
    facts: dict[str, Any] = {"blocked_by": keys[:NAMED]}
    without = f"manage.py jobs retry {job.pk}"
    other = _choose(look, keys)
    if other is None:
        clause = f"is blocked by {f'the job {keys[0]}' if keys else 'a job'}, which is gone"
        return Finding("blocked", clause, f"Run it all the same: {without}", facts)
    several = f" {len(keys)} jobs, among them" if len(keys) > 1 else ""
    clause = f"is blocked by{several} {other.name} {other.pk}"
    return Finding("blocked", clause, f"or run this one all the same: {without}", facts, other)


def _edges(look: Look, job: Job, state: DependencyState) -> list[Dependency]:
    edges = Dependency.objects.using(look.storage.alias).filter(job=job.pk, state=state)
    return list(edges.order_by("pk")[:CHOICE])


def _choose(look: Look, keys: Sequence[UUID]) -> Job | None:
    """The one of these jobs to follow; None if all of them have completed or are gone."""
    found = [job for job in look.jobs.filter(pk__in=keys) if job.state in CONCERN]
    return min(found, key=lambda job: (CONCERN.index(State(job.state)), turn(job)), default=None)
