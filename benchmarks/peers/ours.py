"""This package; its worker is `manage.py worker` itself."""

from datetime import timedelta

import django
from django.apps import apps
from django.core.management import execute_from_command_line
from django.db import connection, models
from django.utils import timezone
from harness import departures, main, timed

django.setup()
Job = apps.get_model("django_dbq", "Job")


def manage(*arguments: str) -> None:
    execute_from_command_line(["manage.py", *arguments])


def drain() -> None:
    manage("worker", "--until_done")


def fill(name: str, count: int, times: int = 1) -> None:
    connection.ensure_connection()
    for _ in range(times):
        with timed():
            Job.objects.bulk_create([Job(name=name) for _ in range(count)])


def fill_map(items: int) -> None:
    Job.objects.create(name="map", workspace={"items": list(range(items))})


def fill_diamond(count: int) -> None:
    """One job, those that wait for it, and one that waits for those: so many together."""
    first = Job(name="noop")
    middle = [Job(name="noop", depends_on=[first]) for _ in range(count - 2)]
    Job.objects.bulk_create([first, *middle, Job(name="noop", depends_on=middle)])


def fill_beside(count: int, waiting: int) -> None:
    """Jobs beside others that wait for one which nobody runs here."""
    gate = Job.objects.create(name="earlier", queue_name="nobody's")
    Job.objects.bulk_create([Job(name="earlier", depends_on=[gate]) for _ in range(waiting)])
    fill("noop", count)


def send(count: int) -> None:
    connection.ensure_connection()
    for now in departures(count):
        Job.objects.create(name="stamp", workspace={"sent": now})


def crowd(finished: int, future: int) -> None:
    """Fill the table with copies of a job that a worker has finished and of one that lies ahead."""
    done = Job.objects.create(name="earlier")
    drain()
    ahead = Job.objects.create(name="earlier", run_after=timezone.now() + timedelta(days=1))
    identity = "md5('done' || n)::uuid"
    copy(done, finished, id=identity, created="created - n * interval '1 second'")
    for attempt in done.attempts.all():
        copy(attempt, finished, job_id=identity)
    later = "run_after + n * interval '1 second'"
    copy(ahead, future, id="md5('ahead' || n)::uuid", run_after=later)


def copy(row: models.Model, times: int, **changed: str) -> None:
    """Insert copies of `row`, numbered by `n`, with SQL expressions for the columns that differ."""
    meta = row._meta
    generated = models.AutoField, models.GeneratedField
    columns = [
        str(field.column) for field in meta.concrete_fields if not isinstance(field, generated)
    ]
    values = [changed.get(column, column) for column in columns]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {meta.db_table} ({', '.join(columns)}) SELECT {', '.join(values)} "
            f"FROM {meta.db_table}, generate_series(1, {times:d}) AS n WHERE id = %s",
            [row.pk],
        )


main(
    install=lambda: manage("migrate", "--verbosity", "0"),
    fill=fill,
    fill_map=fill_map,
    fill_diamond=fill_diamond,
    fill_beside=fill_beside,
    drain=drain,
    serve=lambda: manage("worker"),
    send=send,
    crowd=crowd,
)
