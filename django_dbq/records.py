"""The rows that accompany jobs: what became of their steps, what they wait for, who holds them, what limits them."""

import datetime
from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from .fields import ExactField
from .options import EVENT_LENGTH, QUEUE_LENGTH
from .outcomes import AttemptOutcome
from .pipelines import NAME_LENGTH, PATH_LENGTH


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


class Queue(models.Model):
    """What is known of a queue beyond its name; most queues have no row."""

    name = ExactField(_("name"), max_length=QUEUE_LENGTH, primary_key=True)
    paused = models.DateTimeField(_("paused"), null=True)

    class Meta:
        verbose_name = _("queue")
        verbose_name_plural = _("queues")

    def __str__(self) -> str:
        return str(self.name)


class Attempt(models.Model):
    """One execution of one step; written once, when it has ended."""

    # No database constraint: it would lock and look up the job for every row; Django deletes them with their job.
    job = models.ForeignKey(
        "django_dbq.Job",
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


class DependencyState(models.TextChoices):
    """How far the one job is that another waits for."""

    OPEN = "open", _("Open")
    DONE = "done", _("Done")
    FAILED = "failed", _("Failed")
    LEFT = "left", _("No longer waited for")


class Dependency(models.Model):
    """One job waits for another; what this comes to is written in the transaction that ends the other."""

    job = models.ForeignKey(
        "django_dbq.Job",
        verbose_name=_("job"),
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="dependencies",
    )
    on = models.ForeignKey(
        "django_dbq.Job",
        verbose_name=_("on"),
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="dependents",
    )
    mode = models.CharField(_("mode"), max_length=10, default="all")
    on_failure = models.CharField(_("on failure"), max_length=10, default="block")
    state = models.CharField(
        _("state"),
        max_length=10,
        choices=DependencyState.choices,
        default=DependencyState.OPEN,
    )

    class Meta:
        verbose_name = _("dependency")
        verbose_name_plural = _("dependencies")
        constraints = [models.UniqueConstraint(fields=["job", "on"], name="dbq_dependency")]
        indexes = [models.Index(fields=["state", "on"], name="dbq_dependency_on")]

    def __str__(self) -> str:
        return f"{self.job_id} on {self.on_id}"


class JobEvent(models.Model):
    """An event that was sent to a job; ``taken`` is the attempt that has found it, 0 until then."""

    job = models.ForeignKey(
        "django_dbq.Job",
        verbose_name=_("job"),
        on_delete=models.CASCADE,
        db_constraint=False,
        db_index=False,
        related_name="events",
    )
    name = ExactField(_("name"), max_length=EVENT_LENGTH)
    payload: "models.JSONField[Any, Any]" = models.JSONField(_("payload"), null=True)
    sent = models.DateTimeField(_("sent"))
    taken = models.PositiveIntegerField(_("taken"), default=0)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        constraints = [
            models.UniqueConstraint(fields=["job", "name", "taken"], name="dbq_event"),
        ]

    def __str__(self) -> str:
        return f"{self.name} to {self.job_id}"


class Limit(models.Model):
    """One pipeline with limits; its row is locked by whoever admits jobs of it. The keys are the last that were looked
    at, if there were more than one admission looks at.
    """

    name = ExactField(_("name"), max_length=NAME_LENGTH, primary_key=True)
    concurrency_key = ExactField(_("concurrency key"), max_length=200, default="")
    rate_key = ExactField(_("rate key"), max_length=200, default="")

    class Meta:
        verbose_name = _("limit")
        verbose_name_plural = _("limits")

    def __str__(self) -> str:
        return str(self.name)


class Start(models.Model):
    """One start under a rate limit; deleted when it is out of the window.

    ``at`` is the database's time after the claim, NULL for a job that was ``admitted`` and not claimed yet.
    """

    name = ExactField(_("name"), max_length=NAME_LENGTH)
    key = ExactField(_("key"), max_length=200)
    admitted = models.DateTimeField(_("admitted"))
    at = models.DateTimeField(_("at"), null=True)
    job = models.ForeignKey(
        "django_dbq.Job",
        verbose_name=_("job"),
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="starts",
    )
    attempt = models.PositiveIntegerField(_("attempt"))

    class Meta:
        verbose_name = _("start")
        verbose_name_plural = _("starts")
        indexes = [models.Index(fields=["name", "at"], name="dbq_start_at")]

    def __str__(self) -> str:
        return f"{self.name} at {self.at}"
