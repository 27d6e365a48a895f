"""The hooks of every pipeline here: each writes a line that a person can read in the admin.

A hook takes the job, the failure hook the exception as well; settings say which hook is whose.
"""

import logging

from django_dbq.models import Job

from .models import JournalEntry

logger = logging.getLogger(__name__)


def write(job: Job, event: str, text: str = "") -> None:
    """Add a line about ``job`` to the journal and to the log."""
    JournalEntry.objects.create(job_id=job.id, job_name=job.name, event=event, text=text)
    logger.info("%s %s %s", job.name, event, text)


def created(job: Job) -> None:
    """Creation hook: runs where the job is created, before its row is saved."""
    write(job, "created", f"for queue {job.queue_name}: {facts(job)}")


def begins(job: Job) -> None:
    """Pre-task hook: runs in the worker, before each task."""
    write(job, "begins", _task(job))


def ended(job: Job) -> None:
    """Post-task hook: runs after each task, when the job points at the next one already."""
    write(job, "ended", f"next is {_task(job) or 'nothing'}; {facts(job)}")


def failed(job: Job, exc: BaseException) -> None:
    """Failure hook: runs once, when the job has failed for good."""
    write(job, "failed", f"{type(exc).__name__}: {exc}")


def complete(job: Job) -> None:
    """Completion hook: runs once, after the last task."""
    write(job, "complete", facts(job))


def facts(job: Job) -> str:
    """The small facts of a job's workspace, on one line."""
    small = [f"{k}={v}" for k, v in job.workspace.items() if isinstance(v, str | int | float)]
    return ", ".join(small) or "nothing yet"


def _task(job: Job) -> str:
    """The task that the job points at, without its module."""
    return job.next_task.rpartition(".")[2]
