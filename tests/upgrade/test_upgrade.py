"""django-db-queue 3.3.0 fills a database, then this package migrates it and finishes the jobs; as a user would do it.

Both run as real processes on the project beside this file, each in its own environment, on the database under test.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import django
import pytest
from django.db import connection

PROJECT = Path(__file__).parent / "project"
ROOT = Path(__file__).parents[2]
STEPS = ["weigh", "label", "ship"]

# In the order in which a worker of the queue has to take them up: by priority, then by age.
CLAIMABLE = {
    "default": [
        "new, high priority",
        "new, run_after past",
        "ready after two steps",
        "new",
        "new, empty workspace",
        "new, nested workspace",
        "ready after one step",
        "new, null workspace",
        "new, low priority",
    ],
    "mail": ["new, other queue", "ready, other queue"],
}
LEFT_ALONE = ["new, run_after ahead", "processing", "stopping", "failed", "complete"]


@dataclass
class Release:
    """One release of the package: an interpreter that has it, and the project's surroundings."""

    python: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> str:
        """Run Python with these arguments, in the project's folder; return what it prints."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=PROJECT,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def manage(self, *arguments: str) -> str:
        return self.run("-m", "django", *arguments)

    def tell(self, script: str) -> Any:
        return json.loads(self.run(script))


@pytest.fixture(scope="session")
def old_python() -> Path:
    """Python with django-db-queue 3.3.0 and the Django under test, in an environment kept for the next time."""
    version = f"py{sys.version_info.major}.{sys.version_info.minor}-django{django.get_version()}"
    folder = ROOT / ".venv" / f"django-db-queue-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = ["django-db-queue==3.3.0", f"Django=={django.get_version()}", "dj-database-url"]
    drivers = {"postgresql": ["psycopg[binary]"], "mysql": ["mysqlclient"], "sqlite": []}
    wanted += drivers[connection.vendor]
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted], check=True)
    return python


@pytest.fixture
def database_url(tmp_path: Path, django_db_setup: None, django_db_blocker: Any) -> Iterator[str]:
    """An empty database of the kind under test."""
    if connection.vendor == "sqlite":
        yield f"sqlite:///{tmp_path}/upgrade.sqlite3"
        return
    name = f"dbq_upgrade_{uuid.uuid4().hex[:8]}"
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
        yield urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()
        cursor.execute(f"DROP DATABASE {name}")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the tasks write down what they did: a line "id step" for each."""
    return tmp_path / "log"


@pytest.fixture
def old(old_python: Path, database_url: str, log: Path) -> Release:
    return Release(old_python, surroundings(database_url, log))


@pytest.fixture
def new(database_url: str, log: Path) -> Release:
    return Release(Path(sys.executable), surroundings(database_url, log, ROOT))


def surroundings(database_url: str, log: Path, *path: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "DJANGO_SETTINGS_MODULE": "settings",
        "PARCELS_LOG": str(log),
        "PYTHONPATH": os.pathsep.join(map(str, (PROJECT, *path))),
    }


def test_jobs_of_django_db_queue_are_finished(old: Release, new: Release, log: Path) -> None:
    old.manage("migrate")
    ids = old.tell("fill.py")
    before = old.tell("rows.py")
    assert {row["state"] for row in before.values()} == {
        "NEW", "READY", "PROCESSING", "STOPPING", "FAILED", "COMPLETE",
    }  # fmt: skip
    log.unlink()

    new.manage("migrate")
    assert new.tell("rows.py") == before

    for queue in CLAIMABLE:
        new.manage("worker", queue, "--until_done")
    after = new.tell("rows.py")
    assert after.keys() == before.keys()
    for key in LEFT_ALONE:
        assert after[ids[key]] == before[ids[key]], key

    done = read(log)
    assert list(done) == [ids[key] for queue in CLAIMABLE for key in CLAIMABLE[queue]]
    for queue, keys in CLAIMABLE.items():
        for key in keys:
            was, now = before[ids[key]], after[ids[key]]
            assert (now["state"], now["next_task"], now["queue_name"]) == ("COMPLETE", "", queue), (
                key
            )
            assert (
                done[ids[key]] == STEPS[STEPS.index(was["next_task"].removeprefix("parcels.")) :]
            ), key
            workspace = was["workspace"] or {}
            if "steps" in workspace:
                workspace["steps"] = STEPS
            assert (now["workspace"] or {}) == workspace, key
            for column in ("id", "created", "name", "priority", "run_after"):
                assert now[column] == was[column], key

    log.unlink()
    new.run("reset.py")
    new.manage("worker", "--until_done")
    assert read(log) == {ids["processing"]: STEPS[1:], ids["stopping"]: STEPS}
    rows = new.tell("rows.py")
    assert {rows[ids[key]]["state"] for key in ("processing", "stopping")} == {"COMPLETE"}
    assert rows[ids["new, run_after ahead"]] == before[ids["new, run_after ahead"]]

    log.unlink()
    assert new.tell("verbs.py") == {"retried": True, "cancelled": True, "again": False}
    new.manage("worker", "--until_done")
    assert read(log) == {ids["failed"]: STEPS[1:]}
    rows = new.tell("rows.py")
    assert rows[ids["failed"]]["state"] == "COMPLETE"
    assert rows[ids["failed"]]["workspace"]["steps"] == STEPS
    assert rows[ids["new, run_after ahead"]]["state"] == "CANCELLED"


def test_the_first_six_migrations_make_the_table_of_django_db_queue(
    old: Release, new: Release, tmp_path: Path
) -> None:
    old.manage("migrate", "django_dbq", "0006")
    expected = old.tell("columns.py")
    old.manage("migrate", "django_dbq", "zero")
    new.manage("migrate", "django_dbq", "0006")
    assert new.tell("columns.py") == expected


def read(log: Path) -> dict[str, list[str]]:
    """The steps that each job has run, jobs in the order of their first one."""
    steps: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        job, step = line.split()
        steps.setdefault(job, []).append(step)
    return steps
