"""``manage.py queue_depth``: one line for a log or a monitor."""

from typing import Any

from django.core.management.base import CommandParser

from ...models import Job
from ..printing import PrintingCommand


class Command(PrintingCommand):
    help = "Print how many jobs wait in each of the given queues, as event=queue_depths default=2 other=0."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("queue_name", nargs="*", help="queues (without any: default)")
        parser.add_argument(
            "--exclude_future_jobs",
            "--exclude-future-jobs",
            nargs="?",
            const="yes",
            default="no",
            metavar="yes|no",
            help="leave out jobs whose run_after is still ahead",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        queues, flag = options["queue_name"] or [], str(options["exclude_future_jobs"])
        if flag.lower() not in _WORDS:  # the name of a queue that stands behind the flag
            queues = [*queues, flag]
        depths = Job.get_queue_depths(exclude_future_jobs=_WORDS.get(flag.lower(), True))
        counts = " ".join(f"{name}={depths.get(name, 0)}" for name in queues or ["default"])
        self.stdout.write(f"event=queue_depths {counts}")


# django-db-queue's flag needed a value, as in ``--exclude_future_jobs True``.
_WORDS = dict.fromkeys(("true", "yes", "1"), True) | dict.fromkeys(("false", "no", "0", ""), False)
