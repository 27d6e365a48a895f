"""What django-db-queue documents, row by row: the tests are numbered as in the list of its features.

Where the behaviour differs on purpose, the test says so.
"""

import datetime
import logging
import os
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from django_dbq import engine
from django_dbq.models import DEFAULT_DELETE_JOBS_AFTER_HOURS, Attempt, Job
from django_dbq.storage import Queues
from django_dbq.tasks import get_next_task_name
from django_dbq.testing import drain
from django_dbq.workers.worker import Worker
from django_dbq.workspaces import InvalidWorkspace
from tests.jobs import Boom, ran

pytestmark = pytest.mark.django_db

HOUR = datetime.timedelta(hours=1)
TASKS = ["tests.jobs.one", "tests.jobs.two", "tests.jobs.three"]
HOOKS = {
    hook: f"tests.jobs.{hook}"
    for hook in ("creation_hook", "pre_task_hook", "post_task_hook", "failure_hook")
}


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "my_job": {"tasks": TASKS},
        "import_cats": ["tests.jobs.one", "tests.jobs.two"],
        "one": ["tests.jobs.one"],
        "hooked": {"tasks": ["tests.jobs.one", "tests.jobs.two"], **HOOKS},
        "fails": {"tasks": ["tests.jobs.one", "tests.jobs.fail", "tests.jobs.three"], **HOOKS},
        "mendable": ["tests.jobs.one", "tests.jobs.fail_until_mended", "tests.jobs.three"],
        "twice": ["tests.jobs.one", "tests.jobs.two", "tests.jobs.one", "tests.jobs.one"],
        "refused": {"tasks": ["tests.jobs.one"], "creation_hook": "tests.jobs.broken"},
        "pre fails": {
            "tasks": ["tests.jobs.one", "tests.jobs.two"],
            **HOOKS,
            "pre_task_hook": "tests.jobs.broken",
        },
        "post fails": {
            "tasks": ["tests.jobs.one", "tests.jobs.two"],
            "post_task_hook": "tests.jobs.broken",
            "failure_hook": "tests.jobs.failure_hook",
        },
    }


def order() -> list[str]:
    """The keys of the jobs, in the order in which their steps were run."""
    attempts = Attempt.objects.order_by("id").select_related("job")
    return [attempt.job.workspace["key"] for attempt in attempts]


def create(*keys: str, name: str = "one", **fields: Any) -> None:
    for key in keys:
        Job.objects.create(name=name, workspace={"key": key}, **fields)


# -- declaring --


def test_q4_a_task_takes_the_job_that_is_processed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr("tests.jobs.one", lambda *args: given.append(args))
    job = Job.objects.create(name="one", workspace={"a": 1})
    drain()
    ((argument,),) = given
    assert isinstance(argument, Job)
    assert (argument.pk, argument.name, argument.workspace) == (job.pk, "one", {"a": 1})


@pytest.mark.parametrize("name", ["my_job", "import_cats"])
def test_q5_jobs_are_declared_as_a_dict_or_as_a_list(name: str) -> None:
    job = Job.objects.create(name=name)
    expected = ["one", "two", "three"] if name == "my_job" else ["one", "two"]
    assert drain() == len(expected)
    assert ran(job) == expected


# -- hooks --


def test_q6_failure_hook_runs_in_the_worker_with_job_and_exception(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr("tests.jobs.failure_hook", lambda *args: given.append(args))
    job = Job.objects.create(name="fails")
    assert given == []
    drain()
    ((argument, error),) = given
    assert argument == job
    assert isinstance(error, Boom)
    assert str(error) == "it went wrong"


def test_q6_failure_hook_does_not_run_when_nothing_fails() -> None:
    job = Job.objects.create(name="hooked")
    drain()
    assert not any(line.startswith("failure hook") for line in ran(job))


def test_q7_creation_hook_runs_once_in_the_creating_process() -> None:
    job = Job.objects.create(name="hooked")
    assert ran(job) == ["creation hook"]
    assert job.workspace == {"ran": ["creation hook"]}
    job.save()
    drain()
    assert ran(job).count("creation hook") == 1


def test_q7_creation_hook_sees_and_changes_the_job_before_it_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hook(job: Job) -> None:
        assert not Job.objects.exists()
        assert (job.state, job.next_task, job.workspace) == ("NEW", "tests.jobs.one", {"a": 1})
        job.workspace["b"] = 2
        job.queue_name, job.priority, job.run_after = "other", 4, timezone.now() + HOUR

    monkeypatch.setattr("tests.jobs.creation_hook", hook)
    Job.objects.create(name="hooked", workspace={"a": 1})
    job = Job.objects.get()
    assert job.workspace == {"a": 1, "b": 2}
    assert (job.queue_name, job.priority, job.due) == ("other", 4, False)


def test_q7_creation_hook_that_raises_reaches_the_caller_and_no_row_is_saved() -> None:
    """django-db-queue logged it and returned as if the job had been created."""
    for create_it in (
        lambda: Job.objects.create(name="refused"),
        lambda: Job(name="refused").save(),
        lambda: Job.objects.bulk_create([Job(name="one"), Job(name="refused")]),
    ):
        with pytest.raises(Boom, match="the hook went wrong"):
            create_it()
    assert not Job.objects.exists()


def test_q8_and_q9_pre_and_post_hooks_run_round_each_task() -> None:
    job = Job.objects.create(name="hooked")
    drain()
    round_one = ["pre hook", "one", "post hook"]
    round_two = ["pre hook", "two", "post hook"]
    assert ran(job) == ["creation hook", *round_one, *round_two]


def test_q10_pre_hook_that_fails_fails_the_job_without_running_the_task() -> None:
    job = Job.objects.create(name="pre fails")
    assert drain() == 1
    job.refresh_from_db()
    assert job.state == Job.STATES.FAILED
    assert ran(job) == [
        "creation hook",
        "broken hook",
        "failure hook: the hook went wrong",
        "post hook",
    ]


def test_q11_post_hook_runs_after_failure_hook() -> None:
    job = Job.objects.create(name="fails")
    drain()
    assert ran(job)[-4:] == ["pre hook", "fail", "failure hook: it went wrong", "post hook"]


def test_q12_post_hook_that_fails_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = Job.objects.create(name="post fails")
    assert drain() == 2
    job.refresh_from_db()
    assert job.state == Job.STATES.COMPLETE
    assert ran(job) == ["one", "broken hook", "two", "broken hook"]
    assert caplog.text.count("post_task_hook failed") == 2


# -- creating --


def test_q13_a_job_is_created_by_its_name() -> None:
    job = Job.objects.create(name="my_job")
    assert Job.objects.get() == job
    assert Job(name="my_job").workspace == {}


def test_q13_creating_obeys_the_callers_transaction() -> None:
    def create_and_undo() -> None:
        with transaction.atomic():
            Job.objects.create(name="my_job")
            Job.objects.bulk_create([Job(name="my_job"), Job(name="one")])
            assert Job.objects.count() == 3
            raise Boom

    with pytest.raises(Boom):
        create_and_undo()
    assert not Job.objects.exists()
    with transaction.atomic():
        Job.objects.create(name="one")
    assert drain() == 1


def test_q14_highest_priority_first_then_oldest_created() -> None:
    create("a", "b")
    create("low", priority=-1)
    create("lowest", priority=-32768)
    create("high 1", priority=2)
    create("highest", priority=32767)
    create("high 2", priority=2)
    create("c", priority=0)
    Job.objects.filter(workspace__key="b").update(created=timezone.now() - HOUR)
    assert drain() == 8
    assert order() == ["highest", "high 1", "high 2", "b", "a", "c", "low", "lowest"]


def test_q14_what_becomes_urgent_meanwhile_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def urge(job: Job) -> None:
        if job.workspace["key"] == "a":
            create("urgent", priority=1)
            create("later", priority=-1)

    monkeypatch.setattr("tests.jobs.one", urge)
    create("a", "b", "c")
    assert drain() == 5
    assert order() == ["a", "urgent", "b", "c", "later"]


def test_q14_a_job_keeps_its_place_from_step_to_step() -> None:
    create("old", name="my_job")
    create("new", name="my_job")
    drain()
    assert order() == ["old"] * 3 + ["new"] * 3


def test_q15_run_after_holds_a_job_back_until_then() -> None:
    create("later", run_after=timezone.now() + HOUR)
    create("now")
    create("long ago", run_after=timezone.now() - HOUR)
    assert drain() == 2
    assert order() == ["now", "long ago"]
    when = timezone.now() + 2 * HOUR
    Worker(Queues(), until_done=True, clock=lambda: when).run()
    assert order() == ["now", "long ago", "later"]


def test_q15_a_time_that_passed_without_a_worker_is_made_up_for() -> None:
    """Nobody told the row that its time has come: it was written as a future one."""
    create("a", run_after=timezone.now() + HOUR)
    Job.objects.update(run_after=timezone.now() - HOUR, due=False)
    assert drain() == 1


def test_q15_run_after_shares_the_queue_with_the_others() -> None:
    create("past", run_after=timezone.now() - HOUR)
    create("urgent", priority=1)
    Job.objects.update(due=True)
    drain()
    assert order() == ["urgent", "past"]


# -- the workspace --


def test_q16_workspace_is_empty_without_a_value() -> None:
    for job in (
        Job.objects.create(name="one"),
        Job.objects.create(name="one", workspace=None),
        *Job.objects.bulk_create([Job(name="one"), Job(name="one", workspace=None)]),
    ):
        assert Job.objects.get(pk=job.pk).workspace == {}
    assert Job(name="one").workspace is not Job(name="one").workspace


def test_q16_what_one_task_writes_the_next_one_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(job: Job) -> None:
        job.workspace["sum"] = job.workspace["a"] + job.workspace["b"]
        del job.workspace["a"]

    def second(job: Job) -> None:
        job.workspace = {"product": job.workspace["sum"] * job.workspace["b"]}

    monkeypatch.setattr("tests.jobs.one", first)
    monkeypatch.setattr("tests.jobs.two", second)
    job = Job.objects.create(name="import_cats", workspace={"a": 1, "b": 2})
    drain()
    job.refresh_from_db()
    assert job.workspace == {"product": 6}


def test_q16_a_workspace_that_is_no_json_is_refused_at_creation() -> None:
    with pytest.raises(InvalidWorkspace, match=r"workspace\['when'\] is of type datetime"):
        Job.objects.create(name="one", workspace={"when": timezone.now()})
    assert not Job.objects.exists()


def test_q17_jobs_are_found_by_their_workspace() -> None:
    job = Job.objects.create(name="one", workspace={"user_id": 5, "cat": {"name": "Momo"}})
    Job.objects.create(name="one", workspace={"user_id": 6})
    Job.objects.create(name="one")
    assert Job.objects.get(workspace__user_id=5) == job
    assert Job.objects.get(workspace__cat__name="Momo") == job
    assert Job.objects.filter(workspace__user_id__gt=4).count() == 2
    assert Job.objects.filter(workspace__has_key="user_id").count() == 2
    assert Job.objects.filter(workspace__user_id__isnull=True).count() == 1
    drain()
    assert Job.objects.get(workspace__user_id=5, workspace__ran=["one"]) == job


# -- workers and states --


def test_q19_a_worker_calls_the_tasks_in_sequence() -> None:
    job = Job.objects.create(name="my_job")
    for expected in (["one"], ["one", "two"], ["one", "two", "three"]):
        call_command("worker", once=True)
        assert ran(job) == expected


def test_q20_to_q24_the_states_of_a_job_that_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def stored() -> tuple[str, str]:
        job = Job.objects.get()
        return job.state, job.next_task

    seen = []
    monkeypatch.setattr("tests.jobs.one", lambda job: seen.append(stored()))
    job = Job.objects.create(name="import_cats")
    assert stored() == (Job.STATES.NEW, "tests.jobs.one")
    call_command("worker", max_jobs=1)
    assert stored() == (Job.STATES.READY, "tests.jobs.two")
    assert Job.objects.get().finished is None
    call_command("worker", max_jobs=1)
    assert stored() == (Job.STATES.COMPLETE, "")
    assert seen == [(Job.STATES.PROCESSING, "tests.jobs.one")]
    job.refresh_from_db()
    assert job.finished is not None
    assert job.finished == job.attempts.last().finished


def test_q23_a_job_that_is_stopping_goes_on_to_its_next_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state is written while the task runs, by the signal; see the tests with real processes."""
    monkeypatch.setattr("tests.jobs.one", lambda job: Job.objects.update(state="STOPPING"))
    Job.objects.create(name="import_cats")
    call_command("worker", max_jobs=1)
    assert Job.objects.get().state == Job.STATES.READY


@pytest.mark.parametrize("state", ["PROCESSING", "STOPPING", "COMPLETE", "FAILED", "PAUSED"])
def test_q20_to_q25_jobs_in_other_states_are_not_run(state: str) -> None:
    Job.objects.create(name="one")
    Job.objects.update(state=state)
    assert drain() == 0
    assert Job.objects.get().state == state


def test_q24_completed_is_an_alias_of_complete() -> None:
    """Its documentation says both."""
    Job.objects.create(name="one")
    drain()
    assert Job.STATES.COMPLETED == Job.STATES.COMPLETE == "COMPLETE"
    assert Job.objects.filter(state=Job.STATES.COMPLETED).count() == 1


def test_q25_a_failed_job_keeps_naming_the_task_that_failed() -> None:
    job = Job.objects.create(name="fails")
    assert drain() == 2
    job.refresh_from_db()
    assert (job.state, job.next_task, job.step) == ("FAILED", "tests.jobs.fail", 1)
    assert job.finished is not None
    failed = job.attempts.last()
    assert (failed.outcome, failed.task) == ("failed", "tests.jobs.fail")
    assert failed.error.startswith("Traceback (most recent call last):")
    assert failed.error.endswith("Boom: it went wrong\n")
    assert drain() == 0


def test_q25_one_failing_job_stops_no_other() -> None:
    for name in ("fails", "one", "fails", "my_job"):
        Job.objects.create(name=name)
    assert drain() == 2 + 1 + 2 + 3
    assert Job.objects.filter(state="COMPLETE").count() == 2


# -- resetting jobs by plain updates, which is what people do --


def test_resetting_a_failed_job_runs_the_failed_step_again() -> None:
    job = Job.objects.create(name="mendable")
    assert drain() == 2
    Job.objects.filter(pk=job.pk).update(
        state="READY", workspace={"ran": ["one", "not mended"], "mended": True}
    )
    job.refresh_from_db()
    assert job.next_task == "tests.jobs.fail_until_mended"
    assert drain() == 2
    job.refresh_from_db()
    assert job.state == "COMPLETE"
    assert ran(job) == ["one", "not mended", "mended", "three"]
    assert [(a.number, a.step, a.outcome) for a in job.attempts.all()] == [
        (1, 0, "succeeded"),
        (2, 1, "failed"),
        (3, 1, "succeeded"),
        (4, 2, "succeeded"),
    ]


@pytest.mark.parametrize("state", ["READY", "NEW"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_resetting_to_any_step_goes_on_from_there(state: str, place: int) -> None:
    job = Job.objects.create(name="my_job")
    drain()
    Job.objects.filter(pk=job.pk).update(state=state, next_task=TASKS[place], workspace={})
    assert drain() == 3 - place
    assert ran(job) == ["one", "two", "three"][place:]
    job.refresh_from_db()
    assert (job.state, job.next_task) == ("COMPLETE", "")


def test_resetting_a_job_that_was_left_processing_by_a_killed_worker() -> None:
    job = Job.objects.create(name="my_job")
    Job.objects.update(state="PROCESSING", worker_id=2**40, attempt=1)
    assert drain() == 0
    Job.objects.filter(state="PROCESSING").update(state="READY")
    assert drain() == 3
    assert ran(job) == ["one", "two", "three"]


def test_resetting_a_job_by_saving_it() -> None:
    job = Job.objects.create(name="mendable")
    drain()
    job.refresh_from_db()
    job.state, job.workspace["mended"] = Job.STATES.READY, True
    job.save()
    assert drain() == 2
    job.refresh_from_db()
    assert job.state == "COMPLETE"


def test_resetting_while_it_runs_drops_the_outcome_and_runs_it_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job.objects.create(name="one")
    calls = []

    def reset_at_first(running: Job) -> None:
        calls.append(running.attempt)
        if len(calls) == 1:
            Job.objects.filter(pk=job.pk).update(state="READY")

    monkeypatch.setattr("tests.jobs.one", reset_at_first)
    assert drain() == 2
    job.refresh_from_db()
    assert (job.state, calls) == ("COMPLETE", [1, 2])
    assert [attempt.number for attempt in job.attempts.all()] == [2]
    assert caplog.text.count("Outcome dropped") == 1


def test_a_path_that_stands_twice_runs_twice() -> None:
    """With django-db-queue such a job never ended."""
    job = Job.objects.create(name="twice")
    call_command("worker", max_jobs=10, until_done=True)
    assert ran(job) == ["one", "two", "one", "one"]
    assert [attempt.step for attempt in job.attempts.all()] == [0, 1, 2, 3]
    job.refresh_from_db()
    assert job.state == "COMPLETE"


# -- rows that the settings do not know --


def test_rows_with_an_unknown_name_or_step_stay_and_stop_nobody(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    strange = [Job.objects.create(name="my_job", priority=9) for _ in range(3)]
    moved = Job.objects.create(name="one", priority=9)
    Job.objects.filter(pk=moved.pk).update(state="READY", next_task="old.path.of_it")
    settings.JOBS = {"one": ["tests.jobs.one"]}
    create("known")
    rows = Job.objects.exclude(workspace__key="known").order_by("created")
    before = list(rows.values())

    assert engine.stranded(Queues(), timezone.now(), "default") == {
        ("my_job", "tests.jobs.one"): 3,
        ("one", "old.path.of_it"): 1,
    }

    worker = Worker(Queues(), until_done=True)
    worker.run()
    assert worker.done == 1
    assert order() == ["known"]
    assert list(rows.values()) == before

    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 2
    (names,) = [text for text in told if "name=my_job" in text]
    assert "count=3" in names
    assert "next_task=tests.jobs.one" in names
    assert "restore the entry" in names
    (steps,) = [text for text in told if "name=one" in text]
    assert "count=1" in steps
    assert "next_task=old.path.of_it" in steps
    assert "set next_task to one of its tasks" in steps

    settings.JOBS = {"my_job": TASKS, "one": ["tests.jobs.one"]}
    assert drain() == 9  # an entry that has come back finds its jobs where they were
    assert {job.pk for job in strange} == set(
        Job.objects.filter(state="COMPLETE", name="my_job").values_list("pk", flat=True)
    )


def test_rows_with_an_unknown_name_are_told_of_once(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Job.objects.create(name="my_job")
    settings.JOBS = {"one": ["tests.jobs.one"]}
    worker = Worker(Queues())
    now = timezone.now()
    for minutes in range(4):
        worker.step(now + datetime.timedelta(minutes=2 * minutes))
        worker.step(now + datetime.timedelta(minutes=2 * minutes, seconds=1))
    assert caplog.text.count("Stranded jobs") == 1
    Job.objects.update(next_task="another")
    worker.step(now + datetime.timedelta(minutes=10))
    assert caplog.text.count("Stranded jobs") == 2
    worker.wakeup.close()


# -- depths, old jobs, commands --


def output(command: str, *args: str, **options: Any) -> str:
    out = StringIO()
    call_command(command, *args, stdout=out, **options)
    return out.getvalue()


@pytest.fixture
def a_few_jobs() -> None:
    create("a", "b")
    create("next step", name="my_job")
    Job.objects.filter(name="my_job").update(state="READY")
    create("later", run_after=timezone.now() + HOUR)
    create("elsewhere", queue_name="other_queue")
    for state in ("PROCESSING", "STOPPING", "COMPLETE", "FAILED"):
        create(state, queue_name="done")
        Job.objects.filter(workspace__key=state).update(state=state)


@pytest.mark.usefixtures("a_few_jobs")
def test_q26_queue_depths_count_new_and_ready_and_leave_empty_queues_out() -> None:
    assert Job.get_queue_depths() == {"default": 4, "other_queue": 1}
    assert Job.get_queue_depths(exclude_future_jobs=True) == {"default": 3, "other_queue": 1}
    Job.objects.all().delete()
    assert Job.get_queue_depths() == {}


@pytest.mark.parametrize("state", Job.STATES.values)
def test_q27_old_jobs_that_have_ended_are_deleted(state: str) -> None:
    create("old", "young", "just young")
    Job.objects.update(state=state)
    Job.objects.filter(workspace__key="old").update(created=timezone.now() - 24.1 * HOUR)
    Job.objects.filter(workspace__key="just young").update(created=timezone.now() - 23.9 * HOUR)
    deleted = state in ("COMPLETE", "FAILED", "STOPPING", "CANCELLED")
    assert output("delete_old_jobs").startswith("Deleted old jobs")
    assert Job.objects.count() == (2 if deleted else 3)
    output("delete_old_jobs", "--hours", "23")
    assert Job.objects.count() == (1 if deleted else 3)
    assert Job.objects.filter(workspace__key="young").exists()


def test_q27_age_counts_from_creation_not_from_the_end() -> None:
    create("a")
    Job.objects.update(created=timezone.now() - 25 * HOUR)
    drain()
    assert Job.objects.get().finished > timezone.now() - HOUR
    assert DEFAULT_DELETE_JOBS_AFTER_HOURS == 24
    assert Job.objects.delete_old() == 1


@pytest.mark.parametrize("hours", [1, 0.5, 0])
def test_q27_the_age_can_be_given(hours: float) -> None:
    create("old", "young")
    Job.objects.update(state="COMPLETE")
    Job.objects.filter(workspace__key="old").update(
        created=timezone.now() - hours * HOUR - datetime.timedelta(seconds=1)
    )
    Job.objects.filter(workspace__key="young").update(
        created=timezone.now() - hours * HOUR + datetime.timedelta(minutes=1)
    )
    assert Job.objects.delete_old(hours=hours) == 1
    assert Job.objects.get().workspace["key"] == "young"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], 'Starting job worker for queue "default"'),
        (["other"], 'Starting job worker for queue "other"'),
        (
            ["--rate_limit"],
            'Starting job worker for queue "default" with rate limit of one job per 1 second(s)',
        ),
        (
            ["other", "--rate_limit", "5"],
            'Starting job worker for queue "other" with rate limit of one job per 5 second(s)',
        ),
    ],
)
def test_q28_worker_takes_a_queue_and_a_rate_limit(arguments: list[str], line: str) -> None:
    """Without the flag there is no limit; django-db-queue then had one job per second."""
    assert output("worker", *arguments, "--dry-run") == line + "\n"


def test_q28_worker_serves_the_default_queue_or_the_one_it_is_given() -> None:
    create("here")
    create("there", queue_name="other")
    call_command("worker", "other", until_done=True)
    assert order() == ["there"]
    call_command("worker", until_done=True)
    assert order() == ["there", "here"]


@pytest.mark.usefixtures("a_few_jobs")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "event=queue_depths default=4"),
        (["default", "other_queue"], "event=queue_depths default=4 other_queue=1"),
        (["other_queue", "default"], "event=queue_depths other_queue=1 default=4"),
        (["nobody_knows_it"], "event=queue_depths nobody_knows_it=0"),
        (["done"], "event=queue_depths done=0"),
        (["default", "--exclude_future_jobs"], "event=queue_depths default=3"),
        (["default", "--exclude_future_jobs", "True"], "event=queue_depths default=3"),
    ],
)
def test_q29_queue_depth_prints_a_line(arguments: list[str], line: str) -> None:
    assert output("queue_depth", *arguments) == line + "\n"


# -- what was a gotcha there --


def test_q30_get_next_task_name() -> None:
    first, second, third = TASKS
    assert get_next_task_name("my_job") == first
    assert get_next_task_name("my_job", first) == second
    assert get_next_task_name("my_job", current_task=second) == third
    assert get_next_task_name("my_job", third) is None
    assert get_next_task_name("import_cats") == first  # the short form
    with pytest.raises(KeyError, match="did you mean 'my_job'"):
        get_next_task_name("my_jobs")
    with pytest.raises(ValueError, match=r"'my_job' has no task 'tests\.jobs\.nine'"):
        get_next_task_name("my_job", "tests.jobs.nine")


def test_q30_bulk_create_is_a_full_creation() -> None:
    """There, it set no next task and called no creation hook."""
    Job.objects.bulk_create([Job(name="hooked") for _ in range(3)])
    for job in Job.objects.all():
        assert (job.state, job.next_task) == ("NEW", "tests.jobs.one")
        assert ran(job) == ["creation hook"]
    assert drain() == 6


def test_q30_bulk_create_as_its_documentation_told_to_use_it() -> None:
    """With the next task set by hand."""
    first = get_next_task_name("my_job")
    assert first is not None
    Job.objects.bulk_create([Job(name="my_job", next_task=first) for _ in range(2)])
    assert drain() == 6
    assert Job.objects.filter(state="COMPLETE").count() == 2


def test_q30_bulk_create_keeps_the_order_and_saves_all_or_none() -> None:
    Job.objects.bulk_create(Job(name="one", workspace={"key": str(n)}) for n in range(10))
    drain()
    assert order() == [str(n) for n in range(10)]
    with pytest.raises(Boom):
        Job.objects.bulk_create([Job(name="one"), Job(name="refused"), Job(name="one")])
    assert Job.objects.count() == 10


# -- methods that its own code and its users call --


def test_get_ready_or_none_and_to_process() -> None:
    with transaction.atomic():
        assert Job.objects.get_ready_or_none("default") is None
        create("later", run_after=timezone.now() + HOUR)
        create("elsewhere", queue_name="other")
        assert Job.objects.get_ready_or_none("default") is None
        create("low", priority=-1)
        create("normal")
        create("high", priority=1)
        waiting = Job.objects.to_process("default")
        assert [job.workspace["key"] for job in waiting] == ["high", "normal", "low"]
        first = Job.objects.get_ready_or_none("default", max_retries=1)
        assert first is not None
        assert first.workspace["key"] == "high"
        assert waiting.filter(priority=0).get().workspace["key"] == "normal"


def test_the_job_row_tells_when_it_changed() -> None:
    job = Job.objects.create(name="my_job")
    first = job.modified
    call_command("worker", max_jobs=1)
    job.refresh_from_db()
    assert job.modified > first
    assert job.created <= first


def test_the_creating_process_is_where_creation_hooks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    monkeypatch.setattr("tests.jobs.creation_hook", lambda job: places.append(os.getpid()))
    Job.objects.create(name="hooked")
    assert places == [os.getpid()]
    assert not Attempt.objects.exists()
