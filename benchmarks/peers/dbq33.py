"""django-db-queue 3.3.0: its worker's `_process_job`, without the second's sleep before each job."""

import django
from django.apps import apps
from django.conf import settings
from django.core.management import execute_from_command_line
from django.db import connection
from django.utils.module_loading import import_string
from harness import main, timed

django.setup()
Job = apps.get_model("django_dbq", "Job")


def fill(name: str, count: int, times: int = 1) -> None:
    first = settings.JOBS[name]["tasks"][0]  # its bulk_create does not find the first task
    connection.ensure_connection()
    for _ in range(times):
        with timed():
            Job.objects.bulk_create(
                [Job(name=name, next_task=first, workspace={}) for _ in range(count)]
            )


def drain(steps: int) -> None:
    """Run `steps` steps: a tight loop does not look whether any are left."""
    worker = import_string("django_dbq.management.commands.worker.Worker")("default", 0)
    for _ in range(steps):
        worker._process_job()


main(
    install=lambda: execute_from_command_line(["manage.py", "migrate", "--verbosity", "0"]),
    fill=fill,
    drain=drain,
)
