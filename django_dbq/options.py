"""Every option that an entry of ``JOBS`` may carry: what it accepts, and whether this release acts on it.

An option that a later release gives its effect is checked for form all the same and then refused as not supported yet:
a setting is never ignored in silence.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

QUEUE_LENGTH = (
    63  # of a queue's name, as the column has it: 252 bytes in utf8mb4, so MySQL widens it in place
)

CENTURY = 3_155_760_000  # seconds: more than anybody means, less than any clock or timer refuses


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the settings: a check's code, the key path, what is wrong there, and how to mend it."""

    code: str
    where: str
    text: str
    hint: str
    job: str | None = None

    def __str__(self) -> str:
        return f"{self.where} {self.text}"


Expectation = Callable[
    [Any], str | None
]  # what is expected instead of the value, or None if the value will do


@dataclass(frozen=True, slots=True)
class Option:
    expects: Expectation
    supported: bool = True
    mistake: Expectation | None = None  # what is wrong within a value of the right form


def _expect(what: str, holds: Callable[[Any], bool]) -> Expectation:
    return lambda value: None if holds(value) else what


def _is_number(value: object, least: float = 0, most: float = CENTURY) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_count(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_path(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= 255
        and all(part.isidentifier() for part in value.split("."))
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _dict_of(expectations: Mapping[str, Expectation], *required: str) -> Expectation:
    def expects(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"a dict with {', '.join(expectations)}"
        for key in required:
            if key not in value:
                return f"a dict with the key {key!r}"
        for key, item in value.items():
            if key not in expectations:
                return f"a dict with no other keys than {', '.join(expectations)} (found {key!r})"
            if (wanted := expectations[key](item)) is not None:
                return f"{wanted} under {key!r}"
        return None

    return expects


def _either(*choices: Expectation) -> Expectation:
    def expects(value: Any) -> str | None:
        wanted = [choice(value) for choice in choices]
        return None if None in wanted else ", or ".join(w for w in wanted if w)

    return expects


def _each(expectation: Expectation) -> Expectation:
    def expects(value: Any) -> str | None:
        if not isinstance(value, list | tuple) or not value:
            return "a list that is not empty"
        return next((w for item in value if (w := expectation(item)) is not None), None)

    return expects


def or_none(expectation: Expectation) -> Expectation:
    def expects(value: Any) -> str | None:
        wanted = None if value is None else expectation(value)
        return wanted and f"{wanted}, or None"

    return expects


def _mistake_of_schema(value: Any) -> str | None:
    from . import schemas  # takes a while to import, which only those with a schema need

    if (wrong := schemas.mistake(value)) is not None:
        return f"is not a JSON schema: {wrong}"
    if not schemas.allows_dicts(value):
        return "takes no dict, and a job that is given no workspace has {}"
    return None


PATH = _expect("a dotted path (a string of at most 255 characters)", _is_path)
EXCEPTIONS = _expect(
    'a list of exceptions: dotted paths, or names of built-in ones such as "OSError"',
    lambda value: isinstance(value, list | tuple) and bool(value) and all(map(_is_path, value)),
)
TEXT = _expect("a string that is not empty", _is_text)
EVENT_LENGTH = 200
NAME = _expect(
    f"a name (a string of 1 to {EVENT_LENGTH} characters)",
    lambda value: _is_text(value) and len(value) <= EVENT_LENGTH and "\0" not in value,
)
STEP_NAME = _expect(
    f"a name (a string of 1 to {EVENT_LENGTH} characters) that is no number, which is a place",
    lambda value: NAME(value) is None and not value.isdecimal(),
)
FLAG = _expect("True or False", lambda value: isinstance(value, bool))
COUNT = _expect("a whole number, 0 or more", _is_count)
LIMIT = _expect("a whole number, 1 or more", lambda value: _is_count(value, 1))
SECONDS = _expect("a number of seconds, 0 or more (up to a century)", _is_number)
TIMEOUT = _expect(
    "a number of seconds above 0 (up to a century)", lambda value: _is_number(value) and value > 0
)
LEASE = _expect(
    "a number of seconds, 1 or more (up to a century)", lambda value: _is_number(value, 1)
)
FACTOR = _expect("a number from 1 to 1000", lambda value: _is_number(value, 1, 1000))
ON_LOST = _expect('"retry", "fail" or "hold"', lambda value: value in ("retry", "fail", "hold"))
QUEUE = _expect(
    f"the name of a queue (a string of 1 to {QUEUE_LENGTH} characters)",
    lambda value: _is_text(value) and len(value) <= QUEUE_LENGTH and "\0" not in value,
)
PRIORITY = _expect(
    "a whole number from -32768 to 32767",
    lambda value: (
        isinstance(value, int) and not isinstance(value, bool) and -32768 <= value <= 32767
    ),
)
RATE = _expect(
    '"100/m": starts per second (s), minute (m) or hour (h)',
    lambda value: isinstance(value, str) and re.fullmatch(r"[1-9]\d*/[smh]", value) is not None,
)
CRON = _expect(
    "five cron fields, or six with seconds",
    lambda value: (
        isinstance(value, str)
        and len(value.split()) in (5, 6)
        and all(re.fullmatch(r"[\w*/,#?-]+", part) for part in value.split())
    ),
)
SCHEDULE = _dict_of(
    {
        "cron": CRON,
        "timezone": TEXT,
        "workspace": _expect("a dict", lambda value: isinstance(value, Mapping)),
        "name": TEXT,
        "misfire": _expect(
            '"skip", "once" or "all"', lambda value: value in ("skip", "once", "all")
        ),
        "max_catch_up": COUNT,
        "overlap": _expect('"allow" or "skip"', lambda value: value in ("allow", "skip")),
        "run_on_creation": FLAG,
        "datetime_key": TEXT,
        "queue": QUEUE,
    },
    "cron",
)

# Options of a job and of a step alike: how an attempt is run, and what follows when it goes wrong.
SHARED: dict[str, Option] = {
    "retries": Option(or_none(COUNT)),
    "retry_delay": Option(SECONDS),
    "retry_backoff": Option(FACTOR),
    "retry_max_delay": Option(SECONDS),
    "retry_jitter": Option(FLAG),
    "retry_on": Option(EXCEPTIONS),
    "timeout": Option(or_none(TIMEOUT)),
    "atomic": Option(FLAG),
    "on_lost": Option(ON_LOST),
}

JOB_OPTIONS: dict[str, Option] = {
    "tasks": Option(lambda value: None),  # the parser goes through them itself
    "creation_hook": Option(PATH),
    "pre_task_hook": Option(PATH),
    "post_task_hook": Option(PATH),
    "failure_hook": Option(PATH),
    "completion_hook": Option(PATH),
    "queue": Option(QUEUE),
    "priority": Option(PRIORITY),
    "description": Option(_expect("a string", lambda value: isinstance(value, str))),
    **SHARED,
    "unique": Option(
        _either(_expect("True or False", lambda value: isinstance(value, bool)), _each(TEXT))
    ),
    "unique_conflict": Option(
        _expect(
            '"return", "raise" or "replace"',
            lambda value: value in ("return", "raise", "replace"),
        )
    ),
    "concurrency": Option(_either(LIMIT, _dict_of({"limit": LIMIT, "key": TEXT}, "limit"))),
    "rate_limit": Option(_either(RATE, _dict_of({"limit": RATE, "key": TEXT}, "limit"))),
    "schedule": Option(_either(SCHEDULE, _each(SCHEDULE)), supported=False),
    "workspace_schema": Option(
        _expect("a JSON schema (a dict)", lambda value: isinstance(value, Mapping)),
        mistake=_mistake_of_schema,
    ),
}

# Options of every form of a step.
NAMED: dict[str, Option] = {
    "name": Option(STEP_NAME),
    "renamed_from": Option(_either(TEXT, _each(TEXT))),
    "when": Option(PATH),
}
ON_FAILURE = Option(
    _expect(
        '"fail", "cancel_rest" or "ignore"',
        lambda value: value in ("fail", "cancel_rest", "ignore"),
    )
)

# The forms of a step, by the key that makes them: a task, durable pauses, groups and maps.
FORMS: dict[str, dict[str, Option]] = {
    "task": {"task": Option(PATH), **NAMED, "queue": Option(QUEUE), **SHARED},
    "sleep": {"sleep": Option(SECONDS), **NAMED},
    "wait_for": {
        "wait_for": Option(NAME),
        "timeout": Option(or_none(TIMEOUT)),
        "on_timeout": Option(
            _expect('"fail" or "continue"', lambda value: value in ("fail", "continue"))
        ),
        **NAMED,
    },
    "group": {
        "group": Option(lambda value: None),  # the parser goes through it itself
        "on_failure": ON_FAILURE,
        **NAMED,
    },
    "map": {
        "map": Option(PATH),
        "over": Option(TEXT),
        "into": Option(TEXT),
        "on_failure": ON_FAILURE,
        **NAMED,
        "queue": Option(QUEUE),
        **SHARED,
    },
}
