"""Run by django-db-queue 3.3.0: make jobs in every state through its own code, and print their ids by what they are."""

import contextlib
import datetime
import json
import os
import signal
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import django

import parcels

django.setup()

from django.utils import timezone

from django_dbq.management.commands.worker import Worker
from django_dbq.models import Job
from django_dbq.tasks import get_next_task_name

assert version("django-db-queue") == "3.3.0"

NESTED = {
    "steps": [],
    "lines": [
        {"item": "Äpfel, 1 kg", "price": 2.35, "gift": None},
        {"item": "茶", "price": 12, "gift": {"card": 'for "you"\n', "ribbons": [[1, 2], []]}},
    ],
    "paid": True,
    "": {"large": 9007199254740993, "small": -1e-9},
}
HOUR = datetime.timedelta(hours=1)
jobs: dict[str, Any] = {}


class PowerCut(BaseException):
    """Ends a worker in the middle of a task: nothing in it catches this."""


def power_cut() -> None:
    raise PowerCut


def termination() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    power_cut()


def no_label() -> None:
    raise ValueError("no label left")


def create(
    key: str, *, rounds: int = 0, accident: Callable[[], None] | None = None, **fields: Any
) -> None:
    """Create a job and let 3.3.0's worker do so many rounds with it, in a queue where nothing else waits."""
    queue = fields.pop("queue_name", "default")
    jobs[key] = job = Job.objects.create(
        name="parcel", queue_name="desk" if rounds else queue, **fields
    )
    if accident:
        parcels.accidents[job.pk] = accident
    worker = Worker("desk", rate_limit_in_seconds=0)
    for _ in range(rounds):
        with contextlib.suppress(PowerCut):
            worker._process_job()
    Job.objects.filter(pk=job.pk).update(queue_name=queue)


create("new")
create("new, low priority", priority=-5, workspace={"steps": []})
create("new, high priority", priority=7, workspace={"steps": []})
create("new, empty workspace", workspace={})
create("new, nested workspace", workspace=NESTED)
create("new, run_after past", run_after=timezone.now() - HOUR, priority=7)
create("new, run_after ahead", run_after=timezone.now() + 24 * HOUR, priority=9)
create("new, other queue", queue_name="mail", workspace={"steps": []})
create("ready after one step", rounds=1, workspace=NESTED)
create("ready after two steps", rounds=2, priority=3, workspace={"steps": []})
create("ready, other queue", rounds=1, queue_name="mail", workspace={"steps": []})
create("processing", rounds=2, accident=power_cut, workspace={"steps": []})
create("stopping", rounds=2, accident=termination, workspace={"steps": []})
create("failed", rounds=2, accident=no_label, workspace={"steps": []})
create("complete", rounds=3, workspace=NESTED)

# bulk_create passes save() by, which makes the one kind of job whose workspace is null.
jobs["new, null workspace"] = Job(name="parcel", next_task=get_next_task_name("parcel"))
Job.objects.bulk_create([jobs["new, null workspace"]])

print(json.dumps({key: str(job.pk) for key, job in jobs.items()}))
