"""Migrations: they match the models, go both ways and lose nothing; builds of indexes can be interrupted."""

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations import RunPython
from django.utils import timezone

from django_dbq.migrations._operations import AddIndexOnline, RemoveIndexOnline
from django_dbq.models import Job
from django_dbq.testing import drain
from tests.jobs import ran

HOUR = datetime.timedelta(hours=1)
LATEST = MigrationLoader(None).graph.leaf_nodes("django_dbq")[0][1]
NAMES = [
    "0001_initial",
    "0002_auto_20151016_1027",
    "0003_auto_20180713_1000",
    "0004_auto_20210818_0247",
    "0005_job_run_after",
    "0006_alter_job_state",
    "0007_attempts_and_workers",
    "0008_claim_indexes",
    "0009_longer_names",
    "0010_failures_losses_and_heartbeats",
    "0011_held_index",
    "0012_pipelines",
    "0013_claims_by_deadline",
    "0014_unique_jobs_limits_and_queues",
    "0015_unique_and_limited_indexes",
]


def test_the_first_six_carry_the_names_of_django_db_queue() -> None:
    """A database that has applied those goes on from there."""
    found = sorted(
        name for app, name in MigrationLoader(None).disk_migrations if app == "django_dbq"
    )
    assert found == NAMES


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "django_dbq", check=True, dry_run=True, verbosity=0)


def test_what_is_not_atomic_can_be_repeated() -> None:
    """An interrupted build leaves the operations before it done, and the migration not recorded."""
    loader = MigrationLoader(None)
    for (app, name), migration in loader.disk_migrations.items():
        if app == "django_dbq" and not migration.atomic:
            for operation in migration.operations:
                known = AddIndexOnline | RemoveIndexOnline | RunPython
                assert isinstance(operation, known), f"{name}: {operation.describe()}"


def test_every_operation_can_be_undone() -> None:
    loader = MigrationLoader(None)
    for (app, name), migration in loader.disk_migrations.items():
        if app == "django_dbq":
            for operation in migration.operations:
                assert operation.reversible, f"{name}: {operation.describe()}"


Migrate = Callable[[str | None], Any]


@pytest.fixture
def migrate(transactional_db: None) -> Iterator[Migrate]:
    """Migrate to a state by its name; returns the models as they are there. Afterwards all is as it was."""

    def to(name: str | None) -> Any:
        executor = MigrationExecutor(connection)
        state = executor.migrate([("django_dbq", name)])
        return state.apps

    yield to
    if "django_dbq_job" in tables():
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_dbq_job")
    to(LATEST)


def tables() -> set[str]:
    return {t for t in connection.introspection.table_names() if t.startswith("django_dbq")}


def indexes() -> set[str]:
    """The names of the indexes and constraints that migrations give a name."""
    with connection.cursor() as cursor:
        made = connection.introspection.get_constraints(cursor, "django_dbq_job")
    return {name for name in made if name.startswith("dbq_")}


def columns() -> dict[str, int | None]:
    """Each column of the job with its greatest length, where it has one."""
    with connection.cursor() as cursor:
        described = connection.introspection.get_table_description(cursor, "django_dbq_job")
    return {column.name: column.display_size or column.internal_size for column in described}


MODELS = ["job", "attempt", "worker", "dependency", "jobevent", "queue", "limit", "start"]
TABLES = {f"django_dbq_{model}" for model in MODELS}
OURS = {
    "dbq_job_next",
    "dbq_job_later",
    "dbq_job_held",
    "dbq_job_member",
    "dbq_job_waiting",
    "dbq_job_unique",
    "dbq_job_limited",
    "dbq_job_state",
}


def test_there_and_back_again(migrate: Migrate) -> None:
    assert tables() == TABLES
    assert indexes() == OURS
    now = columns()
    for name in reversed(NAMES):
        migrate(name)
    assert tables() == {"django_dbq_job"}
    migrate(None)
    assert tables() == set()
    for name in NAMES:
        migrate(name)
    assert tables() == TABLES
    assert indexes() == OURS
    assert columns() == now


def test_back_to_what_django_db_queue_left(migrate: Migrate) -> None:
    migrate("0006_alter_job_state")
    names = {
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
    }
    assert set(columns()) == names
    assert (columns()["name"], columns()["next_task"], columns()["queue_name"]) == (100, 100, 20)
    assert indexes() == set()


def test_rows_survive_both_ways(migrate: Migrate, settings: Any) -> None:
    settings.JOBS = {"feed": ["tests.jobs.one", "tests.jobs.two"]}
    later = timezone.now() + HOUR
    new = Job.objects.create(name="feed", workspace={"a": "ü"}, priority=3)
    future = Job.objects.create(name="feed", run_after=later)
    done = Job.objects.create(name="feed", workspace={"was": "done"})
    Job.objects.filter(pk=done.pk).update(state="COMPLETE", next_task="")

    old = migrate("0006_alter_job_state").get_model("django_dbq", "Job")
    assert {(job.pk, job.state) for job in old.objects.all()} == {
        (new.pk, "NEW"),
        (future.pk, "NEW"),
        (done.pk, "COMPLETE"),
    }
    stopped = old.objects.create(
        name="feed", state="READY", next_task="tests.jobs.two", workspace=None
    )
    migrate(LATEST)

    assert Job.objects.get(pk=new.pk).workspace == {"a": "ü"}
    assert Job.objects.get(pk=future.pk).run_after == later
    assert dict(Job.objects.values_list("pk", "due")) == {
        new.pk: True,
        future.pk: False,  # else the claim's index would hold it
        done.pk: True,
        stopped.pk: True,
    }
    assert drain() == 3
    assert ran(new) == ["one", "two"]
    assert ran(stopped) == ["two"]


def test_older_processes_go_on_while_the_new_columns_are_there(migrate: Migrate) -> None:
    """Their INSERT names the columns that they know; the others have defaults in the database."""
    old = migrate("0006_alter_job_state").get_model("django_dbq", "Job")
    for name in NAMES[6:]:
        migrate(name)
        job = old.objects.create(name="feed", next_task="tests.jobs.one", workspace={})
        old.objects.filter(pk=job.pk).update(state="FAILED")
        assert old.objects.get(pk=job.pk).state == "FAILED"
    theirs = {field.attname for field in old._meta.concrete_fields}
    added = {
        field.attname: set(Job.objects.values_list(field.attname, flat=True))
        for field in Job._meta.concrete_fields
        if field.attname not in theirs
    }
    assert added == {
        "due": {True},
        "step": {0},
        "attempt": {0},
        "worker_id": {None},
        "finished": {None},
        "failures": {0},
        "lost": {0},
        "progress": {None},
        "progress_message": {""},
        "deadline": {None},
        "urgency": {0},
        "home_queue": {""},
        "parent_id": {None},
        "position": {None},
        "parent_round": {None},
        "round": {None},
        "waiting_for": {0},
        "watched": {False},
        "pausing": {False},
        "result": {None},
        "forked_from_id": {None},
        "unique_key": {None},
        "limited": {False},
        "concurrency_key": {""},
        "rate_key": {""},
    }


def test_processes_of_the_release_before_go_on_while_this_one_migrates(migrate: Migrate) -> None:
    """They claim and finish with the columns that they know."""
    old = migrate("0011_held_index").get_model("django_dbq", "Job")
    migrate("0012_pipelines")
    job = old.objects.create(name="feed", next_task="tests.jobs.one", workspace={}, step=0)
    claimed = old.objects.filter(pk=job.pk, attempt=0).update(state="PROCESSING", attempt=1)
    assert claimed == 1
    migrate("0013_claims_by_deadline")
    assert old.objects.filter(pk=job.pk, attempt=1).update(state="READY", step=1) == 1
    old.objects.get(pk=job.pk).delete()
    assert not Job.objects.exists()


def test_a_state_from_before_the_check_was_there(migrate: Migrate) -> None:
    """On PostgreSQL rows that are there are not looked at, so a strange one does not stop the migration."""
    old = migrate("0008_claim_indexes").get_model("django_dbq", "Job")
    strange = old.objects.create(name="feed", next_task="x", state="HOMEMADE")
    if connection.vendor == "postgresql":
        migrate(LATEST)
        assert Job.objects.get(pk=strange.pk).state == "HOMEMADE"
    else:
        with pytest.raises(DatabaseError):
            migrate(LATEST)
        old.objects.all().delete()
        migrate(LATEST)
        assert not Job.objects.exists()
        strange = old.objects.create(name="feed", next_task="x")
    with pytest.raises(IntegrityError):
        Job.objects.filter(pk=strange.pk).update(state="HOMEMADE TOO")


# -- PostgreSQL: the indexes are built while rows are written --


@pytest.fixture
def postgresql() -> None:
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL builds indexes concurrently")


def made(index: str, unique: bool = False) -> list[str]:
    """How the index is built, up to what it is of."""
    return [
        f'DROP INDEX CONCURRENTLY IF EXISTS "{index}";',
        f'CREATE {"UNIQUE " if unique else ""}INDEX CONCURRENTLY "{index}"',
    ]


def valid(index: str) -> bool | None:
    """Whether the database uses the index; None if there is none."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [index]
        )
        row = cursor.fetchone()
    return row and row[0]


def definition(index: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", [index])
        return str(cursor.fetchone()[0])


# The migrations that build indexes in this way: the one before each, and what it builds and drops.
ONLINE = [
    (
        "0008_claim_indexes",
        "0007_attempts_and_workers",
        [*made("dbq_job_claim"), *made("dbq_job_future")],
    ),
    ("0011_held_index", "0010_failures_losses_and_heartbeats", made("dbq_job_held")),
    (
        "0013_claims_by_deadline",
        "0012_pipelines",
        [
            *made("dbq_job_next"),
            *made("dbq_job_member"),
            *made("dbq_job_waiting"),
            'DROP INDEX CONCURRENTLY IF EXISTS "dbq_job_claim";',
        ],
    ),
    (
        "0015_unique_and_limited_indexes",
        "0014_unique_jobs_limits_and_queues",
        [
            *made("dbq_job_unique", unique=True),
            *made("dbq_job_later"),
            *made("dbq_job_limited"),
            'DROP INDEX CONCURRENTLY IF EXISTS "dbq_job_future";',
        ],
    ),
]
BUILT = [
    pytest.param(name, before, index, id=index)
    for name, before, sql in ONLINE
    for index in re.findall(r'CREATE (?:UNIQUE )?INDEX CONCURRENTLY "(\w+)"', "".join(sql))
]


@pytest.mark.usefixtures("postgresql")
@pytest.mark.parametrize(("name", "before", "index"), BUILT)
def test_an_interrupted_build_can_be_repeated(
    migrate: Migrate, name: str, before: str, index: str
) -> None:
    """A concurrent build that fails leaves an invalid index under its name."""
    migrate(before)
    migrate(name)
    built = definition(index)
    old = migrate(before).get_model("django_dbq", "Job")
    assert valid(index) is None
    for _ in range(2):
        old.objects.create(name="feed", next_task="tests.jobs.one", workspace={})
    with connection.cursor() as cursor, pytest.raises(IntegrityError):
        cursor.execute(f"CREATE UNIQUE INDEX CONCURRENTLY {index} ON django_dbq_job (name)")
    assert valid(index) is False

    migrate(name)
    assert valid(index) is True
    assert definition(index) == built
    migrate(LATEST)
    assert valid(index) is (True if index in OURS else None)


@pytest.mark.usefixtures("postgresql")
@pytest.mark.parametrize(("name", "before", "expected"), ONLINE)
def test_those_who_write_are_not_stopped(
    migrate: Migrate, name: str, before: str, expected: list[str]
) -> None:
    migrate(before)
    with connection.schema_editor(collect_sql=True, atomic=False) as editor:
        loader = MigrationLoader(connection)
        migration = loader.get_migration("django_dbq", name)
        state = loader.project_state([("django_dbq", before)])
        migration.apply(state, editor, collect_sql=True)
        sql = [line for line in editor.collected_sql if "INDEX" in line]
    assert [line.split(" ON ")[0] for line in sql] == expected
    assert not migration.atomic


@pytest.mark.usefixtures("postgresql")
@pytest.mark.parametrize(
    ("name", "before", "old", "new"),
    [
        ("0013_claims_by_deadline", "0012_pipelines", "dbq_job_claim", "dbq_job_next"),
        (
            "0015_unique_and_limited_indexes",
            "0014_unique_jobs_limits_and_queues",
            "dbq_job_future",
            "dbq_job_later",
        ),
    ],
)
def test_an_index_goes_when_the_one_in_its_place_is_there(
    migrate: Migrate, name: str, before: str, old: str, new: str
) -> None:
    migrate(before)
    assert (valid(old), valid(new)) == (True, None)
    migrate(name)
    assert (valid(old), valid(new)) == (None, True)
    operations = MigrationLoader(None).get_migration("django_dbq", name).operations
    (added,) = [
        n for n, o in enumerate(operations) if isinstance(o, AddIndexOnline) and o.index.name == new
    ]
    (gone,) = [n for n, o in enumerate(operations) if isinstance(o, RemoveIndexOnline)]
    assert added < gone


@pytest.mark.usefixtures("postgresql")
def test_nothing_is_rewritten(migrate: Migrate) -> None:
    """The table may hold millions of rows and is locked while it, or an index of it, is written anew."""

    def file(name: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_relation_filenode(to_regclass(%s))", [name])
            return int(cursor.fetchone()[0])

    old = migrate("0006_alter_job_state").get_model("django_dbq", "Job")
    for _ in range(3):
        old.objects.create(name="feed", next_task="tests.jobs.one", workspace={})
    table = file("django_dbq_job")
    migrate("0008_claim_indexes")
    made = {name: file(name) for name in ("django_dbq_job_pkey",)}
    migrate("0011_held_index")
    made["dbq_job_held"] = file("dbq_job_held")
    migrate("0013_claims_by_deadline")
    made |= {name: file(name) for name in ("dbq_job_next", "dbq_job_member", "dbq_job_waiting")}
    migrate(LATEST)
    assert file("django_dbq_job") == table
    assert {name: file(name) for name in made} == made
