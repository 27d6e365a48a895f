"""Helpers for the tests of projects that declare jobs; they work within ``TestCase``'s transaction."""

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import router
from django.db.models import F, Model
from django.utils import timezone

from . import conf, engine, runner, workspaces
from .models import GIVEN, Job, Needs, Start
from .models import Worker as WorkerRow
from .outcomes import AttemptOutcome
from .pipelines import UnknownJob
from .states import UNFINISHED
from .storage import Queues
from .workers.worker import Worker

_LISTED = 10  # jobs that a failing assertion names
# Of a job that `run_step` runs; where it stands and what it waits for is said by the step.
_FIELDS = GIVEN - {"name", "workspace"} | {"attempt", "failures", "id", "lost", "pk"}


def drain(*queues: str) -> int:
    """Run everything that is ready now, step by step and in order, in this thread; returns how many tasks were run.

    Hooks run as in a worker; a task that raises fails its job, as there. What sleeps, or waits for an event, is left:
    see `advance`.

    Args:
        queues: the queues to drain; all without any.

    Raises:
        TypeError: one of them is no name.
    """
    for queue in queues:
        if not isinstance(queue, str):
            raise TypeError(
                f'drain takes names of queues, one by one, drain("a", "b") say, not {queue!r}'
            )
    served = Queues(queues) if queues else Queues((), exclude=True)
    worker = Worker(served, until_done=True, using=router.db_for_write(Job))
    worker.run()
    return worker.done


def advance(delta: datetime.timedelta) -> None:
    """Let that much time pass for jobs that have not ended: what was to run, or to be given up, within it is due now.

    No clock is moved: their times are, those of sleeps, retries, time limits and rates among them. `drain` then runs
    what has become ready.

    Raises:
        TypeError, ValueError: ``delta`` is no timedelta, or one that goes back.
    """
    if not isinstance(delta, datetime.timedelta):
        raise TypeError(f"advance takes a timedelta, timedelta(hours=1) say, not {delta!r}")
    if delta < datetime.timedelta():
        raise ValueError(f"advance takes a timedelta of 0 or more, not {delta!r}: time only passes")
    using = router.db_for_write(Job)
    waiting = Job.objects.using(using).filter(state__in=UNFINISHED, run_after__isnull=False)
    for key, run_after in waiting.values_list("pk", "run_after"):
        Job.objects.using(using).filter(pk=key).update(run_after=run_after - delta)
    Start.objects.using(using).update(at=F("at") - delta)
    while engine.stage_due(timezone.now(), using):
        pass


def run_step(name: str, step: str | int, workspace: Any = None, **fields: Any) -> Job:
    """Run one step of a pipeline, and nothing else, with this workspace; returns the job as it stands afterwards.

    The job is saved at that step and run with its hooks, as a worker does: its ``state``, ``next_task`` and
    ``workspace`` tell what it came to. It is always one of its own, whatever is ``unique``, and waits for nothing: not
    for a limit, a queue that is paused, or other jobs. Of a group, a map, a sleep or a wait for an event, it is the
    first visit that is run: the members or the pause begin.

    Args:
        name: of the job.
        step: name, path or place.
        workspace: for the job.
        fields: others of the job, ``priority`` say.

    Raises:
        TypeError: one of ``fields`` is not for the caller to say: ``state`` or ``depends_on``, for instance.
        LookupError: ``JOBS`` has no such job, or it has no such step.
        BaseException: what the step has failed with; the job is saved all the same, as FAILED or to be retried.
    """
    if refused := sorted(fields.keys() - _FIELDS):
        raise TypeError(
            f"run_step makes a job of its own, to be run at that step: leave {', '.join(refused)} out. "
            f"Of the job's fields it takes {', '.join(sorted(_FIELDS))}."
        )
    using, now = router.db_for_write(Job), timezone.now()
    found = conf.catalogue().named(name).named(step)
    job = Job(name=name, workspace=workspace, **fields)
    job.prepare(now)
    # So that it stands beside one of the same values, and does not wait, whatever its creation hook has said.
    job.unique_key, job.needs = None, Needs()
    with engine.creating(job, using):
        Model.save(job, force_insert=True, using=using)
    engine.created([job], using)
    place = job.queue_name
    here = f"run_step {job.pk}"
    row = WorkerRow(label="run_step", hostname="", pid=0, queues=here, started=now)
    engine.start_worker(row, using)
    jobs = Job.objects.using(using).filter(pk=job.pk)
    jobs.update(next_task=found.path, step=found.place, queue_name=here, due=True, run_after=None)
    (claimed,) = engine.claim(row, Queues((here,)), 1, now, using)
    claimed.queue_name = place
    claimed.claimed_at = claimed.place
    execution = runner.run(claimed, timezone.now)
    engine.finish(row, [execution], timezone.now(), using)
    jobs.filter(queue_name=here).update(queue_name=place)
    engine.stop_worker(row, timezone.now(), using)
    if execution.error is not None and execution.outcome is not AttemptOutcome.RETRIED:
        raise execution.error
    job.refresh_from_db()
    return job


def assert_enqueued(
    name: str, workspace: Mapping[str, Any] | None = None, count: int | None = None, **fields: Any
) -> list[Job]:
    """Assert that jobs of this name have been created and not ended; returns them, the oldest first.

    Members of groups and maps count only where ``fields`` say something of their ``parent``.

    Args:
        name: of the jobs.
        workspace: keys and values that their workspaces hold, among others.
        count: how many there are; by default at least one.
        fields: others of the jobs, ``queue_name`` say.

    Raises:
        AssertionError: there are not; names those of the name that there are, with what they have in these ``fields``.
            Or ``JOBS`` has no such job.
        InvalidWorkspace: ``workspace`` is not JSON, so that no job's could hold it.
    """
    try:
        conf.catalogue().named(name)
    except UnknownJob as error:  # with count=0 a slip of the pen would pass else
        raise AssertionError(str(error)) from None
    keys = workspaces.load(workspaces.dump(dict(workspace or {})))
    jobs = Job.objects.filter(name=name, state__in=UNFINISHED).order_by("created")
    if not any(field.split("__")[0] in ("parent", "parent_id") for field in fields):
        jobs = jobs.filter(parent=None)
    found = [job for job in jobs.filter(**fields) if _holds(job.workspace, keys)]
    if len(found) == count or (count is None and found):
        return found
    wanted = "at least one job" if count is None else f"{count} jobs"
    asked = {"workspace": dict(workspace)} if workspace else {}
    raise AssertionError(
        f"Expected {wanted} {name!r} with {({**asked, **fields}) or 'anything'}, found {len(found)}. "
        f"Not ended of this name: {_listed(jobs, fields)}."
    )


def _holds(workspace: Any, wanted: Mapping[str, Any]) -> bool:
    return not wanted or (
        isinstance(workspace, Mapping)
        and all(key in workspace and workspace[key] == value for key, value in wanted.items())
    )


def _listed(jobs: Iterable[Job], asked: Iterable[str]) -> str:
    names = {"id" if field == "pk" else field.split("__")[0] for field in asked}
    shown = [
        field.attname
        for field in Job._meta.concrete_fields
        if {field.name, field.attname} & names and field.name not in ("state", "workspace")
    ]
    rows = [
        " ".join(
            [job.state, repr(job.workspace), *(f"{one}={getattr(job, one)!r}" for one in shown)]
        )
        for job in jobs
    ]
    more = f" and {len(rows) - _LISTED} more" if len(rows) > _LISTED else ""
    return "; ".join(rows[:_LISTED]) + more or "none"
