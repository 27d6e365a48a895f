"""``manage.py queue_depth``: one line for a log or a monitor."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ...models import Job


class Command(BaseCommand):
    help = "Print how many jobs wait in each of the given queues, as event=queue_depths default=2 other=0."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "queue_name", nargs="*", default=["default"], help="queues (without any: default)"
        )
        parser.add_argument(
            "--exclude_future_jobs",
            "--exclude-future-jobs",
            nargs="?",
            const=True,
            default=False,
            type=_flag,
            metavar="yes|no",
            help="leave out jobs whose run_after is still ahead",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        depths = Job.get_queue_depths(exclude_future_jobs=options["exclude_future_jobs"])
        counts = " ".join(f"{name}={depths.get(name, 0)}" for name in options["queue_name"])
        self.stdout.write(f"event=queue_depths {counts}")


def _flag(text: str) -> bool:
    """django-db-queue took ``--exclude_future_jobs True``, and any word for true."""
    return text.lower() not in ("", "0", "false", "no")
