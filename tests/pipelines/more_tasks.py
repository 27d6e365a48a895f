"""Tasks that do what a test says, a second session to do it in, and the question whether anything is stuck."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connection, connections

from django_dbq.models import Dependency, Job, JobEvent
from django_dbq.pipelines import WAIT_FOR
from django_dbq.states import FINISHED, HELD, UNFINISHED, State
from django_dbq.storage import Queues
from django_dbq.workers.worker import Worker
from tests import process_jobs
from tests.process_jobs import until

T = TypeVar("T")
M = "tests.pipelines.more_tasks."
PATIENCE = 30  # seconds after which something that should have happened is missing

# What `act` does, by the job's workspace["does"]; each test says it anew.
DOES: dict[str, Callable[[Any], Any]] = {}


# -- tasks --


def quick(job: Any) -> None:
    pass


def act(job: Any) -> Any:
    return DOES[job.workspace["does"]](job)


async def act_async(job: Any) -> Any:
    return DOES[job.workspace["does"]](job)


async def await_act(job: Any) -> Any:
    return await DOES[job.workspace["does"]](job)


def acts_first(job: Any) -> bool:
    """A predicate that does something, and then says yes."""
    act(job)
    return True


def note(job: Any) -> None:
    job.workspace["ran"] = [*job.workspace.get("ran", ()), job.step]


def boom(job: Any) -> None:
    note(job)
    if not job.workspace.get("mended"):
        raise ValueError("not mended")


def failed(job: Any, error: BaseException) -> None:
    """A failure hook."""
    job.workspace["failed"] = type(error).__name__


def stand(job: Any) -> None:
    """As in `process_jobs`; members are told apart by their position."""
    if job.parent_id is not None:
        job.workspace["key"] = f"{job.workspace['key']} {job.position}"
    process_jobs.stand(job)


# What worker processes know as well.
JOBS: dict[str, Any] = {
    **process_jobs.JOBS,
    "quick": [M + "quick"],
    "boom": [M + "boom"],
    "two": [M + "note", M + "quick"],
    "act": [M + "act"],
    "act, act": [M + "act", {"task": M + "act", "name": "again"}],
    "act, atomic": [{"task": M + "act", "atomic": True}],
    "act, hook": {"tasks": [M + "act"], "failure_hook": M + "failed"},
    "act, retried": [{"task": M + "act", "retries": 1}],
    "held": [{"task": M + "quick", "on_lost": "hold"}],
    "await act": [M + "await_act"],
    "act_async": [M + "act_async"],
    "act, group, act": [M + "act", [M + "quick", M + "quick"], {"task": M + "act", "name": "last"}],
    "group": [[M + "quick", M + "quick"]],
    "group of one": [[M + "quick"]],
    "group, held": [[{"task": M + "quick", "on_lost": "hold"}]],
    "act, group of boom": [M + "act", [M + "boom"]],
    "group of boom": [[M + "boom"]],
    "group of act": [[M + "act"]],
    "group, ignoring, act": [{"group": [M + "boom"], "on_failure": "ignore"}, M + "act"],
    "group, cancel_rest": [{"group": [M + "boom", M + "quick"], "on_failure": "cancel_rest"}],
    "group, acting first": [{"group": [M + "quick"], "when": M + "acts_first"}],
    "nested": [[[M + "quick", [M + "quick", M + "quick"]], M + "quick"]],
    "map": [{"map": M + "quick", "over": "items"}],
    "map of act": [{"map": M + "act", "over": "items"}],
    "map of two": [{"map": M + "note", "over": "items"}],
    "map of stand": [{"map": M + "stand", "over": "items"}],
    "steps of note": [
        M + "note",
        {"task": M + "boom", "name": "middle"},
        {"task": M + "note", "name": "end", "queue": "own"},
    ],
    "wait_for": [{"wait_for": "word", "timeout": 3600}, M + "quick"],
    "sleep": [{"sleep": 3600}, M + "quick"],
}


def create(name: str = "quick", does: Callable[[Any], Any] | None = None, **fields: Any) -> Job:
    """A job; its ``act`` does what is said here."""
    if does is not None:
        key = str(len(DOES))
        DOES[key] = does
        fields["workspace"] = {**fields.get("workspace", {}), "does": key}
    job: Job = Job.objects.create(name=name, **fields)
    return job


def step_on(*queues: str) -> None:
    """Run one step of each job that is ready now, in these queues or in all."""
    Worker(Queues(queues, exclude=not queues), once=True).run()


# -- more sessions --


def aside(pool: ThreadPoolExecutor, function: Callable[[], T]) -> "Future[T]":
    """Call a function in a thread, and so in a database session, of its own."""

    def call() -> T:
        try:
            return function()
        finally:
            connections.close_all()

    return pool.submit(call)


def until_blocked(*calls: "Future[Any]") -> None:
    """Wait until some session waits for a lock, or one of these calls has ended."""
    waiting = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'",
        "mysql": "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'",
    }[connection.vendor]

    def is_blocked() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(waiting)
            return int(cursor.fetchone()[-1]) > 0

    until(lambda: is_blocked() or any(call.done() for call in calls))


class Gate:
    """Where one thread stops until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def stop(self) -> None:
        self.reached.set()
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


@contextmanager
def stopping_at(monkeypatch: Any, where: object, name: str) -> Iterator[Gate]:
    """Within, the first thread that comes to a function from `aside` stops there; the gate opens at the end."""
    gate, here, function = Gate(), threading.current_thread(), getattr(where, name)
    stopped: list[threading.Thread] = []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        this = threading.current_thread()
        if this is not here and not stopped:
            stopped.append(this)
            gate.stop()
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, stopping)
        try:
            yield gate
        finally:
            gate.open()


@contextmanager
def meeting_at(monkeypatch: Any, where: object, name: str) -> Iterator[None]:
    """Within, two threads from `aside` wait for each other at their first call of a function."""
    barrier, here, function = threading.Barrier(2), threading.current_thread(), getattr(where, name)
    met: set[threading.Thread] = set()

    def meeting(*args: Any, **kwargs: Any) -> Any:
        this = threading.current_thread()
        if this is not here and this not in met:
            met.add(this)
            barrier.wait(PATIENCE)
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, meeting)
        yield
    assert len(met) == 2


# -- is anything stuck? --


def stuck() -> dict[str, str]:
    """The jobs that nothing and nobody will ever move on, and those that are not what they should be, with the reason.

    To be asked when nothing is being run.
    """
    jobs = {job.pk: job for job in Job.objects.select_related("worker")}
    found = {job: problem for job in jobs.values() if (problem := _problem(job, jobs))}
    moving = {
        key
        for key, job in jobs.items()
        if job.state in UNFINISHED and (job.state != State.WAITING or _waits_for_event(job))
    }
    waiting = {key for key, job in jobs.items() if job.state in UNFINISHED} - moving
    while freed := {key for key in waiting if _is_freed_by(jobs[key], jobs, moving)}:
        moving |= freed
        waiting -= freed
    found.update((jobs[key], "it is in a circle of jobs that wait") for key in waiting)
    return {f"{job} {job.state}": problem for job, problem in found.items()}


def _waits_for_event(job: Job) -> bool:
    return job.round is not None and job.next_task.startswith(f"{WAIT_FOR} ")


def _awaited(job: Job) -> tuple[list[Any], str]:
    """What a WAITING job waits for, and the mode."""
    if job.round is not None:
        inside = job.children.filter(parent_round=job.round, state__in=UNFINISHED)
        return list(inside.values_list("pk", flat=True)), "all"
    edges = list(Dependency.objects.filter(job=job, state="open"))
    return [edge.on_id for edge in edges], edges[0].mode if edges else "all"


def _is_freed_by(job: Job, jobs: dict[Any, Job], moving: set[Any]) -> bool:
    keys, mode = _awaited(job)
    return (any if mode == "any" else all)(key in moving for key in keys)


def _problem(job: Job, jobs: dict[Any, Job]) -> str | None:
    if (job.finished is not None) != (job.state in FINISHED):
        return f"it has finished at {job.finished}"
    if job.state in HELD:
        return None if job.worker and job.worker.stopped is None else "nobody runs it"
    if job.state == State.BLOCKED:
        on = Dependency.objects.filter(job=job, state="failed").values_list("on", flat=True)
        blocked = any(key not in jobs or jobs[key].state in ("FAILED", "CANCELLED") for key in on)
        return None if blocked else "nothing that it waits for has failed"
    if job.state != State.WAITING:
        return None
    if _waits_for_event(job):
        event = job.next_task.removeprefix(f"{WAIT_FOR} ")
        sent = JobEvent.objects.filter(job=job, name=event, taken=0).exists()
        return "its event was sent" if sent else None
    keys, _ = _awaited(job)
    if not keys:
        return "it waits for nothing"
    if any(key not in jobs or jobs[key].state in FINISHED for key in keys):
        return "it waits for what has ended"
    return None if job.waiting_for == len(keys) else f"{job.waiting_for} are not {len(keys)}"
