"""PROCESSING and STOPPING: the worker that holds a job, and how it fares."""

import shlex
from typing import Any

from ..models import Job, Worker
from ..outcomes import AttemptOutcome
from ..states import State
from .lacking import stranding
from .looking import CHOICE, Finding, Look
from .wording import quoted, span


def held(look: Look, job: Job) -> Finding:
    """Who runs a job, or what becomes of it if nobody does any more."""
    worker = look.holder(job)
    if worker is None:
        clause = f"was left {job.state} by a worker of django-db-queue; no worker takes it"
        ready = f'Job.objects.filter(pk="{job.pk}", worker=None).update(state="READY")'
        return Finding("left", clause, f"If its step may be run again, send it on: {ready}", {})
    lefts = {one.pk: one.left for one in look.reporting}
    left = None if worker.stopped is not None else lefts.get(worker.pk)
    facts = {
        "worker": worker.label,
        "saved": job.modified,
        "silent_for": None if left is None else worker.timeout - left,
        "lease_left": left,
        "progress": job.progress,
        "progress_message": job.progress_message,
        "pausing": job.pausing,
        "others": [other.label for other in look.workers if other.pk != worker.pk][:CHOICE],
    }
    if left is None or left <= 0:
        return _lost(job, worker, facts)
    clause = f"is run by the worker {worker.label}"
    if job.progress is not None:
        clause += f" ({quoted(f'{job.progress:.0%} {job.progress_message}')})"
    clause += f"; its row was saved last {look.when(job.modified)}"
    if job.pausing:
        clause += "; it is paused at the end of its step"
    if job.state == State.STOPPING:
        clause += "; that worker is shutting down, and hands it back if the step takes too long"
    silence = worker.timeout - left
    if _runs_over(job):
        clause += "; the attempt is past its timeout and about to be stopped"
    elif silence > worker.timeout / 2:
        takes = "it counts as lost, and no other worker lives"
        if facts["others"]:
            takes = "another takes the job"
        clause += f"; that worker has been silent for {span(silence)}, in {span(left)} {takes}"
    cause = "stopping" if job.state == State.STOPPING else "running"
    return Finding(cause, clause, f"Nothing; to end it: manage.py jobs cancel {job.pk}", facts)


def _lost(job: Job, worker: Worker, facts: dict[str, Any]) -> Finding:
    """Its worker does not report any more."""
    ended = f"has ended ({quoted(worker.reason)})" if worker.reason else "has ended"
    if worker.stopped is None:
        silent = span(facts["silent_for"])
        ended = f"has been silent for {silent} and counts as lost after {span(worker.timeout)}"
    clause = f"is held by the worker {worker.label}, which {ended}"
    moves_on = job.state == State.STOPPING or _runs_over(job)  # whatever its step says of a loss
    if (lacking := stranding(job)) is not None and not moves_on:
        return Finding(
            "stranded", f"{clause}; nobody takes it, for {lacking.text}", lacking.hint, facts
        )
    if others := facts["others"]:
        clause += f"; {others[0]} takes it at its next heartbeat"
        return Finding("lost", clause, "Nothing, it goes on as on_lost of its step says", facts)
    to_do = f"Start a worker: manage.py worker {shlex.quote(job.queue_name)}"
    return Finding("lost", f"{clause}; no other worker lives that could take it", to_do, facts)


def _runs_over(job: Job) -> bool:
    overdue = job.attempts.filter(number=job.attempt, outcome=AttemptOutcome.TIMED_OUT)
    return bool(overdue.exists())
