"""What a round has left: all rows, and what was done to jobs, told job by job. Pure; `checker` judges it."""

import datetime
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from uuid import UUID

from .kinds import Kind, Place, Verb

# The database's clock counts whole milliseconds on SQLite; the workers' microseconds.
TICK = datetime.timedelta(milliseconds=2)
LOSSES = 3  # after so many, a job counts as the killer of its workers

DATABASE_ERROR = re.compile(r"^django\.db\.utils\.(Operational|Interface)Error: ", re.MULTILINE)

SUCCEEDED, FAILED, TIMED_OUT, LOST, RETRIED = "succeeded", "failed", "timed_out", "lost", "retried"
WAITED, CANCELLED = "waited", "cancelled"
CUT_OFF = (LOST, TIMED_OUT, CANCELLED)
FAIL_ONCE = ("fails_once", "square_once_failed")  # tasks that work when they are retried
FINISHED = ("COMPLETE", "FAILED", "CANCELLED")

Interval = tuple[datetime.datetime, datetime.datetime | None]  # None: to this day


class JobRow(NamedTuple):
    id: UUID
    name: str
    state: str
    attempt: int
    worker: int | None
    finished: datetime.datetime | None
    workspace: dict[str, Any]
    parent: UUID | None = None
    position: int | None = None
    parent_round: int | None = None
    waiting_for: int = 0
    result: Any = None


class AttemptRow(NamedTuple):
    job: UUID
    number: int
    step: int
    outcome: str
    worker: str  # its label
    started: datetime.datetime
    finished: datetime.datetime
    error: str


class EffectRow(NamedTuple):
    job: UUID
    step: int
    attempt: int
    worker: int
    kind: str
    pid: int
    at: datetime.datetime


class WorkerRow(NamedTuple):
    id: int
    label: str
    stopped: datetime.datetime | None


class DependencyRow(NamedTuple):
    job: UUID
    on: UUID
    mode: str
    on_failure: str
    state: str


class EventRow(NamedTuple):
    job: UUID
    payload: Any
    taken: int  # by which attempt; 0: by none


class Deed(NamedTuple):
    """What somebody has done to a job.

    Args:
        begun: before it was done.
        ended: when it was certainly done.
        done: whether it was, or else refused.
        state: of the job before.
        fence: the attempt numbers of the job and of all that belongs to it: before a retry, after all else.
        payload: of an event.
    """

    job: UUID
    verb: Verb
    begun: datetime.datetime
    ended: datetime.datetime
    done: bool
    state: str
    fence: Mapping[UUID, int]
    payload: int = 0


@dataclass(frozen=True)
class Finding:
    """A broken promise.

    Args:
        invariant: the name of the check that found it.
        text: what is wrong.
        job: of which job, if it is about one.
    """

    invariant: str
    text: str
    job: UUID | None = None


@dataclass
class History:
    """All rows after a round, and what was to be done.

    Args:
        planned: the names of the jobs that were created, by id.
        needs: what they were to depend on.
    """

    planned: Mapping[UUID, str]
    kinds: Mapping[str, Kind]
    needs: Mapping[UUID, Sequence[UUID]] = field(default_factory=dict)
    jobs: list[JobRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    effects: list[EffectRow] = field(default_factory=list)
    workers: list[WorkerRow] = field(default_factory=list)
    dependencies: list[DependencyRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)

    @cached_property
    def by_id(self) -> dict[UUID, "Life"]:
        """Each job with all that belongs to it, attempts and effects in order."""
        attempts, effects = defaultdict(list), defaultdict(list)
        edges, events, deeds = defaultdict(list), defaultdict(list), defaultdict(list)
        for attempt in sorted(self.attempts, key=lambda row: row.number):
            attempts[attempt.job].append(attempt)
        for effect in sorted(self.effects, key=lambda row: row.at):
            effects[effect.job].append(effect)
        for edge in self.dependencies:
            edges[edge.job].append(edge)
        for event in self.events:
            events[event.job].append(event)
        for deed in sorted(self.deeds, key=lambda row: row.begun):
            deeds[deed.job].append(deed)
        labels = {worker.id: worker.label for worker in self.workers}
        rows = {job.id: job for job in self.jobs}
        found: dict[UUID, Life] = {}

        def tell(job: JobRow) -> Life:
            if job.id not in found:
                parent = None
                if job.parent is not None and job.parent in rows:
                    parent = tell(rows[job.parent])
                kind = self.kinds[job.name]
                own = attempts[job.id], effects[job.id], edges[job.id], events[job.id]
                # What is done to a job is done to its members; nobody does anything to these.
                done = parent.deeds if parent is not None else deeds[job.id]
                found[job.id] = Life(job, kind, *own, done, labels, parent)
                if parent is not None:
                    parent.members.append(found[job.id])
            return found[job.id]

        for job in self.jobs:
            tell(job)
        return found

    @property
    def lives(self) -> list["Life"]:
        return list(self.by_id.values())

    @cached_property
    def children(self) -> dict[str, list[JobRow]]:
        """Follow-on jobs by the id of the job that has created them."""
        children = defaultdict(list)
        for job in self.jobs:
            if "parent" in job.workspace:
                children[job.workspace["parent"]].append(job)
        return children

    @cached_property
    def at_rest(self) -> set[UUID]:
        """Jobs that nobody will move on: BLOCKED or PAUSED ones, and those that wait for nothing but such."""
        states = {job.id: job.state for job in self.jobs}
        edges = [(row.job, row.on, row.state) for row in self.dependencies]
        return resting(states, edges)


def resting(states: Mapping[UUID, str], edges: Sequence[tuple[UUID, UUID, str]]) -> set[UUID]:
    """The jobs that nobody will move on: BLOCKED or PAUSED ones, and those that wait for nothing but such.

    Args:
        edges: who depends on whom, and the state of that.
    """
    waits = defaultdict(set)
    for job, on, state in edges:
        if state == "open" and states.get(job) == "WAITING":
            waits[job].add(on)
    found = {key for key, state in states.items() if state in ("BLOCKED", "PAUSED")}
    while more := {job for job, ons in waits.items() if job not in found and ons <= found}:
        found |= more
    return found


@dataclass
class Life:
    """One job, its attempts by number and its effects by time.

    Args:
        deeds: what was done to it, or to the job that it belongs to.
        labels: of workers.
        parent: of a member of a group or map.
        members: its own.
    """

    job: JobRow
    kind: Kind
    attempts: list[AttemptRow]
    effects: list[EffectRow]
    edges: list[DependencyRow]
    events: list[EventRow]
    deeds: list[Deed]
    labels: Mapping[int, str]
    parent: "Life | None" = None
    members: list["Life"] = field(default_factory=list)

    # -- what it was to do --

    @cached_property
    def inside(self) -> Place | None:
        """The group or map that it is a member of."""
        for attempt in self.parent.attempts if self.parent is not None else ():
            if attempt.number == self.job.parent_round:
                place = self.kind.every[attempt.step]
                return place if place.has_members else None
        return None

    @cached_property
    def sequence(self) -> tuple[Place, ...]:
        """The steps that it is to go through, in order; none, if nobody knows what it is a member of."""
        if self.job.parent is None:
            return self.kind.steps
        position = self.job.position
        if self.inside is None or position is None:
            return ()
        if self.inside.form == "group" and position >= len(self.inside.sequences):
            return ()
        return self.inside.sequence(position)

    def places(self, form: str) -> list[Place]:
        return [place for place in self.sequence if place.form == form]

    @property
    def is_doomed(self) -> bool:
        """Whether it must fail, whatever else happens."""
        if self.job.parent is None:
            return self.kind.ends == "FAILED"
        tasks = {place.what for place in self.places("task")}
        told = self.job.workspace
        return "broken" in tasks or (
            "square_if_good" in tasks and told.get("index") in told.get("bad", ())
        )

    # -- what it has done --

    def attempt_of(self, effect: EffectRow) -> AttemptRow | None:
        """The attempt that this effect's execution has become; None if its number was given back."""
        label = self.labels.get(effect.worker)
        for attempt in self.attempts:
            if attempt.number == effect.attempt and attempt.worker == label:
                return attempt
        return None

    def is_cut_off(self, effect: EffectRow) -> bool:
        attempt = self.attempt_of(effect)
        return attempt is None or attempt.outcome in CUT_OFF

    def began(self, attempt: AttemptRow) -> datetime.datetime | None:
        """When an attempt began. Of a lost or cancelled one there is only the claim's own time, from before it waited
        for its turn: what it has done tells, if it has done anything.
        """
        if attempt.outcome not in (LOST, CANCELLED):
            return attempt.started
        done = [e.at for e in self.effects if self.attempt_of(e) is attempt]
        return min(done, default=None)

    def at_step(self, step: int, *outcomes: str) -> list[AttemptRow]:
        return [a for a in self.attempts if a.step == step and a.outcome in outcomes]

    @property
    def done(self) -> list[int]:
        """The places of the steps that have succeeded, as they did."""
        return [a.step for a in self.attempts if a.outcome == SUCCEEDED]

    def members_of(self, place: Place) -> list["Life"]:
        """By position."""
        found = [member for member in self.members if member.inside is place]
        return sorted(found, key=lambda member: member.job.position or 0)

    def marks(self, before: Place | None = None) -> Counter[int]:
        """The places inside of groups whose steps have left their mark in its workspace.

        Args:
            before: as it was when this step began.
        """
        found: Counter[int] = Counter()
        if self.parent is not None:
            found |= self.parent.marks(self.inside)
        done = self.done
        for place in self.sequence:
            if place is before:
                break
            if place.number not in done:
                continue
            if place.form == "task" and self.parent is not None:
                found[place.number] = 1
            if place.form == "group":
                for member in self.members_of(place):
                    if member.job.state == "COMPLETE":
                        found |= member.marks()
        return found

    # -- what was done to it --

    def deeds_of(self, *verbs: Verb) -> Iterator[Deed]:
        return (deed for deed in self.deeds if deed.done and deed.verb in verbs)

    @property
    def cancelled(self) -> Deed | None:
        """What has cancelled it for good."""
        last = None
        for deed in self.deeds_of(Verb.CANCEL, Verb.RETRY):
            last = deed if deed.verb is Verb.CANCEL else None
        return last

    def retries_after(self, attempt: AttemptRow) -> list[Deed]:
        """What was done to have the job retried after this attempt."""
        retries = self.deeds_of(Verb.RETRY)
        return [deed for deed in retries if deed.fence.get(self.job.id) == attempt.number]

    def intervals(self, begin: Verb, *ends: Verb) -> Iterator[tuple[Deed, Interval]]:
        """From each of these deeds until the next that ends what it began."""
        for deed in self.deeds_of(begin):
            later = [other.begun for other in self.deeds_of(*ends) if other.begun > deed.begun]
            yield deed, (deed.ended, min(later, default=None))

    @property
    def over(self) -> Iterator[Interval]:
        """The times in which the job had ended; of a member, only the last."""
        cancelled = None
        for deed in self.deeds if self.parent is None else ():
            if deed.done and deed.verb is Verb.CANCEL:
                cancelled = deed
            if deed.done and deed.verb is Verb.RETRY and deed.state == "FAILED":
                number = deed.fence.get(self.job.id)
                ended = [a.finished for a in self.attempts if a.number == number]
                yield from ((end, deed.begun) for end in ended)
            elif deed.done and deed.verb is Verb.RETRY and cancelled is not None:
                yield cancelled.ended, deed.begun
        if self.ended is not None:
            yield self.ended, None

    @property
    def ended(self) -> datetime.datetime | None:
        """When it has ended, if it has. A cancellation takes its time before it waits for its turn to be written."""
        if self.job.state == "CANCELLED" and self.cancelled is not None:
            return self.cancelled.ended
        return self.job.finished

    # -- why it has failed --

    def is_final(self, attempt: AttemptRow) -> bool:
        """Whether the job had failed for good with this attempt, until somebody had it retried."""
        if attempt.outcome not in (FAILED, TIMED_OUT):
            return False
        if attempt is self.attempts[-1] and self.job.state == "FAILED":
            return True
        retried = self.retries_after(attempt)
        return any(deed.state == "FAILED" or self.parent is not None for deed in retried)

    def gave_up(self, attempt: AttemptRow) -> bool:
        """Whether the job was failed in it without being run, because of what became of those before."""
        if attempt.outcome != FAILED or not self.is_final(attempt):
            return False
        before = [a for a in self.attempts if a.number < attempt.number and a.step == attempt.step]
        losses = sum(a.outcome == LOST for a in before)
        killer = losses >= (1 if self.kind.on_lost == "fail" else LOSSES)
        overran = self.kind.ends == "FAILED" and any(a.outcome == TIMED_OUT for a in before)
        return killer or overran

    def members_failed(self, attempt: AttemptRow) -> bool:
        """Whether it has failed at a join, of members that have not completed, or had not then."""
        place = self.kind.every[attempt.step]
        if (
            not place.has_members
            or place.policy == "ignore"
            or "MembersFailed" not in attempt.error
        ):
            return False
        return any(
            member.job.state != "COMPLETE" or any(map(member.retries_after, member.attempts))
            for member in self.members_of(place)
        )

    def is_unredeemed(self, attempt: AttemptRow) -> bool:
        """Whether it has failed in a step that works once somebody has the job retried, which nobody has done: what it
        is a member of was cancelled before.
        """
        failures = self.at_step(attempt.step, FAILED)
        return (
            self.parent is not None
            and self.cancelled is not None
            and self.kind.every[attempt.step].what in FAIL_ONCE
            and failures == [attempt]
        )

    def text(self) -> str:
        """All that is known, in the order of time."""
        lines = [
            (a.started, f"attempt {a.number} of step {a.step} by {a.worker} begins")
            for a in self.attempts
        ]
        for a in self.attempts:
            why = a.error.strip().rpartition("\n")[2]
            text = f"attempt {a.number} of step {a.step} by {a.worker}: {a.outcome} {why}"
            lines.append((a.finished, text))
        for e in self.effects:
            text = f"{e.kind} of step {e.step}, attempt {e.attempt}, worker {e.worker}, pid {e.pid}"
            lines.append((e.at, text))
        for deed in self.deeds:
            number = deed.fence.get(self.job.id)
            lines.append((deed.begun, f"{deed.verb} begins, {deed.state} before"))
            lines.append((deed.ended, f"{deed.verb}: {deed.done}, attempt {number}"))
        if self.job.finished is not None:
            lines.append((self.job.finished, "finished"))
        told = [f"{at:%H:%M:%S.%f} {line}" for at, line in sorted(lines)]
        told += [str(row) for row in (*self.edges, *self.events)]
        for member in self.members:
            at = member.job.finished
            told.append(
                f"member {member.job.position} of round {member.job.parent_round}, {member.job.id}: "
                f"{member.job.state} {f'{at:%H:%M:%S.%f}' if at else ''}"
            )
        return "\n    ".join((str(self.job), *told))


def is_database_error(attempt: AttemptRow) -> bool:
    """Whether an attempt failed because its database went away or was busy."""
    # Its message may have several lines; before it stands what it was caused by, which the driver calls the same.
    return attempt.outcome == FAILED and bool(DATABASE_ERROR.search(attempt.error))
