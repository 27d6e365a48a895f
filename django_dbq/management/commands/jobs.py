"""``manage.py jobs``: look at jobs, and intervene.

Verbs go on after a job for which they could not be done; the exit code is 1 then. On a terminal they say what was done;
elsewhere they are silent about what went well.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError, CommandParser
from django.db import router
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from ... import conf, engine
from ...explaining import explain
from ...models import Job, JobExists
from ...options import LIMIT, QUEUE
from ...pipelines import WaitFor, nearest
from ...states import HELD, UNFINISHED, Event, State, sources
from ...workspaces import InvalidWorkspace
from .. import showing
from ..arguments import MISUSED, given
from ..printing import PrintingCommand

EVERY = Q()
BATCH = 1000  # jobs that a bulk form looks up at a time


class Refusal(Exception):
    """Why something could not be done with one job: the line that says so."""


@dataclass(frozen=True, slots=True)
class Verb:
    """What is done to each of several jobs.

    Args:
        act: does it to one job; False if that is in no state for it.
        states: those from which it can move a job.
        eligible: which of the jobs in these states the bulk form takes.
    """

    done: str
    help: str
    wants: str  # for whoever asks it of another job
    act: Callable[[UUID, datetime.datetime, str, dict[str, Any]], bool]
    states: tuple[State, ...]
    eligible: Q = EVERY


# A member that its parent does not wait for (any more) is run again by the parent, or not at all.
AWAITED = Q(parent=None) | Q(
    parent__state__in=(State.WAITING, State.PAUSED), parent__round=F("parent_round")
)

VERBS = {
    "retry": Verb(
        "retried",
        "run FAILED, CANCELLED and BLOCKED jobs again, from the step at which they stand",
        "only FAILED, CANCELLED and BLOCKED jobs can be retried",
        lambda key, now, using, options: (
            engine.retry(key, now, using, options["from_step"]) is not None
        ),
        sources(Event.RETRIED),
        AWAITED,
    ),
    "cancel": Verb(
        "cancelled",
        "cancel jobs that have not ended, with all their members",
        "it has ended",
        lambda key, now, using, options: engine.cancel([key], now, using) > 0,
        sources(Event.CANCELLED),
    ),
    "pause": Verb(
        "paused",
        "have jobs rest, with their members; what runs goes on to the end of its step",
        "it has ended",
        lambda key, now, using, options: engine.pause([key], now, using) > 0,
        sources(Event.PAUSED),
    ),
    "resume": Verb(
        "resumed",
        "have paused jobs go on where they were, with their members",
        "only PAUSED jobs can be resumed",
        lambda key, now, using, options: engine.resume([key], now, using) > 0,
        (*sources(Event.RESUMED), *HELD),
        Q(state__in=sources(Event.RESUMED)) | Q(pausing=True),
    ),
}


# -- arguments --


def _state(text: str) -> State:
    try:
        return State(text.upper())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(State)}") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"this is not JSON: {error}") from None


def _workspace(text: str) -> dict[str, Any]:
    workspace = _json(text)
    if not isinstance(workspace, dict):
        raise argparse.ArgumentTypeError('a workspace is a JSON object, such as {"user_id": 1}')
    return workspace


def _step(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


class Command(PrintingCommand):
    help = (
        "Look at jobs, and intervene. A job is named by its id, or by the beginning of it if no other begins so. The "
        "exit code is 0 only if everything that was asked for was done."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", title="verbs")

        def add(verb: str, does: str) -> CommandParser:
            described = f"{does[0].upper()}{does[1:]}."
            added: CommandParser = verbs.add_parser(verb, help=does, description=described)
            return added

        listing = add("list", "list jobs, the newest first; their workspaces are not shown")
        self._add_filters(listing)
        listing.add_argument(
            "--limit",
            type=given(int, LIMIT),
            default=50,
            metavar="N",
            help="at most N (50)",
        )
        listing.add_argument("--json", action="store_true", help="print them as a JSON list")
        showing = add("show", "show a job with its attempts, members, dependencies and events")
        showing.add_argument("id", metavar="ID")
        showing.add_argument(
            "--workspace",
            action="store_true",
            help="with what is in the workspace (else its keys only), the result and the events",
        )
        showing.add_argument("--json", action="store_true", help="print it as a JSON object")
        explaining = add("explain", "say why a job is not running, and what to do about it")
        explaining.add_argument("id", metavar="ID")
        explaining.add_argument("--json", action="store_true", help="print it as a JSON object")
        for name, verb in VERBS.items():
            several = add(name, verb.help)
            several.add_argument("id", nargs="*", metavar="ID")
            self._add_filters(several)
            several.add_argument(
                "--yes", action="store_true", help="do not ask before doing it to all that match"
            )
            if name == "retry":
                self._add_from_step(several)
        forking = add(
            "fork", "create a job that starts at a step with a job's workspace; prints its id"
        )
        forking.add_argument("id", metavar="ID")
        self._add_from_step(forking)
        forking.add_argument(
            "--workspace", type=_workspace, metavar="JSON", help="instead of the job's own"
        )
        sending = add("send", "send an event to a job that waits for it, now or later")
        sending.add_argument("id", metavar="ID")
        sending.add_argument("event", metavar="EVENT")
        sending.add_argument(
            "payload", nargs="?", type=_json, metavar="JSON", help="what workspace[EVENT] becomes"
        )

    def _add_filters(self, parser: CommandParser) -> None:
        parser.add_argument(
            *("--state", "--states"),
            action="append",
            type=_state,
            metavar="S",
            help=f"in this state; may be repeated ({', '.join(State)})",
        )
        parser.add_argument("--name", metavar="N", help="of this name")
        parser.add_argument("--queue", type=given(str, QUEUE), metavar="Q", help="in this queue")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--parent", metavar="ID", help="members of this job's groups and maps")
        which.add_argument(
            *("--no_members", "--no-members"),
            action="store_true",
            help="members of no group or map",
        )

    def _add_from_step(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--from",
            dest="from_step",
            type=_step,
            metavar="STEP",
            help="from this step: its name, path or place (the first is 0)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        self.using = router.db_for_write(Job)
        self.jobs: QuerySet[Job] = Job.objects.using(self.using)
        verb = options["verb"]
        try:
            if verb in VERBS:
                self._each(verb, VERBS[verb], options)
            else:
                getattr(self, f"_{verb}")(options)
        except Refusal as refusal:
            raise CommandError(str(refusal)) from None

    # -- looking --

    def _list(self, options: dict[str, Any]) -> None:
        found = self._filtered(options).order_by("-created")
        columns = (*showing.LISTED, *(showing.MEMBERSHIP if options["json"] else ()))
        rows = list(found.values(*columns)[: options["limit"] + 1])
        more = len(rows) > options["limit"]
        rows = rows[: options["limit"]]
        if options["json"]:
            self.stdout.write(showing.as_json(rows))
            return
        heading = showing.LISTED if self.stdout.isatty() else ()
        for line in showing.table([list(row.values()) for row in rows], heading):
            self.stdout.write(line)
        if more:
            self._say(f"These are the newest {len(rows)}; there are more (--limit).")

    def _show(self, options: dict[str, Any]) -> None:
        job = self.jobs.select_related("worker").get(pk=self._find(options["id"]))
        shown = showing.shown(job, values=options["workspace"])
        if options["json"]:
            self.stdout.write(showing.as_json(shown))
            return
        for line in showing.page(shown):
            self.stdout.write(line)

    def _explain(self, options: dict[str, Any]) -> None:
        job = self.jobs.only("pk").get(pk=self._find(options["id"]))
        explanation = explain(job, timezone.now())
        text = showing.as_json(asdict(explanation)) if options["json"] else str(explanation)
        self.stdout.write(text)

    # -- intervening --

    def _each(self, name: str, verb: Verb, options: dict[str, Any]) -> None:
        """Do it to all that were asked for, one after the other."""
        self._judge(verb, options)
        asked = failed = 0
        for one in self._asked(name, verb, options):
            asked += 1
            try:
                self._do(verb, one, options)
            except Exception as error:
                failed += 1
                said = (
                    error
                    if isinstance(error, Refusal)
                    else f"{one}: {type(error).__name__}: {error}"
                )
                self.stderr.write(str(said))
        if failed:
            raise CommandError(f"{failed} of {asked} jobs were not {verb.done}.")

    def _judge(self, verb: Verb, options: dict[str, Any]) -> None:
        """Refuse what cannot be meant, before anything is done."""
        narrowed = any(options[key] is not None for key in ("state", "name", "queue", "parent"))
        if options["id"] and (narrowed or options["no_members"]):
            said = "Ids and filters (--state, --name, --queue, --parent, --no-members) do not go together."
        elif not options["id"] and not narrowed:
            said = "Name jobs by their ids, or by --state, --name, --queue and --parent."
        elif options["parent"] is not None and options.get("from_step") is not None:
            said = "--from and --parent do not go together: members are retried where they stand."
        elif wrong := [state for state in options["state"] or () if state not in verb.states]:
            said = (
                f"No job that is {' or '.join(wrong)} can be {verb.done}; "
                f"those that are {', '.join(verb.states)} can."
            )
        else:
            return
        raise CommandError(said, returncode=MISUSED)

    def _asked(self, name: str, verb: Verb, options: dict[str, Any]) -> Iterable[str | UUID]:
        """The jobs by their ids as they were given, or those that match."""
        if options["id"]:
            return list(dict.fromkeys(options["id"]))
        found = self._filtered(options).filter(
            verb.eligible, state__in=verb.states, created__lte=timezone.now()
        )
        if options.get("from_step") is not None:
            found = found.filter(parent=None)  # their parents' steps are no places for members
        count = found.count()
        if not options["yes"] and count:
            if not sys.stdin.isatty():
                raise CommandError(f"{count} jobs would be {verb.done}: say --yes to have it done.")
            answer = input(f"{count} jobs would be {verb.done}. Go on? [y/N] ")
            if answer.strip().lower() not in ("y", "yes"):
                raise CommandError(f"No job was {verb.done}.")
        self._say(f"Jobs to {name}: {count}")
        return self._matching(found)

    def _matching(self, found: "QuerySet[Job]") -> Iterator[UUID]:
        """Their keys, a limited number at a time; they may be moved on meanwhile."""
        keys = found.order_by("pk").values_list("pk", flat=True)
        batch = list(keys[:BATCH])
        while batch:
            yield from batch
            batch = list(keys.filter(pk__gt=batch[-1])[:BATCH])

    def _do(self, verb: Verb, one: str | UUID, options: dict[str, Any]) -> None:
        key = one if isinstance(one, UUID) else self._find(one)
        try:
            done = verb.act(key, timezone.now(), self.using, options)
        except (LookupError, JobExists) as error:
            raise Refusal(f"{key}: {error}") from None
        if done:
            self._say(f"{key} {verb.done}")
        elif not isinstance(one, UUID):
            # Of those that have matched, one may have gone on since then: with its parent, say.
            raise Refusal(f"{key}: it is {self._standing(verb, key)}.")

    def _standing(self, verb: Verb, key: UUID) -> str:
        """The state of a job with which it could not be done, and why not."""
        found = self.jobs.filter(pk=key).values_list("state", "parent").first()
        state, parent = found or ("gone", None)
        if parent is not None and verb is VERBS["retry"] and state in verb.states:
            return f"{state}, and its parent does not wait for it; retry its parent: manage.py jobs retry {parent}"
        return f"{state}; {verb.wants}"

    def _fork(self, options: dict[str, Any]) -> None:
        job = self.jobs.get(pk=self._find(options["id"]))
        try:
            forked = engine.fork(
                job, timezone.now(), self.using, options["from_step"], options["workspace"]
            )
        except (LookupError, InvalidWorkspace, JobExists) as error:
            raise Refusal(f"{job.pk}: {error}") from None
        self.stdout.write(str(forked.pk))

    def _send(self, options: dict[str, Any]) -> None:
        job = self.jobs.only("name", "parent_id").get(pk=self._find(options["id"]))
        event = options["event"]
        if (pipeline := conf.catalogue().get(job.name)) is not None:
            # What waits in a branch is a job of its own.
            steps = pipeline.steps if job.parent_id is None else pipeline.every
            known = [step.event for step in steps if isinstance(step, WaitFor)]
            if event not in known:
                waits = f"it waits for {', '.join(known)}" if known else "it waits for none"
                if any(
                    isinstance(step, WaitFor) and step.event == event for step in pipeline.every
                ):
                    waits = (
                        "a step in a group does: send it to that member "
                        f"(`manage.py jobs list --parent {job.pk} --state WAITING`)"
                    )
                raise Refusal(
                    f"{job.pk}: no step of {job.name!r} waits for {event!r}{nearest(event, known)}; {waits}."
                )
        try:
            sent = engine.send(job.pk, event, options["payload"], timezone.now(), self.using)
        except InvalidWorkspace as error:
            raise Refusal(f"{job.pk}: {error}") from None
        if not sent:
            state = self._state_of(job.pk)
            why = (
                "it has been sent before, and not been taken"
                if state in UNFINISHED
                else "it has ended"
            )
            raise Refusal(f"{job.pk}: it is {state}; {why}.")
        self._say(f"{job.pk} was sent {event}")

    def _say(self, text: str) -> None:
        if self.stdout.isatty():
            self.stdout.write(text)

    # -- finding --

    def _filtered(self, options: dict[str, Any]) -> "QuerySet[Job]":
        found = self.jobs.all()
        for key, lookup in (("state", "state__in"), ("name", "name"), ("queue", "queue_name")):
            if options[key] is not None:  # an empty name is that of no job, and not any name
                found = found.filter(**{lookup: options[key]})
        if options["parent"] is not None:
            found = found.filter(parent=self._find(options["parent"]))
        return found.filter(parent=None) if options["no_members"] else found

    def _find(self, text: str) -> UUID:
        """The key of the one job whose id begins so."""
        digits = text.replace("-", "").lower()
        if not 0 < len(digits) <= 32 or set(digits) - set("0123456789abcdef"):
            raise Refusal(f"{text}: this is not the id of a job, or the beginning of one.")
        if len(digits) == 32:
            keys = list(self.jobs.filter(pk=UUID(digits)).values_list("pk", flat=True))
        else:
            parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
            begins = self.jobs.filter(pk__startswith="-".join(filter(None, parts)))
            keys = list(begins.order_by().values_list("pk", flat=True)[:2])
        if not keys:
            raise Refusal(f"{text}: there is no such job.")
        if len(keys) > 1:
            raise Refusal(f"{text}: several ids begin so, among them {keys[0]} and {keys[1]}.")
        return UUID(str(keys[0]))

    def _state_of(self, key: UUID) -> str:
        return str(self.jobs.filter(pk=key).values_list("state", flat=True).first() or "gone")
