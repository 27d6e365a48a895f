"""What a task can do with its job while it runs, and what its creator can: checkpoint, progress, wait."""

import datetime
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from django_dbq import engine, models
from django_dbq.models import Attempt, Job, Worker
from django_dbq.outcomes import ClaimLost
from django_dbq.storage import Queues
from django_dbq.testing import drain
from django_dbq.workspaces import InvalidWorkspace
from tests.jobs import Boom
from tests.outcomes import outcome

pytestmark = pytest.mark.django_db

HOUR = datetime.timedelta(hours=1)


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "feed": {
            "tasks": ["tests.jobs.one", "tests.jobs.two"],
            "failure_hook": "tests.jobs.failure_hook",
            "post_task_hook": "tests.jobs.post_task_hook",
        },
        "one": ["tests.jobs.one"],
        "again": [{"task": "tests.jobs.one", "retries": 1}],
    }


@pytest.fixture
def worker() -> Worker:
    worker = Worker(label="ours", hostname="here", pid=1, queues="", started=timezone.now())
    engine.start_worker(worker, "default")
    return worker


@pytest.fixture
def job(worker: Worker) -> Job:
    """A job that is being run."""
    Job.objects.create(name="one", workspace={"a": 1})
    (job,) = engine.claim(worker, Queues(), 1, timezone.now(), "default")
    return job


def finish(worker: Worker, job: Job) -> None:
    engine.finish(worker, [outcome(job)], timezone.now(), "default")


def stored(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def does(monkeypatch: pytest.MonkeyPatch, *tasks: Callable[[Job], Any]) -> None:
    """Let the task ``one`` do these, one each time it is run."""
    rest = list(tasks)

    def task(job: Job) -> None:
        rest.pop(0)(job)

    monkeypatch.setattr("tests.jobs.one", task)


# -- when the claim is gone --


def reset(job: Job, worker: Worker) -> None:
    Job.objects.filter(pk=job.pk).update(state="READY")


def claimed_again(job: Job, worker: Worker) -> None:
    reset(job, worker)
    assert len(engine.claim(worker, Queues(), 1, timezone.now(), "default")) == 1


def of_another_worker(job: Job, worker: Worker) -> None:
    """With the same attempt number."""
    Job.objects.filter(pk=job.pk).update(worker_id=worker.pk + 1)


def buried(job: Job, worker: Worker) -> None:
    assert engine.bury(worker.pk, "It was shot.", timezone.now(), "default") == 1


def deleted(job: Job, worker: Worker) -> None:
    Job.objects.filter(pk=job.pk).delete()


def cancelled(job: Job, worker: Worker) -> None:
    Job.objects.filter(pk=job.pk).update(state="CANCELLED")


GONE = [reset, claimed_again, of_another_worker, buried, deleted, cancelled]


# -- checkpoint --


def test_a_checkpoint_is_stored_at_once(job: Job) -> None:
    before = stored(job).modified
    job.workspace["b"] = [2, "ü"]
    job.checkpoint()
    assert stored(job).workspace == {"a": 1, "b": [2, "ü"]}
    assert (stored(job).state, stored(job).attempt) == ("PROCESSING", 1)
    assert before <= stored(job).modified <= timezone.now()


def test_a_stopping_job_may_still_checkpoint(job: Job, worker: Worker) -> None:
    engine.stopping(worker, [job], "default")
    job.workspace["b"] = 2
    job.checkpoint()
    assert (stored(job).state, stored(job).workspace) == ("STOPPING", {"a": 1, "b": 2})


@pytest.mark.parametrize("meanwhile", GONE)
def test_a_checkpoint_of_a_job_that_is_no_longer_ours(
    job: Job, worker: Worker, meanwhile: Callable[[Job, Worker], None]
) -> None:
    meanwhile(job, worker)
    before = list(Job.objects.values())
    job.workspace["b"] = 2
    for _ in range(2):
        with pytest.raises(ClaimLost, match=str(job.pk)):
            job.checkpoint()
    assert job.claim_is_lost
    with pytest.raises(ClaimLost):
        job.set_progress(0.5)
    assert list(Job.objects.values()) == before


@pytest.mark.parametrize("value", [{1}, float("nan"), b"bytes", "a\0b"], ids=repr)
def test_a_checkpoint_that_is_not_json(job: Job, value: Any) -> None:
    job.workspace["b"] = value
    with pytest.raises(InvalidWorkspace, match=r"workspace\['b'\]"):
        job.checkpoint()
    assert stored(job).workspace == {"a": 1}
    del job.workspace["b"]
    job.checkpoint()


def test_only_a_job_that_is_being_run_here_can_checkpoint(job: Job, worker: Worker) -> None:
    elsewhere, new = stored(job), Job(name="one")
    finish(worker, job)
    for not_ours in (elsewhere, new, job):
        with pytest.raises(RuntimeError, match=r"^checkpoint\(\) is for the task"):
            not_ours.checkpoint()
        with pytest.raises(RuntimeError, match=r"^set_progress\(\) is for the task"):
            not_ours.set_progress(0.5)
    assert stored(job).progress is None


@pytest.mark.django_db(transaction=True)
def test_a_checkpoint_obeys_the_tasks_transaction(job: Job) -> None:
    with transaction.atomic():
        job.workspace["b"] = 2
        job.checkpoint()
        transaction.set_rollback(True)
    assert stored(job).workspace == {"a": 1}
    with transaction.atomic():
        job.checkpoint()
    assert stored(job).workspace == {"a": 1, "b": 2}


def test_the_next_attempt_starts_from_the_checkpoint(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the worker is lost: all that was not saved is gone."""
    job = Job.objects.create(name="again", workspace={"n": 0})
    (claimed,) = engine.claim(worker, Queues(), 1, timezone.now(), "default")
    claimed.workspace["n"] = 1
    claimed.checkpoint()
    claimed.workspace["n"] = 2
    engine.bury(worker.pk, "It was shot.", timezone.now(), "default")
    found = []
    does(monkeypatch, lambda job: found.append(job.workspace["n"]))
    assert drain() == 1
    assert found == [1]
    assert stored(job).state == "COMPLETE"


def test_a_failing_task_after_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has put into the workspace since is saved as ever; if that is not JSON, the checkpoint stays."""

    def fail(job: Job) -> None:
        job.workspace["n"] = 1
        job.checkpoint()
        job.workspace["n"] = {1}
        raise Boom("no")

    found: list[Any] = []
    does(monkeypatch, fail, lambda job: found.append(dict(job.workspace)))
    job = Job.objects.create(name="again")
    assert drain() == 2
    assert found == [{"n": 1}]
    assert [attempt.outcome for attempt in job.attempts.all()] == ["failed", "succeeded"]


def test_what_was_taken_back_since_the_checkpoint_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def there_and_back(job: Job) -> None:
        job.workspace["n"] = 1
        job.checkpoint()
        del job.workspace["n"]

    does(monkeypatch, there_and_back)
    job = Job.objects.create(name="one", workspace={"a": 1})
    assert drain() == 1
    assert stored(job).workspace == {"a": 1}


def test_a_task_that_lost_its_job_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    after: list[str] = []

    def cut_off(job: Job) -> None:
        Job.objects.filter(pk=job.pk).update(state="PAUSED")
        try:
            job.checkpoint()
        except Exception:  # the careless kind: it must not catch this
            after.append("caught")
        after.append("went on")

    does(monkeypatch, cut_off)
    job = Job.objects.create(name="feed")
    drain()
    assert after == []
    assert stored(job).state == "PAUSED"
    assert stored(job).workspace == {}, "no hook has run"
    assert not Attempt.objects.exists()
    assert "no longer this worker's" in caplog.text


# -- progress --


@pytest.mark.parametrize("fraction", [0, 0.0, 0.25, 1, True])
def test_progress_is_noted_and_written_by_the_worker(job: Job, fraction: float) -> None:
    job.set_progress(fraction, "sorting")
    assert job.progress_unsaved
    assert stored(job).progress is None, "telling costs no query"
    assert engine.save_progress(job, "default")
    assert not job.progress_unsaved
    assert (stored(job).progress, stored(job).progress_message) == (float(fraction), "sorting")
    assert stored(job).state == "PROCESSING"


@pytest.mark.parametrize("fraction", [-0.01, 1.01, 50, float("nan"), float("inf")])
def test_progress_is_a_fraction(job: Job, fraction: float) -> None:
    with pytest.raises(ValueError, match="Expected: a number from 0 to 1"):
        job.set_progress(fraction)
    assert (job.progress, job.progress_unsaved) == (None, False)


@pytest.mark.parametrize("fraction", ["x", None, [], datetime.timedelta(1)])
def test_progress_is_a_number(job: Job, fraction: Any) -> None:
    with pytest.raises(TypeError) as caught:
        job.set_progress(fraction)
    said = f"The progress is {fraction!r}. Expected: a number from 0 to 1."
    assert (str(caught.value), job.progress_unsaved) == (said, False)


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("ü" * 300, "ü" * 255),
        ("😀" * 300, "😀" * 255),
        ("a\0b\ud800", "a\\0b\\ud800"),
        (5, "5"),
        ("", ""),
    ],
)
def test_any_message_can_be_stored(job: Job, message: Any, kept: str) -> None:
    job.set_progress(0.5, message)
    assert engine.save_progress(job, "default")
    assert stored(job).progress_message == kept


@pytest.mark.parametrize("meanwhile", GONE)
def test_progress_of_a_job_that_is_no_longer_ours(
    job: Job, worker: Worker, meanwhile: Callable[[Job, Worker], None]
) -> None:
    job.set_progress(0.5)
    meanwhile(job, worker)
    before = list(Job.objects.values())
    assert not engine.save_progress(job, "default")
    assert list(Job.objects.values()) == before


@pytest.mark.django_db(transaction=True)
def test_progress_that_could_not_be_written_yet_is_not_forgotten(job: Job) -> None:
    """While a transaction of the task's own has the row; else the last one would be lost."""
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("SQLite has one writer at a time: whoever saves progress waits")

    def save() -> bool:
        try:
            return engine.save_progress(job, "default")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        job.checkpoint()
        job.set_progress(0.5)
        assert pool.submit(save).result(30), "it does not wait, and the job is still ours"
    assert stored(job).progress is None
    assert job.progress_unsaved


def test_progress_that_the_database_did_not_take_is_not_forgotten(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> bool:
        raise OSError("away")

    monkeypatch.setattr("django_dbq.storage.base.Storage.save_progress", fail)
    job.set_progress(0.5)
    with pytest.raises(OSError, match="away"):
        engine.save_progress(job, "default")
    assert job.progress_unsaved


def test_the_last_progress_comes_with_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(job: Job) -> None:
        job.set_progress(0.5, "half")
        job.set_progress(1, "done")

    does(monkeypatch, work)
    job = Job.objects.create(name="one")
    assert drain() == 1
    assert (stored(job).progress, stored(job).progress_message) == (1.0, "done")


def test_progress_of_a_failing_task_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(job: Job) -> None:
        job.set_progress(0.75, "nearly")
        raise Boom("no")

    does(monkeypatch, work)
    job = Job.objects.create(name="one")
    assert drain() == 1
    assert (stored(job).state, stored(job).progress) == ("FAILED", 0.75)


def test_hooks_may_tell_of_progress_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.jobs.post_task_hook", lambda job: job.set_progress(0.5, job.state))
    job = Job.objects.create(name="feed")
    assert drain() == 2
    assert (stored(job).progress, stored(job).progress_message) == (0.5, "COMPLETE")


def test_progress_is_not_saved_by_a_task_that_saves_its_job(job: Job) -> None:
    """That is a worker's to write, with the fence."""
    job.set_progress(0.5)
    job.save()
    assert stored(job).progress is None
    assert job.progress_unsaved


# -- wait --


class Steps:
    """A clock that stands still but for the waiting, and what happens in the meantime."""

    def __init__(self, *events: Callable[[], Any]) -> None:
        self.now, self.pauses, self.events = 0.0, list[float](), list(events)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.pauses.append(seconds)
        self.now += seconds
        if self.events:
            self.events.pop(0)()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Steps]:
    def make(*events: Callable[[], Any]) -> Steps:
        clock = Steps(*events)
        monkeypatch.setattr(models, "time", clock)
        return clock

    return make


@pytest.mark.parametrize("state", ["COMPLETE", "FAILED", "CANCELLED"])
def test_waiting_for_a_job_that_has_ended(steps: Any, state: str) -> None:
    clock = steps()
    job = Job.objects.create(name="one", workspace={"a": 1})
    Job.objects.update(state=state, workspace={"b": 2}, progress=0.5, failures=1)
    assert job.wait(0) is job
    assert (job.state, job.workspace, job.progress, job.failures) == (state, {"b": 2}, 0.5, 1)
    assert clock.pauses == []


def test_waiting_until_it_ends(steps: Any) -> None:
    clock = steps(*[lambda: None] * 8, drain)
    job = Job.objects.create(name="feed")
    assert job.wait() is job
    assert job.state == "COMPLETE"
    assert clock.pauses == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("state", ["NEW", "READY", "PROCESSING", "STOPPING", "PAUSED", "BLOCKED"])
def test_waiting_in_vain(steps: Any, state: str) -> None:
    clock = steps()
    job = Job.objects.create(name="one")
    Job.objects.update(state=state)
    assert job.wait(1.3) is None
    assert clock.now == pytest.approx(1.3), "neither shorter nor longer"
    assert sum(clock.pauses) == pytest.approx(1.3)


@pytest.mark.parametrize("timeout", [0, -1, 0.0])
def test_a_look_without_waiting(steps: Any, timeout: float) -> None:
    clock = steps()
    job = Job.objects.create(name="one")
    assert job.wait(timeout) is None
    assert clock.pauses == []


def test_what_ends_at_the_very_last_moment_has_ended_in_time(steps: Any) -> None:
    steps(lambda: None, drain)
    job = Job.objects.create(name="one")
    assert job.wait(0.05) is job


def test_waiting_for_a_job_that_is_deleted(steps: Any) -> None:
    steps(lambda: None, lambda: Job.objects.all().delete())
    job = Job.objects.create(name="one")
    with pytest.raises(Job.DoesNotExist):
        job.wait()


def test_what_is_waited_for_costs_little(steps: Any, django_assert_num_queries: Any) -> None:
    """The workspace may be large: it is read at the end alone."""
    steps(*[lambda: None] * 3, lambda: Job.objects.update(state="COMPLETE"))
    job = Job.objects.create(name="one")
    with django_assert_num_queries(5 + 1 + 1) as queries:  # looks, the update, the whole row
        job.wait()
    assert sum("workspace" in query["sql"] for query in queries) == 1


@pytest.mark.django_db(transaction=True)
def test_waiting_for_another_process() -> None:
    """Without a clock of ours: the job ends over another connection, when this one has begun to wait."""
    job = Job.objects.create(name="one")
    waits = threading.Event()

    def end() -> None:
        try:
            assert waits.wait(30)
            drain()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end)
        assert job.wait(0.001) is None
        waits.set()
        assert job.wait(30) is job
        ending.result(30)
    assert job.state == "COMPLETE"


@pytest.mark.parametrize("timeout", ["x", "10", datetime.timedelta(1), []])
def test_how_long_to_wait_is_a_number(steps: Any, timeout: Any) -> None:
    job, clock = Job.objects.create(name="one"), steps()
    with pytest.raises(TypeError) as caught:
        job.wait(timeout=timeout)
    assert str(caught.value) == f"The timeout is {timeout!r}. Expected: seconds, or None."
    assert clock.pauses == []


@pytest.mark.parametrize("verb", ["wait", "fork", "explain"])
def test_a_job_that_is_not_saved(verb: str) -> None:
    job = Job(name="one")
    with pytest.raises(ValueError, match=r"that is saved, and one .* is not") as caught:
        getattr(job, verb)()
    assert str(caught.value).startswith(f"{verb}() is for a job")
    (saved,) = Job.objects.bulk_create([job])
    assert saved.fork().explain()
    assert saved.wait(timeout=0) is None
