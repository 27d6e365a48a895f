"""Pipelines, the frozen values that the engine works with: what an entry of ``JOBS`` has become (see `parsing`)."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .options import Problem

NAME_LENGTH = 200  # of a job, as the column has it
PATH_LENGTH = 255  # of a task's dotted path


class UnknownJob(KeyError):
    """No (valid) entry of ``JOBS`` has this name; the message lists those that exist and the nearest."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a pipeline, identified by its place and its path, and how its attempts are run; here, a task.

    Places count all steps from 0, those of a group's branches and of maps after the group or map itself. Delays and the
    timeout are in seconds.
    """

    place: int
    path: str  # of the task; of the other forms what they are called
    name: str = ""
    renamed_from: tuple[str, ...] = ()  # paths that it had before, as rows may still have them
    when: str | None = None  # path of the predicate that decides whether it is run
    queue: str | None = None  # None: the job's own
    retries: int | None = None  # None says nothing: the worker's default
    retry_delay: float = 0
    retry_backoff: float = 2
    retry_max_delay: float = 600
    retry_jitter: bool = False
    retry_on: tuple[str, ...] = ()  # paths; none at all means every Exception
    timeout: float | None = None
    atomic: bool = False
    on_lost: str = "retry"
    collected: bool = False  # what the task returns becomes the job's result

    @property
    def sequences(self) -> "tuple[tuple[Step, ...], ...]":
        """What its members run, one sequence of steps for each kind of member."""
        return ()


@dataclass(frozen=True, slots=True)
class Group(Step):
    """Branches that run at once, each as a job of its own."""

    branches: tuple[tuple[Step, ...], ...] = ()
    on_failure: str = "fail"

    @property
    def sequences(self) -> tuple[tuple[Step, ...], ...]:
        return self.branches


@dataclass(frozen=True, slots=True)
class Map(Step):
    """One task for each item of a list in the workspace, each as a job of its own."""

    task: Step | None = None
    over: str = ""  # the list's key
    into: str | None = None  # the key for what the tasks return
    on_failure: str = "fail"

    @property
    def sequences(self) -> tuple[tuple[Step, ...], ...]:
        return ((self.task,),) if self.task else ()


@dataclass(frozen=True, slots=True)
class Sleep(Step):
    """A pause of so many seconds."""

    seconds: float = 0


@dataclass(frozen=True, slots=True)
class WaitFor(Step):
    """A pause until an event is sent, or for ``patience`` seconds."""

    event: str = ""
    patience: float | None = None
    on_timeout: str = "fail"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most ``limit`` jobs at a time, for each value of a key of the workspace or for all together; or, with
    ``seconds``, so many starts within that time.
    """

    limit: int
    key: str | None = None
    seconds: float = 0


SLEEP = "sleep"  # the path of such a step
WAIT_FOR = "wait_for"  # and the event: the path of such a step


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
    unique: bool | tuple[str, ...] = False  # the keys of the workspace that count; True: all
    unique_conflict: str = "return"
    workspace_schema: Mapping[str, Any] | None = None
    concurrency: Limit | None = None
    rate_limit: Limit | None = None
    where: tuple[str, ...] = field(default=(), repr=False, compare=False)  # key paths, by place
    every: tuple[Step, ...] = field(init=False, repr=False, compare=False)  # by place
    _following: tuple[Step | None, ...] = field(init=False, repr=False, compare=False)
    _enclosing: tuple[Step, ...] = field(init=False, repr=False, compare=False)  # outermost
    _around: tuple[Step | None, ...] = field(init=False, repr=False, compare=False)  # innermost
    has_queues: bool = field(init=False, repr=False, compare=False)  # of steps

    def __post_init__(self) -> None:
        following: dict[int, Step | None] = {}
        enclosing: dict[int, Step] = {}
        around: dict[int, Step | None] = {}
        flat: dict[int, Step] = {}

        def walk(sequence: tuple[Step, ...], top: Step | None, group: Step | None) -> None:
            for number, step in enumerate(sequence):
                flat[step.place] = step
                following[step.place] = sequence[number + 1] if number + 1 < len(sequence) else None
                enclosing[step.place], around[step.place] = top or step, group
                for inner in step.sequences:
                    walk(inner, top or step, step)

        walk(self.steps, None, None)
        places = range(len(flat))
        for name, value in (
            ("every", tuple(flat[place] for place in places)),
            ("_following", tuple(following[place] for place in places)),
            ("_enclosing", tuple(enclosing[place] for place in places)),
            ("_around", tuple(around[place] for place in places)),
            ("has_queues", any(step.queue for step in flat.values())),
        ):
            object.__setattr__(self, name, value)

    def locate(self, place: int, path: str, member: bool = False) -> Step | None:
        """The step that a job stands at: by place if ``path`` still stands there, else the nearest one of that path, or
        that had it once.

        None if the pipeline has no such step (any more): the job is stranded.

        Args:
            member: of a group or map. Another job never stands inside of one: where a deploy has put its step into a
                group, it stands at that group.
        """
        every = self.every
        found: Step | None = every[place] if place < len(every) else None
        if found is None or found.path != path or self._is_inside(found) != member:
            known = [step for step in every if step.path == path]
            known = known or [step for step in every if path in step.renamed_from]
            known.sort(key=lambda step: (self._is_inside(step) != member, abs(step.place - place)))
            found = known[0] if known else None
        if found is not None and not member:
            return self._enclosing[found.place]
        return found

    def keyed(self) -> str | None:
        """What of it knows the workspace by its keys, so that this has to be a dict; None if nothing does."""
        for step in self.every:
            if isinstance(step, Group | Map | WaitFor):
                return f"the step {step.path!r}"
        for option in ("concurrency", "rate_limit"):
            if (limit := getattr(self, option)) is not None and limit.key is not None:
                return option
        return "unique" if isinstance(self.unique, tuple) else None

    def nested(self, step: Step) -> bool:
        """Whether it is in a group or map that is itself in one."""
        around = self._around[step.place]
        return around is not None and self._around[around.place] is not None

    def within(self, step: Step, group: Step | None) -> Step:
        """What stands for ``step`` in the branches of ``group``: itself, or the group in which a deploy has put it.

        Of a group that is not known (any more), nobody can say: the step stands for itself.
        """
        if group is None:
            return step
        found: Step | None = step
        while found is not None:
            around = self._around[found.place]
            if around is group:
                return found
            found = around
        return step

    def after(self, step: Step, member: bool = False) -> Step | None:
        """The step that follows ``step``, or None after the last; members of a group or map run only what is inside."""
        if member and not self._is_inside(step):
            return None
        return self._following[step.place]

    def named(self, step: str | int) -> Step:
        """The step outside of groups and maps with this name, path or place; a map also by the path of its task, as
        ``JOBS`` has it.

        Raises:
            LookupError: there is none, or several; says which there are.
        """
        found = [
            s
            for s in self.steps
            if (s.place == step if isinstance(step, int) else step in (s.name, s.path))
        ] or [s for s in self.steps if isinstance(s, Map) and s.task and s.task.path == step]
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{s.place} ({s.name})" for s in self.steps)
        said = "several steps" if found else "no step"
        raise LookupError(f"The job {self.name!r} has {said} {step!r}. By place, it has: {known}.")

    def _is_inside(self, step: Step) -> bool:
        return self._enclosing[step.place] is not step


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


def in_full(word: str) -> bool:
    """Whether a row has this of a step of another form than a task."""
    return word in ("group", SLEEP) or word.startswith(("group ", "map ", f"{WAIT_FOR} "))


def nearest(word: object, words: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest of ``words``, or nothing."""
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
