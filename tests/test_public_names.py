"""The public surface as a list: whoever adds, renames or removes a name meets it here."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
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
from django_dbq.models import Attempt, Job, JobManager, JobQuerySet, Worker
from django_dbq.states import State

MODULES: dict[str, set[str]] = {
    "django_dbq": {"__version__"},
    "django_dbq.signals": {"job_created", "job_finished", "send", "step_finished", "step_started"},
    "django_dbq.tasks": {"get_next_task_name"},
    "django_dbq.testing": {"drain"},
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
    assert set(django_dbq.__all__) == {"Abort", "Retry"}
    assert (django_dbq.Abort, django_dbq.Retry) == (outcomes.Abort, outcomes.Retry)


def test_the_package_can_be_imported_before_there_are_settings() -> None:
    """By a settings module, say."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    subprocess.run(
        [sys.executable, "-c", "from django_dbq import Abort, Retry"], env=environment, check=True
    )


def test_errors_stand_where_the_documentation_says() -> None:
    from django_dbq.pipelines import UnknownJob
    from django_dbq.workspaces import InvalidWorkspace

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
    assert set(found) == {Attempt, Job, Worker}


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
            },
        ),
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
        "place",
        "checkpoint",
        "set_progress",
        "wait",
        "get_queue_depths",
    }
    assert methods(Attempt) == {"duration"}
    assert methods(Worker) == set()
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
    "create_job": {"name", "--workspace", "--queue", "--priority", "--run_after", "--run-after"},
    "delete_old_jobs": {"--hours"},
    "job_graph": {"name", "--format", "--output"},
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


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_of_commands(name: str) -> None:
    def arguments(command: Any) -> set[str]:
        actions = command.create_parser("manage.py", name)._actions
        return {word for action in actions for word in action.option_strings or [action.dest]}

    command = load_command_class("django_dbq", name)
    base = type("Command", (type(command).__mro__[1],), {"add_arguments": lambda *args: None})
    assert arguments(command) - arguments(base()) == COMMANDS[name]
