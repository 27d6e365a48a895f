"""``manage.py delete_old_jobs``: made for cron."""

from argparse import ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ...models import DEFAULT_DELETE_JOBS_AFTER_HOURS, Job


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours < float("inf"):
        raise ArgumentTypeError(f"{text} is not a number of hours, 0 or more")
    return hours


class Command(BaseCommand):
    help = "Delete COMPLETE, FAILED, STOPPING and CANCELLED jobs that were created some time ago, in batches."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--hours",
            type=_hours,
            default=DEFAULT_DELETE_JOBS_AFTER_HOURS,
            help="delete jobs created more than so many hours ago (default %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        count = Job.objects.delete_old(hours=options["hours"])
        if options["verbosity"]:
            self.stdout.write(f"Deleted old jobs: {count}")
