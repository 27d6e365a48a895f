"""``JOBS`` becomes pipelines, and a list of everything that is wrong with it.

`parse` is pure: it reads no settings and imports no user code, so it can be tried on any dict. An entry with a mistake
yields problems and no pipeline; the others are not touched by it.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from .options import FORMS, JOB_OPTIONS, PATH, SHARED, Option, Problem
from .pipelines import (
    NAME_LENGTH,
    PATH_LENGTH,
    WAIT_FOR,
    Catalogue,
    Group,
    Limit,
    Map,
    Pipeline,
    Sleep,
    Step,
    WaitFor,
    Written,
    in_full,
    nearest,
)


def parse(jobs: object, defaults: object = None) -> Catalogue:
    """Parse the ``JOBS`` setting; ``defaults`` is ``DBQ["DEFAULTS"]``, job options for entries that do not say.

    Never raises: whatever is wrong is in the catalogue's ``problems``.
    """
    problems: list[Problem] = []
    written: list[Written] = []
    common = _defaults(defaults, problems, written)
    if not isinstance(jobs, Mapping):
        problems.append(
            Problem("E001", "JOBS", f"is {kind(jobs)}", "Make it a dict of jobs by name.")
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

    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH or "\0" in name:
        hint = f"Name a job by a string of 1 to {NAME_LENGTH} characters, without NUL."
        problem("E001", where, "is not a usable name", hint)
        return None
    if isinstance(entry, list | tuple):
        entry = {"tasks": entry}
    if not isinstance(entry, Mapping):
        problem(
            "E002",
            where,
            f"is {kind(entry)}",
            'Make it a list of task paths, or a dict with "tasks".',
        )
        return None
    found = len(problems)
    valid = _options(entry, JOB_OPTIONS, where, job, problems)
    written.append(Written(where, MappingProxyType(valid)))
    options = _over(common, valid, entry, where, job, problems)
    if "unique_conflict" in valid and not options.get("unique", "unique" in entry):
        text = f"is {valid['unique_conflict']!r}, but the job is not unique"
        hint = "Say what is unique, or leave unique_conflict out."
        problem("E013", f'{where}["unique_conflict"]', text, hint)
    tasks = entry.get("tasks")
    if not isinstance(tasks, list | tuple) or not tasks:
        said = (
            "is missing"
            if "tasks" not in entry
            else "is empty"
            if tasks in ([], ())
            else f"is {kind(tasks)}"
        )
        problem("E002", f'{where}["tasks"]', said, "List at least one task path.")
        return None
    steps = _Steps(job, options, problems, written)
    sequence = steps.sequence(tasks, f'{where}["tasks"]')
    steps.compare_names(sequence)
    if len(problems) > found:
        return None
    known = {key: options[key] for key in options if key in Pipeline.__dataclass_fields__}
    if isinstance(known.get("unique"), list | tuple):
        known["unique"] = tuple(known["unique"])
    for key in ("concurrency", "rate_limit"):
        if key in known:
            known[key] = _limit(known[key])
    return Pipeline(name=name, steps=sequence, where=tuple(steps.where), **known)


def _limit(given: Any) -> Limit:
    """One limit of either kind and form."""
    given = given if isinstance(given, Mapping) else {"limit": given}
    limit, seconds = given["limit"], 0
    if isinstance(limit, str):
        count, _, unit = limit.partition("/")
        limit, seconds = int(count), {"s": 1, "m": 60, "h": 3600}[unit]
    return Limit(limit, given.get("key"), seconds)


class _Steps:
    """Goes through the steps of one job, depth first, and counts their places."""

    def __init__(
        self,
        job: str | None,
        options: dict[str, Any],
        problems: list[Problem],
        written: list[Written],
    ) -> None:
        self.job = job
        self.options = options  # the job's
        self.problems = problems
        self.written = written
        self.where: list[str] = []  # the key path of each step, by place
        self.paths: dict[str, str] = {}  # of the step at each key path
        self.names: dict[str, str] = {}  # those that are given, likewise
        self.former: list[tuple[str, str, str]] = []  # where it says so, earlier name, form

    def sequence(self, steps: Iterable[object], where: str) -> tuple[Step, ...]:
        found = [self.step(step, f"{where}[{number}]") for number, step in enumerate(steps)]
        return tuple(step for step in found if step is not None)

    def step(self, step: object, where: str) -> Step | None:
        """One step of any form; None if it is not valid."""
        place = len(self.where)
        self.where.append(where)
        branches_at = f'{where}["group"]'
        if isinstance(step, str):
            if not _value(step, Option(PATH), where, self.job, self.problems):
                return None
            step = {"task": step}
        if isinstance(step, list | tuple):
            step, branches_at = {"group": step}, where
        if not isinstance(step, Mapping):
            hint = (
                "A step is a task path, a dict with one of task, sleep, wait_for, group or map, or a list "
                "(a parallel group)."
            )
            return self._problem(where, f"is {kind(step)}", hint)
        forms = [key for key in FORMS if key in step]
        if len(forms) != 1:
            has = " and ".join(forms) if forms else f"none of {', '.join(FORMS)}{_meant(step)}"
            return self._problem(where, f"has {has}", "Give the step exactly one of them.")
        (form,) = forms
        if form == "map" and isinstance(step["map"], list | tuple):
            return self._problem(
                f'{where}["map"]', "is a group inside a map", "Give the map one task path."
            )
        values = _options(step, FORMS[form], where, self.job, self.problems)
        self.written.append(Written(where, MappingProxyType(values)))
        if form not in values:
            return None
        name = values.get("name")
        former = self._former(values, form, where)
        said: dict[str, Any] = {
            "renamed_from": tuple(path for word in former for path in _rows(form, word)),
            "when": values.get("when"),
        }
        if name is not None:
            self.names[where] = name
        if form == "task":
            path = values["task"]
            own = _over(self.options, values, step, where, self.job, self.problems)
            found: Step | None = _task(place, path, own, values, name=name or _last(path), **said)
        elif form == "map":
            found = self._map(place, step, values, where, former, said)
        elif form == "group":
            found = self._group(place, values, where, branches_at, name, said)
        elif form == "sleep":
            found = Sleep(place, form, name=name or form, seconds=values["sleep"], **said)
        else:
            event = values["wait_for"]
            if "on_timeout" in values and values.get("timeout", step.get("timeout")) is None:
                text = f"is {values['on_timeout']!r}, but the step has no timeout"
                hint = "Give it a timeout, or leave on_timeout out."
                problem = Problem("E013", f'{where}["on_timeout"]', text, hint, self.job)
                self.problems.append(problem)
            found = WaitFor(
                place,
                f"{WAIT_FOR} {event}",
                name=name or event,
                event=event,
                patience=values.get("timeout"),
                on_timeout=values.get("on_timeout", "fail"),
                **said,
            )
        if found is not None:
            self.paths[where] = found.path
        return found

    def _map(
        self,
        place: int,
        step: Mapping[Any, Any],
        values: dict[str, Any],
        where: str,
        former: tuple[str, ...],
        said: dict[str, Any],
    ) -> Step | None:
        if "over" not in values:
            if "over" not in step:
                self._problem(where, "is a map without over", "Name the list in the workspace.")
            return None
        own = _over(self.options, values, step, where, self.job, self.problems)
        path = values["map"]
        task = _task(
            len(self.where),
            path,
            own,
            values,
            name=_last(path),
            renamed_from=tuple(filter(None, map(_task_of_map, former))),
            collected="into" in values,
        )
        self.where.append(f'{where}["map"]')
        self.paths[self.where[-1]] = path
        return Map(
            place,
            f"map {path}"[:PATH_LENGTH],
            name=values.get("name") or _last(path),
            task=task,
            over=values["over"],
            into=values.get("into"),
            on_failure=values.get("on_failure", "fail"),
            **said,
        )

    def _group(
        self,
        place: int,
        values: dict[str, Any],
        where: str,
        branches_at: str,
        name: str | None,
        said: dict[str, Any],
    ) -> Step | None:
        branches = values["group"]
        if not isinstance(branches, list | tuple):
            return self._problem(
                f'{where}["group"]', f"is {kind(branches)}", "Make it a list of branches."
            )
        if not branches:
            return self._problem(where, "is an empty group", "Give it branches, or remove it.")
        found = []
        for number, branch in enumerate(branches):
            at = f"{branches_at}[{number}]"
            if isinstance(branch, list | tuple):
                if not branch:
                    self._problem(at, "is an empty branch", "Give it steps, or remove it.")
                found.append(self.sequence(branch, at))
            else:
                one = self.step(branch, at)
                found.append((one,) if one is not None else ())
        return Group(
            place,
            f"group {name}" if name else "group",
            name=name or "group",
            branches=tuple(found),
            on_failure=values.get("on_failure", "fail"),
            **said,
        )

    def _former(self, values: dict[str, Any], form: str, where: str) -> tuple[str, ...]:
        former = values.get("renamed_from", ())
        if isinstance(former, str):
            self.former.append((f'{where}["renamed_from"]', former, form))
            return (former,)
        for number, word in enumerate(former):
            self.former.append((f'{where}["renamed_from"][{number}]', word, form))
        return tuple(former)

    def compare_names(self, sequence: Iterable[Step]) -> None:
        """Note names that would find another step as well; and what was renamed and still stands, where a job would
        always be found first.

        Args:
            sequence: the steps outside of groups and maps: only these are asked for by name, so only among them a name
                that is given may clash with one that is not.
        """
        named = _by_first(self.names)
        outside = {self.where[step.place]: step for step in sequence}
        for where, name in self.names.items():
            at = f'{where}["name"]'
            if named[name] != where:
                self._clash(at, f"is {name!r}, the name of {named[name]} too")
            for other, step in outside.items() if where in outside else ():
                called = (step.path,) if other in self.names else (step.path, step.name)
                if other != where and name in called:
                    self._clash(at, f"is {name!r}, by which {other} is found too")
        stand = _by_first(self.paths)
        for at, word, form in self.former:
            stands = [stand.get(path) for path in (word, *_rows(form, word))]
            if found := next(filter(None, [*stands, named.get(word)]), None):
                self._clash(at, f"is {word!r}, which still stands at {found}")

    def _clash(self, where: str, text: str) -> None:
        hint = "Give each step a name of its own; renamed_from takes paths and names that are gone."
        self.problems.append(Problem("E014", where, text, hint, self.job))

    def _problem(self, where: str, text: str, hint: str) -> Step | None:
        """Note a malformed step; there is none then."""
        self.problems.append(Problem("E005", where, text, hint, self.job))
        return None


def _task(
    place: int, path: str, options: Mapping[str, Any], values: Mapping[str, Any], **said: Any
) -> Step:
    """The step with everything that ``options``, the job's and its own, say of it."""
    shared = {key: options[key] for key in SHARED if key in options}
    if "retry_on" in shared:
        shared["retry_on"] = tuple(shared["retry_on"])
    return Step(place, path, queue=values.get("queue"), **shared, **said)


def _rows(form: str, word: str) -> tuple[str, ...]:
    """What rows may have of a step that ``renamed_from`` calls so: that itself, or what its form makes of it.

    Only a map is never called by a path alone: that is the one of its task, and what its members have.
    """
    called = f"{form} {word}"[:PATH_LENGTH]
    if form == "map":
        return (word[:PATH_LENGTH],) if in_full(word) else (called,)
    return (word,) if form in ("task", "sleep") else (word, called)


def _by_first(said: dict[str, str]) -> dict[str, str]:
    """What is said at key paths, and where first."""
    return {what: where for where, what in reversed(said.items())}


def _meant(step: Mapping[Any, Any]) -> str:
    """The form that a step without one was probably meant to have."""
    known = {key for options in FORMS.values() for key in options}
    return next(filter(None, (nearest(key, FORMS) for key in step if key not in known)), "")


def _task_of_map(word: str) -> str | None:
    """What the members of a map had that ``renamed_from`` calls so."""
    path = word.removeprefix("map ")
    return None if in_full(path) else path


def _last(path: str) -> str:
    return path.rpartition(".")[2]


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
        step = _task(0, "", options, {})
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
    elif option.mistake is not None and (wrong := option.mistake(value)) is not None:
        hint = f"Expected: {option.expects(None)}."
        problems.append(Problem("E004", at, wrong, hint, job))
    else:
        return True
    return False


def kind(value: object) -> str:
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return "None" if value is None else f"{article} {name}"
