"""The tables: `Job`, its `Attempt` rows, and the `Worker` rows that hold jobs.

Fields, constraints, indexes and named querysets. Nothing here moves a job's state: that is the engine's, which only
`Job.save()`, `JobManager.bulk_create()` and `JobManager.delete_old()` reach from here.
"""

import datetime
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.db import DatabaseError, models, router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Count, Q
from django.utils import timezone
from django.utils.module_loading import import_string
from django.utils.translation import gettext_lazy as _

from . import conf, workspaces
from .options import PRIORITY, QUEUE, QUEUE_LENGTH
from .outcomes import AttemptOutcome, ClaimLost
from .pipelines import NAME_LENGTH, PATH_LENGTH
from .states import CLAIMABLE, FINISHED, HELD, State
from .uuids import uuid7

logger = logging.getLogger("django_dbq")

DEFAULT_DELETE_JOBS_AFTER_HOURS = 24
LOOK_FOR_END = (0.02, 0.5)  # seconds between two looks of `Job.wait`: at first, and at most

# For migrations: the same tuple as lists of plain strings, so that an index deconstructs to literals.
_CLAIMABLE = [str(state) for state in CLAIMABLE]
_HELD = [str(state) for state in HELD]


class PartialIndex(models.Index):
    """An index of the rows where ``where`` holds; on databases without partial indexes (MySQL, MariaDB) one
    over ``whole``.

    Django would make such an index there without its condition and in its order, which serves no query of ours.
    """

    def __init__(self, *, where: Q, whole: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where, self.whole = where, list(whole)

    def deconstruct(self) -> Any:
        path, args, kwargs = super().deconstruct()
        return path, args, {**kwargs, "where": self.where, "whole": self.whole}

    def create_sql(
        self,
        model: type[models.Model],
        schema_editor: BaseDatabaseSchemaEditor,
        using: str = "",
        **kwargs: Any,
    ) -> Any:
        if schema_editor.connection.features.supports_partial_indexes:
            made = models.Index(fields=self.fields, name=self.name, condition=self.where)
        else:
            made = models.Index(fields=self.whole, name=self.name)
        return made.create_sql(model, schema_editor, using=using, **kwargs)


class _Unset:
    """Marks a field's default, so that a value given by the caller is told from one that was not given."""


class _UnsetQueue(_Unset, str):
    pass


class _UnsetPriority(_Unset, int):
    pass


def as_text(text: str) -> str:
    """``text`` as every database stores it: without NUL characters and halves of surrogate pairs."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def as_time(run_after: Any) -> Any:
    """A ``run_after`` as the database will have it, from anything that the field takes; an expression as it is.

    Raises:
        TypeError, ValueError, ValidationError: it is no time, or none that the database could store.
    """
    if run_after is None or hasattr(run_after, "resolve_expression"):
        return run_after
    time = Job._meta.get_field("run_after").get_prep_value(run_after)
    if isinstance(time, datetime.datetime) and timezone.is_aware(time):
        if not settings.USE_TZ:
            raise ValueError(f"run_after is {time!r}, which has a time zone; USE_TZ is off.")
        try:
            time.astimezone(datetime.UTC)
        except OverflowError:
            raise ValueError(f"run_after is {time!r}, which is no time in UTC.") from None
    return time


def is_due(run_after: Any) -> bool:
    """What the hint ``due`` has to say of a job that is written now; of an expression nothing is known: it is due."""
    time = as_time(run_after)
    return not isinstance(time, datetime.datetime) or time <= timezone.now()


class JobQuerySet(models.QuerySet["Job"]):
    def update(self, **kwargs: Any) -> int:
        """As in Django; a new ``run_after`` carries its hint ``due`` along."""
        if "run_after" in kwargs:
            kwargs.setdefault("due", is_due(kwargs["run_after"]))
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
            objs: unsaved jobs.
            batch_size: rows per statement; by default as many as suits the database.

        Raises:
            UnknownJob, InvalidWorkspace, ValueError: for a job that cannot be created.
            Exception: whatever a creation hook raises. Nothing has been saved then.
        """
        from . import engine

        if refused := [name for name, value in kwargs.items() if value]:
            raise TypeError(f"bulk_create of jobs does not take {', '.join(refused)}")
        jobs = list(objs)
        now = timezone.now()
        for place, job in enumerate(jobs):
            job.prepare(now + datetime.timedelta(microseconds=place))
        self._for_write = True
        engine.insert(jobs, using=self.db, batch_size=batch_size)
        return jobs


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


class Worker(models.Model):
    """One worker process: who holds the jobs that point here, for as long as it reports.

    ``heartbeat`` is the database's time of its last report; NULL says that it is known to be dead. Once it is over
    ``timeout`` seconds old, any other worker may take its jobs. ``stopped`` and ``reason`` tell of its end, as the
    worker itself or whoever took its jobs has written it.
    """

    label = models.CharField(_("label"), max_length=255)
    hostname = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("process id"))
    queues = models.CharField(_("queues"), max_length=1000)
    started = models.DateTimeField(_("started"))
    stopped = models.DateTimeField(_("stopped"), null=True)
    heartbeat = models.DateTimeField(_("heartbeat"), null=True)
    timeout = models.FloatField(_("timeout in seconds"), default=60.0, db_default=60.0)
    reason = models.CharField(
        _("reason of its end"), max_length=255, default="", db_default="", blank=True
    )

    class Meta:
        verbose_name = _("worker")
        verbose_name_plural = _("workers")

    def __str__(self) -> str:
        return self.label


# What tasks and hooks may save of the job that they are given.
OWN_FIELDS = ("workspace", "queue_name", "priority", "run_after", "due", "modified")


class QueuePlace(NamedTuple):
    """What decides when a job is claimed; a task may change it for the steps that follow."""

    queue_name: str
    priority: int
    run_after: datetime.datetime | None


class Job(models.Model):
    """One run of a pipeline.

    ``next_task`` and ``step`` (the path and the place of the step that comes next) are where the job
    stands; setting ``state`` to READY and ``next_task`` by a plain update sends it there. ``attempt`` and
    ``worker`` are the fence: they change with every claim, and an outcome is only written where both are
    still as claimed. ``due`` is a hint that keeps future jobs out of the claim's index; ``run_after``
    decides. ``failures`` and ``lost`` count the failed (or timed out) and the lost attempts at the current step.
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

    # Set by the claim, for the worker that holds the job: its state before, and its place in the queues.
    claimed_from: State | None = None
    claimed_at: "QueuePlace | None" = None
    stored_workspace: str | None = None  # the workspace's text as stored, if that is known
    progress_told = False  # by the task: the outcome saves it
    progress_unsaved = False  # the worker saves it meanwhile, at most once a second
    claim_is_lost = False  # somebody else has the job by now

    objects = JobManager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        ordering = ["-priority", "created"]
        indexes = [
            # The claim reads this one in order: it holds what can be claimed now and nothing else.
            PartialIndex(
                name="dbq_job_claim",
                fields=["queue_name", "-priority", "created"],
                where=Q(due=True, state__in=_CLAIMABLE),
                whole=["state", "due", "queue_name", "-priority", "created"],
            ),
            # Jobs whose time has not come; staging reads its head.
            PartialIndex(
                name="dbq_job_future",
                fields=["run_after"],
                where=Q(due=False, state__in=_CLAIMABLE),
                whole=["state", "due", "run_after"],
            ),
            # What each worker holds, for whoever has to take it when that worker is dead.
            PartialIndex(
                name="dbq_job_held",
                fields=["worker"],
                where=Q(state__in=_HELD),
                whole=["state", "worker"],
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=[str(state) for state in State]), name="dbq_job_state"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.id}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save the job; the first time, prepare it and run its creation hook in this process.

        Obeys the caller's transaction: created with its commit, gone with its rollback. Workers are woken on commit.
        While a worker runs the job, its tasks and hooks save only what is theirs (`OWN_FIELDS`): where the job stands
        is written with the step's outcome, by the engine.

        Raises:
            UnknownJob: ``JOBS`` has no valid entry of this name.
            InvalidWorkspace: the workspace is not JSON.
            ValueError: queue or priority cannot be stored.
            Exception: whatever the creation hook raises; no row is saved then.
        """
        if not self._state.adding:
            self.due = is_due(self.run_after)
            self.stored_workspace = None  # unknown: this save may yet be rolled back
            if self.claimed_from is not None:
                fields = kwargs.get("update_fields") or OWN_FIELDS
                kwargs["update_fields"] = [name for name in fields if name in OWN_FIELDS]
            super().save(*args, **kwargs)
            return
        from . import engine

        self.prepare(timezone.now())
        alias = kwargs.get("using") or router.db_for_write(type(self), instance=self)
        with engine.announcing(self, using=alias):
            super().save(*args, **kwargs)
        engine.created([self], using=alias)

    def prepare(self, now: datetime.datetime) -> None:
        """Make this a new job as of ``now``: what its pipeline says, its creation hook, a workspace that is JSON."""
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
        self.run_after = as_time(self.run_after)
        self.due = is_due(self.run_after)
        self.stored_workspace = workspaces.dump(self.workspace)

    @property
    def place(self) -> QueuePlace:
        return QueuePlace(self.queue_name, self.priority, self.run_after)

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
        if not engine.checkpoint(self, timezone.now(), self._state.db or "default"):
            self.claim_is_lost = True
            raise ClaimLost(f"The job {self.pk} is no longer this worker's.")

    def set_progress(self, fraction: float, message: str = "") -> None:
        """Tell how far the task has come, for people to see. Cheap: the worker saves it at most once a second, outside
        any transaction of the task's, and the last one together with the outcome.

        Args:
            fraction: from 0 to 1.
            message: what is being done; over 255 characters are cut.

        Raises:
            ValueError: ``fraction`` is not from 0 to 1.
            ClaimLost: the job is no longer this worker's. Let it pass: it ends the task.
            RuntimeError: nobody runs this job here.
        """
        self._must_be_run_here("set_progress")
        if not 0 <= fraction <= 1:
            raise ValueError(f"The progress is {fraction!r}. Expected: a number from 0 to 1.")
        self.progress, self.progress_message = float(fraction), as_text(str(message))[:255]
        self.progress_told = self.progress_unsaved = True

    def _must_be_run_here(self, verb: str) -> None:
        if self.claimed_from is None:
            raise RuntimeError(
                f"{verb}() is for the task (or hook) that a worker gives the job to."
            )
        if self.claim_is_lost:
            raise ClaimLost(f"The job {self.pk} is no longer this worker's.")

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
        """
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


class Attempt(models.Model):
    """One execution of one step; written once, when it has ended."""

    # No database constraint: it would lock and look up the job for every row; Django deletes them with their job.
    job = models.ForeignKey(
        Job,
        verbose_name=_("job"),
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="attempts",
    )
    number = models.PositiveIntegerField(_("number"))
    step = models.PositiveSmallIntegerField(_("step"))
    task = models.CharField(_("task"), max_length=PATH_LENGTH)
    outcome = models.CharField(_("outcome"), max_length=20, choices=AttemptOutcome.choices)
    worker = models.CharField(_("worker"), max_length=255)
    started = models.DateTimeField(_("started"))
    finished = models.DateTimeField(_("finished"))
    error = models.TextField(_("error"), blank=True)

    class Meta:
        verbose_name = _("attempt")
        verbose_name_plural = _("attempts")
        ordering = ["job", "number"]
        indexes = [models.Index(fields=["job", "number"], name="dbq_attempt_number")]

    def __str__(self) -> str:
        return f"{self.task} {self.number}"

    @property
    def duration(self) -> datetime.timedelta:
        """How long the step ran."""
        return self.finished - self.started
