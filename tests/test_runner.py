"""One step of one job: hooks and their order, what fails what, what is saved of the workspace, what is reported."""

import asyncio
import datetime
import json
import logging
import math
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now

from django_dbq import runner, workspaces
from django_dbq.models import Job
from django_dbq.pipelines import Step, UnknownJob
from django_dbq.storage import Execution
from django_dbq.testing import drain
from django_dbq.workspaces import InvalidWorkspace
from tests.jobs import Boom, ran

WEST = datetime.timezone(datetime.timedelta(hours=-12))
EAST = datetime.timezone(datetime.timedelta(hours=14))
START = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)


def claimed(settings: Any, *tasks: str, at: int = 0, **options: str) -> Job:
    """A job as a claim would hand it over, of these tasks and hooks (names in tests.jobs); no row."""
    paths = [f"tests.jobs.{task}" for task in tasks]
    hooks = {option: f"tests.jobs.{hook}" for option, hook in options.items()}
    settings.JOBS = {"feed": {"tasks": paths, **hooks}}
    job = Job(name="feed", state="PROCESSING", next_task=paths[at], step=at, attempt=1)
    job.stored_workspace, job.claimed_at = "{}", job.place
    return job


def run(job: Job) -> Execution:
    return runner.run(job, lambda: START)


# -- hooks: their order, and what fails what --

ALL = {
    option: option
    for option in ("pre_task_hook", "post_task_hook", "failure_hook", "completion_hook")
}


@pytest.mark.parametrize(
    ("tasks", "options", "journal", "state"),
    [
        (["one", "two"], {}, ["one"], "READY"),
        (["one", "two"], ALL, ["pre hook", "one", "post hook"], "READY"),
        (["one"], ALL, ["pre hook", "one", "completion hook", "post hook"], "COMPLETE"),
        (["fail"], {}, ["fail"], "FAILED"),
        (
            ["fail", "two"],
            ALL,
            ["pre hook", "fail", "failure hook: it went wrong", "post hook"],
            "FAILED",
        ),
        (
            ["one"],
            {**ALL, "pre_task_hook": "broken"},
            ["broken hook", "failure hook: the hook went wrong", "post hook"],
            "FAILED",
        ),
        (["one"], {"post_task_hook": "broken"}, ["one", "broken hook"], "COMPLETE"),
        (
            ["one", "two"],
            {**ALL, "post_task_hook": "broken"},
            ["pre hook", "one", "broken hook"],
            "READY",
        ),
        (
            ["fail"],
            {**ALL, "failure_hook": "broken"},
            ["pre hook", "fail", "broken hook", "post hook"],
            "FAILED",
        ),
        (
            ["one"],
            {**ALL, "completion_hook": "broken"},
            ["pre hook", "one", "broken hook", "post hook"],
            "COMPLETE",
        ),
    ],
    ids=[
        "no hooks",
        "a step",
        "the last step",
        "failing, no hooks",
        "failing",
        "pre hook fails: the task is not run",
        "post hook fails: nothing changes",
        "post hook fails: the failure hook is not run",
        "failure hook fails: the post hook is run",
        "completion hook fails: the post hook is run",
    ],
)
def test_hooks(
    settings: Any, tasks: list[str], options: dict[str, str], journal: list[str], state: str
) -> None:
    job = claimed(settings, *tasks, **options)
    execution = run(job)
    assert job.workspace["ran"] == journal
    assert job.state == execution.decision.state == state
    assert (execution.error is None) == (state != "FAILED")
    assert execution.outcome == ("failed" if state == "FAILED" else "succeeded")


@pytest.mark.parametrize("kind", ["post_task_hook", "failure_hook", "completion_hook"])
def test_a_hook_that_fails_is_logged_with_its_traceback(
    settings: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    job = claimed(settings, "fail" if kind == "failure_hook" else "one", **{kind: "broken"})
    run(job)
    (record,) = [r for r in caplog.records if r.getMessage().startswith(kind)]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"{kind} failed: job={job.pk} name=feed hook=tests.jobs.broken"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Boom)


def test_a_task_that_fails_is_logged_with_its_traceback(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = claimed(settings, "fail")
    run(job)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"job={job.pk} name=feed task=tests.jobs.fail attempt=1" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Boom)


@pytest.mark.parametrize(
    ("tasks", "seen"),
    [
        (
            ["one", "two"],
            {
                "pre_task_hook": ("PROCESSING", "tests.jobs.one"),
                "post_task_hook": ("READY", "tests.jobs.two"),
            },
        ),
        (
            ["one"],
            {
                "pre_task_hook": ("PROCESSING", "tests.jobs.one"),
                "completion_hook": ("COMPLETE", ""),
                "post_task_hook": ("COMPLETE", ""),
            },
        ),
        (
            ["fail"],
            {
                "pre_task_hook": ("PROCESSING", "tests.jobs.fail"),
                "failure_hook": ("FAILED", "tests.jobs.fail"),
                "post_task_hook": ("FAILED", "tests.jobs.fail"),
            },
        ),
    ],
    ids=["a step", "the last step", "failing"],
)
def test_hooks_see_where_the_job_is_going(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tasks: list[str], seen: dict[str, Any]
) -> None:
    told = {}
    for kind in ALL:

        def tell(job: Job, *error: Any, kind: str = kind) -> None:
            told[kind] = (job.state, job.next_task)

        monkeypatch.setattr(f"tests.jobs.{kind}", tell)
    run(claimed(settings, *tasks, **ALL))
    assert told == seen
    assert list(told) == list(seen)


def test_the_failure_hook_is_given_the_exception_itself(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr("tests.jobs.failure_hook", lambda job, exc: given.append(exc))
    execution = run(claimed(settings, "fail", failure_hook="failure_hook"))
    assert given == [execution.error]
    assert isinstance(execution.error, Boom)
    assert execution.error.__traceback__ is not None


class Unusual(BaseException):
    """Not an Exception, and no wish to end the process either."""


def raising(error: BaseException) -> Any:
    def task(job: Job, *more: Any) -> None:
        job.workspace["got this far"] = True
        raise error

    return task


@pytest.mark.parametrize(
    "error",
    [SystemExit(0), SystemExit("no"), asyncio.CancelledError(), GeneratorExit(), Unusual()],
    ids=repr,
)
@pytest.mark.parametrize("where", ["one", "pre_task_hook"])
def test_whatever_a_task_raises_fails_its_job_and_not_the_worker(
    settings: Any, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    monkeypatch.setattr(f"tests.jobs.{where}", raising(error))
    execution = run(claimed(settings, "one", pre_task_hook="pre_task_hook"))
    assert execution.error is error
    assert execution.decision.state == "FAILED"


@pytest.mark.parametrize(
    "error", [SystemExit(0), asyncio.CancelledError(), GeneratorExit(), Unusual()], ids=repr
)
@pytest.mark.parametrize("kind", ["post_task_hook", "failure_hook", "completion_hook"])
def test_whatever_a_later_hook_raises_changes_nothing(
    settings: Any, monkeypatch: pytest.MonkeyPatch, kind: str, error: BaseException
) -> None:
    monkeypatch.setattr(f"tests.jobs.{kind}", raising(error))
    task = "fail" if kind == "failure_hook" else "one"
    execution = run(claimed(settings, task, **{kind: kind}))
    assert execution.decision.state == ("FAILED" if task == "fail" else "COMPLETE")
    assert execution.error is not error


@pytest.mark.parametrize("where", ["one", "pre_task_hook", "post_task_hook", "completion_hook"])
def test_control_c_still_reaches_the_worker(
    settings: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(f"tests.jobs.{where}", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(claimed(settings, "one", **ALL))


@pytest.mark.parametrize(
    ("options", "state", "journal"),
    [
        ({"tasks": ["no.such.task"]}, "FAILED", ["pre hook"]),
        ({"pre_task_hook": "no.such.hook"}, "FAILED", []),
        ({"post_task_hook": "no.such.hook"}, "COMPLETE", ["pre hook", "one"]),
        ({"completion_hook": "no.such.hook"}, "COMPLETE", ["pre hook", "one"]),
    ],
)
def test_a_path_that_does_not_import_counts_as_what_stands_there(
    settings: Any, options: Any, state: str, journal: list[str]
) -> None:
    entry = {"tasks": ["tests.jobs.one"], "pre_task_hook": "tests.jobs.pre_task_hook", **options}
    settings.JOBS = {"feed": entry}
    job = Job(name="feed", state="PROCESSING", next_task=entry["tasks"][0], attempt=1)
    execution = run(job)
    assert execution.decision.state == state
    assert job.workspace.get("ran", []) == journal
    assert isinstance(execution.error, ImportError) == (state == "FAILED")


# -- which step --


def test_the_place_tells_two_equal_paths_apart(settings: Any) -> None:
    first = claimed(settings, "one", "two", "one")
    assert run(first).decision.next_step == Step(1, "tests.jobs.two", "two")
    last = claimed(settings, "one", "two", "one", at=2)
    execution = run(last)
    assert execution.step == Step(2, "tests.jobs.one", "one")
    assert execution.decision.next_step is None


def test_a_step_that_has_moved_is_found_by_its_path(settings: Any) -> None:
    job = claimed(settings, "one", "two", at=1)
    settings.JOBS = {"feed": ["tests.jobs.three", "tests.jobs.one", "tests.jobs.two"]}
    execution = run(job)
    assert execution.step == Step(2, "tests.jobs.two", "two")
    assert execution.decision.state == "COMPLETE"


def test_a_job_or_a_step_that_the_settings_do_not_know_is_not_run(settings: Any) -> None:
    job = claimed(settings, "one", "two", at=1)
    settings.JOBS = {"feed": ["tests.jobs.one"]}
    with pytest.raises(LookupError, match=r"'feed' has no task 'tests\.jobs\.two'"):
        run(job)
    settings.JOBS = {}
    with pytest.raises(UnknownJob):
        run(job)
    assert job.workspace == {}


def test_times_come_from_the_clock_before_and_after(settings: Any) -> None:
    times = iter([START, START + datetime.timedelta(seconds=2)])
    execution = runner.run(claimed(settings, "one"), lambda: next(times))
    assert (execution.started, execution.finished) == (
        START,
        START + datetime.timedelta(seconds=2),
    )
    assert execution.attempt == 1


# -- the workspace --


def test_an_unchanged_workspace_is_not_written(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.jobs.one", lambda job: None)
    assert run(claimed(settings, "one", "two")).workspace is None


@pytest.mark.parametrize("kind", ["one", *ALL])
def test_what_the_task_and_its_hooks_leave_in_the_workspace_is_written(
    settings: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def leave(job: Job, *exc: Any) -> None:
        job.workspace["left by"] = kind

    monkeypatch.setattr(f"tests.jobs.{kind}", leave)
    task = "fail" if kind == "failure_hook" else "one"
    workspace = run(claimed(settings, task, **ALL)).workspace
    assert workspace is not None
    assert json.loads(workspace)["left by"] == kind


def test_what_a_failing_task_leaves_in_the_workspace_is_written(settings: Any) -> None:
    execution = run(claimed(settings, "fail"))
    assert execution.workspace == '{"ran": ["fail"]}'


INVALID = {
    "datetime": START,
    "NaN": float("nan"),
    "NUL": "a\0b",
    "surrogate": "\ud800",
    "set": {1},
    "key": {(1, 2): 3},
}


@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
def test_a_workspace_that_is_not_json_fails_the_attempt_and_is_not_written(
    settings: Any, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.setattr("tests.jobs.one", lambda job: job.workspace.update(left=value, more=1))
    job = claimed(settings, "one", failure_hook="failure_hook")
    execution = run(job)
    assert isinstance(execution.error, InvalidWorkspace)
    assert execution.decision.state == "FAILED"
    assert execution.workspace is None
    assert job.workspace == {}
    assert "workspace['left']" in execution.report


@pytest.mark.parametrize("kind", ["post_task_hook", "completion_hook"])
@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
def test_a_later_hook_that_spoils_the_workspace_does_not_lose_what_the_task_did(
    settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, kind: str, value: Any
) -> None:
    """The step counts as done, so the next one must find its results."""
    monkeypatch.setattr(f"tests.jobs.{kind}", lambda job: job.workspace.update(left=value))
    job = claimed(settings, "one", **{kind: kind})
    execution = run(job)
    assert execution.decision.state == "COMPLETE"
    assert execution.workspace == '{"ran": ["one"]}'
    assert job.workspace == {"ran": ["one"]}
    assert "Workspace not saved" in caplog.text


def test_a_failure_hook_that_spoils_the_workspace_changes_nothing_else(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.jobs.failure_hook", lambda job, exc: job.workspace.update(left={1}))
    job = claimed(settings, "fail", failure_hook="failure_hook")
    execution = run(job)
    assert isinstance(execution.error, Boom)
    assert execution.workspace is None
    assert job.workspace == {}


# -- reports --


def failure(error: BaseException) -> BaseException:
    """The error as it is after it was raised and caught."""
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_report_is_the_traceback() -> None:
    text = runner.report(failure(ValueError("no such cat")))
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("ValueError: no such cat\n")
    assert "test_runner.py" in text


def test_a_report_holds_the_cause() -> None:
    try:
        try:
            {}["cat"]
        except KeyError as cause:
            raise ValueError("no such cat") from cause
    except ValueError as error:
        text = runner.report(error)
    assert "KeyError: 'cat'" in text
    assert "direct cause" in text


def test_a_report_is_cut_at_its_front() -> None:
    text = runner.report(failure(ValueError("x" * 50_000 + " the end")))
    assert len(text) == runner.REPORT_LENGTH + 1
    assert text.startswith("…x")
    assert text.endswith(" the end\n")


def test_a_report_holds_only_what_every_database_stores() -> None:
    text = runner.report(failure(ValueError("a\0b \ud800 ü 😀")))
    assert "a\\0b \\ud800 ü 😀" in text
    assert "\0" not in text
    text.encode()


def test_an_exception_that_cannot_even_be_shown_is_reported() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    assert "Mute" in runner.report(failure(Mute()))


def test_endless_recursion_is_reported(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(job: Job) -> None:
        again(job)

    monkeypatch.setattr("tests.jobs.one", again)
    execution = run(claimed(settings, "one"))
    assert isinstance(execution.error, RecursionError)
    assert 0 < len(execution.report) <= runner.REPORT_LENGTH + 1


# -- with the database: one job's trouble is its own --


@pytest.fixture
def jobs(settings: Any, db: None) -> None:
    settings.JOBS = {
        "odd": {
            "tasks": ["tests.jobs.one", "tests.jobs.two"],
            "post_task_hook": "tests.jobs.post_task_hook",
            "failure_hook": "tests.jobs.failure_hook",
        },
        "fine": ["tests.jobs.one", "tests.jobs.two"],
        "three": ["tests.jobs.three"],
    }


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("value", INVALID.values(), ids=INVALID)
def test_a_workspace_that_is_not_json_leaves_the_stored_one(
    monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.setattr("tests.jobs.two", lambda job: job.workspace.update(left=value))
    odd, three = Job.objects.create(name="odd"), Job.objects.create(name="three")
    assert drain() == 3
    odd.refresh_from_db()
    assert (odd.state, odd.next_task, odd.step) == ("FAILED", "tests.jobs.two", 1)
    assert odd.workspace == {"ran": ["one", "post hook"]}
    assert [attempt.outcome for attempt in odd.attempts.all()] == ["succeeded", "failed"]
    assert "InvalidWorkspace: workspace['left']" in odd.attempts.last().error
    assert ran(three) == ["three"]


@pytest.mark.usefixtures("jobs")
def test_a_workspace_set_to_none_is_an_empty_one_for_the_next_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.jobs.one", lambda job: setattr(job, "workspace", None))
    job = Job.objects.create(name="fine", workspace={"a": 1})
    assert drain() == 2
    job.refresh_from_db()
    assert (job.state, job.workspace) == ("COMPLETE", {"ran": ["two"]})


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("where", ["one", "post_task_hook"])
def test_a_task_or_a_hook_may_save_its_job(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """As with django-db-queue, where it was superfluous and harmless."""

    def save(job: Job) -> None:
        job.workspace["saved by"] = where
        job.save()

    monkeypatch.setattr(f"tests.jobs.{where}", save)
    job = Job.objects.create(name="odd")
    assert drain() == 2
    job.refresh_from_db()
    assert (job.state, job.next_task, job.workspace["saved by"]) == ("COMPLETE", "", where)
    assert job.finished is not None
    assert [(a.number, a.step, a.outcome) for a in job.attempts.all()] == [
        (1, 0, "succeeded"),
        (2, 1, "succeeded"),
    ]


@pytest.mark.usefixtures("jobs")
def test_a_failure_hook_may_save_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(job: Job, exc: Exception) -> None:
        job.workspace["why"] = str(exc)
        job.save()

    monkeypatch.setattr("tests.jobs.failure_hook", save)
    monkeypatch.setattr("tests.jobs.two", raising(Boom("no")))
    job = Job.objects.create(name="odd")
    assert drain() == 2
    job.refresh_from_db()
    assert (job.state, job.next_task, job.step) == ("FAILED", "tests.jobs.two", 1)
    assert job.workspace["why"] == "no"
    assert job.finished is not None
    assert [attempt.outcome for attempt in job.attempts.all()] == ["succeeded", "failed"]


def stop_after(calls: int) -> Any:
    """A task that fails when it is called too often, so that an endless loop ends."""
    made: list[Job] = []

    def task(job: Job) -> None:
        made.append(job)
        if len(made) > calls:
            raise Boom("called too often")

    return task


@pytest.mark.usefixtures("jobs")
def test_a_hook_that_saves_its_job_does_not_run_a_repeated_path_for_ever(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.jobs.post_task_hook", lambda job: job.save())
    settings.JOBS = {
        "odd": {
            "tasks": ["tests.jobs.one", "tests.jobs.one"],
            "post_task_hook": "tests.jobs.post_task_hook",
        }
    }
    job = Job.objects.create(name="odd")
    monkeypatch.setattr("tests.jobs.one", stop_after(5))
    assert drain() == 2
    job.refresh_from_db()
    assert job.state == "COMPLETE"


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    "change",
    [
        {"priority": 10**6},
        {"priority": "high"},
        {"priority": None},
        {"queue_name": "q" * 300},
        {"queue_name": None},
        {"queue_name": "a\0b"},
        {"queue_name": ["a"]},
        {"priority": [1]},
        {"priority": math.inf},
        {"priority": F("priority") + 1},
        {"run_after": Now()},
        {"run_after": "tomorrow"},
        {"run_after": 5},
        {"run_after": START.replace(tzinfo=None)},
        {"run_after": datetime.datetime.max.replace(tzinfo=WEST)},
        {"run_after": datetime.datetime.min.replace(tzinfo=EAST)},
        {"state": "NONSENSE"},
        {"next_task": "no.such.task"},
        {"name": "no such job"},
        {"id": None},
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:DateTimeField Job.run_after received a naive datetime")
def test_a_task_that_leaves_nonsense_in_its_job_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    def spoil(job: Job) -> None:
        for name, value in change.items():
            setattr(job, name, value)

    monkeypatch.setattr("tests.jobs.one", spoil)
    spoilt, three = Job.objects.create(name="odd"), Job.objects.create(name="three")
    drain()
    assert ran(three) == ["three"]
    spoilt = Job.objects.get(pk=spoilt.pk)
    assert spoilt.state not in ("PROCESSING", "STOPPING")  # nobody would ever take it up again
    assert spoilt.attempts.count() >= 1


WRONG = [("queue_name", ["a"]), ("priority", math.inf), ("priority", F("x")), ("run_after", Now())]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr)
def test_a_step_that_leaves_no_queue_priority_or_time_has_failed(
    settings: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr("tests.jobs.one", lambda job: setattr(job, name, value))
    execution = run(claimed(settings, "one"))
    assert (execution.decision.state, execution.moved_to) == ("FAILED", None)
    assert f"Error: {name} is {value!r}. Expected" in execution.report


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr)
def test_a_later_hook_that_leaves_no_queue_priority_or_time_moves_nothing(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: Any,
) -> None:
    def leave(job: Job) -> None:
        job.workspace["left"] = True
        setattr(job, name, value)

    monkeypatch.setattr("tests.jobs.post_task_hook", leave)
    execution = run(claimed(settings, "one", "two", post_task_hook="post_task_hook"))
    assert (execution.decision.state, execution.moved_to) == ("READY", None)
    assert execution.workspace == '{"ran": ["one"], "left": true}'
    assert f"{name} not saved: job=" in caplog.text


@pytest.mark.usefixtures("jobs")
def test_an_aware_time_without_time_zones_stops_no_other(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.USE_TZ = False
    monkeypatch.setattr("tests.jobs.one", lambda job: setattr(job, "run_after", START))
    odd, three = Job.objects.create(name="odd"), Job.objects.create(name="three")
    drain()
    assert ran(three) == ["three"]
    assert Job.objects.get(pk=odd.pk).state not in ("PROCESSING", "STOPPING")


@pytest.mark.usefixtures("jobs")
def test_an_older_row_with_a_workspace_that_would_be_refused_stops_no_other() -> None:
    if connection.vendor == "mysql":
        pytest.skip("MySQL and MariaDB cannot hold such a row")
    old, three = Job.objects.create(name="odd"), Job.objects.create(name="three")
    deep: Any = []
    for _ in range(workspaces._DEPTH + 5):
        deep = [deep]
    Job.objects.filter(pk=old.pk).update(workspace={"deep": deep})
    drain()
    old = Job.objects.get(pk=old.pk)
    assert (old.state, old.workspace) == ("FAILED", {"deep": deep})
    assert "nested too deeply" in old.attempts.get().error
    assert ran(three) == ["three"]


@pytest.mark.usefixtures("jobs")
def test_a_task_that_deletes_its_job_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tests.jobs.one", lambda job: Job.objects.filter(pk=job.pk).delete())
    Job.objects.create(name="odd")
    three = Job.objects.create(name="three")
    assert drain() == 2
    assert list(Job.objects.all()) == [three]
    assert three.attempts.count() == 1
    assert "Outcome dropped" in caplog.text
