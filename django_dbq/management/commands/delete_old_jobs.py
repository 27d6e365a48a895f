"""``manage.py delete_old_jobs``: made for cron."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ...models import DEFAULT_DELETE_JOBS_AFTER_HOURS, Job
from ...options import CENTURY
from ..arguments import given


def _hours(value: Any) -> str | None:
    fits = isinstance(value, float) and 0 <= value <= CENTURY / 3600
    return None if fits else "a number of hours, 0 or more (up to a century)"


class Command(BaseCommand):
    help = "Delete COMPLETE, FAILED, STOPPING and CANCELLED jobs that were created some time ago, in batches."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--hours",
            type=given(float, _hours),
            default=DEFAULT_DELETE_JOBS_AFTER_HOURS,
            help="delete jobs created more than so many hours ago (default %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        count = Job.objects.delete_old(hours=options["hours"])
        if options["verbosity"]:
            self.stdout.write(f"Deleted old jobs: {count}")
