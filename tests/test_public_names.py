"""The public surface as a list: whoever adds, renames or removes a name meets it here."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import load_command_class
from django.db.models import Model
from django.dispatch import Signal

import django_dbq
import django_dbq.management.commands
from django_dbq import conf, outcomes, signals
from django_dbq.models import (
    Attempt,
    Dependency,
    Job,
    JobEvent,
    JobManager,
    JobQuerySet,
    Limit,
    Queue,
    Start,
    Worker,
)
from django_dbq.states import State

MODULES: dict[str, set[str]] = {
    "django_dbq": {"__version__"},
    "django_dbq.signals": {"job_created", "job_finished", "send", "step_finished", "step_started"},
    "django_dbq.tasks": {"get_next_task_name"},
    "django_dbq.testing": {"advance", "assert_enqueued", "drain", "run_step"},
}


def defined(module: str) -> set[str]:
    """The names that a module's own code defines at its top level, without the private ones."""
    names = set()
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if name == "__version__" or not name.startswith("_")}


@pytest.mark.parametrize("module", MODULES)
def test_the_public_modules_export_these_names(module: str) -> None:
    assert defined(module) - {"logger"} == MODULES[module]


def test_the_package_itself_has_what_tasks_return() -> None:
    assert set(django_dbq.__all__) == {"Abort", "Finish", "Retry", "Wait"}
    for name in django_dbq.__all__:
        assert getattr(django_dbq, name) is getattr(outcomes, name)


def test_the_package_can_be_imported_before_there_are_settings() -> None:
    """By a settings module, say."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    subprocess.run(
        [sys.executable, "-c", "from django_dbq import *; Abort, Finish, Retry, Wait"],
        env=environment,
        check=True,
    )


def test_errors_stand_where_the_documentation_says() -> None:
    from django_dbq.dependencies import Cycle
    from django_dbq.pipelines import UnknownJob
    from django_dbq.steps import MembersFailed, WorkspaceConflict
    from django_dbq.workspaces import InvalidWorkspace

    assert issubclass(Cycle, ValueError)
    assert issubclass(MembersFailed, outcomes.Abort)
    assert issubclass(WorkspaceConflict, outcomes.Abort)
    assert issubclass(UnknownJob, KeyError)
    assert issubclass(InvalidWorkspace, TypeError)


def test_the_package_itself_imports_no_models() -> None:
    assert "models" not in {
        name
        for node in ast.walk(ast.parse(inspect.getsource(django_dbq)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (alias.name for alias in node.names)
    }


def test_models() -> None:
    found = apps.get_app_config("django_dbq").get_models()
    assert set(found) == {Attempt, Dependency, Job, JobEvent, Limit, Queue, Start, Worker}


def test_signals() -> None:
    sent = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert sent == {"job_created", "step_started", "step_finished", "job_finished"}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (
            Job,
            {
                "id",
                "created",
                "modified",
                "name",
                "state",
                "next_task",
                "workspace",
                "queue_name",
                "priority",
                "run_after",
                "due",
                "step",
                "attempt",
                "worker",
                "finished",
                "failures",
                "lost",
                "progress",
                "progress_message",
                "attempts",
                "deadline",
                "urgency",
                "home_queue",
                "parent",
                "children",
                "position",
                "parent_round",
                "round",
                "waiting_for",
                "watched",
                "pausing",
                "result",
                "forked_from",
                "forks",
                "dependencies",
                "dependents",
                "events",
                "unique_key",
                "limited",
                "concurrency_key",
                "rate_key",
                "starts",
            },
        ),
        (Dependency, {"id", "job", "on", "mode", "on_failure", "state"}),
        (JobEvent, {"id", "job", "name", "payload", "sent", "taken"}),
        (Limit, {"name", "concurrency_key", "rate_key"}),
        (Queue, {"name", "paused"}),
        (Start, {"id", "name", "key", "admitted", "at", "job", "attempt"}),
        (
            Attempt,
            {
                "id",
                "job",
                "number",
                "step",
                "task",
                "outcome",
                "worker",
                "started",
                "finished",
                "error",
            },
        ),
        (
            Worker,
            {
                "id",
                "label",
                "hostname",
                "pid",
                "queues",
                "started",
                "stopped",
                "heartbeat",
                "timeout",
                "reason",
                "jobs",
            },
        ),
    ],
)
def test_fields(model: type[Model], fields: set[str]) -> None:
    assert {
        getattr(field, "related_name", None) or field.name for field in model._meta.get_fields()
    } == fields


def methods(class_: type) -> set[str]:
    """The public methods and properties that the class's own code defines."""
    (body,) = ast.parse(inspect.getsource(class_)).body
    assert isinstance(body, ast.ClassDef)
    return {
        node.name
        for node in body.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def test_what_jobs_and_their_managers_can_do() -> None:
    assert methods(Job) == {
        "save",
        "prepare",
        "made",
        "place",
        "checkpoint",
        "set_progress",
        "wait",
        "get_queue_depths",
        "enter",
        "depends_on",
        "depends_mode",
        "on_dependency_failure",
        "retry",
        "fork",
        "explain",
        "cancel",
        "pause",
        "resume",
        "send",
    }
    assert methods(Attempt) == {"duration"}
    assert methods(Worker) == methods(Dependency) == methods(JobEvent) == set()
    assert methods(JobQuerySet) == {"update", "waiting", "claimable", "bulk_create"}
    assert methods(JobManager) == {"to_process", "get_ready_or_none", "delete_old"}
    assert isinstance(Job.objects, JobManager)
    assert Job.STATES is State


def test_states() -> None:
    assert State.values == [
        "NEW",
        "READY",
        "PROCESSING",
        "STOPPING",
        "WAITING",
        "BLOCKED",
        "PAUSED",
        "COMPLETE",
        "FAILED",
        "CANCELLED",
    ]


def test_settings() -> None:
    assert set(conf.KEYS) == {"WAKEUP", "DEFAULTS", "MAX_RUNS", "WORKER_TIMEOUT"}
    assert not set(conf.KEYS) & set(conf.LATER)


COMMANDS: dict[str, set[str]] = {
    "check_jobs": {"--json"},
    "create_job": {"name", "--workspace", "--queue", "--priority", "--run_after", "--run-after"},
    "delete_old_jobs": {"--hours"},
    "job_graph": {"name", "--format", "--output"},
    "jobs": set(),
    "queues": set(),
    "queue_depth": {"queue_name", "--exclude_future_jobs", "--exclude-future-jobs"},
    "worker": {
        "queue_name",
        "--queue",
        "--exclude_queue",
        "--exclude-queue",
        "--rate_limit",
        "--rate-limit",
        "--tick",
        "--once",
        "--until_done",
        "--until-done",
        "--max_jobs",
        "--max-jobs",
        "--processes",
        "--threads",
        "--max_memory",
        "--max-memory",
        "--timeout",
        "--grace",
        "--retry",
        "--label",
        "--reload",
        "--dry-run",
    },
}


def test_commands() -> None:
    folder = django_dbq.management.commands.__path__
    assert {module.name for module in pkgutil.iter_modules(folder)} == set(COMMANDS)


# What each verb of such a command takes.
FILTERS = {
    *("--state", "--states", "--name", "--queue"),
    *("--parent", "--no_members", "--no-members"),
}
WHICH = {"id", *FILTERS, "--yes"}
VERBS: dict[str, dict[str, set[str]]] = {
    "jobs": {
        "list": {*FILTERS, "--limit", "--json"},
        "show": {"id", "--workspace", "--json"},
        "explain": {"id", "--json"},
        "retry": {*WHICH, "--from"},
        "cancel": WHICH,
        "pause": WHICH,
        "resume": WHICH,
        "fork": {"id", "--from", "--workspace"},
        "send": {"id", "event", "payload"},
    },
    "queues": {"list": {"--json"}, "pause": {"names"}, "resume": {"names"}},
}


def words(parser: ArgumentParser) -> set[str]:
    return {
        word
        for action in parser._actions
        if not isinstance(action, _SubParsersAction)
        for word in action.option_strings or [action.dest]
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_of_commands(name: str) -> None:
    command = load_command_class("django_dbq", name)
    base: Any = type("Command", (type(command).__mro__[1],), {"add_arguments": lambda *args: None})
    common = words(base().create_parser("manage.py", name))
    parser = command.create_parser("manage.py", name)
    assert words(parser) - common == COMMANDS[name]
    verbs = {
        verb: words(of_verb) - common
        for action in parser._actions
        if isinstance(action, _SubParsersAction)
        for verb, of_verb in action.choices.items()
    }
    assert verbs == VERBS.get(name, {})
