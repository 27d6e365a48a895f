"""One worker in this process: its rounds, one by one, and its run from start to end."""

import datetime
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
from django.core.management import call_command
from django.db import connection, connections
from django.utils import timezone

from django_dbq import engine, wakeups
from django_dbq.models import Attempt, Job
from django_dbq.models import Worker as WorkerRow
from django_dbq.storage import Queues
from django_dbq.wakeups import LOOK_AGAIN
from django_dbq.workers import claims, minder, supervisor
from django_dbq.workers import worker as worker_module
from django_dbq.workers.worker import Worker
from tests.processes import states, until_states

pytestmark = pytest.mark.django_db(transaction=True)

TASKS: dict[str, Callable[[Job], None]] = {}


def run(job: Job) -> None:
    """The one task here: it does what the test has put down under the job's key."""
    TASKS[job.workspace["key"]](job)


def nothing(job: Job) -> None:
    pass


@pytest.fixture(autouse=True)
def tasks(settings: Any) -> Any:
    settings.JOBS = {"run": [f"{__name__}.run"], "twice": [f"{__name__}.run"] * 2}
    TASKS.update(nothing=nothing)
    yield
    TASKS.clear()


def create(key: str = "nothing", name: str = "run", **fields: Any) -> Job:
    job: Job = Job.objects.create(name=name, workspace={"key": key}, **fields)
    return job


def in_thread(function: Callable[[], Any]) -> "Future[Any]":
    """Call it beside this thread, with a database connection of its own."""

    def call() -> Any:
        try:
            return function()
        finally:
            connections.close_all()

    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(call)
    finally:
        pool.shutdown(wait=False)


class Rounds:
    """A worker with its minder, of which the test makes every round."""

    def __init__(self, **options: Any) -> None:
        self.worker = Worker(Queues(), **options)
        self.worker._thread = threading.get_ident()
        self.worker.registration.begin()
        self.worker.minder = minder.Minder(self.worker)
        self.worker.minder.start()
        self.claimed: list[list[str]] = []

    def step(self) -> float:
        return self.worker.step(timezone.now())


def until_done(worker: Worker, *jobs: Job) -> None:
    for _ in range(20):
        if states(*jobs) == ["COMPLETE"] * len(jobs):
            return
        worker.step(timezone.now())
    raise AssertionError(states(*jobs))


@pytest.fixture
def rounds() -> Any:
    made: list[Rounds] = []

    def make(**options: Any) -> Rounds:
        made.append(Rounds(**options))
        return made[-1]

    yield make
    for each in made:
        each.worker._end()


# -- declared dead --


def test_news_of_the_death_of_an_earlier_row_does_not_strike_its_successor(
    rounds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads ask for the same row; one hears so late that the other has begun anew."""
    this = rounds().worker
    heard, go_on = threading.Event(), threading.Event()
    ask = engine.beat

    def slowly(row: WorkerRow, using: str) -> bool:
        alive = ask(row, using)
        if threading.current_thread() is not threading.main_thread():
            heard.set()
            assert go_on.wait(20)
        return alive

    monkeypatch.setattr(engine, "beat", slowly)
    first = this.row
    engine.bury(first.pk, "A test.", timezone.now(), "default")
    late = in_thread(this.beat)
    assert heard.wait(20)
    assert not this.beat()
    this.step(timezone.now())
    second = this.row
    assert second.pk != first.pk

    def hears_of_it(job: Job) -> None:
        go_on.set()
        assert not late.result(20)

    TASKS["hears"] = hears_of_it
    job = create("hears", "twice")
    for _ in range(3):
        this.step(timezone.now())
    assert this.row is second
    assert states(job) == ["COMPLETE"]
    assert list(job.attempts.values_list("number", "outcome").order_by("number")) == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]


def test_a_worker_that_leaves_while_it_asks_was_not_declared_dead(
    rounds: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    this, ask = rounds().worker, engine.beat

    def slowly(row: WorkerRow, using: str) -> bool:
        this.registration.leave()
        return ask(row, using)

    monkeypatch.setattr(engine, "beat", slowly)
    this.row.reason = "told to stop"
    assert this.beat()
    assert "dead" not in caplog.text
    assert WorkerRow.objects.get(pk=this.row.pk).reason == "told to stop"


def test_a_task_that_was_stopped_because_its_worker_is_dead_counts_as_lost(rounds: Any) -> None:
    """Its job was claimed after the others had been taken, so that nobody else has taken it."""
    this = rounds().worker
    ran: list[int] = []

    def hears_of_it(job: Job) -> None:
        ran.append(job.attempt)
        if len(ran) == 1:
            assert not in_thread(this.beat).result(20)
            for _ in range(1000):
                pass  # the verdict strikes at one of the next lines
            ran.append(-1)

    TASKS["hears"] = hears_of_it
    job, behind = create("hears", priority=1), create()
    engine.bury(this.row.pk, "A test.", timezone.now(), "default")
    until_done(this, job, behind)
    assert ran == [1, 2]
    assert list(job.attempts.values_list("number", "outcome").order_by("number")) == [
        (1, "lost"),
        (2, "succeeded"),
    ]
    assert list(behind.attempts.values_list("number", "outcome")) == [(1, "succeeded")]


# -- claims that come to nothing --


def test_what_was_claimed_before_an_error_is_handed_back(
    rounds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    this, job = rounds(), create()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "park", mock.Mock(side_effect=RuntimeError("A test.")))
        with pytest.raises(RuntimeError):
            this.step()
    assert states(job) == ["PROCESSING"]
    this.step()
    assert states(job) == ["COMPLETE"]
    assert job.attempts.get().number == 1


# -- how much is claimed --


def test_the_batch_grows_with_quick_tasks_and_shrinks_with_slow_ones(
    rounds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow task is one that takes longer than a batch should: its time is what the test is about."""
    monkeypatch.setattr(claims, "BATCH_SECONDS", 1.0)  # a quick one stays so on a busy machine
    monkeypatch.setattr(minder, "HAND_BACK_AFTER", 1000)
    ran: list[int] = []
    this = rounds()

    def slow(job: Job) -> None:
        threading.Event().wait(2 * claims.BATCH_SECONDS)

    TASKS["slow"] = slow
    for _ in range(1 + 4 + 16):
        create()
    create("slow")
    for _ in range(100):
        create()
    for _ in range(5):
        this.step()
        ran.append(Attempt.objects.count())
    # 1, 4 and 16 quick ones, then 64 of which the first is slow: these make the time for the last batch.
    assert ran[:4] == [1, 5, 21, 85]
    assert 86 <= ran[4] <= 85 + 64


def test_a_slow_task_makes_the_next_claim_a_single_job(rounds: Any) -> None:
    this = rounds()
    TASKS["slow"] = lambda job: threading.Event().wait(2 * claims.BATCH_SECONDS)
    create("slow", priority=1)
    jobs = [create() for _ in range(10)]
    this.step()
    this.step()
    assert states(*jobs).count("COMPLETE") == 1


def test_with_a_rate_limit_jobs_are_claimed_one_by_one(
    rounds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = rounds(rate_limit=100)
    jobs = [create() for _ in range(3)]
    assert this.step() == 0
    pause = this.step()
    assert 50 < pause <= 100
    assert states(*jobs) == ["COMPLETE", "NEW", "NEW"]
    this.worker.inflight.last_start -= 100
    this.step()
    assert states(*jobs) == ["COMPLETE", "COMPLETE", "NEW"]


# -- in which order --


@pytest.fixture
def far_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every way to the head of the backlog led past many dead entries: claims go on from where the last was."""
    monkeypatch.setattr(claims, "CLAIM_SECONDS", (-1.0, 0.0))
    monkeypatch.setattr(claims, "HEAD_SHARE", 1e9)


def test_an_urgent_job_is_the_next_one(rounds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The way to the head is short, however long a busy machine takes for it.
    monkeypatch.setattr(claims, "CLAIM_SECONDS", (1000.0, 0.0))
    ran: list[str] = []
    this = rounds()

    def first(job: Job) -> None:
        ran.append("first")
        create("urgent", priority=1)

    TASKS["first"] = first
    for key in ("second", "urgent"):
        TASKS[key] = lambda job: ran.append(job.workspace["key"])
    create("first")
    create("second")
    for _ in range(3):
        this.step()
    assert ran == ["first", "urgent", "second"]


@pytest.mark.usefixtures("far_head")
def test_after_a_long_task_a_worker_starts_at_the_head_again(rounds: Any) -> None:
    """However far that is: while the task ran, the time has passed for which jobs further ahead may wait."""
    ran: list[str] = []
    this = rounds()

    def first(job: Job) -> None:
        ran.append("first")
        create("urgent", priority=1)
        this.worker.claims._head_due = 0.0  # it took a long time

    TASKS["first"] = first
    for key in ("second", "urgent"):
        TASKS[key] = lambda job: ran.append(job.workspace["key"])
    create("first")
    create("second")
    for _ in range(3):
        this.step()
    assert ran == ["first", "urgent", "second"]


def test_steps_of_one_job_are_run_by_the_worker_in_turn(rounds: Any) -> None:
    this = rounds()
    job = create(name="twice")
    assert this.step() == 0
    assert states(job) == ["READY"]
    assert this.step() == 0
    assert states(job) == ["COMPLETE"]
    assert this.step() == LOOK_AGAIN


# -- ends by itself, in a test's transaction --


@pytest.mark.parametrize("ends", ["once", "until_done"])
@pytest.mark.parametrize("head", ["near", "far"])
def test_a_worker_that_ends_by_itself_does_every_priority_and_queue(
    ends: str, head: str, request: pytest.FixtureRequest
) -> None:
    """Also where the first batch, a single job, is all that there is of the highest priority and its queue."""
    if head == "far":
        request.getfixturevalue("far_head")
    jobs = [create(priority=-n, queue_name=f"queue {n}") for n in range(5) for _ in range(n + 1)]
    Worker(Queues((), exclude=True), **{ends: True}).run()
    assert set(states(*jobs)) == {"COMPLETE"}


@pytest.mark.parametrize("way", ["write", "hand back"])
def test_it_does_not_end_while_something_of_its_own_is_on_its_way(
    rounds: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Another thread is just writing what will be READY then: neither claimable nor held when the worker looks."""
    this = rounds(until_done=True).worker
    job = create(name="twice")
    this.inflight.load(this._claim(timezone.now(), 1))
    begun, go_on = threading.Event(), threading.Event()
    name, send = "hand_back", this.hand_back
    if way == "write":
        name, send = "finish", this.write_outcomes
    write, claim = getattr(engine, name), this._claim
    sent: list[Future[Any]] = []

    def slowly(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return write(*args, **kwargs)

    def meanwhile(now: datetime.datetime, limit: int) -> list[Job]:
        if not sent:
            if way == "write":
                assert this.executor.run() == 1
            sent.append(in_thread(send))
            assert begun.wait(20)
        return claim(now, limit)

    monkeypatch.setattr(engine, name, slowly)
    monkeypatch.setattr(this, "_claim", meanwhile)
    this.step(timezone.now())
    assert not this.stopping
    go_on.set()
    sent[0].result(20)
    while not this.stopping:
        this.step(timezone.now())
    assert states(job) == ["COMPLETE"]


@pytest.mark.parametrize("head", ["near", "far"])
@pytest.mark.django_db(transaction=False)
def test_so_does_one_in_a_tests_transaction(head: str, request: pytest.FixtureRequest) -> None:
    if head == "far":
        request.getfixturevalue("far_head")
    jobs = [create(priority=n, queue_name=f"queue {n}") for n in range(3)]
    call_command("worker", "--exclude_queue", "none", until_done=True)
    assert set(states(*jobs)) == {"COMPLETE"}


@pytest.mark.parametrize("served", [[], ["other"], ["--exclude_queue", "x"]])
def test_call_command_in_any_thread(served: list[str]) -> None:
    job = create(queue_name="other" if served == ["other"] else "default")
    in_thread(lambda: call_command("worker", *served, until_done=True)).result(30)
    assert states(job) == ["COMPLETE"]


@pytest.mark.django_db(transaction=False)
def test_call_command_in_a_tests_transaction() -> None:
    """Rows of an open transaction are seen by no other connection: no thread, no second connection, all the same."""
    seen: dict[str, Any] = {}

    def look(job: Job) -> None:
        seen["threads"] = {thread.name for thread in threading.enumerate()}
        seen["connection"] = connections["default"].connection
        create("created")

    TASKS["look"], TASKS["created"] = look, nothing
    job = create("look", name="twice")
    threads = {thread.name for thread in threading.enumerate()}
    call_command("worker", until_done=True)
    assert connection.in_atomic_block
    assert states(job) == ["COMPLETE"]
    assert Job.objects.filter(workspace__key="created", state="COMPLETE").count() == 2
    assert seen == {"threads": threads, "connection": connection.connection}
    assert WorkerRow.objects.get().stopped is not None


@pytest.mark.django_db(transaction=False)
@pytest.mark.parametrize("options", [{"once": True}, {"max_jobs": 3}, {"rate_limit": 0.01}])
def test_other_ends_in_a_tests_transaction(options: dict[str, Any]) -> None:
    jobs = [create(name="twice") for _ in range(3)]
    call_command("worker", until_done="once" not in options, **options)
    assert set(states(*jobs)) == {"COMPLETE" if "rate_limit" in options else "READY"} or (
        options == {"max_jobs": 3} and Attempt.objects.count() == 3
    )


# -- stopped by a signal: handlers are put back --


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in supervisor.SIGNALS]


def test_a_signal_in_the_middle_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes at a moment that the task knows; that others get the jobs behind is the signal's doing alone."""
    monkeypatch.setattr(minder, "HAND_BACK_AFTER", 1000)
    monkeypatch.setattr(claims, "BATCH_GROWTH", 100)
    seen: list[Any] = []

    def stop(job: Job) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        in_thread(lambda: until_states("STOPPING", job)).result(30)
        in_thread(lambda: until_states("NEW", *behind)).result(30)
        seen.extend(in_thread(lambda: states(job, *behind)).result(30))

    TASKS["stop"] = stop
    create()
    stopping = create("stop")
    behind = [create() for _ in range(5)]
    before = handlers()
    supervisor.run(Worker(Queues()))
    assert seen == ["STOPPING"] + ["NEW"] * 5
    assert states(stopping, *behind) == ["COMPLETE"] + ["NEW"] * 5
    assert handlers() == before
    assert set(Job.objects.filter(state="NEW").values_list("attempt", "worker")) == {(0, None)}
    assert WorkerRow.objects.get().stopped is not None


def test_stop_from_another_thread_ends_an_idle_worker() -> None:
    worker = Worker(Queues(), tick=1000)
    ended = in_thread(worker.run)
    until_states("COMPLETE", create())
    worker.stop()
    ended.result(10)
    assert WorkerRow.objects.get().stopped is not None


def test_a_worker_waits_until_its_threads_have_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was interrupted is neither running nor back in its queue while a thread hands it back."""
    this = Worker(Queues(), threads=1, grace=0)
    started, begun, go_on = threading.Event(), threading.Event(), threading.Event()
    hand_back = engine.hand_back

    def slowly(*args: Any, **kwargs: Any) -> int:
        begun.set()
        assert go_on.wait(20)
        return hand_back(*args, **kwargs)

    def endless(job: Job) -> None:
        started.set()
        while True:
            threading.Event().wait(0.01)

    TASKS["endless"] = endless
    monkeypatch.setattr(engine, "hand_back", slowly)
    monkeypatch.setattr(worker_module, "UNWIND", 20.0)
    job = create("endless")
    ran = in_thread(this.run)
    assert started.wait(20)
    this.stop()
    assert begun.wait(20)
    leaving = threading.Event()
    monkeypatch.setattr(this, "_leave_in_order", leaving.set)
    assert not leaving.wait(0.3)
    go_on.set()
    ran.result(20)
    assert leaving.is_set()
    assert states(job) == ["NEW"]


def test_nothing_is_started_after_a_stop() -> None:
    ran: list[str] = []
    worker = Worker(Queues())
    TASKS["stop"] = lambda job: worker.stop()
    TASKS["late"] = lambda job: ran.append("late")
    create()
    create("stop")
    for _ in range(5):
        create("late")
    worker.run()
    assert ran == []
    assert Job.objects.filter(state="NEW", attempt=0).count() == 5


# -- wake-ups are hints --


def test_everything_is_done_with_every_wake_up_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from django_dbq.storage import storage_for

    monkeypatch.setattr(wakeups, "ring", lambda: None)
    monkeypatch.setattr(worker_module, "LISTENING_TICK", 0.05)
    notify = type(storage_for("default")).notify

    def only_proofs(self: Any, queues: Any) -> None:
        if all(queue.startswith("prove:") for queue in queues):
            notify(self, queues)

    monkeypatch.setattr(type(storage_for("default")), "notify", only_proofs)
    monkeypatch.setattr("django_dbq.engine.creation._sends", lambda queues, using: False)
    worker = Worker(Queues(), tick=0.05)
    ended = in_thread(worker.run)
    for _ in range(3):
        until_states("COMPLETE", create(name="twice"), create())
    worker.stop()
    ended.result(10)


# -- the row --


def test_the_workers_row_says_who_it_is() -> None:
    worker = Worker(Queues(("a", "b"), exclude=True), label="mine {pid}", until_done=True)
    before = timezone.now()
    worker.run()
    row = WorkerRow.objects.get()
    assert row.label == f"mine {os.getpid()}"
    assert (row.pid, row.queues) == (os.getpid(), "all but a, b")
    assert before - datetime.timedelta(minutes=1) < row.started <= row.stopped
