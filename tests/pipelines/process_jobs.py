"""Tasks of pipelines for real worker processes, among them one that has its process die at a chosen moment."""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from django.apps import apps

from django_dbq import engine, members
from django_dbq.models import Job
from django_dbq.states import UNFINISHED, State
from django_dbq.storage import Execution
from tests.process_jobs import tell, told, write_down


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- tasks --


def tell_of_itself(job: Job) -> int:
    """Write down which member this is."""
    write_down(f"run {job.position}")
    return job.position or 0


def stand(job: Job) -> None:
    """Run from ``started POSITION`` until ``go on POSITION``, and save the workspace meanwhile, as long tasks do."""
    tell(f"started {job.position}")
    told(f"go on {job.position}")
    job.checkpoint()


def stand_deaf_to_checkpoints(job: Job) -> None:
    """The same without any checkpoint."""
    tell(f"started {job.position}")
    told(f"go on {job.position}")


def effect(job: Job) -> None:
    """A row in the same database, in an atomic step's transaction."""
    apps.get_model("auth.Group").objects.create(name=f"{job.parent_id} {job.position}")


def nothing(job: Job) -> None:
    pass


def make_items(job: Job) -> None:
    job.workspace["items"] = list(range(job.workspace["count"]))


def complete(job: Job) -> None:
    write_down("completed")


def fail(job: Job, error: BaseException) -> None:
    write_down(f"failed: {type(error).__name__}")


# -- a process that dies --


def arm(job: Job) -> None:
    """Have this process die at the moment that the workspace names: the first time that it comes to that."""
    moment = job.workspace["dies"]
    if moment is None:
        return
    what, _, when = moment.partition(", ")
    concerned = {"opening": opens, "last member": ends_last, "joining": joins}[what]
    if when == "within":
        _die_within(*WITHIN[what])
    else:
        _die_at_finish(concerned, when)


def _die_at_finish(concerned: Callable[[Sequence[Execution], str], bool], when: str) -> None:
    """Die before the transaction of such an outcome, or right after it."""
    finish = engine.finish

    def wrapped(worker: Any, executions: Any, now: Any, using: str, **kwargs: Any) -> Any:
        fatal = concerned(executions, using)
        if fatal and when == "before":
            die()
        written = finish(worker, executions, now, using, **kwargs)
        if fatal:
            die()
        return written

    engine.finish = wrapped  # type: ignore[assignment]


def opens(executions: Sequence[Execution], using: str) -> bool:
    """Whether one of these outcomes begins a group, a map or a pause."""
    return any(e.round is not None and e.job.round is None for e in executions)


def ends_last(executions: Sequence[Execution], using: str) -> bool:
    """Whether these outcomes end the last members of something."""
    ended = [e.job for e in executions if e.job.parent_id and e.job_finished is not None]
    left = Job.objects.using(using).filter(
        parent__in={job.parent_id for job in ended}, state__in=UNFINISHED
    )
    return bool(ended) and not left.exclude(pk__in=[job.pk for job in ended]).exists()


def joins(executions: Sequence[Execution], using: str) -> bool:
    """Whether one of these outcomes ends such a step."""
    return any(e.round is None and e.job.round is not None for e in executions)


def _die_within(name: str, concerned: Callable[..., bool]) -> None:
    """Die when all of this is written, and not committed."""
    function = getattr(members, name)

    def wrapped(*args: Any) -> Any:
        answer = function(*args)
        if concerned(*args):
            die()
        return answer

    setattr(members, name, wrapped)


def _is_joined(ended: Sequence[members.Ended], now: Any, using: str) -> bool:
    parents = Job.objects.using(using).filter(pk__in={one.parent_id for one in ended})
    return bool(parents.filter(state=State.READY).exists())


WITHIN: dict[str, tuple[str, Callable[..., bool]]] = {
    "opening": ("begin", lambda *args: True),
    "last member": ("settle", _is_joined),
}
