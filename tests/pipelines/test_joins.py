"""Groups and maps where several are at work: joined exactly once, whoever is slow, in the way, or dead.

And those with thousands of members.
"""

import signal
import threading
import tracemalloc
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, connections
from django.utils import timezone

from django_dbq import engine
from django_dbq import members as membership
from django_dbq.models import Job
from django_dbq.states import UNFINISHED
from tests.pipelines.flow import (
    HOOKS,
    Hands,
    T,
    create,
    declare,
    drained,
    history,
    last_error,
    members,
    now_is,
    run,
    states,
    step_on,
    tasks,
)
from tests.pipelines.process_pipelines import JOBS
from tests.pipelines.tasks import broken, called
from tests.process_jobs import journal, tell, told, until
from tests.processes import WorkerProcess, worker
from tests.storage.sessions import elsewhere, is_blocked, while_uncommitted

pytestmark = pytest.mark.django_db(transaction=True)


# -- two sessions at once --


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("fails", [None, 0, 1])
def test_the_last_two_members_end_at_once(settings: Any, first: int, fails: int | None) -> None:
    """Whichever commits first: the other one waits for it, and sees that it was the last."""
    declare(settings, tasks("a b"), T + "c")
    if fails is not None:
        broken.add("ab"[fails])
    job = create()
    step_on()
    hands = Hands(), Hands()
    outcomes = [one.perform(*one.claim(1)) for one in hands]
    assert [outcome.job.position for outcome in outcomes] == [0, 1]
    second = 1 - first
    with while_uncommitted(lambda: hands[second].write(outcomes[second])) as written:
        hands[first].write(outcomes[first])
        assert now_is(job).waiting_for == 1
    assert written.result() == [outcomes[second]]
    assert (states(job), now_is(job).waiting_for) == (["READY"], 0)
    drained(job)
    assert job.state == ("COMPLETE" if fails is None else "FAILED")
    assert len(history(job)) == (3 if fails is None else 2)


def test_many_members_end_at_once(settings: Any) -> None:
    """Eight sessions, each with every eighth of the members, none of which ends before all have been run."""
    declare(settings, {"map": T + "square_item", "over": "items", "into": "out"})
    job = create(items=list(range(40)))
    step_on()
    barrier = threading.Barrier(8)

    def write(hands: Hands, claimed: list[Job]) -> int:
        try:
            outcomes = [hands.perform(one) for one in claimed]
            barrier.wait(30)
            return sum(len(hands.write(outcome)) for outcome in outcomes)
        finally:
            connections.close_all()

    workers = [Hands() for _ in range(8)]
    claims = [hands.claim(5) for hands in workers]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(write, workers, claims)) == [5] * 8
    assert (states(job), now_is(job).waiting_for) == (["READY"], 0)
    assert drained(job).workspace["out"] == [n**2 for n in range(40)]
    assert [outcome for _, outcome in history(job)] == ["waited", "succeeded"]


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_member_ends_while_its_job_is_dealt_with(
    settings: Any, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """One locks the member and then its job, the other the other way round: neither of them must fail of it."""
    declare(settings, tasks("a b"), T + "c")
    job = create()
    step_on()
    hands = Hands()
    outcomes = [hands.perform(one) for one in hands.claim()]
    at_the_parent, goes_on = threading.Event(), threading.Event()
    settle = membership.settle

    def settle_slowly(*args: Any) -> set[str]:
        at_the_parent.set()
        assert goes_on.wait(30)
        return settle(*args)

    monkeypatch.setattr(membership, "settle", settle_slowly)
    writing, dealing = in_threads(
        lambda: len(hands.write(outcomes[0])),
        lambda: at_the_parent.wait(30) and getattr(now_is(job), verb)(),
    )
    assert at_the_parent.wait(30)
    if connection.vendor != "sqlite":
        until(is_anybody_blocked, "the one to wait for the other")
    monkeypatch.setattr(membership, "settle", settle)
    goes_on.set()
    assert dealing.result(30) is True
    assert writing.result(30) in (0, 1)
    one, two = members(job)
    if verb == "cancel":
        assert states(job, two) == ["CANCELLED", "CANCELLED"]
        assert states(one) == ["COMPLETE" if writing.result() else "CANCELLED"]
    else:
        assert states(job, one, two) == ["PAUSED", "COMPLETE", "PROCESSING"]
        hands.write(outcomes[1])
        assert now_is(job).waiting_for == 0
        assert job.resume()
        assert drained(job).state == "COMPLETE"


def is_anybody_blocked() -> bool:
    """Whether any session waits for what another one has locked."""
    if connection.vendor != "postgresql":
        return is_blocked()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return bool(cursor.fetchone()[0])


def in_threads(*functions: Any) -> list["Future[Any]"]:
    """Their answers to come, each from a session of its own."""
    pool = ThreadPoolExecutor(len(functions))
    try:
        return [pool.submit(elsewhere, function) for function in functions]
    finally:
        pool.shutdown(wait=False)


@pytest.mark.parametrize("first", ["member", "retry"])
def test_a_member_ends_while_another_is_retried(settings: Any, first: str) -> None:
    """The job must not go on between the two."""
    declare(settings, tasks("a b"), T + "c")
    broken.add("a")
    job = create()
    step_on()
    hands = Hands()
    fails, ends = map(hands.perform, hands.claim())
    hands.write(fails)
    broken.clear()

    def retry() -> bool:
        return now_is(fails.job).retry()

    def end() -> int:
        return len(hands.write(ends))

    now, then = (end, retry) if first == "member" else (retry, end)
    with while_uncommitted(then, waits=None) as answer:
        assert now()
    assert answer.result()
    assert states(fails.job, ends.job) == ["READY", "COMPLETE"]
    assert drained(job).state == "COMPLETE"
    assert called == ["a", "b", "a", "c"]
    assert history(job)[-2:] == [("group", "succeeded"), ("c", "succeeded")]


def test_two_retry_at_once(settings: Any) -> None:
    declare(settings, tasks("a b"))
    broken.update("ab")
    job = drained(create())
    broken.clear()
    with while_uncommitted(lambda: now_is(job).retry(), waits=None) as second:
        assert job.retry()
    assert second.result() is False
    assert now_is(job).waiting_for == 2
    assert drained(job).state == "COMPLETE"
    assert Counter(called) == {"a": 2, "b": 2}


def test_a_step_in_a_branch_runs_past_its_timeout(settings: Any) -> None:
    declare(settings, [{"task": T + "overrun_at_first", "timeout": 0.2, "retries": 1}, T + "a"])
    job = drained(create())
    assert job.state == "COMPLETE"
    assert [outcome for _, outcome in history(members(job)[0])] == ["timed_out", "succeeded"]
    assert called.count("overrun_at_first") == 2


# -- real workers --


@pytest.fixture
def processes(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.JOBS = JOBS
    monkeypatch.setenv("TEST_FOLDER", str(tmp_path))


PROCESS = {"DJANGO_SETTINGS_MODULE": "tests.pipelines.process_settings"}


def create_named(name: str, **workspace: Any) -> Job:
    job: Job = Job.objects.create(name=name, workspace=workspace)
    return job


def until_done() -> WorkerProcess:
    with worker("--until_done", environment=PROCESS) as process:
        assert process.wait(60) == 0
    return process


@pytest.mark.usefixtures("processes")
def test_two_workers_with_threads_on_one_map() -> None:
    job = create_named("atomic map", items=list(range(400)))
    other = create_named("map", items=list(range(200)))
    with (
        worker("--threads", "3", "--tick", "0.1", environment=PROCESS) as one,
        worker("--tick", "0.1", environment=PROCESS) as two,
    ):
        until(lambda: states(job, other) == ["COMPLETE", "COMPLETE"], "both maps")
        one.stop()
        two.stop()
    names = set(apps.get_model("auth.Group").objects.values_list("name", flat=True))
    assert names == {f"{job.pk} {n}" for n in range(400)}
    lines = Counter(journal())
    assert lines == {"completed": 2, **{f"run {n}": 1 for n in range(200)}}
    assert now_is(other).workspace["out"] == list(range(200))
    for parent in (job, other):
        assert [outcome for _, outcome in history(parent)] == ["waited", "succeeded"]


MOMENTS = [
    *("opening, before", "opening, within", "opening, after"),
    *("last member, before", "last member, within", "last member, after"),
    *("joining, before", "joining, after"),
]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("dies", MOMENTS)
@pytest.mark.parametrize("name", ["dying group", "dying map"])
def test_a_worker_is_killed(name: str, dies: str) -> None:
    """Before, within and after each transaction of a group's (or map's) life."""
    job = create_named(name, dies=dies, items=[0, 1, 2])
    with worker("--tick", "0.1", environment=PROCESS) as killed:
        assert killed.wait() == -signal.SIGKILL
    until_done()
    job.refresh_from_db()
    assert job.state == "COMPLETE"
    what, _, when = dies.partition(", ")
    outcomes = [outcome for _, outcome in history(job)][1:]
    group = ["waited", "succeeded"]
    if when != "after" and what != "last member":
        group.insert(("opening", "joining").index(what), "lost")
    assert outcomes == group + ["succeeded"] * (name == "dying group")
    found = members(job)
    assert [m.position for m in found] == [0, 1, 2]
    assert set(states(*found)) == {"COMPLETE"}
    if name == "dying map":
        assert job.workspace["out"] == [0, 1, 2]
    lost = sum(outcome == "lost" for m in found for _, outcome in history(m))
    lines = Counter(journal())
    assert lines.pop("completed") in ({1, 2} if name == "dying map" and what == "joining" else {1})
    assert set(lines) == {"run 0", "run 1", "run 2"}
    if when == "after" or what != "last member":
        assert (lost, lines.total()) == (0, 3)
    else:
        assert lost >= 1, "what it has held was lost"
        assert lines.total() == 3 + lost
    assert not Job.objects.filter(state__in=UNFINISHED).exists()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("dies", ["opening, before", "opening, within", "opening, after"])
def test_a_worker_is_killed_as_a_wait_begins(dies: str) -> None:
    job = create_named("dying wait", dies=dies)
    with worker("--tick", "0.1", environment=PROCESS) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert elsewhere(lambda: job.send("approval", {"by": "me"}))
    until_done()
    assert_approved(job)
    after = dies.endswith("after")
    assert [outcome for _, outcome in history(job)] == [
        *("succeeded", "waited" if after else "lost"),
        *("succeeded", "succeeded"),
    ]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("dies", ["joining, before", "joining, after"])
def test_a_worker_is_killed_as_a_wait_ends(dies: str) -> None:
    job = create_named("dying wait", dies=dies)
    with worker("--tick", "0.1", environment=PROCESS) as killed:
        until(lambda: states(job) == ["WAITING"], "the wait")
        assert elsewhere(lambda: job.send("approval", {"by": "me"}))
        assert killed.wait() == -signal.SIGKILL
    until_done()
    assert_approved(job)
    lost = ["lost"] * dies.endswith("before")
    assert [outcome for _, outcome in history(job)] == [
        *("succeeded", "waited", *lost, "succeeded", "succeeded")
    ]


def assert_approved(job: Job) -> None:
    assert now_is(job).state == "COMPLETE"
    assert now_is(job).workspace["approval"] == {"by": "me"}
    event = job.events.get()
    taken = job.attempts.filter(task="wait_for approval", outcome="succeeded").get()
    assert event.taken == taken.number
    assert journal() == ["completed"]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("dies", "outcomes"),
    [
        ("opening, before", ["lost", "waited", "succeeded"]),
        ("opening, after", ["waited", "succeeded"]),
        ("joining, before", ["waited", "lost", "succeeded"]),
        ("joining, after", ["waited", "succeeded"]),
    ],
)
def test_a_worker_is_killed_at_a_sleep(dies: str, outcomes: list[str]) -> None:
    job = create_named("dying sleep", dies=dies)
    with worker("--tick", "0.1", environment=PROCESS) as killed:
        assert killed.wait() == -signal.SIGKILL
    with worker("--tick", "0.1", environment=PROCESS):
        until(lambda: states(job) == ["COMPLETE"], "the job")
    assert [outcome for _, outcome in history(job)] == ["succeeded", *outcomes, "succeeded"]
    assert journal() == ["completed"]
    slept = job.attempts.filter(task="sleep")
    begun, ended = slept.get(outcome="waited"), slept.get(outcome="succeeded")
    assert (ended.started - begun.started).total_seconds() >= 0.2


@pytest.mark.usefixtures("processes")
def test_a_cancelled_group_reaches_running_tasks() -> None:
    """At their next checkpoint, or within some seconds; and retried, it runs both once more."""
    job = create_named("standing group")
    with worker("--threads", "2", "--tick", "0.1", environment=PROCESS) as process:
        told("started 0")
        told("started 1")
        assert elsewhere(job.cancel)
        assert states(job, *members(job)) == ["CANCELLED"] * 3
        tell("go on 0")
        until(lambda: process.output().count("Task stopped") == 2, "both tasks to be stopped")
        process.stop()
    assert [history(m)[0][1] for m in members(job)] == ["cancelled", "cancelled"]
    assert journal() == []
    assert elsewhere(job.retry)
    tell("go on 1")
    until_done()
    assert states(job, *members(job)) == ["COMPLETE"] * 3
    assert journal() == ["completed"]


@pytest.mark.usefixtures("processes")
def test_maps_in_groups_in_groups_with_a_real_worker() -> None:
    job = create_named("nested", items=[1, 2, 3])
    with worker("--tick", "0.1", environment=PROCESS):
        until(lambda: states(job) == ["COMPLETE"], "the job")
    assert now_is(job).workspace == {"items": [1, 2, 3], "out": [0, 1, 2]}
    assert Counter(journal()) == {"run 0": 1, "run 1": 1, "run 2": 1, "completed": 1}


# -- thousands --

LARGE = {"map": T + "square_item", "over": "items", "into": "out"}


def test_2500_items(settings: Any) -> None:
    """More than two batches, in order of creation as well."""
    items = [n % 1000 for n in range(2500)]
    declare(settings, LARGE)
    job = create(items=items)
    step_on()
    assert now_is(job).waiting_for == 2500
    rows = job.children.order_by("created").values_list("position", "state")
    assert list(rows) == [(n, "NEW") for n in range(2500)]
    assert drained(job).state == "COMPLETE"
    assert job.workspace["out"] == [item**2 for item in items]
    assert Counter(called) == Counter(items)
    assert [outcome for _, outcome in history(job)] == ["waited", "succeeded"]


def test_a_large_workspace_is_no_obstacle(settings: Any) -> None:
    """A batch of 1,000 members that each carry 40 kB would be more than some servers take in one statement."""
    job = run(settings, LARGE, items=list(range(1000)), text="x" * 40_000)
    assert job.state == "COMPLETE", last_error(job)
    assert members(job)[-1].workspace["text"] == "x" * 40_000


def test_memory_does_not_grow_with_the_number_of_items(settings: Any) -> None:
    """Of the members only one batch is there at a time; measured are the peaks while they are created."""
    declare(settings, LARGE)
    peaks = []
    for count in (2_000, 8_000):
        create(items=[0] * count, text="x" * 500)
        hands = Hands()
        (job,) = hands.claim()
        outcome = hands.perform(job)
        tracemalloc.start()
        hands.write(outcome)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        Job.objects.filter(parent=job.pk).update(state="COMPLETE")
    assert peaks[1] < 1.3 * peaks[0]


def test_cancel_rest_of_thousands(settings: Any) -> None:
    """It reaches beyond the members that the worker has claimed, and beyond one batch."""
    broken.add(0)
    declare(settings, {**LARGE, "on_failure": "cancel_rest"}, T + "a", **HOOKS)
    job = drained(create(items=list(range(2200))))
    assert job.state == "FAILED"
    left = job.children.filter(state="CANCELLED").count()
    assert left > 1100
    assert job.children.exclude(state__in=["CANCELLED", "COMPLETE"]).get().position == 0
    assert called.count("failed, job: MembersFailed") == 1
    assert "a" not in called


def test_a_retry_of_1500_members(settings: Any) -> None:
    """As many statements as batches, not as members."""
    declare(settings, LARGE)
    job = create(items=list(range(1500)))
    step_on()
    now = timezone.now()
    assert elsewhere(lambda: engine.cancel([job.pk], now, "default")) == 1501
    with connection.execute_wrapper(counted := Counted()):
        assert job.retry()
    assert job.waiting_for == 1500
    assert job.children.filter(state="READY", finished=None).count() == 1500
    assert counted.number < 100
    assert drained(job).workspace["out"] == [n**2 for n in range(1500)]
    assert sorted(called) == list(range(1500))


@pytest.mark.parametrize("verb", ["pause", "cancel"])
def test_pausing_and_cancelling_1500_members(settings: Any, verb: str) -> None:
    declare(settings, LARGE)
    job = create(items=list(range(1500)))
    step_on()
    with connection.execute_wrapper(counted := Counted()):
        assert getattr(job, verb)()
        assert job.children.exclude(state__in=["PAUSED", "CANCELLED"]).count() == 0
        if verb == "pause":
            assert job.resume()
            assert job.children.filter(state="NEW").count() == 1500
    assert counted.number < 100


class Counted:
    """How many statements go by."""

    number = 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.number += 1
        return execute(sql, params, many, context)
