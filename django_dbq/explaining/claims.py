"""NEW and READY: why no worker has claimed a job, and which will."""

import datetime
import shlex
from typing import Any

from django.db.models import F, Q

from .. import conf
from ..models import ORDER, Job, Start, Worker, turn
from ..outcomes import AttemptOutcome
from ..pipelines import Limit, nearest
from ..states import CLAIMABLE, HELD
from .lacking import stranding
from .looking import CHOICE, HEAD, NAMED, Finding, Look, last_attempt, serves
from .wording import count, facts_of, span, told


def unclaimed(look: Look, job: Job) -> Finding:
    """What may keep a claim from a job, the most lasting first; the last one always has an answer."""
    return (
        _settings(job)
        or _time(look, job)
        or _queue(look, job)
        or _limits(look, job)
        or _turn(look, job)
    )


def _settings(job: Job) -> Finding | None:
    """No worker knows what to run."""
    if (lacking := stranding(job)) is None:
        return None
    return Finding("stranded", f"is stranded, for {lacking.text}", lacking.hint, {})


def _time(look: Look, job: Job) -> Finding | None:
    """Its time has not come: it sleeps, waits for a retry, or was created so."""
    if job.run_after is None or job.run_after <= look.now:
        return None
    when = look.when(job.run_after)
    last = last_attempt(job)
    outcome = last.outcome if last is not None and last.step == job.step else None
    cause, clause = "later", f"is not to be run before {when}"
    if outcome == AttemptOutcome.WAITED and job.round is not None:
        cause, clause = "sleeping", f"sleeps until {when}"
    elif outcome in (AttemptOutcome.WAITED, AttemptOutcome.RETRIED):
        cause, clause = "asked", f"is run again at {when}, as its task has asked"
    elif outcome in (AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT):
        cause, clause = "retry", f"is tried again at {when}: {told(last)}"
    at_once = f'Job.objects.filter(pk="{job.pk}").update(run_after=None)'
    to_do = f"Nothing, it is run then; to have it run at once: {at_once}"
    return Finding(cause, clause, to_do, facts_of(last))


def _queue(look: Look, job: Job) -> Finding | None:
    """Its queue is paused, or nobody serves it."""
    queue = job.queue_name
    if (paused := look.storage.paused.filter(name=queue).first()) is not None:
        assert paused.paused is not None
        clause = f"is due, and its queue {queue!r} was paused {look.when(paused.paused)}"
        to_do = f"Have the queue go on: manage.py queues resume {shlex.quote(queue)}"
        return Finding("queue paused", clause, to_do, {"paused": paused.paused})
    if look.serving(queue):
        return None
    clause = f"is due, and no living worker serves its queue {queue!r}"
    served = {worker.label: worker.queues for worker in look.workers[:CHOICE]}
    names = {name for queues in served.values() for name in queues.split(", ")}
    clause += nearest(queue, names)
    over = [one.pk for one in look.reporting if one.left <= 0]
    rows = look.storage.workers.filter(pk__in=over[-HEAD:]).order_by("-pk")
    if silent := [worker.label for worker in rows if serves(worker, queue)][:CHOICE]:
        clause += f"; {silent[0]} would, and has stopped reporting"
    to_do = f"Start a worker: manage.py worker {shlex.quote(queue)}"
    return Finding("unserved", clause, to_do, {"workers": served, "silent": silent})


# -- limits --


def _limits(look: Look, job: Job) -> Finding | None:
    """As many of its name run, or were started, as may."""
    pipeline = conf.catalogue().get(job.name)
    if pipeline is None or not job.limited or job.due:
        return None
    for cause, option, limit, reached in (
        ("concurrency", "concurrency", pipeline.concurrency, _as_many_run),
        ("rate limit", "rate_limit", pipeline.rate_limit, _as_many_started),
    ):
        if limit is None or (found := reached(look, job, limit)) is None:
            continue
        clause, facts = found
        ahead, counted = _ahead(look, job, parked=True)
        return Finding(
            cause,
            f"is due, and {clause}, with {_at_least(ahead, counted)} before it",
            f"Nothing, it runs when its turn comes; sooner with a higher {option} in JOBS",
            {"ahead": ahead, "ahead_is_all": counted, "limit": limit.limit, **facts},
        )
    return None


def _as_many_run(look: Look, job: Job, limit: Limit) -> tuple[str, dict[str, Any]] | None:
    alike = look.jobs.filter(name=job.name, limited=True, concurrency_key=job.concurrency_key)
    used = alike.filter(Q(state__in=HELD) | Q(state__in=CLAIMABLE, due=True)).count()
    if used < limit.limit:
        return None
    of = _alike(limit.key, job.concurrency_key)
    clause = f"as many jobs {of} run as may at once ({used} of {limit.limit})"
    # Those of one claim are alike but for their creation.
    holding = list(alike.filter(state__in=HELD).order_by("modified", "created")[:NAMED])
    if holding:
        clause += f", the oldest being {holding[0].pk}"
        if (worker := look.holder(holding[0])) is not None:
            clause += f" (worker {worker.label})"
    return clause, {"used": used, "held_by": [one.pk for one in holding]}


def _as_many_started(look: Look, job: Job, limit: Limit) -> tuple[str, dict[str, Any]] | None:
    starts = Start.objects.using(look.storage.alias).filter(name=job.name, key=job.rate_key)
    # With the first of so many starts, one place gets free again. One that is still to come counts as if it were now.
    latest = starts.order_by(F("at").desc(nulls_first=True))
    first = latest[limit.limit - 1 : limit.limit].first()
    if first is None:
        return None
    free = (first.at or look.now) + datetime.timedelta(seconds=limit.seconds)
    if free <= look.now:
        return None
    clause = (
        f"as many jobs {_alike(limit.key, job.rate_key)} were started as may be within {span(limit.seconds)}; "
        f"the next may be {look.when(free)}"
    )
    return clause, {"free_at": free}


def _alike(key: str | None, value: str) -> str:
    """Which jobs a limit is for."""
    return "of its name" if key is None else f"of its name whose {key} is {value}"


# -- its turn --


def _turn(look: Look, job: Job) -> Finding:
    """Others come first, or a worker is about to take it."""
    serving = look.serving(job.queue_name)
    held = look.storage.held().filter(worker__in=[worker.pk for worker in serving]).count()
    ahead, counted = _ahead(look, job)
    who = _who(serving, job.queue_name, held)
    facts = {
        "serving": [worker.label for worker in serving[:CHOICE]],
        "held": held,
        "ahead": ahead,
        "ahead_is_all": counted,
    }
    if ahead:
        come = "comes" if ahead == 1 else "come"
        clause = f"is due, and {_at_least(ahead, counted)} of its queue {come} before it; {who}"
        sooner = f'Job.objects.filter(pk="{job.pk}").update(priority=…)'
        to_do = f"Nothing, its turn comes; sooner with more workers, or a higher priority: {sooner}"
        return Finding("queued", clause, to_do, facts)
    if job.lost:
        clause = f"was lost with a worker, so that only one that holds nothing else takes it; {who}"
        to_do = "Nothing, an idle worker takes it; start another one if all are busy all the time"
        return Finding("suspect", clause, to_do, facts)
    clause = f"is due and the first of its queue; {who}"
    to_do = (
        "Nothing, the first worker that is free takes it; if it stays, see whether the workers run with settings "
        "that know its step"
    )
    return Finding("next", clause, to_do, facts)


def _who(serving: list[Worker], queue: str, held: int) -> str:
    """Who might take a job, and how much they have to do."""
    if len(serving) == 1:
        who = f"the worker {serving[0].label}, which serves its queue {queue!r}, holds"
    else:
        who = f"the {len(serving)} workers that serve its queue {queue!r} hold"
    return f"{who} {count(held, 'job')}"


def _ahead(look: Look, job: Job, parked: bool = False) -> tuple[int, bool]:
    """How many jobs of its queue a worker takes before this one, and whether all were counted.

    Args:
        parked: instead, those that wait for the same limits as it does.
    """
    due = look.storage.waiting(due=True).filter(queue_name=job.queue_name)
    if parked:
        keys = {"concurrency_key": job.concurrency_key, "rate_key": job.rate_key}
        due = look.storage.jobs.filter(name=job.name, limited=True, due=False, **keys)
    # Each in the order of the index, so that the database stops at the limit. Not all have one for both states.
    partial = look.storage.connection.features.supports_partial_indexes and not parked
    known = set(conf.configuration().known_steps)
    fields = ("priority", "urgency", "created", "run_after", "name", "next_task")
    ahead, counted = 0, True
    for states in [CLAIMABLE] if partial else [(state,) for state in CLAIMABLE]:
        found = due.filter(state__in=states).order_by(*ORDER)
        rows = list(found.values_list(*fields)[:HEAD])
        before = [row for row in rows if (-row[0], -row[1], row[2]) < turn(job)]
        counted = counted and len(before) < HEAD
        ahead += sum(
            (run_after is None or run_after <= look.now) and f"{name} {path}" in known
            for *_, run_after, name, path in before
        )
    return ahead, counted


def _at_least(ahead: int, counted: bool) -> str:
    return count(ahead, "job") if counted else f"at least {count(ahead, 'job')}"
