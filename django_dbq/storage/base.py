"""The contract of a storage, and its portable form: plain queries that every database runs."""

import contextlib
import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError, connections, transaction
from django.db.models import Case, Exists, Expression, F, Min, OuterRef, Q, QuerySet, Value, When
from django.db.models.functions import Concat, Now

from .. import conf, limits, workspaces
from ..members import Opening
from ..models import Attempt, Job, JobQuerySet, Queue, QueuePlace, Worker, is_due, may_be_due
from ..outcomes import AttemptOutcome, Decision
from ..pipelines import Step
from ..states import CLAIMABLE, FINISHED, HELD, UNFINISHED, Event, State, sources, target

PEEK = 1000  # rows that one housekeeping statement touches at most


@dataclass(frozen=True, slots=True)
class Queues:
    """The queues that a worker serves: the named ones or, with ``exclude``, all but those."""

    names: tuple[str, ...] = ("default",)
    exclude: bool = False

    def serves(self, queue: str) -> bool:
        return (queue in self.names) != self.exclude

    def __str__(self) -> str:
        named = ", ".join(self.names)
        return named if not self.exclude else f"all but {named}" if named else "all"


class Suspects(Enum):
    """What a claim does with suspects, the jobs that were lost with a worker."""

    ALONE = "alone"  # takes one if it is the first, and nothing else
    AWAITED = "awaited"  # takes nothing if one is the first
    PASSED = "passed"  # leaves them


@dataclass(slots=True)
class Position:
    """Where a worker's claims have got to: per queue, the priority, urgency and creation of its last claim's first job.

    A claim may start there instead of at the head of the backlog. That spares it the dead entries before, which pile
    up while somebody holds an old snapshot; jobs that have come in further ahead wait until the position is forgotten.
    """

    heads: dict[str, tuple[int, int, datetime.datetime]] = field(default_factory=dict)

    def remember(self, jobs: Sequence[Job]) -> None:
        """Take the position of a claim, whose jobs are in order; jobs of it that come back are not before it."""
        self.heads = {
            job.queue_name: (job.priority, job.urgency, job.created) for job in reversed(jobs)
        }

    def forget(self) -> None:
        self.heads = {}


@dataclass(frozen=True, slots=True)
class Overdue:
    """An attempt that has run past its timeout and is still running."""

    job_id: UUID
    attempt: int
    started: datetime.datetime
    report: str  # where the task stands, as text


@dataclass(frozen=True, slots=True)
class Living:
    """A worker that has not ended, as the database sees it."""

    pk: int
    label: str
    left: float  # seconds until its lease is over; not above 0: its jobs may be taken


@dataclass(slots=True)
class Execution:
    """One run of one step by a worker, and what becomes of the job: what the runner reports and `finish` writes."""

    job: Job
    step: Step
    started: datetime.datetime
    finished: datetime.datetime
    decision: Decision
    report: str = ""  # the error's traceback as text
    workspace: str | None = None  # as JSON text; None if it is as it was
    moved_to: QueuePlace | None = None  # None if queue, priority and run_after are as they were
    opens: Opening | None = None  # what the job waits for from now on
    takes: int | None = None  # the event that it has waited for
    round: int | None = None  # of the job from now on
    result: str | None = None  # as JSON text; None leaves it as it is
    attempt: int = field(init=False)  # the fence, with the worker
    in_doubt: bool = False  # it may have been written: the connection broke before the answer came

    def __post_init__(self) -> None:
        self.attempt = self.job.attempt

    @property
    def error(self) -> BaseException | None:
        return self.decision.error

    @property
    def outcome(self) -> AttemptOutcome:
        return self.decision.outcome

    @property
    def next_place(self) -> int:
        """Where the job stands afterwards: at its next step, or still at this one."""
        return (self.decision.next_step or self.step).place

    @property
    def next_task(self) -> str:
        return self.decision.next_step.path if self.decision.next_step else ""

    @property
    def concerns_others(self) -> bool:
        """Whether more than this job is written in the transaction of its outcome, as far as that is known here."""
        if self.opens is not None or self.takes is not None or self.job.watched:
            return True
        return self.job.parent_id is not None and self.decision.state in FINISHED

    @property
    def job_finished(self) -> datetime.datetime | None:
        """When the job ended, or None if it goes on."""
        return self.finished if self.decision.state in FINISHED else None


class Storage:
    """Claims, finishes and inserts jobs in one database.

    Every method is one transaction (or part of the caller's) and leaves nothing half done.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias

    @property
    def connection(self) -> Any:
        """This thread's connection."""
        return connections[self.alias]

    @property
    def jobs(self) -> JobQuerySet:
        queryset: JobQuerySet = Job.objects.using(self.alias)
        return queryset

    @property
    def attempts(self) -> "QuerySet[Attempt]":
        return Attempt.objects.using(self.alias)

    @property
    def workers(self) -> "QuerySet[Worker]":
        return Worker.objects.using(self.alias)

    @property
    def paused(self) -> "QuerySet[Queue]":
        """The queues that are paused."""
        return Queue.objects.using(self.alias).filter(paused__isnull=False)

    # -- what a database may do better --

    clock: Expression = Now()  # the database's time, which no time zone or daylight saving moves
    # What `known_steps` are compared with.
    stands_at: Expression = Concat("name", Value(" "), "next_task")
    shareable = True  # other threads and processes can open the same database

    def is_refusal(self, error: Exception) -> bool:
        """Whether the database will never take what it was given, rather than being out of reach or busy."""
        return isinstance(error, DataError | IntegrityError | ValueError)

    def is_transient(self, error: Exception) -> bool:
        """Whether another transaction was in the way (a deadlock, say) and the same one may well succeed now."""
        return False

    def write(self) -> contextlib.AbstractContextManager[Any]:
        """A transaction that reads before it writes, without being overtaken."""
        return transaction.atomic(using=self.alias)

    def looking_up(self) -> contextlib.AbstractContextManager[Any]:
        """Within, rows are found through indexes, one after the other, also where it seems quicker to read all."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def announcing(self, job: Job) -> Iterator[list[str]]:
        """Within, save ``job``: its INSERT carries the notification, if the database can, which saves a commit.

        Yields the queues that are being notified so.
        """
        yield []

    def notify(self, queues: Iterable[str]) -> None:
        """Wake workers in other processes that serve ``queues``; where the database cannot, they poll."""

    def listen(self) -> Any:
        """A connection of its own that hears `notify`, or None where the database has no such thing."""
        return None

    def be_brief(self) -> None:
        """Have this thread's connection wait only for a moment when a task's transaction is in its way."""

    def give_up_after(self, seconds: float) -> None:
        """Have connections that this process opens from now on notice within that time that the network is gone."""

    def waiting(self, due: bool) -> JobQuerySet:
        """Jobs that wait for a step, as one of the two partial indexes holds them: those that are due, or the
        future ones.
        """
        jobs = self.jobs.waiting().filter(due=due)
        return jobs if due else jobs.filter(limited=False)

    @property
    def limited(self) -> JobQuerySet:
        """Jobs that are under a limit and wait for it or are held, as the partial index has them."""
        return self.jobs.filter(limited=True, state__in=[*CLAIMABLE, *HELD])

    @property
    def unheld(self) -> JobQuerySet:
        """Jobs that have not ended, and that no worker holds."""
        return self.jobs.filter(state__in=[state for state in UNFINISHED if state not in HELD])

    def held(self) -> JobQuerySet:
        """Jobs that some worker holds, as the partial index has them."""
        return self.jobs.filter(state__in=HELD)

    def unfinished(self, unique_keys: Iterable[str]) -> JobQuerySet:
        """The unfinished jobs with these keys, by the index of `unique`."""
        return self.jobs.filter(unique_key__in=list(unique_keys), state__in=UNFINISHED).order_by()

    # -- creation --

    def insert(self, jobs: Sequence[Job], batch_size: int | None = None) -> None:
        """Insert new jobs, all or none."""
        QuerySet.bulk_create(self.jobs, jobs, batch_size)  # Django's own: these jobs are complete

    # -- claim and outcome --

    def claim(
        self,
        worker: int,
        queues: Queues,
        limit: int,
        now: datetime.datetime,
        known_steps: Sequence[str],
        pass_began: datetime.datetime | None = None,
        position: Position | None = None,
        suspects: Suspects = Suspects.ALONE,
    ) -> list[Job]:
        """Take up to ``limit`` claimable jobs for a worker, in order; each remembers its state before in
        ``claimed_from``.

        Args:
            known_steps: ``"name path"`` of every step that the worker can run; others stay where they are.
            pass_began: leave jobs that were created, or of which a step was run, after this time.
            position: where to start, for a database where that saves work; at the head of the backlog without heads.
            suspects: what to do with jobs that were lost before.
        """
        with self.write():
            claimable = self._claimable(now, known_steps, pass_began)
            if suspects is Suspects.PASSED:
                claimable = claimable.filter(lost=0)
            picked = self._pick(queues, limit, claimable)
            if picked and picked[0].lost:
                picked = picked[:1] if suspects is Suspects.ALONE else []
            else:
                picked = [job for job in picked if not job.lost]
            for job in picked:
                job.claimed_from, job.claimed_at = State(job.state), job.place
                job.workspace = {} if job.workspace is None else job.workspace
                with contextlib.suppress(workspaces.InvalidWorkspace):
                    # An older row may hold what we would refuse: its step will fail then, and not this claim.
                    job.stored_workspace = workspaces.dump(job.workspace)
                job.state, job.worker_id, job.modified = target(Event.CLAIMED), worker, now
                job.attempt, job.finished = job.attempt + 1, None
            self.jobs.filter(pk__in=[job.pk for job in picked]).update(
                state=target(Event.CLAIMED),
                worker_id=worker,
                modified=now,
                attempt=F("attempt") + 1,
                finished=None,
            )
        return picked

    def _claimable(
        self,
        now: datetime.datetime,
        known_steps: Sequence[str],
        pass_began: datetime.datetime | None,
    ) -> JobQuerySet:
        queryset = (
            self.waiting(due=True)
            .claimable(now)
            .alias(stands_at=self.stands_at)
            .filter(stands_at__in=known_steps)
        )
        return queryset if pass_began is None else queryset.filter(self.not_run_since(pass_began))

    def not_run_since(self, pass_began: datetime.datetime) -> Q:
        """Which jobs were there at that time, and have had no step run since."""
        run = self.attempts.filter(job=OuterRef("pk"), finished__gt=pass_began)
        return Q(~Exists(run), created__lte=pass_began)

    def _pick(self, queues: Queues, limit: int, claimable: JobQuerySet) -> list[Job]:
        """Lock the first ``limit`` of the claimable jobs; called within `write`."""
        raise NotImplementedError

    def finish(
        self,
        worker: Worker,
        executions: Sequence[Execution],
        now: datetime.datetime,
        watched: bool = True,
    ) -> set[UUID]:
        """Write outcomes and attempts where the fence (worker and attempt number) still holds; returns those jobs.

        Args:
            watched: also of jobs whose outcome concerns others: the caller sees to those in the same transaction.
        """
        with self.write():
            ours = self.jobs.filter(worker_id=worker.pk, state__in=HELD)
            if not watched:
                ours = ours.filter(watched=False)
            fence = dict(
                ours.select_for_update()
                .filter(pk__in=[e.job.pk for e in executions])
                .order_by("pk")
                .values_list("pk", "attempt")
            )
            won = [e for e in executions if fence.get(e.job.pk) == e.attempt]
            alike: dict[tuple[Any, ...], list[Execution]] = defaultdict(list)
            for e in won:
                # A changed workspace is its row's own; rows that are set to the same values share one statement.
                own = e.job.pk if e.workspace is not None or e.result is not None else None
                told = (e.job.progress, e.job.progress_message) if e.job.progress_told else None
                decision = e.decision
                alike[
                    (decision.state, e.next_task, e.next_place, e.job_finished),
                    (
                        decision.failures,
                        decision.lost,
                        e.moved_to,
                        told,
                        own,
                        e.round,
                        e.job.limited,
                    ),
                ].append(e)
            for (stands, (failures, lost, moved_to, told, _, number, _)), group in alike.items():
                values: dict[str, Any] = dict(
                    zip(("state", "next_task", "step", "finished"), stands, strict=True),
                    failures=failures,
                    lost=lost,
                    modified=now,
                    round=number,
                )
                if told is not None:
                    values["progress"], values["progress_message"] = told
                if moved_to is not None:
                    values.update(moved_to._asdict())
                if any(e.job.limited for e in group):
                    values["due"] = False  # until it is let in again
                    values["limited"] = moved_to is None or is_due(moved_to.run_after)
                if group[0].workspace is not None:
                    values["workspace"] = workspaces.load(group[0].workspace)
                if group[0].result is not None:
                    values["result"] = json.loads(group[0].result)
                self.jobs.filter(pk__in=[e.job.pk for e in group]).update(**values)
            self.attempts.bulk_create(
                Attempt(
                    job_id=e.job.pk,
                    number=e.attempt,
                    step=e.step.place,
                    task=e.step.path,
                    outcome=e.outcome,
                    worker=worker.label,
                    started=e.started,
                    finished=e.finished,
                    error=e.report,
                )
                for e in won
            )
        return {e.job.pk for e in won}

    def hand_back(self, worker: int, jobs: Sequence[Job], now: datetime.datetime) -> int:
        """Return claimed jobs that were not started to where they were, their attempt given back; returns how many."""
        count = 0
        with self.write():
            for state in CLAIMABLE:
                ids = [(job.pk, job.attempt) for job in jobs if job.claimed_from == state]
                for attempt in {attempt for _, attempt in ids}:
                    count += self.jobs.filter(
                        pk__in=[pk for pk, number in ids if number == attempt],
                        attempt=attempt,
                        worker_id=worker,
                        state__in=sources(Event.HANDED_BACK),
                    ).update(
                        # Paused if somebody wants that. In this order: MySQL sets one after the other.
                        state=Case(
                            When(pausing=True, then=Value(State.PAUSED)), default=Value(state)
                        ),
                        pausing=False,
                        due=may_be_due(True),  # under a limit, it is to be let in again
                        worker_id=None,
                        modified=now,
                        attempt=attempt - 1,
                    )
        return count

    def checkpoint(self, job: Job) -> bool:
        """Save the workspace of a job that is being run; False if the fence no longer holds."""
        return bool(self._fenced(job).update(workspace=job.workspace))

    def save_progress(self, job: Job) -> bool | None:
        """Save how far a job has come; False if the fence no longer holds.

        Returns None, and saves nothing, if a transaction of the task's own has locked the row: waiting for it could
        take as long as the task.
        """
        with self.write():
            if not self._fenced(job).exists():
                return False
            unlocked = list(self.unlocked(self._fenced(job)).values_list("pk", flat=True))
            self.jobs.filter(pk__in=unlocked).update(
                progress=job.progress, progress_message=job.progress_message
            )
        return True if unlocked else None

    def mark(self, worker: int, job: Job, state: State) -> None:
        """Move a running job on to another held state, if nobody has locked its row."""
        with self.write():
            ours = self._fenced(job).filter(worker_id=worker)
            ids = list(self.unlocked(ours).values_list("pk", flat=True))
            self.jobs.filter(pk__in=ids).update(state=state)

    def _fenced(self, job: Job) -> JobQuerySet:
        return self.jobs.filter(
            pk=job.pk, attempt=job.attempt, worker=job.worker_id, state__in=HELD
        )

    # -- workers --

    def beat(self, worker: int) -> bool:
        """Renew a worker's lease, by the database's clock; False if the worker has been declared dead."""
        return bool(self.workers.filter(pk=worker, stopped=None).update(heartbeat=self.clock))

    def living(self) -> list[Living]:
        """All workers that have not ended, and for how long each may still be silent."""
        rows = self.workers.filter(stopped=None).annotate(clock=self.clock)
        return [
            Living(
                row.pk,
                row.label,
                row.timeout - (row.clock - row.heartbeat).total_seconds() if row.heartbeat else 0.0,
            )
            for row in rows
        ]

    def lock_worker(self, worker: int) -> Worker | None:
        """Lock a worker's row; None if it is gone, or if somebody else has it. Called within `write`."""
        skip = self.connection.features.has_select_for_update_skip_locked
        return self.workers.select_for_update(skip_locked=skip).filter(pk=worker).first()

    def abandoned(self) -> list[int]:
        """Workers that hold jobs although they have ended, or have no row any more."""
        held = self.held().filter(worker__isnull=False).order_by()
        # What has been held once leaves dead entries, which a bitmap would be made of.
        with self.looking_up():
            holding = set(held.values_list("worker_id", flat=True).distinct())
        living = self.workers.filter(pk__in=holding, stopped=None)
        return sorted(holding.difference(living.values_list("pk", flat=True)))

    # -- housekeeping --

    def stage_due(self, now: datetime.datetime) -> int:
        """Mark future jobs whose time has come as due, and park those that are under a limit from now on; returns how
        many, at most `PEEK` in one call.
        """
        # One range of the index each; together, as an OR, they would be a scan of all future jobs.
        for reached in (Q(run_after__lte=now), Q(run_after__isnull=True)):
            future = self.waiting(due=False).filter(reached)
            if not future.exists():  # the usual case: one lookup, no transaction
                continue
            with self.write():
                rows = self.unlocked(future.order_by("run_after")).values_list("pk", "name")
                names = dict(rows[:PEEK])
                limited = [
                    key for key, name in names.items() if name in conf.configuration().limited
                ]
                late = self.jobs.filter(pk__in=limited).only("name", "workspace", "run_after")
                count = limits.park(late, self.jobs) if limited else 0
                ready = names.keys() - set(limited)
                return count + self.jobs.filter(pk__in=ready).update(due=True)
        return 0

    def next_due(self, queues: Queues, now: datetime.datetime) -> datetime.datetime | None:
        """When the earliest future job of these queues is due, or a wait for an event is over, or None."""
        timers = self.jobs.filter(state=State.WAITING, round__isnull=False, run_after__gt=now)
        ahead = [
            jobs.filter(self.serving(queues)).aggregate(first=Min("run_after"))["first"]
            for jobs in (self.waiting(due=False), timers)
        ]
        return min(filter(None, ahead), default=None)

    def serving(self, queues: Queues) -> Q:
        """Which jobs are in these queues."""
        named = Q(queue_name__in=queues.names)
        return ~named if queues.exclude else named

    def open_names(self, queues: Queues) -> Sequence[str]:
        """Those of the queues, by name, that nobody has paused."""
        names = self.names(queues)
        paused = set(self.paused.values_list("name", flat=True))
        return [name for name in names if name not in paused] if paused else names

    def names(self, queues: Queues) -> Sequence[str]:
        """The queues by name; to exclude some, those that hold claimable jobs are looked up."""
        if not queues.exclude:
            return queues.names
        held = self.waiting(due=True).order_by()
        return [
            name
            for name in held.values_list("queue_name", flat=True).distinct()
            if name not in queues.names
        ]

    def lock_oldest(self, jobs: JobQuerySet) -> list[UUID]:
        """Lock the oldest of ``jobs``, `PEEK` at most, but for those that somebody else holds; called within
        `write`.
        """
        return list(self.unlocked(jobs.order_by("created")).values_list("pk", flat=True)[:PEEK])

    def unlocked(self, jobs: JobQuerySet) -> JobQuerySet:
        """Lock those of ``jobs`` that nobody else holds, and leave out the others; called within `write`."""
        skip = self.connection.features.has_select_for_update_skip_locked
        return jobs.select_for_update(skip_locked=skip)
