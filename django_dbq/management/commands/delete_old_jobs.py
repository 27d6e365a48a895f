"""``manage.py delete_old_jobs``: made for cron."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ...models import DEFAULT_DELETE_JOBS_AFTER_HOURS, Job


class Command(BaseCommand):
    help = "Delete COMPLETE, FAILED, STOPPING and CANCELLED jobs that were created some time ago, in batches."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--hours",
            type=float,
            default=DEFAULT_DELETE_JOBS_AFTER_HOURS,
            help="delete jobs created more than so many hours ago (default %(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        count = Job.objects.delete_old(hours=options["hours"])
        if options["verbosity"]:
            self.stdout.write(f"Deleted old jobs: {count}")
