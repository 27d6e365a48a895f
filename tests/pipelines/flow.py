"""Pipelines of the tests here: declared, run in this process or by hand, and what is left of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.utils import timezone

from django_dbq import engine, runner
from django_dbq.models import Job, Worker
from django_dbq.patience import steadily
from django_dbq.storage import Execution, Queues
from django_dbq.testing import drain

T = "tests.pipelines.tasks."
EVERY = Queues((), exclude=True)
HOOKS = {
    "creation_hook": T + "created",
    "pre_task_hook": T + "before",
    "post_task_hook": T + "after",
    "failure_hook": T + "failed",
    "completion_hook": T + "completed",
}


def tasks(names: str) -> list[str]:
    """The paths of tasks by their names."""
    return [T + name for name in names.split()]


def declare(settings: Any, *steps: Any, **options: Any) -> None:
    """Make these steps the job ``it``."""
    settings.JOBS = {"it": {"tasks": list(steps), **options}}


def create(**workspace: Any) -> Job:
    job: Job = Job.objects.create(name="it", workspace=workspace)
    return job


def run(settings: Any, *steps: Any, **workspace: Any) -> Job:
    """Declare a job of these steps, and run it as far as it goes."""
    declare(settings, *steps)
    return drained(create(**workspace))


def drained(job: Job) -> Job:
    """The job after everything was run that could be."""
    drain()
    job.refresh_from_db()
    return job


def step_on() -> list[Job]:
    """Run one step of each job that is ready now; returns these jobs."""
    return Hands().step()


def now_is(job: Job) -> Job:
    """The job as it is in the database now."""
    found: Job = Job.objects.get(pk=job.pk)
    return found


def history(job: Job) -> list[tuple[str, str]]:
    """Task and outcome of each attempt in order; the last part of a path stands for it."""
    rows = list(job.attempts.order_by("pk").values_list("number", "task", "outcome"))
    assert [number for number, _, _ in rows] == list(range(1, len(rows) + 1))
    return [(task.removeprefix(T), outcome) for _, task, outcome in rows]


def members(job: Job) -> list[Job]:
    """The members of all its groups and maps: in order of their rounds, and there of their positions."""
    return list(job.children.order_by("parent_round", "position"))


def states(*jobs: Job) -> list[str]:
    found = dict(Job.objects.filter(pk__in=[job.pk for job in jobs]).values_list("pk", "state"))
    return [found[job.pk] for job in jobs]


def last_error(job: Job) -> str:
    """The last line of the last attempt's report."""
    attempt = job.attempts.order_by("pk").last()
    assert attempt is not None
    return attempt.error.rstrip().rpartition("\n")[2]


class Hands:
    """A worker that does nothing by itself."""

    def __init__(self, label: str = "hands") -> None:
        self.row = Worker(label=label, hostname="here", pid=1, queues="", started=timezone.now())
        engine.start_worker(self.row, "default")

    def claim(self, limit: int = 100) -> list[Job]:
        now = timezone.now()
        claimed = engine.claim(self.row, EVERY, limit, now, "default")
        return engine.park(self.row, claimed, now, "default")

    def perform(self, job: Job) -> Execution:
        """Run the step that a claimed job stands at; the outcome is not written."""
        return runner.run(job, timezone.now)

    def write(self, *executions: Execution) -> list[Execution]:
        """Write outcomes, as a worker does; returns those that were."""
        write: Callable[[], list[Execution]] = partial(
            engine.finish, self.row, executions, timezone.now(), "default"
        )
        return steadily(write, "default")

    def step(self) -> list[Job]:
        """Claim, run and write what is ready, one step of each; returns these jobs."""
        jobs = self.claim()
        self.write(*map(self.perform, jobs))
        return jobs

    def die(self) -> None:
        engine.bury(self.row.pk, "It is dead.", timezone.now(), "default")
