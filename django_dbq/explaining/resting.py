"""PAUSED, and the states of jobs that have ended: how a job came there, and how it is brought on."""

from itertools import takewhile

from ..models import Dependency, DependencyState, Job
from ..outcomes import AttemptOutcome
from ..states import FINISHED, State
from .lacking import ignores_failures, step_of
from .looking import NAMED, Finding, Look, last_attempt
from .wording import facts_of, told


def paused(look: Look, job: Job) -> Finding:
    last, step = last_attempt(job), step_of(job)
    lost = last is not None and last.outcome == AttemptOutcome.LOST and job.lost > 0
    if lost and last is not None and (step is None or step.on_lost == "hold"):
        clause = f"is on hold: its worker {last.worker} was lost while it ran {last.task}"
        resume = f"manage.py jobs resume {job.pk}"
        to_do = f"See whether that step has done its work; to run it again: {resume}"
        return Finding("on hold", clause, to_do, facts_of(last))
    *_, whole = takewhile(lambda one: one.state == State.PAUSED, look.lineage(job))
    clause = f"was paused by hand {look.when(job.modified)}"
    if whole is not job:
        clause += f", with the job that it belongs to, {whole.pk}"
    return Finding("paused", clause, f"Have it go on: manage.py jobs resume {whole.pk}", {})


def failed(look: Look, job: Job) -> Finding:
    last = last_attempt(job)
    clause = "has failed" if last is None else f"has failed: {told(last)}"
    waiting = Dependency.objects.using(look.storage.alias).filter(on=job.pk)
    blocks = waiting.filter(state=DependencyState.FAILED, on_failure="block").order_by("pk")
    failures = look.failed_members(job) if job.round is not None else []
    facts = {
        **facts_of(last),
        "failed_members": failures,
        "blocks": list(blocks.values_list("job_id", flat=True)[:NAMED]),
    }
    if not failures or ignores_failures(job):
        return Finding("failed", clause, f"Mend the cause, then {_retry(look, job)}", facts)
    states = look.member_states(job)
    count = states.get(State.FAILED, 0) + states.get(State.CANCELLED, 0)
    first = look.jobs.get(pk=failures[0]["id"])
    clause = (
        f"has failed with {count} of the {sum(states.values())} members of {job.next_task}; "
        f"the first of them is number {first.position} ({first.pk})"
    )
    return Finding("failed", clause, "", facts, first)


def cancelled(look: Look, job: Job) -> Finding:
    last = last_attempt(job)
    clause = "was cancelled"
    if job.finished is not None:
        clause += f" {look.when(job.finished)}"
    if last is not None and last.outcome == AttemptOutcome.CANCELLED:
        clause += f", while attempt {last.number} of {last.task} ran"
    return Finding("cancelled", clause, f"To run it after all, {_retry(look, job)}", {})


def complete(look: Look, job: Job) -> Finding:
    clause = "has completed"
    if job.finished is not None:
        clause += f", {look.when(job.finished)}"
    *_, whole = look.lineage(job)
    to_do = f"Nothing; to run it again: manage.py jobs fork {whole.pk} --from STEP"
    return Finding("complete", clause, to_do, {"finished": job.finished})


def _retry(look: Look, job: Job) -> str:
    """How a job that has ended is run again: a member with the job that it belongs to, once that has ended."""
    lineage = look.lineage(job)
    *_, whole = takewhile(lambda one: one.state in FINISHED, lineage)
    if whole is job:
        return f"retry it: manage.py jobs retry {job.pk}"
    if whole.state == State.COMPLETE:
        return f"fork the whole job: manage.py jobs fork {lineage[-1].pk} --from STEP"
    return f"retry the whole job: manage.py jobs retry {whole.pk}"
