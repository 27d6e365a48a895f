"""What a round does, from its seed alone: which jobs, which workers, and what happens to them in which order."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle
from random import Random
from typing import Any
from uuid import UUID

from .kinds import KINDS, Verb

LEASE = 2.0  # seconds, of the workers
GRACE = 3.0  # seconds that a stopping worker lets its tasks go on
RESCUE_WITHIN = LEASE + 2.0  # seconds after a kill
LASTS = 1.0  # seconds, of each step of the jobs that are created for a measured kill
STORM = 8.0  # seconds of disorder between two measured kills
PAUSES = (0.1, 0.8)  # seconds between two events of a storm

# What a worker is started with, besides the lease: one after the other, as many as the round has.
WORKERS: tuple[tuple[str, ...], ...] = (
    ("--processes", "2"),
    ("--threads", "4"),
    (),
    ("--processes", "1", "--max_jobs", "60"),
    ("--max_jobs", "100"),
    ("--processes", "2", "--threads", "2"),
)


class Action(StrEnum):
    CREATE = "create jobs"
    KILL_WORKER = "kill a worker"
    KILL_WATCHDOG = "kill a watchdog, then its worker"
    KILL_SUPERVISOR = "kill a supervisor"
    POWER_OFF = "kill a worker with all that watches it"
    FREEZE = "freeze a worker"
    FREEZE_ALL = "freeze a worker with all that watches it"
    TERMINATE = "terminate a worker"
    TERMINATE_TWICE = "terminate a worker twice"
    RESTART_SERVER = "restart the server"
    MEASURE_POWER_OFF = "measure: kill a worker with all that watches it"
    MEASURE_KILL = "measure: kill a worker, its watchdog lives"


# How often each comes in a storm, relative to the others.
STORMY = {
    Action.KILL_WORKER: 5,
    Action.KILL_WATCHDOG: 2,
    Action.KILL_SUPERVISOR: 1,
    Action.POWER_OFF: 3,
    Action.FREEZE: 4,
    Action.FREEZE_ALL: 2,
    Action.TERMINATE: 4,
    Action.TERMINATE_TWICE: 2,
}
# How many seconds it lasts, at least and at most: until the worker is killed that has no watchdog any more (a task that
# hangs in C code would hang there for ever); a freeze longer than the lease; until the second signal; the server's
# absence.
LASTING = {
    Action.KILL_WATCHDOG: (0.5, 3.0),
    Action.FREEZE: (1.2 * LEASE, 2.0 * LEASE),
    Action.FREEZE_ALL: (1.2 * LEASE, 2.0 * LEASE),
    Action.TERMINATE_TWICE: (0.05, 0.5),
    Action.RESTART_SERVER: (0.0, 2.0),
}

# Kills whose rescue is measured, by turns: seconds before, until everybody who was late has had a lease, and seconds
# for the rescue. A watchdog waits for no lease.
MEASURES = (
    (Action.MEASURE_POWER_OFF, LEASE + 1.0, RESCUE_WITHIN + 0.5),
    (Action.MEASURE_KILL, 0.0, LEASE),
)


# Jobs of every plan, on which each verb has its effect however late it comes, and whatever else is drawn.
CERTAIN: tuple[tuple[str, tuple[Verb, ...]], ...] = (
    ("awaiting", (Verb.PAUSE, Verb.RESUME, Verb.SEND)),
    ("endless", (Verb.CANCEL,)),
    ("failing fork", (Verb.REDEEM,)),
)

# A job may depend on so many of those that were created before it, of so many at the end; and how often it does.
PICKS, RECENT, PICKY = (1, 3), 40, 0.4
HURRIED = 0.1  # how many have a deadline
AFTER_BEGIN = 0.4  # seconds, within which most jobs do what they do


@dataclass(frozen=True)
class PlannedJob:
    id: UUID
    name: str
    workspace: dict[str, Any]
    needs: tuple[UUID, ...] = ()  # the jobs that it depends on
    mode: str = "all"
    on_failure: str = "block"
    deadline: float | None = None  # seconds after its creation


@dataclass(frozen=True)
class Errand:
    """Something that is done to a job.

    Args:
        at: seconds after the start of the round, at the earliest; all that is done to one job keeps its distances.
        payload: of an event that is sent.
        after_begin: and not before so many seconds after a worker has begun with the job.
    """

    at: float
    verb: Verb
    job: UUID
    payload: int = 0
    after_begin: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that is done to the workers.

    Args:
        at: seconds after the start of the round, at the earliest; an event that is late puts off all after it.
        which: a number from 0 to 1 that chooses among those whom it may hit.
        seconds: how long it lasts.
        jobs: what it creates, before all else.
    """

    at: float
    action: Action
    which: float = 0.0
    seconds: float = 0.0
    jobs: tuple[PlannedJob, ...] = ()

    def __str__(self) -> str:
        text = f"{self.at:7.2f} {self.action}"
        if self.which:
            text += f" ({self.which:.3f})"
        if self.seconds:
            text += f", {self.seconds:.2f} s"
        kinds = Counter(job.name for job in self.jobs)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return f"{text}: {told}" if told else text


@dataclass(frozen=True)
class Plan:
    seed: int
    seconds: float
    workers: tuple[tuple[str, ...], ...]
    events: tuple[Event, ...]
    errands: tuple[Errand, ...]

    @property
    def jobs(self) -> tuple[PlannedJob, ...]:
        return tuple(job for event in self.events for job in event.jobs)

    def __str__(self) -> str:
        lines = [f"worker {n}: {' '.join(flags) or '-'}" for n, flags in enumerate(self.workers)]
        lines += [f"{place:4} {event}" for place, event in enumerate(self.events)]
        verbs = Counter(errand.verb for errand in self.errands)
        lines.append(", ".join(f"{count} times {verb}" for verb, count in sorted(verbs.items())))
        return "\n".join(lines)


def draw(seed: int, seconds: float, jobs: int, workers: int, restarts: bool) -> Plan:
    """Draw a plan.

    Args:
        seconds: until the disorder ends; how long the rest of the work takes is not planned.
        jobs: how many are created in that time, evenly.
        workers: how many ``manage.py worker`` there are.
        restarts: whether the server may be restarted.
    """
    random = Random(seed)
    events = list(_disorder(random, seconds, restarts))
    batches = max(1, round(2 * seconds))
    recent: deque[UUID] = deque(maxlen=RECENT)
    created, errands = 0, []
    for batch in range(batches):
        at = seconds * batch / batches
        drawn: list[PlannedJob] = []
        while created < jobs * (batch + 1) // batches:
            together = _jobs(random, recent)
            for job in together:
                errands += _errands(random, job, at)
            drawn += together
            created += len(together)
        events.append(Event(at, Action.CREATE, jobs=tuple(drawn)))
    for number in range(max(1, round(seconds / 40))):
        at = random.uniform(0, seconds / 2)
        events.append(Event(at, Action.CREATE, jobs=(_job(random, "stuck"),)))
        # It may hold up everybody: the first one comes when nothing is measured any more.
        at = random.uniform(0, seconds / 2) if number else seconds
        events.append(Event(at, Action.CREATE, jobs=(_job(random, "hogging"),)))
    for name, verbs in CERTAIN:
        job = _job(random, name)
        events.append(Event(0.0, Action.CREATE, jobs=(job,)))
        errands += [Errand(1.0 + n, verb, job.id, n) for n, verb in enumerate(verbs)]
    events.sort(key=lambda event: event.at)
    errands.sort(key=lambda errand: errand.at)
    flags = tuple(WORKERS[n % len(WORKERS)] for n in range(workers))
    return Plan(seed, seconds, flags, tuple(events), tuple(errands))


def _jobs(random: Random, recent: deque[UUID]) -> list[PlannedJob]:
    """Those of one kind that are created together; most come alone.

    Args:
        recent: the last jobs before, which these may depend on and are added to.
    """
    (name,) = random.choices(list(KINDS), [kind.share for kind in KINDS.values()])
    kind = KINDS[name]
    drawn: list[PlannedJob] = []
    for inner in kind.shape:
        job = _job(random, name)
        needs = [drawn[number].id for number in inner]
        if kind.picks and recent and random.random() < PICKY:
            needs += random.sample(recent, min(len(recent), random.randint(*PICKS)))
        if needs:
            mode = random.choices(("all", "any"), (3, 1))[0]
            on_failure = random.choices(("block", "proceed"), (3, 1))[0]
            job = replace(job, needs=tuple(needs), mode=mode, on_failure=on_failure)
        if random.random() < HURRIED:
            job = replace(job, deadline=round(random.uniform(1, 60), 2))
        drawn.append(job)
    if kind.on_lost != "hold":  # nobody would resume it, and what waits for it would do so for ever
        recent.extend(job.id for job in drawn)
    return drawn


def _errands(random: Random, job: PlannedJob, at: float) -> list[Errand]:
    """What is done to a job that is created at that time: at moments of its own, or counted from its beginning."""
    meddling = KINDS[job.name].meddling(random)
    begin = round(random.uniform(0, AFTER_BEGIN), 3) if random.random() < 0.7 else None
    return [
        Errand(round(at + delay, 3), verb, job.id, number, None if number else begin)
        for number, (delay, verb) in enumerate(meddling)
    ]


def _job(random: Random, name: str) -> PlannedJob:
    key = UUID(int=random.getrandbits(128), version=4)
    return PlannedJob(key, name, KINDS[name].workspace(random))


def _disorder(random: Random, seconds: float, restarts: bool) -> Iterator[Event]:
    """Storms, and after each a kill whose rescue is measured while nothing else happens."""
    now, measures = 0.0, cycle(MEASURES)
    while now < seconds:
        action, settling, rescue = next(measures)
        end = max(now, min(now + STORM, seconds - settling - rescue))
        yield from _storm(random, now, end, restarts)
        now = end + settling
        # So that there is something to rescue, and to be found before it ends.
        slow = (_job(random, "slow") for _ in range(12))
        lasting = tuple(replace(job, workspace={"seconds": LASTS}) for job in slow)
        yield Event(now, action, random.random(), jobs=lasting)
        now += rescue


def _storm(random: Random, begin: float, end: float, restarts: bool) -> Iterator[Event]:
    weights = {**STORMY, Action.RESTART_SERVER: 1} if restarts else STORMY
    now = begin
    if restarts and end - begin > STORM / 2:  # one at least
        now = random.uniform(begin + 1, (begin + end) / 2)
        yield Event(now, Action.RESTART_SERVER, seconds=round(random.uniform(0.5, 2.0), 2))
        now = begin
    while (now := now + random.uniform(*PAUSES)) < end:
        (drawn,) = random.choices(list(weights), list(weights.values()))
        lasting = round(random.uniform(*LASTING.get(drawn, (0.0, 0.0))), 2)
        if now + lasting < end:
            yield Event(now, drawn, random.random(), lasting)
