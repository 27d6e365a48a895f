"""``manage.py create_job``: put a job into its queue by hand."""

import datetime
import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ... import conf
from ...models import Job, JobExists
from ...options import PRIORITY, QUEUE
from ...pipelines import UnknownJob
from ...workspaces import InvalidWorkspace


class Command(BaseCommand):
    help = "Create a job and print its id."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "name", nargs="?", help="one of the names in JOBS; without it, they are listed"
        )
        parser.add_argument(
            "--workspace", default="{}", metavar="JSON", help="its workspace, a JSON object"
        )
        parser.add_argument("--queue", metavar="Q", help="its queue (default: as JOBS says)")
        parser.add_argument(
            "--priority", type=int, metavar="N", help="higher runs first (default: as JOBS says)"
        )
        parser.add_argument(
            "--run_after", "--run-after", metavar="TIME", help="not before this time (ISO 8601)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        catalogue = conf.catalogue()
        if not catalogue and not catalogue.problems:
            raise CommandError("JOBS has no entries: there is no job to create.")
        if options["name"] is None:
            for pipeline in catalogue.values():
                self.stdout.write(f"{pipeline.name}  {pipeline.description}".rstrip())
            return
        values = {"name": options["name"], "workspace": self._workspace(options["workspace"])}
        for flag, field, expected in (
            ("queue", "queue_name", QUEUE),
            ("priority", "priority", PRIORITY),
        ):
            if (value := options[flag]) is not None:
                if (wanted := expected(value)) is not None:
                    raise CommandError(f"--{flag} is {value!r}. Expected: {wanted}.")
                values[field] = value
        if options["run_after"] is not None:
            values["run_after"] = self._time(options["run_after"])
        job = Job(**values)
        key = job.pk
        try:
            job.save()
        except (UnknownJob, InvalidWorkspace, JobExists) as error:
            raise CommandError(str(error)) from None
        self.stdout.write(str(job.pk))
        if job.pk != key:  # there is a job of the same unique values
            self.stderr.write(
                f"exists already: {job}, which is {job.state}; no job was created", style_func=str
            )

    def _workspace(self, text: str) -> dict[str, Any]:
        try:
            workspace = json.loads(text)
        except ValueError as error:
            raise CommandError(f"--workspace is not JSON: {error}") from None
        if not isinstance(workspace, dict):
            raise CommandError('--workspace must be a JSON object, such as {"user_id": 1}')
        return workspace

    def _time(self, text: str) -> Any:
        try:
            time = parse_datetime(text)
        except ValueError as error:
            raise CommandError(f"--run_after: {error}") from None
        if time is None:
            raise CommandError("--run_after is not an ISO 8601 time, such as 2027-01-31T08:00:00Z")
        try:
            if settings.USE_TZ:
                time = timezone.make_aware(time) if timezone.is_naive(time) else time
                time.astimezone(datetime.UTC)  # as databases have it
            elif timezone.is_aware(time):
                time = timezone.make_naive(time)
        except OverflowError:
            raise CommandError(
                f"--run_after is {text}, which is beyond the years 1 to 9999 in another time zone."
            ) from None
        return time
