"""Tasks and hooks for the tests' JOBS. What a job went through stands in its workspace, under "ran"."""

from typing import Any

from django_dbq.models import Job


class Boom(Exception):
    """What the tasks and hooks here raise."""


def ran(job: Job) -> list[str]:
    """What has run of this job, in order, as the database has it."""
    workspace = Job.objects.get(pk=job.pk).workspace
    return list(workspace.get("ran", []))


def _run(job: Job, what: str) -> None:
    job.workspace.setdefault("ran", []).append(what)


# -- tasks --


def one(job: Job) -> None:
    _run(job, "one")


def two(job: Job) -> None:
    _run(job, "two")


def three(job: Job) -> None:
    _run(job, "three")


def fail(job: Job) -> None:
    _run(job, "fail")
    raise Boom("it went wrong")


def fail_until_mended(job: Job) -> None:
    """Fails for as long as the workspace does not say otherwise, as a task does until somebody has mended the world."""
    _run(job, "mended" if job.workspace.get("mended") else "not mended")
    if not job.workspace.get("mended"):
        raise Boom("not mended")


# -- hooks --


def creation_hook(job: Job) -> None:
    _run(job, "creation hook")


def pre_task_hook(job: Job) -> None:
    _run(job, "pre hook")


def post_task_hook(job: Job) -> None:
    _run(job, "post hook")


def failure_hook(job: Job, exc: BaseException) -> None:
    _run(job, f"failure hook: {exc}")


def completion_hook(job: Job) -> None:
    _run(job, "completion hook")


def broken(job: Job, *exc: Any) -> None:
    """A hook that raises, whatever it is called for."""
    _run(job, "broken hook")
    raise Boom("the hook went wrong")


# -- for the checks --


async def asynchronous(job: Job) -> None:
    raise NotImplementedError


def takes_nothing() -> None:
    raise NotImplementedError


def takes_two(job: Job, more: Any) -> None:
    raise NotImplementedError


not_callable = "a string"
