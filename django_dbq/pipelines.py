"""``JOBS`` becomes pipelines: frozen values for the engine, and a list of everything that is wrong with it.

`parse` is pure: it reads no settings and imports no user code, so it can be tried on any dict. An entry with a mistake
yields problems and no pipeline; the others are not touched by it.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .options import JOB_OPTIONS, PAUSE_OPTIONS, SHARED, STEP_OPTIONS, Option, Problem

NAME_LENGTH = 200  # of a job, as the column has it
PATH_LENGTH = 255  # of a task's dotted path


class UnknownJob(KeyError):
    """No (valid) entry of ``JOBS`` has this name; the message lists those that exist and the nearest."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Step:
    """One task of a pipeline, identified by its place (from 0) and its path, and how its attempts are run.

    Delays and the timeout are in seconds.
    """

    place: int
    path: str
    retries: int | None = None  # None says nothing: the worker's default
    retry_delay: float = 0
    retry_backoff: float = 2
    retry_max_delay: float = 600
    retry_jitter: bool = False
    retry_on: tuple[str, ...] = ()  # paths; none at all means every Exception
    timeout: float | None = None
    atomic: bool = False
    on_lost: str = "retry"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One valid entry of ``JOBS``. Hooks are dotted paths or None."""

    name: str
    steps: tuple[Step, ...]
    creation_hook: str | None = None
    pre_task_hook: str | None = None
    post_task_hook: str | None = None
    failure_hook: str | None = None
    completion_hook: str | None = None
    queue: str = "default"
    priority: int = 0
    description: str = ""

    def locate(self, place: int, path: str) -> Step | None:
        """The step that a job stands at: by place if ``path`` still stands there, else where it first stands now.

        None if the pipeline has no such step (any more): the job is stranded.
        """
        if place < len(self.steps) and self.steps[place].path == path:
            return self.steps[place]
        return next((step for step in self.steps if step.path == path), None)

    def after(self, step: Step) -> Step | None:
        """The step that follows ``step``, or None after the last."""
        following = step.place + 1
        return self.steps[following] if following < len(self.steps) else None


@dataclass(frozen=True, slots=True)
class Written:
    """The options that a job, a step or the defaults give themselves: for checks that name the place of a mistake."""

    where: str  # the key path
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Catalogue(Mapping[str, Pipeline]):
    """Every valid pipeline by name, with the problems of the invalid ones."""

    pipelines: Mapping[str, Pipeline] = field(default_factory=lambda: MappingProxyType({}))
    problems: tuple[Problem, ...] = ()
    written: tuple[Written, ...] = ()  # of the valid pipelines, from the general to the particular

    def __getitem__(self, name: str) -> Pipeline:
        return self.pipelines[name]

    def __iter__(self) -> Any:
        return iter(self.pipelines)

    def __len__(self) -> int:
        return len(self.pipelines)

    def named(self, name: str) -> Pipeline:
        """The pipeline of that name.

        Raises:
            UnknownJob: there is none; says which there are, which is nearest, or what is wrong with its entry.
        """
        if name in self.pipelines:
            return self.pipelines[name]
        mistakes = [str(p) for p in self.problems if p.job == name]
        if mistakes:
            raise UnknownJob(f"The entry {name!r} of JOBS is not valid: " + "; ".join(mistakes))
        known = ", ".join(repr(n) for n in sorted(self.pipelines)) or "none at all"
        raise UnknownJob(f"JOBS has no job named {name!r}{nearest(name, self)}. It knows: {known}.")


def nearest(word: object, words: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``words``, or nothing."""
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse(jobs: object, defaults: object = None) -> Catalogue:
    """Parse the ``JOBS`` setting; ``defaults`` is ``DBQ["DEFAULTS"]``, job options for entries that do not say.

    Never raises: whatever is wrong is in the catalogue's ``problems``.
    """
    problems: list[Problem] = []
    written: list[Written] = []
    common = _defaults(defaults, problems, written)
    if not isinstance(jobs, Mapping):
        problems.append(
            Problem("E001", "JOBS", f"is a {_kind(jobs)}", "Make it a dict of jobs by name.")
        )
        return Catalogue(problems=tuple(problems))
    pipelines = {}
    for name, entry in jobs.items():
        found, levels = len(problems), list[Written]()
        pipeline = _job(name, entry, common, problems, levels)
        if pipeline is not None and len(problems) == found:
            pipelines[pipeline.name] = pipeline
            written += levels
    return Catalogue(MappingProxyType(pipelines), tuple(problems), tuple(written))


def _defaults(defaults: object, problems: list[Problem], written: list[Written]) -> dict[str, Any]:
    where = 'DBQ["DEFAULTS"]'
    if defaults is None:
        return {}
    if not isinstance(defaults, Mapping):
        hint = "Expected: a dict of job options."
        problems.append(Problem("E008", where, f"is {defaults!r}", hint))
        return {}
    allowed = {key: option for key, option in JOB_OPTIONS.items() if key != "tasks"}
    valid = _options(defaults, allowed, where, None, problems)
    written.append(Written(where, MappingProxyType(valid)))
    return _over({}, valid, defaults, where, None, problems)


def _job(
    name: object,
    entry: object,
    common: dict[str, Any],
    problems: list[Problem],
    written: list[Written],
) -> Pipeline | None:
    where = f"JOBS[{name!r}]"
    job = name if isinstance(name, str) else None

    def problem(code: str, at: str, text: str, hint: str) -> None:
        problems.append(Problem(code, at, text, hint, job))

    if not isinstance(name, str) or not name or len(name) > NAME_LENGTH:
        problem(
            "E001",
            where,
            "is not a usable name",
            f"Name a job by a string of 1 to {NAME_LENGTH} characters.",
        )
        return None
    if isinstance(entry, list | tuple):
        entry = {"tasks": entry}
    if not isinstance(entry, Mapping):
        problem(
            "E002",
            where,
            f"is a {_kind(entry)}",
            'Make it a list of task paths, or a dict with "tasks".',
        )
        return None
    valid = _options(entry, JOB_OPTIONS, where, job, problems)
    written.append(Written(where, MappingProxyType(valid)))
    options = _over(common, valid, entry, where, job, problems)
    tasks = entry.get("tasks")
    if not isinstance(tasks, list | tuple) or not tasks:
        said = (
            "is missing"
            if "tasks" not in entry
            else "is empty"
            if tasks in ([], ())
            else f"is a {_kind(tasks)}"
        )
        problem("E002", f'{where}["tasks"]', said, "List at least one task path.")
        return None
    steps = []
    for place, step in enumerate(tasks):
        at = f'{where}["tasks"][{place}]'
        valid = _step(step, at, job, problems)
        written.append(Written(at, MappingProxyType(valid)))
        given = step if isinstance(step, Mapping) else {}
        own = _over(options, valid, given, at, job, problems)
        steps.append(_resolved(place, valid.get("task", ""), own))
    known = {key: options[key] for key in options if key in Pipeline.__dataclass_fields__}
    return Pipeline(name=name, steps=tuple(steps), **known)


def _step(
    step: object, where: str, job: str | None, problems: list[Problem], inside: str = ""
) -> dict[str, Any]:
    """Check one step of any form; returns the valid options of a plain task, the only form that runs so far."""
    path = JOB_OPTIONS[
        "creation_hook"
    ]  # any option that holds a dotted path checks it the same way
    if isinstance(step, str):
        return {"task": str(step)} if _value(step, path, where, job, problems) else {}
    if isinstance(step, list | tuple):
        if inside == "map":
            problems.append(
                Problem(
                    "E005", where, "is a group inside a map", "Give the map one task path.", job
                )
            )
        _group(step, where, job, problems)
        return {}
    if not isinstance(step, Mapping):
        hint = "A step is a task path, a dict with one of task, sleep, wait_for or map, or a list (a parallel group)."
        problems.append(Problem("E005", where, f"is a {_kind(step)}", hint, job))
        return {}
    forms = [key for key in ("task", *PAUSE_OPTIONS) if key in step]
    if len(forms) != 1:
        said = "has " + (" and ".join(forms) if forms else "none of task, sleep, wait_for and map")
        problems.append(Problem("E005", where, said, "Give the step exactly one of them.", job))
        return {}
    (form,) = forms
    if form == "map" and isinstance(step["map"], list | tuple):
        _step(step["map"], f'{where}["map"]', job, problems, inside="map")
        return {}
    values = _options(
        step, STEP_OPTIONS if form == "task" else PAUSE_OPTIONS[form], where, job, problems
    )
    if form == "map" and "over" not in step:
        problems.append(
            Problem("E005", where, "is a map without over", "Name the list in the workspace.", job)
        )
    return values if form == "task" else {}


def _resolved(place: int, path: str, options: Mapping[str, Any]) -> Step:
    """The step with everything that ``options``, the job's and its own, say of it."""
    shared = {key: options[key] for key in SHARED if key in options}
    if "retry_on" in shared:
        shared["retry_on"] = tuple(shared["retry_on"])
    return Step(place, path, **shared)


def _over(
    inherited: dict[str, Any],
    valid: dict[str, Any],
    given: Mapping[Any, Any],
    where: str,
    job: str | None,
    problems: list[Problem],
) -> dict[str, Any]:
    """The ``valid`` ones of the ``given`` options over the ``inherited``; numbers that contradict each other fall out.

    They are compared where one of them is written, and not with one that is refused already.
    """
    options = inherited | valid
    pair = [key for key in ("retry_delay", "retry_max_delay") if key in given]
    if pair and all(key in valid for key in pair):
        step = _resolved(0, "", options)
        if step.retry_delay > step.retry_max_delay:
            said = {
                "retry_delay": f"is {step.retry_delay}, above the retry_max_delay of {step.retry_max_delay}",
                "retry_max_delay": f"is {step.retry_max_delay}, below the retry_delay of {step.retry_delay}",
            }
            hint = "No delay exceeds retry_max_delay: give both here, retry_delay not above it."
            problems.append(Problem("E013", f'{where}["{pair[0]}"]', said[pair[0]], hint, job))
            for key in said:
                options.pop(key, None)
    return options


def _group(
    branches: Iterable[object], where: str, job: str | None, problems: list[Problem]
) -> None:
    branches = tuple(branches)
    if not branches:
        problems.append(
            Problem("E005", where, "is an empty group", "Give it branches, or remove it.", job)
        )
        return
    hint = "This release runs steps one after the other: list them in `tasks` itself."
    problems.append(
        Problem("E006", where, "is a parallel group, which is not supported yet", hint, job)
    )
    for number, branch in enumerate(branches):
        sequence = branch if isinstance(branch, list | tuple) else [branch]
        for place, step in enumerate(sequence):
            at = f"{where}[{number}]" + (f"[{place}]" if branch is sequence else "")
            _step(step, at, job, problems)


def _options(
    given: Mapping[Any, Any],
    allowed: Mapping[str, Option],
    where: str,
    job: str | None,
    problems: list[Problem],
) -> dict[str, Any]:
    """The valid ones of the ``given`` options; a problem for each of the others."""
    valid = {}
    for key, value in given.items():
        at = f"{where}[{key!r}]" if not isinstance(key, str) else f'{where}["{key}"]'
        if key not in allowed:
            hint = f"Known here: {', '.join(allowed)}."
            problems.append(
                Problem("E003", at, f"is an unknown option{nearest(key, allowed)}", hint, job)
            )
        elif _value(value, allowed[key], at, job, problems):
            valid[key] = value
    return valid


def _value(
    value: object, option: Option, at: str, job: str | None, problems: list[Problem]
) -> bool:
    expected = option.expects(value)
    if expected is not None:
        problems.append(Problem("E004", at, f"is {value!r}", f"Expected: {expected}.", job))
    elif not option.supported:
        hint = "Remove it: this release would not act on it."
        problems.append(Problem("E006", at, "is not supported yet", hint, job))
    else:
        return True
    return False


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
