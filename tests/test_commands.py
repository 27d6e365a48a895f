"""The commands: what they print, what they take and refuse, and which jobs they run."""

import datetime
import itertools
import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone

from django_dbq.management.commands import worker as worker_command
from django_dbq.models import Attempt, Job, Worker
from django_dbq.storage import Queues
from django_dbq.wakeups import Wakeup
from django_dbq.workers import worker as worker_module
from tests.jobs import ran

pytestmark = pytest.mark.django_db

WANTED = "tests.pipelines.tasks.wanted"
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(autouse=True)
def jobs(settings: Any) -> None:
    settings.JOBS = {
        "feed": {"tasks": ["tests.jobs.one", "tests.jobs.two"], "description": "Feed the cats"},
        "one": ["tests.jobs.one"],
        "mail": {"tasks": ["tests.jobs.one"], "queue": "outbox", "priority": 5},
        "fails": ["tests.jobs.fail"],
        "everything": {
            "tasks": ["tests.jobs.one", "tests.jobs.fail", "tests.jobs.one"],
            "creation_hook": "tests.jobs.creation_hook",
            "failure_hook": "tests.jobs.failure_hook",
            "completion_hook": "tests.jobs.completion_hook",
        },
        "refused": {"tasks": ["tests.jobs.one"], "creation_hook": "tests.jobs.broken"},
    }


def run(command: str, *args: Any, **options: Any) -> str:
    """What the command writes to its standard output; it writes nothing to the other."""
    out, err = StringIO(), StringIO()
    call_command(command, *args, stdout=out, stderr=err, **options)
    assert err.getvalue() == ""
    return out.getvalue()


def create(*keys: str, name: str = "one", **fields: Any) -> None:
    for key in keys:
        Job.objects.create(name=name, workspace={"key": key}, **fields)


def done() -> list[str]:
    """The keys of the jobs, in the order in which their steps were run."""
    attempts = Attempt.objects.order_by("id").select_related("job")
    return [attempt.job.workspace["key"] for attempt in attempts]


# -- worker: what it says --


@pytest.mark.parametrize(
    ("arguments", "queues"),
    [
        ([], 'queue "default"'),
        (["mail"], 'queue "mail"'),
        (["--queue", "mail"], 'queue "mail"'),
        (["--queue", "a", "--queue", "b"], "queues a, b"),
        (["a", "--queue", "b"], "queues a, b"),
        (["--queue", "a", "--queue", "a"], 'queue "a"'),
        (["--exclude_queue", "a"], "queues all but a"),
        (["--exclude-queue", "a", "--exclude_queue", "b"], "queues all but a, b"),
    ],
)
def test_worker_dry_run_says_which_queues_it_would_serve(arguments: list[str], queues: str) -> None:
    create("a")
    line = run("worker", *arguments, "--dry-run")
    assert line == f"Starting job worker for {queues}\n"
    assert not Worker.objects.exists()
    assert done() == []


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ([], ""),
        (["--rate_limit"], " with rate limit of one job per 1 second(s)"),
        (["--rate-limit"], " with rate limit of one job per 1 second(s)"),
        (["--rate_limit", "2"], " with rate limit of one job per 2 second(s)"),
        (["--rate_limit=0.25"], " with rate limit of one job per 0.25 second(s)"),
        (["--rate_limit", "0"], ""),
    ],
)
def test_worker_dry_run_says_its_rate_limit(arguments: list[str], limit: str) -> None:
    line = run("worker", *arguments, "--dry-run")
    assert line == f'Starting job worker for queue "default"{limit}\n'


def test_worker_says_what_it_serves_and_a_worker_that_ends_is_quiet() -> None:
    assert run("worker", max_jobs=1, dry_run=True) == 'Starting job worker for queue "default"\n'
    create("a")
    assert run("worker", max_jobs=1) == 'Starting job worker for queue "default"\n'
    assert run("worker", until_done=True) == ""
    assert run("worker", once=True) == ""
    create("b")
    assert run("worker", max_jobs=1, verbosity=0) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--once", "--until_done"], "not allowed with argument"),
        (["--queue", "a", "--exclude_queue", "b"], "not allowed with argument"),
        (["a", "--exclude_queue", "b"], "queues to serve or queues to exclude, not both"),
        (["--rate_limit", "-1"], "0 or more"),
        (["--rate_limit", "mail"], "--rate_limit/--rate-limit: 'mail' is not a number of seconds"),
        (["--rate_limit", "nan"], "0 or more"),
        (["--rate_limit", "inf"], "0 or more"),
        (["--rate_limit", "1e300"], "up to a century"),
        (["--tick", "0"], "'0' is not a number of seconds above 0"),
        (["--tick", "-1"], "above 0"),
        (["--max_jobs", "0"], "1 or more"),
        (["--max_jobs", "many"], "'many' is not a whole number, 1 or more"),
        (["--processes", "0"], "1 or more"),
        (["--threads", "0"], "1 or more"),
        (["--max_memory", "0"], "'0' is not a number of MiB above 0"),
        (["--max-memory", "-1"], "above 0"),
        (["--max_memory", "1e300"], "up to 1073741824"),
        (["--max_memory", "lots"], "'lots' is not a number of MiB"),
        (["--timeout", "0.9"], "1 or more"),
        (["--timeout", "inf"], "1 or more"),
        (["--grace", "-1"], "0 or more"),
        (["--retry", "-1"], "0 or more"),
        (["--retry", "1.5"], "'1.5' is not a whole number, 0 or more"),
        (["--reload", "sometimes"], "invalid choice"),
        (["a", "b"], "unrecognized arguments"),
        ([""], "'' is not the name of a queue"),
        (["--queue", ""], "'' is not the name of a queue"),
        (["--queue", "q" * 64], "1 to 63 characters"),
        (["--exclude_queue", ""], "'' is not the name of a queue"),
    ],
)
def test_worker_refuses_what_makes_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message) as refusal:
        run("worker", *arguments, "--dry-run")
    assert "invalid _" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mail", "--exclude_queue", "x"], "queues to serve or queues to exclude, not both"),
        (["--processes", "2", "--reload", "always"], "not together with --processes"),
    ],
)
def test_flags_that_do_not_go_together_have_the_exit_code_of_arguments(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(CommandError, match=message) as refusal:
        run("worker", *arguments)
    assert refusal.value.returncode == 2


@pytest.mark.parametrize(("used", "refused"), [(99.4, False), (100.0, True), (170.0, True)])
def test_worker_refuses_a_limit_that_it_is_over_already(
    used: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_command.memory, "used", lambda: used)
    arguments = ("worker", "--max_memory", "100", "--dry-run")
    if not refused:
        assert run(*arguments) == 'Starting job worker for queue "default"\n'
        return
    message = f"--max_memory 100: this process uses {used:.0f} MiB already"
    with pytest.raises(CommandError, match=message) as refusal:
        run(*arguments)
    assert refusal.value.returncode == 2


def test_worker_hands_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Recorder:
        cut_off = False

        def __init__(self, queues: Queues, **options: Any) -> None:
            made.update(options, queues=queues)

    monkeypatch.setattr(worker_command, "Worker", Recorder)
    monkeypatch.setattr(worker_command.supervisor, "run", lambda worker: None)
    arguments = (
        "--rate_limit 3 --tick 0.5 --max_jobs 7 --label w{pid} --threads 4 --max_memory 20000.5 "
    )
    arguments += "--timeout 5 --grace 1.5 --retry 2"
    run("worker", "--queue", "a", "--queue", "b", *arguments.split())
    progress = made.pop("progress")
    assert progress is None
    assert made.pop("orphaned") is worker_command.supervisor.orphaned
    assert made.pop("blackbox") is None, (
        "nobody else could see what is done in a test's transaction"
    )
    assert made == {
        "queues": Queues(("a", "b")),
        "rate_limit": 3.0,
        "tick": 0.5,
        "max_jobs": 7,
        "threads": 4,
        "max_memory": 20000.5,
        "timeout": 5.0,
        "grace": 1.5,
        "retries": 2,
        "label": "w{pid}",
        "once": False,
        "until_done": False,
        "using": "default",
    }
    run("worker", "--exclude_queue", "a", "--once")
    assert (made["queues"], made["once"]) == (Queues(("a",), exclude=True), True)
    assert (made["rate_limit"], made["tick"], made["max_jobs"]) == (0.0, 1.0, None)
    assert (made["threads"], made["max_memory"], made["timeout"]) == (0, None, None)
    assert (made["grace"], made["retries"]) == (30.0, 0)


# -- worker: which jobs it runs --


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["default"]),
        (["a"], ["a"]),
        (["--queue", "a", "--queue", "b"], ["a", "b"]),
        (["b", "--queue", "default"], ["default", "b"]),
        (["--exclude_queue", "a"], ["default", "b"]),
        (["--exclude_queue", "a", "--exclude_queue", "default"], ["b"]),
        (["nobody's"], []),
        (["--exclude_queue", "nobody's"], ["default", "a", "b"]),
    ],
)
def test_worker_serves_the_queues_it_is_given(arguments: list[str], expected: list[str]) -> None:
    for queue in ("default", "a", "b"):
        create(queue, queue_name=queue)
    run("worker", *arguments, "--until_done")
    assert done() == expected


def test_worker_once_runs_one_step_of_each_job_that_is_ready() -> None:
    create("a", "b", name="feed")
    create("c")
    create("later", run_after=timezone.now() + HOUR)
    create("urgent", name="feed", priority=1)
    run("worker", once=True)
    assert done() == ["urgent", "a", "b", "c"]
    run("worker", once=True)
    assert done() == ["urgent", "a", "b", "c", "urgent", "a", "b"]
    assert Job.objects.filter(state="COMPLETE").count() == 4


def test_worker_once_leaves_what_its_tasks_create(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.jobs.one", lambda job: create("created meanwhile"))
    create("a")
    run("worker", once=True)
    assert done() == ["a"]


@pytest.mark.parametrize("option", ["once", "until_done"])
def test_worker_runs_jobs_whose_time_came_while_no_worker_ran(option: str) -> None:
    create("a", "b", run_after=timezone.now() + HOUR)
    Job.objects.update(run_after=timezone.now() - HOUR, due=False)
    run("worker", **{option: True})
    assert done() == ["a", "b"]


def test_worker_until_done_runs_every_step() -> None:
    create("a", "b", name="feed")
    create("c", name="fails")
    run("worker", until_done=True)
    assert sorted(done()) == ["a", "a", "b", "b", "c"]
    assert Job.get_queue_depths() == {}


def test_worker_until_done_also_runs_what_becomes_ready_while_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = timezone.now() + HOUR
    times = itertools.count()

    def clock() -> datetime.datetime:
        return now + next(times) * datetime.timedelta(milliseconds=50)

    create("due in 0.1 s", run_after=now + datetime.timedelta(seconds=0.1))
    create("now")
    worker = worker_module.Worker(Queues(), until_done=True, clock=clock)
    worker.run()
    assert clock() > now + datetime.timedelta(seconds=0.1)
    assert done() == ["now", "due in 0.1 s"]


@pytest.mark.parametrize("most", [1, 3, 4, 100])
def test_worker_ends_after_max_jobs(most: int) -> None:
    create("a", "b", name="feed")
    run("worker", "--until_done", "--max_jobs", str(most))
    assert Attempt.objects.count() == min(most, 4)
    assert not Job.objects.filter(state="PROCESSING").exists()


@pytest.mark.django_db(transaction=True)
def test_worker_runs_no_more_than_max_jobs_where_it_claims_in_batches() -> None:
    Job.objects.bulk_create(Job(name="one") for _ in range(50))
    run("worker", max_jobs=7)
    assert Attempt.objects.count() == 7
    assert Job.get_queue_depths() == {"default": 43}


def test_worker_keeps_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the starts of two tasks lie so many seconds; it waits for them on its bell."""
    clock = [100.0]
    starts = []

    def wait(self: Wakeup, seconds: float) -> bool:
        clock[0] += seconds
        return False

    monkeypatch.setattr(Wakeup, "wait", wait)
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: clock[0])

    def task(job: Job) -> None:
        starts.append(clock[0])
        clock[0] += 1.5

    monkeypatch.setattr("tests.jobs.one", task)
    create("a", "b", "c")
    run("worker", "--rate_limit", "2", "--max_jobs", "3")
    assert starts == [100.0, 102.0, 104.0]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("", f"{socket.gethostname()}:{os.getpid()}"),
        ("mine", "mine"),
        ("w-{pid}-{pid}", f"w-{os.getpid()}-{os.getpid()}"),
    ],
    ids=["host and process", "a word", "process"],
)
def test_worker_has_a_row_with_its_label(label: str, expected: str) -> None:
    create("a", queue_name="x")
    run("worker", "--queue", "x", "--queue", "y", "--label", label, "--until_done")
    worker = Worker.objects.get()
    assert (worker.label, worker.hostname, worker.pid, worker.queues) == (
        expected,
        socket.gethostname(),
        os.getpid(),
        "x, y",
    )
    assert worker.stopped is not None
    assert Attempt.objects.get().worker == expected
    assert Job.objects.get().worker == worker


def test_worker_logs_its_start_its_steps_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "django_dbq")
    create("a", name="feed")
    job = Job.objects.get()
    run("worker", "--until_done", "--label", "w")
    started, first, second, stopped = [record.getMessage() for record in caplog.records]
    assert started == "Worker started: worker=w queues=default"
    assert first == (
        f"Step succeeded: name=feed queue=default job={job.pk} task=tests.jobs.one attempt=1 "
        "state=READY"
    )
    assert second.endswith("task=tests.jobs.two attempt=2 state=COMPLETE")
    assert stopped == "Worker stopped: worker=w tasks=2 reason=nothing is left to do"


def test_worker_can_be_called_where_debug_is_on(settings: Any) -> None:
    """A worker that is called does not start the program over to reload it."""
    settings.DEBUG = True
    create("a")
    run("worker", max_jobs=1)
    assert done() == ["a"]


# -- worker: the progress bar --


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(*arguments: str, force_color: bool = False, **options: Any) -> str:
    """What the worker writes to a terminal's standard error."""
    terminal = Terminal()
    command = worker_command.Command(stdout=Terminal(), stderr=terminal, force_color=force_color)
    call_command(command, *arguments, **options)
    return terminal.getvalue()


def test_until_done_shows_its_progress_on_a_terminal() -> None:
    create("a", "b", "c", "d")
    create("elsewhere", queue_name="other")
    create("later", run_after=timezone.now() + HOUR)
    text = on_terminal("--until_done")
    frames = text.split("\r")[1:]
    assert [frame.strip() for frame in frames] == [
        "███████░░░░░░░░░░░░░░░░░░░░░░░ 1 tasks run, 4 jobs were ready",
        "███████████████░░░░░░░░░░░░░░░ 2 tasks run, 4 jobs were ready",
        "██████████████████████░░░░░░░░ 3 tasks run, 4 jobs were ready",
        "██████████████████████████████ 4 tasks run, 4 jobs were ready",
    ]
    assert text.endswith("\n")
    assert text.count("\n") == 1


def test_the_bar_does_not_overflow() -> None:
    create("a", name="feed")
    frames = on_terminal("--until_done").split("\r")[1:]
    assert [frame.count("█") + frame.count("░") for frame in frames] == [30, 30]


def test_the_bar_is_not_an_error() -> None:
    """Django writes to standard error in red where there are colours."""
    create("a")
    text = on_terminal("--until_done", force_color=True)
    assert "█" in text
    assert "\x1b[" not in text


@pytest.mark.parametrize(
    "options",
    [
        {"until_done": True, "verbosity": 0},
        {"once": True},
        {"max_jobs": 1},
        {"until_done": True, "queue": ["empty"]},
    ],
    ids=repr,
)
def test_there_is_no_bar(options: dict[str, Any]) -> None:
    create("a")
    assert on_terminal(**options) == ""


def test_until_done_is_quiet_where_there_is_no_terminal() -> None:
    create("a", "b")
    assert run("worker", until_done=True) == ""  # which looks at both outputs
    assert done() == ["a", "b"]


# -- queue_depth --


@pytest.fixture
def waiting() -> None:
    create("a", "b")
    create("later", run_after=timezone.now() + HOUR)
    create("x", queue_name="other")


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "event=queue_depths default=3"),
        (["other"], "event=queue_depths other=1"),
        (["default", "other", "nobody's"], "event=queue_depths default=3 other=1 nobody's=0"),
        (["--exclude_future_jobs"], "event=queue_depths default=2"),
        (["--exclude-future-jobs"], "event=queue_depths default=2"),
        (["default", "other", "--exclude_future_jobs"], "event=queue_depths default=2 other=1"),
        (["--exclude_future_jobs", "True"], "event=queue_depths default=2"),
        (["--exclude_future_jobs=no"], "event=queue_depths default=3"),
        (["--exclude_future_jobs=False", "other"], "event=queue_depths other=1"),
    ],
)
def test_queue_depth(arguments: list[str], line: str) -> None:
    assert run("queue_depth", *arguments) == line + "\n"


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        (["--exclude_future_jobs", "other"], {"other=1"}),
        (["--exclude_future_jobs", "default", "other"], {"default=2", "other=1"}),
        (["default", "--exclude_future_jobs", "other"], {"default=2", "other=1"}),
    ],
)
def test_queue_depth_counts_the_queues_behind_its_flag(
    arguments: list[str], counts: set[str]
) -> None:
    """django-db-queue's flag needed a value; a queue that stands there must not be taken for one."""
    event, *counted = run("queue_depth", *arguments).split()
    assert event == "event=queue_depths"
    assert set(counted) == counts


# -- delete_old_jobs --


def test_delete_old_jobs() -> None:
    create("old", "older", "young", "waiting")
    Job.objects.exclude(workspace__key="waiting").update(state="COMPLETE")
    long_ago = timezone.now() - 25 * HOUR
    Job.objects.filter(workspace__key__in=["older", "waiting"]).update(created=long_ago)
    Job.objects.filter(workspace__key="old").update(created=timezone.now() - 2 * HOUR)
    assert run("delete_old_jobs") == "Deleted old jobs: 1\n"
    assert run("delete_old_jobs", "--hours", "1.5") == "Deleted old jobs: 1\n"
    assert run("delete_old_jobs", verbosity=0) == ""
    keys = Job.objects.order_by("created").values_list("workspace__key", flat=True)
    assert list(keys) == ["waiting", "young"]


def test_delete_old_jobs_of_any_age() -> None:
    create("a")
    Job.objects.update(state="FAILED")
    assert run("delete_old_jobs", "--hours", "0") == "Deleted old jobs: 1\n"


@pytest.mark.parametrize("hours", ["-1", "nan", "inf", "soon", "1e8", "1e30"])
def test_delete_old_jobs_refuses_an_age_that_is_none(hours: str) -> None:
    with pytest.raises(CommandError, match=rf"'{hours}' is not a number of hours, 0 or more"):
        run("delete_old_jobs", "--hours", hours)


# -- create_job --


def test_create_job_prints_the_id() -> None:
    line = run("create_job", "mail")
    job = Job.objects.get()
    assert uuid.UUID(line.strip()) == job.pk
    assert (job.name, job.workspace, job.queue_name, job.priority) == ("mail", {}, "outbox", 5)


def test_create_job_takes_everything_that_create_takes() -> None:
    workspace = {"url": "https://example.org/?a=1", "n": [1, None]}
    arguments = ["--queue", "default", "--priority", "-2", "--run_after", "2030-01-31T08:00:00Z"]
    run("create_job", "mail", "--workspace", json.dumps(workspace), *arguments)
    job = Job.objects.get()
    assert (job.workspace, job.queue_name, job.priority) == (workspace, "default", -2)
    assert job.run_after == datetime.datetime(2030, 1, 31, 8, tzinfo=datetime.UTC)
    assert not job.due


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-31T08:00:00+02:00", datetime.datetime(2030, 1, 31, 6, tzinfo=datetime.UTC)),
        ("2030-01-31 08:00", datetime.datetime(2030, 1, 31, 7, tzinfo=datetime.UTC)),
        ("2030-07-31T08:00", datetime.datetime(2030, 7, 31, 6, tzinfo=datetime.UTC)),
        ("2030-07-31", datetime.datetime(2030, 7, 30, 22, tzinfo=datetime.UTC)),
    ],
)
def test_create_job_takes_times_in_the_projects_zone(
    settings: Any, text: str, expected: datetime.datetime
) -> None:
    settings.TIME_ZONE = "Europe/Vienna"
    run("create_job", "one", "--run-after", text)
    assert Job.objects.get().run_after == expected


def test_create_job_without_time_zones(settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Vienna"
    run("create_job", "one", "--run_after", "2030-01-31T08:00:00Z")
    assert Job.objects.get().run_after == datetime.datetime.fromisoformat("2030-01-31T09:00:00")


def test_create_job_takes_no_time_that_the_projects_zone_does_not_have(settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Vienna"
    with pytest.raises(CommandError, match="--run_after is 9999-"):
        run("create_job", "one", "--run_after", "9999-12-31T23:59:59Z")


@pytest.mark.parametrize("policy", ["return", "replace"])
def test_create_job_says_when_it_has_created_none(settings: Any, policy: str) -> None:
    settings.JOBS = {
        "daily": {"tasks": ["tests.jobs.one"], "unique": ["day"], "unique_conflict": policy}
    }
    key = run("create_job", "daily", "--workspace", '{"day": 1}')
    out, err = StringIO(), StringIO()
    call_command("create_job", "daily", "--workspace", '{"day": 1}', stdout=out, stderr=err)
    assert out.getvalue() == key
    assert err.getvalue() == (
        f"exists already: daily {key.strip()}, which is NEW; no job was created\n"
    )
    assert run("create_job", "daily", "--workspace", '{"day": 2}') != key


def test_create_job_says_which_job_is_in_its_way(settings: Any) -> None:
    settings.JOBS = {
        "daily": {"tasks": ["tests.jobs.one"], "unique": True, "unique_conflict": "raise"}
    }
    key = run("create_job", "daily").strip()
    with pytest.raises(CommandError, match=f"The job {key} of the name 'daily' has the same"):
        run("create_job", "daily")


@pytest.mark.parametrize("arguments", [[], ["one"]])
def test_create_job_without_any_jobs(settings: Any, arguments: list[str]) -> None:
    settings.JOBS = {}
    with pytest.raises(CommandError, match="JOBS has no entries: there is no job to create"):
        run("create_job", *arguments)


def test_create_job_lists_the_names_without_one() -> None:
    assert run("create_job").splitlines() == [
        "feed  Feed the cats",
        "one",
        "mail",
        "fails",
        "everything",
        "refused",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fed"], r"no job named 'fed' \(did you mean 'feed'\?\)\. It knows: .*'mail'"),
        (["one", "--workspace", "{"], "--workspace is not JSON"),
        (["one", "--workspace", "[1]"], "--workspace must be a JSON object"),
        (["one", "--workspace", '{"x": NaN}'], r"workspace\['x'\] is nan"),
        (["one", "--workspace", '{"x": "\\u0000"}'], "NUL"),
        (["one", "--workspace", '{"x": "\\ud800"}'], "surrogate"),
        (["one", "--run_after", "tomorrow"], "--run_after is not an ISO 8601 time"),
        (["one", "--run_after", "2030-02-31T08:00:00Z"], "--run_after"),
        (["one", "--run_after", "9999-12-31T23:59:59-12:00"], "--run_after is 9999-.*beyond"),
        (["one", "--run_after", "0001-01-01T00:00:00+12:00"], "--run_after is 0001-.*beyond"),
        ([""], "no job named ''"),
        (["one", "--priority", "high"], "invalid int value"),
        (["one", "--priority", "99999"], "priority"),
        (["one", "--queue", "q" * 64], "queue"),
        (["one", "--queue", ""], "queue"),
    ],
)
def test_create_job_refuses_what_cannot_be(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run("create_job", *arguments)
    assert not Job.objects.exists()


# -- job_graph --

DOT = """\
digraph pipeline {
	fontname=Helvetica label=everything labelloc=t rankdir=LR
	node [fontname=Helvetica shape=box style=rounded]
	edge [fontname=Helvetica fontsize=10]
	start [label="" shape=circle width=0.2]
	step0 [label=one tooltip="tests.jobs.one"]
	step1 [label=fail tooltip="tests.jobs.fail"]
	step2 [label=one tooltip="tests.jobs.one"]
	complete [label=COMPLETE fillcolor="#d9f2d9" style="rounded,filled"]
	failed [label=FAILED fillcolor="#f8d7d7" style="rounded,filled"]
	start -> step0 [label=creation_hook style=solid]
	step0 -> step1 [label="" style=solid]
	step1 -> step2 [label="" style=solid]
	step2 -> complete [label=completion_hook style=solid]
	step0 -> failed [label=failure_hook style=dashed]
	step1 -> failed [label=failure_hook style=dashed]
	step2 -> failed [label=failure_hook style=dashed]
}
"""
MERMAID = """\
flowchart LR
    start((start))
    step0["one"]
    step1["fail"]
    step2["one"]
    complete([COMPLETE])
    failed([FAILED])
    start -->|creation_hook| step0
    step0 --> step1
    step1 --> step2
    step2 -->|completion_hook| complete
    step0 -.->|failure_hook| failed
    step1 -.->|failure_hook| failed
    step2 -.->|failure_hook| failed
"""


DOT_OF_FORMS = """\
digraph pipeline {
	fontname=Helvetica label=forms labelloc=t rankdir=LR
	node [fontname=Helvetica shape=box style=rounded]
	edge [fontname=Helvetica fontsize=10]
	start [label="" shape=circle width=0.2]
	step0 [label=fetch tooltip="tests.jobs.one"]
	subgraph cluster_step1 {
		color="#999999" label="" style=solid
		step1 [label="" fillcolor=black style=filled tooltip="all branches at once" width=0.05]
		step2 [label=one tooltip="tests.jobs.one"]
		step3 [label=two tooltip="tests.jobs.two"]
		step4 [label="three\\nif wanted" style="rounded,dashed" tooltip="tests.jobs.three"]
		step1_end [label="" fillcolor=black style=filled tooltip="after all branches" width=0.05]
	}
	subgraph cluster_step5 {
		color="#999999" label="check\\non failure: cancel_rest\\nif wanted" style=dashed
		step5 [label="" fillcolor=black style=filled tooltip="all branches at once" width=0.05]
		step6 [label=one tooltip="tests.jobs.one"]
		subgraph cluster_step7 {
			color="#999999" label="" style=solid
			step7 [label="" fillcolor=black style=filled tooltip="all branches at once" width=0.05]
			step8 [label=two tooltip="tests.jobs.two"]
			step9 [label="sleep 5 s" shape=hexagon style=solid tooltip=sleep]
			step7_end [label="" fillcolor=black style=filled tooltip="after all branches" width=0.05]
		}
		step10 [label="three\\nover cats\\nif wanted" shape=box3d style=dashed tooltip="map tests.jobs.three"]
		step5_end [label="" fillcolor=black style=filled tooltip="after all branches" width=0.05]
	}
	step12 [label="mails\\nover to\\non failure: ignore" shape=box3d style=solid tooltip="map tests.jobs.one"]
	step14 [label="rest\\nsleep 0.5 s\\nif wanted" shape=hexagon style=dashed tooltip=sleep]
	step15 [label="wait for approval" shape=hexagon style=solid tooltip="wait_for approval"]
	step16 [label="money\\nwait for fee\\nat most 60 s, then continue" shape=hexagon style=solid tooltip="wait_for fee"]
	complete [label=COMPLETE fillcolor="#d9f2d9" style="rounded,filled"]
	failed [label=FAILED fillcolor="#f8d7d7" style="rounded,filled"]
"""
MERMAID_OF_FORMS = """\
flowchart LR
    start((start))
    step0["fetch"]
    subgraph group1[" "]
        step1((" "))
        step2["one"]
        step3["two"]
        step4["three<br/>if wanted"]
        step1_end((" "))
    end
    subgraph group5["check<br/>on failure: cancel_rest<br/>if wanted"]
        step5((" "))
        step6["one"]
        subgraph group7[" "]
            step7((" "))
            step8["two"]
            step9{{"sleep 5 s"}}
            step7_end((" "))
        end
        step10[["three<br/>over cats<br/>if wanted"]]
        step5_end((" "))
    end
    step12[["mails<br/>over to<br/>on failure: ignore"]]
    step14{{"rest<br/>sleep 0.5 s<br/>if wanted"}}
    step15{{"wait for approval"}}
    step16{{"money<br/>wait for fee<br/>at most 60 s, then continue"}}
    complete([COMPLETE])
    failed([FAILED])
"""
# Branches part where a group begins and meet where it ends; within one, a sequence is a chain.
ARROWS = [
    ("start", "step0"),
    ("step0", "step1"),
    *(("step1", "step2"), ("step2", "step3"), ("step3", "step1_end")),
    *(("step1", "step4"), ("step4", "step1_end")),
    ("step1_end", "step5"),
    *(("step5", "step6"), ("step6", "step7")),
    *(("step7", "step8"), ("step8", "step7_end")),
    *(("step7", "step9"), ("step9", "step7_end")),
    ("step7_end", "step5_end"),
    *(("step5", "step10"), ("step10", "step5_end")),
    ("step5_end", "step12"),
    ("step12", "step14"),
    ("step14", "step15"),
    ("step15", "step16"),
    ("step16", "complete"),
]
# It is the job that fails: by a step of its own, or after the branches have met.
TO_FAILED = ["step0", "step1_end", "step5_end", "step12", "step14", "step15", "step16"]


@pytest.fixture
def forms(settings: Any) -> None:
    settings.JOBS = {
        "forms": {
            "tasks": [
                {"task": "tests.jobs.one", "name": "fetch"},
                [
                    ["tests.jobs.one", "tests.jobs.two"],
                    {"task": "tests.jobs.three", "when": WANTED},
                ],
                {
                    "group": [
                        ["tests.jobs.one", ["tests.jobs.two", {"sleep": 5}]],
                        {"map": "tests.jobs.three", "over": "cats", "when": WANTED},
                    ],
                    "name": "check",
                    "on_failure": "cancel_rest",
                    "when": WANTED,
                },
                {"map": "tests.jobs.one", "over": "to", "name": "mails", "on_failure": "ignore"},
                {"sleep": 0.5, "name": "rest", "when": WANTED},
                {"wait_for": "approval"},
                {
                    "wait_for": "fee",
                    "timeout": 60,
                    "on_timeout": "continue",
                    "name": "money",
                },
            ],
            "failure_hook": "tests.jobs.failure_hook",
        }
    }


@pytest.mark.usefixtures("forms")
def test_job_graph_of_every_form_as_dot() -> None:
    lines = run("job_graph", "forms").splitlines(keepends=True)
    arrows = [f'\t{tail} -> {head} [label="" style=solid]\n' for tail, head in ARROWS]
    failed = [f"\t{tail} -> failed [label=failure_hook style=dashed]\n" for tail in TO_FAILED]
    first = len(lines) - len([*arrows, *failed, "}"])
    assert "".join(lines[:first]) == DOT_OF_FORMS
    assert lines[first:] == [*arrows, *failed, "}\n"]


@pytest.mark.usefixtures("forms")
def test_job_graph_of_every_form_as_mermaid() -> None:
    arrows = [f"    {tail} --> {head}\n" for tail, head in ARROWS]
    failed = [f"    {tail} -.->|failure_hook| failed\n" for tail in TO_FAILED]
    dashed = ("step4", "group5", "step10", "step14")
    styles = [f"    style {node} stroke-dasharray: 5 5\n" for node in dashed]
    assert run("job_graph", "forms", "--format", "mermaid") == "".join(
        [MERMAID_OF_FORMS, *arrows, *failed, *styles]
    )


@pytest.mark.usefixtures("forms")
def test_job_graph_of_every_form_as_svg(program: Callable[[str], str]) -> None:
    program("dot")
    root = ElementTree.fromstring(run("job_graph", "forms", "--format", "svg"))
    kinds = {"node": 0, "edge": 0, "cluster": 0}
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        if group.get("class") in kinds:
            kinds[str(group.get("class"))] += 1
    bars, ends = 2 * 3, 3  # of groups; start, complete and failed
    assert kinds == {"node": 12 + bars + ends, "edge": len(ARROWS) + len(TO_FAILED), "cluster": 3}
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for label in (
        "forms",
        "fetch",
        "check",
        "mails",
        "over to",
        "sleep 0.5 s",
        "wait for approval",
    ):
        assert label in texts
    assert texts.count("if wanted") == 4


def test_job_graph_as_dot() -> None:
    assert run("job_graph", "everything") == DOT
    assert run("job_graph", "everything", "--format", "dot") == DOT


def test_job_graph_as_mermaid() -> None:
    assert run("job_graph", "everything", "--format", "mermaid") == MERMAID


def test_job_graph_as_svg(program: Callable[[str], str]) -> None:
    program("dot")
    svg = run("job_graph", "everything", "--format", "svg")
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for label in ("everything", "one", "fail", "COMPLETE", "FAILED", "completion_hook"):
        assert label in texts
    assert texts.count("failure_hook") == 3


def test_job_graph_shows_only_what_there_is() -> None:
    text = run("job_graph", "feed", "--format", "mermaid")
    assert "failed" not in text
    assert "start --> step0" in text
    assert "// Feed the cats\n" in run("job_graph", "feed")


@pytest.mark.parametrize("graph", ["dot", "svg", "mermaid"])
def test_job_graph_writes_a_file(
    program: Callable[[str], str], tmp_path: Path, graph: str, settings: Any
) -> None:
    if graph == "svg":
        program("dot")
    settings.JOBS = {"füttern": {"tasks": ["tests.jobs.one"], "description": "Füttert 🐈"}}
    file = tmp_path / "graph"
    assert run("job_graph", "füttern", "--format", graph, "--output", str(file)) == ""
    assert file.read_text(encoding="utf-8").rstrip() == (
        run("job_graph", "füttern", "--format", graph).rstrip()
    )


def test_job_graph_says_why_it_cannot_write_a_file(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"--output .*/nope/x: No such file or directory"):
        run("job_graph", "feed", "--output", str(tmp_path / "nope/x"))
    with pytest.raises(CommandError, match=r"--output .*: Is a directory"):
        run("job_graph", "feed", "--output", str(tmp_path))


def test_job_graph_as_svg_tells_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match=r"graphviz's `dot` program.*mermaid do not"):
        run("job_graph", "everything", "--format", "svg")
    assert run("job_graph", "everything", "--format", "dot") == DOT
    assert run("job_graph", "everything", "--format", "mermaid") == MERMAID


@pytest.mark.parametrize("name", ['with "quotes"', "back\\slash", "<b>bold</b>", "end]", "node"])
def test_job_graph_shows_odd_names_as_they_are(
    program: Callable[[str], str], settings: Any, name: str
) -> None:
    program("dot")
    settings.JOBS = {name: ["tests.jobs.one"]}
    svg = run("job_graph", name, "--format", "svg")
    texts = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    assert name in [text.text for text in texts]


ODD = [
    '"q"',
    "back\\slash \\n",
    "<b>bold</b>",
    "end]] }}",
    "a & b; #1",
    "two\nlines",
    "`x` |y|",
    " ",
]


@pytest.mark.parametrize("name", ODD)
def test_job_graph_shows_odd_names_of_steps_as_they_are(
    program: Callable[[str], str], settings: Any, name: str
) -> None:
    program("dot")
    settings.JOBS = {
        "odd": [
            {"task": "tests.jobs.one", "name": name},
            {"group": ["tests.jobs.one"], "name": f"{name}s"},
            {"map": "tests.jobs.one", "over": name},
            {"wait_for": f"{name}!"},
        ]
    }
    written = [name, f"{name}s", f"over {name}", f"wait for {name}!"]
    first, group, mapped, waiting = (" ".join(text.split()) for text in written)
    root = ElementTree.fromstring(run("job_graph", "odd", "--format", "svg"))
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    lines = ["odd", first, group, "one", "one", mapped, waiting, "COMPLETE"]
    assert sorted(" ".join(text.split()) for text in texts if text) == sorted(filter(None, lines))
    mermaid = run("job_graph", "odd", "--format", "mermaid")
    labels = re.findall(r'"(.*)"', mermaid)
    assert not set("".join(labels).replace("<br/>", "")) & set('"<>`&')
    assert [re.sub(r"#(\d+);", lambda code: chr(int(code[1])), label) for label in labels] == [
        *(first or " ", group, " ", "one", " ", f"one<br/>{mapped}", waiting),
    ]


@pytest.mark.parametrize("description", ["two\nlines", "two\r\nlines", "*/ // --> #"])
def test_job_graph_of_odd_descriptions(
    program: Callable[[str], str], settings: Any, description: str
) -> None:
    program("dot")
    settings.JOBS = {"feed": {"tasks": ["tests.jobs.one"], "description": description}}
    ElementTree.fromstring(run("job_graph", "feed", "--format", "svg"))
    assert run("job_graph", "feed").splitlines()[1] == "digraph pipeline {"


def test_job_graph_of_an_unknown_job() -> None:
    with pytest.raises(CommandError, match=r"did you mean 'feed'\?"):
        run("job_graph", "fed")


# -- all of them --


@pytest.mark.parametrize(
    "command",
    [
        *("worker", "queue_depth", "delete_old_jobs", "create_job", "job_graph"),
        *("jobs", "queues", "check_jobs"),
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call_command(command, "--help")
    assert ended.value.code == 0
    usage, explanation, *options = capsys.readouterr().out.split("\n\n")
    assert usage.startswith("usage:")
    assert len(explanation) > 20
    assert options


def test_what_a_command_creates_runs() -> None:
    key = run("create_job", "feed").strip()
    run("worker", until_done=True)
    assert ran(Job.objects.get(pk=key)) == ["one", "two"]
