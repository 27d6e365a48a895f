"""``manage.py queues``: what waits in each queue; and queues paused and resumed, seen by every worker at once."""

import json
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import router
from django.utils import timezone

from ... import engine
from ...explaining import local
from ...models import Job, Queue
from ...options import QUEUE
from ..printing import PrintingCommand


class Command(PrintingCommand):
    help = (
        "List the queues in which something waits or that are paused; pause queues, so that no worker claims from them "
        "(what runs goes on to the end of its step), and resume them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", metavar="list|pause|resume")
        listing = verbs.add_parser("list", help="the default: queue, jobs that wait, paused since")
        listing.add_argument("--json", action="store_true", help="one JSON object, for machines")
        for verb, text in (
            ("pause", "claim nothing more from these queues"),
            ("resume", "claim from them again"),
        ):
            one = verbs.add_parser(verb, help=text)
            one.add_argument("names", nargs="+", metavar="NAME")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["verb"] in (None, "list"):
            self._list(options.get("json", False))
            return
        for name in options["names"]:
            if (expected := QUEUE(name)) is not None:
                raise CommandError(f"{name!r} is no queue. Expected: {expected}.")
        using = router.db_for_write(Queue)
        for name in options["names"]:
            if options["verb"] == "pause":
                done = engine.pause_queue(name, timezone.now(), using)
            else:
                done = engine.resume_queue(name, using)
            state = {"pause": "paused", "resume": "not paused"}[options["verb"]]
            self.stdout.write(f"{name}: {'now' if done else 'already'} {state}")

    def _list(self, as_json: bool) -> None:
        depths = Job.get_queue_depths()
        paused = dict(Queue.objects.filter(paused__isnull=False).values_list("name", "paused"))
        rows = [
            (name, depths.get(name, 0), paused.get(name)) for name in sorted({*depths, *paused})
        ]
        if as_json:
            found = {
                name: {"waiting": depth, "paused": since and since.isoformat()}
                for name, depth, since in rows
            }
            self.stdout.write(json.dumps(found))
            return
        width = max((len(name) for name, _, _ in rows), default=0)
        for name, depth, since in rows:
            said = f"  paused since {local(since):%Y-%m-%d %H:%M:%S}" if since else ""
            self.stdout.write(f"{name:<{width}}  {depth:>8}{said}".rstrip())
