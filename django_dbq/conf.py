"""The only reader of settings: ``JOBS`` and ``DBQ``, parsed once and anew whenever they change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed

from .options import LEASE, LIMIT, Expectation, Problem, or_none
from .parsing import kind, parse
from .pipelines import Catalogue, Pipeline, nearest

WAKEUPS = ("auto", "poll")


def _expects_wakeup(value: Any) -> str | None:
    return None if value in WAKEUPS else '"auto" or "poll"'


def _expects_anything(value: Any) -> str | None:
    return None  # the parser of pipelines looks at it


KEYS: dict[str, Expectation] = {
    "WAKEUP": _expects_wakeup,
    "DEFAULTS": _expects_anything,
    "MAX_RUNS": or_none(LIMIT),
    "WORKER_TIMEOUT": LEASE,
}
LATER = ("RETENTION",)


@dataclass(frozen=True, slots=True)
class Configuration:
    """Both settings, read together."""

    catalogue: Catalogue
    known_steps: tuple[str, ...]  # "name path" of every step: what a worker may claim
    limited: Mapping[str, Pipeline]  # those with a limit, by name
    wakeup: str
    max_runs: int | None  # attempts that a job may have, over all steps; None: any number
    worker_timeout: float  # seconds; a worker that has been silent for so long counts as lost
    problems: tuple[Problem, ...]  # of both settings


_NOTHING: dict[str, Any] = {}
_read: tuple[object, object, Configuration] | None = None


def configuration() -> Configuration:
    """The current settings; parsed again only when one of them is another object than before."""
    global _read
    jobs, dbq = getattr(settings, "JOBS", _NOTHING), getattr(settings, "DBQ", _NOTHING)
    if _read is None or _read[0] is not jobs or _read[1] is not dbq:
        _read = (jobs, dbq, _parse(jobs, dbq))
    return _read[2]


def catalogue() -> Catalogue:
    """Every valid pipeline by name."""
    return configuration().catalogue


def _parse(jobs: object, dbq: object) -> Configuration:
    problems: list[Problem] = []
    if not isinstance(dbq, Mapping):
        problems.append(Problem("E007", "DBQ", f"is {kind(dbq)}", "Make it a dict of settings."))
        dbq = {}
    valid: dict[str, Any] = {}
    for key, value in dbq.items():
        where = f"DBQ[{key!r}]" if not isinstance(key, str) else f'DBQ["{key}"]'
        if key in LATER or (key == "WAKEUP" and str(value).startswith("redis://")):
            hint = "Remove it: this release would not act on it."
            problems.append(Problem("E006", where, "is not supported yet", hint))
        elif key not in KEYS:
            hint = f"Known here: {', '.join(KEYS)}."
            problems.append(
                Problem("E007", where, f"is an unknown setting{nearest(key, KEYS)}", hint)
            )
        elif (expected := KEYS[key](value)) is not None:
            problems.append(Problem("E008", where, f"is {value!r}", f"Expected: {expected}."))
        else:
            valid[key] = value
    parsed = parse(jobs, valid.get("DEFAULTS"))
    return Configuration(
        catalogue=parsed,
        known_steps=tuple(
            sorted(
                {
                    f"{p.name} {path}"
                    for p in parsed.values()
                    for step in p.every
                    for path in (step.path, *step.renamed_from)
                }
            )
        ),
        limited={p.name: p for p in parsed.values() if p.concurrency or p.rate_limit},
        wakeup=valid.get("WAKEUP", "auto"),
        max_runs=valid.get("MAX_RUNS", 100),
        worker_timeout=float(valid.get("WORKER_TIMEOUT", 60)),
        problems=(*parsed.problems, *problems),
    )


def _forget(*, setting: str, **kwargs: object) -> None:
    global _read
    if setting in ("JOBS", "DBQ"):
        _read = None


setting_changed.connect(_forget, dispatch_uid="django_dbq.conf")
