"""System checks: every mistake in ``JOBS`` and ``DBQ``, with its key path and a hint. Ids are never reused.

E001 JOBS or a job's name   E002 an entry without tasks      E003 unknown option    E004 wrong value of an option
E005 malformed step         E006 not supported yet           E007 DBQ key           E008 DBQ value
E009 path does not import   E010 not callable, or with the wrong parameters         E011 database not supported
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import router
from django.utils.module_loading import import_string

from . import conf
from .options import Problem
from .pipelines import Pipeline
from .storage import storage_for

HOOKS = ("creation_hook", "pre_task_hook", "post_task_hook", "failure_hook", "completion_hook")


@register("django_dbq")
def check_settings(
    app_configs: Sequence[AppConfig] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """``JOBS`` and ``DBQ`` are well formed, and every path in them leads to something that can be called."""
    configuration = conf.configuration()
    problems = list(configuration.problems)
    for pipeline in configuration.catalogue.values():
        problems.extend(_paths(pipeline))
    return [
        Error(
            f"{problem.where} {problem.text}.", hint=problem.hint, id=f"django_dbq.{problem.code}"
        )
        for problem in problems
    ]


@register("django_dbq", Tags.database)
def check_database(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """The queue's database is one that jobs can run from."""
    from .models import Job

    alias = router.db_for_write(Job)
    if alias not in (databases or ()):
        return []
    try:
        storage_for(alias)
    except NotImplementedError as error:
        hint = "Route django_dbq to PostgreSQL, MySQL, MariaDB or SQLite."
        return [Error(str(error), hint=hint, id="django_dbq.E011")]
    return []


def _paths(pipeline: Pipeline) -> Iterator[Problem]:
    where = f"JOBS[{pipeline.name!r}]"
    for step in pipeline.steps:
        yield from _callable(step.path, f'{where}["tasks"][{step.place}]', ("job",))
    for hook in HOOKS:
        if path := getattr(pipeline, hook):
            parameters = ("job", "exc") if hook == "failure_hook" else ("job",)
            yield from _callable(path, f'{where}["{hook}"]', parameters)


def _callable(path: str, where: str, parameters: tuple[str, ...]) -> Iterator[Problem]:
    """Problems with the function at ``path``, which is called with ``parameters``."""
    try:
        function = import_string(path)
    except Exception as error:  # importing user code may raise anything
        reason = f"{type(error).__name__}: {error}"
        hint = "Write the path of a function that can be imported: package.module.function."
        yield Problem("E009", where, f"is {path!r}, which does not import ({reason})", hint)
        return
    call = f"{path.rpartition('.')[2]}({', '.join(parameters)})"
    if not callable(function):
        yield Problem(
            "E010", where, f"is {path!r}, which is not callable", f"It is called as {call}."
        )
        return
    if inspect.iscoroutinefunction(function):
        hint = "Make it a plain function: async functions are not supported yet."
        yield Problem("E010", where, f"is {path!r}, an async function", hint)
        return
    try:
        inspect.signature(function).bind(*parameters)
    except ValueError:
        return  # built in, without a signature to look at
    except TypeError as error:
        text = f"is {path!r}, which does not take these arguments ({error})"
        yield Problem("E010", where, text, f"It is called as {call}.")
