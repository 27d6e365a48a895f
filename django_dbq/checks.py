"""System checks: every mistake in ``JOBS`` and ``DBQ``, with its key path and a hint. Ids are never reused.

E001 JOBS or a job's name   E002 an entry without tasks      E003 unknown option    E004 wrong value of an option
E005 malformed step         E006 not supported yet           E007 DBQ key           E008 DBQ value
E009 path does not import   E010 not what it has to be: a function with these parameters, an exception
E011 database not supported E012 an atomic step that is async
E013 numbers that contradict, and options without the one that gives them their effect
E014 names of steps that clash: one that another step has too, or a renamed_from that still stands, or that no job can
     stand at
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.apps import AppConfig
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import router
from django.utils.module_loading import import_string

from . import conf
from .options import Problem
from .pipelines import Pipeline, Step, Written, in_full
from .runner import exception_class
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
    for written in configuration.catalogue.written:
        problems.extend(_retries(written, configuration.max_runs))
        problems.extend(_former(written))
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
    for step, at in zip(pipeline.every, pipeline.where, strict=True):
        if type(step) is Step:
            yield from _task(step, at)
        if step.when:
            yield from _plain(step.when, f'{at}["when"]', ("job",))
    for hook in HOOKS:
        if path := getattr(pipeline, hook):
            parameters = ("job", "exc") if hook == "failure_hook" else ("job",)
            yield from _plain(path, f'{where}["{hook}"]', parameters)


def _task(step: Step, where: str) -> Iterator[Problem]:
    function, problem = _function(step.path, where, ("job",))
    if problem is not None:
        yield problem
    elif step.atomic and iscoroutinefunction(function):
        text = f"is {step.path!r}, an async function, in an atomic step"
        hint = "Django's transactions need a plain function: make it one, or leave atomic out."
        yield Problem("E012", where, text, hint)


def _plain(path: str, where: str, parameters: tuple[str, ...]) -> Iterator[Problem]:
    """Problems with a hook or a predicate."""
    function, problem = _function(path, where, parameters)
    if problem is not None:
        yield problem
    elif iscoroutinefunction(function):
        hint = "Make it a plain function: only tasks may be async."
        yield Problem("E010", where, f"is {path!r}, an async function", hint)


def _function(path: str, where: str, parameters: tuple[str, ...]) -> tuple[object, Problem | None]:
    """The function at ``path``, which is called with ``parameters``, and what is wrong with it."""
    try:
        function = import_string(path)
    except Exception as error:  # importing user code may raise anything
        reason = f"{type(error).__name__}: {error}"
        hint = "Write the path of a function that can be imported: package.module.function."
        text = f"is {path!r}, which does not import ({reason})"
        return None, Problem("E009", where, text, hint)
    hint = f"It is called as {path.rpartition('.')[2]}({', '.join(parameters)})."
    if not callable(function):
        return function, Problem("E010", where, f"is {path!r}, which is not callable", hint)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        text = f"is {path!r}, a generator function, whose body a call does not run"
        return function, Problem("E010", where, text, "Make it a function without yield.")
    try:
        inspect.signature(function).bind(*parameters)
    except ValueError:
        pass  # built in, without a signature to look at
    except TypeError as error:
        text = f"is {path!r}, which does not take these arguments ({error})"
        return function, Problem("E010", where, text, hint)
    return function, None


def _retries(written: Written, max_runs: int | None) -> Iterator[Problem]:
    """Problems with the exceptions and the number of retries, where they are written."""
    for number, path in enumerate(written.options.get("retry_on", ())):
        where = f'{written.where}["retry_on"][{number}]'
        try:
            exception_class(path)
        except TypeError as error:
            text = f"is {path!r}, which names no exception ({error})"
            yield Problem("E010", where, text, "Write the path of an exception class.")
        except Exception as error:  # importing user code may raise anything
            reason = f"{type(error).__name__}: {error}"
            hint = "Write the path of an exception that can be imported, or the name of a built-in one."
            yield Problem("E009", where, f"is {path!r}, which does not import ({reason})", hint)
    retries = written.options.get("retries")
    if retries is not None and max_runs is not None and retries >= max_runs:
        text = f'is {retries}, but DBQ["MAX_RUNS"] allows a job {max_runs} attempts, the first included'
        hint = 'Allow fewer retries, or more runs; DBQ["MAX_RUNS"] = None allows any number.'
        yield Problem("E013", f'{written.where}["retries"]', text, hint)


def _former(written: Written) -> Iterator[Problem]:
    """Words in ``renamed_from`` that no job stands at: of tasks, rows have the path, and one without a dot imports
    nothing.
    """
    former = written.options.get("renamed_from", ())
    words = enumerate([former] if isinstance(former, str) else former)
    if any(form in written.options for form in ("group", "wait_for")):
        return  # which may have been called anything
    for number, word in words:
        if in_full(word) or "." in word:
            continue
        at = "" if isinstance(former, str) else f"[{number}]"
        text = f"is {word!r}, which is no path that a job stands at"
        wanted = "the path that its task had" if "map" in written.options else "the path of a task"
        hint = (
            f"Say {wanted}, or what job.next_task was in full: "
            '"map PATH", "group NAME", "wait_for EVENT" (a name moves no job).'
        )
        yield Problem("E014", f'{written.where}["renamed_from"]{at}', text, hint)
