"""``manage.py check``: every mistake in the settings, by its id, its key path and a hint, before a worker starts."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import Error, Tags, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from django_dbq import checks
from django_dbq.storage import storage_for

ONE, TWO = "tests.jobs.one", "tests.jobs.two"
WANTED = "tests.pipelines.tasks.wanted"
SCHEMA = {"properties": {"url": {"$ref": "#/$defs/url"}}, "$defs": {"url": {"type": "string"}}}


def in_full(name: str) -> list[str]:
    return ["group", f"group {name}", f"map tests.jobs.{name}", f"wait_for {name}"]


def errors() -> list[Error]:
    messages = run_checks(tags=["django_dbq"])
    assert all(isinstance(message, Error) for message in messages)
    return messages  # type: ignore[return-value]


def test_good_settings_have_no_errors(settings: Any) -> None:
    settings.DBQ = {
        "WAKEUP": "poll",
        "DEFAULTS": {"post_task_hook": "tests.jobs.post_task_hook", "retry_on": ["Exception"]},
        "MAX_RUNS": 6,
        "WORKER_TIMEOUT": 10,
    }
    settings.JOBS = {
        "short": [ONE, {"task": TWO, "atomic": True}],
        "async": ["tests.jobs.asynchronous", {"task": "tests.jobs.asynchronous", "timeout": 5}],
        "long": {
            "tasks": [ONE, ONE],
            "creation_hook": "tests.jobs.creation_hook",
            "pre_task_hook": "tests.jobs.pre_task_hook",
            "post_task_hook": "tests.jobs.post_task_hook",
            "failure_hook": "tests.jobs.failure_hook",
            "completion_hook": "tests.jobs.completion_hook",
            "queue": "slow",
            "priority": 1,
            "description": "Everything there is",
            "retries": 5,
            "retry_delay": 1,
            "retry_backoff": 3,
            "retry_max_delay": 20,
            "retry_jitter": True,
            "retry_on": ["tests.jobs.Boom", "OSError", "asyncio.CancelledError"],
            "timeout": 60,
            "atomic": True,
            "on_lost": "hold",
            "unique": ["url"],
            "unique_conflict": "replace",
            "workspace_schema": SCHEMA,
        },
        "steps": [
            {"task": ONE, "name": "first", "renamed_from": "tests.jobs.zero", "when": WANTED},
            [ONE, [TWO, [ONE, {"task": TWO, "name": "second", "queue": "slow"}]]],
            {"group": [ONE, TWO], "on_failure": "cancel_rest", "when": WANTED},
            {"map": ONE, "over": "cats", "into": "fed", "name": "cats", "when": WANTED},
            {"map": "tests.jobs.asynchronous", "over": "cats", "retries": 5, "timeout": 60},
            {"sleep": 60, "when": WANTED},
            {"wait_for": "approval", "timeout": 60, "on_timeout": "continue", "when": WANTED},
        ],
        # A row in full will do for every form, and what makes one for some.
        "renamed": [
            {"task": ONE, "renamed_from": [*in_full("zero"), "tests.jobs.zero"]},
            {"sleep": 1, "renamed_from": [*in_full("rest"), "tests.jobs.rest"]},
            {"map": ONE, "over": "cats", "renamed_from": [*in_full("cats"), "tests.jobs.cat"]},
            {
                "group": [TWO],
                "name": "two",
                "renamed_from": [*in_full("pair"), "a", "tests.jobs.a"],
            },
            {"wait_for": "yes", "renamed_from": [*in_full("ok"), "si", "tests.jobs.si"]},
        ],
    }
    assert errors() == []


BAD: list[tuple[Any, str, str, str]] = [
    # JOBS, id, the key path and what is said of it, a word of the hint
    (None, "E001", "JOBS is None.", "dict of jobs by name"),
    ([ONE], "E001", "JOBS is a list", "dict of jobs by name"),
    ({5: [ONE]}, "E001", "JOBS[5] is not a usable name", "1 to 200 characters"),
    ({"": [ONE]}, "E001", "JOBS[''] is not a usable name", "1 to 200 characters"),
    ({"x" * 201: [ONE]}, "E001", "is not a usable name", "1 to 200 characters"),
    ({"a\0b": [ONE]}, "E001", "JOBS['a\\x00b'] is not a usable name", "without NUL"),
    ({"feed": ONE}, "E002", "JOBS['feed'] is a str", "list of task paths"),
    ({"feed": None}, "E002", "JOBS['feed'] is None.", "list of task paths"),
    ({"feed": []}, "E002", "JOBS['feed'][\"tasks\"] is empty", "at least one"),
    ({"feed": {}}, "E002", "JOBS['feed'][\"tasks\"] is missing", "at least one"),
    ({"feed": {"tasks": []}}, "E002", "JOBS['feed'][\"tasks\"] is empty", "at least one"),
    ({"feed": {"tasks": ONE}}, "E002", "JOBS['feed'][\"tasks\"] is a str", "at least one"),
    (
        {"feed": {"tasks": [ONE], "falure_hook": ONE}},
        "E003",
        "JOBS['feed'][\"falure_hook\"] is an unknown option (did you mean 'failure_hook'?)",
        "completion_hook",
    ),
    (
        {"feed": [{"task": ONE, "nmae": "x"}]},
        "E003",
        "JOBS['feed'][\"tasks\"][0][\"nmae\"] is an unknown option (did you mean 'name'?)",
        "renamed_from",
    ),
    ({"feed": {"tasks": [ONE], "priority": "high"}}, "E004", "[\"priority\"] is 'high'", "32767"),
    ({"feed": ["not a path"]}, "E004", "JOBS['feed'][\"tasks\"][0] is 'not a path'", "dotted path"),
    ({"feed": [ONE, 5]}, "E005", "JOBS['feed'][\"tasks\"][1] is an int", "wait_for"),
    ({"feed": [{"sleep": 5, "task": ONE}]}, "E005", "has task and sleep", "exactly one"),
    ({"feed": [{"taks": ONE}]}, "E005", "group, map (did you mean 'task'?)", "exactly one"),
    (
        {"feed": [{"task": ONE, "name": "2"}]},
        "E004",
        "JOBS['feed'][\"tasks\"][0][\"name\"] is '2'",
        "no number, which is a place",
    ),
    (
        {"feed": [{"map": [ONE, TWO], "over": "cats"}]},
        "E005",
        'JOBS[\'feed\']["tasks"][0]["map"] is a group inside a map',
        "one task path",
    ),
    (
        {"feed": [ONE, [TWO, []]]},
        "E005",
        "JOBS['feed'][\"tasks\"][1][1] is an empty branch",
        "Give it steps",
    ),
    (
        {"feed": [{"map": ONE}]},
        "E005",
        "JOBS['feed'][\"tasks\"][0] is a map without over",
        "the list in the workspace",
    ),
    (
        {"feed": [{"wait_for": "approval", "retries": 3}]},
        "E003",
        'JOBS[\'feed\']["tasks"][0]["retries"] is an unknown option',
        "on_timeout",
    ),
    (
        {"feed": [{"group": [ONE, TWO], "on_failure": "retry"}]},
        "E004",
        "JOBS['feed'][\"tasks\"][0][\"on_failure\"] is 'retry'",
        "cancel_rest",
    ),
    (
        {"feed": {"tasks": [ONE], "schedule": {"cron": "0 8 * * *"}}},
        "E006",
        "JOBS['feed'][\"schedule\"] is not supported yet",
        "Remove it",
    ),
    (
        {"feed": [ONE, "tests.jobs.nine"]},
        "E009",
        "JOBS['feed'][\"tasks\"][1] is 'tests.jobs.nine', which does not import (ImportError: ",
        "package.module.function",
    ),
    ({"feed": ["no_such_module.x"]}, "E009", "No module named 'no_such_module'", "path"),
    ({"feed": ["one"]}, "E009", "is 'one', which does not import", "package.module.function"),
    (
        {"feed": {"tasks": [ONE], "failure_hook": "tests.jobs.nine"}},
        "E009",
        "JOBS['feed'][\"failure_hook\"] is 'tests.jobs.nine'",
        "package.module.function",
    ),
    (
        {"feed": ["tests.jobs.not_callable"]},
        "E010",
        "JOBS['feed'][\"tasks\"][0] is 'tests.jobs.not_callable', which is not callable",
        "not_callable(job)",
    ),
    (
        {"feed": {"tasks": [ONE], "pre_task_hook": "tests.jobs.asynchronous"}},
        "E010",
        "JOBS['feed'][\"pre_task_hook\"] is 'tests.jobs.asynchronous', an async function",
        "plain function",
    ),
    (
        {"feed": {"tasks": [ONE], "retry_on": ["OSError", "OSErorr"]}},
        "E009",
        "JOBS['feed'][\"retry_on\"][1] is 'OSErorr', which does not import (ImportError: ",
        "built-in",
    ),
    (
        {"feed": [ONE, {"task": TWO, "retry_on": ["no_such_module.Gone"]}]},
        "E009",
        "JOBS['feed'][\"tasks\"][1][\"retry_on\"][0] is 'no_such_module.Gone', which does not",
        "exception that can be imported",
    ),
    (
        {"feed": {"tasks": [ONE, TWO], "retry_on": [ONE]}},
        "E010",
        "JOBS['feed'][\"retry_on\"][0] is 'tests.jobs.one', which names no exception",
        "exception class",
    ),
    ({"feed": {"tasks": [ONE], "retry_on": ["int"]}}, "E010", "is 'int', which names no", "class"),
    (
        {"feed": [ONE, {"task": "tests.jobs.asynchronous", "atomic": True}]},
        "E012",
        "JOBS['feed'][\"tasks\"][1] is 'tests.jobs.asynchronous', an async function, in an atomic",
        "plain function",
    ),
    (
        {"feed": {"tasks": ["tests.jobs.asynchronous"], "atomic": True}},
        "E012",
        "JOBS['feed'][\"tasks\"][0] is ",
        "plain function",
    ),
    (
        {"feed": {"tasks": [ONE, TWO], "retry_delay": 900}},
        "E013",
        "JOBS['feed'][\"retry_delay\"] is 900, above the retry_max_delay of 600",
        "retry_max_delay",
    ),
    (
        {"feed": {"tasks": [ONE, TWO], "retries": 100}},
        "E013",
        'JOBS[\'feed\']["retries"] is 100, but DBQ["MAX_RUNS"] allows a job 100 attempts',
        "more runs",
    ),
    (
        {"feed": [ONE, [TWO, ["tests.jobs.one", [ONE, "tests.jobs.nine"]]]]},
        "E009",
        "JOBS['feed'][\"tasks\"][1][1][1][1] is 'tests.jobs.nine', which does not import",
        "package.module.function",
    ),
    (
        {"feed": [{"group": [[ONE, "tests.jobs.not_callable"], TWO], "name": "both"}]},
        "E010",
        "JOBS['feed'][\"tasks\"][0][\"group\"][0][1] is 'tests.jobs.not_callable', which is not",
        "not_callable(job)",
    ),
    (
        {"feed": {"tasks": [[TWO, {"task": "tests.jobs.asynchronous"}]], "atomic": True}},
        "E012",
        "JOBS['feed'][\"tasks\"][0][1] is 'tests.jobs.asynchronous', an async function, in an atomic",
        "plain function",
    ),
    (
        {"feed": [ONE, {"map": "tests.jobs.takes_two", "over": "cats"}]},
        "E010",
        "JOBS['feed'][\"tasks\"][1][\"map\"] is 'tests.jobs.takes_two', which does not take",
        "takes_two(job)",
    ),
    (
        {"feed": [[ONE, {"map": "tests.jobs.nine", "over": "cats"}]]},
        "E009",
        "JOBS['feed'][\"tasks\"][0][1][\"map\"] is 'tests.jobs.nine', which does not import",
        "package.module.function",
    ),
    (
        {"feed": [{"map": "tests.jobs.asynchronous", "over": "cats", "atomic": True}]},
        "E012",
        "JOBS['feed'][\"tasks\"][0][\"map\"] is 'tests.jobs.asynchronous', an async function, in",
        "plain function",
    ),
    (
        {"feed": [ONE, {"map": TWO, "over": "cats", "retry_on": ["OSError", "OSErorr"]}]},
        "E009",
        "JOBS['feed'][\"tasks\"][1][\"retry_on\"][1] is 'OSErorr', which does not import",
        "built-in",
    ),
    (
        {"feed": [[ONE, {"map": TWO, "over": "cats", "retries": 100}]]},
        "E013",
        'JOBS[\'feed\']["tasks"][0][1]["retries"] is 100, but DBQ["MAX_RUNS"]',
        "more runs",
    ),
    (
        {"feed": [{"map": TWO, "over": "cats", "retry_delay": 601}]},
        "E013",
        'JOBS[\'feed\']["tasks"][0]["retry_delay"] is 601, above the retry_max_delay of 600',
        "retry_max_delay",
    ),
    (
        {"feed": [{"map": TWO, "over": "cats", "retires": 1}]},
        "E003",
        "[\"retires\"] is an unknown option (did you mean 'retries'?)",
        "on_failure",
    ),
    *(
        (
            {"feed": [ONE, [TWO, {**step, "when": "tests.jobs.nine"}]]},
            "E009",
            "JOBS['feed'][\"tasks\"][1][1][\"when\"] is 'tests.jobs.nine', which does not import",
            "package.module.function",
        )
        for step in (
            {"task": ONE},
            {"map": ONE, "over": "cats"},
            {"group": [ONE]},
            {"sleep": 1},
            {"wait_for": "approval"},
        )
    ),
    (
        {"feed": [{"sleep": 1, "when": "tests.jobs.takes_nothing"}]},
        "E010",
        "JOBS['feed'][\"tasks\"][0][\"when\"] is 'tests.jobs.takes_nothing', which does not take",
        "takes_nothing(job)",
    ),
    (
        {"feed": [{"task": ONE, "when": "tests.jobs.asynchronous"}]},
        "E010",
        "JOBS['feed'][\"tasks\"][0][\"when\"] is 'tests.jobs.asynchronous', an async function",
        "plain function",
    ),
    (
        {"feed": [{"task": ONE, "when": "tests.jobs.not_callable"}]},
        "E010",
        "JOBS['feed'][\"tasks\"][0][\"when\"] is 'tests.jobs.not_callable', which is not callable",
        "not_callable(job)",
    ),
    (
        {"feed": [{"task": ONE, "name": "x"}, [{"task": TWO, "name": "x"}]]},
        "E014",
        "JOBS['feed'][\"tasks\"][1][0][\"name\"] is 'x', the name of JOBS['feed'][\"tasks\"][0] too",
        "a name of its own",
    ),
    (
        {"feed": [{"task": ONE, "name": "two"}, TWO]},
        "E014",
        "JOBS['feed'][\"tasks\"][0][\"name\"] is 'two', by which JOBS['feed'][\"tasks\"][1] is found too",
        "a name of its own",
    ),
    (
        {"feed": [ONE, {"task": TWO, "renamed_from": ["tests.jobs.zero", ONE]}]},
        "E014",
        "JOBS['feed'][\"tasks\"][1][\"renamed_from\"][1] is 'tests.jobs.one', which still stands at",
        "that are gone",
    ),
    *(
        (
            {"feed": [ONE, {**step, "renamed_from": ["tests.jobs.zero", "fetch"]}]},
            "E014",
            "JOBS['feed'][\"tasks\"][1][\"renamed_from\"][1] is 'fetch', which is no path that a job stands at",
            said,
        )
        for step, said in (
            ({"task": TWO}, "a name moves no job"),
            ({"sleep": 1}, "a name moves no job"),
            ({"map": TWO, "over": "cats"}, "the path that its task had"),
        )
    ),
    (
        {"feed": [ONE, [TWO, {"task": ONE, "renamed_from": "fetch"}]]},
        "E014",
        "JOBS['feed'][\"tasks\"][1][1][\"renamed_from\"] is 'fetch', which is no path",
        '"wait_for EVENT"',
    ),
    (
        {"feed": [ONE, {"wait_for": "approval", "on_timeout": "continue"}]},
        "E013",
        "JOBS['feed'][\"tasks\"][1][\"on_timeout\"] is 'continue', but the step has no timeout",
        "Give it a timeout, or leave on_timeout out",
    ),
    (
        {"feed": {"tasks": [ONE], "unique_conflict": "raise"}},
        "E013",
        "JOBS['feed'][\"unique_conflict\"] is 'raise', but the job is not unique",
        "Say what is unique, or leave unique_conflict out",
    ),
    (
        {"feed": {"tasks": [ONE], "workspace_schema": {"properties": {"url": {"type": "strin"}}}}},
        "E004",
        "JOBS['feed'][\"workspace_schema\"] is not a JSON schema: 'strin' is not one of ['array', ",
        "a JSON schema (a dict)",
    ),
    *(
        (
            {"feed": {"tasks": [ONE], "workspace_schema": schema}},
            "E004",
            "JOBS['feed'][\"workspace_schema\"] takes no dict, and a job that is given no workspace has {}",
            "a JSON schema (a dict)",
        )
        for schema in (
            {"type": "array"},
            {"type": ["string", "null"]},
            {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array"}}},
        )
    ),
    (
        {"feed": ["tests.jobs.takes_nothing"]},
        "E010",
        "which does not take these arguments (too many positional arguments)",
        "takes_nothing(job)",
    ),
    ({"feed": ["tests.jobs.takes_two"]}, "E010", "(missing a required", "takes_two(job)"),
    (
        {"feed": {"tasks": [ONE], "failure_hook": ONE}},
        "E010",
        "JOBS['feed'][\"failure_hook\"] is 'tests.jobs.one', which does not take",
        "one(job, exc)",
    ),
    (
        {"feed": {"tasks": [ONE], "completion_hook": "tests.jobs.failure_hook"}},
        "E010",
        "JOBS['feed'][\"completion_hook\"] is 'tests.jobs.failure_hook', which does not take",
        "failure_hook(job)",
    ),
]


@pytest.mark.parametrize(("jobs", "code", "text", "hint"), BAD)
def test_mistakes_in_jobs(settings: Any, jobs: Any, code: str, text: str, hint: str) -> None:
    settings.JOBS = jobs
    (error,) = errors()
    assert error.id == f"django_dbq.{code}"
    assert error.msg.startswith("JOBS")
    assert text in error.msg
    assert error.hint is not None
    assert hint in error.hint


def test_no_mistake_is_told_twice(settings: Any) -> None:
    for jobs, *_ in BAD:
        settings.JOBS = jobs
        messages = [error.msg for error in errors()]
        assert len(messages) == len(set(messages))


@pytest.mark.django_db  # newer versions of Django also ask the database
def test_the_command_fails_for_a_mistake_and_shows_its_hint(settings: Any) -> None:
    settings.JOBS = {"feed": [ONE]}
    call_command("check")
    settings.JOBS = {"feed": {"tasks": [ONE], "falure_hook": ONE}}
    with pytest.raises(SystemCheckError, match=r"(?s)E003.*did you mean.*HINT: Known here: tasks"):
        call_command("check")


@pytest.mark.parametrize(
    ("dbq", "code", "text"),
    [
        ({"WAKEUPS": "poll"}, "E007", 'DBQ["WAKEUPS"] is an unknown setting'),
        ({"WAKEUP": 1}, "E008", 'DBQ["WAKEUP"] is 1'),
        ({"RETENTION": {}}, "E006", 'DBQ["RETENTION"] is not supported yet'),
        (
            {"DEFAULTS": {"schedule": {"cron": "0 8 * * *"}}},
            "E006",
            'DBQ["DEFAULTS"]["schedule"] is not supported',
        ),
        ({"MAX_RUNS": 0}, "E008", 'DBQ["MAX_RUNS"] is 0'),
        ({"WORKER_TIMEOUT": 0.5}, "E008", 'DBQ["WORKER_TIMEOUT"] is 0.5'),
        (
            {"DEFAULTS": {"retry_on": ["Gone"]}},
            "E009",
            'DBQ["DEFAULTS"]["retry_on"][0] is \'Gone\'',
        ),
        ({"DEFAULTS": {"retries": 3}, "MAX_RUNS": 3}, "E013", 'DBQ["DEFAULTS"]["retries"] is 3'),
        (
            {"DEFAULTS": {"workspace_schema": {"required": "url"}}},
            "E004",
            "DBQ[\"DEFAULTS\"][\"workspace_schema\"] is not a JSON schema: 'url' is not of type 'array'",
        ),
        ({"DEFAULTS": {"colour": 1}}, "E003", 'DBQ["DEFAULTS"]["colour"] is an unknown option'),
    ],
)
def test_mistakes_in_dbq(settings: Any, dbq: Any, code: str, text: str) -> None:
    settings.JOBS = {"feed": [ONE, TWO], "clean": [ONE]}
    settings.DBQ = dbq
    (error,) = errors()
    assert error.id == f"django_dbq.{code}"
    assert text in error.msg
    assert error.hint


def test_every_documented_id_stands_in_these_tables() -> None:
    documented = set(re.findall(r"E\d{3}", checks.__doc__ or ""))
    assert {code for _, code, _, _ in BAD} | {"E007", "E008", "E011"} == documented


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a module ``written_by_test``, not written yet."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "written_by_test.py"
    sys.modules.pop("written_by_test", None)


def test_user_code_that_raises_while_it_is_imported_is_a_mistake_like_any_other(
    settings: Any, module: Path
) -> None:
    module.write_text("raise RuntimeError('no licence')\n")
    settings.JOBS = {"feed": ["written_by_test.x"], "other": ["tests.jobs.nine"]}
    first, second = errors()
    assert "written_by_test.x', which does not import (RuntimeError: no licence)" in first.msg
    assert "tests.jobs.nine" in second.msg


@pytest.mark.parametrize(
    "body",
    [
        "def x(job, more=None): ...",
        "def x(*args): ...",
        "class x:\n    def __init__(self, job): ...",
        "from functools import partial\nx = partial(lambda a, job: None, 1)",
        "x = id",
        "async def x(job): ...",
    ],
)
def test_whatever_can_be_called_with_the_job_will_do(
    settings: Any, module: Path, body: str
) -> None:
    module.write_text(body + "\n")
    settings.JOBS = {"feed": ["written_by_test.x"]}
    assert errors() == []


@pytest.mark.parametrize("body", ["def x(job): yield", "async def x(job): yield"])
def test_a_generator_function_would_not_run(settings: Any, module: Path, body: str) -> None:
    module.write_text(body + "\n")
    settings.JOBS = {"feed": ["written_by_test.x"]}
    (error,) = errors()
    assert error.id == "django_dbq.E010"
    assert "is 'written_by_test.x', a generator function" in error.msg
    assert error.hint == "Make it a function without yield."


def test_whatever_wraps_an_async_function_counts_as_one(settings: Any, module: Path) -> None:
    module.write_text("""
from asgiref.sync import sync_to_async
from functools import partial
async def task(n, job): ...
x, y = partial(task, 1), sync_to_async(lambda job: None)
""")
    settings.JOBS = {"feed": {"tasks": ["written_by_test.x", "written_by_test.y"]}}
    assert errors() == []
    settings.JOBS = {"feed": {**settings.JOBS["feed"], "atomic": True}}
    assert [error.id for error in errors()] == ["django_dbq.E012"] * 2


def test_paths_of_invalid_entries_are_not_imported(settings: Any, module: Path) -> None:
    module.write_text("raise RuntimeError('no licence')\n")
    entry = {"tasks": ["written_by_test.x"], "retry_on": ["written_by_test.Error"], "colour": 1}
    settings.JOBS = {"feed": entry}
    assert [error.id for error in errors()] == ["django_dbq.E003"]


# -- the database --


def test_the_databases_of_the_suite_are_supported() -> None:
    assert run_checks(tags=[Tags.database], databases=["default"]) == []


def test_a_database_that_jobs_cannot_run_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "oracle")
    storage_for.cache_clear()
    try:
        (error,) = checks.check_database(databases=["default"])
        assert checks.check_database(databases=["other"]) == []
        assert checks.check_database(databases=None) == []
    finally:
        storage_for.cache_clear()
    assert error.id == "django_dbq.E011"
    assert "'default' is oracle" in error.msg
    assert error.hint is not None
    assert "PostgreSQL" in error.hint
