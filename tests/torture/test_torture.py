"""Small rounds of torture; ``python -m tests.torture`` runs long ones."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.db import connection

from tests.torture import plan
from tests.torture.fleet import ROOT
from tests.torture.kinds import JOBS, KINDS, Verb
from tests.torture.models import Effect
from tests.torture.plan import Action, draw
from tests.torture.rounds import Round

SECONDS, COUNT, WORKERS = 20, 800, 4


@pytest.fixture
def effects(transactional_db: None) -> Iterator[None]:
    """The table of effects in the test's database; its app is not in the suite's settings."""
    with connection.schema_editor() as editor:
        editor.create_model(Effect)
    yield
    with connection.schema_editor() as editor:
        editor.delete_model(Effect)


@pytest.fixture
def seed() -> int:
    """Another one in each run; pytest-randomly's ``-p randomly_seed`` repeats it."""
    return random.randrange(1_000_000)


@pytest.mark.usefixtures("effects")
def test_nothing_is_lost_doubled_or_stuck(seed: int, settings: Any, tmp_path: Path) -> None:
    """On the suite's own database, which is not restarted."""
    settings.JOBS = JOBS
    drawn = draw(seed, SECONDS, COUNT, WORKERS, restarts=False)
    report = Round(drawn, tmp_path).run()
    print(f"{drawn}\n\n{report}\n\n{report.details()}")  # noqa: T201  # shown by a failing test
    assert not report.findings
    assert len(report.history.jobs) >= COUNT
    assert report.kills >= 3
    assert report.measured(watched=False), "nothing ran when the worker was killed"
    assert report.measured(watched=True)
    done = {deed.verb for deed in report.history.deeds if deed.done}
    assert done == set(Verb) - {Verb.REDEEM}  # which comes down to retries


def test_nothing_is_lost_doubled_or_stuck_when_the_server_is_restarted(
    seed: int, program: Callable[[str], str]
) -> None:
    """On a server of the round's own."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server that could be restarted")
    if connection.vendor == "mysql":
        program("mariadbd")
    on = {"postgresql": "postgres", "mysql": "mariadb"}[connection.vendor]
    options = {"seed": seed, "seconds": SECONDS, "jobs": COUNT, "workers": WORKERS, "on": on}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "tests.torture", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- the plan --


def test_a_plan_follows_from_its_seed() -> None:
    first, again, other = (draw(seed, 60, 1000, 5, restarts=True) for seed in (1, 1, 2))
    assert first == again
    assert str(first) == str(again)
    assert first.events != other.events


def test_a_plan_holds_what_it_promises() -> None:
    drawn = draw(1, 300, 5000, 5, restarts=True)
    assert {event.action for event in drawn.events} == set(Action)
    assert {job.name for job in drawn.jobs} == KINDS.keys() - {"follow-on"}
    assert len({job.id for job in drawn.jobs}) == len(drawn.jobs) >= 5000
    times = [event.at for event in drawn.events]
    assert times == sorted(times)
    assert max(times) == 300


def test_what_a_plan_does_to_jobs_comes_to_an_end() -> None:
    drawn = draw(1, 300, 5000, 5, restarts=True)
    assert {errand.verb for errand in drawn.errands} == set(Verb)
    created = {job.id: event.at for event in drawn.events for job in event.jobs}
    verbs: dict[UUID, list[Verb]] = {}
    for errand in drawn.errands:
        assert errand.at >= created[errand.job]
        verbs.setdefault(errand.job, []).append(errand.verb)
    for done in verbs.values():
        lasting = [verb for verb in done if verb in (Verb.PAUSE, Verb.RESUME, Verb.CANCEL)]
        assert lasting[-1:] != [Verb.PAUSE]
    assert all(verbs[job.id][-1] is Verb.SEND for job in drawn.jobs if job.name == "awaiting")


def test_what_a_plan_lets_jobs_depend_on_is_there_before() -> None:
    drawn = draw(1, 300, 5000, 5, restarts=True)
    names: dict[UUID, str] = {}
    modes = set()
    for event in drawn.events:
        for job in event.jobs:
            if job.needs:
                modes.add((job.mode, job.on_failure))
            assert all(KINDS[names[key]].on_lost != "hold" for key in job.needs)
            names[job.id] = job.name
    assert modes == {(mode, end) for mode in ("all", "any") for end in ("block", "proceed")}


def test_nothing_disturbs_a_measured_kill() -> None:
    drawn = draw(1, 300, 5000, 5, restarts=True)
    measures = {action: (before, after) for action, before, after in plan.MEASURES}
    for event in drawn.events:
        if event.action not in measures:
            continue
        before, after = measures[event.action]
        for other in drawn.events:
            if other is not event and other.action is not Action.CREATE:
                ended = other.at + other.seconds
                assert ended <= event.at - before or other.at >= event.at + after


def test_a_plan_without_restarts_has_none() -> None:
    actions = {event.action for event in draw(1, 300, 10, 5, restarts=False).events}
    assert Action.RESTART_SERVER not in actions
