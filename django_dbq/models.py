"""`Job`, its queryset and its manager; the rows that accompany it are in `records`.

Fields, constraints, indexes and named querysets. Nothing here moves a job's state: that is the engine's, which only
`Job.save()`, its verbs, `JobManager.bulk_create()` and `JobManager.delete_old()` reach from here.
"""

import datetime
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import DatabaseError, models, router
from django.db.models import Case, Count, F, Q, Value, When
from django.db.models.base import ModelState
from django.db.models.signals import post_init, pre_init
from django.utils import timezone
from django.utils.module_loading import import_string
from django.utils.translation import gettext_lazy as _

from . import conf, workspaces
from .fields import ExactField
from .indexes import PartialIndex, PartialUnique
from .options import PRIORITY, QUEUE, QUEUE_LENGTH
from .outcomes import ClaimLost, key_of
from .pipelines import NAME_LENGTH, PATH_LENGTH, Pipeline, Step
from .records import (
    Attempt,
    Dependency,
    DependencyState,
    JobEvent,
    Limit,
    Queue,
    Start,
    Worker,
)
from .states import CLAIMABLE, FINISHED, HELD, UNFINISHED, State
from .uuids import uuid7

if TYPE_CHECKING:
    from .explaining import Explanation

__all__ = [
    "DEFAULT_DELETE_JOBS_AFTER_HOURS",
    "ORDER",
    "SELDOM_READ",
    "Attempt",
    "Dependency",
    "DependencyState",
    "Job",
    "JobEvent",
    "JobExists",
    "JobManager",
    "JobQuerySet",
    "Limit",
    "Needs",
    "Queue",
    "QueuePlace",
    "Start",
    "Worker",
    "as_stored",
    "as_text",
    "as_time",
    "check_workspace",
    "is_due",
    "may_be_due",
    "turn",
    "unique_key",
    "urgency_of",
]

logger = logging.getLogger("django_dbq")
T = TypeVar("T")

DEFAULT_DELETE_JOBS_AFTER_HOURS = 24
LOOK_FOR_END = (0.02, 0.5)  # seconds between two looks of `Job.wait`: at first, and at most

# For migrations: the same tuple as lists of plain strings, so that an index deconstructs to literals.
_CLAIMABLE = [str(state) for state in CLAIMABLE]
_HELD = [str(state) for state in HELD]
_UNFINISHED = [str(state) for state in UNFINISHED]
_KEY_WHILE_UNFINISHED = (
    "CASE WHEN state IN ("
    + ", ".join(f"'{state}'" for state in UNFINISHED)
    + ") THEN unique_key END"
)


class _Unset:
    """Marks a field's default, so that a value given by the caller is told from one that was not given."""


class _UnsetQueue(_Unset, str):
    pass


class _UnsetPriority(_Unset, int):
    pass


def as_text(text: str) -> str:
    """``text`` as every database stores it: without NUL characters and halves of surrogate pairs."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def as_time(run_after: Any, name: str = "run_after") -> Any:
    """A ``run_after`` as the database will have it, from anything that the field takes; an expression as it is.

    Raises:
        TypeError, ValueError: it is no time, or none that the database could store.
    """
    if run_after is None or hasattr(run_after, "resolve_expression"):
        return run_after
    try:
        time = Job._meta.get_field("run_after").get_prep_value(run_after)
    except (TypeError, ValueError, ValidationError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name} is {run_after!r}. Expected: a datetime.") from None
    if isinstance(time, datetime.datetime) and timezone.is_aware(time):
        if not settings.USE_TZ:
            raise ValueError(f"{name} is {time!r}, which has a time zone; USE_TZ is off.")
        try:
            time.astimezone(datetime.UTC)
        except OverflowError:
            raise ValueError(f"{name} is {time!r}, which is no time in UTC.") from None
    return time


_LAST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


def is_due(run_after: Any) -> bool:
    """What the hint ``due`` has to say of a job that is written now; of an expression nothing is known: it is due."""
    time = as_time(run_after)
    return not isinstance(time, datetime.datetime) or time <= timezone.now()


def may_be_due(due: bool) -> Any:
    """The value for the column ``due``: under a limit, a job is let in by `limits` alone."""
    return Case(When(limited=True, then=Value(False)), default=Value(due)) if due else False


class JobExists(Exception):
    """A job with the same name and the same values, which are ``unique``, has not ended yet; ``job`` is its id."""

    def __init__(self, job: uuid.UUID, name: str) -> None:
        super().__init__(
            f"The job {job} of the name {name!r} has the same unique values and has not ended."
        )
        self.job = job


def check_workspace(pipeline: Pipeline, workspace: Any) -> None:
    """Look whether a pipeline can do with this workspace.

    Raises:
        InvalidWorkspace: it is no dict, and has to be one; or it does not follow the pipeline's schema.
    """
    if not isinstance(workspace, dict) and (what := pipeline.keyed()) is not None:
        raise workspaces.InvalidWorkspace(
            f"workspace is {workspace!r:.80}. Expected: a dict, which {what} of {pipeline.name!r} needs."
        )
    if pipeline.workspace_schema is not None:
        from . import schemas

        schemas.validate(pipeline.workspace_schema, workspace)


def as_stored(job: "Job") -> Any:
    """The workspace as the database has it: its keys are texts, its tuples lists."""
    if job.stored_workspace is None:
        return job.workspace
    return workspaces.load(job.stored_workspace)


def unique_key(pipeline: Pipeline, job: "Job") -> str | None:
    """What no two unfinished jobs may share: a digest of the name and the values that the pipeline calls unique."""
    if not pipeline.unique:
        return None
    values = as_stored(job)
    if isinstance(pipeline.unique, tuple):
        given = values if isinstance(values, dict) else {}
        values = [given.get(key) for key in pipeline.unique]
    text = json.dumps([pipeline.name, values], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def urgency_of(deadline: Any) -> int:
    """What orders jobs of one priority: the earlier the deadline, the higher; 0 without one.

    Counted back in milliseconds from the year 10000, so that every deadline is above none.
    """
    if not isinstance(deadline, datetime.datetime):
        return 0
    if timezone.is_naive(deadline):
        deadline = timezone.make_aware(deadline)
    return int((_LAST - deadline.astimezone(datetime.UTC)).total_seconds() * 1000) + 1


class JobQuerySet(models.QuerySet["Job"]):
    def update(self, **kwargs: Any) -> int:
        """As in Django; a new ``run_after`` carries its hint ``due`` along, a new ``deadline`` its order. What is set
        to NEW or READY under a limit waits for it.
        """
        if "run_after" in kwargs and "due" not in kwargs:
            kwargs["due"] = may_be_due(is_due(kwargs["run_after"]))
        if kwargs.get("state") in CLAIMABLE and "due" not in kwargs:
            kwargs["due"] = Case(When(limited=True, then=Value(False)), default=F("due"))
        if "deadline" in kwargs and "urgency" not in kwargs:
            kwargs["urgency"] = urgency_of(as_time(kwargs["deadline"], "deadline"))
        return super().update(**kwargs)

    def waiting(self) -> "JobQuerySet":
        """Jobs that wait for their first or next step, also those whose ``run_after`` is still ahead."""
        return self.filter(state__in=CLAIMABLE)

    def claimable(self, now: datetime.datetime) -> "JobQuerySet":
        """Jobs that wait for their first or next step and whose ``run_after`` is not ahead of ``now``."""
        return self.waiting().filter(Q(run_after__isnull=True) | Q(run_after__lte=now))

    def bulk_create(  # type: ignore[override]  # conflicts have no meaning for a new job
        self, objs: Iterable["Job"], batch_size: int | None = None, **kwargs: Any
    ) -> list["Job"]:
        """Create many jobs at once, each in full: first step, defaults, creation hook; one INSERT per batch.

        Jobs are ordered as given: each is created a microsecond after the one before. As in Django, ``save()`` and
        its signals are not called; `signals.job_created` is sent. All rows are saved, or none.

        Args:
            objs: unsaved jobs; in the place of one that `save` would make another, the list returned has that other.
            batch_size: rows per statement; by default as many as suits the database.

        Raises:
            UnknownJob, InvalidWorkspace, TypeError, ValueError: for a job that cannot be created.
            Exception: whatever a creation hook raises. Nothing has been saved then.
        """
        from . import engine

        if refused := [name for name, value in kwargs.items() if value]:
            raise TypeError(f"bulk_create of jobs does not take {', '.join(refused)}")
        jobs = list(objs)
        if strange := [job for job in jobs if not isinstance(job, Job)]:
            raise TypeError(f"bulk_create takes jobs, not {strange[0]!r}")
        now = timezone.now()
        for place, job in enumerate(jobs):
            job.prepare(now + datetime.timedelta(microseconds=place))
        self._for_write = True
        return engine.insert(jobs, using=self.db, batch_size=batch_size)


ORDER = ("-priority", "-urgency", "created")


def turn(job: Any) -> tuple[int, int, datetime.datetime]:
    """The key by which jobs of one queue are run, as `ORDER` has it; of a job, or of whatever has these columns."""
    return -job.priority, -job.urgency, job.created


class JobManager(models.Manager.from_queryset(JobQuerySet)):  # type: ignore[misc]
    def to_process(self, queue_name: str) -> models.QuerySet["Job"]:
        """The jobs of a queue that a worker may claim now, in its order, locked when read in a transaction."""
        queryset: models.QuerySet[Job] = self.select_for_update().filter(queue_name=queue_name)
        return queryset.claimable(timezone.now())  # type: ignore[attr-defined, no-any-return]

    def get_ready_or_none(self, queue_name: str, max_retries: int = 3) -> "Job | None":
        """The first job of `to_process`, or None; tries again up to ``max_retries`` times on a database error."""
        for left in reversed(range(max_retries + 1)):
            try:
                return self.to_process(queue_name).first()
            except DatabaseError:
                if not left:
                    raise
                logger.warning(
                    "Looking for a ready job failed; tries left: %s", left, exc_info=True
                )
        return None

    def delete_old(self, hours: float | None = None) -> int:
        """Delete the finished and STOPPING jobs that were created over ``hours`` (24) ago; returns how many."""
        from . import engine

        if hours is None:
            hours = DEFAULT_DELETE_JOBS_AFTER_HOURS
        age = datetime.timedelta(hours=hours)
        return engine.delete_old(
            timezone.now() - age, using=self._db or router.db_for_write(self.model)
        )


# What tasks and hooks may save of the job that they are given.
OWN_FIELDS = ("workspace", "queue_name", "priority", "run_after", "due", "modified")
# What a worker does not need to run a job; read from the database when somebody asks for it.
SELDOM_READ = {
    "result",
    "position",
    "waiting_for",
    "deadline",
    "forked_from_id",
    "progress",
    "progress_message",
    "pausing",
    "unique_key",
    "concurrency_key",
    "rate_key",
}
DEPENDS_MODES = ("all", "any")
ON_DEPENDENCY_FAILURE = ("block", "proceed")


class QueuePlace(NamedTuple):
    """What decides when a job is claimed; a task may change it for the steps that follow."""

    queue_name: str
    priority: int
    run_after: datetime.datetime | None
    home_queue: str = ""  # to return to from a step's own queue


class Needs(NamedTuple):
    """What a job waits for before it may run (again)."""

    jobs: tuple[uuid.UUID, ...] = ()
    mode: str = "all"
    on_failure: str = "block"


class Job(models.Model):
    """One run of a pipeline.

    ``next_task`` and ``step`` (the path and the place of the step that comes next) are where the job
    stands; setting ``state`` to READY and ``next_task`` by a plain update sends it there. ``attempt`` and
    ``worker`` are the fence: they change with every claim, and an outcome is only written where both are
    still as claimed. ``due`` is a hint that keeps future jobs out of the claim's index; ``run_after``
    decides. ``failures`` and ``lost`` count the failed (or timed out) and the lost attempts at the current step.

    A member of a group or map has a ``parent`` and a ``position`` in it. ``round`` is the attempt at which a job has
    begun the group, map or pause that it stands at; its members carry it as ``parent_round``. ``waiting_for`` counts
    the members, or the dependencies, that are not done. ``watched`` says that an outcome concerns others as well, who
    are told in its transaction.
    """

    STATES = State

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created = models.DateTimeField(
        _("created"), default=timezone.now, editable=False, db_index=True
    )
    modified = models.DateTimeField(_("modified"), auto_now=True)
    name = models.CharField(_("name"), max_length=NAME_LENGTH)
    state = models.CharField(_("state"), max_length=20, choices=State.choices, default=State.NEW)
    next_task = models.CharField(_("next task"), max_length=PATH_LENGTH, blank=True)
    workspace: "models.JSONField[Any, Any]" = models.JSONField(
        _("workspace"), null=True, default=dict, blank=True
    )
    queue_name = models.CharField(
        _("queue"), max_length=QUEUE_LENGTH, default=_UnsetQueue("default")
    )
    priority = models.SmallIntegerField(_("priority"), default=_UnsetPriority(0))
    run_after = models.DateTimeField(_("run after"), null=True, blank=True)
    due = models.BooleanField(_("due"), default=True, db_default=True, editable=False)
    step = models.PositiveSmallIntegerField(_("step"), default=0, db_default=0, editable=False)
    attempt = models.PositiveIntegerField(_("attempt"), default=0, db_default=0, editable=False)
    # No database constraint: it would cost a lookup in every claim, and a worker's row may be pruned.
    worker = models.ForeignKey(
        Worker,
        verbose_name=_("worker"),
        null=True,
        editable=False,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="jobs",
    )
    finished = models.DateTimeField(_("finished"), null=True, editable=False)
    failures = models.PositiveIntegerField(_("failures"), default=0, db_default=0, editable=False)
    lost = models.PositiveSmallIntegerField(_("lost"), default=0, db_default=0, editable=False)
    progress = models.FloatField(_("progress"), null=True, editable=False)
    progress_message = models.CharField(
        _("progress message"), max_length=255, default="", db_default="", editable=False
    )
    deadline = models.DateTimeField(_("deadline"), null=True, blank=True)
    # Higher is earlier: of its deadline, or that of a job which waits for it. See `urgency_of`.
    urgency = models.BigIntegerField(_("urgency"), default=0, db_default=0, editable=False)
    home_queue = models.CharField(
        _("home queue"), max_length=QUEUE_LENGTH, default="", db_default="", editable=False
    )
    parent = models.ForeignKey(
        "self",
        verbose_name=_("parent"),
        null=True,
        editable=False,
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="children",
    )
    position = models.PositiveIntegerField(_("position"), null=True, editable=False)
    parent_round = models.PositiveIntegerField(_("parent's round"), null=True, editable=False)
    round = models.PositiveIntegerField(_("round"), null=True, editable=False)
    waiting_for = models.PositiveIntegerField(
        _("waiting for"), default=0, db_default=0, editable=False
    )
    watched = models.BooleanField(_("watched"), default=False, db_default=False, editable=False)
    pausing = models.BooleanField(_("pausing"), default=False, db_default=False, editable=False)
    result: "models.JSONField[Any, Any]" = models.JSONField(_("result"), null=True, editable=False)
    # Under a limit of its pipeline: kept out of the claim, whatever `run_after` says, until `limits` lets it in.
    limited = models.BooleanField(_("limited"), default=False, db_default=False, editable=False)
    concurrency_key = ExactField(
        _("concurrency key"), max_length=200, default="", db_default="", editable=False
    )
    rate_key = ExactField(_("rate key"), max_length=200, default="", db_default="", editable=False)
    unique_key = models.CharField(  # noqa: DJ001  # NULL: it is in no index then
        _("unique key"), max_length=64, null=True, editable=False
    )
    forked_from = models.ForeignKey(
        "self",
        verbose_name=_("forked from"),
        null=True,
        editable=False,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="forks",
    )

    # Set by the claim, for the worker that holds the job: its state before, and its place in the queues.
    claimed_from: State | None = None
    claimed_at: "QueuePlace | None" = None
    stored_workspace: str | None = None  # the workspace's text as stored, if that is known
    progress_told = False  # by the task: the outcome saves it
    progress_unsaved = False  # the worker saves it meanwhile, at most once a second
    claim_is_lost = False  # somebody else has the job by now
    needs = Needs()  # of a job that is being created

    objects = JobManager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        ordering = list(ORDER)
        indexes = [
            # The claim reads this one in order: it holds what can be claimed now and nothing else.
            PartialIndex(
                name="dbq_job_next",
                fields=["queue_name", "-priority", "-urgency", "created"],
                where=Q(due=True, state__in=_CLAIMABLE),
                whole=["state", "due", "queue_name", "-priority", "-urgency", "created"],
            ),
            # Jobs whose time has not come; staging reads its head.
            PartialIndex(
                name="dbq_job_later",
                fields=["run_after"],
                where=Q(due=False, limited=False, state__in=_CLAIMABLE),
                whole=["state", "due", "limited", "run_after"],
            ),
            # What each worker holds, for whoever has to take it when that worker is dead.
            PartialIndex(
                name="dbq_job_held",
                fields=["worker"],
                where=Q(state__in=_HELD),
                whole=["state", "worker"],
            ),
            PartialIndex(
                name="dbq_job_member",
                fields=["parent", "position"],
                where=Q(parent__isnull=False),
                whole=["parent", "position"],
            ),
            # Pauses, with the time at which they end by themselves, groups and maps; not what waits for other jobs.
            PartialIndex(
                name="dbq_job_waiting",
                fields=["run_after"],
                where=Q(state=str(State.WAITING), round__isnull=False),
                whole=["state", "run_after"],
            ),
            # What is under a limit: what of it runs, and what is parked, by key and turn.
            PartialIndex(
                name="dbq_job_limited",
                fields=[
                    *("name", "state", "due", "concurrency_key", "rate_key"),
                    *("-priority", "-urgency", "created"),
                ],
                where=Q(limited=True, state__in=[*_CLAIMABLE, *_HELD]),
                whole=[
                    *("limited", "name", "state", "due", "concurrency_key", "rate_key"),
                    *("-priority", "-urgency", "created"),
                ],
            ),
            # The constraint of `unique`: one unfinished job at most has a key.
            PartialUnique(
                name="dbq_job_unique",
                fields=["unique_key"],
                where=Q(unique_key__isnull=False, state__in=_UNFINISHED),
                only=_KEY_WHILE_UNFINISHED,
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=[str(state) for state in State]), name="dbq_job_state"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.id}"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As in Django. What most new jobs are made of does not go through all the fields one by one, which would take
        more time than all else that it takes to enqueue a job.
        """
        watched = pre_init.has_listeners(type(self)) or post_init.has_listeners(type(self))
        if args or watched or not kwargs.keys() <= GIVEN:
            super().__init__(*args, **kwargs)
            return
        self.__dict__.update(_defaults())
        self.id, self.workspace, self.created = uuid7(), {}, timezone.now()
        self.__dict__.update(kwargs)
        self._state = ModelState()

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the job; the first time, prepare it and run its creation hook in this process.

        Obeys the caller's transaction: created with its commit, gone with its rollback. Workers are woken on commit.
        While a worker runs the job, its tasks and hooks save only what is theirs (`OWN_FIELDS`): where the job stands
        is written with the step's outcome, by the engine.

        Where ``unique`` finds an unfinished job of the same values, no row is saved and this instance becomes that job
        (``unique_conflict="return"``), after it has been given what this one brings if it is still NEW ("replace").

        Raises:
            UnknownJob: ``JOBS`` has no valid entry of this name.
            InvalidWorkspace: the workspace is not JSON, does not follow its schema, or is no dict where one is needed.
            TypeError, ValueError: queue, priority or a time cannot be stored, or it depends on a job that does not
                exist.
            JobExists: with ``unique_conflict="raise"``.
            Exception: whatever the creation hook raises; no row is saved then.
        """
        if not self._state.adding:
            self.due = is_due(self.run_after) and (
                not self.limited or self.claimed_from is not None
            )
            self.stored_workspace = None  # unknown: this save may yet be rolled back
            fields = kwargs.get("update_fields")
            if self.claimed_from is not None:
                # Under a limit, only the engine lets it in: it may be somebody else's by now.
                own = [name for name in OWN_FIELDS if name != "due" or not self.limited]
                kwargs["update_fields"] = [name for name in fields or own if name in own]
            elif "deadline" in (self.__dict__ if fields is None else fields):
                self._hasten()
                if fields is not None:
                    kwargs["update_fields"] = [*fields, "urgency"]
            super().save(*args, **kwargs)
            return
        from . import engine

        self.prepare(timezone.now())
        alias = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        save = super().save

        def insert() -> None:
            with engine.creating(self, using=alias):
                save(*args, **kwargs)

        if self.unique_key is None:
            insert()
        elif (other := engine.insert_unique(self, insert, using=alias)) is not None:
            self.__dict__.update(other.__dict__)  # this is that job
            return
        engine.created([self], using=alias)

    def _hasten(self) -> None:
        """A deadline that is set later counts; where others may wait for the job, only if it makes it more urgent."""
        from . import engine

        self.deadline = as_time(self.deadline, "deadline")
        urgency = urgency_of(self.deadline)
        if urgency > self.urgency:
            engine.hasten(self.pk, urgency, self._alias)
        elif self.watched or self.parent_id is not None:
            return
        self.urgency = urgency

    def prepare(self, now: datetime.datetime) -> None:
        """Make this a new job as of ``now``: what its pipeline says, its creation hook, a workspace that is JSON."""
        from . import limits

        pipeline = conf.catalogue().named(self.name)
        self.created = self.modified = now
        self.next_task, self.step = pipeline.steps[0].path, 0
        self.workspace = self.workspace or {}
        if isinstance(self.queue_name, _Unset):
            self.queue_name = pipeline.queue
        if isinstance(self.priority, _Unset):
            self.priority = pipeline.priority
        if pipeline.creation_hook:
            import_string(pipeline.creation_hook)(self)
        for name, expects in (("queue_name", QUEUE), ("priority", PRIORITY)):
            if (expected := expects(value := getattr(self, name))) is not None:
                raise ValueError(f"{name} is {value!r}. Expected: {expected}.")
        self.enter(pipeline.steps[0])
        self.deadline = as_time(self.deadline, "deadline")
        self.urgency = urgency_of(self.deadline)
        self.run_after = as_time(self.run_after)
        self.due = is_due(self.run_after)
        self.stored_workspace = workspaces.dump(self.workspace)
        check_workspace(pipeline, self.workspace)
        self.unique_key = unique_key(pipeline, self)
        if self.unique_key and pipeline.unique_conflict == "replace" and self.needs.jobs:
            raise ValueError(
                f"The job {self.name!r} may replace another, which cannot take over what it depends on: leave "
                'depends_on out, or use another unique_conflict than "replace".'
            )
        limits.apply(pipeline, self)

    @classmethod
    def made(cls, attributes: Iterable[tuple[str, Any]], alias: str | None = None) -> "Job":
        """An instance with just these attributes: of a row in a database or, without an alias, a new one.

        For where many are made at once. Django's own way goes through all fields and takes ten times as long.
        """
        job = cls.__new__(cls)
        job.__dict__.update(attributes)
        job._state = ModelState()
        job._state.adding, job._state.db = alias is None, alias
        return job

    @property
    def place(self) -> QueuePlace:
        return QueuePlace(self.queue_name, self.priority, self.run_after, self.home_queue)

    def enter(self, step: Step) -> None:
        """Move to the queue of ``step`` or, from another step's, back to the job's own."""
        if step.queue is not None:
            self.home_queue = self.home_queue or self.queue_name
            self.queue_name = step.queue
        elif self.home_queue:
            self.queue_name, self.home_queue = self.home_queue, ""

    # -- what it waits for --

    @property
    def depends_on(self) -> models.QuerySet["Job"]:
        """The jobs that it was created to wait for, or that its task waits for. Give jobs or their ids to the
        constructor.
        """
        alias = self._state.db
        return Job.objects.using(alias).filter(dependents__job=self.pk)  # type: ignore[no-any-return]

    @depends_on.setter
    def depends_on(self, jobs: Iterable[Any]) -> None:
        if not self._state.adding:
            raise ValueError(
                "What a job depends on is said when it is created; its task may return Wait(jobs=…) later."
            )
        if isinstance(jobs, models.Model | str | uuid.UUID):
            raise TypeError(f"depends_on is {jobs!r}. Expected: a list of jobs, or of their ids.")
        keys = tuple(dict.fromkeys(key_of(job) for job in jobs or ()))
        self.needs = self.needs._replace(jobs=keys)

    @property
    def depends_mode(self) -> str:
        """ "all" or "any"; for the constructor."""
        return self.needs.mode

    @depends_mode.setter
    def depends_mode(self, mode: str) -> None:
        if mode not in DEPENDS_MODES:
            raise ValueError(f"depends_mode is {mode!r}. Expected: {' or '.join(DEPENDS_MODES)}.")
        self.needs = self.needs._replace(mode=mode)

    @property
    def on_dependency_failure(self) -> str:
        """ "block" or "proceed"; for the constructor."""
        return self.needs.on_failure

    @on_dependency_failure.setter
    def on_dependency_failure(self, policy: str) -> None:
        if policy not in ON_DEPENDENCY_FAILURE:
            known = " or ".join(ON_DEPENDENCY_FAILURE)
            raise ValueError(f"on_dependency_failure is {policy!r}. Expected: {known}.")
        self.needs = self.needs._replace(on_failure=policy)

    # -- for the task that runs the job --

    def checkpoint(self) -> None:
        """Save the workspace as it is now, in the middle of a task: an attempt after this one starts from there.

        In a transaction of the task's own (in an atomic step, say) it is saved with that transaction's commit.

        Raises:
            InvalidWorkspace: the workspace is not JSON.
            ClaimLost: the job is no longer this worker's; nothing was saved. Let it pass: it ends the task.
            RuntimeError: nobody runs this job here.
        """
        from . import engine

        self._must_be_run_here("checkpoint")
        if not engine.checkpoint(self, self._state.db or "default"):
            self.claim_is_lost = True
            raise ClaimLost(f"The job {self.pk} is no longer this worker's.")

    def set_progress(self, fraction: float, message: str = "") -> None:
        """Tell how far the task has come, for people to see. Cheap: the worker saves it at most once a second, outside
        any transaction of the task's, and the last one together with the outcome.

        Args:
            fraction: from 0 to 1.
            message: what is being done; over 255 characters are cut.

        Raises:
            TypeError, ValueError: ``fraction`` is no number, or not from 0 to 1.
            ClaimLost: the job is no longer this worker's. Let it pass: it ends the task.
            RuntimeError: nobody runs this job here.
        """
        self._must_be_run_here("set_progress")
        said = f"The progress is {fraction!r}. Expected: a number from 0 to 1."
        try:
            is_fraction = 0 <= fraction <= 1
        except TypeError:
            raise TypeError(said) from None
        if not is_fraction:
            raise ValueError(said)
        self.progress, self.progress_message = float(fraction), as_text(str(message))[:255]
        self.progress_told = self.progress_unsaved = True

    def _must_be_run_here(self, verb: str) -> None:
        if self.claimed_from is None:
            raise RuntimeError(
                f"{verb}() is for the task (or hook) that a worker gives the job to."
            )
        if self.claim_is_lost:
            raise ClaimLost(f"The job {self.pk} is no longer this worker's.")

    def _must_be_saved(self, verb: str) -> None:
        if self._state.adding:
            raise ValueError(f"{verb}() is for a job that is saved, and {self} is not.")

    # -- for whoever has created it --

    def wait(self, timeout: float | None = None) -> "Job | None":
        """Wait until the job is COMPLETE, FAILED or CANCELLED: this job with its fields as they are then.

        It polls, every half second at most. In a transaction that was begun before the job ended, some databases
        (MySQL, MariaDB) never show the end.

        Args:
            timeout: seconds to wait; None waits for ever.

        Returns:
            The job itself, or None if it has not ended in time.

        Raises:
            Job.DoesNotExist: it was deleted.
            ValueError: it is not saved.
            TypeError: ``timeout`` is no number.
        """
        self._must_be_saved("wait")
        if not isinstance(timeout, int | float | None):
            raise TypeError(f"The timeout is {timeout!r}. Expected: seconds, or None.")
        deadline = None if timeout is None else time.monotonic() + timeout
        pause, longest = LOOK_FOR_END
        states = type(self)._base_manager.using(self._state.db).values_list("state", flat=True)
        while True:
            if states.get(pk=self.pk) in FINISHED:
                self.refresh_from_db()
                return self
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                pause = min(pause, left)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    # -- for people --

    def retry(self, from_step: str | int | None = None) -> bool:
        """Run this job again if it is FAILED, CANCELLED or BLOCKED; False if it is not.

        It begins with the step that it stands at; at a group or map, only what has not completed is run again. Jobs
        that are BLOCKED by this one wait for it again.

        Args:
            from_step: name, path or place of the step to begin with instead.

        Raises:
            LookupError: ``JOBS`` does not know the job, or it has no such step.
        """
        from . import engine

        done = (
            self._steadily(engine.retry, self.pk, timezone.now(), self._alias, from_step)
            is not None
        )
        self._forget(done)
        return done

    def fork(self, from_step: str | int | None = None, workspace: Any = None) -> "Job":
        """Create a new job that starts at a step with this one's workspace; its ``forked_from`` is this job.

        The creation hook is not called: the copy is of a job that it has prepared.

        Args:
            from_step: name, path or place; by default where this job stands, or the first step if it has completed.
            workspace: instead of this job's own as it is now.

        Raises:
            LookupError: ``JOBS`` does not know the job, or it has no such step.
            InvalidWorkspace: the workspace is not JSON.
            ValueError: this job is not saved.
        """
        from . import engine

        self._must_be_saved("fork")
        return engine.fork(self, timezone.now(), self._alias, from_step, workspace)

    def cancel(self) -> bool:
        """Cancel the job if it has not ended, with all members of a group or map that it waits for; False if it has.

        A task that runs is told at its next checkpoint (`ClaimLost`), and where it can be interrupted within some
        seconds; nothing that it does from then on is saved. No hook is called.
        """
        from . import engine

        done = self._steadily(engine.cancel, [self.pk], timezone.now(), self._alias) > 0
        self._forget(done)
        return done

    def pause(self) -> bool:
        """Have the job rest until `resume`, with its members; what runs goes on to the end of its step. False if it has
        ended.
        """
        from . import engine

        done = self._steadily(engine.pause, [self.pk], timezone.now(), self._alias) > 0
        self._forget(done)
        return done

    def resume(self) -> bool:
        """Have a PAUSED job, and its members, go on where they were; False if nothing was paused."""
        from . import engine

        done = self._steadily(engine.resume, [self.pk], timezone.now(), self._alias) > 0
        self._forget(done)
        return done

    def send(self, event: str, payload: Any = None) -> bool:
        """Send an event: a job that waits for it, now or later, goes on, with the payload in ``workspace[event]``.

        False if the job has ended, or if the event was sent before and has not been taken: the first one counts.

        Raises:
            InvalidWorkspace: the payload is not JSON.
            ValueError: the event has no name, or one that is too long (200 characters).
        """
        from . import engine

        done = self._steadily(engine.send, self.pk, event, payload, timezone.now(), self._alias)
        self._forget(done)
        return done

    def explain(self) -> "Explanation":
        """Why the job is not running, or what became of it, and what to do; ``str()`` gives the text.

        Raises:
            Job.DoesNotExist: it was deleted.
            ValueError: it is not saved.
        """
        from . import explaining

        self._must_be_saved("explain")
        return explaining.explain(self, timezone.now())

    def _steadily(self, verb: Callable[..., T], *arguments: Any) -> T:
        from . import patience

        return patience.steadily(partial(verb, *arguments), self._alias)

    @property
    def _alias(self) -> str:
        return self._state.db or router.db_for_write(type(self), instance=self)

    def _forget(self, changed: bool) -> None:
        """Read again what somebody else has just written; the workspace stays as it is here."""
        if changed and self.claimed_from is None:
            names = [f.attname for f in self._meta.concrete_fields if f.name not in OWN_FIELDS]
            self.refresh_from_db(fields=[*names, "queue_name", "run_after", "due", "modified"])

    @staticmethod
    def get_queue_depths(*, exclude_future_jobs: bool = False) -> dict[str, int]:
        """How many jobs wait in each queue, by its name; a queue where none waits is absent.

        Args:
            exclude_future_jobs: leave out those whose ``run_after`` is still ahead.
        """
        jobs = Job.objects
        waiting = jobs.claimable(timezone.now()) if exclude_future_jobs else jobs.waiting()
        counts = waiting.order_by("queue_name").values_list("queue_name").annotate(Count("pk"))
        return dict(counts)


# What `Job()` is given most of the time: columns that are set by nothing but their value.
GIVEN = frozenset({"name", "workspace", "queue_name", "priority", "run_after", "deadline"})


@cache
def _defaults() -> dict[str, Any]:
    """The attributes of a new job, but for those that each has of its own."""
    return {field.attname: field.get_default() for field in Job._meta.concrete_fields}
