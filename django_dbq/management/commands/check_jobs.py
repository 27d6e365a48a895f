"""``manage.py check_jobs``: fail a deploy whose settings would strand jobs that are under way."""

import datetime
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder
from django.db import router
from django.db.models import BooleanField, Count, ExpressionWrapper, Min, Q
from django.db.models.functions import MD5

from ...explaining import lack, local
from ...models import Job
from ...states import UNFINISHED
from ..printing import PrintingCommand


@dataclass(slots=True)
class Strays:
    """Unfinished jobs that stand at one step, in one state, and that the settings do not know as they are."""

    name: str
    next_task: str
    state: str
    members: bool  # of a group or map
    count: int
    oldest: datetime.datetime
    problem: str
    hint: str


class Command(PrintingCommand):
    help = (
        "Fail if there are unfinished jobs whose name or step the settings do not know (any more): run it with the new "
        "settings before a deploy. Lists them with what would help; the exit code is 1 then."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", action="store_true", help="print what was found as a JSON list"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        found, unfinished = strays(router.db_for_write(Job))
        if options["json"]:
            self.stdout.write(json.dumps([asdict(one) for one in found], cls=DjangoJSONEncoder))
        elif found:
            self._list(found)
        if found:
            count = sum(one.count for one in found)
            raise CommandError(f"{count} of {unfinished} unfinished jobs do not fit the settings.")
        if not options["json"]:
            self.stdout.write(f"The settings know the steps of all unfinished jobs: {unfinished}")

    def _list(self, found: Iterable[Strays]) -> None:
        for one in found:
            what = "members" if one.members else "jobs"
            self.stdout.write(
                f"{one.name}  {one.next_task or '(no step)'}  {one.state}  {what}: {one.count}  "
                f"oldest: {local(one.oldest):%Y-%m-%d %H:%M:%S}"
            )
            self.stdout.write(f"    {one.problem[0].upper()}{one.problem[1:]}.")
            self.stdout.write(f"    {one.hint}.")


def strays(using: str) -> tuple[list[Strays], int]:
    """All unfinished jobs that do not fit the settings, in groups; and how many unfinished jobs there are.

    The database counts; what is read grows with the kinds of jobs only.
    """
    unfinished = Job.objects.using(using).filter(state__in=UNFINISHED).order_by()
    kinds = {
        "member": ExpressionWrapper(Q(parent__isnull=False), output_field=BooleanField()),
        # By hashes as well, because MySQL and MariaDB would count "Feed" and "feed" together: to the settings, and
        # to a worker, these are two.
        "name_hash": MD5("name"),
        "task_hash": MD5("next_task"),
    }
    rows = unfinished.annotate(**kinds).values_list("name", "next_task", "state", "step", *kinds)
    found: dict[tuple[Any, ...], Strays] = {}
    total = 0
    for row in rows.annotate(Count("pk"), Min("created")).iterator():
        name, path, state, place, member, _, _, count, oldest = row
        total += count
        if (lacking := lack(name, place, path, member)) is None:
            continue
        kind = (name, path, state, member)
        if (same := found.get(kind)) is None:
            found[kind] = Strays(*kind, count, oldest, lacking.text, lacking.hint)
        else:
            same.count, same.oldest = same.count + count, min(same.oldest, oldest)
    return [found[kind] for kind in sorted(found)], total
